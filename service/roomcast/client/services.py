"""What the connections of a node work with, and what holds for all of them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from typing import Final, Protocol

from roomcast.auth.ports import Verifier
from roomcast.client.session import Policy
from roomcast.delivery.dispatcher import Dispatcher
from roomcast.delivery.envelope import Signal
from roomcast.delivery.ports import Sink
from roomcast.delivery.publisher import Publisher
from roomcast.fleet.orders import Subject
from roomcast.fleet.roster import Roster
from roomcast.hooks.calls import HookCalls
from roomcast.log.appender import Appender
from roomcast.log.channel_log import ChannelLog
from roomcast.observe.counters import ClientCounters
from roomcast.ports import Clock, NewId
from roomcast.presence.book import PresenceBook
from roomcast.rates import Rate
from roomcast.wire.codes import Closing

__all__ = ["ANSWER_LIMIT_S", "Limits", "Services", "Socket"]


# Seconds within which a command that waits for others (the log, presence, the application) is
# answered, with an error if need be. SDKs give a command up after 5. After a subscribe, they
# reconnect then.
ANSWER_LIMIT_S: Final = 4.5


class Socket(Sink, Protocol):
    """The transport of a connection."""

    @property
    def is_binary(self) -> bool:
        """Whether its frames are of Protobuf."""

    @property
    def unsent_bytes(self) -> int:
        """What was sent and waits, because the peer does not read."""

    @property
    def is_gone(self) -> bool:
        """Whether nothing can be written any more: what it left behind is not waited for."""

    def close(self, why: Closing) -> None:
        """Begin to close. Idempotent.

        Whatever was sent before goes out first, as far as the peer takes it.
        """


@dataclass(frozen=True, slots=True)
class Limits:
    """What holds for every connection: seconds, counts and rates.

    `user_connections` 0, and a rate of None: no limit.
    """

    ping_interval_s: float
    pong_timeout_s: float
    stale_close_delay_s: float
    history_publications_max: int
    recovery_publications_max: int
    user_connections: int = 0
    publishes: Rate | None = None
    commands: Rate | None = None


@dataclass(frozen=True, slots=True)
class Services:
    """What a connection works with: one of each on a node.

    `roster` has the connections whose user is known. `signal` delivers a signal to this
    node and the others, False = shed. `hide` tells all nodes that what a channel has up to an
    offset is not shown any more. `background` runs what must be done after a connection is gone,
    None = too much waits already.
    `hooks` calls the application's own code.
    """

    version: str
    policy: Policy
    limits: Limits
    verifier: Verifier
    clock: Clock
    new_id: NewId
    random: Callable[[], float]
    node: str
    log: ChannelLog
    appender: Appender
    publisher: Publisher
    dispatcher: Dispatcher
    presence: PresenceBook
    roster: Roster[Subject]
    signal: Callable[[Signal], bool]
    hide: Callable[[str, int], None]
    background: Callable[[Coroutine[None, None, None]], asyncio.Task[None] | None]
    hooks: HookCalls
    counters: ClientCounters = field(default_factory=ClientCounters)
