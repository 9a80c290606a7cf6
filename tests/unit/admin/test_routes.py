"""The page's HTTP: who gets in, what a stranger gets, and what each answer says to the browser."""

from __future__ import annotations

from typing import Any, Final

import aiohttp
import pytest
from aiohttp.test_utils import TestClient, TestServer
from structlog.testing import capture_logs

from roomcast.admin.logins import EACH
from roomcast.admin.routes import COOKIE
from roomcast.admin.sessions import Session, Signer
from roomcast.serve.http_app import build_apps
from roomcast.wire.channels import ChannelOptions, ChannelRules
from tests.unit.admin.conftest import Open
from tests.unit.worlds import Fleet, config

JSON: Final = {"Content-Type": "application/json"}
OPEN: Final = {"/admin", "/admin/", "/admin/login.js", "/admin/style.css", "/admin/icon.svg"}


# ---- without the secret


async def test_without_a_hash_there_is_nothing() -> None:
    app = build_apps(config(), Fleet().node().assembly.node, metrics=bytes, demo_urls=None).internal
    async with TestClient(TestServer(app)) as client:
        for path in ("/admin", "/admin/", "/admin/app.js", "/admin/connection"):
            assert (await client.get(path)).status == 404
        assert (await client.post("/admin/login", json={"password": ""})).status == 404


async def test_a_stranger_gets_the_form_and_nothing_else(at: Open) -> None:
    page = await at()
    assert len(page.paths) > 20
    for method, path in page.paths:
        if path == "/admin/login":
            continue
        sent: dict[str, Any] = {"json": {}} if method == "POST" else {}
        answer = await page.client.request(method, path, headers=page.origin, **sent)
        text = await answer.text()
        if path in OPEN:
            assert answer.status == 200, path
            assert "app.js" not in text
        elif path == "/admin/logout":
            assert text == "{}"
        else:
            assert answer.status == 401, (method, path)
            assert len(text) < 50


async def test_a_wrong_password_is_refused_and_no_log_has_it(at: Open) -> None:
    page = await at()
    with capture_logs() as lines:
        answer = await page.login("another password")
        right = await page.login()
    assert answer.status == 401
    assert COOKIE not in answer.cookies
    assert right.status == 200
    assert [line["event"] for line in lines] == ["admin_login_refused", "admin_login"]
    said = str(lines)
    assert "password" not in said
    assert right.cookies[COOKIE].value not in said


async def test_guessing_is_limited_and_says_for_how_long(at: Open) -> None:
    page = await at()
    for _ in range(int(EACH.burst)):
        assert (await page.login("a guess of many")).status == 401
    answer = await page.login()
    assert answer.status == 429
    assert int(answer.headers["Retry-After"]) == (await answer.json())["wait_s"] > 1
    page.clock.advance(70)
    assert (await page.login()).status == 200


@pytest.mark.parametrize(
    "body", [b"", b"[]", b"{", b'{"password":1}', b'{"password":"\\ud800"}', b"x" * 10_000]
)
async def test_what_is_no_login_is_refused(at: Open, body: bytes) -> None:
    page = await at()
    answer = await page.client.post("/admin/login", data=body, headers={**page.origin, **JSON})
    assert answer.status in (400, 413)


# ---- with it


async def test_the_cookie_is_for_this_site_alone_and_for_no_script(at: Open) -> None:
    page = await at()
    cookie = (await page.login()).cookies[COOKIE]
    assert cookie["httponly"]
    assert cookie["samesite"] == "Strict"
    assert cookie["path"] == "/admin"
    assert int(cookie["max-age"]) == 600
    # Loopback without TLS; behind a proxy, whatever its address, it is for HTTPS alone.
    assert not cookie["secure"]
    proxied = await page.login(**{"X-Forwarded-For": "192.0.2.1"})
    assert proxied.cookies[COOKIE]["secure"]


async def test_who_logged_in_gets_the_page_until_the_session_ends(at: Open) -> None:
    page = await at()
    await page.login()
    answer = await page.client.get("/admin")
    assert "app.js" in await answer.text()
    assert (await page.client.get("/admin/app.js")).status == 200
    page.clock.advance(600)
    assert "app.js" not in await (await page.client.get("/admin")).text()
    assert (await page.client.get("/admin/app.js")).status == 401
    assert (await page.post("ticket")).status == 401


