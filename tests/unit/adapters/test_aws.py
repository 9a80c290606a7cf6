"""Errors of the SDK, from instances and from a server that misbehaves, and how the clients are set up."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from typing import Any

import pytest
from botocore.exceptions import (
    ClientError,
    ConnectionClosedError,
    ConnectTimeoutError,
    CredentialRetrievalError,
    EndpointConnectionError,
    HTTPClientError,
    NoCredentialsError,
    NoRegionError,
    ParamValidationError,
    ReadTimeoutError,
)
from botocore.parsers import ResponseParserError

from service.adapters import aws
from service.ports import BeliefEnded, Gone, PortError, Refused, Throttled, UnknownOutcome
from tests.unit.adapters.fakes import SESSION, Answer, client_error, faked, hang_up, reset, say

URL = "https://dynamodb.example"


@pytest.mark.parametrize(
    "code, status, expected",
    [
        ("ProvisionedThroughputExceededException", 400, Throttled),
        ("ThrottlingException", 400, Throttled),
        ("Throttling", 400, Throttled),
        ("ThrottledException", 429, Throttled),
        ("RequestLimitExceeded", 400, Throttled),
        ("RequestThrottled", 403, Throttled),
        ("TransactionConflictException", 400, Throttled),
        ("OverLimit", 403, Throttled),
        ("AWS.SimpleQueueService.QueueDeletedRecently", 400, Throttled),
        ("SomethingNew", 429, Throttled),
        ("ExpiredTokenException", 400, Throttled),
        ("ExpiredToken", 403, Throttled),
        ("RequestExpired", 400, Throttled),
        ("InvalidSignatureException", 400, Throttled),
        ("AWS.SimpleQueueService.NonExistentQueue", 400, Gone),
        ("QueueDoesNotExist", 400, Gone),
        ("InternalServerError", 500, UnknownOutcome),
        ("InternalFailure", 500, UnknownOutcome),
        ("ServiceUnavailable", 503, UnknownOutcome),
        ("", 502, UnknownOutcome),
        ("AccessDeniedException", 400, Refused),
        ("AuthorizationError", 403, Refused),
        ("UnrecognizedClientException", 400, Refused),
        ("ValidationException", 400, Refused),
        ("InvalidParameter", 400, Refused),
        ("ResourceNotFoundException", 400, Refused),
        ("ConditionalCheckFailedException", 400, Refused),
        ("", 400, Refused),
    ],
)
def test_an_answer_of_aws_means(code: str, status: int, expected: type[PortError]) -> None:
    error = aws.mapped(client_error(code, status))
    assert type(error) is expected
    assert code in str(error)


@pytest.mark.parametrize(
    "error, expected",
    [
        (ReadTimeoutError(endpoint_url=URL), UnknownOutcome),
        (ConnectionClosedError(endpoint_url=URL), UnknownOutcome),
        (HTTPClientError(error="x"), UnknownOutcome),
        (ResponseParserError("x"), UnknownOutcome),
        (TimeoutError(), UnknownOutcome),
        (ConnectionResetError(), UnknownOutcome),
        (EndpointConnectionError(endpoint_url=URL, error=ConnectionResetError()), UnknownOutcome),
        (EndpointConnectionError(endpoint_url=URL, error="x"), UnknownOutcome),
        (EndpointConnectionError(endpoint_url=URL, error=socket.gaierror()), Throttled),
        (ConnectTimeoutError(endpoint_url=URL), Throttled),
        (CredentialRetrievalError(provider="role", error_msg="x"), Throttled),
        (NoCredentialsError(), Refused),
        (NoRegionError(), Refused),
        (ParamValidationError(report="x"), Refused),
        (BeliefEnded(), BeliefEnded),
    ],
)
def test_a_failed_call_means(error: Exception, expected: type[PortError]) -> None:
    assert type(aws.mapped(error)) is expected


def test_a_long_message_is_cut() -> None:
    error = client_error("ValidationException")
    error.response["Error"]["Message"] = "x" * 10_000
    assert len(str(aws.mapped(ClientError(error.response, "PutItem")))) <= 200


async def test_the_cause_is_kept() -> None:
    error = client_error("Throttling")
    with pytest.raises(Throttled) as raised:
        async with aws.port_errors(5):
            raise error
    assert raised.value.__cause__ is error


async def test_a_call_beyond_its_limit_is_unknown() -> None:
    with pytest.raises(UnknownOutcome):
        async with aws.port_errors(0.001):
            await asyncio.Event().wait()


async def test_cancellation_stays_cancellation() -> None:
    entered = asyncio.Event()

    async def call() -> None:
        async with aws.port_errors(5):
            entered.set()
            await asyncio.Event().wait()

    task = asyncio.create_task(call())
    await entered.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_our_own_mistakes_stay_what_they_are() -> None:
    with pytest.raises(KeyError):
        async with aws.port_errors(5):
            raise KeyError("Item")


@pytest.mark.parametrize(
    "answer, expected",
    [
        pytest.param(hang_up, UnknownOutcome, id="closed without an answer"),
        pytest.param(reset, UnknownOutcome, id="reset after the request"),
        pytest.param(say(200, "{}", length=100), UnknownOutcome, id="answer breaks off"),
        pytest.param(say(500), UnknownOutcome, id="500"),
        pytest.param(say(400, '{"__type":"x#ThrottlingException"}'), Throttled, id="throttled"),
        pytest.param(say(400, '{"__type":"x#AccessDeniedException"}'), Refused, id="refused"),
    ],
)
async def test_what_the_wire_does_means(answer: Answer, expected: type[PortError]) -> None:
    async with faked(answer) as (clients, server):
        with pytest.raises(expected):
            async with aws.port_errors(5):
                await clients.log.get_item(TableName="t", Key={"channel": {"S": "c"}})
    assert server.requests == 1, "the log's client tries once"


async def test_a_refused_connection_is_known_not_to_have_happened() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))  # bound, but nobody listens
        url = f"http://127.0.0.1:{unused.getsockname()[1]}"
        async with aws.connect(region="eu-west-1", endpoint_url=url, session=SESSION) as clients:
            with pytest.raises(Throttled):
                async with aws.port_errors(5):
                    await clients.log.get_item(TableName="t", Key={"channel": {"S": "c"}})


@pytest.fixture
async def tls_clients() -> AsyncIterator[aws.AwsClients]:
    async with aws.connect(
        region="eu-west-1", endpoint_url="https://127.0.0.1:1", session=SESSION
    ) as clients:
        yield clients


async def test_every_client_has_its_pool_and_certificates_before_the_first_call(
    tls_clients: aws.AwsClients,
) -> None:
    clients: list[Any] = [getattr(tls_clients, name) for name in aws.AwsClients.__slots__]
    assert len({id(client) for client in clients}) == 5
    for client in clients:
        assert len(client._endpoint.http_session._sessions) == 1
        assert client.meta.config.max_pool_connections > 10


async def test_the_poll_client_outwaits_a_long_poll(tls_clients: aws.AwsClients) -> None:
    assert tls_clients.sqs_poll.meta.config.read_timeout > aws.POLL_WAIT_S
    assert tls_clients.sqs_poll.meta.config.retries["total_max_attempts"] == 1
    assert tls_clients.tables.meta.config.retries["total_max_attempts"] == aws.ATTEMPTS_MAX


async def test_the_other_clients_try_again() -> None:
    answers = iter([say(500), say(200, '{"Items": []}')])

    async def answer(writer: asyncio.StreamWriter) -> None:
        await next(answers)(writer)

    async with faked(answer) as (clients, server), aws.port_errors(20):
        assert (await clients.tables.scan(TableName="t"))["Items"] == []
    assert server.requests == 2
