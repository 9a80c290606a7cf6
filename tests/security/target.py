"""A node that is attacked: its whole HTTP surface over memory, with tokens and a key,
and everything that it logs.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import AsyncIterator, Iterator, Mapping, MutableMapping
from contextlib import asynccontextmanager, contextmanager
from typing import Any, Final

import aiohttp
import structlog
from aiohttp import web

from roomcast.auth.verifier import sign_connection, sign_subscription
from roomcast.config import TokenConfig
from roomcast.gateway.admission import Admission
from roomcast.gateway.api.server import Api
from roomcast.gateway.deflate import Compression
from roomcast.gateway.door import Door, GiveWay, end_proxied, name_no_version
from roomcast.gateway.http import add_health_routes
from roomcast.gateway.keys import HEALTH, NODE
from roomcast.gateway.streams import StreamGateway
from roomcast.gateway.websocket import WebSocketGateway
from roomcast.wire.channels import ChannelOptions, ChannelRules
from tests.unit.worlds import SECRET, Fleet, LocalNode, signals_at_any_rate, until
from tests.websocket import WebSocket

__all__ = [
    "DEADLINE_S",
    "HOST",
    "KEY",
    "PATH",
    "RULES",
    "SIZE_LIMIT",
    "UNI_PATH",
    "Logs",
    "Target",
    "target",
    "watched",
]

PATH: Final = "/connection/websocket"
UNI_PATH: Final = "/connection/uni_websocket"
# What clients call it; the Origin of its own pages is made of this.
HOST: Final = "chat.example.com"
KEY: Final = "the key of this test's back end"
SIZE_LIMIT: Final = 4096
# Connections at once: more than any test here opens, but for those that are about it.
PLACES: Final = 100
# For one answer; a loaded machine may be slow.
DEADLINE_S: Final = 15.0

_OPEN: Final[dict[str, Any]] = {
    "allow_subscribe_for_client": True,
    "allow_publish_for_client": True,
    "allow_presence_for_client": True,
    "allow_history_for_client": True,
}
# As much as there is behind a frame: history, recovery, presence, differences,
# channels without any of it.
RULES: Final = ChannelRules(
    without_namespace=ChannelOptions(
        history_size=20,
        history_ttl_s=300,
        force_recovery=True,
        presence=True,
        join_leave=True,
        force_push_join_leave=True,
        allow_channel_compaction=True,
        allowed_delta_types=("fossil",),
        **_OPEN,
    ),
    namespaces={
        "plain": ChannelOptions(**_OPEN),
        "shut": ChannelOptions(),
        "bin": ChannelOptions(
            history_size=20,
            history_ttl_s=300,
            allowed_delta_types=("fossil",),
            delta_publish=True,
            publication_data_format="binary",
            **_OPEN,
        ),
    },
)


class Logs(logging.Handler):
    """What the product and the libraries below it logged."""

    def __init__(self, events: list[MutableMapping[str, Any]]) -> None:
        super().__init__()
        self.events = events
        self.records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)

    def faults(self) -> list[str]:
        """Everything that is a fault of ours: errors, and whatever has a traceback."""
        ours = [
            repr(event)
            for event in self.events
            if event.get("exc_info") or event["log_level"] in ("error", "critical")
        ]
        theirs = [
            f"{record.name}: {record.getMessage()} {record.exc_info}"
            for record in self.records
            if record.exc_info or record.levelno >= logging.ERROR
        ]
        return ours + theirs

    def text(self) -> str:
        """All of it."""
        return repr(self.events) + "".join(
            f"{record.getMessage()} {record.exc_info}" for record in self.records
        )


@contextmanager
def watched() -> Iterator[Logs]:
    """What is logged meanwhile."""
    root = logging.getLogger()
    with structlog.testing.capture_logs() as events:
        logs = Logs(events)
        root.addHandler(logs)
        try:
            yield logs
        finally:
            root.removeHandler(logs)


class Target:
    """One listening node; what is published comes back through its queue, as in a deployment."""

    def __init__(
        self,
        node: LocalNode,
        port: int,
        session: aiohttp.ClientSession,
        token: TokenConfig,
        door: Door,
        streams: StreamGateway,
    ) -> None:
        self.door = door
        self.streams = streams
        self._named: dict[str, Any] = {"audience": token.audience, "issuer": token.issuer}
        self.node = node
        self.session = session
        self.port = port
        self.url = f"http://127.0.0.1:{port}"

    @property
    def connections(self) -> int:
        return len(self.node.assembly.node)

    def token(self, user: str = "ann", ttl_s: int = 3600) -> str:
        return sign_connection(user, SECRET, ttl_s, now_s=self.now_s, **self._named)

    def subscription_token(self, channel: str, user: str = "ann") -> str:
        return sign_subscription(user, channel, SECRET, 3600, now_s=self.now_s, **self._named)

    @property
    def now_s(self) -> float:
        return self.node.clock.now_ms() / 1000

    async def upgrade(self, **options: Any) -> aiohttp.ClientWebSocketResponse:
        response: aiohttp.ClientWebSocketResponse = await self.session.ws_connect(
            self.url + PATH, **options
        )
        return response

    async def raw(self, request: bytes) -> bytes:
        """The head of the answer to what no HTTP client would send,
        without anything after it; b"" = none came.
        """
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        try:
            writer.write(request)
            async with asyncio.timeout(DEADLINE_S):
                try:
                    head = await reader.readuntil(b"\r\n\r\n")
                except asyncio.IncompleteReadError as short:
                    head = short.partial
        finally:
            writer.close()
        return head

    async def still_serves(self) -> None:
        """A client connects, subscribes, publishes and gets it; the API publishes;
        nobody else is connected.
        """
        await until(lambda: self.connections == 0)
        channel = "plain:after"
        async with await self.upgrade() as response:
            socket = WebSocket(response)
            assert (await socket.ask("connect", token=self.token("an honest user")))["client"]
            assert await socket.ask("subscribe", channel=channel) == {}
            assert await socket.ask("publish", channel=channel, data="of a client") == {}
            body = {"channel": channel, "data": "of a back end"}
            async with self.session.post(
                f"{self.url}/api/publish", json=body, headers={"X-API-Key": KEY}
            ) as answer:
                assert "result" in await answer.json()
            assert await socket.published(channel, 2) == ["of a client", "of a back end"]
        async with self.session.get(f"{self.url}/health/ready") as answer:
            assert answer.status == 200
        await until(lambda: self.connections == 0)


@asynccontextmanager
async def target(
    *,
    origins: tuple[str, ...] = (),
    size_limit: int = SIZE_LIMIT,
    times: Mapping[str, Any] | None = None,
    compression: Compression | None = None,
    **client: Any,
) -> AsyncIterator[Target]:
    """Ends with every connection closed. `client`: options of [client];
    tokens of SECRET are good unless they say otherwise.

    `times`: of the door, such as `request_s`. `compression`: of WebSockets.
    """
    fleet = Fleet()
    fleet.stream_to_topic()
    node = fleet.node(
        insecure=False, secret=SECRET, rules=RULES, message_size_limit=size_limit, **client
    )
    app = web.Application()
    app[NODE], app[HEALTH] = node.assembly.node, node.assembly.node.health
    admission, queue_bytes_max = Admission(allowed_origins=origins), 4 * 1024 * 1024
    gateway = WebSocketGateway(
        admission,
        message_size_limit=size_limit,
        queue_bytes_max=queue_bytes_max,
        compression=compression,
    )
    app.router.add_get(PATH, gateway.handle)
    app.router.add_get(UNI_PATH, gateway.handle_unidirectional)
    streams = StreamGateway(
        admission, message_size_limit=size_limit, queue_bytes_max=queue_bytes_max
    )
    streams.add_routes(app)
    add_health_routes(app)
    Api(key=KEY, insecure=False, message_size_limit=size_limit).add_routes(app)
    # As `roomcast serve` has it.
    app.on_response_prepare.extend([GiveWay(), name_no_version, end_proxied])
    runner = web.AppRunner(app, handle_signals=False, shutdown_timeout=1.0)
    with signals_at_any_rate():
        async with node.running(), aiohttp.ClientSession() as session:
            await runner.setup()
            listening = socket.create_server(("127.0.0.1", 0))
            assert runner.server is not None
            door = Door(runner.server, listening, places_max=PLACES, **(times or {}))
            try:
                door.open()
                token = client.get("token", TokenConfig())
                yield Target(node, listening.getsockname()[1], session, token, door, streams)
                await until(lambda: len(node.assembly.node) == 0)
            finally:
                await runner.cleanup()
                await door.end()
