"""The operations page of a node over memory, as a browser reaches it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from dataclasses import replace
from typing import Any, Final
from unittest.mock import patch

import aiohttp
import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer

from roomcast.admin import passwords
from roomcast.admin.reaping import DryRun
from roomcast.config import AdminConfig
from roomcast.serve.http_app import build_apps
from roomcast.testing.memory import ManualClock
from tests.unit.worlds import SECRET, Fleet, LocalNode, config, signals_at_any_rate

__all__ = ["PASSWORD", "At", "Open"]

PASSWORD: Final = "a password of the tests"
# As cheap as a hash may be: many tests log in.
with patch.object(passwords, "_LN", 14), patch.object(passwords, "_P", 1):
    HASH: Final = passwords.hash_text(PASSWORD.encode(), b"0123456789abcdef")

Client = TestClient[web.Request, web.Application]


class At:
    """The page of one node, as a browser reaches it."""

    def __init__(self, client: Client, node: LocalNode, clock: ManualClock) -> None:
        self.client = client
        self.node = node
        self.clock = clock
        self.paths: list[tuple[str, str]] = []

    @property
    def origin(self) -> dict[str, str]:
        return {"Origin": str(self.client.make_url("/")).rstrip("/")}

    async def post(self, path: str, body: Any = None, **headers: str) -> aiohttp.ClientResponse:
        return await self.client.post(
            f"/admin/{path}", json=body or {}, headers={**self.origin, **headers}
        )

    async def login(self, password: str = PASSWORD, **headers: str) -> aiohttp.ClientResponse:
        return await self.post("login", {"password": password}, **headers)

    async def socket(self, **headers: str) -> aiohttp.ClientWebSocketResponse:
        return await self.client.ws_connect("/admin/connection", headers=self.origin | headers)

    async def ticket(self) -> str:
        answer = await self.post("ticket")
        assert answer.status == 200, answer.status
        return str((await answer.json())["ticket"])

    async def connected(self) -> aiohttp.ClientWebSocketResponse:
        socket = await self.socket()
        await socket.send_json({"id": 1, "connect": {"data": {"ticket": await self.ticket()}}})
        assert "connect" in await socket.receive_json()
        return socket

    async def answer(
        self, socket: aiohttp.ClientWebSocketResponse, method: str, **data: Any
    ) -> Any:
        return (await self.ask(socket, method, data))["rpc"]["data"]

    async def ask(
        self, socket: aiohttp.ClientWebSocketResponse, method: str, data: Any = None
    ) -> dict[str, Any]:
        await socket.send_json({"id": 9, "rpc": {"method": method, "data": data or {}}})
        while True:
            reply: dict[str, Any] = await socket.receive_json()
            if reply.get("id") == 9:
                return reply


Open = Callable[..., Any]


@pytest.fixture
async def at() -> AsyncIterator[Open]:
    """Serves the page of a node; `write`: with what changes something."""
    async with AsyncExitStack() as stack:
        stack.enter_context(signals_at_any_rate())

        async def opened(
            *,
            write: bool = False,
            fleet: Fleet | None = None,
            name: str = "a",
            dry_run: DryRun | None = None,
            session_ttl_s: float = 600.0,
            **changes: Any,
        ) -> At:
            fleet = fleet or Fleet()
            node = fleet.node(name, secret=SECRET, **changes)
            await stack.enter_async_context(node.running())
            configured = replace(
                config(),
                admin=AdminConfig(password_hash=HASH, write=write, session_ttl_s=session_ttl_s),
            )
            app = build_apps(
                configured, node.assembly.node, metrics=bytes, demo_urls=None, dry_run=dry_run
            ).internal
            paths = [
                (route.method, route.resource.canonical)
                for route in app.router.routes()
                if route.resource and route.resource.canonical.startswith("/admin")
            ]
            # Plain HTTP on loopback: a cookie for HTTPS alone would not come back.
            jar = aiohttp.CookieJar(unsafe=True)
            client: Client = TestClient(TestServer(app), cookie_jar=jar)
            await stack.enter_async_context(client)
            made = At(client, node, fleet.clock)
            made.paths = paths
            return made

        yield opened
