"""Imports the configured hooks and calls them, with bounds on time and number.

Each call ends in one of four ways for its caller: a reply of the right type, or None; `Refused`,
also for faults of the hook; `Disconnected`; or its own cancellation.
"""

from __future__ import annotations

import asyncio
import importlib
import sys
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, fields, replace
from functools import partial, reduce
from pathlib import Path
from typing import Any, Final, TypeVar, cast

import orjson
import structlog

from roomcast.auth.claims import INFO_DEPTH_MAX, TOKEN_TIME_MAX
from roomcast.config import ConfigError, HooksConfig
from roomcast.hooks import (
    Capability,
    Carrier,
    ConnectEvent,
    ConnectHook,
    ConnectReply,
    Disconnected,
    Grant,
    Json,
    LifeHook,
    PublishEvent,
    PublishHook,
    PublishReply,
    RefreshEvent,
    RefreshHook,
    RefreshReply,
    Refused,
    RpcEvent,
    RpcRegistry,
    ServerSubscription,
    SubRefreshEvent,
    SubRefreshHook,
    SubRefreshReply,
    SubscribeEvent,
    SubscribeHook,
    SubscribeReply,
    is_async,
)
from roomcast.hooks.api import RpcMethods
from roomcast.hooks.events import Unchanged
from roomcast.hooks.faults import Busy, NoDecision, TimedOut
from roomcast.hooks.passed_headers import PassedHeaders
from roomcast.observe.counters import Histogram, HookCounters, HookOutcome
from roomcast.rates import Rate, Seldom
from roomcast.wire.channels import ChannelOverride
from roomcast.wire.codes import Error
from roomcast.wire.names import is_valid_name
from roomcast.wire.publication import Payload
from roomcast.wire.shapes import NUMBER, TEXT, is_deeper, whole
from roomcast.wire.tags_filter import Filter, filter_of
from roomcast.wire.versions import VERSION_EPOCH_CHARS_MAX, VERSION_MAX

__all__ = ["CALLS_UNDER_WAY_MAX", "FAILURES_TOLD", "HookCalls", "Hooks", "load_hooks", "refused"]

# Calls of hooks that run at once on a node. With more, a service that they wait for, such as a
# database, is down.
CALLS_UNDER_WAY_MAX: Final = 1000
# Failures of one hook in the log, each with its traceback, and calls that take too long. A client
# that can make a hook fail can do so again and again, and a back end that hangs fails all of them.
FAILURES_TOLD: Final = Rate(per_s=1.0, burst=10.0)

# Otherwise dates and objects would silently become strings. The application must choose their
# format itself.
_STRICT: Final = orjson.OPT_PASSTHROUGH_DATACLASS | orjson.OPT_PASSTHROUGH_DATETIME

_NO_HEADERS: Final = PassedHeaders()

E = TypeVar(
    "E",
    ConnectEvent,
    RefreshEvent,
    SubscribeEvent,
    SubRefreshEvent,
    PublishEvent,
    RpcEvent,
)
R = TypeVar("R")

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Hooks:
    """The application's hooks. None = not configured.

    All but `start` and `stop` are asked by HookCalls. Those two are for whoever starts and ends the
    process.
    """

    connect: ConnectHook | None = None
    refresh: RefreshHook | None = None
    subscribe: SubscribeHook | None = None
    sub_refresh: SubRefreshHook | None = None
    publish: PublishHook | None = None
    rpc: RpcMethods | None = None
    start: LifeHook | None = None
    stop: LifeHook | None = None

    def names(self) -> list[str]:
        """The names of the configured ones that are asked."""
        return [name for name in _ASKED if getattr(self, name) is not None]


_ASKED: Final = ("connect", "refresh", "subscribe", "sub_refresh", "publish", "rpc")
_IMPORTED: Final = (*_ASKED, "start", "stop")


# ---- from names to functions


def load_hooks(config: HooksConfig) -> Hooks:
    """Imports the configured hooks.

    Raises ConfigError, in one line, for a missing or invalid hook.

    The configured directory is searched last, so no file in it can replace an installed package.
    """
    named = {name: getattr(config, name) for name in _IMPORTED}
    if any(named.values()) and config.directory:
        directory = str(Path(config.directory).resolve())
        if directory not in sys.path:
            sys.path.append(directory)
    found: dict[str, Any] = {
        name: _imported(f"hooks.{name}", path) for name, path in named.items() if path
    }
    for name, hook in found.items():
        if name == "rpc":
            if not isinstance(hook, RpcRegistry):
                raise ConfigError(f"hooks.rpc: {named[name]} is no RpcRegistry of roomcast.hooks")
        elif not is_async(hook):
            raise ConfigError(f"hooks.{name}: {named[name]} is not an async function")
    return Hooks(**found)


