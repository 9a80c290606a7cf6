"""EC2 as far as a node meets it, over HTTP: instance metadata,
an Auto Scaling group with hooks, and CloudWatch.

The emulator has no lifecycle hooks. What is here follows the documentation:
states, the order in which a machine goes through them, the time-out of a hook, and the events.
"""

from __future__ import annotations

import asyncio
import itertools
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Final
from xml.sax.saxutils import escape

from aiohttp import web

__all__ = ["FakeEc2", "FakeMachine", "Hook", "fake_ec2"]

# Of one step, on a machine that does much else.
DEADLINE_S: Final = 30.0
ACCOUNT: Final = "123456789012"
REGION: Final = "eu-west-1"

_TOKEN_TTL: Final = "X-aws-ec2-metadata-token-ttl-seconds"
_TOKEN: Final = "X-aws-ec2-metadata-token"
_LAUNCHING: Final = "autoscaling:EC2_INSTANCE_LAUNCHING"
_TERMINATING: Final = "autoscaling:EC2_INSTANCE_TERMINATING"


@dataclass(frozen=True, slots=True)
class Hook:
    """A lifecycle hook. AWS waits for 30 s at least; tests do not."""

    name: str
    timeout_s: float = 3600.0
    default: str = "ABANDON"


@dataclass(slots=True)
class _Action:
    """A machine waits at a hook."""

    hook: Hook
    transition: str
    token: str
    timer: asyncio.TimerHandle


@dataclass(eq=False, slots=True)
class FakeMachine:
    """An instance of the group, and its metadata service at `endpoint`."""

    id: str
    endpoint: str = ""
    state: str = "Pending"
    # What the metadata say; "" = 404.
    target: str = "InService"
    notice: str = ""
    # How the hooks at which it waited ended: results, or "timeout".
    ends: list[str] = field(default_factory=list)
    # The metadata service answers nothing but this.
    broken: int = 0
    tokens: set[str] = field(default_factory=set)
    tokens_given: int = 0
    action: _Action | None = None

    def forget_tokens(self) -> None:
        """Every token that was given out is void."""
        self.tokens.clear()


