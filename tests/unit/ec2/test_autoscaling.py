"""Lifecycle hooks through the SDK: what is asked, and which of its errors is none."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from botocore.exceptions import ClientError

from roomcast.aws.clients import connect
from roomcast.ec2.autoscaling import AutoScalingInstance
from roomcast.ports import PortError, Rejected, Throttled, UnknownOutcome
from tests.fakes.ec2 import FakeEc2, Hook, fake_ec2
from tests.unit.aws.fakes import REGION, SESSION, FakeClient, client_error

Tell = Callable[[AutoScalingInstance], Any]


def complete(instance: AutoScalingInstance) -> Any:
    return instance.complete("terminating")


def heartbeat(instance: AutoScalingInstance) -> Any:
    return instance.heartbeat("terminating")


def answering(answer: Callable[..., Any]) -> tuple[AutoScalingInstance, FakeClient]:
    client = FakeClient(complete_lifecycle_action=answer, record_lifecycle_action_heartbeat=answer)
    return AutoScalingInstance(client, group="chat", instance="i-1"), client


def validation(text: str) -> ClientError:
    error = client_error("ValidationError")
    error.response["Error"]["Message"] = text
    return error


async def test_what_is_asked() -> None:
    instance, client = answering(lambda **_: {})
    assert await complete(instance) is True
    assert await heartbeat(instance) is True
    whom = {"AutoScalingGroupName": "chat", "InstanceId": "i-1", "LifecycleHookName": "terminating"}
    assert client.calls == [
        ("complete_lifecycle_action", {**whom, "LifecycleActionResult": "CONTINUE"}),
        ("record_lifecycle_action_heartbeat", whom),
    ]


@pytest.mark.parametrize("tell", [complete, heartbeat])
@pytest.mark.parametrize(
    "text",
    [
        "No active Lifecycle Action found with instance ID i-1",
        "No active lifecycle action found with token 71514b9d",
    ],
)
async def test_that_nothing_waits_is_no_failure(tell: Tell, text: str) -> None:
    instance, _ = answering(lambda **_: validation(text))
    assert await tell(instance) is False


@pytest.mark.parametrize("tell", [complete, heartbeat])
@pytest.mark.parametrize(
    "error, expected",
    [
        (validation("AutoScalingGroup name not found - AutoScalingGroup chat not found"), Rejected),
        (client_error("AccessDenied", 403), Rejected),
        (client_error("Throttling"), Throttled),
        (client_error("InternalFailure", 500), UnknownOutcome),
        (TimeoutError(), UnknownOutcome),
    ],
)
async def test_other_errors_are(tell: Tell, error: Exception, expected: type[PortError]) -> None:
    instance, _ = answering(lambda **_: error)
    with pytest.raises(expected):
        await tell(instance)


# ---- over HTTP


@pytest.fixture
async def ec2() -> AsyncIterator[FakeEc2]:
    async with fake_ec2(terminate_hook=Hook("terminating", timeout_s=0.2)) as fake:
        yield fake


async def test_the_life_of_a_machine(ec2: FakeEc2) -> None:
    async with connect(
        region=REGION, endpoint_url=ec2.endpoint, session=SESSION, autoscaling=True
    ) as clients:
        machine = await ec2.launch()
        assert machine.state == "Pending:Wait"
        instance = AutoScalingInstance(clients.autoscaling, group="chat", instance=machine.id)
        assert await instance.complete("terminating") is False
        assert await instance.complete("launching") is True
        assert machine.state == "InService"
        assert await instance.complete("launching") is False

        ec2.deregister(machine)
        assert (machine.state, machine.target) == ("Terminating", "Terminated")
        assert await instance.complete("terminating") is False
        ec2.terminate(machine)
        # The hook would be over by now without them.
        for _ in range(5):
            assert await instance.heartbeat("terminating") is True
        assert await instance.complete("terminating") is True
        assert (machine.state, machine.ends) == ("Terminated", ["CONTINUE", "CONTINUE"])

        other = AutoScalingInstance(clients.autoscaling, group="other", instance=machine.id)
        with pytest.raises(Rejected):
            await other.complete("terminating")
    assert [event["detail-type"] for event in ec2.events] == [
        "EC2 Instance-launch Lifecycle Action",
        "EC2 Instance Launch Successful",
        "EC2 Instance-terminate Lifecycle Action",
        "EC2 Instance Terminate Successful",
    ]


async def test_a_hook_that_nobody_completes_ends_by_itself(ec2: FakeEc2) -> None:
    machine = await ec2.launch()
    ec2.terminate(machine)
    await ec2.until(lambda: machine.state == "Terminated")
    assert machine.ends == ["timeout"]


async def test_a_client_that_was_not_asked_for_is_not_made(ec2: FakeEc2) -> None:
    async with connect(region=REGION, endpoint_url=ec2.endpoint, session=SESSION) as clients:
        assert clients.autoscaling is None