# Where roomcast 0.1.0 had what is roomcast.hooks now.
_OLD_NAMES: Final = ("service", "service.hooks")


def _imported(key: str, path: str) -> object:
    """The object at `path`, "package.module:name"."""
    module_name, _, name = path.partition(":")
    try:
        module = importlib.import_module(module_name)
    except (Exception, SystemExit) as error:  # the import runs the module's own code
        said = " ".join(f"{type(error).__name__}: {error}".split())
        if isinstance(error, ModuleNotFoundError) and error.name in _OLD_NAMES:
            said += " (write `from roomcast.hooks import …`)"
        raise ConfigError(f"{key}: {module_name} cannot be imported: {said}") from error
    try:
        return reduce(getattr, name.split("."), cast("object", module))
    except AttributeError:
        raise ConfigError(f"{key}: {module_name} has no {name}") from None


# ---- calls


class HookCalls:
    """Calls the hooks in `hooks`.

    A method may be awaited only if its hook is configured. All raise Refused and Disconnected.

    `timeout_s`: the limit of one call. `is_binary`: whether a channel takes bytes, and not JSON
    alone. `passed`: headers of clients that hooks over HTTP pass on. `renews`: whether any hook
    says if a connection or a subscription goes on.
    """

    def __init__(
        self,
        hooks: Hooks,
        timeout_s: float,
        counters: HookCounters | None = None,
        *,
        is_binary: Callable[[str], bool] = lambda _channel: False,
        passed: PassedHeaders = _NO_HEADERS,
    ) -> None:
        self.hooks = hooks
        self._is_binary = is_binary
        self.passed = passed
        self.renews = hooks.refresh is not None or hooks.sub_refresh is not None
        self._carriers: dict[tuple[str, str], Carrier] = {}
        self.counters = counters or HookCounters()
        self.timeout_s = timeout_s
        self._failures: dict[str, Seldom] = {}
        self._late: dict[str, Seldom] = {}
        for name in hooks.names():
            self.counters.expect(name)
            self._failures[name], self._late[name] = Seldom(FAILURES_TOLD), Seldom(FAILURES_TOLD)

    def carrier(
        self, transport: str, protocol: str, fields: Callable[[], Iterable[tuple[str, str]]]
    ) -> Carrier:
        """How a client came, for its events. `fields`: gives the header fields of its request."""
        if self.passed.named:
            return Carrier(transport, protocol, self.passed.of_request(fields()))
        key = transport, protocol
        if key not in self._carriers:
            self._carriers[key] = Carrier(*key)
        return self._carriers[key]

    async def connect(self, event: ConnectEvent) -> ConnectReply | None:
        """None = no opinion."""
        assert self.hooks.connect is not None, "asked for first"
        return await self._call(
            "connect", self.hooks.connect, event, partial(_connect_reply, event, self._is_binary)
        )

    async def refresh(self, event: RefreshEvent) -> RefreshReply | None:
        """None = the connection does not go on."""
        assert self.hooks.refresh is not None, "asked for first"
        return await self._call("refresh", self.hooks.refresh, event, _refresh_reply)

    async def sub_refresh(self, event: SubRefreshEvent) -> SubRefreshReply | None:
        """None = the subscription does not go on."""
        assert self.hooks.sub_refresh is not None, "asked for first"
        return await self._call("sub_refresh", self.hooks.sub_refresh, event, _sub_refresh_reply)

    async def subscribe(self, event: SubscribeEvent) -> SubscribeReply | None:
        """None = no opinion."""
        assert self.hooks.subscribe is not None, "asked for first"
        checked = partial(_subscribe_reply, event, self._is_binary)
        return await self._call("subscribe", self.hooks.subscribe, event, checked)

    async def publish(self, event: PublishEvent) -> PublishReply | None:
        """None = no opinion."""
        assert self.hooks.publish is not None, "asked for first"
        return await self._call(
            "publish", self.hooks.publish, event, partial(_publish_reply, event)
        )

    async def rpc(self, event: RpcEvent) -> Json:
        """The answer of the method that `event` names: a JSON value."""
        assert self.hooks.rpc is not None, "asked for first"
        method = self.hooks.rpc.find(event.method)
        if method is None:
            raise refused(Error.METHOD_NOT_FOUND)
        return await self._call("rpc", method, event, _json)

    async def _call(
        self,
        hook: str,
        function: Callable[[E], Awaitable[object]],
        event: E,
        checked: Callable[[object], R],
    ) -> R:
        counters, loop = self.counters, asyncio.get_running_loop()
        if counters.under_way >= CALLS_UNDER_WAY_MAX:
            counters.ended(hook, HookOutcome.SHED)
            raise refused(Error.TOO_MANY_REQUESTS)
        counters.under_way += 1
        began_s, outcome = loop.time(), HookOutcome.CANCELLED
        limit = asyncio.timeout(self.timeout_s)
        try:
            async with limit:
                said = await function(event)
            reply = checked(said)
            outcome = HookOutcome.ANSWERED
        except Refused:
            outcome = HookOutcome.REFUSED
            raise
        except Disconnected:
            outcome = HookOutcome.DISCONNECTED
            raise
        except asyncio.CancelledError as error:
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise
            # The hook awaited something that was cancelled. The call itself was not.
            outcome = HookOutcome.FAILED
            self._tell_failure(hook, event.client, error)
            raise refused(Error.INTERNAL) from None
        except (KeyboardInterrupt, GeneratorExit):
            raise
        except Busy:
            outcome = HookOutcome.SHED
            raise refused(Error.TOO_MANY_REQUESTS) from None
        except BaseException as error:  # noqa: BLE001  # SystemExit too: its client is answered
            if isinstance(error, TimedOut) or (isinstance(error, TimeoutError) and limit.expired()):
                outcome = HookOutcome.TIMED_OUT
                limit_s = error.limit_s if isinstance(error, TimedOut) else self.timeout_s
                self._tell_late(hook, event.client, limit_s)
            else:
                outcome = HookOutcome.FAILED
                self._tell_failure(hook, event.client, error)
            raise refused(Error.INTERNAL) from None
        finally:
            counters.under_way -= 1
            counters.ended(hook, outcome)
            if outcome is not HookOutcome.SHED:
                counters.seconds.setdefault(hook, Histogram()).add(loop.time() - began_s)
        return reply

    def _tell_late(self, hook: str, client: str, limit_s: float) -> None:
        passed_over = self._late[hook].again(asyncio.get_running_loop().time())
        if passed_over is not None:
            told: dict[str, Any] = {"hook": hook, "client": client, "passed_over": passed_over}
            _log.warning("hook_timed_out", **told, timeout_s=limit_s)

    def _tell_failure(self, hook: str, client: str, error: BaseException) -> None:
        passed_over = self._failures[hook].again(asyncio.get_running_loop().time())
        if passed_over is None:
            return
        told: dict[str, Any] = {"hook": hook, "client": client, "passed_over": passed_over}
        if isinstance(error, NoDecision):
            # It went wrong elsewhere: where it was noticed here says nothing.
            _log.error("hook_failed", **told, reason=str(error))
        else:
            _log.error("hook_failed", **told, exc_info=error)


