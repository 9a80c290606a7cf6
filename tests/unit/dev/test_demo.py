"""The demo page's files and calls: headers, what they answer, what they refuse."""

from __future__ import annotations

import json
import re
import time
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient
from pytest_aiohttp import AiohttpClient

import service.dev.demo as demo
from service.auth import TokenVerifier
from service.config import TokenConfig

SECRET = "a secret of a test, of more than 32 bytes"
PEERS = ("http://127.0.0.1:8000", "http://127.0.0.1:8001")
PAGE = Path(demo.__file__).parent / "page"
Client = TestClient[web.Request, web.Application]


@pytest.fixture
async def client(aiohttp_client: AiohttpClient) -> Client:
    app = web.Application()
    demo.add_demo_routes(app, node="node-a", peers=PEERS, token_secret=SECRET)
    return await aiohttp_client(app)


async def ask(client: Client, user: Any) -> tuple[int, dict[str, Any]]:
    response = await client.post("/demo/token", json={"user": user})
    return response.status, await response.json()


@pytest.mark.parametrize(
    "path, content_type",
    [
        ("/", "text/html; charset=utf-8"),
        ("/demo/app.js", "text/javascript; charset=utf-8"),
        ("/demo/client.js", "text/javascript; charset=utf-8"),
        ("/demo/style.css", "text/css; charset=utf-8"),
        ("/demo/favicon.svg", "image/svg+xml"),
    ],
)
async def test_files_come_with_their_types_and_a_strict_policy(
    client: Client, path: str, content_type: str
) -> None:
    response = await client.get(path)
    assert response.status == 200
    assert response.headers["Content-Type"] == content_type
    assert response.headers["X-Content-Type-Options"] == "nosniff"
    assert response.headers["Cache-Control"] == "no-cache"
    assert response.headers["Content-Security-Policy"] == (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
        "connect-src 'self' ws:; base-uri 'none'; frame-ancestors 'none'"
    )
    assert await response.read()


async def test_every_file_the_page_names_is_served(client: Client) -> None:
    html = await (await client.get("/")).text()
    named = set(re.findall(r'(?:src|href)="(/[^"#]+)"', html))
    for script in PAGE.glob("*.js"):
        named |= {f"/demo/{name}" for name in re.findall(r'from "\./([^"]+)"', script.read_text())}
    assert {"/demo/app.js", "/demo/client.js", "/demo/style.css", "/demo/favicon.svg"} <= named
    for path in named:
        assert (await client.get(path)).status == 200, path


async def test_files_beside_the_page_are_not_served(client: Client) -> None:
    for path in ("/demo/demo.py", "/demo/../demo.py", "/demo/%2e%2e/demo.py", "/demo/index.html"):
        assert (await client.get(path)).status == 404, path


async def test_files_are_sent_packed_to_whoever_unpacks(client: Client) -> None:
    plain = await client.get("/demo/app.js", headers={"Accept-Encoding": "identity"})
    packed = await client.get("/demo/app.js", headers={"Accept-Encoding": "gzip"})
    assert "Content-Encoding" not in plain.headers
    assert packed.headers["Content-Encoding"] == "gzip"
    assert plain.headers["Vary"] == packed.headers["Vary"] == "Accept-Encoding"
    assert await plain.read() == await packed.read() == (PAGE / "app.js").read_bytes()


async def test_the_page_is_small(client: Client) -> None:
    paths = ["/", *(f"/demo/{path.name}" for path in PAGE.iterdir() if path.name != "index.html")]
    responses = [await client.get(path) for path in paths]
    assert sum(int(response.headers["Content-Length"]) for response in responses) < 30_000


def test_the_page_loads_nothing_from_elsewhere() -> None:
    for path in PAGE.iterdir():
        text = path.read_text().replace("http://www.w3.org/2000/svg", "")
        assert not re.search(r"https?://|@import|url\(", text), path


def test_the_page_has_nothing_inline_and_never_makes_markup_of_text() -> None:
    html = (PAGE / "index.html").read_text()
    assert not re.search(r"<script(?![^>]*\bsrc=)|<style|\sstyle=|\son[a-z]+=|javascript:", html)
    for script in PAGE.glob("*.js"):
        markup = r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function"
        assert not re.search(markup, script.read_text()), script


async def test_info_names_the_node_and_all_instances(client: Client) -> None:
    response = await client.get("/demo/info")
    assert response.headers["Cache-Control"] == "no-store"
    assert await response.json() == {"node": "node-a", "instances": [{"url": url} for url in PEERS]}


@pytest.mark.parametrize(
    "entered, user",
    [("Ann", "Ann"), ("  Ann  ", "Ann"), ("Zoë 🙂", "Zoë 🙂"), ("Zoe\u0308", "Zoë"), ("x" * 40, "x" * 40)],
)
async def test_a_token_is_good_for_the_name(client: Client, entered: str, user: str) -> None:
    status, answer = await ask(client, entered)
    assert status == 200
    now_s = time.time()
    claims = await TokenVerifier(TokenConfig(hmac_secret_key=SECRET)).connection(answer["token"], now_s)
    assert claims.user == user
    assert claims.info == {"name": user}


async def test_a_token_is_not_to_be_stored(client: Client) -> None:
    response = await client.post("/demo/token", json={"user": "Ann"})
    assert response.headers["Cache-Control"] == "no-store"


@pytest.mark.parametrize(
    "user",
    ["", "   ", "x" * 41, "a\nb", "a\u202eb", "a\u200bb", "\ud800", None, 7, ["Ann"], {"name": "Ann"}],
)
async def test_names_that_are_none_are_refused(client: Client, user: Any) -> None:
    status, answer = await ask(client, user)
    assert status == 400
    assert answer["error"]["code"] == 400
    assert answer["error"]["message"].endswith(".")


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b'"Ann"', b"\xff", b"[" * 1_000])
async def test_bodies_that_are_no_request_are_refused(client: Client, body: bytes) -> None:
    response = await client.post("/demo/token", data=body, headers={"Content-Type": "application/json"})
    assert response.status == 400
    assert "token" not in await response.json()


@pytest.mark.parametrize("content_type", ["text/plain", "application/x-www-form-urlencoded"])
async def test_a_form_of_another_site_gets_no_token(client: Client, content_type: str) -> None:
    body = json.dumps({"user": "Ann"})
    response = await client.post("/demo/token", data=body, headers={"Content-Type": content_type})
    assert response.status == 415
    assert "Access-Control-Allow-Origin" not in response.headers


async def test_the_body_of_a_token_request_is_bounded(client: Client) -> None:
    padding = " " * (demo.TOKEN_REQUEST_BYTES_MAX - len('{"user":"Ann"}'))
    for surplus, status in (("", 200), (" ", 413), (" " * 1_000_000, 413)):
        body = '{"user":"Ann"}' + padding + surplus
        response = await client.post(
            "/demo/token", data=body, headers={"Content-Type": "application/json; charset=utf-8"}
        )
        assert response.status == status


async def test_without_a_secret_the_page_gets_an_empty_token(aiohttp_client: AiohttpClient) -> None:
    app = web.Application()
    demo.add_demo_routes(app, node="node-a", peers=PEERS, token_secret="")
    status, answer = await ask(await aiohttp_client(app), "Ann")
    assert (status, answer) == (200, {"token": ""})
