"""The roles of deploy/template.yaml against what the code really calls:
all of it is allowed, and nothing else.

A node, the stream Lambda and the reaper run as processes of their own,
each behind a recorder of its own.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import aiohttp
import pytest

from roomcast.aws.errors import ATTEMPTS_MAX
from roomcast.aws.schema import nodes_table
from roomcast.fleet.deployment import queue_tags
from tests.contract.backends import REGION, ROOT
from tests.deploy.calls import ACCOUNT
from tests.deploy.cloudformation import DATA, Evaluation, exports, load, statements
from tests.deploy.iam import Call, allowed
from tests.fakes.ec2 import FakeEc2, Hook, fake_ec2
from tests.fakes.ecs import CLUSTER
from tests.integration.recorder import Recorder, recorder
from tests.integration.serving import Aws, Process, deployed, environment
from tests.websocket import WebSocket

STACK: Final = "least"
GROUP: Final = f"{STACK}-fleet"
# Of the queues, as the template makes it; the tables have the same.
PREFIX: Final = f"{STACK}_"
SHARDS: Final = 4
LAUNCH: Final = "roomcast-launch"
TERMINATE: Final = "roomcast-terminate"
# A queue of back ends.
WORK: Final = "work"
WORK_ARN: Final = f"arn:aws:sqs:{REGION}:{ACCOUNT}:{WORK}"
# Only of entries whose client is there under another lease, and only where events are wanted:
# tests/contract/test_events.py.
MARKS: Final = f"dynamodb:UpdateItem on arn:aws:dynamodb:{REGION}:{ACCOUNT}:table/{PREFIX}presence"
COMMAND_S: Final = 60
FIXTURES: Final = ROOT / "tests"
RESOURCES: Final[Mapping[str, Any]] = load()["Resources"]
KEPT: Final[Mapping[str, Any]] = load(DATA)

# What a role allows and no code of ours calls, by (role, Sid): who does.
NOT_OURS: Final = {
    ("StreamLambdaRole", "ReadStream"): "the event source mapping reads the stream with this role",
    ("StreamLambdaRole", "ListStreams"): "the event source mapping",
    ("StreamLambdaRole", "KeepFailures"): "the event source mapping writes what was given up on",
    ("StreamLambdaRole", "FindFailureBucket"): "the event source mapping",
    ("StreamLambdaRole", "WriteLogs"): "the Lambda runtime",
    ("ReaperRole", "WriteLogs"): "the Lambda runtime",
    ("InstanceRole", "FetchArtifacts"): "user data, before the service is there",
    ("InstanceRole", "ReadSecret"): "deploy/instance/install.sh",
    ("InstanceRole", "WriteLogs"): "the CloudWatch agent",
    ("InstanceRole", "Sessions"): "the Systems Manager agent",
}

CONFIG: Final = """
[client]
insecure = true
[http_api]
key = "a key of the tests, long enough to be none"
[channel.without_namespace]
history_size = 100
history_ttl = "300s"
force_recovery = true
presence = true
join_leave = true
force_push_join_leave = true
[[channel.namespaces]]
name = "plain"
"""

CONSUMER: Final = f"""
[[consumers]]
name = "work"
enabled = true
type = "aws_sqs"
[consumers.aws_sqs]
queues = ["https://sqs.{REGION}.amazonaws.com/{ACCOUNT}/{WORK}"]
"""

pytestmark = [pytest.mark.fleet, pytest.mark.timeout(180)]


# ---- roles, with the functions of CloudFormation carried out


def documents(role: str, topic: str) -> list[Mapping[str, Any]]:
    """A policy for each action on each resource that `role` allows our code."""

    def attribute(resource: str, name: str) -> str:
        if (KEPT["Resources"][resource]["Type"], name) != ("AWS::DynamoDB::Table", "Arn"):
            # Of no permission of our code.
            return name
        table = kept.properties(resource)["TableName"]
        return f"arn:aws:dynamodb:{REGION}:{ACCOUNT}:table/{table}"

    pseudo = {
        "AWS::Partition": "aws", "AWS::Region": REGION,
        "AWS::AccountId": ACCOUNT, "AWS::StackName": STACK,
    }  # fmt: skip
    tables = {"TablePrefix": PREFIX, "ChannelsStreamArn": "", "DeletionProtection": "false"}
    shards = {"TopicShards": str(SHARDS)}
    kept = Evaluation(
        KEPT,
        tables | shards,
        pseudo | {"AWS::StackName": "data"},
        (),
        lambda name: topic if name == "Topic" else name,
        attribute,
    )
    evaluation = Evaluation(
        load(),
        {"QueuePrefix": "", "DataStack": "data", "ConsumerQueueArns": WORK_ARN} | shards,
        pseudo,
        (),
        lambda name: name,
        attribute,
        exports(kept),
    )
    return [
        {
            "Sid": each.sid,
            "Statement": {
                "Effect": each.effect,
                "Action": action,
                "Resource": named,
                "Condition": evaluation.value(each.condition),
            },
        }
        for each in statements(role, RESOURCES[role])
        if (role, each.sid) not in NOT_OURS
        for action in each.actions
        for resource in each.resources
        for named in _all(evaluation.value(resource))
    ]


def _all(resources: Any) -> list[Any]:
    return resources if isinstance(resources, list) else [resources]


def refused(role: str, calls: Sequence[Call], topic: str) -> set[str]:
    """What was called and `role` does not allow."""
    policies = documents(role, topic)
    return {f"{call.action} on {call.resource}" for call in calls if not allowed(policies, call)}


def unused(role: str, calls: Sequence[Call], topic: str) -> set[str]:
    """What `role` allows and nobody called: each action on each resource of a statement."""
    return {
        f"{policy['Sid']}: {policy['Statement']['Action']} on {policy['Statement']['Resource']}"
        for policy in documents(role, topic)
        if not any(allowed([policy], call) for call in calls)
    }


# ---- the three, at work


@dataclass(frozen=True, slots=True)
class Site:
    aws: Aws
    ec2: FakeEc2
    # What AWS is to a process, and what its calls of Auto Scaling and CloudWatch go to.
    calls: Recorder
    machine_calls: Recorder

    @property
    def all_calls(self) -> list[Call]:
        return [*self.calls.calls, *self.machine_calls.calls]

    def environ(self) -> dict[str, str]:
        inherited = environment()
        del inherited["AWS_EC2_METADATA_DISABLED"]
        return inherited | {
            "AWS_DEFAULT_REGION": REGION,
            "AWS_ENDPOINT_URL": self.calls.url,
            "AWS_ENDPOINT_URL_AUTO_SCALING": self.machine_calls.url,
            "AWS_ENDPOINT_URL_CLOUDWATCH": self.machine_calls.url,
        }


@pytest.fixture(scope="module")
def aws(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Aws]:
    with deployed(tmp_path_factory.mktemp("least"), PREFIX, SHARDS) as aws:
        yield aws


@asynccontextmanager
async def site(aws: Aws) -> AsyncIterator[Site]:
    async with (
        fake_ec2(GROUP, launch_hook=Hook(LAUNCH), terminate_hook=Hook(TERMINATE)) as ec2,
        recorder(aws.endpoint) as calls,
        recorder(ec2.endpoint) as machine_calls,
    ):
        yield Site(aws, ec2, calls, machine_calls)


def node_config(aws: Aws, metadata: str) -> Path:
    return aws.config(
        "least",
        f"{CONFIG}\n{CONSUMER}\n[node]\ndrain_s = 0\nheartbeat_s = 0.5\nlifecycle_poll_s = 0.1\n"
        f'imds_endpoint = "{metadata}"\n',
        # From the environment.
        endpoint_url="",
        autoscaling_group=GROUP,
        launch_hook=LAUNCH,
        terminate_hook=TERMINATE,
        # They go into the log, for which it asks nobody.
        metrics_namespace="roomcast",
    )


async def python(code: str, environ: Mapping[str, str]) -> str:
    """Run `code` in a process of its own; what it printed."""

    def run() -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-c", code],
            cwd=ROOT,
            env=dict(environ),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=COMMAND_S,
        )

    done = await asyncio.to_thread(run)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    return done.stdout


def called(recording: Recorder, name: str) -> bool:
    return any(call.action == name for call in recording.calls)


async def work(client: WebSocket) -> None:
    """What clients can have a node do."""
    await client.ask("connect")
    await client.ask("subscribe", channel="room")
    await client.ask("subscribe", channel="plain:room")
    assert await client.ask("publish", channel="room", data="with an offset") == {}
    assert await client.ask("publish", channel="plain:room", data="without") == {}
    keyed = {"channel": "room", "data": "once", "idempotency_key": "key"}
    for _ in range(2):
        await client.ask("rpc", method="roomcast.publish", data=keyed)
    assert len((await client.ask("history", channel="room", limit=10))["publications"]) == 2
    assert len((await client.ask("presence", channel="room"))["presence"]) == 1
    await client.ask("unsubscribe", channel="room")


async def post_for_another(aws: Aws, session: aiohttp.ClientSession, url: str) -> None:
    """Have a node pass a client's commands on: to its own queue, which another lease names too."""
    table = aws.client("dynamodb")
    [row] = table.scan(TableName=nodes_table(PREFIX), ConsistentRead=True)["Items"]
    other = row | {"node": {"S": "another"}, "lease_until": {"N": str(10**15)}}
    table.put_item(TableName=nodes_table(PREFIX), Item=other)
    try:
        body = {"node": "another", "session": "none", "data": "{}"}
        async with session.post(f"{url}/emulation", json=body) as answer:
            assert answer.status == 503, "nobody answers"
    finally:
        table.delete_item(TableName=nodes_table(PREFIX), Key={"node": other["node"]})


