"""Tells what this node can tell of itself, when a node asks for the operations page.

Everything is a plain number or a short text, and all lists are bounded. Totals grow from the start
of the process on: who reads two reports has the rate between them.
"""

from __future__ import annotations

import asyncio
import heapq
import json
from collections.abc import Mapping, Sized
from dataclasses import dataclass
from typing import Any, Final

from roomcast.client.connection import Connection
from roomcast.delivery.allowance import Allowance
from roomcast.delivery.broadcaster import Broadcaster
from roomcast.delivery.canary import CanaryEars
from roomcast.delivery.hub import Hub
from roomcast.delivery.publisher import Publisher
from roomcast.delivery.queue_state import QueueState
from roomcast.fleet.inquiry_signals import REPORT_BYTES_MAX, Inquiry
from roomcast.fleet.order_signals import Target
from roomcast.fleet.orders import Subjects
from roomcast.log.appender import Appender
from roomcast.node.health import Health
from roomcast.observe.counters import ClientCounters, Histogram, MailboxCounters, StageCounters
from roomcast.ports import Clock

__all__ = [
    "BUSIEST_MAX",
    "CHANNELS_SHOWN_MAX",
    "CLIENTS_SHOWN_MAX",
    "REASONS_MAX",
    "TEXT_CHARS_MAX",
    "NodeReport",
    "Sources",
]

# Channels of one report on the busiest ones.
BUSIEST_MAX: Final = 50
# Channels that are looked at before other tasks have their turn: a millisecond or so.
_CHANNELS_A_TURN: Final = 2000
# Connections of one report, as far as they fit; channels of each, and characters of its user and of
# its info.
CLIENTS_SHOWN_MAX: Final = 100
CHANNELS_SHOWN_MAX: Final = 40
TEXT_CHARS_MAX: Final = 256
# Connections that are looked at before other tasks have their turn: an info may have 16 KiB.
_CLIENTS_A_TURN: Final = 8
# Bytes of a report beside its connections.
_ROOM_BYTES: Final = 1024
# Reasons of a node that is not well, and characters of each.
REASONS_MAX: Final = 8
_REASON_CHARS_MAX: Final = 300
# Decimal places of seconds and rates.
_PLACES: Final = 3


@dataclass(frozen=True, slots=True)
class Sources:
    """Where the figures come from."""

    health: Health
    connections: Sized
    roster: Subjects
    hub: Hub
    appender: Appender
    publisher: Publisher
    broadcaster: Broadcaster
    allowance: Allowance
    queue_state: QueueState
    ears: CanaryEars
    mailbox: MailboxCounters
    clients: ClientCounters
    stages: StageCounters


