"""What errors of boto3 and aioboto3 say of a transaction, told by their form."""

from __future__ import annotations

from typing import Any

import pytest
from botocore import exceptions
from botocore.parsers import ResponseParserError

from roomcast.transactions.verdict import Verdict, verdict, was_repeated
from tests.unit.transactions.tables import ClientError


@pytest.mark.parametrize(
    "error",
    [
        exceptions.ReadTimeoutError(endpoint_url="a"),
        exceptions.ConnectTimeoutError(endpoint_url="a"),
        exceptions.ConnectionClosedError(endpoint_url="a"),
        exceptions.EndpointConnectionError(endpoint_url="a"),
        exceptions.HTTPClientError(error="a"),
        exceptions.IncompleteReadError(actual_bytes=1, expected_bytes=2),
        exceptions.SSLError(endpoint_url="a", error="b"),
        ResponseParserError("a"),
        TimeoutError(),
        ConnectionResetError(),
        ClientError("InternalServerError", 500),
        ClientError("ServiceUnavailable", 503),
        ClientError("TransactionInProgressException"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_it_may_have_arrived(error: Exception) -> None:
    assert verdict(error) is Verdict.UNKNOWN


@pytest.mark.parametrize(
    "error",
    [
        exceptions.ParamValidationError(report="a"),
        exceptions.NoCredentialsError(),
        exceptions.NoRegionError(),
        AttributeError("transact_write_items"),
        ClientError("AccessDeniedException"),
        ClientError("ResourceNotFoundException"),
        ClientError("IdempotentParameterMismatchException"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_it_was_refused(error: Exception) -> None:
    assert verdict(error) is Verdict.REFUSED


def canceled(*codes: str) -> ClientError:
    reasons: list[Any] = [{"Code": code} for code in codes]
    return ClientError("TransactionCanceledException", CancellationReasons=reasons)


@pytest.mark.parametrize(
    "error",
    [
        canceled("None", "TransactionConflict"),
        canceled("ThrottlingError", "ProvisionedThroughputExceeded"),
        ClientError("ProvisionedThroughputExceededException"),
        ClientError("ThrottlingException"),
    ],
)
def test_it_may_be_tried_again(error: Exception) -> None:
    assert verdict(error) is Verdict.BUSY


@pytest.mark.parametrize(
    "error",
    [
        canceled("None", "ConditionalCheckFailed"),
        canceled("TransactionConflict", "ConditionalCheckFailed"),
        canceled("ValidationError"),
        canceled(),
        ClientError("TransactionCanceledException"),
    ],
)
def test_it_was_canceled(error: Exception) -> None:
    assert verdict(error) is Verdict.CANCELED


def test_how_often_the_client_sent_it() -> None:
    assert was_repeated(ClientError("ThrottlingException", retries=2))
    assert not was_repeated(ClientError("ThrottlingException"))
    assert not was_repeated(ConnectionResetError())
