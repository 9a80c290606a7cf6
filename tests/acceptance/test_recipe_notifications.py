"""docs/recipes/notifications.md, from an empty folder: two devices of a user in a browser, one of
them away, and somebody else who wants to listen.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import aiohttp
import pytest
from playwright.async_api import BrowserContext, Page, expect

from tests.acceptance.browser import chromium_at
from tests.acceptance.conftest import running
from tests.acceptance.recipe import laid_out, replaced, script
from tests.acceptance.roomcast import REGION, Aws, Dev
from tests.acceptance.snippets import marked

PAGE: Final = "docs/recipes/notifications.md"
TEST: Final = "test_recipe_notifications.py"
CHANNEL: Final = "notices:#ann"
SHOWN_MS: Final = 20_000
ORDERED: Final = "Thank you for order {}"
SHIPPED: Final = "Order {} is on its way"
pytestmark = pytest.mark.timeout(120)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, node: str) -> Path:
    """`node` has installed the SDK."""
    directory = tmp_path_factory.mktemp("notices")
    laid_out(directory, PAGE, TEST, "roomcast.toml", "shop.py", "notices.html")
    return directory


@pytest.fixture(scope="module")
def shop(folder: Path) -> Iterator[tuple[Dev, str]]:
    """The servers, and the address of the back end."""
    with running("--config", str(folder / "roomcast.toml")) as dev:
        socket = ("ws://127.0.0.1:8000/connection/websocket", dev.ws_urls[0])
        page, site = folder / "notices.html", folder / "shop.py"
        page.write_text(replaced(page.read_text(), socket))
        site.write_text(replaced(site.read_text(), ("http://127.0.0.1:8000", dev.urls[1])))
        aws = {
            "AWS_ENDPOINT_URL": dev.aws_endpoint,
            "AWS_DEFAULT_REGION": REGION,
            "AWS_ACCESS_KEY_ID": "none",
            "AWS_SECRET_ACCESS_KEY": "none",
        }
        with script(site, **aws) as url:
            yield dev, url


async def opened(device: BrowserContext, url: str, user: str) -> Page:
    page = await device.new_page()
    await page.goto(f"{url}/?user={user}")
    await expect(page.locator("#status")).to_have_text("Connected", timeout=SHOWN_MS)
    return page


async def shows(page: Page, *notices: str) -> None:
    await expect(page.locator("#notices li")).to_have_text(notices, timeout=SHOWN_MS)


async def test_notices_reach_their_user_alone_and_once(shop: tuple[Dev, str], browser: str) -> None:
    dev, url = shop
    aws = Aws(dev.aws_endpoint)
    async with aiohttp.ClientSession() as session, chromium_at(browser) as chromium:

        async def post(path: str) -> tuple[int, str]:
            async with session.post(f"{url}/{path}") as answer:
                return answer.status, (await answer.text()).strip()

        laptop, phone, other = [await chromium.new_context() for _ in range(3)]
        first, second = await opened(laptop, url, "ann"), await opened(phone, url, "ann")
        stranger = await opened(other, url, "bob")
        assert await post("ann/A1/order") == (200, "ordered")
        assert await post("ann/A1/ship") == (200, "shipped")
        # Once more: a transaction that is cancelled, and a key that is known.
        assert await post("ann/A1/order") == (409, "this order is there already")
        assert await post("ann/A1/ship") == (200, "shipped")
        both = [ORDERED.format("A1"), SHIPPED.format("A1")]
        await shows(first, *both)
        await shows(second, *both)

        # One device is off, and the other one is not.
        await first.get_by_role("button", name="Mark all as read").click()
        await shows(first)
        await first.close()
        assert await post("ann/A2/order") == (200, "ordered")
        await shows(second, *both, ORDERED.format("A2"))
        again = await opened(laptop, url, "ann")
        await shows(again, ORDERED.format("A2"))
        assert await post("ann/A2/ship") == (200, "shipped")
        news = [ORDERED.format("A2"), SHIPPED.format("A2")]
        await shows(again, *news)
        await shows(second, *both, *news)
        # A device that is new.
        await shows(await opened(await chromium.new_context(), url, "ann"), *both, *news)

        async with stranger.expect_console_message() as printed:
            await stranger.evaluate(marked(PAGE, TEST, "js"))
        said: Any = await (await printed.value).args[0].json_value()
        assert said == {"channel": CHANNEL, "code": 103, "reason": "permission denied"}
        for attempt in (f"history('{CHANNEL}', {{}})", f"publish('{CHANNEL}', {{}})"):
            code = await stranger.evaluate(f"client.{attempt}.then(() => 0, (e) => e.code)")
            assert code == 103
        await shows(stranger)
    assert [data["text"] for _, data in aws.log(CHANNEL)] == [*both, *news]
    aws.close()
