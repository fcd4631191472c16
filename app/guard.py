"""Between the network and gradio: what may be asked for and sent, by whom, and what a browser may do with answers."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from pathlib import Path
from typing import Any, TypeAlias
from urllib.parse import urlsplit

_Message: TypeAlias = MutableMapping[str, Any]
_Receive: TypeAlias = Callable[[], Awaitable[_Message]]
_Send: TypeAlias = Callable[[_Message], Awaitable[None]]
_App: TypeAlias = Callable[[Mapping[str, Any], _Receive, _Send], Awaitable[None]]

MOST_REQUEST_BYTES = 2**20  # files are uploaded, requests only name them
_FORM_BYTES = 2**16  # what an upload has around its file
_MOST_FOLDER_BYTES = 4 * 2**30  # of all uploads and results of an hour
# What the page and gradio_client use. Gradio has more: it runs ffmpeg on recordings and edits the page's program.
_KNOWN = re.compile(
    r"/|/(assets|static|svelte)/.+|/(config|theme\.css|favicon\.ico|manifest\.json|robots\.txt)/?"
    r"|/gradio_api/(info|openapi\.json|app_id|startup-events|theme\.css|upload|upload_progress|cancel|reset"
    r"|queue/(join|data)|heartbeat/\w+|run/\w+|call/(v2/)?\w+(/\w+)?)/?"
)
_FILE = "/gradio_api/file="
_PAGE_POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; media-src 'self' blob:; font-src 'self' data:; object-src 'none'; base-uri 'self'; "
    "form-action 'self'; frame-ancestors 'none'"
)
_FILE_POLICY = "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'; sandbox"


class _TooLargeError(Exception):
    pass


class Guard:
    """ASGI middleware; see the module.

    Args:
        app: what it stands before.
        folder: the only one whose files are served.
        max_upload_bytes: of one file.
        hosts: names under which the server may be asked; None = any. With 127.0.0.1 alone, another site can neither
            reach the page by a name that it points here, nor have a visitor's browser send something to it.
    """

    def __init__(self, app: _App, folder: Path, max_upload_bytes: int, hosts: frozenset[str] | None) -> None:
        self._app, self._folder, self._max_upload_bytes, self._hosts = app, folder, max_upload_bytes, hosts

    async def __call__(self, scope: Mapping[str, Any], receive: _Receive, send: _Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = {key.decode("latin-1").lower(): value.decode("latin-1") for key, value in scope["headers"]}
        if self._hosts is not None and not self._is_own(headers):
            await _refuse(send, 421, "this server answers to its own address only")
            return
        path = scope["path"]
        if not (_KNOWN.fullmatch(path) or path.startswith(f"{_FILE}{self._folder}/")):
            await _refuse(send, 404, "there is nothing here")
            return
        is_upload = path.rstrip("/").endswith("/upload")
        limit = self._max_upload_bytes + _FORM_BYTES if is_upload else MOST_REQUEST_BYTES
        stated = headers.get("content-length", "0")
        if not (stated.isascii() and stated.isdigit()) or int(stated) > limit:
            await _refuse(send, 413, f"too large: the limit is {limit:,} bytes")
            return
        if is_upload and await asyncio.to_thread(_bytes_below, self._folder) > _MOST_FOLDER_BYTES:
            await _refuse(send, 507, "no room for more files; come back in an hour")
            return
        await self._limited(scope, receive, send, limit)

    def _is_own(self, headers: Mapping[str, str]) -> bool:
        """Whether the request means this server by one of its names and, if a page sent it, comes from such a page."""
        assert self._hosts is not None
        addresses = ["http://" + headers.get("host", "")]
        if "origin" in headers:
            addresses.append(headers["origin"])
        try:
            return all(urlsplit(address).hostname in self._hosts for address in addresses)
        except ValueError:  # no address
            return False

    async def _limited(self, scope: Mapping[str, Any], receive: _Receive, send: _Send, limit: int) -> None:
        received, started = 0, False
        policy = _FILE_POLICY if scope["path"].startswith(_FILE) else _PAGE_POLICY

        async def counted() -> _Message:  # what is sent in chunks states no length
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > limit:
                raise _TooLargeError
            return message

        async def with_headers(message: _Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                message["headers"] = [*message.get("headers", ()), *_security_headers(policy)]
            await send(message)

        try:
            await self._app(scope, counted, with_headers)
        except _TooLargeError:
            if not started:
                await _refuse(send, 413, f"too large: the limit is {limit:,} bytes")


def _bytes_below(folder: Path) -> int:
    total = 0
    for path in folder.rglob("*"):
        try:
            total += path.lstat().st_size
        except OSError:  # deleted meanwhile
            continue
    return total


def _security_headers(policy: str) -> list[tuple[bytes, bytes]]:
    return [
        (b"content-security-policy", policy.encode()),
        (b"x-content-type-options", b"nosniff"),
        (b"referrer-policy", b"no-referrer"),
    ]


async def _refuse(send: _Send, status: int, text: str) -> None:
    body = json.dumps({"detail": text}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
