"""A node's talk with its machine's metadata and its Auto Scaling group, both in memory."""

from __future__ import annotations

import asyncio
from collections import Counter
from contextlib import AbstractAsyncContextManager

import pytest
import structlog
from structlog.testing import capture_logs

from roomcast.ec2 import lifecycle as lifecycle_module
from roomcast.ec2.lifecycle import RELEASE_FAILURES_MAX, Lifecycle
from roomcast.ec2.rules import (
    LAUNCH_ATTEMPTS_MAX,
    LAUNCH_PAUSE_FIRST_S,
    LAUNCH_PAUSE_MAX_S,
    LAUNCH_WAIT_S,
    Outlook,
    SpotNotice,
    TargetState,
)
from roomcast.ports import PortError, Rejected, Throttled, UnknownOutcome
from roomcast.testing.memory import ManualClock
from tests.unit.worlds import no_jitter, running, settled, until

LAUNCH = "launching"
TERMINATE = "terminating"
SERVES = Outlook(TargetState.IN_SERVICE)
ENDS = Outlook(TargetState.TERMINATED)


class World:
    """The metadata of a machine, its group, and a node that is told to stop. Pauses end at once."""

    def __init__(
        self, *, launch_hook: str = LAUNCH, terminate_hook: str = TERMINATE, group: bool = True
    ) -> None:
        self.id = "i-1"
        self.clock = ManualClock()
        self.now = SERVES
        self.broken: PortError | None = None
        self.looks = 0
        # Hooks at which the group waits for this machine, and what was asked of it.
        self.waiting: set[str] = set()
        self.calls: Counter[tuple[str, str]] = Counter()
        self.refuses: PortError | None = None
        self.stops = 0
        self.others: bool | PortError = False
        self.lifecycle = Lifecycle(
            self,
            self if group else None,
            self.clock,
            no_jitter,
            launch_hook=launch_hook,
            terminate_hook=terminate_hook,
            poll_s=0.0,
            stop=self,
            neighbours=self,
        )

    async def outlook(self) -> Outlook:
        self.looks += 1
        await asyncio.sleep(0)
        if self.broken is not None:
            raise self.broken
        return self.now

    async def complete(self, hook: str) -> bool:
        await self._call("complete", hook)
        waited = hook in self.waiting
        self.waiting.discard(hook)
        return waited

    async def heartbeat(self, hook: str) -> bool:
        await self._call("heartbeat", hook)
        return hook in self.waiting

    async def _call(self, name: str, hook: str) -> None:
        self.calls[name, hook] += 1
        await asyncio.sleep(0)
        if self.refuses is not None:
            raise self.refuses

    def set(self) -> None:
        self.stops += 1

    async def others_here(self) -> bool:
        await asyncio.sleep(0)
        if isinstance(self.others, PortError):
            raise self.others
        return self.others

    async def looked(self, times: int = 3) -> None:
        """Whatever is there to be seen has been seen."""
        seen = self.looks + times
        await until(lambda: self.looks >= seen)

    def running(self) -> AbstractAsyncContextManager[asyncio.Task[None]]:
        return running(self.lifecycle.run())


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lifecycle_module, "HEARTBEAT_S", 0.0)
    monkeypatch.setattr(lifecycle_module, "RELEASE_PAUSE_S", 0.0)
    # Loggers that are cached cannot be listened to.
    monkeypatch.setattr(lifecycle_module, "_log", structlog.get_logger())


# ---- while it serves


async def test_the_launch_hook_is_completed_once_it_serves() -> None:
    world = World()
    world.waiting.add(LAUNCH)
    async with world.running():
        await world.looked()
        assert not world.calls, "it does not serve yet"
        world.lifecycle.ready()
        await until(lambda: not world.waiting)
        await world.looked()
    assert world.calls == {("complete", LAUNCH): 1}
    assert world.stops == 0


async def test_a_group_that_does_not_wait_yet_is_asked_again() -> None:
    """The machine runs before its group comes to the hook."""
    world = World()
    async with world.running():
        world.lifecycle.ready()
        await world.looked(10)
        assert world.calls == {("complete", LAUNCH): 1}, "not before its time"
        world.waiting.add(LAUNCH)
        world.clock.advance(LAUNCH_PAUSE_FIRST_S)
        await until(lambda: not world.waiting)
        world.clock.advance(LAUNCH_PAUSE_MAX_S)
        await world.looked(10)
    assert world.calls == {("complete", LAUNCH): 2}


