"""The SNS topics: send one message to every queue that is subscribed, and end a subscription."""

from __future__ import annotations

from typing import Any, Final

from botocore.exceptions import ClientError

from roomcast.aws.errors import CALL_LIMIT_S, error_code, port_errors
from roomcast.delivery.envelope import ENVELOPE_BYTES_MAX
from roomcast.delivery.shards import topic_of
from roomcast.ports import Rejected

__all__ = ["SnsTopic", "check_body", "is_no_topic", "unsubscribe"]

# The limit of SNS. Emulators accept more, so it is checked here.
_MESSAGE_BYTES_MAX: Final = 256 * 1024
assert ENVELOPE_BYTES_MAX <= _MESSAGE_BYTES_MAX
_GONE_CODES: Final = frozenset({"NotFound", "NotFoundException"})


class SnsTopic:
    """A NodeTopics: the base topic, whose ARN is `topic_arn`, and those of the topic shards.

    `client`: an SNS client. Its own retries may publish twice, and readers tolerate that.
    """

    def __init__(self, client: Any, topic_arn: str) -> None:
        self._client = client
        self._topic_arn = topic_arn

    async def publish(self, body: str) -> None:
        await self._publish(self._topic_arn, body)

    async def publish_to(self, shard: int, body: str) -> None:
        await self._publish(topic_of(self._topic_arn, shard), body)

    async def _publish(self, topic_arn: str, body: str) -> None:
        check_body(body)
        async with port_errors(CALL_LIMIT_S):
            await self._client.publish(TopicArn=topic_arn, Message=body)


async def unsubscribe(client: Any, arn: str) -> None:
    """Ends a subscription. One that is already gone counts as success. Raises PortError."""
    async with port_errors(CALL_LIMIT_S):
        try:
            await client.unsubscribe(SubscriptionArn=arn)
        except ClientError as error:
            if error_code(error) not in _GONE_CODES:
                raise


def is_no_topic(error: ClientError) -> bool:
    """Whether the error of a call says that its topic does not exist."""
    return error_code(error) in _GONE_CODES


def check_body(body: str) -> None:
    """Checks the size of a body. Raises Rejected if SNS or SQS would not take it."""
    if not 0 < len(body.encode()) <= ENVELOPE_BYTES_MAX:
        raise Rejected(f"a message of 1 to {ENVELOPE_BYTES_MAX} bytes, not {len(body.encode())}")
