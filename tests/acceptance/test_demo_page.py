"""The demo page in a browser, against `roomcast dev`: people on two instances, failures,
keyboard, phones, contrast.
"""

from __future__ import annotations

import json
import re
import secrets
import time
import tomllib
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import pytest
from playwright.async_api import (
    Browser,
    ConsoleMessage,
    Locator,
    Page,
    Route,
    WebSocket,
    WebSocketRoute,
    expect,
)

from roomcast.auth.verifier import sign_connection, sign_subscription
from tests.acceptance.browser import CONTRASTS, chromium_at
from tests.acceptance.conftest import SECURED
from tests.acceptance.roomcast import Aws, Dev

# A loaded machine is slow; a page that is wrong stays wrong for as long.
expect.set_options(timeout=20_000)
pytestmark = pytest.mark.timeout(120)

SOCKETS = "**/connection/websocket"


@dataclass(frozen=True)
class Person:
    """Somebody at the page; `messages` are those that are in the channel's log."""

    page: Page

    @property
    def messages(self) -> Locator:
        return self.page.locator("#messages .message")

    @property
    def notes(self) -> Locator:
        return self.page.locator("#messages .note")

    @property
    def unsent(self) -> Locator:
        return self.page.locator("#outbox .message")

    @property
    def composer(self) -> Locator:
        return self.page.get_by_label("Message", exact=True)

    def message(self, text: str) -> Locator:
        return self.messages.filter(has=self.page.get_by_text(text, exact=True))

    async def join(self, url: str, name: str, channel: str) -> None:
        await self.page.goto(url)
        await self.page.get_by_label("Your name").fill(name)
        await self.page.get_by_label("Channel", exact=True).fill(channel)
        await self.page.keyboard.press("Enter")
        await self.is_there(name)

    async def join_as_guest(self, url: str, channel: str) -> None:
        await self.page.goto(url)
        await self.page.get_by_label("Channel", exact=True).fill(channel)
        await self.page.get_by_role("button", name="Join as a guest").click()

    @property
    def comings(self) -> Locator:
        return self.page.locator("#messages .coming")

    @property
    def typing(self) -> Locator:
        return self.page.get_by_role("status").filter(has_text="typing")

    async def hears_who_types(self) -> None:
        await expect(self.page.locator("#typing")).to_have_attribute("data-open", "true")

    async def type_fast(self) -> None:
        """Fifty inputs at one moment."""
        await self.hears_who_types()
        await self.composer.evaluate("""text => {
            for (let number = 0; number < 50; number += 1) {
                text.value += 'x';
                text.dispatchEvent(new Event('input', { bubbles: true }));
            }
        }""")

    def hear_commands(self) -> list[dict[str, Any]]:
        """The commands that the page sends from now on; to be asked for before it connects."""
        commands: list[dict[str, Any]] = []

        def hear(frame: str | bytes) -> None:
            commands.extend(json.loads(line) for line in str(frame).splitlines())

        self.page.on("websocket", lambda socket: socket.on("framesent", hear))
        return commands

    async def is_there(self, name: str) -> None:
        """Waits until the page is subscribed and has found its own connection in the presence."""
        await expect(self.page.locator("#status")).to_have_text("Connected")
        await expect(self.page.locator("#people li", has_text="you")).to_contain_text(name)

    async def say(self, text: str) -> None:
        await self.composer.fill(text)
        await self.composer.press("Enter")

    async def texts(self) -> list[str]:
        return await self.messages.locator(".text").all_text_contents()

    async def offsets(self) -> list[str]:
        return await self.messages.locator(".offset").all_text_contents()


Open = Callable[..., Awaitable[Person]]


def is_complaint(line: ConsoleMessage) -> bool:
    # The browser reports each refused request;
    # a name that is refused is shown to whoever entered it.
    return line.type in {"error", "warning"} and "status of 400" not in line.text


@pytest.fixture
async def chromium(browser: str) -> AsyncIterator[Browser]:
    async with chromium_at(browser) as running:
        yield running


@pytest.fixture
async def person(chromium: Browser) -> AsyncIterator[Open]:
    """Opens pages, each of a person of its own (storage is not shared);
    whatever a page complains of fails the test.
    """
    complaints: list[str] = []

    async def open_page(**options: Any) -> Person:
        context = await chromium.new_context(**options)
        page = await context.new_page()
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("dialog", lambda dialog: complaints.append(dialog.message))
        page.on(
            "console", lambda line: complaints.append(line.text) if is_complaint(line) else None
        )
        return Person(page)

    yield open_page
    assert complaints == []


