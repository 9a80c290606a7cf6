"""docs/recipes/chat.md, from an empty folder: people at its page in a browser, on two instances."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import pytest
from playwright.async_api import Browser, Page, WebSocketRoute, expect

from tests.acceptance.browser import chromium_at
from tests.acceptance.conftest import running
from tests.acceptance.recipe import laid_out, replaced, script
from tests.acceptance.roomcast import Aws, Dev, roomcast

PAGE: Final = "docs/recipes/chat.md"
TEST: Final = "test_recipe_chat.py"
SHOWN_MS: Final = 20_000
pytestmark = pytest.mark.timeout(120)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, node: str) -> Path:
    """`node` has installed the SDK."""
    directory = tmp_path_factory.mktemp("chat")
    laid_out(directory, PAGE, TEST, "roomcast.toml", "chat_hooks.py", "chat_site.py", "chat.html")
    return directory


@pytest.fixture(scope="module")
def chat(folder: Path) -> Iterator[Dev]:
    with running("--config", str(folder / "roomcast.toml")) as dev:
        page = folder / "chat.html"
        page.write_text(
            replaced(
                page.read_text(),
                ("ws://127.0.0.1:8000/connection/websocket", dev.ws_urls[0]),
            )
        )
        yield dev


@dataclass
class Person:
    """Somebody at the page, on an instance, behind a network that can fail."""

    page: Page
    instance: str
    is_cut: bool = False
    # Answers to `roomcast.publish` that get lost, with the connection.
    answers_lost: int = 0
    attempts: list[str] = field(default_factory=list)

    async def enter(self, url: str, name: str, room: str) -> None:
        await self.page.route_web_socket("**/connection/websocket", self._pass_on)
        await self.page.goto(url)
        await self.page.get_by_label("Your name").fill(name)
        await self.page.get_by_label("Room").fill(room)
        await self.page.keyboard.press("Enter")
        await expect(self.page.locator("#status")).to_have_text("Connected", timeout=SHOWN_MS)

    async def say(self, text: str) -> None:
        await self.page.get_by_label("Message", exact=True).fill(text)
        await self.page.keyboard.press("Enter")

    async def reads(self, *lines: str) -> None:
        await expect(self.page.locator("#messages li")).to_have_text(lines, timeout=SHOWN_MS)

    async def cut(self) -> None:
        self.is_cut = True
        await self.page.evaluate("dispatchEvent(new Event('offline'))")
        await expect(self.page.locator("#status")).to_have_text("Connecting…", timeout=SHOWN_MS)

    async def mend(self) -> None:
        self.is_cut = False
        await self.page.evaluate("dispatchEvent(new Event('online'))")

    async def _pass_on(self, socket: WebSocketRoute) -> None:
        if self.is_cut:
            await socket.close()
            return
        server = socket.connect_to_server()

        def up(frame: str | bytes) -> None:
            for line in str(frame).splitlines():
                call = json.loads(line).get("rpc", {})
                if call.get("method") == "roomcast.publish":
                    self.attempts.append(call["data"]["idempotency_key"])
            server.send(frame)

        async def down(frame: str | bytes) -> None:
            if self.answers_lost and any(
                "rpc" in json.loads(line) for line in str(frame).splitlines()
            ):
                self.answers_lost -= 1
                await socket.close()
                return
            socket.send(frame)

        socket.on_message(up)
        server.on_message(down)


Open = Callable[[int], Awaitable[Person]]


@pytest.fixture
async def person(browser: str, chat: Dev) -> AsyncIterator[Open]:
    complaints: list[str] = []

    async with chromium_at(browser) as chromium:

        async def open_page(instance: int) -> Person:
            return await _opened(chromium, chat.ws_urls[0], chat.ws_urls[instance], complaints)

        yield open_page
    assert complaints == []


async def _opened(chromium: Browser, written: str, url: str, complaints: list[str]) -> Person:
    page = await (await chromium.new_context()).new_page()
    page.on("pageerror", lambda error: complaints.append(str(error)))
    # The page has one address; whom it leads to is the load balancer's business.
    await page.add_init_script(
        f"""const Native = WebSocket;
        window.WebSocket = class extends Native {{
            constructor(url, ...more) {{
                super(url === {json.dumps(written)} ? {json.dumps(url)} : url, ...more);
            }}
        }};"""
    )
    return Person(page, url)


@pytest.fixture
def address(folder: Path, chat: Dev) -> Iterator[str]:
    text = (folder / "chat_site.py").read_text()
    with script(folder / "chat_site.py") as url:
        yield url
    (folder / "chat_site.py").write_text(text)


def test_the_configuration_is_in_order(folder: Path) -> None:
    checked = roomcast("checkconfig", "--config", str(folder / "roomcast.toml"))
    assert (checked.returncode, checked.stderr) == (0, "")


async def test_two_people_chat_in_a_room(person: Open, address: str) -> None:
    ann, bob = await person(0), await person(1)
    await ann.enter(address, "Ann", "garden")
    await expect(ann.page.locator("#people")).to_have_text("Ann", timeout=SHOWN_MS)
    await bob.enter(address, "Bob", "garden")
    for each in (ann, bob):
        await expect(each.page.locator("#people")).to_have_text("Ann, Bob", timeout=SHOWN_MS)
    await expect(ann.page.locator("#comings")).to_have_text("Bob came", timeout=SHOWN_MS)

    await ann.say("  <b>hello</b> ")
    await bob.reads("Ann: <b>hello</b>")
    await bob.say("CASINO!")
    await expect(bob.page.get_by_label("Being sent")).to_have_text(
        "CASINO! (not sent: that is not said here)", timeout=SHOWN_MS
    )
    await bob.say("hi")
    for each in (ann, bob):
        await each.reads("Ann: <b>hello</b>", "Bob: hi")

    # Who enters later, and another room.
    late, away = await person(0), await person(0)
    await late.enter(address, "Late", "garden")
    await late.reads("Ann: <b>hello</b>", "Bob: hi")
    await away.enter(address, "Away", "kitchen")
    await away.say("alone")
    await away.reads("Away: alone")
    await late.page.close()
    await expect(ann.page.locator("#comings")).to_have_text("Late left", timeout=SHOWN_MS)
    await expect(ann.page.locator("#people")).to_have_text("Ann, Bob", timeout=SHOWN_MS)


async def test_a_broken_connection_neither_loses_nor_doubles(
    person: Open, address: str, chat: Dev
) -> None:
    ann, bob = await person(0), await person(1)
    await ann.enter(address, "Ann", "shed")
    await bob.enter(address, "Bob", "shed")
    await bob.say("before")
    await ann.reads("Bob: before")

    # The message is stored, and its answer gets lost twice.
    ann.answers_lost = 2
    await ann.say("once")
    await bob.reads("Bob: before", "Ann: once")
    await expect(ann.page.get_by_label("Being sent").locator("li")).to_have_count(
        0, timeout=SHOWN_MS
    )
    assert len(ann.attempts) == 3
    assert len(set(ann.attempts)) == 1

    # Away, she writes and he does.
    await ann.cut()
    for number in range(3):
        await bob.say(f"missed {number}")
    await ann.say("written away")
    await ann.say("and more")
    await bob.reads("Bob: before", "Ann: once", *(f"Bob: missed {n}" for n in range(3)))
    await ann.mend()
    whole = ["Bob: before", "Ann: once", *(f"Bob: missed {n}" for n in range(3))]
    whole += ["Ann: written away", "Ann: and more"]
    for each in (ann, bob):
        await each.reads(*whole)
    aws = Aws(chat.aws_endpoint)
    try:
        assert [data["text"] for _, data in aws.log("chat:shed")] == [
            line.partition(": ")[2] for line in whole
        ]
    finally:
        aws.close()
