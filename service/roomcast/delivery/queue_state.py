"""How this node's queue does: whether it has to be replaced, and how late it brings messages."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from roomcast.delivery.ports import Message
from roomcast.delivery.queue_clock import QueueClock

__all__ = ["QueueState"]


class QueueState:
    """One a node.

    The poller keeps it; whoever finds that the queue does not bring what it should asks here.
    """

    def __init__(self) -> None:
        # A rebuild is due. One that failed may have left a queue that can be received from, but is
        # not subscribed.
        self.is_gone = False
        # How often a rebuild was asked for.
        self.asked = 0
        # The receive that is under way, and the receivers beside it.
        self.receiving: asyncio.Task[Sequence[Message]] | None = None
        self.extra: set[asyncio.Task[None]] = set()
        self.clock = QueueClock()

    @property
    def lag_ms(self) -> int:
        """How late the newest message of the last receive came, less what the clocks differ.

        0 = nothing came.
        """
        return self.clock.lag_ms

    @property
    def skew_ms(self) -> int:
        """How far this node's clock is ahead of the queue's; negative: behind. See QueueClock."""
        return self.clock.skew_ms

    def rebuild_next(self) -> None:
        """Replace the queue now: it does not bring what it should.

        The receive that is under way is given up.
        """
        self.is_gone = True
        self.asked += 1
        if self.receiving is not None:
            self.receiving.cancel()
        # What they bring would be taken for a proof that the next queue hears.
        for extra in self.extra:
            extra.cancel()
