"""What all tabs share: one page's settings, networks, decoder, result files, and how failures are told."""

from __future__ import annotations

import functools
import html
import inspect
import logging
import re
import secrets
import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from moevision.app.models import Models
from moevision.app.sandbox import Decoder
from moevision.app.settings import Settings
from moevision.errors import InputError, MoevisionError

logger = logging.getLogger("moevision")

EXAMPLES = Path(__file__).parent / "examples"
SCENES = Path(__file__).parent / "scenes"
_FOLDERS = re.compile(r"(?<![\w.:/])/(?:[^\s/:]+/)+")


class Page:
    """One server's page.

    Args:
        settings: what its owner decided.
        folder: of uploads and results; gradio's cache. Files in it are served to whoever knows their random names.
    """

    def __init__(self, settings: Settings, folder: Path) -> None:
        self.settings, self.folder = settings, folder
        self.models, self.decoder = Models(settings), Decoder(settings)
        self._warmed = False

    def warm(self) -> None:
        """Start what the first request needs, in the background: a visitor has chosen a file."""
        if not self._warmed:
            self._warmed = True
            threading.Thread(target=self.models.warm, daemon=True).start()
        self.decoder.warm()

    @contextmanager
    def results(self) -> Iterator[Path]:
        """A new folder for the files of one result, whose name cannot be guessed; taken away if the block fails."""
        folder = self.folder / secrets.token_hex(20)
        folder.mkdir(mode=0o700)
        try:
            yield folder
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise


def chosen(path: str | None, what: str) -> tuple[Path, str]:
    """An upload and what messages call it; raises InputError where there is none."""
    if not path:
        raise InputError(f"no {what} yet: choose one first")
    return Path(path), Path(path).name


def told(work: Callable[..., Any]) -> Callable[..., Any]:
    """The function with its failures as one line on the page: never a traceback, never a path of the server."""

    @functools.wraps(work)
    def run(*arguments: Any) -> Any:
        try:
            return work(*arguments)
        except Exception as error:
            raise _on_page(error) from None

    @functools.wraps(work)
    def run_steps(*arguments: Any) -> Iterator[Any]:
        try:
            yield from work(*arguments)
        except Exception as error:
            raise _on_page(error) from None

    return run_steps if inspect.isgeneratorfunction(work) else run


def _on_page(error: Exception) -> Exception:
    import gradio as gr

    if isinstance(error, MoevisionError):
        text = _FOLDERS.sub("", " ".join(str(error).split()))
    else:
        logger.error("a request failed", exc_info=error)
        text = "something is wrong in the program, not with what you did; its log says what"
    # The page shows the message as HTML, and it may hold the name of a stranger's file.
    return gr.Error(html.escape(text, quote=False), title="That did not work", duration=20, print_exception=False)


def model_choice(page: Page, task: str) -> list[Any]:
    """A dropdown of the models of a task, as the last of a tab's inputs; none where there is no choice."""
    import gradio as gr

    labels = list(page.models.offered[task])
    return [gr.Dropdown(labels, value=labels[0], label="Model")] if len(labels) > 1 else []


def picture_input(label: str, min_width: int = 160) -> Any:
    """Where a picture is dropped or pasted, at least `min_width` px wide; the tab's function gets its path."""
    import gradio as gr

    image = gr.Image(
        label=label, type="filepath", image_mode=None, sources=["upload", "clipboard"], min_width=min_width
    )
    image.preprocess = upload_path  # type: ignore[method-assign,assignment]
    return image


def result_file(label: str) -> Any:
    """Where the file of a result is downloaded."""
    import gradio as gr

    return gr.File(label=label, interactive=False, height=90, elem_classes="result")


def upload_path(payload: Any) -> str | None:
    """Stands in for gradio's `preprocess`, which would open the file in this process."""
    path = getattr(payload, "path", None)
    return str(path) if path else None
