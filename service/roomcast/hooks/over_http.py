"""Asks a back end over HTTP, in Centrifugo's proxy format: hooks that need not be Python.

Each hook here is an async callable, as an application's function would be, so that HookCalls calls
it like one. A request is made a second time only where the first cannot have been carried out, or
where being asked twice changes nothing:

    no connection could be made             again, for every event
    the connection broke before an answer   again, but for publish and rpc: they may have been done
    any answer, whatever its status         not again
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Final, Protocol, cast

import aiohttp
from yarl import URL

from roomcast.config import Config, ConfigError, ProxyConfig, aws_service
from roomcast.hooks.api import RpcMethod
from roomcast.hooks.calls import CALLS_UNDER_WAY_MAX, Hooks, refused
from roomcast.hooks.events import (
    ConnectEvent,
    ConnectReply,
    Disconnected,
    PublishEvent,
    Refused,
    RpcEvent,
    SubscribeEvent,
)
from roomcast.hooks.faults import Busy, NoDecision, TimedOut
from roomcast.hooks.passed_headers import headers_for
from roomcast.hooks.proxy_format import (
    Event,
    MalformedAnswer,
    Result,
    connect_reply,
    decided,
    publish_reply,
    refresh_reply,
    request_body,
    rpc_reply,
    sub_refresh_reply,
    subscribe_reply,
)
from roomcast.observe.ports import Span, Tracer
from roomcast.observe.spans import HOOK, HOOK_NAME, NO_TRACER
from roomcast.ports import PortError
from roomcast.wire.channels import ChannelRules
from roomcast.wire.codes import Error

__all__ = [
    "ANSWER_BYTES_MAX",
    "CALLS_OF_A_HOOK_MAX",
    "BackEnds",
    "HttpHook",
    "Signer",
    "connections_max",
    "with_http_hooks",
]

# Calls of one hook that run at once on a node. A back end that is slow takes no places of others.
CALLS_OF_A_HOOK_MAX: Final = 128
assert CALLS_OF_A_HOOK_MAX < CALLS_UNDER_WAY_MAX, "no hook takes the places of all"
# The part of these for further calls of callers who have one under way. The rest is for callers
# who have none: the slow calls of few must not be everybody's.
FURTHER_CALLS_PART: Final = 0.5
# Bytes of an answer. A reply to `connect` may name hundreds of channels.
ANSWER_BYTES_MAX: Final = 256 * 1024
_CHUNK_BYTES: Final = 16 * 1024
# Seconds for which a connection is kept that nobody uses. Servers end theirs after 2 s (gunicorn)
# or 5 s (uvicorn); a request that meets such an end is not made again if it is a publication.
_KEEP_ALIVE_S: Final = 1.5
_ATTEMPTS_MAX: Final = 2
# Seconds before the second attempt; from half of it on.
_PAUSE_S: Final = 0.1
_OK: Final = 200

# Uncompressed: a compressed answer could become any size.
_HEADERS: Final = {
    "Accept": "application/json",
    "Accept-Encoding": "identity",
    "Content-Type": "application/json",
    "User-Agent": "roomcast",
}


class Signer(Protocol):
    """Says in whose name a request is made."""

    async def ready(self) -> None:
        """Find the credentials, before the first request. Raises PortError."""

    async def headers(
        self, url: str, body: bytes, *, service: str, region: str
    ) -> Mapping[str, str]:
        """The headers that a POST of `body` to `url` needs besides its own. Raises PortError."""


class BackEnds:
    """The connections to all back ends of a node. They may be used between `open` and `close`.

    `signer`: of requests whose hook has `aws_iam`; None = no hook has it. `random`: from [0, 1).
    """

    def __init__(
        self,
        random: Callable[[], float],
        *,
        signer: Signer | None = None,
        tracer: Tracer = NO_TRACER,
    ) -> None:
        self.random = random
        self.signer = signer
        self.tracer = tracer
        self._session: aiohttp.ClientSession | None = None

    async def open(self) -> None:
        """Make ready. Connects to no back end yet. Raises PortError."""
        if self.signer is not None:
            await self.signer.ready()
        self._session = aiohttp.ClientSession(
            # Each hook bounds its own calls, so none waits here for the connections of another.
            connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=_KEEP_ALIVE_S),
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
            headers=_HEADERS,
            # Each hook has its own time.
            timeout=aiohttp.ClientTimeout(total=None),
        )

    async def close(self) -> None:
        """End all connections. Idempotent."""
        if self._session is not None:
            await self._session.close()

    @asynccontextmanager
    async def post(
        self,
        url: str,
        body: bytes,
        headers: Mapping[str, str],
        signed_for: tuple[str, str] | None = None,
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """`signed_for`: the service and the region; None = it is not signed.

        Raises aiohttp's errors, OSError and PortError.
        """
        assert self._session is not None, "it is opened before clients are let in"
        if signed_for is not None:
            assert self.signer is not None, "the configuration asks for one"
            service, region = signed_for
            signature = await self.signer.headers(url, body, service=service, region=region)
            headers = {**headers, **signature}
        # Redirects would send what clients said, and what says who we are, to somebody else.
        async with self._session.post(
            URL(url, encoded=True), data=body, headers=headers, allow_redirects=False
        ) as response:
            yield response


@dataclass(frozen=True, slots=True)
class _Kind:
    """`name`: of the event. `reply_of`: reads the result of its answers."""

    name: str
    reply_of: Callable[[Result | None], object]


class HttpHook:
    """Asks the back end of `proxy`. `statuses`: what is raised for answers with another status
    than 200. `rules`: say which channels are binary.
    """

    def __init__(
        self,
        kind: _Kind,
        proxy: ProxyConfig,
        back_ends: BackEnds,
        statuses: Mapping[int, Callable[[], Refused | Disconnected]],
        rules: ChannelRules,
    ) -> None:
        self._kind = kind
        self._rules = rules
        self._proxy = proxy
        self._back_ends = back_ends
        self._statuses = statuses
        self._timeout_s = proxy.timeout_ms / 1000
        self._signed_for = aws_service(proxy.endpoint) if proxy.aws_iam else None
        # By caller.
        self._under_way: Counter[str] = Counter()

    async def __call__(self, event: Event) -> object:
        """The reply. Raises Refused, Disconnected and NoDecision."""
        caller = _caller(event)
        part = FURTHER_CALLS_PART if caller in self._under_way else 1.0
        if self._under_way.total() >= CALLS_OF_A_HOOK_MAX * part:
            raise Busy("too many calls of this hook are under way")
        self._under_way[caller] += 1
        try:
            async with asyncio.timeout(self._timeout_s):
                with self._span(event) as span:
                    return await self._ask(event, span)
        except TimeoutError:
            raise TimedOut(self._timeout_s) from None
        finally:
            self._under_way[caller] -= 1
            if not self._under_way[caller]:
                del self._under_way[caller]

    def _reply_of(self, event: Event) -> Callable[[Result | None], object]:
        if isinstance(event, PublishEvent) and isinstance(event.data, bytes):
            return partial(publish_reply, is_binary=True)
        if isinstance(event, SubscribeEvent) and self._rules.is_binary(event.channel):
            return partial(subscribe_reply, is_binary=True)
        return self._kind.reply_of

    async def _ask(self, event: Event, span: Span | None) -> object:
        proxy = self._proxy
        try:
            body = request_body(
                event, binary=proxy.binary_encoding, with_meta=proxy.include_connection_meta
            )
        except TypeError:
            # What the client said is nested more deeply than can be encoded again.
            raise refused(Error.BAD_REQUEST) from None
        headers = headers_for(proxy, event.carrier.headers, event.carrier.emulated)
        if span is not None:
            headers["traceparent"] = span.context.traceparent()
        status, answer = await self._answered(event, body, headers)
        if status == _OK:
            try:
                return decided(answer, self._reply_of(event))
            except MalformedAnswer as error:
                raise NoDecision(f"not understood: {error}") from None
            except ValueError as error:
                # A code or text that clients cannot be sent.
                raise NoDecision(f"not possible: {error}") from None
        if (said := self._statuses.get(status)) is not None:
            raise said()
        raise NoDecision(f"status {status}")

    async def _answered(
        self, event: Event, body: bytes, headers: Mapping[str, str]
    ) -> tuple[int, bytes]:
        """Status and body of the answer. Raises NoDecision."""
        for attempt in range(1, _ATTEMPTS_MAX + 1):
            try:
                return await self._posted(body, headers)
            except aiohttp.ClientConnectorError as error:
                reason = str(error)
            except aiohttp.ClientConnectionError as error:
                reason = f"the connection broke: {type(error).__name__}"
                if isinstance(event, PublishEvent | RpcEvent):
                    raise NoDecision(reason) from None
            except PortError as error:
                raise NoDecision(str(error)) from None
            except (aiohttp.ClientError, OSError, ValueError) as error:
                # Their texts may have the whole address.
                raise NoDecision(type(error).__name__) from None
            if attempt < _ATTEMPTS_MAX:
                await asyncio.sleep(_PAUSE_S * (0.5 + self._back_ends.random() / 2))
        raise NoDecision(reason)

    async def _posted(self, body: bytes, headers: Mapping[str, str]) -> tuple[int, bytes]:
        """The same once. Raises NoDecision, PortError, aiohttp's errors and ValueError."""
        async with self._back_ends.post(
            self._proxy.endpoint, body, headers, self._signed_for
        ) as response:
            if response.status != _OK:
                # What else it says is for nobody here.
                return response.status, b""
            if response.headers.get("Content-Encoding", "identity").lower() != "identity":
                raise NoDecision("the answer is compressed, which was not asked for")
            return response.status, await _body(response)

    @contextmanager
    def _span(self, event: Event) -> Iterator[Span | None]:
        """A span of this call, if it is traced."""
        tracer = self._back_ends.tracer
        span = tracer.root(HOOK, getattr(event, "channel", "")) if tracer.is_on else None
        if span is None:
            yield None
            return
        failure = "cancelled"
        try:
            yield span
            failure = ""
        except (Refused, Disconnected):
            failure = ""
            raise
        except NoDecision:
            failure = "no decision"
            raise
        finally:
            span.end({HOOK_NAME: self._kind.name}, failure=failure)


