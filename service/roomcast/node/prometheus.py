"""A node's metrics for Prometheus.

They are read from plain counters when Prometheus asks, so nothing here runs beside the code that is
measured. No label names a channel, a user or a client, and each label has few values. So the size
of an answer does not grow with use.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from math import inf
from typing import Final, Literal

from prometheus_client import CollectorRegistry, GCCollector, ProcessCollector, generate_latest
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.openmetrics.exposition import generate_latest as generate_openmetrics
from prometheus_client.registry import Collector
from prometheus_client.samples import Exemplar

from roomcast import __version__
from roomcast.delivery.canary_rules import Hearing
from roomcast.node.assembly import Assembly
from roomcast.node.health import Health
from roomcast.observe.counters import ConsumerCounters, Histogram

__all__ = ["FAMILIES", "Exposition", "Family", "Source"]

Kind = Literal["gauge", "counter", "histogram"]
# The values of a metric, by the values of its labels.
Samples = Mapping[tuple[str, ...], float | Histogram]


@dataclass(frozen=True, slots=True)
class Source:
    """The sources of all metrics. `calls`: the calls of AWS, by (operation, outcome). `consumers`:
    of each consumer, by its name.
    """

    assembly: Assembly
    health: Health
    calls: Mapping[tuple[str, str], Histogram]
    consumers: Mapping[str, ConsumerCounters] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Family:
    """One metric. `name` is as Prometheus shows it; a histogram has three names with endings."""

    name: str
    kind: Kind
    doc: str
    labels: tuple[str, ...]
    read: Callable[[Source], Samples]


def _one(read: Callable[[Source], float | Histogram]) -> Callable[[Source], Samples]:
    """The reader of a metric without labels."""
    return lambda source: {(): read(source)}


def _by(read: Callable[[Source], Mapping[str, float]]) -> Callable[[Source], Samples]:
    """The reader of a metric with one label."""
    return lambda source: {(name,): number for name, number in read(source).items()}


def _gauge(name: str, doc: str, read: Callable[[Source], float]) -> Family:
    return Family(f"roomcast_{name}", "gauge", doc, (), _one(read))


def _counter(name: str, doc: str, read: Callable[[Source], float]) -> Family:
    return Family(f"roomcast_{name}_total", "counter", doc, (), _one(read))


def _counts(
    name: str, label: str, doc: str, read: Callable[[Source], Mapping[str, float]]
) -> Family:
    return Family(f"roomcast_{name}_total", "counter", doc, (label,), _by(read))


def _commands(source: Source) -> Samples:
    commands = source.assembly.node.services.counters.commands
    return {(method, str(code)): number for (method, code), number in commands.items()}


def _hook_calls(source: Source) -> Samples:
    return dict(source.assembly.hooks.counters.calls.items())


def _hook_seconds(source: Source) -> Samples:
    return {(hook,): took for hook, took in source.assembly.hooks.counters.seconds.items()}


def _of_consumers(read: Callable[[ConsumerCounters], float]) -> Callable[[Source], Samples]:
    """The reader of a metric with one label, the consumer's name."""
    return lambda source: {(name,): read(each) for name, each in source.consumers.items()}


def _counts_of_consumers(
    read: Callable[[ConsumerCounters], Mapping[str, int]],
) -> Callable[[Source], Samples]:
    """The same with another label."""
    return lambda source: {
        (name, label): number
        for name, each in source.consumers.items()
        for label, number in read(each).items()
    }


def _delivery(source: Source) -> Samples:
    stages = source.assembly.dispatcher.way.counters.by_stage()
    return {(stage,): took for stage, took in stages.items()}


def _latencies(source: Source) -> Samples:
    latency = source.assembly.ears.latency
    if latency is None:
        return {}
    return {("to_lambda",): latency.to_lambda_ms / 1000, ("to_node",): latency.to_node_ms / 1000}


