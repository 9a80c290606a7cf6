"""Signals, the messages between nodes that have no offset, and a memory that drops repeats.

Orders (service/roomcast/fleet/order_signals.py) and surveys
(service/roomcast/fleet/node_info_signals.py) are signals as well.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Final

from roomcast.delivery.envelope import HELLO_KIND, Signal
from roomcast.log.item import OFFSET_MAX
from roomcast.wire.channels import RESERVED_PREFIX
from roomcast.wire.publication import ClientInfo, Stored

__all__ = [
    "CHANNEL_KINDS",
    "HEARD_MAX",
    "HELLO_CHANNEL",
    "TRIM_KIND",
    "Heard",
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
CHANNEL_KINDS: Final = frozenset({"pub", "join", "leave"})
TRIM_KIND: Final = "trim"

# Signals that are remembered to drop repeats. SQS repeats a message within its visibility time-out,
# if at all.
HEARD_MAX: Final = 10_000


def publication(node: str, signal_id: str, channel: str, stored: Stored) -> Signal:
    """A publication of a channel without history. The body is its stored form."""
    return Signal("pub", signal_id, node, channel, stored.fields, stored.text)


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
