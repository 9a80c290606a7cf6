"""Trace contexts as the W3C writes them, and the trails of traced publications.

Of the W3C's two fields only traceparent is carried on (https://www.w3.org/TR/trace-context/). It
has 55 characters; a tracestate may have hundreds, and would be in each item and each message.
What has another grammar is no context: nothing is refused because of it.

The stream Lambda shares this module, so it needs only the standard library.
"""

from __future__ import annotations

import re
from typing import Any, Final

from roomcast.frozen import frozen

__all__ = [
    "BY_EXPRESS",
    "BY_SIGNAL",
    "BY_STREAM",
    "BY_TABLE",
    "TRACEPARENT_CHARS_MAX",
    "TRAIL_MS_MAX",
    "TraceContext",
    "Trail",
    "parse_traceparent",
    "stages",
]

# Ours have 55. Later versions may append fields, of which nothing is kept.
TRACEPARENT_CHARS_MAX: Final = 256
# How a publication came: as an item of the table that this node wrote or met, by the table's
# stream, as an express hint, or as a signal.
BY_TABLE: Final = "table"
BY_STREAM: Final = "stream"
BY_EXPRESS: Final = "express"
BY_SIGNAL: Final = "signal"
# Times of a trail that are further from its end are not believed. Another program may have written
# them, and an exporter does not take every number.
TRAIL_MS_MAX: Final = 60 * 60 * 1000

# Section 3.2 of the recommendation. Letters are small.
_FORM: Final = re.compile(
    r"(?P<version>[0-9a-f]{2})-(?P<trace>[0-9a-f]{32})-(?P<span>[0-9a-f]{16})-(?P<flags>[0-9a-f]{2})"
    r"(?P<more>-[ -~]*)?"
)
_VERSION: Final = "00"
_NO_VERSION: Final = "ff"
_NO_TRACE: Final = "0" * 32
_NO_SPAN: Final = "0" * 16
_SAMPLED: Final = 0x01


@frozen
class TraceContext:
    """A span of a trace: 32 and 16 hexadecimal digits. `sampled`: whether it is recorded."""

    trace_id: str
    span_id: str
    sampled: bool = True

    def traceparent(self) -> str:
        """Its text, of version 00."""
        return f"{_VERSION}-{self.trace_id}-{self.span_id}-{'01' if self.sampled else '00'}"


def parse_traceparent(text: Any) -> TraceContext | None:
    """The context in `text`, which anybody may have written. None = there is none in it."""
    if not isinstance(text, str) or len(text) > TRACEPARENT_CHARS_MAX:
        return None
    found = _FORM.fullmatch(text)
    if found is None or found["version"] == _NO_VERSION:
        return None
    if found["version"] == _VERSION and found["more"] is not None:
        return None
    if found["trace"] == _NO_TRACE or found["span"] == _NO_SPAN:
        return None
    return TraceContext(found["trace"], found["span"], bool(int(found["flags"], 16) & _SAMPLED))


@frozen
class Trail:
    """How one traced record or signal came to this node. `by`: one of the constants above.

    `context`: the span of its append, or of its publication if it is a signal.

    Times in ms since 1970, by several clocks; 0 = not known. `appended_at`: when its writer made
    it. `lambda_at`: when the stream Lambda had it. `queued_at`: when this node's queue had it.
    `received_at`: when this node had it; `received_s`: the same in monotonic seconds.
    """

    context: TraceContext
    by: str
    appended_at: int = 0
    lambda_at: int = 0
    queued_at: int = 0
    received_at: int = 0
    received_s: float = 0.0


def stages(trail: Trail) -> list[tuple[str, int, int]]:
    """What came one after the other until `trail` was received: name, begin and end in ms.

    A time that is not known, or not to be believed, or ahead of this node's clock, begins no stage:
    the one before lasts longer. Clocks differ: a stage that seems to begin before the one before it
    begins with it.
    """
    begins = (
        (BY_EXPRESS if trail.by == BY_EXPRESS else BY_STREAM, trail.appended_at),
        ("lambda", trail.lambda_at),
        ("queue", trail.queued_at),
    )
    end = trail.received_at
    known: list[tuple[str, int]] = []
    for name, begin in begins:
        if begin > 0 and 0 <= end - begin <= TRAIL_MS_MAX:
            known.append((name, max(begin, known[-1][1]) if known else begin))
    ends = [*(begin for _, begin in known), end][1:]
    return [(name, begin, until) for (name, begin), until in zip(known, ends, strict=True)]
