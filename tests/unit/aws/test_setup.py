"""What is read of a set-up, from answers in the shapes of AWS's service models."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from roomcast.account.ports import NotAllowed
from roomcast.aws.setup import PERMISSIONS, AwsSetup
from roomcast.setup.readings import Function, Queue, StreamMapping, Subscription, Table, Topic
from tests.unit.aws.test_account import Client

ARN = "arn:aws:dynamodb:eu-west-1:123456789012:table/t"


def setup(service: str, **answers: list[Any]) -> AwsSetup:
    return AwsSetup({service: Client(service, answers)})


async def test_a_table() -> None:
    about = {
        "TableArn": ARN,
        "StreamSpecification": {"StreamEnabled": True, "StreamViewType": "NEW_IMAGE"},
        "LatestStreamArn": ARN + "/stream/1",
        "SSEDescription": {"Status": "ENABLED", "KMSMasterKeyArn": "arn:key"},
    }
    found = setup("dynamodb", describe_table=[{"Table": about}])
    assert await found.table("t") == Table(ARN, "NEW_IMAGE", ARN + "/stream/1", "", "arn:key")


async def test_a_table_whose_stream_was_turned_off_has_its_last_arn_no_more() -> None:
    about = {"TableArn": ARN, "LatestStreamArn": ARN + "/stream/1"}
    found = setup("dynamodb", describe_table=[{"Table": about}, "ResourceNotFoundException"])
    assert await found.table("t") == Table(ARN)
    assert await found.table("u") is None


async def test_the_clock_of_aws() -> None:
    found = setup("dynamodb", describe_table=[])
    answers = iter(
        [
            {"ResponseMetadata": {"HTTPHeaders": {"date": "Tue, 14 Nov 2023 22:13:20 GMT"}}},
            {"ResponseMetadata": {"HTTPHeaders": {"date": "yesterday"}}},
            {},
        ]
    )

    async def describe_table(**_: Any) -> Any:
        return {"Table": {"TableArn": ARN}, **next(answers)}

    found._reading._clients["dynamodb"].describe_table = describe_table
    assert [(await found.table("t")).answered_ms for _ in range(3)] == [  # type: ignore[union-attr]  # it is there
        1_700_000_000_000,
        0,
        0,
    ]


@pytest.mark.parametrize(
    "about, expected",
    [
        ({"TimeToLiveStatus": "ENABLED", "AttributeName": "expires_at"}, "expires_at"),
        ({"TimeToLiveStatus": "DISABLED"}, ""),
        ({"TimeToLiveStatus": "DISABLING", "AttributeName": "expires_at"}, ""),
    ],
)
async def test_ttl(about: dict[str, str], expected: str) -> None:
    found = setup("dynamodb", describe_time_to_live=[{"TimeToLiveDescription": about}])
    assert await found.expires_by("t") == expected


async def test_mappings() -> None:
    whole = {
        "UUID": "u",
        "FunctionArn": "arn:f",
        "State": "Disabled",
        "StateTransitionReason": "USER_INITIATED",
        "LastProcessingResult": "OK",
        "FilterCriteria": {"Filters": [{"Pattern": "{}"}]},
        "FunctionResponseTypes": ["ReportBatchItemFailures"],
    }
    found = setup(
        "lambda",
        list_event_source_mappings=[
            {"EventSourceMappings": [whole], "NextMarker": "m"},
            {"EventSourceMappings": [{"UUID": "v", "State": "Enabled"}]},
        ],
    )
    assert await found.mappings("arn:s") == [
        StreamMapping("u", "arn:f", "Disabled", "USER_INITIATED", "OK", ["{}"], True),
        StreamMapping("v", "", "Enabled", "", "", [], False),
    ]


async def test_the_lambda() -> None:
    variables = {"ROOMCAST_TOPIC_ARN": "arn:t", "ROOMCAST_TOPIC_SHARDS": "4"}
    found = setup(
        "lambda",
        get_function_configuration=[
            {"FunctionName": "f", "Environment": {"Variables": variables}},
            {"FunctionName": "g"},
        ],
    )
    assert await found.function("f") == Function("f", "arn:t", "4")
    assert await found.function("g") == Function("g", "", "")


async def test_topic_subscription_and_queue() -> None:
    sns = setup(
        "sns",
        get_topic_attributes=[{"Attributes": {"KmsMasterKeyId": "k"}}, "NotFound"],
        get_subscription_attributes=[
            {
                "Attributes": {
                    "TopicArn": "arn:t",
                    "Endpoint": "arn:q",
                    "RawMessageDelivery": "true",
                    "FilterPolicy": "{}",
                    "PendingConfirmation": "false",
                }
            },
            "NotFound",
        ],
    )
    assert await sns.topic("arn:t") == Topic("arn:t", "k")
    assert await sns.topic("arn:u") is None
    assert await sns.subscription("s") == Subscription("s", "arn:t", "arn:q", True, "{}", False)
    assert await sns.subscription("s") is None
    sqs = setup(
        "sqs",
        get_queue_attributes=[
            {"Attributes": {"QueueArn": "arn:q", "Policy": "{}", "KmsMasterKeyId": "k"}},
            {
                "Attributes": {
                    "QueueArn": "arn:q",
                    "RedrivePolicy": '{"deadLetterTargetArn":"arn:d","maxReceiveCount":20}',
                }
            },
            "AWS.SimpleQueueService.NonExistentQueue",
        ],
    )
    assert await sqs.queue("u") == Queue("arn:q", "{}", "k")
    assert await sqs.queue("u") == Queue("arn:q", "", "", 20)
    assert await sqs.queue("u") is None


@pytest.mark.parametrize("code", ["AccessDeniedException", "AccessDenied", "AuthorizationError"])
async def test_what_may_not_be_read_says_which_permission(code: str) -> None:
    for service, method in PERMISSIONS:
        found = setup(service, **{method: [code]})
        with pytest.raises(NotAllowed, match=PERMISSIONS[service, method]):
            await found._reading.call(service, method)


def test_the_page_has_every_permission() -> None:
    page = (Path(__file__).parents[3] / "docs" / "operations.md").read_text(encoding="utf-8")
    assert [each for each in PERMISSIONS.values() if f"`{each}`" not in page] == []
