"""What goes from one node straight to another: the application's orders for one client, and
commands of sessions that reach another node than their session's.

Orders are those that tell a client how long its connection lasts: by the time each says which
order it is. Sessions only keep what they take.
"""

from __future__ import annotations

import asyncio
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from random import Random
from typing import Final

from roomcast.fleet.emulation_signals import Outcome
from roomcast.fleet.order_signals import RefreshOrder, Target
from roomcast.log.appender import Full
from roomcast.ports import PortError
from tests.simulation.checker import Checker, Kind
from tests.simulation.clients import SimulatedClient
from tests.simulation.nodes import EPOCH_MS, SimulatedNode
from tests.simulation.world import SimulatedWorld

__all__ = ["Mail"]

# Between the times that two orders tell. A run is shorter, and clocks differ by less than half.
_APART_S: Final = 2_000_000
# How long an order, or a command and its answer, may take when nothing fails.
_PROMPT_S: Final = 60.0
# Commands that a session sends at once through one node.
_BURST: Final = (1, 2, 5)
# The part of commands for which a session has no room.
_BUSY: Final = 0.05


@dataclass(slots=True)
class _Order:
    """`whom`: those who were connected when it was given, by the id of the connection, each with
    its node and the queue that this had.
    """

    number: int
    whom: Mapping[str, tuple[SimulatedNode, str]]
    is_for_all: bool = False
    is_given: bool = False


@dataclass(slots=True)
class _Command:
    """`via`: the node that the request reached. Times are in s; None = not yet."""

    frame: bytes
    via: SimulatedNode
    sent_s: float
    answered_s: float | None = None
    outcome: Outcome | None = None


class _Session:
    """A client's stream on `node`."""

    def __init__(self, name: str, node: SimulatedNode, random: Random) -> None:
        self.name = name
        self.node = node
        # What the client was told when it connected.
        self.lease = node.lease.id
        self.taken: list[bytes] = []
        self.sent: list[_Command] = []
        self.is_busy = True
        self._random = random

    def take(self, frame: bytes) -> bool:
        if self.is_busy and self._random.random() < _BUSY:
            return False
        self.taken.append(frame)
        return True