@pytest.fixture
def channel() -> str:
    return f"demo-{secrets.token_hex(6)}"


async def test_two_people_on_two_instances_share_a_channel(
    dev: Dev, person: Open, channel: str
) -> None:
    ann, bob = await person(), await person()
    await ann.join(dev.urls[0], "Ann", channel)
    await bob.join(dev.urls[1], "Bob", channel)
    for someone in (ann, bob):
        await expect(someone.page.locator("#people .name")).to_have_text(
            ["Ann", "Bob"] if someone is ann else ["Bob", "Ann"]
        )
        await expect(someone.page.locator("#people-total")).to_have_text("2")

    for number in range(1, 7):
        await (ann if number % 2 else bob).say(f"message {number}")
    for someone in (ann, bob):
        await expect(someone.messages).to_have_count(6)
        assert await someone.offsets() == [f"#{offset}" for offset in range(1, 7)]
        assert sorted(await someone.texts()) == [f"message {number}" for number in range(1, 7)]
        await expect(someone.unsent).to_have_count(0)
        await expect(someone.page.locator("#position")).to_have_text("#6")
    assert await ann.texts() == await bob.texts()

    heard = ann.message("message 2")
    await expect(heard.locator(".author")).to_have_text("Bob")
    await expect(heard.locator("time")).to_have_attribute(
        "datetime", re.compile(r"^20\d\d-\d\d-\d\dT")
    )
    own = ann.message("message 1")
    await expect(own.locator(".author")).to_contain_text("You")

    await bob.page.close()
    await expect(ann.page.locator("#people .name")).to_have_text(["Ann"])


async def test_connections_of_one_user_are_one_person(dev: Dev, person: Open, channel: str) -> None:
    here, there = await person(), await person()
    await here.join(dev.urls[0], "Ann", channel)
    await there.join(dev.urls[1], "Ann", channel)
    await expect(here.page.locator("#people li")).to_have_count(1)
    await expect(here.page.locator("#people li")).to_contain_text("2 connections")
    await expect(here.page.locator("#people-total")).to_have_text("1")


async def test_the_page_says_which_instance_serves_it_and_links_to_the_others(
    dev: Dev, person: Open, channel: str
) -> None:
    ann = await person()
    await ann.join(dev.urls[0], "Ann", channel)
    here, other = (url.removeprefix("http://") for url in dev.urls[:2])
    info = await (await ann.page.request.get(f"{dev.urls[0]}/demo/info")).json()
    await expect(ann.page.locator("#instance")).to_contain_text(here.partition(":")[2])
    await expect(ann.page.locator("#instances .here")).to_contain_text(here)
    await expect(ann.page.locator("#instances .here")).to_contain_text(info["node"])
    link = ann.page.get_by_role("link", name=other)
    await expect(link).to_have_attribute("href", f"http://{other}/#{channel}")


async def test_who_joins_later_sees_the_history(dev: Dev, person: Open, channel: str) -> None:
    ann = await person()
    await ann.join(dev.urls[0], "Ann", channel)
    for number in range(1, 56):
        await ann.say(f"message {number}")
        await expect(ann.messages).to_have_count(number)
    late = await person()
    await late.join(dev.urls[1], "Late", channel)
    await expect(late.messages).to_have_count(50)
    assert await late.texts() == [f"message {number}" for number in range(6, 56)]
    await ann.say("message 56")
    await expect(late.message("message 56").locator(".offset")).to_have_text("#56")


async def test_a_dropped_connection_recovers_what_it_missed(
    dev: Dev, person: Open, channel: str
) -> None:
    ann, bob = await person(), await person()
    await ann.join(dev.urls[0], "Ann", channel)
    await bob.join(dev.urls[1], "Bob", channel)
    await bob.say("before")
    await expect(ann.messages).to_have_count(1)

    await ann.page.get_by_role("button", name="Drop connection").click()
    await expect(ann.page.locator("#status")).to_contain_text("Reconnecting in")
    for number in range(3):
        await bob.say(f"missed {number}")
    await expect(bob.messages).to_have_count(4)
    await ann.say("written offline")
    await expect(ann.unsent.locator(".offset")).to_have_text("waiting")

    await expect(ann.notes).to_have_text("Reconnected: 3 missed messages recovered")
    await expect(ann.messages).to_have_count(5)
    await expect(ann.unsent).to_have_count(0)
    assert await ann.texts() == ["before", "missed 0", "missed 1", "missed 2", "written offline"]
    assert await ann.offsets() == ["#1", "#2", "#3", "#4", "#5"]
    await expect(bob.message("written offline")).to_be_visible()


