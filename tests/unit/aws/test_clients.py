"""How the clients are set up: pools, certificates, retries."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import aioboto3
import pytest
from botocore.exceptions import NoCredentialsError
from botocore.utils import ContainerMetadataFetcher

from roomcast.aws import clients as aws
from roomcast.aws import errors
from roomcast.aws.calls import Calls
from roomcast.ports import PortError
from tests.unit.aws.fakes import SESSION, faked, say
from tests.unit.worlds import settled, until


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


async def test_calls_of_the_log_wait_before_the_sdk_prepares_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(aws, "LOG_CONNECTIONS_MAX", 2)
    go_on, prepared = asyncio.Event(), 0

    async def answered(**_: Any) -> tuple[Any, dict[str, Any]]:
        nonlocal prepared
        prepared += 1
        await go_on.wait()
        return SimpleNamespace(status_code=200), {"Items": []}

    async with aws.connect(
        region="eu-west-1", endpoint_url="http://127.0.0.1:1", session=SESSION, calls=Calls()
    ) as clients:
        clients.log.meta.events.register("before-call", answered)
        calling = [asyncio.ensure_future(clients.log.scan(TableName="t")) for _ in range(5)]
        await until(lambda: prepared == 2)
        await settled()
        assert prepared == 2
        go_on.set()
        await asyncio.gather(*calling)
        assert prepared == 5


async def test_the_other_clients_try_again() -> None:
    answers = iter([say(500), say(200, '{"Items": []}')])

    async def answer(writer: asyncio.StreamWriter) -> None:
        await next(answers)(writer)

    async with faked(answer) as (clients, server), errors.port_errors(20):
        assert (await clients.tables.scan(TableName="t"))["Items"] == []
    assert server.requests == 2


@pytest.mark.parametrize(
    "variables, text, says",
    [
        ({"AWS_PROFILE": "nobodys"}, "", "nobodys"),
        ({}, "[default\n", "config"),
        ({"AWS_CA_BUNDLE": "/nonexistent/bundle"}, "", "No such file"),
        ({}, "[default]\ncredential_process = /nonexistent/program\n", "No such file"),
    ],
)
async def test_settings_of_aws_tools_that_are_wrong_are_refused_by_name(
    variables: dict[str, str],
    text: str,
    says: str,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    (tmp_path / "config").write_text(text)
    environment = {
        "AWS_CONFIG_FILE": str(tmp_path / "config"),
        "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
        "AWS_EC2_METADATA_DISABLED": "true",
    }
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in (environment | variables).items():
        monkeypatch.setenv(name, value)
    with pytest.raises(PortError, match=f"settings or credentials of AWS: .*{says}"):
        async with aws.connect(region="eu-west-1", endpoint_url="https://127.0.0.1:1"):
            pass


@pytest.mark.parametrize("kind", ["task", "instance"])
async def test_credentials_without_end_are_not_kept(
    kind: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The SDK has sessions of its own for them, of which ours know nothing."""
    taken, most = [0], 32 * 1024 * 1024
    monkeypatch.setattr(aws, "ANSWER_BYTES_MAX", 64 * 1024)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        sent = 0
        writer.write(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n")
        with suppress(ConnectionError):
            while sent < most:
                writer.write(b"x" * 64 * 1024)
                await writer.drain()
                sent += 64 * 1024
        taken.append(sent)
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/"
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setattr(ContainerMetadataFetcher, "SLEEP_TIME", 0)
    if kind == "task":
        monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        monkeypatch.setenv("AWS_CONTAINER_CREDENTIALS_FULL_URI", url)
    else:
        monkeypatch.setenv("AWS_EC2_METADATA_SERVICE_ENDPOINT", url)
    async with server:
        with pytest.raises((PortError, NoCredentialsError)):
            async with aws.connect(region="eu-west-1", session=aioboto3.Session()) as clients:
                await clients.tables.list_tables()
    assert 0 < max(taken) < most, "but for what the kernel takes"
