"""Clients as applications have them: the published SDKs, unchanged,
behind one interface for the tests.
"""

from __future__ import annotations

import asyncio
import itertools
import json
from abc import ABC, abstractmethod
from base64 import b64decode, b64encode
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, Self

import centrifuge
from centrifuge.filter import FilterNode

from tests.requirements import JS_DIRECTORY

if TYPE_CHECKING:
    from playwright.async_api import Page

__all__ = [
    "CLIENTS",
    "DEADLINE_S",
    "PROTOBUF",
    "SDKS",
    "BrowserPeer",
    "JsPeer",
    "Peer",
    "PyPeer",
    "Refused",
]

SDKS: Final = ("js", "py")
# What follows the name of an SDK that is to speak Protobuf.
PROTOBUF: Final = "-protobuf"
# Every SDK in every encoding.
CLIENTS: Final = (*SDKS, *(f"{sdk}{PROTOBUF}" for sdk in SDKS))
# Of one step, on a machine that does much else.
DEADLINE_S: Final = 20.0
# Between attempts to connect. The SDKs' own pauses are for a fleet;
# here nobody else wants to connect.
RETRY_S: Final = 0.1
# One line of the JavaScript driver: a history reply is up to half a MiB.
LINE_BYTES_MAX: Final = 4 * 1024 * 1024

Event = dict[str, Any]
Position = dict[str, Any]


