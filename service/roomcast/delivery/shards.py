"""Maps channels to topic shards, and topic shards to topics.

With one topic shard, which is the default, everything goes through the base topic. With more, the
base topic has what every node must hear, and each topic shard has a topic of its own for the
records of its channels. The stream Lambda shares this module, so it needs only the standard
library.
"""

from __future__ import annotations

from typing import Final
from zlib import crc32

from roomcast.wire.names import RESERVED_PREFIX

__all__ = ["SHARDS_MAX", "homes", "is_for_all", "shard_of", "topic_arns", "topic_of"]

# Each publishing of the Lambda may take a call for each topic, and each canary takes one.
SHARDS_MAX: Final = 16

_INFIX: Final = "-shard-"


def is_for_all(channel: str) -> bool:
    """Whether every node reads `channel`: one of the service's own, such as the canary's."""
    return channel.startswith(RESERVED_PREFIX)


def shard_of(channel: str, shards: int) -> int:
    """The topic shard of `channel`, of `shards` in all. It never changes for the same number.

    An application may compute it too, to bring the clients of one topic shard to the same nodes.
    """
    return crc32(channel.encode(errors="backslashreplace")) % shards


def homes(channel: str, shards: int) -> tuple[int | None, ...]:
    """The topics that a record of `channel` is published to: topic shards; None = the base topic.

    What every node reads goes to the base topic, and to each topic shard: it proves them.
    """
    if shards == 1:
        return (None,)
    if is_for_all(channel):
        return (None, *range(shards))
    return (shard_of(channel, shards),)


def topic_of(topic_arn: str, shard: int | None) -> str:
    """The ARN of the topic of `shard`; None = the base topic, whose ARN is `topic_arn`."""
    return topic_arn if shard is None else f"{topic_arn}{_INFIX}{shard}"


def topic_arns(topic_arn: str, shards: int) -> tuple[str, ...]:
    """The ARNs of all topics of a deployment, the base topic first."""
    numbers = range(shards) if shards > 1 else ()
    return (topic_arn, *(topic_of(topic_arn, shard) for shard in numbers))
