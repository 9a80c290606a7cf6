"""Sets how often Python looks for garbage in this process."""

from __future__ import annotations

import gc
from typing import Final

__all__ = ["OBJECTS_MIN", "look_seldom"]

# New objects after which Python looks for cycles among them. It is more than the largest command or
# request holds, so what is decoded is gone before that, and is never taken for what stays. With
# Python's own 700, one client that sends arrays would have it go through all objects of the node
# again and again: through those of 10,000 connections for 0.1 s each time.
OBJECTS_MIN: Final = 100_000


def look_seldom() -> None:
    """Has Python look for cycles only after OBJECTS_MIN new objects.

    Objects without cycles are freed at once, as ever.
    """
    gc.set_threshold(OBJECTS_MIN, *gc.get_threshold()[1:])
