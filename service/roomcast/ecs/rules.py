"""Reads what ECS tells a task of itself, and says how long its node may drain: pure functions."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

__all__ = ["END_RESERVE_S", "FARGATE_STOP_S", "MalformedTask", "Task", "drain_max_s", "task_of"]

# The longest stop time-out of a container on Fargate: so long after SIGTERM comes SIGKILL.
FARGATE_STOP_S: Final = 120.0
# What remains of it once the clients are closed: for their last answers, for what was accepted, and
# for queue and lease. What takes longer, because AWS does not answer, the reaper removes.
END_RESERVE_S: Final = 30.0

# arn:aws:ecs:REGION:ACCOUNT:task/CLUSTER/ID; tasks of older accounts have no cluster in it.
_TASK_ARN: Final = re.compile(r"arn:[a-z-]+:ecs:[a-z0-9-]+:\d{12}:task/(?:.+/)?([0-9a-z-]{8,64})")
_FARGATE: Final = "FARGATE"


class MalformedTask(ValueError):
    """What was answered is not the description of a task."""


@dataclass(frozen=True, slots=True)
class Task:
    """`id`: the last part of its ARN, unique among all tasks. `fargate`: on Fargate, rather than on
    instances of one's own.
    """

    id: str
    fargate: bool


def task_of(document: object) -> Task:
    """Reads the answer of the task metadata endpoint, version 4, to `/task`.

    Raises MalformedTask.
    """
    if not isinstance(document, dict):
        raise MalformedTask("not an object")
    arn = document.get("TaskARN")
    match = _TASK_ARN.fullmatch(arn) if isinstance(arn, str) else None
    if match is None:
        raise MalformedTask("without the ARN of a task")
    return Task(match[1], document.get("LaunchType") == _FARGATE)


def drain_max_s(task: Task, jitter: float) -> float | None:
    """The most seconds that `node.drain_s` may be, so that the node ends before it is killed.

    None: the container's stop time-out says, which a task cannot see. `jitter`: how many times as
    long as `node.drain_s` a drain may take.
    """
    return (FARGATE_STOP_S - END_RESERVE_S) / jitter if task.fargate else None
