"""Log lines in CloudWatch's embedded metric format, which CloudWatch Logs turns into metrics.

Pure. Wherever such a line gets into CloudWatch Logs, its metrics come about: no call, permission or
agent is needed for them. The format: "Specification: Embedded metric format" in the user guide of
CloudWatch.

A line is short enough to be written to a pipe at once, so that no other process's line gets into
it. Readings that do not fit into one line go into several.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

import orjson

__all__ = ["LINE_BYTES_MAX", "METRICS_MAX", "VALUES_MAX", "VALUE_MAX", "Metric", "lines"]

# Bounds of the format: metrics of one line, and values of one metric in it.
METRICS_MAX: Final = 100
VALUES_MAX: Final = 100
# Bytes of a line with its line break: what Linux writes to a pipe at once. The format allows 1 MiB.
LINE_BYTES_MAX: Final = 4096
# CloudWatch takes no greater values, and none that is infinite or no number.
VALUE_MAX: Final = 2.0**360
# A greater number may not be whole in JSON.
_WHOLE_MAX: Final = 2**53
# Digits of a value that is no whole number. More would tell nothing, and each byte costs.
_DIGITS: Final = 4


@dataclass(frozen=True, slots=True)
class Metric:
    """One reading. `values`: VALUES_MAX at most, of which CloudWatch makes percentiles. `unit`:
    Count, Milliseconds, Seconds or None (a plain number).
    """

    name: str
    values: Sequence[float]
    unit: str


def lines(
    metrics: Iterable[Metric],
    *,
    namespace: str,
    dimensions: Mapping[str, str],
    at_ms: int,
    about: Mapping[str, str],
) -> Iterator[bytes]:
    """The lines for `metrics`, without line breaks.

    `dimensions`: names and values, which may be none. Each other set of values is another metric
    that is paid for by the month. `at_ms`: the time of the readings (ms since 1970). `about`: what
    else the lines say, as all log lines do.

    A value that CloudWatch does not take is left out, and so is a metric without any. `namespace`,
    `dimensions` and `about` together must leave room for one metric.
    """
    frame = _Frame(namespace, dimensions, at_ms, about)
    room = LINE_BYTES_MAX - 1 - len(frame.line({}, []))
    chosen: dict[str, Any] = {}
    definitions: list[dict[str, str]] = []
    used = 0
    for metric in metrics:
        values = [_short(each) for each in metric.values if abs(each) <= VALUE_MAX]
        if not values:
            continue
        assert len(values) <= VALUES_MAX, "the format's bound"
        target = values[0] if len(values) == 1 else values
        definition = {"Name": metric.name, "Unit": metric.unit}
        # Both with a comma.
        size = len(orjson.dumps({metric.name: target})) + len(orjson.dumps(definition))
        assert size <= room, "a metric fits a line"
        if chosen and (used + size > room or len(chosen) == METRICS_MAX):
            yield frame.line(chosen, definitions)
            chosen, definitions, used = {}, [], 0
        chosen[metric.name] = target
        definitions.append(definition)
        used += size
    if chosen:
        yield frame.line(chosen, definitions)


class _Frame:
    """What all lines of one report have."""

    def __init__(
        self, namespace: str, dimensions: Mapping[str, str], at_ms: int, about: Mapping[str, str]
    ) -> None:
        self._namespace = namespace
        self._dimensions = dimensions
        self._at_ms = at_ms
        moment = datetime.fromtimestamp(at_ms / 1000, UTC).isoformat().replace("+00:00", "Z")
        self._about = {"timestamp": moment, "level": "info", **about}

    def line(self, targets: Mapping[str, Any], definitions: Sequence[Mapping[str, str]]) -> bytes:
        """The line with these metrics."""
        directive = {
            "Namespace": self._namespace,
            "Dimensions": [list(self._dimensions)],
            "Metrics": definitions,
        }
        return orjson.dumps(
            {
                **self._about,
                "_aws": {"Timestamp": self._at_ms, "CloudWatchMetrics": [directive]},
                **self._dimensions,
                **targets,
            }
        )


def _short(value: float) -> float:
    """`value` in few digits. Counts stay as they are."""
    if abs(value) <= _WHOLE_MAX and value == int(value):
        return int(value)
    return float(f"{value:.{_DIGITS}g}")