async def test_of_very_many_cookies_few_are_verified(
    at: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = await at()
    cookie = (await page.login()).cookies[COOKIE].value
    page.client.session.cookie_jar.clear()
    verified: list[str] = []
    real = Signer.session_of

    def counted(self: Signer, kind: Any, token: str, now_s: float) -> Session | None:
        verified.append(token)
        return real(self, kind, token, now_s)

    monkeypatch.setattr(Signer, "session_of", counted)
    several = f"a=b;;{COOKIE}=x.y; {COOKIE}={cookie} ;c=d"
    answer = await page.client.get("/admin/app.js", headers={"Cookie": several})
    assert answer.status == 200, "one of few may be it"
    del verified[:]
    flood = f"{COOKIE}={cookie[:-1]};" * 60
    answer = await page.client.get("/admin/app.js", headers={"Cookie": flood})
    assert answer.status == 401
    assert len(verified) < 10


async def test_logging_out_takes_the_cookie_back(at: Open) -> None:
    page = await at()
    await page.login()
    assert (await page.post("logout")).status == 200
    assert "app.js" not in await (await page.client.get("/admin")).text()


async def test_every_answer_says_what_the_browser_may_do(at: Open) -> None:
    page = await at()
    await page.login()
    paths = ("/admin", "/admin/app.js", "/admin/style.css", "/admin/nothing", "/admin/connection")
    for path in paths:
        headers = (await page.client.get(path, headers=page.origin)).headers
        policy = headers["Content-Security-Policy"]
        assert "unsafe" not in policy, path
        assert "default-src 'none'" in policy
        assert "frame-ancestors 'none'" in policy
        assert "require-trusted-types-for 'script'" in policy
        assert headers["Cache-Control"] == "no-store"
        assert headers["X-Content-Type-Options"] == "nosniff"


@pytest.mark.parametrize("path", ["login", "logout", "ticket"])
@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Origin": "https://elsewhere.example"},
        {"Origin": "http://127.0.0.1:1"},
        {"Origin": "null"},
        {"Origin": "http://é.example"},
        {"Origin": "own", "Sec-Fetch-Site": "cross-site"},
        {"Origin": "own", "Sec-Fetch-Site": "same-site"},
        {"Origin": "own", "Content-Type": "text/plain"},
    ],
    ids=str,
)
async def test_no_other_page_acts_in_somebody_s_name(
    at: Open, path: str, headers: dict[str, str]
) -> None:
    page = await at()
    await page.login()
    sent = {**JSON, **headers}
    if sent.get("Origin") == "own":
        sent |= page.origin
    answer = await page.client.post(f"/admin/{path}", data=b"{}", headers=sent)
    assert answer.status == (415 if "Content-Type" in headers else 403)


async def test_no_other_page_opens_a_socket(at: Open) -> None:
    page = await at()
    await page.login()
    for origin in ("https://elsewhere.example", "http://127.0.0.1:1"):
        with pytest.raises(aiohttp.WSServerHandshakeError, match="403"):
            await page.client.ws_connect("/admin/connection", headers={"Origin": origin})
    with pytest.raises(aiohttp.WSServerHandshakeError, match="403"):
        await page.client.ws_connect("/admin/connection")


async def test_a_socket_needs_a_cookie_and_a_ticket(at: Open) -> None:
    page = await at()
    with pytest.raises(aiohttp.WSServerHandshakeError, match="401"):
        await page.socket()
    await page.login()
    ticket = await page.ticket()
    for data in (None, {}, {"ticket": "1.1.aaaaaaaa.b"}, {"ticket": ticket + "a"}, ["ticket"]):
        socket = await page.socket()
        await socket.send_json({"id": 1, "connect": {"data": data}})
        assert (await socket.receive_json())["error"]["code"] == 101
    page.clock.advance(31)
    socket = await page.socket()
    await socket.send_json({"id": 1, "connect": {"data": {"ticket": ticket}}})
    assert (await socket.receive_json())["error"]["code"] == 101


async def test_a_socket_ends_with_its_session(at: Open) -> None:
    page = await at(session_ttl_s=2.0)
    await page.login()
    socket = await page.connected()
    message = await socket.receive(timeout=20)
    while message.type is aiohttp.WSMsgType.TEXT:
        message = await socket.receive(timeout=20)
    assert socket.close_code == 3005


