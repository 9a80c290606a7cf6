"""Pages, paces and bounds of what SQS and SNS list."""

from __future__ import annotations

from typing import Any, Final

import pytest

from roomcast.aws.estate import QUEUES_MAX, SUBSCRIPTIONS_MAX, SqsEstate
from roomcast.fleet.deployment import Deployment, Queue, TopicSubscription
from roomcast.ports import Rejected, Throttled, UnknownOutcome
from tests.unit.aws.fakes import FakeClient, client_error

TOPIC: Final = "arn:aws:sns:eu-west-1:000000000000:topic"
DEPLOYMENT: Final = Deployment(TOPIC, "roomcast-")
URL: Final = "https://sqs.eu-west-1.amazonaws.com/000000000000/"


class Slept(list[float]):
    async def __call__(self, seconds: float) -> None:
        self.append(seconds)


def estate(
    sqs: FakeClient | None = None, sns: FakeClient | None = None, slept: Slept | None = None
) -> SqsEstate:
    return SqsEstate(
        sqs or FakeClient(),
        sns or FakeClient(),
        DEPLOYMENT,
        slept if slept is not None else Slept(),
    )


async def test_queues_are_listed_page_by_page() -> None:
    def list_queues(NextToken: str = "", **_: Any) -> Any:  # noqa: N803  # the SDK's name
        if not NextToken:
            return {"QueueUrls": [f"{URL}roomcast-1"], "NextToken": "more"}
        return {"QueueUrls": [f"{URL}roomcast-2"]} if NextToken == "last" else {"NextToken": "last"}

    sqs = FakeClient(list_queues=list_queues)
    assert await estate(sqs).queues() == ["roomcast-1", "roomcast-2"]
    assert all(call["MaxResults"] == 1000 for _, call in sqs.calls), "without it SQS cuts the list"
    assert all(call["QueueNamePrefix"] == "roomcast-" for _, call in sqs.calls)


async def test_no_queues_is_an_answer_without_a_list() -> None:
    assert await estate(FakeClient(list_queues=lambda **_: {})).queues() == []


