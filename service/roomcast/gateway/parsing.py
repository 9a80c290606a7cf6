"""Bounds the bytes that are parsed in one turn of the event loop, of all connections together.

Hundreds of clients may send at the same moment what is read from each at a time.
"""

from __future__ import annotations

from collections import deque
from typing import Final, Protocol

from roomcast.concurrency import Budget

__all__ = [
    "FRAMES_A_TURN",
    "PARSED_AT_ONCE",
    "RECORDS_A_TURN",
    "REQUESTS_A_TURN",
    "Parser",
    "Parsing",
]

# Bytes of frames: some 4 ms, if they are frames of nothing. Of requests: some 6 ms, if they are
# chunks of one byte. And of TLS: some 3 ms, if they are records of one byte.
FRAMES_A_TURN: Final = 64 * 1024
REQUESTS_A_TURN: Final = 16 * 1024
RECORDS_A_TURN: Final = 64 * 1024
# So much is parsed at once, without asking, so that who says little waits for nobody.
PARSED_AT_ONCE: Final = 256


class Parser(Protocol):
    """A connection of which something waits to be parsed. It is not read meanwhile."""

    def parse(self) -> int:
        """Parse it, and read on. Returns its bytes; 0 = nothing waits any more.

        Raises nothing: others wait behind it.
        """


class Parsing:
    """One for each kind of connection of a node. First come, first served. `a_turn`: bytes."""

    __slots__ = ("_budget", "_waiting")

    def __init__(self, a_turn: int) -> None:
        self._budget = Budget(a_turn, self._go_on)
        self._waiting: deque[Parser] = deque()

    def has_room(self, size: int) -> bool:
        """Whether so many bytes are parsed in this turn. If not, the caller must wait."""
        if self._waiting or self._budget.left <= 0:
            return False
        self._budget.take(size)
        return True

    def wait(self, parser: Parser) -> None:
        """Have `parser` parse what waits with it in a later turn."""
        self._waiting.append(parser)

    def _go_on(self) -> None:
        while self._waiting and self._budget.left > 0:
            if size := self._waiting.popleft().parse():
                self._budget.take(size)
