"""`roomcast dev` as a process, and clients of it."""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, Final

import pytest

from tests.acceptance.compatibility import OPTION, Compatibility
from tests.acceptance.peers import PROTOBUF, JsPeer, Peer, PyPeer
from tests.acceptance.roomcast import Aws, Dev, Witness, roomcast

SECURED: Final = Path(__file__).with_name("secured.toml")

Token = Callable[..., str]
OpenPeer = Callable[..., Awaitable[Peer]]


def pytest_addoption(parser: pytest.Parser) -> None:
    """Known when pytest is started with this directory."""
    parser.addoption(
        OPTION,
        metavar="FILE",
        help="write what works with which SDK into FILE (docs/compatibility.md)",
    )


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(Compatibility(config), "compatibility")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """A failure comes with what the processes of the test said."""
    report = yield
    if report.failed:
        for name, value in getattr(item, "funcargs", {}).items():
            if isinstance(value, Dev):
                report.sections.append((f"stderr of {name}", value.report))
    return report


@contextmanager
def running(*arguments: str) -> Iterator[Dev]:
    """A `roomcast dev` that must end in order, and must not have complained."""
    dev = Dev(*arguments)
    try:
        dev.until_ready()
        yield dev
        dev.stop()
        assert dev.complaints == []
    finally:
        dev.close()


@pytest.fixture(scope="session")
def dev() -> Iterator[Dev]:
    """`roomcast dev` without a configuration, for all tests that break nothing of it."""
    with running() as started:
        yield started


@pytest.fixture(scope="session")
def secured() -> Iterator[Dev]:
    """`roomcast dev --config secured.toml`, for all tests of permissions,
    and those that meddle with its AWS.
    """
    with running("--config", str(SECURED)) as started:
        yield started


@pytest.fixture
def aws(request: pytest.FixtureRequest) -> Iterator[Aws]:
    """The AWS of `secured` where the test uses that, else of `dev`."""
    name = "secured" if "secured" in request.fixturenames else "dev"
    looked_at = Aws(request.getfixturevalue(name).aws_endpoint)
    yield looked_at
    looked_at.close()


@pytest.fixture
def witness(aws: Aws) -> Iterator[Witness]:
    standing_by = Witness(aws)
    yield standing_by
    standing_by.close()


@cache
def _token(*arguments: str) -> str:
    made = roomcast("token", *arguments)
    assert made.returncode == 0, made.stderr
    return made.stdout.strip()


@pytest.fixture
def token() -> Token:
    """What `roomcast token` prints for `dev`."""
    return lambda user, *options: _token("--user", user, *options)


@pytest.fixture
def secured_token() -> Token:
    """What `roomcast token` prints for `secured`."""
    return lambda user, *options: _token("--config", str(SECURED), "--user", user, *options)


@pytest.fixture
async def peer(request: pytest.FixtureRequest) -> AsyncIterator[OpenPeer]:
    """Opens clients, by SDK, URL and token. They are connected, unless `connected` says no."""
    opened: list[Peer] = []

    async def open_peer(
        sdk: str,
        url: str,
        token: str = "",
        *,
        fresh_tokens: Sequence[str] = (),
        data: Any = None,
        connected: bool = True,
        transports: Sequence[str] | None = None,
    ) -> Peer:
        protobuf = sdk.endswith(PROTOBUF)
        if sdk.startswith("js"):
            node = request.getfixturevalue("node")
            client: Peer = JsPeer(
                url,
                token,
                fresh_tokens,
                node=node,
                protobuf=protobuf,
                data=data,
                transports=transports,
            )
        else:
            client = PyPeer(url, token, fresh_tokens, protobuf=protobuf, data=data)
        opened.append(client)
        if connected:
            await client.connect()
        return client

    yield open_peer
    for client in opened:
        await client.close()


@pytest.fixture
def channel() -> str:
    """A name that no other test has."""
    return f"c-{secrets.token_hex(6)}"
