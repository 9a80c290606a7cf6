"""The common part of all ports: their errors, and the ports for time and randomness.

A port is a Protocol of an external service that roomcast needs, with the guarantees that it must
give. Each room defines its own in a module of this name. Every method is asynchronous, bounded in
time, and safe to cancel. It raises only the errors below: an adapter maps its vendor's errors to
them and keeps the cause.
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
    "Rejected",
    "Throttled",
    "UnknownOutcome",
]


class PortError(Exception):
    """Base of all errors of ports."""


class Throttled(PortError):
    """The call certainly did not happen. It may succeed later: back off."""


class UnknownOutcome(PortError):
    """The call may or may not have happened (time-out, reset, 5xx)."""


class Rejected(PortError):
    """The call certainly did not happen, and would fail again: permission, validation, a missing
    resource.
    """


class Malformed(Rejected):
    """The table returned an item that no node wrote. A repeat would return the same."""


class Contended(PortError):
    """The call certainly did not happen: another write of the same item was running.

    Read again before a repeat.
    """


class Clock(Protocol):
    """Time as a port, so that tests and the simulation can control it."""

    def now_ms(self) -> int:
        """Wall clock, ms since 1970. Its skew against other nodes is less than half of MARGIN."""

    def monotonic_s(self) -> float:
        """Seconds. It never goes back, and only differences have a meaning."""


# Returns fresh random text of at least 64 bits, of characters [0-9a-z].
NewId = Callable[[], str]