async def consumed(aws: Aws) -> None:
    """Have a node take a message out of the queue of back ends."""
    sqs, body = aws.client("sqs"), {"method": "publish", "payload": {"channel": "room", "data": 1}}
    url = sqs.get_queue_url(QueueName=WORK)["QueueUrl"]
    sqs.send_message(QueueUrl=url, MessageBody=json.dumps(body))
    names = [f"ApproximateNumberOfMessages{end}" for end in ("", "NotVisible")]
    async with asyncio.timeout(COMMAND_S):
        while True:
            found = sqs.get_queue_attributes(QueueUrl=url, AttributeNames=names)["Attributes"]
            if not any(map(int, found.values())):
                return
            await asyncio.sleep(0.05)


async def test_an_instance_may_do_what_a_node_does_and_nothing_else(aws: Aws) -> None:
    topic = aws.made.topic_arn
    async with site(aws) as at:
        machine = await at.ec2.launch()
        config = node_config(aws, machine.endpoint)
        # A start whose CreateQueue is not answered: it asks whether there is a queue,
        # to delete it, and makes another.
        at.calls.lost["CreateQueue"] = ATTEMPTS_MAX
        aws.client("sqs").create_queue(QueueName=WORK)
        process = Process(config, "--port", "0", environ=at.environ())
        try:
            await asyncio.to_thread(process.ready)
            assert called(at.calls, "sqs:GetQueueUrl")
            async with aiohttp.ClientSession() as session:
                response = await session.ws_connect(f"{process.url}/connection/websocket")
                await work(WebSocket(response))
                await post_for_another(aws, session, process.url)
                await consumed(aws)
                at.ec2.terminate(machine)
                assert await asyncio.to_thread(process.ended) == 0, process.log
        finally:
            await asyncio.to_thread(process.close)
        assert machine.ends == ["CONTINUE", "CONTINUE"]
        assert refused("InstanceRole", at.all_calls, topic) == set()
        # Only of messages that may succeed another time: tests/unit/consumers.
        left = f"Consume: sqs:ChangeMessageVisibility on {WORK_ARN}"
        marked = f"KeepPresence: {MARKS}"
        assert unused("InstanceRole", at.all_calls, topic) == {left, marked}