async def test_another_node_takes_the_session(at: Open) -> None:
    fleet = Fleet()
    one, other = await at(fleet=fleet), await at(fleet=fleet, name="b")
    cookie = (await one.login()).cookies[COOKIE].value
    answer = await other.client.get("/admin", headers={"Cookie": f"{COOKIE}={cookie}"})
    assert "app.js" in await answer.text()


async def test_pages_are_no_clients_and_find_a_place_on_a_full_node(at: Open) -> None:
    page = await at()
    node = page.node.assembly.node
    node._connection_limit = 1
    await page.node.client()
    assert not node.takes_clients()
    await page.login()
    socket = await page.connected()
    assert len(node) == 1
    assert node.services.roster.users <= 1
    assert (await page.ask(socket, "hello"))["rpc"]["data"]["node"] == "a"


# ---- read-only, and not


async def test_read_only_nothing_changes_anything(at: Open) -> None:
    page = await at()
    await page.login()
    socket = await page.connected()
    hello = (await page.ask(socket, "hello"))["rpc"]["data"]
    assert hello["write"] is False
    assert not {"publish", "unsubscribe", "disconnect", "drain"} & set(hello["methods"])
    for method in ("publish", "unsubscribe", "disconnect", "drain", "subscribe", "refresh"):
        reply = await page.ask(socket, method, {"channel": "news", "data": 1, "user": "ann"})
        assert reply["error"]["code"] == 104, method
    # Nor by the protocol's own commands.
    await socket.send_json({"id": 2, "subscribe": {"channel": "news"}})
    assert "subscribe" in await socket.receive_json()
    for command in (
        {"publish": {"channel": "news", "data": 1}},
        {"rpc": {"method": "roomcast.publish", "data": {"channel": "news", "data": 1}}},
    ):
        await socket.send_json({"id": 3, **command})
        assert (await socket.receive_json())["error"]["code"] in (103, 104, 107)
    history = await page.ask(socket, "history", {"channel": "news"})
    assert history["rpc"]["data"]["publications"] == []


async def test_with_write_a_publication_comes_and_no_log_has_it(at: Open) -> None:
    page = await at(write=True)
    await page.login()
    socket = await page.connected()
    await socket.send_json({"id": 2, "subscribe": {"channel": "news"}})
    await socket.receive_json()
    with capture_logs() as lines:
        reply = await page.ask(socket, "publish", {"channel": "news", "data": {"a": "<b>x</b>"}})
    assert reply["rpc"]["data"]["offset"] == 1
    assert [line["event"] for line in lines if line["event"] == "admin_write"]
    assert "<b>" not in str(lines)
    kept = (await page.ask(socket, "history", {"channel": "news"}))["rpc"]["data"]
    assert [each["text"] for each in kept["publications"]] == ['{"a":"<b>x</b>"}']


async def test_any_channel_can_be_followed_and_nobody_sees_who_does(at: Open) -> None:
    page = await at()
    await page.login()
    socket = await page.connected()
    for number, channel in enumerate(("all:room", "$private", "plain:x"), start=2):
        await socket.send_json({"id": number, "subscribe": {"channel": channel}})
        assert "subscribe" in await socket.receive_json(), channel
    members = (await page.ask(socket, "presence", {"channel": "all:room"}))["rpc"]["data"]
    assert members == {"num_clients": 0, "members": []}


async def test_the_page_asks_no_hook_of_the_application(at: Open) -> None:
    asking = ChannelOptions(subscribe_proxy_enabled=True, publish_proxy_enabled=True)
    page = await at(rules=ChannelRules(asking))
    await page.login()
    socket = await page.connected()
    await socket.send_json({"id": 2, "subscribe": {"channel": "room"}})
    assert "subscribe" in await socket.receive_json()


async def test_the_end_of_the_node_sends_its_pages_elsewhere(at: Open) -> None:
    page = await at()
    await page.login()
    socket = await page.connected()
    await page.client.app.shutdown()
    message = await socket.receive()
    while message.type is aiohttp.WSMsgType.TEXT:
        message = await socket.receive()
    assert socket.close_code == 3001
