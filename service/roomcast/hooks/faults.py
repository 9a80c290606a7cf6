"""What may keep a hook over HTTP from deciding. Its caller treats these as a hook's own faults."""

from __future__ import annotations

__all__ = ["Busy", "NoDecision", "TimedOut"]


class NoDecision(Exception):
    """The back end said nothing that counts. The text is for the log: it has no payload, no header
    and no part of an address but the host.
    """


class TimedOut(NoDecision):
    """It did not answer within its time, of `limit_s` seconds."""

    def __init__(self, limit_s: float) -> None:
        super().__init__(f"no answer within {limit_s:g} s")
        self.limit_s = limit_s


class Busy(NoDecision):
    """So many calls of it are under way that this one was not made."""