class FakeEc2:
    """One group. `events` is what EventBridge would get, `metrics` what CloudWatch was told,
    `calls` every call of either.
    """

    def __init__(
        self, group: str, *, launch_hook: Hook | None, terminate_hook: Hook | None
    ) -> None:
        self.group = group
        self.endpoint = ""
        self.machines: dict[str, FakeMachine] = {}
        self.events: list[dict[str, Any]] = []
        self.calls: list[tuple[str, str]] = []
        # (HTTP status, code) that every call of Auto Scaling is answered with.
        self.failure: tuple[int, str] | None = None
        # Awaited with the operation before a call of Auto Scaling is carried out.
        self.before: Callable[[str], Awaitable[None]] | None = None
        self._launch_hook = launch_hook
        self._terminate_hook = terminate_hook
        self._numbers = itertools.count(1)
        self._changed = asyncio.Condition()
        self._waking: set[asyncio.Task[None]] = set()
        self._stack = AsyncExitStack()

    # ---- what happens to machines

    async def launch(self, *, prepared: bool = True) -> FakeMachine:
        """A new one, which waits at the launch hook, or does once it is `prepared`:
        it runs before its group waits.
        """
        machine = FakeMachine(f"i-{next(self._numbers):017x}")
        machine.endpoint = await self._listen(_metadata_of(machine))
        self.machines[machine.id] = machine
        self._enter(machine, "Pending")
        if prepared:
            self.prepare(machine)
        return machine

    def prepare(self, machine: FakeMachine) -> None:
        """Its group is through with what comes before the launch hook."""
        assert machine.state == "Pending", machine.state
        if self._launch_hook is None:
            self._in_service(machine)
        else:
            self._wait(machine, self._launch_hook, "Pending:Wait", _LAUNCHING)

    def time_out(self, machine: FakeMachine) -> None:
        """The time of the hook at which it waits is over."""
        assert machine.action is not None
        self._end_wait(machine, "timeout", machine.action.hook.default)

    def deregister(self, machine: FakeMachine) -> None:
        """It is to end, and the load balancer still has connections to it: no hook waits yet."""
        machine.target = "Terminated"
        self._enter(machine, "Terminating")

    def terminate(self, machine: FakeMachine) -> None:
        """It is to end, and the load balancer is through with it."""
        machine.target = "Terminated"
        if self._terminate_hook is None:
            self._gone(machine)
        else:
            self._wait(machine, self._terminate_hook, "Terminating:Wait", _TERMINATING)

    async def until(self, holds: Callable[[], object]) -> None:
        """Wait for something that changes with a call or a state."""
        async with self._changed:
            try:
                async with asyncio.timeout(DEADLINE_S):
                    await self._changed.wait_for(lambda: bool(holds()))
            except TimeoutError:
                raise AssertionError(
                    f"it did not happen; calls: {self.calls}, {self.machines}"
                ) from None

    def called(self, operation: str) -> list[str]:
        """The machines, or namespaces, that `operation` was called for."""
        return [whom for name, whom in self.calls if name == operation]

    def _wait(self, machine: FakeMachine, hook: Hook, state: str, transition: str) -> None:
        machine.action = _Action(hook, transition, str(uuid.uuid4()), self._timer(machine, hook))
        kind = "launch" if transition == _LAUNCHING else "terminate"
        ends = ("EC2", "AutoScalingGroup")
        origin, destination = ends if transition == _LAUNCHING else reversed(ends)
        self._emit(
            f"EC2 Instance-{kind} Lifecycle Action",
            {
                "LifecycleActionToken": machine.action.token,
                "AutoScalingGroupName": self.group,
                "LifecycleHookName": hook.name,
                "EC2InstanceId": machine.id,
                "LifecycleTransition": transition,
                "Origin": origin,
                "Destination": destination,
            },
        )
        self._enter(machine, state)

    def _timer(self, machine: FakeMachine, hook: Hook) -> asyncio.TimerHandle:
        loop = asyncio.get_running_loop()
        return loop.call_later(hook.timeout_s, self._end_wait, machine, "timeout", hook.default)

    def _end_wait(self, machine: FakeMachine, how: str, result: str) -> None:
        action, machine.action = machine.action, None
        assert action is not None
        action.timer.cancel()
        machine.ends.append(how)
        if action.transition == _LAUNCHING and result == "CONTINUE":
            self._in_service(machine)
        elif action.transition == _LAUNCHING:
            self.terminate(machine)
        else:
            self._gone(machine)

    def _in_service(self, machine: FakeMachine) -> None:
        self._emit_successful("Launch", machine)
        self._enter(machine, "InService")

    def _gone(self, machine: FakeMachine) -> None:
        self._emit_successful("Terminate", machine)
        self._enter(machine, "Terminated")

    def _emit_successful(self, what: str, machine: FakeMachine) -> None:
        now = _now()
        self._emit(
            f"EC2 Instance {what} Successful",
            {
                "StatusCode": "InProgress",
                "Description": f"{what}: {machine.id}",
                "AutoScalingGroupName": self.group,
                "ActivityId": str(uuid.uuid4()),
                "Details": {"Availability Zone": f"{REGION}a", "Subnet ID": "subnet-12345678"},
                "RequestId": str(uuid.uuid4()),
                "StatusMessage": "",
                "EndTime": now,
                "EC2InstanceId": machine.id,
                "StartTime": now,
                "Cause": "a test",
            },
        )

    def _emit(self, kind: str, detail: dict[str, Any]) -> None:
        arn = (
            f"arn:aws:autoscaling:{REGION}:{ACCOUNT}:autoScalingGroup:{uuid.uuid4()}"
            f":autoScalingGroupName/{self.group}"
        )
        self.events.append(
            {
                "version": "0",
                "id": str(uuid.uuid4()),
                "detail-type": kind,
                "source": "aws.autoscaling",
                "account": ACCOUNT,
                "time": _now(),
                "region": REGION,
                "resources": [arn],
                "detail": detail,
            }
        )

    def _enter(self, machine: FakeMachine, state: str) -> None:
        machine.state = state
        self._tell()

    def _tell(self) -> None:
        async def notify() -> None:
            async with self._changed:
                self._changed.notify_all()

        task = asyncio.create_task(notify())
        self._waking.add(task)
        task.add_done_callback(self._waking.discard)

    # ---- the two services, by their query protocol

    async def start(self) -> None:
        app = web.Application()
        app.router.add_post("/", self._api)
        self.endpoint = await self._listen(app)

    async def stop(self) -> None:
        for machine in self.machines.values():
            if machine.action is not None:
                machine.action.timer.cancel()
        await self._stack.aclose()
        await asyncio.gather(*self._waking)

    async def _listen(self, app: web.Application) -> str:
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await runner.setup()
        self._stack.push_async_callback(runner.cleanup)
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        return f"http://127.0.0.1:{runner.addresses[0][1]}"

    async def _api(self, request: web.Request) -> web.Response:
        form = {key: str(value) for key, value in (await request.post()).items()}
        operation = form["Action"]
        try:
            if self.before is not None:
                await self.before(operation)
            return self._lifecycle(operation, form)
        finally:
            self._tell()

    def _lifecycle(self, operation: str, form: dict[str, str]) -> web.Response:
        machine = self.machines[form["InstanceId"]]
        self.calls.append((operation, machine.id))
        if self.failure is not None:
            return _error(*self.failure, "told so")
        if form["AutoScalingGroupName"] != self.group:
            return _error(400, "ValidationError", f"Group {form['AutoScalingGroupName']} not found")
        action = machine.action
        if action is None or action.hook.name != form["LifecycleHookName"]:
            text = f"No active Lifecycle Action found with instance ID {machine.id}"
            return _error(400, "ValidationError", text)
        if operation == "CompleteLifecycleAction":
            result = form["LifecycleActionResult"]
            self._end_wait(machine, result, result)
        else:
            assert operation == "RecordLifecycleActionHeartbeat", operation
            action.timer.cancel()
            action.timer = self._timer(machine, action.hook)
        return _answer(operation)


