"""`moevision demo`: the page for people who do not type commands."""

from __future__ import annotations

from typing import Annotated

import typer

from moevision.cli import common
from moevision.errors import UsageError

_WHERE, _LIMITS = "Where", "Limits"
_Host = Annotated[str, typer.Option("--host", help="Address to listen on.", rich_help_panel=_WHERE)]
_Port = Annotated[
    int | None,
    typer.Option(
        "--port", min=1, max=65535, help="Port; without it the first free one from 7860 on.", show_default=False,
        rich_help_panel=_WHERE,
    ),
]  # fmt: skip
_Public = Annotated[
    bool, typer.Option("--public", help="Let other machines in: listens on 0.0.0.0.", rich_help_panel=_WHERE)
]
_FileMb = Annotated[float, typer.Option("--max-file-mb", min=0.01, help="Largest upload.", rich_help_panel=_LIMITS)]
_Megapixels = Annotated[
    float, typer.Option("--max-megapixels", min=0.01, max=400, help="Largest picture.", rich_help_panel=_LIMITS)
]
_VideoSeconds = Annotated[
    float, typer.Option("--max-video-seconds", min=0.1, help="Longest video.", rich_help_panel=_LIMITS)
]


_WHAT_IS_OPEN = (
    "--public: everybody who can reach port {port} of this machine can upload files, have them computed here, and see "
    "the results of others whose random addresses they know. There is no password and no encryption: put a proxy with "
    "both before it, or use it in a network you trust."
)


def _weights(option: str) -> typer.models.OptionInfo:
    text = "A .safetensors file that visitors can choose, too; the first is the default. May be given several times."
    return typer.Option(option, help=text, show_default=False, rich_help_panel="Computing")


def demo(
    host: _Host = "127.0.0.1",
    port: _Port = None,
    public: _Public = False,
    device: common.Device = "auto",
    restoration_model: Annotated[list[str] | None, _weights("--restoration-model")] = None,
    fusion_model: Annotated[list[str] | None, _weights("--fusion-model")] = None,
    segmentation_model: Annotated[list[str] | None, _weights("--segmentation-model")] = None,
    max_file_mb: _FileMb = 25.0,
    max_megapixels: _Megapixels = 24.0,
    max_video_seconds: _VideoSeconds = 60.0,
    quiet: common.Quiet = False,
    verbose: common.Verbose = False,
    debug: common.Debug = False,
    config: common.Config = None,
) -> None:
    """Open a page in the browser: drop in a photo, a pair or a video, and see what happens.

    Only this machine can reach it unless --public is given. Its address goes to stdout. Uploads are decoded in a
    process of their own, and deleted after an hour and at the end, Ctrl-C.
    """
    common.set_up_logging(quiet=quiet, verbose=verbose, debug=debug)
    from moevision.app.server import is_loopback, serve
    from moevision.app.settings import Settings

    if public:
        host = "0.0.0.0" if is_loopback(host) else host
        common.say(_WHAT_IS_OPEN.format(port=port or "7860 (or the next free one)"), style="yellow")
    elif not is_loopback(host):
        raise UsageError(f"--host {host}: other machines could reach the page; add --public if they may")
    named = (tuple(models or ()) for models in (restoration_model, fusion_model, segmentation_model))
    settings = Settings(device, max_file_mb, max_megapixels, max_video_seconds, *named)
    serve(settings, host, port, typer.echo)
