"""One client's connection: it takes commands and carries out what the session decides.

Commands are taken one after the other. A command that waits for the network runs beside the next
ones, with two exceptions. Nothing overtakes `connect`. Nothing overtakes a subscribe or unsubscribe
for the same channel. Publications keep their order: they are queued in it, and a publish hook is
called for one after the other.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Collection, Coroutine, Iterator
from contextlib import suppress
from functools import cached_property
from os import urandom
from typing import Final

import structlog

from roomcast.client.connect import Connecting
from roomcast.client.effects import (
    AskPublish,
    AskSubscribe,
    Authenticate,
    Authorize,
    Call,
    Close,
    Effect,
    Fail,
    Ignore,
    Leave,
    Publish,
    ReadHistory,
    ReadPresence,
    Refresh,
    Renew,
    SubRefresh,
    Subscribe,
)
from roomcast.client.hooks import ClientHooks
from roomcast.client.lifetime import Lifetime
from roomcast.client.peer import ANY_CARRIER, Peer
from roomcast.client.publish import Publishing
from roomcast.client.read import Reading
from roomcast.client.renewing import Renewing
from roomcast.client.server_orders import ClientOrders
from roomcast.client.services import TURNS_AT_ONCE, Services, Socket
from roomcast.client.session import Session
from roomcast.client.subscribe import Subscribing, limit_from_now
from roomcast.client.subscriptions import Subscriptions
from roomcast.client.tokens import Tokens
from roomcast.client.work import READ_SIZE, SUBSCRIBE_SIZE, Pace, Work
from roomcast.fleet.badges import CLIENT_DIGITS, client_id
from roomcast.fleet.order_signals import RefreshOrder, SubscribeOrder
from roomcast.hooks.events import Carrier
from roomcast.observe.counters import Limit
from roomcast.wire.codes import Closing, Disconnect, Error
from roomcast.wire.commands import (
    JSON_FRAMES,
    Command,
    OversizedRequest,
    Pong,
    ProtocolViolation,
    Reader,
)

__all__ = [
    "COMMAND_BYTES_MIN",
    "CROWD_BYTES",
    "CROWD_PUSH_BYTES",
    "FIRSTS_BYTES",
    "PUSH_BYTES",
    "TURN_BYTES",
    "Connection",
    "Waiting",
]

# The bytes of commands that one connection takes before the others have their turn, and the least
# that a command counts as. So many bytes, or 16 commands, take a few ms.
TURN_BYTES: Final = 32 * 1024
COMMAND_BYTES_MIN: Final = 2 * 1024
# What a push to one subscriber counts as: some thirty of them take as long as a small command.
# Without history a publication goes to all subscribers here as it is taken.
PUSH_BYTES: Final = 64
# The bytes that all connections together take in one turn: hundreds may choose the same moment.
# Beyond that each takes one small command, up to FIRSTS_BYTES in all, so that who says little waits
# for nobody. And what a push counts as among these, which is as long as it takes.
CROWD_BYTES: Final = TURNS_AT_ONCE * TURN_BYTES
FIRSTS_BYTES: Final = 8 * CROWD_BYTES
CROWD_PUSH_BYTES: Final = 256

# Bytes of a client's id that are random.
_RANDOM_BYTES: Final = (CLIENT_DIGITS + 1) // 2

# What is left of a command that waits for something.
Waiting = Coroutine[None, None, object]

_log = structlog.get_logger(__name__)


def _new_client(badge: str) -> str:
    """A fresh id of a client of the node with `badge`."""
    return client_id(badge, urandom(_RANDOM_BYTES).hex()[:CLIENT_DIGITS])


class Connection:
    """From the transport's open to its end. All methods belong to the event loop's thread.

    `carrier`: how the client came, for hooks. `since_ms`: when it connected, in ms since 1970,
    where a user has one connection; else 0.
    """

    since_ms = 0

    def __init__(self, services: Services, socket: Socket, carrier: Carrier = ANY_CARRIER) -> None:
        self._services = services
        self._counters = services.counters
        self._counters.connections += 1
        self.socket = socket
        self.session = Session(
            _new_client(services.badge), services.policy, is_binary=socket.is_binary
        )
        rate = services.limits.commands
        self._pace = (
            Pace(rate, Limit.COMMAND_RATE, services.clock, self._counters) if rate else None
        )
        # Whether a frame is being taken, and when it was read (monotonic seconds).
        self._busy = False
        self._read_s = 0.0
        # Whether no further command is taken, because the node is about to end.
        self._is_leaving = False
        # Bytes taken beyond what its turns had room for, counted as for TURN_BYTES; and the last
        # turn in which it took any.
        self._taken = 0
        self._turn = -1

        self._peer = peer = Peer(self.session, socket, self._counters, self, carrier)
        self._work = work = Work(peer)
        self._lifetime = lifetime = Lifetime(
            services.limits, services.clock, peer, self, services.departures
        )
        self._subscriptions = subscriptions = Subscriptions(services, peer, lifetime)
        self._subscribing = Subscribing(services, peer, lifetime, work, subscriptions)
        self._tokens = Tokens(services, peer, lifetime, work, subscriptions)
        self._hooks = ClientHooks(services, peer)

    # Parts that many connections never need, or once.

    def _connecting(self) -> Connecting:
        return Connecting(
            self._services,
            self,
            self._peer,
            self._lifetime,
            self._work,
            self._tokens,
            self._hooks,
            self._subscribing,
        )

    @cached_property
    def _publishing(self) -> Publishing:
        return Publishing(self._services, self._peer, self._lifetime, self._work, self._hooks)

    @cached_property
    def _reading(self) -> Reading:
        return Reading(self._services, self._peer)

    @cached_property
    def _renewing(self) -> Renewing:
        return Renewing(
            self._services,
            self._peer,
            self._lifetime,
            self._work,
            self._subscriptions,
            self._hooks,
        )

    @cached_property
    def _orders(self) -> ClientOrders:
        return ClientOrders(
            self._services.clock,
            self._peer,
            self._lifetime,
            self._work,
            self._subscriptions,
            self._subscribing,
        )

    @property
    def client(self) -> str:
        """Its id, unique over all nodes."""
        return self.session.client

    @property
    def user(self) -> str:
        """Its user; "" = none, or not known yet."""
        return self.session.user

    @property
    def session_name(self) -> str:
        """What leads its further commands to it; "" = they come as its frames."""
        return self.socket.session

    @property
    def has_ended(self) -> bool:
        """Whether its transport is closed or closing."""
        return self._peer.has_ended

    @property
    def subscriptions(self) -> int:
        """How many it has, or is about to have."""
        return len(self.session.channels)

    @property
    def channels(self) -> Collection[str]:
        """Their names, as they are at any time."""
        return self.session.channels

    # ---- the client's commands

    async def receive(self, frame: str | bytes, reader: Reader = JSON_FRAMES) -> None:
        """Take one frame, command after command. Returns when the next one may be read."""
        if (rest := self.take(frame, reader)) is not None:
            await rest

    def take(self, frame: str | bytes, reader: Reader = JSON_FRAMES) -> Waiting | None:
        """Take one frame, command after command, until something has to be waited for.

        Returns the rest of the work. The next frame may be taken when it is done. None: nothing is
        left.
        """
        self._read_s = self._services.clock.monotonic_s()
        try:
            commands = iter(reader.split(frame))
            waiting = self._take_commands(commands, reader)
        except ProtocolViolation as error:
            self._refuse(error)
            return None
        if waiting is None:
            return None
        self._busy = True
        return self._take_rest(waiting, commands, reader)

    async def _take_rest(self, waiting: Waiting, commands: Iterator[bytes], reader: Reader) -> None:
        try:
            await waiting
            while (further := self._take_commands(commands, reader)) is not None:
                await further
        except ProtocolViolation as error:
            self._refuse(error)
        finally:
            self._busy = False

    def _refuse(self, error: ProtocolViolation) -> None:
        _log.info("frame_refused", client=self.session.client, reason=str(error))
        self.close(Disconnect.BAD_REQUEST)

    def _take_commands(self, commands: Iterator[bytes], reader: Reader) -> Waiting | None:
        """Take commands until one of them has to wait, which is then returned.

        Raises ProtocolViolation.
        """
        for encoded in commands:
            if not self._has_turn(len(encoded)):
                return self._take_in_turn(encoded, reader)
            if self._takes_nothing:
                return None
            if self._pace is not None and not self._pace.take():
                return self._take_in_time(encoded, reader)
            waiting = self._take(reader.decode(encoded, self.session.bounds))
            if waiting is not None:
                return waiting
        return None

    @property
    def _takes_nothing(self) -> bool:
        return self._is_leaving or self._peer.has_ended or self.socket.is_gone

    def _has_turn(self, size: int) -> bool:
        """Whether a command of `size` bytes still belongs to this turn.

        Otherwise other connections run before it. A frame of many commands, or many frames at once,
        would hold the event loop.
        """
        cost, crowd = max(COMMAND_BYTES_MIN, size), self._services.crowd
        passed = crowd.turn - self._turn
        if passed:
            # Others had their turn meanwhile. Who says one small thing at a time would otherwise
            # wait in the line now and then, behind all who say much.
            self._taken = max(0, self._taken - passed * TURN_BYTES)
        self._taken += cost
        is_little = cost == COMMAND_BYTES_MIN and passed > 0
        self._turn = crowd.turn
        has_room = crowd.taken + cost <= (FIRSTS_BYTES if is_little else CROWD_BYTES)
        if has_room and self._taken <= TURN_BYTES:
            crowd.take(cost)
            return True
        # What has to wait takes nothing from those that say little in this turn.
        self._taken = cost
        return False

    async def _take_in_turn(self, encoded: bytes, reader: Reader) -> None:
        """Take a command in a later turn of the event loop, in which few connections go on."""
        await self._services.turns.wait()
        # What it takes from here on is of this turn.
        self._turn = self._services.crowd.turn
        if self._takes_nothing:
            return
        if self._pace is not None and not self._pace.take():
            await self._take_in_time(encoded, reader)
        elif (waiting := self._take(reader.decode(encoded, self.session.bounds))) is not None:
            await waiting

    async def _take_in_time(self, encoded: bytes, reader: Reader) -> None:
        """Take a command when the rate allows it."""
        assert self._pace is not None
        if await self._pace.keep() and self._takes_nothing:
            # It ended while the command waited.
            return
        waiting = self._take(reader.decode(encoded, self.session.bounds))
        if waiting is not None:
            await waiting

    def _take(self, command: Command) -> Waiting | None:
        """Take one command. Returns what has to be waited for."""
        pushes = self._services.dispatcher.pushes
        waiting = self._carry_out_command(command)
        if waiting is None:
            self._count_pushes(pushes)
            return None
        return self._counted(waiting, pushes)

    async def _counted(self, waiting: Waiting, pushes: int) -> None:
        await waiting
        self._count_pushes(pushes)

    def _count_pushes(self, before: int) -> None:
        """Count the pushes since there were `before` as bytes of this turn."""
        count = self._services.dispatcher.pushes - before
        pushed = count * PUSH_BYTES
        if pushed > COMMAND_BYTES_MIN:
            self._taken += pushed - COMMAND_BYTES_MIN
        if count:
            self._services.crowd.take(count * CROWD_PUSH_BYTES)

    def _carry_out_command(self, command: Command) -> Waiting | None:
        self._counters.received_bytes += command.size
        if command.id:
            self._peer.owe(command.id, type(command.request))
        if self._work.is_changing(getattr(command.request, "channel", "")):
            return self._carry_out_after(command)
        return self._decide(command)

    async def _carry_out_after(self, command: Command) -> None:
        """Carry `command` out after the change that is under way for its channel."""
        await self._work.turn(getattr(command.request, "channel", ""))
        if (waiting := self._decide(command)) is not None:
            await waiting

    def _decide(self, command: Command) -> Waiting | None:
        if isinstance(command.request, Pong):
            self._lifetime.heard_pong()
        effect = self.session.command(command)
        if isinstance(effect, Fail) and effect.error is Error.LIMIT_EXCEEDED:
            too_large = isinstance(command.request, OversizedRequest)
            self._counters.limited(Limit.MESSAGE_SIZE if too_large else Limit.CHANNELS)
        return self._carry_out(effect, command.size)

    def _carry_out(self, effect: Effect, size: int) -> Waiting | None:
        """Returns what has to be waited for. `size`: bytes of the command that `effect` comes
        from.
        """
        # What comes most is first: each case costs the ones behind it.
        match effect:
            case Publish():
                return self._publishing.publish(effect, self._read_s)
            case Ignore():
                pass
            case Subscribe():
                subscribing = self._subscribing.subscribe(effect)
                return self._work.start_change(effect.channel, subscribing, SUBSCRIBE_SIZE)
            case Leave(command_id, channel):
                self._subscriptions.leave_by_client(channel)
                self._peer.reply(command_id, "unsubscribe", {})
            case AskPublish():
                return self._publishing.publish_if_allowed(effect, self._read_s, size)
            case Fail(command_id, error):
                self._peer.fail(command_id, error)
            case Close(why):
                self.close(why)
            case Authenticate():
                return self._connecting().connect(effect)
            case Authorize():
                return self._carry_out_answer(self._tokens.authorize(effect), size)
            case AskSubscribe():
                deciding = self._subscribe_if_allowed(effect, limit_from_now())
                return self._work.start_change(effect.request.channel, deciding, size)
            case Refresh():
                return self._carry_out_answer(self._tokens.refresh(effect), size)
            case SubRefresh():
                return self._carry_out_answer(self._tokens.sub_refresh(effect), size)
            case Renew():
                self._tokens.renew(effect)
            case Call():
                return self._work.start(self._hooks.call(effect), size)
            case ReadHistory():
                return self._work.start(self._reading.history(effect), READ_SIZE)
            case ReadPresence():
                return self._work.start(self._reading.presence(effect), READ_SIZE)
        return None

    async def _carry_out_to_end(self, effect: Effect, size: int) -> None:
        """As `_carry_out`, to the end."""
        if (waiting := self._carry_out(effect, size)) is not None:
            await waiting

    async def _carry_out_answer(self, deciding: Awaitable[Effect], size: int) -> None:
        """Carry out the effect that `deciding` returns."""
        await self._carry_out_to_end(await deciding, size)

    async def _subscribe_if_allowed(self, effect: AskSubscribe, limit_s: float) -> None:
        decision = await self._hooks.subscribe(effect)
        if isinstance(decision, Subscribe):
            await self._subscribing.subscribe(decision, limit_s)
        else:
            # It is an error or a close: it needs no place.
            await self._carry_out_to_end(decision, 0)

    # ---- the application's orders

    def order_subscribe(self, order: SubscribeOrder, places: asyncio.Semaphore) -> None:
        """Subscribe to a channel as soon as one of `places` is free."""
        self._orders.subscribe(order, places)

    def order_unsubscribe(self, channel: str) -> None:
        """End the subscription to `channel`, client-side or server-side; "" = every one."""
        self._orders.unsubscribe(channel)

    def order_refresh(self, order: RefreshOrder) -> None:
        """Set how long the connection lasts."""
        self._orders.refresh(order)

    # ---- its lifetime asks

    @property
    def reads_no_pong(self) -> bool:
        """Whether a timely pong may still wait behind commands that are not taken yet."""
        return self._busy or self._is_leaving

    def expired(self, name: str | None) -> None:
        """No new token came for channel `name`, or for the connection (None)."""
        if self._services.hooks.renews and self._renewing.ask(name):
            return
        if name is None:
            self.close(Disconnect.EXPIRED)
        else:
            self._subscriptions.expire(name)

    # ---- the end

    def close(self, why: Closing) -> None:
        """Close from this side. Idempotent."""
        self._peer.close(why)

    def shut_down(self, within_s: float) -> asyncio.Task[None] | None:
        """Take no more commands, answer those that were taken, then close with 3001.

        It is closed `within_s` from now at the latest. Commands that were not taken were not
        carried out: the client may send them to another node. Returns None when no answer was owed
        and the connection is closed already.
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
        if (entries := self._services.entries) is not None:
            entries.disconnected(self._peer.client)
        self.session.close(Disconnect.CONNECTION_CLOSED)
        self._lifetime.stop()
        self._work.cancel()
        self._services.departures.leave(self._subscriptions)
