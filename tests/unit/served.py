"""A node over memory that is served over HTTP and WebSocket from a thread,
for callers that block.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine, Iterator
from typing import Any, Final, TypeVar

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from structlog.testing import capture_logs

from roomcast.gateway.admission import Admission
from roomcast.gateway.api.server import Api
from roomcast.gateway.keys import NODE
from roomcast.gateway.websocket import WebSocketGateway
from tests.unit.worlds import SECRET, Fleet, LocalNode, signals_at_any_rate

START_S: Final = 20.0
# Of the server API.
KEY: Final = "a key of this test"

T = TypeVar("T")


class Served:
    """To be closed. `key`: of the API; what `changes` says is configured."""

    def __init__(self, *, key: str, size_limit: int = 4096, **changes: Any) -> None:
        self.url = ""
        self.node: LocalNode
        self._key, self._size_limit, self._changes = key, size_limit, changes
        self._loop = asyncio.new_event_loop()
        self._ready, self._end = threading.Event(), asyncio.Event()
        self._thread = threading.Thread(target=self._loop.run_until_complete, args=(self._run(),))
        self._thread.start()
        assert self._ready.wait(START_S), "the server did not start"

    async def _run(self) -> None:
        self.node = Fleet().node(**self._changes)
        app = web.Application()
        app[NODE] = self.node.assembly.node
        Api(
            key=self._key,
            insecure=self._changes.get("insecure", True) and not self._key,
            message_size_limit=self._size_limit,
        ).add_routes(app)
        gateway = WebSocketGateway(
            Admission(allowed_origins=()),
            message_size_limit=self._size_limit,
            queue_bytes_max=1024 * 1024,
        )
        app.router.add_get("/connection/websocket", gateway.handle)
        server = TestServer(app)
        with signals_at_any_rate():
            async with self.node.running():
                await self._serve(server)

    async def _serve(self, server: TestServer) -> None:
        await server.start_server()
        self.url = str(server.make_url("/")).rstrip("/")
        self._ready.set()
        await self._end.wait()
        for connection in list(self.node.assembly.node._connections):
            self.node.assembly.node.closed(connection)
        await server.close()

    def do(self, work: Callable[[LocalNode], Coroutine[Any, Any, T]]) -> T:
        """Have the node's own loop do `work`."""
        return asyncio.run_coroutine_threadsafe(work(self.node), self._loop).result(START_S)

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._end.set)
        self._thread.join(START_S)
        assert not self._thread.is_alive()
        self._loop.close()


# ---- fixtures, for the conftest.py of who uses them


@pytest.fixture
def quiet() -> Iterator[None]:
    """Nothing is logged."""
    with capture_logs():
        yield


@pytest.fixture(scope="module")
def served() -> Iterator[Served]:
    """One that lets everybody in."""
    started = Served(key=KEY)
    yield started
    started.close()


@pytest.fixture(scope="module")
def secured() -> Iterator[Served]:
    """One that asks for tokens, signed with SECRET."""
    started = Served(key=KEY, insecure=False, secret=SECRET)
    yield started
    started.close()
