"""Counters of a node: plain growing numbers, without the name of any client or channel."""

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
    "ConsumerCounters",
    "DeliveryCounters",
    "EmulationCounters",
    "Exemplar",
    "ExpressCounters",
    "FanoutCounters",
    "Histogram",
    "HookCounters",
    "HookOutcome",
    "Limit",
    "MailboxCounters",
    "QueueCounters",
    "ShardCounters",
    "SignalCounters",
    "StageCounters",
    "Transport",
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
# Publications in one append.
BATCH_BOUNDS: Final = (1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0)
# For one append: writes sent, races lost, and other writers of its channel.
ATTEMPT_BOUNDS: Final = (1.0, 2.0, 3.0, 5.0, 10.0, 20.0)
LOSS_BOUNDS: Final = (0.0, 1.0, 2.0, 5.0, 10.0, 20.0)
# Seconds. 0: no wait.
TURN_BOUNDS_S: Final = (0.0, *LATENCY_BOUNDS_S)
WRITER_BOUNDS: Final = (0.0, 1.0, 2.0, 5.0, 10.0, 20.0, 50.0)

Key = TypeVar("Key", bound=Hashable)


def count(counts: dict[Key, int], key: Key, by: int = 1) -> None:
    """Adds to a count. The caller must bound the number of keys."""
    counts[key] = counts.get(key, 0) + by


@dataclass(frozen=True, slots=True)
class Exemplar:
    """One value of a histogram, and the trace that tells more of it. `at_s`: since 1970."""

    value: float
    trace_id: str
    at_s: float


class Histogram:
    """The number of values up to each of `bounds`, which ascend, and the sum of all values.

    `exemplars`: the last one of each bucket that has any, by the bucket's number.
    """

    __slots__ = ("_counts", "bounds", "exemplars", "sum")

    def __init__(self, bounds: Sequence[float] = LATENCY_BOUNDS_S) -> None:
        self.bounds = bounds
        # The last count is for values above every bound.
        self._counts = [0] * (len(bounds) + 1)
        self.sum = 0.0
        self.exemplars: dict[int, Exemplar] = {}

    def add(self, value: float) -> None:
        self._counts[bisect_left(self.bounds, value)] += 1
        self.sum += value

    def exemplify(self, value: float, trace_id: str, at_s: float) -> None:
        """`value`, which was added, was of this trace. `at_s`: when, in s since 1970."""
        self.exemplars[bisect_left(self.bounds, value)] = Exemplar(value, trace_id, at_s)

    @property
    def count(self) -> int:
        """The number of all values."""
        return sum(self._counts)

    def copy(self) -> Histogram:
        """A copy of the present state."""
        copied = Histogram(self.bounds)
        copied._counts = list(self._counts)
        copied.sum = self.sum
        return copied

    @property
    def counts(self) -> Sequence[int]:
        """The number of values between two bounds each, and last of those above every bound."""
        return tuple(self._counts)

    def since(self, earlier: Histogram) -> Histogram:
        """The values that were added after `earlier` was copied."""
        assert self.bounds == earlier.bounds, "one is a copy of the other"
        added = Histogram(self.bounds)
        added._counts = [
            now - then for now, then in zip(self._counts, earlier._counts, strict=True)
        ]
        added.sum = self.sum - earlier.sum
        return added

    def mean(self) -> float | None:
        """The mean. None: no value."""
        return self.sum / self.count if self.count else None

    def sample(self, values_max: int) -> list[float]:
        """As many values as were added, `values_max` at most, ascending and spread as those were.

        Where in its step a value was is not known, so those of a step are evenly spread over it. A
        value above every bound counts as the last bound.
        """
        number = min(self.count, values_max)
        share = self.count / number if number else 0.0
        values: list[float] = []
        lower, below = min(0.0, self.bounds[0]), 0
        for bound, here in zip(self.bounds, self._counts, strict=False):
            while len(values) < number and (rank := (len(values) + 0.5) * share) < below + here:
                values.append(lower + (bound - lower) * (rank - below) / here)
            lower, below = bound, below + here
        return values + [self.bounds[-1]] * (number - len(values))

    def cumulative(self) -> Iterator[tuple[float, int]]:
        """Each bound, then infinity, with the number of values up to it."""
        total = 0
        for bound, here in zip((*self.bounds, inf), self._counts, strict=True):
            total += here
            yield bound, total


