"""The calls to AWS that a fleet makes a second under a load.

Each part of the way is one of two queues. A *lane* takes everything that waits, and is busy for a
fixed time: appends of a channel, messages of signals, receives of a queue. A *poll* looks at fixed
times: Lambda at the shards of the table's stream. Arrivals are random (Poisson). docs/cost.md has
the formulas in words, and says how far they are from what is counted.

Pure: numbers in, numbers out.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from math import ceil, exp
from typing import Final

__all__ = [
    "ITEM_BYTES",
    "PUBLICATION_BYTES",
    "Calls",
    "Load",
    "Pace",
    "calls_of",
    "lane_rate",
    "receive_rate",
]

# Bytes of a log item beside its publications, and of a publication beside its payload, as stored.
# A test compares them with real items, of publications by clients.
ITEM_BYTES: Final = 165
PUBLICATION_BYTES: Final = 85
# Bytes of a signal beside its payload, of an SNS message beside what is packed into it, and of a
# lease.
_SIGNAL_BYTES: Final = 150
_MESSAGE_BYTES: Final = 60
_LEASE_BYTES: Final = 500
_WRITE_UNIT_BYTES: Final = 1024
_READ_UNIT_BYTES: Final = 4096
# SNS and SQS count a request for each 64 KiB.
_REQUEST_BYTES: Final = 64 * 1024
# Publications of one append; records of one invocation; bytes of one SNS message. Where the
# product has these bounds itself, a test compares them.
APPEND_PUBLICATIONS_MAX: Final = 500
INVOCATION_RECORDS_MAX: Final = 100
MESSAGE_BYTES_MAX: Final = 240 * 1024
# Signals wait for others, and go in so many messages a second of one process at most, and of all
# of them: the defaults of aws.sns_quota and aws.sns_signals_share. Each may send one.
SIGNAL_WAIT_S: Final = 0.02
SIGNAL_MESSAGES_S: Final = 20.0
SIGNAL_MESSAGES_FLEET_S: Final = 150.0
SIGNAL_MESSAGES_S_MIN: Final = 1.0
# With much to receive, several receives are under way, and some of them find little.
_MESSAGES_A_RECEIVE: Final = 5.7
# A heartbeat comes up to a fifth of its interval early, a canary up to half of one late.
_HEARTBEAT_PART: Final = 0.9
_CANARY_LATE: Final = 0.5
# A longest wait of the processes that share a canary, beside its interval: the way to all of them.
_CANARY_WAY_S: Final = 0.3
_MINUTE_S: Final = 60.0


@dataclass(frozen=True, slots=True)
class Load:
    """What a fleet is asked to do, averaged over a month.

    Publications are spread over the channels, and clients over channels and processes, at random.
    """

    instances: int = 2
    processes: int = 1
    """On each instance; each is a node with a queue of its own."""
    publications_s: float = 10.0
    """A second, in all channels together."""
    channels: int = 100
    clients: int = 1000
    """Connected at the same time."""
    subscriptions: int = 1
    """Channels of each client."""
    payload_bytes: int = 200
    history: bool = True
    presence: bool = False
    joins_and_leaves: bool = False
    express: bool = False
    topic_shards: int = 1
    writers: int = 0
    """Nodes that publish in one channel; 0 = all of them."""
    stay_s: float = 1800.0
    """How long a client stays connected."""

    @property
    def nodes(self) -> int:
        """All processes of the fleet."""
        return self.instances * self.processes

    @property
    def connects_s(self) -> float:
        """Clients that come a second; as many go."""
        return self.clients / self.stay_s

    @property
    def deliveries_s(self) -> float:
        """Publications a second, each times its subscribers."""
        return self.publications_s * self.clients * self.subscriptions / self.channels

    @property
    def channels_of_a_node(self) -> float:
        """Channels with subscribers on one node."""
        subscribers = self.clients * self.subscriptions / self.channels
        return self.channels * (1 - _part_of_none(self.nodes, subscribers))


@dataclass(frozen=True, slots=True)
class Pace:
    """How long calls take, and how often the fleet does what it does under any load."""

    append_s: float = 0.006
    """A write to the log, and what a lone writer leaves for others."""
    receive_s: float = 0.010
    """A receive that need not wait."""
    poll_wait_s: float = 20.0
    receive_pause_s: float = 0.0
    stream_shards: int = 4
    """Of the channels table; a new one on demand has four."""
    stream_polls_s: float = 4.0
    """Of Lambda, of each shard."""
    heartbeat_s: float = 15.0
    canary_interval_s: float = 30.0
    tail_check_s: float = 300.0
    express_rate_limit: float = 100.0
    reports_s: float = 1 / _MINUTE_S
    """Reports of one node for CloudWatch, in its log; 0 = none."""


@dataclass(frozen=True, slots=True)
class Calls:
    """The calls of the whole fleet, a second, named as `roomcast_aws_call_seconds` names them;
    `lambda.Invoke` and `sns.PublishBatch` are the stream Lambda's.

    `write_units`, `read_units`: of DynamoDB. `sns_requests`, `sqs_requests`: as they are billed,
    one for each 64 KiB. `received_bytes`, `sent_bytes`: of all nodes, from SQS and to SNS.
    `stored_bytes`: what is added to the log. `reports_s`: the nodes' reports for CloudWatch, which
    are no calls: they go with their logs.
    """

    operations: dict[str, float] = field(default_factory=dict)
    write_units: float = 0.0
    read_units: float = 0.0
    sns_requests: float = 0.0
    sqs_requests: float = 0.0
    received_bytes: float = 0.0
    sent_bytes: float = 0.0
    stored_bytes: float = 0.0
    reports_s: float = 0.0

    def of(self, operation: str) -> float:
        """The calls of one operation, such as "dynamodb.PutItem"."""
        return self.operations.get(operation, 0.0)


def lane_rate(arrivals_s: float, busy_s: float) -> float:
    """Rounds a second of a lane that takes everything that waits, and is busy for `busy_s`.

    A round follows at once if anything came meanwhile. Otherwise it waits for the next arrival.
    """
    if arrivals_s <= 0:
        return 0.0
    return 1 / (busy_s + exp(-arrivals_s * busy_s) / arrivals_s)


def receive_rate(messages_s: float, pace: Pace) -> tuple[float, float]:
    """Receives a second of one node that bring messages, and that bring none."""
    if messages_s <= 0:
        return 0.0, 1 / pace.poll_wait_s
    round_s = pace.receive_s + pace.receive_pause_s
    some = max(lane_rate(messages_s, round_s), messages_s / _MESSAGES_A_RECEIVE)
    # Of the waits for a message, so many are longer than a long poll.
    empty = some * exp(-messages_s * round_s) / _expm1(messages_s * pace.poll_wait_s)
    return some, empty


def calls_of(load: Load, pace: Pace | None = None) -> Calls:
    """The calls of `load`, at AWS's typical pace if `pace` is None."""
    pace = pace or Pace()
    ledger = _Ledger()
    heard = _Heard(load)
    heard.base_s += _canaries(load, pace, ledger, heard)
    if load.history:
        _appends(load, pace, ledger, heard)
    signals_s, signal_bytes = _signals(load)
    _publish(load.nodes * signals_s, signal_bytes, ledger)
    heard.base_s += load.nodes * signals_s
    heard.base_bytes += load.nodes * signals_s * signal_bytes
    _receive(load, pace, ledger, heard)
    _come_and_go(load, pace, ledger)
    # Each node's own.
    ledger.put(load.nodes / (pace.heartbeat_s * _HEARTBEAT_PART))
    return ledger.calls(load.nodes * pace.reports_s)


