"""The demo page's files and calls: headers, what they answer, what they refuse."""

from __future__ import annotations

import asyncio
import json
import re
import socket
import time
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient
from pytest_aiohttp import AiohttpClient

import roomcast.dev.demo as demo
from roomcast.auth.verifier import TokenVerifier, sign_connection, sign_subscription
from roomcast.config import ClientConfig, Config, TokenConfig, dev_config, load
from roomcast.serve.http_app import build_apps
from roomcast.wire.capabilities import Capability
from roomcast.wire.channels import ChannelOptions, ChannelRules
from tests.unit.worlds import Fleet

pytest_plugins = ("pytest_aiohttp.plugin",)

SECRET = "a secret of a test, of more than 32 bytes"
PEERS = ("http://127.0.0.1:8000", "http://127.0.0.1:8001")
PAGE = Path(demo.__file__).parent / "page"
ROOM = ChannelOptions(allow_subscribe_for_client=True, allow_publish_for_subscriber=True)
CHAT = ChannelOptions(
    history_size=10,
    history_ttl_s=60,
    allow_subscribe_for_client=True,
    allow_publish_for_client=True,
)
NEWS = ChannelOptions(history_size=10, history_ttl_s=60, allow_subscribe_for_client=True)
Client = TestClient[web.Request, web.Application]


def application(
    token: TokenConfig, *, insecure: bool = False, rules: ChannelRules | None = None
) -> web.Application:
    app = web.Application()
    client = ClientConfig(insecure=insecure, token=token)
    demo.add_demo_routes(
        app, node="node-a", peers=PEERS, client=client, channels=rules or ChannelRules()
    )
    return app


@pytest.fixture
async def client(aiohttp_client: AiohttpClient) -> Client:
    return await aiohttp_client(application(TokenConfig(hmac_secret_key=SECRET)))


async def post(client: Client, path: str, body: Any, **headers: str) -> tuple[int, dict[str, Any]]:
    response = await client.post(path, json=body, headers=headers)
    return response.status, await response.json()


async def ask(client: Client, user: Any) -> tuple[int, dict[str, Any]]:
    return await post(client, "/demo/token", {"user": user})


async def ask_for_room(client: Client, token: Any, channel: Any) -> tuple[int, dict[str, Any]]:
    return await post(client, "/demo/subscription-token", {"token": token, "channel": channel})


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
    assert await response.json() == {
        "node": "node-a",
        "instances": [{"url": url} for url in PEERS],
        "insecure": False,
        "signs": True,
        "channel": "$lobby",
    }


@pytest.mark.parametrize("insecure", [True, False])
@pytest.mark.parametrize("secret", [SECRET, ""])
async def test_info_says_what_the_page_must_explain(
    aiohttp_client: AiohttpClient, insecure: bool, secret: str
) -> None:
    client = await aiohttp_client(
        application(TokenConfig(hmac_secret_key=secret), insecure=insecure)
    )
    info = await (await client.get("/demo/info")).json()
    assert (info["insecure"], info["signs"]) == (insecure, bool(secret))
    assert secret not in info.values() or not secret


@pytest.mark.parametrize(
    "insecure, rules, channel",
    [
        (True, ChannelRules(), "lobby"),
        (False, ChannelRules(ROOM), "lobby"),
        (False, ChannelRules(NEWS, {"news": NEWS, "room": ROOM, "chat": CHAT}), "chat:lobby"),
        (False, ChannelRules(NEWS, {"typing": ROOM, "room": ROOM}), "room:lobby"),
        (False, ChannelRules(NEWS, {"typing": ROOM, "news": NEWS}), "$lobby"),
    ],
)
async def test_the_first_channel_is_one_to_chat_in(
    aiohttp_client: AiohttpClient, insecure: bool, rules: ChannelRules, channel: str
) -> None:
    client = await aiohttp_client(application(TokenConfig(), insecure=insecure, rules=rules))
    assert (await (await client.get("/demo/info")).json())["channel"] == channel


@pytest.mark.parametrize(
    "entered, user",
    [
        ("Ann", "Ann"),
        ("  Ann  ", "Ann"),
        ("Zoë 🙂", "Zoë 🙂"),
        ("Zoe\u0308", "Zoë"),
        ("x" * 40, "x" * 40),
    ],
)
async def test_a_token_is_good_for_the_name(client: Client, entered: str, user: str) -> None:
    status, answer = await ask(client, entered)
    assert status == 200
    now_s = time.time()
    claims = await TokenVerifier(TokenConfig(hmac_secret_key=SECRET)).connection(
        answer["token"], now_s
    )
    assert claims.user == answer["user"] == user
    assert claims.info == {"name": user}
    assert claims.expires_at == answer["expires_at"]
    assert now_s < answer["expires_at"] <= now_s + demo.TOKEN_TTL_S