async def test_it_reconnects_at_once_when_asked_to(dev: Dev, person: Open, channel: str) -> None:
    ann = await person()
    await ann.join(dev.urls[0], "Ann", channel)
    await ann.page.get_by_role("button", name="Drop connection").click()
    await ann.page.get_by_role("button", name="Reconnect now").click()
    await expect(ann.notes).to_have_text("Reconnected: nothing was missed")


async def test_a_history_that_cannot_be_recovered_is_said_and_shown_anew(
    dev: Dev, person: Open, channel: str
) -> None:
    def forget(socket: WebSocketRoute) -> None:
        """A client that comes back with a position of another log."""
        server = socket.connect_to_server()

        def pass_on(frame: str | bytes) -> None:
            commands = [json.loads(line) for line in str(frame).splitlines()]
            for command in commands:
                if command.get("subscribe", {}).get("recover"):
                    command["subscribe"]["epoch"] = "of-another-log"
            server.send("\n".join(json.dumps(command) for command in commands))

        socket.on_message(pass_on)

    ann = await person()
    await ann.page.route_web_socket(SOCKETS, forget)
    await ann.join(dev.urls[0], "Ann", channel)
    await ann.say("before")
    await expect(ann.messages).to_have_count(1)
    await ann.page.get_by_role("button", name="Drop connection").click()
    await ann.page.get_by_role("button", name="Reconnect now").click()
    await expect(ann.notes).to_contain_text("the history could not be recovered")
    assert await ann.texts() == ["before"]
    await ann.say("after")
    await expect(ann.message("after").locator(".offset")).to_have_text("#2")


async def test_a_message_is_pending_until_acknowledged_and_can_be_retried(
    dev: Dev, person: Open, channel: str
) -> None:
    lossy = True

    def lose_publications(socket: WebSocketRoute) -> None:
        server = socket.connect_to_server()
        socket.on_message(
            lambda frame: None if lossy and '"publish"' in str(frame) else server.send(frame),
        )

    ann = await person()
    await ann.page.route_web_socket(SOCKETS, lose_publications)
    await ann.join(dev.urls[0], "Ann", channel)
    await ann.say("hello")
    await expect(ann.unsent.locator(".offset")).to_have_attribute("title", "Being sent")
    await expect(ann.unsent).to_contain_text("Not confirmed")
    lossy = False
    await ann.unsent.get_by_role("button", name="Retry").click()
    await expect(ann.message("hello").locator(".offset")).to_have_text("#1")
    await expect(ann.unsent).to_have_count(0)


async def test_a_message_that_is_too_large_is_refused_in_words_and_can_be_edited(
    dev: Dev, person: Open, channel: str
) -> None:
    ann = await person()
    await ann.join(dev.urls[0], "Ann", channel)
    await ann.say("x" * 70_000)
    await expect(ann.unsent).to_contain_text("Too large to send")
    await ann.unsent.get_by_role("button", name="Edit").click()
    await expect(ann.unsent).to_have_count(0)
    await expect(ann.composer).to_be_focused()
    assert len(await ann.composer.input_value()) == 70_000
    await expect(ann.page.locator("#status")).to_have_text("Connected")


async def test_a_channel_of_an_unknown_namespace_is_refused_in_words(
    dev: Dev, person: Open, channel: str
) -> None:
    ann = await person()
    await ann.join(dev.urls[0], "Ann", channel)
    await ann.page.get_by_role("button", name="Change").click()
    await ann.page.get_by_label("Channel", exact=True).fill("no-such-namespace:x")
    await ann.page.keyboard.press("Enter")
    await expect(ann.page.locator("#join-error")).to_contain_text("There is no such channel")
    await ann.page.get_by_label("Channel", exact=True).fill(channel)
    await ann.page.keyboard.press("Enter")
    await ann.is_there("Ann")


