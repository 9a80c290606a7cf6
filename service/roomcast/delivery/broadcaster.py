"""Sends this node's signals to the other nodes.

Signals are packed into few SNS messages, sent at a bounded rate, and dropped when too many wait.

Everything that has an offset goes through the table. Everything else (publications of channels
without history, joins, leaves) goes straight to the topic, as best effort. It must not use up the
region's SNS quota, which durable traffic needs. Hence the bounds on waiting bytes and on messages a
second: of each node, and of all nodes together (allowance.py). The fewer messages a node may send,
the less may wait, so that nothing waits for much longer than it is worth.

Signals for nodes, such as orders of the server API, have room of their own, which signals for
channels cannot take. And a few clients cannot take all the room that there is for channels. When
many do, a client that has nothing waiting can still send something small.
"""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from collections.abc import Sequence
from typing import Final

import structlog

from roomcast.delivery.allowance import Allowance
from roomcast.delivery.envelope import Signal, pack, signal_text
from roomcast.delivery.ports import Topic
from roomcast.delivery.signals import CHANNEL_KINDS, client_of
from roomcast.frozen import frozen
from roomcast.observe.counters import SignalCounters
from roomcast.ports import Clock, PortError, Throttled, UnknownOutcome

__all__ = [
    "CHANNELS_BYTES_MAX",
    "CLIENT_BYTES_MAX",
    "FIRST_BYTES",
    "FLUSH_INTERVAL_S",
    "LITTLE_BYTES",
    "MESSAGES_PER_S",
    "MUCH_BYTES_MAX",
    "PUBLISHES_AT_ONCE",
    "ROOM_PART_MIN",
    "SIGNAL_BYTES_MAX",
    "WAITING_BYTES_MAX",
    "Broadcaster",
    "Sent",
    "can_be_sent",
    "signal_bytes",
]

# How long a signal waits for others to share its message. SNS and SQS add far more.
FLUSH_INTERVAL_S: Final = 0.02
# SNS messages a second from one node, if its part of the quota allows as many: more would hold less
# each, and cost more.
MESSAGES_PER_S: Final = 20.0
_BURST: Final = 20.0
# Calls at once. One that hangs does so for 25 s, and the others go on. With more at once, more
# would hang.
PUBLISHES_AT_ONCE: Final = 4
# Bytes of signals that may wait: 34 full messages, which take two seconds at that rate. Where fewer
# messages may be sent, less may wait, in proportion; but ROOM_PART_MIN of it at least.
WAITING_BYTES_MAX: Final = 8 * 1024 * 1024
# Those of them that may be for channels, and for channels by one client.
CHANNELS_BYTES_MAX: Final = 6 * 1024 * 1024
CLIENT_BYTES_MAX: Final = 2 * 1024 * 1024
# The rest of those for channels is for clients that have little waiting, or a few others could fill
# it.
MUCH_BYTES_MAX: Final = 4 * 1024 * 1024
LITTLE_BYTES: Final = 32 * 1024
# A signal that always has room, if its client has none that waits: however many clients fill the
# room, the others can say something. So beyond these bounds there is as much for each client.
FIRST_BYTES: Final = 2 * 1024
assert CLIENT_BYTES_MAX < MUCH_BYTES_MAX < CHANNELS_BYTES_MAX < WAITING_BYTES_MAX, "room for others"
# One signal must leave room for others in a message.
SIGNAL_BYTES_MAX: Final = 128 * 1024
ROOM_PART_MIN: Final = 1 / 8
assert SIGNAL_BYTES_MAX < CLIENT_BYTES_MAX * ROOM_PART_MIN, "there is room for each"

# Done when a signal was sent or not: why the topic did not take it, None = it did.
Sent = asyncio.Future[PortError | None]

_log = structlog.get_logger(__name__)


def signal_bytes(signal: Signal) -> int | None:
    """The bytes of `signal`. None = it cannot be sent at all, and is dropped each time."""
    try:
        size = len(signal_text(signal).encode())
    except (ValueError, RecursionError):
        return None
    return size if size <= SIGNAL_BYTES_MAX else None


def can_be_sent(signal: Signal) -> bool:
    """Whether `signal` is small enough to be sent at all."""
    return signal_bytes(signal) is not None


@frozen
class _Waiting:
    """A signal that waits, and whose room it takes: a client's; "" = nobody's in particular.

    `sent`: where it is told why the topic did not take it; None = nobody waits for that.
    """

    text: str
    size: int
    is_for_channel: bool
    client: str
    sent: Sent | None = None


