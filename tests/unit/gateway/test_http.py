"""The metrics: what many requests at once cost, and where they are."""

from __future__ import annotations

import asyncio

import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer, make_mocked_request, unused_port

from roomcast.gateway.http import add_metrics_route, wants_openmetrics


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


# What Prometheus 3 sends.
PROMETHEUS = (
    "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.5,"
    "application/openmetrics-text;version=0.0.1;q=0.4,"
    "text/plain;version=1.0.0;escaping=allow-utf-8;q=0.3,"
    "text/plain;version=0.0.4;q=0.2,*/*;q=0.1"
)


@pytest.mark.parametrize(
    "accept, wants",
    [
        (PROMETHEUS, True),
        ("application/openmetrics-text", True),
        ("Application/OpenMetrics-Text; Version=1.0.0 ; Q=0.2", True),
        ("application/openmetrics-text,text/plain", True),
        ("", False),
        ("*/*", False),
        ("text/plain;version=0.0.4", False),
        ("application/openmetrics-text;q=0.1,text/plain;q=0.2", False),
        ("application/openmetrics-text;q=0", False),
        # Nobody's. Split into its parts, 64 KiB of it took 35 ms.
        ("application/openmetrics-text," + "," * 8000, False),
        ("application/openmetrics-text;q=nan", False),
        ("application/openmetrics-text;q=x", False),
        # We write none of these.
        ("application/openmetrics-text;version=2.0.0", False),
        ("application/openmetrics-textual", False),
        (";;,,;q=1," * 500, False),
    ],
)
def test_openmetrics_is_for_those_who_would_rather_have_it(accept: str, wants: bool) -> None:
    assert wants_openmetrics(accept) is wants


async def test_each_asker_gets_the_form_that_it_names() -> None:
    app = web.Application()
    add_metrics_route(app, lambda: b"text", openmetrics=lambda: b"openmetrics")
    async with TestClient(TestServer(app)) as client:
        for headers, body, kind in (
            ({"Accept": PROMETHEUS}, "openmetrics", "application/openmetrics-text"),
            ({"Accept": "*/*"}, "text", "text/plain"),
            ({}, "text", "text/plain"),
        ):
            answer = await client.get("/metrics", headers=headers)
            assert (await answer.text(), answer.content_type) == (body, kind)
