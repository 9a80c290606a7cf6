"""Collects information of all nodes: the live nodes, and the channels with their clients.

The first comes from the leases. For the second, the nodes are asked by a survey.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Final, Protocol

import structlog

from roomcast.concurrency import SharedCall
from roomcast.delivery.envelope import Signal
from roomcast.delivery.signal_bus import SignalBus
from roomcast.fleet.lease_record import Lease, standing
from roomcast.fleet.node_info_signals import (
    Answer,
    Answers,
    MalformedAnswer,
    answer_of,
    answer_signal,
    bounded,
    fits,
    pattern_of,
    survey_signal,
)
from roomcast.fleet.ports import Leases
from roomcast.ports import Clock, NewId

__all__ = ["ANSWERS_AT_ONCE", "ANSWERS_WAIT_S", "SURVEYS_MAX", "Counted", "Counts", "NodeInfo"]

# Seconds to wait for answers. SNS and SQS take some 100 ms each way.
ANSWERS_WAIT_S: Final = 2.0
# Surveys of this node that wait for answers at once. Equal requests share one survey.
SURVEYS_MAX: Final = 8
# Surveys that a node answers at once. It ignores further ones, and the results of these are marked
# as partial.
ANSWERS_AT_ONCE: Final = 64
# Names that are matched before other tasks have their turn: up to 3 ms, as a long pattern may have
# to be tried at each character of a long name.
_NAMES_A_TURN: Final = 100

_log = structlog.get_logger(__name__)


class Counts(Protocol):
    """The channels of this node."""

    def names(self) -> Sequence[str]: ...

    def count(self, channel: str) -> int: ...


@dataclass(frozen=True, slots=True)
class Counted:
    """Clients by channel.

    `whole`: False = a node did not answer, or there were too many channels.
    """

    channels: dict[str, int]
    whole: bool


@dataclass(slots=True)
class _Survey:
    answers: Answers
    changed: asyncio.Event


class Starter(Protocol):
    """Runs the answers to surveys."""

    def start(self, work: Coroutine[None, None, None]) -> object: ...


class ThisNode(Protocol):
    """Information about this node that is in no table, or newer than there."""

    @property
    def lease(self) -> str:
        """The id of its present lease."""

    def numbers(self, held: Lease) -> Lease:
        """Its lease with the present figures."""


class NodeInfo:
    """One a node."""

    def __init__(
        self,
        leases: Leases,
        counts: Counts,
        clock: Clock,
        new_id: NewId,
        bus: SignalBus,
        background: Starter,
        itself: ThisNode,
        *,
        node: str,
    ) -> None:
        self._leases = leases
        self._counts = counts
        self._clock = clock
        self._new_id = new_id
        self._bus = bus
        self._background = background
        self._itself = itself
        self._node = node
        self._surveys: dict[str, _Survey] = {}
        self._answering = 0
        # By pattern. Further requests for a pattern share the survey.
        self._under_way: dict[str, SharedCall[Counted | None]] = {}

    async def nodes(self) -> Sequence[Lease]:
        """The leases of the live nodes, the oldest first.

        The figures of other nodes are as old as their last heartbeat.

        Raises PortError.
        """
        return (await self.nodes_and_dead())[0]

    async def nodes_and_dead(self) -> tuple[Sequence[Lease], Sequence[Lease]]:
        """The same, and the leases of dead nodes, until the reaper has cleaned up after them.

        Of the dead, the one that was heard of last comes first. Raises PortError.
        """
        now, own = self._clock.now_ms(), self._itself.lease
        live: list[Lease] = []
        dead: list[Lease] = []
        for each in await self._leases.all():
            (live if standing(each, now) == "live" else dead).append(each)
        return (
            sorted(
                (self._itself.numbers(each) if each.node == own else each for each in live),
                key=lambda each: (each.started_at, each.node),
            ),
            sorted(dead, key=lambda each: (-each.heartbeat_at, each.node)),
        )

    async def channels(self, pattern: str) -> Counted | None:
        """Count the clients of all nodes by channel.

        `pattern`: see `fits`. None = too many surveys are under way. Raises PortError.
        """
        asked = self._under_way.get(pattern)
        if asked is None:
            if len(self._under_way) >= SURVEYS_MAX:
                return None
            asked = self._under_way[pattern] = SharedCall(
                self._survey(pattern), lambda: self._under_way.pop(pattern)
            )
        return await asked.result()

    async def _survey(self, pattern: str) -> Counted | None:
        # A node that starts may not hear yet, and has no clients.
        expected = frozenset(each.node for each in await self.nodes() if each.state != "starting")
        survey_id = self._new_id()
        survey = self._surveys[survey_id] = _Survey(
            Answers(expected | {self._itself.lease}), asyncio.Event()
        )
        try:
            if not self._bus.send(survey_signal(self._node, survey_id, pattern)):
                return None
            with suppress(TimeoutError):
                async with asyncio.timeout(ANSWERS_WAIT_S):
                    while survey.answers.missing:
                        await survey.changed.wait()
                        survey.changed.clear()
        finally:
            del self._surveys[survey_id]
        if missing := survey.answers.missing:
            _log.info("survey_unanswered", nodes=sorted(missing))
        return Counted(*survey.answers.result())

    # ---- signals

    def heard(self, signal: Signal) -> None:
        """Take a survey of this node or another, or an answer to one."""
        try:
            if signal.kind == "answer":
                self._take(*answer_of(signal))
            elif self._answering < ANSWERS_AT_ONCE:
                answering = self._answer(signal, pattern_of(signal))
                self._answering += 1
                self._background.start(answering)
            else:
                _log.warning("survey_passed_over", node=signal.node)
        except MalformedAnswer as error:
            _log.warning("survey_malformed", kind=signal.kind, node=signal.node, reason=str(error))

    def _take(self, survey_id: str, answer: Answer) -> None:
        survey = self._surveys.get(survey_id)
        if survey is not None:
            survey.answers.add(answer)
            survey.changed.set()

    async def _answer(self, signal: Signal, pattern: str) -> None:
        try:
            answer = await self._count(pattern)
        finally:
            self._answering -= 1
        if signal.node == self._node:
            self._take(signal.id, answer)
        elif not self._bus.send(answer_signal(answer, self._node, self._new_id(), signal.id)):
            _log.warning("answer_shed", node=signal.node)

    async def _count(self, pattern: str) -> Answer:
        counted: list[tuple[str, int]] = []
        for number, name in enumerate(self._counts.names(), start=1):
            if fits(name, pattern) and (clients := self._counts.count(name)):
                counted.append((name, clients))
            if number % _NAMES_A_TURN == 0:
                await asyncio.sleep(0)
        return Answer(self._itself.lease, *bounded(counted))
