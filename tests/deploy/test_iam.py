"""tests/deploy/iam.py decides as IAM does: what is not allowed is refused,
and a denial is stronger.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import pytest

from tests.deploy.iam import Call, allowed

QUEUE: Final = "arn:aws:sqs:eu-west-1:123456789012:chat-1"


def document(*statements: Mapping[str, Any]) -> Mapping[str, Any]:
    return {"Version": "2012-10-17", "Statement": list(statements)}


def allow(**changes: Any) -> Mapping[str, Any]:
    statement = {
        "Effect": "Allow",
        "Action": "sqs:DeleteQueue",
        "Resource": "arn:aws:sqs:*:*:chat-*",
    }
    return statement | changes


TAGGED: Final = {"StringEquals": {"aws:ResourceTag/App": "roomcast"}}


@pytest.mark.parametrize(
    "statement, verdict",
    [
        (allow(), True),
        (allow(Action=["sqs:CreateQueue", "SQS:deletequeue"]), True),
        (allow(Action="sqs:Delete*"), True),
        (allow(Action="sqs:DeleteMessage"), False),
        (allow(Resource=["arn:aws:sqs:*:*:other", QUEUE]), True),
        (allow(Resource=f"{QUEUE[:-1]}?"), True),
        (allow(Resource=QUEUE[:-1]), False),
        # Only * and ? stand for something.
        (allow(Resource=QUEUE.replace("chat-1", "chat-[0-9]")), False),
        (allow(Condition=TAGGED), True),
        (allow(Condition={"StringEquals": {"aws:ResourceTag/App": ["other"]}}), False),
        (allow(Condition={"StringEquals": {"aws:ResourceTag/topic": "roomcast"}}), False),
        (allow(Condition={**TAGGED, "StringLike": {"aws:ResourceTag/App": "x*"}}), False),
        (allow(Condition={"StringLike": {"aws:ResourceTag/App": ["x*", "room*"]}}), True),
        (allow(Condition={"Bool": {"aws:SecureTransport": "false"}}), False),
    ],
)
def test_one_statement(statement: Mapping[str, Any], verdict: bool) -> None:
    call = Call("sqs:DeleteQueue", QUEUE, {"aws:resourcetag/app": "roomcast"})
    assert allowed([document(statement)], call) is verdict


def test_one_allows_and_none_denies() -> None:
    call = Call("sqs:DeleteQueue", QUEUE)
    deny = allow(Effect="Deny", Action="*", Resource="*")
    assert allowed([document(allow(Resource="other")), document(allow())], call)
    assert not allowed([document(allow()), document(deny)], call)
    assert not allowed([document(deny)], call)
    assert not allowed([], call)


def test_what_it_does_not_know_it_does_not_judge() -> None:
    call = Call("sqs:DeleteQueue", QUEUE)
    for statement in (allow(NotAction="x"), allow(Condition={"NumericLessThan": {"x": "1"}})):
        with pytest.raises(NotImplementedError):
            allowed([document(statement)], call)
