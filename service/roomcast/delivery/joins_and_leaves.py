"""Tells the subscribers of channels on this node who joins and leaves, at a bounded rate.

Clients join and leave as often as they like, and each time every subscriber is told. So each turn
of the event loop has a bound, and each second has one. What cannot go out yet waits, and goes out
with what else its channel has by then: in few writes a socket. Of each client, a channel's last
join and last leave wait and no more. As long as little happens, all of it goes out at once.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Collection
from typing import Final, Protocol

import structlog

from roomcast.concurrency import Budget
from roomcast.wire.encoding import encode_told
from roomcast.wire.publication import ClientInfo

__all__ = [
    "BURST_S",
    "TOLD_BYTES_MAX",
    "WAITING_BYTES_MAX",
    "WRITES_A_TURN",
    "WRITES_PER_S",
    "WRITE_BYTES",
    "JoinsAndLeaves",
]

# Writes to sockets before other tasks have their turn: some 5 ms. A larger channel has a turn for
# itself.
WRITES_A_TURN: Final = 1_000
# Writes a second for all channels, in the long run: a quarter of a core. And how much of that may
# go out at once.
WRITES_PER_S: Final = 50_000
BURST_S: Final = 0.1
# A write of more bytes counts as several: this bounds what one channel's subscribers are sent.
WRITE_BYTES: Final = 1024
# Bytes that a channel's subscribers are sent together, or one join or leave: what waits for a large
# channel grows as it waits, to megabytes, which for a thousand subscribers would be gigabytes in
# one turn, and more than those who read slowly may be behind.
TOLD_BYTES_MAX: Final = 8 * 1024
# Bytes of joins and leaves that wait. Further ones are dropped: they are best effort.
WAITING_BYTES_MAX: Final = 8 * 1024 * 1024
# What one of them takes in memory besides its text.
_OVERHEAD_BYTES: Final = 300

_log = structlog.get_logger(__name__)


class Teller(Protocol):
    """The hub."""

    def tell(self, channel: str, told: Collection[bytes]) -> int:
        """Send joins and leaves to a channel's subscribers. Returns how many take them."""


class JoinsAndLeaves:
    """Those of a node's channels, the longest waiting first."""

    def __init__(self, teller: Teller) -> None:
        self._teller = teller
        # By channel, then by client and kind, in the order in which they came.
        self._waiting: OrderedDict[str, OrderedDict[tuple[str, str], bytes]] = OrderedDict()
        self._bytes = 0
        self._dropped = 0
        # The writes of a turn; and when (the loop's s) the rate allows the next.
        self._budget = Budget(WRITES_A_TURN, self.go)
        self._timer: asyncio.TimerHandle | None = None
        self._free_at_s = 0.0

    @property
    def waiting_bytes(self) -> int:
        return self._bytes

    def add(self, channel: str, kind: str, info: ClientInfo) -> None:
        """Have a `join` or `leave` told with the next `go`. Raises Unencodable."""
        told = encode_told(kind, info)
        size = len(told) + _OVERHEAD_BYTES
        if self._bytes + size > WAITING_BYTES_MAX:
            self._dropped += 1
            return
        waiting = self._waiting.setdefault(channel, OrderedDict())
        if (earlier := waiting.pop((info.client, kind), None)) is not None:
            self._bytes -= len(earlier) + _OVERHEAD_BYTES
        waiting[info.client, kind] = told
        self._bytes += size

    def go(self) -> None:
        """Send what waits, as far as this turn and the rate allow. The rest follows by itself."""
        if not self._waiting or self._timer is not None:
            return
        loop = asyncio.get_running_loop()
        while self._waiting and self._budget.left > 0:
            now_s = loop.time()
            if self._free_at_s > now_s:
                self._timer = loop.call_at(self._free_at_s, self._next_time)
                return
            writes = self._send_next()
            self._budget.take(writes)
            self._free_at_s = max(self._free_at_s, now_s - BURST_S) + writes / WRITES_PER_S

    def _send_next(self) -> int:
        """Tell one channel's subscribers some. Returns what that counts as, in writes."""
        channel, waiting = self._waiting.popitem(last=False)
        told: list[bytes] = []
        size = 0
        while waiting and (not told or size + len(next(iter(waiting.values()))) <= TOLD_BYTES_MAX):
            _, one = waiting.popitem(last=False)
            told.append(one)
            size += len(one)
        self._bytes -= size + len(told) * _OVERHEAD_BYTES
        if waiting:
            # Behind the other channels that wait.
            self._waiting[channel] = waiting
        takers = self._teller.tell(channel, told)
        if self._dropped and not self._waiting:
            _log.warning("joins_and_leaves_shed", count=self._dropped)
            self._dropped = 0
        return 1 + takers * (1 + size // WRITE_BYTES)

    def _next_time(self) -> None:
        self._timer = None
        self.go()
