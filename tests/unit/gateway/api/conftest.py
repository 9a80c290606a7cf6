"""The API over nodes in memory, and back ends that call it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient

from roomcast.gateway.api import server as server_module
from roomcast.gateway.api.server import Api
from roomcast.gateway.keys import NODE
from tests.unit.worlds import Fleet, LocalNode, signals_at_any_rate

KEY = "a key of this test"
SIZE_LIMIT = 4096
CHANNEL = "lobby"

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
Connect = Callable[[web.Application], Awaitable[TestClient[web.Request, web.Application]]]
Serve = Callable[..., Awaitable["Caller"]]


def pytest_configure(config: pytest.Config) -> None:
    """Load the plug-in of `aiohttp_client`, which setup.cfg keeps from tests that need it not."""
    config.pluginmanager.import_plugin("pytest_aiohttp.plugin")


class Caller:
    """A back end that calls one node."""

    def __init__(
        self,
        node: LocalNode,
        client: TestClient[web.Request, web.Application],
        handled: list[web.Request],
        app: web.Application,
    ) -> None:
        self.node = node
        # Requests whose handlers have begun.
        self.handled = handled
        self.watch = app[server_module._WATCH]
        assert client.port is not None
        self.address = client.host, client.port
        self.client = client

    async def post(
        self, body: Any = None, *, to: str = "publish", key: str | None = KEY, **options: Any
    ) -> tuple[int, Any]:
        """Status and body of the answer."""
        headers = {"X-API-Key": key} if key is not None else {}
        if not options:
            options = {"json": body}
        headers |= options.pop("headers", {})
        async with self.client.post(f"/api/{to}", headers=headers, **options) as response:
            assert response.content_type == "application/json"
            return response.status, await response.json()

    async def ask(self, method: str, /, **params: Any) -> dict[str, Any]:
        """What a method answers: {"result": …} or {"error": …}."""
        status, body = await self.post(params, to=method)
        assert status == 200, body
        assert isinstance(body, dict)
        return body

    async def result(self, method: str, /, **params: Any) -> Any:
        answer = await self.ask(method, **params)
        assert answer.keys() == {"result"}, answer
        return answer["result"]

    async def refusal(self, method: str, /, **params: Any) -> tuple[int, str]:
        """Code and message."""
        answer = await self.ask(method, **params)
        assert answer.keys() == {"error"}, answer
        assert answer["error"].keys() == {"code", "message"}
        return answer["error"]["code"], answer["error"]["message"]

    async def publish(self, **params: Any) -> dict[str, Any]:
        return await self.ask("publish", **({"channel": CHANNEL, "data": {"text": "hi"}} | params))

    def stored(self, channel: str | None = None) -> list[Any]:
        return [
            entry
            for item in self.node.world.stream
            if channel in (None, item.channel)
            for entry in json.loads(item.pubs)
        ]


@pytest.fixture
def fleet() -> Fleet:
    return Fleet()


@pytest.fixture
async def serve(aiohttp_client: Connect, fleet: Fleet) -> Serve:
    async def serve(
        *,
        name: str = "a",
        key: str = KEY,
        insecure: bool = False,
        size_limit: int = SIZE_LIMIT,
        **changes: Any,
    ) -> Caller:
        node = fleet.node(name, **changes)
        handled: list[web.Request] = []

        @web.middleware
        async def note(request: web.Request, handler: Handler) -> web.StreamResponse:
            answer = asyncio.ensure_future(handler(request))
            # A turn later: the handler has looked at the clock, and waits for the body.
            await asyncio.sleep(0)
            handled.append(request)
            return await answer

        app = web.Application(middlewares=[note])
        app[NODE] = node.assembly.node
        Api(key=key, insecure=insecure, message_size_limit=size_limit).add_routes(app)
        return Caller(node, await aiohttp_client(app), handled, app)

    return serve


@pytest.fixture
async def caller(serve: Serve) -> Caller:
    return await serve()


@pytest.fixture
async def commander(caller: Caller) -> AsyncIterator[Caller]:
    """A back end whose node sends orders."""
    with signals_at_any_rate():
        async with caller.node.sending():
            yield caller
