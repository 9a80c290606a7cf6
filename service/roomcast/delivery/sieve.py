"""Sends a channel's publications to subscribers with filters: to each what passes its own.

Each filter is tested once a publication, however many subscribers have it. What passes the same
goes out in the same frames. Hundreds of different filters take their time. So the tests of a turn
of the event loop have a bound, in all channels. What is left waits, in order, with the joins and
leaves that came behind it; nobody else's publications wait for it.

Who subscribes while publications wait was told a position behind them, and does not get them.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from itertools import chain
from typing import Final, Protocol

from roomcast.concurrency import Budget
from roomcast.delivery.batches import Member
from roomcast.delivery.forms import Form, Payload, whole_lines
from roomcast.delivery.ports import Framer, Sink
from roomcast.delivery.tags_filters import TagsFilter
from roomcast.wire.encoding import DATA_HEAD, Sent, publication_pushes, tags_of, told_push

__all__ = [
    "CHANNEL_NODES_MAX",
    "TESTS_A_TURN",
    "WAITING_BYTES_MAX",
    "Sieve",
    "Sieves",
    "Taker",
]

# Nodes of a channel's different filters together, on one node of roomcast: some 0.5 ms for a
# publication. Beyond it, nobody joins with a filter that is not there.
CHANNEL_NODES_MAX: Final = 5_000
# Tests of a publication by a node of a filter in one turn of the event loop, in all channels: 2 ms
# if they compare texts, 6 ms if numbers. And those after which a turn may end.
TESTS_A_TURN: Final = 20_000
_TESTS_A_STEP: Final = 2_000
# A write to a socket counts as so many.
_TESTS_A_WRITE: Final = 15
# Bytes around a publication's data, its tags among them, that count as one more test by each node:
# a text may be searched in them.
_TESTED_BYTES: Final = 512
# Bytes of publications that wait in all channels. Beyond it, the oldest are tested at once, however
# long the turn is then: whoever publishes so much has to wait, as the whole node does.
WAITING_BYTES_MAX: Final = 16 * 1024 * 1024
# What a publication takes in memory beside its text.
_OVERHEAD_BYTES: Final = 200

_NOBODY: Final[Mapping[Member, int]] = {}

# Sends these pushes to all sinks, in as few frames as may be.
Send = Callable[[Collection[Sink], Framer, Sequence[bytes]], None]


class Taker(Protocol):
    """A subscriber whose form has a filter. It is compared by identity."""

    @property
    def sink(self) -> Sink: ...

    @property
    def form(self) -> Form: ...

    @property
    def join_leave(self) -> bool: ...

    def lost(self, channel: str) -> None: ...


class _Told:
    """Joins and leaves that go out behind what came before them."""

    __slots__ = ("serial", "told", "weight")

    def __init__(self, serial: int, told: Collection[bytes]) -> None:
        self.serial, self.told = serial, told
        self.weight = sum(map(len, told))


class _Delivery:
    """Publications that are being tested. `late`: as in a Batch.

    `passed`: for each filter that is done, the publications that pass it, as bits.
    """

    __slots__ = (
        "_at",
        "_found",
        "_left",
        "_step",
        "_tags",
        "late",
        "passed",
        "published",
        "serial",
        "weight",
    )

    def __init__(self, serial: int, published: Sequence[Sent], late: Mapping[Member, int]) -> None:
        self.serial, self.published, self.late = serial, published, late
        self.weight = sum(sent.size for sent in published) + len(published) * _OVERHEAD_BYTES
        self.passed: dict[TagsFilter, int] = {}
        self._left: list[TagsFilter] | None = None
        self._at, self._found = 0, 0

    def is_done(self, filters: Iterable[TagsFilter]) -> bool:
        """Whether all is tested. `filters`: those to test by, when this is asked first."""
        if self._left is None:
            self._left = list(filters)
            self._tags = [tags_of(sent) for sent in self.published]
            around = max(len(each.line) - each.data_bytes for each in self.published)
            self._step = 1 + (around - len(DATA_HEAD)) // _TESTED_BYTES
        return not self._left

    def step(self) -> int:
        """Test some of the publications by one filter. Returns how many tests that was."""
        assert self._left, "it is not done"
        by, begin = self._left[-1], self._at
        cost = (1 + by.nodes) * self._step
        end = min(len(self._tags), begin + max(1, _TESTS_A_STEP // cost))
        passes, found = by.passes, self._found
        for index in range(begin, end):
            if passes(self._tags[index]):
                found |= 1 << index
        self._at, self._found = end, found
        if end == len(self._tags):
            self.passed[by] = found
            self._left.pop()
            self._at = self._found = 0
        return cost * (end - begin)


class Sieve:
    """The subscribers with filters of one channel, whose `number` stands for its name.

    `newest_only`: of what passes a filter in one delivery, only the newest goes out.
    """

    __slots__ = (
        "_came",
        "_serial",
        "_sieves",
        "_waiting",
        "channel",
        "filters",
        "groups",
        "newest_only",
        "nodes",
        "number",
    )

    def __init__(self, sieves: Sieves, channel: str, number: int, *, newest_only: bool) -> None:
        self.channel, self.number, self.newest_only = channel, number, newest_only
        self._sieves = sieves
        self.groups: dict[tuple[Framer, Form], dict[Taker, Sink]] = {}
        # How many groups have each filter, and the nodes of all filters.
        self.filters: dict[TagsFilter, int] = {}
        self.nodes = 0
        self._waiting: deque[_Delivery | _Told] = deque()
        self._serial = 0
        # Who came while something waited: the serial number of the last that is not for it.
        self._came: dict[Taker, int] = {}

    def __len__(self) -> int:
        """The number of these subscribers."""
        return sum(map(len, self.groups.values()))

    def takers(self) -> Iterable[Taker]:
        return chain.from_iterable(self.groups.values())

    @property
    def is_waiting(self) -> bool:
        """Whether something is yet to be sent."""
        return bool(self._waiting)

    def add(self, taker: Taker) -> bool:
        """False = it was there."""
        kind = (taker.sink.framer, taker.form)
        if (group := self.groups.get(kind)) is None:
            group = self.groups[kind] = {}
            by = _filter_of(taker.form)
            if by not in self.filters:
                self.nodes += by.nodes
            self.filters[by] = self.filters.get(by, 0) + 1
        if taker in group:
            return False
        group[taker] = taker.sink
        if self._waiting:
            self._came[taker] = self._serial
        return True

    def remove(self, taker: Taker) -> bool:
        """False = it was not there. It does not get what waits."""
        kind = (taker.sink.framer, taker.form)
        group = self.groups.get(kind)
        if group is None or group.pop(taker, None) is None:
            return False
        self._came.pop(taker, None)
        if not group:
            del self.groups[kind]
            by = _filter_of(taker.form)
            self.filters[by] -= 1
            if not self.filters[by]:
                del self.filters[by]
                self.nodes -= by.nodes
        return True

    # ---- what they get

    def publish(self, published: Sequence[Sent], late: Mapping[Member, int] = _NOBODY) -> None:
        """Send publications to those whose filters they pass. `late`: as in a Batch."""
        self._serial += 1
        self._wait(_Delivery(self._serial, published, late))

    def tell(self, told: Collection[bytes]) -> int:
        """Send joins and leaves to those that take them, behind what waits. Returns how many
        these are.
        """
        if self._waiting:
            self._serial += 1
            self._wait(_Told(self._serial, told))
            return sum(each.join_leave for each in self.takers())
        return self._tell(told)

    def _wait(self, what: _Delivery | _Told) -> None:
        self._waiting.append(what)
        self._sieves.waits(self, what.weight, is_first=len(self._waiting) == 1)

    def step(self) -> int:
        """Do a part of what waits. Returns what it cost, in tests."""
        first = self._waiting[0]
        if isinstance(first, _Delivery):
            if not first.is_done(self.filters):
                return first.step()
            cost = self._send(first)
        else:
            cost = 1 + self._tell(first.told, first.serial) * _TESTS_A_WRITE
        self._waiting.popleft()
        self._sieves.bytes -= first.weight
        if not self._waiting:
            self._came.clear()
        return cost

    def drop(self) -> None:
        """Forget what waits: nobody is there any more."""
        self._sieves.bytes -= sum(each.weight for each in self._waiting)
        self._waiting.clear()
        self._came.clear()

    def _tell(self, told: Collection[bytes], serial: int = 0) -> int:
        count = 0
        for (framer, form), group in self.groups.items():
            sinks = [
                sink
                for each, sink in group.items()
                if each.join_leave and not (serial and self._came.get(each, 0) >= serial)
            ]
            if sinks:
                address = self.number if form.numbered else self.channel
                pushes = [told_push(address, each) for each in told]
                self._sieves.send(sinks, framer, pushes)
                count += len(sinks)
        return count

    def _send(self, delivery: _Delivery) -> int:
        """Send what was tested. Returns what it cost, in tests."""
        everything: dict[tuple[str | int, Payload], Sequence[bytes]] = {}
        receivers: dict[tuple[Framer, str | int, Payload, int], list[Sink]] = {}
        for (framer, form), group in self.groups.items():
            passed = delivery.passed.get(_filter_of(form))
            if passed is None:
                # It came after the tests had begun.
                continue
            address = self.number if form.numbered else self.channel
            for bits, sinks in self._by_bits(group, passed, delivery):
                if bits:
                    receivers.setdefault((framer, address, form.payload, bits), []).extend(sinks)
                kept = len(delivery.published) - bits.bit_count()
                self._sieves.held_back += kept * len(sinks)
        writes = 0
        for (framer, address, payload, bits), sinks in receivers.items():
            if (address, payload) not in everything:
                found = whole_lines(delivery.published, payload)
                everything[address, payload] = publication_pushes(address, found)
            pushes = [
                push for at, push in enumerate(everything[address, payload]) if bits >> at & 1
            ]
            self._sieves.send(sinks, framer, pushes)
            writes += len(sinks)
        return 1 + writes * _TESTS_A_WRITE

    def _by_bits(
        self, group: Mapping[Taker, Sink], passed: int, delivery: _Delivery
    ) -> Iterable[tuple[int, Collection[Sink]]]:
        """The sinks of `group` by the publications that go to them."""
        if not delivery.late and not self._came:
            return ((self._newest(passed), group.values()),)
        found: dict[int, list[Sink]] = {}
        for each, sink in group.items():
            if self._came.get(each, 0) < delivery.serial:
                first = delivery.late.get(each, 0)
                found.setdefault(self._newest(passed >> first << first), []).append(sink)
        return found.items()

    def _newest(self, bits: int) -> int:
        return 1 << bits.bit_length() - 1 if bits and self.newest_only else bits


class Sieves:
    """The sieves of a node's channels that have something to do. `send`: the hub's.

    `held_back`: pushes that were not sent to a subscriber with a filter. `bytes`: of what waits.
    """

    def __init__(self, send: Send) -> None:
        self.send = send
        self.held_back = 0
        self.bytes = 0
        self._busy: deque[Sieve] = deque()
        self._budget = Budget(TESTS_A_TURN, self.go)

    def waits(self, sieve: Sieve, size: int, *, is_first: bool) -> None:
        """Something of `size` bytes waits in `sieve`. `is_first`: and nothing else."""
        self.bytes += size
        if is_first:
            self._busy.append(sieve)
        self.go()

    def go(self) -> None:
        """Do what waits, as far as the turn allows. The rest follows by itself."""
        while self._busy and (self._budget.left > 0 or self.bytes > WAITING_BYTES_MAX):
            sieve = self._busy.popleft()
            if sieve.is_waiting:
                self._budget.take(sieve.step())
            if sieve.is_waiting:
                # Behind the other channels.
                self._busy.append(sieve)

    def drain(self, sieve: Sieve) -> None:
        """Do all that waits in `sieve` now."""
        while sieve.is_waiting:
            sieve.step()

    async def end(self) -> None:
        """Do all that waits, in as many turns as it takes."""
        while self._busy:
            self.go()
            await asyncio.sleep(0)


def _filter_of(form: Form) -> TagsFilter:
    assert form.filter is not None, "everybody in a sieve has a filter"
    return form.filter
