"""The instance metadata service over HTTP: tokens, answers of every kind,
and machines that have none.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import structlog
from aiohttp import web
from structlog.testing import capture_logs

from roomcast.ec2 import instance_metadata
from roomcast.ec2.instance_metadata import (
    ANSWER_BYTES_MAX,
    DEFAULT_ENDPOINT,
    TOKEN_EARLY_S,
    TOKEN_TTL_S,
    InstanceMetadata,
    says_ec2,
    this_machine,
)
from roomcast.ec2.rules import Outlook, SpotNotice, TargetState
from roomcast.ports import PortError, Rejected, Throttled, UnknownOutcome
from roomcast.testing.memory import ManualClock
from tests.fakes.ec2 import FakeEc2, FakeMachine, fake_ec2

ID = "i-0123456789abcdef0"


@pytest.fixture
async def ec2() -> AsyncIterator[FakeEc2]:
    async with fake_ec2() as fake:
        yield fake


@pytest.fixture
async def machine(ec2: FakeEc2) -> FakeMachine:
    return await ec2.launch()


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
async def metadata(machine: FakeMachine, clock: ManualClock) -> AsyncIterator[InstanceMetadata]:
    async with this_machine(machine.endpoint + "/", clock) as found:
        assert found is not None
        yield found


@asynccontextmanager
async def answering(
    handler: Callable[[web.Request], Awaitable[web.StreamResponse]],
) -> AsyncIterator[str]:
    """Something at the address that answers everything with `handler`."""
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", handler)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    await runner.cleanup()


async def test_a_machine_is_known_by_its_id(
    machine: FakeMachine, metadata: InstanceMetadata
) -> None:
    assert metadata.id == machine.id


@pytest.mark.parametrize(
    "target, notice, outlook",
    [
        ("InService", "", Outlook(TargetState.IN_SERVICE)),
        ("Terminated", "", Outlook(TargetState.TERMINATED)),
        ("Warmed:Stopped", "", Outlook(TargetState.WARMED)),
        ("", "", Outlook(TargetState.OTHER)),
        (
            "InService",
            '{"action":"terminate","time":"2023-11-14T22:13:20Z"}',
            Outlook(TargetState.IN_SERVICE, SpotNotice("terminate", 1_700_000_000_000)),
        ),
    ],
)
async def test_what_is_about_to_happen(
    machine: FakeMachine, metadata: InstanceMetadata, target: str, notice: str, outlook: Outlook
) -> None:
    machine.target, machine.notice = target, notice
    assert await metadata.outlook() == outlook


async def test_a_token_serves_until_shortly_before_its_end(
    machine: FakeMachine, metadata: InstanceMetadata, clock: ManualClock
) -> None:
    await metadata.outlook()
    clock.advance(TOKEN_TTL_S - TOKEN_EARLY_S - 1)
    await metadata.outlook()
    assert machine.tokens_given == 1
    clock.advance(1)
    await metadata.outlook()
    assert machine.tokens_given == 2


async def test_a_token_that_is_void_is_replaced(
    machine: FakeMachine, metadata: InstanceMetadata
) -> None:
    machine.forget_tokens()
    assert await metadata.outlook() == Outlook(TargetState.IN_SERVICE)
    assert machine.tokens_given == 2


@pytest.mark.parametrize(
    "status, error",
    [
        (500, UnknownOutcome),
        (503, UnknownOutcome),
        (429, Throttled),
        (403, Rejected),
        (302, Rejected),
    ],
)
async def test_answers_that_say_nothing(
    machine: FakeMachine, metadata: InstanceMetadata, status: int, error: type[PortError]
) -> None:
    machine.broken = status
    with pytest.raises(error):
        await metadata.outlook()
    machine.broken = 0
    assert await metadata.outlook() == Outlook(TargetState.IN_SERVICE)


async def test_a_token_that_is_never_taken_is_an_error(clock: ManualClock) -> None:
    asked: list[str] = []

    async def handler(request: web.Request) -> web.Response:
        asked.append(request.method)
        return web.Response(text="token") if request.method == "PUT" else web.Response(status=401)

    async with answering(handler) as endpoint, this_machine(endpoint, clock) as found:
        assert found is None
    again = ["GET", "PUT", "GET"]
    assert asked == ["PUT", *(again * instance_metadata.PROBES_MAX)]


@pytest.mark.parametrize(
    "token",
    ["", "a b", "a\nb", "ü", "x" * 1025, "x" * (ANSWER_BYTES_MAX + 1)],
    ids=lambda each: each[:4],
)
async def test_what_is_no_token_goes_into_no_header(clock: ManualClock, token: str) -> None:
    asked: list[str] = []

    async def handler(request: web.Request) -> web.Response:
        asked.append(request.method)
        return web.Response(text=token)

    async with answering(handler) as endpoint, this_machine(endpoint, clock) as found:
        assert found is None
    assert set(asked) == {"PUT"}


@pytest.mark.parametrize("text", ["", "i-", "i-0123456789abcdef0\nX: y", "ip-10-0-0-1", "<html>"])
async def test_something_else_at_the_address_is_no_machine(clock: ManualClock, text: str) -> None:
    """Another cloud answers there too."""

    async def handler(request: web.Request) -> web.Response:
        return web.Response(text="token" if request.method == "PUT" else text)

    async with answering(handler) as endpoint, this_machine(endpoint, clock) as found:
        assert found is None


async def test_an_answer_without_end_is_not_read_to_its_end(clock: ManualClock) -> None:
    sent = 0

    async def handler(request: web.Request) -> web.StreamResponse:
        nonlocal sent
        if request.method == "PUT":
            return web.Response(text="token")
        response = web.StreamResponse()
        await response.prepare(request)
        while True:
            await response.write(b"i" * 65_536)
            sent += 65_536

    async with answering(handler) as endpoint, this_machine(endpoint, clock) as found:
        assert found is None
    assert sent < 100 * 1024 * 1024


async def test_a_service_that_does_not_answer_holds_up_nobody(
    clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(instance_metadata, "CALL_LIMIT_S", 0.05)
    monkeypatch.setattr(instance_metadata, "_log", structlog.get_logger())
    release = asyncio.Event()

    async def handler(request: web.Request) -> web.Response:
        await release.wait()
        return web.Response()

    with capture_logs() as logs:
        async with answering(handler) as endpoint:
            async with asyncio.timeout(5), this_machine(endpoint, clock) as found:
                assert found is None
            release.set()
    assert [line["event"] for line in logs] == ["instance_metadata_unreachable"]


async def test_a_service_that_comes_late_is_found(
    machine: FakeMachine, clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A machine whose network is just coming up: it fails at once, and would again at once."""
    monkeypatch.setattr(instance_metadata, "CALL_LIMIT_S", 0.1)
    time = asyncio.get_running_loop().time
    began_s, asked_s = time(), list[float]()

    async def handler(request: web.Request) -> web.Response:
        asked_s.append(time())
        if len(asked_s) == 1:
            return web.Response(status=503)
        return web.Response(text="token" if request.method == "PUT" else ID)

    async with answering(handler) as endpoint, this_machine(endpoint, clock) as found:
        assert found is not None
        assert found.id == ID
    # From before the first attempt: on a busy machine it is late itself where it is answered.
    assert asked_s[1] - began_s >= 0.1


