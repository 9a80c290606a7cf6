"""`roomcast doctor` against set-ups that are broken in the embedded AWS, one after the other: it
names the cause, and what to do.
"""

from __future__ import annotations

import asyncio
import io
import json
import zipfile
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any, Final

import pytest

from roomcast.account.rules import Finding
from roomcast.auth.verifier import HMAC_KEY_BYTES_MIN
from roomcast.aws.schema import channels_table, idempotency_table, table_schemas
from roomcast.aws.setup import AwsSetup, read_setup
from roomcast.config import AwsSqsConfig, Config, ConsumerConfig, load
from roomcast.delivery.canary_rules import canary_item
from roomcast.fleet.lease_record import Lease
from roomcast.log.item import LogItem
from roomcast.setup.checks import SetupChecks, WantedTable
from roomcast.setup.rules import FILTER
from roomcast.system import SystemClock
from roomcast.testing.memory import MemoryChannelTable, MemoryLeases, MemoryWorld
from tests.contract.backends import REGION, SESSION
from tests.integration.serving import Aws, deployed

PREFIX: Final = "set-"
ACCOUNT: Final = "123456789012"
CHANNELS: Final = channels_table(PREFIX)
SECRET: Final = "nN7-aS_kq2 and whatever else there is"
POLICY: Final = {"Version": "2012-10-17", "Statement": [{
    "Effect": "Allow", "Principal": {"AWS": f"arn:aws:iam::{ACCOUNT}:root"},
    "Action": "kms:*", "Resource": "*",
}]}  # fmt: skip

pytestmark = [pytest.mark.fleet, pytest.mark.timeout(120)]


@pytest.fixture(scope="module")
def aws(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Aws]:
    with deployed(tmp_path_factory.mktemp("set-up"), PREFIX) as aws:
        yield aws


@dataclass(frozen=True, slots=True)
class Made:
    """What stands in the account beside tables and topic."""

    mapping: str
    queue_url: str
    queue_arn: str
    subscription: str
    key: str
    other_topic: str


@pytest.fixture(scope="module")
def made(aws: Aws) -> Made:
    """A function, its mapping, and a queue as a node has one; a key, and another topic."""
    topic = aws.made.topic_arn
    role = aws.client("iam").create_role(RoleName="r", AssumeRolePolicyDocument="{}")["Role"]["Arn"]
    code = io.BytesIO()
    with zipfile.ZipFile(code, "w") as archive:
        archive.writestr("f.py", "")
    functions = aws.client("lambda")
    functions.create_function(
        FunctionName="stream",
        Runtime="python3.13",
        Handler="f.f",
        Role=role,
        Code={"ZipFile": code.getvalue()},
        Environment={"Variables": {"ROOMCAST_TOPIC_ARN": topic}},
    )
    stream = aws.client("dynamodb").describe_table(TableName=CHANNELS)["Table"]["LatestStreamArn"]
    mapping = functions.create_event_source_mapping(
        FunctionName="stream",
        EventSourceArn=stream,
        StartingPosition="TRIM_HORIZON",
        FilterCriteria={"Filters": [{"Pattern": FILTER}]},
        FunctionResponseTypes=["ReportBatchItemFailures"],
    )["UUID"]
    sqs, sns = aws.client("sqs"), aws.client("sns")
    url = sqs.create_queue(QueueName=f"{PREFIX}n1")["QueueUrl"]
    arn = sqs.get_queue_attributes(QueueUrl=url, AttributeNames=["QueueArn"])["Attributes"][
        "QueueArn"
    ]
    subscription = sns.subscribe(
        TopicArn=topic,
        Protocol="sqs",
        Endpoint=arn,
        Attributes={"RawMessageDelivery": "true"},
        ReturnSubscriptionArn=True,
    )["SubscriptionArn"]
    key = aws.client("kms").create_key(Policy=json.dumps(POLICY))["KeyMetadata"]["Arn"]
    other = sns.create_topic(Name="other")["TopicArn"]
    found = Made(mapping, url, arn, subscription, key, other)
    open_to(aws, found, topic)
    return found


def open_to(aws: Aws, made: Made, topic: str) -> None:
    policy = {"Statement": [{
        "Effect": "Allow", "Principal": {"Service": "sns.amazonaws.com"},
        "Action": "sqs:SendMessage", "Resource": made.queue_arn,
        "Condition": {"ArnEquals": {"aws:SourceArn": topic}},
    }]}  # fmt: skip
    aws.client("sqs").set_queue_attributes(
        QueueUrl=made.queue_url, Attributes={"Policy": json.dumps(policy)}
    )


