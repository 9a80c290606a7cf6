"""Prints figures: as a table, or as JSON."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict

from benchmarks.figures import Figure

__all__ = ["told"]


def told(figures: Sequence[Figure], *, as_json: bool = False) -> None:
    """Writes `figures` to standard output."""
    if as_json:
        sys.stdout.write(json.dumps([{**asdict(each), "ratio": each.ratio} for each in figures]))
        sys.stdout.write("\n")
        return
    for each in figures:
        bound = ""
        if each.bound is not None:
            sign = "≥" if each.higher_is_better else "≤"
            bound = f"  ({sign} {each.bound:.2f}: {'met' if each.met else 'NOT met'})"
        sys.stdout.write(
            f"{each.name}\n    {each.value:,.3g} {each.unit} ÷ {each.floor:,.3g}"
            f" ({each.floor_name}) = {each.ratio:.2f}{bound}   {each.rounds} rounds\n"
        )
