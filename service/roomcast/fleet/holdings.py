"""What nodes hold in AWS, as data: leases, queues and subscriptions, and how one tells whose a queue is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, Literal

__all__ = [
    "APP",
    "APP_TAG",
    "NODE_TAG",
    "TOPIC_TAG",
    "Deployment",
    "Grave",
    "Lease",
    "Queue",
    "Standing",
    "TopicSubscription",
    "queue_tags",
    "standing",
]

# Tags of every queue that a node makes. A name says nothing: anybody may begin a name with our prefix.
APP_TAG: Final = "app"
APP: Final = "roomcast"
TOPIC_TAG: Final = "topic"
# The lease under which the queue was made.
NODE_TAG: Final = "node"
# AWS takes no longer value of a tag. Only a topic with a very long name has a longer ARN; its end tells it apart.
_TAG_CHARS_MAX: Final = 256


@dataclass(frozen=True, slots=True)
class Lease:
    """What a node holds, and how it is doing. Times in ms. `queue` is the queue's name, `state` starting | live | draining.

    `canary`: the newest canary that the node heard. `queue_url`, `subscription_arn`: "" as long as they are not known.
    `instance`: the machine's id, "" outside EC2. `lag_ms`: how late the newest message came out of the queue.
    `skew_ms`: how far the node's clock is ahead of the queue's, negative: behind; 0 also when its release does not say.
    `users`: how many different ones are connected. `channels`: those with subscribers.
    `reaped`: since when somebody has been cleaning up after this node, 0 = nobody is.
    """

    node: str
    queue: str
    state: str
    started_at: int
    heartbeat_at: int
    expires_at: int
    canary: int = 0
    queue_url: str = ""
    subscription_arn: str = ""
    instance: str = ""
    version: str = ""
    connections: int = 0
    channels: int = 0
    users: int = 0
    lag_ms: int = 0
    skew_ms: int = 0
    reaped: int = 0


@dataclass(frozen=True, slots=True)
class Grave:
    """What stays of the lease of a dead node when all that it held was removed. `buried_at` in ms: when that was last so.

    Its node may wake, and write presence entries before its next heartbeat tells it that the lease is lost.
    """

    node: str
    instance: str
    buried_at: int


@dataclass(frozen=True, slots=True)
class Queue:
    """A queue that exists, whoever made it. `created_at` in ms."""

    name: str
    created_at: int
    tags: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class TopicSubscription:
    """One subscription of the topic. `endpoint` is whatever was subscribed: a queue's ARN, an address."""

    arn: str
    endpoint: str


@dataclass(frozen=True, slots=True)
class Deployment:
    """What tells one set of nodes from another in the same account. Raises ValueError when `topic_arn` is none."""

    topic_arn: str
    queue_prefix: str

    def __post_init__(self) -> None:
        parts = self.topic_arn.split(":")
        if len(parts) != 6 or parts[2] != "sns":
            raise ValueError(f"not the ARN of a topic: {self.topic_arn}")

    def queue_arn(self, name: str) -> str:
        """The ARN of the queue `name` in the topic's account and region."""
        _, partition, _, region, account, _ = self.topic_arn.split(":")
        return f"arn:{partition}:sqs:{region}:{account}:{name}"

    def queue_of(self, endpoint: str) -> str | None:
        """The name of the queue that a subscription leads to; None: it is of another kind, account or region."""
        before = self.queue_arn("")
        name = endpoint.removeprefix(before)
        return name if endpoint.startswith(before) and name and ":" not in name else None

    def has_subscription(self, arn: str) -> bool:
        """Whether `arn` is that of a subscription of this topic."""
        return arn.startswith(f"{self.topic_arn}:")

    def is_ours(self, queue: Queue) -> bool:
        """Whether a node of this deployment made it, as its tags say."""
        tags = queue.tags
        return queue_tags(self.topic_arn, tags.get(NODE_TAG, "")).items() <= tags.items()


def queue_tags(topic_arn: str, node: str) -> dict[str, str]:
    """The tags with which the node of lease `node` makes its queue."""
    return {APP_TAG: APP, TOPIC_TAG: topic_arn[-_TAG_CHARS_MAX:], NODE_TAG: node}


Standing = Literal["live", "expired", "reaped"]


def standing(lease: Lease, now_ms: int) -> Standing:
    """What a lease says about its node."""
    if lease.reaped:
        return "reaped"
    return "live" if lease.expires_at > now_ms else "expired"
