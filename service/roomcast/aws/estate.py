"""Lists and removes the queues and subscriptions of a deployment, for the clean-up after dead
nodes.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final

from botocore.exceptions import ClientError

from roomcast.aws.errors import CALL_LIMIT_S, port_errors
from roomcast.aws.topic import is_no_topic, unsubscribe
from roomcast.delivery.ports import Gone
from roomcast.fleet.deployment import Deployment, Queue, TopicSubscription
from roomcast.ports import Rejected

__all__ = ["QUEUES_MAX", "SUBSCRIPTIONS_MAX", "SqsEstate"]

# Far beyond any fleet. A truncated list would make live queues look deleted.
QUEUES_MAX: Final = 10_000
SUBSCRIPTIONS_MAX: Final = 10_000
# The greatest page of SQS. Without a page size SQS returns no token for the next page.
_QUEUES_PAGE: Final = 1000
# SNS allows 30 calls a second per account and region, and returns 100 subscriptions a call.
_SUBSCRIPTION_PAGES_PER_S: Final = 25
_ARN: Final = "arn:"

Sleep = Callable[[float], Awaitable[None]]


class SqsEstate:
    """An Estate. `sqs`, `sns`: clients that retry."""

    def __init__(
        self, sqs: Any, sns: Any, deployment: Deployment, sleep: Sleep = asyncio.sleep
    ) -> None:
        self._sqs = sqs
        self._sns = sns
        self._deployment = deployment
        self._sleep = sleep
        # URLs by name, from the listing. Other queues are looked up.
        self._urls: dict[str, str] = {}

    async def queues(self) -> Sequence[str]:
        urls: list[tuple[str, str]] = []
        start: dict[str, Any] = {}
        for _ in range(QUEUES_MAX):
            async with port_errors(CALL_LIMIT_S):
                answer = await self._sqs.list_queues(
                    QueueNamePrefix=self._deployment.queue_prefix, MaxResults=_QUEUES_PAGE, **start
                )
                urls.extend((url.rpartition("/")[2], url) for url in answer.get("QueueUrls", ()))
                more = answer.get("NextToken")
            if len(urls) > QUEUES_MAX:
                break
            if not more:
                self._urls = dict(urls)
                return list(self._urls)
            start = {"NextToken": more}
        raise Rejected(f"more than {QUEUES_MAX} queues begin with {self._deployment.queue_prefix}")

    async def queue(self, name: str) -> Queue | None:
        try:
            async with port_errors(CALL_LIMIT_S):
                url = await self._url(name)
                about = await self._sqs.get_queue_attributes(
                    QueueUrl=url, AttributeNames=["CreatedTimestamp"]
                )
                tags = (await self._sqs.list_queue_tags(QueueUrl=url)).get("Tags", {})
                # In seconds. Emulators return fractions of them.
                created_s = float(about["Attributes"]["CreatedTimestamp"])
                return Queue(name, round(created_s * 1000), tags)
        except Gone:
            return None

    async def subscriptions(self) -> Sequence[TopicSubscription]:
        found: list[TopicSubscription] = []
        for number, topic_arn in enumerate(self._deployment.topic_arns):
            if number:
                await self._sleep(1 / _SUBSCRIPTION_PAGES_PER_S)
            found.extend(await self._subscriptions_of(topic_arn))
        return found

    async def _subscriptions_of(self, topic_arn: str) -> Sequence[TopicSubscription]:
        found: list[TopicSubscription] = []
        start: dict[str, Any] = {}
        for _ in range(SUBSCRIPTIONS_MAX):
            async with port_errors(CALL_LIMIT_S):
                try:
                    answer = await self._sns.list_subscriptions_by_topic(
                        TopicArn=topic_arn, **start
                    )
                except ClientError as error:
                    if topic_arn != self._deployment.topic_arn and is_no_topic(error):
                        # The topic of a topic shard that is not made yet.
                        return ()
                    raise
                found.extend(
                    TopicSubscription(each["SubscriptionArn"], each["Endpoint"])
                    for each in answer.get("Subscriptions", ())
                    # Other subscriptions have "PendingConfirmation" or "Deleted" instead of an ARN.
                    if each["SubscriptionArn"].startswith(_ARN)
                )
            if len(found) > SUBSCRIPTIONS_MAX:
                break
            if not answer.get("NextToken"):
                return found
            start = {"NextToken": answer["NextToken"]}
            await self._sleep(1 / _SUBSCRIPTION_PAGES_PER_S)
        raise Rejected(f"more than {SUBSCRIPTIONS_MAX} subscriptions of {topic_arn}")

    async def unsubscribe(self, arn: str) -> None:
        await unsubscribe(self._sns, arn)

    async def delete_queue(self, name: str) -> None:
        try:
            async with port_errors(CALL_LIMIT_S):
                await self._sqs.delete_queue(QueueUrl=await self._url(name))
        except Gone:
            pass

    async def post(self, name: str, body: str) -> None:
        try:
            async with port_errors(CALL_LIMIT_S):
                await self._sqs.send_message(QueueUrl=await self._url(name), MessageBody=body)
        except Gone:
            pass

    async def _url(self, name: str) -> str:
        url = self._urls.get(name)
        return (
            url
            if url is not None
            else str((await self._sqs.get_queue_url(QueueName=name))["QueueUrl"])
        )
