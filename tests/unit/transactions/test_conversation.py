"""Publishing in an application's transactions, while nodes append to the same channels: all or
nothing, once, and without a hole, whatever fails.
"""

from __future__ import annotations

import asyncio
import gc
import json
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from random import Random
from typing import Any, Final, TypeVar

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.contention import VirtualClock
from roomcast.log.appender import Appender
from roomcast.log.channel_log import ChannelLog
from roomcast.log.item import OFFSET_MAX, Head, LogItem
from roomcast.log.rules import MIN_RETENTION_MS
from roomcast.testing.memory import MemoryChannelTable, MemoryWorld, Stage
from roomcast.transactions.conversation import (
    Call,
    Conversation,
    NothingWritten,
    OutcomeUnknown,
    Pause,
    Sources,
    TailExpired,
    Wanted,
)
from roomcast.transactions.message import Message, pending_of
from roomcast.wire.publication import Publication
from roomcast.wire.versions import Version
from tests.simulation import clockwork
from tests.simulation.mishaps import Mishaps
from tests.unit.transactions.tables import CHANNELS, ClientError, ReadTimeoutError, Tables, order

TTL_MS: Final = 300_000
WITHIN_S: Final = 10.0
T = TypeVar("T")


def simulated(main: Coroutine[Any, Any, T]) -> T:
    mishaps = Mishaps()
    with mishaps.collected():
        result = clockwork.run(main, mishaps)
    assert not mishaps.found, mishaps.found[:3]
    return result


class Application:
    """Writes orders, and publishes each in the same transaction."""

    def __init__(self, tables: Tables, random: Random, clock: VirtualClock | None = None) -> None:
        self.tables = tables
        self._clock = clock or VirtualClock()
        self._sources = Sources(
            self._clock.now_ms,
            self._clock.monotonic_s,
            random.random,
            lambda: f"{random.getrandbits(64):016x}",
        )

    async def write(
        self, name: str, channels: Sequence[str], *, orders: Sequence[str] = ()
    ) -> Mapping[str, LogItem]:
        """One transaction, whose message is `name`; `orders`: other names than that."""
        now_ms = self._clock.now_ms()
        wanted = Wanted(
            CHANNELS,
            "0",
            TTL_MS,
            WITHIN_S,
            "application",
            [order(each) for each in orders or (name,)],
            {channel: pending_of(channel, [Message(name)], now_ms) for channel in channels},
        )
        conversation = Conversation(wanted, self._sources)
        while (step := conversation.next()) is not None:
            if isinstance(step, Pause):
                await asyncio.sleep(step.seconds)
                continue
            try:
                if step.send_until_ms is not None and self._clock.now_ms() >= step.send_until_ms:
                    raise TailExpired
                conversation.answer = await self.tables.carry_out(step)
            except Exception as error:  # noqa: BLE001  # the conversation decides
                conversation.failure = error
        return conversation.items


def contents(world: MemoryWorld, channel: str) -> list[str]:
    """What was published in `channel`, in the order of its offsets. Without a hole: I1."""
    top, found = 0, []
    for item in world.stream:
        if item.channel == channel:
            assert item.offset == top + 1, "I1"
            top = item.last
            found += [stored["data"] for stored in json.loads(item.pubs)]
    return found


# ---- whatever fails


@dataclass(frozen=True, slots=True)
class Load:
    """Applications, each with so many transactions; nodes, each with so many publications."""

    applications: int
    transactions: int
    nodes: int
    publications: int
    faults: float
    # The part of orders that somebody has written before.
    refused: float


LOADS: Final = st.builds(
    Load,
    applications=st.integers(1, 3),
    transactions=st.integers(1, 10),
    nodes=st.integers(0, 2),
    publications=st.integers(0, 20),
    faults=st.sampled_from([0.0, 0.1, 0.5]),
    refused=st.sampled_from([0.0, 0.3]),
)


@pytest.fixture(scope="module", autouse=True)
def few_objects() -> Iterator[None]:
    """Each example ends with a collection of all garbage, which would go through what thousands of
    other tests have left.
    """
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@settings(max_examples=30)
@given(load=LOADS, seed=st.integers(0, 2**32))
def test_a_transaction_is_in_as_a_whole_or_not_at_all(load: Load, seed: int) -> None:
    simulated(_all_or_nothing(load, Random(seed)))


