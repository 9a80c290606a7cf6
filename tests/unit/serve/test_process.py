"""service/roomcast/serve/process.py: what the end of a node says when it cannot remove something.

Its start and end as a whole are in tests/integration.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from types import SimpleNamespace
from typing import Any

import pytest
from structlog.testing import capture_logs

from roomcast.hooks.calls import Hooks
from roomcast.ports import PortError, Rejected
from roomcast.serve import process as process_module
from roomcast.serve.process import NodeProcess
from roomcast.testing.memory import ManualClock
from tests.unit.worlds import DEADLINE_S


class Lease:
    """`abandoned`: the leases whose presence entries are left, as the lease was told."""

    def __init__(self, drop: Callable[[], Awaitable[None]]) -> None:
        self.drop = drop
        self.abandoned: list[list[str]] = []

    async def abandon(self, left_under: list[str]) -> None:
        self.abandoned.append(list(left_under))


async def refused() -> None:
    raise Rejected("no permission")


async def done() -> None:
    pass


@pytest.fixture
def process() -> Any:
    plan: Any = SimpleNamespace(clock=ManualClock(), node_id="n1")
    return NodeProcess(plan, asyncio.Event(), demo_urls=None)


async def test_a_queue_that_cannot_be_removed_is_told_and_left_to_the_reaper(process: Any) -> None:
    parts = SimpleNamespace(assembly=SimpleNamespace(listener=SimpleNamespace(close=refused)))
    lease = Lease(done)
    with capture_logs() as logs:
        await process._give_queue_back(parts)
        await process._give_lease_back(lease)
    assert [(line["event"], line["log_level"]) for line in logs] == [("queue_not_deleted", "error")]
    assert "no permission" in logs[0]["reason"]
    assert lease.abandoned == [[]], "an expired lease leads the reaper there"


async def test_a_lease_that_cannot_be_dropped_is_told(process: Any) -> None:
    with capture_logs() as logs:
        await process._give_lease_back(Lease(refused))
    assert [line["event"] for line in logs] == ["lease_not_dropped"]


async def test_work_that_does_not_end_in_time_is_told(
    process: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process_module, "FINISH_S", 0.01)
    with capture_logs() as logs:
        await process._finish(SimpleNamespace(finish=asyncio.Event().wait))
    assert [line["event"] for line in logs] == ["not_finished"]


async def test_presence_that_is_left_is_told_and_named_to_the_reaper(process: Any) -> None:
    presence = SimpleNamespace(is_clean=False, left_under=["n0"])
    lease = Lease(done)
    with capture_logs() as logs:
        process._note_presence_left(SimpleNamespace(presence=presence))
        await process._give_lease_back(lease)
    assert [line["event"] for line in logs] == ["presence_left_behind"]
    assert lease.abandoned == [["n0"]]


async def test_a_background_task_that_ends_by_itself_ends_the_node_as_a_failure(
    process: Any,
) -> None:
    async def broken() -> None:
        raise ValueError("a bug")

    with capture_logs() as logs:
        await process._beside(broken())
        async with asyncio.timeout(DEADLINE_S):
            await process._stop.wait()
    assert [(line["event"], line["log_level"]) for line in logs] == [
        ("background_task_ended", "critical")
    ]
    assert process.exit_code == 1
    await process.end()


# ---- the application's own start and stop


def applied(process: Any, **hooks: Any) -> Any:
    process._plan.hooks = Hooks(**hooks)
    return process


async def failing() -> None:
    raise OSError("no\ndatabase")


async def test_a_start_hook_that_raises_ends_the_start_in_one_line(process: Any) -> None:
    with pytest.raises(PortError, match=r"^hooks\.start: OSError: no database$"):
        await applied(process, start=failing, stop=done)._start_application()
    # What was not started is not stopped.
    with capture_logs() as logs:
        await process.end()
    assert logs == []


async def test_a_start_hook_that_hangs_ends_the_start(
    process: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process_module, "APPLICATION_START_S", 0.01)

    async def hang() -> None:
        await asyncio.Event().wait()

    with pytest.raises(PortError, match=r"^hooks\.start: not done within 0\.01 s$"):
        await applied(process, start=hang)._start_application()


async def test_a_stop_hook_holds_nobody_up(process: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process_module, "APPLICATION_STOP_S", 0.01)
    called: list[str] = []

    async def start() -> None:
        called.append("start")

    async def hang() -> None:
        called.append("stop")
        await asyncio.Event().wait()

    for stop in (hang, failing):
        await applied(process, start=start, stop=stop)._start_application()
    with capture_logs() as logs:
        await process.end()
    assert called == ["start", "start", "stop"]
    assert [line["event"] for line in logs] == ["stop_hook_failed", "stop_hook_failed"]
