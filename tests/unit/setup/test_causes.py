"""service/roomcast/setup/causes.py: errors in AWS's words, and what they mean."""

from __future__ import annotations

from typing import Final

import pytest

from roomcast.ports import Rejected
from roomcast.setup.causes import Denied, advice, denied_in, texts_of

WHO: Final = "arn:aws:sts::123456789012:assumed-role/chat-InstanceRole-1X/i-0123456789abcdef0"
TABLE: Final = "arn:aws:dynamodb:eu-west-1:123456789012:table/chat_channels"
# As the services say it.
DYNAMODB: Final = (
    "An error occurred (AccessDeniedException) when calling the PutItem operation: User: "
    f"{WHO} is not authorized to perform: dynamodb:PutItem on resource: {TABLE} because no "
    "identity-based policy allows the dynamodb:PutItem action"
)
SQS: Final = (
    f"An error occurred (AccessDenied) when calling the CreateQueue operation: User: {WHO} is not "
    "authorized to perform: sqs:createqueue on resource: "
    "arn:aws:sqs:eu-west-1:123456789012:chat_q because no identity-based policy allows the "
    "sqs:createqueue action"
)
SNS: Final = (
    f"An error occurred (AuthorizationError) when calling the Publish operation: User: {WHO} is "
    "not authorized to perform: SNS:Publish on resource: arn:aws:sns:eu-west-1:123456789012:chat "
    "with an explicit deny in a resource-based policy"
)
KMS: Final = (
    "An error occurred (KMS.AccessDeniedException) when calling the SendMessage operation: User: "
    f"{WHO} is not authorized to perform: kms:GenerateDataKey on resource: "
    "arn:aws:kms:eu-west-1:123456789012:key/k because no identity-based policy allows the "
    "kms:GenerateDataKey action"
)


@pytest.mark.parametrize(
    "text, action, resource, is_explicit",
    [
        (DYNAMODB, "dynamodb:PutItem", TABLE, False),
        (SQS, "sqs:createqueue", "arn:aws:sqs:eu-west-1:123456789012:chat_q", False),
        (SNS, "sns:Publish", "arn:aws:sns:eu-west-1:123456789012:chat", True),
        (KMS, "kms:GenerateDataKey", "arn:aws:kms:eu-west-1:123456789012:key/k", False),
    ],
)
def test_a_permission_that_is_missing(
    text: str, action: str, resource: str, *, is_explicit: bool
) -> None:
    assert denied_in(text) == Denied(action, resource, WHO, is_explicit)
    assert f"{action} on {resource} to {WHO}" in advice(text)
    assert ("an Allow does not help" in advice(text)) is is_explicit


def test_without_a_resource() -> None:
    text = "User: arn:x is not authorized to perform: sts:AssumeRole"
    assert advice(text).startswith("allow sts:AssumeRole to arn:x")


@pytest.mark.parametrize(
    "text, told",
    [
        ("(InvalidSignatureException): Signature expired: 2023 is now earlier than", "clock"),
        ("(RequestTimeTooSkewed) when calling", "clock"),
        ("(KMS.DisabledException)", "disabled"),
        ("(KmsAccessDenied)", "kms:Decrypt"),
        ("(KMS.NotFoundException)", "no such key"),
        ("(ExpiredTokenException) when calling", "credentials"),
        ("NoCredentialsError: Unable to locate credentials", "no credentials here"),
        ('EndpointConnectionError: Could not connect to the endpoint URL: "x"', "no way"),
        ("(ResourceNotFoundException): Requested resource not found", "aws.table_prefix"),
        ("(NotFound) when calling the Subscribe operation: Topic does not exist", "aws.topic_arn"),
        ("(InvalidParameter): Invalid parameter: TopicArn", "aws.topic_arn"),
        ("(OverLimit)", "quota"),
        ("something else", ""),
    ],
)
def test_other_errors(text: str, told: str) -> None:
    assert told in advice(text)
    assert bool(advice(text)) is bool(told)


def test_an_error_that_was_cut_has_its_cause() -> None:
    try:
        try:
            raise ValueError(DYNAMODB)
        except ValueError as error:
            raise Rejected(DYNAMODB[:200]) from error
    except Rejected as error:
        found = [advice(text) for text in texts_of(error)]
    assert TABLE not in DYNAMODB[:200]
    assert f"dynamodb:PutItem on {TABLE}" in found[1]
