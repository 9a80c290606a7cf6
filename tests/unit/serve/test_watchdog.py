"""Signs of life for systemd: to the socket and in the time that it names, and to nobody else."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from roomcast.serve.watchdog import under_watchdog

SIGN = b"WATCHDOG=1"
OFTEN_US = "4000"


@pytest.fixture(params=["path", "abstract", "path with the sign of abstract ones"])
def systemd(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[socket.socket, str]]:
    """A socket that is told, and its name in NOTIFY_SOCKET."""
    name = str(tmp_path / ("notify" if request.param == "path" else "user@1000"))
    if request.param == "abstract":
        name = f"@roomcast-{os.getpid()}-{tmp_path.name}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as told:
        told.bind("\0" + name[1:] if request.param == "abstract" else name)
        told.setblocking(False)
        yield told, name


async def test_systemd_is_told_as_long_as_the_event_loop_turns(
    systemd: tuple[socket.socket, str],
) -> None:
    told, name = systemd
    loop = asyncio.get_running_loop()

    async def work() -> int:
        async with asyncio.timeout(10):
            return len([await loop.sock_recv(told, 100) == SIGN for _ in range(3)])

    environ = {"NOTIFY_SOCKET": name, "WATCHDOG_USEC": OFTEN_US, "WATCHDOG_PID": str(os.getpid())}
    assert await under_watchdog(work(), environ) == 3
    assert len(asyncio.all_tasks()) == 1, "nobody tells any more"


@pytest.mark.parametrize(
    "change",
    [
        {"NOTIFY_SOCKET": ""},
        {"WATCHDOG_USEC": ""},
        {"WATCHDOG_USEC": "0"},
        {"WATCHDOG_USEC": "soon"},
        # As a child of the process that it was given to has it.
        {"WATCHDOG_PID": "1"},
    ],
)
async def test_nobody_is_told_who_does_not_wait_for_it(
    systemd: tuple[socket.socket, str], change: dict[str, str]
) -> None:
    told, name = systemd

    async def work() -> int:
        # A sign would be sent in the first of these turns.
        for _ in range(10):
            await asyncio.sleep(0)
        return 7

    environ = {"NOTIFY_SOCKET": name, "WATCHDOG_USEC": OFTEN_US} | change
    assert await under_watchdog(work(), environ) == 7
    with pytest.raises(BlockingIOError):
        told.recv(100)


async def test_a_socket_that_is_not_there_ends_nothing_and_is_told_of_once(
    systemd: tuple[socket.socket, str], tmp_path: Path
) -> None:
    told, name = systemd
    loop = asyncio.get_running_loop()

    async def work() -> int:
        async with asyncio.timeout(10):
            # Meanwhile there are as many tries at the other one.
            for _ in range(5):
                await loop.sock_recv(told, 100)
        return 7

    there = {"NOTIFY_SOCKET": name, "WATCHDOG_USEC": OFTEN_US}
    gone = there | {"NOTIFY_SOCKET": str(tmp_path / "nowhere")}
    with capture_logs() as logs:
        assert await under_watchdog(under_watchdog(work(), gone), there) == 7
    assert [each["event"] for each in logs] == ["watchdog_not_told"]