def refused(error: Error) -> Refused:
    """The Refused for one of the server's own errors, which SDKs know."""
    return Refused(error.value.code, error.value.message, temporary=error.value.temporary)


# ---- replies: an invalid one raises TypeError or ValueError, and is logged


def _connect_reply(
    event: ConnectEvent, is_binary: Callable[[str], bool], said: object
) -> ConnectReply | None:
    if said is None:
        return None
    reply = _of_type(said, ConnectReply)
    user = _text(reply.user, "user")
    if event.has_token and (user not in ("", event.user) or reply.expires_at is not None):
        raise ValueError("user and expires_at are for connections without token")
    if not isinstance(reply.subs, Mapping):
        raise TypeError("subs is not a mapping")
    subs = {
        _channel(channel): _subscription(sub, takes_bytes=is_binary(channel))
        for channel, sub in reply.subs.items()
    }
    return replace(
        reply,
        expires_at=_time(reply.expires_at),
        info=_json(reply.info),
        data=_json(reply.data),
        subs=subs,
        caps=tuple(_grant(grant) for grant in reply.caps),
        meta=_json(reply.meta),
    )


def _refresh_reply(said: object) -> RefreshReply | None:
    if said is None:
        return None
    reply = _of_type(said, RefreshReply)
    expires_at = _time(reply.expires_at)
    if expires_at is None:
        raise TypeError("a refresh without expires_at")
    return RefreshReply(expires_at, info=_json(reply.info), meta=_json(reply.meta))


def _sub_refresh_reply(said: object) -> SubRefreshReply | None:
    if said is None:
        return None
    return SubRefreshReply(_time(_of_type(said, SubRefreshReply).expires_at))


