"""The queues and subscriptions of a deployment, as data, and the test of a queue's ownership."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from roomcast.delivery.shards import topic_arns

__all__ = [
    "APP",
    "APP_TAG",
    "NODE_TAG",
    "TOPIC_TAG",
    "Deployment",
    "Queue",
    "TopicSubscription",
    "queue_tags",
]

# Tags of every queue that a node makes. A name proves nothing: any program may use our prefix.
APP_TAG: Final = "app"
APP: Final = "roomcast"
TOPIC_TAG: Final = "topic"
# The lease under which the queue was made.
NODE_TAG: Final = "node"
# The longest value of a tag in AWS. Only a topic with a very long name has a longer ARN. The end of
# it identifies the topic.
_TAG_CHARS_MAX: Final = 256


@dataclass(frozen=True, slots=True)
class Queue:
    """An existing queue, of any owner. `created_at` is in ms."""

    name: str
    created_at: int
    tags: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class TopicSubscription:
    """One subscription of one of the topics.

    `endpoint` is the subscriber: a queue's ARN, or an address.
    """

    arn: str
    endpoint: str


@dataclass(frozen=True, slots=True)
class Deployment:
    """Identifies one set of nodes in an AWS account.

    `topic_arn`: the base topic's. `shards`: the number of topic shards, 1 = there are none.

    Raises ValueError when `topic_arn` is no ARN of a topic.
    """

    topic_arn: str
    queue_prefix: str
    shards: int = 1

    def __post_init__(self) -> None:
        parts = self.topic_arn.split(":")
        if len(parts) != 6 or parts[2] != "sns":
            raise ValueError(f"not the ARN of a topic: {self.topic_arn}")

    @property
    def topic_arns(self) -> tuple[str, ...]:
        """The ARNs of all topics, the base topic first."""
        return topic_arns(self.topic_arn, self.shards)

    def queue_arn(self, name: str) -> str:
        """The ARN of the queue `name` in the topic's account and region."""
        _, partition, _, region, account, _ = self.topic_arn.split(":")
        return f"arn:{partition}:sqs:{region}:{account}:{name}"

    def queue_of(self, endpoint: str) -> str | None:
        """The name of the queue that is the `endpoint` of a subscription.

        None: the endpoint is of another kind, account or region.
        """
        before = self.queue_arn("")
        name = endpoint.removeprefix(before)
        return name if endpoint.startswith(before) and name and ":" not in name else None

    def has_subscription(self, arn: str) -> bool:
        """Whether `arn` is the ARN of a subscription of one of the topics."""
        return arn.rpartition(":")[0] in self.topic_arns

    def is_ours(self, queue: Queue) -> bool:
        """Whether a node of this deployment made `queue`, according to its tags."""
        tags = queue.tags
        return queue_tags(self.topic_arn, tags.get(NODE_TAG, "")).items() <= tags.items()


def queue_tags(topic_arn: str, node: str) -> dict[str, str]:
    """The tags of a queue that the node with lease `node` makes."""
    return {APP_TAG: APP, TOPIC_TAG: topic_arn[-_TAG_CHARS_MAX:], NODE_TAG: node}