async def test_the_stream_lambda_may_publish_and_nothing_else(aws: Aws) -> None:
    code = """
import json, sys
from stream_lambda.handler import handler
print(json.dumps(handler(json.load(open("tests/events/stream_appends.json")), None)))
"""
    async with site(aws) as at:
        for shards in (1, SHARDS):
            environ = at.environ() | {
                "ROOMCAST_TOPIC_ARN": aws.made.topic_arn,
                "ROOMCAST_TOPIC_SHARDS": str(shards),
            }
            told = await python(code, environ)
            assert json.loads(told.splitlines()[-1]) == {"batchItemFailures": []}
        assert at.all_calls
        assert refused("StreamLambdaRole", at.all_calls, aws.made.topic_arn) == set()
        assert unused("StreamLambdaRole", at.all_calls, aws.made.topic_arn) == set()


def tombstones(aws: Aws) -> list[dict[str, Any]]:
    """What is kept of leases that were cleaned up."""
    dynamodb, of_leases = aws.client("dynamodb"), "attribute_exists(buried)"
    items: list[dict[str, Any]] = dynamodb.scan(
        TableName=f"{PREFIX}nodes", FilterExpression=of_leases
    )["Items"]
    return items


def age(aws: Aws, buried: Sequence[dict[str, Any]]) -> None:
    """As if it had been long ago."""
    for item in buried:
        aws.client("dynamodb").put_item(
            TableName=f"{PREFIX}nodes", Item=item | {"buried": {"N": "1"}}
        )