async def test_a_list_that_is_too_long_is_refused_not_cut() -> None:
    urls = [f"{URL}roomcast-{number}" for number in range(QUEUES_MAX // 2 + 1)]
    with pytest.raises(Rejected):
        await estate(
            FakeClient(list_queues=lambda **_: {"QueueUrls": urls, "NextToken": "x"})
        ).queues()
    one = {"SubscriptionArn": f"{TOPIC}:1", "Endpoint": "e"}
    page = {"Subscriptions": [one] * (SUBSCRIPTIONS_MAX // 2 + 1), "NextToken": "x"}
    with pytest.raises(Rejected):
        await estate(sns=FakeClient(list_subscriptions_by_topic=lambda **_: page)).subscriptions()


async def test_a_list_without_end_is_refused() -> None:
    with pytest.raises(Rejected):
        await estate(FakeClient(list_queues=lambda **_: {"NextToken": "x"})).queues()
    with pytest.raises(Rejected):
        await estate(
            sns=FakeClient(list_subscriptions_by_topic=lambda **_: {"NextToken": "x"})
        ).subscriptions()


async def test_subscriptions_are_listed_slower_than_sns_allows() -> None:
    pages = iter(range(1, 61))

    def list_subscriptions(TopicArn: str, NextToken: str = "") -> Any:  # noqa: N803  # the SDK's names
        number = next(pages)
        assert NextToken == (f"after-{number - 1}" if number > 1 else "")
        one = {"SubscriptionArn": f"{TopicArn}:{number}", "Endpoint": f"arn:aws:sqs:x:{number}"}
        return {"Subscriptions": [one]} | ({"NextToken": f"after-{number}"} if number < 60 else {})

    slept = Slept()
    found = await estate(
        sns=FakeClient(list_subscriptions_by_topic=list_subscriptions), slept=slept
    ).subscriptions()
    assert len(found) == 60
    assert len(slept) == 59
    assert min(slept) >= 1 / 30


async def test_what_waits_for_a_confirmation_is_left_out() -> None:
    arns = ["PendingConfirmation", f"{TOPIC}:1", "Deleted"]
    page = {"Subscriptions": [{"SubscriptionArn": arn, "Endpoint": "e"} for arn in arns]}
    sns = FakeClient(list_subscriptions_by_topic=lambda **_: page)
    assert await estate(sns=sns).subscriptions() == [TopicSubscription(f"{TOPIC}:1", "e")]


async def test_a_listed_queue_needs_no_look_for_its_address() -> None:
    sqs = FakeClient(
        list_queues=lambda **_: {"QueueUrls": [f"{URL}roomcast-1"]},
        get_queue_url=lambda **_: {"QueueUrl": f"{URL}roomcast-2"},
        get_queue_attributes=lambda **_: {"Attributes": {"CreatedTimestamp": "1700000000"}},
        list_queue_tags=lambda **_: {},
    )
    listed = estate(sqs)
    await listed.queues()
    assert await listed.queue("roomcast-1") == Queue("roomcast-1", 1_700_000_000_000, {})
    assert "get_queue_url" not in sqs.names
    await listed.queue("roomcast-2")
    assert sqs.calls[-1][1]["QueueUrl"] == f"{URL}roomcast-2"


@pytest.mark.parametrize("code", ["AWS.SimpleQueueService.NonExistentQueue", "QueueDoesNotExist"])
@pytest.mark.parametrize("call", ["get_queue_url", "get_queue_attributes", "list_queue_tags"])
async def test_a_queue_may_vanish_at_any_moment(code: str, call: str) -> None:
    operations: dict[str, Any] = {
        "get_queue_url": lambda **_: {"QueueUrl": URL},
        "get_queue_attributes": lambda **_: {"Attributes": {"CreatedTimestamp": "1"}},
        "list_queue_tags": lambda **_: {},
    }
    operations[call] = lambda **_: client_error(code)
    assert await estate(FakeClient(**operations)).queue("roomcast-1") is None


@pytest.mark.parametrize(
    "about", [{}, {"Attributes": {}}, {"Attributes": {"CreatedTimestamp": "yesterday"}}, []]
)
async def test_a_queue_whose_age_is_not_told_is_not_known(about: Any) -> None:
    sqs = FakeClient(
        get_queue_url=lambda **_: {"QueueUrl": URL},
        get_queue_attributes=lambda **_: about,
        list_queue_tags=lambda **_: {},
    )
    with pytest.raises(UnknownOutcome):
        await estate(sqs).queue("roomcast-1")


@pytest.mark.parametrize("listed", [[{"Endpoint": "e"}], [{"SubscriptionArn": "arn:1"}], [1]])
async def test_a_list_that_cannot_be_read_is_none(listed: Any) -> None:
    sns = FakeClient(list_subscriptions_by_topic=lambda **_: {"Subscriptions": listed})
    with pytest.raises(UnknownOutcome):
        await estate(sns=sns).subscriptions()


async def test_only_what_is_missing_counts_as_removed() -> None:
    gone = FakeClient(unsubscribe=lambda **_: client_error("NotFound", 404))
    await estate(sns=gone).unsubscribe(f"{TOPIC}:1")
    throttled = FakeClient(
        unsubscribe=lambda **_: client_error("Throttling"),
        get_queue_url=lambda **_: {"QueueUrl": URL},
        delete_queue=lambda **_: client_error("InternalError", 500),
    )
    with pytest.raises(Throttled):
        await estate(sns=throttled).unsubscribe(f"{TOPIC}:1")
    with pytest.raises(UnknownOutcome):
        await estate(throttled).delete_queue("roomcast-1")


async def test_the_subscriptions_of_all_topics_are_listed_one_topic_after_the_other() -> None:
    def list_subscriptions(TopicArn: str) -> Any:  # noqa: N803  # the SDK's name
        return {"Subscriptions": [{"SubscriptionArn": f"{TopicArn}:1", "Endpoint": "e"}]}

    slept = Slept()
    sns = FakeClient(list_subscriptions_by_topic=list_subscriptions)
    deployment = Deployment(TOPIC, "roomcast-", 3)
    listed = await SqsEstate(FakeClient(), sns, deployment, slept).subscriptions()
    assert [each.arn for each in listed] == [
        f"{TOPIC}:1",
        *(f"{TOPIC}-shard-{shard}:1" for shard in range(3)),
    ]
    assert len(slept) == 3
    assert min(slept) >= 1 / 30, "SNS allows 30 such calls a second"


async def test_a_topic_shard_whose_topic_is_not_made_yet_has_no_subscriptions() -> None:
    """An update of a stack changes the reaper before it makes the topics, or after."""

    def missing(*topics: str) -> FakeClient:
        return FakeClient(
            list_subscriptions_by_topic=lambda TopicArn: (  # noqa: N803  # the SDK's name
                client_error("NotFound", 404, "ListSubscriptionsByTopic")
                if TopicArn in topics
                else {"Subscriptions": [{"SubscriptionArn": f"{TopicArn}:1", "Endpoint": "e"}]}
            )
        )

    deployment = Deployment(TOPIC, "roomcast-", 2)
    sns = missing(f"{TOPIC}-shard-1")
    listed = await SqsEstate(FakeClient(), sns, deployment, Slept()).subscriptions()
    assert [each.arn for each in listed] == [f"{TOPIC}:1", f"{TOPIC}-shard-0:1"]
    with pytest.raises(Rejected):
        await SqsEstate(FakeClient(), missing(TOPIC), deployment, Slept()).subscriptions()
