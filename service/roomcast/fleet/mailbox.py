"""Sends a signal to one other node: straight into its queue, whose name its lease has."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from typing import Final

from roomcast.concurrency import SharedCall
from roomcast.delivery.envelope import ENVELOPE_BYTES_MAX, Signal, pack, signal_text
from roomcast.delivery.ports import Gone, QueuePost
from roomcast.fleet.ports import Leases
from roomcast.observe.counters import MailboxCounters
from roomcast.ports import Clock, PortError, Throttled, UnknownOutcome
from roomcast.rates import Bucket, Rate

__all__ = ["LEASES_S", "POST_S", "Mailbox", "NodeUnknown"]

# Leases that were read are good for so long, and then until they could be read again. A node whose
# queue was replaced is looked up at once.
LEASES_S: Final = 10.0
# The time of one message, with what the SDK repeats. Those that wait behind one that hangs have an
# answer to come as well, which its sender does not wait for much longer.
POST_S: Final = 2.0
# How often they are read because somebody names a node that is not among them. Anybody can.
_LOOK_UPS: Final = Rate(per_s=1.0, burst=4.0)
# Leases that were read within this time tell who there is as well as reading them once more: no
# node has clients so soon after its lease is there. They are read at that rate, if they can be.
_JUST_S: Final = 2.0
assert 1 / _LOOK_UPS.per_s < _JUST_S, "a look-up comes in time"
# Of a message, for its signals with their commas: it has something around them.
_ROOM_BYTES: Final = ENVELOPE_BYTES_MAX - 64
# The largest signal that need not wait behind larger ones. What clients say is mostly shorter.
_SMALL_BYTES: Final = 4 * 1024


class NodeUnknown(PortError):
    """No node has this id, or only one that is dead and cleaned up after."""


class Mailbox:
    """One a node. Delivery is at least once, or not at all if the other node's queue is replaced
    meanwhile.

    One message is under way to each node. Signals that come meanwhile follow together in the next
    ones, so that many of them cost few calls. Small ones do not wait behind large ones, of which
    anybody may send as many as fill all messages. So signals do not keep their order, unless their
    senders ask for it, whose signals count as small ones.
    """

    def __init__(self, post: QueuePost, leases: Leases, clock: Clock) -> None:
        self._post = post
        self._leases = leases
        self._clock = clock
        self.counters = MailboxCounters()
        # The queues of nodes, those nodes by badge, and when they were read (monotonic s).
        self._queues: Mapping[str, str] = {}
        self._by_badge: Mapping[str, Sequence[str]] = {}
        self._read_s = float("-inf")
        self._look_ups = Bucket(_LOOK_UPS, clock.monotonic_s())
        self._reading: SharedCall[None] | None = None
        # By node, the signals that wait for the message under way.
        self._outboxes: dict[str, _Outbox] = {}
        self._carrying: set[asyncio.Task[None]] = set()

    async def nodes_with(self, badge: str) -> Sequence[str]:
        """The nodes with this badge; none, if they are not known. Raises PortError."""
        age_s = self._clock.monotonic_s() - self._read_s
        # Also who is known is looked up, other than in `send`: what has no answer would be lost
        # without a word in a queue that its node has replaced, which takes messages for a minute.
        must_look = age_s > LEASES_S or badge not in self._by_badge
        if must_look and not await self._look_up() and age_s > _JUST_S:
            raise Throttled("leases could not be read lately")
        return self._by_badge.get(badge, ())

    async def send(self, node: str, signal: Signal, *, in_order: bool = False) -> None:
        """Put `signal` into the queue of `node`. The caller bounds how many wait. `in_order`: not
        before an earlier one, however large that is; for what clients cannot send.

        Raises PortError, such as NodeUnknown, and ValueError if it does not fit a message.
        """
        waiting = _Waiting(signal_text(signal))
        if waiting.size > _ROOM_BYTES:
            raise ValueError("a signal that exceeds an envelope")
        began_s = self._clock.monotonic_s()
        if node not in self._queues:
            await self._look_up()
        elif began_s - self._read_s > LEASES_S:
            # Who is known need not wait for a table that may not answer.
            self._begin_look_up()
        if node not in self._queues:
            self.counters.signals["no_node"] += 1
        self._queue(node)
        if (outbox := self._outboxes.get(node)) is None:
            outbox = self._outboxes[node] = _Outbox()
            carrying = asyncio.create_task(self._carry(node, outbox), name="mailbox")
            self._carrying.add(carrying)
            carrying.add_done_callback(self._carrying.discard)
        outbox.add(waiting, in_order)
        if (failure := await waiting.sent) is not None:
            self.counters.signals["not_sent"] += 1
            raise failure
        self.counters.signals["sent"] += 1
        self.counters.seconds.add(self._clock.monotonic_s() - began_s)

    async def _carry(self, node: str, outbox: _Outbox) -> None:
        """Send what waits, one message after the other, until nothing waits."""
        batch = list[_Waiting]()
        try:
            while batch := outbox.take():
                body, _ = next(pack([waiting.text for waiting in batch], signals=True))
                failure: PortError | None = None
                try:
                    async with asyncio.timeout(POST_S):
                        await self._send(node, body)
                except PortError as error:
                    failure = error
                except TimeoutError:
                    failure = UnknownOutcome(f"not sent within {POST_S:g} s")
                self.counters.messages["sent" if failure is None else "not_sent"] += 1
                _tell(batch, failure)
        finally:
            del self._outboxes[node]
            _tell([*batch, *outbox.small, *outbox.large], UnknownOutcome("the node ends"))

    async def _send(self, node: str, body: str) -> None:
        try:
            await self._post.post(self._queue(node), body)
        except Gone:
            # It has another one by now, or is no more.
            await self._look_up()
            await self._post.post(self._queue(node), body)

    def _queue(self, node: str) -> str:
        queue = self._queues.get(node)
        if queue is None:
            raise NodeUnknown(f"no node {node!r}")
        return queue

    async def _look_up(self) -> bool:
        """Read the leases, unless they were read too often lately, or could not be: then it is
        False. Raises PortError.
        """
        if (reading := self._begin_look_up()) is None:
            return False
        await reading.result()
        return True

    def _begin_look_up(self) -> SharedCall[None] | None:
        """The read of the leases, which all who ask meanwhile share. None: they were read too often
        lately.
        """
        if self._reading is None and self._look_ups.take(_LOOK_UPS, self._clock.monotonic_s()):
            self._reading = SharedCall(self._read_leases(), self._was_read, name="mailbox leases")
        return self._reading

    def _was_read(self) -> None:
        self._reading = None

    async def _read_leases(self) -> None:
        began_s = self._clock.monotonic_s()
        # Expired ones count as well. Expiry depends on clocks, and on heartbeats that the table may
        # not take. The queue of a node that is dead is there until it is cleaned up after.
        leases = [lease for lease in await self._leases.all() if not lease.reaped]
        self._queues = {lease.node: lease.queue for lease in leases}
        by_badge: dict[str, list[str]] = {}
        for lease in leases:
            by_badge.setdefault(lease.badge, []).append(lease.node)
        self._by_badge = by_badge
        self._read_s = began_s


class _Waiting:
    """A signal that waits. `sent`: why it could not be sent; None = it was."""

    __slots__ = ("sent", "size", "text")

    def __init__(self, text: str) -> None:
        self.text = text
        # With the comma behind it.
        self.size = len(text.encode()) + 1
        self.sent: asyncio.Future[PortError | None] = asyncio.get_running_loop().create_future()


class _Outbox:
    """The signals that wait for the message under way, the oldest first."""

    __slots__ = ("_is_turn_of_large", "large", "small")

    def __init__(self) -> None:
        self.small: deque[_Waiting] = deque()
        self.large: deque[_Waiting] = deque()
        self._is_turn_of_large = True

    def add(self, waiting: _Waiting, in_order: bool) -> None:
        is_small = in_order or waiting.size <= _SMALL_BYTES
        (self.small if is_small else self.large).append(waiting)

    def take(self) -> list[_Waiting]:
        """Those of the next message: small ones, and large ones as far as these leave room. One
        large one comes first in every other message, or many small ones would keep all of these
        waiting. They leave, and so do those for which nobody waits any more.
        """
        batch = list[_Waiting]()
        if self._is_turn_of_large:
            _fill(batch, self.large, 1)
        self._is_turn_of_large = not self._is_turn_of_large
        _fill(batch, self.small)
        _fill(batch, self.large)
        return batch


def _fill(batch: list[_Waiting], line: deque[_Waiting], most: int | None = None) -> None:
    """Add as many of the first of `line` as fit a message with `batch`; `most` at most."""
    left = _ROOM_BYTES - sum(waiting.size for waiting in batch)
    added = 0
    while line and added != most:
        if line[0].sent.done():
            line.popleft()
            continue
        if line[0].size > left:
            return
        left -= line[0].size
        added += 1
        batch.append(line.popleft())


def _tell(batch: Iterable[_Waiting], failure: PortError | None) -> None:
    for waiting in batch:
        if not waiting.sent.done():
            waiting.sent.set_result(failure)
