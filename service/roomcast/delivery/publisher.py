"""Publishes to channels without history, by a signal to all nodes."""

from __future__ import annotations

from collections.abc import Callable

from roomcast.delivery import signals
from roomcast.delivery.broadcaster import can_be_sent
from roomcast.delivery.envelope import Signal
from roomcast.log.appender import Full, TooLarge
from roomcast.log.channel_log import NeverAppended, NotAppended, OffsetsUsedUp
from roomcast.ports import NewId
from roomcast.wire.codes import Error
from roomcast.wire.encoding import Unencodable
from roomcast.wire.publication import Stored

__all__ = ["Publisher"]


class Publisher:
    """One a node.

    `signal` delivers a signal to the clients of all nodes; False = it was dropped.
    """

    def __init__(self, new_id: NewId, signal: Callable[[Signal], bool], *, node: str) -> None:
        self._new_id = new_id
        self._signal = signal
        self._node = node
        # The number of publications that were sent as signals.
        self.signalled = 0

    def send(self, channel: str, stored: Stored) -> None:
        """Publish as best effort, without an offset: to all nodes or to none.

        Raises Full and TooLarge.
        """
        self._send(signals.publication(self._node, self._new_id(), channel, stored), 1)

    def send_all(self, channels: list[str], stored: Stored) -> None:
        """The same in each of `channels`, at least one: to all of them or to none.

        The caller bounds how many they are: this turn delivers to their subscribers here.
        """
        if len(channels) == 1:
            self.send(channels[0], stored)
        else:
            signal = signals.broadcast(self._node, self._new_id(), channels, stored)
            self._send(signal, len(channels))

    def _send(self, signal: Signal, publications: int) -> None:
        if self._signal(signal):
            self.signalled += publications
            return
        if not can_be_sent(signal):
            raise TooLarge("a publication that exceeds a signal")
        raise Full("too many signals wait to be sent")

    @staticmethod
    def error(failure: BaseException) -> Error:
        """The error reply for what `send`, `Appender.submit` or its future raised."""
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
                # It may be in the log, now or later.
                return Error.INTERNAL