async def test_tokens_are_for_this_audience_and_of_this_issuer(
    aiohttp_client: AiohttpClient,
) -> None:
    config = TokenConfig(hmac_secret_key=SECRET, audience="chat", issuer="tests")
    client = await aiohttp_client(application(config))
    token = (await ask(client, "Ann"))[1]["token"]
    assert (await TokenVerifier(config).connection(token, time.time())).user == "Ann"
    token = (await ask_for_room(client, token, "$room"))[1]["token"]
    assert (await TokenVerifier(config).subscription(token, time.time())).user == "Ann"


async def test_a_token_is_not_to_be_stored(client: Client) -> None:
    response = await client.post("/demo/token", json={"user": "Ann"})
    assert response.headers["Cache-Control"] == "no-store"


@pytest.mark.parametrize(
    "user",
    [
        "",
        "   ",
        "x" * 41,
        "a\nb",
        "a\u202eb",
        "a\u200bb",
        "\ud800",
        None,
        7,
        ["Ann"],
        {"name": "Ann"},
    ],
)
async def test_names_that_are_none_are_refused(client: Client, user: Any) -> None:
    status, answer = await ask(client, user)
    assert status == 400
    assert answer["error"]["code"] == 400
    assert answer["error"]["message"].endswith(".")


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b'"Ann"', b"\xff", b"[" * 1_000])
async def test_bodies_that_are_no_request_are_refused(client: Client, body: bytes) -> None:
    response = await client.post(
        "/demo/token", data=body, headers={"Content-Type": "application/json"}
    )
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


async def test_the_body_of_a_request_for_a_room_is_bounded_and_holds_the_longest(
    client: Client,
) -> None:
    token = (await ask(client, "🙂" * demo.USER_CHARS_MAX))[1]["token"]
    assert (await ask_for_room(client, token, "$" + "x" * 254))[0] == 200
    assert (await ask_for_room(client, "x" * demo.SUBSCRIPTION_REQUEST_BYTES_MAX, "$room"))[
        0
    ] == 413


@pytest.mark.parametrize("path", ["/demo/token", "/demo/subscription-token"])
async def test_without_a_secret_nothing_is_signed_and_the_answer_says_what_to_do(
    aiohttp_client: AiohttpClient, client: Client, path: str
) -> None:
    token = (await ask(client, "Ann"))[1]["token"]
    other = await aiohttp_client(application(TokenConfig()))
    status, answer = await post(other, path, {"user": "Ann", "token": token, "channel": "$room"})
    assert status in (401, 409)
    assert "token" not in answer
    status, answer = await ask(other, "Ann")
    assert status == 409
    assert "client.token.hmac_secret_key" in answer["error"]["message"]


async def test_a_room_s_token_is_for_whom_the_connection_token_names(client: Client) -> None:
    token = (await ask(client, "Ann"))[1]["token"]
    body = {"token": token, "channel": "$room", "user": "Bob", "sub": "Bob"}
    status, answer = await post(client, "/demo/subscription-token", body)
    assert status == 200
    claims = await TokenVerifier(TokenConfig(hmac_secret_key=SECRET)).subscription(
        answer["token"], time.time()
    )
    assert (claims.user, claims.channel) == ("Ann", "$room")
    assert claims.allow == {Capability.PUBLISH, Capability.HISTORY, Capability.PRESENCE}
    assert claims.expires_at == answer["expires_at"]


@pytest.mark.parametrize(
    "token",
    [
        None,
        "",
        7,
        "Ann",
        sign_connection("Ann", "a secret that is another one, of 32 bytes", 60),
        sign_connection("Ann", SECRET, 60, now_s=1_000_000_000),
        sign_connection("", SECRET, 60),
        sign_subscription("Ann", "$room", SECRET, 60),
    ],
)
async def test_who_is_not_signed_in_gets_no_token_for_a_room(client: Client, token: Any) -> None:
    status, answer = await ask_for_room(client, token, "$room")
    assert status == 401
    assert "sign in" in answer["error"]["message"]
    assert "token" not in answer


