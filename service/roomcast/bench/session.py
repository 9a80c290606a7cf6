"""The HTTP session of a client: it goes to the addresses that it is given, and nowhere else."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Final

import aiohttp

__all__ = ["Redirected", "direct"]

# Characters of an address that somebody else made up.
_ADDRESS_CHARS_MAX: Final = 200


class Redirected(aiohttp.ClientError):
    """Somebody at an address sent us to another one. The message is a half line, with what to do.

    We do not go: the token, or the key of the server API, would be given to whoever is there.
    """


def direct(connector: aiohttp.BaseConnector | None = None) -> aiohttp.ClientSession:
    """A session whose calls raise Redirected for every redirect.

    A WebSocket's handshake has no option for that in aiohttp.
    """
    trace = aiohttp.TraceConfig()
    trace.on_request_redirect.append(_refuse)
    return aiohttp.ClientSession(connector=connector, trust_env=True, trace_configs=[trace])


async def _refuse(
    _session: aiohttp.ClientSession,
    _context: SimpleNamespace,
    redirect: aiohttp.TraceRequestRedirectParams,
) -> None:
    redirect.response.close()
    elsewhere = redirect.response.headers.get("Location", "")[:_ADDRESS_CHARS_MAX]
    raise Redirected(f"redirects to {elsewhere}: give that address if it is meant")
