"""Readings on their way to CloudWatch."""

from __future__ import annotations

from typing import Any

import pytest

from roomcast.aws.clients import connect
from roomcast.aws.metrics import READINGS_MAX, CloudWatchMetrics
from roomcast.observe.ports import Metric
from roomcast.ports import Rejected, Throttled
from tests.fakes.ec2 import fake_ec2
from tests.unit.aws.fakes import REGION, SESSION, FakeClient, client_error

READINGS = [Metric("Connections", 3, "Count"), Metric("QueueLagMs", 12.5, "Milliseconds")]


def datum(metric: Metric, *dimensions: tuple[str, str]) -> dict[str, Any]:
    return {
        "MetricName": metric.name,
        "Value": metric.value,
        "Unit": metric.unit,
        "Dimensions": [{"Name": name, "Value": value} for name, value in dimensions],
    }


async def test_each_reading_is_put_for_the_group_and_over_all_groups() -> None:
    client = FakeClient(put_metric_data=lambda **_: {})
    await CloudWatchMetrics(client, namespace="roomcast", group="chat").put(READINGS)
    [(_, call)] = client.calls
    assert call["Namespace"] == "roomcast"
    assert call["MetricData"] == [
        *(datum(each) for each in READINGS),
        *(datum(each, ("AutoScalingGroupName", "chat")) for each in READINGS),
    ]


async def test_without_a_group_each_is_put_once() -> None:
    client = FakeClient(put_metric_data=lambda **_: {})
    await CloudWatchMetrics(client, namespace="roomcast").put(READINGS)
    [(_, call)] = client.calls
    assert call["MetricData"] == [datum(each) for each in READINGS]


async def test_what_is_no_number_does_not_spoil_the_rest() -> None:
    client = FakeClient(put_metric_data=lambda **_: {})
    metrics = CloudWatchMetrics(client, namespace="roomcast")
    await metrics.put(
        [Metric("a", float("nan"), "Count"), Metric("b", float("inf"), "Count"), READINGS[0]]
    )
    await metrics.put([Metric("a", float("nan"), "Count")])
    await metrics.put([])
    [(_, call)] = client.calls
    assert call["MetricData"] == [datum(READINGS[0])]


async def test_errors_are_errors_of_the_port() -> None:
    client = FakeClient(put_metric_data=lambda **_: client_error("Throttling"))
    metrics = CloudWatchMetrics(client, namespace="roomcast")
    with pytest.raises(Throttled):
        await metrics.put(READINGS)
    with pytest.raises(Rejected):
        await metrics.put(READINGS[:1] * (READINGS_MAX + 1))
    assert len(client.calls) == 1


async def test_over_http() -> None:
    async with (
        fake_ec2() as ec2,
        connect(
            region=REGION, endpoint_url=ec2.endpoint, session=SESSION, cloudwatch=True
        ) as clients,
    ):
        await CloudWatchMetrics(clients.cloudwatch, namespace="roomcast", group="chat").put(
            READINGS
        )
        assert [
            (each["name"], each["value"], each["unit"], each["group"]) for each in ec2.metrics
        ] == [
            ("Connections", 3, "Count", ""),
            ("QueueLagMs", 12.5, "Milliseconds", ""),
            ("Connections", 3, "Count", "chat"),
            ("QueueLagMs", 12.5, "Milliseconds", "chat"),
        ]
