"""The SNS topic: one message to every instance's queue, and the end of a subscription to it."""

from __future__ import annotations

from typing import Any, Final

from botocore.exceptions import ClientError

from roomcast.aws.errors import CALL_LIMIT_S, error_code, port_errors
from roomcast.delivery.envelope import ENVELOPE_BYTES_MAX
from roomcast.ports import Refused

__all__ = ["SnsTopic", "check_body", "unsubscribe"]

# SNS takes no more; emulators do, so it is checked here.
_MESSAGE_BYTES_MAX: Final = 256 * 1024
assert ENVELOPE_BYTES_MAX <= _MESSAGE_BYTES_MAX
_SUBSCRIPTION_GONE_CODES: Final = frozenset({"NotFound", "NotFoundException"})


class SnsTopic:
    """A Topic. `client`: an SNS client. Its own retries may publish twice; readers bear that."""

    def __init__(self, client: Any, topic_arn: str) -> None:
        self._client = client
        self._topic_arn = topic_arn

    async def publish(self, body: str) -> None:
        check_body(body)
        async with port_errors(CALL_LIMIT_S):
            await self._client.publish(TopicArn=self._topic_arn, Message=body)


async def unsubscribe(client: Any, arn: str) -> None:
    """End a subscription; one that is gone already is success. Raises PortError."""
    async with port_errors(CALL_LIMIT_S):
        try:
            await client.unsubscribe(SubscriptionArn=arn)
        except ClientError as error:
            if error_code(error) not in _SUBSCRIPTION_GONE_CODES:
                raise


def check_body(body: str) -> None:
    """Raises Refused for a body that SNS or SQS would not take for its size."""
    if not 0 < len(body.encode()) <= ENVELOPE_BYTES_MAX:
        raise Refused(f"a message of 1 to {ENVELOPE_BYTES_MAX} bytes, not {len(body.encode())}")
