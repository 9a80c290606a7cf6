"""Errors of the SDK, from instances and from a server that misbehaves."""

from __future__ import annotations

import asyncio
import socket

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

from roomcast.aws import errors
from roomcast.aws.channel_table import DynamoChannelTable
from roomcast.aws.clients import connect
from roomcast.aws.leases import DynamoLeases
from roomcast.aws.queue import SqsInstanceQueue
from roomcast.aws.topic import SnsTopic
from roomcast.delivery.ports import Gone
from roomcast.log.ports import TailExpired
from roomcast.ports import PortError, Rejected, Throttled, UnknownOutcome
from roomcast.testing.memory import ManualClock
from tests.contract.items import head, log_item
from tests.unit.aws.fakes import SESSION, Answer, client_error, faked, hang_up, reset, say

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
        ("AccessDeniedException", 400, Rejected),
        ("AuthorizationError", 403, Rejected),
        ("UnrecognizedClientException", 400, Throttled),
        ("ValidationException", 400, Rejected),
        ("InvalidParameter", 400, Rejected),
        ("ResourceNotFoundException", 400, Rejected),
        ("ConditionalCheckFailedException", 400, Rejected),
        ("", 400, Rejected),
    ],
)
def test_an_answer_of_aws_means(code: str, status: int, expected: type[PortError]) -> None:
    error = errors.mapped(client_error(code, status))
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
        (NoCredentialsError(), Rejected),
        (NoRegionError(), Rejected),
        (ParamValidationError(report="x"), Rejected),
        (TailExpired(), TailExpired),
    ],
)
def test_a_failed_call_means(error: Exception, expected: type[PortError]) -> None:
    assert type(errors.mapped(error)) is expected


def test_a_long_message_is_cut() -> None:
    error = client_error("ValidationException")
    error.response["Error"]["Message"] = "x" * 10_000
    assert len(str(errors.mapped(ClientError(error.response, "PutItem")))) <= 200


async def test_the_cause_is_kept() -> None:
    error = client_error("Throttling")
    with pytest.raises(Throttled) as raised:
        async with errors.port_errors(5):
            raise error
    assert raised.value.__cause__ is error


async def test_credentials_that_were_renewed_and_are_expired_still_come_right_again() -> None:
    """The SDK's word for it is a RuntimeError, before anything is signed."""
    with pytest.raises(Throttled):
        async with errors.port_errors(5):
            raise RuntimeError(
                "Credentials were refreshed, but the refreshed credentials are still expired."
            )
    with pytest.raises(RuntimeError, match="a mistake"):
        async with errors.port_errors(5):
            raise RuntimeError("a mistake of ours")


async def test_a_call_beyond_its_limit_is_unknown() -> None:
    with pytest.raises(UnknownOutcome):
        async with errors.port_errors(0.001):
            await asyncio.Event().wait()


async def test_cancellation_stays_cancellation() -> None:
    entered = asyncio.Event()

    async def call() -> None:
        async with errors.port_errors(5):
            entered.set()
            await asyncio.Event().wait()

    task = asyncio.create_task(call())
    await entered.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_our_own_mistakes_stay_what_they_are() -> None:
    with pytest.raises(AssertionError):
        async with errors.port_errors(5):
            raise AssertionError("a mistake of ours")


@pytest.mark.parametrize("status", [200, 400])
@pytest.mark.parametrize(
    "body", ["[]", "null", '"x"', "1", "\udcff", "[" * 10_000, '{"__type":7}', "{}"]
)
async def test_an_answer_that_is_none_is_no_fault_of_the_node(
    status: int, body: str, lean: bool
) -> None:
    """It would end the task that asked, and with that the node."""
    async with faked(say(status, body), lean=lean) as (clients, _):
        with pytest.raises(PortError):
            await DynamoLeases(clients.log, "nodes").all()
        with pytest.raises(PortError):
            await DynamoChannelTable(clients.log, "channels", "keys", ManualClock()).newest("room")


