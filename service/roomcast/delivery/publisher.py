"""Publishing as a channel's options say: into the log where it has history, else as a signal to all nodes."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from roomcast.delivery import signals
from roomcast.delivery.broadcaster import can_be_sent
from roomcast.delivery.envelope import Signal
from roomcast.log.appender import Appender, Full, TooLarge
from roomcast.log.channel_log import NeverAppended, NotAppended, OffsetsUsedUp
from roomcast.ports import NewId
from roomcast.wire.channels import ChannelOptions
from roomcast.wire.codes import Error
from roomcast.wire.json import Unencodable, encode_stored
from roomcast.wire.publication import Publication, StreamPosition

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
        # Publications that went to nodes and clients without a log.
        self.signalled = 0

    def store(
        self,
        channel: str,
        options: ChannelOptions,
        published: Publication,
        key: str | None,
        received_ms: int,
    ) -> asyncio.Future[StreamPosition]:
        """Append to a channel with history; see `Appender.submit`, also for what is raised and when."""
        return self._appender.submit(
            channel, published, options.history_ttl_s * 1000, key, received_ms=received_ms
        )

    def send(self, channel: str, published: Publication) -> None:
        """Best effort, without an offset. Raises Full (to everybody or to nobody), TooLarge and Unencodable."""
        encode_stored(published)
        signal = signals.publication(self._node, self._new_id(), channel, published)
        if self._signal(signal):
            self.signalled += 1
            return
        if not can_be_sent(signal):
            raise TooLarge("a publication that exceeds a signal")
        raise Full("too many signals wait to be sent")

    @staticmethod
    def error(failure: BaseException) -> Error:
        """What a publisher is told of what `store` (or its future) or `send` raised."""
        match failure:
            case Unencodable():
                return Error.BAD_REQUEST
            case TooLarge():
                return Error.LIMIT_EXCEEDED
            case OffsetsUsedUp():
                return Error.NOT_AVAILABLE
            case NeverAppended():
                return Error.REFUSED
            case Full() | NotAppended():
                return Error.TOO_MANY_REQUESTS
            case _:
                # Nobody knows whether it is in the log, or will be.
                return Error.INTERNAL