@asynccontextmanager
async def fake_ec2(
    group: str = "chat",
    *,
    launch_hook: Hook | None = Hook("launching"),
    terminate_hook: Hook | None = Hook("terminating"),
) -> AsyncIterator[FakeEc2]:
    """A group whose calls are answered at `endpoint`."""
    fake = FakeEc2(group, launch_hook=launch_hook, terminate_hook=terminate_hook)
    try:
        await fake.start()
        yield fake
    finally:
        await fake.stop()


def _metadata_of(machine: FakeMachine) -> web.Application:
    """Version 2 only: nothing without a token."""

    async def token(request: web.Request) -> web.Response:
        if machine.broken:
            return web.Response(status=machine.broken)
        if not 1 <= int(request.headers[_TOKEN_TTL]) <= 21_600:
            return web.Response(status=400)
        machine.tokens_given += 1
        given = f"token-{machine.tokens_given}=="
        machine.tokens.add(given)
        return web.Response(text=given)

    async def value(request: web.Request) -> web.Response:
        if machine.broken:
            return web.Response(status=machine.broken)
        if request.headers.get(_TOKEN) not in machine.tokens:
            return web.Response(status=401)
        values = {
            "instance-id": machine.id,
            "autoscaling/target-lifecycle-state": machine.target,
            "spot/instance-action": machine.notice,
        }
        text = values.get(request.match_info["path"], "")
        return (
            web.Response(text=text) if text else web.Response(status=404, text="<html>404</html>")
        )

    app = web.Application()
    app.router.add_put("/latest/api/token", token)
    app.router.add_get("/latest/meta-data/{path:.+}", value)
    return app


def _answer(operation: str) -> web.Response:
    body = (
        f"<{operation}Response><{operation}Result/>"
        f"<ResponseMetadata><RequestId>{uuid.uuid4()}</RequestId></ResponseMetadata></{operation}Response>"
    )
    return web.Response(text=body, content_type="text/xml")


def _error(status: int, code: str, message: str) -> web.Response:
    body = (
        f"<ErrorResponse><Error><Type>Sender</Type><Code>{code}</Code><Message>{escape(message)}</Message></Error>"
        f"<RequestId>{uuid.uuid4()}</RequestId></ErrorResponse>"
    )
    return web.Response(text=body, status=status, content_type="text/xml")


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