@pytest.mark.parametrize(
    "channel", ["", "$", "room", "room:$x", "dialogue#bob", "$ä", "$" + "x" * 255, None, 7]
)
async def test_only_private_channels_have_tokens_of_their_own(client: Client, channel: Any) -> None:
    token = (await ask(client, "Ann"))[1]["token"]
    status, answer = await ask_for_room(client, token, channel)
    assert status == 400
    assert "token" not in answer


@pytest.mark.parametrize("path", ["/demo/token", "/demo/subscription-token"])
@pytest.mark.parametrize(
    "headers",
    [
        {"Host": "rebound.example.com"},
        {"Host": "192.0.2.1:8000"},
        {"Host": "localhost.example.com"},
        {"Host": "["},
        {"Origin": "https://example.com"},
        {"Origin": "null"},
        {"Origin": "http://["},
        {"Origin": "http://127.0.0.1:1"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
        {"X-Forwarded-For": "192.0.2.1"},
        {"Forwarded": "for=192.0.2.1"},
    ],
    ids=str,
)
async def test_only_a_page_of_this_server_on_this_machine_gets_a_token(
    client: Client, path: str, headers: dict[str, str]
) -> None:
    token = (await ask(client, "Ann"))[1]["token"]
    body = {"user": "Ann", "token": token, "channel": "$room"}
    assert (await post(client, path, body))[0] == 200
    # Some are refused before they get here: no URL leads to such a host.
    response = await client.post(path, json=body, headers=headers)
    assert response.status in ({400, 403} if headers == {"Host": "["} else {403})
    assert "eyJ" not in await response.text()


async def raw(client: Client, request: bytes) -> bytes:
    """The whole answer to what no HTTP client would send."""
    reader, writer = await asyncio.open_connection("127.0.0.1", client.server.port)
    writer.write(request)
    async with asyncio.timeout(15):
        answer = await reader.readuntil(b"\r\n\r\n")
    writer.close()
    return answer


async def test_who_names_no_host_gets_no_token_and_nobody_waits_for_the_resolver(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = 0

    def getfqdn() -> str:
        nonlocal asked
        asked += 1
        return "localhost"

    monkeypatch.setattr(socket, "getfqdn", getfqdn)
    body = b'Content-Type: application/json\r\nContent-Length: 14\r\n\r\n{"user":"Ann"}'
    assert b" 403 " in await raw(client, b"POST /demo/token HTTP/1.0\r\n" + body)
    assert asked == 0


async def test_a_request_that_comes_to_no_end_is_not_waited_for(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(demo, "BODY_S", 0.05)
    head = b"POST /demo/token HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
    assert b" 408 " in await raw(client, head + b"Content-Length: 14\r\n\r\n{")


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1:8000", "[::1]:8000", "127.8.8.8"])
async def test_this_machine_has_several_names(client: Client, host: str) -> None:
    headers = {"Host": host, "Origin": f"http://{host}", "Sec-Fetch-Site": "same-origin"}
    assert (await post(client, "/demo/token", {"user": "Ann"}, **headers))[0] == 200


@pytest.mark.parametrize(
    "address, status",
    [
        ("127.0.0.1", 200),
        ("::1", 200),
        ("::ffff:127.0.0.1", 200),
        ("192.0.2.1", 403),
        ("::ffff:192.0.2.1", 403),
        ("", 403),
    ],
)
async def test_another_machine_gets_no_token(
    client: Client, monkeypatch: pytest.MonkeyPatch, address: str, status: int
) -> None:
    monkeypatch.setattr(web.Request, "remote", address)
    assert (await ask(client, "Ann"))[0] == status


@pytest.mark.parametrize("demo_urls", [None, PEERS])
def test_only_the_development_server_has_these_routes(demo_urls: tuple[str, ...] | None) -> None:
    config = load(
        None, {"ROOMCAST_AWS_TOPIC_ARN": "arn:aws:sns:us-east-1:123456789012:t"}, demo=True
    )
    node = Fleet().node().assembly.node
    app = build_apps(config, node, metrics=bytes, demo_urls=demo_urls).clients
    paths = {route.resource.canonical for route in app.router.routes() if route.resource}
    assert "/connection/websocket" in paths
    assert bool({path for path in paths if path.startswith("/demo") or path == "/"}) is (
        demo_urls is not None
    )


def test_the_page_s_typing_channels_exist_and_are_not_stored_in_development() -> None:
    options = dev_config().channel.options("typing:room:lobby")
    assert options is not None
    assert not options.has_history
    assert dev_config().channel.options("$typing:lobby") == options
    assert Config().channel.options("typing:lobby") is None
