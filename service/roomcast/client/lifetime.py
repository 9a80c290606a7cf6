"""How long a client stays: pings, the wait for `connect`, and what ends with its token.

One connection has three timers at most: one for its next ping (before `connect`, one for that), one
for the pong that is awaited, and one for the earliest end of the connection or a subscription.
"""

from __future__ import annotations

import asyncio
import math
from typing import Final, Protocol

from roomcast.client.peer import Peer
from roomcast.client.services import Limits
from roomcast.ports import Clock
from roomcast.wire.codes import Disconnect
from roomcast.wire.json import PING

__all__ = [
    "EXPIRY_GRACE_S",
    "SLEPT_S",
    "TIMER_S_MAX",
    "TTL_S_MAX",
    "Deadlines",
    "Expires",
    "Lifetime",
    "Mortal",
]

# What a token opened stays open for this long after it ran out. Its client fetches a new one.
EXPIRY_GRACE_S: Final = 25.0
# The longest time until a token ends that a reply names: the protocol's field has 32 bits.
TTL_S_MAX: Final = 2**31 - 1
# A ping that is this late: the process was suspended, and its clients have long gone elsewhere.
SLEPT_S: Final = 15 * 60.0
# Some event loops refuse timers beyond a month or two. A later deadline is looked at again then.
TIMER_S_MAX: Final = 30 * 24 * 3600.0


class Expires(Protocol):
    """What has deadlines."""

    def expired(self, name: str | None) -> None:
        """The deadline of `name` is over: a channel's name, or None for the connection."""


class Mortal(Expires, Protocol):
    """The connection, as its lifetime sees it."""

    @property
    def reads_no_pong(self) -> bool:
        """Whether a pong that came in time may still wait behind commands that are not taken."""


class Deadlines:
    """Deadlines by name, and one timer for all of them. `owner` hears of each that is over, once.

    A name is a channel's, or None for the connection.
    """

    __slots__ = ("_ends", "_fires_at", "_owner", "_timer")

    def __init__(self, owner: Expires) -> None:
        self._owner = owner
        # In the time of the event loop.
        self._ends: dict[str | None, float] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._fires_at = float("inf")

    def __len__(self) -> int:
        return len(self._ends)

    def set(self, name: str | None, in_s: float | None) -> None:
        """Have `name` end `in_s` seconds from now. None: never, or not any more."""
        if in_s is None:
            # The timer may fire for nothing, once.
            self._ends.pop(name, None)
            return
        self._ends[name] = asyncio.get_running_loop().time() + in_s
        self._arm()

    def clear(self) -> None:
        """Forget all of them, and stop the timer."""
        self._ends.clear()
        self._disarm()

    def _arm(self) -> None:
        loop = asyncio.get_running_loop()
        ends = min(*self._ends.values(), loop.time() + TIMER_S_MAX)
        if ends < self._fires_at:
            self._disarm()
            self._timer, self._fires_at = loop.call_at(ends, self._fire), ends

    def _disarm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer, self._fires_at = None, float("inf")

    def _fire(self) -> None:
        # A timer may come before its time, by the loop's resolution.
        now = max(asyncio.get_running_loop().time(), self._fires_at)
        self._timer, self._fires_at = None, float("inf")
        for name in sorted(
            (name for name, ends in self._ends.items() if ends <= now), key=self._ends.__getitem__
        ):
            # What was due before it may have ended this one too.
            if self._ends.pop(name, None) is not None:
                self._owner.expired(name)
        if self._ends:
            self._arm()


class Lifetime:
    """The timers of one connection, from its first tick on.

    A pong that does not come is no proof that nobody is there: the ping may wait behind what the
    client has not read, and the pong behind what this node has not read. The first closes the
    connection as slow (3008), the second does not close it.
    """

    __slots__ = (
        "_awake_ms",
        "_clock",
        "_deadlines",
        "_is_behind",
        "_limits",
        "_owner",
        "_peer",
        "_ping_timer",
        "_pong_timer",
        "_stale_timer",
    )

    def __init__(self, limits: Limits, clock: Clock, peer: Peer, owner: Mortal) -> None:
        self._limits = limits
        self._clock = clock
        self._peer = peer
        self._owner = owner
        self._deadlines = Deadlines(owner)
        # Whether the last ping was sent behind something that its client had not read.
        self._is_behind = False
        self._ping_timer: asyncio.TimerHandle | None = None
        self._pong_timer: asyncio.TimerHandle | None = None
        self._stale_timer: asyncio.TimerHandle | None = asyncio.get_running_loop().call_later(
            limits.stale_close_delay_s, self._stale
        )
        # When a ping was last due. Wall clock: a suspended machine's monotonic one stands still.
        self._awake_ms = clock.now_ms()

    def stop(self) -> None:
        """The connection has ended. Nothing fires any more."""
        for timer in (self._ping_timer, self._pong_timer, self._stale_timer):
            if timer is not None:
                timer.cancel()
        self._deadlines.clear()

    # ---- whether the client is there

    def connected(self) -> None:
        """`connect` has come, and is answered. It is not waited for any more."""
        if self._stale_timer is not None:
            self._stale_timer.cancel()
            self._stale_timer = None

    def begin_pings(self, chance: float) -> None:
        """Ping from now on. `chance`: at random between 0 and 1.

        It spreads the first pings of clients that came together.
        """
        self._awake_ms = self._clock.now_ms()
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
        if self._owner.reads_no_pong:
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

    # ---- until when it may stay

    def last_until(self, name: str | None, expires_at: int | None) -> dict[str, object]:
        """Hold channel `name`, or the connection (None), to the end of its token.

        `expires_at`: s since 1970, None = never. Its client has EXPIRY_GRACE_S more to come with a
        new token. Returns what the reply has of it.
        """
        if expires_at is None:
            self.forget(name)
            return {}
        left_s = self._left_s(expires_at)
        self._deadlines.set(name, left_s + EXPIRY_GRACE_S)
        # Never 0, which would be left out: SDKs need it.
        return {"expires": True, "ttl": min(math.ceil(left_s) or 1, TTL_S_MAX)}

    def end_at(self, name: str | None, ends_at: int) -> None:
        """Have `name` end then (s since 1970), without grace: its client cannot refresh it."""
        self._deadlines.set(name, self._left_s(ends_at))

    def forget(self, name: str | None) -> None:
        """`name` does not end by time, or has ended."""
        self._deadlines.set(name, None)

    def _left_s(self, expires_at: int) -> float:
        return max(0.0, expires_at - self._clock.now_ms() / 1000)
