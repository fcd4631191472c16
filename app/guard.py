"""Between the network and gradio: limits on what is sent, who may be meant, and what a browser may do with answers."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from typing import Any, TypeAlias

_Message: TypeAlias = MutableMapping[str, Any]
_Receive: TypeAlias = Callable[[], Awaitable[_Message]]
_Send: TypeAlias = Callable[[_Message], Awaitable[None]]
_App: TypeAlias = Callable[[Mapping[str, Any], _Receive, _Send], Awaitable[None]]

MOST_REQUEST_BYTES = 2**20  # files are uploaded, requests only name them
_FORM_BYTES = 2**16  # what an upload has around its file
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
        max_upload_bytes: of one file.
        hosts: names under which the server may be asked; None = any. With 127.0.0.1 alone, another site cannot reach
            the page by a name that it points here.
    """

    def __init__(self, app: _App, max_upload_bytes: int, hosts: frozenset[str] | None) -> None:
        self._app, self._max_upload_bytes, self._hosts = app, max_upload_bytes, hosts

    async def __call__(self, scope: Mapping[str, Any], receive: _Receive, send: _Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = {key.lower(): value for key, value in scope["headers"]}
        host = headers.get(b"host", b"").decode("latin-1").rsplit(":", 1)[0].lower()
        if self._hosts is not None and host not in self._hosts:
            await _refuse(send, 421, "this server answers to its own address only")
            return
        is_upload = scope["path"].rstrip("/").endswith("/upload")
        limit = self._max_upload_bytes + _FORM_BYTES if is_upload else MOST_REQUEST_BYTES
        stated = headers.get(b"content-length", b"0")
        if not stated.isdigit() or int(stated) > limit:
            await _refuse(send, 413, f"too large: the limit is {limit:,} bytes")
            return
        await self._limited(scope, receive, send, limit)

    async def _limited(self, scope: Mapping[str, Any], receive: _Receive, send: _Send, limit: int) -> None:
        received, started = 0, False
        policy = _FILE_POLICY if "/file=" in scope["path"] else _PAGE_POLICY

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
