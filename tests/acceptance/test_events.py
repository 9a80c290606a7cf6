"""Events of two published SDKs, from the queue that `roomcast dev --events` makes, with the
configuration that docs/events.md gives a new user.
"""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections.abc import Iterator
from typing import Any, Final

import pytest

from tests.acceptance.conftest import OpenPeer, running
from tests.acceptance.roomcast import ROOT, STOP_S, Aws, Dev

PAGE: Final = (ROOT / "docs/events.md").read_text(encoding="utf-8")
CONFIG: Final = re.compile(r"```toml\n(# roomcast\.toml\n.+?)```", re.DOTALL)
LOOK_S: Final = 0.05
# What each client is told of, and what the room is.
OF_CLIENTS: Final = ("connected", "disconnected", "joined", "left", "subscribed", "unsubscribed")
OF_ROOMS: Final = ("occupied", "vacated")
ABOUT_CLIENTS: Final = {"user", "client", "node", "since_ms"}

Event = dict[str, Any]


@pytest.fixture(scope="module")
def eventful(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Dev]:
    """`roomcast dev --events` with the page's configuration, and the kinds that it leaves out."""
    match = CONFIG.search(PAGE)
    assert match is not None, "the page has a configuration"
    text = match[1].replace('"joined", "left"', '"joined", "subscribed", "left", "unsubscribed"')
    assert text != match[1], "the page wants who joined and left"
    # Here clients are the ones who publish.
    text += "allow_publish_for_subscriber = true\n"
    path = tmp_path_factory.mktemp("events") / "roomcast.toml"
    path.write_text(text, encoding="utf-8")
    with running("--events", "--config", str(path)) as started:
        yield started


class Told:
    """What the queue of events says, as a back end would read it."""

    def __init__(self, dev: Dev) -> None:
        self._aws = Aws(dev.aws_endpoint)
        self._url = dev.ready["events"]["queue"]
        # By id: an event may come again.
        self.events: dict[str, Event] = {}

    async def until(self, kind: str, count: int) -> None:
        """There are so many events of this kind; waits for them."""
        give_up_s = time.monotonic() + STOP_S
        while len(self.of(kind)) < count:
            assert time.monotonic() < give_up_s, f"not {count} {kind} in {self.events}"
            await asyncio.to_thread(self._receive)
            await asyncio.sleep(LOOK_S)

    def _receive(self) -> None:
        # No long poll: the embedded AWS does it with all its might.
        answer = self._aws.sqs.receive_message(QueueUrl=self._url, MaxNumberOfMessages=10)
        for message in answer.get("Messages", ()):
            event = json.loads(message["Body"])
            assert self.events.setdefault(event["id"], event) == event, "one id, one event"
            self._aws.sqs.delete_message(QueueUrl=self._url, ReceiptHandle=message["ReceiptHandle"])

    def of(self, kind: str) -> list[Event]:
        return [event for event in self.events.values() if event["type"] == kind]

    def close(self) -> None:
        self._aws.close()


@pytest.fixture
def told(eventful: Dev) -> Iterator[Told]:
    reader = Told(eventful)
    yield reader
    reader.close()


async def test_two_clients_come_publish_and_go(eventful: Dev, peer: OpenPeer, told: Told) -> None:
    began_ms, room = time.time() * 1000, "room:one"
    js, py = [
        await peer(sdk, url) for sdk, url in zip(("js", "py"), eventful.ws_urls, strict=False)
    ]
    for client in (js, py):
        await client.subscribe(room)
    for client, data in ((js, {"from": "js"}), (py, {"from": "py"})):
        await client.publish(room, data)
        await py.event("publication", channel=room, data=data)
    # Before they go: somebody is there.
    await told.until("occupied", 1)
    for client in (js, py):
        await client.disconnect()
    for kind in (*OF_CLIENTS, "published"):
        await told.until(kind, 2)
    await told.until("vacated", 1)
    ended_ms = time.time() * 1000
    clients = {each["client"] for each in told.of("connected")}

    for kind in OF_CLIENTS:
        events = told.of(kind)
        assert len(events) == 2, f"one {kind} a client"
        assert {event["client"] for event in events} == clients
        in_channel = set() if kind.endswith("connected") else {"channel"}
        for event in events:
            assert set(event) == {"id", "type", "time_ms"} | ABOUT_CLIENTS | in_channel
            assert event.get("channel", room) == room
            assert event["node"] in eventful.nodes
            assert began_ms <= event["since_ms"] <= ended_ms
            assert event["since_ms"] <= event["time_ms"] + 1000 <= ended_ms + 2000
    # A client was in the room later than it was connected, on the same node.
    for client in clients:
        nodes = {each["node"] for each in told.events.values() if each.get("client") == client}
        assert len(nodes) == 1
    for kind in OF_ROOMS:
        (event,) = told.of(kind)
        assert set(event) == {"id", "type", "time_ms", "channel"}
        assert event["channel"] == room
    published = sorted(told.of("published"), key=lambda event: event["offset"])
    assert [event["offset"] for event in published] == [1, 2]
    assert [event["data"] for event in published] == [{"from": "js"}, {"from": "py"}]
    assert len({event["epoch"] for event in published}) == 1
    for event in published:
        assert event["info"]["client"] in clients
        assert event["channel"] == room
    assert len(told.events) == 2 * len(OF_CLIENTS) + len(OF_ROOMS) + len(published)
