"""Nothing that goes wrong inside a run stays unseen, and what is right is no mishap."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from functools import partial
from typing import Any

import pytest
import structlog

from tests.simulation import clockwork
from tests.simulation.mishaps import Mishaps

_log = structlog.get_logger(__name__)


def mishaps_of(main: Coroutine[Any, Any, None]) -> list[str]:
    mishaps = Mishaps()
    with mishaps.collected():
        clockwork.run(main, mishaps)
    return mishaps.found


def fail() -> None:
    raise RuntimeError("on purpose")


async def fail_later() -> None:
    await asyncio.sleep(1)
    fail()


async def wait_alone() -> None:
    await asyncio.get_running_loop().create_future()


def test_what_is_right_is_no_mishap() -> None:
    async def main() -> None:
        task = asyncio.ensure_future(fail_later())
        results = await asyncio.gather(task, return_exceptions=True)
        assert isinstance(results[0], RuntimeError)
        cancelled = asyncio.ensure_future(wait_alone())
        await asyncio.sleep(1)
        cancelled.cancel()
        _log.warning("anything")
        _log.error("queue_gone")

    assert mishaps_of(main()) == []


def test_time_passes_without_waiting() -> None:
    async def main() -> None:
        await asyncio.sleep(86_400)
        assert asyncio.get_running_loop().time() == 86_400

    assert mishaps_of(main()) == []


def test_a_callback_that_fails_is_seen() -> None:
    async def main() -> None:
        asyncio.get_running_loop().call_later(1, fail)
        await asyncio.sleep(2)

    [found] = mishaps_of(main())
    assert "on purpose" in found
    assert "test_mishaps.py" in found


@pytest.mark.parametrize("is_held", [True, False])
def test_a_task_that_fails_and_that_nobody_looks_at_is_seen(is_held: bool) -> None:
    held: list[asyncio.Task[None]] = []

    async def main() -> None:
        task = asyncio.ensure_future(fail_later())
        if is_held:
            held.append(task)
        del task
        await asyncio.sleep(2)

    [found] = mishaps_of(main())
    assert "on purpose" in found


def test_a_task_that_nobody_holds_is_seen() -> None:
    async def main() -> None:
        asyncio.ensure_future(wait_alone())  # noqa: RUF006  # on purpose
        await asyncio.sleep(2)

    [found] = mishaps_of(main())
    assert "destroyed" in found


def test_a_task_that_fails_when_it_is_cancelled_is_seen() -> None:
    held: list[asyncio.Task[None]] = []

    async def stubborn() -> None:
        try:
            await wait_alone()
        finally:
            fail()

    async def main() -> None:
        held.append(asyncio.ensure_future(stubborn()))
        await asyncio.sleep(2)

    [found] = mishaps_of(main())
    assert "on purpose" in found


def test_a_background_task_that_ends_is_seen() -> None:
    mishaps = Mishaps()

    async def main() -> None:
        for name, work in {
            "good": wait_alone(),
            "done": asyncio.sleep(1),
            "failed": fail_later(),
        }.items():
            task: asyncio.Task[None] = asyncio.get_running_loop().create_task(work)
            task.add_done_callback(partial(mishaps.background_task_ended, name))
            held.append(task)
        await asyncio.sleep(2)

    held: list[asyncio.Task[None]] = []
    clockwork.run(main(), mishaps)
    done, failed = sorted(mishaps.found)
    assert "done ended by itself" in done
    assert "failed ended by itself: RuntimeError" in failed


def test_an_error_log_is_seen() -> None:
    async def main() -> None:
        _log.error("append_broken", channel="room")
        _log.critical("worse")
        try:
            fail()
        except RuntimeError:
            _log.exception("worst")

    broken, worse, worst = mishaps_of(main())
    assert "append_broken" in broken
    assert "'worse'" in worse
    assert "'worst'" in worst


def test_a_coroutine_that_is_never_awaited_is_seen() -> None:
    async def main() -> None:
        wait_alone()  # type: ignore[unused-coroutine]

    [found] = mishaps_of(main())
    assert "never awaited" in found


def test_to_wait_for_ever_is_an_end() -> None:
    with pytest.raises(clockwork.Stuck):
        mishaps_of(wait_alone())


def test_logs_go_where_they_went_before() -> None:
    before = structlog.get_config()
    mishaps_of(asyncio.sleep(1))
    assert structlog.get_config() == before
