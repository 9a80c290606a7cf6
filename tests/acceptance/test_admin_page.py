"""The operations page in a browser, against `roomcast dev` with two instances: each view, by
keyboard, on a phone, in the dark, and with names and payloads that want to be more than text.
"""

from __future__ import annotations

import asyncio
import http.client
import json
import re
import secrets
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, Final

import aiohttp
import pytest
from playwright.async_api import Browser, ConsoleMessage, Page, WebSocketRoute, expect

from roomcast.auth.verifier import sign_connection
from tests.acceptance.browser import CONTRASTS, chromium_at
from tests.acceptance.conftest import running
from tests.acceptance.roomcast import Dev

# A loaded machine is slow; a page that is wrong stays wrong for as long.
expect.set_options(timeout=20_000)
pytestmark = pytest.mark.timeout(120)

CONFIG: Final = Path(__file__).with_name("admin.toml")
PASSWORD: Final = "a password of the tests"
SECRET: Final = "of-the-tests-of-the-page-and-nobody-else"  # of admin.toml
# They set this if they ever become code.
HOSTILE: Final = "<img src=x onerror=window.hacked=1><script>window.hacked=1</script>"
# Turns the direction of writing around, as far as it may.
BACKWARDS: Final = "\u202eevil\u2066"
VIEWS: Final = ("Fleet", "Load", "Channels", "Clients", "Tokens", "Clean-up")


@pytest.fixture(scope="module")
def admin() -> Iterator[Dev]:
    with running("--config", str(CONFIG)) as started:
        yield started


@pytest.fixture
async def chromium(browser: str) -> AsyncIterator[Browser]:
    async with chromium_at(browser) as made:
        yield made


@pytest.fixture(scope="module")
def cookie(admin: Dev) -> str:
    """Of somebody who logged in once: an address has few attempts."""
    host = admin.urls[0].removeprefix("http://")
    connection = http.client.HTTPConnection(host, timeout=20)
    body = json.dumps({"password": PASSWORD})
    headers = {"Content-Type": "application/json", "Origin": admin.urls[0]}
    connection.request("POST", "/admin/login", body, headers)
    given = connection.getresponse().headers["Set-Cookie"]
    connection.close()
    return str(given.partition(";")[0].partition("=")[2])


@pytest.fixture
async def opened(chromium: Browser, cookie: str) -> AsyncIterator[Any]:
    """Opens pages of somebody who logged in, unless `is_stranger`. Whatever a page complains of
    fails the test, and so does a script that ran.
    """
    complaints: list[str] = []
    pages: list[Page] = []

    def hear(line: ConsoleMessage) -> None:
        # The browser reports each request that is refused: a wrong password is.
        if line.type in {"error", "warning"} and "401" not in line.text:
            complaints.append(line.text)

    async def open_page(url: str, *, is_stranger: bool = False, **options: Any) -> Page:
        context = await chromium.new_context(**options)
        if not is_stranger:
            await context.add_cookies([
                {
                    "name": "roomcast_admin", "value": cookie, "domain": "127.0.0.1",
                    "path": "/admin",
                }
            ])  # fmt: skip
        page = await context.new_page()
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("dialog", lambda dialog: complaints.append(dialog.message))
        page.on("console", hear)
        pages.append(page)
        await page.goto(f"{url}/admin")
        return page

    yield open_page
    for page in pages:
        assert await page.evaluate("window.hacked") is None
    assert complaints == []


@pytest.fixture
def channel() -> str:
    return f"ops-{secrets.token_hex(4)}"


async def is_live(page: Page) -> None:
    await expect(page.locator("#state-text")).to_have_text("Live")


