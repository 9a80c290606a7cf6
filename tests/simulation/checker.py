"""Holds what clients saw against what the log holds: the invariants I1 to I4, and that nobody waits for ever."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field

import orjson

from service.core.log_item import LogItem

Position = tuple[str, int]


@dataclass(slots=True)
class View:
    """One client's subscription to one channel, as it stands. `position` survives reconnects."""

    client: str
    channel: str
    subscribed: bool = False
    position: Position | None = None


@dataclass(slots=True)
class Checker:
    """Collects violations as they happen; `finish` adds what only the whole log can tell."""

    violations: list[str] = field(default_factory=list)
    attempted: dict[str, str] = field(default_factory=dict)
    acknowledged: dict[str, float] = field(default_factory=dict)
    # Where clients were told that what they published with a key is.
    placed: dict[str, tuple[str, str, int]] = field(default_factory=dict)
    # What clients were shown at (channel, epoch, offset).
    shown: dict[tuple[str, str, int], str] = field(default_factory=dict)
    told: int = 0
    recovered: int = 0
    delivered: int = 0

    def fail(self, what: str) -> None:
        self.violations.append(what)

    # ---- what clients see

    def publish_reply(self, client: str, channel: str, content: str, result: dict[str, object]) -> None:
        """To a publication with a key: it may be told more than once, and always the same."""
        epoch, offset = result.get("epoch"), result.get("offset")
        if not isinstance(epoch, str) or not isinstance(offset, int):
            self.fail(f"I2 {client}: {content} was acknowledged without its position")
            return
        place = (channel, epoch, offset)
        if self.placed.setdefault(content, place) != place:
            self.fail(f"I2 {client}: {content} is said to be at {place} and at {self.placed[content]}")

    def subscribe_reply(self, view: View, since: Position | None, result: dict[str, object]) -> None:
        epoch, offset = result.get("epoch"), result.get("offset", 0)
        if not isinstance(epoch, str) or not epoch or not isinstance(offset, int):
            self.fail(f"I3 {view.client}: a positioned reply without position")
            return
        view.subscribed = True
        publications = result.get("publications", [])
        assert isinstance(publications, list)
        if since is None or not result.get("recovered"):
            if since is not None:
                self.told += 1
            if publications:
                self.fail(f"I3 {view.client}: publications without recovery")
            view.position = (epoch, offset)
            return
        self.recovered += 1
        if (epoch, offset) != since:
            self.fail(f"I3 {view.client}: recovered from {(epoch, offset)} instead of {since}")
        view.position = since
        for publication in publications:
            self.push(view, publication)

    def push(self, view: View, publication: dict[str, object]) -> None:
        if not view.subscribed:
            self.fail(f"I4 {view.client}: a push of {view.channel} before the subscribe reply")
            return
        assert view.position is not None
        offset = publication.get("offset")
        epoch, top = view.position
        if offset != top + 1:
            self.fail(f"I3 {view.client}: {view.channel} {epoch} went from {top} to {offset}")
        if isinstance(offset, int):
            view.position = (epoch, offset)
            self._show(view.channel, epoch, offset, _content(publication), view.client)
        self.delivered += 1

    def history(self, client: str, channel: str, result: dict[str, object], hidden: Position | None) -> None:
        publications, epoch = result.get("publications"), result.get("epoch")
        assert isinstance(publications, list)
        assert isinstance(epoch, str)
        offsets = [publication["offset"] for publication in publications]
        if offsets != list(range(offsets[0], offsets[0] + len(offsets)) if offsets else []):
            self.fail(f"I3 {client}: history of {channel} has a hole or is out of order: {offsets}")
        if hidden is not None and hidden[0] == epoch and offsets and offsets[0] <= hidden[1]:
            self.fail(f"{client}: history of {channel} shows {offsets[0]}, which was removed")
        for publication in publications:
            self._show(channel, epoch, publication["offset"], _content(publication), client)

    def _show(self, channel: str, epoch: str, offset: int, content: str, client: str) -> None:
        before = self.shown.setdefault((channel, epoch, offset), content)
        if before != content:
            self.fail(f"I1 {client}: {channel} {epoch} {offset} was {before}, now {content}")

    # ---- what the log holds

    def finish(self, stream: Iterable[LogItem]) -> None:
        bound: dict[tuple[str, str, int], str] = {}
        places: dict[str, list[tuple[str, str, int]]] = defaultdict(list)
        offsets: dict[tuple[str, str], list[int]] = defaultdict(list)
        for item in stream:
            for index, stored in enumerate(orjson.loads(item.pubs)):
                place, content = (item.channel, item.epoch, item.offset + index), _content(stored)
                if place in bound:
                    self.fail(f"I1 {place} bound to {bound[place]} and to {content}")
                bound[place] = content
                places[content].append(place)
                offsets[item.channel, item.epoch].append(item.offset + index)
        for log, numbers in offsets.items():
            if sorted(numbers) != list(range(min(numbers), max(numbers) + 1)):
                self.fail(f"I1 {log} has a hole: {sorted(numbers)}")
        for content, where in places.items():
            if len(where) > 1:
                self.fail(f"I2 {content} is in the log at {where}")
        for content, place in self.placed.items():
            if bound.get(place) != content:
                self.fail(f"I2 {content} is said to be at {place}, which holds {bound.get(place)}")
        for content in self.acknowledged:
            if content not in places:
                self.fail(f"I2 {content} was acknowledged and is not in the log")
        for place, content in self.shown.items():
            if bound.get(place) != content:
                self.fail(f"I3 {place} was shown as {content}; the log has {bound.get(place)}")


def _content(publication: dict[str, object]) -> str:
    return str(publication["data"])
