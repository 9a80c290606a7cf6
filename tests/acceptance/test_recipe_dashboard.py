"""docs/recipes/dashboard.md, from an empty folder: the function gets the records of the other
table's stream, also twice and too late, and a page in a browser shows the newest values.
"""

from __future__ import annotations

import importlib
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, Final, NamedTuple

import pytest
from playwright.async_api import expect

from tests.acceptance.browser import chromium_at
from tests.acceptance.conftest import running
from tests.acceptance.recipe import folder_served, laid_out, replaced
from tests.acceptance.roomcast import REGION, Aws, emulator

PAGE: Final = "docs/recipes/dashboard.md"
TEST: Final = "test_recipe_dashboard.py"
QUEUE: Final = "http://127.0.0.1:5001/123456789012/dashboard"
SHOWN_MS: Final = 20_000
EMPTY_S: Final = 20.0
pytestmark = pytest.mark.timeout(120)


class Shop(NamedTuple):
    """The other service, the function, and the page's address."""

    service: ModuleType
    function: ModuleType
    stream: str
    aws: Aws
    queue: str
    url: str

    def settled(self) -> None:
        """Wait until the nodes have taken all messages."""
        names = ["ApproximateNumberOfMessages", "ApproximateNumberOfMessagesNotVisible"]
        give_up_s = time.monotonic() + EMPTY_S
        while True:
            answer = self.aws.sqs.get_queue_attributes(QueueUrl=self.queue, AttributeNames=names)
            if all(count == "0" for count in answer["Attributes"].values()):
                return
            assert time.monotonic() < give_up_s, answer["Attributes"]
            time.sleep(0.05)  # a question over HTTP, with a deadline

    def handle(self, records: list[Any]) -> None:
        self.function.handler({"Records": records}, None)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, node: str) -> Path:
    """`node` has installed the SDK."""
    directory = tmp_path_factory.mktemp("dashboard")
    names = ("roomcast.toml", "to_roomcast.py", "shop.py", "dashboard.html")
    laid_out(directory, PAGE, TEST, *names)
    return directory


@pytest.fixture(scope="module")
def shop(folder: Path) -> Iterator[Shop]:
    with emulator() as endpoint, pytest.MonkeyPatch.context() as patch:
        queue = QUEUE.replace("http://127.0.0.1:5001", endpoint)
        for name, value in {
            "AWS_ENDPOINT_URL": endpoint,
            "AWS_DEFAULT_REGION": REGION,
            "AWS_ACCESS_KEY_ID": "none",
            "AWS_SECRET_ACCESS_KEY": "none",
            "QUEUE_URL": queue,
        }.items():
            patch.setenv(name, value)
        patch.syspath_prepend(str(folder))
        service, function = (importlib.import_module(name) for name in ("shop", "to_roomcast"))
        stream = service.make()
        config = folder / "roomcast.toml"
        config.write_text(replaced(config.read_text(), (QUEUE, queue)))
        aws = Aws(endpoint)
        with running("--aws-endpoint", endpoint, "--config", str(config)) as dev:
            page = folder / "dashboard.html"
            socket = ("ws://127.0.0.1:8000/connection/websocket", dev.ws_urls[0])
            page.write_text(replaced(page.read_text(), socket))
            with folder_served(folder) as url:
                yield Shop(service, function, stream, aws, queue, url)
        aws.close()
        for module in (service, function):
            del sys.modules[module.__name__]


async def test_the_page_shows_the_newest_once(shop: Shop, browser: str) -> None:
    place = shop.service.beginning(shop.stream)
    first, place = shop.service.batch(place)
    # Lambda gives the same batch twice.
    shop.handle(first)
    shop.handle(first)
    shop.settled()
    assert shop.aws.log("checkout:1") == [(1, {"waiting": 0})]
    async with chromium_at(browser) as chromium:
        page = await chromium.new_page()
        complaints: list[str] = []
        page.on("pageerror", lambda error: complaints.append(str(error)))
        await page.goto(f"{shop.url}/dashboard.html")
        cells = page.locator("#rows td")
        # What was there before the page was: the channel's newest value.
        await expect(cells).to_have_text(["0", "0", "0"], timeout=SHOWN_MS)
        await expect(page.locator("#status")).to_have_text("Live", timeout=SHOWN_MS)

        # A batch that comes behind a newer one, and the oldest once more.
        shop.service.change("1", 5)
        late, place = shop.service.batch(place)
        shop.service.change("1", 6)
        shop.service.change("2", 1)
        newest, place = shop.service.batch(place)
        assert (len(late), len(newest)) == (1, 2)
        shop.handle(newest)
        await expect(cells).to_have_text(["6", "1", "0"], timeout=SHOWN_MS)
        shop.handle(late)
        shop.handle(first)
        shop.settled()
        # Behind it all, in the same channels: had the late ones gone out, they came before.
        shop.service.change("1", 7)
        last, place = shop.service.batch(place)
        shop.handle(last)
        await expect(cells).to_have_text(["7", "1", "0"], timeout=SHOWN_MS)
        assert complaints == []
    assert shop.aws.log("checkout:1") == [(n + 1, {"waiting": w}) for n, w in enumerate((0, 6, 7))]
    assert shop.aws.log("checkout:2") == [(1, {"waiting": 0}), (2, {"waiting": 1})]

    # A removed row publishes nothing.
    shop.service.dynamodb.delete_item(TableName="checkouts", Key={"id": {"S": "2"}})
    removed, _ = shop.service.batch(place)
    assert [each["eventName"] for each in removed] == ["REMOVE"]
    shop.handle(removed)
    shop.settled()
    assert len(shop.aws.log("checkout:2")) == 2