async def test_what_people_write_is_text_whatever_it_looks_like(
    dev: Dev, person: Open, channel: str
) -> None:
    name = '<b onclick="alert(1)">Eve</b>'
    markup = "<img src=x onerror=alert(2)><script>alert(3)</script>\n  & javascript:alert(4)"
    ann, eve = await person(), await person()
    await ann.join(dev.urls[0], "Ann", channel)
    await eve.join(dev.urls[1], name, channel)
    await eve.composer.fill(markup)
    await eve.composer.press("Enter")
    await expect(ann.messages).to_have_count(1)
    assert await ann.texts() == [markup]
    await expect(ann.messages.locator(".author")).to_have_text(name)
    await expect(ann.page.locator("#people .name")).to_have_text(["Ann", name])
    assert (
        await ann.page.locator("#messages img, #messages script, #messages b, #people b").count()
        == 0
    )


async def test_name_and_channel_are_remembered_and_a_link_opens_the_channel(
    dev: Dev, person: Open, channel: str
) -> None:
    ann = await person()
    await ann.join(dev.urls[0], "Ann", channel)
    assert ann.page.url == f"{dev.urls[0]}/#{channel}"
    await ann.page.reload()
    await ann.is_there("Ann")
    await expect(ann.page.locator("h1")).to_have_text(channel)

    await ann.page.evaluate("channel => { location.hash = channel }", f"{channel}-other")
    await expect(ann.page.locator("h1")).to_have_text(f"{channel}-other")
    await ann.is_there("Ann")

    stranger = await person()
    await stranger.page.goto(f"{dev.urls[1]}/#{channel}")
    await expect(stranger.page.get_by_label("Channel", exact=True)).to_have_value(channel)
    await expect(stranger.page.get_by_label("Your name")).to_be_focused()
    await stranger.page.get_by_label("Your name").fill("\u200b")
    await stranger.page.keyboard.press("Enter")
    await expect(stranger.page.locator("#join-error")).not_to_be_empty()


async def test_the_keyboard_is_enough(dev: Dev, person: Open, channel: str) -> None:
    ann = await person()
    await ann.join(dev.urls[0], "Ann", channel)
    page, keyboard = ann.page, ann.page.keyboard
    await expect(ann.composer).to_be_focused()
    await keyboard.type("one")
    await keyboard.press("Shift+Enter")
    await keyboard.type("two / three")
    await keyboard.press("Enter")
    await expect(ann.messages.locator(".text")).to_have_text(
        "one\ntwo / three", use_inner_text=True
    )
    await expect(ann.composer).to_be_focused()
    await expect(ann.composer).to_have_value("")
    await keyboard.press("Escape")
    await expect(page.get_by_role("log")).to_be_focused()
    await keyboard.press("/")
    await expect(ann.composer).to_be_focused()
    await expect(ann.composer).to_have_value("")

    for back in (
        page.get_by_role("log"),
        page.get_by_role("button", name="Change"),
        page.get_by_role("link", name="Skip to the message box"),
    ):
        await keyboard.press("Shift+Tab")
        await expect(back).to_be_focused()
    await keyboard.press("Enter")
    await expect(ann.composer).to_be_focused()
    assert page.url.endswith(f"#{channel}")


async def test_the_log_follows_unless_the_reader_scrolled_up(
    dev: Dev, person: Open, channel: str
) -> None:
    from_bottom = "log => Math.round(log.scrollHeight - log.scrollTop - log.clientHeight)"
    ann, bob = await person(), await person(viewport={"width": 800, "height": 400})
    await ann.join(dev.urls[0], "Ann", channel)
    await bob.join(dev.urls[1], "Bob", channel)
    for number in range(1, 16):
        await ann.say(f"message {number}")
    await expect(bob.messages).to_have_count(15)
    log = bob.page.get_by_role("log")
    assert await log.evaluate(from_bottom) <= 1

    await log.focus()
    await bob.page.keyboard.press("Home")
    await expect(bob.messages.first).to_be_in_viewport()
    await ann.say("one more")
    newer = bob.page.get_by_role("button", name="1 new message")
    await expect(newer).to_be_visible()
    await expect(bob.messages.first).to_be_in_viewport()
    await newer.click()
    await expect(bob.message("one more")).to_be_in_viewport()
    await expect(newer).to_be_hidden()
    assert await log.evaluate(from_bottom) <= 1


