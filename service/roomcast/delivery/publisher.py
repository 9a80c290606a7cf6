"""Publishes to channels without history, by a signal to all nodes."""

from __future__ import annotations

from collections.abc import Callable

from roomcast.delivery import signals
from roomcast.delivery.broadcaster import can_be_sent
from roomcast.delivery.envelope import Signal
from roomcast.log.appender import Full, TooLarge
from roomcast.log.channel_log import NeverAppended, NotAppended, OffsetsUsedUp
from roomcast.observe.ports import Span, Tracer
from roomcast.observe.spans import NO_TRACER, OUTCOME, PUBLICATIONS, PUBLISH
from roomcast.ports import NewId
from roomcast.wire.codes import Error
from roomcast.wire.encoding import Unencodable
from roomcast.wire.publication import Stored
from roomcast.wire.trace_context import BY_SIGNAL, TraceContext, Trail

__all__ = ["Publisher"]


class Publisher:
    """One a node.

    `signal` delivers a signal to the clients of all nodes; False = it was dropped.
    """

    def __init__(
        self,
        new_id: NewId,
        signal: Callable[[Signal], bool],
        *,
        node: str,
        tracer: Tracer = NO_TRACER,
    ) -> None:
        self._new_id = new_id
        self._signal = signal
        self._node = node
        self._tracer = tracer
        # The number of publications that were sent as signals.
        self.signalled = 0

    def send(self, channel: str, stored: Stored, parent: TraceContext | None = None) -> None:
        """Publish as best effort, without an offset: to all nodes or to none.

        `parent`: the caller's span; None = it has none. Raises Full and TooLarge.
        """
        span = self._span(channel, parent)
        trail = _trail(span)
        self._send(signals.publication(self._node, self._new_id(), channel, stored, trail), 1, span)

    def send_all(
        self, channels: list[str], stored: Stored, parent: TraceContext | None = None
    ) -> None:
        """The same in each of `channels`, at least one: to all of them or to none.

        The caller bounds how many they are: this turn delivers to their subscribers here.
        """
        if len(channels) == 1:
            self.send(channels[0], stored, parent)
        else:
            span = self._span("", parent)
            trail = _trail(span)
            signal = signals.broadcast(self._node, self._new_id(), channels, stored, trail)
            self._send(signal, len(channels), span)

    def _span(self, channel: str, parent: TraceContext | None) -> Span | None:
        return self._tracer.root(PUBLISH, channel, parent) if self._tracer.is_on else None

    def _send(self, signal: Signal, publications: int, span: Span | None) -> None:
        if self._signal(signal):
            self.signalled += publications
            if span is not None:
                span.end({OUTCOME: "signalled", PUBLICATIONS: publications})
            return
        if span is not None:
            span.end({OUTCOME: "not_sent"}, failure="not sent")
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


def _trail(span: Span | None) -> Trail | None:
    return None if span is None else Trail(span.context, BY_SIGNAL)
