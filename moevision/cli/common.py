"""What every command shares: options, the config file, logging, and errors as one line with an exit code."""

from __future__ import annotations

import functools
import json
import logging
import sys
import tomllib
import traceback
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from moevision.cli import completion
from moevision.errors import MoevisionError, UsageError

if TYPE_CHECKING:
    from rich.console import Console

logger = logging.getLogger("moevision")

# typer 0.2x carries its own copy of click: reached through the class, this is the right one in every version.
_CommandLineError: type[Exception] = typer.BadParameter.__mro__[2]


class CommandGroup(TyperGroup):
    """The root command: turns exceptions into one line on stderr and the exit codes of `moevision.errors`."""

    def invoke(self, ctx: Any) -> Any:
        """Run the chosen command."""
        try:
            return super().invoke(ctx)
        except (typer.Exit, typer.Abort, BrokenPipeError, _CommandLineError):
            raise
        except MoevisionError as error:
            _fail(str(error), error.exit_code)
        except KeyboardInterrupt:
            _fail("interrupted", 130)
        except Exception as error:
            hint = (
                ""
                if logger.isEnabledFor(logging.DEBUG)
                else "; run with --debug for the traceback, and please report it"
            )
            _fail(f"bug: {type(error).__name__}: {error}{hint}", 1)


def _fail(text: str, code: int) -> None:
    if logger.isEnabledFor(logging.DEBUG):
        say(traceback.format_exc())
    say(f"moevision: error: {one_line(text)}", style="red")
    raise typer.Exit(code)


@functools.cache
def stderr_console() -> Console:
    """The one console on stderr: log lines go above a progress bar because both know of each other."""
    from rich.console import Console

    return Console(stderr=True, highlight=False, markup=False, soft_wrap=True)


def say(text: str, style: str = "") -> None:
    """Print to stderr, where everything goes that is not a result."""
    stderr_console().print(text, style=style or None)


def one_line(text: str) -> str:
    """`text` without line breaks and characters a terminal cannot show."""
    from moevision.engine.names import shown

    return shown(" ".join(text.splitlines()))


def set_up_logging(*, quiet: bool, verbose: bool, debug: bool) -> None:
    """Send the log to stderr, at WARNING unless told otherwise."""
    from rich.logging import RichHandler

    level = logging.DEBUG if debug else logging.INFO if verbose else logging.ERROR if quiet else logging.WARNING
    handler: logging.Handler
    if sys.stderr.isatty():
        handler = RichHandler(console=stderr_console(), show_path=debug, markup=False, log_time_format="[%X]")
    else:  # lines of a log file are not folded at 80 columns
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter("moevision: %(levelname)s: %(message)s"))
    logger.handlers[:] = [handler]
    logger.setLevel(level)
    logger.propagate = False
    logging.captureWarnings(True)
    logging.getLogger("py.warnings").handlers[:] = [handler] if verbose or debug else [logging.NullHandler()]


