"""Reads log lines as CloudWatch Logs does that are in its embedded metric format, and holds them to
its specification (user guide of CloudWatch, "Specification: Embedded metric format").
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from math import isfinite
from typing import Any, Final

__all__ = ["Read", "read", "read_all"]

UNITS: Final = frozenset({"Seconds", "Milliseconds", "Count", "None"})
# Of one log event.
EVENT_BYTES_MAX: Final = 1024 * 1024
NAME: Final = re.compile(r"[\x20-\x7e]{1,255}")
# What CloudWatch takes.
VALUE_MAX: Final = 2.0**360


@dataclass(frozen=True, slots=True)
class Read:
    """One metric of one line. `dimensions`: their names and values."""

    namespace: str
    name: str
    values: tuple[float, ...]
    unit: str
    dimensions: tuple[tuple[str, str], ...]


def read(line: str | bytes) -> Iterator[Read]:
    """The metrics of one line; none if it has no `_aws`. AssertionError: the line is wrong."""
    assert len(line) <= EVENT_BYTES_MAX
    root = json.loads(line, parse_constant=_no_number)
    if "_aws" not in root:
        return
    about = root["_aws"]
    assert set(about) == {"Timestamp", "CloudWatchMetrics"}
    assert type(about["Timestamp"]) is int
    assert about["Timestamp"] > 0
    for directive in about["CloudWatchMetrics"]:
        assert set(directive) == {"Namespace", "Dimensions", "Metrics"}
        assert NAME.fullmatch(directive["Namespace"])
        assert directive["Dimensions"]
        assert 0 < len(directive["Metrics"]) <= 100
        names = [each["Name"] for each in directive["Metrics"]]
        assert len(names) == len(set(names))
        for names_of_set in directive["Dimensions"]:
            assert len(names_of_set) <= 30
            dimensions = tuple((each, root[each]) for each in names_of_set)
            for key, value in dimensions:
                assert NAME.fullmatch(key)
                assert isinstance(value, str)
                assert 1 <= len(value) <= 1024
            for metric in directive["Metrics"]:
                assert set(metric) == {"Name", "Unit"}
                assert NAME.fullmatch(metric["Name"])
                assert metric["Unit"] in UNITS
                values = _values(root[metric["Name"]])
                yield Read(
                    directive["Namespace"], metric["Name"], values, metric["Unit"], dimensions
                )


def read_all(lines: Iterable[str | bytes]) -> list[Read]:
    """Those of all lines; of lines that are no JSON, none."""
    return [each for line in lines if line[:1] in ("{", b"{") for each in read(line)]


def _values(target: Any) -> tuple[float, ...]:
    values = target if isinstance(target, list) else [target]
    assert 0 < len(values) <= 100
    for value in values:
        assert type(value) in (int, float), "a number, and true is none"
        assert isfinite(value)
        assert abs(value) <= VALUE_MAX
    return tuple(values)


def _no_number(text: str) -> float:
    raise AssertionError(f"{text} is not JSON")