# In the order of docs/metrics.md.
FAMILIES: Final[tuple[Family, ...]] = (
    # ---- the node
    Family(
        "roomcast_info", "gauge", "1; the version.", ("version",),
        lambda _: {(__version__,): 1},
    ),
    _gauge("ready", "1 = the node is ready.", lambda s: not s.health.reasons()),
    _gauge("degraded", "1 = the node may not hear all.", lambda s: bool(s.health.doubts())),
    _gauge("draining", "1 = the node is about to end.", lambda s: s.health.draining),
    # ---- clients
    _gauge("connections", "Open connections.", lambda s: len(s.assembly.node)),
    Family(
        "roomcast_transport_connections", "gauge", "Open connections, by transport.",
        ("transport",), _by(lambda s: s.assembly.node.services.counters.open),
    ),
    _gauge(
        "sessions", "Streams over HTTP whose commands come by requests of their own.",
        lambda s: len(s.assembly.node.emulation.sessions),
    ),
    _gauge("users", "Different users among them.", lambda s: s.assembly.node.services.roster.users),
    _gauge("subscriptions", "Subscriptions.", lambda s: s.assembly.hub.subscriptions),
    _gauge("channels", "Channels with subscribers here.", lambda s: len(s.assembly.hub)),
    _gauge(
        "channels_open", "Channels with history that are kept in order here.",
        lambda s: len(s.assembly.dispatcher),
    ),
    _counter(
        "connections_opened", "Connections opened.",
        lambda s: s.assembly.node.services.counters.connections,
    ),
    _counts(
        "transport_connections_opened", "transport", "Connections opened, by transport.",
        lambda s: s.assembly.node.services.counters.opened,
    ),
    _counts(
        "disconnects", "code", "Connections ended, by code.",
        lambda s: s.assembly.node.services.counters.disconnects,
    ),
    Family(
        "roomcast_commands_total", "counter", "Commands answered, by method and code (0 = done).",
        ("method", "code"), _commands,
    ),
    Family(
        "roomcast_emulation_requests_total", "counter",
        "Requests with commands for a stream, by way and outcome.",
        ("way", "outcome"),
        lambda s: dict(s.assembly.node.emulation.counters.requests.items()),
    ),
    _counts(
        "limits_hit", "limit", "What clients were refused or made to wait for.",
        lambda s: s.assembly.node.services.counters.limits,
    ),
    _gauge(
        "unsent_bytes", "Bytes that wait here for clients that read slowly.",
        lambda s: s.assembly.node.services.counters.unsent_bytes,
    ),
    _counter(
        "commands_delayed_seconds", "Time commands waited for their rate.",
        lambda s: s.assembly.node.services.counters.throttled_s,
    ),
    _counts(
        "token_failures", "reason", "Tokens not accepted.",
        lambda s: s.assembly.node.services.counters.token_failures,
    ),
    _counter(
        "received_bytes", "Of commands.",
        lambda s: s.assembly.node.services.counters.received_bytes,
    ),
    _counts(
        "sent_frames", "to", "Frames, to one client or to the subscribers of a channel.",
        lambda s: {
            "client": s.assembly.node.services.counters.sent_frames,
            "channel": s.assembly.hub.counters.frames,
        },
    ),
    _counts(
        "sent_bytes", "to", "Bytes of these frames.",
        lambda s: {
            "client": s.assembly.node.services.counters.sent_bytes,
            "channel": s.assembly.hub.counters.bytes,
        },
    ),
    _counter(
        "pushes", "Pushes to subscribers of channels, each once a subscriber.",
        lambda s: s.assembly.hub.counters.pushes,
    ),
    _counter(
        "pushes_filtered", "Pushes that did not go out, because of the subscriber's filter.",
        lambda s: s.assembly.hub.sieves.held_back,
    ),
    _gauge(
        "tags_filters", "Different filters of subscribers.",
        lambda s: len(s.assembly.hub.filters),
    ),
    _gauge(
        "filter_waiting_bytes", "Publications that are yet to be tested by filters.",
        lambda s: s.assembly.hub.sieves.bytes,
    ),
    _counter(
        "publications_superseded", "Publications that went to no subscriber: a newer one did.",
        lambda s: s.assembly.hub.batches.superseded,
    ),
    _gauge(
        "batch_waiting_bytes", "Publications that are collected.",
        lambda s: s.assembly.hub.batches.bytes,
    ),
    # ---- the application's own code
    Family(
        "roomcast_hook_calls_total",
        "counter",
        "Calls of the application's code.",
        ("hook", "outcome"),
        _hook_calls,
    ),
    Family("roomcast_hook_seconds", "histogram", "How long they took.", ("hook",), _hook_seconds),
    _gauge(
        "hook_calls_under_way", "Calls that are not done.",
        lambda s: s.assembly.hooks.counters.under_way,
    ),
    # ---- publishing
    _counts(
        "publications", "outcome", "Publications to channels with history.",
        lambda s: s.assembly.appender.counters.publications,
    ),
    _counter(
        "publications_signalled", "Publications to channels without history.",
        lambda s: s.assembly.node.services.publisher.signalled,
    ),
    Family(
        "roomcast_publish_seconds", "histogram", "From a publication to its acknowledgement.", (),
        _one(lambda s: s.assembly.appender.counters.latency_s),
    ),
    Family(
        "roomcast_append_publications", "histogram", "Publications in one append.", (),
        _one(lambda s: s.assembly.appender.counters.batches),
    ),
    _counter(
        "append_races", "Appends that another node's came before.",
        lambda s: s.assembly.appender.counters.races,
    ),
    Family(
        "roomcast_append_attempts", "histogram", "Writes sent for one append.", (),
        _one(lambda s: s.assembly.appender.counters.attempts),
    ),
    Family(
        "roomcast_append_losses", "histogram", "Races that one append lost to other nodes.", (),
        _one(lambda s: s.assembly.appender.counters.losses),
    ),
    Family(
        "roomcast_append_turn_seconds", "histogram", "How long one append waited for its turn.", (),
        _one(lambda s: s.assembly.appender.counters.turn_s),
    ),
    Family(
        "roomcast_append_writers",
        "histogram",
        "Other nodes seen writing in the channel of one append.",
        (),
        _one(lambda s: s.assembly.appender.counters.writers),
    ),
    _counter(
        "append_throttled", "Writes that the table had no room for.",
        lambda s: s.assembly.appender.counters.throttled,
    ),
    _gauge(
        "append_waiting_bytes", "Publications not acknowledged yet.",
        lambda s: s.assembly.appender.waiting_bytes,
    ),
    # ---- order and recovery
    _counts(
        "recoveries", "outcome", "Clients that came back.",
        lambda s: s.assembly.dispatcher.counters.recoveries,
    ),
    _counter(
        "recovered_publications", "What they got.",
        lambda s: s.assembly.dispatcher.counters.recovered_publications,
    ),
    _gauge(
        "gap_wait_seconds", "How long a hole may fill by itself.",
        lambda s: s.assembly.ears.gap_wait.s,
    ),
    _counter(
        "gaps_filled", "Holes read from the log.",
        lambda s: s.assembly.dispatcher.counters.gaps_filled,
    ),
    _counter(
        "gap_publications", "Publications in them.",
        lambda s: s.assembly.dispatcher.counters.gap_publications,
    ),
    _counter(
        "gap_read_failures", "Reads of holes that failed.",
        lambda s: s.assembly.dispatcher.counters.gap_read_failures,
    ),
    _counts(
        "tail_checks", "outcome", "Looks at the ends of logs.",
        lambda s: s.assembly.dispatcher.counters.tail_checks,
    ),
    _counter(
        "channels_lost", "Channels whose subscribers started afresh.",
        lambda s: s.assembly.dispatcher.counters.channels_lost,
    ),
    _gauge(
        "ring_bytes", "Publications kept for recoveries.",
        lambda s: s.assembly.dispatcher.ring_bytes,
    ),
    # ---- between nodes
    Family(
        "roomcast_delivery_seconds", "histogram",
        "How long publications took from another node's append, by stage.", ("stage",),
        _delivery,
    ),
    _counts(
        "signals", "outcome", "Signals to the other nodes.",
        lambda s: s.assembly.broadcaster.counters.signals,
    ),
    _counts(
        "signal_messages", "outcome", "Messages that held them.",
        lambda s: s.assembly.broadcaster.counters.messages,
    ),
    _gauge(
        "signal_waiting_bytes", "Signals that wait.",
        lambda s: s.assembly.broadcaster.waiting_bytes,
    ),
    _gauge(
        "sns_rate", "Messages of signals and hints that the node may send a second.",
        lambda s: s.assembly.allowance.per_s,
    ),
    _gauge(
        "sns_nodes", "The nodes that share this rate.",
        lambda s: s.assembly.allowance.nodes or 0,
    ),
    _counts(
        "mailbox_signals", "outcome", "Signals to one other node.",
        lambda s: s.assembly.node.emulation.mailbox_counters.signals,
    ),
    _counts(
        "mailbox_messages", "outcome", "Messages to its queue that held them.",
        lambda s: s.assembly.node.emulation.mailbox_counters.messages,
    ),
    Family(
        "roomcast_mailbox_seconds", "histogram", "From a signal until its message was sent.", (),
        _one(lambda s: s.assembly.node.emulation.mailbox_counters.seconds),
    ),
    Family(
        "roomcast_emulation_answer_seconds", "histogram",
        "From commands for another node's stream to its answer.", (),
        _one(lambda s: s.assembly.node.emulation.counters.answer_s),
    ),
    _counts(
        "emulation_for_others", "outcome", "Commands that another node passed on to this one.",
        lambda s: s.assembly.node.emulation.counters.for_others,
    ),
    _counts(
        "express_hints", "outcome", "Express hints to the other nodes.",
        lambda s: s.assembly.express.counters.hints,
    ),
    _counts(
        "express_messages", "outcome", "Messages that held them.",
        lambda s: s.assembly.express.counters.messages,
    ),
    _counts(
        "express_heard", "outcome", "Express hints of channels that are open here.",
        lambda s: s.assembly.intake.express,
    ),
    _gauge(
        "express_rate", "Messages of express hints that the node may send a second.",
        lambda s: s.assembly.express.per_s,
    ),
    _counts(
        "queue_receives", "outcome", "Receives of the queue.",
        lambda s: s.assembly.poller.counters.receives,
    ),
    _counter("queue_messages", "Messages received.", lambda s: s.assembly.poller.counters.messages),
    _counter(
        "queue_malformed", "Of them, those that nobody understands.",
        lambda s: s.assembly.intake.malformed,
    ),
    _counter("queue_deleted", "Messages deleted.", lambda s: s.assembly.poller.counters.deleted),
    _counter(
        "queue_delete_failures", "Calls to delete that failed.",
        lambda s: s.assembly.poller.counters.delete_failures,
    ),
    _counter("queue_left", "Messages that were not deleted.", lambda s: s.assembly.poller.left),
    _counter(
        "queue_rebuilds", "Queues replaced by another.",
        lambda s: s.assembly.poller.counters.rebuilds,
    ),
    _gauge(
        "queue_lag_seconds", "How late the newest message came.",
        lambda s: s.assembly.queue_state.lag_ms / 1000,
    ),
    _gauge(
        "topic_shards_wanted", "Topic shards of the channels that are open here.",
        lambda s: s.assembly.shards.plan.wanted,
    ),
    _gauge(
        "topic_shards_heard", "Topic shards that the queue is proved to hear.",
        lambda s: s.assembly.shards.plan.heard,
    ),
    _counts(
        "topic_shard_steps", "outcome", "Subscriptions to topic shards that were begun and ended.",
        lambda s: s.assembly.shard_keeper.counters.steps,
    ),
    _gauge(
        "canary_age_seconds", "Since a new canary was heard.",
        lambda s: s.assembly.ears.silence_s,
    ),
    Family(
        "roomcast_canary_latency_seconds", "gauge", "What the newest canary took.", ("part",),
        _latencies,
    ),
    Family(
        "roomcast_canary_hearing", "gauge", "1 = what the node hears of canaries.", ("state",),
        lambda s: {(each.value,): s.assembly.ears.hearing is each for each in Hearing},
    ),
    _counter("canaries_heard", "New canaries heard.", lambda s: s.assembly.ears.heard),
    _counter("canaries_sung", "Canaries this node made.", lambda s: s.assembly.canary.emitted),
    # ---- back ends
    Family(
        "roomcast_consumer_receives_total", "counter", "Receives of consumers' queues.",
        ("consumer", "outcome"), _counts_of_consumers(lambda each: each.receives),
    ),
    Family(
        "roomcast_consumer_messages_total", "counter", "Messages received.",
        ("consumer",), _of_consumers(lambda each: each.messages),
    ),
    Family(
        "roomcast_consumer_done_total", "counter", "Of them, those that were carried out.",
        ("consumer",), _of_consumers(lambda each: each.done),
    ),
    Family(
        "roomcast_consumer_failed_total", "counter", "Those that were not, by reason.",
        ("consumer", "reason"), _counts_of_consumers(lambda each: each.failed),
    ),
    Family(
        "roomcast_consumer_left_total", "counter", "Those that were not begun, and come again.",
        ("consumer",), _of_consumers(lambda each: each.left),
    ),
    Family(
        "roomcast_consumer_delete_failures_total", "counter", "Calls to delete that failed.",
        ("consumer",), _of_consumers(lambda each: each.delete_failures),
    ),
    Family(
        "roomcast_consumer_age_seconds", "gauge", "Age of the oldest message that came last.",
        ("consumer",), _of_consumers(lambda each: each.age_s),
    ),
    # ---- AWS
    Family(
        "roomcast_aws_call_seconds",
        "histogram",
        "Calls of AWS, with the SDK's retries.",
        ("operation", "outcome"),
        lambda s: dict(s.calls.items()),
    ),
)  # fmt: skip


