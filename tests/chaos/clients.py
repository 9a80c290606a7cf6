"""Publishers and subscribers, most of them with the published SDKs, each behind a load balancer of
its own.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from http import HTTPStatus
from random import Random
from typing import Any, Final
from urllib.parse import urlsplit

import aiohttp
import centrifuge
import jwt

from tests.acceptance.link import Link
from tests.acceptance.peers import SDKS, Event, JsPeer, Peer, PyPeer, Refused
from tests.chaos.checker import Checker, Position

__all__ = ["CLIENTS", "KEY", "LISTENING", "STREAMING", "Balancer", "Publisher", "open_peer"]

# The SDK for JavaScript over HTTP streams: each of its requests goes to another instance.
STREAMING: Final = "js streaming"
# Without an SDK: a subscriber only, by its token.
LISTENING: Final = "no SDK"
CLIENTS: Final = (*SDKS, STREAMING, LISTENING)
# chaos.toml has it.
KEY: Final = "of-the-chaos-tests-and-nobody-else"
# Between two attempts to connect without an SDK, and how long nothing may come: a ping is due.
_RETRY_S: Final = 0.2
_SILENCE_S: Final = 35.0

# Between two rounds of a publisher, and how much it publishes in one.
_PAUSE_S: Final = (0.1, 0.4)
_BURST_MAX: Final = 4
# A publication that must be acknowledged: faults are over, but instances may not have noticed yet.
_LAST_ATTEMPTS_MAX: Final = 10

Told = Callable[[Event], None]


class Balancer(Link):
    """Leads each connection to another instance, by lot, and so every reconnect."""

    def __init__(self, targets: Sequence[str], random: Random) -> None:
        super().__init__(targets[0])
        self._targets = targets
        self._random = random

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._target = self._random.choice(self._targets)
        await super()._accept(reader, writer)


class _Js(JsPeer):
    def __init__(self, url: str, told: Told, node: str, transports: Sequence[str] | None) -> None:
        super().__init__(url, node=node, transports=transports)
        self._told = told

    def happened(self, event: Event) -> None:
        super().happened(event)
        self._told(event)


class _Py(PyPeer):
    def __init__(self, url: str, told: Told) -> None:
        super().__init__(url)
        self._told = told

    def happened(self, event: Event) -> None:
        super().happened(event)
        self._told(event)


class _Listener(Peer):
    """Over a unidirectional stream. It comes back by itself, and says from where it goes on. Its
    events are those of an SDK.
    """

    def __init__(self, url: str, told: Told, channels: Sequence[str]) -> None:
        super().__init__(url, jwt.encode({"sub": "listener", "channels": list(channels)}, KEY))
        self._told = told
        self._address = f"http://{urlsplit(url).netloc}/connection/uni_http_stream"
        self._positions: dict[str, Position] = {}
        self._listening: asyncio.Task[None] | None = None

    def happened(self, event: Event) -> None:
        super().happened(event)
        self._told(event)

    async def call(self, op: str, **arguments: Any) -> None:
        if op == "connect":
            self._listening = asyncio.create_task(self._listen())
        else:
            assert op == "subscribe", "it can do nothing else, and that by its token"

    async def close(self) -> None:
        if self._listening is not None:
            self._listening.cancel()
            await asyncio.gather(self._listening, return_exceptions=True)

    async def _listen(self) -> None:
        timeout = aiohttp.ClientTimeout(sock_connect=_SILENCE_S, sock_read=_SILENCE_S)
        async with aiohttp.ClientSession(timeout=timeout) as session:
            while True:
                with suppress(aiohttp.ClientError, TimeoutError):
                    await self._hear(session)
                for channel in self._positions:
                    self.happened({"event": "subscribing", "channel": channel, "code": 0})
                await asyncio.sleep(_RETRY_S)

    async def _hear(self, session: aiohttp.ClientSession) -> None:
        """One connection, to its end."""
        subs = {
            channel: {"recover": True, "epoch": epoch, "offset": offset}
            for channel, (epoch, offset) in self._positions.items()
        }
        connect = {"token": self.token, "subs": subs}
        async with session.post(self._address, json=connect) as answer:
            if answer.status != HTTPStatus.OK:
                return
            buffer = b""
            async for data in answer.content.iter_any():
                *lines, buffer = (buffer + data).split(b"\n")
                for line in lines:
                    self._take(json.loads(line))

    def _take(self, push: Mapping[str, Any]) -> None:
        if (connect := push.get("connect")) is not None:
            self.happened({"event": "connected", "client": connect["client"]})
            for channel, sub in connect["subs"].items():
                position = {"epoch": sub["epoch"], "offset": sub.get("offset", 0)}
                self._positions[channel] = (position["epoch"], position["offset"])
                self.happened({
                    "event": "subscribed",
                    "channel": channel,
                    "was_recovering": sub.get("was_recovering", False),
                    "recovered": sub.get("recovered", False),
                    "position": position,
                })  # fmt: skip
                for missed in sub.get("publications", ()):
                    self._publication(channel, missed)
        elif (publication := push.get("pub")) is not None:
            self._publication(push["channel"], publication)

    def _publication(self, channel: str, publication: Mapping[str, Any]) -> None:
        offset = publication["offset"]
        self._positions[channel] = (self._positions[channel][0], offset)
        about = {"channel": channel, "offset": offset, "data": publication["data"]}
        self.happened({"event": "publication", **about})


def open_peer(
    sdk: str, url: str, told: Told, node: str | None, channels: Sequence[str] = ()
) -> Peer:
    """`told` gets every event. `node`: the path of Node.js;
    None: the Python SDK stands in for the other. `channels`: of one without an SDK.
    """
    if sdk == LISTENING:
        return _Listener(url, told, channels)
    if node is None or sdk == "py":
        return _Py(url, told)
    return _Js(url, told, node, ["http_stream"] if sdk == STREAMING else None)


class Publisher:
    """Publishes numbered messages. One that was not acknowledged is left alone:
    it may be in the log.
    """

    def __init__(
        self,
        name: str,
        peer: Peer,
        channels: Sequence[str],
        checker: Checker,
        random: Random,
        *,
        in_order: bool = True,
    ) -> None:
        """`in_order`: whether all that it sends at once goes the same way."""
        self._name = name
        self._in_order = in_order
        self._peer = peer
        self._channels = channels
        self._checker = checker
        self._random = random
        self._number = 0

    async def run(self, stop: asyncio.Event) -> None:
        """Until `stop`; what is under way then is waited for."""
        while not stop.is_set():
            channel = self._random.choice(self._channels)
            contents = [self._next() for _ in range(self._random.randint(1, _BURST_MAX))]
            if self._in_order:
                self._checker.burst(contents)
            # Tasks begin in the order in which they are made, and each begins by sending.
            await asyncio.gather(*(self._publish(channel, content) for content in contents))
            await asyncio.sleep(self._random.uniform(*_PAUSE_S))

    async def publish(self, channel: str) -> bool:
        """Whether it was acknowledged."""
        return await self._publish(channel, self._next())

    def _next(self) -> str:
        self._number += 1
        return f"{self._name}-{self._number}"

    async def _publish(self, channel: str, content: str) -> bool:
        self._checker.publishing(channel, content)
        try:
            await self._peer.publish(channel, content)
        except (Refused, TimeoutError, centrifuge.CentrifugeError):
            return False
        self._checker.acknowledge(content)
        return True

    async def publish_last(self, channel: str) -> None:
        """One that must be acknowledged, as an application would:
        a new message for each attempt.
        """
        for _ in range(_LAST_ATTEMPTS_MAX):
            if await self.publish(channel):
                return
        raise AssertionError(
            f"{self._name} cannot publish in {channel}, though nothing is wrong any more"
        )

    async def publish_at_once(self, channel: str, seconds: float) -> tuple[int, int]:
        """For so long, one after the other as soon as the one before was answered:
        how many were acknowledged, and were not.
        """
        loop = asyncio.get_running_loop()
        end_s, counts = loop.time() + seconds, [0, 0]
        while loop.time() < end_s:
            counts[not await self.publish(channel)] += 1
        return counts[0], counts[1]

    async def close(self) -> None:
        await self._peer.close()
