"""The timers of one connection: pings, the wait for `connect`, and the ends of tokens.

A connection has three timers at most: one for the next ping (before that, one for `connect`), one
for the awaited pong, and one for the earliest end of the connection or of a subscription.
"""

from __future__ import annotations

import asyncio
import math
from collections import OrderedDict
from typing import Final, Protocol

from roomcast.client.departures import EXPIRY_LEAVES, Departures
from roomcast.client.peer import NOBODY, Peer
from roomcast.client.services import Limits
from roomcast.ports import Clock
from roomcast.wire.codes import Disconnect
from roomcast.wire.encoding import PING

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

# A connection or subscription stays open for this long after its token has expired. Meanwhile the
# client fetches a new one.
EXPIRY_GRACE_S: Final = 25.0
# The longest time to expiry that a reply can name: the protocol's field has 32 bits.
TTL_S_MAX: Final = 2**31 - 1
# When a ping is this late, the process was suspended, and its clients have long gone elsewhere.
SLEPT_S: Final = 15 * 60.0
# Some event loops refuse timers beyond a month or two. A later deadline is checked again after this
# time.
TIMER_S_MAX: Final = 30 * 24 * 3600.0


class Expires(Protocol):
    """The owner of deadlines."""

    def expired(self, name: str | None) -> None:
        """The deadline of `name` has passed: a channel's name, or None for the connection."""


class Mortal(Expires, Protocol):
    """The connection, as its lifetime sees it."""

    @property
    def reads_no_pong(self) -> bool:
        """Whether a timely pong may still wait behind commands that are not taken yet."""


class Deadlines:
    """Deadlines by name, and one timer for all of them. `owner` is told once of each that passes.

    A name is a channel's, or None for the connection. `departures`: those of the node, by which
    few are told in one turn of the event loop.
    """

    __slots__ = ("_departures", "_ends", "_fires_at", "_owner", "_passed", "_timer")

    def __init__(self, owner: Expires, departures: Departures) -> None:
        self._owner = owner
        self._departures = departures
        # In the time of the event loop.
        self._ends: dict[str | None, float] = {}
        # Those that passed and of which the owner has yet to be told, the earliest first.
        self._passed: OrderedDict[str | None, None] = OrderedDict()
        self._timer: asyncio.TimerHandle | None = None
        self._fires_at = float("inf")

    def __len__(self) -> int:
        return len(self._ends) + len(self._passed)

    def set(self, name: str | None, in_s: float | None) -> None:
        """Have `name` end `in_s` seconds from now. None: it has no deadline any more."""
        self._passed.pop(name, None)
        if in_s is None:
            # The timer stays, and may fire once in vain.
            self._ends.pop(name, None)
            return
        self._ends[name] = asyncio.get_running_loop().time() + in_s
        self._arm()

    def stop(self) -> None:
        """Forget all of them, and stop the timer, for good."""
        self._ends.clear()
        self._passed.clear()
        self._disarm()
        self._owner = NOBODY

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
        # A timer may fire early by the loop's resolution.
        now = max(asyncio.get_running_loop().time(), self._fires_at)
        self._timer, self._fires_at = None, float("inf")
        for name in sorted(
            (name for name, ends in self._ends.items() if ends <= now), key=self._ends.__getitem__
        ):
            del self._ends[name]
            self._passed[name] = None
        self._departures.leave(self)
        if self._ends:
            self._arm()

    def leave_some(self, most: int) -> int:
        """Tell the owner of some that passed. See Departures."""
        told = 0
        # An earlier one of these may end a later one as well.
        while self._passed and told * EXPIRY_LEAVES < most:
            name, _ = self._passed.popitem(last=False)
            self._owner.expired(name)
            told += 1
        return told * EXPIRY_LEAVES


