"""Announces to all nodes that history was removed, or that a member is still here."""

from __future__ import annotations

from roomcast.delivery import signals
from roomcast.delivery.dispatcher import Dispatcher
from roomcast.delivery.envelope import Signal
from roomcast.delivery.signal_bus import SignalBus
from roomcast.ports import NewId
from roomcast.wire.channels import ChannelRules
from roomcast.wire.publication import ClientInfo

__all__ = ["Announcements"]


class Announcements:
    """The announcements of one node."""

    def __init__(
        self,
        bus: SignalBus,
        dispatcher: Dispatcher,
        rules: ChannelRules,
        new_id: NewId,
        *,
        node: str,
    ) -> None:
        self._bus = bus
        self._dispatcher = dispatcher
        self._rules = rules
        self._new_id = new_id
        self._node = node

    def hide(self, channel: str, offset: int) -> None:
        """Tell all nodes that history up to `offset` was removed.

        A node that does not hear it finds it in the channel's head.
        """
        self._bus.send(signals.trim(self._node, self._new_id(), channel, offset))

    def trimmed(self, signal: Signal) -> None:
        """Another node, or this one, removed history."""
        self._dispatcher.hide(signal.channel, signals.trimmed_to(signal))

    def entered_again(self, channel: str, info: ClientInfo) -> None:
        """Signal the join of a client again.

        Another node took this one for dead, and told all nodes that its clients had left.
        """
        if self._rules.has_join_leave(channel):
            self._bus.send(signals.join(self._node, self._new_id(), channel, info))
