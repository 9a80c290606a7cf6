"""The reaper as a Lambda: scheduled for the whole fleet, and at once for an instance or a task
that is terminating.

`asked` is the pure part: it maps an event of EventBridge to a Request. The zip contains the modules
of `roomcast` that this module imports (deploy/build.py finds them). The SDK is the runtime's boto3.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import asdict, dataclass
from functools import cache, partial
from math import inf
from typing import Any, Final, Protocol

import boto3
from botocore.config import Config

from roomcast.aws.errors import (
    ATTEMPTS_MAX,
    CONNECT_TIMEOUT_S,
    READ_TIMEOUT_S,
    demand_request_ids,
)
from roomcast.aws.threads import THREADS, ThreadedClient
from roomcast.delivery.shards import SHARDS_MAX
from roomcast.ec2.autoscaling import AutoScalingInstance
from roomcast.fleet.deployment import Deployment
from roomcast.ports import PortError, Throttled
from roomcast.reaper.over_aws import reaper_over_aws
from roomcast.reaper.reaper import Reaper, Report, Sleep
from roomcast.reaper.rules import WHOLE_FLEET, Scope
from roomcast.system import SystemClock

__all__ = [
    "LET_GO_S",
    "REPORT_S",
    "Clients",
    "Context",
    "Incomplete",
    "Request",
    "Settings",
    "TimeLeft",
    "asked",
    "carry_out",
    "handler",
]

_METRICS_NAMESPACE: Final = "roomcast"
_SCHEDULED: Final = "Scheduled Event"
_TERMINATED: Final = "EC2 Instance Terminate Successful"
_TERMINATING: Final = "EC2 Instance-terminate Lifecycle Action"
_AUTO_SCALING: Final = "aws.autoscaling"
_TASK_CHANGED: Final = "ECS Task State Change"
_ECS: Final = "aws.ecs"
# States of a task. In the first, ECS waits until the load balancer has let go of its clients, and
# only then sends it SIGTERM.
_DEACTIVATING: Final = "DEACTIVATING"
_STOPPED: Final = "STOPPED"
# The destination of an instance that is kept for later: its processes may live on.
_WARM_POOL: Final = "WarmPool"
# The end of a run's time, in seconds: for its report, and before that to let an instance go.
REPORT_S: Final = 5.0
LET_GO_S: Final = 15.0
# Characters of a text, from an event or a run, that one log line needs.
_TEXT_CHARS_MAX: Final = 100
_TOLD_MAX: Final = 20


class Incomplete(Exception):
    """A step failed. The log names it, and the next run tries again.

    It makes the function's metric Errors count.
    """


@dataclass(frozen=True, slots=True)
class Request:
    """The work that an event asks for.

    `hook`: the lifecycle hook at which `group` waits for the scope's instance. `announce`: tell
    the nodes of the scope's task to end, and nothing else.
    """

    scope: Scope
    group: str = ""
    hook: str = ""
    announce: bool = False


@dataclass(frozen=True, slots=True)
class Settings:
    """`group`: the Auto Scaling group whose lifecycle actions may be completed. "" = any
    group's. `cluster`: the ARN of the ECS cluster whose tasks are nodes. "" = no cluster's.
    """

    deployment: Deployment
    table_prefix: str
    group: str = ""
    cluster: str = ""

    @classmethod
    def of(cls, environ: Mapping[str, str]) -> Settings:
        """Reads the settings. Raises KeyError or ValueError when one is missing or wrong."""
        return cls(
            Deployment(
                environ["ROOMCAST_AWS_TOPIC_ARN"],
                environ["ROOMCAST_AWS_QUEUE_PREFIX"],
                _shards(environ.get("ROOMCAST_AWS_TOPIC_SHARDS", "1")),
            ),
            environ["ROOMCAST_AWS_TABLE_PREFIX"],
            environ.get("ROOMCAST_AWS_AUTOSCALING_GROUP", ""),
            environ.get("ROOMCAST_AWS_ECS_CLUSTER", ""),
        )


@dataclass(frozen=True, slots=True)
class Clients:
    """SDK clients whose operations are awaited."""

    dynamodb: Any
    sns: Any
    sqs: Any
    autoscaling: Any


class Context(Protocol):
    """What the Lambda runtime says of an invocation."""

    def get_remaining_time_in_millis(self) -> int:
        """The time until it is ended."""


class TimeLeft:
    """The time that the calls of a run have. Those that come later are refused, and those that are
    under way then are given up: each is a failure in the report, as any other.
    """

    def __init__(self, limit_s: float) -> None:
        """`limit_s`: from now."""
        self._ends_s = asyncio.get_running_loop().time() + limit_s
        self.reserve(0)

    def reserve(self, for_later_s: float) -> None:
        """Keep so much of it for what comes later."""
        self._until_s = self._ends_s - for_later_s

    async def sleep(self, sleep: Sleep, seconds: float) -> None:
        """Sleeps for so long, or until the time is over: no call after it is made then."""
        await sleep(max(0.0, min(seconds, self._until_s - asyncio.get_running_loop().time())))

    def of(self, client: Any) -> Any:
        """`client`, whose calls have this time."""
        return _InTime(client, self)

    async def call(self, called: Callable[[], Coroutine[Any, Any, Any]]) -> Any:
        if asyncio.get_running_loop().time() >= self._until_s:
            raise Throttled("no time is left")
        async with asyncio.timeout_at(self._until_s):
            return await called()


class _InTime:
    def __init__(self, client: Any, left: TimeLeft) -> None:
        self._client = client
        self._left = left

    def __getattr__(self, name: str) -> Callable[..., Coroutine[Any, Any, Any]]:
        operation = getattr(self._client, name)

        async def call(**parameters: Any) -> Any:
            return await self._left.call(partial(operation, **parameters))

        return call


def handler(event: Mapping[str, Any], context: Context | None) -> dict[str, Any]:
    """Does the work that `event` asks for. Raises Incomplete when a step failed, or there was no
    time for it: a retry does no harm.

    `context`: the runtime's, which knows the time that is left; None = there is no bound.
    """
    settings = Settings.of(os.environ)
    request = asked(event, settings.group, settings.cluster)
    if request is None:
        _write(
            {
                "event": "event_ignored",
                "source": _text(event, "source"),
                "type": _text(event, "detail-type"),
            }
        )
        return {"ignored": True}
    limit_s = context.get_remaining_time_in_millis() / 1000 - REPORT_S if context else inf
    return asyncio.run(carry_out(request, settings, _clients(), limit_s))


def asked(event: Mapping[str, Any], group: str = "", cluster: str = "") -> Request | None:
    """The work that an event asks for.

    None: the event does not concern the reaper, or belongs to another group than `group` ("" =
    any), or to another cluster than `cluster` ("" = none is ours).
    """
    kind, detail = event.get("detail-type"), event.get("detail")
    if kind == _SCHEDULED:
        return Request(WHOLE_FLEET)
    if not isinstance(detail, Mapping):
        return None
    if (event.get("source"), kind) == (_ECS, _TASK_CHANGED):
        return _asked_by_task(detail, cluster)
    if event.get("source") != _AUTO_SCALING:
        return None
    instance, whose = detail.get("EC2InstanceId"), detail.get("AutoScalingGroupName")
    if not (isinstance(instance, str) and instance and isinstance(whose, str)) or group not in (
        "",
        whose,
    ):
        return None
    if kind == _TERMINATED:
        return Request(Scope(instance, terminated=detail.get("Destination") != _WARM_POOL))
    hook = detail.get("LifecycleHookName")
    if kind == _TERMINATING and isinstance(hook, str) and hook:
        return Request(Scope(instance), whose, hook)
    return None


def _asked_by_task(detail: Mapping[str, Any], cluster: str) -> Request | None:
    arn = detail.get("taskArn")
    if not cluster or detail.get("clusterArn") != cluster or not isinstance(arn, str):
        return None
    # Nodes know themselves by the last part: service/roomcast/ecs/rules.py.
    task = arn.rpartition("/")[2]
    status = detail.get("lastStatus") if task else None
    if status == _STOPPED:
        return Request(Scope(task, terminated=True))
    if status == _DEACTIVATING:
        return Request(Scope(task), announce=True)
    return None


async def carry_out(
    request: Request,
    settings: Settings,
    clients: Clients,
    limit_s: float = inf,
    sleep: Sleep = asyncio.sleep,
) -> dict[str, Any]:
    """Reaps, then completes the lifecycle action of an instance on which no node runs any more.

    It takes at most `limit_s`. Raises Incomplete.

    While a lease of the instance is fresh, its node is draining, and completes the action itself.
    """
    left = TimeLeft(limit_s)
    if request.hook:
        left.reserve(LET_GO_S)
    clients = Clients(
        left.of(clients.dynamodb),
        left.of(clients.sns),
        left.of(clients.sqs),
        left.of(clients.autoscaling),
    )
    reaper = reaper_over_aws(
        settings.deployment,
        settings.table_prefix,
        SystemClock(),
        dynamodb=clients.dynamodb,
        sns=clients.sns,
        sqs=clients.sqs,
        sleep=partial(left.sleep, sleep),
    )
    try:
        if request.announce:
            return await _announce(reaper, request.scope.instance or "")
        report = await reaper.run(scope=request.scope)
        _report(report)
        if request.hook:
            left.reserve(0)
            await _let_go(request, report, reaper, clients)
    except PortError as error:
        _report(Report(dry_run=False, live=0, failed=1), str(error))
        raise Incomplete(str(error)) from error
    if report.failed:
        raise Incomplete(f"{report.failed} steps failed")
    return _counts(report)


async def _announce(reaper: Reaper, task: str) -> dict[str, Any]:
    """Raises PortError."""
    told = await reaper.announce_end(task)
    _write({"event": "end_announced", "instance": task, "nodes": told})
    return {"told": told}


async def _let_go(request: Request, report: Report, reaper: Reaper, clients: Clients) -> None:
    """Completes the lifecycle action, unless the instance turns out to live. Raises PortError."""
    live = report.live
    if not live and any(node.outcome == "spared" for node in report.nodes):
        # A node lives after all, or another reaper was quicker: the leases show which.
        live = (await reaper.run(dry_run=True, scope=request.scope)).live
    if live:
        _write({"event": "lifecycle_action_left_to_node", "instance": request.scope.instance})
        return
    instance = AutoScalingInstance(
        clients.autoscaling, group=request.group, instance=request.scope.instance or ""
    )
    # The next run removes the rest, which does not need the instance.
    waited = await instance.complete(request.hook)
    _write(
        {
            "event": "lifecycle_action_completed",
            "instance": request.scope.instance,
            "waited": waited,
        }
    )


@cache
def _clients() -> Clients:
    """The clients, made on first use and kept as long as the execution environment lives.

    boto3 finds the region and the endpoint.
    """
    config = Config(
        connect_timeout=CONNECT_TIMEOUT_S,
        read_timeout=READ_TIMEOUT_S,
        max_pool_connections=THREADS,
        retries={"mode": "standard", "total_max_attempts": ATTEMPTS_MAX},
    )

    def made(service: str) -> ThreadedClient:
        client = boto3.client(service, config=config)
        demand_request_ids(client)
        return ThreadedClient(client)

    return Clients(made("dynamodb"), made("sns"), made("sqs"), made("autoscaling"))


def _counts(report: Report) -> dict[str, int]:
    return {
        "live": report.live,
        "reaped": sum(node.outcome == "removed" for node in report.nodes),
        "orphans": sum(queue.outcome == "removed" for queue in report.queues)
        + sum(subscription.outcome == "removed" for subscription in report.subscriptions),
        "failed": report.failed,
    }


def _report(report: Report, reason: str = "") -> None:
    """Writes one line in CloudWatch's embedded metric format. No line if the run found nothing, as
    is usual.
    """
    if report.is_empty:
        return
    counts = _counts(report)
    metrics = {
        "ReapedNodes": counts["reaped"],
        "Orphans": counts["orphans"],
        "ReaperErrors": counts["failed"],
    }
    _write(
        {
            "_aws": {
                "Timestamp": int(time.time() * 1000),
                "CloudWatchMetrics": [
                    {
                        "Namespace": _METRICS_NAMESPACE,
                        # Deployments of one account share the namespace.
                        "Dimensions": [["FunctionName"]],
                        "Metrics": [{"Name": name, "Unit": "Count"} for name in metrics],
                    }
                ],
            },
            "FunctionName": os.environ.get("AWS_LAMBDA_FUNCTION_NAME", "none"),
            "event": "reaping_incomplete" if report.failed else "reaped",
            **metrics,
            "nodes": [asdict(each) for each in report.nodes[:_TOLD_MAX]],
            "queues": [asdict(each) for each in report.queues[:_TOLD_MAX]],
            "subscriptions": [asdict(each) for each in report.subscriptions[:_TOLD_MAX]],
            "failures": [asdict(each) for each in report.failures[:_TOLD_MAX]],
            "reason": reason,
        }
    )


def _shards(text: str) -> int:
    """Raises ValueError for a number that no deployment has."""
    shards = int(text)
    if not 1 <= shards <= SHARDS_MAX:
        raise ValueError(f"ROOMCAST_AWS_TOPIC_SHARDS must be from 1 to {SHARDS_MAX}")
    return shards


def _text(event: Mapping[str, Any], name: str) -> str:
    return str(event.get(name))[:_TEXT_CHARS_MAX]


def _write(line: Mapping[str, Any]) -> None:
    # Not through logging: the runtime's handler would put a prefix before the line, and CloudWatch
    # would see no metric.
    sys.stdout.write(json.dumps(line, separators=(",", ":")) + "\n")
    sys.stdout.flush()