async def test_a_service_that_vanishes_is_an_unknown_outcome(
    ec2: FakeEc2, metadata: InstanceMetadata
) -> None:
    await ec2.stop()
    with pytest.raises(UnknownOutcome):
        await metadata.outlook()


# ---- who is asked at all


async def test_without_an_address_nobody_is_asked(clock: ManualClock) -> None:
    async with this_machine("", clock) as found:
        assert found is None


async def test_a_machine_that_is_not_of_ec2_asks_nobody_and_does_not_wait(
    clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(instance_metadata, "says_ec2", lambda: False)
    monkeypatch.setattr("aiohttp.ClientSession", lambda **_: pytest.fail("a session was opened"))
    for endpoint in (DEFAULT_ENDPOINT, DEFAULT_ENDPOINT + "/"):
        async with this_machine(endpoint, clock) as found:
            assert found is None


async def test_a_machine_of_ec2_is_asked_at_the_usual_address(
    machine: FakeMachine, clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(instance_metadata, "says_ec2", lambda: True)
    monkeypatch.setattr(instance_metadata, "DEFAULT_ENDPOINT", machine.endpoint)
    async with this_machine(machine.endpoint, clock) as found:
        assert found is not None


@pytest.mark.parametrize(
    "files, expected",
    [
        ({}, False),
        ({"devices/virtual/dmi/id/sys_vendor": "Amazon EC2\n"}, True),
        ({"devices/virtual/dmi/id/sys_vendor": "QEMU\n"}, False),
        (
            {
                "devices/virtual/dmi/id/sys_vendor": "Xen\n",
                "hypervisor/uuid": "ec2e1916-9099-7caf\n",
            },
            True,
        ),
        (
            {"devices/virtual/dmi/id/sys_vendor": "Xen\n", "hypervisor/uuid": "45b2c1d0-9099\n"},
            False,
        ),
        ({"devices/virtual/dmi/id/sys_vendor": "\xff"}, False),
    ],
)
def test_a_machine_says_whether_it_is_of_ec2(
    tmp_path: Path, files: dict[str, str], expected: bool
) -> None:
    for name, text in files.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="latin-1")
    assert says_ec2(tmp_path) is expected


def test_the_look_at_this_machine_is_short() -> None:
    since_s = time.monotonic()
    says_ec2()
    assert time.monotonic() - since_s < 1