async def test_the_reaper_may_do_what_it_does_and_nothing_else(aws: Aws) -> None:
    topic = aws.made.topic_arn
    async with site(aws) as at:
        machine = await at.ec2.launch()
        environ = at.environ() | {
            "ROOMCAST_AWS_TOPIC_ARN": topic,
            "ROOMCAST_AWS_TOPIC_SHARDS": str(SHARDS),
            "ROOMCAST_AWS_TABLE_PREFIX": PREFIX,
            "ROOMCAST_AWS_QUEUE_PREFIX": PREFIX,
            "ROOMCAST_AWS_AUTOSCALING_GROUP": GROUP,
            "ROOMCAST_AWS_ECS_CLUSTER": CLUSTER,
        }
        await killed(aws, at, machine.endpoint)
        orphan = f"{PREFIX}orphan"
        tags = queue_tags(topic, "nobody")
        aws.client("sqs").create_queue(QueueName=orphan, tags=tags)
        at.calls.knows(orphan, tags)

        # Of which instance or task a lease is, is all one to it.
        event = json.loads(
            (FIXTURES / "fixtures/events/task_deactivating.json").read_text(encoding="utf-8")
        )
        task = CLUSTER.replace(":cluster/", ":task/") + f"/{machine.id}"
        event["detail"] |= {"clusterArn": CLUSTER, "taskArn": task}
        told = await python(reap(event), environ)
        assert '"event":"end_announced"' in told
        assert '"nodes":0' not in told
        event = json.loads(
            (FIXTURES / "fixtures/events/scheduled.json").read_text(encoding="utf-8")
        )
        told = await python(reap(event), environ)
        assert '"ReapedNodes":2,"Orphans":0,' in told, "an orphan is looked at, and is too young"
        assert '"members":1' in told
        # What stays of their leases is removed a while later.
        age(aws, tombstones(aws))
        await python(reap(event), environ)
        assert tombstones(aws) == []
        at.ec2.terminate(machine)
        event = json.loads(
            (FIXTURES / "fixtures/events/terminate_lifecycle_action.json").read_text(
                encoding="utf-8"
            )
        )
        event["detail"] |= {
            "AutoScalingGroupName": GROUP, "LifecycleHookName": TERMINATE,
            "EC2InstanceId": machine.id,
        }  # fmt: skip
        await python(reap(event), environ)
        assert machine.state == "Terminated"
        assert refused("ReaperRole", at.all_calls, topic) == set()
        assert unused("ReaperRole", at.all_calls, topic) == {f"RemovePresence: {MARKS}"}


def reap(event: Mapping[str, Any]) -> str:
    return f"from roomcast.reaper.handler import handler; handler({dict(event)!r}, None)"


async def killed(aws: Aws, at: Site, metadata: str) -> None:
    """Two nodes that died a while ago, one of them with a member in a room;
    its calls are not the reaper's.
    """
    environ = at.environ() | {
        "AWS_ENDPOINT_URL": aws.endpoint,
        "AWS_ENDPOINT_URL_CLOUDWATCH": at.ec2.endpoint,
    }
    environ["AWS_ENDPOINT_URL_AUTO_SCALING"] = at.ec2.endpoint
    process = Process(node_config(aws, metadata), "--port", "0", environ=environ)
    try:
        await asyncio.to_thread(process.ready)
        async with aiohttp.ClientSession() as session:
            client = WebSocket(await session.ws_connect(f"{process.url}/connection/websocket"))
            await client.ask("connect")
            await client.ask("subscribe", channel="room")
            # Killed, while the client is there.
            await asyncio.to_thread(process.close)
    finally:
        await asyncio.to_thread(process.close)
    [queue] = aws.queues_of(process.node)
    at.calls.knows(queue.rpartition("/")[2], queue_tags(aws.made.topic_arn, process.node))
    [row] = aws.client("dynamodb").scan(TableName=nodes_table(PREFIX), ConsistentRead=True)["Items"]
    died = row | {"lease_until": {"N": "1"}}
    # And one that died before its queue was made: whether there is none has to be asked.
    early = died | {"node": {"S": "early"}, "queue": {"S": f"{PREFIX}early"}}
    # And some that live: when most look dead, the reaper waits for a second look.
    now = str(time.time_ns() // 1_000_000)
    nothing = {name: {"S": ""} for name in ("queue", "queue_url", "subscription_arn", "instance")}
    alive = died | nothing | {"lease_until": {"N": str(10**15)}, "heartbeat_at": {"N": now}}
    living = [alive | {"node": {"S": f"alive{number}"}} for number in range(3)]
    for lease in (died, early, *living):
        aws.client("dynamodb").put_item(TableName=nodes_table(PREFIX), Item=lease)


def test_what_is_not_ours_is_there() -> None:
    """The list of exceptions has nothing that the template has not."""
    for role, sid in NOT_OURS:
        assert sid in {each.sid for each in statements(role, RESOURCES[role])}, (role, sid)