def _subscribe_reply(
    event: SubscribeEvent, is_binary: Callable[[str], bool], said: object
) -> SubscribeReply | None:
    if said is None:
        return None
    reply = _of_type(said, SubscribeReply)
    return replace(
        reply,
        info=_json(reply.info),
        data=_payload(reply.data, takes_bytes=is_binary(event.channel)),
        expires_at=_time(reply.expires_at),
        override=_override(reply.override),
        allow=_capabilities(reply.allow),
        server_tags_filter=_filter(reply.server_tags_filter),
    )


def _publish_reply(event: PublishEvent, said: object) -> PublishReply | None:
    if said is None:
        return None
    reply = _of_type(said, PublishReply)
    data = reply.data
    if not isinstance(data, Unchanged):
        data = _of_type(data, bytes) if isinstance(event.data, bytes) else _json(data)
    if not whole(0, VERSION_MAX).fits(reply.version):
        raise ValueError(f"a version is from 0 to {VERSION_MAX}")
    if len(_text(reply.version_epoch, "version_epoch")) > VERSION_EPOCH_CHARS_MAX:
        raise ValueError(f"a version_epoch has at most {VERSION_EPOCH_CHARS_MAX} characters")
    return replace(reply, data=data, tags=_tags(reply.tags), skip_history=bool(reply.skip_history))


def _subscription(found: object, *, takes_bytes: bool) -> ServerSubscription:
    sub = _of_type(found, ServerSubscription)
    # An answer over HTTP has both the bytes and, if they are JSON, their value.
    data = sub.raw if takes_bytes and sub.raw is not None else sub.data
    return ServerSubscription(
        _json(sub.info),
        _payload(data, takes_bytes=takes_bytes),
        _override(sub.override),
        server_tags_filter=_filter(sub.server_tags_filter),
        cache_recover=bool(sub.cache_recover),
    )


def _filter(found: object) -> Filter | None:
    # An answer over HTTP has been read already.
    return found if found is None or isinstance(found, Filter) else filter_of(found)


def _tags(found: object) -> Mapping[str, str] | None:
    """A copy of the tags of a publication. They are bounded with the publication."""
    if found is None:
        return None
    if not isinstance(found, Mapping):
        raise TypeError("tags are not a mapping")
    return {_text(key, "a tag's name"): _text(value, "a tag") for key, value in found.items()}


def _grant(found: object) -> Grant:
    grant = _of_type(found, Grant)
    channels = tuple(_text(channel, "a channel of caps") for channel in grant.channels)
    return Grant(channels, _capabilities(grant.allow), bool(grant.is_pattern))


def _override(found: object) -> ChannelOverride:
    override = _of_type(found, ChannelOverride)
    if not all(getattr(override, each.name) in (None, True, False) for each in fields(override)):
        raise TypeError("an override is neither True, False nor None")
    return override


def _capabilities(found: object) -> frozenset[Capability]:
    if not isinstance(found, frozenset | set | tuple | list):
        raise TypeError("allow is not a set")
    return frozenset(_of_type(each, Capability) for each in found)


def _channel(found: object) -> str:
    channel = _text(found, "a channel")
    if not is_valid_name(channel):
        raise ValueError("a subscription to what is no channel name")
    return channel


def _time(found: object) -> int | None:
    """Seconds since 1970. Clients cannot use fractions."""
    if found is None:
        return None
    if not NUMBER.fits(found):
        raise TypeError("expires_at is not a number of seconds")
    if not 0 < found <= TOKEN_TIME_MAX:
        raise ValueError("expires_at is no time")
    return int(found)


def _text(found: object, name: str) -> str:
    if not TEXT.fits(found):
        raise TypeError(f"{name} is not a text")
    found.encode()
    return found


def _of_type(found: object, wanted: type[R]) -> R:
    if not isinstance(found, wanted):
        raise TypeError(f"a {type(found).__name__} where a {wanted.__name__} belongs")
    return found


def _payload(found: object, *, takes_bytes: bool) -> Payload:
    return found if takes_bytes and isinstance(found, bytes) else _json(found)


def _json(found: object) -> Json:
    """A copy of a JSON value, because the application may change its own later.

    The copy's depth is bounded, so that it can still be encoded within a message.
    """
    if found is None or isinstance(found, bool):
        return found
    copy = orjson.loads(orjson.dumps(found, option=_STRICT))
    if is_deeper(copy, INFO_DEPTH_MAX):
        raise ValueError("nested too deeply")
    return copy
