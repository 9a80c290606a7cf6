"""The Lambda: what it makes of events, when it lets an instance go, and what it writes.
SDK clients are faked.
"""

from __future__ import annotations

import asyncio
import json
import os
import time
from asyncio import Future
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Final

import pytest

from roomcast.fleet.deployment import queue_tags
from roomcast.ports import UnknownOutcome
from roomcast.reaper import handler as reaping
from roomcast.reaper.handler import (
    LET_GO_S,
    REPORT_S,
    Clients,
    Incomplete,
    Request,
    Settings,
    asked,
)
from roomcast.reaper.reaper import SECOND_LOOK_S, Sleep
from roomcast.reaper.rules import REAP_GRACE_MS, WHOLE_FLEET, Scope
from roomcast.system import SystemClock
from tests.emf import Read, read
from tests.unit.aws.fakes import FakeClient, answer_all, client_error

EVENTS: Final = Path(__file__).parents[2] / "fixtures" / "events"
INSTANCE: Final = "i-0a1b2c3d4e5f60718"
GROUP: Final = "roomcast"
TASK: Final = "4b2f0d9c7a6e4c1f8d35e0b1a2c3d4e5"
CLUSTER: Final = "arn:aws:ecs:eu-west-1:123456789012:cluster/roomcast"
TOPIC: Final = "arn:aws:sns:eu-west-1:123456789012:roomcast-topic"
ENVIRONMENT: Final = {
    "ROOMCAST_AWS_TOPIC_ARN": TOPIC,
    "ROOMCAST_AWS_TABLE_PREFIX": "t-",
    "ROOMCAST_AWS_QUEUE_PREFIX": "q-",
}
TTL_MS: Final = 60_000


def event(name: str, **detail: Any) -> dict[str, Any]:
    """A recorded event; `detail`: changes in it, None = taken out."""
    found: dict[str, Any] = json.loads((EVENTS / f"{name}.json").read_text(encoding="utf-8"))
    changed = found["detail"] | detail
    return found | {"detail": {key: value for key, value in changed.items() if value is not None}}


@pytest.mark.parametrize(
    "name, request_",
    [
        ("scheduled", Request(WHOLE_FLEET)),
        ("terminate_successful", Request(Scope(INSTANCE, terminated=True))),
        ("terminate_to_warm_pool", Request(Scope(INSTANCE))),
        ("terminate_lifecycle_action", Request(Scope(INSTANCE), GROUP, "roomcast-terminate")),
        ("launch_lifecycle_action", None),
        ("spot_interruption", None),
    ],
)
def test_what_an_event_asks_for(name: str, request_: Request | None) -> None:
    assert asked(event(name)) == request_
    assert asked(event(name), GROUP) == request_


@pytest.mark.parametrize(
    "name, request_",
    [
        ("task_deactivating", Request(Scope(TASK), announce=True)),
        ("task_stopped", Request(Scope(TASK, terminated=True))),
    ],
)
def test_what_an_event_of_a_task_asks_for(name: str, request_: Request) -> None:
    assert asked(event(name), GROUP, CLUSTER) == request_
    assert asked(event(name), GROUP, CLUSTER + "-2") is None
    # Without a cluster of ours, no task is a node.
    assert asked(event(name), GROUP) is None


@pytest.mark.parametrize(
    "strange",
    [
        *(event("task_stopped", lastStatus=status) for status in ("RUNNING", "STOPPING", None, 7)),
        event("task_stopped", taskArn=None),
        event("task_stopped", taskArn="task/"),
        event("task_stopped", clusterArn=None),
        event("task_stopped") | {"source": "somebody"},
        event("task_stopped") | {"detail-type": "ECS Service Action"},
        event("task_stopped") | {"detail": None},
    ],
)
def test_what_else_happens_to_a_task_is_ignored(strange: Mapping[str, Any]) -> None:
    assert asked(strange, GROUP, CLUSTER) is None


@pytest.mark.parametrize("name", ["terminate_successful", "terminate_lifecycle_action"])
def test_another_group_is_nobody_of_ours(name: str) -> None:
    assert asked(event(name, AutoScalingGroupName="other"), GROUP) is None
    assert asked(event(name, AutoScalingGroupName="other")) is not None