async def _body(response: aiohttp.ClientResponse) -> bytes:
    body = bytearray()
    async for chunk in response.content.iter_chunked(_CHUNK_BYTES):
        body += chunk
        if len(body) > ANSWER_BYTES_MAX:
            raise NoDecision(f"an answer of more than {ANSWER_BYTES_MAX} bytes")
    return bytes(body)


class _WithoutToken:
    """Asks about connections without a token alone, as Centrifugo does: a token says who it is."""

    def __init__(self, hook: HttpHook) -> None:
        self._hook = hook

    async def __call__(self, event: ConnectEvent) -> ConnectReply | None:
        if event.has_token:
            return None
        return cast("ConnectReply | None", await self._hook(event))


class _ByNamespace:
    """Asks the hook that the options of the event's channel name, by `option`."""

    def __init__(self, rules: ChannelRules, option: str, hooks: Mapping[str, HttpHook]) -> None:
        self._rules = rules
        self._option = option
        self._hooks = hooks

    async def __call__(self, event: Any) -> Any:
        options = self._rules.options(event.channel)
        return await self._hooks[getattr(options, self._option)](event)


class _EveryMethod:
    """Asks one hook about every method."""

    def __init__(self, hook: HttpHook) -> None:
        self._hook = hook

    def find(self, name: str) -> RpcMethod | None:  # noqa: ARG002  # it is in the event
        return cast("RpcMethod", self._hook)