class _Ledger:
    """Adds up."""

    def __init__(self) -> None:
        self.operations: dict[str, float] = {}
        self.write_units = self.read_units = 0.0
        self.sns_requests = self.sqs_requests = 0.0
        self.received_bytes = self.sent_bytes = self.stored_bytes = 0.0

    def add(self, operation: str, rate_s: float) -> None:
        if rate_s:
            self.operations[operation] = self.operations.get(operation, 0.0) + rate_s

    def put(self, rate_s: float, units: int = 1) -> None:
        self.add("dynamodb.PutItem", rate_s)
        self.write_units += rate_s * units

    def read(self, operation: str, rate_s: float, units: float = 1.0) -> None:
        self.add(operation, rate_s)
        self.read_units += rate_s * units

    def query(self, rate_s: float) -> None:
        self.read("dynamodb.Query", rate_s)

    def calls(self, reports_s: float) -> Calls:
        return Calls(
            dict(sorted(self.operations.items())),
            self.write_units,
            self.read_units,
            self.sns_requests,
            self.sqs_requests,
            self.received_bytes,
            self.sent_bytes,
            self.stored_bytes,
            reports_s,
        )


class _Heard:
    """SNS messages a second, and their bytes: those that every node hears, and those of all topic
    shards, of which a node hears `part`.
    """

    def __init__(self, load: Load) -> None:
        shards = load.topic_shards
        self.part = 1 - _part_of_none(shards, load.channels_of_a_node) if shards > 1 else 1.0
        self.base_s = self.base_bytes = 0.0
        self.shards_s = self.shards_bytes = 0.0

    @property
    def messages_s(self) -> float:
        """Of one node."""
        return self.base_s + self.part * self.shards_s

    @property
    def bytes_s(self) -> float:
        """Of one node."""
        return self.base_bytes + self.part * self.shards_bytes


