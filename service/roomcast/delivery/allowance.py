"""How many messages a node may send to SNS by itself: signals, and express hints.

A region takes a number of messages a second, of all that an account publishes there. The stream
Lambda needs them for what is in the log, and has no other way. So all nodes together have a share,
the rest is the Lambda's, and each node has its part of the share by the number of nodes that live.
The more nodes there are, the fewer messages each sends, and the more is packed into one.

Signals come first, since hints have another way: hints take what signals leave.

Pure: the caller passes the time, in monotonic seconds.
"""

from __future__ import annotations

from math import ceil
from typing import Final

from roomcast.rates import Bucket, Rate

__all__ = ["BURST_S", "PER_S_MIN", "THROTTLED_S", "Allowance", "nodes_assumed"]

# Messages a second that a node sends at least, however many there are. Also before it has counted.
PER_S_MIN: Final = 1.0
# What it may send at once, in seconds of its rate; two messages at least, so that one is a hint's.
BURST_S: Final = 1.0
_BURST_MIN: Final = 2.0
# Pause after SNS said that there are too many messages.
THROTTLED_S: Final = 1.0


def nodes_assumed(before: int | None, counted: int) -> int:
    """The number of nodes to go by, when so many were `counted`; None = for the first time.

    It follows at once when there are more. When there are fewer it is halved at most, since those
    that are missing may be back a moment later, as in an update: the rate at most doubles.
    """
    return max(counted, 1) if before is None else max(counted, ceil(before / 2))


class Allowance:
    """Of one node. `fleet_per_s`: messages a second of all nodes."""

    __slots__ = ("_bucket", "_fleet_per_s", "_not_before_s", "_rate", "nodes")

    def __init__(self, fleet_per_s: float) -> None:
        self._fleet_per_s = fleet_per_s
        # How many nodes share; None until they were counted.
        self.nodes: int | None = None
        self._rate = _rate(0.0)
        # None: full.
        self._bucket: Bucket | None = None
        self._not_before_s = 0.0

    @property
    def per_s(self) -> float:
        """Messages a second of this node."""
        return self._rate.per_s

    def share(self, nodes: int) -> None:
        """`nodes` live, this one among them."""
        if self.nodes is None:
            self._bucket = None
        self.nodes = nodes
        self._rate = _rate(self._fleet_per_s / max(nodes, 1))

    def wait_s(self, now_s: float) -> float:
        """The seconds until a signal may go, 0 = at once, if nothing else goes before."""
        return self._wait_s(1.0, now_s)

    def hint_wait_s(self, now_s: float) -> float:
        """The same for an express hint: half of what may go at once is left to signals."""
        return self._wait_s(1 + min(self._rate.burst / 2, self._rate.burst - 1), now_s)

    def take(self, now_s: float) -> None:
        """A message goes. It may."""
        self._filled(now_s).take(self._rate, now_s)

    def throttled(self, now_s: float) -> None:
        """SNS did not take a message, because there are too many."""
        self._not_before_s = now_s + THROTTLED_S

    def _wait_s(self, tokens: float, now_s: float) -> float:
        wait_s = self._filled(now_s).wait_s(self._rate, now_s, tokens)
        return max(wait_s, self._not_before_s - now_s)

    def _filled(self, now_s: float) -> Bucket:
        if self._bucket is None:
            self._bucket = Bucket(self._rate, now_s)
        return self._bucket


def _rate(per_s: float) -> Rate:
    per_s = max(per_s, PER_S_MIN)
    return Rate(per_s, max(per_s * BURST_S, _BURST_MIN))
