"""The services and limits that all connections of a node share."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from typing import Final, Protocol

from roomcast.auth.ports import Verifier
from roomcast.client.departures import Departures
from roomcast.client.session import Policy
from roomcast.concurrency import FairPlaces, Portions, Tally, Turns
from roomcast.delivery.dispatcher import Dispatcher
from roomcast.delivery.envelope import Signal
from roomcast.delivery.ports import Sink
from roomcast.delivery.publisher import Publisher
from roomcast.fleet.order_signals import Order
from roomcast.fleet.orders import Subject
from roomcast.fleet.roster import Roster
from roomcast.hooks.calls import HookCalls
from roomcast.log.appender import Appender
from roomcast.log.channel_log import ChannelLog
from roomcast.observe.counters import ClientCounters
from roomcast.ports import Clock, NewId
from roomcast.presence.book import PresenceBook
from roomcast.presence.connections import ConnectionEntries
from roomcast.rates import Rate
from roomcast.wire.codes import Closing

__all__ = [
    "ANSWER_LIMIT_S",
    "FAILURES_A_TURN",
    "HISTORIES_AT_ONCE",
    "REPLIES_A_TURN",
    "TOKENS_A_TURN",
    "TURNS_AT_ONCE",
    "Limits",
    "Services",
    "Socket",
]


# Seconds within which a command that waits for the log, presence or the application is answered,
# with an error if need be. SDKs give a command up after 5 s; after a subscribe, they then
# reconnect.
ANSWER_LIMIT_S: Final = 4.5
# Connections that go on with further commands in one turn of the event loop. Each takes a few ms.
# All others wait for a later turn, however many they are.
TURNS_AT_ONCE: Final = 4
# Histories that a node reads at once for all who ask; of those that waited, how many begin in one
# turn of the event loop; and replies with one that are made in one turn: up to 2 ms each.
HISTORIES_AT_ONCE: Final = 32
HISTORIES_A_TURN: Final = 2
REPLIES_A_TURN: Final = 2
# Commands whose time is over that are refused in one turn: some 5 ms. While a table does not
# answer, those that came together are refused together.
FAILURES_A_TURN: Final = 128
# Tokens that are verified in one turn of the event loop. With some keys (ES384, ES512, RSA of 8,192
# bits) one takes more than a millisecond, also if it is none, and strangers may send them as well.
TOKENS_A_TURN: Final = 2


class Socket(Sink, Protocol):
    """The transport of a connection."""

    @property
    def is_binary(self) -> bool:
        """Whether its frames are in Protobuf."""

    @property
    def is_unidirectional(self) -> bool:
        """Whether its client says no more than `connect`, and is answered by pushes alone."""

    @property
    def session(self) -> str:
        """What leads the client's further commands to it, which come by other requests, if there
        are any. It is secret. "" = they come as its frames, and so do its pongs.
        """

    @property
    def unsent_bytes(self) -> int:
        """Bytes that were sent and still wait, because the peer does not read."""

    @property
    def is_gone(self) -> bool:
        """Whether nothing can be written any more. Then nobody waits for what is unsent."""

    def close(self, why: Closing) -> None:
        """Begin to close. Idempotent.

        Frames that were sent before go out first, as far as the peer reads them.
        """


@dataclass(frozen=True, slots=True)
class Limits:
    """The limits of every connection: seconds, counts and rates.

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

    @property
    def silence_s(self) -> float:
        """How long a peer may take to acknowledge what it was sent, where it sends no pongs."""
        return self.ping_interval_s + self.pong_timeout_s


@dataclass(frozen=True, slots=True)
class Services:
    """The services of a connection: one of each on a node.

    `roster` has the connections whose user is known. `signal` delivers a signal to this node and
    the others; False = it was dropped. `badge`: the node's, which ids of its clients begin with.
    `give` has an order carried out on all nodes; see Orders. `hide` tells all nodes to hide a
    channel's publications up to an offset. `background` runs work that outlives a connection; None
    = too much waits already. `hooks` calls the application's code.
    `crowd`: what all connections take in a turn, and `turns`: those of connections that have more
    commands than one turn takes. `tokens`: the
    portions in which tokens are verified. `histories`: places of those that are read, which clients
    and the server API share, and `replies`: the portions in which their replies are made.
    `failures`: the portions in which commands are refused that the tables did not answer in time.
    `departures`: the portions in which connections that ended leave their channels.
    `entries`: where connections are entered for events; None = nobody wants them.
    """

    version: str
    policy: Policy
    limits: Limits
    verifier: Verifier
    clock: Clock
    new_id: NewId
    random: Callable[[], float]
    node: str
    badge: str
    log: ChannelLog
    appender: Appender
    publisher: Publisher
    dispatcher: Dispatcher
    presence: PresenceBook
    roster: Roster[Subject]
    signal: Callable[[Signal], bool]
    give: Callable[[Order], asyncio.Future[None]]
    hide: Callable[[str, int], None]
    background: Callable[[Coroutine[None, None, None]], asyncio.Task[None] | None]
    hooks: HookCalls
    crowd: Tally = field(default_factory=Tally)
    turns: Turns = field(default_factory=lambda: Turns(TURNS_AT_ONCE))
    tokens: Portions = field(default_factory=lambda: Portions(TOKENS_A_TURN))
    histories: FairPlaces = field(
        default_factory=lambda: FairPlaces(HISTORIES_AT_ONCE, HISTORIES_A_TURN)
    )
    replies: Portions = field(default_factory=lambda: Portions(REPLIES_A_TURN))
    failures: Portions = field(default_factory=lambda: Portions(FAILURES_A_TURN))
    departures: Departures = field(default_factory=Departures)
    counters: ClientCounters = field(default_factory=ClientCounters)
    entries: ConnectionEntries | None = None