@pytest.mark.parametrize(
    "strange",
    [
        {},
        {"detail-type": None, "detail": None},
        event("terminate_successful") | {"source": "somebody"},
        event("terminate_successful") | {"detail": [1]},
        event("terminate_successful", EC2InstanceId=None),
        event("terminate_successful", EC2InstanceId=""),
        event("terminate_successful", EC2InstanceId=7),
        event("terminate_lifecycle_action", LifecycleHookName=None),
        event("terminate_lifecycle_action", AutoScalingGroupName=None),
        event("terminate_lifecycle_action")
        | {"detail-type": "EC2 Instance-dance Lifecycle Action"},
    ],
)
def test_anything_else_is_ignored(strange: Mapping[str, Any]) -> None:
    assert asked(strange) is None


def test_settings_come_from_the_environment() -> None:
    settings = Settings.of(ENVIRONMENT)
    assert (settings.deployment.topic_arn, settings.deployment.queue_prefix) == (TOPIC, "q-")
    assert (settings.table_prefix, settings.group, settings.cluster) == ("t-", "", "")
    assert Settings.of(ENVIRONMENT | {"ROOMCAST_AWS_ECS_CLUSTER": CLUSTER}).cluster == CLUSTER
    assert Settings.of(ENVIRONMENT | {"ROOMCAST_AWS_AUTOSCALING_GROUP": GROUP}).group == GROUP
    assert settings.deployment.shards == 1
    sharded = Settings.of(ENVIRONMENT | {"ROOMCAST_AWS_TOPIC_SHARDS": "16"})
    assert len(sharded.deployment.topic_arns) == 17
    for number in ("0", "17", "four"):
        with pytest.raises(ValueError, match=r"ROOMCAST_AWS_TOPIC_SHARDS|invalid literal"):
            Settings.of(ENVIRONMENT | {"ROOMCAST_AWS_TOPIC_SHARDS": number})
    for name in ENVIRONMENT:
        with pytest.raises(KeyError):
            Settings.of({key: value for key, value in ENVIRONMENT.items() if key != name})
    with pytest.raises(ValueError, match="topic"):
        Settings.of(ENVIRONMENT | {"ROOMCAST_AWS_TOPIC_ARN": "topic"})


def row(node: str, *, age_ms: int, instance: str = INSTANCE) -> dict[str, Any]:
    """A lease whose last heartbeat was `age_ms` ago."""
    heard = SystemClock().now_ms() - age_ms
    numbers = {"started_at": heard, "heartbeat_at": heard, "lease_until": heard + TTL_MS}
    texts = {
        "node": node,
        "queue": f"q-{node}",
        "state": "live",
        "instance": instance,
        "subscription_arn": f"{TOPIC}:{node}",
    }
    return {name: {"N": str(value)} for name, value in numbers.items()} | {
        name: {"S": value} for name, value in texts.items()
    }


class Aws:
    """An account with some leases, which says yes to everything that is not told otherwise."""

    def __init__(self, *rows: dict[str, Any], **operations: Callable[..., Any]) -> None:
        self.rows = list(rows)
        given: dict[str, Callable[..., Any]] = {
            "scan": lambda **_: {"Items": self.rows},
            "update_item": lambda **_: {},
            "delete_item": lambda **_: {},
            "query": lambda **_: {"Items": []},
            "get_queue_url": lambda **name: {
                "QueueUrl": f"https://sqs.example.com/{name['QueueName']}"
            },
            "delete_queue": lambda **_: {},
            "send_message": lambda **_: {},
            "list_queues": lambda **_: {},
            "get_queue_attributes": lambda **_: {"Attributes": {"CreatedTimestamp": "1700000000"}},
            "list_queue_tags": lambda **_: {"Tags": queue_tags(TOPIC, "n1")},
            "list_subscriptions_by_topic": lambda **_: {},
            "unsubscribe": lambda **_: {},
            "complete_lifecycle_action": lambda **_: {},
            **operations,
        }
        self.client = FakeClient(**given)

    def names(self) -> list[str]:
        return self.client.names

    def arguments(self, name: str) -> list[dict[str, Any]]:
        return [arguments for called, arguments in self.client.calls if called == name]


