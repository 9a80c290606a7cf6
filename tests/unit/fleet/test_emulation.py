"""service/roomcast/fleet/emulation.py: commands reach their session, on whichever node it is."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
from structlog.testing import capture_logs

from roomcast.delivery.envelope import Signal
from roomcast.fleet import emulation as emulation_module
from roomcast.fleet.emulation import (
    HEARD_A_TURN,
    NODES_MAX,
    SMALL_BYTES,
    WAITING_MAX,
    Emulation,
)
from roomcast.fleet.emulation_signals import (
    FRAMES_BYTES_MAX,
    SESSION_CHARS_MAX,
    Outcome,
    Posted,
    posted_signal,
)
from roomcast.fleet.lease_record import NODE_CHARS_MAX
from roomcast.ports import UnknownOutcome
from tests.unit.fleet.pairs import Pair, running
from tests.unit.worlds import settled, until


class Stream:
    """A session that keeps what it takes. `room`: for how many frames more it has room."""

    def __init__(self) -> None:
        self.frames: list[bytes] = []
        self.room = 1000

    def take(self, frame: bytes) -> bool:
        if self.room:
            self.room -= 1
            self.frames.append(frame)
            return True
        return False


class World(Pair):
    """Node a has the session `s`."""

    def __init__(self) -> None:
        super().__init__()
        self.stream = Stream()
        self.of("a").sessions.enter("s", self.stream)

    def of(self, node: str) -> Emulation:
        return self.nodes[node].assembly.node.emulation

    @property
    def posts(self) -> int:
        return self.fleet.traffic.calls["post"]


@pytest.fixture
async def world() -> AsyncIterator[World]:
    async with running(World()) as world:
        yield world
        for node in world.nodes.values():
            await node.assembly.node.emulation.finish()
            assert not node.assembly.node.emulation._lanes
            assert not len(node.assembly.node.emulation._asking)
            assert not node.assembly.node.emulation._waiting_bytes


async def test_on_its_own_node_commands_are_taken_at_once(world: World) -> None:
    assert await world.of("a").take("a", "s", b"1") is Outcome.TAKEN
    assert world.stream.frames == [b"1"]
    assert world.posts == 0


async def test_commands_reach_another_node_and_it_is_known_that_they_did(world: World) -> None:
    assert await world.of("b").take("a", "s", b"\xff\x00") is Outcome.TAKEN
    assert world.stream.frames == [b"\xff\x00"]
    assert world.posts == 2


async def test_those_of_one_session_keep_their_order_and_share_messages(world: World) -> None:
    frames = [b"%d" % number for number in range(WAITING_MAX)]
    outcomes = await asyncio.gather(*(world.of("b").take("a", "s", frame) for frame in frames))
    assert set(outcomes) == {Outcome.TAKEN}
    assert world.stream.frames == frames
    assert world.posts == 2, "all of them in one message, and its answer"


async def test_of_large_ones_as_many_go_together_as_fit(world: World) -> None:
    large = b"x" * (FRAMES_BYTES_MAX // 2)
    await asyncio.gather(*(world.of("b").take("a", "s", large) for _ in range(5)))
    assert world.stream.frames == [large] * 5
    assert world.posts == 2 * 3


@pytest.mark.parametrize("node", ["a", "b"])
async def test_a_session_that_is_gone(world: World, node: str) -> None:
    world.of("a").sessions.leave("s")
    assert await world.of(node).take("a", "s", b"1") is Outcome.UNKNOWN


async def test_a_node_that_is_gone(world: World) -> None:
    assert await world.of("b").take("nobody", "s", b"1") is Outcome.UNKNOWN


async def test_what_follows_a_refusal_is_not_carried_out_without_it(world: World) -> None:
    world.stream.room = 0
    held = world.fleet.traffic.hold("post", "call")
    first = asyncio.create_task(world.of("b").take("a", "s", b"1"))
    await held.arrived()
    others = [asyncio.create_task(world.of("b").take("a", "s", b"%d" % n)) for n in (2, 3)]
    await settled()
    held.release()
    assert await first is Outcome.BUSY
    assert await asyncio.gather(*others) == [Outcome.BUSY] * 2
    assert world.stream.frames == []


async def test_who_was_taken_is_not_told_otherwise(world: World) -> None:
    """It would say it again. What goes together goes in one signal, and has one answer."""
    world.stream.room = 3
    held = world.fleet.traffic.hold("post", "call")
    first = asyncio.create_task(world.of("b").take("a", "s", b"1"))
    await held.arrived()
    others = [asyncio.create_task(world.of("b").take("a", "s", b"%d" % n)) for n in (2, 3, 4, 5)]
    await settled()
    held.release()
    assert await asyncio.gather(first, *others) == [Outcome.TAKEN] * 3 + [Outcome.BUSY] * 2
    assert world.stream.frames == [b"1", b"2", b"3"]


async def test_no_answer_in_time(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(world.of("b")._asking, "_within_s", 0.01)
    world.fleet.traffic.hold("post", "call")
    assert await world.of("b").take("a", "s", b"1") is Outcome.LOST
    assert world.stream.frames == []


async def test_what_became_of_commands_is_counted_on_both_nodes(world: World) -> None:
    here, there = world.of("b").counters, world.of("a").counters
    assert await world.of("a").take("a", "s", b"0") is Outcome.TAKEN
    assert await world.of("b").take("a", "s", b"1") is Outcome.TAKEN
    world.stream.room = 0
    assert await world.of("b").take("a", "s", b"2") is Outcome.BUSY
    world.of("a").heard(posted_signal("b", "again", Posted("s", (b"1",), 1)))
    world.of("a").sessions.leave("s")
    assert await world.of("b").take("a", "s", b"3") is Outcome.UNKNOWN
    world.fleet.world.fail_next("post", UnknownOutcome())
    assert await world.of("b").take("a", "s", b"4") is Outcome.LOST
    world.of("a").heard(Signal("commands", "id", "b", "", None))
    outcomes = {("mailbox", outcome): 1 for outcome in ("taken", "busy", "unknown", "lost")}
    assert {key: number for key, number in here.requests.items() if number} == outcomes
    assert there.requests["here", "taken"] == 1
    assert here.answer_s.count == 3, "who does not answer has no latency"
    assert there.for_others == {
        "taken": 1,
        "busy": 1,
        "repeated": 1,
        "unknown": 1,
        "malformed": 1,
    }
    mailbox = world.of("b").mailbox_counters
    assert mailbox.signals == {"sent": 3, "not_sent": 1, "no_node": 0}
    assert mailbox.messages == {"sent": 3, "not_sent": 1}
    assert mailbox.seconds.count == 3


async def test_what_cannot_be_sent_is_lost(world: World) -> None:
    world.fleet.world.fail_next("post", UnknownOutcome())
    assert await world.of("b").take("a", "s", b"1") is Outcome.LOST


async def test_who_leaves_while_others_wait_takes_nothing_with_it(world: World) -> None:
    held = world.fleet.traffic.hold("post", "call")
    first = asyncio.create_task(world.of("b").take("a", "s", b"1"))
    await held.arrived()
    second = asyncio.create_task(world.of("b").take("a", "s", b"2"))
    await settled()
    first.cancel()
    await asyncio.gather(first, return_exceptions=True)
    held.release()
    assert await second is Outcome.TAKEN
    assert world.stream.frames == [b"1", b"2"], "it was under way"


async def test_what_waits_is_bounded(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(emulation_module, "LANES_MAX", 1)
    held = world.fleet.traffic.hold("post", "call")
    waiting = [asyncio.create_task(world.of("b").take("a", "s", b"1"))]
    await held.arrived()
    waiting += [asyncio.create_task(world.of("b").take("a", "s", b"2")) for _ in range(WAITING_MAX)]
    await settled()
    assert await world.of("b").take("a", "s", b"3") is Outcome.BUSY
    assert await world.of("b").take("a", "another", b"4") is Outcome.BUSY
    held.release()
    await asyncio.gather(*waiting)
    assert len(world.stream.frames) == 1 + WAITING_MAX


async def test_a_message_that_comes_twice_is_taken_once(world: World) -> None:
    bodies: list[str] = []
    deliver = world.fleet.world.deliver

    def twice(name: str, body: str) -> None:
        bodies.append(body)
        deliver(name, body)
        deliver(name, body)

    world.fleet.world.deliver = twice  # type: ignore[method-assign]
    assert await world.of("b").take("a", "s", b"1") is Outcome.TAKEN
    assert await world.of("b").take("a", "s", b"2") is Outcome.TAKEN
    assert world.stream.frames == [b"1", b"2"]
    assert len(bodies) == 4


async def test_a_message_that_comes_again_when_its_id_is_forgotten_is_taken_once(
    world: World,
) -> None:
    """A queue whose messages cannot be deleted brings them again and again, for minutes."""
    first, second = (
        posted_signal("b", f"id{number}", Posted("s", (b"%d" % number,), number))
        for number in (1, 2)
    )
    for signal in (first, first, second, first, second):
        world.of("a").heard(signal)
    assert world.stream.frames == [b"1", b"2"]
    world.of("a").heard(posted_signal("c", "id", Posted("s", (b"3",), 1)))
    assert world.stream.frames == [b"1", b"2", b"3"], "each node has its own numbers"


async def test_what_was_given_up_is_not_carried_out_behind_what_followed(world: World) -> None:
    early, late = (
        posted_signal("b", f"id{number}", Posted("s", (b"%d" % number,), number))
        for number in (1, 2)
    )
    world.of("a").heard(late)
    world.of("a").heard(early)
    assert world.stream.frames == [b"2"]


async def test_the_nodes_that_a_session_remembers_are_bounded(world: World) -> None:
    sessions = world.of("a").sessions
    for number in range(NODES_MAX + 10):
        world.of("a").heard(posted_signal(f"n{number}", "id", Posted("s", (b"1",), 1)))
    await settled()
    assert len(sessions._numbers["s"]) == NODES_MAX
    sessions.leave("s")
    assert not sessions._numbers
    await world.of("a").finish()


async def test_forged_messages_disturb_nothing(world: World) -> None:
    for kind, body in (
        ("commands", '{"session":"guessed","frames":["MQ=="],"number":1}'),
        ("commands", '{"session":"s"}'),
        ("commands", "[]"),
        ("commands_taken", '{"commands":"unknown","outcome":"taken"}'),
        ("commands_taken", "7"),
    ):
        world.fleet.world.send(
            f'{{"v":1,"signals":[{{"kind":"{kind}","id":"{body[:20]!r}","node":"forger",'
            f'"channel":"","body":{body}}}]}}'.replace("'", "")
        )
    await until(lambda: world.nodes["a"].assembly.poller.counters.messages >= 5)
    assert world.stream.frames == []
    assert await world.of("b").take("a", "s", b"1") is Outcome.TAKEN


async def test_what_is_too_long_to_be_a_session_or_a_node_goes_no_further(world: World) -> None:
    """Its message would not be understood, or fit none."""
    emulation = world.of("b")
    for size in (SESSION_CHARS_MAX + 1, 400_000):
        assert await emulation.take("a", "s" * size, b"x") is Outcome.UNKNOWN
    assert await emulation.take("a" * (NODE_CHARS_MAX + 1), "s", b"x") is Outcome.UNKNOWN
    assert world.posts == 0
    assert not emulation._lanes


async def test_the_bytes_that_wait_for_all_other_nodes_are_bounded(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(emulation_module, "WAITING_BYTES_MAX", 10)
    held = world.fleet.traffic.hold("post", "call")
    emulation = world.of("b")
    waiting = [asyncio.create_task(emulation.take("a", "s", b"12345"))]
    await held.arrived()
    waiting.append(asyncio.create_task(emulation.take("a", "guessed", b"12345")))
    await settled()
    assert await emulation.take("a", "guessed", b"1") is Outcome.BUSY
    # The first of a session has room nevertheless, if it is small.
    another = asyncio.create_task(emulation.take("a", "another", b"1"))
    await settled()
    assert not another.done()
    another.cancel()
    waiting[1].cancel()
    await asyncio.gather(waiting[1], return_exceptions=True)
    waiting.append(asyncio.create_task(emulation.take("a", "s", b"1")))
    await settled()
    held.release()
    assert set(await asyncio.gather(waiting[0], waiting[2])) == {Outcome.TAKEN}


async def test_large_ones_leave_room_for_small_ones(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(emulation_module, "LARGE_BYTES_MAX", 10 * SMALL_BYTES)
    held = world.fleet.traffic.hold("post", "call")
    emulation, large = world.of("b"), b"x" * (SMALL_BYTES + 1)
    waiting = [asyncio.create_task(emulation.take("a", f"guessed{n}", large)) for n in range(9)]
    await held.arrived()
    assert await emulation.take("a", "guessed", large) is Outcome.BUSY
    waiting.append(asyncio.create_task(emulation.take("a", "s", b"x" * SMALL_BYTES)))
    await settled()
    held.release()
    *_, outcome = await asyncio.gather(*waiting)
    assert outcome is Outcome.TAKEN


async def test_a_flood_that_cannot_be_passed_on_is_one_line(world: World) -> None:
    world.fleet.world.fail_next("post", UnknownOutcome(), times=50)
    with capture_logs() as logs:
        for number in range(50):
            assert await world.of("b").take("a", f"s{number}", b"1") is Outcome.LOST
            world.of("a").heard(Signal("commands", f"{number}", "forger", "", {}))
    assert [line["event"] for line in logs] == ["commands_not_passed_on", "commands_malformed"]


async def test_answers_take_no_place_of_other_work(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Presence entries of clients that left would wait behind a flood for another node."""
    monkeypatch.setattr(world.of("a")._asking, "_answers_max", 100)
    held = world.fleet.traffic.hold("post", "call")
    for number in range(200):
        world.of("a").heard(posted_signal("b", f"x{number}", Posted("guessed", (b"1",), 1)))
    await held.arrived()
    done = asyncio.Event()

    async def other() -> None:
        done.set()

    world.nodes["a"].assembly.background.start(other())
    await settled()
    assert done.is_set()
    assert len(world.of("a")._asking._answering) == 100
    held.release()


async def test_of_very_many_commands_few_are_taken_in_a_turn_and_in_their_order(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One receive may bring thousands, for sessions that somebody made up."""
    monkeypatch.setattr(emulation_module, "HEARD_WAITING_MAX", 3 * HEARD_A_TURN)
    emulation, taken = world.of("a"), world.of("a").counters.for_others
    held = world.fleet.traffic.hold("post", "call")
    for number in range(5 * HEARD_A_TURN):
        posted = Posted("s" if number % 2 else "guessed", (b"%d" % number,), number + 1)
        emulation.heard(posted_signal("b", f"x{number}", posted))
    in_turns = []
    for _ in range(5):
        in_turns.append(sum(taken.values()))
        await asyncio.sleep(0)
    assert in_turns == [HEARD_A_TURN * count for count in (1, 2, 3, 4, 4)]
    assert world.stream.frames == [b"%d" % number for number in range(1, 4 * HEARD_A_TURN, 2)]
    held.release()
