"""The state of this node's queue: whether it must be replaced, and how late its messages come."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from roomcast.delivery.ports import Message
from roomcast.delivery.queue_clock import QueueClock

__all__ = ["QueueState"]


class QueueState:
    """One a node.

    The poller keeps it. A part of the node that misses messages requests a rebuild here.
    """

    def __init__(self) -> None:
        # Whether a rebuild is due. A failed rebuild may leave a queue that can be polled, but is
        # not subscribed.
        self.is_gone = False
        # How often a rebuild was requested.
        self.asked = 0
        # The receive that is under way, and the additional receivers.
        self.receiving: asyncio.Task[Sequence[Message]] | None = None
        self.extra: set[asyncio.Task[None]] = set()
        self.clock = QueueClock()

    @property
    def lag_ms(self) -> int:
        """How late the newest message of the last receive came, in ms, corrected by the skew.

        0 = nothing came.
        """
        return self.clock.lag_ms

    @property
    def skew_ms(self) -> int:
        """How far this node's clock is ahead of the queue's; negative: behind. See QueueClock."""
        return self.clock.skew_ms

    def rebuild_next(self) -> None:
        """Have the queue replaced now, because messages are missing.

        The receive that is under way is given up.
        """
        self.is_gone = True
        self.asked += 1
        if self.receiving is not None:
            self.receiving.cancel()
        # Their messages would count as a proof of the next queue.
        for extra in self.extra:
            extra.cancel()
