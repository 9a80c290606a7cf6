"""Reads from when on, and until when, publications are wanted: an offset, a span or a time."""

from __future__ import annotations

import argparse
import re
from dataclasses import dataclass
from datetime import datetime
from typing import Final

__all__ = ["OFFSET_MAX", "Since", "since", "until"]

# The greatest offset: clients hold offsets in doubles.
OFFSET_MAX: Final = 2**53 - 1

_SPAN: Final = re.compile(r"-?([0-9]{1,9})([smhd])")
_SECONDS: Final = {"s": 1, "m": 60, "h": 3600, "d": 86_400}
_A_TIME: Final = "a time such as 90s, 5m, 2h or 1d (ago) or 2026-11-29T10:00Z"


@dataclass(frozen=True, slots=True)
class Since:
    """From when on: behind `offset`, so many `seconds` ago, or at `at_ms` (since 1970). One of them
    is given.
    """

    offset: int | None = None
    seconds: int | None = None
    at_ms: int | None = None

    def time_ms(self, now_ms: int) -> int:
        """The time that is meant, at `now_ms`. Not of an offset."""
        if self.at_ms is not None:
            return self.at_ms
        assert self.seconds is not None, "it is one of both"
        return max(now_ms - self.seconds * 1000, 0)


def since(found: str) -> Since:
    """The type of an offset, of a time that is over such as 90s, 5m, 2h or 1d (with a minus before
    it or not), or of a time with its distance from UTC.
    """
    if found.isascii() and found.isdigit() and len(found) <= 16 and int(found) <= OFFSET_MAX:
        return Since(offset=int(found))
    if (time := _time(found)) is not None:
        return time
    raise argparse.ArgumentTypeError(f"must be an offset, or {_A_TIME}; found {found!r}")


def until(found: str) -> Since:
    """The same without offsets."""
    if (time := _time(found)) is not None:
        return time
    raise argparse.ArgumentTypeError(f"must be {_A_TIME}; found {found!r}")


def _time(found: str) -> Since | None:
    if span := _SPAN.fullmatch(found):
        return Since(seconds=int(span[1]) * _SECONDS[span[2]])
    try:
        moment = datetime.fromisoformat(found)
        # Without its distance from UTC it could be anybody's.
        if moment.tzinfo is None or (at_ms := round(moment.timestamp() * 1000)) < 0:
            return None
    except (ValueError, OverflowError):
        return None
    return Since(at_ms=at_ms)