def read_config(path: Path, command: tuple[str, ...]) -> dict[str, Any]:
    """The table of `command` in a TOML file, as `[restore]` or `[train.restoration]`; keys are the long options."""
    try:
        table: Any = tomllib.loads(path.read_text("utf-8"))
    except OSError as error:
        raise UsageError(f"--config {path}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"--config {path}: not a TOML file: {error}") from error
    for name in command:
        table = table.get(name, {})
        if not isinstance(table, dict):
            raise UsageError(f"--config {path}: [{'.'.join(command)}] must be a table")
    return {key.replace("-", "_"): value for key, value in table.items()}


def _apply_config(ctx: typer.Context, path: Path | None) -> Path | None:
    """Make the file's values the command's defaults: flags win over the file, the file over the built-in defaults."""
    if path is None or ctx.resilient_parsing:
        return path
    context: Any = ctx
    names: list[str] = []
    while context.parent is not None:
        names.append(context.info_name or "")
        context = context.parent
    command = tuple(reversed(names))
    values = read_config(path, command)
    # Parameters are called as their option, but for a few whose option is a Python word or built-in.
    parameters = {_option_name(parameter): parameter.name for parameter in ctx.command.params}
    for key in values:
        if key not in parameters or key == "config":
            known = ", ".join(sorted(name for name in parameters if name != "config"))
            raise UsageError(f"--config {path}: [{'.'.join(command)}] has no option {key!r}; it has {known}")
    ctx.default_map = {parameters[key]: value for key, value in values.items()}
    return path


def _option_name(parameter: Any) -> str:
    longest = max(parameter.opts, key=len)
    return str(longest).removeprefix("--").replace("-", "_").lower()


def show_result(result: dict[str, Any], numbers: dict[str, Any], json_file: Path | None, *, quiet: bool) -> None:
    """Print `numbers` to stdout, one a line (`baselines.identity.psnr 20.1`); write all of `result` to `json_file`."""
    from moevision.imaging.write import atomic_write_text

    if json_file is not None:
        json_file.parent.mkdir(parents=True, exist_ok=True)
        atomic_write_text(json_file, json.dumps(result, indent=2, ensure_ascii=False) + "\n")
    if not quiet:
        for name, value in _flat(numbers):
            typer.echo(f"{name} {value:.4f}" if isinstance(value, float) else f"{name} {value}")


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def parse_tile(text: str) -> int | None:
    """`auto` -> None, `0` (the whole image) -> 0, `N` -> N pixels."""
    if text == "auto":
        return None
    if not text.isdecimal() or 0 < int(text) < 64:
        raise UsageError(f"--tile {text}: use auto, 0 for the whole image, or a size of at least 64 px")
    return int(text)


def parse_weather(text: str) -> tuple[str, ...] | None:
    """`auto` -> None, `rain, haze` -> ("rain", "haze"), in the order the network knows them."""
    if text == "auto":
        return None
    from moevision.tasks.restoration.weathers import known_weathers

    return known_weathers([name.strip() for name in text.split(",")])


def fingerprint(model: str) -> str:
    """What tells these weights from others of that name: the manifest's sha256, or size and time of the user's file."""
    from moevision.api import list_models

    for entry in list_models():
        if entry.get("name") == model:
            return str(entry.get("sha256", ""))
    try:
        status = Path(model).stat()
    except OSError:
        return ""  # whoever loads it will say what is wrong
    return f"{status.st_size}-{status.st_mtime_ns}"


_WORKING, _OUTPUT, _LOG = "Computing", "Output", "Messages and settings"

Inputs = Annotated[
    list[str],
    typer.Argument(
        help="Files, folders, quoted patterns such as 'photos/**/*.jpg', or - for a list on stdin.", show_default=False
    ),
]
Output = Annotated[
    Path,
    typer.Option(
        "--output",
        "-o",
        help="Output folder; for one input also a file name.",
        show_default=False,
        rich_help_panel=_OUTPUT,
    ),
]
Data = Annotated[Path, typer.Option("--data", help="Folder with the data.", show_default=False)]
JsonFile = Annotated[
    Path | None, typer.Option("--json", help="Also write the result to this file.", show_default=False)
]
Model = Annotated[
    str,
    typer.Option(
        "--model",
        help="A name from 'moevision models' or a .safetensors file.",
        rich_help_panel=_WORKING,
        autocompletion=completion.models,
    ),
]
Device = Annotated[
    str,
    typer.Option(
        "--device",
        help="auto, cpu, cuda, cuda:N or mps.",
        rich_help_panel=_WORKING,
        autocompletion=completion.one_of("auto", "cpu", "cuda", "mps"),
    ),
]
Precision = Annotated[
    str,
    typer.Option(
        "--precision",
        help="auto, fp32 or bf16; auto takes bf16 where it is fast.",
        rich_help_panel=_WORKING,
        autocompletion=completion.one_of("auto", "fp32", "bf16"),
    ),
]
Tile = Annotated[
    str, typer.Option("--tile", help="Tile size in pixels: auto, 0 = whole image, or N.", rich_help_panel=_WORKING)
]
Runtime = Annotated[
    str,
    typer.Option(
        "--runtime",
        help="What computes: torch; or onnx or openvino, on the CPU, with the model exported once and kept, or with a "
        "file from 'moevision export' given as --model.",
        rich_help_panel=_WORKING,
    ),
]
Size = Annotated[
    int | None,
    typer.Option(
        "--size",
        min=0,
        help="Longer side in pixels that the network sees; larger pictures are shrunk to it first. 0 = as they are; "
        "without it, what the model was made for, 640.",
        show_default=False,
        rich_help_panel=_WORKING,
    ),
]
Experts = Annotated[
    int | None,
    typer.Option(
        "--experts",
        min=1,
        help="How many experts work on every part of the picture: fewer are faster; without it, as the model says.",
        show_default=False,
        rich_help_panel=_WORKING,
    ),
]
Weather = Annotated[
    str,
    typer.Option(
        "--weather",
        help="What to take away: auto = what is detected, or a list such as rain,haze.",
        rich_help_panel=_WORKING,
        autocompletion=completion.weathers("auto"),
    ),
]
Jobs = Annotated[
    int, typer.Option("--jobs", min=1, max=64, help="Pictures read ahead in the background.", rich_help_panel=_WORKING)
]
Recursive = Annotated[
    bool, typer.Option("--recursive/--no-recursive", help="Go into sub-folders.", rich_help_panel=_OUTPUT)
]
OnExists = Annotated[
    str,
    typer.Option(
        "--on-exists",
        help="If an output exists: fail, skip, overwrite or rename (a-1.png).",
        rich_help_panel=_OUTPUT,
        autocompletion=completion.one_of("fail", "skip", "overwrite", "rename"),
    ),
]
Resume = Annotated[
    bool, typer.Option("--resume", help="Leave out what an earlier, equal run finished.", rich_help_panel=_OUTPUT)
]
Format = Annotated[
    str,
    typer.Option(
        "--format",
        help="Output format: same, png, jpg, webp, tiff or bmp.",
        rich_help_panel=_OUTPUT,
        autocompletion=completion.one_of("same", "png", "jpg", "webp", "tiff", "bmp"),
    ),
]
Quality = Annotated[int, typer.Option("--quality", min=1, max=100, help="Of JPEG and WebP.", rich_help_panel=_OUTPUT)]
StripMetadata = Annotated[
    bool, typer.Option("--strip-metadata", help="Leave out EXIF (place, camera, time).", rich_help_panel=_OUTPUT)
]
ReportFile = Annotated[
    Path | None,
    typer.Option(
        "--report", help="Write a report: a .json, .csv or .html file.", show_default=False, rich_help_panel=_OUTPUT
    ),
]
DryRun = Annotated[
    bool, typer.Option("--dry-run", help="Say what would be done; touch nothing.", rich_help_panel=_OUTPUT)
]
Seed = Annotated[int, typer.Option("--seed", help="Seed of every random choice.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Say nothing but errors.", rich_help_panel=_LOG)]
Verbose = Annotated[bool, typer.Option("--verbose", "-v", help="Say more.", rich_help_panel=_LOG)]
Debug = Annotated[bool, typer.Option("--debug", help="Say everything, with tracebacks.", rich_help_panel=_LOG)]
Config = Annotated[
    Path | None,
    typer.Option(
        "--config",
        help="TOML file with a table per command, such as \\[restore]; flags win over it.",
        show_default=False,
        is_eager=True,
        callback=_apply_config,
        rich_help_panel=_LOG,
    ),
]