class World:
    """The set-up as it is, and the doctor's look at it."""

    def __init__(self, aws: Aws, made: Made, reader: AwsSetup, config: Config) -> None:
        self.aws, self.made, self.reader, self.config = aws, made, reader, config
        self.memory = MemoryWorld()
        self.clock = SystemClock()
        now = self.clock.now_ms()
        self.lease = Lease(
            "n1",
            f"{PREFIX}n1",
            "live",
            now,
            now,
            now + 60_000,
            queue_url=made.queue_url,
            subscription_arn=made.subscription,
            version="1",
        )
        self.canary: LogItem | None = None

    async def found(self, *leases: Lease) -> dict[str, Finding]:
        """By name."""
        for lease in (self.lease, *leases):
            self.memory.leases[lease.node] = lease
        log = MemoryChannelTable(self.memory, self.clock)
        if self.canary is not None:
            await log.put_item(self.canary, tail_valid_until_ms=self.clock.now_ms() + 60_000)
        told: list[Finding] = []
        tables = [
            WantedTable(
                each.name,
                each.name.endswith("channels"),
                each.ttl_attribute or "",
                has_events=each.name.endswith("presence"),
            )
            for each in table_schemas(self.config.aws.table_prefix)
        ]
        checks = SetupChecks(
            self.config,
            self.reader,
            MemoryLeases(self.memory),
            log,
            self.clock,
            tables,
            told.append,
            region=REGION,
            version="1",
            key_bytes_min=HMAC_KEY_BYTES_MIN,
        )
        assert await checks.run() == told
        return {each.name: each for each in told}

    async def wrong(self, *leases: Lease) -> list[tuple[str, str]]:
        """Name and outcome of whatever needs attention, each with what to do."""
        found = (await self.found(*leases)).values()
        wrong = [each for each in found if each.outcome not in ("ok", "note")]
        assert all(each.ask for each in wrong), wrong
        return [(each.name, each.outcome) for each in wrong]

    def client(self, service: str) -> Any:
        return self.aws.client(service)


@pytest.fixture
async def world(aws: Aws, made: Made) -> AsyncIterator[World]:
    text = f'[client.token]\nhmac_secret_key = "{SECRET}"\n'
    config = load(str(aws.config("set-up", text)), {})
    async with read_setup(region=REGION, endpoint_url=aws.endpoint, session=SESSION) as reader:
        yield World(aws, made, reader, config)


@pytest.fixture
def later() -> Iterator[ExitStack]:
    """What puts the set-up right again, for the tests that follow."""
    with ExitStack() as stack:
        yield stack


async def test_all_is_well(world: World) -> None:
    assert await world.wrong() == []
    found = await world.found()
    assert found["event source mapping"].outcome == "ok"
    assert found["stream Lambda"].outcome == "ok"
    assert found["queues of nodes"].told.startswith("1: subscribed, raw")
    assert found["clock"].outcome == "ok"


async def test_another_region(world: World, aws: Aws) -> None:
    async with read_setup(region="us-west-2", endpoint_url=aws.endpoint, session=SESSION) as reader:
        world.reader = reader
        wrong = await world.wrong()
    assert (f"set-up of {CHANNELS}", "failed") in wrong


async def test_a_consumers_queue_without_dead_letters(world: World, later: ExitStack) -> None:
    sqs = world.client("sqs")
    dead, url = (sqs.create_queue(QueueName=name)["QueueUrl"] for name in ("work-dead", "work"))
    for each in (dead, url):
        later.callback(sqs.delete_queue, QueueUrl=each)
    queues = AwsSqsConfig(queues=(url,))
    consumer = ConsumerConfig("work", enabled=True, type="aws_sqs", aws_sqs=queues)
    world.config = replace(world.config, consumers=(consumer,))
    assert await world.wrong() == [("consumer work", "warning")]
    # What it says to do, with the names that there are.
    told = (await world.found())["consumer work"].ask.split("'")[1]
    sqs.set_queue_attributes(QueueUrl=url, Attributes=json.loads(told))
    assert await world.wrong() == []
    gone = replace(queues, queues=(f"{url}-gone",))
    world.config = replace(world.config, consumers=(replace(consumer, aws_sqs=gone),))
    assert await world.wrong() == [("consumer work", "failed")]


async def test_a_topic_of_another_stack(world: World) -> None:
    world.config = replace(
        world.config, aws=replace(world.config.aws, topic_arn=world.made.other_topic)
    )
    found = await world.found()
    assert found["stream Lambda"].outcome == "failed"
    # Its queue's policy lets the other topic in.
    assert found["queue of n1"].outcome == "failed"
    world.config = replace(
        world.config, aws=replace(world.config.aws, topic_arn=world.made.other_topic + "-2")
    )
    assert ("set-up of the topic", "failed") in await world.wrong()


