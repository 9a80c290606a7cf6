"""What an error of AWS means for whoever runs a command, and what to do about it.

Pure: the text of an error in, advice out.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

__all__ = ["Denied", "advice", "denied_in", "texts_of"]

# "User: arn:… is not authorized to perform: sqs:createqueue on resource: arn:… because …". All
# services say it in these words, KMS for others too.
_DENIED: Final = re.compile(
    r"(?:User: (?P<who>\S+) )?is not authorized to perform: (?P<action>[\w-]+:\w+\*?)"
    r"(?: on (?:the )?resource:? (?P<resource>[^\s,]+))?"
)
_EXPLICIT: Final = "explicit deny"
# Causes in a chain of errors. Ours are three or four.
_CAUSES_MAX: Final = 10
# Words of an error, and what to do. The first that fits counts.
_ADVICE: Final = (
    (
        (
            "RequestTimeTooSkewed",
            "Signature expired",
            "Signature not yet current",
            "RequestExpired",
        ),
        "the clock of this machine is wrong by minutes: chronyc tracking, timedatectl",
    ),
    (
        ("KMS.DisabledException", "KMSDisabled", "KMS.InvalidState", "KMSInvalidState"),
        (
            "the key of KMS is disabled, or is to be deleted: aws kms enable-key, or "
            "aws kms cancel-key-deletion"
        ),
    ),
    (
        ("KMS.AccessDenied", "KMSAccessDenied", "KmsAccessDenied"),
        (
            "let the role use the key: kms:Decrypt and kms:GenerateDataKey on it, in the role's "
            "policy and in the key's"
        ),
    ),
    (
        ("KMS.NotFound", "KMSNotFound"),
        "there is no such key of KMS in this region: compare aws.queue_kms_key_id",
    ),
    (
        ("ExpiredToken", "InvalidClientTokenId", "UnrecognizedClient", "SignatureDoesNotMatch"),
        "AWS does not know these credentials (any more): aws sts get-caller-identity",
    ),
    (
        ("Unable to locate credentials", "NoCredentials", "PartialCredentials", "ProfileNotFound"),
        "no credentials here: run it where instances run, as they run, or set AWS_PROFILE",
    ),
    (
        ("Could not connect", "EndpointConnection", "ConnectTimeout", "Connect timeout"),
        (
            "no way to this service: an endpoint of the VPC is missing, a group closed, or "
            "aws.region is none"
        ),
    ),
    (
        ("ResourceNotFoundException",),
        (
            "there is no such table in this region and account: compare aws.table_prefix and "
            "aws.region with the data stack"
        ),
    ),
    (
        ("InvalidParameter", "NotFound"),
        (
            "there is no such topic in this region and account: set aws.topic_arn to the output "
            "TopicArn of the data stack"
        ),
    ),
    (
        ("OverLimit", "LimitExceeded"),
        "a quota of the account is reached: roomcast doctor --account",
    ),
)


@dataclass(frozen=True, slots=True)
class Denied:
    """A call that IAM refused. `who`, `resource`: "" = AWS does not say."""

    action: str
    resource: str
    who: str
    is_explicit: bool


def denied_in(text: str) -> Denied | None:
    """The call that `text` says was refused; None if it says none."""
    found = _DENIED.search(text)
    if found is None:
        return None
    service, _, name = found["action"].partition(":")
    # SNS and SQS have names of their own way: SNS:Publish, sqs:createqueue.
    action = f"{service.lower()}:{name}"
    return Denied(action, found["resource"] or "", found["who"] or "", _EXPLICIT in text)


def advice(text: str) -> str:
    """What to do about an error with this text; "" = nothing is known."""
    denied = denied_in(text)
    if denied is not None:
        where = f" on {denied.resource}" if denied.resource else ""
        whom = f" to {denied.who}" if denied.who else " to this role"
        if denied.is_explicit:
            return (
                f"a policy denies {denied.action}{where}{whom}: a boundary, a policy of the "
                "organization, of an endpoint or of the resource itself; an Allow does not help"
            )
        return f"allow {denied.action}{where}{whom}, as the roles of deploy/template.yaml do"
    return next((told for words, told in _ADVICE if any(word in text for word in words)), "")


def texts_of(error: BaseException) -> Iterator[str]:
    """The text of an error, and of those that caused it: the outer ones may have cut it."""
    at: BaseException | None = error
    for _ in range(_CAUSES_MAX):
        if at is None:
            return
        yield str(at)
        at = at.__cause__
