"""A page of another site, in a real browser, whose network lets no WebSocket through: the SDK finds
a transport that works, over two instances behind a proxy that leads each request to the next one.
"""

from __future__ import annotations

import os
import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Final

import pytest

from tests.acceptance.browser import chromium_at, site
from tests.acceptance.conftest import OpenPeer, running
from tests.acceptance.peers import PROTOBUF, BrowserPeer
from tests.acceptance.proxy import HttpProxy
from tests.acceptance.roomcast import Dev, roomcast

pytestmark = pytest.mark.timeout(120)

PAGES: Final = Path(__file__).with_name("pages.toml")
# The browser takes these names for this machine's. No other is asked for, and by no proxy.
ARGUMENTS: Final = ("--host-resolver-rules=MAP *.example.com 127.0.0.1", "--no-proxy-server")
PAGE_HOST, OTHER_PAGE_HOST = "app.example.com", "evil.example.com"
SERVER_HOST: Final = "chat.example.com"
WEBSOCKET, HTTP_STREAM, SSE, EMULATION = (
    "/connection/websocket",
    "/connection/http_stream",
    "/connection/sse",
    "/emulation",
)
TRANSPORTS: Final = ("websocket", "http_stream", "sse")

OpenPage = Callable[..., Awaitable[BrowserPeer]]


def token(user: str) -> str:
    """What `roomcast token` prints for the configuration of these tests."""
    made = roomcast("token", "--config", str(PAGES), "--user", user)
    assert made.returncode == 0, made.stderr
    return made.stdout.strip()


@pytest.fixture(scope="module")
def dev_of_pages() -> Iterator[Dev]:
    with running("--config", str(PAGES)) as dev:
        yield dev


@pytest.fixture
async def page(browser: str, node: str) -> AsyncIterator[OpenPage]:
    """Opens pages with the SDK, from a site on a port of its own. `node` has installed the SDK."""
    async with AsyncExitStack() as stack:
        port = await stack.enter_async_context(site())
        chromium = await stack.enter_async_context(chromium_at(browser, *ARGUMENTS))

        async def open_page(
            sdk: str, proxy: HttpProxy, host: str = PAGE_HOST, transports: tuple[str, ...] = ()
        ) -> BrowserPeer:
            client = BrowserPeer(
                await chromium.new_page(),
                f"ws://{SERVER_HOST}:{proxy.port}{WEBSOCKET}",
                token("ann"),
                protobuf=sdk.endswith(PROTOBUF),
                transports=transports or TRANSPORTS,
            )
            return await client.opened(f"http://{host}:{port}/page.html")

        yield open_page


def tried(client: BrowserPeer) -> list[str]:
    """The transports that failed."""
    return [each["transport"] for each in client.events if each["event"] == "error"]


@pytest.mark.parametrize(
    "sdk, blocked, path",
    [
        ("js", (), HTTP_STREAM),
        (f"js{PROTOBUF}", (), HTTP_STREAM),
        ("js", (HTTP_STREAM,), SSE),
    ],
    ids=["http stream, JSON", "http stream, Protobuf", "SSE"],
)
async def test_a_page_gets_in_and_comes_back_when_its_instance_is_killed(
    page: OpenPage,
    peer: OpenPeer,
    channel: str,
    sdk: str,
    blocked: tuple[str, ...],
    path: str,
) -> None:
    channel, transport = f"room:{channel}", path.rpartition("/")[2]
    with running("--config", str(PAGES), "--restart") as dev:
        async with HttpProxy(dev.urls, blocked=blocked) as proxy:
            ann = await page(sdk, proxy, transports=("websocket", *_until(transport)))
            await ann.connect()
            assert ann.events[-1]["transport"] == transport
            assert tried(ann) == ["websocket", *_until(transport)[:-1]]
            await ann.subscribe(channel)
            for number in range(1, 5):
                await ann.publish(channel, number)
            await ann.event("publication", channel=channel, data=4)
            # The page asks before it speaks, and each of its requests goes to the next instance.
            assert proxy.of(EMULATION, method="OPTIONS")
            assert {each.instance for each in proxy.of(EMULATION)} == {0, 1}

            [stream] = proxy.of(path, method="GET" if path == SSE else "POST")
            bob = await peer("py", dev.ws_urls[1 - stream.instance], token("bob"))
            await bob.subscribe(channel)
            os.kill(dev.pids[stream.instance], signal.SIGKILL)
            await ann.event("subscribing", channel=channel)
            await bob.publish(channel, 5)
            back = await ann.event("subscribed", channel=channel, was_recovering=True)
            assert back["recovered"]
            await ann.event("publication", channel=channel, data=5)
            await ann.publish(channel, 6)
            await bob.event("publication", channel=channel, data=6)
            await ann.event("publication", channel=channel, data=6)
            assert ann.received(channel) == [(n, n) for n in range(1, 7)]
            connected = [each for each in ann.events if each["event"] == "connected"]
            assert [each["transport"] for each in connected] == [transport] * 2
            await ann.disconnect()
            await bob.close()


def _until(transport: str) -> tuple[str, ...]:
    """The transports that are tried after WebSockets, with `transport` as the last."""
    behind = TRANSPORTS[1:]
    return behind[: behind.index(transport) + 1]


async def test_a_page_gets_past_a_proxy_that_keeps_answers_until_they_are_whole(
    page: OpenPage, channel: str, dev_of_pages: Dev
) -> None:
    """The SDK waits for five seconds."""
    async with HttpProxy(dev_of_pages.urls, held=[HTTP_STREAM]) as proxy:
        ann = await page("js", proxy)
        await ann.connect()
        assert ann.events[-1]["transport"] == "sse"
        assert proxy.of(HTTP_STREAM), "its instance had answered"
        assert proxy.of(SSE, method="GET")
        await ann.subscribe(f"room:{channel}")
        await ann.publish(f"room:{channel}", "in")
        await ann.event("publication", data="in")
        await ann.disconnect()


async def test_a_page_of_another_site_gets_in_by_no_transport(
    page: OpenPage, dev_of_pages: Dev
) -> None:
    async with HttpProxy(dev_of_pages.urls) as proxy:
        eve = await page("js", proxy, host=OTHER_PAGE_HOST)
        await eve.call("connect")
        for transport in TRANSPORTS:
            await eve.event("error", transport=transport)
        assert eve.client == ""
        assert {each.status for each in proxy.passed} == {403}
        assert {each.path for each in proxy.passed} == {WEBSOCKET, HTTP_STREAM, SSE}
        await eve.disconnect()