def _canaries(load: Load, pace: Pace, ledger: _Ledger, heard: _Heard) -> float:
    """One of the nodes writes each. Returns the messages to the base topic."""
    # The first of so many random waits.
    late = _CANARY_LATE / (load.nodes + 1)
    canaries_s = 1 / (pace.canary_interval_s * (1 + late) + _CANARY_WAY_S)
    ledger.put(canaries_s)
    ledger.add("lambda.Invoke", canaries_s)
    topics = 1 + (load.topic_shards if load.topic_shards > 1 else 0)
    ledger.add("sns.PublishBatch", canaries_s * topics)
    ledger.sns_requests += canaries_s * topics
    heard.shards_s += canaries_s * (topics - 1)
    heard.base_bytes += canaries_s * _SIGNAL_BYTES
    return canaries_s


def _appends(load: Load, pace: Pace, ledger: _Ledger, heard: _Heard) -> None:
    """Publications that are stored, and their way through stream, Lambda and topic."""
    of_channel_s = load.publications_s / load.channels
    if not of_channel_s:
        return
    of_lane_s = max(lane_rate(of_channel_s, pace.append_s), of_channel_s / APPEND_PUBLICATIONS_MAX)
    appends_s = load.channels * of_lane_s
    publications = of_channel_s / of_lane_s
    item_bytes = ITEM_BYTES + publications * (PUBLICATION_BYTES + load.payload_bytes)
    units = _rounded_up(item_bytes, _WRITE_UNIT_BYTES)
    # The last one to append was mostly another, whose item the loser's write meets.
    writers = max(1, min(load.writers or load.nodes, load.nodes))
    attempts = 1 + (writers - 1) / writers
    ledger.put(appends_s * attempts)
    ledger.write_units += appends_s * attempts * (units - 1)
    if writers > 1:
        ledger.query(appends_s)
    ledger.stored_bytes += appends_s * item_bytes

    shards = pace.stream_shards * (1 - _part_of_none(pace.stream_shards, load.channels))
    polls_s = shards * pace.stream_polls_s
    invocations_s = max(
        polls_s * (1 - exp(-appends_s / polls_s)), appends_s / INVOCATION_RECORDS_MAX
    )
    records = appends_s / invocations_s
    topics = load.topic_shards
    homes = topics * (1 - _part_of_none(topics, records)) if topics > 1 else 1.0
    message_bytes = records * item_bytes / homes
    messages = homes * max(1.0, message_bytes / MESSAGE_BYTES_MAX)
    ledger.add("lambda.Invoke", invocations_s)
    ledger.add("sns.PublishBatch", invocations_s * homes)
    ledger.sns_requests += (
        invocations_s * messages * _requests(_MESSAGE_BYTES + min(message_bytes, MESSAGE_BYTES_MAX))
    )
    _hear(load, heard, invocations_s * messages, appends_s * item_bytes)

    if load.express:
        nodes = min(load.nodes, writers * load.channels)
        each_s = min(appends_s / nodes, pace.express_rate_limit / load.nodes)
        hint_bytes = appends_s / nodes / each_s * item_bytes
        _publish(nodes * each_s, hint_bytes, ledger)
        _hear(load, heard, nodes * each_s, appends_s * item_bytes)
        # Each node counts the others.
        units = _rounded_up(load.nodes * _LEASE_BYTES, _READ_UNIT_BYTES)
        ledger.read("dynamodb.Scan", load.nodes / _MINUTE_S, units)


