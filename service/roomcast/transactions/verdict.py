"""What the answer to a transaction says: whether it is in, known not to be in, or not known.

The errors are those of boto3 and aioboto3. They are told by their form, not by their classes, since
this room imports neither.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum, auto
from typing import Any, Final

__all__ = ["Reason", "Verdict", "is_condition_failure", "reasons_of", "verdict", "was_repeated"]

_CANCELED: Final = "TransactionCanceledException"
_IN_PROGRESS: Final = "TransactionInProgressException"
_CONDITION_FAILED: Final = "ConditionalCheckFailedException"
# The request was not carried out, and may be sent again.
_THROTTLED: Final = frozenset({
    "ProvisionedThroughputExceededException",
    "RequestLimitExceeded",
    "Throttling",
    "ThrottlingException",
})  # fmt: skip
# Reasons for which the same transaction may succeed a moment later.
_BUSY: Final = frozenset(
    {"TransactionConflict", "ProvisionedThroughputExceeded", "ThrottlingError"}
)
_CONDITION: Final = "ConditionalCheckFailed"
_NO_REASON: Final = "None"
_SERVER_ERROR_STATUS: Final = 500
# Classes of errors that do not say whether the request arrived. The SDK's other errors without an
# answer come before something is sent, or before it is sent again.
_NETWORK_ERRORS: Final = frozenset({
    "ConnectionError",
    "HTTPClientError",
    "IncompleteReadError",
    "OSError",
    "ResponseParserError",
    "TimeoutError",
})  # fmt: skip


class Verdict(Enum):
    """What is known after one attempt."""

    # Not carried out, nor will it be: some condition did not hold.
    CANCELED = auto()
    # Not carried out, but the same may be tried again.
    BUSY = auto()
    # It may be in, or may yet get in.
    UNKNOWN = auto()
    # Not carried out, and no attempt will be: malformed, or not allowed.
    REFUSED = auto()


@dataclass(frozen=True, slots=True)
class Reason:
    """Why one write canceled a transaction. `held`: whether its condition did hold.

    `item`: what stood in its place, in DynamoDB's JSON; None = it was not told.
    """

    held: bool
    item: Mapping[str, Mapping[str, Any]] | None


def verdict(error: Exception, *, sent: bool = False) -> Verdict:
    """What `error`, of a call of TransactWriteItems, says about this attempt. `sent`: it is known
    that the client sent it.
    """
    response = _response(error)
    if response is None:
        if sent:
            # Such as no credentials to sign it with once more.
            return Verdict.UNKNOWN
        names = {each.__name__ for each in type(error).__mro__}
        return Verdict.REFUSED if names.isdisjoint(_NETWORK_ERRORS) else Verdict.UNKNOWN
    code = _code(response)
    if code == _CANCELED:
        codes = {str(reason.get("Code")) for reason in _reasons(response)} - {_NO_REASON}
        return Verdict.BUSY if codes and codes <= _BUSY else Verdict.CANCELED
    if code in _THROTTLED:
        return Verdict.BUSY
    if code == _IN_PROGRESS or _status(response) >= _SERVER_ERROR_STATUS:
        return Verdict.UNKNOWN
    return Verdict.REFUSED


def was_repeated(error: Exception) -> bool:
    """Whether the client sent the request more than once by itself: an earlier one may be in."""
    response = _response(error)
    return response is not None and bool(_metadata(response).get("RetryAttempts"))


def reasons_of(error: Exception, writes: int) -> Sequence[Reason] | None:
    """The reason of each of the `writes`, in their order. None: the error does not tell them."""
    response = _response(error) or {}
    reasons = _reasons(response)
    if len(reasons) != writes:
        return None
    return [
        Reason(reason.get("Code") != _CONDITION, reason.get("Item") or None) for reason in reasons
    ]


def is_condition_failure(error: Exception) -> bool:
    """Whether the condition of a single write did not hold."""
    response = _response(error)
    return response is not None and _code(response) == _CONDITION_FAILED


def _response(error: Exception) -> Mapping[str, Any] | None:
    response = getattr(error, "response", None)
    return response if isinstance(response, dict) else None


def _code(response: Mapping[str, Any]) -> str:
    return str((response.get("Error") or {}).get("Code"))


def _metadata(response: Mapping[str, Any]) -> Mapping[str, Any]:
    return response.get("ResponseMetadata") or {}


def _status(response: Mapping[str, Any]) -> int:
    status = _metadata(response).get("HTTPStatusCode")
    return status if isinstance(status, int) else 0


def _reasons(response: Mapping[str, Any]) -> Sequence[Mapping[str, Any]]:
    reasons = response.get("CancellationReasons")
    return reasons if isinstance(reasons, list) else []
