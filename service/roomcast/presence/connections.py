"""Enters each connection of this node in a pseudo channel, of which events are made.

So the end of a connection is told also when its node died: the reaper removes the entry. No client
waits for any of it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Final

import structlog

from roomcast.ports import PortError
from roomcast.presence.book import PresenceBook
from roomcast.rates import Rate, Seldom
from roomcast.wire.event_kinds import connections_of
from roomcast.wire.publication import ClientInfo

__all__ = ["ConnectionEntries"]

_TOLD: Final = Rate(per_s=1.0, burst=1.0)

_log = structlog.get_logger(__name__)

Background = Callable[[Coroutine[None, None, None]], asyncio.Task[None] | None]


class ConnectionEntries:
    """The entries of connections. `node`: this process's, whichever lease it has."""

    def __init__(self, book: PresenceBook, background: Background, *, node: str) -> None:
        self._book = book
        self._background = background
        self._channel = connections_of(node)
        # Those whose entry is being written, by client: the removal waits for it.
        self._entering: dict[str, asyncio.Task[None]] = {}
        # Those that are here, by client.
        self._here: dict[str, ClientInfo] = {}
        self._told = Seldom(_TOLD)

    def connected(self, info: ClientInfo) -> None:
        """The client was told that it is connected."""
        self._here[info.client] = info
        task = self._background(self._enter(info))
        if task is None:
            self._not_told()
            return
        self._entering[info.client] = task
        task.add_done_callback(lambda _: self._entering.pop(info.client, None))

    def disconnected(self, client: str) -> None:
        """Its connection has ended. Nothing happens if it never was connected."""
        if (info := self._here.pop(client, None)) is None:
            return
        if self._background(self._exit(info)) is None:
            self._book.exit_later(self._channel, info)

    async def _enter(self, info: ClientInfo) -> None:
        try:
            await self._book.enter(self._channel, info)
        except PortError:
            self._book.enter_later(self._channel, info)

    async def _exit(self, info: ClientInfo) -> None:
        if (entering := self._entering.get(info.client)) is not None:
            await asyncio.wait([entering])
        try:
            await self._book.exit(self._channel, info)
        except PortError as error:
            # The book tries again, and the reaper does when the node has ended.
            _log.warning("presence_exit_failed", channel=self._channel, reason=str(error))

    def _not_told(self) -> None:
        """Too much waits: the node is far behind, and this connection is not told of."""
        if (passed_over := self._told.again(asyncio.get_running_loop().time())) is not None:
            _log.warning("connections_not_told", passed_over=passed_over)
