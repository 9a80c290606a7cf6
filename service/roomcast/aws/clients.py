"""The AWS clients of one process: their time-outs, pools and retries.

All clients are made before the process listens: making them blocks the event loop for some 200 ms
in all.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, Self

import aioboto3
import aiohttp
from aiobotocore.config import AioConfig
from aiobotocore.httpsession import AIOHTTPSession

from roomcast.aws.calls import Calls
from roomcast.aws.errors import (
    ATTEMPTS_MAX,
    CALL_LIMIT_S,
    CONNECT_TIMEOUT_S,
    POLL_READ_TIMEOUT_S,
    READ_TIMEOUT_S,
    demand_request_ids,
    port_errors,
)
from roomcast.aws.lean import ANSWER_BYTES_MAX, LeanClient
from roomcast.ports import PortError

__all__ = ["AwsClients", "QueueClients", "connect", "connect_queues"]

# One append per channel is in flight, with reads beside it. Each idle connection costs a socket.
LOG_CONNECTIONS_MAX: Final = 64
TABLES_CONNECTIONS_MAX: Final = 32
SNS_CONNECTIONS_MAX: Final = 16
SQS_CONNECTIONS_MAX: Final = 16
# A long poll holds its connection for POLL_WAIT_S, and no other call may wait behind one.
POLL_CONNECTIONS_MAX: Final = 16
# One call at a time, and usually none.
SIDE_CONNECTIONS_MAX: Final = 2

_ONE_ATTEMPT: Final = {"mode": "standard", "total_max_attempts": 1}
_RETRIED: Final = {"mode": "standard", "total_max_attempts": ATTEMPTS_MAX}


@dataclass(frozen=True, slots=True)
class AwsClients:
    """Open clients, each with its own pool.

    `log`: DynamoDB for the channel log. The SDK never retries it, because only the log knows when
    the same append may be sent again. `tables`: DynamoDB for everything else. `sqs_poll`: long
    polls only. `autoscaling` is None unless requested, because it costs start time and memory.
    """

    log: Any
    tables: Any
    sns: Any
    sqs: Any
    sqs_poll: Any
    autoscaling: Any | None = None


@dataclass(frozen=True, slots=True)
class QueueClients:
    """Of queues that are not the node's own. `poll`: long polls only."""

    control: Any
    poll: Any


class _BoundedAnswer(aiohttp.ClientResponse):
    """An answer of ANSWER_BYTES_MAX at most: the SDK would keep one without end until its time is
    over.
    """

    async def read(self) -> bytes:
        """Called once. Raises ClientPayloadError."""
        body = bytearray()
        try:
            async for part in self.content.iter_any():
                body += part
                if len(body) > ANSWER_BYTES_MAX:
                    raise aiohttp.ClientPayloadError(f"more than {ANSWER_BYTES_MAX} bytes")
        except BaseException:
            self.close()
            raise
        await self.wait_for_close()
        return bytes(body)


class _ReadySession(AIOHTTPSession):  # type: ignore[misc]  # the SDK has no types
    """The SDK's HTTP session, which makes its TLS context when it is opened, not at the first call.

    Reading the certificates blocks the event loop for 20 ms a client. Its answers have a bound.
    """

    async def __aenter__(self) -> Self:
        await super().__aenter__()
        await self._get_session(None)
        return self

    async def _get_session(self, proxy_url: str | None) -> aiohttp.ClientSession:
        session: aiohttp.ClientSession = await super()._get_session(proxy_url)
        # The SDK has no parameter for it.
        session._response_class = _BoundedAnswer  # noqa: SLF001
        return session

    def straight(self, url: str) -> aiohttp.ClientSession | None:
        """What connects to `url` without a proxy. None: a proxy is configured."""
        if self._proxy_config.proxy_url_for(url) is not None:
            return None
        session: aiohttp.ClientSession = self._sessions[None]
        return session


def _bound_credentials(session: aioboto3.Session) -> None:
    """Gives the SDK's sessions for credentials (of an instance's or task's metadata) a bound.

    They are none of any client's, and the SDK has no parameter for them. Where it has changed,
    there is no bound, as before.
    """
    resolver = session._session.get_component("credential_provider")  # noqa: SLF001
    for provider in resolver.providers:
        for name in ("_role_fetcher", "_fetcher"):
            found = getattr(getattr(provider, name, None), "_session", None)
            if isinstance(found, AIOHTTPSession):
                found._get_session = partial(_bounded, found._get_session)  # noqa: SLF001


async def _bounded(
    get_session: Callable[[str | None], Awaitable[aiohttp.ClientSession]], proxy_url: str | None
) -> aiohttp.ClientSession:
    session = await get_session(proxy_url)
    session._response_class = _BoundedAnswer  # noqa: SLF001
    return session


