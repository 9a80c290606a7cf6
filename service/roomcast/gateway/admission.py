"""Decides whose request may open a connection: by its page's origin, its address, and room."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from contextlib import contextmanager
from fnmatch import fnmatchcase
from typing import Final
from urllib.parse import urlsplit

import structlog
from aiohttp import web

from roomcast.concurrency import Turns
from roomcast.gateway.address import Addresses
from roomcast.gateway.door import ANSWERS_A_TURN
from roomcast.gateway.keys import NODE
from roomcast.node.node import Node
from roomcast.observe.counters import Limit
from roomcast.rates import Rate, Seldom, Turnstile

__all__ = ["Admission", "origin_allowed"]

# An origin as browsers write it. A path, a user or a second origin in it could make
# "https://*.example.com" match other hosts.
_ORIGIN: Final = re.compile(r"[a-z][a-z0-9+.-]*://[^\s/?#@,\\]*|null", re.IGNORECASE)
# Characters of a refused origin in the log.
_ORIGIN_CHARS_MAX: Final = 200
# Log lines a second about refused origins: a page retries again and again, and any client can
# pretend to be a page.
_TOLD: Final = Rate(per_s=1.0, burst=1.0)
_LOOPBACK_HOSTS: Final = frozenset({"localhost", "127.0.0.1", "::1"})
# The origin of a page that does not say it.
_UNTOLD: Final = ""
# What browsers say of a request by a page of another site or host (Fetch Metadata). They do so over
# HTTPS and on this machine.
_OTHER_SITES: Final = frozenset({"cross-site", "same-site"})

_log = structlog.get_logger(__name__)


def _is_origin(text: str) -> bool:
    # Browsers write any name in ASCII. What is not would be normalized as it is split, in time that
    # grows with the square of its length: 8 KiB took 60 ms.
    return text.isascii() and _ORIGIN.fullmatch(text) is not None


def _pattern(allowed: str) -> str:
    # To fnmatch, "[" and "?" mean something too, and the brackets of an IPv6 address would be any
    # one of its digits.
    return allowed.lower().replace("[", "[[]").replace("?", "[?]")


def origin_allowed(origin: str | None, host: str, allowed: tuple[str, ...]) -> bool:
    """Whether a browser page of `origin` may connect.

    Allowed are the server's own host and the patterns of `allowed`, in which "*" stands for any
    text. A client without an Origin is no page that can read the answer. A server that is addressed
    on this machine also accepts pages that this machine serves: a front end in development.
    """
    if origin is None or "*" in allowed:
        return True
    if not _is_origin(origin):
        return False
    if any(fnmatchcase(origin.lower(), _pattern(each)) for each in allowed):
        return True
    if not host or not host.isascii():
        return False
    try:
        page, server = urlsplit(origin), urlsplit(f"//{host}")
        if page.scheme not in ("http", "https"):
            return False
        return page.netloc.lower() == host.lower() or (
            page.hostname in _LOOPBACK_HOSTS and server.hostname in _LOOPBACK_HOSTS
        )
    except ValueError:
        return False


class Admission:
    """One for all ways to connect.

    `turnstile`: limits new connections from one address. None = no limit. `trusted_proxies`:
    networks of the proxies whose X-Forwarded-For is believed.
    """

    def __init__(
        self,
        *,
        allowed_origins: tuple[str, ...],
        turnstile: Turnstile | None = None,
        trusted_proxies: tuple[str, ...] = (),
    ) -> None:
        self._allowed_origins = allowed_origins
        self._turnstile = turnstile
        self._addresses = Addresses(trusted_proxies)
        self._refused = Seldom(_TOLD)
        self._turns = Turns(ANSWERS_A_TURN)
        # Requests that are being answered: each is about to be a connection of its node.
        self._answering = 0

    def check_origin(self, request: web.Request) -> str | None:
        """The origin of the page that sent the request. None: there is none. Raises
        HTTPForbidden.
        """
        # No browser sends two Origins. Joined, they match no pattern.
        origin = ", ".join(given) if (given := request.headers.getall("Origin", ())) else None
        if origin is None and request.headers.get("Sec-Fetch-Site", "").lower() in _OTHER_SITES:
            # A GET that a page makes without asking to read the answer, as for a picture. No SDK
            # does: an EventSource says its origin.
            origin = _UNTOLD
        # Not `request.host`: without the header it resolves this machine's name, which blocks the
        # event loop.
        if not origin_allowed(origin, request.headers.get("Host", ""), self._allowed_origins):
            self._tell_refused(origin, request.app[NODE])
            raise web.HTTPForbidden(
                text="This page's origin may not connect. Add it to client.allowed_origins.\n"
            )
        # With "*", anything is allowed, also what is no origin and belongs into no answer.
        return origin if origin and _is_origin(origin) else None

    def check(self, request: web.Request) -> str | None:
        """As `check_origin`. Also raises HTTPTooManyRequests for addresses that connect too often,
        and HTTPServiceUnavailable while there is no place.
        """
        origin, node = self.check_origin(request), request.app[NODE]
        self._let_through(request, node)
        if not node.takes_clients(self._answering):
            node.services.counters.limited(Limit.CONNECTIONS)
            # Not a close code: SDKs retry after this status, and a load balancer may send them to
            # another node.
            raise web.HTTPServiceUnavailable(text="This node takes no further connections.\n")
        return origin

    @contextmanager
    def answering(self) -> Iterator[None]:
        """A request that passed `check` is being answered, and counts as a connection."""
        self._answering += 1
        try:
            yield
        finally:
            self._answering -= 1

    async def turn(self) -> None:
        """As `answering`, while it waits for a turn: few connections are opened in one."""
        with self.answering():
            await self._turns.wait()

    def _tell_refused(self, origin: str | None, node: Node) -> None:
        node.services.counters.limited(Limit.ORIGIN)
        passed_over = self._refused.again(node.services.clock.monotonic_s())
        if passed_over is not None:
            # No browser's Origin is longer, or holds a path or a password that must stay out of the
            # log.
            if not origin:
                told = "untold"
            elif _ORIGIN.fullmatch(origin):
                told = origin[:_ORIGIN_CHARS_MAX]
            else:
                told = "malformed"
            _log.info("origin_refused", origin=told, passed_over=passed_over)

    def _let_through(self, request: web.Request, node: Node) -> None:
        """Refuses addresses that connect too often, before any work is spent on them.

        SDKs retry later, as after any other status.
        """
        if self._turnstile is None:
            return
        names = self._addresses.client(
            request.remote or "", request.headers.getall("X-Forwarded-For", ())
        )
        wait_s = self._turnstile.wait_s(names, node.services.clock.monotonic_s())
        if wait_s > 0:
            node.services.counters.limited(Limit.HANDSHAKE_RATE)
            raise web.HTTPTooManyRequests(
                text="Too many connections are opened from this address.\n",
                headers={"Retry-After": str(math.ceil(wait_s))},
            )
