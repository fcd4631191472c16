"""Starts the page, safe by default, and takes everything away when it ends."""

from __future__ import annotations

import logging
import os
import signal
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from moevision.app.settings import Settings
from moevision.errors import InputError, MissingExtraError, UsageError

if TYPE_CHECKING:
    from moevision.app.page import Page

_LOOPBACK = frozenset({"127.0.0.1", "localhost", "::1"})
_KEPT = "GRADIO_ROOT_PATH"  # behind a proxy; others share the page, open folders, or let visitors edit the program
# Gradio keeps 130 kB of every visitor whose browser did not say goodbye; the page needs nothing of it.
_SESSIONS = 128


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach it."""
    return host in _LOOPBACK


def serve(settings: Settings, host: str, port: int | None, ready: Callable[[str], None]) -> None:
    """Serve the page until SIGINT or SIGTERM.

    Args:
        settings: limits and weights.
        host, port: where it listens; without a port the first free one from 7860 on.
        ready: called with the address once the page answers.

    Raises:
        MissingExtraError: gradio is not installed. UsageError: the port is taken.
    """
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    with tempfile.TemporaryDirectory(prefix="moevision-demo-", ignore_cleanup_errors=True) as folder:
        _prepare(Path(folder))
        from moevision.app.page import Page

        page = Page(settings, Path(folder))
        try:
            blocks = _launch(page, host, port)
            ready(blocks.local_url)
            page.decoder.warm()
            stop.wait()
            blocks.close(verbose=False)
        finally:
            page.decoder.close()


def _prepare(folder: Path) -> None:
    """Environment and repairs that must be there before gradio starts."""
    for name in [name for name in os.environ if name.startswith("GRADIO_") and name != _KEPT]:
        del os.environ[name]
    os.environ |= {"GRADIO_ANALYTICS_ENABLED": "False", "HF_HUB_OFFLINE": "1", "GRADIO_TEMP_DIR": str(folder)}
    local = ",".join(filter(None, [os.environ.get("NO_PROXY"), "127.0.0.1,localhost"]))
    os.environ |= {"NO_PROXY": local, "no_proxy": local}
    try:
        import gradio.processing_utils as gradio_files
    except ImportError:
        raise MissingExtraError('the page needs gradio: pip install "moevision[app]"') from None
    logging.getLogger("httpx").setLevel(logging.WARNING)
    # A request that gives an address in place of an upload would have the server fetch it.
    for name in ("async_ssrf_protected_download", "ssrf_protected_download", "save_url_to_cache"):
        if hasattr(gradio_files, name):
            setattr(gradio_files, name, _refuse_address)


def _refuse_address(*_: object, **__: object) -> NoReturn:
    raise InputError("addresses are not fetched here; upload the file")


def _launch(page: Page, host: str, port: int | None) -> Any:
    from starlette.middleware import Middleware

    from moevision.app.blocks import CSS, HEAD, build_blocks, theme
    from moevision.app.guard import Guard

    hosts = _LOOPBACK if is_loopback(host) else None
    guard = Middleware(
        Guard, folder=page.folder, max_upload_bytes=page.settings.max_file_bytes, hosts=hosts  # type: ignore[arg-type]
    )  # fmt: skip
    blocks = build_blocks(page)
    try:
        blocks.launch(
            server_name=host, server_port=port, share=False, prevent_thread_lock=True, quiet=True, inbrowser=False,
            max_file_size=page.settings.max_file_bytes, allowed_paths=[], show_error=False, enable_monitoring=False,
            strict_cors=True, ssr_mode=False, mcp_server=False, pwa=False, footer_links=["api"],
            state_session_capacity=_SESSIONS, app_kwargs={"middleware": [guard]}, theme=theme(), css=CSS, head=HEAD,
        )  # fmt: skip
    except OSError as error:
        raise UsageError(f"--port {port or '7860 to 7959'}: cannot listen there ({error}); choose another") from None
    return blocks