async def test_a_stream_that_is_off(world: World, later: ExitStack) -> None:
    tables = world.client("dynamodb")
    name = f"{PREFIX}off-channels"
    schema = table_schemas(f"{PREFIX}off-")[0].create
    tables.create_table(**{**schema, "StreamSpecification": {"StreamEnabled": False}})
    later.callback(tables.delete_table, TableName=name)
    world.config = replace(
        world.config, aws=replace(world.config.aws, table_prefix=f"{PREFIX}off-")
    )
    found = await world.found()
    assert found[f"stream of {name}"].outcome == "failed"
    assert found[f"TTL of {name}"].outcome == "warning"
    assert "update-table --table-name set-off-channels" in found[f"stream of {name}"].ask


async def test_a_mapping_that_is_off_or_filters(world: World, later: ExitStack) -> None:
    functions, uuid = world.client("lambda"), world.made.mapping
    later.callback(
        functions.update_event_source_mapping,
        UUID=uuid,
        Enabled=True,
        FilterCriteria={"Filters": [{"Pattern": FILTER}]},
    )
    functions.update_event_source_mapping(UUID=uuid, Enabled=False)
    assert await world.wrong() == [("event source mapping", "failed")]
    pattern = '{"eventName":["REMOVE"]}'
    functions.update_event_source_mapping(
        UUID=uuid, Enabled=True, FilterCriteria={"Filters": [{"Pattern": pattern}]}
    )
    found = await world.found()
    assert pattern in found["event source mapping"].told


async def test_a_queue_that_lets_another_topic_in(world: World, later: ExitStack) -> None:
    later.callback(open_to, world.aws, world.made, world.aws.made.topic_arn)
    open_to(world.aws, world.made, world.made.other_topic)
    assert await world.wrong() == [("queue of n1", "failed")]
    assert "its policy does not let" in (await world.found())["queue of n1"].told


@pytest.mark.parametrize(
    "attribute, broken, right, told",
    [
        ("FilterPolicy", '{"kind":["x"]}', "{}", "has a filter policy"),
        ("RawMessageDelivery", "false", "true", "raw message delivery is off"),
    ],
)
async def test_a_subscription_that_is_not_as_it_should_be(
    world: World, later: ExitStack, attribute: str, broken: str, right: str, told: str
) -> None:
    def put(value: str) -> None:
        world.client("sns").set_subscription_attributes(
            SubscriptionArn=world.made.subscription, AttributeName=attribute, AttributeValue=value
        )

    later.callback(put, right)
    put(broken)
    assert await world.wrong() == [("queue of n1", "failed")]
    assert told in (await world.found())["queue of n1"].told


async def test_a_subscription_that_is_gone(world: World) -> None:
    lost = replace(world.lease, node="n2", subscription_arn=f"{world.aws.made.topic_arn}:gone")
    assert await world.wrong(lost) == [("queue of n2", "failed")]
    deleted = replace(world.lease, node="n2", queue_url=world.made.queue_url + "-gone")
    assert await world.wrong(deleted) == [("queue of n2", "failed")]


async def test_a_key_that_sns_may_not_use(world: World, later: ExitStack) -> None:
    world.config = replace(
        world.config, aws=replace(world.config.aws, queue_kms_key_id=world.made.key)
    )
    assert await world.wrong() == [("key of KMS: queues", "failed")]
    keys = world.client("kms")
    later.callback(
        keys.put_key_policy,
        KeyId=world.made.key,
        PolicyName="default",
        Policy=json.dumps(POLICY),
    )
    allowed = json.loads((await world.found())["key of KMS: queues"].ask.partition(": ")[2])
    keys.put_key_policy(
        KeyId=world.made.key,
        PolicyName="default",
        Policy=json.dumps({**POLICY, "Statement": [*POLICY["Statement"], allowed]}),
    )
    assert await world.wrong() == [], "what it says to do is what helps"


async def test_a_table_without_ttl(world: World, later: ExitStack) -> None:
    def expire(enabled: bool) -> None:
        world.client("dynamodb").update_time_to_live(
            TableName=idempotency_table(PREFIX),
            TimeToLiveSpecification={"Enabled": enabled, "AttributeName": "expires_at"},
        )

    later.callback(expire, True)
    await asyncio.to_thread(expire, False)
    assert await world.wrong() == [(f"TTL of {idempotency_table(PREFIX)}", "warning")]


async def test_clocks_releases_generations_and_secrets(world: World) -> None:
    other = replace(world.lease, node="n2", version="0", skew_ms=9000)
    now = world.clock.now_ms()
    world.canary = canary_item(now, node="n1", batch="b", now=now, generation="7")
    token = replace(world.config.client.token, hmac_secret_key="secret")
    world.config = replace(world.config, client=replace(world.config.client, token=token))
    assert await world.wrong(other) == [
        ("releases", "warning"),
        ("clocks of nodes", "warning"),
        ("log generation", "failed"),
        ("secrets", "failed"),
    ]


async def test_the_clock_of_this_machine(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    behind = world.clock.now_ms() - 3_600_000
    monkeypatch.setattr(world.clock, "now_ms", lambda: behind)
    assert ("clock", "failed") in await world.wrong()