class NodeReport:
    """One a node."""

    def __init__(self, sources: Sources, clock: Clock) -> None:
        self._sources = sources
        self._clock = clock
        # When the publications of channels were last counted (monotonic s).
        self._counted_s = clock.monotonic_s()

    async def report(self, inquiry: Inquiry) -> Mapping[str, Any]:
        """Values that JSON can have. `inquiry`: of SUBJECTS."""
        match inquiry.subject:
            case "figures":
                return self._figures()
            case "busiest":
                return await self._busiest()
            case "channel":
                return {"subscribers": self._sources.hub.count(inquiry.channel)}
            case "clients":
                return await self._clients(inquiry)
        raise AssertionError(f"an inquiry about {inquiry.subject!r}")

    # ---- how the node does

    def _figures(self) -> Mapping[str, Any]:
        each, latency = self._sources, self._sources.ears.latency
        appends = each.appender.counters
        reasons, doubts = each.health.reasons(), each.health.doubts()
        return {
            "at_ms": self._clock.now_ms(),
            "ready": not reasons,
            "draining": each.health.draining,
            "reasons": [text[:_REASON_CHARS_MAX] for text in reasons[:REASONS_MAX]],
            "doubts": [text[:_REASON_CHARS_MAX] for text in doubts[:REASONS_MAX]],
            "connections": len(each.connections),
            "lag_ms": each.queue_state.lag_ms,
            "canary_age_s": round(each.ears.silence_s, _PLACES),
            "hearing": each.ears.hearing.value,
            "to_lambda_ms": None if latency is None else latency.to_lambda_ms,
            "to_node_ms": None if latency is None else latency.to_node_ms,
            "waiting": {
                "appends": each.appender.waiting_bytes,
                "signals": each.broadcaster.waiting_bytes,
                "clients": each.clients.unsent_bytes,
            },
            "mailbox": dict(each.mailbox.signals),
            "sns_per_s": round(each.allowance.per_s, _PLACES),
            "totals": {
                "publications": appends.publications["stored"] + each.publisher.signalled,
                "rejected": appends.rejected,
                "unknown": appends.publications["unknown"],
                "races": appends.races,
                "throttled": appends.throttled,
                "pushes": each.hub.counters.pushes,
                "pushed_bytes": each.hub.counters.bytes,
                "opened": each.clients.connections,
                "commands": sum(each.clients.commands.values()),
            },
            "histograms": {
                "publish_s": _histogram(appends.latency_s),
                "attempts": _histogram(appends.attempts),
                "turn_s": _histogram(appends.turn_s),
                "mailbox_s": _histogram(each.mailbox.seconds),
                "stream_s": _histogram(each.stages.stream),
                "topic_s": _histogram(each.stages.topic),
                "delivery_s": _histogram(each.stages.all),
            },
        }

    # ---- its channels

    async def _busiest(self) -> Mapping[str, Any]:
        """The channels with most publications since this was last asked, and those with most
        subscribers.
        """
        hub, now_s = self._sources.hub, self._clock.monotonic_s()
        window_s, self._counted_s = max(now_s - self._counted_s, 0.001), now_s
        counted: list[tuple[str, int, int]] = []
        names = hub.names()
        for number, name in enumerate(names, start=1):
            counted.append((name, hub.count_published(name), hub.count(name)))
            if number % _CHANNELS_A_TURN == 0:
                await asyncio.sleep(0)
        by_traffic = heapq.nlargest(BUSIEST_MAX, counted, key=lambda each: each[1:])
        by_clients = heapq.nlargest(BUSIEST_MAX, counted, key=lambda each: (each[2], each[1]))
        shown = {each[0]: each for each in (*by_traffic, *by_clients)}.values()
        return {
            "window_s": round(window_s, _PLACES),
            "channels": [
                [name, round(published / window_s, _PLACES), clients]
                for name, published, clients in shown
            ],
            "count": len(names),
        }

    # ---- its connections

    async def _clients(self, inquiry: Inquiry) -> Mapping[str, Any]:
        target = Target(None, inquiry.client) if inquiry.client else Target(inquiry.user)
        found = self._sources.roster.find(target)
        shown: list[Mapping[str, Any]] = []
        room = REPORT_BYTES_MAX - _ROOM_BYTES
        for number, connection in enumerate(found[:CLIENTS_SHOWN_MAX], start=1):
            if not isinstance(connection, Connection):
                continue
            if number % _CLIENTS_A_TURN == 0:
                await asyncio.sleep(0)
            one = _shown(connection)
            # With the comma behind it.
            room -= len(json.dumps(one)) + 1
            if room < 0:
                break
            shown.append(one)
        return {"count": len(found), "clients": shown}


def _shown(connection: Connection) -> Mapping[str, Any]:
    info, socket = connection.session.info.conn_info, connection.socket
    return {
        "client": connection.client,
        "user": connection.user[:TEXT_CHARS_MAX],
        "info": "" if info is None else json.dumps(info, ensure_ascii=False)[:TEXT_CHARS_MAX],
        "channels": sorted(connection.channels)[:CHANNELS_SHOWN_MAX],
        "channel_count": len(connection.channels),
        "protobuf": socket.is_binary,
        "unidirectional": socket.is_unidirectional,
        "unsent_bytes": socket.unsent_bytes,
    }


def _histogram(histogram: Histogram) -> Mapping[str, Any]:
    return {
        "bounds": list(histogram.bounds),
        "counts": list(histogram.counts),
        "sum": round(histogram.sum, _PLACES),
    }
