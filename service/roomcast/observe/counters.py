"""What is counted: plain numbers that grow, which somebody reads now and then. Nothing here names a client or a channel."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from enum import Enum
from math import inf
from typing import Final, TypeVar

from roomcast.wire.codes import Closing, Disconnect, Error, code_of

__all__ = [
    "ATTEMPT_BOUNDS",
    "BATCH_BOUNDS",
    "LATENCY_BOUNDS_S",
    "LOSS_BOUNDS",
    "TURN_BOUNDS_S",
    "WRITER_BOUNDS",
    "AppendCounters",
    "ClientCounters",
    "DeliveryCounters",
    "FanoutCounters",
    "Histogram",
    "HookCounters",
    "HookOutcome",
    "Limit",
    "QueueCounters",
    "SignalCounters",
    "count",
]

# Seconds; from a write to a table in the same region to a time-out.
LATENCY_BOUNDS_S: Final = (
    0.0025,
    0.005,
    0.01,
    0.025,
    0.05,
    0.1,
    0.25,
    0.5,
    1.0,
    2.5,
    5.0,
    10.0,
    30.0,
    60.0,
)
# Publications of one append.
BATCH_BOUNDS: Final = (1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0)
# Writes sent for one append, races lost before one, other writers of its channel.
ATTEMPT_BOUNDS: Final = (1.0, 2.0, 3.0, 5.0, 10.0, 20.0)
LOSS_BOUNDS: Final = (0.0, 1.0, 2.0, 5.0, 10.0, 20.0)
# Seconds; 0: it was its turn at once.
TURN_BOUNDS_S: Final = (0.0, *LATENCY_BOUNDS_S)
WRITER_BOUNDS: Final = (0.0, 1.0, 2.0, 5.0, 10.0, 20.0, 50.0)

Key = TypeVar("Key", bound=Hashable)


def count(counts: dict[Key, int], key: Key, by: int = 1) -> None:
    """Whoever uses it sees to it that there are few keys."""
    counts[key] = counts.get(key, 0) + by


class Histogram:
    """How many values were up to each of `bounds`, which ascend, and their sum."""

    __slots__ = ("_counts", "bounds", "sum")

    def __init__(self, bounds: Sequence[float] = LATENCY_BOUNDS_S) -> None:
        self.bounds = bounds
        # The last one is of those above every bound.
        self._counts = [0] * (len(bounds) + 1)
        self.sum = 0.0

    def add(self, value: float) -> None:
        self._counts[bisect_left(self.bounds, value)] += 1
        self.sum += value

    @property
    def count(self) -> int:
        """Of all values."""
        return sum(self._counts)

    def copy(self) -> Histogram:
        """It as it is now."""
        copied = Histogram(self.bounds)
        copied._counts = list(self._counts)
        copied.sum = self.sum
        return copied

    def since(self, earlier: Histogram) -> Histogram:
        """What was added after `earlier` was copied from it."""
        assert self.bounds == earlier.bounds, "one is a copy of the other"
        added = Histogram(self.bounds)
        added._counts = [
            now - then for now, then in zip(self._counts, earlier._counts, strict=True)
        ]
        added.sum = self.sum - earlier.sum
        return added

    def mean(self) -> float | None:
        """None: there is no value."""
        return self.sum / self.count if self.count else None

    def quantile(self, part: float) -> float | None:
        """The least bound that `part` of the values are not above; infinity, if they are above every one. None: no value."""
        wanted = part * self.count
        return (
            next(bound for bound, number in self.cumulative() if number >= wanted)
            if self.count
            else None
        )

    def cumulative(self) -> Iterator[tuple[float, int]]:
        """Each bound, infinity at last, with how many values are not above it."""
        total = 0
        for bound, here in zip((*self.bounds, inf), self._counts, strict=True):
            total += here
            yield bound, total


class Limit(Enum):
    """What a client may run into."""

    # The node has client.connection_limit connections, or drains.
    CONNECTIONS = "connections"
    USER_CONNECTIONS = "user_connections"
    # client.channel_limit, of one connection.
    CHANNELS = "channels"
    MESSAGE_SIZE = "message_size"
    PUBLISH_RATE = "publish_rate"
    COMMAND_RATE = "command_rate"
    # Pings and pongs of WebSocket.
    CONTROL_RATE = "control_rate"
    HANDSHAKE_RATE = "handshake_rate"
    # The node has no place for a further connection, of whatever kind.
    SOCKETS = "sockets"
    # A page from elsewhere.
    ORIGIN = "origin"


@dataclass(slots=True)
class ClientCounters:
    """What the clients of a node did, and what became of it.

    `connections`: those that were opened. `commands`: by method and the code of the answer, 0 = a
    result; `disconnects`: by code. Codes that applications made up are "application". `limits`: by
    the value of a Limit. `token_failures`: by reason. `received_bytes`: of commands. `sent_frames`,
    `sent_bytes`: what goes to one client, such as answers; the hub counts what goes to the
    subscribers of a channel. `throttled_s`: how long commands, and publications among them, had to
    wait for their rates.
    """

    connections: int = 0
    commands: dict[tuple[str, int | str], int] = field(default_factory=dict)
    disconnects: dict[str, int] = field(default_factory=dict)
    limits: dict[str, int] = field(default_factory=lambda: {limit.value: 0 for limit in Limit})
    token_failures: dict[str, int] = field(default_factory=dict)
    received_bytes: int = 0
    sent_frames: int = 0
    sent_bytes: int = 0
    throttled_s: float = 0.0

    def answered(self, method: str, code: int) -> None:
        """`code`: of the error, 0 = none. An application may choose among many: they are counted together."""
        count(self.commands, (method, code if code in _ERRORS else "application"))

    def limited(self, limit: Limit) -> None:
        self.limits[limit.value] += 1

    def closed(self, why: Closing) -> None:
        """An application may choose any code: they are counted together."""
        known = isinstance(why, Disconnect) or why in _DISCONNECTS
        count(self.disconnects, str(code_of(why).code) if known else "application")


_DISCONNECTS: Final = frozenset(each.value for each in Disconnect)
_ERRORS: Final = frozenset({0, *(each.value.code for each in Error)})


class HookOutcome(Enum):
    """What became of a call of the application's code."""

    ANSWERED = "answered"
    REFUSED = "refused"
    DISCONNECTED = "disconnected"
    # It raised what it must not raise, or returned what it must not return.
    FAILED = "failed"
    TIMED_OUT = "timed_out"
    # Not called: too many calls were under way.
    SHED = "shed"
    # Its connection ended.
    CANCELLED = "cancelled"