class Lambda:
    """The function in its environment."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        self._monkeypatch = monkeypatch
        self._capsys = capsys
        self.lines: list[dict[str, Any]] = []
        # What happens while it waits for a second look.
        self.meanwhile: Callable[[], None] = lambda: None
        self.waited_s = 0.0
        # How it really sleeps; None = not at all.
        self.sleep: Sleep | None = None
        # Milliseconds that it has.
        self.left_ms = 120_000
        monkeypatch.setattr(reaping, "carry_out", partial(reaping.carry_out, sleep=self._sleep))

    async def _sleep(self, seconds: float) -> None:
        if self.sleep is not None:
            await self.sleep(seconds)
        # Less than a second is the pace of calls.
        if seconds >= 1:
            self.waited_s += seconds
            self.meanwhile()

    def __call__(self, what: Mapping[str, Any], aws: Aws) -> dict[str, Any]:
        clients = Clients(aws.client, aws.client, aws.client, aws.client)
        self._monkeypatch.setattr(reaping, "_clients", lambda: clients)
        try:
            return reaping.handler(what, self)
        finally:
            self.lines = [json.loads(line) for line in self._capsys.readouterr().out.splitlines()]

    def get_remaining_time_in_millis(self) -> int:
        return self.left_ms

    @property
    def events(self) -> list[str]:
        return [line["event"] for line in self.lines]


@pytest.fixture
def function(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Lambda:
    for name in os.environ:
        if name.startswith("ROOMCAST_"):
            monkeypatch.delenv(name)
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    return Lambda(monkeypatch, capsys)


@pytest.mark.parametrize("name", ["launch_lifecycle_action", "spot_interruption"])
def test_what_is_ignored_is_said(name: str, function: Lambda) -> None:
    aws = Aws(row("n1", age_ms=0))
    assert function(event(name), aws) == {"ignored": True}
    assert function.lines == [
        {
            "event": "event_ignored",
            "source": event(name)["source"],
            "type": event(name)["detail-type"],
        }
    ]
    assert not aws.names()


def test_a_schedule_looks_at_everything_and_is_silent_when_all_is_well(function: Lambda) -> None:
    aws = Aws(row("n1", age_ms=0))
    assert function(event("scheduled"), aws) == {"live": 1, "reaped": 0, "orphans": 0, "failed": 0}
    # One scan for leases, one for tombstones.
    assert sorted(aws.names()) == ["list_queues", "list_subscriptions_by_topic", "scan", "scan"]
    assert function.lines == []


def test_a_schedule_reaps_and_counts(function: Lambda) -> None:
    stale = {
        "SubscriptionArn": f"{TOPIC}:gone",
        "Endpoint": "arn:aws:sqs:eu-west-1:123456789012:q-gone",
    }

    def get_queue_url(QueueName: str) -> Any:  # noqa: N803  # the SDK's name
        return (
            client_error("QueueDoesNotExist") if QueueName == "q-gone" else {"QueueUrl": QueueName}
        )

    aws = Aws(
        row("n1", age_ms=0),
        row("n2", age_ms=10 * TTL_MS),
        list_subscriptions_by_topic=lambda **_: {"Subscriptions": [stale]},
        get_queue_url=get_queue_url,
    )
    assert function(event("scheduled"), aws) == {"live": 1, "reaped": 1, "orphans": 1, "failed": 0}
    assert aws.arguments("unsubscribe") == [
        {"SubscriptionArn": f"{TOPIC}:n2"},
        {"SubscriptionArn": f"{TOPIC}:gone"},
    ]
    [line] = function.lines
    assert line["event"] == "reaped"
    assert (line["ReapedNodes"], line["Orphans"], line["ReaperErrors"]) == (1, 1, 0)
    assert list(read(json.dumps(line))) == [
        Read("roomcast", name, (number,), "Count", (("FunctionName", "none"),))
        for name, number in (("ReapedNodes", 1), ("Orphans", 1), ("ReaperErrors", 0))
    ]
    assert [node["node"] for node in line["nodes"]] == ["n2"]


def test_a_terminated_instance_is_reaped_at_once(function: Lambda) -> None:
    aws = Aws(row("n1", age_ms=0), row("n2", age_ms=0), row("n3", age_ms=0, instance="i-2"))
    assert function(event("terminate_successful"), aws)["reaped"] == 2
    assert {call["Key"]["node"]["S"] for call in aws.arguments("update_item")} == {"n1", "n2"}
    assert not {"list_queues", "list_subscriptions_by_topic"} & set(aws.names())
    assert "complete_lifecycle_action" not in aws.names(), "it waits for nothing any more"


def test_an_instance_that_went_to_the_warm_pool_may_live(function: Lambda) -> None:
    aws = Aws(row("n1", age_ms=0), row("n2", age_ms=2 * TTL_MS))
    assert function(event("terminate_to_warm_pool"), aws)["reaped"] == 1
    assert {call["Key"]["node"]["S"] for call in aws.arguments("update_item")} == {"n2"}


@pytest.mark.parametrize("ages", [[], [TTL_MS + 1], [TTL_MS + 1, 10 * TTL_MS]])
def test_an_instance_on_which_nothing_runs_is_let_go(ages: list[int], function: Lambda) -> None:
    aws = Aws(*(row(f"n{number}", age_ms=age) for number, age in enumerate(ages)))
    assert function(event("terminate_lifecycle_action"), aws)["reaped"] == len(ages)
    assert aws.arguments("complete_lifecycle_action") == [
        {
            "LifecycleHookName": "roomcast-terminate",
            "AutoScalingGroupName": GROUP,
            "InstanceId": INSTANCE,
            "LifecycleActionResult": "CONTINUE",
        }
    ]
    assert aws.names()[-1] == "complete_lifecycle_action", "after everything else"
    assert function.lines[-1] == {
        "event": "lifecycle_action_completed",
        "instance": INSTANCE,
        "waited": True,
    }


@pytest.mark.parametrize("ages", [[0], [10 * TTL_MS, 0]])
def test_an_instance_whose_node_drains_is_left_to_it(ages: list[int], function: Lambda) -> None:
    aws = Aws(*(row(f"n{number}", age_ms=age) for number, age in enumerate(ages)))
    assert function(event("terminate_lifecycle_action"), aws)["live"] == 1
    assert "complete_lifecycle_action" not in aws.names()
    assert function.events[-1] == "lifecycle_action_left_to_node"


def test_an_instance_whose_node_beats_at_the_last_moment_is_left_to_it(function: Lambda) -> None:
    def update_item(**_: Any) -> Any:
        aws.rows[:] = [row("n1", age_ms=0)]
        return client_error("ConditionalCheckFailedException")

    aws = Aws(row("n1", age_ms=2 * TTL_MS), update_item=update_item)
    function(event("terminate_lifecycle_action"), aws)
    assert "complete_lifecycle_action" not in aws.names()
    assert "unsubscribe" not in aws.names()


@pytest.mark.parametrize("state", ["live", "draining"])
def test_an_instance_whose_heartbeats_fail_while_it_drains_is_left_to_it(
    state: str, function: Lambda
) -> None:
    aws = Aws(row("n1", age_ms=TTL_MS + 1) | {"state": {"S": state}})

    def beat() -> None:
        aws.rows[:] = [row("n1", age_ms=0)]

    function.meanwhile = beat
    assert function(event("terminate_lifecycle_action"), aws)["live"] == 1
    assert function.waited_s == SECOND_LOOK_S
    assert not {"complete_lifecycle_action", "update_item"} & set(aws.names())


@pytest.mark.parametrize(
    "age_ms, state", [(TTL_MS + 1, "starting"), (TTL_MS + REAP_GRACE_MS + 1_000, "draining")]
)
def test_an_instance_that_has_no_clients_or_is_long_silent_is_let_go_at_once(
    age_ms: int, state: str, function: Lambda
) -> None:
    aws = Aws(row("n1", age_ms=age_ms) | {"state": {"S": state}})
    assert function(event("terminate_lifecycle_action"), aws)["reaped"] == 1
    assert function.waited_s == 0
    assert "complete_lifecycle_action" in aws.names()


def test_an_instance_that_another_reaper_was_done_with_is_let_go(function: Lambda) -> None:
    def update_item(**_: Any) -> Any:
        aws.rows.clear()
        return client_error("ConditionalCheckFailedException")

    aws = Aws(row("n1", age_ms=2 * TTL_MS), update_item=update_item)
    function(event("terminate_lifecycle_action"), aws)
    assert aws.names()[-1] == "complete_lifecycle_action"


def test_an_action_that_is_over_is_no_failure(function: Lambda) -> None:
    error = client_error("ValidationError")
    error.response["Error"]["Message"] = "No active Lifecycle Action found with instance ID i-1"
    aws = Aws(complete_lifecycle_action=lambda **_: error)
    assert function(event("terminate_lifecycle_action"), aws)["failed"] == 0
    assert function.lines[-1]["waited"] is False


@pytest.mark.parametrize(
    "name, operation, told",
    [
        ("scheduled", "scan", "reaping_incomplete"),
        ("scheduled", "list_queues", "reaping_incomplete"),
        ("scheduled", "delete_queue", "reaping_incomplete"),
        ("terminate_successful", "unsubscribe", "reaping_incomplete"),
        ("terminate_lifecycle_action", "complete_lifecycle_action", "reaping_incomplete"),
    ],
)
def test_what_fails_shows_in_the_metric_errors(
    name: str, operation: str, told: str, function: Lambda
) -> None:
    aws = Aws(
        row("n1", age_ms=10 * TTL_MS), **{operation: lambda **_: client_error("AccessDenied", 403)}
    )
    with pytest.raises(Incomplete):
        function(event(name), aws)
    line = function.lines[-1]
    assert line["event"] == told
    assert line["ReaperErrors"] == 1
    assert "AccessDenied" in json.dumps(line)


def test_what_could_not_be_removed_does_not_hold_up_the_instance(function: Lambda) -> None:
    aws = Aws(
        row("n1", age_ms=10 * TTL_MS), delete_queue=lambda **_: client_error("AccessDenied", 403)
    )
    with pytest.raises(Incomplete):
        function(event("terminate_lifecycle_action"), aws)
    assert aws.names()[-1] == "complete_lifecycle_action"


def hanging(**_: Any) -> Future[Any]:
    """An answer that never comes."""
    return asyncio.get_running_loop().create_future()


def test_a_run_under_an_sqs_that_hangs_ends_in_time_and_tells_what_is_left(
    function: Lambda,
) -> None:
    aws = Aws(*(row(f"n{number}", age_ms=10 * TTL_MS) for number in range(3)), delete_queue=hanging)
    function.left_ms = round(REPORT_S * 1000) + 50
    began_s = time.monotonic()
    with pytest.raises(Incomplete):
        function(event("scheduled"), aws)
    assert time.monotonic() - began_s < 5, "a call that hangs is given up after 25 s"
    [line] = function.lines
    assert line["event"] == "reaping_incomplete"
    assert [node["outcome"] for node in line["nodes"]] == ["failed"] * 3
    queues = [each for each in line["failures"] if each["step"] == "delete_queue"]
    assert [each["what"] for each in queues] == ["q-n0", "q-n1", "q-n2"]
    assert all("TimeoutError" in each["reason"] for each in queues)
    assert {each["reason"] for each in line["failures"] if each not in queues} == {
        "no time is left"
    }
    assert "unsubscribe" in aws.names()
    assert not aws.arguments("batch_write_item")


def test_a_second_look_for_which_there_is_no_time_kills_nobody(function: Lambda) -> None:
    """Two of three leases look expired: they are doubted, and nobody had the time to look again."""
    rows = (row("n1", age_ms=0), *(row(f"n{n}", age_ms=2 * TTL_MS) for n in (2, 3)))
    aws = Aws(*rows)
    function.left_ms = round(REPORT_S * 1000) + 50
    function.sleep = asyncio.sleep
    with pytest.raises(Incomplete):
        function(event("scheduled"), aws)
    [line] = function.lines
    assert line["reason"] == "no time is left"
    assert not aws.arguments("update_item")


def test_an_instance_is_let_go_also_under_an_sqs_that_hangs(function: Lambda) -> None:
    aws = Aws(row("n1", age_ms=10 * TTL_MS), delete_queue=hanging)
    function.left_ms = round((REPORT_S + LET_GO_S) * 1000) + 50
    with pytest.raises(Incomplete):
        function(event("terminate_lifecycle_action"), aws)
    assert aws.names()[-1] == "complete_lifecycle_action"


def test_without_a_context_there_is_no_bound(
    function: Lambda, monkeypatch: pytest.MonkeyPatch
) -> None:
    aws = Aws(row("n1", age_ms=10 * TTL_MS))
    client = aws.client
    monkeypatch.setattr(reaping, "_clients", lambda: Clients(client, client, client, client))
    assert function.events == []
    assert reaping.handler(event("scheduled"), None)["reaped"] == 1


def test_a_line_stays_short(function: Lambda) -> None:
    aws = Aws(*(row(f"n{number}", age_ms=10 * TTL_MS) for number in range(40)))
    function(event("scheduled"), aws)
    [line] = function.lines
    assert line["ReapedNodes"] == 40
    assert len(line["nodes"]) == 20


@pytest.fixture
def clients(monkeypatch: pytest.MonkeyPatch) -> Iterator[Clients]:
    """Those that the Lambda makes."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "test")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "eu-west-1")
    reaping._clients.cache_clear()
    yield reaping._clients()
    reaping._clients.cache_clear()


