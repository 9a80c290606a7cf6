"""Publishing in an application's own transactions, with boto3 and with aioboto3, against the
embedded AWS.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any, Final

import boto3
import pytest
from botocore.config import Config
from botocore.exceptions import ClientError, NoCredentialsError, ReadTimeoutError

from roomcast.aws.channel_table import DynamoChannelTable
from roomcast.aws.schema import channels_table, idempotency_table
from roomcast.log.channel_log import Appended, ChannelLog
from roomcast.log.rules import Pending
from roomcast.system import SystemClock
from roomcast.transactions import Channels, InvalidMessage, Message, OutcomeUnknown, channels
from roomcast.transactions.conversation import Sources
from tests.contract.backends import REGION, AwsBackend, aws_backend

CHANNEL: Final = "orders:7"
TTL_MS: Final = 300_000
DAY_MS: Final = 24 * 60 * 60 * 1000
PAGE: Final = Path(__file__).parents[2] / "docs" / "transactions.md"
EXAMPLE: Final = PAGE.read_text(encoding="utf-8").partition("```python\n")[2].partition("```")[0]
_prefixes: Final = (f"transactions{number}-" for number in itertools.count())


@pytest.fixture
async def aws(aws_endpoint: str) -> AsyncIterator[AwsBackend]:
    async with aws_backend(aws_endpoint, next(_prefixes)) as backend:
        await backend.clients.tables.create_table(
            TableName=f"{backend.prefix}orders",
            KeySchema=[{"AttributeName": "id", "KeyType": "HASH"}],
            AttributeDefinitions=[{"AttributeName": "id", "AttributeType": "S"}],
            BillingMode="PAY_PER_REQUEST",
        )
        yield backend


@pytest.fixture
def client(aws_endpoint: str) -> Any:
    return boto3.client(
        "dynamodb",
        region_name=REGION,
        endpoint_url=aws_endpoint,
        aws_access_key_id="test",
        aws_secret_access_key="test",
        config=Config(connect_timeout=3, read_timeout=10),
    )


def log_of(aws: AwsBackend) -> ChannelLog:
    clock, ids = SystemClock(), iter(range(1000))
    names = channels_table(aws.prefix), idempotency_table(aws.prefix)
    return ChannelLog(
        DynamoChannelTable(aws.clients.log, *names, clock),
        clock,
        lambda: f"id-{next(ids)}",
        lambda: 0.0,
        node="node",
        generation="0",
    )


def order(aws: AwsBackend, state: str) -> dict[str, Any]:
    return {
        "Put": {
            "TableName": f"{aws.prefix}orders",
            "Item": {"id": {"S": "7"}, "state": {"S": state}},
            "ConditionExpression": "attribute_not_exists(id)",
        }
    }


def change(aws: AwsBackend, before: str, after: str) -> dict[str, Any]:
    return {
        "Update": {
            "TableName": f"{aws.prefix}orders",
            "Key": {"id": {"S": "7"}},
            "UpdateExpression": "SET #state = :after",
            "ConditionExpression": "#state = :before",
            "ExpressionAttributeNames": {"#state": "state"},
            "ExpressionAttributeValues": {":before": {"S": before}, ":after": {"S": after}},
        }
    }


async def test_orders_and_what_is_told_of_them(aws: AwsBackend, client: Any) -> None:
    log, publishing = log_of(aws), Channels(channels_table(aws.prefix), history_ttl_s=300)

    def say(*states: str) -> dict[str, list[Message]]:
        return {CHANNEL: [Message({"state": state}, {"kind": "order"}) for state in states]}

    # The first in the channel, with boto3.
    positions = await asyncio.to_thread(publishing.write, client, [order(aws, "new")], say("new"))
    [first] = positions[CHANNEL]
    assert first.offset == 1
    # A node goes on behind it, and an application behind that, with aioboto3.
    tail = (await log.resolve(CHANNEL)).tail
    assert tail.position == first
    appended = await log.append(CHANNEL, tail, [Pending.of('{"data":"node"}')], TTL_MS)
    assert isinstance(appended, Appended)
    positions = await publishing.write_async(
        aws.clients.tables,
        [change(aws, "new", "paid")],
        {**say("paid", "packed"), "audit": [Message(7)]},
    )
    assert [each.offset for each in positions[CHANNEL]] == [3, 4]
    assert [each.offset for each in positions["audit"]] == [1]
    # What the application's own condition refuses is told to nobody.
    for refused in (order(aws, "new"), change(aws, "new", "paid")):
        with pytest.raises(ClientError) as caught:
            await publishing.write_async(aws.clients.tables, [refused], say("never"))
        answer: Any = caught.value.response
        assert answer["CancellationReasons"][0]["Code"] == "ConditionalCheckFailed"
    records = await log.read_after(CHANNEL, first.epoch, 0, 100)
    found = [each for record in records for each in record.publications or ()]
    assert [each.data for each in found] == [
        {"state": "new"},
        "node",
        {"state": "paid"},
        {"state": "packed"},
    ]
    assert found[0].tags == {"kind": "order"}
    assert found[0].time > DAY_MS
    stored = await aws.clients.tables.get_item(
        TableName=f"{aws.prefix}orders", Key={"id": {"S": "7"}}
    )
    assert stored["Item"]["state"] == {"S": "paid"}


async def test_the_example_of_the_page(aws: AwsBackend, client: Any) -> None:
    example = EXAMPLE.replace('"orders"', f'"{aws.prefix}orders"')
    example = example.replace('"roomcast-channels"', f'"{channels_table(aws.prefix)}"')
    names: dict[str, Any] = {}
    exec(example, names)  # noqa: S102  # it is ours
    client.put_item(**{key: order(aws, "new")["Put"][key] for key in ("TableName", "Item")})
    assert names["pay"](client, "7") == 1
    with pytest.raises(ClientError, match="ConditionalCheckFailed"):
        names["pay"](client, "7")
    assert (await log_of(aws).resolve(CHANNEL)).tail.top == 1


async def test_a_write_that_was_held_up_is_not_sent(
    aws: AwsBackend, client: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process may be suspended between the read of the tail and the write, also by a day."""
    publishing = Channels(channels_table(aws.prefix))
    [first] = publishing.write(client, [], {CHANNEL: [Message(1)]})[CHANNEL]
    now_ms: Callable[[], int] = channels._now_ms
    ahead_ms = [0]
    monkeypatch.setattr(channels, "_now_ms", lambda: now_ms() + ahead_ms[0])
    # The deadline is on another clock, which stands still.
    still = Sources(channels._now_ms, lambda: 0.0, lambda: 0.0, channels._SOURCES.new_id)
    monkeypatch.setattr(channels, "_SOURCES", still)

    def suspended(**_: Any) -> None:
        ahead_ms[0] = DAY_MS

    client.meta.events.register("before-sign.dynamodb.TransactWriteItems", suspended)
    [second] = publishing.write(client, [], {CHANNEL: [Message(2)]})[CHANNEL]
    assert second.offset == 2
    assert second.epoch != first.epoch


