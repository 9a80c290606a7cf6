"""service/roomcast/hooks/calls.py: hooks are found or the start is refused,
and a call has one of four ends, whatever a hook does.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from roomcast.config import ConfigError, HooksConfig
from roomcast.hooks import (
    UNCHANGED,
    Capability,
    ChannelOverride,
    ConnectEvent,
    ConnectReply,
    Disconnected,
    Grant,
    Json,
    PublishEvent,
    PublishReply,
    Refused,
    RpcEvent,
    RpcRegistry,
    ServerSubscription,
    SubscribeEvent,
    SubscribeReply,
)
from roomcast.hooks import calls as hook_calls
from roomcast.hooks.calls import HookCalls, Hooks, load_hooks
from roomcast.observe.counters import HookOutcome
from roomcast.wire.codes import DisconnectCode, ErrorCode
from roomcast.wire.tags_filter import Leaf
from tests.unit.worlds import running, until

CONNECT = ConnectEvent("c1", "", has_token=False)
WITH_TOKEN = ConnectEvent("c1", "ann", has_token=True)
SUBSCRIBE = SubscribeEvent("c1", "ann", None, "room")
PUBLISH = PublishEvent("c1", "ann", None, "room", "hi")
CALL = RpcEvent("c1", "ann", None, "add", [1, 2])
INTERNAL = ErrorCode(100, "internal server error", temporary=True)


# ---- names

MODULE = """
from roomcast.hooks import RpcRegistry

rpc = RpcRegistry()

async def connect(event):
    return None

def plain(event):
    return None

class Nested:
    @staticmethod
    async def subscribe(event):
        return None
"""


@pytest.fixture
def application(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A directory with an application's modules; nothing of them is left after the test."""
    (tmp_path / "hooked_app.py").write_text(MODULE)
    (tmp_path / "hooked_broken.py").write_text("1 /\n 0")
    (tmp_path / "hooked_exits.py").write_text("raise SystemExit('no\\nway')")
    (tmp_path / "hooked_needs.py").write_text("import hooked_gone")
    (tmp_path / "hooked_before.py").write_text("from service.hooks import ConnectReply")
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield tmp_path
    for name in [name for name in sys.modules if name.startswith("hooked_")]:
        del sys.modules[name]


def test_hooks_are_found(application: Path) -> None:
    config = HooksConfig(
        connect="hooked_app:connect",
        subscribe="hooked_app:Nested.subscribe",
        rpc="hooked_app:rpc",
        directory=str(application),
    )
    hooks = load_hooks(config)
    assert hooks.names() == ["connect", "subscribe", "rpc"]
    module = sys.modules["hooked_app"]
    assert hooks.connect is module.connect
    assert hooks.rpc is module.rpc
    assert load_hooks(config) == hooks
    assert sys.path.count(str(application)) == 1


