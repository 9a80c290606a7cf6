"""The metrics: what many requests at once cost."""

from __future__ import annotations

import asyncio

from aiohttp import web
from aiohttp.test_utils import make_mocked_request

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
