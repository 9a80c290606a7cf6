"""Publishing as a channel's options say: into the log where it has history, else as a signal to all nodes."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from service.core import signals
from service.core.channels import ChannelOptions
from service.core.envelope import Signal
from service.core.protocol import encode_stored
from service.core.publication import Publication, StreamPosition
from service.log.appender import Appender, Full
from service.ports import NewId

__all__ = ["Publisher"]


class Publisher:
    """One a node. `signal` delivers a signal to this node's clients and the others', False = shed."""

    def __init__(
        self, appender: Appender, new_id: NewId, signal: Callable[[Signal], bool], *, node: str
    ) -> None:
        self._appender = appender
        self._new_id = new_id
        self._signal = signal
        self._node = node

    def store(
        self, channel: str, options: ChannelOptions, published: Publication, key: str | None, received_ms: int
    ) -> asyncio.Future[StreamPosition]:
        """Append to a channel with history; see `Appender.submit`, also for what is raised and when."""
        return self._appender.submit(
            channel, published, options.history_ttl_s * 1000, key, received_ms=received_ms
        )

    def send(self, channel: str, published: Publication) -> None:
        """Best effort, without an offset. Raises Full (to everybody or to nobody) and Unencodable."""
        encode_stored(published)
        if not self._signal(signals.publication(self._node, self._new_id(), channel, published)):
            raise Full("too many signals wait to be sent")