class Limit(Enum):
    """A limit that a client may reach."""

    # The node has client.connection_limit connections, or is draining.
    CONNECTIONS = "connections"
    USER_CONNECTIONS = "user_connections"
    # client.channel_limit, of one connection.
    CHANNELS = "channels"
    MESSAGE_SIZE = "message_size"
    PUBLISH_RATE = "publish_rate"
    COMMAND_RATE = "command_rate"
    # Pings and pongs of the WebSocket protocol.
    CONTROL_RATE = "control_rate"
    HANDSHAKE_RATE = "handshake_rate"
    # client.queue_total_max_size: what waits for all clients that read slowly.
    BACKLOG = "backlog"
    # The node has no place for another connection of any kind.
    SOCKETS = "sockets"
    # A browser page of another origin.
    ORIGIN = "origin"


class Transport(Enum):
    """How a client reaches its node, in Centrifugo's words."""

    WEBSOCKET = "websocket"
    HTTP_STREAM = "http_stream"
    SSE = "sse"
    UNI_WEBSOCKET = "uni_websocket"
    UNI_HTTP_STREAM = "uni_http_stream"
    UNI_SSE = "uni_sse"


def _by_transport() -> dict[str, int]:
    return {transport.value: 0 for transport in Transport}


@dataclass(slots=True)
class ClientCounters:
    """Actions of a node's clients, and their outcomes.

    `connections`: those that were opened. `commands`: by method and the code of the answer, 0 = a
    result; `disconnects`: by code. Codes that applications made up are "application". `opened`,
    `open`: connections that were, and that are, by the value of a Transport. `limits`: by the value
    of a Limit. `token_failures`: by reason. `received_bytes`: of commands. `sent_frames`,
    `sent_bytes`: what goes to one client, such as answers; the hub counts what goes to the
    subscribers of a channel. `throttled_s`: how long commands, and publications among them, had to
    wait for their rates. `unsent_bytes`: what waits in this process for clients that read slowly.
    """

    connections: int = 0
    opened: dict[str, int] = field(default_factory=_by_transport)
    open: dict[str, int] = field(default_factory=_by_transport)
    commands: dict[tuple[str, int | str], int] = field(default_factory=dict)
    disconnects: dict[str, int] = field(default_factory=dict)
    limits: dict[str, int] = field(default_factory=lambda: {limit.value: 0 for limit in Limit})
    token_failures: dict[str, int] = field(default_factory=dict)
    received_bytes: int = 0
    sent_frames: int = 0
    sent_bytes: int = 0
    throttled_s: float = 0.0
    unsent_bytes: int = 0

    def answered(self, method: str, code: int) -> None:
        """Counts an answer. `code`: of the error, 0 = none.

        Codes that the application defined are counted together, because there may be many.
        """
        count(self.commands, (method, code if code in _ERRORS else "application"))

    def came(self, transport: Transport) -> None:
        """Counts a connection, which `went` must follow."""
        self.opened[transport.value] += 1
        self.open[transport.value] += 1

    def went(self, transport: Transport) -> None:
        self.open[transport.value] -= 1

    def limited(self, limit: Limit) -> None:
        self.limits[limit.value] += 1

    def closed(self, why: Closing) -> None:
        """Counts the end of a connection. Codes that the application defined are counted
        together.
        """
        known = isinstance(why, Disconnect) or why in _DISCONNECTS
        count(self.disconnects, str(code_of(why).code) if known else "application")


