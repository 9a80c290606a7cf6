"""What the SDK's errors mean to whoever calls a port, and how long a call may take. Of libraries only botocore."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Final

from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    ConnectTimeoutError,
    CredentialRetrievalError,
    EndpointConnectionError,
    HTTPClientError,
    IncompleteReadError,
    MetadataRetrievalError,
    ProxyConnectionError,
    SSLError,
)
from botocore.parsers import ResponseParserError

from roomcast.delivery.ports import Gone
from roomcast.ports import PortError, Refused, Throttled, UnknownOutcome

__all__ = [
    "ATTEMPTS_MAX",
    "CALL_LIMIT_S",
    "CONNECT_TIMEOUT_S",
    "LOG_CALL_LIMIT_S",
    "POLL_LIMIT_S",
    "POLL_READ_TIMEOUT_S",
    "POLL_WAIT_S",
    "READ_TIMEOUT_S",
    "demand_request_id",
    "error_code",
    "is_condition_failure",
    "mapped",
    "port_errors",
]

# Inside one region a connection takes milliseconds; a packet lost twice takes 3 s.
CONNECT_TIMEOUT_S: Final = 3
# Between two reads of an answer. DynamoDB answers in milliseconds or hardly ever.
READ_TIMEOUT_S: Final = 5
# One call, waiting for a pooled connection included, which the SDK does not bound.
LOG_CALL_LIMIT_S: Final = 8
# The same with the SDK's retries and their back-off.
CALL_LIMIT_S: Final = 25
# The longest wait that SQS offers: an idle instance then makes 131,400 calls a month.
POLL_WAIT_S: Final = 20
# AWS: "the HTTP response timeout must exceed WaitTimeSeconds".
POLL_READ_TIMEOUT_S: Final = 30
POLL_LIMIT_S: Final = 35
assert POLL_WAIT_S < POLL_READ_TIMEOUT_S < POLL_LIMIT_S
assert CONNECT_TIMEOUT_S + READ_TIMEOUT_S <= LOG_CALL_LIMIT_S < CALL_LIMIT_S
# Attempts in all, the first included.
ATTEMPTS_MAX: Final = 3

# Error texts go to logs; AWS sometimes quotes the request in them.
_MESSAGE_CHARS_MAX: Final = 200
_CONDITION_FAILED: Final = "ConditionalCheckFailedException"

_THROTTLED_CODES: Final = frozenset({
    "BandwidthLimitExceeded",
    "KMSThrottling",
    "KMSThrottlingException",
    "KmsThrottled",
    "OverLimit",
    "ProvisionedThroughputExceededException",
    # A new item of the same key was being replicated; DynamoDB: "retry".
    "ReplicatedWriteConflictException",
    "RequestLimitExceeded",
    "RequestThrottled",
    "RequestThrottledException",
    "SlowDown",
    "Throttled",
    "ThrottledException",
    "Throttling",
    "ThrottlingException",
    "TooManyRequestsException",
    "TransactionConflictException",
    "TransactionInProgressException",
    # The name of a deleted queue is free again after 60 s.
    "AWS.SimpleQueueService.QueueDeletedRecently",
    "QueueDeletedRecently",
    # Credentials of an instance role that were not renewed in time, or a request that aged between
    # signing and arrival because the process was suspended: neither happened, both come right again.
    "ExpiredToken",
    "ExpiredTokenException",
    "InvalidClientTokenId",
    "UnrecognizedClientException",
    "InvalidSignatureException",
    "RequestExpired",
    "RequestTimeTooSkewed",
    "SignatureDoesNotMatch",
})  # fmt: skip
_GONE_CODES: Final = frozenset({"AWS.SimpleQueueService.NonExistentQueue", "QueueDoesNotExist"})
_HTTP_REDIRECTS: Final = 300
_HTTP_TOO_MANY_REQUESTS: Final = 429
_HTTP_SERVER_ERROR: Final = 500

# Everything the SDK raises for a call that failed. Cancellation is not among them.
# OSError includes TimeoutError, from the limit on the whole call.
_CALL_ERRORS: Final = (ClientError, BotoCoreError, ResponseParserError, OSError)
# What reading an answer comes to that is none of the service's: whoever stands between gave it, or it is damaged.
_UNREADABLE: Final = (AttributeError, LookupError, TypeError, ValueError, RecursionError)


@asynccontextmanager
async def port_errors(limit_s: float) -> AsyncIterator[None]:
    """Around SDK calls and the reading of their answers: bounds them to `limit_s` seconds and turns what they raise into a
    PortError.
    """
    try:
        async with asyncio.timeout(limit_s):
            yield
    except _CALL_ERRORS as error:
        raise mapped(error) from error
    except _UNREADABLE as error:
        text = f"the answer cannot be read: {type(error).__name__}: {error}"
        raise UnknownOutcome(text[:_MESSAGE_CHARS_MAX]) from error
    except RuntimeError as error:
        # The SDK's own word for credentials that were renewed and are still expired: nothing was signed or sent.
        if "credentials" not in str(error).lower():
            raise
        raise Throttled(f"{type(error).__name__}: {error}"[:_MESSAGE_CHARS_MAX]) from error


def demand_request_id(http_response: Any, parsed: Any, **_: Any) -> None:
    """`after-call` hook of a client. Raises UnknownOutcome for a success that AWS did not answer.

    AWS gives each request an id. Without this, whatever else answers 200 would be a success: to the
    SDK a page of HTML, or nothing, is a JSON object without the fields that it does not have.
    """
    if http_response.status_code >= _HTTP_REDIRECTS:
        # An error, of which `mapped` says what it means.
        return
    # What is no JSON object at all has no such thing either.
    about = parsed.get("ResponseMetadata") if isinstance(parsed, dict) else None
    if not about or not about.get("RequestId"):
        raise UnknownOutcome("the answer has no request id: it is none of AWS's")


def mapped(error: Exception) -> PortError:
    """What an error of the SDK means to a caller of a port.

    A failed condition is Refused here: whoever states a condition looks for its failure first.
    """
    if isinstance(error, PortError):
        return error
    if isinstance(error, ClientError):
        return _mapped_answer(error)
    text = f"{type(error).__name__}: {str(error) or 'no answer in time'}"[:_MESSAGE_CHARS_MAX]
    if isinstance(error, EndpointConnectionError):
        return Throttled(text) if _never_connected(error) else UnknownOutcome(text)
    if isinstance(error, (ConnectTimeoutError, ProxyConnectionError, SSLError)):
        return Throttled(text)
    if isinstance(error, (CredentialRetrievalError, MetadataRetrievalError)):
        return Throttled(text)
    if isinstance(error, (HTTPClientError, IncompleteReadError, ResponseParserError, OSError)):
        return UnknownOutcome(text)
    # The rest is found before anything is sent: parameters, no credentials at all, no region.
    return Refused(text)


def error_code(error: ClientError) -> str:
    """AWS's name of an error, "" if the answer had none."""
    return str(error.response.get("Error", {}).get("Code", ""))


def is_condition_failure(error: ClientError) -> bool:
    """Whether a conditional write was answered with: the condition does not hold."""
    return error_code(error) == _CONDITION_FAILED


def _mapped_answer(error: ClientError) -> PortError:
    code, text = error_code(error), str(error)[:_MESSAGE_CHARS_MAX]
    status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
    if code in _GONE_CODES:
        return Gone(text)
    if code in _THROTTLED_CODES or status == _HTTP_TOO_MANY_REQUESTS:
        return Throttled(text)
    if status >= _HTTP_SERVER_ERROR:
        return UnknownOutcome(text)
    return Refused(text)


def _never_connected(error: EndpointConnectionError) -> bool:
    """Whether no connection came about. The SDK raises the same error for one that was reset after sending.

    Only aiohttp's error for a connection that could not be made carries `os_error`.
    """
    cause = error.kwargs.get("error")
    return isinstance(cause, socket.gaierror) or getattr(cause, "os_error", None) is not None
