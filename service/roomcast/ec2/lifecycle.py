"""Connects a node to Auto Scaling: reports readiness, drains with the machine, then releases it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from typing import Final

import structlog

from roomcast.ec2.ports import Machine, NodesHere, ScalingGroup, StopRequest
from roomcast.ec2.rules import LaunchHook, Outlook, TargetState, drain_within_s, reason_to_drain
from roomcast.ports import Clock, PortError

__all__ = [
    "HEARTBEAT_S",
    "RELEASE_FAILURES_MAX",
    "RELEASE_LEAVING_S",
    "RELEASE_PAUSE_S",
    "RELEASE_S",
    "Lifecycle",
]

# A hook waits for at least 30 s. The group is told well before that to wait longer.
HEARTBEAT_S: Final = 20.0
# The time for releasing the machine at the end of a process: if the machine goes on living, and if
# it does not. The second is longer than a load balancer takes to deregister a machine without
# connections. Only after that does the group wait at its hook.
RELEASE_S: Final = 5.0
RELEASE_LEAVING_S: Final = 60.0
# The pause between two attempts to release the machine, and the number of attempts that may fail.
RELEASE_PAUSE_S: Final = 2.0
RELEASE_FAILURES_MAX: Final = 3
# Checks and heartbeats come early by up to this part of their interval, so that machines drift
# apart.
_JITTER: Final = 0.2

_log = structlog.get_logger(__name__)


class Lifecycle:
    """Reads the machine's metadata every `poll_s` seconds, and reports to its Auto Scaling group.

    `stop` is set once, when the node has to end. If another node of this machine still holds a
    lease, that node releases the machine. Several nodes of a machine may report the same, and the
    group takes it once.
    """

    def __init__(
        self,
        machine: Machine,
        group: ScalingGroup | None,
        clock: Clock,
        random: Callable[[], float],
        *,
        launch_hook: str,
        terminate_hook: str,
        poll_s: float,
        stop: StopRequest,
        neighbours: NodesHere,
    ) -> None:
        """`group` None, or a hook "" = no hook waits for this node."""
        self._machine = machine
        self._group = group
        self._clock = clock
        self._random = random
        self._launch_hook = launch_hook
        self._terminate_hook = terminate_hook
        self._poll_s = poll_s
        self._stop = stop
        self._neighbours = neighbours
        self._launch = LaunchHook()
        self._outlook = Outlook()
        self._serves = False
        self._ends = False
        self._wake = asyncio.Event()
        # Present failures by operation. Each is logged once, not at every attempt.
        self._failing: dict[str, type[PortError]] = {}

    def ready(self) -> None:
        """The node serves: the machine may come into service."""
        self._serves = True
        self._wake.set()

    def drain(self) -> None:
        """The node ends, for whatever reason: the group should wait for it. Idempotent."""
        if not self._ends:
            self._ends = True
            self._wake.set()

    def drain_s(self, configured_s: float) -> float:
        """The seconds over which to close the clients.

        Fewer than configured when the machine ends before.
        """
        return drain_within_s(configured_s, self._outlook, self._clock.now_ms())

    async def run(self) -> None:
        """Reads the metadata and, from `drain` on, sends heartbeats. Runs until cancelled."""
        while not self._ends:
            await self._look()
            await self._pause(self._poll_s)
        while True:
            await self._heartbeat()
            await self._pause(HEARTBEAT_S)

    async def released(self) -> None:
        """Releases the machine. To be called once the node has given back everything that it held.

        Bounded in time. Failures are logged.
        """
        if self._group is None:
            return
        # The state at the beginning of the drain may be outdated: `run` no longer reads it.
        with suppress(PortError):
            self._outlook = await self._machine.outlook()
        is_leaving = self._outlook.target in (TargetState.TERMINATED, TargetState.WARMED)
        let_go = False
        with suppress(TimeoutError):
            async with asyncio.timeout(RELEASE_LEAVING_S if is_leaving else RELEASE_S):
                let_go = await self._let_go(self._group, is_leaving)
        if is_leaving and not let_go:
            # Then the hook's own time-out releases the machine, or the reaper does.
            _log.error("machine_not_let_go", instance=self._machine.id)

    # ---- while the node serves

    async def _look(self) -> None:
        try:
            self._outlook = await self._machine.outlook()
        except PortError as error:
            self._failed("instance_metadata", error)
            return
        self._worked("instance_metadata")
        if reason := reason_to_drain(self._outlook):
            _log.warning("node_has_to_end", reason=reason, instance=self._machine.id)
            self.drain()
            self._stop.set()
        elif self._serves and self._launch.is_due(self._outlook.target, self._clock.monotonic_s()):
            await self._complete_launch()

    async def _complete_launch(self) -> None:
        if self._group is None or not self._launch_hook:
            self._launch.done()
            return
        try:
            waited = await self._group.complete(self._launch_hook)
        except PortError as error:
            self._failed("launch_hook", error)
            self._launch.failed(self._clock.monotonic_s())
            if self._launch.is_given_up:
                _log.error("launch_hook_given_up", hook=self._launch_hook, reason=str(error))
            return
        self._worked("launch_hook")
        if not waited:
            self._launch.unwanted(self._clock.monotonic_s())
        else:
            self._launch.done()
            _log.info("launch_hook_completed", hook=self._launch_hook, instance=self._machine.id)

    # ---- while the node ends

    async def _heartbeat(self) -> None:
        if self._group is None or not self._terminate_hook:
            return
        try:
            await self._group.heartbeat(self._terminate_hook)
        except PortError as error:
            self._failed("lifecycle_heartbeat", error)
        else:
            self._worked("lifecycle_heartbeat")

    async def _let_go(self, group: ScalingGroup, is_leaving: bool) -> bool:
        """Completes the hook. Returns whether it is done, or nothing is left to do here.

        The caller bounds the time.
        """
        # On its way into a warm pool, a new machine waits at the launch hook. One that has served
        # waits at the termination hook.
        names = [
            self._terminate_hook,
            self._launch_hook if self._outlook.target is TargetState.WARMED else "",
        ]
        hooks = [name for name in names if name]
        if not hooks:
            return True
        if await self._is_not_the_last():
            _log.info("machine_left_to_others", instance=self._machine.id)
            return True
        failures = 0
        while True:
            try:
                for hook in hooks:
                    if await group.complete(hook):
                        _log.info("machine_let_go", hook=hook, instance=self._machine.id)
                        return True
            except PortError as error:
                self._failed("terminate_hook", error)
                failures += 1
            if not is_leaving or failures == RELEASE_FAILURES_MAX:
                return False
            await asyncio.sleep(RELEASE_PAUSE_S)

    async def _is_not_the_last(self) -> bool:
        try:
            return await self._neighbours.others_here()
        except PortError as error:
            # Release it anyway: the other nodes learn of the machine's end too, and a machine that
            # nobody releases stays for an hour.
            _log.warning("leases_not_read", reason=str(error))
            return False

    # ---- both

    async def _pause(self, seconds: float) -> None:
        """Waits until the next turn, or until the state has changed."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds * (1 - _JITTER * self._random())):
                await self._wake.wait()
        self._wake.clear()

    def _failed(self, what: str, error: PortError) -> None:
        if self._failing.get(what) is not type(error):
            self._failing[what] = type(error)
            _log.warning(f"{what}_failed", reason=str(error))

    def _worked(self, what: str) -> None:
        if self._failing.pop(what, None) is not None:
            _log.info(f"{what}_works_again")
