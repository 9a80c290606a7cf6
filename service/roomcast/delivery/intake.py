"""Opens envelopes from the queue, and gives records to the dispatcher and signals to the hub."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType

import orjson
import structlog

from roomcast.delivery.canary_rules import CANARY_CHANNEL
from roomcast.delivery.dispatcher import Dispatcher
from roomcast.delivery.envelope import MalformedEnvelope, Signal, parse
from roomcast.delivery.hub import Hub
from roomcast.delivery.signals import Heard
from roomcast.wire.encoding import Sent, Unencodable, sent_of
from roomcast.wire.publication import ClientInfo, MalformedPublication, Publication, Record

__all__ = ["Intake"]

_log = structlog.get_logger(__name__)


class Intake:
    """Takes the messages of the queue. Repeated signals are dropped.

    `greeted` gets the id of each hello that this node sent to itself. `canary` gets each canary,
    and the time at which its envelope was published (ms). `came` is called for each message that
    came from the table. `handlers`, by kind, get the signals that are for the node and not for a
    channel.

    `has_join_leave` says whether a channel has join and leave pushes: not every sender knows.
    `is_here` says whether a client is connected to this node: others may have taken this node for
    dead, and signal that its clients left.
    """

    def __init__(
        self,
        node: str,
        dispatcher: Dispatcher,
        hub: Hub,
        greeted: Callable[[str], None],
        canary: Callable[[Record, int], None],
        has_join_leave: Callable[[str], bool],
        handlers: Mapping[str, Callable[[Signal], None]] = MappingProxyType({}),
        is_here: Callable[[str], bool] = lambda _client: False,
        came: Callable[[], None] = lambda: None,
    ) -> None:
        self._node = node
        self._dispatcher = dispatcher
        self._hub = hub
        self._greeted = greeted
        self._canary = canary
        self._has_join_leave = has_join_leave
        self._handlers = handlers
        self._is_here = is_here
        self._came = came
        self._heard = Heard()
        # Signals for the node have a memory of their own. Otherwise many signals of channels would
        # push out orders, and a repeated order would look new.
        self._heard_of_node = Heard()
        # Messages that are no envelopes.
        self.malformed = 0

    def take(self, bodies: Sequence[str]) -> None:
        """Deliver the messages of one receive. Never raises for the content of a message."""
        records: list[Record] = []
        signals: list[Signal] = []
        for body in bodies:
            try:
                envelope = parse(body, orjson.loads)
            except MalformedEnvelope as error:
                self.malformed += 1
                _log.warning("message_malformed", reason=str(error), size=len(body))
                continue
            if envelope.broken:
                _log.warning("envelope_entries_broken", entries=envelope.broken)
            if envelope.records:
                self._came()
            for record in envelope.records:
                if record.channel == CANARY_CHANNEL:
                    self._canary(record, envelope.at)
                else:
                    records.append(record)
            signals.extend(envelope.signals)
        self._dispatcher.offer(records)
        self._deliver_signals(signals)

    def deliver_own(self, signal: Signal) -> None:
        """Deliver a signal of this node to its own clients at once.

        Its copy from the queue is dropped.
        """
        published: dict[str, list[Sent]] = {}
        self._deliver(signal, published)
        self._publish(published)

    def _deliver_signals(self, signals: Sequence[Signal]) -> None:
        published: dict[str, list[Sent]] = {}
        for signal in signals:
            if signal.node == self._node:
                if signal.kind == "hello":
                    self._greeted(signal.id)
            elif self._memory(signal).first_time(signal) and not self._is_refuted(signal):
                self._deliver(signal, published)
        self._publish(published)

    def _is_refuted(self, signal: Signal) -> bool:
        """Whether `signal` is the leave of a client that is still here.

        Client ids are unique, so it has not left.
        """
        if signal.kind != "leave" or not isinstance(signal.body, Mapping):
            return False
        client = signal.body.get("client")
        return isinstance(client, str) and self._is_here(client)

    def _memory(self, signal: Signal) -> Heard:
        return self._heard_of_node if signal.kind in self._handlers else self._heard

    def _deliver(self, signal: Signal, published: dict[str, list[Sent]]) -> None:
        if (handler := self._handlers.get(signal.kind)) is not None:
            # Publications before an order go out before the order is carried out.
            self._publish(published)
            published.clear()
            handler(signal)
            return
        if not self._hub.has(signal.channel):
            return
        try:
            if signal.kind == "pub":
                one = Publication.from_stored(signal.body, 0)
                published.setdefault(signal.channel, []).append(sent_of(one, one.time))
            elif signal.kind in ("join", "leave") and self._has_join_leave(signal.channel):
                # Publications before a join or leave go out before it.
                self._publish(published)
                published.clear()
                info = ClientInfo.from_wire(signal.body)
                self._hub.tell(signal.channel, signal.kind, info)
        except (MalformedPublication, Unencodable) as error:
            _log.warning("signal_malformed", kind=signal.kind, reason=str(error))

    def _publish(self, published: Mapping[str, Sequence[Sent]]) -> None:
        for channel, publications in published.items():
            self._hub.publish(channel, publications)
