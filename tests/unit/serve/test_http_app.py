"""service/roomcast/serve/http_app.py: which route is at which port."""

from __future__ import annotations

from dataclasses import replace
from typing import Final

import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer

from roomcast.config import HttpApiConfig, ServerConfig
from roomcast.serve.http_app import Apps, build_apps
from tests.unit.worlds import SECRET, Fleet, config

PEERS: Final = ("http://127.0.0.1:8000",)
OF_CLIENTS: Final = {
    "/connection/websocket",
    "/connection/uni_websocket",
    "/connection/http_stream",
    "/connection/sse",
    "/connection/uni_http_stream",
    "/connection/uni_sse",
    "/emulation",
}
INTERNAL: Final = {"/health/live", "/health/ready", "/metrics"}
KEY: Final = "a key of this test"


def built(internal_port: int = 0, **options: object) -> Apps:
    made = replace(
        config(insecure=False, secret=SECRET),
        server=ServerConfig(internal_port=internal_port),
        http_api=HttpApiConfig(KEY),
    )
    given = {"metrics": lambda: b"all is well\n", "demo_urls": None} | options
    return build_apps(made, Fleet().node().assembly.node, **given)  # type: ignore[arg-type]


def paths(app: web.Application) -> set[str]:
    return {route.resource.canonical for route in app.router.routes() if route.resource}


def api(found: set[str]) -> set[str]:
    return {path for path in found if path.startswith("/api")}


def test_with_one_port_everything_is_there() -> None:
    apps = built()
    assert apps.internal is apps.clients
    found = paths(apps.clients)
    assert api(found)
    assert found == OF_CLIENTS | INTERNAL | api(found)


def test_with_two_ports_nothing_is_at_both() -> None:
    apps = built(9000)
    assert paths(apps.clients) == OF_CLIENTS
    internal = paths(apps.internal)
    assert internal == INTERNAL | api(paths(built().clients))


@pytest.mark.parametrize("internal_port", [0, 9000])
def test_the_demo_page_is_for_clients(internal_port: int) -> None:
    apps = built(internal_port, demo_urls=PEERS)
    assert "/" in paths(apps.clients)
    if internal_port:
        assert "/" not in paths(apps.internal)


async def test_each_port_answers_what_is_its_own() -> None:
    apps = built(9000)
    key = {"X-API-Key": KEY}
    async with TestClient(TestServer(apps.clients)) as client:
        for path in ("/health/live", "/health/ready", "/metrics"):
            assert (await client.get(path)).status == 404
        assert (await client.post("/api/info", json={}, headers=key)).status == 404
        answer = await client.get("/connection/websocket")
        assert (answer.status, answer.headers["Server"]) == (426, "roomcast")
    async with TestClient(TestServer(apps.internal)) as client:
        assert (await client.get("/health/live")).status == 200
        assert await (await client.get("/metrics")).read() == b"all is well\n"
        assert (await client.post("/api/channels", json={})).status == 401
        answer = await client.get("/connection/websocket")
        assert (answer.status, answer.headers["Server"]) == (404, "roomcast")
        forwarded = await client.get("/health/live", headers={"X-Forwarded-For": "192.0.2.1"})
        assert forwarded.headers["Connection"] == "close"
