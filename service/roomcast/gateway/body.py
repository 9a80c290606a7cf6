"""Reads the body of a request within bounds on its bytes and its time, and on those of all bodies
that have not come whole. Tells its type.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from aiohttp import web

__all__ = ["BODY_S", "BodyRoom", "PushedOut", "body_of", "media_type"]

# The time for a whole body, from the end of the headers. It is enough for 2 MiB.
BODY_S: Final = 10.0


class PushedOut(Exception):
    """The body gave way to others before it had come whole."""


class _Coming:
    """A body that has not come whole. `size`: the bytes that have come."""

    __slots__ = ("is_pushed_out", "limit", "size")

    def __init__(self, limit: asyncio.Timeout) -> None:
        self.limit = limit
        self.size = 0
        self.is_pushed_out = False


class BodyRoom:
    """Room for `bytes_max` of all bodies that have not come whole.

    When more comes, the bodies that began first are pushed out. Most bodies come within moments, so
    who keeps the room without using it is before them. Only what has come counts: a length that is
    said costs nothing.
    """

    def __init__(self, bytes_max: int) -> None:
        self._bytes_max = bytes_max
        # Those that began first are first.
        self._coming: dict[_Coming, None] = {}
        self.used = 0

    @contextmanager
    def of(self, body: _Coming) -> Iterator[None]:
        """`body` has a place while it comes."""
        self._coming[body] = None
        try:
            yield
        finally:
            self._leave(body)

    def grown(self, body: _Coming, size: int) -> None:
        """So many more bytes of `body` came."""
        if body.is_pushed_out:
            return
        body.size += size
        self.used += size
        while self.used > self._bytes_max:
            first = next(iter(self._coming))
            self._leave(first)
            first.is_pushed_out = True
            if not first.limit.expired():
                # It ends in the next turn.
                first.limit.reschedule(0.0)

    def _leave(self, body: _Coming) -> None:
        """Idempotent."""
        if body in self._coming:
            del self._coming[body]
            self.used -= body.size


async def body_of(
    request: web.Request, bytes_max: int, room: BodyRoom | None = None
) -> bytes | None:
    """The body. None: it is longer than `bytes_max`, by its header or once it is decompressed.

    `room`: for those that do not come with their headers; None = it has no bound. Raises
    TimeoutError after BODY_S, PushedOut, and RequestPayloadError.
    """
    if request.content_length is not None and request.content_length > bytes_max:
        return None
    if request.content.is_eof():
        # It came with the headers, as most do.
        whole = request.content.read_nowait()
        return whole if len(whole) <= bytes_max else None
    body = bytearray()
    limit = asyncio.timeout(BODY_S)
    coming = _Coming(limit)
    room = room or BodyRoom(bytes_max)
    try:
        async with limit:
            with room.of(coming):
                async for chunk in request.content.iter_any():
                    body += chunk
                    if len(body) > bytes_max:
                        return None
                    room.grown(coming, len(chunk))
    except TimeoutError:
        if coming.is_pushed_out:
            raise PushedOut from None
        raise
    return bytes(body)


def media_type(request: web.Request) -> str:
    """The type of the body, without parameters and in small letters; "" = it is not said.

    Not `request.content_type`: it parses parameters that nobody asked for, in time that grows with
    the square of their number. A header of 8 KiB took a second.
    """
    return request.headers.get("Content-Type", "").partition(";")[0].strip().lower()
