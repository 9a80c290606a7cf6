"""Fetches a JWKS with one GET, bounded in size, from exactly the configured address."""

from __future__ import annotations

from typing import Final

import aiohttp

from roomcast.auth.jwks import FetchFailed

__all__ = ["JWKS_BYTES_MAX", "fetch_jwks"]

# Identity providers send one to thirty KiB, including certificates.
JWKS_BYTES_MAX: Final = 256 * 1024
_CHUNK_BYTES: Final = 16 * 1024
# Characters of a library's error text: enough for one line of the log.
_REASON_CHARS_MAX: Final = 200

# Uncompressed: a compressed body could become any size.
_HEADERS: Final = {
    "Accept": "application/json",
    "Accept-Encoding": "identity",
    "User-Agent": "roomcast",
}


async def fetch_jwks(url: str) -> bytes:
    """The body of a 200. The caller bounds the time. Raises FetchFailed."""
    try:
        # A session for each fetch: fetches are minutes apart, and no connection stays open in
        # between.
        async with (
            aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=1, force_close=True),
                cookie_jar=aiohttp.DummyCookieJar(),
                auto_decompress=False,
                headers=_HEADERS,
            ) as session,
            # With redirects, anyone who can redirect could supply their own keys.
            session.get(url, allow_redirects=False) as response,
        ):
            if response.status != 200:
                raise FetchFailed(f"status {response.status}")
            return await _body(response)
    except (aiohttp.ClientError, OSError, ValueError) as error:
        raise FetchFailed(f"{type(error).__name__}: {error}"[:_REASON_CHARS_MAX]) from error


async def _body(response: aiohttp.ClientResponse) -> bytes:
    body = bytearray()
    async for chunk in response.content.iter_chunked(_CHUNK_BYTES):
        body += chunk
        if len(body) > JWKS_BYTES_MAX:
            raise FetchFailed(f"more than {JWKS_BYTES_MAX} bytes")
    return bytes(body)