class Broadcaster:
    """This node's outgoing signals. `run` is its background task."""

    def __init__(self, topic: Topic, clock: Clock, allowance: Allowance) -> None:
        self._topic = topic
        self._clock = clock
        self._allowance = allowance
        self._waiting: deque[_Waiting] = deque()
        # Their bytes; those for channels; and those by clients, none of which is 0.
        self._bytes = 0
        self._channels_bytes = 0
        self._client_bytes: Counter[str] = Counter()
        self._shed = 0
        self._wake = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()
        self._places = asyncio.Semaphore(PUBLISHES_AT_ONCE)
        self._publishing = 0
        self.counters = SignalCounters()

    @property
    def waiting_bytes(self) -> int:
        """Bytes of signals that have not been given to the topic yet."""
        return self._bytes

    def publish(self, signal: Signal) -> Sent | None:
        """Queue `signal`, and tell when the topic has it. None = it was dropped, as by `send`."""
        sent: Sent = asyncio.get_running_loop().create_future()
        return sent if self.send(signal, sent) else None

    def send(self, signal: Signal, sent: Sent | None = None) -> bool:
        """Queue `signal`. False = it was dropped, because too many wait or it is too large.

        `sent`: where it is told what became of it.
        """
        try:
            text = signal_text(signal)
        except (ValueError, RecursionError):
            return False
        is_for_channel = signal.kind in CHANNEL_KINDS
        client = client_of(signal) if is_for_channel else ""
        one = _Waiting(text, len(text.encode()), is_for_channel, client, sent)
        if one.size > SIGNAL_BYTES_MAX or not self._has_room(one):
            self._shed += 1
            self.counters.signals["too_large" if one.size > SIGNAL_BYTES_MAX else "shed"] += 1
            return False
        self._waiting.append(one)
        self._count(one, one.size)
        self._idle.clear()
        self._wake.set()
        return True

    def _has_room(self, one: _Waiting) -> bool:
        part = max(ROOM_PART_MIN, min(1.0, self._allowance.per_s / MESSAGES_PER_S))
        # What channels have beyond their bound takes none of the room of orders.
        beyond = max(0, self._channels_bytes - CHANNELS_BYTES_MAX * part)
        has_room = self._bytes - beyond + one.size <= WAITING_BYTES_MAX * part
        if not one.is_for_channel:
            return has_room
        of_client = self._client_bytes[one.client] + one.size if one.client else 0
        if of_client == one.size <= FIRST_BYTES:
            return True
        bytes_max = CHANNELS_BYTES_MAX if of_client <= LITTLE_BYTES else MUCH_BYTES_MAX
        has_room = has_room and self._channels_bytes + one.size <= bytes_max * part
        return has_room and of_client <= CLIENT_BYTES_MAX * part

    def _count(self, one: _Waiting, size: int) -> None:
        """Add `size`, which is below 0 when `one` does not wait any more."""
        self._bytes += size
        if one.is_for_channel:
            self._channels_bytes += size
        if one.client:
            self._client_bytes[one.client] += size
            if not self._client_bytes[one.client]:
                del self._client_bytes[one.client]

    async def run(self) -> None:
        """Send the waiting signals, until cancelled.

        Signals keep their order within a message. To send one message after the other would not
        keep more order, because a standard topic and a standard queue do not keep the order of
        messages.
        """
        tokens, at = _BURST, self._clock.monotonic_s()
        async with asyncio.TaskGroup() as publishing:
            while True:
                await self._wake.wait()
                await asyncio.sleep(FLUSH_INTERVAL_S)
                now = self._clock.monotonic_s()
                tokens, at = min(_BURST, tokens + (now - at) * MESSAGES_PER_S), now
                wait_s = max((1 - tokens) / MESSAGES_PER_S, self._allowance.wait_s(now))
                if wait_s > 0:
                    # The allowance may grow meanwhile.
                    await asyncio.sleep(min(wait_s, 1 / MESSAGES_PER_S))
                    continue
                tokens -= 1
                self._allowance.take(now)
                await self._places.acquire()
                self._publishing += 1
                publishing.create_task(self._publish(*self._take()))

    async def flushed(self) -> None:
        """Wait until all signals are sent. For the end of a node; the caller bounds the time."""
        await self._idle.wait()

    def _take(self) -> tuple[str, int, list[Sent]]:
        """One message with the signals that fit, from the front; their number; and who is told."""
        told: list[Sent] = []
        body, count = next(pack((one.text for one in self._waiting), signals=True))
        for _ in range(count):
            one = self._waiting.popleft()
            self._count(one, -one.size)
            if one.sent is not None:
                told.append(one.sent)
        if not self._waiting:
            self._wake.clear()
        return body, count, told

    async def _publish(self, body: str, count: int, told: Sequence[Sent]) -> None:
        outcome = "not_sent"
        failure: PortError | None = UnknownOutcome("the node ends")
        try:
            await self._topic.publish(body)
            outcome, failure = "sent", None
        except PortError as error:
            # Another attempt might repeat them, and nobody would miss most of them: whoever does
            # is told.
            failure = error
            if isinstance(error, Throttled):
                self._allowance.throttled(self._clock.monotonic_s())
            _log.warning("signals_not_sent", signals=count, reason=str(error))
        finally:
            self.counters.messages[outcome] += 1
            self.counters.signals[outcome] += count
            for sent in told:
                if not sent.done():
                    sent.set_result(failure)
            self._places.release()
            self._publishing -= 1
        if self._shed:
            _log.warning("signals_shed", signals=self._shed)
            self._shed = 0
        if not self._waiting and not self._publishing:
            self._idle.set()
