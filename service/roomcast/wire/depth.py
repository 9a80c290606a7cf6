"""Bounds the nesting of JSON values before they are processed."""

from __future__ import annotations

from typing import Final

from roomcast.wire.publication import Json

__all__ = ["DEPTH_MAX", "is_deeper"]

# Nested arrays and objects in a publication or signal. Decoders take about 1,000, including the
# levels of an envelope.
DEPTH_MAX: Final = 512


def is_deeper(value: Json, depth: int) -> bool:
    """Whether arrays and objects in `value` are nested more than `depth` times."""
    level = [value]
    for _ in range(depth + 1):
        level = [
            child
            for parent in level
            if isinstance(parent, list | dict)
            for child in (parent.values() if isinstance(parent, dict) else parent)
        ]
        if not level:
            return False
    return True
