"""Signals, the messages between nodes that have no offset, and a memory that drops repeats.

Orders (service/roomcast/fleet/order_signals.py) and surveys
(service/roomcast/fleet/node_info_signals.py) are signals as well.
"""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any, Final

from roomcast.delivery.envelope import HELLO_KIND, Signal
from roomcast.log.item import OFFSET_MAX
from roomcast.wire.names import RESERVED_PREFIX
from roomcast.wire.publication import ClientInfo, MalformedPublication, Stored
from roomcast.wire.trace_context import Trail

__all__ = [
    "BROADCAST_KIND",
    "CHANNELS_MAX",
    "CHANNEL_KINDS",
    "HEARD_MAX",
    "HELLO_CHANNEL",
    "TRIM_KIND",
    "Heard",
    "broadcast",
    "broadcast_of",
    "client_of",
    "hello",
    "join",
    "leave",
    "publication",
    "trim",
    "trimmed_to",
]

# A node sends itself a greeting through the topic when it starts, to prove its queue.
HELLO_CHANNEL: Final = RESERVED_PREFIX + "hello"

# Signals that are for a channel's subscribers. All others are for the nodes themselves.
BROADCAST_KIND: Final = "broadcast"
CHANNEL_KINDS: Final = frozenset({"pub", BROADCAST_KIND, "join", "leave"})
TRIM_KIND: Final = "trim"

# Signals that are remembered to drop repeats. SQS repeats a message within its visibility time-out,
# if at all.
HEARD_MAX: Final = 10_000
# Channels of one broadcast that is read. Nodes send fewer (COMMANDS_AT_A_TIME of the server API).
CHANNELS_MAX: Final = 1000


def publication(
    node: str, signal_id: str, channel: str, stored: Stored, trail: Trail | None = None
) -> Signal:
    """A publication of a channel without history. The body is its stored form.

    `trail`: None = it is not traced.
    """
    return Signal("pub", signal_id, node, channel, stored.fields, stored.text, trail)


def broadcast(
    node: str, signal_id: str, channels: list[str], stored: Stored, trail: Trail | None = None
) -> Signal:
    """One publication of several channels without history, in the order of `channels`."""
    text = f'{{"channels":{json.dumps(channels)},"pub":{stored.text}}}'
    body = {"channels": channels, "pub": stored.fields}
    return Signal(BROADCAST_KIND, signal_id, node, "", body, text, trail)


def broadcast_of(signal: Signal) -> tuple[Sequence[str], Any]:
    """The channels of a signal of BROADCAST_KIND, and the stored form of its publication.

    Raises MalformedPublication.
    """
    body = signal.body
    channels = body.get("channels") if isinstance(body, dict) else None
    if not isinstance(channels, list) or len(channels) > CHANNELS_MAX:
        raise MalformedPublication("a broadcast without a list of channels")
    if not all(isinstance(each, str) for each in channels):
        raise MalformedPublication("a broadcast to what is no channel")
    return channels, body.get("pub")


def join(node: str, signal_id: str, channel: str, info: ClientInfo) -> Signal:
    """`info` has come into the channel."""
    return Signal("join", signal_id, node, channel, info.wire())


def leave(node: str, signal_id: str, channel: str, info: ClientInfo) -> Signal:
    """`info` has left the channel."""
    return Signal("leave", signal_id, node, channel, info.wire())


def client_of(signal: Signal) -> str:
    """The client that published, came or left, by a signal of CHANNEL_KINDS; "" = a back end."""
    body = signal.body
    if signal.kind == "pub" and isinstance(body, dict):
        body = body.get("info")
    client = body.get("client") if isinstance(body, dict) else None
    return client if isinstance(client, str) else ""


def hello(node: str, signal_id: str) -> Signal:
    """A greeting of `node` to itself. By the id it knows which greeting came back."""
    return Signal(HELLO_KIND, signal_id, node, HELLO_CHANNEL, None)


def trim(node: str, signal_id: str, channel: str, offset: int) -> Signal:
    """The channel's log is hidden up to `offset`.

    The channel's head has the offset too. But nodes may keep hidden publications in memory.
    """
    return Signal(TRIM_KIND, signal_id, node, channel, offset)


def trimmed_to(signal: Signal) -> int:
    """The offset in a signal of TRIM_KIND; 0 when there is none."""
    offset = signal.body
    return offset if type(offset) is int and 0 <= offset <= OFFSET_MAX else 0


class Heard:
    """The ids of the newest signals, bounded in number."""

    __slots__ = ("_ids", "_max")

    def __init__(self, heard_max: int = HEARD_MAX) -> None:
        self._ids: OrderedDict[tuple[str, str], None] = OrderedDict()
        self._max = heard_max

    def first_time(self, signal: Signal) -> bool:
        """Whether `signal` is new. Remembers it."""
        key = (signal.node, signal.id)
        if key in self._ids:
            return False
        self._ids[key] = None
        if len(self._ids) > self._max:
            self._ids.popitem(last=False)
        return True