def test_clients_are_made_once_and_give_up(clients: Clients) -> None:
    assert reaping._clients() is clients
    for client in (clients.dynamodb, clients.sns, clients.sqs, clients.autoscaling):
        config = client._client.meta.config
        assert config.connect_timeout + config.read_timeout < 10
        assert config.retries["total_max_attempts"] == 3


@pytest.mark.parametrize(
    "service, body, operation, arguments",
    [
        ("dynamodb", "{}", "delete_item", {"TableName": "t", "Key": {"node": {"S": "n"}}}),
        ("sqs", "{}", "delete_queue", {"QueueUrl": "https://sqs.eu-west-1.amazonaws.com/1/q"}),
        ("sns", "<r/>", "unsubscribe", {"SubscriptionArn": f"{TOPIC}:1"}),
        (
            "autoscaling",
            "<r><CompleteLifecycleActionResult/></r>",
            "complete_lifecycle_action",
            {
                "AutoScalingGroupName": GROUP,
                "LifecycleHookName": "hook",
                "LifecycleActionResult": "CONTINUE",
                "InstanceId": INSTANCE,
            },
        ),
    ],
)
async def test_a_success_that_aws_did_not_answer_is_none(
    clients: Clients, service: str, body: str, operation: str, arguments: dict[str, Any]
) -> None:
    """Whoever stands between answers 200: nothing may be taken for removed."""
    client = getattr(clients, service)
    answer_all(client._client, body)
    with pytest.raises(UnknownOutcome):
        await getattr(client, operation)(**arguments)