@pytest.mark.parametrize("failed", ["5", "[5]", '[{"SenderFault":false,"Id":"9"}]', '[{"Id":"0"}]'])
async def test_what_was_not_deleted_may_be_nonsense(failed: str, lean: bool) -> None:
    async with faked(say(200, f'{{"Failed":{failed}}}'), lean=lean) as (clients, _):
        queue = SqsInstanceQueue(
            control=clients.sqs,
            poll=clients.sqs_poll,
            sns=clients.sns,
            topic_arn="arn:aws:sns:eu-west-1:123456789012:topic",
            tags=dict,
        )
        queue._queue_url = "http://127.0.0.1/1/queue"
        with pytest.raises(UnknownOutcome):
            await queue.delete(["receipt"])


@pytest.mark.parametrize("body", ["", "{}", "<html>Welcome</html>", "OK"])
async def test_a_success_that_aws_did_not_answer_is_none(
    body: str, lean: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever stands between answers 200: nothing may be taken for written, nor for not there."""
    monkeypatch.setattr(errors, "AWS_DOMAINS", ("127.0.0.1",))
    async with faked(say(200, body, request_id=""), lean=lean) as (clients, server):
        table = DynamoChannelTable(clients.log, "channels", "keys", ManualClock())
        queue = SqsInstanceQueue(
            control=clients.sqs,
            poll=clients.sqs_poll,
            sns=clients.sns,
            topic_arn="arn:aws:sns:eu-west-1:123456789012:topic",
            tags=dict,
        )
        queue._queue_url = "http://127.0.0.1/1/queue"
        for call in (
            table.put_item(log_item(1), ManualClock().now_ms() + 1),
            table.put_head(head("v1"), None),
            table.head("room"),
            table.key("key"),
            SnsTopic(clients.sns, "arn:aws:sns:eu-west-1:123456789012:topic").publish("x"),
            # Answered at once and empty, it would be asked again at once.
            queue.receive(),
            queue.delete(["receipt"]),
        ):
            with pytest.raises(UnknownOutcome):
                await call
    assert server.requests >= 7


async def test_an_emulator_need_not_give_requests_an_id() -> None:
    async with faked(say(200, "{}", request_id="")) as (clients, _):
        table = DynamoChannelTable(clients.log, "channels", "keys", ManualClock())
        assert await table.head("room") is None


@pytest.mark.parametrize(
    "region, host",
    [
        ("eu-west-1", "https://dynamodb.eu-west-1.amazonaws.com"),
        ("cn-north-1", "https://dynamodb.cn-north-1.amazonaws.com.cn"),
    ],
)
async def test_aws_s_own_endpoints_are_known(region: str, host: str) -> None:
    async with connect(region=region, endpoint_url=None, session=SESSION) as clients:
        assert clients.log.meta.endpoint_url == host
    assert errors._is_of_aws(host)
    assert errors._is_of_aws("https://vpce-1-2.sns.eu-west-1.vpce.amazonaws.com")
    assert not errors._is_of_aws("http://127.0.0.1:4566")
    assert not errors._is_of_aws("https://amazonaws.com.example")


@pytest.mark.parametrize(
    "answer, expected",
    [
        pytest.param(hang_up, UnknownOutcome, id="closed without an answer"),
        pytest.param(reset, UnknownOutcome, id="reset after the request"),
        pytest.param(say(200, "{}", length=100), UnknownOutcome, id="answer breaks off"),
        pytest.param(say(500), UnknownOutcome, id="500"),
        pytest.param(say(400, '{"__type":"x#ThrottlingException"}'), Throttled, id="throttled"),
        pytest.param(say(400, '{"__type":"x#AccessDeniedException"}'), Rejected, id="refused"),
    ],
)
async def test_what_the_wire_does_means(answer: Answer, expected: type[PortError]) -> None:
    async with faked(answer) as (clients, server):
        with pytest.raises(expected):
            async with errors.port_errors(5):
                await clients.log.get_item(TableName="t", Key={"channel": {"S": "c"}})
    assert server.requests == 1, "the log's client tries once"


async def test_a_refused_connection_is_known_not_to_have_happened() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))  # bound, but nobody listens
        url = f"http://127.0.0.1:{unused.getsockname()[1]}"
        async with connect(region="eu-west-1", endpoint_url=url, session=SESSION) as clients:
            with pytest.raises(Throttled):
                async with errors.port_errors(5):
                    await clients.log.get_item(TableName="t", Key={"channel": {"S": "c"}})