@pytest.mark.parametrize("suspended", [True, False])
async def test_what_the_client_could_not_send_again_may_be_in(
    aws: AwsBackend, client: Any, monkeypatch: pytest.MonkeyPatch, suspended: bool
) -> None:
    """The answer is lost; before the SDK's own retry the process is suspended for a day, or has
    no credentials any more.
    """
    publishing = Channels(channels_table(aws.prefix), within_s=0.5)
    publishing.write(client, [order(aws, "new")], {CHANNEL: [Message(1)]})
    now_ms: Callable[[], int] = channels._now_ms
    ahead_ms = [0]
    monkeypatch.setattr(channels, "_now_ms", lambda: now_ms() + ahead_ms[0])
    session = client._endpoint.http_session
    send, signed = session.send, 0

    def lost(request: Any) -> Any:
        send(request)
        raise ReadTimeoutError(endpoint_url=request.url)

    def sign(**_: Any) -> None:
        nonlocal signed
        signed += 1
        if signed == 1:
            monkeypatch.setattr(session, "send", lost)
        elif suspended:
            ahead_ms[0] = DAY_MS
        else:
            raise NoCredentialsError

    client.meta.events.register("before-sign.dynamodb.TransactWriteItems", sign)
    changed = {"Put": {"TableName": f"{aws.prefix}orders", "Item": {"id": {"S": "8"}}}}
    with pytest.raises(OutcomeUnknown):
        publishing.write(client, [changed], {CHANNEL: [Message(2)]})
    assert signed > 1
    stored = await aws.clients.tables.query(
        TableName=channels_table(aws.prefix),
        KeyConditionExpression="channel = :channel AND #offset > :none",
        ExpressionAttributeNames={"#offset": "offset"},
        ExpressionAttributeValues={":channel": {"S": CHANNEL}, ":none": {"N": "0"}},
    )
    assert [each["offset"]["N"] for each in stored["Items"]] == ["1", "2"]


@pytest.mark.parametrize(
    "publications",
    [
        {},
        {"": [Message(1)]},
        {CHANNEL: []},
        {CHANNEL: [Message(1)] * 501},
        {CHANNEL: [Message("x" * 128 * 1024)]},
        {CHANNEL: [Message(float("nan"))]},
        {CHANNEL: [Message({"n": -(10**309)})]},
        {CHANNEL: [Message("\ud800")]},
        {CHANNEL: [Message({1, 2})]},
        {CHANNEL: [Message(1, {"a": 2})]},  # type: ignore[dict-item]
        {f"{CHANNEL}-{number}": [Message(1)] for number in range(101)},
    ],
)
def test_what_no_log_can_hold_is_refused(publications: dict[str, list[Message]]) -> None:
    with pytest.raises(InvalidMessage):
        Channels().write(None, [], publications)
