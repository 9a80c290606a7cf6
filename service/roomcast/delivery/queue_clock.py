"""Measures how late a queue's messages come, and how far this node's clock is from the queue's.

A message says when the queue got it, by the queue's clock. The difference to this node's clock on
receipt has two parts: how late the message is, and how far the clocks differ. The smallest
difference of the last minutes shows the second part, because among many messages some are not late.
Only receives that emptied the queue count: behind a backlog even the quickest message is late.
"""

from __future__ import annotations

from collections import deque
from typing import Final

__all__ = ["WINDOW_S", "QueueClock"]

# How long a difference is remembered. Canaries come more often, so a node always has one.
WINDOW_S: Final = 300.0
# The window has so many parts. For each of them, the smallest difference is kept.
_PARTS: Final = 10
_PART_S: Final = WINDOW_S / _PARTS


class QueueClock:
    """The two readings, in ms. `now_s` is monotonic."""

    __slots__ = ("_parts", "lag_ms", "skew_ms")

    def __init__(self) -> None:
        # When each part began, and its smallest difference; the newest last.
        self._parts: deque[tuple[float, int]] = deque()
        # How late the newest message of the last receive came; 0 when there was none.
        self.lag_ms = 0
        # How far this node's clock is ahead of the queue's; negative: behind. It includes the few
        # ms that each message takes.
        self.skew_ms = 0

    def received(self, difference_ms: int | None, now_s: float, *, emptied: bool) -> None:
        """Take the result of one receive.

        `difference_ms`: this node's clock minus the time when the queue got the newest message;
        None = no message.

        `emptied`: the queue is probably empty now.
        """
        if difference_ms is None:
            self.lag_ms = 0
            return
        if emptied or not self._parts:
            self._note(difference_ms, now_s)
        self.lag_ms = max(0, difference_ms - self.skew_ms)

    def _note(self, difference_ms: int, now_s: float) -> None:
        parts = self._parts
        while parts and now_s - parts[0][0] >= WINDOW_S:
            parts.popleft()
        if parts and now_s - parts[-1][0] < _PART_S:
            began_s, smallest = parts[-1]
            parts[-1] = (began_s, min(smallest, difference_ms))
        else:
            parts.append((now_s, difference_ms))
        self.skew_ms = min(smallest for _, smallest in parts)
