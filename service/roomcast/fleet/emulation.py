"""Brings a client's commands to its session, on whichever node that is.

Clients whose replies come as a stream send their commands by requests of their own, which a load
balancer may lead to any node. Those of one session that reach one node go on in their order: one
signal is under way, and what comes meanwhile follows together in the next one.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterable
from typing import Final, Protocol

import structlog

from roomcast.concurrency import Budget
from roomcast.delivery.envelope import Signal
from roomcast.fleet.asking import Asking
from roomcast.fleet.emulation_signals import (
    FRAMES_BYTES_MAX,
    SESSION_CHARS_MAX,
    Answer,
    MalformedEmulationSignal,
    Outcome,
    Posted,
    answer_of,
    answer_signal,
    posted_of,
    posted_signal,
)
from roomcast.fleet.lease_record import NODE_CHARS_MAX
from roomcast.fleet.mailbox import Mailbox, NodeUnknown
from roomcast.observe.counters import EmulationCounters, MailboxCounters
from roomcast.ports import NewId, PortError
from roomcast.rates import Rate, Seldom

__all__ = [
    "ANSWERS_MAX",
    "ANSWER_S",
    "HEARD_A_TURN",
    "HEARD_WAITING_MAX",
    "LANES_MAX",
    "LARGE_BYTES_MAX",
    "NODES_MAX",
    "SMALL_BYTES",
    "WAITING_BYTES_MAX",
    "WAITING_MAX",
    "Emulation",
    "Session",
    "Sessions",
]

# Seconds to wait for the other node's answer: SDKs give a command up after 5 s. SQS takes some
# 20 ms each way.
ANSWER_S: Final = 4.0
# Sessions of other nodes with commands under way, and requests of one of them that wait.
LANES_MAX: Final = 10_000
WAITING_MAX: Final = 32
# Bytes of all commands for other nodes' sessions that are under way or wait. Anybody can send some,
# with a session that is none. The last of this room are for requests of SMALL_BYTES at most: most
# are, and the others could fill it. One of these that is the first of its session has room in any
# case: LANES_MAX bounds them.
WAITING_BYTES_MAX: Final = 16 * 1024 * 1024
LARGE_BYTES_MAX: Final = 12 * 1024 * 1024
SMALL_BYTES: Final = 2 * 1024
# Answers to other nodes that are under way. A node that gets none takes its commands for lost.
ANSWERS_MAX: Final = 10_000
# Signals of other nodes with commands that are taken, and answered, in one turn of the event loop:
# some 2 ms. A message may hold a thousand, and one receive ten messages. And how many wait for a
# later turn: beyond that, their nodes get no answer.
HEARD_A_TURN: Final = 64
HEARD_WAITING_MAX: Final = 10_000
# Nodes that a session's commands came from and that are remembered.
NODES_MAX: Final = 256
# Log lines a second of each kind: clients cause them.
_TOLD: Final = Rate(per_s=1.0, burst=1.0)

_log = structlog.get_logger(__name__)


class Session(Protocol):
    """One client's stream."""

    def take(self, frame: bytes) -> bool:
        """Take commands, after those that came before. False: too many wait."""