@asynccontextmanager
async def connect(
    *,
    region: str | None = None,
    endpoint_url: str | None = None,
    session: aioboto3.Session | None = None,
    autoscaling: bool = False,
    calls: Calls | None = None,
    lean: bool = True,
) -> AsyncIterator[AwsClients]:
    """Opens every client, and closes them at the end.

    A parameter of None is taken from the environment and the instance's role.

    `calls` counts every call. `lean`: the calls that are made most go the short way, unless a proxy
    is configured.

    Raises PortError when the settings of AWS tools, such as a profile, are wrong or missing, or
    credentials cannot be got.
    """
    async with AsyncExitStack() as stack:
        async with _settings_named(), port_errors(CALL_LIMIT_S):
            # It reads the files of AWS tools, which may be damaged.
            chosen = session or aioboto3.Session()
            _bound_credentials(chosen)
            opened = _Opener(stack, chosen, region, endpoint_url, calls, lean=lean)
            clients = AwsClients(
                log=await opened(
                    *("dynamodb", LOG_CONNECTIONS_MAX, _ONE_ATTEMPT, READ_TIMEOUT_S),
                    *("put_item", "query"),
                    # Clients make as many of these calls as they like. The SDK does not repeat
                    # them, so none keeps its place while it pauses.
                    at_once=LOG_CONNECTIONS_MAX,
                ),
                tables=await opened(
                    *("dynamodb", TABLES_CONNECTIONS_MAX, _RETRIED, READ_TIMEOUT_S),
                    # Of presence, as often as clients come and go.
                    *("put_item", "delete_item"),
                ),
                sns=await opened(
                    *("sns", SNS_CONNECTIONS_MAX, _RETRIED, READ_TIMEOUT_S), "publish"
                ),
                sqs=await opened(
                    *("sqs", SQS_CONNECTIONS_MAX, _RETRIED, READ_TIMEOUT_S), "delete_message_batch"
                ),
                sqs_poll=await opened(
                    *("sqs", POLL_CONNECTIONS_MAX, _ONE_ATTEMPT, POLL_READ_TIMEOUT_S),
                    "receive_message",
                ),
                autoscaling=await opened(
                    "autoscaling", SIDE_CONNECTIONS_MAX, _RETRIED, READ_TIMEOUT_S
                )
                if autoscaling
                else None,
            )
        yield clients


@asynccontextmanager
async def connect_queues(
    queues_max: int,
    *,
    region: str | None = None,
    endpoint_url: str | None = None,
    session: aioboto3.Session | None = None,
    calls: Calls | None = None,
    lean: bool = True,
) -> AsyncIterator[QueueClients]:
    """Opens the clients of queues that are not the node's own, `queues_max` of them. As `connect`
    otherwise.
    """
    async with AsyncExitStack() as stack:
        async with _settings_named(), port_errors(CALL_LIMIT_S):
            chosen = session or aioboto3.Session()
            _bound_credentials(chosen)
            opened = _Opener(stack, chosen, region, endpoint_url, calls, lean=lean)
            clients = QueueClients(
                control=await opened(
                    *("sqs", queues_max, _RETRIED, READ_TIMEOUT_S), "delete_message_batch"
                ),
                poll=await opened(
                    *("sqs", queues_max, _ONE_ATTEMPT, POLL_READ_TIMEOUT_S), "receive_message"
                ),
            )
        yield clients


class _Opener:
    """Opens clients with the same settings, and closes them with `stack`."""

    def __init__(
        self,
        stack: AsyncExitStack,
        session: aioboto3.Session,
        region: str | None,
        endpoint_url: str | None,
        calls: Calls | None,
        *,
        lean: bool,
    ) -> None:
        self._stack = stack
        self._session = session
        self._region = region
        self._endpoint_url = endpoint_url
        self._calls = calls
        self._lean = lean
        # None: the SDK's own choice of certificates. An emulator without TLS needs none.
        is_plain = endpoint_url is not None and endpoint_url.startswith("http://")
        self._verify = False if is_plain else None

    async def __call__(
        self,
        service: str,
        connections_max: int,
        retries: dict[str, Any],
        read_s: float,
        *lean_methods: str,
        at_once: int | None = None,
    ) -> Any:
        config = AioConfig(
            connect_timeout=CONNECT_TIMEOUT_S,
            read_timeout=read_s,
            max_pool_connections=connections_max,
            retries=retries,
            user_agent_extra="roomcast",
            http_session_cls=_ReadySession,
        )
        client = self._session.client(
            service,
            region_name=self._region,
            endpoint_url=self._endpoint_url,
            verify=self._verify,
            config=config,
        )
        entered = await self._stack.enter_async_context(client)
        demand_request_ids(entered)
        if self._lean and lean_methods:
            session_of_it: _ReadySession = entered._endpoint.http_session  # noqa: SLF001
            straight = session_of_it.straight(entered.meta.endpoint_url)
            if straight is not None:
                entered = LeanClient(entered, straight, lean_methods)
        return entered if self._calls is None else self._calls.timed(entered, service, at_once)


@asynccontextmanager
async def _settings_named() -> AsyncIterator[None]:
    """Says in errors what they are about: the SDK's own may be no more than "No such file"."""
    try:
        yield
    except PortError as error:
        raise type(error)(f"settings or credentials of AWS: {error}") from error
