"""Thousands of clients that come back at once, each from where it stood:
what it costs, and that nobody misses anything.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from typing import Any, Final

import orjson
import pytest
from structlog.testing import capture_logs

from roomcast.delivery.ports import Framer
from roomcast.log.channel_log import Appended
from roomcast.log.item import LogItem
from roomcast.log.rules import Pending
from roomcast.testing.memory import MemoryWorld
from roomcast.wire.channels import ChannelRules
from roomcast.wire.codes import Closing
from roomcast.wire.publication import Publication, StreamPosition
from tests.unit.worlds import HISTORY, Fleet, LocalNode, log_over, settled

CHANNEL: Final = "room"
CLIENTS: Final = 2_000
# The positions of those who come back are spread over the last so many publications.
SPREAD: Final = 200
# Those who come while publications go on come in so many waves.
WAVES: Final = 40
# With what they missed before, less than a recovery brings.
PUBLICATIONS_DURING_MAX: Final = 60
# For whatever a storm makes happen; a machine that does something else meanwhile is slow.
DEADLINE_S: Final = 30.0
RULES: Final = ChannelRules(without_namespace=replace(HISTORY, history_size=1_000))
# What a fresh node reads for a whole storm: its position, the head,
# and the pages of the last 300 publications.
FRESH_READS_MAX: Final = 5


def _as_it_is(payload: bytes) -> bytes:
    return payload


class Peer:
    """One client that comes back: what was sent to it, and whether that is what it missed."""

    def __init__(self, since: StreamPosition) -> None:
        self.since = since
        self.framer: Framer = _as_it_is
        self.is_binary = False
        self.is_unidirectional = False
        self.session = ""
        self.unsent_bytes = 0
        self.is_gone = False
        self.frames: list[bytes] = []
        self.closed_with: Closing | None = None

    def send(self, frame: bytes) -> None:
        self.frames.append(frame)

    def close(self, why: Closing) -> None:
        self.closed_with = why

    @property
    def answered(self) -> bool:
        """It has the replies to its connect and its subscribe."""
        return len(self.frames) >= 2

    @property
    def got(self) -> tuple[StreamPosition, bytes]:
        """Where it stood, and everything behind the reply to its connect."""
        return self.since, b"\n".join(self.frames[1:])

    def lines(self) -> list[dict[str, Any]]:
        return [orjson.loads(line) for line in self.got[1].split(b"\n")]

    def assert_whole(self, log: Sequence[Any]) -> None:
        """I3, I4: everything behind its position, once and in order,
        as `log` (the data by offset) has it.
        """
        assert self.closed_with is None
        subscribe, *pushes = self.lines()
        result = subscribe["subscribe"]
        assert result["recovered"] is True
        assert (result["epoch"], result.get("offset", 0)) == (self.since.epoch, self.since.offset)
        assert all(push["push"]["channel"] == CHANNEL for push in pushes)
        got = [*result.get("publications", ()), *(push["push"]["pub"] for push in pushes)]
        assert [each["offset"] for each in got] == list(range(self.since.offset + 1, len(log) + 1))
        assert [each["data"] for each in got] == list(log[self.since.offset :])

    def assert_told(self) -> None:
        """It could not be recovered, and knows it."""
        assert self.closed_with is None
        [subscribe] = self.lines()
        assert subscribe["subscribe"]["was_recovering"] is True
        assert "recovered" not in subscribe["subscribe"]


def assert_all_whole(peers: Sequence[Peer], log: Sequence[Any]) -> None:
    """Of those who stood at the same offset and got the same bytes one is looked into."""
    different = {peer.got: peer for peer in peers}
    assert len(different) >= min(len(peers), SPREAD + 1)
    assert all(b'"connect":' in peer.frames[0] and peer.closed_with is None for peer in peers)
    for peer in different.values():
        peer.assert_whole(log)


def logged(world: MemoryWorld) -> list[Any]:
    """The data of everything in the channel's log, by offset."""
    items = [item for _, item in sorted(world.items[CHANNEL].items()) if isinstance(item, LogItem)]
    return [entry["data"] for item in items for entry in orjson.loads(item.pubs)]


