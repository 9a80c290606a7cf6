"""Puts readings into CloudWatch, all of them in one call."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Final

from roomcast.aws.errors import CALL_LIMIT_S, port_errors
from roomcast.observe.ports import Metric
from roomcast.ports import Rejected

__all__ = ["READINGS_MAX", "CloudWatchMetrics"]

# CloudWatch takes 1,000 in one call, and each reading is put twice.
READINGS_MAX: Final = 500


class CloudWatchMetrics:
    """A Metrics. Each reading is put once for the group, and once without a dimension.

    One group replaces another. Without a dimension their readings form one continuous line.

    Readings have no dimension per node: nodes come and go, and CloudWatch bills each metric by the
    month.
    """

    def __init__(self, client: Any, *, namespace: str, group: str = "") -> None:
        """`group`: the Auto Scaling group's name, "" = none."""
        self._client = client
        self._namespace = namespace
        self._dimensions: list[list[dict[str, str]]] = [[]]
        if group:
            self._dimensions.append([{"Name": "AutoScalingGroupName", "Value": group}])

    async def put(self, readings: Sequence[Metric]) -> None:
        if len(readings) > READINGS_MAX:
            raise Rejected(f"at most {READINGS_MAX} readings, not {len(readings)}")
        data = [
            {
                "MetricName": each.name,
                "Value": float(each.value),
                "Unit": each.unit,
                "Dimensions": dimensions,
            }
            for dimensions in self._dimensions
            for each in readings
            # CloudWatch refuses the whole call for one of these.
            if math.isfinite(each.value)
        ]
        if data:
            async with port_errors(CALL_LIMIT_S):
                await self._client.put_metric_data(Namespace=self._namespace, MetricData=data)