class Client:
    """A client of an instance, over its own WebSocket."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self._socket = socket

    async def until(self, name: str) -> Any:
        """What the first message with `name` has there, in a reply or in a push."""
        async with asyncio.timeout(20):
            while True:
                for line in (await self._socket.receive_str()).splitlines():
                    message = json.loads(line)
                    message = message.get("push", message)
                    if name in message:
                        return message[name]

    async def say(self, command: dict[str, Any], answer: str) -> Any:
        await self._socket.send_json({"id": 1, **command})
        return await self.until(answer)

    async def closed(self) -> int | None:
        async with asyncio.timeout(20):
            while not self._socket.closed:
                await self._socket.receive()
        return self._socket.close_code


@pytest.fixture
async def connect() -> AsyncIterator[Any]:
    """Connects clients: to an instance, as a user, to channels."""
    async with AsyncExitStack() as stack:
        opening = await stack.enter_async_context(aiohttp.ClientSession())

        async def connected(url: str, user: str, *channels: str) -> Client:
            socket = await stack.enter_async_context(opening.ws_connect(url))
            token = sign_connection(user, SECRET, 600, {"name": user}, now_s=int(time.time()))
            client = Client(socket)
            await client.say({"connect": {"token": token}}, "connect")
            for channel in channels:
                await client.say({"subscribe": {"channel": channel}}, "subscribe")
            return client

        yield connected


async def test_without_the_password_there_is_a_form_and_nothing_else(
    admin: Dev, opened: Any
) -> None:
    page = await opened(admin.urls[0], is_stranger=True)
    await expect(page.get_by_role("heading", name="Operations")).to_be_visible()
    await page.get_by_label("Password").fill("not the password")
    await page.keyboard.press("Enter")
    await expect(page.get_by_role("alert")).to_have_text("That is not the password.")
    await expect(page.get_by_label("Password")).to_be_focused()
    assert await page.locator("nav").count() == 0
    assert await page.context.cookies() == []
    await page.get_by_label("Password").fill(PASSWORD)
    await page.keyboard.press("Enter")
    await is_live(page)
    [kept] = await page.context.cookies()
    assert (kept["httpOnly"], kept["sameSite"], kept["path"]) == (True, "Strict", "/admin")
    assert kept["value"] not in await page.evaluate("document.cookie")
    await page.get_by_role("button", name="Log out").click()
    await expect(page.get_by_label("Password")).to_be_visible()


async def test_all_nodes_are_there_and_the_charts_follow(
    admin: Dev, opened: Any, connect: Any, channel: str
) -> None:
    client = await connect(admin.ws_urls[1], "ann", channel)
    await connect(admin.ws_urls[0], "bob", channel)
    page = await opened(admin.urls[0])
    await is_live(page)
    for node in admin.nodes:
        row = page.get_by_role("row").filter(has_text=node)
        await expect(row.get_by_role("cell").filter(has_text="ready")).to_be_visible()
    other = page.get_by_role("row").filter(has_text=admin.nodes[1])
    await expect(other.locator("[data-label=Connections]")).to_have_text("1")
    await page.get_by_role("link", name="Load").click()
    chart = page.get_by_role("img", name=re.compile("Stage 1: into the log"))

    async def publish() -> None:
        while True:
            command = {"publish": {"channel": channel, "data": {"n": 1}}}
            await client.say(command, "publish")
            await asyncio.sleep(0.05)

    publishing = asyncio.create_task(publish())
    try:
        # What the other node did, in words, and how it came here.
        words = re.compile(r"Median: now .* ms")
        await expect(chart).to_have_attribute("aria-label", words)
        way = page.get_by_role("img", name=re.compile("The whole way to other nodes"))
        await expect(way).to_have_attribute("aria-label", words)
    finally:
        publishing.cancel()
        await asyncio.gather(publishing, return_exceptions=True)
    figure = page.locator("figure").filter(has_text="Stage 1")
    await figure.get_by_text("As a table").click()
    await expect(figure.get_by_role("row").nth(1)).to_contain_text("ms")


async def test_what_is_wrong_is_said_in_words(admin: Dev, opened: Any) -> None:
    page = await opened(admin.urls[0])

    def between(socket: WebSocketRoute) -> None:
        server = socket.connect_to_server()

        def heard(message: str | bytes) -> None:
            told = json.loads(message)
            nodes = told.get("rpc", {}).get("data", {}).get("nodes", [])
            for node in nodes:
                why: dict[str, Any] = {
                    "hearing": "silent",
                    "doubts": ["many words " * 40],
                    "histograms": {},
                }
                why |= {"to_lambda_ms": 58, "to_node_ms": 20}
                node["figures"] = (node["figures"] or {}) | why
            if nodes:
                nodes.append(nodes[0] | {"node": "new", "state": "starting", "figures": None})
                told["rpc"]["data"]["dead"] = [{"node": HOSTILE, "heartbeat_age_s": 70}]
            socket.send(json.dumps(told))

        server.on_message(heard)

    await page.route_web_socket("**/admin/connection", between)
    await page.reload()
    await is_live(page)
    await page.get_by_role("link", name="Load").click()
    # The time of an old canary would look like a fast way.
    chart = page.get_by_role("img", name=re.compile("Stages 2 and 3"))
    await expect(chart).to_have_attribute("aria-label", re.compile("Queue lag: now .* ms"))
    label = await chart.get_attribute("aria-label")
    assert label is not None
    assert re.search(r"To the Lambda: now [0-9]", label) is None, label
    await page.get_by_role("link", name="Fleet").click()
    await expect(page.locator("#trouble")).to_contain_text(
        "2 of 2 nodes do not hear what is written"
    )
    await expect(page.get_by_role("row").filter(has_text=admin.nodes[1])).to_be_visible()
    # Not even a long reason breaks a button's word.
    box = await page.get_by_role("button", name="Drain").first.bounding_box()
    assert box is not None
    assert box["height"] < 34
    # What starts, such as the lease of a doctor, does not hear an order yet.
    new = page.get_by_role("row").filter(has_text="starting")
    await expect(new).to_be_visible()
    await expect(new.get_by_role("button")).to_have_count(0)
    note = f"{HOSTILE} is dead: its last heartbeat was 70 s ago"
    await expect(page.locator("#view .dead")).to_contain_text(note)

    told = await page.evaluate("""async () => {
        const { condition } = await import("/admin/figures.js");
        const figures = { doubts: [] };
        const silent = (lateS, beatS) =>
            condition({ figures, late_s: lateS, heartbeat_age_s: beatS }).why.at(-1);
        return [silent(30, 5), silent(59, 58), silent(20, 19)];
    }""")
    assert "it runs, but the topic or its queue" in told[0]
    assert "no heartbeat for 58 s: it has ended, is suspended" in told[1]
    assert "last answered 20 s ago" in told[2]


async def test_a_channel_is_inspected_followed_and_published_to(
    admin: Dev, opened: Any, connect: Any, channel: str
) -> None:
    client = await connect(admin.ws_urls[1], HOSTILE, channel)
    payload = {"text": HOSTILE, "more": BACKWARDS}
    await client.say({"publish": {"channel": channel, "data": payload}}, "publish")
    page = await opened(admin.urls[0])
    await is_live(page)
    await page.get_by_role("link", name="Channels").click()
    # The busiest ones have it, from the other node.
    await page.get_by_role("link", name=channel).click()
    panel = page.locator(".panel")
    await expect(panel.get_by_role("heading", name=channel)).to_be_focused()
    await expect(panel).to_contain_text(f"{admin.nodes[1]} 1")
    kept = panel.get_by_label("Payload of offset 1")
    # What would turn the direction of writing around can be seen, and turns nothing.
    await expect(kept).to_have_text(json.dumps(payload, separators=(",", ":")))
    await expect(panel.get_by_role("region", name="Members")).to_contain_text(HOSTILE)
    await panel.get_by_label("Hex").check()
    await expect(kept).to_contain_text("0000  7b 22 74 65 78 74 22 3a")
    await panel.get_by_label("Text").check()

    await panel.get_by_role("button", name="Follow live").click()
    live = panel.get_by_role("region", name="Live")
    await expect(live).to_contain_text("Following.")
    await client.say({"publish": {"channel": channel, "data": f"live {HOSTILE}"}}, "publish")
    await expect(live.locator("pre")).to_have_text(f'"live {HOSTILE}"')

    await panel.get_by_role("button", name="Publish…").click()
    dialog = page.get_by_role("dialog", name="Publish")
    await expect(dialog.get_by_label("Payload, as JSON")).to_be_focused()
    await dialog.get_by_label("Payload, as JSON").fill("no JSON")
    await dialog.get_by_role("button", name="Publish").click()
    await expect(dialog.get_by_role("alert")).to_contain_text("That is not JSON")
    await dialog.get_by_label("Payload, as JSON").fill('{"from":"the page"}')
    await dialog.get_by_role("button", name="Publish").click()
    await expect(dialog).to_be_hidden()
    await expect(panel.get_by_role("button", name="Publish…")).to_be_focused()
    while (await client.until("pub"))["data"] != {"from": "the page"}:
        pass
    await expect(live.locator("pre").first).to_have_text('{"from":"the page"}')


async def test_a_user_is_found_on_another_node_and_disconnected(
    admin: Dev, opened: Any, connect: Any, channel: str
) -> None:
    user = f"{HOSTILE}{channel}"
    client = await connect(admin.ws_urls[1], user, channel, f"live:{HOSTILE}/x")
    page = await opened(admin.urls[0])
    await is_live(page)
    await page.get_by_role("link", name="Clients").click()
    await page.get_by_label("Name").fill(user)
    await page.keyboard.press("Enter")
    await expect(page.get_by_role("heading", name="1 connection on 1 node")).to_be_visible()
    one = page.locator(".connections .panel")
    await expect(one).to_contain_text(user)
    await expect(one).to_contain_text(admin.nodes[1])
    await expect(one.get_by_role("link", name=channel, exact=True)).to_be_visible()
    await expect(one.get_by_role("link", name=f"live:{HOSTILE}/x")).to_be_visible()

    await one.get_by_role("button", name=f"Unsubscribe from {channel}").click()
    await page.get_by_role("dialog").get_by_role("button", name="Unsubscribe").click()
    assert (await client.until("unsubscribe"))["code"] == 2000
    button = page.get_by_role("button", name="Disconnect all…")
    await button.click()
    dialog = page.get_by_role("dialog", name="Disconnect?")
    await page.keyboard.press("Escape")
    await expect(dialog).to_be_hidden()
    await page.get_by_role("button", name="Disconnect all…").click()
    await dialog.get_by_role("button", name="Disconnect", exact=True).click()
    assert await client.closed() == 3503
    await expect(page.get_by_text("Nobody is connected by that name.")).to_be_visible()


async def test_a_token_is_judged(admin: Dev, opened: Any) -> None:
    page = await opened(admin.urls[0])
    await is_live(page)
    await page.get_by_role("link", name="Tokens").click()
    claims = {"caps": [{"channels": [HOSTILE], "allow": ["sub"]}]}
    now_s = int(time.time())
    good = sign_connection(HOSTILE, SECRET, 600, {"a": HOSTILE}, now_s=now_s, claims=claims)
    await page.get_by_label("Connection or subscription token").fill(good)
    await page.get_by_role("button", name="Check").click()
    found = page.get_by_role("status").filter(has_text="token")
    await expect(found).to_contain_text("Valid: a connection token.")
    await expect(found).to_contain_text(f"sub in {HOSTILE}")
    await page.get_by_label("Connection or subscription token").fill(good[:-5] + "AAAAA")
    await page.get_by_role("button", name="Check").click()
    await expect(page.get_by_role("alert")).to_contain_text("No server would take it")


async def test_a_dry_run_of_the_reaper_tells_what_it_finds(admin: Dev, opened: Any) -> None:
    page = await opened(admin.urls[0])
    await is_live(page)
    await page.get_by_role("link", name="Clean-up").click()
    await page.get_by_role("button", name="Look for what dead nodes left").click()
    await expect(page.get_by_role("heading", name="All is clean")).to_be_visible()
    await expect(page.locator("#view")).to_contain_text("2 nodes live.")


async def test_everything_is_reached_by_the_keyboard_alone(
    admin: Dev, opened: Any, connect: Any, channel: str
) -> None:
    await connect(admin.ws_urls[1], "ann", channel)
    page = await opened(admin.urls[0], is_stranger=True)
    await expect(page.get_by_label("Password")).to_be_focused()
    await page.keyboard.type(PASSWORD)
    await page.keyboard.press("Enter")
    await is_live(page)

    async def tab_to(name: str) -> None:
        """Presses Tab until what has this name is focused, and sees that it shows."""
        for _ in range(60):
            await page.keyboard.press("Tab")
            told = await page.evaluate("""() => {
                const at = document.activeElement;
                const { outlineStyle, outlineWidth } = getComputedStyle(at);
                const label = at.labels?.[0]?.textContent ?? at.getAttribute('aria-label');
                const text = label ?? at.textContent.trim();
                return [text, outlineStyle !== 'none' && parseFloat(outlineWidth) >= 1];
            }""")
            if told[0] == name:
                assert told[1], f"the focus on {name} does not show"
                return
        raise AssertionError(f"{name} is not reached")

    await tab_to("Skip to the content")
    await page.keyboard.press("Enter")
    await expect(page.locator("main")).to_be_focused()
    for view in VIEWS:
        await page.evaluate("document.activeElement.blur()")
        await tab_to(view)
        await page.keyboard.press("Enter")
        await expect(page.get_by_role("heading", name=view, level=1)).to_be_visible()
        await expect(page.get_by_role("link", name=view)).to_have_attribute("aria-current", "page")
    await page.goto(f"{admin.urls[0]}/admin#channels")
    await tab_to("Channel")
    await page.keyboard.type(channel)
    await page.keyboard.press("Enter")
    await expect(page.get_by_role("heading", name=channel)).to_be_focused()
    await tab_to("Publish…")
    await page.keyboard.press("Enter")
    await page.keyboard.type('"by hand"')
    await tab_to("Publish")
    # The dialog keeps the focus: what is behind it is not reached, however often Tab is pressed.
    for _ in range(8):
        await page.keyboard.press("Tab")
        assert await page.evaluate(
            "document.activeElement === document.body || !!document.activeElement.closest('dialog')"
        )
    await tab_to("Publish")
    await page.keyboard.press("Enter")
    await expect(page.get_by_role("button", name="Publish…")).to_be_focused()
    await expect(page.get_by_label("Payload of offset 1")).to_have_text('"by hand"')


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 1280])
async def test_every_view_fits_and_can_be_read(
    admin: Dev, opened: Any, connect: Any, channel: str, width: int, scheme: str
) -> None:
    long = f"{channel}-{'x' * 200}"
    await connect(admin.ws_urls[1], "long" * 60, long)
    page = await opened(
        admin.urls[0],
        color_scheme=scheme,
        viewport={"width": width, "height": 740},
        reduced_motion="reduce",
    )

    async def fits() -> None:
        assert await page.evaluate("document.documentElement.scrollWidth") <= width
        contrasts = await page.evaluate(CONTRASTS)
        assert [contrast for contrast in contrasts if contrast[0] < 4.5] == []

    await is_live(page)
    await expect(page.get_by_role("row").filter(has_text=admin.nodes[1])).to_be_visible()
    await fits()
    for view, seen in (
        ("load", "Waits for turns"),
        (f"channels/{long}", "Nothing is kept"),
        (f"clients/user/{'long' * 60}", "1 subscription"),
        ("tokens", "Connection or subscription token"),
        ("cleanup", "removes nothing"),
        ("fleet", admin.nodes[0]),
    ):
        await page.evaluate("view => { window.location.hash = view; }", view)
        await expect(page.locator("#view")).to_contain_text(seen)
        await fits()
    await page.get_by_role("button", name="Log out").click()
    await expect(page.get_by_label("Password")).to_be_visible()
    await fits()
    moving = await page.evaluate(
        "[...document.querySelectorAll('*')].filter("
        "(each) => parseFloat(getComputedStyle(each).transitionDuration) > 0).length"
    )
    assert moving == 0


async def test_a_lost_connection_is_told_and_comes_back(admin: Dev, opened: Any) -> None:
    page = await opened(admin.urls[0])
    sockets: list[WebSocketRoute] = []

    def let_through(socket: WebSocketRoute) -> None:
        socket.connect_to_server()
        sockets.append(socket)

    await page.route_web_socket("**/admin/connection", let_through)
    await page.reload()
    await is_live(page)
    await expect(page.get_by_role("row").filter(has_text=admin.nodes[1])).to_be_visible()
    await page.route("**/admin/ticket", lambda route: route.abort())
    await sockets[-1].close()
    await expect(page.get_by_role("alert")).to_contain_text("The connection to the server is lost.")
    await expect(page.locator("#state-text")).to_contain_text("ost")
    # What was there is still there, and says of when it is.
    await expect(page.get_by_role("alert")).to_contain_text("What is shown is of")
    await page.unroute("**/admin/ticket")
    await page.get_by_role("button", name="Try now").click()
    await expect(page.locator("#state-text")).to_have_text("Live")
    await expect(page.get_by_role("alert")).to_be_hidden()
