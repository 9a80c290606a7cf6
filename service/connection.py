"""One client's connection: carries out what its session decides, and is a subscriber in the hub.

Commands are taken one after the other. What needs the network runs beside the next commands, with two
exceptions: nothing overtakes `connect`, and nothing overtakes a subscribe or unsubscribe of its own channel.
Publications keep their order, since they are queued in it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Final, Protocol
from uuid import uuid4

import structlog

from service.core import signals
from service.core.codes import Disconnect, Error, Unsubscribe
from service.core.envelope import Signal
from service.core.protocol import (
    PING,
    Command,
    Pong,
    ProtocolViolation,
    Unencodable,
    decode_frame,
    encode_error,
    encode_lines_reply,
    encode_reply,
    subscribe_result,
    unsubscribe_push,
)
from service.core.publication import ClientInfo, Publication, StreamPosition
from service.core.recovery import Window
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
    Session,
)
from service.core.tokens import ConnectionClaims, SubscriptionClaims, TokenError, TokenExpired
from service.delivery.dispatcher import Dispatcher, Joined
from service.log.appender import Full
from service.log.channel_log import ChannelLog, NotAppended
from service.log.history import WrongEpoch, read_history
from service.ports import Clock, Framer, NewId, PortError, Sink
from service.presence import PresenceBook
from service.publisher import Publisher

__all__ = [
    "COMMANDS_UNDER_WAY_MAX",
    "EXPIRY_GRACE_S",
    "READS_UNDER_WAY_MAX",
    "SLEPT_S",
    "SUBSCRIBE_LIMIT_S",
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
# A subscribe that takes longer is answered with an error: SDKs give up, and reconnect, after 5 s.
SUBSCRIBE_LIMIT_S: Final = 4.5
# A connection whose token ran out may stay for this long: its client fetches a new token meanwhile.
EXPIRY_GRACE_S: Final = 25.0
# A ping that is this late: the process was suspended, and its clients have long gone elsewhere.
SLEPT_S: Final = 15 * 60.0

_log = structlog.get_logger(__name__)


class Socket(Sink, Protocol):
    """The transport of a connection."""

    def close(self, why: Disconnect) -> None:
        """Begin to close: whatever was sent before goes out first, as far as the peer takes it. Idempotent."""


class Verifier(Protocol):
    """Verifies tokens (service/auth.py). Both methods raise TokenExpired or TokenInvalid."""

    @property
    def enabled(self) -> bool: ...

    async def connection(self, token: str, now_s: float) -> ConnectionClaims: ...

    async def subscription(self, token: str, now_s: float) -> SubscriptionClaims: ...


@dataclass(frozen=True, slots=True)
class Limits:
    """What holds for every connection; seconds and counts."""

    ping_interval_s: float
    pong_timeout_s: float
    stale_close_delay_s: float
    history_publications_max: int
    recovery_publications_max: int


@dataclass(frozen=True, slots=True)
class Services:
    """What a connection works with: one of each on a node.

    `signal` delivers a signal locally and to the other nodes, False = shed. `background` runs what must be done
    after a connection is gone.
    """

    version: str
    policy: Policy
    limits: Limits
    verifier: Verifier
    clock: Clock
    new_id: NewId
    random: Callable[[], float]
    framer: Framer
    node: str
    log: ChannelLog
    publisher: Publisher
    dispatcher: Dispatcher
    presence: PresenceBook
    signal: Callable[[Signal], bool]
    background: Callable[[Coroutine[None, None, None]], asyncio.Task[None]]


class Subscription:
    """One channel of one connection, as the hub sees it."""

    __slots__ = ("connection", "has_join_leave", "has_presence", "info", "join_leave", "sink")

    def __init__(self, connection: Connection, join: Join) -> None:
        self.connection = connection
        self.sink: Sink = connection.socket
        self.info = join.info
        # Whether join and leave pushes go to it; whether its own go to others.
        self.join_leave = join.join_leave
        self.has_join_leave = join.options.join_leave
        self.has_presence = join.options.presence

    def lost(self, channel: str) -> None:
        self.connection.lost(channel, self)


class Connection:
    """From the transport's open to its end. All methods belong to the event loop's thread."""

    def __init__(self, services: Services, socket: Socket) -> None:
        self._services = services
        self.socket = socket
        self.session = Session(str(uuid4()), services.policy)
        self._subscriptions: dict[str, Subscription] = {}
        # Subscribes and presence exits under way, which commands of the same channel wait for.
        self._changes: dict[str, asyncio.Task[None]] = {}
        self._exits: dict[str, asyncio.Task[None]] = {}
        self._places = asyncio.Semaphore(COMMANDS_UNDER_WAY_MAX)
        self._reads = asyncio.Semaphore(READS_UNDER_WAY_MAX)
        # Whether a frame is being taken: pongs behind it are not read yet.
        self._busy = False
        self._tasks: set[asyncio.Task[None]] = set()
        self._ended = False
        self._ping_timer: asyncio.TimerHandle | None = None
        self._pong_timer: asyncio.TimerHandle | None = None
        self._expiry_timer: asyncio.TimerHandle | None = None
        self._stale_timer: asyncio.TimerHandle | None = asyncio.get_running_loop().call_later(
            services.limits.stale_close_delay_s, self._stale
        )
        # When a ping was last due (wall clock: a suspended machine's monotonic clock stands still).
        self._awake_ms = services.clock.now_ms()

    # ---- what the client says

    async def receive(self, frame: str | bytes) -> None:
        """Take one text frame. Returns when the next one may be read."""
        try:
            commands = decode_frame(frame)
        except ProtocolViolation as error:
            _log.info("frame_refused", client=self.session.client, reason=str(error))
            self.close(Disconnect.BAD_REQUEST)
            return
        self._busy = True
        try:
            for command in commands:
                await self._take(command)
                if self._ended:
                    return
        finally:
            self._busy = False

    async def _take(self, command: Command) -> None:
        channel: str = getattr(command.request, "channel", "")
        if (change := self._changes.get(channel)) is not None:
            await asyncio.wait([change])
        if isinstance(command.request, Pong):
            self._heard_pong()
        await self._carry_out(self.session.command(command))

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
            case Join():
                change = await self._start(self._join(effect))
                self._changes[effect.channel] = change
                change.add_done_callback(partial(self._changed, effect.channel))
            case Leave(command_id, channel):
                self._leave(channel)
                self._reply(command_id, "unsubscribe", {})
            case Publish():
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
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._finished)
        return task

    async def _in_turn(self, read: Callable[[], Awaitable[None]]) -> None:
        async with self._reads:
            await read()

    def _finished(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        self._places.release()
        if not task.cancelled() and (error := task.exception()) is not None:
            # A fault of ours: the client must not be left waiting for an answer.
            _log.error("command_failed", client=self.session.client, exc_info=error)
            self.close(Disconnect.SERVER_ERROR)

    def _changed(self, channel: str, change: asyncio.Task[None]) -> None:
        if self._changes.get(channel) is change:
            del self._changes[channel]

    # ---- connect

    async def _authenticate(self, effect: Authenticate) -> None:
        verifier, policy = self._services.verifier, self._services.policy
        claims: ConnectionClaims | None = None
        if effect.token and (verifier.enabled or not policy.insecure):
            try:
                claims = await verifier.connection(effect.token, self._services.clock.now_ms() / 1000)
            except TokenExpired:
                self.session.refused()
                self._fail(effect.id, Error.TOKEN_EXPIRED)
                return
            except TokenError as error:
                _log.info("token_refused", client=self.session.client, reason=str(error))
                self.close(Disconnect.INVALID_TOKEN)
                return
        elif not self.session.may_connect_without_token():
            self.session.refused()
            self._fail(effect.id, Error.UNAUTHORIZED)
            return
        if self._ended:
            return
        self.session.connected(claims.user if claims else "", claims.info if claims else None)
        self._connected(effect.id, claims)

    def _connected(self, command_id: int, claims: ConnectionClaims | None) -> None:
        limits, loop = self._services.limits, asyncio.get_running_loop()
        if self._stale_timer is not None:
            self._stale_timer.cancel()
            self._stale_timer = None
        self._reply(
            command_id,
            "connect",
            {
                "client": self.session.client,
                "version": self._services.version,
                "ping": round(limits.ping_interval_s) or 1,
                "pong": True,
            },
        )
        self._awake_ms = self._services.clock.now_ms()
        # The first ping comes at random, so that clients that came together are not pinged together.
        first = limits.ping_interval_s * (0.5 + self._services.random() / 2)
        self._ping_timer = loop.call_later(first, self._ping)
        if claims is not None and claims.expires_at is not None:
            left = claims.expires_at - self._services.clock.now_ms() / 1000
            # A timer beyond a month is no use: the connection will not last that long.
            delay = min(max(0.0, left) + EXPIRY_GRACE_S, _TIMER_MAX_S)
            self._expiry_timer = loop.call_later(delay, self.close, Disconnect.EXPIRED)
        _log.info("client_connected", client=self.session.client, user=self.session.user)

    # ---- subscribe and unsubscribe

    async def _authorize(self, effect: Authorize) -> None:
        try:
            claims = await self._services.verifier.subscription(
                effect.request.token, self._services.clock.now_ms() / 1000
            )
        except TokenExpired:
            self._fail(effect.id, Error.TOKEN_EXPIRED)
            return
        except TokenError as error:
            _log.info("token_refused", client=self.session.client, reason=str(error))
            self._fail(effect.id, Error.PERMISSION_DENIED)
            return
        if claims.client and claims.client != self.session.client:
            self.close(Disconnect.INVALID_TOKEN)
            return
        await self._carry_out(self.session.authorized(effect, claims.channel, claims.user, claims.info))

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
            self._fail(join.id, Error.INTERNAL)
        finally:
            if self._subscriptions.get(channel) is not subscription:
                self.session.left(channel)
                if entered:
                    self._exit_presence(channel, join.info)
        if self._subscriptions.get(channel) is subscription and subscription.has_join_leave:
            self._services.signal(
                signals.join(self._services.node, self._services.new_id(), channel, join.info)
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
        position = joined.position
        if joined.recovered and join.since is not None:
            # The client goes on from its own position through what it gets now.
            position = StreamPosition(position.epoch, join.since.offset)
        result = subscribe_result(
            position=position if join.positioned else None,
            recoverable=join.recoverable,
            publications=[sent.line for sent in joined.missed],
            recovered=bool(joined.recovered),
            was_recovering=joined.recovered is not None,
        )
        self._reply(join.id, "subscribe", result)
        self._subscriptions[join.channel] = subscription
        return True

    def _admit_unordered(self, join: Join, subscription: Subscription) -> bool:
        if self._ended:
            return False
        self._reply(join.id, "subscribe", {})
        self._subscriptions[join.channel] = subscription
        return True

    def _leave(self, channel: str) -> None:
        """End the subscription to `channel`, if there is one. Idempotent."""
        subscription = self._subscriptions.pop(channel, None)
        if subscription is None:
            return
        self._services.dispatcher.leave(channel, subscription)
        self._left(channel, subscription)

    def _left(self, channel: str, subscription: Subscription) -> None:
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
            del self._subscriptions[channel]
            self._left(channel, subscription)
            self._send(unsubscribe_push(channel, Unsubscribe.INSUFFICIENT_STATE))

    # ---- publish, history, presence

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
        except (Full, Unencodable) as error:
            self._places.release()
            full = isinstance(error, Full)
            self._fail(effect.id, Error.TOO_MANY_REQUESTS if full else Error.BAD_REQUEST)
        else:
            position.add_done_callback(partial(self._published, effect.id, effect.rpc))

    def _published(self, command_id: int, rpc: bool, position: asyncio.Future[StreamPosition]) -> None:
        """I2: answered only now, when the publication is in the log."""
        self._places.release()
        if position.cancelled() or (error := position.exception()) is not None:
            known = not position.cancelled() and isinstance(error, NotAppended)
            self._fail(command_id, Error.TOO_MANY_REQUESTS if known else Error.INTERNAL)
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

    def close(self, why: Disconnect) -> None:
        """Close from this side. Idempotent."""
        if not self._ended:
            _log.info(
                "client_closed", client=self.session.client, code=why.value.code, reason=why.value.reason
            )
            self.socket.close(why)
            self.end()

    def end(self) -> None:
        """The transport is closed or closing: leave every channel. Idempotent."""
        if self._ended:
            return
        self._ended = True
        self.session.close(Disconnect.CONNECTION_CLOSED)
        for timer in (self._ping_timer, self._pong_timer, self._expiry_timer, self._stale_timer):
            if timer is not None:
                timer.cancel()
        for task in self._tasks:
            task.cancel()
        for channel in list(self._subscriptions):
            self._leave(channel)

    # ---- within

    def _reply(self, command_id: int, method: str, result: Mapping[str, object]) -> None:
        try:
            self._send(encode_reply(command_id, method, result))
        except Unencodable:
            self._fail(command_id, Error.INTERNAL)

    def _fail(self, command_id: int, error: Error) -> None:
        self._send(encode_error(command_id, error))

    def _send(self, line: bytes) -> None:
        if not self._ended:
            self.socket.send(self._services.framer(line))


# The longest timer that an event loop takes on every platform is longer; a month is enough.
_TIMER_MAX_S: Final = 30 * 24 * 3600.0