@dataclass(slots=True)
class HookCounters:
    """Calls of the application's code. `calls`: by hook and outcome; `seconds`: by hook, of the calls that were made."""

    calls: dict[tuple[str, str], int] = field(default_factory=dict)
    seconds: dict[str, Histogram] = field(default_factory=dict)
    under_way: int = 0

    def expect(self, hook: str) -> None:
        """It is configured: it is shown before it is called."""
        self.seconds[hook] = Histogram()
        self.calls |= {(hook, outcome.value): 0 for outcome in HookOutcome}

    def ended(self, hook: str, outcome: HookOutcome) -> None:
        count(self.calls, (hook, outcome.value))


@dataclass(slots=True)
class AppendCounters:
    """What became of publications that were to be stored.

    `publications`: by outcome. `latency_s`: from the submit to the answer of those that are in the log. `batches`: how many
    publications each append held.

    Of each append that went in: `attempts`, writes that were sent for it; `losses`, races that it lost to other nodes;
    `turn_s`, how long it waited for its turn; `writers`, how many other nodes were seen writing in its channel lately.
    `races`: all that were lost. `throttled`: writes that the table had no room for.
    """

    publications: dict[str, int] = field(
        default_factory=lambda: dict.fromkeys(
            ("stored", "repeated", "full", "too_large", "not_stored", "unknown"), 0
        )
    )
    latency_s: Histogram = field(default_factory=Histogram)
    batches: Histogram = field(default_factory=lambda: Histogram(BATCH_BOUNDS))
    races: int = 0
    throttled: int = 0
    attempts: Histogram = field(default_factory=lambda: Histogram(ATTEMPT_BOUNDS))
    losses: Histogram = field(default_factory=lambda: Histogram(LOSS_BOUNDS))
    turn_s: Histogram = field(default_factory=lambda: Histogram(TURN_BOUNDS_S))
    writers: Histogram = field(default_factory=lambda: Histogram(WRITER_BOUNDS))

    def appended(
        self, waited_s: Sequence[float], *, attempts: int, losses: int, turn_s: float, writers: int
    ) -> None:
        """An append went in. `waited_s`: how long each of its publications had waited for that."""
        self.batches.add(len(waited_s))
        self.publications["stored"] += len(waited_s)
        self.attempts.add(attempts)
        self.losses.add(losses)
        self.turn_s.add(turn_s)
        self.writers.add(writers)
        for each in waited_s:
            self.latency_s.add(each)

    def repeated(self, waited_s: Iterable[float]) -> None:
        """Publications turned out to be in the log already, by their keys."""
        for each in waited_s:
            self.publications["repeated"] += 1
            self.latency_s.add(each)

    @property
    def rejected(self) -> int:
        """Publications that are known not to be in the log, through no fault of their own."""
        return self.publications["full"] + self.publications["not_stored"]


@dataclass(slots=True)
class DeliveryCounters:
    """What it took to bring publications in order. Counts, but for what says otherwise."""

    recoveries: dict[str, int] = field(
        default_factory=lambda: dict.fromkeys(("recovered", "not_recovered"), 0)
    )
    recovered_publications: int = 0
    gaps_filled: int = 0
    gap_publications: int = 0
    gap_read_failures: int = 0
    tail_checks: dict[str, int] = field(
        default_factory=lambda: dict.fromkeys(("answered", "failed"), 0)
    )
    # Channels whose subscribers had to start afresh.
    channels_lost: int = 0


@dataclass(slots=True)
class FanoutCounters:
    """What went to the subscribers of channels: a push counts for each of them, before it is known who reads it."""

    pushes: int = 0
    frames: int = 0
    bytes: int = 0


@dataclass(slots=True)
class SignalCounters:
    """What goes to other nodes beside the log. `messages`: of the topic, by outcome; `signals`: in them, or shed before."""

    signals: dict[str, int] = field(
        default_factory=lambda: dict.fromkeys(("sent", "not_sent", "shed", "too_large"), 0)
    )
    messages: dict[str, int] = field(default_factory=lambda: dict.fromkeys(("sent", "not_sent"), 0))


@dataclass(slots=True)
class QueueCounters:
    """What came out of a node's queue, and what was deleted from it."""

    receives: dict[str, int] = field(
        default_factory=lambda: dict.fromkeys(("full", "some", "empty", "failed"), 0)
    )
    messages: int = 0
    rebuilds: int = 0
    deleted: int = 0
    delete_failures: int = 0
