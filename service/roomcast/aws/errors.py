"""Maps the SDK's errors to the errors of the ports, and bounds the time of a call.

Of all libraries, it imports only botocore.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Final
from urllib.parse import urlsplit

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
from roomcast.ports import PortError, Rejected, Throttled, UnknownOutcome

__all__ = [
    "ATTEMPTS_MAX",
    "AWS_DOMAINS",
    "CALL_LIMIT_S",
    "CONNECT_TIMEOUT_S",
    "LOG_CALL_LIMIT_S",
    "POLL_LIMIT_S",
    "POLL_READ_TIMEOUT_S",
    "POLL_WAIT_S",
    "READ_TIMEOUT_S",
    "demand_request_id",
    "demand_request_ids",
    "error_code",
    "is_condition_failure",
    "mapped",
    "port_errors",
]

# Ends of the names of AWS's own endpoints, those in a VPC included. Each of them gives requests an
# id, which emulators need not do.
AWS_DOMAINS: Final = (".amazonaws.com", ".amazonaws.com.cn", ".api.aws")
# Inside one region a connection takes milliseconds; a packet lost twice takes 3 s.
CONNECT_TIMEOUT_S: Final = 3
# Between two reads of an answer. DynamoDB answers in milliseconds or hardly at all.
READ_TIMEOUT_S: Final = 5
# One call, including the wait for a pooled connection, which the SDK does not bound.
LOG_CALL_LIMIT_S: Final = 8
# The same, including the SDK's retries and their back-off.
CALL_LIMIT_S: Final = 25
# The longest wait that SQS offers: an idle instance then makes 131,400 calls a month.
POLL_WAIT_S: Final = 20
# AWS: "the HTTP response timeout must exceed WaitTimeSeconds".
POLL_READ_TIMEOUT_S: Final = 30
POLL_LIMIT_S: Final = 35
assert POLL_WAIT_S < POLL_READ_TIMEOUT_S < POLL_LIMIT_S
assert CONNECT_TIMEOUT_S + READ_TIMEOUT_S <= LOG_CALL_LIMIT_S < CALL_LIMIT_S
# Attempts, including the first.
ATTEMPTS_MAX: Final = 3

# Error texts go to the log, and AWS sometimes quotes the request in them.
_MESSAGE_CHARS_MAX: Final = 200
_CONDITION_FAILED: Final = "ConditionalCheckFailedException"

_THROTTLED_CODES: Final = frozenset({
    "BandwidthLimitExceeded",
    "KMSThrottling",
    "KMSThrottlingException",
    "KmsThrottled",
    "OverLimit",
    "ProvisionedThroughputExceededException",
    # A new item of the same key was being replicated. DynamoDB's advice: "retry".
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
    # An instance role's credentials were not renewed in time, or a request aged between signing and
    # arrival because the process was suspended. Nothing was carried out, and both pass by
    # themselves.
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

# Everything that the SDK raises for a failed call. Cancellation is not included. OSError includes
# TimeoutError, from the limit on the whole call.
_CALL_ERRORS: Final = (ClientError, BotoCoreError, ResponseParserError, OSError)
# Errors of parsing an answer that the service did not give: an intermediary gave it, or it is
# damaged.
_UNREADABLE: Final = (AttributeError, LookupError, TypeError, ValueError, RecursionError)


@asynccontextmanager
async def port_errors(limit_s: float) -> AsyncIterator[None]:
    """Bounds the SDK calls inside, and the parsing of their answers, to `limit_s` seconds. Turns
    their errors into a PortError.
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
        # The SDK's error for credentials that are still expired after renewal: nothing was signed
        # or sent.
        if "credentials" not in str(error).lower():
            raise
        raise Throttled(f"{type(error).__name__}: {error}"[:_MESSAGE_CHARS_MAX]) from error


def demand_request_ids(client: Any) -> None:
    """Have a client of AWS itself, boto3's or aioboto3's, hold answers against `demand_request_id`.

    It does nothing to a client of an emulator.
    """
    if _is_of_aws(client.meta.endpoint_url):
        client.meta.events.register("after-call", demand_request_id)


def _is_of_aws(endpoint_url: str) -> bool:
    return (urlsplit(endpoint_url).hostname or "").endswith(AWS_DOMAINS)


def demand_request_id(http_response: Any, parsed: Any, **_: Any) -> None:
    """`after-call` hook of a client of AWS itself. Raises UnknownOutcome for a success that AWS did
    not answer.

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
    """The port error for an error of the SDK.

    A failed condition is Rejected here: a caller with a condition checks for its failure first.
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
    # All other errors arise before anything is sent: wrong parameters, no credentials, no region.
    return Rejected(text)


def error_code(error: ClientError) -> str:
    """AWS's code of an error, "" if the answer had none."""
    return str(error.response.get("Error", {}).get("Code", ""))


def is_condition_failure(error: ClientError) -> bool:
    """Whether the error says that the condition of a write does not hold."""
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
    return Rejected(text)


def _never_connected(error: EndpointConnectionError) -> bool:
    """Whether the connection was never made.

    The SDK raises the same error for a connection that was reset after sending. Only aiohttp's
    error for a failed connect carries `os_error`.
    """
    cause = error.kwargs.get("error")
    return isinstance(cause, socket.gaierror) or getattr(cause, "os_error", None) is not None