class Sessions:
    """The sessions of this node."""

    def __init__(self) -> None:
        self._by_name: dict[str, Session] = {}
        # By session and node, the number of the newest signal from there.
        self._numbers: dict[str, dict[str, int]] = {}

    def __len__(self) -> int:
        return len(self._by_name)

    def enter(self, name: str, session: Session) -> None:
        """From now on, commands for `name` are for `session`."""
        self._by_name[name] = session

    def leave(self, name: str) -> None:
        """Idempotent."""
        self._by_name.pop(name, None)
        self._numbers.pop(name, None)

    def take(self, name: str, frame: bytes) -> Outcome:
        """Have the session take commands."""
        session = self._by_name.get(name)
        if session is None:
            return Outcome.UNKNOWN
        return Outcome.TAKEN if session.take(frame) else Outcome.BUSY

    def take_from(self, node: str, posted: Posted) -> Answer | None:
        """Have the session take commands that came from `node`.

        None: they came before, or later ones did. A node sends on when it was answered, or has
        given up.
        """
        session = self._by_name.get(posted.session)
        if session is None:
            return Answer(Outcome.UNKNOWN)
        numbers = self._numbers.setdefault(posted.session, {})
        if posted.number <= numbers.get(node, 0):
            return None
        # Those that were heard of last are the last.
        numbers.pop(node, None)
        numbers[node] = posted.number
        if len(numbers) > NODES_MAX:
            del numbers[next(iter(numbers))]
        for taken, frame in enumerate(posted.frames):
            if not session.take(frame):
                return Answer(Outcome.BUSY, taken)
        return Answer(Outcome.TAKEN, len(posted.frames))