async def test_nobody_who_waits_is_success_too_after_a_while() -> None:
    """As for a process that is started again on a machine in service."""
    world = World()
    with capture_logs() as logs:
        async with world.running():
            world.lifecycle.ready()
            for _ in range(int(LAUNCH_WAIT_S / LAUNCH_PAUSE_MAX_S) + 10):
                await world.looked()
                world.clock.advance(LAUNCH_PAUSE_MAX_S)
            asked = world.calls["complete", LAUNCH]
            world.clock.advance(3600)
            await world.looked(10)
    assert LAUNCH_WAIT_S / LAUNCH_PAUSE_MAX_S < asked < LAUNCH_ATTEMPTS_MAX
    assert world.calls == {("complete", LAUNCH): asked}
    assert logs == []


async def test_without_a_group_or_a_hook_nothing_is_called() -> None:
    for world in (World(group=False), World(launch_hook="")):
        async with world.running():
            world.lifecycle.ready()
            await world.looked()
        assert not world.calls


async def test_a_launch_hook_that_cannot_be_completed_is_tried_again_and_then_given_up() -> None:
    world = World()
    world.refuses = Rejected("no")
    with capture_logs() as logs:
        async with world.running():
            world.lifecycle.ready()
            for attempts in range(1, LAUNCH_ATTEMPTS_MAX + 1):
                await until(lambda attempts=attempts: world.calls["complete", LAUNCH] == attempts)  # type: ignore[misc]
                await world.looked()
                assert world.calls["complete", LAUNCH] == attempts, "not before its time"
                world.clock.advance(LAUNCH_PAUSE_MAX_S)
            await world.looked()
            assert world.calls["complete", LAUNCH] == LAUNCH_ATTEMPTS_MAX
    assert [line["event"] for line in logs] == ["launch_hook_failed", "launch_hook_given_up"]


async def test_metadata_that_cannot_be_read_change_nothing_and_are_logged_once() -> None:
    world = World()
    world.broken = UnknownOutcome("no answer")
    with capture_logs() as logs:
        async with world.running():
            await world.looked(20)
            world.broken = Rejected("403")
            await world.looked(20)
            world.broken = None
            await world.looked(20)
    assert [line["event"] for line in logs] == [
        "instance_metadata_failed",
        "instance_metadata_failed",
        "instance_metadata_works_again",
    ]
    assert world.stops == 0


# ---- the end


@pytest.mark.parametrize(
    "outlook",
    [
        ENDS,
        Outlook(TargetState.WARMED),
        Outlook(TargetState.IN_SERVICE, SpotNotice("terminate", 0)),
        Outlook(TargetState.OTHER, SpotNotice("stop", 0)),
    ],
)
async def test_a_machine_that_is_to_end_ends_its_node_once(outlook: Outlook) -> None:
    world = World()
    async with world.running():
        world.lifecycle.ready()
        await world.looked()
        world.now = outlook
        await until(lambda: world.stops)
        # As the application does when it was told, and once more for the signal that comes later.
        world.lifecycle.drain()
        world.lifecycle.drain()
        looks = world.looks
        await until(lambda: world.calls["heartbeat", TERMINATE] > 5)
    assert world.stops == 1
    assert world.looks == looks


async def test_a_node_that_was_told_to_stop_keeps_the_group_waiting() -> None:
    world = World()
    async with world.running():
        await world.looked()
        world.lifecycle.drain()
        await until(lambda: world.calls["heartbeat", TERMINATE] > 5)
    assert world.stops == 0


async def test_heartbeats_that_fail_are_logged_once() -> None:
    world = World()
    world.refuses = Throttled("slow down")
    with capture_logs() as logs:
        async with world.running():
            world.lifecycle.drain()
            await until(lambda: world.calls["heartbeat", TERMINATE] > 20)
    assert [line["event"] for line in logs] == ["lifecycle_heartbeat_failed"]


async def test_without_a_hook_there_are_no_heartbeats() -> None:
    world = World(terminate_hook="")
    async with world.running():
        world.lifecycle.drain()
        await settled()
    assert not world.calls


async def test_the_machine_is_let_go_at_the_end() -> None:
    world = World()
    world.now = ENDS
    world.waiting.add(TERMINATE)
    await world.lifecycle.released()
    assert world.calls == {("complete", TERMINATE): 1}
    assert not world.waiting


async def test_a_machine_that_lives_on_is_not_waited_for() -> None:
    world = World()
    await world.lifecycle.released()
    assert world.calls == {("complete", TERMINATE): 1}


async def test_a_group_that_does_not_wait_yet_is_waited_for() -> None:
    """The load balancer has to let go of the machine first."""
    world = World()
    world.now = ENDS
    releasing = asyncio.create_task(world.lifecycle.released())
    await until(lambda: world.calls["complete", TERMINATE] > 3)
    assert not releasing.done()
    world.waiting.add(TERMINATE)
    await releasing
    assert not world.waiting


