"""Whose a queue is, and where a subscription leads."""

from __future__ import annotations

from typing import Final

import pytest

from roomcast.fleet.deployment import Deployment, Queue, queue_tags

TOPIC: Final = "arn:aws:sns:eu-west-1:000000000000:topic"
DEPLOYMENT: Final = Deployment(TOPIC, "roomcast-")


def test_the_queues_of_a_deployment_are_beside_its_topic() -> None:
    assert DEPLOYMENT.queue_arn("q") == "arn:aws:sqs:eu-west-1:000000000000:q"
    china = Deployment("arn:aws-cn:sns:cn-north-1:000000000000:topic", "")
    assert china.queue_arn("q") == "arn:aws-cn:sqs:cn-north-1:000000000000:q"


@pytest.mark.parametrize(
    "arn", ["", "topic", "arn:aws:sqs:eu-west-1:000000000000:topic", f"{TOPIC}:1"]
)
def test_what_is_no_topic(arn: str) -> None:
    with pytest.raises(ValueError, match="not the ARN of a topic"):
        Deployment(arn, "")


@pytest.mark.parametrize(
    "endpoint, queue",
    [
        ("arn:aws:sqs:eu-west-1:000000000000:roomcast-1", "roomcast-1"),
        ("arn:aws:sqs:eu-west-1:000000000000:other", "other"),
        ("arn:aws:sqs:eu-west-1:000000000000:", None),
        ("arn:aws:sqs:eu-west-1:000000000000:a:b", None),
        ("arn:aws:sqs:eu-west-2:000000000000:roomcast-1", None),
        ("arn:aws:sqs:eu-west-1:000000000001:roomcast-1", None),
        ("arn:aws:lambda:eu-west-1:000000000000:function:roomcast-1", None),
        ("https://example.com/roomcast-1", None),
        ("roomcast-1", None),
    ],
)
def test_where_a_subscription_leads(endpoint: str, queue: str | None) -> None:
    assert DEPLOYMENT.queue_of(endpoint) == queue


@pytest.mark.parametrize(
    "changes, ours",
    [
        ({}, True),
        ({"stage": "prod"}, True),
        ({"app": "other"}, False),
        ({"topic": f"{TOPIC}-2"}, False),
        ({"app": None}, False),
        ({"topic": None}, False),
        ({"node": None}, False),
    ],
)
def test_tags_say_whose_a_queue_is(changes: dict[str, str | None], ours: bool) -> None:
    tags = {
        name: value
        for name, value in (queue_tags(TOPIC, "n1") | changes).items()
        if value is not None
    }
    assert DEPLOYMENT.is_ours(Queue("whatever-1", 0, tags)) is ours


def test_a_topic_with_a_very_long_name_fits_its_tag() -> None:
    deployment = Deployment(f"{TOPIC}{'x' * 240}", "")
    tags = queue_tags(deployment.topic_arn, "n1")
    assert all(len(value) <= 256 for value in tags.values())
    assert deployment.is_ours(Queue("q", 0, tags))


@pytest.mark.parametrize(
    "arn, ours",
    [
        (f"{TOPIC}:1", True),
        (f"{TOPIC}-shard-0:1", True),
        (f"{TOPIC}-shard-3:1", True),
        (f"{TOPIC}-shard-4:1", False),
        (f"{TOPIC}-other:1", False),
        (TOPIC, False),
        ("", False),
    ],
)
def test_subscriptions_of_topic_shards_are_the_deployments(arn: str, ours: bool) -> None:
    assert Deployment(TOPIC, "roomcast-", 4).has_subscription(arn) is ours
    assert DEPLOYMENT.has_subscription(arn) is (ours and "shard" not in arn)
