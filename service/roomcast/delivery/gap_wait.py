"""How long a hole in a channel may fill by itself before the log is read.

A node's own appends are delivered at once, and those of other nodes when they come through the
table's stream, the Lambda, the topic and the queue. So on a node that publishes in a channel to
which others publish too, what another published just before looks missing for as long as that way
takes. A wait that is shorter has nearly each such publication read from the log.

The canaries measure the way. The wait is FACTOR times what all but a few of the last ones took,
within bounds. They hold as well where clocks are wrong, by which canaries are measured.

Pure.
"""

from __future__ import annotations

from collections import deque
from math import ceil
from typing import Final

__all__ = [
    "CANARIES_MAX",
    "FACTOR",
    "GAP_WAIT_MS_MAX",
    "GAP_WAIT_MS_MIN",
    "PART",
    "UNMEASURED_MS",
    "GapWait",
]

# Bounds of a wait that follows the canaries. What was lost on the way is late by so much.
GAP_WAIT_MS_MIN: Final = 200
GAP_WAIT_MS_MAX: Final = 2000
# The wait before the first canary is heard: what the way typically takes, and half as much again.
UNMEASURED_MS: Final = 500
# Canaries that count: those of ten minutes, by default.
CANARIES_MAX: Final = 20
# This part of them took no longer than what the wait rests on, so that a few that came late, such
# as after an outage, change nothing.
PART: Final = 0.9
FACTOR: Final = 1.5
assert GAP_WAIT_MS_MIN <= UNMEASURED_MS <= GAP_WAIT_MS_MAX


class GapWait:
    """The wait of one node.

    `fixed_ms`: what the configuration says; 0 = the wait follows the canaries.
    """

    __slots__ = ("_fixed_ms", "_took_ms", "s")

    def __init__(self, fixed_ms: int = 0) -> None:
        self._fixed_ms = fixed_ms
        # What the last canaries took, the oldest first.
        self._took_ms: deque[int] = deque(maxlen=CANARIES_MAX)
        # In seconds.
        self.s = (fixed_ms or UNMEASURED_MS) / 1000

    def took(self, canary_ms: int) -> None:
        """A new canary came, so long after it was written. Clocks may make that negative."""
        self._took_ms.append(canary_ms)
        if not self._fixed_ms:
            took_ms = sorted(self._took_ms)[ceil(PART * len(self._took_ms)) - 1]
            self.s = min(max(FACTOR * took_ms, GAP_WAIT_MS_MIN), GAP_WAIT_MS_MAX) / 1000
