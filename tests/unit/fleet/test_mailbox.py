"""service/roomcast/fleet/mailbox.py: a signal into the queue of one other node."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from roomcast.delivery.envelope import Signal, parse
from roomcast.delivery.ports import Gone
from roomcast.fleet import mailbox as mailbox_module
from roomcast.fleet.lease_record import Lease
from roomcast.fleet.mailbox import LEASES_S, Mailbox, NodeUnknown
from roomcast.ports import PortError, UnknownOutcome
from roomcast.testing.memory import MemoryLeases, MemoryQueue, MemoryWorld
from tests.unit.worlds import DEADLINE_S, Fleet, settled, until

SIGNAL = Signal("kind", "id", "a", "", {"x": 1})
LEASE_MS = 60_000


class World:
    def __init__(self) -> None:
        self.fleet = Fleet()
        self.world = self.fleet.world
        post = MemoryQueue(self.world, 1.0)
        self.mailbox = Mailbox(post, MemoryLeases(self.world), self.fleet.clock)

    def lives(self, node: str, queue: str, badge: str = "") -> None:
        now = self.fleet.clock.now_ms()
        lease = Lease(node, queue, "live", now, now, now + LEASE_MS, badge=badge)
        self.world.leases[node] = lease

    def queue(self, name: str) -> None:
        self.world.create_queue(name, 0, {})

    def bodies(self, queue: str) -> list[str]:
        return [message.body for message in self.world.queues[queue].waiting.values()]

    @property
    def reads(self) -> int:
        return self.fleet.traffic.calls["all"]


@pytest.fixture
def world() -> World:
    world = World()
    for name in "bc":
        world.queue(f"queue-{name}")
        world.lives(name, f"queue-{name}")
    return world


async def test_it_is_in_that_queue_and_in_no_other(world: World) -> None:
    await world.mailbox.send("b", SIGNAL)
    [body] = world.bodies("queue-b")
    assert parse(body).signals == (SIGNAL,)
    assert world.bodies("queue-c") == []


async def test_leases_are_read_once_for_many_and_for_a_while(world: World) -> None:
    await asyncio.gather(*(world.mailbox.send("b", SIGNAL) for _ in range(50)))
    await world.mailbox.send("c", SIGNAL)
    assert world.reads == 1
    world.fleet.clock.advance(LEASES_S + 0.1)
    await world.mailbox.send("b", SIGNAL)
    assert world.reads == 2


async def test_a_node_with_another_queue_is_found_at_once(world: World) -> None:
    await world.mailbox.send("b", SIGNAL)
    world.world.delete_queue("queue-b")
    world.queue("queue-b2")
    world.lives("b", "queue-b2")
    await world.mailbox.send("b", SIGNAL)
    assert len(world.bodies("queue-b2")) == 1


async def test_a_node_that_has_just_started_is_found(world: World) -> None:
    await world.mailbox.send("b", SIGNAL)
    world.queue("queue-d")
    world.lives("d", "queue-d")
    await world.mailbox.send("d", SIGNAL)
    assert len(world.bodies("queue-d")) == 1


async def test_a_node_that_is_none_or_no_more_is_unknown(world: World) -> None:
    with pytest.raises(NodeUnknown):
        await world.mailbox.send("nobody", SIGNAL)
    await world.mailbox.send("b", SIGNAL)
    dead = world.world.leases["b"]
    world.world.leases["b"] = replace(dead, reaped=world.fleet.clock.now_ms())
    world.fleet.clock.advance(LEASES_S + 0.1)
    # The first one does not wait until the leases are read.
    await world.mailbox.send("b", SIGNAL)
    await until(lambda: world.reads == 2)
    await settled()
    with pytest.raises(NodeUnknown):
        await world.mailbox.send("b", SIGNAL)


async def test_signals_and_messages_are_counted_and_how_long_they_took(world: World) -> None:
    held = world.fleet.traffic.hold("post", "call")
    sending = [asyncio.create_task(world.mailbox.send("b", SIGNAL))]
    await held.arrived()
    sending += [asyncio.create_task(world.mailbox.send("b", SIGNAL)) for _ in range(2)]
    await settled()
    world.fleet.clock.advance(0.25)
    held.release()
    await asyncio.gather(*sending)
    with pytest.raises(NodeUnknown):
        await world.mailbox.send("nobody", SIGNAL)
    counters = world.mailbox.counters
    assert counters.signals == {"sent": 3, "not_sent": 0, "no_node": 1}
    assert counters.messages == {"sent": 2, "not_sent": 0}, "two waited, and went together"
    assert counters.seconds.count == 3
    assert counters.seconds.sum == pytest.approx(0.75)


async def test_a_node_whose_heartbeats_fail_or_whose_clock_is_behind_is_found(world: World) -> None:
    world.fleet.clock.advance(LEASE_MS / 1000 + 1)
    await world.mailbox.send("b", SIGNAL)
    assert len(world.bodies("queue-b")) == 1


@pytest.mark.parametrize("fault", ["refused", "hangs"])
async def test_who_is_known_gets_signals_while_leases_cannot_be_read(
    world: World, fault: str
) -> None:
    await world.mailbox.send("b", SIGNAL)
    for _ in range(3):
        world.fleet.clock.advance(LEASES_S + 0.1)
        if fault == "hangs":
            world.fleet.traffic.hold("all", "call")
        else:
            world.world.fail_next("all", UnknownOutcome())
        async with asyncio.timeout(DEADLINE_S):
            await world.mailbox.send("b", SIGNAL)
        await settled()
    assert len(world.bodies("queue-b")) == 4
    assert world.reads > 1, "and it goes on trying"


async def test_a_queue_that_is_gone_for_good(world: World) -> None:
    world.world.delete_queue("queue-b")
    with pytest.raises(Gone):
        await world.mailbox.send("b", SIGNAL)


async def test_who_leaves_while_leases_are_read_ends_no_other(world: World) -> None:
    held = world.fleet.traffic.hold("all", "call")
    first = asyncio.create_task(world.mailbox.send("b", SIGNAL))
    await held.arrived()
    second = asyncio.create_task(world.mailbox.send("c", SIGNAL))
    await settled()
    first.cancel()
    held.release()
    await second
    assert len(world.bodies("queue-c")) == 1
    assert world.bodies("queue-b") == []


async def test_what_cannot_be_sent_is_told(world: World) -> None:
    world.world.fail_next("post", UnknownOutcome())
    with pytest.raises(UnknownOutcome):
        await world.mailbox.send("b", SIGNAL)


async def test_what_comes_while_a_message_is_under_way_goes_together_in_the_next(
    world: World,
) -> None:
    held = world.fleet.traffic.hold("post", "call")
    signals = [Signal("kind", f"id{number}", "a", "", number) for number in range(100)]
    first = asyncio.create_task(world.mailbox.send("b", signals[0]))
    await held.arrived()
    others = [asyncio.create_task(world.mailbox.send("b", signal)) for signal in signals[1:]]
    await settled()
    held.release()
    await asyncio.gather(first, *others)
    bodies = world.bodies("queue-b")
    assert len(bodies) == 2
    assert [signal for body in bodies for signal in parse(body).signals] == signals
    await until(lambda: not world.mailbox._outboxes)


async def test_of_large_ones_as_many_go_together_as_fit_a_message(world: World) -> None:
    large = [Signal("kind", f"id{n}", "a", "", "x" * (100 * 1024)) for n in range(5)]
    await asyncio.gather(*(world.mailbox.send("b", signal) for signal in large))
    bodies = world.bodies("queue-b")
    assert [len(parse(body).signals) for body in bodies] == [2, 2, 1]
    with pytest.raises(ValueError, match="exceeds an envelope"):
        await world.mailbox.send("b", Signal("kind", "id", "a", "", "x" * (241 * 1024)))


async def test_small_ones_do_not_wait_behind_large_ones_nor_large_ones_for_ever(
    world: World,
) -> None:
    """Anybody may send as many of either as fill all messages."""
    held = world.fleet.traffic.hold("post", "call")
    large = [Signal("kind", f"large{n}", "a", "", "x" * (200 * 1024)) for n in range(4)]
    small = [Signal("kind", f"small{n}", "a", "", "x" * 3_900) for n in range(130)]
    sent = [asyncio.create_task(world.mailbox.send("b", signal)) for signal in large[:1]]
    await held.arrived()
    sent += [asyncio.create_task(world.mailbox.send("b", one)) for one in (*large[1:], *small)]
    await settled()
    held.release()
    await asyncio.gather(*sent)
    found = [[one.id for one in parse(body).signals] for body in world.bodies("queue-b")]
    assert [one[0] for one in found[::2]] == ["large0", "large1", "large2"]
    small_ones = [each for one in found for each in one if each.startswith("small")]
    assert small_ones == [signal.id for signal in small]
    assert all(each.startswith("small") for each in found[1])
    assert len(found[1]) > 50
    assert sum(map(len, found)) == len(large) + len(small)


async def test_what_is_sent_in_order_does_not_overtake_what_is_large(world: World) -> None:
    held = world.fleet.traffic.hold("post", "call")
    sizes = [1, 2, 100 * 1024, 3, 120 * 1024, 100 * 1024, 4]
    signals = [Signal("kind", f"id{n}", "a", "", "x" * size) for n, size in enumerate(sizes)]
    sent = [asyncio.create_task(world.mailbox.send("b", signals[0], in_order=True))]
    await held.arrived()
    sent += [
        asyncio.create_task(world.mailbox.send("b", each, in_order=True)) for each in signals[1:]
    ]
    await settled()
    held.release()
    await asyncio.gather(*sent)
    found = [one for body in world.bodies("queue-b") for one in parse(body).signals]
    assert found == signals


class HangingFor(MemoryQueue):
    """A queue whose messages to one other queue hang until `release`, or the first of them does."""

    def __init__(self, world: MemoryWorld, queue: str, *, once: bool = False) -> None:
        super().__init__(world, 1.0)
        self._queue_name = queue
        self._once = once
        self.hangs, self.release = asyncio.Event(), asyncio.Event()

    async def post(self, queue: str, body: str) -> None:
        if queue == self._queue_name and not (self._once and self.hangs.is_set()):
            self.hangs.set()
            await self.release.wait()
        await super().post(queue, body)


async def test_a_message_to_one_node_that_hangs_holds_up_no_other(world: World) -> None:
    post = HangingFor(world.world, "queue-b")
    mailbox = Mailbox(post, MemoryLeases(world.world), world.fleet.clock)
    first = asyncio.create_task(mailbox.send("b", SIGNAL))
    await post.hangs.wait()
    second = asyncio.create_task(mailbox.send("b", Signal("kind", "late", "a", "", 2)))
    async with asyncio.timeout(DEADLINE_S):
        await mailbox.send("c", SIGNAL)
    second.cancel()
    await asyncio.gather(second, return_exceptions=True)
    post.release.set()
    await first
    await until(lambda: not mailbox._outboxes)
    assert len(world.bodies("queue-b")) == 1, "nobody waits for the other"


async def test_a_message_that_hangs_is_given_up_for_those_behind_it(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mailbox_module, "POST_S", 0.05)
    post = HangingFor(world.world, "queue-b", once=True)
    mailbox = Mailbox(post, MemoryLeases(world.world), world.fleet.clock)
    first = asyncio.create_task(mailbox.send("b", SIGNAL))
    await post.hangs.wait()
    async with asyncio.timeout(DEADLINE_S):
        await mailbox.send("b", Signal("kind", "second", "a", "", 2))
    with pytest.raises(UnknownOutcome, match="not sent within"):
        await first
    [body] = world.bodies("queue-b")
    assert [signal.id for signal in parse(body).signals] == ["second"]


async def test_names_of_nodes_that_are_none_cause_few_reads(world: World) -> None:
    """Anybody can make them up."""
    for number in range(100):
        with pytest.raises(NodeUnknown):
            await world.mailbox.send(f"nobody{number}", SIGNAL)
    assert world.reads == 4
    world.fleet.clock.advance(1.0)
    await world.mailbox.send("b", SIGNAL)
    assert world.reads == 4
    world.lives("d", "queue-c")
    await world.mailbox.send("d", SIGNAL)
    assert world.reads == 5


async def test_a_queue_that_is_gone_causes_few_reads_as_well(world: World) -> None:
    world.world.delete_queue("queue-b")
    for _ in range(100):
        with pytest.raises(Gone):
            await world.mailbox.send("b", SIGNAL)
    assert world.reads == 4


async def test_nodes_are_found_by_their_badge(world: World) -> None:
    for node, badge in (("b", "one"), ("c", "two"), ("d", "two")):
        world.lives(node, f"queue-{node}", badge)
    assert list(await world.mailbox.nodes_with("one")) == ["b"]
    assert sorted(await world.mailbox.nodes_with("two")) == ["c", "d"]
    assert world.reads == 1
    assert list(await world.mailbox.nodes_with("three")) == []
    world.lives("e", "queue-e", "three")
    assert list(await world.mailbox.nodes_with("three")) == ["e"], "it has just started"
    dead = world.world.leases["b"]
    world.world.leases["b"] = replace(dead, reaped=world.fleet.clock.now_ms())
    world.fleet.clock.advance(LEASES_S + 0.1)
    assert list(await world.mailbox.nodes_with("one")) == [], "it was cleaned up after"


async def test_what_is_for_a_badge_goes_to_no_queue_that_was_replaced_long_ago(
    world: World,
) -> None:
    """SQS may take messages for a queue for a minute after it was deleted."""
    world.lives("b", "queue-b", "one")
    await world.mailbox.nodes_with("one")
    world.queue("queue-b2")
    world.lives("b", "queue-b2", "one")
    world.fleet.clock.advance(LEASES_S + 0.1)
    [node] = await world.mailbox.nodes_with("one")
    await world.mailbox.send(node, SIGNAL)
    assert len(world.bodies("queue-b2")) == 1


async def test_nobody_is_named_by_leases_that_could_not_be_read(world: World) -> None:
    """What is for one node only would be taken for sent."""
    world.lives("b", "queue-b", "one")
    world.world.fail_next("all", UnknownOutcome(), times=4)
    for _ in range(10):
        with pytest.raises(PortError):
            await world.mailbox.nodes_with("one")
    assert world.reads == 4, "and then they were asked for too often"
    world.fleet.clock.advance(1.1)
    assert list(await world.mailbox.nodes_with("one")) == ["b"]
    before = world.reads
    for badge in range(10):
        # Anybody can make up some.
        assert list(await world.mailbox.nodes_with(f"badge {badge}")) == []
    assert world.reads - before < 5
    world.fleet.clock.advance(LEASES_S + 0.1)
    for _ in range(10):
        world.world.fail_next("all", UnknownOutcome())
        with pytest.raises(PortError):
            await world.mailbox.nodes_with("one")
