"""From message bodies to the dispatcher and the hub: opens envelopes, drops repeats of signals."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import structlog

from service.core.canary import CANARY_CHANNEL
from service.core.envelope import MalformedEnvelope, Signal, parse
from service.core.protocol import Unencodable, decode_json, encode_publication, info_push, publication_push
from service.core.publication import ClientInfo, MalformedPublication, Publication, Record
from service.core.signals import Heard
from service.delivery.dispatcher import Dispatcher
from service.delivery.hub import Hub

__all__ = ["Intake"]

_log = structlog.get_logger(__name__)


class Intake:
    """What the queue brings. `greeted` is called with the id of each hello that this node sent itself, `canary` with
    each canary and the time its envelope was published (ms). `has_join_leave` tells whether a channel's clients are
    told who comes and goes: not every sender knows.
    """

    def __init__(
        self,
        node: str,
        dispatcher: Dispatcher,
        hub: Hub,
        greeted: Callable[[str], None],
        canary: Callable[[Record, int], None],
        has_join_leave: Callable[[str], bool],
    ) -> None:
        self._node = node
        self._dispatcher = dispatcher
        self._hub = hub
        self._greeted = greeted
        self._canary = canary
        self._has_join_leave = has_join_leave
        self._heard = Heard()

    def take(self, bodies: Sequence[str]) -> None:
        """Deliver what one receive brought. Never raises for what a message holds."""
        records: list[Record] = []
        signals: list[Signal] = []
        for body in bodies:
            try:
                envelope = parse(body, decode_json)
            except MalformedEnvelope as error:
                _log.warning("message_malformed", reason=str(error), size=len(body))
                continue
            if envelope.broken:
                _log.warning("envelope_entries_broken", entries=envelope.broken)
            for record in envelope.records:
                if record.channel == CANARY_CHANNEL:
                    self._canary(record, envelope.at)
                else:
                    records.append(record)
            signals.extend(envelope.signals)
        self._dispatcher.offer(records)
        self._deliver_signals(signals)

    def deliver_own(self, signal: Signal) -> None:
        """Deliver a signal of this node to its own clients at once; its copy from the queue is dropped."""
        lines: dict[str, list[bytes]] = {}
        self._deliver(signal, lines)
        self._publish(lines)

    def _deliver_signals(self, signals: Sequence[Signal]) -> None:
        lines: dict[str, list[bytes]] = {}
        for signal in signals:
            if signal.node == self._node:
                if signal.kind == "hello":
                    self._greeted(signal.id)
            elif self._heard.first_time(signal):
                self._deliver(signal, lines)
        self._publish(lines)

    def _deliver(self, signal: Signal, lines: dict[str, list[bytes]]) -> None:
        if not self._hub.has(signal.channel):
            return
        try:
            if signal.kind == "pub":
                published = Publication.from_stored(signal.body, 0)
                push = publication_push(signal.channel, encode_publication(published))
                lines.setdefault(signal.channel, []).append(push)
            elif signal.kind in ("join", "leave") and self._has_join_leave(signal.channel):
                # What was published before somebody left goes out before the leave.
                self._publish(lines)
                lines.clear()
                info = ClientInfo.from_wire(signal.body)
                self._hub.tell(signal.channel, info_push(signal.channel, signal.kind, info))
        except (MalformedPublication, Unencodable) as error:
            _log.warning("signal_malformed", kind=signal.kind, reason=str(error))

    def _publish(self, lines: dict[str, list[bytes]]) -> None:
        for channel, pushes in lines.items():
            self._hub.publish(channel, pushes)
