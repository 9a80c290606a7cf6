"""Holds what publishers were told and what subscribers saw against what the
log holds at the end.
"""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, Final

__all__ = ["Bounds", "Checker", "Entry", "Log", "Position", "View"]

# Of one kind of violation: the rest says nothing new.
_SHOWN_MAX: Final = 10
# Of an unsubscribe push: this subscription cannot be continued.
_INSUFFICIENT_STATE: Final = 2500

Position = tuple[str, int]


@dataclass(frozen=True, slots=True)
class Entry:
    """One publication of a channel's log."""

    epoch: str
    offset: int
    content: str


Log = Mapping[str, Sequence[Entry]]


@dataclass(frozen=True, slots=True)
class Bounds:
    """What one recovery of a channel brings at most: publications, and how old the first may be."""

    publications_max: int
    ttl_s: float


@dataclass(slots=True)
class View:
    """One subscriber's subscription. `position`:
    of the last publication it knows of, across reconnects.
    """

    subscriber: str
    channel: str
    subscribed: bool = False
    position: Position | None = None


@dataclass(slots=True)
class _Publication:
    channel: str
    started: int
    started_s: float
    acknowledged: int | None = None


@dataclass(frozen=True, slots=True)
class _Told:
    """A subscriber that stood at `since` was told that it cannot go on:
    by a reply that puts it at `answered`, or, when that is None, by the end of its subscription.
    """

    view: View
    since: Position
    answered: Position | None
    at_s: float