class Refused(Exception):
    """The server answered a command with an error."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(f"{code}: {message}")
        self.code = code


class Peer(ABC):
    """One client. `events` holds everything that happened to it, in order;
    `event` takes from it.
    """

    def __init__(
        self, url: str, token: str = "", fresh_tokens: Sequence[str] = (), *, data: Any = None
    ) -> None:
        """`data` goes with each connect. `token` is presented first; `fresh_tokens` are what the
        application gives when the SDK asks for another: one after the other, the last one again and
        again. That it asked is an event `token`, for a subscription `sub_token`.
        """
        self.url = url
        self.token = token
        self.fresh_tokens = fresh_tokens
        self.data = data
        self.events: list[Event] = []
        self.client = ""
        self._untaken: list[Event] = []
        self._more = asyncio.Event()

    @abstractmethod
    async def call(self, op: str, **arguments: Any) -> Any:
        """Carry out one operation of the SDK. Raises Refused."""

    @abstractmethod
    async def close(self) -> None:
        """Leave nothing behind. Idempotent."""

    # ---- what happens to it

    def happened(self, event: Event) -> None:
        self.events.append(event)
        self._untaken.append(event)
        if event["event"] == "connected":
            self.client = event["client"]
        self._more.set()

    async def event(self, name: str, **fields: Any) -> Event:
        """The first event that was not taken yet of that name and with those
        fields; waits for it.
        """
        wanted = {"event": name, **fields}
        try:
            async with asyncio.timeout(DEADLINE_S):
                while True:
                    for index, event in enumerate(self._untaken):
                        if wanted.items() <= event.items():
                            return self._untaken.pop(index)
                    self._more.clear()
                    await self._more.wait()
        except TimeoutError:
            raise AssertionError(
                f"no {wanted} within {DEADLINE_S} s; there were {self.events}"
            ) from None

    def received(self, channel: str) -> list[tuple[int, Any]]:
        """(offset, data) of every publication of `channel` so far,
        in the order in which they came.
        """
        return [
            (event["offset"], event["data"])
            for event in self.events
            if event["event"] == "publication" and event["channel"] == channel
        ]

    # ---- what it does

    async def connect(self) -> None:
        await self.call("connect")
        await self.event("connected")

    async def disconnect(self) -> None:
        await self.call("disconnect")
        await self.event("disconnected")

    async def subscribe(self, channel: str, **options: Any) -> Event:
        """`options`: token, fresh_tokens, delta; since, which the SDK for Python asks the
        application for; `asks`, of positioned, recoverable and join_leave; `filter`, a FilterNode
        of the protocol.
        """
        await self.call("subscribe", channel=channel, **options)
        return await self.event("subscribed", channel=channel)

    async def unsubscribe(self, channel: str) -> None:
        await self.call("unsubscribe", channel=channel)
        await self.event("unsubscribed", channel=channel)

    async def publish(self, channel: str, data: Any) -> None:
        """Returns when it is acknowledged. Raises Refused."""
        await self.call("publish", channel=channel, data=data)

    async def publish_text(self, channel: str, text: str) -> None:
        """A payload as bytes, with Protobuf only.
        Returns when it is acknowledged. Raises Refused.
        """
        await self.call("publish_text", channel=channel, text=text)

    async def publish_bytes(self, channel: str, raw: bytes) -> None:
        """As `publish_text`, in a binary channel."""
        await self.call("publish_bytes", channel=channel, base64=b64encode(raw).decode())

    async def history(
        self, channel: str, *, limit: int = -1, since: Position | None = None, reverse: bool = False
    ) -> Any:
        """{"publications": […], "offset", "epoch"}. Raises Refused."""
        return await self.call(
            "history", channel=channel, limit=limit, since=since, reverse=reverse
        )

    async def presence(self, channel: str) -> Any:
        """Client id to {"user", "client", "conn_info"}. Raises Refused."""
        return await self.call("presence", channel=channel)

    async def presence_stats(self, channel: str) -> Any:
        """{"num_clients", "num_users"}. Raises Refused."""
        return await self.call("presence_stats", channel=channel)

    async def rpc(self, method: str, data: Any) -> Any:
        """Raises Refused."""
        return await self.call("rpc", method=method, data=data)


class _ScriptPeer(Peer):
    """npm `centrifuge`, driven by js/client.mjs somewhere."""

    def __init__(
        self,
        url: str,
        token: str = "",
        fresh_tokens: Sequence[str] = (),
        *,
        protobuf: bool = False,
        data: Any = None,
        transports: Sequence[str] | None = None,
    ) -> None:
        """`transports`: those to try, in turn; None = a WebSocket."""
        super().__init__(url, token, fresh_tokens, data=data)
        self._transports = transports
        self._protobuf = protobuf
        self._ids = itertools.count(1)

    def _command(self, op: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
        if op == "connect":
            arguments = {
                "url": self.url,
                "token": self.token,
                "fresh_tokens": list(self.fresh_tokens),
                "protobuf": self._protobuf,
                "data": self.data,
                "retry_ms": RETRY_S * 1000,
                "transports": self._transports,
            }
        given = {name: value for name, value in arguments.items() if value is not None}
        return {"id": next(self._ids), "op": op, **given}


class JsPeer(_ScriptPeer):
    """Over `ws`, in a Node.js process of its own (js/driver.mjs)."""

    def __init__(self, *arguments: Any, node: str, **options: Any) -> None:
        """`node`: the path of Node.js."""
        super().__init__(*arguments, **options)
        self._node = node
        self._answers: dict[int, asyncio.Future[Any]] = {}
        self._process: asyncio.subprocess.Process | None = None
        self._reader: asyncio.Task[None] | None = None

    async def call(self, op: str, **arguments: Any) -> Any:
        process = self._process or await self._start()
        assert process.stdin is not None, "asked for a pipe"
        command = self._command(op, arguments)
        answer = asyncio.get_running_loop().create_future()
        self._answers[command["id"]] = answer
        process.stdin.write(json.dumps(command).encode() + b"\n")
        async with asyncio.timeout(DEADLINE_S):
            return await answer

    async def close(self) -> None:
        if self._process is None or self._reader is None:
            return
        assert self._process.stdin is not None, "asked for a pipe"
        self._process.stdin.close()
        async with asyncio.timeout(DEADLINE_S):
            await self._process.wait()
            await self._reader
        assert self._process.returncode == 0, "the driver failed; its stderr is above"
        self._process = None

    async def _start(self) -> asyncio.subprocess.Process:
        self._process = await asyncio.create_subprocess_exec(
            self._node,
            str(JS_DIRECTORY / "driver.mjs"),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            limit=LINE_BYTES_MAX,
        )
        self._reader = asyncio.create_task(self._read(self._process))
        return self._process

    async def _read(self, process: asyncio.subprocess.Process) -> None:
        assert process.stdout is not None, "asked for a pipe"
        async for text in process.stdout:
            line = json.loads(text)
            if "event" in line:
                self.happened(line)
                continue
            answer = self._answers.pop(line["id"])
            try:
                answer.set_result(_result(line))
            except Refused as refused:
                answer.set_exception(refused)


class BrowserPeer(_ScriptPeer):
    """In a page of a real browser (js/page.html), which the caller has opened and closes."""

    def __init__(self, page: Page, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._page = page

    async def opened(self, address: str) -> Self:
        """Load js/page.html from `address`."""
        await self._page.expose_function("happened", self.happened)
        await self._page.goto(address)
        return self

    async def call(self, op: str, **arguments: Any) -> Any:
        async with asyncio.timeout(DEADLINE_S):
            return _result(
                await self._page.evaluate(
                    "command => carryOut(command)", self._command(op, arguments)
                )
            )

    async def close(self) -> None:
        """Its page is the caller's."""


