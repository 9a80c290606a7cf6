"""Brings a client's commands to its session, on whichever node that is.

Clients whose replies come as a stream send their commands by requests of their own, which a load
balancer may lead to any node. Those of one session that reach one node go on in their order: one
signal is under way, and what comes meanwhile follows together in the next one.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Final, Protocol

import structlog

from roomcast.delivery.envelope import Signal
from roomcast.fleet.emulation_signals import (
    FRAMES_BYTES_MAX,
    SESSION_CHARS_MAX,
    MalformedEmulationSignal,
    Outcome,
    Posted,
    answer_of,
    answer_signal,
    posted_of,
    posted_signal,
)
from roomcast.fleet.lanes import Lanes
from roomcast.fleet.mailbox import Mailbox, NodeUnknown
from roomcast.ports import NewId, PortError
from roomcast.rates import Rate, Seldom

__all__ = [
    "ANSWERS_MAX",
    "ANSWER_S",
    "LANES_MAX",
    "NODE_CHARS_MAX",
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
# with a session that is none.
WAITING_BYTES_MAX: Final = 16 * 1024 * 1024
# Answers to other nodes that are under way. A node that gets none takes its commands for lost.
ANSWERS_MAX: Final = 10_000
# A longer name is no node's.
NODE_CHARS_MAX: Final = 256
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

    def __len__(self) -> int:
        return len(self._by_name)

    def enter(self, name: str, session: Session) -> None:
        """From now on, commands for `name` are for `session`."""
        self._by_name[name] = session

    def leave(self, name: str) -> None:
        """Idempotent."""
        self._by_name.pop(name, None)

    def take(self, name: str, frame: bytes) -> Outcome:
        """Have the session take commands."""
        session = self._by_name.get(name)
        if session is None:
            return Outcome.UNKNOWN
        return Outcome.TAKEN if session.take(frame) else Outcome.BUSY


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
        self._mailbox = mailbox
        self._new_id = new_id
        self._lease = lease
        # By node and session, requests. What follows commands that were not taken would be carried
        # out without them.
        self._lanes: Lanes[tuple[str, str], bytes, Outcome] = Lanes(
            self._ask,
            room=FRAMES_BYTES_MAX,
            stops=lambda outcome: outcome is not Outcome.TAKEN,
            leaves_out=False,
            cut_off=Outcome.LOST,
            name="emulation",
        )
        # The signals that wait for their answer.
        self._asked: dict[str, asyncio.Future[Outcome]] = {}
        self._answering: set[asyncio.Task[None]] = set()
        self._waiting_bytes = 0
        self._not_passed_on, self._not_answered = Seldom(_TOLD), Seldom(_TOLD)
        self._malformed = Seldom(_TOLD)

    async def take(self, node: str, session: str, frame: bytes) -> Outcome:
        """Bring commands to the session. Returns when it has them, or it is clear that it has
        not.
        """
        outcome = self.sessions.take(session, frame)
        if outcome is not Outcome.UNKNOWN or node == self._lease():
            return outcome
        if len(session) > SESSION_CHARS_MAX or len(node) > NODE_CHARS_MAX:
            return outcome
        if self._waiting_bytes + len(frame) > WAITING_BYTES_MAX:
            return Outcome.BUSY
        to = (node, session)
        if to not in self._lanes and len(self._lanes) >= LANES_MAX:
            return Outcome.BUSY
        if self._lanes.waiting(to) >= WAITING_MAX:
            return Outcome.BUSY
        taken = self._lanes.add(to, frame, len(frame))
        self._waiting_bytes += len(frame)
        taken.add_done_callback(lambda _: self._gone(len(frame)))
        return await taken

    def _gone(self, size: int) -> None:
        self._waiting_bytes -= size

    async def finish(self) -> None:
        """Wait until other nodes are answered. The caller bounds the time."""
        while self._answering:
            await asyncio.wait(self._answering)

    # ---- this node's clients' commands for other nodes' sessions

    async def _ask(self, to: tuple[str, str], frames: Sequence[bytes]) -> Outcome:
        """Send commands to a node and a session there, and wait for the answer."""
        node, session = to
        posted = Posted(session, tuple(frames))
        signal = posted_signal(self._lease(), self._new_id(), posted)
        asked: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
        self._asked[signal.id] = asked
        try:
            async with asyncio.timeout(ANSWER_S):
                await self._mailbox.send(node, signal)
                return await asked
        except NodeUnknown:
            return Outcome.UNKNOWN
        except (TimeoutError, PortError) as error:
            reason = str(error) or "no answer in time"
            _warn(self._not_passed_on, "commands_not_passed_on", to=node, reason=reason)
            return Outcome.LOST
        finally:
            del self._asked[signal.id]

    # ---- signals of other nodes

    def heard(self, signal: Signal) -> None:
        """Take commands for a session here, or another node's answer."""
        try:
            if signal.kind == "commands_taken":
                self._answered(*answer_of(signal))
            else:
                outcome = self._take_all(posted_of(signal))
                self._begin_answer(signal, outcome)
        except MalformedEmulationSignal as error:
            _warn(self._malformed, "commands_malformed", node=signal.node, reason=str(error))

    def _answered(self, asked: str, outcome: Outcome) -> None:
        waiting = self._asked.get(asked)
        if waiting is not None and not waiting.done():
            waiting.set_result(outcome)

    def _take_all(self, posted: Posted) -> Outcome:
        for number, frame in enumerate(posted.frames):
            outcome = self.sessions.take(posted.session, frame)
            if outcome is not Outcome.TAKEN:
                # There is one answer for all of them, and it must not refuse what was taken.
                return Outcome.LOST if number else outcome
        return Outcome.TAKEN

    def _begin_answer(self, signal: Signal, outcome: Outcome) -> None:
        if len(self._answering) < ANSWERS_MAX:
            answering = asyncio.create_task(self._answer(signal, outcome), name="answer")
            self._answering.add(answering)
            answering.add_done_callback(self._answering.discard)

    async def _answer(self, signal: Signal, outcome: Outcome) -> None:
        answer = answer_signal(self._lease(), self._new_id(), signal.id, outcome)
        try:
            async with asyncio.timeout(ANSWER_S):
                await self._mailbox.send(signal.node, answer)
        except (TimeoutError, PortError) as error:
            reason = str(error) or "not done in time"
            _warn(self._not_answered, "commands_not_answered", to=signal.node, reason=reason)


def _warn(seldom: Seldom, event: str, **about: str) -> None:
    if (passed_over := seldom.again(asyncio.get_running_loop().time())) is not None:
        _log.warning(event, **about, passed_over=passed_over)
