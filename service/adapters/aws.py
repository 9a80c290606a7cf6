"""The AWS clients of one process: their time-outs, pools and retries, and what their errors mean.

All clients are made before the process listens: making them blocks the event loop for some 200 ms in all.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Any, Final, Self

import aioboto3
from aiobotocore.config import AioConfig
from aiobotocore.httpsession import AIOHTTPSession
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

from service.ports import Gone, PortError, Refused, Throttled, UnknownOutcome

__all__ = [
    "CALL_LIMIT_S",
    "LOG_CALL_LIMIT_S",
    "POLL_LIMIT_S",
    "POLL_WAIT_S",
    "AwsClients",
    "connect",
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

# One append in flight a channel, and reads beside them; each idle connection costs a socket.
LOG_CONNECTIONS_MAX: Final = 64
TABLES_CONNECTIONS_MAX: Final = 32
SNS_CONNECTIONS_MAX: Final = 16
SQS_CONNECTIONS_MAX: Final = 16
# A long poll holds its connection for POLL_WAIT_S; nothing else may wait behind one.
POLL_CONNECTIONS_MAX: Final = 16

# Attempts in all, the first included.
ATTEMPTS_MAX: Final = 3
_ONE_ATTEMPT: Final = {"mode": "standard", "total_max_attempts": 1}
_RETRIED: Final = {"mode": "standard", "total_max_attempts": ATTEMPTS_MAX}

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
    "InvalidSignatureException",
    "RequestExpired",
    "RequestTimeTooSkewed",
    "SignatureDoesNotMatch",
})  # fmt: skip
_GONE_CODES: Final = frozenset({"AWS.SimpleQueueService.NonExistentQueue", "QueueDoesNotExist"})
_HTTP_TOO_MANY_REQUESTS: Final = 429
_HTTP_SERVER_ERROR: Final = 500

# Everything the SDK raises for a call that failed. Cancellation is not among them, nor are our own mistakes.
# OSError includes TimeoutError, from the limit on the whole call.
_CALL_ERRORS: Final = (ClientError, BotoCoreError, ResponseParserError, OSError)


@dataclass(frozen=True, slots=True)
class AwsClients:
    """Open clients, each with a pool of its own.

    `log`: DynamoDB for the channel log, never retried by the SDK, since only the log knows when the same append
    may be sent again. `tables`: DynamoDB for everything else. `sqs_poll`: long polls only.
    """

    log: Any
    tables: Any
    sns: Any
    sqs: Any
    sqs_poll: Any


class _ReadySession(AIOHTTPSession):  # type: ignore[misc]  # the SDK has no types
    """The SDK's HTTP session, with its TLS context made when it is opened, not by the first call.

    Reading the certificates blocks the event loop for 20 ms a client.
    """

    async def __aenter__(self) -> Self:
        await super().__aenter__()
        await self._get_session(None)
        return self


@asynccontextmanager
async def connect(
    *, region: str | None = None, endpoint_url: str | None = None, session: aioboto3.Session | None = None
) -> AsyncIterator[AwsClients]:
    """Open every client; close them at the end. None: what the environment and the instance's role say.

    Raises Refused when no region can be found.
    """
    session = session or aioboto3.Session()
    # None: the SDK's own choice of certificates. An emulator without TLS needs none.
    verify = False if endpoint_url is not None and endpoint_url.startswith("http://") else None

    async with AsyncExitStack() as stack:

        async def opened(service: str, connections_max: int, retries: dict[str, Any], read_s: float) -> Any:
            config = AioConfig(
                connect_timeout=CONNECT_TIMEOUT_S,
                read_timeout=read_s,
                max_pool_connections=connections_max,
                retries=retries,
                user_agent_extra="roomcast",
                http_session_cls=_ReadySession,
            )
            client = session.client(
                service, region_name=region, endpoint_url=endpoint_url, verify=verify, config=config
            )
            return await stack.enter_async_context(client)

        async with port_errors(CALL_LIMIT_S):
            clients = AwsClients(
                log=await opened("dynamodb", LOG_CONNECTIONS_MAX, _ONE_ATTEMPT, READ_TIMEOUT_S),
                tables=await opened("dynamodb", TABLES_CONNECTIONS_MAX, _RETRIED, READ_TIMEOUT_S),
                sns=await opened("sns", SNS_CONNECTIONS_MAX, _RETRIED, READ_TIMEOUT_S),
                sqs=await opened("sqs", SQS_CONNECTIONS_MAX, _RETRIED, READ_TIMEOUT_S),
                sqs_poll=await opened("sqs", POLL_CONNECTIONS_MAX, _ONE_ATTEMPT, POLL_READ_TIMEOUT_S),
            )
        yield clients


@asynccontextmanager
async def port_errors(limit_s: float) -> AsyncIterator[None]:
    """Around SDK calls: bounds them to `limit_s` seconds and turns what they raise into a PortError."""
    try:
        async with asyncio.timeout(limit_s):
            yield
    except _CALL_ERRORS as error:
        raise mapped(error) from error


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
