"""Publishers and subscribers with the published SDKs, each behind a load balancer of its own."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from random import Random
from typing import Final

import centrifuge

from tests.acceptance.link import Link
from tests.acceptance.peers import SDKS, Event, JsPeer, Peer, PyPeer, Refused
from tests.chaos.checker import Checker

__all__ = ["CLIENTS", "STREAMING", "Balancer", "Publisher", "open_peer"]

# The SDK for JavaScript over HTTP streams: each of its requests goes to another instance.
STREAMING: Final = "js streaming"
CLIENTS: Final = (*SDKS, STREAMING)

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


def open_peer(sdk: str, url: str, told: Told, node: str | None) -> Peer:
    """`told` gets every event. `node`: the path of Node.js;
    None: the Python SDK stands in for the other.
    """
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
