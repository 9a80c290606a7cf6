"""The life of a queue where calls fail, and what exactly is asked of AWS."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any

import pytest

from roomcast.aws import queue as queue_module
from roomcast.aws.queue import SqsInstanceQueue
from roomcast.delivery.ports import Gone, Message
from roomcast.delivery.shards import SHARDS_MAX
from roomcast.ports import Rejected, Throttled, UnknownOutcome
from tests.unit.aws.fakes import FakeClient, client_error

TOPIC_ARN = "arn:aws-cn:sns:cn-north-1:123456789012:roomcast-topic"
QUEUE_ARN = "arn:aws-cn:sqs:cn-north-1:123456789012:roomcast-n1"
URL = "https://sqs.example/123456789012/roomcast-n1"
GONE = "AWS.SimpleQueueService.NonExistentQueue"


class Fixture:
    """A queue with recording clients; any operation can be replaced.
    `order` has calls and sleeps as they came.
    """

    def __init__(self, shards: int = 1, key_id: str = "", **operations: Callable[..., Any]) -> None:
        answers: dict[str, Callable[..., Any]] = {
            "create_queue": lambda **_: {"QueueUrl": URL},
            "get_queue_url": lambda **_: {"QueueUrl": URL},
            "subscribe": lambda **_: {"SubscriptionArn": "arn:subscription"},
            "unsubscribe": lambda **_: {},
            "delete_queue": lambda **_: {},
            "delete_message_batch": lambda **_: {"Successful": []},
            "receive_message": lambda **_: {},
        }
        self.client = FakeClient(**(answers | operations))
        self.queue = SqsInstanceQueue(
            control=self.client,
            poll=self.client,
            sns=self.client,
            topic_arn=TOPIC_ARN,
            tags=lambda: {"app": "roomcast", "node": "n1"},
            shards=shards,
            key_id=key_id,
            sleep=self.sleep,
        )

    async def sleep(self, seconds: float) -> None:
        self.client.calls.append(("sleep", {"seconds": seconds}))

    async def opened(self) -> SqsInstanceQueue:
        await self.queue.open("roomcast-n1")
        return self.queue

    def arguments(self, name: str) -> list[dict[str, Any]]:
        return [arguments for called, arguments in self.client.calls if called == name]


async def test_opening_creates_waits_and_subscribes() -> None:
    fixture = Fixture()
    queue = await fixture.opened()
    assert fixture.client.names == ["create_queue", "sleep", "subscribe"]
    assert fixture.arguments("sleep")[0]["seconds"] >= 1
    [subscribe] = fixture.arguments("subscribe")
    assert subscribe == {
        "TopicArn": TOPIC_ARN,
        "Protocol": "sqs",
        "Endpoint": QUEUE_ARN,
        "Attributes": {"RawMessageDelivery": "true"},
        "ReturnSubscriptionArn": True,
    }
    assert (queue.queue_url, queue.subscription_arn) == (URL, "arn:subscription")


async def test_the_create_call_carries_everything() -> None:
    fixture = Fixture()
    await fixture.opened()
    [create] = fixture.arguments("create_queue")
    policy = json.loads(create["Attributes"].pop("Policy"))
    assert create == {
        "QueueName": "roomcast-n1",
        "tags": {"app": "roomcast", "node": "n1"},
        "Attributes": {
            "MessageRetentionPeriod": "300",
            "VisibilityTimeout": "10",
            "ReceiveMessageWaitTimeSeconds": "20",
            "SqsManagedSseEnabled": "true",
        },
    }
    [statement] = policy["Statement"]
    assert statement["Principal"] == {"Service": "sns.amazonaws.com"}
    assert statement["Action"] == "sqs:SendMessage"
    assert statement["Resource"] == QUEUE_ARN
    # Nothing beside it: SNS does not say that it sends aws:SourceAccount.
    assert statement["Condition"] == {"ArnEquals": {"aws:SourceArn": TOPIC_ARN}}


async def test_a_key_of_kms_takes_the_place_of_sqs_s_own() -> None:
    """A queue has one kind of encryption; both are refused."""
    key = "arn:aws:kms:eu-west-1:123456789012:key/1"
    fixture = Fixture(key_id=key)
    await fixture.opened()
    [create] = fixture.arguments("create_queue")
    assert create["Attributes"]["KmsMasterKeyId"] == key
    # As SQS takes it.
    assert 60 <= int(create["Attributes"]["KmsDataKeyReusePeriodSeconds"]) <= 86_400
    assert "SqsManagedSseEnabled" not in create["Attributes"]


async def test_closing_unsubscribes_before_it_deletes() -> None:
    fixture = Fixture()
    queue = await fixture.opened()
    await queue.close()
    await queue.close()
    assert fixture.client.names[3:] == ["unsubscribe", "delete_queue"]


async def test_the_topics_of_all_topic_shards_may_send_to_the_queue() -> None:
    fixture = Fixture(shards=2)
    await fixture.opened()
    [create] = fixture.arguments("create_queue")
    [statement] = json.loads(create["Attributes"]["Policy"])["Statement"]
    assert statement["Condition"]["ArnEquals"]["aws:SourceArn"] == [
        TOPIC_ARN,
        f"{TOPIC_ARN}-shard-0",
        f"{TOPIC_ARN}-shard-1",
    ]
    assert len(fixture.arguments("subscribe")) == 1, "to the base topic only"


async def test_a_topic_shard_is_subscribed_and_unsubscribed_by_itself() -> None:
    fixture = Fixture(
        shards=2, subscribe=lambda **asked: {"SubscriptionArn": f"{asked['TopicArn']}:1"}
    )
    queue = await fixture.opened()
    await queue.subscribe(1)
    await queue.subscribe(1)
    assert [call["TopicArn"] for call in fixture.arguments("subscribe")] == [
        TOPIC_ARN,
        *[f"{TOPIC_ARN}-shard-1"] * 2,
    ]
    assert fixture.arguments("subscribe")[1]["Endpoint"] == QUEUE_ARN
    await queue.unsubscribe(1)
    await queue.unsubscribe(1)
    await queue.unsubscribe(0)
    assert fixture.arguments("unsubscribe") == [{"SubscriptionArn": f"{TOPIC_ARN}-shard-1:1"}]
    assert queue.subscription_arn == f"{TOPIC_ARN}:1"


async def test_closing_ends_the_subscriptions_to_topic_shards_too() -> None:
    """I6: also one whose call was given up, and may have subscribed."""

    def subscribe(**asked: Any) -> Any:
        arn = asked["TopicArn"]
        if arn.endswith("-1") and not given_up:
            given_up.append(arn)
            return client_error("InternalFailure", 500, "Subscribe")
        return {"SubscriptionArn": f"{arn}:1"}

    given_up: list[str] = []
    fixture = Fixture(shards=2, subscribe=subscribe)
    queue = await fixture.opened()
    await queue.subscribe(0)
    with pytest.raises(UnknownOutcome):
        await queue.subscribe(1)
    await queue.close()
    assert [call["SubscriptionArn"] for call in fixture.arguments("unsubscribe")] == [
        f"{TOPIC_ARN}:1",
        f"{TOPIC_ARN}-shard-0:1",
        f"{TOPIC_ARN}-shard-1:1",
    ]
    assert fixture.client.names[-1] == "delete_queue"


async def test_a_node_that_ends_waits_for_hanging_calls_of_all_topics_at_once() -> None:
    """One after the other they would take longer than a node has for its end."""
    hanging: list[asyncio.Future[Any]] = []

    def unsubscribe(**_: Any) -> asyncio.Future[Any]:
        hanging.append(asyncio.get_running_loop().create_future())
        return hanging[-1]

    fixture = Fixture(
        shards=SHARDS_MAX,
        subscribe=lambda **asked: {"SubscriptionArn": f"{asked['TopicArn']}:1"},
        unsubscribe=unsubscribe,
    )
    queue = await fixture.opened()
    for shard in range(SHARDS_MAX):
        await queue.subscribe(shard)
    closing = asyncio.create_task(queue.close())
    for _ in range(100):
        await asyncio.sleep(0)
    assert len(hanging) == 1 + SHARDS_MAX
    for number, one in enumerate(hanging):
        if number:
            one.set_result({})
        else:
            one.set_exception(client_error("InternalFailure", 500, "Unsubscribe"))
    with pytest.raises(UnknownOutcome):
        await closing
    assert fixture.client.names[-1] == "delete_queue"
    assert queue.subscription_arn == f"{TOPIC_ARN}:1", "what failed is tried again"


async def test_a_topic_shard_that_refused_the_queue_needs_no_unsubscribing() -> None:
    fixture = Fixture(
        shards=2,
        subscribe=lambda **asked: (
            client_error("AuthorizationError", 403, "Subscribe")
            if "shard" in asked["TopicArn"]
            else {"SubscriptionArn": "arn:subscription"}
        ),
    )
    queue = await fixture.opened()
    with pytest.raises(Rejected):
        await queue.subscribe(0)
    await queue.close()
    assert len(fixture.arguments("unsubscribe")) == 1


async def test_without_a_queue_there_is_nothing_to_subscribe() -> None:
    queue = Fixture(shards=2).queue
    with pytest.raises(Gone):
        await queue.subscribe(0)
    await queue.unsubscribe(0)


async def test_what_is_gone_already_is_success() -> None:
    fixture = Fixture(
        unsubscribe=lambda **_: client_error("NotFound", 404, "Unsubscribe"),
        delete_queue=lambda **_: client_error(GONE, 400, "DeleteQueue"),
    )
    queue = await fixture.opened()
    await queue.close()
    assert queue.queue_url is None
    assert queue.subscription_arn is None


async def test_the_queue_is_deleted_though_unsubscribing_failed_and_closing_can_be_repeated() -> (
    None
):
    failures = iter([client_error("AuthorizationError", 403, "Unsubscribe"), {}])
    fixture = Fixture(unsubscribe=lambda **_: next(failures))
    queue = await fixture.opened()
    with pytest.raises(Rejected):
        await queue.close()
    assert queue.queue_url is None
    assert queue.subscription_arn == "arn:subscription"
    await queue.close()
    assert fixture.client.names.count("unsubscribe") == 2
    assert queue.subscription_arn is None


async def test_what_may_succeed_another_time_is_told_before_what_is_refused() -> None:
    fixture = Fixture(
        unsubscribe=lambda **_: client_error("AuthorizationError", 403, "Unsubscribe"),
        delete_queue=lambda **_: client_error("InternalFailure", 500, "DeleteQueue"),
    )
    queue = await fixture.opened()
    with pytest.raises(UnknownOutcome):
        await queue.close()
    assert fixture.client.names.count("delete_queue") == 1


async def test_a_queue_that_was_abandoned_makes_room_for_another() -> None:
    fixture = Fixture(
        unsubscribe=lambda **_: client_error("AuthorizationError", 403, "Unsubscribe")
    )
    queue = await fixture.opened()
    with pytest.raises(Rejected):
        await queue.close()
    queue.abandon()
    assert (queue.queue_url, queue.subscription_arn) == (None, None)
    await queue.open("roomcast-n2")
    assert fixture.arguments("subscribe")[1]["Endpoint"].endswith(":roomcast-n2")


async def test_a_queue_whose_creation_is_unknown_is_found_and_deleted() -> None:
    fixture = Fixture(create_queue=lambda **_: client_error("InternalFailure", 500, "CreateQueue"))
    with pytest.raises(UnknownOutcome):
        await fixture.opened()
    await fixture.queue.close()
    assert fixture.client.names == ["create_queue", "get_queue_url", "delete_queue"]
    assert fixture.arguments("delete_queue") == [{"QueueUrl": URL}]


async def test_a_queue_that_was_not_created_needs_no_closing() -> None:
    fixture = Fixture(create_queue=lambda **_: client_error("AccessDenied", 403, "CreateQueue"))
    with pytest.raises(Rejected):
        await fixture.opened()
    await fixture.queue.close()
    assert fixture.client.names == ["create_queue"]


async def test_a_subscription_whose_answer_was_lost_is_ended() -> None:
    answers = iter(
        [client_error("InternalError", 500, "Subscribe"), {"SubscriptionArn": "arn:found"}]
    )
    fixture = Fixture(subscribe=lambda **_: next(answers))
    with pytest.raises(UnknownOutcome):
        await fixture.opened()
    await fixture.queue.close()
    assert fixture.arguments("unsubscribe") == [{"SubscriptionArn": "arn:found"}]
    assert fixture.client.names[-1] == "delete_queue"


@pytest.mark.parametrize("answer", [{}, {"Attributes": {}}, []])
async def test_a_subscription_whose_answer_names_none_is_ended(answer: Any) -> None:
    """As if it had been lost: what is behind it exists, perhaps."""
    answers = iter([answer, {"SubscriptionArn": "arn:found"}])
    fixture = Fixture(subscribe=lambda **_: next(answers))
    with pytest.raises(UnknownOutcome):
        await fixture.opened()
    await fixture.queue.close()
    assert fixture.arguments("unsubscribe") == [{"SubscriptionArn": "arn:found"}]
    assert fixture.client.names[-1] == "delete_queue"


@pytest.mark.parametrize("failed", [[{"Id": "0"}], [{"SenderFault": False}], {"Id": "0"}, 5])
async def test_an_answer_that_does_not_say_which_entries_failed_is_none(failed: Any) -> None:
    fixture = Fixture(delete_message_batch=lambda **_: {"Failed": failed})
    queue = await fixture.opened()
    with pytest.raises(UnknownOutcome):
        await queue.delete(["one"])


async def test_an_opening_that_is_cancelled_leaves_nothing_after_closing() -> None:
    fixture, entered = Fixture(), asyncio.Event()

    async def sleep(_: float) -> None:
        entered.set()
        await asyncio.Event().wait()

    fixture.queue._sleep = sleep
    task = asyncio.create_task(fixture.opened())
    await entered.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await fixture.queue.close()
    assert fixture.client.names == ["create_queue", "delete_queue"]


async def test_receipts_are_deleted_ten_at_a_time() -> None:
    fixture = Fixture()
    queue = await fixture.opened()
    await queue.delete([f"r{number}" for number in range(21)])
    batches = fixture.arguments("delete_message_batch")
    assert [len(batch["Entries"]) for batch in batches] == [10, 10, 1]
    receipts = [entry["ReceiptHandle"] for batch in batches for entry in batch["Entries"]]
    assert receipts == [f"r{number}" for number in range(21)]
    assert all(
        len({entry["Id"] for entry in batch["Entries"]}) == len(batch["Entries"])
        for batch in batches
    )


async def test_entries_that_failed_are_tried_once_more() -> None:
    def answer(Entries: Any, **_: Any) -> Any:  # noqa: N803  # the SDK's name
        ours = {"SenderFault": False, "Code": "InternalError"}
        theirs = {"SenderFault": True, "Code": "ReceiptHandleIsInvalid"}
        faults = {"r0": theirs, "r1": ours}
        return {
            "Failed": [
                {"Id": entry["Id"], **faults[entry["ReceiptHandle"]]}
                for entry in reversed(Entries)
                if entry["ReceiptHandle"] in faults
            ]
        }

    fixture = Fixture(delete_message_batch=answer)
    queue = await fixture.opened()
    with pytest.raises(Throttled, match="1 of 3 messages were not deleted: InternalError"):
        await queue.delete(["r0", "r1", "r2"])
    batches = fixture.arguments("delete_message_batch")
    assert [[entry["ReceiptHandle"] for entry in batch["Entries"]] for batch in batches] == [
        ["r0", "r1", "r2"],
        ["r1"],
    ]


async def test_one_batch_that_fails_keeps_no_other_from_being_deleted() -> None:
    answers = iter(
        [client_error("InternalError", 500), {}, client_error("RequestThrottled", 403), {}]
    )
    fixture = Fixture(delete_message_batch=lambda **_: next(answers))
    queue = await fixture.opened()
    with pytest.raises(UnknownOutcome):
        await queue.delete([f"r{number}" for number in range(20)])
    with pytest.raises(Throttled):
        await queue.delete([f"r{number}" for number in range(20)])
    assert len(fixture.arguments("delete_message_batch")) == 4


@pytest.mark.parametrize("code, error", [("AccessDenied", Rejected), (GONE, Gone)])
async def test_what_all_batches_would_meet_is_told_at_once(
    code: str, error: type[Exception]
) -> None:
    fixture = Fixture(delete_message_batch=lambda **_: client_error(code, 403))
    queue = await fixture.opened()
    with pytest.raises(error):
        await queue.delete([f"r{number}" for number in range(20)])
    assert len(fixture.arguments("delete_message_batch")) == 1


async def test_the_batches_of_one_delete_go_to_one_queue() -> None:
    """Another may be opened in its place meanwhile, to which the receipts mean nothing."""

    def answer(QueueUrl: str, **_: Any) -> Any:  # noqa: N803  # the SDK's name
        fixture.queue._queue_url = "https://sqs.example/another"
        return {}

    fixture = Fixture(delete_message_batch=answer)
    queue = await fixture.opened()
    await queue.delete([f"r{number}" for number in range(20)])
    assert [call["QueueUrl"] for call in fixture.arguments("delete_message_batch")] == [URL, URL]


async def test_receiving_waits_as_long_as_sqs_allows() -> None:
    fixture = Fixture()
    queue = await fixture.opened()
    assert not await queue.receive()
    assert fixture.arguments("receive_message") == [
        {
            "QueueUrl": URL,
            "MaxNumberOfMessages": 10,
            "WaitTimeSeconds": 20,
            "MessageSystemAttributeNames": ["SentTimestamp"],
        }
    ]


async def test_a_message_says_when_the_queue_got_it_if_the_queue_does() -> None:
    dated = {"Body": "one", "ReceiptHandle": "r1", "Attributes": {"SentTimestamp": "1700000000123"}}
    fixture = Fixture(
        receive_message=lambda **_: {"Messages": [dated, {"Body": "two", "ReceiptHandle": "r2"}]}
    )
    queue = await fixture.opened()
    assert await queue.receive() == [Message("one", "r1", 1_700_000_000_123), Message("two", "r2")]


@pytest.mark.parametrize("arn", ["", "roomcast-topic", QUEUE_ARN])
def test_a_topic_is_named_by_its_arn(arn: str) -> None:
    client = FakeClient()
    with pytest.raises(ValueError, match="ARN"):
        SqsInstanceQueue(control=client, poll=client, sns=client, topic_arn=arn, tags=dict)


async def test_an_endpoint_that_does_not_long_poll_is_asked_again_after_a_pause() -> None:
    message = {"MessageId": "1", "ReceiptHandle": "r", "Body": "b", "Attributes": {}}
    answers = iter([{}, {"Messages": [message]}, {}])
    fixture = Fixture(receive_message=lambda **_: next(answers))
    queue = await fixture.opened()
    fixture.client.calls.clear()
    for _ in range(3):
        await queue.receive()
    assert fixture.client.names == [
        *("receive_message", "sleep"),
        "receive_message",
        *("receive_message", "sleep"),
    ]
    assert fixture.arguments("sleep")[0]["seconds"] >= 0.1


async def test_a_long_poll_that_brings_nothing_is_followed_by_the_next(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    fixture = Fixture()
    queue = await fixture.opened()
    fixture.client.calls.clear()
    # Whatever a receive takes, it is long enough.
    monkeypatch.setattr(queue_module, "_EMPTY_S_MIN", 0.0)
    await queue.receive()
    assert fixture.client.names == ["receive_message"]