class Emulation:
    """One a node."""

    def __init__(
        self,
        sessions: Sessions,
        mailbox: Mailbox,
        new_id: NewId,
        lease: Callable[[], str],
    ) -> None:
        """`lease`: the id of this node's present lease, by which others find it."""
        self.sessions = sessions
        self.counters = EmulationCounters()
        self._mailbox = mailbox
        self._asking = Asking[Answer](mailbox, ANSWER_S, ANSWERS_MAX, self._tell_not_answered)
        self._new_id = new_id
        self._lease = lease
        # By node and session, the requests that wait for the one under way.
        self._lanes: dict[tuple[str, str], deque[_Request]] = {}
        # Signals with commands that were sent so far.
        self._sent = 0
        self._carrying: set[asyncio.Task[None]] = set()
        # Signals with commands of other nodes that wait for a later turn.
        self._heard: deque[Signal] = deque()
        self._budget = Budget(HEARD_A_TURN, self._take_waiting)
        self._waiting_bytes = 0
        self._not_passed_on, self._not_answered = Seldom(_TOLD), Seldom(_TOLD)
        self._malformed = Seldom(_TOLD)

    async def take(self, node: str, session: str, frame: bytes) -> Outcome:
        """Bring commands to the session. Returns when it has them, or it is clear that it has
        not.
        """
        outcome = self.sessions.take(session, frame)
        is_here = outcome is not Outcome.UNKNOWN or node == self._lease()
        if is_here or len(session) > SESSION_CHARS_MAX or len(node) > NODE_CHARS_MAX:
            self.counters.requested("here", outcome.value)
            return outcome
        outcome = await self._pass_on(node, session, frame)
        self.counters.requested("mailbox", outcome.value)
        return outcome

    async def _pass_on(self, node: str, session: str, frame: bytes) -> Outcome:
        lane = self._lanes.get((node, session))
        is_first, is_small = lane is None, len(frame) <= SMALL_BYTES
        bytes_max = WAITING_BYTES_MAX if is_small else LARGE_BYTES_MAX
        if self._waiting_bytes + len(frame) > bytes_max and not (is_first and is_small):
            return Outcome.BUSY
        if lane is None:
            if len(self._lanes) >= LANES_MAX:
                return Outcome.BUSY
            lane = self._lanes[node, session] = deque()
        if len(lane) >= WAITING_MAX:
            return Outcome.BUSY
        request = _Request(frame)
        lane.append(request)
        if is_first:
            carrying = asyncio.create_task(self._carry(node, session, lane), name="emulation")
            self._carrying.add(carrying)
            carrying.add_done_callback(self._carrying.discard)
        self._waiting_bytes += len(frame)
        request.outcome.add_done_callback(lambda _: self._gone(len(frame)))
        return await request.outcome

    def _gone(self, size: int) -> None:
        self._waiting_bytes -= size

    @property
    def mailbox_counters(self) -> MailboxCounters:
        """Of the mailbox through which commands are passed on."""
        return self._mailbox.counters

    async def finish(self) -> None:
        """Wait until other nodes are answered. The caller bounds the time."""
        await self._asking.finish()

    # ---- this node's clients' commands for other nodes' sessions

    async def _carry(self, node: str, session: str, lane: deque[_Request]) -> None:
        """Send what waits, one signal after the other, until nothing waits."""
        batch, outcome = list[_Request](), Outcome.TAKEN
        try:
            while lane and outcome is Outcome.TAKEN:
                batch, outcome = _batch(lane), Outcome.LOST
                frames = tuple(request.frame for request in batch)
                self._sent += 1
                answer = await self._ask(node, Posted(session, frames, self._sent))
                outcome = answer.outcome
                # Who is told that it was not taken may say it again.
                _tell(batch[: answer.taken], Outcome.TAKEN)
                _tell(batch, outcome)
        finally:
            del self._lanes[node, session]
            # What follows a command that was not taken would be carried out without it.
            _tell([*batch, *lane], outcome)

    async def _ask(self, node: str, posted: Posted) -> Answer:
        signal = posted_signal(self._lease(), self._new_id(), posted)
        began_s = _now_s()
        try:
            answer = await self._asking.ask(node, signal)
            self.counters.answer_s.add(_now_s() - began_s)
            return answer
        except NodeUnknown:
            return Answer(Outcome.UNKNOWN)
        except PortError as error:
            if (passed_over := self._not_passed_on.again(_now_s())) is not None:
                _log.warning(
                    "commands_not_passed_on", to=node, reason=str(error), passed_over=passed_over
                )
            return Answer(Outcome.LOST)

    # ---- signals of other nodes

    def heard(self, signal: Signal) -> None:
        """Take commands for a session here, or another node's answer. Commands that are too many
        for this turn are taken in a later one, in their order.
        """
        if signal.kind == "commands_taken" or (self._budget.left and not self._heard):
            self._take_heard(signal)
        elif len(self._heard) < HEARD_WAITING_MAX:
            self._heard.append(signal)

    def _take_waiting(self) -> None:
        while self._heard and self._budget.left:
            self._take_heard(self._heard.popleft())

    def _take_heard(self, signal: Signal) -> None:
        try:
            if signal.kind == "commands_taken":
                self._asking.answered(*answer_of(signal))
                return
            self._budget.take()
            if (answer := self.sessions.take_from(signal.node, posted_of(signal))) is not None:
                self.counters.for_others[answer.outcome.value] += 1
                self._asking.answer(
                    signal.node, answer_signal(self._lease(), self._new_id(), signal.id, answer)
                )
            else:
                self.counters.for_others["repeated"] += 1
        except MalformedEmulationSignal as error:
            self.counters.for_others["malformed"] += 1
            if (passed_over := self._malformed.again(_now_s())) is not None:
                _log.warning(
                    "commands_malformed",
                    node=signal.node,
                    reason=str(error),
                    passed_over=passed_over,
                )

    def _tell_not_answered(self, node: str, reason: str) -> None:
        if (passed_over := self._not_answered.again(_now_s())) is not None:
            _log.warning("commands_not_answered", to=node, reason=reason, passed_over=passed_over)


class _Request:
    """Commands that wait."""

    __slots__ = ("frame", "outcome")

    def __init__(self, frame: bytes) -> None:
        self.frame = frame
        self.outcome: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()


def _now_s() -> float:
    return asyncio.get_running_loop().time()


def _batch(lane: deque[_Request]) -> list[_Request]:
    """The oldest requests, as many as fit one signal, or one. They leave `lane`."""
    batch = [lane.popleft()]
    size = len(batch[0].frame)
    while lane and size + len(lane[0].frame) <= FRAMES_BYTES_MAX:
        size += len(lane[0].frame)
        batch.append(lane.popleft())
    return batch


def _tell(requests: Iterable[_Request], outcome: Outcome) -> None:
    for request in requests:
        if not request.outcome.done():
            request.outcome.set_result(outcome)