async def test_a_narrow_phone_shows_everything(dev: Dev, person: Open, channel: str) -> None:
    ann = await person(viewport={"width": 320, "height": 560}, has_touch=True)
    await ann.join(dev.urls[0], "Ann of a name as long as names may be .", channel)
    await ann.say("word " * 30 + "and" * 60)
    await expect(ann.messages).to_have_count(1)
    assert await ann.page.evaluate("document.documentElement.scrollWidth") == 320
    log = await ann.page.get_by_role("log").bounding_box()
    bubble = await ann.messages.locator(".bubble").bounding_box()
    assert log is not None
    assert bubble is not None
    assert bubble["x"] >= log["x"]
    assert bubble["x"] + bubble["width"] <= log["x"] + log["width"]

    drop = ann.page.get_by_role("button", name="Drop connection")
    toggle = ann.page.locator("#people-toggle")
    await expect(drop).to_be_hidden()
    await toggle.tap()
    await expect(toggle).to_have_attribute("aria-expanded", "true")
    await drop.scroll_into_view_if_needed()
    await expect(drop).to_be_in_viewport(ratio=1)
    await ann.page.keyboard.press("Escape")
    await expect(drop).to_be_hidden()
    await expect(toggle).to_be_focused()


def subscribed_to(commands: list[dict[str, Any]], channel: str) -> list[dict[str, Any]]:
    subscribes = [command["subscribe"] for command in commands if "subscribe" in command]
    return [subscribe for subscribe in subscribes if subscribe["channel"] == channel]


async def test_a_private_room_is_closed_to_guests_and_open_to_who_signs_in(
    secured: Dev, person: Open, channel: str
) -> None:
    room = f"$room:{channel}"
    ann, bob = await person(), await person()
    commands = ann.hear_commands()
    page = ann.page
    await ann.join_as_guest(secured.urls[0], room)
    error = page.locator("#join-error")
    await expect(error).to_contain_text("This room is private: the server refused you")
    await expect(error).to_contain_text("sign in")
    await expect(page.get_by_label("Your name")).to_be_focused()
    await expect(page.get_by_role("checkbox", name="Private room")).to_be_checked()
    # The page asked the server, which said no: it did not decide by itself.
    (asked,) = subscribed_to(commands, room)
    assert "token" not in asked

    await page.get_by_label("Your name").fill("Ann")
    await page.keyboard.press("Enter")
    await ann.is_there("Ann")
    await expect(page.locator("#privacy")).to_have_text("Private")
    await bob.join(secured.urls[1], "Bob", room)
    await expect(ann.comings).to_have_text("Bob joined")
    await bob.say("hello")
    await expect(ann.message("hello").locator(".offset")).to_have_text("#1")
    await bob.page.close()
    await expect(ann.comings.last).to_have_text("Bob left")

    await page.get_by_role("button", name="Sign out").click()
    await expect(page.get_by_label("Your name")).to_have_value("")
    await expect(ann.messages).to_have_count(0)
    await page.reload()
    await expect(page.get_by_label("Your name")).to_be_focused()
    assert await page.evaluate("localStorage.getItem('roomcast.name')") == ""


async def test_a_private_room_of_an_insecure_server_is_said_to_be_none(
    dev: Dev, person: Open, channel: str
) -> None:
    guest, ann = await person(), await person()
    await guest.join_as_guest(dev.urls[0], f"${channel}")
    await guest.is_there("Guest")
    await expect(guest.page.locator("#privacy")).to_have_text("Open to all")
    await expect(guest.notes).to_contain_text("Not private here")
    await expect(guest.page.locator("#me-token")).to_contain_text("None is needed")
    await ann.join(dev.urls[1], "Ann", f"${channel}")
    await expect(guest.comings).to_have_text("Ann joined")
    await guest.say("hello")
    await expect(ann.message("hello").locator(".author")).to_have_text(
        re.compile("^Guest [0-9a-f]{4}$")
    )


