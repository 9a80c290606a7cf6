"""A plain HTTP proxy in front of the instances, as there are many between a client and a server:
it knows nothing of WebSockets, and leads each request to the next instance.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Final, Self

import aiohttp
from aiohttp import web

__all__ = ["HttpProxy", "Passed"]

# Of one connection, not of a request (RFC 9110 §7.6.1). An upgrade is among them.
_HOP_BY_HOP: Final = frozenset(
    {"connection", "keep-alive", "te", "trailer", "transfer-encoding", "upgrade"}
)
_BODY_BYTES_MAX: Final = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Passed:
    """A request, with the number of the instance that answered it (-1 = none), and its status."""

    method: str
    path: str
    instance: int
    status: int


class HttpProxy:
    """`instances`: their base URLs. `blocked`: paths that the proxy itself refuses. `held`: those
    whose answers it keeps until they are whole. An instance that does not answer is passed over, as
    load balancers do.
    """

    def __init__(
        self, instances: Sequence[str], *, blocked: Sequence[str] = (), held: Sequence[str] = ()
    ) -> None:
        self._instances = instances
        self._blocked = blocked
        self._held = held
        self._turns = itertools.count()
        # Requests in the order of their answers' heads.
        self.passed: list[Passed] = []
        app = web.Application(client_max_size=_BODY_BYTES_MAX)
        app.router.add_route("*", "/{path:.*}", self._pass)
        # A client that goes ends its request at the instance as well.
        self._runner = web.AppRunner(
            app, access_log=None, shutdown_timeout=0.1, handler_cancellation=True
        )
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        # One connection a request: a balancer's pool says nothing about who gets the next one.
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(force_close=True, limit=0),
            timeout=aiohttp.ClientTimeout(),
            auto_decompress=False,
        )
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0).start()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        assert self._session is not None
        await self._session.close()
        await self._runner.cleanup()

    @property
    def port(self) -> int:
        port: int = self._runner.addresses[0][1]
        return port

    def of(self, *paths: str, method: str = "POST") -> list[Passed]:
        """The requests for one of `paths` that were taken."""
        return [
            each
            for each in self.passed
            if each.path in paths and each.method == method and each.status < 300
        ]

    async def _pass(self, request: web.Request) -> web.StreamResponse:
        if request.path in self._blocked:
            self.passed.append(Passed(request.method, request.path, -1, 403))
            return web.Response(status=403, text="This network does not allow it.\n")
        body = await request.read()
        assert self._session is not None
        for _ in self._instances:
            turn = next(self._turns) % len(self._instances)
            try:
                answer = await self._session.request(
                    request.method,
                    self._instances[turn] + request.raw_path,
                    headers=_passed_on(request),
                    data=body or None,
                    allow_redirects=False,
                )
            except aiohttp.ClientConnectionError:
                continue
            self.passed.append(Passed(request.method, request.path, turn, answer.status))
            async with answer:
                if request.path in self._held and request.method != "OPTIONS":
                    return web.Response(status=answer.status, body=await answer.read())
                return await _pass_back(request, answer)
        self.passed.append(Passed(request.method, request.path, -1, 502))
        return web.Response(status=502)


def _passed_on(request: web.Request) -> list[tuple[str, str]]:
    headers = [
        (name, value) for name, value in request.headers.items() if name.lower() not in _HOP_BY_HOP
    ]
    return [*headers, ("X-Forwarded-For", request.remote or "")]


async def _pass_back(request: web.Request, answer: aiohttp.ClientResponse) -> web.StreamResponse:
    """The answer, piece by piece as it comes."""
    response = web.StreamResponse(status=answer.status, reason=answer.reason)
    for name, value in answer.headers.items():
        if name.lower() not in _HOP_BY_HOP:
            response.headers.add(name, value)
    await response.prepare(request)
    try:
        async for piece in answer.content.iter_any():
            await response.write(piece)
    except aiohttp.ClientError:
        # The instance is gone, in the midst of its answer: that must not look like the end of it.
        if request.transport is not None:
            request.transport.abort()
        return response
    await response.write_eof()
    return response
