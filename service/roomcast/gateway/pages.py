"""Finds out where a page stands that sends a request, by the request's headers."""

from __future__ import annotations

import ipaddress
from urllib.parse import SplitResult, urlsplit

from aiohttp import web

__all__ = ["is_on_this_machine", "url_parts"]


def is_on_this_machine(request: web.Request) -> bool:
    """Whether the page is open in a browser on the server's own machine, without a proxy.

    The peer's address alone does not suffice. A foreign name may resolve to this address (`Host`).
    A local proxy may forward remote requests (`X-Forwarded-For`).
    """
    headers = request.headers
    if "Forwarded" in headers or "X-Forwarded-For" in headers:
        return False
    # Not `request.host`: without the header it resolves this machine's name, which blocks the event
    # loop.
    host = url_parts(f"//{headers.get('Host', '')}").hostname or ""
    return _is_loopback(request.remote or "") and (host == "localhost" or _is_loopback(host))


def url_parts(url: str) -> SplitResult:
    """The parts of `url`; all empty if it is malformed, or not ASCII as browsers write any name.

    Letters of other alphabets would be normalized, in time that grows with the square of their
    number.
    """
    try:
        return urlsplit(url if url.isascii() else "")
    except ValueError:
        return urlsplit("")


def _is_loopback(address: str) -> bool:
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return False
    # A socket for both families has 127.0.0.1 as ::ffff:127.0.0.1.
    mapped = parsed.ipv4_mapped if isinstance(parsed, ipaddress.IPv6Address) else None
    return (mapped or parsed).is_loopback