async def _all_or_nothing(load: Load, random: Random) -> None:
    world = MemoryWorld()

    async def pause(_call: str, stage: Stage) -> None:
        if stage != "call":
            await asyncio.sleep(random.uniform(0.001, 0.004))

    world.pause = pause
    tables = Tables(world, random, load.faults)
    outcomes: dict[str, str] = {}
    appended: list[str] = []

    async def application(number: int) -> None:
        writer = Application(tables, random)
        for count in range(load.transactions):
            name = f"application-{number}-{count}"
            if random.random() < load.refused:
                tables.orders.add(name)
                outcomes[name] = "taken"
            channels = random.choice((["a"], ["b"], ["a", "b"]))
            try:
                items = await writer.write(name, channels)
                outcomes[name] = "in"
                assert items.keys() == set(channels)
            except OutcomeUnknown:
                outcomes.setdefault(name, "unknown")
            except (NothingWritten, ClientError):
                outcomes.setdefault(name, "out")

    async def node(number: int) -> None:
        clock = VirtualClock()
        log = ChannelLog(
            MemoryChannelTable(world, clock),
            clock,
            lambda: f"{random.getrandbits(64):016x}",
            random.random,
            node=f"node-{number}",
            generation="0",
        )
        appender = Appender(log, clock, lambda _: None, generation="0", random=random.random)
        for count in range(load.publications):
            channel, content = random.choice("ab"), f"node-{number}-{count}"
            await appender.submit(channel, Publication(content), TTL_MS)
            appended.append(content)
        await appender.drain()

    await asyncio.gather(
        *(application(number) for number in range(load.applications)),
        *(node(number) for number in range(load.nodes)),
    )
    await tables.settle()
    published = contents(world, "a") + contents(world, "b")
    for name, outcome in outcomes.items():
        of_it = {channel: contents(world, channel).count(name) for channel in "ab"}
        assert max(of_it.values()) <= 1, "I2: never twice"
        if outcome == "taken":
            assert not any(of_it.values()), "a transaction that is canceled publishes nothing"
        else:
            assert any(of_it.values()) == (name in tables.orders), "all or nothing"
            assert outcome == "unknown" or any(of_it.values()) == (outcome == "in")
    assert all(published.count(content) == 1 for content in appended), "I2"
    if not load.faults:
        assert "unknown" not in outcomes.values()
        assert "out" not in outcomes.values()


# ---- single cases


def alone(case: Callable[[Application], Coroutine[Any, Any, T]]) -> T:
    """What one application does that nobody disturbs."""
    random = Random(1)

    async def main() -> T:
        return await case(Application(Tables(MemoryWorld(), random), random))

    return simulated(main())


def test_a_new_channel_begins_and_goes_on() -> None:
    async def case(application: Application) -> None:
        first = (await application.write("one", ["a"]))["a"]
        second = (await application.write("two", ["a"]))["a"]
        assert (first.offset, second.offset) == (1, 2)
        assert first.epoch == second.epoch
        assert contents(application.tables.world, "a") == ["one", "two"]
        assert application.tables.orders == {"one", "two"}

    alone(case)


def test_an_answer_that_is_lost_is_found_again() -> None:
    async def case(application: Application) -> None:
        application.tables.lose_next = True
        assert (await application.write("one", ["a"]))["a"].offset == 1
        assert contents(application.tables.world, "a") == ["one"]

    alone(case)


def test_a_lost_answer_of_which_the_token_is_forgotten_is_known_by_its_item() -> None:
    async def case(application: Application) -> None:
        tables = application.tables
        tables.lose_next = True
        tables._done = ForgetfulSet()
        assert (await application.write("one", ["a"]))["a"].offset == 1
        assert contents(tables.world, "a") == ["one"]

    alone(case)


class ForgetfulSet(set[str]):
    """Ten minutes after each transaction."""

    def add(self, _: str) -> None:
        pass


def test_an_own_condition_that_does_not_hold_is_told_by_the_clients_error() -> None:
    async def case(application: Application) -> None:
        application.tables.orders.add("one")
        with pytest.raises(ClientError) as caught:
            await application.write("one", ["a"])
        assert caught.value.response["CancellationReasons"][0]["Code"] == "ConditionalCheckFailed"
        assert contents(application.tables.world, "a") == []

    alone(case)


@pytest.mark.parametrize(
    "error",
    [ClientError("AccessDeniedException"), ClientError("ValidationException"), KeyError("name")],
)
def test_what_is_refused_is_told_at_once(error: Exception) -> None:
    async def case(application: Application) -> None:
        application.tables.next_errors = [error]
        with pytest.raises(type(error)):
            await application.write("one", ["a"])

    alone(case)


@pytest.mark.parametrize("later", [ClientError("AccessDeniedException"), ReadTimeoutError()])
def test_what_follows_a_lost_answer_proves_nothing(later: Exception) -> None:
    async def case(application: Application) -> None:
        application.tables.next_errors = [ReadTimeoutError(), *[later] * 1000]
        with pytest.raises(OutcomeUnknown):
            await application.write("one", ["a"])

    alone(case)


