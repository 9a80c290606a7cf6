"""docs/recipes/token-stream.md, from an empty folder: an answer outlives the node that is killed
in its middle, to which both the page and the back end were connected.
"""

from __future__ import annotations

import itertools
import os
import re
import signal
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final
from urllib.parse import unquote, urlsplit

import aiohttp
import pytest
from aiohttp import web
from playwright.async_api import Browser, Page, expect

from tests.acceptance.browser import chromium_at
from tests.acceptance.conftest import running
from tests.acceptance.recipe import laid_out, replaced, script
from tests.acceptance.roomcast import Aws, Dev
from tests.acceptance.snippets import marked

PAGE: Final = "docs/recipes/token-stream.md"
TEST: Final = "test_recipe_token_stream.py"
SHOWN_MS: Final = 30_000
WORDS: Final = 200
LOST_EVERY: Final = 5
pytestmark = pytest.mark.timeout(120)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, node: str) -> Path:
    """`node` has installed the SDK."""
    directory = tmp_path_factory.mktemp("answers")
    laid_out(directory, PAGE, TEST, "roomcast.toml", "answers.py", "answers.html")
    return directory


@pytest.fixture(scope="module")
def answers(folder: Path) -> Iterator[Dev]:
    with running("--restart", "--config", str(folder / "roomcast.toml")) as dev:
        page = folder / "answers.html"
        socket = ("ws://127.0.0.1:8000/connection/websocket", dev.ws_urls[0])
        page.write_text(replaced(page.read_text(), socket))
        yield dev


@asynccontextmanager
async def losing_answers(node: str) -> AsyncIterator[str]:
    """The address of a way to `node` on which every fifth answer gets lost."""
    requests = itertools.count(1)

    async def forget(request: web.Request) -> web.Response:
        number = next(requests)
        async with http.post(
            f"{node}{request.path}", data=await request.read(), headers=_without_host(request)
        ) as reply:
            answer = web.Response(status=reply.status, body=await reply.read())
        answer.content_type = "application/json"
        if number % LOST_EVERY == 0 and request.transport:
            request.transport.abort()
        return answer

    async with aiohttp.ClientSession() as http:
        app = web.Application()
        app.router.add_post("/api/publish", forget)
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        try:
            await web.TCPSite(runner, "127.0.0.1", 0).start()
            host, port = runner.addresses[0][:2]
            yield f"http://{host}:{port}"
        finally:
            await runner.cleanup()


def _without_host(request: web.Request) -> dict[str, str]:
    return {name: value for name, value in request.headers.items() if name != "Host"}


@pytest.fixture
async def address(folder: Path, answers: Dev) -> AsyncIterator[str]:
    """Of the back end, whose answers from its first node get lost now and then."""
    back_end = folder / "answers.py"
    async with losing_answers(answers.urls[0]) as lossy:
        back_end.write_text(
            replaced(
                marked(PAGE, f"{TEST} answers.py", "python"),
                ("http://127.0.0.1:8000", lossy),
                ("http://127.0.0.1:8001", answers.urls[1]),
            )
        )
        with script(back_end) as url:
            yield url


@pytest.fixture
async def chromium(browser: str) -> AsyncIterator[Browser]:
    async with chromium_at(browser) as running_browser:
        yield running_browser


async def asked(page: Page, address: str, prompt: str) -> None:
    await page.goto(address)
    await page.get_by_label("Question").fill(prompt)
    await page.keyboard.press("Enter")


async def until_shown(page: Page, text: str) -> None:
    await expect(page.get_by_label("Answer")).to_contain_text(text, timeout=SHOWN_MS)


async def until_over(page: Page, status: str) -> str:
    """The whole text."""
    await expect(page.locator("#status")).to_have_text(status, timeout=SHOWN_MS)
    return await page.get_by_label("Answer").text_content() or ""


async def test_an_answer_outlives_its_node(chromium: Browser, address: str, answers: Dev) -> None:
    complaints: list[str] = []
    reader, late = await chromium.new_page(), await chromium.new_page()
    for each in (reader, late):
        each.on("pageerror", lambda error: complaints.append(str(error)))
    await asked(reader, address, "why?")
    await until_shown(reader, "word20 ")
    # Who comes in the middle has the beginning.
    await late.goto(reader.url)
    await until_shown(late, "You asked: why? word1 word2 ")

    os.kill(answers.pids[0], signal.SIGKILL)
    for each in (reader, late):
        await expect(each.locator("#connection")).to_have_text("connecting", timeout=SHOWN_MS)
    assert f"word{WORDS} " not in (await reader.get_by_label("Answer").text_content() or "")

    whole = "You asked: why? " + "".join(f"word{number} " for number in range(1, WORDS + 1))
    assert await until_over(reader, "Done.") == whole
    assert await until_over(late, "Done.") == whole
    await expect(reader.get_by_label("Answer")).to_have_attribute("aria-busy", "false")

    # Who comes when all is over, and what is in the log: each piece once, and some tokens in each.
    after = await chromium.new_page()
    await after.goto(reader.url)
    assert await until_over(after, "Done.") == whole
    aws = Aws(answers.aws_endpoint)
    try:
        pieces = [data for _, data in aws.log(unquote(urlsplit(reader.url).fragment))]
    finally:
        aws.close()
    assert "".join(piece["text"] for piece in pieces) == whole
    assert [piece.get("end") for piece in pieces] == [None] * (len(pieces) - 1) + ["done"]
    assert len(pieces) < WORDS / 2
    assert complaints == []


async def test_an_answer_that_breaks_off_says_so(chromium: Browser, address: str) -> None:
    reader = await chromium.new_page()
    await asked(reader, address, "break")
    text = await until_over(reader, "The answer broke off.")
    assert text == "You asked: break " + "".join(f"word{number} " for number in range(1, 20))


async def test_nobody_else_reads_it(chromium: Browser, address: str) -> None:
    other = await chromium.new_page()
    await other.goto(f"{address}/#answer:0123%23bob")
    await expect(other.locator("#status")).to_have_text(
        re.compile("cannot be shown: permission denied"), timeout=SHOWN_MS
    )
