"""Reads how a deployment is set up: tables, stream, Lambda, topic, queues, keys."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from email.utils import parsedate_to_datetime
from typing import Any, Final

import aioboto3

from roomcast.account.readings import Key
from roomcast.aws.reading import KEY_PERMISSIONS, Reading, reading_clients
from roomcast.aws.work_queue import receives_max_of
from roomcast.setup.readings import (
    Function,
    Queue,
    StreamMapping,
    Subscription,
    Table,
    Topic,
)

__all__ = ["PERMISSIONS", "AwsSetup", "read_setup"]

# Every call, and the permission that it needs: the SDK's client and method.
PERMISSIONS: Final[Mapping[tuple[str, str], str]] = {
    ("dynamodb", "describe_table"): "dynamodb:DescribeTable",
    ("dynamodb", "describe_time_to_live"): "dynamodb:DescribeTimeToLive",
    ("lambda", "list_event_source_mappings"): "lambda:ListEventSourceMappings",
    ("lambda", "get_function_configuration"): "lambda:GetFunctionConfiguration",
    ("sns", "get_topic_attributes"): "sns:GetTopicAttributes",
    ("sns", "get_subscription_attributes"): "sns:GetSubscriptionAttributes",
    ("sqs", "get_queue_attributes"): "sqs:GetQueueAttributes",
    **KEY_PERMISSIONS,
}
_SERVICES: Final = tuple(dict.fromkeys(service for service, _ in PERMISSIONS))
# What cannot be read is told, and the rest goes on. In a network without a way to a service, each
# attempt takes seconds.
_ATTEMPTS: Final = 1
_NO_TABLE: Final = frozenset({"ResourceNotFoundException"})
_NO_TOPIC: Final = frozenset({"NotFound", "NotFoundException"})
_NO_QUEUE: Final = frozenset({"AWS.SimpleQueueService.NonExistentQueue", "QueueDoesNotExist"})
_QUEUE_ATTRIBUTES: Final = ["QueueArn", "Policy", "KmsMasterKeyId", "RedrivePolicy"]


@asynccontextmanager
async def read_setup(
    *, region: str | None, endpoint_url: str | None, session: aioboto3.Session | None = None
) -> AsyncIterator[AwsSetup]:
    """The set-up, as the environment's credentials may read it. Raises PortError."""
    async with reading_clients(
        _SERVICES,
        region=region,
        endpoint_url=endpoint_url,
        session=session,
        attempts=_ATTEMPTS,
    ) as clients:
        yield AwsSetup(clients)


class AwsSetup:
    """A SetupReader. `clients`: the SDK's, by service."""

    def __init__(self, clients: Mapping[str, Any]) -> None:
        self._reading = Reading(clients, PERMISSIONS)

    async def table(self, name: str) -> Table | None:
        answer = await self._reading.call(
            "dynamodb", "describe_table", unless=_NO_TABLE, TableName=name
        )
        if answer is None:
            return None
        about = answer["Table"]
        stream = about.get("StreamSpecification") or {}
        is_on = bool(stream.get("StreamEnabled"))
        return Table(
            arn=str(about["TableArn"]),
            view=str(stream.get("StreamViewType", "")) if is_on else "",
            stream_arn=str(about.get("LatestStreamArn", "")) if is_on else "",
            key=str((about.get("SSEDescription") or {}).get("KMSMasterKeyArn", "")),
            answered_ms=_date_ms(answer),
        )

    async def expires_by(self, table: str) -> str:
        answer = await self._reading.call("dynamodb", "describe_time_to_live", TableName=table)
        about = answer["TimeToLiveDescription"]
        is_on = about.get("TimeToLiveStatus") in ("ENABLED", "ENABLING")
        return str(about.get("AttributeName", "")) if is_on else ""

    async def mappings(self, stream_arn: str) -> Sequence[StreamMapping]:
        found = await self._reading.pages(
            "lambda",
            "list_event_source_mappings",
            "EventSourceMappings",
            {"EventSourceArn": stream_arn},
        )
        return [_mapping(each) for each in found]

    async def function(self, name: str) -> Function:
        answer = await self._reading.call("lambda", "get_function_configuration", FunctionName=name)
        variables = (answer.get("Environment") or {}).get("Variables") or {}
        return Function(
            str(answer["FunctionName"]),
            str(variables.get("ROOMCAST_TOPIC_ARN", "")),
            str(variables.get("ROOMCAST_TOPIC_SHARDS", "")),
        )

    async def topic(self, arn: str) -> Topic | None:
        answer = await self._reading.call(
            "sns", "get_topic_attributes", unless=_NO_TOPIC, TopicArn=arn
        )
        return (
            None if answer is None else Topic(arn, answer["Attributes"].get("KmsMasterKeyId", ""))
        )

    async def subscription(self, arn: str) -> Subscription | None:
        answer = await self._reading.call(
            "sns", "get_subscription_attributes", unless=_NO_TOPIC, SubscriptionArn=arn
        )
        if answer is None:
            return None
        about = answer["Attributes"]
        return Subscription(
            arn=arn,
            topic_arn=str(about.get("TopicArn", "")),
            endpoint=str(about.get("Endpoint", "")),
            is_raw=about.get("RawMessageDelivery") == "true",
            filter_policy=str(about.get("FilterPolicy", "")),
            is_pending=about.get("PendingConfirmation") == "true",
        )

    async def queue(self, url: str) -> Queue | None:
        answer = await self._reading.call(
            "sqs",
            "get_queue_attributes",
            unless=_NO_QUEUE,
            QueueUrl=url,
            AttributeNames=_QUEUE_ATTRIBUTES,
        )
        if answer is None:
            return None
        about = answer.get("Attributes", {})
        return Queue(
            str(about["QueueArn"]),
            about.get("Policy", ""),
            about.get("KmsMasterKeyId", ""),
            receives_max_of(about),
        )

    async def key(self, key: str) -> Key:
        return await self._reading.key(key)


def _mapping(found: Mapping[str, Any]) -> StreamMapping:
    filters = (found.get("FilterCriteria") or {}).get("Filters") or ()
    return StreamMapping(
        uuid=str(found["UUID"]),
        function=str(found.get("FunctionArn", "")),
        state=str(found.get("State", "")),
        why=str(found.get("StateTransitionReason") or ""),
        result=str(found.get("LastProcessingResult") or ""),
        filters=[str(each.get("Pattern", "{}")) for each in filters],
        reports_items="ReportBatchItemFailures" in (found.get("FunctionResponseTypes") or ()),
    )


def _date_ms(answer: Mapping[str, Any]) -> int:
    """The `Date` of an answer (RFC 9110 §6.6.1), 0 = there is none."""
    headers = (answer.get("ResponseMetadata") or {}).get("HTTPHeaders") or {}
    try:
        return round(parsedate_to_datetime(str(headers.get("date", ""))).timestamp() * 1000)
    except ValueError:
        return 0
