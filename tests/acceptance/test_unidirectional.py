"""Clients without an SDK: curl, EventSource and WebSocket, as the documentation has them."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import time
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from typing import Any, Final
from urllib.parse import urlsplit

import aiohttp
import cent
import jwt
import pytest
from playwright.async_api import async_playwright

from tests.acceptance.conftest import OpenPeer, Token, running
from tests.acceptance.features import WITHOUT_SDK
from tests.acceptance.link import RoundRobin
from tests.acceptance.peers import DEADLINE_S, Peer
from tests.acceptance.roomcast import Dev
from tests.acceptance.snippets import marked
from tests.acceptance.test_fast import FAST, KEY, publish_all, score
from tests.requirements import JS_DIRECTORY

PAGE: Final = "docs/clients.md"
TEST: Final = "test_unidirectional.py"
HOST: Final = "https://chat.example.com"
# A push, and a history of publications in one.
LINE_BYTES_MAX: Final = 4 * 1024 * 1024
# A WebSocket of Node.js: it prints each message as a line.
SOCKET: Final = """
import WebSocket from 'ws';
const [url, connect] = process.argv.slice(1);
const socket = new WebSocket(url);
socket.on('open', () => socket.send(connect));
socket.on('message', (message) => console.log(String(message)));
socket.on('close', (code) => console.log(JSON.stringify({ closed: code })));
"""
OVER = pytest.mark.parametrize("over", WITHOUT_SDK)


class Listener:
    """A process that prints one push a line."""

    def __init__(self, process: Process) -> None:
        self.process = process

    @classmethod
    async def of(cls, *command: str) -> Listener:
        return cls(
            await asyncio.create_subprocess_exec(
                *command, cwd=JS_DIRECTORY, stdout=PIPE, limit=LINE_BYTES_MAX
            )
        )

    async def line(self) -> str | None:
        """The next one that is not empty. None: it has ended."""
        assert self.process.stdout is not None, "asked for a pipe"
        async with asyncio.timeout(DEADLINE_S):
            while line := (await self.process.stdout.readline()).decode():
                if line.strip():
                    return line.strip()
        return None

    async def push(self) -> dict[str, Any] | None:
        """The next one that is neither a ping nor about who comes and goes. None: it has ended."""
        while (line := await self.line()) is not None:
            push: dict[str, Any] = json.loads(line.removeprefix("data: "))
            if push and not {"join", "leave"} & push.keys():
                return push
        return None

    async def publication(self) -> tuple[int, Any]:
        push = await self.push()
        assert push is not None
        assert "pub" in push, push
        return push["pub"]["offset"], push["pub"]["data"]

    async def connected(self) -> Mapping[str, Any]:
        push = await self.push()
        assert push is not None
        assert "connect" in push, push
        result: Mapping[str, Any] = push["connect"]
        return result

    async def close(self) -> None:
        if self.process.returncode is None:
            self.process.kill()
        await self.process.communicate()


Listen = Callable[..., Awaitable[Listener]]


@pytest.fixture
async def listen(request: pytest.FixtureRequest) -> AsyncIterator[Listen]:
    """Opens clients at an instance, by transport. `connect`: what they say."""
    opened: list[Listener] = []

    async def listen(over: str, url: str, **connect: Any) -> Listener:
        said, address = json.dumps(connect), f"{url}/connection/{over}"
        if over == "uni_websocket":
            node = request.getfixturevalue("node")
            ws = address.replace("http", "ws", 1)
            command = [node, "--input-type=module", "--eval", SOCKET, ws, said]
        elif over == "uni_sse":
            query = ["--get", "--data-urlencode", f"cf_connect={said}"]
            command = ["curl", "--no-buffer", "--silent", *query, address]
        else:
            command = ["curl", "--no-buffer", "--silent", "--data", said, address]
        opened.append(await Listener.of(*command))
        return opened[-1]

    yield listen
    for listener in opened:
        await listener.close()


@pytest.fixture
def back_end(dev: Dev) -> Iterator[cent.Client]:
    """At instance 1."""
    client = cent.Client(f"{dev.urls[0]}/api", "any key: the server is insecure")
    yield client
    client._session.close()


@pytest.fixture(scope="module")
def fast() -> Iterator[Dev]:
    """With batching, delayed writes, compression and express hints."""
    with running("--config", str(FAST)) as started:
        yield started


def hears(channel: str) -> tuple[str, str]:
    """Options of `roomcast token`, for one who is subscribed to `channel`."""
    return "--claims", json.dumps({"channels": [channel]})


@OVER
async def test_it_hears_what_is_published_at_another_instance(
    dev: Dev, peer: OpenPeer, token: Token, listen: Listen, channel: str, over: str
) -> None:
    ann = await listen(over, dev.urls[0], token=token("ann", *hears(channel)))
    connect = await ann.connected()
    assert list(connect["subs"]) == [channel]
    bob = await peer("py", dev.ws_urls[1], token("bob"))
    await bob.subscribe(channel)
    data = {"text": "héllo ⏎\n \u2028 🜲", "nested": [1, 2.5, None, True]}
    await bob.publish(channel, data)
    await bob.publish(channel, "again")
    assert [await ann.publication() for _ in range(2)] == [(1, data), (2, "again")]
    assert connect["client"] in await bob.presence(channel)


@OVER
async def test_what_a_back_end_does_to_it(
    dev: Dev, token: Token, listen: Listen, back_end: cent.Client, channel: str, over: str
) -> None:
    """It is at the other instance. An order for its session goes straight there."""
    user = f"user-{channel}"
    ann = await listen(over, dev.urls[1], token=token(user))
    connect = await ann.connected()
    assert "subs" not in connect

    async def order(method: Callable[[Any], Any], request: Any) -> dict[str, Any] | None:
        await asyncio.to_thread(method, request)
        return await ann.push()

    asked = cent.SubscribeRequest(user=user, channel=channel, data={"hello": 1})
    subscribed = await order(back_end.subscribe, asked)
    assert subscribed is not None
    assert (subscribed["channel"], subscribed["subscribe"]["data"]) == (channel, {"hello": 1})
    published = await order(back_end.publish, cent.PublishRequest(channel=channel, data=1))
    assert published is not None
    assert published["pub"]["data"] == 1
    until = int(time.time()) + 3600
    refreshed = await order(back_end.refresh, cent.RefreshRequest(user=user, expire_at=until))
    assert refreshed is not None
    assert refreshed["refresh"]["expires"]
    leaving = cent.UnsubscribeRequest(user=user, session=connect["session"], channel=channel)
    left = await order(back_end.unsubscribe, leaving)
    assert left is not None
    assert (left["channel"], left["unsubscribe"]["code"]) == (channel, 2000)
    ended = await order(back_end.refresh, cent.RefreshRequest(user=user, expired=True))
    assert ended == {"disconnect": {"code": 3005, "reason": "connection expired"}}
    assert await ann.push() == ({"closed": 3005} if over == "uni_websocket" else None)


@OVER
async def test_when_its_instance_is_killed_it_recovers_at_another(
    peer: OpenPeer, token: Token, listen: Listen, channel: str, over: str
) -> None:
    with running("--restart") as dev:
        writer = await peer("py", dev.ws_urls[1])
        hers = token("ann", *hears(channel))
        ann = await listen(over, dev.urls[0], token=hers)
        position = (await ann.connected())["subs"][channel]
        await writer.publish(channel, 1)
        assert await ann.publication() == (1, 1)
        os.kill(dev.pids[0], signal.SIGKILL)
        last = await ann.push()
        assert last is None or list(last) == ["closed"]
        for number in (2, 3):
            await writer.publish(channel, number)
        since = {"recover": True, "epoch": position["epoch"], "offset": 1}
        ann = await listen(over, dev.urls[1], token=hers, subs={channel: since})
        sub = (await ann.connected())["subs"][channel]
        assert sub["recovered"]
        assert [each["data"] for each in sub["publications"]] == [2, 3]
        await writer.publish(channel, 4)
        assert await ann.publication() == (4, 4)
        await writer.close()
    # Its instance has ended in order now.
    assert await ann.push() == {"disconnect": {"code": 3001, "reason": "shutdown"}}


@OVER
async def test_it_is_told_why_it_may_not_connect(
    secured: Dev, secured_token: Token, token: Token, listen: Listen, over: str
) -> None:
    async def told(**connect: Any) -> Any:
        client = await listen(over, secured.urls[0], **connect)
        push = await client.push()
        assert push is not None
        return push["disconnect"]["code"]

    assert await told(token=token("ann")) == 3500, "of another key"
    assert await told(token="no token") == 3500
    assert await told(token=secured_token("ann", "--claims", '{"channels":["no:where"]}')) == 3501
    assert await told(token=7) == 3501


@OVER
async def test_one_that_does_not_read_is_cut_off(
    dev: Dev, token: Token, listen: Listen, back_end: cent.Client, channel: str, over: str
) -> None:
    ann = await listen(over, dev.urls[1], token=token("ann", *hears(channel)))
    await ann.connected()
    before = await slow_ones(dev.urls[1])
    os.kill(ann.process.pid, signal.SIGSTOP)
    try:
        # What its kernel and the server's hold, and then what waits for it.
        request = cent.PublishRequest(channel=channel, data="x" * 60_000)
        for _ in range(1000):
            await asyncio.to_thread(back_end.publish, request)
            if await slow_ones(dev.urls[1]) > before:
                break
    finally:
        os.kill(ann.process.pid, signal.SIGCONT)
    assert await slow_ones(dev.urls[1]) == before + 1


async def slow_ones(url: str) -> int:
    """How many clients of this instance were cut off as slow."""
    async with aiohttp.ClientSession() as session, session.get(f"{url}/metrics") as answer:
        text = await answer.text()
    found = re.search(r'^roomcast_disconnects_total\{code="3008"\} (\d+)', text, re.MULTILINE)
    return int(found[1]) if found else 0


# ---- as the documentation has it


async def test_the_command_of_the_page(dev: Dev, token: Token, channel: str) -> None:
    """As it stands there, but for the address and the token."""
    first, second = marked(PAGE, TEST, "sh").splitlines()
    assert first == """TOKEN=$(roomcast token --user ann --claims '{"channels": ["news"]}')"""
    said = f"TOKEN={token('ann', *hears(channel))}\nexec {second.replace(HOST, dev.urls[0])}"
    curl = await Listener.of("sh", "-c", said)
    try:
        assert list((await curl.connected())["subs"]) == [channel]
    finally:
        await curl.close()


class Pages:
    """Where the script of the page runs. It shows what it is told."""

    def __init__(self, writer: Peer, channel: str, hers: str) -> None:
        self._writer = writer
        self._channel = channel
        self._hers = hers

    def script(self, balancer: RoundRobin, show: str) -> str:
        """As it stands there, but for the address. `show`: what it calls with an object."""
        return (
            f"const getToken = async () => {json.dumps(self._hers)};\n"
            f"const show = (channel, data) => {show}({{ channel, data }});\n"
            + marked(PAGE, TEST, "js").replace(HOST, f"http://{urlsplit(balancer.url).netloc}")
        )

    async def goes_on(self, balancer: RoundRobin, shown: Callable[[], Awaitable[Any]]) -> None:
        """Its connection is cut, and it goes on at another instance, with all in between."""
        channel = self._channel
        while (await self._writer.event("join", channel=channel))["info"]["user"] != "ann":
            pass
        for number in range(1, 31):
            if number == 10:
                balancer.cut()
            if number == 20:
                balancer.mend()
            await self._writer.publish(channel, number)
        seen = [await shown() for _ in range(30)]
        assert seen == [{"channel": channel, "data": number} for number in range(1, 31)]


@OVER
async def test_what_it_gets_is_whole_and_in_json(
    fast: Dev, peer: OpenPeer, listen: Listen, channel: str, over: str
) -> None:
    """Where others get differences and numbers for names, and however it is sent."""
    channel, count = f"batched:{channel}", 100
    of_bob = jwt.encode({"sub": "bob", "channels": [channel]}, KEY)
    bob = await listen(over, fast.urls[1], token=of_bob)
    assert list((await bob.connected())["subs"]) == [channel]
    ann = await peer("js", fast.ws_urls[1], jwt.encode({"sub": "ann"}, KEY))
    await ann.subscribe(channel, delta="fossil")
    await publish_all(ann, channel, range(count))
    pushes = [await bob.push() for _ in range(count)]
    assert [push and push["channel"] for push in pushes] == [channel] * count
    got = [push["pub"] for push in pushes if push]
    assert [(each["offset"], each["data"]) for each in got] == [
        (number + 1, score(number)) for number in range(count)
    ]
    assert not [each for each in got if "delta" in each]
    await ann.event("publication", channel=channel, offset=count)
    assert ann.received(channel) == [(number + 1, score(number)) for number in range(count)]


@OVER
async def test_asked_for_protobuf_it_is_json(dev: Dev, token: Token, over: str) -> None:
    said = json.dumps({"token": token("ann")})
    address, formats = f"{dev.urls[0]}/connection/{over}", {"format": "protobuf"}
    binary = {"Content-Type": "application/octet-stream"}
    async with aiohttp.ClientSession() as session, asyncio.timeout(DEADLINE_S):
        if over == "uni_websocket":
            protocols = ("centrifuge-protobuf",)
            async with session.ws_connect(address, protocols=protocols, params=formats) as socket:
                assert socket.protocol is None
                await socket.send_str(said)
                line = await socket.receive_str()
        elif over == "uni_sse":
            query = {**formats, "cf_connect": said}
            async with session.get(address, params=query) as answer:
                assert (await answer.content.readline()).strip() == b""
                line = (await answer.content.readline()).decode().removeprefix("data: ")
        else:
            posting = session.post(address, data=said, params=formats, headers=binary)
            async with posting as answer:
                assert answer.content_type == "application/json"
                line = (await answer.content.readline()).decode()
    assert json.loads(line)["connect"]["client"]


@pytest.fixture
async def pages(dev: Dev, peer: OpenPeer, token: Token, channel: str) -> Pages:
    writer = await peer("py", dev.ws_urls[0])
    await writer.subscribe(channel)
    return Pages(writer, channel, token("ann", *hears(channel)))


async def test_the_script_of_the_page(dev: Dev, pages: Pages, node: str) -> None:
    """With npm `eventsource`."""
    async with RoundRobin(dev.ws_urls) as balancer:
        imported = "import { EventSource } from 'eventsource';\n"
        show = "((shown) => console.log(JSON.stringify(shown)))"
        script = imported + pages.script(balancer, show)
        process = await Listener.of(node, "--input-type=module", "--eval", script)

        async def shown() -> Any:
            line = await process.line()
            assert line is not None, "it goes on"
            return json.loads(line)

        try:
            await pages.goes_on(balancer, shown)
        finally:
            await process.close()


# Says `connect` as often as there are numbers, one after the other, and prints each answer.
ONE_AFTER_THE_OTHER: Final = """
import EventSource from 'eventsource-2';
for (let number = 0; number < %d; number++) {
  const source = new EventSource(%s);
  console.log((await new Promise((resolve) => (source.onmessage = resolve))).data);
  source.close();
}
"""


async def test_the_first_event_is_heard_that_comes_in_one_piece_with_the_head(
    dev: Dev, node: str
) -> None:
    """With the older npm `eventsource` with which the SDK for JavaScript is tested. It loses an
    event behind CR LF.
    """
    times, address = 20, json.dumps(f"{dev.urls[0]}/connection/uni_sse")
    script = ONE_AFTER_THE_OTHER % (times, address)
    process = await Listener.of(node, "--input-type=module", "--eval", script)
    try:
        for _ in range(times):
            line = await process.line()
            assert line is not None
            assert "connect" in json.loads(line)
    finally:
        await process.close()


async def test_the_script_of_the_page_in_a_browser(dev: Dev, pages: Pages, browser: str) -> None:
    """With its own EventSource, in a page of the same origin."""
    async with RoundRobin(dev.ws_urls) as balancer, async_playwright() as playwright:
        arguments = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
        chromium = await playwright.chromium.launch(executable_path=browser, args=arguments)
        try:
            page = await chromium.new_page()
            lines: asyncio.Queue[Any] = asyncio.Queue()
            await page.expose_function("shown", lines.put_nowait)
            await page.goto(f"http://{urlsplit(balancer.url).netloc}/health/live")
            await page.evaluate(f"async () => {{ {pages.script(balancer, 'shown')} }}")

            async def shown() -> Any:
                async with asyncio.timeout(DEADLINE_S):
                    return await lines.get()

            await pages.goes_on(balancer, shown)
        finally:
            await chromium.close()
