"""Whether the client is still there: ping and pong, the wait for `connect`, and a machine that slept.

A pong that does not come is no proof that nobody is there: the ping may wait behind what the client has not read.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

from roomcast.client.peer import Peer
from roomcast.client.services import Limits
from roomcast.ports import Clock
from roomcast.wire.codes import Disconnect
from roomcast.wire.json import PING

__all__ = ["SLEPT_S", "Heartbeat"]

# A ping that is this late: the process was suspended, and its clients have long gone elsewhere.
SLEPT_S: Final = 15 * 60.0


class Heartbeat:
    """The timers of one connection. `is_busy`: whether a frame is being taken, so that pongs behind it are not read yet."""

    __slots__ = (
        "_awake_ms",
        "_clock",
        "_is_behind",
        "_is_busy",
        "_limits",
        "_peer",
        "_ping_timer",
        "_pong_timer",
        "_stale_timer",
    )

    def __init__(
        self, limits: Limits, clock: Clock, peer: Peer, is_busy: Callable[[], bool]
    ) -> None:
        self._limits = limits
        self._clock = clock
        self._peer = peer
        self._is_busy = is_busy
        # Whether something waited to be read when the last ping was sent: it stands behind that.
        self._is_behind = False
        self._ping_timer: asyncio.TimerHandle | None = None
        self._pong_timer: asyncio.TimerHandle | None = None
        self._stale_timer: asyncio.TimerHandle | None = asyncio.get_running_loop().call_later(
            limits.stale_close_delay_s, self._stale
        )
        # When a ping was last due (wall clock: a suspended machine's monotonic clock stands still).
        self._awake_ms = clock.now_ms()

    def connected(self) -> None:
        """The client has said who it is: it is not waited for any more."""
        if self._stale_timer is not None:
            self._stale_timer.cancel()
            self._stale_timer = None

    def begin(self, chance: float) -> None:
        """From now on there are pings. `chance`: at random between 0 and 1."""
        self._awake_ms = self._clock.now_ms()
        # The first ping comes at random, so that clients that came together are not pinged together.
        first = self._limits.ping_interval_s * (0.5 + chance / 2)
        self._ping_timer = asyncio.get_running_loop().call_later(first, self._ping)

    def heard_pong(self) -> None:
        """The client is there."""
        if self._pong_timer is not None:
            self._pong_timer.cancel()
            self._pong_timer = None

    def slept(self) -> bool:
        """Whether this process was suspended: what is read now may have been sent long ago."""
        since_s = (self._clock.now_ms() - self._awake_ms) / 1000
        return since_s > self._limits.ping_interval_s + SLEPT_S

    def stop(self) -> None:
        """The connection has ended."""
        for timer in (self._ping_timer, self._pong_timer, self._stale_timer):
            if timer is not None:
                timer.cancel()

    def _ping(self) -> None:
        limits, loop = self._limits, asyncio.get_running_loop()
        if self.slept():
            self._peer.close(Disconnect.NO_PONG)
            return
        self._awake_ms = self._clock.now_ms()
        self._is_behind = self._peer.socket.unsent_bytes > 0
        self._peer.send(PING)
        if self._pong_timer is None:
            self._pong_timer = loop.call_later(limits.pong_timeout_s, self._no_pong)
        self._ping_timer = loop.call_later(limits.ping_interval_s, self._ping)

    def _no_pong(self) -> None:
        if self._is_busy():
            # It may have answered long ago: its pong waits behind the commands that this node has not taken yet.
            timeout_s = self._limits.pong_timeout_s
            self._pong_timer = asyncio.get_running_loop().call_later(timeout_s, self._no_pong)
        elif self._is_behind or self._peer.socket.unsent_bytes > 0:
            # It has not come to read the ping, or hardly: that is what its operator has to know.
            self._peer.close(Disconnect.SLOW)
        else:
            self._peer.close(Disconnect.NO_PONG)

    def _stale(self) -> None:
        self._stale_timer = None
        self._peer.close(Disconnect.STALE)
