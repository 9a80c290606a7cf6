"""The metrics: what many requests at once cost, and where they are."""

from __future__ import annotations

import asyncio

from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer, make_mocked_request, unused_port

from roomcast.gateway.http import add_metrics_route


async def test_metrics_are_made_once_for_all_who_ask_at_once() -> None:
    made: list[int] = []

    def text() -> bytes:
        made.append(len(made))
        return b"%d" % len(made)

    app = web.Application()
    add_metrics_route(app, text)
    [handler] = [route.handler for route in app.router.routes() if route.method == "GET"]

    async def asked() -> object:
        answer = await handler(make_mocked_request("GET", "/metrics"))
        assert isinstance(answer, web.Response)
        return answer.body

    assert await asyncio.gather(*(asked() for _ in range(100))) == [b"1"] * 100
    assert await asked() == b"2", "as of now, for who asks later"


async def test_metrics_are_not_where_any_of_several_processes_may_answer() -> None:
    for is_shared in (True, False):
        app = web.Application()
        port = unused_port()
        add_metrics_route(app, lambda: b"text", shared_port=port if is_shared else port + 1)
        async with TestClient(TestServer(app, port=port)) as client:
            answer = await client.get("/metrics")
            assert answer.status == (404 if is_shared else 200)
            assert ("own" in await answer.text()) is is_shared
