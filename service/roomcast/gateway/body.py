"""Reads the body of a request within bounds on its bytes and its time."""

from __future__ import annotations

import asyncio
from typing import Final

from aiohttp import web

__all__ = ["BODY_S", "body_of"]

# The time for a whole body, from the end of the headers. It is enough for 2 MiB.
BODY_S: Final = 10.0


async def body_of(request: web.Request, bytes_max: int) -> bytes | None:
    """The body. None: it is longer than `bytes_max`, by its header or once it is decompressed.

    Raises TimeoutError after BODY_S, and RequestPayloadError.
    """
    if request.content_length is not None and request.content_length > bytes_max:
        return None
    if request.content.is_eof():
        # It came with the headers, as most do.
        whole = request.content.read_nowait()
        return whole if len(whole) <= bytes_max else None
    body = bytearray()
    async with asyncio.timeout(BODY_S):
        async for chunk in request.content.iter_any():
            body += chunk
            if len(body) > bytes_max:
                return None
    return bytes(body)
