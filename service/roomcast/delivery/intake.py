"""Opens envelopes from the queue: records go to their open channels, signals to the hub."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import Protocol, TypeVar

import orjson
import structlog

from roomcast.delivery.canary_rules import CANARY_CHANNEL
from roomcast.delivery.envelope import Envelope, Follower, MalformedEnvelope, Signal, parse
from roomcast.delivery.hub import Hub
from roomcast.delivery.joins_and_leaves import JoinsAndLeaves
from roomcast.delivery.signals import BROADCAST_KIND, Heard, broadcast_of
from roomcast.delivery.trails import Trails
from roomcast.delivery.way import Way
from roomcast.wire.encoding import Sent, Unencodable, sent_of
from roomcast.wire.publication import ClientInfo, Json, MalformedPublication, Publication, Record
from roomcast.wire.trace_context import Trail

__all__ = ["Intake", "QueueEars", "RecordTaker", "ShardEars"]

T = TypeVar("T", Record, Signal)

_log = structlog.get_logger(__name__)


class RecordTaker(Follower, Protocol):
    """A channel with subscribers on this node."""

    def offer(self, records: Iterable[Record]) -> None:
        """Take its records. Those of one call go out in one write a socket."""


class QueueEars(Protocol):
    """Whoever must know that the queue brings what it should."""

    def greeted(self, greeting: str) -> None:
        """The hello with this id, which this node sent to itself, came."""

    def came(self) -> None:
        """Something from the table came."""

    def hear(self, record: Record, lambda_at: int) -> None:
        """A canary came, which the stream Lambda had at `lambda_at` (ms)."""


class ShardEars(Protocol):
    """Whoever must know what the topic shards bring."""

    def greeted(self, greeting: str) -> None:
        """The hello with this id, which this node sent to itself, came."""

    def came(self, shard: int | None, shards: int, canary: int) -> None:
        """An envelope with records came, from a sender that goes by `shards` topic shards.

        `shard`: the one it came through, None = the base topic. `canary`: the number of the canary
        in it, 0 = there is none.
        """


class Intake:
    """Takes the messages of the queue. Repeated signals are dropped.

    `channels`: those with subscribers on this node, by name, as they are at any time.

    `handlers`, by kind, get the signals that are for the node and not for a channel.

    `has_join_leave` says whether a channel has join and leave pushes: not every sender knows.
    `is_here` says whether a client is connected to this node: others may have taken this node for
    dead, and signal that its clients left.

    `way` is told how long the records took to get here, and `trails` of what is traced; None =
    nobody is.
    """

    def __init__(
        self,
        node: str,
        channels: Mapping[str, RecordTaker],
        hub: Hub,
        ears: QueueEars,
        shards: ShardEars,
        has_join_leave: Callable[[str], bool],
        handlers: Mapping[str, Callable[[Signal], None]] = MappingProxyType({}),
        is_here: Callable[[str], bool] = lambda _client: False,
        *,
        way: Way,
        trails: Trails | None = None,
    ) -> None:
        self._node = node
        self._channels = channels
        self._hub = hub
        self._ears = ears
        self._has_join_leave = has_join_leave
        self._handlers = handlers
        self._is_here = is_here
        self._way = way
        self._trails = trails if trails is not None and trails.is_on else None
        self._joins_and_leaves = JoinsAndLeaves(hub)
        self._shards = shards
        self._heard = Heard()
        # Signals for the node have a memory of their own, by kind. Otherwise many signals of
        # channels, or commands of clients, would push out orders, and a repeated order would look
        # new.
        self._heard_of_node: defaultdict[str, Heard] = defaultdict(Heard)
        # Messages that are no envelopes.
        self.malformed = 0
        # Express hints of channels that are open here: those that came before the stream's record,
        # and those that came after it.
        self.express = {"first": 0, "late": 0}

    def take(self, bodies: Sequence[str], queued_at: Sequence[int] = ()) -> None:
        """Deliver the messages of one receive. Never raises for the content of a message.

        `queued_at`: when the queue had each of them, in ms; empty = not known.
        """
        with self._way.handing_over():
            self._take(bodies, queued_at)

    def _take(self, bodies: Sequence[str], queued_at: Sequence[int]) -> None:
        records: dict[str, list[Record]] = {}
        signals: list[Signal] = []
        for index, body in enumerate(bodies):
            try:
                envelope = parse(body, orjson.loads, self._channels, CANARY_CHANNEL, self._node)
            except MalformedEnvelope as error:
                self.malformed += 1
                _log.warning("message_malformed", reason=str(error), size=len(body))
                continue
            if self._trails is not None:
                envelope = self._received(envelope, queued_at[index] if queued_at else 0)
            if envelope.broken:
                _log.warning("envelope_entries_broken", entries=envelope.broken)
            if envelope.records or envelope.unwanted:
                self._came(envelope)
            self._way.came(envelope.records, envelope.at)
            for record in envelope.records:
                if record.channel != CANARY_CHANNEL:
                    records.setdefault(record.channel, []).append(record)
            # They are no sign of the stream, so no ears are told of them.
            for record in envelope.express:
                records.setdefault(record.channel, []).append(record)
            self.express["first"] += len(envelope.express)
            self.express["late"] += envelope.late
            signals.extend(envelope.signals)
        for name, some in records.items():
            if (channel := self._channels.get(name)) is not None:
                channel.offer(some)
        self._deliver_signals(signals)

    def _received(self, envelope: Envelope, queued_at: int) -> Envelope:
        """`envelope`, whose traced records and signals say when they came."""

        def dated(each: T) -> T:
            if each.trail is None or self._trails is None:
                return each
            return replace(each, trail=self._trails.received(each.trail, queued_at))

        return replace(
            envelope,
            records=tuple(map(dated, envelope.records)),
            signals=tuple(map(dated, envelope.signals)),
            express=tuple(map(dated, envelope.express)),
        )

    def _came(self, envelope: Envelope) -> None:
        """Say what an envelope with records tells of the ways by which records come."""
        canaries = [record for record in envelope.records if record.channel == CANARY_CHANNEL]
        if envelope.shard is None:
            # What comes through a topic shard says nothing of the base topic.
            self._ears.came()
            for canary in canaries:
                self._ears.hear(canary, envelope.at)
        # Of what comes through the base topic, canaries are enough: other records are many.
        if canaries or envelope.shard is not None:
            newest = max((canary.offset for canary in canaries), default=0)
            self._shards.came(envelope.shard, envelope.shards, newest)

    def deliver_own(self, signal: Signal) -> None:
        """Deliver a signal of this node to its own clients at once.

        Its copy from the queue is dropped.
        """
        if self._trails is not None and signal.trail is not None:
            signal = replace(signal, trail=self._trails.received(signal.trail))
        outgoing = self._outgoing()
        self._deliver(signal, outgoing)
        outgoing.go()

    def _deliver_signals(self, signals: Sequence[Signal]) -> None:
        outgoing = self._outgoing()
        for signal in signals:
            if signal.node == self._node:
                # A greeting: nothing else of this node is left.
                self._ears.greeted(signal.id)
                self._shards.greeted(signal.id)
            elif self._memory(signal).first_time(signal) and not self._is_refuted(signal):
                self._deliver(signal, outgoing)
        outgoing.go()

    def _outgoing(self) -> _Outgoing:
        return _Outgoing(self._hub, self._joins_and_leaves, self._trails)

    def _is_refuted(self, signal: Signal) -> bool:
        """Whether `signal` is the leave of a client that is still here.

        Client ids are unique, so it has not left.
        """
        if signal.kind != "leave" or not isinstance(signal.body, Mapping):
            return False
        client = signal.body.get("client")
        return isinstance(client, str) and self._is_here(client)

    def _memory(self, signal: Signal) -> Heard:
        if signal.kind not in self._handlers:
            return self._heard
        return self._heard_of_node[signal.kind]

    def _deliver(self, signal: Signal, outgoing: _Outgoing) -> None:
        if (handler := self._handlers.get(signal.kind)) is not None:
            # What came before an order goes out before the order is carried out.
            outgoing.go()
            handler(signal)
            return
        try:
            if signal.kind == BROADCAST_KIND:
                self._deliver_broadcast(signal, outgoing)
            elif not self._hub.has(signal.channel):
                pass
            elif signal.kind == "pub":
                outgoing.publish(signal.channel, _sent(signal.body))
                outgoing.trace([signal.channel], signal.trail)
            elif signal.kind in ("join", "leave") and self._has_join_leave(signal.channel):
                outgoing.tell(signal.channel, signal.kind, ClientInfo.from_wire(signal.body))
        except (MalformedPublication, Unencodable) as error:
            _log.warning("signal_malformed", kind=signal.kind, reason=str(error))

    def _deliver_broadcast(self, signal: Signal, outgoing: _Outgoing) -> None:
        """Raises MalformedPublication and Unencodable."""
        channels, stored = broadcast_of(signal)
        here = [channel for channel in channels if self._hub.has(channel)]
        if here:
            sent = _sent(stored)
            for channel in here:
                outgoing.publish(channel, sent)
            outgoing.trace(here, signal.trail)


def _sent(stored: Json) -> Sent:
    """A publication without history. Raises MalformedPublication and Unencodable."""
    one = Publication.from_stored(stored, 0)
    return sent_of(one, one.time)


class _Outgoing:
    """What many signals bring a channel: one write a socket, for publications, or joins and leaves,
    that follow each other. A write for each would take ten times as long.
    """

    def __init__(self, hub: Hub, joins_and_leaves: JoinsAndLeaves, trails: Trails | None) -> None:
        self._hub = hub
        self._joins_and_leaves = joins_and_leaves
        self._trails = trails
        # Of traced signals, with the channels that they are for.
        self._traced: list[tuple[Sequence[str], Trail]] = []
        # By channel.
        self._published: dict[str, list[Sent]] = {}
        # Whether joins or leaves were added since the last time that they went out.
        self._has_told = False

    def publish(self, channel: str, one: Sent) -> None:
        self._tell_all()
        self._published.setdefault(channel, []).append(one)

    def trace(self, channels: Sequence[str], trail: Trail | None) -> None:
        """What was published last, in `channels`, came by `trail`; None = it is not traced."""
        if trail is not None and self._trails is not None:
            self._traced.append((channels, trail))

    def tell(self, channel: str, kind: str, info: ClientInfo) -> None:
        """Raises Unencodable, and then leaves the others as they are."""
        self._publish_all()
        self._joins_and_leaves.add(channel, kind, info)
        self._has_told = True

    def go(self) -> None:
        """Send all of it. Joins and leaves may have to wait."""
        self._publish_all()
        self._tell_all()

    def _tell_all(self) -> None:
        if self._has_told:
            self._has_told = False
            self._joins_and_leaves.go()

    def _publish_all(self) -> None:
        for channel, publications in self._published.items():
            self._hub.publish(channel, publications)
        self._published.clear()
        if self._traced and self._trails is not None:
            for channels, trail in self._traced:
                self._trails.delivered(channels, (trail,))
            self._traced.clear()