class Mail:
    """All of a run. `nodes`, `clients`: those that there are now."""

    def __init__(
        self,
        world: SimulatedWorld,
        random: Random,
        checker: Checker,
        nodes: Sequence[SimulatedNode],
        clients: Sequence[SimulatedClient],
    ) -> None:
        self._world = world
        self._random = random
        self._checker = checker
        self._nodes = nodes
        self._clients = clients
        self._orders: list[_Order] = []
        # How many times each connection was told of each order, by the id of the connection.
        self._told: Counter[tuple[int, str]] = Counter()
        self._open: list[_Session] = []
        self._sessions: list[_Session] = []
        self.commands = 0

    @property
    def orders(self) -> int:
        """How many were given."""
        return len(self._orders)

    @property
    def taken(self) -> int:
        """Commands that were taken."""
        return sum(len(session.taken) for session in self._sessions)

    # ---- orders

    def order_one(self) -> None:
        """An order for one client, through any node."""
        client = self._random.choice(self._clients)
        if whom := _connected([client]):
            self._give(_Order(len(self._orders) + 1, whom), Target(None, client.id))

    def order_all(self) -> None:
        """An order for everybody: nobody here has a user."""
        order = _Order(len(self._orders) + 1, _connected(self._clients), is_for_all=True)
        self._give(order, Target(""))

    def refreshed(self, client: SimulatedClient, ttl_s: int) -> None:
        """A client was told how long its connection lasts."""
        number = round((ttl_s + asyncio.get_running_loop().time()) / _APART_S)
        order = self._orders[number - 1]
        self._told[number, client.id] += 1
        if client.id not in order.whom and not order.is_for_all:
            self._fail(Kind.ORDERS, f"{client.name} was told of order {number}, for another")
        if self._told[number, client.id] > 1:
            self._fail(Kind.ORDERS, f"{client.name} was told of order {number} twice")

    def _give(self, order: _Order, target: Target) -> None:
        node = self._any_node()
        if node is not None:
            self._orders.append(order)
            expires_at = EPOCH_MS // 1000 + order.number * _APART_S
            node.start(self._given(order, node, RefreshOrder(target, expires_at=expires_at)))

    async def _given(self, order: _Order, node: SimulatedNode, told: RefreshOrder) -> None:
        try:
            await node.assembly.node.orders.give(told)
        except (Full, PortError):
            return
        order.is_given = True

    # ---- commands

    def enter(self) -> None:
        """A client opens a stream."""
        node = self._any_node()
        if node is None:
            return
        session = _Session(f"session-{len(self._sessions) + 1}", node, self._random)
        node.assembly.node.emulation.sessions.enter(session.name, session)
        self._open.append(session)
        self._sessions.append(session)

    def leave(self) -> None:
        """A stream ends."""
        if self._open:
            session = self._random.choice(self._open)
            self._open.remove(session)
            session.node.assembly.node.emulation.sessions.leave(session.name)

    def command(self) -> None:
        """A client sends some commands, which reach one node, while others may be under way. They
        may come after the end of its stream.
        """
        node = self._any_node()
        if node is not None and self._sessions:
            session = self._random.choice(self._open or self._sessions)
            for _ in range(self._random.choice(_BURST)):
                self._send(session, node)

    def _send(self, session: _Session, via: SimulatedNode) -> _Command:
        self.commands += 1
        now_s = asyncio.get_running_loop().time()
        command = _Command(b"command-%d" % self.commands, via, now_s)
        session.sent.append(command)
        via.start(self._answered(session, command))
        return command

    async def _answered(self, session: _Session, command: _Command) -> None:
        emulation = command.via.assembly.node.emulation
        outcome = await emulation.take(session.lease, session.name, command.frame)
        command.answered_s, command.outcome = asyncio.get_running_loop().time(), outcome

    # ---- judgement

    async def settle(self, limit_s: float, *, topic_loses: bool) -> None:
        """When nothing fails any more, what is asked for is done, at the latest after `limit_s`:
        a lease may have to be renewed before.

        `topic_loses`: what went through the topic may not have reached everybody.
        """
        end_s, pause_s = asyncio.get_running_loop().time() + limit_s, _PROMPT_S
        while undone := await self._try():
            if asyncio.get_running_loop().time() > end_s:
                self._fail(Kind.COMMANDS, f"for {limit_s:.0f} s without a failure: {undone}")
                break
            await asyncio.sleep(pause_s)
            pause_s *= 2
        for session in self._sessions:
            self._check(session)
        self._check_orders(topic_loses)

    async def _try(self) -> list[str]:
        """What was asked for now, and not done soon."""
        if self._any_node() is None:
            await asyncio.sleep(_PROMPT_S)
            return ["no node is ready"]
        self.enter()
        session = self._open[-1]
        session.is_busy = False
        commands = [self._send(session, node) for node in self._nodes if node.ready]
        first = len(self._orders)
        for _ in range(2 * len(self._clients)):
            self.order_one()
        self.order_all()
        await asyncio.sleep(_PROMPT_S)
        return [
            f"{each.frame!r} by {each.via.name} was answered {each.outcome}"
            for each in commands
            if each.outcome is not Outcome.TAKEN
        ] + [
            f"order {each.number} was not taken"
            for each in self._orders[first:]
            if not each.is_given
        ]

    def _check_orders(self, topic_loses: bool) -> None:
        here = {
            client.id: client.node for client in self._clients if client.connected and client.id
        }
        for order in self._orders:
            if not order.is_given or (topic_loses and self._is_published(order)):
                continue
            for client, (node, queue) in order.whom.items():
                keeps = here.get(client) is node and node.queue_name == queue
                if keeps and not self._told[order.number, client]:
                    self._fail(
                        Kind.ORDERS,
                        f"order {order.number} was given, and {client} of {node.name} was not told",
                    )

    def _is_published(self, order: _Order) -> bool:
        told = f'"expires_at":{EPOCH_MS // 1000 + order.number * _APART_S}'
        return any(told in body for body in self._world.published)

    def _check(self, session: _Session) -> None:
        places = defaultdict[bytes, list[int]](list)
        for place, frame in enumerate(session.taken):
            places[frame].append(place)
        for command in session.sent:
            where, name = places[command.frame], f"{command.frame!r} of {session.name}"
            if len(where) > 1:
                self._fail(Kind.COMMANDS, f"{name} was taken at {where}")
            if command.outcome is Outcome.TAKEN and not where:
                self._fail(Kind.COMMANDS, f"{name} is said to be taken, and is not")
            if command.outcome is Outcome.UNKNOWN and where:
                self._fail(Kind.COMMANDS, f"{name} has no session, it is said, and was taken")
            if command.outcome is Outcome.BUSY and where:
                self._fail(Kind.COMMANDS, f"{name} is said to be refused, and was taken")
            if command.outcome is None and not command.via.fate.dead:
                self._fail(Kind.COMMANDS, f"{name} was not answered")
        for before, after in combinations(session.sent, 2):
            first, second = places[before.frame], places[after.frame]
            if not second or (first and first[0] < second[0]):
                continue
            if _is_ordered(before, after):
                self._fail(
                    Kind.COMMANDS,
                    f"{after.frame!r} of {session.name} was taken, and {before.frame!r} before it "
                    f"{'was not' if not first else 'later'}",
                )

    def _any_node(self) -> SimulatedNode | None:
        ready = [node for node in self._nodes if node.ready]
        return self._random.choice(ready) if ready else None

    def _fail(self, kind: Kind, what: str) -> None:
        self._checker.fail(kind, what)


def _connected(clients: Iterable[SimulatedClient]) -> dict[str, tuple[SimulatedNode, str]]:
    return {
        client.id: (client.node, client.node.queue_name)
        for client in clients
        if client.id and client.node is not None
    }


def _is_ordered(before: _Command, after: _Command) -> bool:
    """Whether `after`, which was sent later and taken, may only be taken behind `before`."""
    taken = before.outcome is Outcome.TAKEN
    waited = before.answered_s is not None and before.answered_s <= after.sent_s
    if waited:
        # Who was told that it is lost, or refused, goes on without it.
        return taken and after.outcome is Outcome.TAKEN
    # By one node, what follows one that was not taken would be carried out without it.
    return before.via is after.via