def test_what_the_client_has_sent_twice_may_be_in() -> None:
    async def case(application: Application) -> None:
        refused = ClientError("ValidationException", retries=1)
        application.tables.next_errors = [refused]
        with pytest.raises(OutcomeUnknown):
            await application.write("one", ["a"])

    alone(case)


def test_who_is_always_throttled_gives_up_and_wrote_nothing() -> None:
    async def case(application: Application) -> None:
        application.tables.next_errors = [ClientError("ThrottlingException")] * 1000
        begun_s = asyncio.get_running_loop().time()
        with pytest.raises(NothingWritten):
            await application.write("one", ["a"])
        assert asyncio.get_running_loop().time() - begun_s < WITHIN_S + 2
        assert application.tables.orders == set()

    alone(case)


def test_a_condition_that_fails_after_a_lost_answer_proves_nothing() -> None:
    async def case(application: Application) -> None:
        tables = application.tables
        tables.next_errors = [ReadTimeoutError()]
        tables.orders.add("one")
        with pytest.raises(OutcomeUnknown):
            await application.write("one", ["a"])

    alone(case)


def test_a_read_that_fails_after_a_lost_answer_proves_nothing() -> None:
    """Who holds the offset was not told, and cannot be read."""

    async def case(application: Application) -> None:
        tables = application.tables
        tables.lose_next, tables._done = True, ForgetfulSet()
        reason, carry_out = tables._reason, tables.carry_out

        async def without_reads(call: Call) -> Mapping[str, Any]:
            if call.operation == "get_item" and application.tables.orders:
                raise ClientError("AccessDeniedException")
            return await carry_out(call)

        tables._reason = lambda put: {"Code": reason(put)["Code"]}  # type: ignore[method-assign]
        tables.carry_out = without_reads  # type: ignore[method-assign]
        with pytest.raises(OutcomeUnknown):
            await application.write("one", ["a"])
        assert contents(tables.world, "a") == ["one"]

    alone(case)


def test_a_tail_that_is_too_old_is_not_written_behind() -> None:
    """The process was suspended after the tail was read."""

    async def case(application: Application) -> None:
        await application.write("one", ["a"])
        suspend(application, at=2, seconds=MIN_RETENTION_MS / 1000)
        with pytest.raises(NothingWritten):
            await application.write("two", ["a", "b"])
        assert application.tables.orders == {"one"}
        # Another try finds that the item which told the tail may be gone, and begins an epoch.
        item = (await application.write("two", ["a", "b"]))["a"]
        assert item.offset == 2
        assert item.epoch != application.tables.world.stream[0].epoch

    alone(case)


def test_a_new_epoch_is_believed_from_before_the_read_on() -> None:
    """The process was suspended after it."""

    async def case(application: Application) -> None:
        read_at = application._clock.now_ms()
        suspend(application, at=1, seconds=3600)
        await application.write("one", ["a"])
        head = application.tables.world.items["a"][0]
        assert isinstance(head, Head)
        assert head.tail_valid_until == read_at + MIN_RETENTION_MS

    alone(case)


def suspend(application: Application, at: int, seconds: float) -> None:
    """Its query number `at` from now on is answered so much later."""
    carry_out, queries = application.tables.carry_out, 0

    async def slow(call: Call) -> Mapping[str, Any]:
        nonlocal queries
        answer = await carry_out(call)
        queries += call.operation == "query"
        if call.operation == "query" and queries == at:
            await asyncio.sleep(seconds)
        return answer

    application.tables.carry_out = slow  # type: ignore[method-assign]


def test_a_log_without_offsets_is_full() -> None:
    async def case(application: Application) -> None:
        await application.write("one", ["a"])
        world = application.tables.world
        [last] = world.stream
        world.items["a"][OFFSET_MAX] = replace(last, offset=OFFSET_MAX, last=OFFSET_MAX)
        with pytest.raises(NothingWritten, match="no offsets left"):
            await application.write("two", ["a"])

    alone(case)


def test_the_newest_version_of_the_channel_is_carried_on() -> None:
    """A stale publication would get in behind an item without it."""

    async def case(application: Application) -> None:
        await application.write("one", ["a"])
        world, newest = application.tables.world, Version(7, "e")
        [last] = world.stream
        world.items["a"][1] = replace(last, newest_version=newest)
        assert (await application.write("two", ["a"]))["a"].newest_version == newest

    alone(case)


def test_an_epoch_of_another_generation_ends() -> None:
    async def case(application: Application) -> None:
        world = application.tables.world
        now_ms = application._clock.now_ms()
        world.items["a"] = {0: Head("a", "9.x", 7, now_ms + MIN_RETENTION_MS, 0, "v", 2**33)}
        item = (await application.write("one", ["a"]))["a"]
        assert item.offset == 8
        assert item.epoch.startswith("0.")

    alone(case)
