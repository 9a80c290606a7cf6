"""Holds what clients saw against what the log holds: the invariants I1 to I4, each client's order,
and that nobody waits for ever or is told without a reason that it cannot go on.
"""

from __future__ import annotations

import asyncio
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from enum import StrEnum
from itertools import pairwise
from typing import Any

import orjson

from roomcast.log.item import Head, LogItem
from tests.simulation.reasons import Position, Reason, Terms, Truth, why_lost, why_unrecovered

# For how long a failure of a call may be what clients are told of:
# as long as two appends in a row are tried, and their last calls take.
TROUBLE_S = 180.0

__all__ = ["PADDING", "Checker", "Kind", "View", "Violation", "contents"]

# Makes a publication larger without another content.
PADDING = "."

Place = tuple[str, str, int]


class Kind(StrEnum):
    """What can be violated."""

    # An item is not written behind the end of its epoch,
    # or an epoch does not begin behind its floor.
    HOLE = "I1 hole"
    # One offset of an epoch had two contents.
    REUSED = "I1 reused"
    # Acknowledged, and not in the log.
    LOST = "I2 lost"
    # Published once, and in the log twice.
    TWICE = "I2 twice"
    # What was published with a key is not where its client was told.
    PLACE = "I2 place"
    # A publication is in the log though a newer version was, or was left out though none was.
    STALE = "I2 stale"
    # A client went from one offset to one behind the next.
    SKIPPED = "I3 skipped"
    # A client was shown an offset that it had seen.
    REPEATED = "I3 repeated"
    # A client was shown what its filter does not let through.
    UNWANTED = "I3 unwanted"
    # A client was shown what is not in the log there.
    CONTENT = "I3 content"
    # A reply without a position, with publications that nobody asked for,
    # or recovered from elsewhere.
    REPLY = "I3 reply"
    # Told that it cannot recover, or that its subscription ends, and nothing speaks for it.
    REFUSED = "I3 refused without a reason"
    ENDED = "I3 ended without a reason"
    # A recovery brought more than the configuration allows.
    BEYOND = "I3 beyond bounds"
    # Not at the top of the log though nothing is wrong any more: soon, and for long.
    LATE = "I3 late"
    STUCK = "I3 stuck"
    # A publication with a key that is tried again and again is not acknowledged.
    UNANSWERED = "I2 unanswered"
    # Of several writers of one channel one is not served, waits for long,
    # or pays for too many races.
    STARVED = "a writer is starved"
    # A push before the reply.
    EARLY = "I4 early"
    # A node that cannot hear does not notice, does not heal, or does not read what it missed.
    DEAF = "I5 deaf"
    # Too many canaries, too few, or not heard by all.
    CANARIES = "I5 canaries"
    # A client was told of a failure, and nothing has failed for a while.
    ERROR = "error without a reason"
    # What one connection published is in the log in another order.
    ORDER = "order"
    # History shows a hole, or what was removed.
    HISTORY = "history"
    # An order was not carried out though it was to be, twice, or for somebody else.
    ORDERS = "orders"
    # A session's commands came twice, out of order, or not at all though that was said.
    COMMANDS = "commands of a session"
    # The server closed a connection that it had no reason to close.
    CLOSED = "closed"
    # Something went wrong inside, whether a client saw it or not.
    MISHAP = "mishap"


@dataclass(frozen=True, slots=True)
class Violation:
    """`what` says who, where and why."""

    kind: Kind
    what: str

    def __str__(self) -> str:
        return f"{self.kind}: {self.what}"


@dataclass(slots=True)
class View:
    """One client's subscription to one channel, as it stands. `position` survives reconnects.

    `made_up`: the position that the client claimed last though it never was there.
    `kinds`: those of the publications that its filter lets through; None = it has none.
    """

    client: str
    channel: str
    subscribed: bool = False
    position: Position | None = None
    made_up: Position | None = None
    kinds: frozenset[str] | None = None


