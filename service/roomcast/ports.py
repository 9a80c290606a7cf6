"""What every port has in common: the errors that it raises, and time and chance, which are ports as well.

A port is a Protocol of what roomcast needs from the outside, with the guarantees it must give. Each room has its
own in a module of this name. Every method is asynchronous, bounded in time, and safe to cancel. Errors are the types below and no
others: an adapter maps its vendor's errors to them at its edge and keeps the cause.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

__all__ = [
    "Clock",
    "Contended",
    "Malformed",
    "NewId",
    "PortError",
    "Refused",
    "Throttled",
    "UnknownOutcome",
]


class PortError(Exception):
    """Base of what a port raises."""


class Throttled(PortError):
    """Known not to have happened; the same call may succeed later. Back off."""


class UnknownOutcome(PortError):
    """May or may not have happened (time-out, reset, 5xx)."""


class Refused(PortError):
    """Known not to have happened, and would not the next time: permission, validation, a missing resource."""


class Malformed(Refused):
    """The table answered, with an item that no node wrote. It would be the same the next time."""


class Contended(PortError):
    """Known not to have happened: another write of the same item was just being carried out. Look again first."""


class Clock(Protocol):
    """Time, so that tests and the simulation can own it."""

    def now_ms(self) -> int:
        """Wall clock, ms since 1970. May be skewed against other nodes by less than half of MARGIN."""

    def monotonic_s(self) -> float:
        """Seconds; never goes back; only differences mean anything."""


# Fresh random text of at least 64 bits, of characters [0-9a-z].
NewId = Callable[[], str]
