"""The demo chat page: its files, which instance serves it, and tokens for whoever enters a name. Development only."""

from __future__ import annotations

import asyncio
import gzip
import json
import unicodedata
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from aiohttp import web

from service.auth import sign_connection
from service.core.publication import Json

__all__ = ["TOKEN_REQUEST_BYTES_MAX", "TOKEN_TTL_S", "USER_CHARS_MAX", "add_demo_routes"]

# A name of 40 characters needs 480 bytes if every one of them is a pair of escapes; the rest is room.
TOKEN_REQUEST_BYTES_MAX: Final = 1024
USER_CHARS_MAX: Final = 40
# Short enough that a page left open shows how a connection is refreshed.
TOKEN_TTL_S: Final = 3600

_PAGE: Final = Path(__file__).parent / "page"
_CONTENT_TYPES: Final = {
    ".css": "text/css",
    ".html": "text/html",
    ".js": "text/javascript",
    ".svg": "image/svg+xml",
}
# Nothing inline and nothing from elsewhere: what somebody writes into a channel can never become code.
# `ws:` because not every browser takes 'self' for a WebSocket of the same origin.
_CONTENT_SECURITY_POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
    "connect-src 'self' ws:; base-uri 'none'; frame-ancestors 'none'"
)
_HEADERS: Final = {
    "Content-Security-Policy": _CONTENT_SECURITY_POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}
# A server of another version may listen at this address the next time.
_PAGE_HEADERS: Final = {**_HEADERS, "Cache-Control": "no-cache", "Vary": "Accept-Encoding"}
_PACKED_HEADERS: Final = {**_PAGE_HEADERS, "Content-Encoding": "gzip"}
_ANSWER_HEADERS: Final = {**_HEADERS, "Cache-Control": "no-store"}

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class _NotAccepted(Exception):
    """A request that gets no token: HTTP status, and words for the person who entered the name."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.message = message


def add_demo_routes(app: web.Application, *, node: str, peers: Sequence[str], token_secret: str) -> None:
    """Serve the page at `/`, its files and its two calls under `/demo/`.

    `peers` are the base URLs of all instances, this one among them. Without `token_secret` the page gets
    empty tokens: its users are anonymous, if the server takes such.
    """
    demo = _Demo(node, tuple(peers), token_secret)
    for path in sorted(_PAGE.iterdir()):
        # Read once and here: they are small, and a request must not wait for a disk.
        handler = _file_handler(path.read_bytes(), _CONTENT_TYPES[path.suffix])
        app.router.add_get("/" if path.name == "index.html" else f"/demo/{path.name}", handler)
    app.router.add_get("/demo/info", demo.info)
    app.router.add_post("/demo/token", demo.token)


def _file_handler(body: bytes, content_type: str) -> Handler:
    charset = None if content_type == "image/svg+xml" else "utf-8"
    packed = gzip.compress(body, mtime=0)

    async def serve_file(request: web.Request) -> web.Response:
        wants_packed = "gzip" in request.headers.get("Accept-Encoding", "")
        return web.Response(
            body=packed if wants_packed else body,
            content_type=content_type,
            charset=charset,
            headers=_PACKED_HEADERS if wants_packed else _PAGE_HEADERS,
        )

    return serve_file


@dataclass(frozen=True, slots=True)
class _Demo:
    node: str
    peers: tuple[str, ...]
    token_secret: str

    async def info(self, _request: web.Request) -> web.Response:
        """GET /demo/info: who serves this page, and where the others are."""
        return _answer({"node": self.node, "instances": [{"url": url} for url in self.peers]})

    async def token(self, request: web.Request) -> web.Response:
        """POST /demo/token {"user": "Ann"}: a connection token for that name, whoever asks."""
        try:
            user = _user(await _body(request))
        except _NotAccepted as refusal:
            error = {"code": refusal.status, "message": refusal.message}
            return _answer({"error": error}, refusal.status)
        if not self.token_secret:
            return _answer({"token": ""})
        return _answer({"token": sign_connection(user, self.token_secret, TOKEN_TTL_S, {"name": user})})


async def _body(request: web.Request) -> Json:
    """The request's JSON. Raises _NotAccepted."""
    # A page of another origin cannot send this type without asking first, and is never told yes.
    if request.content_type != "application/json":
        raise _NotAccepted(415, "Content-Type must be application/json.")
    try:
        await request.content.readexactly(TOKEN_REQUEST_BYTES_MAX + 1)
    except asyncio.IncompleteReadError as whole:
        body = whole.partial
    else:
        raise _NotAccepted(413, f"More than {TOKEN_REQUEST_BYTES_MAX} bytes.")
    try:
        return json.loads(body)
    except (ValueError, RecursionError) as error:
        raise _NotAccepted(400, "Not JSON.") from error


def _user(request: Json) -> str:
    """The name in the request, trimmed. Raises _NotAccepted."""
    name = request.get("user") if isinstance(request, dict) else None
    if not isinstance(name, str):
        raise _NotAccepted(400, "Please enter a name.")
    # Composed, so that a name looks the same and is the same however it was typed.
    user = unicodedata.normalize("NFC", name).strip()
    if not 1 <= len(user) <= USER_CHARS_MAX:
        raise _NotAccepted(400, f"A name has 1 to {USER_CHARS_MAX} characters.")
    # Also refuses what is invisible or turns the direction of writing: names must not imitate others.
    if not user.isprintable():
        raise _NotAccepted(400, "A name has only characters that can be seen.")
    return user


def _answer(body: Json, status: int = 200) -> web.Response:
    return web.json_response(body, status=status, headers=_ANSWER_HEADERS)