@pytest.mark.parametrize("server", ["dev", "secured"])
async def test_who_types_is_shown_on_the_other_instance_for_a_while_and_stored_nowhere(
    request: pytest.FixtureRequest, person: Open, channel: str, server: str
) -> None:
    running: Dev = request.getfixturevalue(server)
    room = f"$room:{channel}" if server == "secured" else channel
    typing = f"$typing:room:{channel}" if server == "secured" else f"typing:{channel}"
    ann, bob = await person(), await person()
    await ann.page.clock.install()
    commands = bob.hear_commands()
    await ann.join(running.urls[0], "Ann", room)
    await bob.join(running.urls[1], "Bob", room)
    await ann.hears_who_types()
    await bob.type_fast()
    await expect(ann.typing).to_have_text("Bob is typing")
    await expect(bob.typing).to_have_count(0)
    said = [command["publish"] for command in commands if "publish" in command]
    assert said == [{"channel": typing, "data": {"typing": True, "after": ""}}]

    await ann.page.clock.fast_forward(6_500)
    await expect(ann.typing).to_have_count(0)

    # What is stored takes a longer way: it may be heard after what was said later.
    with running.pump_suspended():
        await bob.say("done")
        await bob.type_fast()
        await expect(ann.typing).to_have_text("Bob is typing")
    await expect(ann.message("done")).to_be_visible()
    await expect(ann.typing).to_have_text("Bob is typing")
    await bob.say("again")
    await expect(ann.message("again")).to_be_visible()
    await expect(ann.typing).to_have_count(0)
    aws = Aws(running.aws_endpoint)
    try:
        assert [data["text"] for _, data in aws.log(room)] == ["done", "again"]
        assert aws.items(typing) == []
    finally:
        aws.close()


async def test_tokens_that_end_are_replaced_without_a_reconnect(
    secured: Dev, person: Open, channel: str
) -> None:
    room = f"$room:{channel}"
    key = tomllib.loads(SECURED.read_text(encoding="utf-8"))["client"]["token"]["hmac_secret_key"]
    first = {
        "/demo/token": lambda: sign_connection("Ann", key, 3),
        "/demo/subscription-token": lambda: sign_subscription("Ann", room, key, 3),
    }
    ann = await person()
    commands = ann.hear_commands()
    sockets: list[WebSocket] = []
    ann.page.on("websocket", lambda socket: sockets.append(socket))  # noqa: PLW0108  # it takes no built-in

    async def answer(route: Route) -> None:
        """The first token of each kind is one that soon ends."""
        path = urlsplit(route.request.url).path
        asked_for = (route.request.post_data_json or {}).get("channel", room)
        response = await route.fetch()
        body = await response.json()
        if asked_for == room and path in first:
            body |= {"token": first.pop(path)(), "expires_at": time.time() + 3}
        await route.fulfill(response=response, json=body)

    await ann.page.route("**/demo/*token", answer)
    await ann.join(secured.urls[0], "Ann", room)
    facts = ann.page.locator("#me-token")
    await expect(facts).to_contain_text("renewed once. The page")
    await expect(facts).to_contain_text("This room's own token: renewed once")
    assert len([command for command in commands if "refresh" in command]) == 1
    assert [
        command["sub_refresh"]["channel"] for command in commands if "sub_refresh" in command
    ] == [room]
    assert len(sockets) == 1
    await ann.say("still here")
    await expect(ann.message("still here")).to_be_visible()


@pytest.mark.parametrize("scheme", ["light", "dark"])
async def test_text_has_the_contrast_of_wcag_aa(
    dev: Dev, person: Open, channel: str, scheme: str
) -> None:
    ann, bob = await person(color_scheme=scheme), await person()
    await ann.join(dev.urls[0], "Ann", f"${channel}")
    await bob.join(dev.urls[1], "Bob", f"${channel}")
    await expect(ann.comings).to_be_visible()
    await bob.say("yours")
    await expect(ann.message("yours")).to_be_visible()
    await ann.say("mine")
    await expect(ann.message("mine")).to_be_visible()
    await ann.say("x" * 70_000)
    await expect(ann.unsent).to_contain_text("Too large to send")
    # Away from text: hovering is a state of its own.
    await ann.page.mouse.move(0, 0)
    for hue in range(8):
        await ann.page.evaluate(
            """hue => document.querySelectorAll('[class*=hue-]').forEach((named) => {
                named.className = named.className.replace(/hue-\\d/, `hue-${hue}`);
            })""",
            hue,
        )
        contrasts = await ann.page.evaluate(CONTRASTS)
        assert len(contrasts) > 40
        assert [contrast for contrast in contrasts if contrast[0] < 4.5] == []

    await ann.page.get_by_role("button", name="Change").click()
    await ann.page.get_by_label("Channel", exact=True).fill("$")
    await ann.page.keyboard.press("Enter")
    await expect(ann.page.locator("#join-error")).not_to_be_empty()
    await bob.type_fast()
    await expect(ann.page.locator("#typing")).to_have_text("Bob is typing")
    contrasts = await ann.page.evaluate(CONTRASTS)
    assert {"Bob is typing", "Please enter a channel."} <= {text for _, text in contrasts}
    assert [contrast for contrast in contrasts if contrast[0] < 4.5] == []
