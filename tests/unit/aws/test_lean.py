"""The short way asks as the SDK asks, and fails as the SDK fails."""

from __future__ import annotations

import asyncio
import itertools
import json
import math
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any, Final
from urllib.parse import urlencode

import aioboto3
import aiohttp
import botocore
import pytest
from aiobotocore.credentials import AioRefreshableCredentials
from aiohttp.client_reqrep import ConnectionKey
from botocore.auth import SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials
from botocore.exceptions import ClientError
from botocore.parsers import ResponseParserError
from botocore.retries.standard import ExponentialBackoff
from hypothesis import given, settings
from hypothesis import strategies as st

from roomcast.aws import clients as clients_module
from roomcast.aws import lean as lean_module
from roomcast.aws.clients import AwsClients, connect
from roomcast.aws.errors import ATTEMPTS_MAX, mapped, port_errors
from roomcast.aws.lean import LeanClient, form_encoded
from roomcast.ports import PortError, Rejected, Throttled, UnknownOutcome
from tests.unit.aws.fakes import REGION, SESSION, Answer, faked, hang_up, reset, say

QUEUE_URL: Final = "https://sqs.eu-west-1.amazonaws.com/1/queue"
TOPIC_ARN: Final = "arn:aws:sns:eu-west-1:1:topic"
TEMPORARY: Final = aioboto3.Session(
    aws_access_key_id="key",
    aws_secret_access_key="secret",
    aws_session_token="token",
    region_name=REGION,
)
FIPS: Final = {"AWS_USE_FIPS_ENDPOINT": "true"}
# The operations, as the ports call them.
CALLS: Final[dict[str, Callable[[AwsClients], Awaitable[Any]]]] = {
    "put_item": lambda clients: clients.log.put_item(
        TableName="channels",
        Item={"channel": {"S": 'rä"\u2028\U0001f600\x00'}, "offset": {"N": "1"}},
        ConditionExpression="attribute_not_exists(#offset)",
        ExpressionAttributeNames={"#offset": "offset"},
        ReturnValuesOnConditionCheckFailure="ALL_OLD",
    ),
    "put_item of presence": lambda clients: clients.tables.put_item(
        TableName="presence",
        Item={"key": {"S": "channel#räume"}, "member": {"S": "n#c"}, "write": {"N": "17"}},
        ConditionExpression="attribute_not_exists(#write) OR #write <= :write",
        ExpressionAttributeNames={"#write": "write"},
        ExpressionAttributeValues={":write": {"N": "17"}},
    ),
    "delete_item": lambda clients: clients.tables.delete_item(
        TableName="presence",
        Key={"key": {"S": "channel#räume"}, "member": {"S": "n#c"}},
        ConditionExpression="attribute_not_exists(#write) OR #write <= :write",
        ExpressionAttributeNames={"#write": "write"},
        ExpressionAttributeValues={":write": {"N": "18"}},
    ),
    "query": lambda clients: clients.log.query(
        TableName="channels",
        KeyConditionExpression="#channel = :channel",
        ExpressionAttributeNames={"#channel": "channel"},
        ExpressionAttributeValues={":channel": {"S": "room"}},
        ScanIndexForward=False,
        Limit=1,
        ConsistentRead=True,
    ),
    "receive_message": lambda clients: clients.sqs_poll.receive_message(
        QueueUrl=QUEUE_URL,
        MaxNumberOfMessages=10,
        WaitTimeSeconds=20,
        MessageSystemAttributeNames=["SentTimestamp"],
    ),
    "delete_message_batch": lambda clients: clients.sqs.delete_message_batch(
        QueueUrl=QUEUE_URL, Entries=[{"Id": "0", "ReceiptHandle": "receipt+/="}]
    ),
    "publish": lambda clients: clients.sns.publish(
        TopicArn=TOPIC_ARN, Message='{"v":1,"text":"ä😀 &=+%"}'
    ),
}
# Of the SDK only: the number of the attempt, and a name of the call for it.
OF_ATTEMPTS: Final = {"amz-sdk-request", "amz-sdk-invocation-id"}
CONDITION_FAILED: Final = json.dumps({
    "__type": "com.amazonaws.dynamodb.v20120810#ConditionalCheckFailedException",
    "message": "The conditional request failed",
    "Item": {"channel": {"S": "room"}},
})  # fmt: skip
TOLD: Final = (
    '<PublishResponse xmlns="http://sns.amazonaws.com/doc/2010-03-31/">'
    "<PublishResult><MessageId>m</MessageId></PublishResult>"
    "<ResponseMetadata><RequestId>r</RequestId></ResponseMetadata></PublishResponse>"
)


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Attempts follow each other without a pause."""
    monkeypatch.setattr(ExponentialBackoff, "delay_amount", lambda *_: 0)


async def raised(call: Awaitable[Any]) -> PortError | None:
    try:
        async with port_errors(5):
            await call
    except PortError as error:
        return error
    return None


# ---- requests


async def test_a_request_is_the_sdk_s() -> None:
    """Byte for byte, but for when it was signed and what counts attempts."""
    requests = []
    for lean in (True, False):
        async with faked(say(200, "{}"), lean=lean, session=TEMPORARY) as (clients, server):
            for call in CALLS.values():
                await raised(call(clients))
        requests.append([
            (first, _comparable(headers), body) for first, headers, body in server.seen
        ])  # fmt: skip
    for short, long in zip(*requests, strict=True):
        assert short == long
        assert short[1]["x-amz-security-token"] == "token"
    assert len(requests[0]) == len(CALLS)


def _comparable(headers: dict[str, str]) -> dict[str, str]:
    kept = {name: value for name, value in headers.items() if name not in OF_ATTEMPTS}
    del kept["x-amz-date"], kept["host"]
    # Which features the SDK was asked for so far, by the letter.
    kept["user-agent"] = re.sub(" m/[^ ]+", "", kept["user-agent"])
    _, signed, _ = kept["authorization"].split(", ")
    names = signed.removeprefix("SignedHeaders=").split(";")
    kept["authorization"] = ";".join(name for name in names if name not in OF_ATTEMPTS)
    return kept


@pytest.mark.parametrize("session", [SESSION, TEMPORARY])
async def test_a_request_is_signed_as_it_is_sent(
    session: aioboto3.Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The SDK's own signer, told what arrived, comes to the same signature."""
    async with faked(say(200, "{}"), session=session) as (clients, server):
        for call in CALLS.values():
            await raised(call(clients))
    credentials = await (await session.get_credentials()).get_frozen_credentials()
    for _, headers, body in server.seen:
        credential, signed, _ = headers["authorization"].split(", ")
        _, _, region, service, _ = credential.split("/")
        names = signed.removeprefix("SignedHeaders=").split(";")
        assert {"host", "x-amz-date", "content-type"} <= set(names)
        arrived = AWSRequest(
            method="POST",
            url=f"http://{headers['host']}/",
            data=body,
            headers={each: headers[each] for each in names},
        )
        now = datetime.strptime(headers["x-amz-date"], "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC)
        with monkeypatch.context() as patched:
            patched.setattr("botocore.auth.get_current_datetime", lambda now=now: now)
            SigV4Auth(credentials, service, region).add_auth(arrived)
        assert arrived.headers["Authorization"] == headers["authorization"]
    assert len(server.seen) == len(CALLS)


@pytest.mark.parametrize(
    "region, variables, host",
    [
        ("eu-west-1", {}, "dynamodb.eu-west-1.amazonaws.com"),
        ("cn-north-1", {}, "dynamodb.cn-north-1.amazonaws.com.cn"),
        ("us-gov-west-1", FIPS, "dynamodb.us-gov-west-1.amazonaws.com"),
        ("us-east-1", FIPS, "dynamodb-fips.us-east-1.amazonaws.com"),
        ("eu-west-1", {"AWS_USE_DUALSTACK_ENDPOINT": "true"}, "dynamodb.eu-west-1.api.aws"),
        ("eu-west-1", {"AWS_ENDPOINT_URL_DYNAMODB": "https://a.example:8443"}, "a.example:8443"),
        ("eu-west-1", {"AWS_ENDPOINT_URL": "https://[::1]:1/"}, "[::1]:1"),
    ],
)
async def test_a_request_goes_where_the_sdk_sends_it(
    region: str, variables: dict[str, str], host: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    session = aioboto3.Session(aws_access_key_id="test", aws_secret_access_key="test")
    async with connect(region=region, session=session) as clients:
        found = await operation(clients)._found({"TableName": "channels"}, None)
    assert found is not None
    assert (str(found.url), found.signed["Host"]) == (f"https://{host}/", host)
    assert (found.region, found.service) == (region, "dynamodb")


async def test_an_endpoint_with_an_account_in_it_goes_with_the_credentials(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    session = aioboto3.Session(
        aws_access_key_id="test",
        aws_secret_access_key="test",
        aws_account_id="123456789012",
        region_name=REGION,
    )
    async with connect(session=session) as clients:
        log = operation(clients)
        found = await log._found({"TableName": "channels"}, credentials := await log._credentials())
        assert found is not None
        assert found.url.host == f"123456789012.ddb.{REGION}.amazonaws.com"
        # Found out once for the same credentials, and again for others.
        assert await log._found({"TableName": "channels"}, credentials) is found
        monkeypatch.setattr(
            log._client._request_signer, "_credentials", Credentials("other", "secret")
        )
        assert await log._found({"TableName": "channels"}, "others") is not found


def operation(clients: AwsClients) -> lean_module._Operation:
    found: Any = clients.log.put_item
    operation: lean_module._Operation = found.__self__
    return operation


# ---- the SDK's way instead


def is_lean(clients: AwsClients) -> list[bool]:
    return [
        isinstance(client, LeanClient)
        for client in (clients.log, clients.sqs, clients.sqs_poll, clients.sns, clients.tables)
    ]


async def test_the_calls_that_are_made_most_go_the_short_way() -> None:
    async with faked(say(200)) as (clients, _):
        assert is_lean(clients) == [True] * 5
    async with faked(say(200), lean=False) as (clients, _):
        assert is_lean(clients) == [False] * 5


@pytest.mark.parametrize("exempt, short", [("", False), ("127.0.0.1", True)])
async def test_behind_a_proxy_everything_goes_through_the_sdk(
    exempt: str, short: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://proxy.example:3128")
    monkeypatch.setenv("NO_PROXY", exempt)
    async with faked(say(200)) as (clients, _):
        assert is_lean(clients) == [short] * 5


async def test_another_signature_is_the_sdk_s(monkeypatch: pytest.MonkeyPatch) -> None:
    async with faked(say(200)) as (clients, server):
        signer = operation(clients)._client._request_signer
        monkeypatch.setattr(signer, "_signature_version", botocore.UNSIGNED)
        await CALLS["put_item"](clients)
    [(_, headers, _)] = server.seen
    assert "authorization" not in headers


# ---- answers


async def test_an_answer_is_the_sdk_s(lean: bool) -> None:
    items = [{"channel": {"S": "ä😀"}, "offset": {"N": "1"}}]
    body = json.dumps({"Items": items, "Count": 1, "LastEvaluatedKey": None})
    async with faked(say(200, body, request_id="R"), lean=lean) as (clients, _):
        answer = await CALLS["query"](clients)
    assert answer["Items"] == items
    assert "LastEvaluatedKey" not in answer, "null is as good as nothing"
    assert answer["ResponseMetadata"]["RequestId"] == "R"
    assert answer["ResponseMetadata"]["HTTPStatusCode"] == 200


async def test_an_answer_of_sns_is_the_sdk_s(lean: bool) -> None:
    async with faked(say(200, TOLD), lean=lean) as (clients, _):
        answer = await CALLS["publish"](clients)
    assert (answer["MessageId"], answer["ResponseMetadata"]["RequestId"]) == ("m", "r")


async def test_a_failed_condition_brings_the_item(lean: bool) -> None:
    async with faked(say(400, CONDITION_FAILED), lean=lean) as (clients, _):
        with pytest.raises(ClientError) as error:
            await CALLS["put_item"](clients)
    assert error.value.response["Item"] == {"channel": {"S": "room"}}
    assert error.type.__name__ == "ConditionalCheckFailedException"
    assert error.value.operation_name == "PutItem"


def failing(kind: str, status: int = 400) -> Answer:
    return say(status, json.dumps({"__type": f"com.amazonaws#{kind}", "message": "told so"}))


@pytest.mark.usefixtures("at_once")
@pytest.mark.parametrize(
    "answer, meaning",
    [
        pytest.param(hang_up, UnknownOutcome, id="closed without an answer"),
        pytest.param(reset, UnknownOutcome, id="reset after the request"),
        pytest.param(say(200, "{}", length=100), UnknownOutcome, id="answer breaks off"),
        pytest.param(say(500, "<html>"), UnknownOutcome, id="500 of somebody else"),
        pytest.param(failing("InternalServerError", 500), UnknownOutcome, id="500"),
        pytest.param(say(503, ""), UnknownOutcome, id="503"),
        pytest.param(say(429), Throttled, id="429"),
        pytest.param(failing("ThrottlingException"), Throttled, id="throttled"),
        pytest.param(
            failing("ProvisionedThroughputExceededException"), Throttled, id="out of units"
        ),
        pytest.param(failing("TransactionConflictException"), Throttled, id="transaction"),
        pytest.param(failing("ExpiredTokenException"), Throttled, id="expired"),
        pytest.param(failing("RequestTimeTooSkewed", 403), Throttled, id="skewed"),
        pytest.param(failing("InvalidSignatureException"), Throttled, id="signature"),
        pytest.param(failing("AccessDeniedException"), Rejected, id="denied"),
        pytest.param(failing("ValidationException"), Rejected, id="invalid"),
        pytest.param(say(403, "<html>"), Rejected, id="403 of somebody else"),
        pytest.param(say(400, ""), Rejected, id="400 without a word"),
        pytest.param(say(400, "[1]"), UnknownOutcome, id="400 that cannot be read"),
    ],
)
async def test_a_failure_means_what_it_means_through_the_sdk(
    answer: Answer, meaning: type[PortError], lean: bool
) -> None:
    async with faked(answer, lean=lean) as (clients, _):
        for name in ("put_item", "receive_message", "delete_message_batch"):
            assert type(await raised(CALLS[name](clients))) is meaning


@pytest.mark.parametrize("body", ["[]", "1", "<html>", "\udcff", "[" * 100_000, '{"Items":'])
async def test_a_success_that_cannot_be_read_is_none(body: str) -> None:
    """Through the SDK it is one, for whoever does not look into it."""
    async with faked(say(200, body)) as (clients, _):
        with pytest.raises(ResponseParserError) as error:
            await CALLS["put_item"](clients)
    assert type(mapped(error.value)) is UnknownOutcome


async def test_an_answer_may_have_what_strict_decoders_refuse() -> None:
    body = r'{"Items": [{"data": {"S": "\ud83d"}}], "Count": 1e999, "Scanned": NaN}'
    async with faked(say(200, body), lean=True) as (clients, _):
        answer = await CALLS["query"](clients)
    assert answer["Items"] == [{"data": {"S": "\ud83d"}}]
    assert answer["Count"] == math.inf


async def test_a_success_may_be_empty(lean: bool) -> None:
    async with faked(say(200, "", request_id="R"), lean=lean) as (clients, _):
        answer = await CALLS["put_item"](clients)
    assert answer["ResponseMetadata"]["RequestId"] == "R"


@pytest.mark.parametrize("status", [301, 302, 307, 308])
async def test_a_redirect_is_not_followed(status: int) -> None:
    """Nothing that is signed goes to whoever a captive portal names."""

    async def answer(writer: asyncio.StreamWriter) -> None:
        host, port = writer.get_extra_info("sockname")
        writer.write(
            f"HTTP/1.1 {status} Told\r\nLocation: http://{host}:{port}/elsewhere\r\n"
            "Content-Length: 0\r\nConnection: close\r\n\r\n".encode()
        )

    async with faked(answer) as (clients, server):
        assert type(await raised(CALLS["put_item"](clients))) is UnknownOutcome
        assert server.requests == 1


async def test_a_queue_that_is_gone_is_known_by_its_old_name(lean: bool) -> None:
    """SQS tells the name of before it spoke JSON in a header, if it is asked to."""

    async def answer(writer: asyncio.StreamWriter) -> None:
        body = '{"__type":"com.amazonaws.sqs#QueueDoesNotExist","message":"gone"}'
        writer.write(
            "HTTP/1.1 400 Told\r\nContent-Type: application/x-amz-json-1.0\r\n"
            "x-amzn-query-error: AWS.SimpleQueueService.NonExistentQueue;Sender\r\n"
            f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n{body}".encode()
        )

    async with faked(answer, lean=lean) as (clients, server):
        with pytest.raises(ClientError) as error:
            await CALLS["receive_message"](clients)
        assert error.value.response["Error"]["Code"] == "AWS.SimpleQueueService.NonExistentQueue"
        assert error.type is clients.sqs.exceptions.QueueDoesNotExist
    [(_, headers, _)] = server.seen
    assert headers["x-amzn-query-mode"] == "true"


def sending(size: int, *, told: bool) -> Answer:
    """`told`: the length is said before."""

    async def answer(writer: asyncio.StreamWriter) -> None:
        framing = f"Content-Length: {size}" if told else "Transfer-Encoding: chunked"
        writer.write(f"HTTP/1.1 200 Told\r\n{framing}\r\nConnection: close\r\n\r\n".encode())
        body = b"{" + b" " * (size - 2) + b"}"
        writer.write(body if told else b"%x\r\n%b\r\n0\r\n\r\n" % (size, body))
        await writer.drain()

    return answer


@pytest.mark.parametrize("told", [True, False])
async def test_an_answer_has_a_bound(told: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lean_module, "ANSWER_BYTES_MAX", 100_000)
    async with faked(sending(100_001, told=told)) as (clients, _):
        error = await raised(CALLS["query"](clients))
        assert type(error) is UnknownOutcome
        assert "100000" in str(error)
    async with faked(sending(100_000, told=told)) as (clients, _):
        assert "ResponseMetadata" in await CALLS["query"](clients)


@pytest.mark.parametrize("told", [True, False])
async def test_an_answer_to_the_sdk_has_the_same(
    told: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One without end would fill the memory until the time of the call is over."""
    monkeypatch.setattr(clients_module, "ANSWER_BYTES_MAX", 100_000)
    async with faked(sending(100_001, told=told)) as (clients, _):
        error = await raised(clients.log.scan(TableName="channels"))
        assert type(error) is UnknownOutcome
    async with faked(sending(100_000, told=told)) as (clients, _):
        assert "ResponseMetadata" in await clients.log.scan(TableName="channels")


# ---- attempts, time-outs, credentials


@pytest.mark.usefixtures("at_once")
@pytest.mark.parametrize(
    "answer, of_sns",
    [
        (say(503, ""), ATTEMPTS_MAX),
        (hang_up, ATTEMPTS_MAX),
        # No answer of SNS, which speaks XML.
        (failing("ThrottlingException"), 1),
    ],
)
async def test_a_call_is_tried_as_often_as_through_the_sdk(
    answer: Answer, of_sns: int, lean: bool
) -> None:
    attempts = []
    async with faked(answer, lean=lean) as (clients, server):
        for call in CALLS.values():
            before = server.requests
            assert await raised(call(clients)) is not None
            attempts.append(server.requests - before)
    assert dict(zip(CALLS, attempts, strict=True)) == {
        "put_item": 1,
        "put_item of presence": ATTEMPTS_MAX,
        "delete_item": ATTEMPTS_MAX,
        "query": 1,
        "receive_message": 1,
        "delete_message_batch": ATTEMPTS_MAX,
        "publish": of_sns,
    }


@pytest.mark.usefixtures("at_once")
async def test_an_attempt_that_succeeds_is_the_last_and_each_is_signed_anew(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    answers = iter([hang_up, say(500), say(200, '{"Successful":[]}')])

    async def answer(writer: asyncio.StreamWriter) -> None:
        await next(answers)(writer)

    days = iter(range(1, 4))
    monkeypatch.setattr(
        "botocore.auth.get_current_datetime", lambda: datetime(2026, 1, next(days), tzinfo=UTC)
    )
    async with faked(answer) as (clients, server):
        assert (await CALLS["delete_message_batch"](clients))["Successful"] == []
    assert [headers["x-amz-date"][:8] for _, headers, _ in server.seen] == [
        "20260101",
        "20260102",
        "20260103",
    ]


@pytest.mark.usefixtures("at_once")
async def test_attempts_have_a_budget(lean: bool) -> None:
    """The SDK's: when nothing succeeds, calls are soon tried once only."""
    async with faked(say(500), lean=lean) as (clients, server):
        for _ in range(60):
            await raised(CALLS["delete_message_batch"](clients))
        before = server.requests
        await raised(CALLS["delete_message_batch"](clients))
    assert server.requests == before + 1


@pytest.mark.usefixtures("at_once")
async def test_an_attempt_that_succeeds_gives_back_what_it_took_of_the_budget(lean: bool) -> None:
    answers = itertools.cycle([say(500), say(200, '{"Successful":[]}')])

    async def answer(writer: asyncio.StreamWriter) -> None:
        await next(answers)(writer)

    async with faked(answer, lean=lean) as (clients, server):
        # More than the budget of 500: 5 an attempt, and 1 comes back for each success in any case.
        for _ in range(130):
            await CALLS["delete_message_batch"](clients)
    assert server.requests == 260


@asynccontextmanager
async def silent() -> AsyncIterator[tuple[str, asyncio.Queue[asyncio.Event]]]:
    """A server that takes requests and says nothing. Of each, an event for its connection's end."""
    taken: asyncio.Queue[asyncio.Event] = asyncio.Queue()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        closed = asyncio.Event()
        taken.put_nowait(closed)
        await reader.read()
        closed.set()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", taken


async def test_an_answer_that_does_not_come_is_given_up(
    lean: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(clients_module, "READ_TIMEOUT_S", 0.05)
    async with (
        silent() as (url, _),
        connect(region=REGION, endpoint_url=url, session=SESSION, lean=lean) as clients,
    ):
        error = await raised(CALLS["put_item"](clients))
    assert type(error) is UnknownOutcome
    assert "ReadTimeoutError" in str(error)


async def test_a_call_that_is_cancelled_gives_its_connection_up(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its answer would otherwise be taken for the next one's."""
    monkeypatch.setattr(clients_module, "LOG_CONNECTIONS_MAX", 1)
    async with (
        silent() as (url, taken),
        connect(region=REGION, endpoint_url=url, session=SESSION) as clients,
    ):
        for _ in range(2):
            call = asyncio.ensure_future(CALLS["put_item"](clients))
            # The only place of the pool is free again for the second one.
            closed = await taken.get()
            call.cancel()
            with pytest.raises(asyncio.CancelledError):
                await call
            await closed.wait()


async def test_connections_are_kept() -> None:
    connections = 0

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connections
        connections += 1
        while head := await reader.readline():
            length = 0
            while head != b"\r\n":
                if head.lower().startswith(b"content-length:"):
                    length = int(head.split(b":")[1])
                head = await reader.readline()
            await reader.readexactly(length)
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}")
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    async with server, connect(region=REGION, endpoint_url=url, session=SESSION) as clients:
        for _ in range(5):
            await CALLS["put_item"](clients)
    assert connections == 1


KEY: Final = ConnectionKey("host", 443, True, True, None, None, None)


@pytest.mark.parametrize(
    "error, meaning",
    [
        (aiohttp.ConnectionTimeoutError("Connection timeout to host"), Throttled),
        (aiohttp.ClientConnectorError(KEY, OSError(111, "refused")), Throttled),
        (aiohttp.ClientConnectorDNSError(KEY, OSError(-2, "no such name")), Throttled),
        (aiohttp.ClientConnectorCertificateError(KEY, ValueError("expired")), Throttled),
        (aiohttp.ClientConnectorSSLError(KEY, OSError(1, "handshake")), Throttled),
        (aiohttp.SocketTimeoutError("Timeout on reading data from socket"), UnknownOutcome),
        (aiohttp.ServerDisconnectedError(), UnknownOutcome),
        (aiohttp.ClientPayloadError("breaks off"), UnknownOutcome),
        (aiohttp.ClientOSError(104, "reset"), UnknownOutcome),
        (TimeoutError(), UnknownOutcome),
        (RuntimeError("Session is closed"), UnknownOutcome),
    ],
)
def test_an_error_of_aiohttp_means(error: Exception, meaning: type[PortError]) -> None:
    of_the_sdk = lean_module._as_of_the_sdk(error, "https://host")
    assert type(mapped(of_the_sdk)) is meaning
    assert of_the_sdk.__cause__ is error


async def test_after_the_end_nothing_is_sent() -> None:
    async with faked(say(200)) as (clients, server):
        pass
    assert type(await raised(CALLS["put_item"](clients))) is UnknownOutcome
    assert server.requests == 0


def renewed(*keys: str, life_s: float = 60) -> AioRefreshableCredentials:
    """Credentials that are renewed at each call: each of `keys` ends within the SDK's margin."""
    left = iter(keys)

    async def metadata() -> dict[str, str]:
        return {
            "access_key": next(left),
            "secret_key": "secret",
            "token": "token",
            "expiry_time": (datetime.now(UTC) + timedelta(seconds=life_s)).isoformat(),
        }

    return AioRefreshableCredentials(
        "first", "secret", "token", datetime.now(UTC), metadata, "test"
    )


async def test_credentials_are_those_of_the_moment() -> None:
    async with faked(say(200)) as (clients, server):
        signer = operation(clients)._client._request_signer
        signer._credentials = renewed("second", "third")
        for _ in range(2):
            await CALLS["put_item"](clients)
    used = [headers["authorization"].split("=")[1].split("/")[0] for _, headers, _ in server.seen]
    assert used == ["second", "third"]


async def test_credentials_that_are_still_expired_are_no_refusal(lean: bool) -> None:
    async with faked(say(200), lean=lean) as (clients, server):
        signer = clients.log._request_signer
        signer._credentials = renewed("second", life_s=-60)
        assert type(await raised(CALLS["put_item"](clients))) is Throttled
    assert server.requests == 0


async def test_without_credentials_nothing_is_sent(lean: bool) -> None:
    async with faked(say(200), lean=lean) as (clients, server):
        clients.log._request_signer._credentials = None
        assert type(await raised(CALLS["put_item"](clients))) is Rejected
    assert server.requests == 0


@settings(max_examples=200)
@given(st.text(st.sampled_from(' +%{}[]",:~._-aZ9ä😀\n\t=&/?') | st.characters(codec="utf-8")))
def test_a_form_is_encoded_as_the_sdk_does(text: str) -> None:
    fields = {"Message": text, "Structure of it": 1}
    assert form_encoded(fields) == urlencode(fields, doseq=True).encode()


def test_a_form_of_many_kinds_of_letters_is_encoded_as_the_sdk_does() -> None:
    text = "".join(map(chr, range(0x4E00, 0x4E00 + 2000)))
    assert form_encoded({"Message": text}) == urlencode({"Message": text}).encode()