@dataclass(slots=True)
class Checker:
    """Takes events as they happen; `finish` adds what only the log can tell.
    Counts are for the table.

    `bounds`: of a channel's recoveries. `now_s`: monotonic seconds.
    """

    bounds: Callable[[str], Bounds]
    now_s: Callable[[], float] = time.monotonic
    violations: list[str] = field(default_factory=list)
    views: dict[tuple[str, str], View] = field(default_factory=dict)
    delivered: int = 0
    recovered: int = 0
    told: int = 0
    lost: int = 0
    _publications: dict[str, _Publication] = field(default_factory=dict)
    _bursts: list[Sequence[str]] = field(default_factory=list)
    _told: list[_Told] = field(default_factory=list)
    _shown: list[tuple[View, Position, str]] = field(default_factory=list)
    _events: int = 0
    _failures: Counter[str] = field(default_factory=Counter)

    @property
    def published(self) -> int:
        return len(self._publications)

    @property
    def acknowledged(self) -> int:
        return sum(each.acknowledged is not None for each in self._publications.values())

    # ---- what publishers do

    def publishing(self, channel: str, content: str) -> None:
        """Each content once: an application that publishes it again numbers it anew."""
        assert content not in self._publications, f"{content} is published twice by the test"
        self._publications[content] = _Publication(channel, self._next(), self.now_s())

    def burst(self, contents: Sequence[str]) -> None:
        """One client publishes them in one channel in this order,
        without waiting for answers between them.
        """
        self._bursts.append(contents)

    def acknowledge(self, content: str) -> None:
        self._publications[content].acknowledged = self._next()

    # ---- what happens to subscribers

    def happened(self, subscriber: str, event: Mapping[str, Any]) -> None:
        """An event of an SDK; those that say nothing about a subscription are left alone."""
        kind, channel = event["event"], event.get("channel")
        if channel is None:
            return
        view = self.views.setdefault((subscriber, channel), View(subscriber, channel))
        if kind == "subscribed":
            self._subscribed(view, event)
        elif kind == "publication":
            self._published(view, event["offset"], str(event["data"]))
        elif kind == "subscribing":
            view.subscribed = False
            if event["code"] == _INSUFFICIENT_STATE:
                self._tell(view, None)
        elif kind == "unsubscribed":
            view.subscribed = False
            self._fail(
                "I3 unsubscribed", f"{subscriber} was unsubscribed from {channel}: {event['code']}"
            )

    def _subscribed(self, view: View, event: Mapping[str, Any]) -> None:
        name = f"{view.subscriber} in {view.channel}"
        view.subscribed = True
        if event["position"] is None:
            self._fail("I4 no position", f"{name} has a subscription without a position")
            return
        position = (str(event["position"]["epoch"]), int(event["position"]["offset"]))
        if not event["was_recovering"]:
            if view.position is not None:
                self._fail("I3 fresh", f"{name} knew {view.position} and did not recover")
        elif not event["recovered"]:
            self._tell(view, position)
        else:
            self.recovered += 1
            if position != view.position:
                self._fail(
                    "I3 recovered", f"{name} stood at {view.position} and recovered from {position}"
                )
                return
        view.position = position

    def _tell(self, view: View, answered: Position | None) -> None:
        self.told += 1
        if view.position is not None:
            self._told.append(_Told(view, view.position, answered, self.now_s()))

    def _published(self, view: View, offset: int, content: str) -> None:
        name = f"{view.subscriber} in {view.channel}"
        self.delivered += 1
        if not view.subscribed or view.position is None:
            self._fail("I4 early", f"{name} got {offset} ({content}) without being subscribed")
            return
        epoch, top = view.position
        if offset <= top:
            self._fail("I3 twice", f"{name} got {offset} ({content}) when it stood at {top}")
            return
        if offset > top + 1:
            self.lost += offset - top - 1
            self._fail("I3 hole", f"{name} went from {top} to {offset} ({content})")
        view.position = (epoch, offset)
        self._shown.append((view, view.position, content))

    # ---- the end

    def lagging(self, log: Log) -> list[str]:
        """Views that do not stand where the log ends;
        it may be they that are ahead of a log read earlier.
        """
        return [
            f"{view.subscriber} in {view.channel} stands at {view.position}, the log ends at {end}"
            for view in self.views.values()
            if (end := _end(log.get(view.channel, ()))) is not None and view.position != end
        ]

    def finish(self, log: Log) -> list[str]:
        """All violations, `log` being what is in the table when everything has come to rest."""
        places: dict[str, list[tuple[str, Position]]] = defaultdict(list)
        bound: dict[tuple[str, Position], str] = {}
        for channel, entries in log.items():
            self._check_run(channel, entries)
            self._check_order(channel, entries)
            for entry in entries:
                place = (channel, (entry.epoch, entry.offset))
                places[entry.content].append(place)
                bound[place] = entry.content
        self._check_publications(places)
        self._check_bursts(places)
        self._check_told(log)
        for view, position, content in self._shown:
            holds = bound.get((view.channel, position))
            if holds != content:
                self._fail(
                    "I3 content",
                    f"{view.subscriber} was shown {content} at {position} of {view.channel}; "
                    f"it is {holds}",
                )
        for view in self.views.values():
            end = _end(log.get(view.channel, ()))
            if view.position is not None and end is not None and view.position[0] == end[0]:
                self.lost += max(0, end[1] - view.position[1])
        for lag in self.lagging(log):
            self._fail("I3 behind", lag)
        for kind, count in self._failures.items():
            if count > _SHOWN_MAX:
                self.violations.append(f"{kind}: {count - _SHOWN_MAX} more")
        return self.violations

    def _check_run(self, channel: str, entries: Sequence[Entry]) -> None:
        for before, after in pairwise(entries):
            if after.offset != before.offset + 1:
                self._fail(
                    "I1", f"the log of {channel} goes from {before.offset} to {after.offset}"
                )

    def _check_order(self, channel: str, entries: Sequence[Entry]) -> None:
        """What was acknowledged before something else was published stands before it."""
        earliest, of = None, ""
        for entry in reversed(entries):
            publication = self._publications.get(entry.content)
            if publication is None:
                continue
            if earliest is not None and earliest < publication.started:
                self._fail(
                    "I2 order",
                    f"{of} was acknowledged before {entry.content} began, and is behind it",
                )
            acknowledged = publication.acknowledged
            if acknowledged is not None and (earliest is None or acknowledged < earliest):
                earliest, of = acknowledged, f"{channel}: {entry.content}"

    def _check_publications(self, places: Mapping[str, Sequence[tuple[str, Position]]]) -> None:
        for content, publication in self._publications.items():
            where = places.get(content, ())
            if len(where) > 1:
                self._fail("I2 twice", f"{content} is in the log at {where}")
            if publication.acknowledged is not None and not where:
                self.lost += 1
                self._fail("I2 lost", f"{content} was acknowledged and is not in the log")
            if any(channel != publication.channel for channel, _ in where):
                self._fail("I2 elsewhere", f"{content} is in the log at {where}")
        for content in places.keys() - self._publications.keys():
            self._fail("I2 invented", f"{content} is in the log, and nobody published it")

    def _check_bursts(self, places: Mapping[str, Sequence[tuple[str, Position]]]) -> None:
        """What was acknowledged went through one connection; of the rest nobody knows."""
        for contents in self._bursts:
            stored = [
                (places[content][0][1][1], content)
                for content in contents
                if self._publications[content].acknowledged is not None and places.get(content)
            ]
            for (first, before), (second, after) in pairwise(stored):
                if first > second:
                    self._fail("order", f"{before} was published before {after}, and is behind it")

    def _check_told(self, log: Log) -> None:
        """Who was told that it cannot go on was told so for a reason."""
        for told in self._told:
            entries = log.get(told.view.channel, ())
            if not self._has_reason(told, entries):
                kind = "I3 ended" if told.answered is None else "I3 refused"
                self._fail(
                    f"{kind} without a reason",
                    f"{told.view.subscriber} stood at {told.since} of {told.view.channel}, "
                    "and was put at "
                    f"{told.answered}; the log ends at {_end(entries)} and has it all",
                )

    def _has_reason(self, told: _Told, entries: Sequence[Entry]) -> bool:
        """Nothing is deleted here, no history is removed, no publication is large,
        and no fault of AWS lasts for as long as a node goes on reading:
        what is left are other epochs, holes, and the bounds.
        """
        epoch, offset = told.since
        end = _end(entries)
        if end is not None and end[0] != epoch:
            return True
        missed = {
            entry.offset: entry
            for entry in entries
            if entry.epoch == epoch and entry.offset > offset
        }
        if told.answered is None:
            return end is not None and len(missed) < end[1] - offset
        answered_epoch, top = told.answered
        if answered_epoch != epoch or not missed:
            return False
        bounds = self.bounds(told.view.channel)
        first = self._publications.get(missed[min(missed)].content)
        return (
            top - offset > bounds.publications_max
            or any(each not in missed for each in range(offset + 1, top + 1))
            or (first is not None and told.at_s - first.started_s > bounds.ttl_s)
        )

    def _next(self) -> int:
        self._events += 1
        return self._events

    def _fail(self, kind: str, what: str) -> None:
        self._failures[kind] += 1
        if self._failures[kind] <= _SHOWN_MAX:
            self.violations.append(f"{kind}: {what}")


def _end(entries: Sequence[Entry]) -> Position | None:
    return (entries[-1].epoch, entries[-1].offset) if entries else None
