"""Events as back ends get them: real nodes, the events Lambda over streams of the embedded AWS, and
a queue. A node is killed, and the reaper finds it.
"""

from __future__ import annotations

import asyncio
import json
import signal
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path
from typing import Any, Final

import aiohttp
import pytest

from roomcast.dev.provision import DUMMY_CREDENTIALS, client
from roomcast.reaper.rules import REAP_GRACE_MS
from tests.contract.backends import REGION
from tests.integration.serving import (
    SILENT_S,
    Aws,
    Process,
    deployed,
    pump,
    reaping,
    serving,
)
from tests.websocket import WebSocket

ROOM: Final = "room:one"
TTL_S: Final = 60
DEADLINE_S: Final = 45.0
LOOK_S: Final = 0.05
AHEAD_MS: Final = TTL_S * 1000 + REAP_GRACE_MS - SILENT_S * 1000
CONFIG: Final = f"""
[client]
insecure = true
events = ["connected", "disconnected"]
[[channel.namespaces]]
name = "room"
history_size = 100
history_ttl = "300s"
presence_shards = 2
events = ["joined", "left", "subscribed", "unsubscribed", "occupied", "vacated", "published"]
[[channel.namespaces]]
name = "quiet"
history_size = 100
history_ttl = "300s"
presence = true
[node]
drain_s = 0
lease_ttl_s = {TTL_S}
heartbeat_s = 0.5
"""

pytestmark = [pytest.mark.timeout(180)]


@pytest.fixture
def aws(tmp_path: Path) -> Iterator[Aws]:
    with deployed(tmp_path, "events-", events=True) as aws, pump(aws):
        yield aws


class Told:
    """What the queue brought so far, each id once."""

    def __init__(self, aws: Aws) -> None:
        self._sqs = client("sqs", aws.endpoint, REGION, DUMMY_CREDENTIALS)
        self._url = aws.made.events_queue_url
        self.events: dict[str, dict[str, Any]] = {}

    def of(self, kind: str) -> list[dict[str, Any]]:
        return [event for event in self.events.values() if event["type"] == kind]

    def counted(self) -> Counter[str]:
        return Counter(event["type"] for event in self.events.values())

    async def until(self, wanted: Counter[str]) -> None:
        give_up_s = time.monotonic() + DEADLINE_S
        while (found := self.counted()) != wanted:
            assert found <= wanted, self.events
            assert time.monotonic() < give_up_s, (found, wanted)
            await asyncio.to_thread(self._receive)
            await asyncio.sleep(LOOK_S)

    def _receive(self) -> None:
        answer = self._sqs.receive_message(QueueUrl=self._url, MaxNumberOfMessages=10)
        for message in answer.get("Messages", ()):
            event = json.loads(message["Body"])
            assert self.events.setdefault(event["id"], event) == event, "an id is of one event"


@asynccontextmanager
async def nodes(aws: Aws, size: int) -> AsyncIterator[tuple[list[Process], aiohttp.ClientSession]]:
    config = aws.config("events", CONFIG)
    async with aiohttp.ClientSession() as session:
        with ExitStack() as stack:
            processes = [stack.enter_context(serving(config)) for _ in range(size)]
            for process in processes:
                await asyncio.to_thread(process.ready)
            yield processes, session


async def connected(process: Process, session: aiohttp.ClientSession) -> tuple[WebSocket, str]:
    socket = WebSocket(await session.ws_connect(f"{process.url}/connection/websocket"))
    return socket, (await socket.ask("connect"))["client"]


async def test_a_killed_node_is_told_like_any_leave(aws: Aws) -> None:
    told = Told(aws)
    async with nodes(aws, 2) as ((dying, living), session), reaping(aws, AHEAD_MS) as reaper:
        one, first = await connected(dying, session)
        two, second = await connected(dying, session)
        other, third = await connected(living, session)
        for socket in (one, two, other):
            await socket.ask("subscribe", channel=ROOM)
            await socket.ask("subscribe", channel="quiet:one")
        await one.ask("publish", channel=ROOM, data={"text": "å"})
        await one.ask("publish", channel="quiet:one", data={"text": "secret"})
        await told.until(Counter(connected=3, joined=3, subscribed=3, occupied=1, published=1))
        assert {event["client"] for event in told.of("connected")} == {first, second, third}
        assert {event["channel"] for event in told.of("joined")} == {ROOM}
        (published,) = told.of("published")
        assert published["data"] == {"text": "å"}
        assert published["offset"] == 1
        assert published["info"]["client"] == first

        dying.signal(signal.SIGKILL)
        dying.ended()
        give_up_s = time.monotonic() + DEADLINE_S
        while not (await reaper.run()).nodes:
            assert time.monotonic() < give_up_s
            await asyncio.sleep(LOOK_S)
        so_far = told.counted()
        await told.until(so_far + Counter(left=2, unsubscribed=2, disconnected=2))
        assert {event["client"] for event in told.of("left")} == {first, second}
        assert {event["client"] for event in told.of("disconnected")} == {first, second}

        # The last one leaves the channel, comes back, and then the connection ends.
        await other.ask("unsubscribe", channel=ROOM)
        so_far = told.counted()
        await told.until(so_far + Counter(left=1, unsubscribed=1, vacated=1))
        await other.ask("subscribe", channel=ROOM)
        so_far = told.counted()
        await told.until(so_far + Counter(joined=1, subscribed=1, occupied=1))
        await other.response.close()
        so_far = told.counted()
        await told.until(so_far + Counter(left=1, unsubscribed=1, vacated=1, disconnected=1))


async def test_a_lease_that_was_lost_is_nobodys_leaving(aws: Aws) -> None:
    told = Told(aws)
    async with nodes(aws, 1) as ((process,), session), reaping(aws, AHEAD_MS) as reaper:
        socket, client_id = await connected(process, session)
        await socket.ask("subscribe", channel=ROOM)
        entered = Counter(connected=1, joined=1, subscribed=1, occupied=1)
        await told.until(entered)
        process.signal(signal.SIGSTOP)
        give_up_s = time.monotonic() + DEADLINE_S
        while not (await reaper.run()).nodes:
            assert time.monotonic() < give_up_s
            await asyncio.sleep(LOOK_S)
        # The reaper cannot know better; the node, once it wakes, tells that the client is there.
        left = Counter(left=1, unsubscribed=1, disconnected=1, vacated=1)
        await told.until(entered + left)
        process.signal(signal.SIGCONT)
        await told.until(entered + left + entered)
        again = [event for event in told.of("joined") if event.get("again")]
        assert [event["client"] for event in again] == [client_id]
        assert len({event["since_ms"] for event in told.of("joined")}) == 1, "it came once"