def test_they_are_looked_for_where_the_server_is_started(
    application: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(application)
    assert load_hooks(HooksConfig(connect="hooked_app:connect")).connect is not None


def test_an_installed_package_comes_first(application: Path) -> None:
    (application / "json.py").write_text("raise RuntimeError('taken over')")
    with pytest.raises(ConfigError, match=r"hooks.connect: json:loads is not an async function"):
        load_hooks(HooksConfig(connect="json:loads", directory=str(application)))
    assert sys.path[-1] == str(application)


def test_without_hooks_nothing_is_looked_at(application: Path) -> None:
    before = list(sys.path)
    assert load_hooks(HooksConfig(directory=str(application))) == Hooks()
    assert sys.path == before
    with pytest.raises(ConfigError, match="hooked_app cannot be imported"):
        load_hooks(HooksConfig(connect="hooked_app:connect", directory=""))


@pytest.mark.parametrize(
    "option, path, complaint",
    [
        (
            "connect",
            "hooked_gone:f",
            "hooked_gone cannot be imported: ModuleNotFoundError: No module named 'hooked_gone'",
        ),
        (
            "publish",
            "hooked_needs:f",
            "hooked_needs cannot be imported: ModuleNotFoundError: No module named 'hooked_gone'",
        ),
        (
            "connect",
            "hooked_before:f",
            (
                "hooked_before cannot be imported: ModuleNotFoundError: No module named "
                "'service.hooks' (write `from roomcast.hooks import …`)"
            ),
        ),
        ("rpc", "hooked_exits:f", "hooked_exits cannot be imported: SystemExit: no way"),
        ("connect", "hooked_app:gone", "hooked_app has no gone"),
        ("connect", "hooked_app:Nested.gone", "hooked_app has no Nested.gone"),
        ("subscribe", "hooked_app:plain", "hooked_app:plain is not an async function"),
        ("publish", "hooked_app:rpc", "hooked_app:rpc is not an async function"),
        ("rpc", "hooked_app:connect", "hooked_app:connect is no RpcRegistry of roomcast.hooks"),
    ],
)
def test_what_is_no_hook(application: Path, option: str, path: str, complaint: str) -> None:
    named: dict[str, Any] = {option: path}
    with pytest.raises(ConfigError) as caught:
        load_hooks(HooksConfig(directory=str(application), **named))
    assert str(caught.value) == f"hooks.{option}: {complaint}"


def test_a_module_that_does_not_compile(application: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"hooks\.connect: hooked_broken cannot be imported: SyntaxError: "
    ) as caught:
        load_hooks(HooksConfig(connect="hooked_broken:f", directory=str(application)))
    assert "\n" not in str(caught.value)


# ---- calls


def calls(timeout_s: float = 60.0, **hooks: Any) -> HookCalls:
    return HookCalls(Hooks(**hooks), timeout_s)


def saying(reply: object) -> Callable[[object], Awaitable[Any]]:
    """A hook that returns `reply`, or raises it."""

    async def hook(_event: object) -> Any:
        if isinstance(reply, BaseException):
            raise reply
        return reply

    return hook


def registry(reply: object) -> RpcRegistry:
    made = RpcRegistry()
    made.method("add")(saying(reply))
    return made


def counted(calls: HookCalls) -> dict[tuple[str, str], int]:
    return {key: number for key, number in calls.counters.calls.items() if number}


async def ask(calls: HookCalls, hook: str, event: object = None) -> Any:
    """The reply to one call of `hook`."""
    events = {"connect": CONNECT, "subscribe": SUBSCRIBE, "publish": PUBLISH, "rpc": CALL}
    return await getattr(calls, hook)(event or events[hook])


def hooked(hook: str, reply: object) -> HookCalls:
    named: dict[str, Any] = {hook: registry(reply) if hook == "rpc" else saying(reply)}
    return calls(**named)


EVERY_HOOK = pytest.mark.parametrize("hook", ["connect", "subscribe", "publish", "rpc"])


@EVERY_HOOK
async def test_no_opinion(hook: str) -> None:
    asked = hooked(hook, None)
    assert await ask(asked, hook) is None
    assert counted(asked) == {(hook, "answered"): 1}
    assert asked.counters.seconds[hook].count == 1
    assert asked.counters.under_way == 0


async def test_the_hook_gets_the_event() -> None:
    events: list[object] = []

    async def hook(event: object) -> None:
        events.append(event)

    added = RpcRegistry()
    added.method("add")(hook)
    asked = calls(connect=hook, subscribe=hook, publish=hook, rpc=added)
    for name in asked.hooks.names():
        await ask(asked, name)
    assert events == [CONNECT, SUBSCRIBE, PUBLISH, CALL]


@EVERY_HOOK
async def test_it_says_no(hook: str) -> None:
    asked = hooked(hook, Refused(400, "not you"))
    with pytest.raises(Refused) as refused:
        await ask(asked, hook)
    assert refused.value.error == ErrorCode(400, "not you")
    assert counted(asked) == {(hook, "refused"): 1}
    asked = hooked(hook, Disconnected(4500, "away"))
    with pytest.raises(Disconnected) as disconnected:
        await ask(asked, hook)
    assert disconnected.value.why == DisconnectCode(4500, "away")
    assert counted(asked) == {(hook, "disconnected"): 1}


async def test_a_method_that_there_is_not() -> None:
    asked = hooked("rpc", 3)
    with pytest.raises(Refused) as refused:
        await asked.rpc(replace(CALL, method="gone"))
    assert refused.value.error == ErrorCode(104, "method not found")
    assert counted(asked) == {}


def deep(levels: int) -> Json:
    value: Json = 1
    for _ in range(levels):
        value = [value]
    return value


NO_REPLIES: list[object] = [True, {}, "yes", CALL]
NOT_JSON: list[object] = [
    {1, 2}, b"bytes", object(), {1: 2}, "\ud800", 2**64, deep(129), deep(2000),
    datetime.now(UTC), CALL,
]  # fmt: skip


@pytest.mark.parametrize(
    "hook, reply",
    [
        *((hook, reply) for hook in ("connect", "subscribe", "publish") for reply in NO_REPLIES),
        *(("rpc", value) for value in NOT_JSON),
        *(("publish", PublishReply(value)) for value in NOT_JSON),
        *(("subscribe", SubscribeReply(info=value)) for value in NOT_JSON),
        *(("subscribe", SubscribeReply(data=value)) for value in NOT_JSON),
        *(("connect", ConnectReply(info=value)) for value in NOT_JSON),
        *(("connect", ConnectReply(data=value)) for value in NOT_JSON),
        *(
            ("connect", ConnectReply(subs={"room": ServerSubscription(data=value)}))
            for value in NOT_JSON
        ),
        *(
            ("publish", PublishReply(version=value))  # type: ignore[arg-type]
            for value in (-1, 2**64, True, 1.5, "1", None)
        ),
        ("publish", PublishReply(version_epoch=5)),  # type: ignore[arg-type]
        ("publish", PublishReply(version_epoch="\ud800")),
        ("publish", PublishReply(version_epoch="e" * 65)),
        ("connect", ConnectReply(user=5)),  # type: ignore[arg-type]
        ("connect", ConnectReply(user="\ud800")),
        ("connect", ConnectReply(expires_at="soon")),  # type: ignore[arg-type]
        ("connect", ConnectReply(expires_at=-1)),
        ("connect", ConnectReply(expires_at=True)),
        ("connect", ConnectReply(subs=["room"])),  # type: ignore[arg-type]
        ("connect", ConnectReply(subs={"é": ServerSubscription()})),
        ("connect", ConnectReply(subs={"room": None})),  # type: ignore[dict-item]
        ("connect", ConnectReply(caps=["pub"])),  # type: ignore[arg-type]
        ("connect", ConnectReply(caps=(Grant((5,), frozenset()),))),  # type: ignore[arg-type]
        ("subscribe", SubscribeReply(expires_at=float("nan"))),  # type: ignore[arg-type]
        ("subscribe", SubscribeReply(override={"presence": True})),  # type: ignore[arg-type]
        ("subscribe", SubscribeReply(override=ChannelOverride(presence="yes"))),  # type: ignore[arg-type]
        ("subscribe", SubscribeReply(server_tags_filter={"key": "a"})),
        (
            "connect",
            ConnectReply(subs={"room": ServerSubscription(server_tags_filter="a")}),
        ),
        ("publish", PublishReply(tags=["a"])),  # type: ignore[arg-type]
        ("publish", PublishReply(tags={"a": 1})),  # type: ignore[dict-item]
        ("publish", PublishReply(tags={"\ud800": "a"})),
        ("subscribe", SubscribeReply(allow="pub")),  # type: ignore[arg-type]
        ("subscribe", SubscribeReply(allow=frozenset({"pub"}))),  # type: ignore[arg-type]
        *((hook, RuntimeError("secret")) for hook in ("connect", "subscribe", "publish", "rpc")),
        *((hook, SystemExit(3)) for hook in ("connect", "subscribe", "publish", "rpc")),
        ("rpc", TimeoutError("its own")),
        ("rpc", asyncio.CancelledError("its own")),
        ("rpc", ExceptionGroup("several", [ValueError()])),
    ],
)
async def test_a_fault_is_an_error_that_passes(hook: str, reply: object) -> None:
    asked = hooked(hook, reply)
    with capture_logs() as logs, pytest.raises(Refused) as refused:
        await ask(asked, hook)
    assert refused.value.error == INTERNAL
    assert counted(asked) == {(hook, "failed"): 1}
    [line] = logs
    assert (line["event"], line["log_level"], line["hook"], line["client"]) == (
        "hook_failed",
        "error",
        hook,
        "c1",
    )
    assert isinstance(line["exc_info"], BaseException)
    assert asked.counters.under_way == 0


async def test_who_makes_a_hook_fail_again_and_again_fills_no_log() -> None:
    """An exception's text may quote all that a client sent, as that of `int("…")` does.

    Each failure is counted.
    """
    asked = hooked("rpc", ValueError("x" * 10_000))
    hooked_too = hooked("publish", ValueError("another"))
    with capture_logs() as logs:
        for _ in range(200):
            with pytest.raises(Refused):
                await ask(asked, "rpc")
        with pytest.raises(Refused):
            await ask(hooked_too, "publish")
    assert counted(asked) == {("rpc", "failed"): 200}
    told = [line["hook"] for line in logs]
    assert hook_calls.FAILURES_TOLD.burst <= told.count("rpc") < 2 * hook_calls.FAILURES_TOLD.burst
    assert told[-1] == "publish"


async def test_what_it_returns_is_a_copy() -> None:
    data = {"list": [1, 2.5, None, True, "é"]}
    asked = hooked("rpc", data)
    answer = await ask(asked, "rpc")
    assert answer == data
    assert answer is not data
    assert answer["list"] is not data["list"]
    assert await ask(hooked("publish", PublishReply(data)), "publish") == PublishReply(data)
    assert await ask(hooked("publish", PublishReply()), "publish") == PublishReply(UNCHANGED)
    assert await ask(hooked("publish", PublishReply(None)), "publish") == PublishReply(None)
    tagged = PublishReply(data, tags={"kind": "a"})
    copied = await ask(hooked("publish", tagged), "publish")
    assert copied == tagged
    assert copied.tags is not tagged.tags
    versioned = PublishReply(data, version=2**64 - 1, version_epoch="e" * 64)
    assert await ask(hooked("publish", versioned), "publish") == versioned


async def test_a_reply_is_made_tidy() -> None:
    override = ChannelOverride(presence=True)
    reply = ConnectReply(
        user="ann",
        expires_at=2_000_000_000.7,  # type: ignore[arg-type]
        info={"name": "Ann"},
        data=[1],
        subs={"room": ServerSubscription({"a": 1}, "data", override)},
        caps=[Grant(("room",), {Capability.PUBLISH})],  # type: ignore[arg-type]
    )
    tidy = replace(
        reply, expires_at=2_000_000_000, caps=(Grant(("room",), frozenset({Capability.PUBLISH})),)
    )
    assert await ask(hooked("connect", reply), "connect") == tidy
    subscribed = SubscribeReply(
        {"a": 1}, "data", 2_000_000_000, override, frozenset({Capability.HISTORY})
    )
    assert await ask(hooked("subscribe", subscribed), "subscribe") == subscribed
    narrowed = SubscribeReply(server_tags_filter={"key": "a", "cmp": "eq", "val": "x"})
    assert (await ask(hooked("subscribe", narrowed), "subscribe")).server_tags_filter == Leaf(
        "eq", "a", ("x",)
    )


async def test_a_token_is_not_overruled() -> None:
    assert await ask(hooked("connect", ConnectReply("ann")), "connect", WITH_TOKEN) == ConnectReply(
        "ann"
    )
    for reply in (ConnectReply("bob"), ConnectReply(expires_at=2_000_000_000)):
        with pytest.raises(Refused) as refused:
            await ask(hooked("connect", reply), "connect", WITH_TOKEN)
        assert refused.value.error == INTERNAL


async def test_a_call_that_takes_too_long() -> None:
    cancelled = asyncio.Event()

    async def slow(_event: object) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()

    asked = calls(timeout_s=0.01, subscribe=slow)
    with capture_logs() as logs, pytest.raises(Refused) as refused:
        await ask(asked, "subscribe")
    assert refused.value.error == INTERNAL
    assert cancelled.is_set()
    assert counted(asked) == {("subscribe", "timed_out"): 1}
    [line] = logs
    assert (line["event"], line["hook"], line["timeout_s"]) == ("hook_timed_out", "subscribe", 0.01)


async def test_a_back_end_that_hangs_does_not_flood_the_log() -> None:
    async def slow(_event: object) -> None:
        await asyncio.Event().wait()

    asked = calls(timeout_s=0.01, subscribe=slow)
    number = 10 * int(hook_calls.FAILURES_TOLD.burst)
    with capture_logs() as logs:
        await asyncio.gather(
            *(ask(asked, "subscribe") for _ in range(number)), return_exceptions=True
        )
    assert counted(asked) == {("subscribe", "timed_out"): number}
    assert {line["event"] for line in logs} == {"hook_timed_out"}
    assert hook_calls.FAILURES_TOLD.burst <= len(logs) < 2 * hook_calls.FAILURES_TOLD.burst


async def test_a_call_that_is_given_up() -> None:
    started, cancelled = asyncio.Event(), asyncio.Event()

    async def slow(_event: object) -> None:
        started.set()
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()

    asked = calls(subscribe=slow)
    async with running(ask(asked, "subscribe")):
        await started.wait()
        assert asked.counters.under_way == 1
    await until(cancelled.is_set)
    assert counted(asked) == {("subscribe", "cancelled"): 1}
    assert asked.counters.under_way == 0


async def test_no_more_than_so_many_are_called_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hook_calls, "CALLS_UNDER_WAY_MAX", 1)
    open_, entered = asyncio.Event(), asyncio.Event()

    async def slow(_event: object) -> None:
        entered.set()
        await open_.wait()

    asked = calls(subscribe=slow, rpc=registry(3))
    first = asyncio.create_task(ask(asked, "subscribe"))
    await entered.wait()
    with pytest.raises(Refused) as refused:
        await ask(asked, "rpc")
    assert refused.value.error == ErrorCode(111, "too many requests", temporary=True)
    open_.set()
    await first
    assert await ask(asked, "rpc") == 3
    assert counted(asked) == {
        ("subscribe", "answered"): 1,
        ("rpc", "shed"): 1,
        ("rpc", "answered"): 1,
    }


def test_what_is_configured_is_shown_before_it_is_called() -> None:
    asked = calls(publish=saying(None))
    assert asked.counters.calls == {("publish", outcome.value): 0 for outcome in HookOutcome}
    assert set(asked.counters.seconds) == {"publish"}