def _result(line: Mapping[str, Any]) -> Any:
    """Of what js/client.mjs answers. Raises Refused."""
    if "error" in line:
        raise Refused(line["error"]["code"], line["error"]["message"])
    return line["result"]


class PyPeer(Peer):
    """PyPI `centrifuge-python`, in this process."""

    def __init__(
        self,
        url: str,
        token: str = "",
        fresh_tokens: Sequence[str] = (),
        *,
        protobuf: bool = False,
        data: Any = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        """`headers`: of its request, as a browser sends cookies."""
        super().__init__(url, token, fresh_tokens, data=data)
        self.protobuf = protobuf
        self._client = centrifuge.Client(
            url,
            events=_ClientEvents(self),
            token=token,
            get_token=self._giving(fresh_tokens, "token"),
            min_reconnect_delay=RETRY_S,
            max_reconnect_delay=RETRY_S,
            proxy=None,
            use_protobuf=protobuf,
            headers=headers,
            data=None if data is None else self._outgoing(data),
        )

    async def call(self, op: str, **arguments: Any) -> Any:
        operation = getattr(self, f"_{op}")
        try:
            return await operation(**arguments)
        except centrifuge.ReplyError as error:
            raise Refused(error.code, str(error)) from error

    async def close(self) -> None:
        await self._client.disconnect()
        # The SDK closes its connection in the background and offers nothing to wait for.
        if self._client._background_tasks:
            await asyncio.wait(set(self._client._background_tasks), timeout=DEADLINE_S)

    async def _connect(self) -> None:
        await self._client.connect()

    async def _disconnect(self) -> None:
        await self._client.disconnect()

    def _giving(
        self, tokens: Sequence[str], event: str, **fields: Any
    ) -> Callable[..., Any] | None:
        """What the SDK calls when it wants another token: for the connection,
        or with the channel.
        """
        left = list(tokens)

        async def give(*_: str) -> str:
            self.happened({"event": event, **fields})
            return left.pop(0) if len(left) > 1 else left[0]

        return give if tokens else None

    async def _subscribe(
        self,
        channel: str,
        token: str = "",
        fresh_tokens: Sequence[str] = (),
        delta: str | None = None,
        since: Position | None = None,
        asks: Sequence[str] = (),
        filter: Mapping[str, Any] | None = None,  # noqa: A002  # the tests say it by name
    ) -> None:
        async def stood_at(_: str) -> Any:
            return centrifuge.StreamPosition(**(since or {}))

        subscription = self._client.get_subscription(channel)
        if subscription is None:
            subscription = self._client.new_subscription(
                channel,
                events=_SubscriptionEvents(self, channel),
                token=token,
                get_token=self._giving(fresh_tokens, "sub_token", channel=channel),
                delta=centrifuge.DeltaType(delta) if delta else None,
                get_state=stood_at if since else None,
                tags_filter=FilterNode(dict(filter)) if filter else None,
                **dict.fromkeys(asks, True),
            )
        await subscription.subscribe()

    async def _unsubscribe(self, channel: str) -> None:
        await self._client.get_subscription(channel).unsubscribe()

    async def _publish(self, channel: str, data: Any) -> None:
        await self._client.publish(channel, self._outgoing(data))

    async def _publish_text(self, channel: str, text: str) -> None:
        await self._client.publish(channel, text.encode())

    async def _publish_bytes(self, channel: str, base64: str) -> None:
        await self._client.publish(channel, b64decode(base64))

    async def _history(
        self, channel: str, limit: int, since: Position | None, reverse: bool
    ) -> Any:
        position = centrifuge.StreamPosition(**since) if since else None
        result = await self._client.history(channel, limit=limit, since=position, reverse=reverse)
        return {
            "publications": [self.message(publication) for publication in result.publications],
            "offset": result.offset,
            "epoch": result.epoch,
        }

    async def _presence(self, channel: str) -> Any:
        result = await self._client.presence(channel)
        return {client: self.person(info) for client, info in result.clients.items()}

    async def _presence_stats(self, channel: str) -> Any:
        result = await self._client.presence_stats(channel)
        return {"num_clients": result.num_clients, "num_users": result.num_users}

    async def _rpc(self, method: str, data: Any) -> Any:
        return self._incoming((await self._client.rpc(method, self._outgoing(data))).data)

    # With Protobuf the SDK passes payloads on as bytes;
    # what they hold is the application's business.

    def _outgoing(self, data: Any) -> Any:
        return json.dumps(data).encode() if self.protobuf else data

    def _incoming(self, data: Any) -> Any:
        if not self.protobuf or data is None:
            return data
        try:
            return json.loads(data)
        except ValueError:
            # In binary channels payloads need be no JSON.
            return None

    def message(self, publication: Any) -> Event:
        info = publication.info and self.person(publication.info)
        # The SDK shows no bytes as None.
        raw = (publication.data or b"") if self.protobuf else None
        return {
            "offset": publication.offset,
            "data": self._incoming(publication.data),
            "text": None if raw is None else raw.decode(errors="replace"),
            "base64": None if raw is None else b64encode(raw).decode(),
            "info": info,
        }

    def person(self, info: Any) -> Event:
        return {
            "user": info.user,
            "client": info.client,
            "conn_info": self._incoming(info.conn_info),
        }


class _ClientEvents(centrifuge.ClientEventHandler):  # type: ignore[misc]  # the SDK ships no types
    def __init__(self, peer: PyPeer) -> None:
        self._peer = peer

    async def on_connecting(self, ctx: Any) -> None:
        self._peer.happened({"event": "connecting", "code": ctx.code, "reason": ctx.reason})

    async def on_connected(self, ctx: Any) -> None:
        data = self._peer._incoming(ctx.data or None)
        self._peer.happened({"event": "connected", "client": ctx.client, "data": data})

    async def on_disconnected(self, ctx: Any) -> None:
        self._peer.happened({"event": "disconnected", "code": ctx.code, "reason": ctx.reason})

    async def on_error(self, ctx: Any) -> None:
        code = getattr(ctx.error, "code", ctx.code)
        self._peer.happened({"event": "error", "code": code, "message": str(ctx.error)})

    # ---- subscriptions that the server made

    async def on_subscribed(self, ctx: Any) -> None:
        position = ctx.stream_position
        self._tell(
            ctx,
            "subscribed",
            was_recovering=ctx.was_recovering,
            recovered=ctx.recovered,
            data=self._peer._incoming(ctx.data or None),
            position=position and {"offset": position.offset, "epoch": position.epoch},
        )

    async def on_unsubscribed(self, ctx: Any) -> None:
        self._tell(ctx, "unsubscribed")

    async def on_publication(self, ctx: Any) -> None:
        self._tell(ctx, "publication", **self._peer.message(ctx.pub))

    async def on_join(self, ctx: Any) -> None:
        self._tell(ctx, "join", info=self._peer.person(ctx.info))

    async def on_leave(self, ctx: Any) -> None:
        self._tell(ctx, "leave", info=self._peer.person(ctx.info))

    def _tell(self, ctx: Any, event: str, **fields: Any) -> None:
        self._peer.happened({"event": event, "channel": ctx.channel, "server_side": True, **fields})


class _SubscriptionEvents(centrifuge.SubscriptionEventHandler):  # type: ignore[misc]  # as above
    def __init__(self, peer: PyPeer, channel: str) -> None:
        self._peer = peer
        self._channel = channel

    async def on_subscribing(self, ctx: Any) -> None:
        self._tell("subscribing", code=ctx.code, reason=ctx.reason)

    async def on_subscribed(self, ctx: Any) -> None:
        position = ctx.stream_position
        self._tell(
            "subscribed",
            recoverable=ctx.recoverable,
            positioned=ctx.positioned,
            was_recovering=ctx.was_recovering,
            recovered=ctx.recovered,
            data=self._peer._incoming(ctx.data or None),
            position=position and {"offset": position.offset, "epoch": position.epoch},
        )

    async def on_unsubscribed(self, ctx: Any) -> None:
        self._tell("unsubscribed", code=ctx.code, reason=ctx.reason)

    async def on_publication(self, ctx: Any) -> None:
        self._tell("publication", **self._peer.message(ctx.pub))

    async def on_join(self, ctx: Any) -> None:
        self._tell("join", info=self._peer.person(ctx.info))

    async def on_leave(self, ctx: Any) -> None:
        self._tell("leave", info=self._peer.person(ctx.info))

    async def on_error(self, ctx: Any) -> None:
        self._tell("error", code=getattr(ctx.error, "code", ctx.code), message=str(ctx.error))

    def _tell(self, event: str, **fields: Any) -> None:
        self._peer.happened({"event": event, "channel": self._channel, **fields})
