"""How the clients are set up: pools, certificates, retries."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from roomcast.aws import clients as aws
from roomcast.aws import errors
from tests.unit.aws.fakes import SESSION, faked, say


@pytest.fixture
async def tls_clients() -> AsyncIterator[aws.AwsClients]:
    async with aws.connect(
        region="eu-west-1", endpoint_url="https://127.0.0.1:1", session=SESSION
    ) as clients:
        yield clients


async def test_every_client_has_its_pool_and_certificates_before_the_first_call(
    tls_clients: aws.AwsClients,
) -> None:
    clients: list[Any] = [
        client
        for name in aws.AwsClients.__slots__
        if (client := getattr(tls_clients, name)) is not None
    ]
    assert len({id(client) for client in clients}) == 5, (
        "the others are made where they are configured"
    )
    for client in clients:
        assert len(client._endpoint.http_session._sessions) == 1
        assert client.meta.config.max_pool_connections > 10


async def test_the_poll_client_outwaits_a_long_poll(tls_clients: aws.AwsClients) -> None:
    assert tls_clients.sqs_poll.meta.config.read_timeout > errors.POLL_WAIT_S
    assert tls_clients.sqs_poll.meta.config.retries["total_max_attempts"] == 1
    assert tls_clients.tables.meta.config.retries["total_max_attempts"] == errors.ATTEMPTS_MAX


async def test_the_other_clients_try_again() -> None:
    answers = iter([say(500), say(200, '{"Items": []}')])

    async def answer(writer: asyncio.StreamWriter) -> None:
        await next(answers)(writer)

    async with faked(answer) as (clients, server), errors.port_errors(20):
        assert (await clients.tables.scan(TableName="t"))["Items"] == []
    assert server.requests == 2