_DISCONNECTS: Final = frozenset(each.value for each in Disconnect)
_ERRORS: Final = frozenset({0, *(each.value.code for each in Error)})


class HookOutcome(Enum):
    """The outcome of a hook's call."""

    ANSWERED = "answered"
    REFUSED = "refused"
    DISCONNECTED = "disconnected"
    # The hook raised an error, or returned a value, that it must not.
    FAILED = "failed"
    TIMED_OUT = "timed_out"
    # Not called, because too many calls were running.
    SHED = "shed"
    # Its connection ended.
    CANCELLED = "cancelled"


@dataclass(slots=True)
class HookCounters:
    """Calls of the application's hooks.

    `calls`: by hook and outcome. `seconds`: durations by hook, of the calls that were made.
    """

    calls: dict[tuple[str, str], int] = field(default_factory=dict)
    seconds: dict[str, Histogram] = field(default_factory=dict)
    under_way: int = 0

    def expect(self, hook: str) -> None:
        """Announces a configured hook, so that its metric exists before the first call."""
        self.seconds[hook] = Histogram()
        self.calls |= {(hook, outcome.value): 0 for outcome in HookOutcome}

    def ended(self, hook: str, outcome: HookOutcome) -> None:
        count(self.calls, (hook, outcome.value))


@dataclass(slots=True)
class AppendCounters:
    """Outcomes of publications with history.

    `publications`: by outcome. `latency_s`: from the submit to the answer, of publications in the
    log. `batches`: the number of publications in each append.

    For each successful append: `attempts`, writes sent for it. `losses`, races lost to other nodes.
    `turn_s`, its wait for its turn. `writers`, other nodes that lately wrote in its channel.
    `races`: all lost races. `throttled`: writes beyond the table's capacity.
    """

    publications: dict[str, int] = field(
        default_factory=lambda: dict.fromkeys(
            ("stored", "repeated", "stale", "full", "too_large", "not_stored", "unknown"), 0
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
        """Publications that are certainly not in the log, through no fault of their own."""
        return self.publications["full"] + self.publications["not_stored"]


@dataclass(slots=True)
class DeliveryCounters:
    """The work of bringing publications in order. The fields are counts unless a comment says
    otherwise.
    """

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
    # Channels whose subscribers had to start again from the log.
    channels_lost: int = 0


@dataclass(slots=True)
class StageCounters:
    """How long publications with history took from another node's append to the sockets here, in s.

    `stream`: from each append until the stream Lambda had it. `topic`: from there until this node
    took the message. Both include canaries. `node`: for the messages of one receive, from
    there until the last of them was with the sockets. `order`: how long each append was held here,
    because one before it was missing; 0 = not at all. `all`: from each append until it was on its
    way to subscribers here, those that were read from the log because they did not come included.

    Those between machines are by their clocks. What comes out negative counts as 0.
    """

    stream: Histogram = field(default_factory=Histogram)
    topic: Histogram = field(default_factory=Histogram)
    node: Histogram = field(default_factory=Histogram)
    order: Histogram = field(default_factory=lambda: Histogram(TURN_BOUNDS_S))
    all: Histogram = field(default_factory=Histogram)

    def by_stage(self) -> dict[str, Histogram]:
        """The histograms by the names of their stages."""
        return {each: getattr(self, each) for each in self.__slots__}


@dataclass(slots=True)
class FanoutCounters:
    """Pushes to the subscribers of channels. A push counts once per subscriber, before it is known
    whether the client reads it.
    """

    pushes: int = 0
    frames: int = 0
    bytes: int = 0


@dataclass(slots=True)
class SignalCounters:
    """Signals to other nodes, which bypass the log.

    `messages`: messages to the topic, by outcome. `signals`: signals in them, or dropped before.
    """

    signals: dict[str, int] = field(
        default_factory=lambda: dict.fromkeys(("sent", "not_sent", "shed", "too_large"), 0)
    )
    messages: dict[str, int] = field(default_factory=lambda: dict.fromkeys(("sent", "not_sent"), 0))


# How commands that came by requests of their own reached their session.
_WAYS: Final = ("here", "mailbox")
_OUTCOMES: Final = ("taken", "unknown", "busy", "lost")


@dataclass(slots=True)
class EmulationCounters:
    """Commands of clients whose replies come as a stream, by the request or the signal.

    `requests`: by way and outcome. "here": this node has the session, or nobody is asked for it.
    "mailbox": another node was asked. The outcomes are those of an Outcome, and "refused": no
    request at all. `answer_s`: from a signal to the other node's answer, of those that came.
    `for_others`: signals of other nodes, by outcome, or "malformed", or "repeated": it or a later
    one came before.
    """

    requests: dict[tuple[str, str], int] = field(
        default_factory=lambda: {
            ("here", "refused"): 0,
            **{(way, outcome): 0 for way in _WAYS for outcome in _OUTCOMES},
        }
    )
    answer_s: Histogram = field(default_factory=Histogram)
    for_others: dict[str, int] = field(
        default_factory=lambda: dict.fromkeys(
            ("taken", "unknown", "busy", "repeated", "malformed"), 0
        )
    )

    def requested(self, way: str, outcome: str) -> None:
        """Counts a request. `way`, `outcome`: see `requests`."""
        self.requests[way, outcome] += 1


@dataclass(slots=True)
class MailboxCounters:
    """Signals to one other node.

    `signals`: by outcome. "no_node": no live node has that name. `messages`: those that held them,
    by outcome. `seconds`: from a signal to the end of the message that held it, of those that were
    sent.
    """

    signals: dict[str, int] = field(
        default_factory=lambda: dict.fromkeys(("sent", "not_sent", "no_node"), 0)
    )
    messages: dict[str, int] = field(default_factory=lambda: dict.fromkeys(("sent", "not_sent"), 0))
    seconds: Histogram = field(default_factory=Histogram)


@dataclass(slots=True)
class ExpressCounters:
    """Express hints to other nodes.

    `hints`: by outcome; `shed` = there was no room, no share of the rate in time, or a pause.
    `messages`: those that held them.
    """

    hints: dict[str, int] = field(
        default_factory=lambda: dict.fromkeys(("sent", "not_sent", "shed", "too_large"), 0)
    )
    messages: dict[str, int] = field(default_factory=lambda: dict.fromkeys(("sent", "not_sent"), 0))


@dataclass(slots=True)
class ShardCounters:
    """Steps to hear topic shards, by outcome: `heard` = subscribed, and a greeting came back."""

    steps: dict[str, int] = field(
        default_factory=lambda: dict.fromkeys(("heard", "left", "failed"), 0)
    )


@dataclass(slots=True)
class ConsumerCounters:
    """Messages of back ends, of the queues of one consumer.

    `receives`: calls, by outcome. `done`: messages that were carried out. `failed`: by reason;
    each message counts again whenever it comes again. `left`: messages that were not begun, and so
    come again. `ages_s`: of the oldest message of the newest receive, by the queue's URL; 0 = it
    brought none.
    """

    receives: dict[str, int] = field(
        default_factory=lambda: dict.fromkeys(("full", "some", "empty", "failed"), 0)
    )
    messages: int = 0
    done: int = 0
    failed: dict[str, int] = field(default_factory=dict)
    left: int = 0
    delete_failures: int = 0
    ages_s: dict[str, float] = field(default_factory=dict)

    @property
    def age_s(self) -> float:
        """The greatest of `ages_s`."""
        return max(self.ages_s.values(), default=0.0)


@dataclass(slots=True)
class QueueCounters:
    """Messages from a node's queue, and deletions from it."""

    receives: dict[str, int] = field(
        default_factory=lambda: dict.fromkeys(("full", "some", "empty", "failed"), 0)
    )
    messages: int = 0
    rebuilds: int = 0
    deleted: int = 0
    delete_failures: int = 0
