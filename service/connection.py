"""One client's connection: carries out what its session decides, and is a subscriber in the hub.

Commands are taken one after the other. What needs the network runs beside the next commands, with two
exceptions: nothing overtakes `connect`, and nothing overtakes a subscribe or unsubscribe of its own channel.
Publications keep their order, since they are queued in it.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final, Protocol
from uuid import uuid4

import structlog

from service.concurrency import each_to_its_end
from service.core import signals
from service.core.codes import Closing, Disconnect, Error, Unsubscribe, code_of
from service.core.envelope import Signal
from service.core.orders import RefreshOrder, SubscribeOrder
from service.core.protocol import (
    PING,
    Command,
    ConnectRequest,
    HistoryRequest,
    InvalidRequest,
    Pong,
    PresenceRequest,
    PresenceStatsRequest,
    ProtocolViolation,
    PublishRequest,
    RefreshRequest,
    RpcPublishRequest,
    RpcRequest,
    SubRefreshRequest,
    SubscribeRequest,
    Unencodable,
    UnsubscribeRequest,
    decode_frame,
    encode_error,
    encode_lines_reply,
    encode_reply,
    publication_push,
    refresh_push,
    subscribe_push,
    subscribe_result,
    unsubscribe_push,
)
from service.core.publication import ClientInfo, Publication, StreamPosition
from service.core.rates import Bucket, Rate
from service.core.recovery import RING_BYTES_MAX, Window
from service.core.session import (
    Authenticate,
    Authorize,
    Close,
    Effect,
    Fail,
    Ignore,
    Join,
    Leave,
    Policy,
    Publish,
    ReadHistory,
    ReadPresence,
    Refresh,
    Renew,
    Session,
    SubRefresh,
)
from service.core.tallies import ClientTally, Limit
from service.core.tokens import (
    ConnectionClaims,
    SubscriptionClaims,
    TokenError,
    TokenExpired,
    TokenUnverifiable,
)
from service.deadlines import Deadlines
from service.delivery.dispatcher import Dispatcher, Joined, Joining
from service.log.appender import Full, TooLarge
from service.log.channel_log import ChannelLog
from service.log.history import WrongEpoch, read_history
from service.ports import Clock, NewId, PortError, Sink
from service.presence import PresenceBook
from service.publisher import Publisher
from service.roster import Roster

__all__ = [
    "COMMANDS_UNDER_WAY_MAX",
    "EXPIRY_GRACE_S",
    "ORDERS_UNDER_WAY_MAX",
    "PRESENCE_ENTRIES_AT_ONCE",
    "READS_UNDER_WAY_MAX",
    "SLEPT_S",
    "SUBSCRIBE_LIMIT_S",
    "TTL_S_MAX",
    "Connection",
    "Limits",
    "Services",
    "Socket",
    "Verifier",
]

# Commands of one connection that wait for the network at once; the next one is not read before one is done.
COMMANDS_UNDER_WAY_MAX: Final = 256
# Reads of history and presence among them: one client must not take the node's connections to the table.
READS_UNDER_WAY_MAX: Final = 4
# Orders for one connection that wait, for each other or for the network. More are not carried out.
ORDERS_UNDER_WAY_MAX: Final = 1000
# Presence entries that are made at once for a client that is subscribed to many channels as it connects.
PRESENCE_ENTRIES_AT_ONCE: Final = 16
# A subscribe, or a connect with subscriptions, that takes longer is answered with an error: SDKs give up, and
# reconnect, after 5 s.
SUBSCRIBE_LIMIT_S: Final = 4.5
# A connection or subscription whose token ran out may stay for this long: its client fetches a new token meanwhile.
EXPIRY_GRACE_S: Final = 25.0
# What a reply says at most of the time until a token ends: the protocol's field has 32 bits.
TTL_S_MAX: Final = 2**31 - 1
# A ping that is this late: the process was suspended, and its clients have long gone elsewhere.
SLEPT_S: Final = 15 * 60.0

# How the tally calls commands; what is not here is "other".
_METHODS: Final[dict[type, str]] = {
    ConnectRequest: "connect",
    SubscribeRequest: "subscribe",
    UnsubscribeRequest: "unsubscribe",
    PublishRequest: "publish",
    RpcPublishRequest: "rpc_publish",
    RpcRequest: "rpc",
    HistoryRequest: "history",
    PresenceRequest: "presence",
    PresenceStatsRequest: "presence_stats",
    RefreshRequest: "refresh",
    SubRefreshRequest: "sub_refresh",
    InvalidRequest: "invalid",
}

_log = structlog.get_logger(__name__)


class Socket(Sink, Protocol):
    """The transport of a connection."""

    def close(self, why: Closing) -> None:
        """Begin to close: whatever was sent before goes out first, as far as the peer takes it. Idempotent."""


class Verifier(Protocol):
    """Verifies tokens (service/auth.py). Both methods raise TokenExpired, TokenInvalid or TokenUnverifiable."""

    @property
    def enabled(self) -> bool: ...

    async def connection(self, token: str, now_s: float) -> ConnectionClaims: ...

    async def subscription(self, token: str, now_s: float) -> SubscriptionClaims: ...


@dataclass(frozen=True, slots=True)
class Limits:
    """What holds for every connection; seconds and counts. `user_connections` 0, and a rate of None: no limit."""

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

    `signal` delivers a signal locally and to the other nodes, False = shed. `background` runs what must be done
    after a connection is gone. `roster` has the connections that have said who they are. `hide` tells all nodes that
    what a channel has up to an offset is not shown any more.
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
    publisher: Publisher
    dispatcher: Dispatcher
    presence: PresenceBook
    roster: Roster[Connection]
    signal: Callable[[Signal], bool]
    hide: Callable[[str, int], None]
    background: Callable[[Coroutine[None, None, None]], asyncio.Task[None]]
    tally: ClientTally = field(default_factory=ClientTally)


class Subscription:
    """One channel of one connection, as the hub sees it."""

    __slots__ = (
        "connection",
        "has_join_leave",
        "has_presence",
        "info",
        "is_server_side",
        "join_leave",
        "sink",
    )

    def __init__(self, connection: Connection, join: Join) -> None:
        self.connection = connection
        self.sink: Sink = connection.socket
        self.info = join.info
        # Whether join and leave pushes go to it; whether its own go to others.
        self.join_leave = join.join_leave
        self.has_join_leave = join.options.join_leave
        self.has_presence = join.options.presence
        self.is_server_side = join.is_server_side

    def lost(self, channel: str) -> None:
        self.connection.lost(channel, self)


class Connection:
    """From the transport's open to its end. All methods belong to the event loop's thread."""

    def __init__(self, services: Services, socket: Socket) -> None:
        self._services = services
        self.socket = socket
        self.session = Session(str(uuid4()), services.policy)
        self._subscriptions: dict[str, Subscription] = {}
        # Subscribes, ends of subscriptions and presence exits under way, which commands and orders of the same
        # channel wait for.
        self._changes: dict[str, asyncio.Future[None]] = {}
        self._exits: dict[str, asyncio.Task[None]] = {}
        self._places = asyncio.Semaphore(COMMANDS_UNDER_WAY_MAX)
        self._reads = asyncio.Semaphore(READS_UNDER_WAY_MAX)
        # Whether a frame is being taken: pongs behind it are not read yet.
        self._busy = False
        self._tasks: set[asyncio.Task[None]] = set()
        self._tally = services.tally
        self._tally.connections += 1
        # The methods of the commands that are not answered yet, for the tally.
        self._methods: dict[int, str] = {}
        limits, now_s = services.limits, services.clock.monotonic_s()
        self._commands = Bucket(limits.commands, now_s) if limits.commands else None
        self._publishes = Bucket(limits.publishes, now_s) if limits.publishes else None
        self._orders = 0
        # Whether `connect` was answered: nothing goes out before that. What makes it wait, if something does.
        self._is_welcome = False
        self._welcoming: asyncio.Future[None] | None = None
        self._ended = False
        self._ping_timer: asyncio.TimerHandle | None = None
        self._pong_timer: asyncio.TimerHandle | None = None
        self._deadlines = Deadlines(self._expired)
        self._stale_timer: asyncio.TimerHandle | None = asyncio.get_running_loop().call_later(
            services.limits.stale_close_delay_s, self._stale
        )
        # When a ping was last due (wall clock: a suspended machine's monotonic clock stands still).
        self._awake_ms = services.clock.now_ms()

    @property
    def client(self) -> str:
        return self.session.client

    @property
    def user(self) -> str:
        return self.session.user

    # ---- what the client says

    async def receive(
        self, frame: str | bytes, decode: Callable[[Any], list[Command]] = decode_frame
    ) -> None:
        """Take one frame, which `decode` reads, as `decode_frame` does. Returns when the next one may be read."""
        try:
            commands = decode(frame)
        except ProtocolViolation as error:
            _log.info("frame_refused", client=self.session.client, reason=str(error))
            self.close(Disconnect.BAD_REQUEST)
            return
        self._busy = True
        try:
            for command in commands:
                if self._commands is not None:
                    await self._keep_rate(self._commands)
                    if self._ended:
                        return
                await self._take(command)
                if self._ended:
                    return
        finally:
            self._busy = False

    async def _keep_rate(self, bucket: Bucket) -> None:
        """Let the next command wait for its time. Nothing is read meanwhile, so the client has to wait as well."""
        rate = self._services.limits.commands
        assert rate is not None
        wait_s = bucket.owe(rate, self._services.clock.monotonic_s())
        if wait_s > 0:
            self._tally.limited(Limit.COMMAND_RATE)
            self._tally.throttled_s += wait_s
            await asyncio.sleep(wait_s)

    async def _take(self, command: Command) -> None:
        self._count(command)
        channel: str = getattr(command.request, "channel", "")
        # What was waited for may have been followed by an order.
        while (change := self._changes.get(channel)) is not None and not change.done():
            await asyncio.wait([change])
        if isinstance(command.request, Pong):
            self._heard_pong()
        effect = self.session.command(command)
        if isinstance(effect, Fail) and effect.error is Error.LIMIT_EXCEEDED:
            too_large = command.size > self._services.policy.message_size_limit
            self._tally.limited(Limit.MESSAGE_SIZE if too_large else Limit.CHANNELS)
        await self._carry_out(effect)

    def _count(self, command: Command) -> None:
        self._tally.received_bytes += command.size
        if command.id:
            self._methods[command.id] = _METHODS.get(type(command.request), "other")

    async def _carry_out(self, effect: Effect) -> None:
        match effect:
            case Ignore():
                pass
            case Fail(command_id, error):
                self._fail(command_id, error)
            case Close(why):
                self.close(why)
            case Authenticate():
                await self._authenticate(effect)
            case Authorize():
                await self._authorize(effect)
            case Refresh():
                await self._refresh(effect)
            case SubRefresh():
                await self._sub_refresh(effect)
            case Renew():
                self._renew(effect)
            case Join():
                self._changing(effect.channel, await self._start(self._join(effect)))
            case Leave(command_id, channel):
                subscription = self._subscriptions.get(channel)
                # What the server subscribed it to is no business of its client's.
                if subscription is None or not subscription.is_server_side:
                    self._leave(channel)
                self._reply(command_id, "unsubscribe", {})
            case Publish():
                if self._may_publish(effect.id):
                    await self._publish(effect)
            case ReadHistory():
                await self._start(self._in_turn(partial(self._read_history, effect)))
            case ReadPresence():
                await self._start(self._in_turn(partial(self._read_presence, effect)))

    async def _start(self, work: Coroutine[None, None, None]) -> asyncio.Task[None]:
        """Run `work` beside the commands that follow, as soon as there is a place."""
        try:
            await self._places.acquire()
        except asyncio.CancelledError:
            work.close()
            raise
        task = self._track(work)
        task.add_done_callback(lambda _: self._places.release())
        return task

    def _track(self, work: Coroutine[None, None, None]) -> asyncio.Task[None]:
        """Run `work` until it, or the connection, ends."""
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._finished)
        return task

    async def _in_turn(self, read: Callable[[], Awaitable[None]]) -> None:
        async with self._reads:
            await read()

    def _finished(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            # A fault of ours: the client must not be left waiting for an answer.
            _log.error("command_failed", client=self.session.client, exc_info=error)
            self.close(Disconnect.SERVER_ERROR)

    def _changing(self, channel: str, change: asyncio.Future[None]) -> None:
        """Until `change` is done, what concerns the subscription to `channel` waits."""
        self._changes[channel] = change
        change.add_done_callback(partial(self._changed, channel))

    def _changed(self, channel: str, change: asyncio.Future[None]) -> None:
        if self._changes.get(channel) is change:
            del self._changes[channel]

    # ---- connect

    async def _authenticate(self, effect: Authenticate) -> None:
        verifier, policy = self._services.verifier, self._services.policy
        claims: ConnectionClaims | None = None
        if effect.token and (verifier.enabled or not policy.insecure):
            try:
                claims = await verifier.connection(effect.token, self._services.clock.now_ms() / 1000)
            except (TokenExpired, TokenUnverifiable) as error:
                self.session.refused()
                self._fail(effect.id, self._not_now(error))
                return
            except TokenError as error:
                self._token_refused(error)
                return
        elif not self.session.may_connect_without_token():
            self.session.refused()
            self._fail(effect.id, Error.UNAUTHORIZED)
            return
        if self._ended:
            return
        claims = claims or ConnectionClaims("", None)
        most = self._services.limits.user_connections
        if most and claims.user and self._services.roster.of_user(claims.user) >= most:
            self._tally.limited(Limit.USER_CONNECTIONS)
            self.close(Disconnect.CONNECTION_LIMIT)
            return
        self.session.connected(
            claims.user, claims.info, caps=claims.caps, expires=claims.expires_at is not None
        )
        # From here on orders find it.
        self._services.roster.enter(self)
        joins = self.session.joins_at_connect(claims.subs, effect.since)
        if isinstance(joins, Disconnect):
            self.close(joins)
        elif isinstance(joins, Error):
            self._refuse(effect.id, joins)
        elif joins:
            await self._join_at_connect(effect.id, claims, joins)
        else:
            self._connected(effect.id, claims, {})

    def _refuse(self, command_id: int, error: Error) -> None:
        """It was to be connected, and will not be."""
        self._services.roster.leave(self)
        self.session.refused()
        self._fail(command_id, error)

    def _connected(
        self, command_id: int, claims: ConnectionClaims, subs: Mapping[str, Mapping[str, object]]
    ) -> None:
        limits, loop = self._services.limits, asyncio.get_running_loop()
        self._is_welcome = True
        if self._stale_timer is not None:
            self._stale_timer.cancel()
            self._stale_timer = None
        self._reply(
            command_id,
            "connect",
            {
                "client": self.session.client,
                "version": self._services.version,
                **self._lasts_until(None, claims.expires_at),
                **({"subs": subs} if subs else {}),
                "ping": round(limits.ping_interval_s) or 1,
                "pong": True,
            },
        )
        self._awake_ms = self._services.clock.now_ms()
        # The first ping comes at random, so that clients that came together are not pinged together.
        first = limits.ping_interval_s * (0.5 + self._services.random() / 2)
        self._ping_timer = loop.call_later(first, self._ping)
        _log.info("client_connected", client=self.session.client, user=self.session.user)

    # ---- subscribe and unsubscribe

    async def _authorize(self, effect: Authorize) -> None:
        try:
            claims = await self._services.verifier.subscription(
                effect.request.token, self._services.clock.now_ms() / 1000
            )
        except (TokenExpired, TokenUnverifiable) as error:
            self._fail(effect.id, self._not_now(error))
        except TokenError as error:
            _log.info("token_refused", client=self.session.client, reason=str(error))
            self._fail(effect.id, Error.PERMISSION_DENIED)
        else:
            await self._carry_out(self.session.authorized(effect, claims))

    async def _join(self, join: Join) -> None:
        """Enter presence, find the position, and be let in; whatever fails leaves nothing behind."""
        channel, subscription = join.channel, Subscription(self, join)
        entered = False
        try:
            async with asyncio.timeout(SUBSCRIBE_LIMIT_S):
                if (pending := self._exits.get(channel)) is not None:
                    await asyncio.wait([pending])
                if subscription.has_presence:
                    entered = True
                    await self._services.presence.enter(channel, join.info)
                if join.options.has_history:
                    await self._services.dispatcher.join(
                        channel,
                        subscription,
                        join.since,
                        partial(self._window, join),
                        partial(self._admit, join, subscription),
                    )
                else:
                    self._services.dispatcher.join_unordered(
                        channel, subscription, partial(self._admit_unordered, join, subscription)
                    )
        except (PortError, TimeoutError) as error:
            reason = str(error) or f"not done within {SUBSCRIBE_LIMIT_S} s"
            _log.warning("subscribe_failed", channel=channel, client=self.session.client, reason=reason)
            if not join.is_server_side:
                self._fail(join.id, Error.INTERNAL)
        finally:
            if self._subscriptions.get(channel) is not subscription:
                self._not_joined(join, entered=entered)
        if self._subscriptions.get(channel) is subscription:
            self._tell_join(channel, subscription)

    def _not_joined(self, join: Join, *, entered: bool) -> None:
        self.session.left(join.channel)
        if entered:
            self._exit_presence(join.channel, join.info)

    def _tell_join(self, channel: str, subscription: Subscription) -> None:
        if subscription.has_join_leave:
            self._services.signal(
                signals.join(self._services.node, self._services.new_id(), channel, subscription.info)
            )

    async def _join_at_connect(
        self, command_id: int, claims: ConnectionClaims, joins: Sequence[Join]
    ) -> None:
        """Make the server's subscriptions and answer `connect`, all in one tick, or be refused and have none."""
        subscriptions = {join.channel: Subscription(self, join) for join in joins}
        self._welcoming = settled = asyncio.get_running_loop().create_future()
        for join in joins:
            self._changing(join.channel, settled)
        entered = False

        def admit(joined: Sequence[Joined | None]) -> bool:
            if self._ended:
                return False
            self._connected(command_id, claims, self._server_results(joins, joined))
            self._subscriptions |= subscriptions
            return True

        try:
            async with asyncio.timeout(SUBSCRIBE_LIMIT_S):
                entered = True
                await self._enter_all(joins)
                await self._services.dispatcher.join_all(
                    [self._joining(join, subscriptions[join.channel]) for join in joins], admit
                )
        except (PortError, TimeoutError) as error:
            reason = str(error) or f"not done within {SUBSCRIBE_LIMIT_S} s"
            _log.warning("connect_failed", client=self.session.client, reason=reason)
            self._refuse(command_id, Error.INTERNAL)
        finally:
            settled.set_result(None)
            for join in joins:
                if self._subscriptions.get(join.channel) is not subscriptions[join.channel]:
                    self._not_joined(join, entered=entered and join.options.presence)
        for channel, subscription in subscriptions.items():
            if self._subscriptions.get(channel) is subscription:
                self._tell_join(channel, subscription)

    def _joining(self, join: Join, subscription: Subscription) -> Joining:
        window = partial(self._window, join) if join.options.has_history else None
        return Joining(join.channel, subscription, join.since, window)

    async def _enter_all(self, joins: Sequence[Join]) -> None:
        """Enter presence where the channels have it. Raises PortError, when all of them are done."""

        async def enter(join: Join) -> None:
            await self._services.presence.enter(join.channel, join.info)

        entering = [join for join in joins if join.options.presence]
        for failure in await each_to_its_end(PRESENCE_ENTRIES_AT_ONCE, entering, enter):
            raise failure

    def _server_results(
        self, joins: Sequence[Join], joined: Sequence[Joined | None]
    ) -> dict[str, dict[str, object]]:
        """What the answer to `connect` says of each channel. All recoveries together bring no more than one may."""
        results: dict[str, dict[str, object]] = {}
        room = RING_BYTES_MAX
        for join, one in zip(joins, joined, strict=True):
            if one is not None and one.recovered:
                size = sum(len(sent.line) for sent in one.missed)
                if size > room:
                    one = Joined(one.position, False, ())  # noqa: PLW2901  # as if the log did not have it
                else:
                    room -= size
            results[join.channel] = self._subscribed(join, one)
        return results

    def _subscribed(self, join: Join, joined: Joined | None) -> dict[str, object]:
        """What a client is told of its new subscription. `joined` None = the channel has no history."""
        result = self._lasts_until(join.channel, join.expires_at) if not join.is_server_side else {}
        if join.data is not None:
            result["data"] = join.data
        if joined is None:
            return result
        position = joined.position
        if joined.recovered and join.since is not None:
            # The client goes on from its own position through what it gets now.
            position = StreamPosition(position.epoch, join.since.offset)
        return result | subscribe_result(
            position=position if join.positioned else None,
            recoverable=join.recoverable,
            publications=[sent.line for sent in joined.missed],
            recovered=bool(joined.recovered),
            was_recovering=joined.recovered is not None,
        )

    def _window(self, join: Join) -> Window:
        return Window(
            size=join.options.history_size,
            trim=0,
            cutoff_ts=self._services.clock.now_ms() - join.options.history_ttl_s * 1000,
            limit=self._services.limits.recovery_publications_max,
        )

    def _admit(self, join: Join, subscription: Subscription, joined: Joined) -> bool:
        """Queue the reply; the dispatcher adds the subscription in the same tick. I4."""
        if self._ended:
            return False
        if joined.recovered is False and join.reject_unrecovered:
            self._fail(join.id, Error.UNRECOVERABLE_POSITION)
            return False
        self._tell_subscribed(join, joined)
        self._subscriptions[join.channel] = subscription
        return True

    def _admit_unordered(self, join: Join, subscription: Subscription) -> bool:
        if self._ended:
            return False
        self._tell_subscribed(join, None)
        self._subscriptions[join.channel] = subscription
        return True

    def _tell_subscribed(self, join: Join, joined: Joined | None) -> None:
        result = self._subscribed(join, joined)
        if not join.is_server_side:
            self._reply(join.id, "subscribe", result)
            return
        # The push has a position only, so what was missed follows as pushes of its own.
        for name in ("publications", "recovered", "was_recovering"):
            result.pop(name, None)
        lines = [subscribe_push(join.channel, result)]
        lines += [publication_push(join.channel, sent.line) for sent in joined.missed] if joined else []
        for line in lines:
            self._send(line)

    def _leave(self, channel: str) -> None:
        """End the subscription to `channel`, if there is one. Idempotent."""
        subscription = self._subscriptions.pop(channel, None)
        if subscription is None:
            return
        self._services.dispatcher.leave(channel, subscription)
        self._left(channel, subscription)

    def _left(self, channel: str, subscription: Subscription) -> None:
        self._deadlines.set(channel, None)
        self.session.left(channel)
        if subscription.has_presence:
            self._exit_presence(channel, subscription.info)
        if subscription.has_join_leave:
            self._services.signal(
                signals.leave(self._services.node, self._services.new_id(), channel, subscription.info)
            )

    def _exit_presence(self, channel: str, info: ClientInfo) -> None:
        task = self._services.background(self._exit(channel, info))
        self._exits[channel] = task
        task.add_done_callback(partial(self._exited, channel))

    async def _exit(self, channel: str, info: ClientInfo) -> None:
        try:
            await self._services.presence.exit(channel, info)
        except PortError as error:
            # The entry ends with this node's lease at the latest.
            _log.warning("presence_exit_failed", channel=channel, reason=str(error))

    def _exited(self, channel: str, task: asyncio.Task[None]) -> None:
        if self._exits.get(channel) is task:
            del self._exits[channel]

    def lost(self, channel: str, subscription: Subscription) -> None:
        """The hub let go of the subscription: the client is told to subscribe again from where it stands."""
        if self._subscriptions.get(channel) is subscription:
            if subscription.is_server_side:
                # Its client cannot subscribe again by itself, but as it connects.
                self.close(Disconnect.INSUFFICIENT_STATE)
                return
            del self._subscriptions[channel]
            self._left(channel, subscription)
            self._send(unsubscribe_push(channel, Unsubscribe.INSUFFICIENT_STATE))

    # ---- what the application orders

    def order_subscribe(self, order: SubscribeOrder, places: asyncio.Semaphore) -> None:
        """Subscribe to a channel, as soon as there is one of `places`. Whoever is subscribed stays as they are."""
        self._in_order(order.channel, partial(self._subscribe_by_order, order, places))

    async def _subscribe_by_order(self, order: SubscribeOrder, places: asyncio.Semaphore) -> None:
        async with places:
            join = self.session.server_join(order.channel, order.sub, order.since, order.expires_at)
            if join is None:
                _log.info("order_passed_over", client=self.session.client, channel=order.channel)
                return
            await self._join(join)
            if order.expires_at is not None and order.channel in self._subscriptions:
                left_s = order.expires_at - self._services.clock.now_ms() / 1000
                self._deadlines.set(order.channel, max(0.0, left_s))

    def order_unsubscribe(self, channel: str) -> None:
        """End the subscription to `channel`, whoever made it; "" = every one."""
        for name in [channel] if channel else list(self.session.channels):
            self._in_order(name, partial(self._unsubscribe_by_order, name))

    async def _unsubscribe_by_order(self, channel: str) -> None:
        if channel in self._subscriptions:
            self._leave(channel)
            self._send(unsubscribe_push(channel, Unsubscribe.SERVER))

    def order_refresh(self, order: RefreshOrder) -> None:
        """Set how long the connection lasts."""
        if order.expired or (
            order.expires_at is not None and order.expires_at <= self._services.clock.now_ms() / 1000
        ):
            self.close(Disconnect.EXPIRED)
            return
        self.session.refreshed_by_server(order.info)
        lasts = self._lasts_until(None, order.expires_at)
        if self._is_welcome:
            self._send(refresh_push(lasts))

    def _in_order(self, channel: str, work: Callable[[], Coroutine[None, None, None]]) -> None:
        """Do `work` after what is under way for `channel`, and before what comes."""
        if self._orders >= ORDERS_UNDER_WAY_MAX:
            _log.warning("order_shed", client=self.session.client, channel=channel)
            return
        self._orders += 1
        task = self._track(self._after(self._changes.get(channel, self._welcoming), work))
        task.add_done_callback(self._order_done)
        self._changing(channel, task)

    async def _after(
        self, change: asyncio.Future[None] | None, work: Callable[[], Coroutine[None, None, None]]
    ) -> None:
        if change is not None:
            await asyncio.wait([change])
        await work()

    def _order_done(self, _task: asyncio.Task[None]) -> None:
        self._orders -= 1

    # ---- tokens that end, and new ones

    async def _refresh(self, effect: Refresh) -> None:
        try:
            claims = await self._services.verifier.connection(
                effect.token, self._services.clock.now_ms() / 1000
            )
        except TokenExpired:
            # Its client reconnects, is told so (109), and asks for another.
            self.close(Disconnect.EXPIRED)
        except TokenUnverifiable as error:
            self._fail(effect.id, self._not_now(error))
        except TokenError as error:
            self._token_refused(error)
        else:
            await self._carry_out(self.session.refreshed(effect, claims))

    async def _sub_refresh(self, effect: SubRefresh) -> None:
        try:
            claims = await self._services.verifier.subscription(
                effect.token, self._services.clock.now_ms() / 1000
            )
        except TokenExpired as error:
            # An SDK takes this error for the end; before it, it is told to subscribe again, with another token.
            self._expired(effect.channel)
            self._fail(effect.id, self._not_now(error))
        except TokenUnverifiable as error:
            self._fail(effect.id, self._not_now(error))
        except TokenError as error:
            _log.info("token_refused", client=self.session.client, reason=str(error))
            self._fail(effect.id, Error.PERMISSION_DENIED)
        else:
            await self._carry_out(self.session.sub_refreshed(effect, claims))

    def _renew(self, effect: Renew) -> None:
        lasts = self._lasts_until(effect.channel, effect.expires_at)
        if effect.channel is None:
            # An SDK takes over the client id that it finds here, or that it does not find.
            about = {"client": self.session.client, "version": self._services.version}
            self._reply(effect.id, "refresh", about | lasts)
        else:
            self._reply(effect.id, "sub_refresh", lasts)

    def _lasts_until(self, name: str | None, expires_at: int | None) -> dict[str, object]:
        """Hold the subscription to channel `name`, or the connection (None), to its end, and say so in a reply."""
        if expires_at is None:
            self._deadlines.set(name, None)
            return {}
        left_s = max(0.0, expires_at - self._services.clock.now_ms() / 1000)
        self._deadlines.set(name, left_s + EXPIRY_GRACE_S)
        # Never 0, which would be left out: SDKs need it.
        return {"expires": True, "ttl": min(math.ceil(left_s) or 1, TTL_S_MAX)}

    def _expired(self, name: str | None) -> None:
        """No new token came for the subscription to channel `name`, or for the connection (None)."""
        if name is None:
            self.close(Disconnect.EXPIRED)
        elif (subscription := self._subscriptions.get(name)) is not None:
            _log.info("subscription_expired", client=self.session.client, channel=name)
            if subscription.is_server_side:
                self.close(Disconnect.SUBSCRIPTION_EXPIRED)
                return
            self._leave(name)
            self._send(unsubscribe_push(name, Unsubscribe.EXPIRED))

    def _not_now(self, error: TokenExpired | TokenUnverifiable) -> Error:
        """What makes an SDK come again: with another token, or with this one."""
        if isinstance(error, TokenExpired):
            return Error.TOKEN_EXPIRED
        _log.info("token_unverifiable", client=self.session.client, reason=error.reason)
        return Error.INTERNAL

    def _token_refused(self, error: TokenError) -> None:
        _log.info("token_refused", client=self.session.client, reason=str(error))
        self.close(Disconnect.INVALID_TOKEN)

    # ---- publish, history, presence

    def _may_publish(self, command_id: int) -> bool:
        """Whether its connection has not published too much just now; otherwise the command is answered."""
        rate = self._services.limits.publishes
        if self._publishes is None or rate is None:
            return True
        if self._publishes.take(rate, self._services.clock.monotonic_s()):
            return True
        self._tally.limited(Limit.PUBLISH_RATE)
        self._fail(command_id, Error.TOO_MANY_REQUESTS)
        return False

    async def _publish(self, effect: Publish) -> None:
        services = self._services
        if effect.key is not None and self._slept():
            # Its client may have published it elsewhere so long ago that the key is forgotten.
            self.close(Disconnect.NO_PONG)
            return
        received_ms = services.clock.now_ms()
        published = Publication(effect.data, info=effect.info, time=received_ms)
        await self._places.acquire()
        try:
            if not effect.options.has_history:
                services.publisher.send(effect.channel, published)
                self._places.release()
                self._reply(effect.id, "publish", {})
                return
            position = services.publisher.store(
                effect.channel, effect.options, published, effect.key, received_ms
            )
        except (Full, TooLarge, Unencodable) as error:
            self._places.release()
            self._fail(effect.id, services.publisher.error(error))
        else:
            position.add_done_callback(partial(self._published, effect.id, effect.rpc))

    def _published(self, command_id: int, rpc: bool, position: asyncio.Future[StreamPosition]) -> None:
        """I2: answered only now, when the publication is in the log."""
        self._places.release()
        if position.cancelled():
            self._fail(command_id, Error.INTERNAL)
        elif (failure := position.exception()) is not None:
            self._fail(command_id, self._services.publisher.error(failure))
        elif rpc:
            at = position.result()
            self._reply(command_id, "rpc", {"data": {"offset": at.offset, "epoch": at.epoch}})
        else:
            self._reply(command_id, "publish", {})

    async def _read_history(self, effect: ReadHistory) -> None:
        request, most = effect.request, self._services.limits.history_publications_max
        try:
            history = await read_history(
                self._services.log,
                self._services.clock,
                request.channel,
                effect.options,
                since=request.since,
                limit=most if request.limit < 0 else min(request.limit, most),
                reverse=request.reverse,
            )
        except WrongEpoch:
            self._fail(effect.id, Error.UNRECOVERABLE_POSITION)
        except PortError as error:
            _log.warning("history_failed", channel=request.channel, reason=str(error))
            self._fail(effect.id, Error.INTERNAL)
        else:
            self._answered(effect.id, 0)
            self._send(
                encode_lines_reply(
                    effect.id,
                    "history",
                    history.lines,
                    {"epoch": history.position.epoch, "offset": history.position.offset},
                )
            )

    async def _read_presence(self, effect: ReadPresence) -> None:
        try:
            members = await self._services.presence.members(effect.channel)
        except PortError as error:
            _log.warning("presence_failed", channel=effect.channel, reason=str(error))
            self._fail(effect.id, Error.INTERNAL)
            return
        if effect.stats:
            users = {info.user for info in members.values()}
            self._reply(effect.id, "presence_stats", {"num_clients": len(members), "num_users": len(users)})
        else:
            clients = {client: info.wire() for client, info in members.items()}
            self._reply(effect.id, "presence", {"presence": clients})

    # ---- time

    def _ping(self) -> None:
        limits, loop = self._services.limits, asyncio.get_running_loop()
        if self._slept():
            self.close(Disconnect.NO_PONG)
            return
        self._awake_ms = self._services.clock.now_ms()
        self._send(PING)
        if self._pong_timer is None:
            self._pong_timer = loop.call_later(limits.pong_timeout_s, self._no_pong)
        self._ping_timer = loop.call_later(limits.ping_interval_s, self._ping)

    def _no_pong(self) -> None:
        if self._busy:
            # It may have answered long ago: its pong waits behind the commands that this node has not taken yet.
            timeout_s = self._services.limits.pong_timeout_s
            self._pong_timer = asyncio.get_running_loop().call_later(timeout_s, self._no_pong)
        else:
            self.close(Disconnect.NO_PONG)

    def _slept(self) -> bool:
        """Whether this process was suspended: what is read now may have been sent long ago."""
        since_s = (self._services.clock.now_ms() - self._awake_ms) / 1000
        return since_s > self._services.limits.ping_interval_s + SLEPT_S

    def _heard_pong(self) -> None:
        if self._pong_timer is not None:
            self._pong_timer.cancel()
            self._pong_timer = None

    def _stale(self) -> None:
        self._stale_timer = None
        self.close(Disconnect.STALE)

    # ---- the end

    def close(self, why: Closing) -> None:
        """Close from this side. Idempotent."""
        if not self._ended:
            code = code_of(why)
            _log.info("client_closed", client=self.session.client, code=code.code, reason=code.reason)
            self.socket.close(why)
            self.end()

    def end(self) -> None:
        """The transport is closed or closing: leave every channel. Idempotent."""
        if self._ended:
            return
        self._ended = True
        self._services.roster.leave(self)
        self.session.close(Disconnect.CONNECTION_CLOSED)
        for timer in (self._ping_timer, self._pong_timer, self._stale_timer):
            if timer is not None:
                timer.cancel()
        self._deadlines.clear()
        for task in self._tasks:
            task.cancel()
        for channel in list(self._subscriptions):
            self._leave(channel)

    # ---- within

    def _reply(self, command_id: int, method: str, result: Mapping[str, object]) -> None:
        try:
            line = encode_reply(command_id, method, result)
        except Unencodable:
            self._fail(command_id, Error.INTERNAL)
        else:
            self._answered(command_id, 0)
            self._send(line)

    def _fail(self, command_id: int, error: Error) -> None:
        self._answered(command_id, error.value.code)
        self._send(encode_error(command_id, error))

    def _answered(self, command_id: int, code: int) -> None:
        method = self._methods.pop(command_id, None)
        if method is not None:
            self._tally.answered(method, code)

    def _send(self, line: bytes) -> None:
        if not self._ended:
            frame = self.socket.framer(line)
            self._tally.sent_frames += 1
            self._tally.sent_bytes += len(frame)
            self.socket.send(frame)
