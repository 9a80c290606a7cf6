"""Asks all nodes at once how they are doing, and answers when another node asks.

What is kept is bounded: inquiries under way, the nodes and the bytes of one answer, and the time
that is waited for reports. So is how many reports are asked for: each is a message that is paid
for. A node that did not answer in time is named as one that did not. A fleet that is not well
answers late, and just then somebody looks: how a node does is told from a late report as well, with
its age, and the nodes from leases that were read before.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

import structlog

from roomcast.concurrency import SharedCall
from roomcast.delivery.envelope import Signal
from roomcast.delivery.signal_bus import SignalBus
from roomcast.fleet.inquiry_signals import (
    SUBJECTS,
    Inquiry,
    MalformedInquiry,
    fits_report,
    inquiry_of,
    inquiry_signal,
    report_of,
    report_signal,
)
from roomcast.fleet.lease_record import Lease
from roomcast.ports import Clock, NewId, PortError, Rejected
from roomcast.rates import Bucket, Rate, Seldom

__all__ = [
    "ANSWERING_MAX",
    "DEAD_MAX",
    "INQUIRIES_MAX",
    "KEPT_S",
    "LATE_S",
    "LEASES_WAIT_S",
    "NODES_MAX",
    "REPORTS_ASKED",
    "REPORTS_BYTES_MAX",
    "REPORTS_PER_S",
    "REPORTS_WAIT_S",
    "Fleet",
    "Inquiries",
    "Reporter",
]

# Seconds to wait for reports. SNS and SQS take some 100 ms each way.
REPORTS_WAIT_S: Final = 2.0
# Seconds to wait for the leases, if there are some that were read before.
LEASES_WAIT_S: Final = 1.5
# How a node did tells something for so long.
LATE_S: Final = 60.0
# Inquiries about figures whose late reports are taken.
_LATE_MAX: Final = 32
# Inquiries of this node under way at once. Equal ones share one.
INQUIRIES_MAX: Final = 8
# Inquiries that this node answers at once. It passes over further ones.
ANSWERING_MAX: Final = 16
# An answer is good for so long, so that many pages cost no more than one.
KEPT_S: Final = 2.0
# Reports a second, on average, that one node asks a large fleet for: answers are then kept longer.
REPORTS_PER_S: Final = 20.0
# Reports that this node asks for, whatever the questions. A person who looks at one thing after the
# other does not come near it.
REPORTS_ASKED: Final = Rate(per_s=100.0, burst=4000.0)
# Bytes of the reports of one answer. It is copied and sent in one turn of the event loop.
REPORTS_BYTES_MAX: Final = 1024 * 1024
# Nodes of one answer, the oldest first.
NODES_MAX: Final = 500
# Dead nodes of one answer, the last ones.
DEAD_MAX: Final = 10
_TOLD: Final = Rate(per_s=1.0, burst=1.0)

_log = structlog.get_logger(__name__)


class Reporter(Protocol):
    """What this node can tell of itself."""

    async def report(self, inquiry: Inquiry) -> Mapping[str, Any]:
        """Values that JSON can have, at most REPORT_BYTES_MAX of it. `inquiry`: of SUBJECTS."""


class Nodes(Protocol):
    """The live nodes, the oldest first, and the dead ones, the last one first."""

    async def nodes_and_dead(self) -> tuple[Sequence[Lease], Sequence[Lease]]:
        """Raises PortError."""


class Post(Protocol):
    """The mailbox."""

    async def send(self, node: str, signal: Signal) -> None:
        """Raises PortError."""


class Starter(Protocol):
    """Runs the answers to inquiries."""

    def start(self, work: Coroutine[None, None, None]) -> object: ...


@dataclass(frozen=True, slots=True)
class Fleet:
    """What the nodes answered. `reports`: by lease; a node that is missing did not answer in time.

    `late`: of those whose report is from an earlier inquiry, how old it is (s). `more`: nodes
    beyond NODES_MAX, of which nothing is told. `own`: the lease of this node. `leases_age_s`: how
    long ago the leases were read; 0 = for this. `dead`: at most DEAD_MAX leases of dead nodes that
    nobody has cleaned up after, the last one first.

    Beyond REPORTS_BYTES_MAX, a report that counts something has that count alone, and another is
    left out.
    """

    leases: Sequence[Lease]
    reports: Mapping[str, Mapping[str, Any]]
    more: int
    own: str
    late: Mapping[str, float] = field(default_factory=dict)
    leases_age_s: float = 0.0
    dead: Sequence[Lease] = ()


@dataclass(slots=True)
class _Asked:
    """An inquiry under way: the leases whose reports are waited for."""

    missing: set[str]
    # Bytes of reports that still fit.
    room: int
    reports: dict[str, Mapping[str, Any]] = field(default_factory=dict)
    changed: asyncio.Event = field(default_factory=asyncio.Event)


class Inquiries:
    """One a node. `lease`: the id of its present lease."""

    def __init__(
        self,
        nodes: Nodes,
        post: Post,
        bus: SignalBus,
        background: Starter,
        reporter: Reporter,
        clock: Clock,
        new_id: NewId,
        lease: Callable[[], str],
        *,
        node: str,
    ) -> None:
        self._nodes = nodes
        self._post = post
        self._bus = bus
        self._background = background
        self._reporter = reporter
        self._clock = clock
        self._new_id = new_id
        self._lease = lease
        self._node = node
        # By the id of their signal; and those that are over, whose reports may still come.
        self._asked: dict[str, _Asked] = {}
        self._over: dict[str, _Asked] = {}
        # By lease, the newest report on how a node does, and when it came (monotonic s).
        self._newest: dict[str, tuple[float, Mapping[str, Any]]] = {}
        # When the leases were read (monotonic s), the live and the dead ones; None = not yet.
        self._known: tuple[float, Sequence[Lease], Sequence[Lease]] | None = None
        self._reading: SharedCall[None] | None = None
        self._under_way: dict[Inquiry, SharedCall[Fleet]] = {}
        # Answers that are good until then (monotonic s), at most INQUIRIES_MAX.
        self._kept: dict[Inquiry, tuple[float, Fleet]] = {}
        self._answering = 0
        self._seldom = Seldom(_TOLD)
        self._reports_asked = Bucket(REPORTS_ASKED, clock.monotonic_s())

    async def ask(self, inquiry: Inquiry) -> Fleet | None:
        """What all nodes tell. None: too many inquiries are under way, or were lately. Raises
        PortError.
        """
        now_s = self._clock.monotonic_s()
        until_s, kept = self._kept.get(inquiry, (0.0, None))
        if kept is not None and now_s < until_s:
            return kept
        asked = self._under_way.get(inquiry)
        if asked is None:
            nodes = 1 if self._known is None else max(1, min(len(self._known[1]), NODES_MAX))
            if len(self._under_way) >= INQUIRIES_MAX or not self._reports_asked.take(
                REPORTS_ASKED, now_s, nodes
            ):
                return None
            asked = self._under_way[inquiry] = SharedCall(
                self._ask(inquiry), lambda: self._under_way.pop(inquiry), name="inquiry"
            )
        return await asked.result()

    async def _ask(self, inquiry: Inquiry) -> Fleet:
        began_s, own = self._clock.monotonic_s(), self._lease()
        read_s, live, dead = await self._nodes_known()
        leases = live[:NODES_MAX]
        asked = _Asked(
            {each.node for each in leases if each.state != "starting"}, REPORTS_BYTES_MAX
        )
        signal_id = self._new_id()
        self._asked[signal_id] = asked
        try:
            if asked.missing - {own} and not self._bus.send(
                inquiry_signal(inquiry, self._node, signal_id, own)
            ):
                # Nobody hears it, so nobody is waited for.
                asked.missing = {own}
            # Beside the others: it need not wait for them, nor they for it.
            asked.reports[own] = await self._reporter.report(inquiry)
            asked.missing.discard(own)
            with suppress(TimeoutError):
                async with asyncio.timeout(REPORTS_WAIT_S):
                    while asked.missing:
                        await asked.changed.wait()
                        asked.changed.clear()
        finally:
            del self._asked[signal_id]
        late: Mapping[str, float] = {}
        if inquiry.subject == "figures":
            self._over[signal_id] = asked
            _forget_first(self._over, _LATE_MAX)
            late = self._add_late(asked, leases)
        fleet = Fleet(
            leases,
            asked.reports,
            len(live) - len(leases),
            own,
            late,
            max(0.0, began_s - read_s),
            dead[:DEAD_MAX],
        )
        # Of an inquiry that is over, only who is missing counts.
        asked.reports = {}
        self._keep(inquiry, began_s + max(KEPT_S, len(leases) / REPORTS_PER_S), fleet)
        return fleet

    async def _nodes_known(self) -> tuple[float, Sequence[Lease], Sequence[Lease]]:
        """As `_known`. Raises PortError."""
        if self._reading is None:
            self._reading = SharedCall(self._read(), self._was_read, name="inquiry leases")
        try:
            async with asyncio.timeout(LEASES_WAIT_S if self._known else None):
                await self._reading.result()
        except (TimeoutError, PortError):
            if self._known is None:
                raise
        assert self._known is not None, "they were read, now or before"
        return self._known

    async def _read(self) -> None:
        live, dead = await self._nodes.nodes_and_dead()
        self._known = self._clock.monotonic_s(), live, dead

    def _was_read(self) -> None:
        self._reading = None

    def _add_late(self, asked: _Asked, leases: Sequence[Lease]) -> Mapping[str, float]:
        """Completes the reports by those that came late, and keeps the newest of each node."""
        now_s, late = self._clock.monotonic_s(), dict[str, float]()
        for node, report in asked.reports.items():
            self._newest[node] = now_s, report
        for lease in leases:
            came_s, report = self._newest.get(lease.node, (-LATE_S, {}))
            if lease.node in asked.missing and report and now_s - came_s < LATE_S:
                asked.reports[lease.node] = report
                late[lease.node] = now_s - came_s
        alive = {lease.node for lease in leases}
        self._newest = {node: each for node, each in self._newest.items() if node in alive}
        return late

    def _keep(self, inquiry: Inquiry, until_s: float, fleet: Fleet) -> None:
        self._kept.pop(inquiry, None)
        self._kept[inquiry] = until_s, fleet
        _forget_first(self._kept, INQUIRIES_MAX)

    # ---- signals

    def heard(self, signal: Signal) -> None:
        """Take another node's inquiry, or its report on one of this node."""
        if signal.node == self._node:
            return
        try:
            if signal.kind == "report":
                self._take(*report_of(signal))
                return
            lease, inquiry = inquiry_of(signal)
        except MalformedInquiry as error:
            if (passed_over := self._told()) is not None:
                _log.warning(
                    "inquiry_malformed",
                    kind=signal.kind,
                    node=signal.node,
                    reason=str(error),
                    passed_over=passed_over,
                )
            return
        if inquiry.subject not in SUBJECTS:
            return
        if self._answering >= ANSWERING_MAX:
            if (passed_over := self._told()) is not None:
                _log.warning("inquiry_passed_over", node=signal.node, passed_over=passed_over)
            return
        self._answering += 1
        self._background.start(self._answer(signal, lease, inquiry))

    def _take(self, inquiry_id: str, lease: str, report: Mapping[str, Any], size: int) -> None:
        asked = self._asked.get(inquiry_id)
        if asked is not None and lease in asked.missing:
            asked.missing.discard(lease)
            if size <= asked.room:
                asked.room -= size
                asked.reports[lease] = report
            elif isinstance(count := report.get("count"), int):
                asked.reports[lease] = {"count": count}
            asked.changed.set()
        elif (over := self._over.get(inquiry_id)) is not None and lease in over.missing:
            over.missing.discard(lease)
            self._newest[lease] = self._clock.monotonic_s(), report

    async def _answer(self, signal: Signal, lease: str, inquiry: Inquiry) -> None:
        try:
            report = await self._reporter.report(inquiry)
            answer = report_signal(report, self._node, self._new_id(), self._lease(), signal.id)
            if not fits_report(report):
                raise Rejected("the report is too long")
            await self._post.send(lease, answer)
        except PortError as error:
            if (passed_over := self._told()) is not None:
                _log.warning(
                    "report_not_sent", to=lease, reason=str(error), passed_over=passed_over
                )
        finally:
            self._answering -= 1

    def _told(self) -> int | None:
        """None: a line of the log was written just now. Otherwise how many were not, since then."""
        return self._seldom.again(self._clock.monotonic_s())


def _forget_first(entries: dict[Any, Any], most: int) -> None:
    """Keeps the last `most`."""
    while len(entries) > most:
        del entries[next(iter(entries))]