async def test_a_group_that_never_waits_is_left_after_a_while(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(lifecycle_module, "RELEASE_LEAVING_S", 0.05)
    world = World()
    world.now = ENDS
    with capture_logs() as logs:
        await asyncio.wait_for(world.lifecycle.released(), 5)
    assert [line["event"] for line in logs] == ["machine_not_let_go"]


@pytest.mark.parametrize("leaves", [True, False])
async def test_a_call_that_hangs_does_not_hold_the_end(
    leaves: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lifecycle_module, "RELEASE_LEAVING_S", 0.05)
    monkeypatch.setattr(lifecycle_module, "RELEASE_S", 0.05)
    world = World()
    world.now = ENDS if leaves else SERVES

    async def hang(name: str, hook: str) -> None:
        await asyncio.Event().wait()

    monkeypatch.setattr(world, "_call", hang)
    await asyncio.wait_for(world.lifecycle.released(), 5)


async def test_a_group_that_answers_errors_is_left_in_time() -> None:
    world = World()
    world.now, world.refuses = ENDS, Rejected("not allowed")
    with capture_logs() as logs:
        await asyncio.wait_for(world.lifecycle.released(), 5)
    assert world.calls == {("complete", TERMINATE): RELEASE_FAILURES_MAX}
    assert [line["event"] for line in logs] == ["terminate_hook_failed", "machine_not_let_go"]


async def test_an_error_is_tried_again() -> None:
    world = World()
    world.now, world.refuses = ENDS, Throttled("slow down")
    world.waiting.add(TERMINATE)
    releasing = asyncio.create_task(world.lifecycle.released())
    await until(lambda: world.calls["complete", TERMINATE])
    world.refuses = None
    await releasing
    assert not world.waiting


async def test_the_last_node_of_a_machine_lets_it_go() -> None:
    world = World()
    world.now = ENDS
    world.waiting.add(TERMINATE)
    world.others = True
    await world.lifecycle.released()
    assert not world.calls
    world.others = False
    await world.lifecycle.released()
    assert not world.waiting


async def test_not_knowing_of_others_it_lets_the_machine_go() -> None:
    world = World()
    world.now = ENDS
    world.waiting.add(TERMINATE)
    world.others = UnknownOutcome("no answer")
    await world.lifecycle.released()
    assert not world.waiting


async def test_a_new_machine_on_its_way_to_the_warm_pool_waits_at_the_launch_hook() -> None:
    world = World()
    world.now = Outlook(TargetState.WARMED)
    world.waiting.add(LAUNCH)
    await world.lifecycle.released()
    assert not world.waiting


async def test_at_the_end_it_looks_once_more() -> None:
    """Told to stop by a signal: that the machine ends was perhaps not seen."""
    world = World()
    async with world.running():
        await world.looked()
        world.lifecycle.drain()
        world.now = ENDS
        releasing = asyncio.create_task(world.lifecycle.released())
        await until(lambda: world.calls["complete", TERMINATE] > 3)
        world.waiting.add(TERMINATE)
        await releasing


async def test_metadata_that_are_gone_at_the_end_are_remembered() -> None:
    world = World()
    async with world.running():
        world.now = ENDS
        await until(lambda: world.stops)
        world.broken = UnknownOutcome("no answer")
        releasing = asyncio.create_task(world.lifecycle.released())
        await until(lambda: world.calls["complete", TERMINATE] > 3)
        world.waiting.add(TERMINATE)
        await releasing


async def test_a_spot_instance_drains_in_the_time_that_is_left() -> None:
    world = World()
    world.now = Outlook(
        TargetState.IN_SERVICE, SpotNotice("terminate", world.clock.now_ms() + 45_000)
    )
    assert world.lifecycle.drain_s(300) == 300
    async with world.running():
        await until(lambda: world.stops)
    assert world.lifecycle.drain_s(300) == 15
    assert world.lifecycle.drain_s(5) == 5


async def test_what_works_again_is_told_once() -> None:
    world = World()
    world.refuses = Throttled("slow down")
    world.waiting.add(LAUNCH)
    with capture_logs() as logs:
        async with world.running():
            world.lifecycle.ready()
            await until(lambda: world.calls["complete", LAUNCH] == 1)
            await world.looked()
            world.refuses = None
            world.clock.advance(LAUNCH_PAUSE_MAX_S)
            await until(lambda: not world.waiting)
            await world.looked()
            world.refuses = Throttled("slow down")
            world.lifecycle.drain()
            await until(lambda: world.calls["heartbeat", TERMINATE] > 2)
            world.refuses = None
            beats = world.calls["heartbeat", TERMINATE]
            await until(lambda: world.calls["heartbeat", TERMINATE] > beats + 2)
    assert [line["event"] for line in logs] == [
        "launch_hook_failed",
        "launch_hook_works_again",
        "launch_hook_completed",
        "lifecycle_heartbeat_failed",
        "lifecycle_heartbeat_works_again",
    ]