class Lifetime:
    """The timers of one connection, from its first tick on.

    A missing pong does not prove that the client is gone. The ping may wait behind data that the
    client has not read: then the connection is closed as slow (3008). Or the pong may wait behind
    data that this node has not read: then the connection stays open.
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

    def __init__(
        self, limits: Limits, clock: Clock, peer: Peer, owner: Mortal, departures: Departures
    ) -> None:
        self._limits = limits
        self._clock = clock
        self._peer = peer
        self._owner = owner
        self._deadlines = Deadlines(owner, departures)
        # Whether the last ping was sent behind data that the client had not read.
        self._is_behind = False
        self._ping_timer: asyncio.TimerHandle | None = None
        self._pong_timer: asyncio.TimerHandle | None = None
        self._stale_timer: asyncio.TimerHandle | None = asyncio.get_running_loop().call_later(
            limits.stale_close_delay_s, self._stale
        )
        # When the last ping was sent, or pings began. By the wall clock, since the monotonic clock
        # of a suspended machine stands still.
        self._awake_ms = clock.now_ms()

    def stop(self) -> None:
        """The connection has ended. Nothing fires any more."""
        for timer in (self._ping_timer, self._pong_timer, self._stale_timer):
            if timer is not None:
                timer.cancel()
        self._deadlines.stop()
        self._owner = NOBODY

    # ---- whether the client is there

    def connected(self) -> None:
        """`connect` is answered: stop the timer that waits for it."""
        if self._stale_timer is not None:
            self._stale_timer.cancel()
            self._stale_timer = None

    def begin_pings(self, chance: float) -> None:
        """Ping from now on. `chance`: a random number from 0 to 1.

        It spreads the first pings of clients that connected together.
        """
        self._awake_ms = self._clock.now_ms()
        first = self._limits.ping_interval_s * (0.5 + chance / 2)
        self._ping_timer = asyncio.get_running_loop().call_later(first, self._ping)

    def heard_pong(self) -> None:
        """A pong came: stop the timer that waits for it."""
        if self._pong_timer is not None:
            self._pong_timer.cancel()
            self._pong_timer = None

    def slept(self) -> bool:
        """Whether this process was suspended.

        Commands that are read now may have been sent long ago.
        """
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
        if self._pong_timer is None and not self._peer.socket.session:
            self._pong_timer = loop.call_later(limits.pong_timeout_s, self._no_pong)
        self._ping_timer = loop.call_later(limits.ping_interval_s, self._ping)

    def _no_pong(self) -> None:
        if self._owner.reads_no_pong:
            timeout_s = self._limits.pong_timeout_s
            self._pong_timer = asyncio.get_running_loop().call_later(timeout_s, self._no_pong)
        elif self._is_behind or self._peer.socket.unsent_bytes > 0:
            # The client may not have read the ping yet. The operator should see slowness, not a
            # missing pong.
            self._peer.close(Disconnect.SLOW)
        else:
            self._peer.close(Disconnect.NO_PONG)

    def _stale(self) -> None:
        self._stale_timer = None
        self._peer.close(Disconnect.STALE)

    # ---- until when it may stay

    def last_until(self, name: str | None, expires_at: int | None) -> dict[str, object]:
        """Hold channel `name`, or the connection (None), to the end of its token.

        `expires_at`: s since 1970, None = never. The client has EXPIRY_GRACE_S more to send a new
        token. Returns the fields for the reply.
        """
        if expires_at is None:
            self.forget(name)
            return {}
        left_s = self._left_s(expires_at)
        self._deadlines.set(name, left_s + EXPIRY_GRACE_S)
        # Never 0: a 0 would be left out, and SDKs need the field.
        return {"expires": True, "ttl": min(math.ceil(left_s) or 1, TTL_S_MAX)}

    def end_at(self, name: str | None, ends_at: int) -> None:
        """Have `name` end at `ends_at` (s since 1970), without grace: it cannot be refreshed."""
        self._deadlines.set(name, self._left_s(ends_at))

    def end_in(self, name: str | None, in_s: float) -> None:
        """The same, `in_s` seconds from now."""
        self._deadlines.set(name, in_s)

    def forget(self, name: str | None) -> None:
        """Remove the deadline of `name`."""
        self._deadlines.set(name, None)

    def _left_s(self, expires_at: int) -> float:
        return max(0.0, expires_at - self._clock.now_ms() / 1000)