class _Node(Collector):
    def __init__(self, source: Source) -> None:
        self._source = source

    def describe(self) -> list[Metric]:
        """Empty, so that nothing is read while the collector is registered."""
        return []

    def collect(self) -> Iterator[Metric]:
        for family in FAMILIES:
            yield _collected(family, family.read(self._source))


class Exposition:
    """The metrics of one node and of its process, in a registry of their own."""

    def __init__(self, source: Source) -> None:
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(_Node(source))
        ProcessCollector(registry=self._registry)
        GCCollector(registry=self._registry)

    def text(self) -> bytes:
        """All metrics as of now, in Prometheus's text format."""
        return generate_latest(self._registry)

    def openmetrics(self) -> bytes:
        """The same in the text format of OpenMetrics 1.0.0, with exemplars."""
        text: bytes = generate_openmetrics(self._registry)  # type: ignore[no-untyped-call]
        return text


def _collected(family: Family, samples: Samples) -> Metric:
    if family.kind == "histogram":
        histograms = HistogramMetricFamily(family.name, family.doc, labels=family.labels)
        for labels, histogram in samples.items():
            assert isinstance(histogram, Histogram)
            histograms.add_metric(labels, list(_buckets(histogram)), histogram.sum)
        return histograms
    kind = CounterMetricFamily if family.kind == "counter" else GaugeMetricFamily
    numbers = kind(family.name, family.doc, labels=family.labels)
    for labels, number in samples.items():
        assert not isinstance(number, Histogram)
        numbers.add_metric(labels, float(number))
    return numbers


def _buckets(histogram: Histogram) -> Iterator[tuple[str, float] | tuple[str, float, Exemplar]]:
    """Each bucket's bound and number, and its exemplar if it has one. The text format of Prometheus
    leaves exemplars out.
    """
    for index, (bound, number) in enumerate(histogram.cumulative()):
        name = "+Inf" if bound == inf else str(bound)
        if (one := histogram.exemplars.get(index)) is None:
            yield name, float(number)
        else:
            labels = {"trace_id": one.trace_id}
            yield name, float(number), Exemplar(labels, one.value, one.at_s)
