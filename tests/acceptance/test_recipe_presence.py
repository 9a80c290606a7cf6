"""docs/recipes/presence.md, from an empty folder: a page in a browser, and clients of both SDKs on
two instances, one of which is killed.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import aiohttp
import pytest
from playwright.async_api import expect

from tests.acceptance.browser import chromium_at
from tests.acceptance.conftest import OpenPeer, running
from tests.acceptance.recipe import laid_out, replaced, script
from tests.acceptance.roomcast import Dev

PAGE: Final = "docs/recipes/presence.md"
TEST: Final = "test_recipe_presence.py"
CHANNEL: Final = "doc:plan"
SHOWN_MS: Final = 20_000
# In place of the minute and a half that the page tells.
SHORT: Final = "\n[node]\nlease_ttl_s = 3\nheartbeat_s = 1\n"
pytestmark = pytest.mark.timeout(120)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, node: str) -> Path:
    """`node` has installed the SDK."""
    directory = tmp_path_factory.mktemp("document")
    laid_out(directory, PAGE, TEST, "roomcast.toml", "docs_site.py", "document.html")
    return directory


@pytest.fixture(scope="module")
def site(folder: Path) -> Iterator[tuple[Dev, str]]:
    """The servers, and the address of the site."""
    config, page = folder / "roomcast.toml", folder / "document.html"
    config.write_text(config.read_text() + SHORT)
    with running("--restart", "--config", str(config)) as dev:
        page.write_text(
            replaced(
                page.read_text(),
                ("ws://127.0.0.1:8000/connection/websocket", dev.ws_urls[0]),
                ("AGAIN_MS = 30000", "AGAIN_MS = 500"),
            )
        )
        with script(folder / "docs_site.py") as url:
            yield dev, url


async def test_who_is_there_and_where(site: tuple[Dev, str], browser: str, peer: OpenPeer) -> None:
    dev, url = site
    async with aiohttp.ClientSession() as session, chromium_at(browser) as chromium:

        async def token(user: str) -> str:
            async with session.get(f"{url}/token", params={"user": user}) as answer:
                return await answer.text()

        bob = await peer("js", dev.ws_urls[1], await token("bob"))
        await bob.subscribe(CHANNEL)
        page = await chromium.new_page()
        complaints: list[str] = []
        page.on("pageerror", lambda error: complaints.append(str(error)))
        await page.goto(f"{url}/?doc=plan&user=ann")
        people, comings = page.locator("#people li"), page.locator("#comings")
        # Who was there before, by presence, and with a picture.
        await expect(people.filter(has_text="Bob")).to_have_count(1, timeout=SHOWN_MS)
        await expect(people).to_have_count(2, timeout=SHOWN_MS)
        await expect(page.locator("img[src='/avatars/bob']")).to_have_count(1)
        await page.wait_for_function(
            "[...document.images].every((each) => each.complete && each.naturalWidth)"
        )
        await bob.event("join", channel=CHANNEL)

        # Cursors, both ways. No history has them.
        await page.get_by_label("Text").focus()
        await page.keyboard.press("Control+Home")
        await page.keyboard.press("ArrowDown")
        told = await bob.event("publication", channel=CHANNEL, data={"line": 2})
        assert told["info"]["user"] == "ann"
        assert told["offset"] == 0
        await bob.publish(CHANNEL, {"line": "<b>"})
        await bob.publish(CHANNEL, {"line": 3})
        await expect(people.filter(has_text="Bob, line 3")).to_have_count(1, timeout=SHOWN_MS)

        # One who comes and leaves; another one who has two windows.
        cid = await peer("py", dev.ws_urls[0], await token("cid"))
        await cid.subscribe(CHANNEL)
        await expect(comings).to_have_text("Cid came", timeout=SHOWN_MS)
        await cid.close()
        await expect(comings).to_have_text("Cid left", timeout=SHOWN_MS)
        await expect(people.filter(has_text="Cid")).to_have_count(0)
        second = await peer("py", dev.ws_urls[0], await token("bob"))
        await second.subscribe(CHANNEL)
        await second.close()
        await bob.event("leave", channel=CHANNEL)
        await expect(people.filter(has_text="Bob")).to_have_count(1)

        # Killed with his node, he does not come back, and nobody tells that he left.
        os.kill(dev.pids[1], signal.SIGKILL)
        await bob.event("connecting")
        await bob.call("disconnect")
        await expect(people).to_have_count(1, timeout=SHOWN_MS)
        await expect(people).to_have_text(["Ann, line 2"])
        await expect(comings).to_have_text("Cid left")
        assert complaints == []