def _hear(load: Load, heard: _Heard, messages_s: float, bytes_s: float) -> None:
    if load.topic_shards > 1:
        heard.shards_s += messages_s
        heard.shards_bytes += bytes_s
    else:
        heard.base_s += messages_s
        heard.base_bytes += bytes_s


def _signals(load: Load) -> tuple[float, float]:
    """Messages a second that one node sends for what has no offset, and the bytes of one."""
    signals_s = 0.0 if load.history else load.publications_s
    bytes_s = signals_s * (_SIGNAL_BYTES + load.payload_bytes)
    if load.joins_and_leaves:
        moves_s = 2 * load.connects_s * load.subscriptions
        signals_s += moves_s
        bytes_s += moves_s * _SIGNAL_BYTES
    of_node_s = signals_s / load.nodes
    if not of_node_s:
        return 0.0, 0.0
    of_share_s = max(SIGNAL_MESSAGES_S_MIN, SIGNAL_MESSAGES_FLEET_S / load.nodes)
    # The first of a message waits for others.
    unbounded_s = of_node_s / (1 + of_node_s * SIGNAL_WAIT_S)
    messages_s = min(SIGNAL_MESSAGES_S, of_share_s, unbounded_s)
    return messages_s, min(MESSAGE_BYTES_MAX, _MESSAGE_BYTES + bytes_s / load.nodes / messages_s)


def _publish(messages_s: float, message_bytes: float, ledger: _Ledger) -> None:
    """A node's own messages to the topic."""
    ledger.add("sns.Publish", messages_s)
    ledger.sns_requests += messages_s * _requests(message_bytes)
    ledger.sent_bytes += messages_s * message_bytes


def _receive(load: Load, pace: Pace, ledger: _Ledger, heard: _Heard) -> None:
    """Each node's receives, and the deletes behind them."""
    some, empty = receive_rate(heard.messages_s, pace)
    ledger.add("sqs.ReceiveMessage", load.nodes * (some + empty))
    ledger.add("sqs.DeleteMessageBatch", load.nodes * some)
    requests = _requests(heard.bytes_s / some) if some else 1
    ledger.sqs_requests += load.nodes * (some * (requests + 1) + empty)
    ledger.received_bytes += load.nodes * heard.bytes_s


def _come_and_go(load: Load, pace: Pace, ledger: _Ledger) -> None:
    """Clients that come and go, and the channels that are open for them."""
    joins_s = load.connects_s * load.subscriptions
    # The first subscriber of a channel on a node.
    alone = _part_of_none(load.nodes, load.clients * load.subscriptions / load.channels)
    if load.history:
        ledger.query(joins_s * alone)
        looks_s = load.nodes * load.channels_of_a_node / pace.tail_check_s
        ledger.query(looks_s)
        if load.publications_s:
            # Whether the ring's publications have been hidden.
            ledger.read("dynamodb.GetItem", looks_s)
    if load.presence:
        # An entry for the client, and with the first one of a node a row for the node.
        ledger.put(joins_s * (1 + alone))
        ledger.add("dynamodb.DeleteItem", joins_s * (1 + alone))
        ledger.write_units += joins_s * (1 + alone)


def _part_of_none(places: float, things: float) -> float:
    """The part of `places` that is empty when `things` are put into them at random."""
    return 0.0 if places <= 1 and things > 0 else (1 - 1 / places) ** things


def _requests(size: float) -> int:
    return max(1, ceil(size / _REQUEST_BYTES))


def _rounded_up(size: float, unit: int) -> int:
    return max(1, ceil(size / unit))


def _expm1(exponent: float) -> float:
    """E to the power of `exponent`, minus 1, without overflow."""
    return exp(min(exponent, 700.0)) - 1