@dataclass(slots=True)
class Checker:
    """Collects violations as they happen; `finish` adds what only the whole log can tell.

    `truth` gives what the log of a channel is right now,
    `is_committed` whether something is or was in it at a place,
    `troubled_s` when a call last failed or was slow.
    `newest_only`: of publications that were collected only the newest goes out.
    `kind_of`: the kind of a content, by which clients filter.
    `recovers_newest`: recoveries bring the newest publication, whatever else was missed.
    """

    truth: Callable[[str], Truth]
    is_committed: Callable[[Place], bool]
    troubled_s: Callable[[], float]
    newest_only: bool = False
    kind_of: Callable[[str], str] = str
    recovers_newest: bool = False
    violations: list[Violation] = field(default_factory=list)
    attempted: dict[str, str] = field(default_factory=dict)
    acknowledged: dict[str, float] = field(default_factory=dict)
    # Where clients were told that what they published with a key is.
    placed: dict[str, Place] = field(default_factory=dict)
    # What was published, by (client, its how manieth connection, channel),
    # in the order of the commands.
    commands: dict[tuple[str, int, str], list[str]] = field(
        default_factory=lambda: defaultdict(list)
    )
    attempts: Counter[str] = field(default_factory=Counter)
    # What clients were shown at (channel, epoch, offset).
    shown: dict[Place, str] = field(default_factory=dict)
    # Clients that were told that they cannot go on, by the reason.
    told: Counter[Reason] = field(default_factory=Counter)
    # The offsets that clients with filters were not shown, behind the first and before the last.
    passed_over: list[tuple[View, str, int, int]] = field(default_factory=list)
    recovered: int = 0
    delivered: int = 0

    def fail(self, kind: Kind, what: str) -> None:
        self.violations.append(Violation(kind, what))

    # ---- what clients do and see

    def publishing(self, client: str, connection: int, channel: str, content: str) -> None:
        """A publish command is on its way; with a key perhaps not for the first time."""
        self.attempted[content] = channel
        self.attempts[content] += 1
        self.commands[client, connection, channel].append(content)

    def publish_reply(
        self, client: str, channel: str, content: str, result: dict[str, object]
    ) -> None:
        """To a publication with a key: it may be told more than once, and always the same."""
        epoch, offset = result.get("epoch"), result.get("offset")
        if not isinstance(epoch, str) or not isinstance(offset, int):
            self.fail(Kind.PLACE, f"{client}: {content} was acknowledged without its position")
            return
        place = (channel, epoch, offset)
        if self.placed.setdefault(content, place) != place:
            self.fail(
                Kind.PLACE,
                f"{client}: {content} is said to be at {place} and at {self.placed[content]}",
            )

    def error_reply(self, client: str, error: object) -> None:
        """In answer to anything."""
        since_s = asyncio.get_running_loop().time() - self.troubled_s()
        if since_s > TROUBLE_S:
            self.fail(
                Kind.ERROR, f"{client} was told {error}; nothing has failed for {since_s:.0f} s"
            )

    def subscribe_reply(
        self, view: View, since: Position | None, result: dict[str, object], terms: Terms
    ) -> None:
        """`terms`: of the node that answers, now."""
        epoch, offset = result.get("epoch"), result.get("offset", 0)
        if not isinstance(epoch, str) or not epoch or not isinstance(offset, int):
            self.fail(Kind.REPLY, f"{view.client}: a positioned reply without position")
            return
        view.subscribed = True
        publications = result.get("publications", [])
        assert isinstance(publications, list)
        if self.recovers_newest:
            self._newest_reply(view, since, (epoch, offset), result, terms)
            return
        if since is None or not result.get("recovered"):
            if since is not None:
                self._refused(view, since, (epoch, offset), terms)
            if publications:
                self.fail(Kind.REPLY, f"{view.client}: publications without recovery")
            truth = self.truth(view.channel)
            if epoch == truth.epoch and offset > truth.top:
                self.fail(
                    Kind.REPLY, f"{view.client}: at {offset} of a log that ends at {truth.top}"
                )
            view.position = (epoch, offset)
            return
        self.recovered += 1
        # Who gets nothing of what it missed is told where that ends.
        is_told_top = view.kinds is not None and not publications
        if (epoch, offset) != since and not (is_told_top and (epoch, offset) > since):
            self.fail(
                Kind.REPLY, f"{view.client}: recovered from {(epoch, offset)} instead of {since}"
            )
        if view.kinds is None:
            self._within_bounds(view, since, since[1] + len(publications), terms)
        elif is_told_top:
            self._within_bounds(view, since, offset, terms)
            self._passed_over(view, epoch, since[1], offset + 1)
            since = (since[0], offset)
        view.position = since
        for publication in publications:
            self.push(view, publication)

    def _newest_reply(
        self,
        view: View,
        since: Position | None,
        answered: Position,
        result: dict[str, Any],
        terms: Terms,
    ) -> None:
        """Each subscription begins with the newest publication, unless its client has that."""
        publications, (epoch, offset) = result.get("publications", []), answered
        if not result.get("was_recovering") or len(publications) > 1:
            self.fail(Kind.REPLY, f"{view.client}: {len(publications)} instead of the newest")
        if not result.get("recovered"):
            if publications:
                self.fail(Kind.REPLY, f"{view.client}: publications without recovery")
            if offset:
                self._refused(view, (epoch, offset - 1), answered, terms)
            view.position = answered
            return
        self.recovered += 1
        asked = since[1] if since is not None else 0
        if offset != asked:
            self.fail(Kind.REPLY, f"{view.client}: recovered from {offset} instead of {asked}")
        if not publications:
            if since is None or since[0] != epoch:
                self.fail(Kind.REPLY, f"{view.client}: nothing behind {since} in {epoch}")
            view.position = answered
            return
        newest = publications[0]["offset"]
        if since is not None and since != view.made_up and epoch == since[0] and newest <= asked:
            self.fail(Kind.REPEATED, f"{view.client}: stood at {since}, was given {newest}")
        self._within_bounds(view, (epoch, newest - 1), newest, terms)
        view.position = (epoch, newest - 1)
        self.push(view, publications[0])

    def _refused(self, view: View, since: Position, answered: Position, terms: Terms) -> None:
        truth = self.truth(view.channel)
        reasons = why_unrecovered(since, answered, truth, terms)
        if not reasons and since == view.made_up:
            # The log has grown to there since it was read.
            reasons = {Reason.AHEAD}
        self.told.update(reasons)
        if not reasons:
            self.fail(
                Kind.REFUSED,
                f"{view.client} in {view.channel} stands at {since}, was answered {answered}; "
                "the log is at "
                f"{(truth.epoch, truth.top)}, trimmed to {truth.trim}, and has it all: {terms}",
            )

    def _within_bounds(self, view: View, since: Position, top: int, terms: Terms) -> None:
        truth = self.truth(view.channel)
        beyond = {Reason.AHEAD, Reason.COUNT, Reason.BYTES, Reason.AGE} & set(
            why_unrecovered(since, (since[0], top), truth, terms)
        )
        if beyond:
            self.fail(
                Kind.BEYOND,
                f"{view.client} in {view.channel} recovered from {since} to {top}: {beyond}",
            )

    def unsubscribed(self, view: View, code: int, terms: Terms) -> None:
        """`terms`: of the node that says so, now."""
        view.subscribed = False
        if view.position is None:
            return
        truth = self.truth(view.channel)
        reasons = why_lost(view.position, truth, terms)
        self.told.update(reasons)
        if not reasons:
            self.fail(
                Kind.ENDED,
                f"{view.client} in {view.channel} stood at {view.position} and was unsubscribed "
                f"({code}); the "
                f"log is at {(truth.epoch, truth.top)} and has it all; reads failed for "
                f"{terms.unanswered_s:.0f} s",
            )

    def push(self, view: View, publication: dict[str, object]) -> None:
        if not view.subscribed:
            self.fail(
                Kind.EARLY, f"{view.client}: a push of {view.channel} before the subscribe reply"
            )
            return
        assert view.position is not None
        offset = publication.get("offset")
        epoch, top = view.position
        if not isinstance(offset, int):
            self.fail(Kind.REPLY, f"{view.client}: a push of {view.channel} without an offset")
            return
        if offset <= top:
            self.fail(
                Kind.REPEATED,
                f"{view.client}: {view.channel} {epoch} was at {top} and got {offset}",
            )
        elif view.kinds is not None:
            self._passed_over(view, epoch, top, offset)
        elif offset > top + 1 and not self.newest_only:
            self.fail(
                Kind.SKIPPED, f"{view.client}: {view.channel} {epoch} went from {top} to {offset}"
            )
        view.position = (epoch, max(top, offset))
        if not self.is_committed((view.channel, epoch, offset)):
            self.fail(
                Kind.CONTENT, f"{view.client}: {view.channel} {epoch} {offset} is not in the log"
            )
        content = _content(publication)
        self._show(view.channel, epoch, offset, content, view.client)
        if view.kinds is not None and self.kind_of(content) not in view.kinds:
            self.fail(
                Kind.UNWANTED,
                f"{view.client} wants {sorted(view.kinds)} of {view.channel} and got {content}",
            )
        self.delivered += 1

    def _passed_over(self, view: View, epoch: str, first: int, last: int) -> None:
        if last > first + 1 and not self.newest_only:
            self.passed_over.append((view, epoch, first, last))

    def history(
        self, client: str, channel: str, result: dict[str, object], hidden: Position | None
    ) -> None:
        publications, epoch = result.get("publications"), result.get("epoch")
        assert isinstance(publications, list)
        assert isinstance(epoch, str)
        offsets = [publication["offset"] for publication in publications]
        if offsets != list(range(offsets[0], offsets[0] + len(offsets)) if offsets else []):
            self.fail(
                Kind.HISTORY,
                f"{client}: history of {channel} has a hole or is out of order: {offsets}",
            )
        if hidden is not None and hidden[0] == epoch and offsets and offsets[0] <= hidden[1]:
            self.fail(
                Kind.HISTORY,
                f"{client}: history of {channel} shows {offsets[0]}, which was removed",
            )
        for publication in publications:
            self._show(channel, epoch, publication["offset"], _content(publication), client)

    def _show(self, channel: str, epoch: str, offset: int, content: str, client: str) -> None:
        before = self.shown.setdefault((channel, epoch, offset), content)
        if before != content:
            self.fail(
                Kind.REUSED, f"{client}: {channel} {epoch} {offset} was {before}, now {content}"
            )

    # ---- what the log holds

    def finish(self, stream: Iterable[LogItem], heads: Iterable[Head]) -> None:
        """`stream`, `heads`: all there ever were, in the order of writing."""
        bound: dict[Place, str] = {}
        places: dict[str, list[Place]] = defaultdict(list)
        # When each content was first written: a number that grows along the log.
        written: dict[str, int] = {}
        for item in self._following(stream, heads):
            for index, content in enumerate(contents(item)):
                place = (item.channel, item.epoch, item.offset + index)
                if place in bound:
                    self.fail(Kind.REUSED, f"{place} bound to {bound[place]} and to {content}")
                bound[place] = content
                places[content].append(place)
                written.setdefault(content, len(written))
        for content, where in places.items():
            if len(where) > 1:
                self.fail(Kind.TWICE, f"{content} is in the log at {where}")
        for content, place in self.placed.items():
            if bound.get(place) != content:
                self.fail(
                    Kind.PLACE,
                    f"{content} is said to be at {place}, which holds {bound.get(place)}",
                )
        for content in self.acknowledged:
            if content not in places:
                self.fail(Kind.LOST, f"{content} was acknowledged and is not in the log")
        for place, content in self.shown.items():
            if bound.get(place) != content:
                self.fail(
                    Kind.CONTENT, f"{place} was shown as {content}; the log has {bound.get(place)}"
                )
        for view, epoch, first, last in self.passed_over:
            for offset in range(first + 1, last):
                found = bound.get((view.channel, epoch, offset))
                if found is not None and self.kind_of(found) in (view.kinds or ()):
                    self.fail(
                        Kind.SKIPPED,
                        f"{view.client}: {view.channel} {epoch} went from {first} to {last}, and "
                        f"{offset} passes",
                    )
        self._check_order(written)

    def _following(self, stream: Iterable[LogItem], heads: Iterable[Head]) -> Iterable[LogItem]:
        """Each item; at no moment may there be a hole, from the epoch's floor on."""
        tops: dict[tuple[str, str], int] = {}
        for head in heads:
            # The first head of an epoch begins it; those that renew it have the top of their time.
            tops.setdefault((head.channel, head.epoch), head.floor)
        for item in stream:
            log = (item.channel, item.epoch)
            top = tops.get(log)
            if top is None:
                self.fail(Kind.HOLE, f"{log} has an item at {item.offset} and never had a head")
            elif item.offset > top + 1:
                self.fail(Kind.HOLE, f"{log} ended at {top} when {item.offset} was written")
            tops[log] = max(top or 0, item.last)
            yield item

    def _check_order(self, written: dict[str, int]) -> None:
        for (client, connection, channel), contents in self.commands.items():
            # Of what was tried more than once nobody knows which attempt it was.
            once = [each for each in contents if each in written and self.attempts[each] == 1]
            for before, after in pairwise(once):
                if written[before] > written[after]:
                    self.fail(
                        Kind.ORDER,
                        f"{client}, connection {connection}: {before} was published "
                        f"before {after} in "
                        f"{channel}, and is behind it in the log",
                    )


def contents(item: LogItem) -> list[str]:
    """What the publications of `item` hold; nothing of an item that is broken."""
    try:
        return [_content(stored) for stored in orjson.loads(item.pubs)]
    except ValueError:
        return []


def _content(publication: dict[str, object]) -> str:
    return str(publication["data"]).rstrip(PADDING)
