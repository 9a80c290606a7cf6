"""Occupied and vacated: whatever the order in which records are handled, and however often, they
alternate, and the last one is true.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from roomcast.events.handler import keep
from roomcast.events.occupancy import State, look
from roomcast.events.records import Touch

CHANNEL = "room"
KINDS = ("occupied", "vacated")


class Table:
    """The States, with what the stream would tell. `between` runs before each call: others write
    and count meanwhile.
    """

    def __init__(self) -> None:
        self.entries: set[tuple[str, str]] = set()
        self.state: dict[str, Any] | None = None
        self.told: list[str] = []
        self.between: Callable[[], None] = lambda: None
        self._is_nested = False

    def _meanwhile(self) -> None:
        if not self._is_nested:
            self._is_nested = True
            self.between()
            self._is_nested = False

    def count(self, touch: Touch) -> None:
        self._meanwhile()
        if self.state is None:
            self.state = {"occupation": str(len(self.told)), "touched": 0, "partitions": set()}
            self.told.append("occupied")
        self.state["touched"] += 1
        self.state["partitions"].add(touch.partition)

    def read(self, channel: str) -> State | None:
        assert channel == CHANNEL
        self._meanwhile()
        return self._read()

    def _read(self) -> State | None:
        if self.state is None:
            return None
        return State(
            self.state["occupation"], self.state["touched"], tuple(self.state["partitions"])
        )

    def has_entries(self, partition: str) -> bool:
        self._meanwhile()
        return any(where == partition for where, _ in self.entries)

    def remove(self, channel: str, state: State) -> None:
        assert channel == CHANNEL
        self._meanwhile()
        now = self._read()
        if now and (now.occupation, now.touched) == (state.occupation, state.touched):
            self.state = None
            self.told.append("vacated")


class World:
    """Clients that come and go, and two Lambdas, one a partition as streams have shards. Each
    handles its records in order, and may get those again that it had last.
    """

    def __init__(self) -> None:
        self.table = Table()
        self.records: dict[str, deque[Touch]] = {"a": deque(), "b": deque()}
        self.handled: dict[str, list[Touch]] = {"a": [], "b": []}
        self._sequence = 0

    def toggle(self, partition: str, client: str) -> None:
        entry = (partition, client)
        came = entry not in self.table.entries
        (self.table.entries.add if came else self.table.entries.discard)(entry)
        self._sequence += 1
        self.records[partition].append(Touch(CHANNEL, partition, came, KINDS, str(self._sequence)))

    def toggle_and_tell(self, partition: str, client: str) -> None:
        self.toggle(partition, client)
        self.handle(partition, 9)

    def handle(self, partition: str, size: int) -> None:
        waiting = self.records[partition]
        batch = [waiting.popleft() for _ in range(min(size, len(waiting)))]
        if batch:
            self.handled[partition] = batch
            self.deliver(batch)

    def repeat(self, partition: str) -> None:
        """Also what came in order was answered, and comes again all the same."""
        if batch := self.handled[partition]:
            self.deliver(batch)

    def deliver(self, batch: list[Touch]) -> None:
        for _ in range(100):
            if not keep(self.table, batch).failed:
                return
        raise AssertionError("it never ends")


PARTITIONS = st.sampled_from("ab")
STEPS = st.one_of(
    st.tuples(st.sampled_from(["toggle", "toggle_and_tell"]), PARTITIONS, st.sampled_from("xy")),
    st.tuples(st.just("handle"), PARTITIONS, st.integers(1, 4)),
    st.tuples(st.just("repeat"), PARTITIONS),
)


@given(st.lists(STEPS, max_size=40), st.lists(st.lists(STEPS, max_size=4), max_size=40))
def test_they_alternate_and_the_last_is_true(
    steps: list[tuple[Any, ...]], meanwhile: list[list[tuple[Any, ...]]]
) -> None:
    world, others = World(), iter(meanwhile)

    def between() -> None:
        carry_out(next(others, []))

    def carry_out(some: list[tuple[Any, ...]]) -> None:
        for name, *arguments in some:
            getattr(world, name)(*arguments)

    world.table.between = between
    for step in steps:
        carry_out([step])
    for partition in "ab":
        while world.records[partition]:
            world.handle(partition, 3)
    # What others did within the last handling may have left records.
    world.table.between = lambda: None
    for partition in "ab":
        while world.records[partition]:
            world.handle(partition, 3)
    told = world.table.told
    assert told == [KINDS[number % 2] for number in range(len(told))]
    assert (bool(told) and told[-1] == "occupied") == bool(world.table.entries)


def test_who_was_counted_meanwhile_keeps_the_channel_occupied() -> None:
    table = Table()
    touch = Touch(CHANNEL, "a", True, KINDS, "1")
    table.count(touch)

    def others_come() -> None:
        assert table.state is not None
        table.state["touched"] += 1

    table.between = others_come
    look(table, CHANNEL)
    assert table.told == ["occupied"]


def test_without_time_nothing_is_begun() -> None:
    table = Table()
    touch = Touch(CHANNEL, "a", True, KINDS, "1")
    outcome = keep(table, [touch], lambda: 1.0)
    assert (outcome.failed, outcome.reason) == (("1",), "no time left")
    assert not table.told