async def append(fleet: Fleet, data: Sequence[Any], items: int) -> StreamPosition:
    """Publications in `items` log items of about the same size, by a node that is gone since."""
    log = log_over(fleet.world, fleet.clock, node="gone")
    for index in range(items):
        part = data[index * len(data) // items : (index + 1) * len(data) // items]
        tail = (await log.resolve(CHANNEL)).tail
        pending = [Pending.of(orjson.dumps({"data": each}).decode()) for each in part]
        assert isinstance(await log.append(CHANNEL, tail, pending, 300_000), Appended)
    return (await log.resolve(CHANNEL)).tail.position


def spread(top: StreamPosition, count: int = CLIENTS) -> list[Peer]:
    """Clients that stood somewhere in the last publications; some missed nothing."""
    return [
        Peer(StreamPosition(top.epoch, top.offset - index % (SPREAD + 1))) for index in range(count)
    ]


async def come_back(nodes: Sequence[LocalNode], peers: Sequence[Peer]) -> None:
    """All at once, dealt out to the nodes; returns when each was answered."""
    receiving = []
    for index, peer in enumerate(peers):
        subscribe = {
            "channel": CHANNEL,
            "recover": True,
            "epoch": peer.since.epoch,
            "offset": peer.since.offset,
        }
        frame = b"\n".join(
            (
                orjson.dumps({"id": 1, "connect": {}}),
                orjson.dumps({"id": 2, "subscribe": subscribe}),
            )
        )
        receiving.append(nodes[index % len(nodes)].assembly.node.open(peer).receive(frame))
    async with asyncio.timeout(DEADLINE_S):
        await asyncio.gather(*receiving)
        for peer in peers:
            while not peer.answered:  # noqa: ASYNC110  # looked at every turn, without waiting
                await asyncio.sleep(0)


async def stay(node: LocalNode) -> None:
    """A client that keeps the channel open on `node`."""
    assert isinstance(await (await node.client()).subscribe(CHANNEL), dict)


async def publish(node: LocalNode, *data: Any) -> None:
    """One after the other, each in an item of its own."""
    for each in data:
        await node.assembly.appender.submit(CHANNEL, Publication(each), 300_000)


def calls(fleet: Fleet, before: Counter[str]) -> Counter[str]:
    """Calls of the channels table since `before`, by name."""
    table = (
        "newest",
        "head",
        "read_forward",
        "read_backward",
        "put_head",
        "put_item",
        "put_keyed_item",
    )
    return Counter({name: fleet.traffic.calls[name] - before[name] for name in table}) - Counter()


@asynccontextmanager
async def running(fleet: Fleet, nodes: Sequence[LocalNode]) -> AsyncIterator[None]:
    """Nodes that listen, and a pipeline that brings them what is appended."""
    fleet.stream_to_topic()
    async with AsyncExitStack() as stack:
        for node in nodes:
            await stack.enter_async_context(node.running())
        yield


async def caught_up(peers: Sequence[Peer], top: int) -> None:
    """Wait until the last publication has reached every peer."""
    last = b'"offset":%d' % top
    async with asyncio.timeout(DEADLINE_S):
        for peer in peers:
            while last not in peer.frames[-1]:  # noqa: ASYNC110  # looked at every turn, without waiting
                await asyncio.sleep(0)
    await settled()


@pytest.fixture(autouse=True)
def _without_log_lines() -> Iterator[None]:
    """Thousands of connects: what is of use when a test fails must not drown."""
    with capture_logs():
        yield


@pytest.fixture
def fleet() -> Fleet:
    return Fleet()


async def test_a_node_whose_ring_covers_them_reads_nothing(fleet: Fleet) -> None:
    node = fleet.node(rules=RULES)
    await stay(node)
    await publish(node, *range(SPREAD + 50))
    top = (await log_over(fleet.world, fleet.clock).resolve(CHANNEL)).tail.position
    peers, before = spread(top), fleet.traffic.calls.copy()
    await come_back([node], peers)
    assert calls(fleet, before) == Counter()
    await publish(node, "after", "the storm")
    log = logged(fleet.world)
    assert log[-2:] == ["after", "the storm"]
    assert_all_whole(peers, log)


@pytest.mark.parametrize("items", [SPREAD + 50, 7])
async def test_a_fresh_node_reads_once_for_all(fleet: Fleet, items: int) -> None:
    """Its ring is empty: who comes first has the window read,
    and the others are answered from it.
    """
    top = await append(fleet, range(SPREAD + 50), items)
    node = fleet.node(rules=RULES)
    peers, before = spread(top), fleet.traffic.calls.copy()
    await come_back([node], peers)
    made = calls(fleet, before)
    assert made.total() <= FRESH_READS_MAX, made
    assert set(made) == {"newest", "head", "read_backward"}
    await publish(node, "after", "the storm")
    log = logged(fleet.world)
    assert_all_whole(peers, log)


@pytest.mark.parametrize("fresh", [False, True], ids=["ring", "empty ring"])
async def test_publications_go_on_during_the_storm(fleet: Fleet, fresh: bool) -> None:
    """On the node itself and on another one, whose come through the queue."""
    here, there = fleet.node("here", rules=RULES), fleet.node("there", rules=RULES)
    async with running(fleet, [here, there]):
        if fresh:
            top = await append(fleet, range(SPREAD + 20), 40)
        else:
            await stay(here)
            await publish(here, *range(SPREAD + 20))
            top = (await log_over(fleet.world, fleet.clock).resolve(CHANNEL)).tail.position
        before, peers = fleet.traffic.calls["read_backward"], spread(top)

        async def waves() -> None:
            for wave in range(WAVES):
                await come_back([here], peers[wave::WAVES])

        storm = asyncio.create_task(waves())
        during = 0
        while not storm.done() and during < PUBLICATIONS_DURING_MAX:
            await asyncio.gather(publish(here, f"here {during}"), publish(there, f"there {during}"))
            during += 2
        await storm
        await publish(there, "the last")
        log = logged(fleet.world)
        await caught_up(peers, len(log))
        assert during > 5, "publications came while clients did"
        assert any(len(peer.frames) > 3 for peer in peers), "some were in when others still came"
        assert_all_whole(peers, log)
        assert fleet.traffic.calls["read_backward"] - before <= FRESH_READS_MAX * fresh


async def test_they_come_to_three_nodes(fleet: Fleet) -> None:
    """One that was there, one that hears of the channel only now, and one that has just started."""
    nodes = [fleet.node(name, rules=RULES) for name in ("old", "idle", "new")]
    async with running(fleet, nodes[:2]):
        await stay(nodes[0])
        await publish(nodes[0], *range(SPREAD + 20))
        top = (await log_over(fleet.world, fleet.clock).resolve(CHANNEL)).tail.position
        async with nodes[2].running():
            peers, before = spread(top), fleet.traffic.calls.copy()
            storm = asyncio.create_task(come_back(nodes, peers))
            for turn in range(5):
                await asyncio.gather(
                    *(publish(node, [index, turn]) for index, node in enumerate(nodes))
                )
            await storm
            made = calls(fleet, before)
            # Two nodes with empty rings; and each of the three writers looked for the tail,
            # once or when it lost a race.
            assert made["read_backward"] <= 2 * FRESH_READS_MAX, made
            await publish(nodes[2], "the last")
            log = logged(fleet.world)
            await caught_up(peers, len(log))
            assert_all_whole(peers, log)


async def test_those_who_cannot_be_recovered_cost_no_read_each(fleet: Fleet) -> None:
    """More bytes than a recovery brings: the first read shows it,
    for everybody who stood as far back.
    """
    top = await append(fleet, ["x" * 10_000] * SPREAD, SPREAD)
    node = fleet.node(rules=RULES)
    far = [Peer(StreamPosition(top.epoch, index % 100)) for index in range(500)]
    near = [Peer(StreamPosition(top.epoch, top.offset - index % 40)) for index in range(500)]
    before = fleet.traffic.calls.copy()
    await come_back([node], [*far, *near])
    made = calls(fleet, before)
    assert made.total() <= FRESH_READS_MAX, made
    for peer in far:
        peer.assert_told()
    log = logged(fleet.world)
    for peer in near:
        peer.assert_whole(log)


async def test_a_hole_in_the_log_costs_no_read_each(fleet: Fleet) -> None:
    """What TTL deleted is gone for everybody who stood before it."""
    top = await append(fleet, range(50), 50)
    for offset in (10, 30):
        fleet.world.expire(CHANNEL, offset)
    node = fleet.node(rules=RULES)
    far = [Peer(StreamPosition(top.epoch, index % 30)) for index in range(500)]
    near = [Peer(StreamPosition(top.epoch, 30 + index % 21)) for index in range(500)]
    before = fleet.traffic.calls.copy()
    await come_back([node], [*far, *near])
    made = calls(fleet, before)
    assert made.total() <= FRESH_READS_MAX, made
    for peer in far:
        peer.assert_told()
    for peer in near:
        peer.assert_whole([*range(10), *range(10, 50)])