_CONNECT: Final = _Kind("connect", connect_reply)
_REFRESH: Final = _Kind("refresh", refresh_reply)
_SUBSCRIBE: Final = _Kind("subscribe", subscribe_reply)
_SUB_REFRESH: Final = _Kind("sub_refresh", sub_refresh_reply)
_PUBLISH: Final = _Kind("publish", publish_reply)
_RPC: Final = _Kind("rpc", rpc_reply)
_OF_CHANNELS: Final = (_SUBSCRIBE, _PUBLISH, _SUB_REFRESH)


def connections_max(config: Config) -> int:
    """How many connections to back ends the hooks of `config` may have at once."""
    return min(len(config.proxies.all_on()) * CALLS_OF_A_HOOK_MAX, CALLS_UNDER_WAY_MAX)


def with_http_hooks(hooks: Hooks, config: Config, back_ends: BackEnds) -> Hooks:
    """`hooks`, and those over HTTP of the configuration, which has no event in both places.

    Raises ConfigError for a code or text that clients cannot be sent.
    """
    proxies, rules = config.proxies, config.channel
    made: dict[str, Any] = {}
    if proxies.connect.is_on:
        made["connect"] = _WithoutToken(_hook(_CONNECT, proxies.connect, back_ends, rules))
    if proxies.refresh.is_on:
        made["refresh"] = _hook(_REFRESH, proxies.refresh, back_ends, rules)
    if proxies.rpc.is_on:
        made["rpc"] = _EveryMethod(_hook(_RPC, proxies.rpc, back_ends, rules))
    for kind in _OF_CHANNELS:
        asked = proxies.of_namespaces(kind.name, config.channel)
        if asked:
            made[kind.name] = _ByNamespace(
                rules,
                f"{kind.name}_proxy_name",
                {name: _hook(kind, proxy, back_ends, rules) for name, proxy in asked.items()},
            )
    return replace(hooks, **made) if made else hooks


def _hook(kind: _Kind, proxy: ProxyConfig, back_ends: BackEnds, rules: ChannelRules) -> HttpHook:
    """Raises ConfigError."""
    statuses: dict[int, Callable[[], Refused | Disconnected]] = {}
    for each in proxy.http.status_to_code_transforms:
        said: Callable[[], Refused | Disconnected]
        if each.to_error is not None:
            error = each.to_error
            said = partial(Refused, error.code, error.message, temporary=error.temporary)
        else:
            assert each.to_disconnect is not None, "it has one of both"
            said = partial(Disconnected, each.to_disconnect.code, each.to_disconnect.reason)
        try:
            said()
        except ValueError as error:
            raise ConfigError(
                f"http.status_to_code_transforms of the {kind.name} hook: {each.status_code}: "
                f"{error}"
            ) from None
        statuses.setdefault(each.status_code, said)
    return HttpHook(kind, proxy, back_ends, statuses, rules)


def _caller(event: Event) -> str:
    """All connections of a user are one caller, and so is each connection without a user."""
    return f"user {event.user}" if event.user else event.client
