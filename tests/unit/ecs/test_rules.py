"""Which task this is, and how long it may drain."""

from __future__ import annotations

from typing import Any

import pytest

from roomcast.ecs.rules import (
    END_RESERVE_S,
    FARGATE_STOP_S,
    MalformedTask,
    Task,
    drain_max_s,
    task_of,
)

ID = "4b2f0d9c7a6e4c1f8d35e0b1a2c3d4e5"
ARN = f"arn:aws:ecs:eu-west-1:123456789012:task/roomcast/{ID}"


@pytest.mark.parametrize(
    "document, task",
    [
        ({"TaskARN": ARN, "LaunchType": "FARGATE"}, Task(ID, fargate=True)),
        ({"TaskARN": ARN, "LaunchType": "EC2"}, Task(ID, fargate=False)),
        ({"TaskARN": ARN}, Task(ID, fargate=False)),
        # Of an account with the older format.
        (
            {"TaskARN": "arn:aws-cn:ecs:cn-north-1:123456789012:task/d0c5b1f0-9d3c-4e55-8a9a-c3"},
            Task("d0c5b1f0-9d3c-4e55-8a9a-c3", fargate=False),
        ),
    ],
)
def test_a_task_is_known_by_the_end_of_its_arn(document: Any, task: Task) -> None:
    assert task_of(document) == task


@pytest.mark.parametrize(
    "document",
    [
        None,
        [],
        {},
        {"TaskARN": 7},
        {"TaskARN": ""},
        {"TaskARN": ARN + "\n"},
        {"TaskARN": ARN.replace(":task/", ":service/")},
        {"TaskARN": ARN + "x" * 64},
    ],
)
def test_what_is_no_task(document: Any) -> None:
    with pytest.raises(MalformedTask):
        task_of(document)


def test_on_fargate_a_drain_must_end_before_the_task_is_killed() -> None:
    longest_s = drain_max_s(Task(ID, fargate=True), 1.5)
    assert longest_s is not None
    assert longest_s * 1.5 + END_RESERVE_S == FARGATE_STOP_S
    # `stopTimeout` of one's own instances may be anything.
    assert drain_max_s(Task(ID, fargate=False), 1.5) is None
