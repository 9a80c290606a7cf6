"""One client's connection: takes its commands, carries out what its session decides, and ends.

Commands are taken one after the other. What needs the network runs beside the next commands, with two
exceptions: nothing overtakes `connect`, and nothing overtakes a subscribe or unsubscribe of its own channel.
Publications keep their order, since they are queued in it; where the application is asked about them, one after the other.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Final
from uuid import uuid4

import structlog

from roomcast.client.ask import Asking
from roomcast.client.connect import Connecting
from roomcast.client.expiry import Expiry
from roomcast.client.heartbeat import Heartbeat
from roomcast.client.pace import Pace
from roomcast.client.peer import Peer
from roomcast.client.publish import Publishing
from roomcast.client.read import Reading
from roomcast.client.server_orders import ClientOrders
from roomcast.client.services import Services, Socket
from roomcast.client.session import (
    AskPublish,
    AskSubscribe,
    Authenticate,
    Authorize,
    Call,
    Close,
    Effect,
    Fail,
    Ignore,
    Join,
    Leave,
    Publish,
    ReadHistory,
    ReadPresence,
    Refresh,
    Renew,
    Session,
    State,
    SubRefresh,
)
from roomcast.client.subscribe import Joins, limit_from_now
from roomcast.client.subscriptions import Subscriptions
from roomcast.client.tasks import Tasks
from roomcast.client.tokens import Tokens
from roomcast.client.turns import Turns
from roomcast.fleet.order_signals import RefreshOrder, SubscribeOrder
from roomcast.observe.counters import Limit
from roomcast.wire.codes import Closing, Disconnect, Error
from roomcast.wire.json import (
    JSON_FRAMES,
    Command,
    OversizedRequest,
    Pong,
    ProtocolViolation,
    Reader,
)

__all__ = ["COMMANDS_UNDER_WAY_MAX", "COMMAND_BYTES_MIN", "TURN_BYTES", "Connection"]

# Commands of one connection that wait for the network at once; the next one is not read before one is done.
COMMANDS_UNDER_WAY_MAX: Final = 256
# What one connection takes before it lets the others have their turn, and what a command counts as at least. That many
# bytes are decoded and that many commands carried out (16) in a few ms.
TURN_BYTES: Final = 32 * 1024
COMMAND_BYTES_MIN: Final = 2 * 1024

_log = structlog.get_logger(__name__)


class Connection:
    """From the transport's open to its end. All methods belong to the event loop's thread."""

    def __init__(self, services: Services, socket: Socket) -> None:
        self._services = services
        self._counters = services.counters
        self._counters.connections += 1
        self.socket = socket
        self.session = Session(str(uuid4()), services.policy)
        self._pace = Pace(
            services.limits.commands, Limit.COMMAND_RATE, services.clock, self._counters
        )
        # Whether a frame is being taken, and since when (monotonic seconds).
        self._busy = False
        self._read_s = 0.0
        # Whether no further command is taken: the node is about to end.
        self._is_leaving = False
        # What was taken in this turn, as TURN_BYTES counts.
        self._taken = 0
        self._peer = peer = Peer(self.session, socket, self._counters, self.end)
        places = asyncio.Semaphore(COMMANDS_UNDER_WAY_MAX)
        self._tasks = Tasks(peer, places)
        self._turns = Turns()
        self._expiry = Expiry(services.clock, self._expired)
        self._heartbeat = Heartbeat(
            services.limits, services.clock, peer, lambda: self._busy or self._is_leaving
        )
        self._subscriptions = Subscriptions(services, peer, self._expiry)
        self._joins = Joins(services, peer, self._subscriptions, self._expiry)
        self._tokens = Tokens(services, peer, self._expiry, self._subscriptions.expire)
        self._asking = Asking(services, peer)
        self._connecting = Connecting(
            services,
            self,
            peer,
            self._expiry,
            self._heartbeat,
            self._tokens,
            self._asking,
            self._subscriptions,
            self._joins,
            self._tasks,
            self._turns,
        )
        self._publishing = Publishing(
            services, peer, self._asking, self._tasks, places, self._heartbeat.slept
        )
        self._reading = Reading(services, peer)
        self._orders = ClientOrders(
            services.clock,
            peer,
            self._expiry,
            self._subscriptions,
            self._joins,
            self._tasks,
            self._turns,
        )

    @property
    def client(self) -> str:
        return self.session.client

    @property
    def user(self) -> str:
        return self.session.user

    # ---- what the client says

    async def receive(self, frame: str | bytes, reader: Reader = JSON_FRAMES) -> None:
        """Take one frame, command after command. Returns when the next one may be read."""
        self._busy, self._read_s = True, self._services.clock.monotonic_s()
        try:
            for encoded in reader.split(frame):
                await self._keep_turn(len(encoded))
                if not self._takes_nothing:
                    await self._pace.keep()
                if self._takes_nothing:
                    return
                await self._take(self._decode(encoded, reader))
                if self._takes_nothing:
                    return
        except ProtocolViolation as error:
            _log.info("frame_refused", client=self.session.client, reason=str(error))
            self.close(Disconnect.BAD_REQUEST)
        finally:
            self._busy = False

    @property
    def _takes_nothing(self) -> bool:
        return self._is_leaving or self._peer.has_ended or self.socket.is_gone

    def _decode(self, encoded: bytes, reader: Reader) -> Command:
        """Its size is judged first. Raises ProtocolViolation."""
        policy, is_new = self._services.policy, self.session.state is State.NEW
        return reader.decode(encoded, policy.connect_bounds if is_new else policy.bounds)

    async def _keep_turn(self, size: int) -> None:
        """Let the others have theirs before a command of `size` bytes, when this connection has had its own.

        Neither a frame of many commands nor many frames that came at once would let the event loop go by themselves.
        """
        cost = max(size, COMMAND_BYTES_MIN)
        self._taken += cost
        if self._taken > TURN_BYTES:
            self._taken = cost
            await asyncio.sleep(0)

    async def _take(self, command: Command) -> None:
        self._peer.said(command)
        await self._turns.wait(getattr(command.request, "channel", ""))
        if isinstance(command.request, Pong):
            self._heartbeat.heard_pong()
        effect = self.session.command(command)
        if isinstance(effect, Fail) and effect.error is Error.LIMIT_EXCEEDED:
            too_large = isinstance(command.request, OversizedRequest)
            self._counters.limited(Limit.MESSAGE_SIZE if too_large else Limit.CHANNELS)
        await self._carry_out(effect)

    async def _carry_out(self, effect: Effect) -> None:
        match effect:
            case Ignore():
                pass
            case Fail(command_id, error):
                self._peer.fail(command_id, error)
            case Close(why):
                self.close(why)
            case Authenticate():
                await self._connecting.connect(effect)
            case Authorize():
                await self._carry_out(await self._tokens.authorize(effect))
            case AskSubscribe():
                asking = self._subscribe_if_allowed(effect, limit_from_now())
                self._turns.take(effect.request.channel, await self._tasks.start(asking))
            case Refresh():
                await self._carry_out(await self._tokens.refresh(effect))
            case SubRefresh():
                await self._carry_out(await self._tokens.sub_refresh(effect))
            case Renew():
                self._tokens.renew(effect)
            case Join():
                self._turns.take(effect.channel, await self._tasks.start(self._joins.join(effect)))
            case Leave(command_id, channel):
                self._subscriptions.leave_by_client(channel)
                self._peer.reply(command_id, "unsubscribe", {})
            case Publish():
                await self._publishing.publish(effect, self._read_s)
            case AskPublish():
                await self._publishing.publish_if_allowed(effect, self._read_s)
            case Call():
                await self._tasks.start(self._asking.call(effect))
            case ReadHistory():
                await self._tasks.start(self._reading.history(effect))
            case ReadPresence():
                await self._tasks.start(self._reading.presence(effect))

    async def _subscribe_if_allowed(self, effect: AskSubscribe, limit_s: float) -> None:
        answered = await self._asking.subscribe(effect)
        if isinstance(answered, Join):
            await self._joins.join(answered, limit_s)
        else:
            await self._carry_out(answered)

    # ---- what the application orders

    def order_subscribe(self, order: SubscribeOrder, places: asyncio.Semaphore) -> None:
        """Subscribe to a channel, as soon as there is one of `places`."""
        self._orders.subscribe(order, places)

    def order_unsubscribe(self, channel: str) -> None:
        """End the subscription to `channel`, whoever made it; "" = every one."""
        self._orders.unsubscribe(channel)

    def order_refresh(self, order: RefreshOrder) -> None:
        """Set how long the connection lasts."""
        self._orders.refresh(order)

    # ---- the end

    def _expired(self, name: str | None) -> None:
        """No new token came for the subscription to channel `name`, or for the connection (None)."""
        if name is None:
            self.close(Disconnect.EXPIRED)
        else:
            self._subscriptions.expire(name)

    def close(self, why: Closing) -> None:
        """Close from this side. Idempotent."""
        self._peer.close(why)

    def shut_down(self, within_s: float) -> asyncio.Task[None] | None:
        """Close with 3001 when all commands that were taken are answered, `within_s` from now at the latest; take no more.

        What was not taken was not done, and its client may do it elsewhere. None = nothing was owed: it is closed now.
        """
        self._is_leaving = True
        if not self._peer.owes or self._peer.has_ended:
            self.close(Disconnect.SHUTDOWN)
            return None
        return asyncio.create_task(self._shut_down(within_s))

    async def _shut_down(self, within_s: float) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(within_s):
                await self._peer.all_answered()
        self.close(Disconnect.SHUTDOWN)

    def end(self) -> None:
        """The transport is closed or closing: leave every channel. Idempotent."""
        if self._peer.has_ended:
            return
        self._peer.ended()
        self._services.roster.leave(self)
        self.session.close(Disconnect.CONNECTION_CLOSED)
        self._heartbeat.stop()
        self._expiry.clear()
        self._tasks.cancel()
        self._subscriptions.leave_all()