def test_nodes_of_a_task_that_is_about_to_end_are_told_and_nothing_is_reaped(
    function: Lambda, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ROOMCAST_AWS_ECS_CLUSTER", CLUSTER)
    aws = Aws(row("n1", age_ms=0, instance=TASK), row("n2", age_ms=0))
    assert function(event("task_deactivating"), aws) == {"told": 1}
    assert sorted(aws.names()) == ["get_queue_url", "scan", "send_message"]
    [sent] = aws.arguments("send_message")
    assert sent["QueueUrl"].endswith("/q-n1")
    assert function.lines == [{"event": "end_announced", "instance": TASK, "nodes": 1}]


def test_a_task_that_stopped_is_reaped_at_once(
    function: Lambda, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ROOMCAST_AWS_ECS_CLUSTER", CLUSTER)
    aws = Aws(row("n1", age_ms=0, instance=TASK), row("n2", age_ms=0))
    assert function(event("task_stopped"), aws)["reaped"] == 1
    assert [each["QueueUrl"].rpartition("/")[2] for each in aws.arguments("delete_queue")] == [
        "q-n1"
    ]


def test_nodes_that_cannot_be_told_are_a_failure(
    function: Lambda, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ROOMCAST_AWS_ECS_CLUSTER", CLUSTER)
    aws = Aws(
        row("n1", age_ms=0, instance=TASK),
        send_message=lambda **_: client_error("AccessDenied", 403),
    )
    with pytest.raises(Incomplete):
        function(event("task_deactivating"), aws)
