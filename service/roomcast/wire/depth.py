"""How deep JSON may be nested, judged before anything is made of it."""

from __future__ import annotations

from typing import Final

from roomcast.wire.publication import Json

__all__ = ["DEPTH_MAX", "is_deeper"]

# Arrays and objects within each other, a publication or signal. Decoders take about 1,000, an envelope's own included.
DEPTH_MAX: Final = 512


def is_deeper(value: Json, depth: int) -> bool:
    """Whether arrays and objects stand within each other more than `depth` times in `value`."""
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
