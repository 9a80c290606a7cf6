"""One run of the whole: real nodes and simulated clients in a simulated AWS, all from one seed."""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Callable, Coroutine
from contextlib import suppress
from dataclasses import dataclass, field
from random import Random
from typing import Any

from service.adapters.memory import (
    MemoryChannelTable,
    MemoryLeases,
    MemoryPresence,
    MemoryQueue,
    MemoryTopic,
)
from service.assembly import Assembly, Ports, assemble
from service.config import ClientConfig, Config, NodeConfig
from service.connection import SLEPT_S, Connection
from service.core.channels import ChannelOptions, ChannelRules
from service.core.tokens import ConnectionClaims, SubscriptionClaims, TokenInvalid
from service.node import Health
from service.ports import PortError
from tests.simulation import clockwork
from tests.simulation.checker import Checker
from tests.simulation.clients import ClientSocket, SimulatedClient
from tests.simulation.world import FATE, Fate, Faults, SimulatedWorld

HOUR_S = 3600.0
# Clocks of nodes differ by at most twice this; with REQUEST_S_MAX it stays below MARGIN.
SKEW_S_MAX = 10 * 60.0
TAIL_CHECK_S = 1800.0
# When all faults are over, everybody has caught up after two tail checks.
SETTLE_S = 2.6 * TAIL_CHECK_S
# How soon, when no hint is lost: requests under way, visibility time-outs and back-offs are over by then.
PROMPT_S = 400.0
# Never, in a run.
PING_S = 1e6
# The part of publications that have a key, and of publishers that lose their connection before an answer comes.
KEYED = 0.25
CUT_OFF = 0.1
_EPOCH_MS = 1_800_000_000_000


class SimulatedClock:
    """The Clock of one node: virtual time, less or more."""

    def __init__(self, skew_s: float) -> None:
        self._skew_s = skew_s

    def now_ms(self) -> int:
        return _EPOCH_MS + round((asyncio.get_running_loop().time() + self._skew_s) * 1000)

    def monotonic_s(self) -> float:
        return asyncio.get_running_loop().time()


class NoTokens:
    """The Verifier of an insecure node."""

    enabled = False

    async def connection(self, token: str, now_s: float) -> ConnectionClaims:
        raise TokenInvalid("none here")

    async def subscription(self, token: str, now_s: float) -> SubscriptionClaims:
        raise TokenInvalid("none here")


class SimulatedNode:
    """The real code of a node on simulated ports. It can freeze, and die between any two steps."""

    def __init__(self, world: SimulatedWorld, random: Random, name: str, history_ttl_s: int) -> None:
        self.fate = Fate(woken=self._woken)
        self.name = name
        self._context = contextvars.copy_context()
        self._context.run(FATE.set, self.fate)
        self._sockets: list[ClientSocket] = []
        self._connections: set[Connection] = set()
        self._tasks: list[asyncio.Task[Any]] = []
        self.ready = False
        clock = SimulatedClock(random.uniform(-SKEW_S_MAX, SKEW_S_MAX))
        self.assembly: Assembly = assemble(
            _config(history_ttl_s),
            Ports(
                table=MemoryChannelTable(world, clock),
                presence=MemoryPresence(world),
                leases=MemoryLeases(world),
                queue=MemoryQueue(world, wait_s=HOUR_S),
                topic=MemoryTopic(world),
                clock=clock,
                new_id=lambda: f"{random.getrandbits(64):016x}",
                random=random.random,
            ),
            node_id=name,
            verifier=NoTokens(),
            framer=lambda payload: payload,
            health=Health(),
            hold_queue=_hold,
            newest_canary_elsewhere=_nobody_else,
        )
        self._start(self._run())

    def attach(self, socket: ClientSocket, inbox: asyncio.Queue[bytes]) -> None:
        """A client connects: pump its frames into a connection, as the gateway does."""
        self._sockets.append(socket)
        self._start(self._pump(socket, inbox))

    def die(self) -> None:
        """As `kill -9`: nothing is said to anybody, and what was sent may still arrive."""
        self.fate.dead = True
        self.ready = False
        for socket in self._sockets:
            socket.open = False

    def _woken(self, slept_s: float) -> None:
        """What waited to be read may be as old as the sleep.

        Here timers go on meanwhile, and there are no pings: the time of the last one is set back instead.
        """
        for connection in self._connections:
            if slept_s > SLEPT_S:
                connection._awake_ms -= round((PING_S + slept_s) * 1000)

    async def _run(self) -> None:
        assembly = self.assembly
        for _ in range(100):
            try:
                await assembly.listener.open()
                break
            except PortError:
                with suppress(PortError):
                    await assembly.listener.close()
                await asyncio.sleep(1.0)
        self._start(assembly.poller.run())
        self._start(assembly.broadcaster.run())
        if not await assembly.listener.prove():
            assembly.listener.prove_later()
        self._start(assembly.dispatcher.watch())
        self.ready = not self.fate.dead

    async def _pump(self, socket: ClientSocket, inbox: asyncio.Queue[bytes]) -> None:
        connection = self.assembly.node.open(socket)
        self._connections.add(connection)
        try:
            while frame := await inbox.get():
                await connection.receive(frame)
        finally:
            self._connections.discard(connection)
            self.assembly.node.closed(connection)

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        self._tasks.append(self._context.run(asyncio.get_running_loop().create_task, work))


@dataclass(slots=True)
class Outcome:
    """What one run came to. `violations` is empty when all invariants held."""

    seed: int
    violations: list[str]
    published: int
    acknowledged: int
    delivered: int
    recovered: int
    told: int
    retries: int
    calls: int
    trace: list[str] = field(default_factory=list)


class Scenario:
    """Everything that happens in one run is drawn from the seed."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.random = Random(seed)
        self.checker = Checker()
        self.calm = Faults()
        self.faults = _faults(self.random)
        self.world = SimulatedWorld(self.random, self.calm)
        self.nodes: list[SimulatedNode] = []
        self.clients: list[SimulatedClient] = []
        self.channels = [f"channel-{number}" for number in range(self.random.choice((1, 1, 2)))]
        self.published = 0
        self.node_count = 0
        self.trace: list[str] = []
        # Whether everything that was published reaches every queue sooner or later.
        self.hints_reliable = self.faults.hint_lost == 0

    async def run(self) -> Outcome:
        random = self.random
        for _ in range(random.choice((1, 2, 2, 3))):
            self._add_node()
        await self._until(lambda: all(node.ready for node in self.nodes), 300)
        for number in range(random.randint(2, 4)):
            client = SimulatedClient(f"client-{number}", self.channels, self.checker, random, self._pick_node)
            self.clients.append(client)
            client.come()
        for _ in range(random.choice((1, 1, 2, 3))):
            self.world.faults = self.faults
            await self._busy_time()
            if random.random() < 0.5:
                self.world.faults = self.calm
            await self._quiet_time()
        await self._settle()
        self.checker.finish(self.world.stream)
        return Outcome(
            seed=self.seed,
            violations=self.checker.violations,
            published=len(self.checker.attempted),
            acknowledged=len(self.checker.acknowledged),
            delivered=self.checker.delivered,
            recovered=self.checker.recovered,
            told=self.checker.told,
            retries=sum(client.retries for client in self.clients),
            calls=self.world.calls,
            trace=self.trace,
        )

    # ---- what happens

    async def _busy_time(self) -> None:
        random = self.random
        actions: list[tuple[float, Callable[[], None]]] = [
            (8.0, self._publish),
            (1.0, self._drop_client),
            (0.5, self._client_goes),
            (0.5, self._client_comes),
            (0.4, self._read_history),
            (0.3, self._kill_node),
            (0.3, self._freeze_node),
            (0.2, self._delete_queue),
            (0.2, self._remove_history),
            (0.3, self._expire),
        ]
        weights = [weight for weight, _ in actions]
        for _ in range(random.randint(10, 40)):
            action = random.choices([call for _, call in actions], weights)[0]
            self._note(action.__name__)
            action()
            await asyncio.sleep(random.choice((0.0, 0.001, 0.02, 0.3, 2.0)))

    async def _quiet_time(self) -> None:
        random = self.random
        if random.random() < 0.5:
            for client in self.clients:
                client.go()
        # Around a day, when what nobody renewed expires: there the clocks' differences count.
        about_a_day_s = 24 * HOUR_S + random.uniform(-60, SKEW_S_MAX)
        length_s = random.choice((1.0, 30.0, 600.0, 12 * HOUR_S, about_a_day_s, about_a_day_s, 25 * HOUR_S))
        self._note(f"quiet for {length_s:.0f} s")
        await asyncio.sleep(length_s)
        self._expire()
        for client in self.clients:
            client.come()

    async def _settle(self) -> None:
        """No more faults: everybody must end up at the top of the log."""
        self.world.faults = self.calm
        for node in self.nodes:
            node.fate.thaw()
        if not any(node.ready for node in self.nodes):
            self._add_node()
        for client in self.clients:
            client.come()
        if self.hints_reliable and not await self._until(self._caught_up, PROMPT_S):
            self.checker.fail(
                f"late: no hint was lost for good, yet not all caught up within {PROMPT_S:.0f} s"
            )
        if await self._until(self._caught_up, SETTLE_S):
            return
        tops = self._tops()
        for client in self.clients:
            for content in client.unanswered:
                self.checker.fail(f"I2 {client.name}: {content} is not acknowledged for {SETTLE_S:.0f} s")
            for view in client.views.values():
                if not view.subscribed or view.position != tops[view.channel]:
                    self.checker.fail(
                        f"I3 {client.name}: {view.channel} at {view.position} for {SETTLE_S:.0f} s "
                        f"(subscribed: {view.subscribed}); the log is at {tops[view.channel]}"
                    )

    def _caught_up(self) -> bool:
        tops = self._tops()
        return not any(client.unanswered for client in self.clients) and all(
            view.subscribed and view.position == tops[view.channel]
            for client in self.clients
            for view in client.views.values()
        )

    def _tops(self) -> dict[str, tuple[str, int]]:
        """Where the log of each channel ends: the newest item, or the head's floor if that is newer."""
        tops: dict[str, tuple[str, int]] = {}
        for channel in self.channels:
            items = self.world.items.get(channel, {})
            head = MemoryChannelTable(self.world, SimulatedClock(0))._head(channel)
            newest = items.get(max(items)) if items else None
            last = getattr(newest, "last", 0)
            if head is not None and head.floor >= last:
                tops[channel] = (head.epoch, head.floor)
            elif newest is not None:
                tops[channel] = (newest.epoch, last)
        return tops

    # ---- single events

    def _publish(self) -> None:
        client = self.random.choice(self.clients)
        channel = self.random.choice(self.channels)
        for _ in range(self.random.choice((1, 1, 1, 2, 5))):
            self.published += 1
            publish = client.publish_keyed if self.random.random() < KEYED else client.publish
            publish(channel, f"message-{self.published}")
        if self.random.random() < CUT_OFF:
            client.drop()

    def _drop_client(self) -> None:
        self.random.choice(self.clients).drop()

    def _client_goes(self) -> None:
        self.random.choice(self.clients).go()

    def _client_comes(self) -> None:
        self.random.choice(self.clients).come()

    def _read_history(self) -> None:
        self.random.choice(self.clients).read_history(self.random.choice(self.channels))

    def _kill_node(self) -> None:
        victim = self.random.choice(self.nodes)
        victim.die()
        self.nodes.remove(victim)
        for client in self.clients:
            if not client.connected and not client.away:
                client.drop()
        self._add_node()

    def _freeze_node(self) -> None:
        """Suspended for moments, for longer than belief lasts beyond its margin, or for a day."""
        seconds = self.random.choice((0.1, 30.0, 25 * 60.0, 26 * HOUR_S, 26 * HOUR_S))
        self.random.choice(self.nodes).fate.freeze(seconds)

    def _delete_queue(self) -> None:
        if self.world.queues:
            self.hints_reliable = False
            self.world.delete_queue(self.random.choice(sorted(self.world.queues)))

    def _remove_history(self) -> None:
        ready = [node for node in self.nodes if node.ready]
        if ready:
            node, channel = self.random.choice(ready), self.random.choice(self.channels)
            node._start(self._remove(node, channel))

    async def _remove(self, node: SimulatedNode, channel: str) -> None:
        with suppress(PortError):
            position = await node.assembly.log.remove_history(channel)
            for client in self.clients:
                client.hidden[channel] = (position.epoch, position.offset)

    def _expire(self) -> None:
        self.world.expire_some(SimulatedClock(0).now_ms())

    # ---- within

    def _add_node(self) -> None:
        self.node_count += 1
        history_ttl_s = self.random.choice((60, 3600, 3 * 86_400))
        node = SimulatedNode(self.world, self.random, f"node-{self.node_count}", history_ttl_s)
        self.nodes.append(node)

    def _pick_node(self) -> SimulatedNode | None:
        ready = [node for node in self.nodes if node.ready]
        return self.random.choice(ready) if ready else None

    async def _until(self, condition: Callable[[], bool], limit_s: float) -> bool:
        loop = asyncio.get_running_loop()
        end = loop.time() + limit_s
        step = 0.5
        while not condition():
            if loop.time() >= end:
                return False
            await asyncio.sleep(step)
            step = min(60.0, step * 1.5)
        return True

    def _note(self, what: str) -> None:
        self.trace.append(f"{asyncio.get_running_loop().time():12.3f} {what}")


def simulate(seed: int) -> Outcome:
    """Run the scenario of `seed`."""
    return clockwork.run(Scenario(seed).run())


async def _nobody_else() -> int:
    return 0


async def _hold(_: str) -> None:
    pass


def _config(history_ttl_s: int) -> Config:
    """Nodes of one fleet may differ in their retention: a rolling change of configuration."""
    return Config(
        client=ClientConfig(
            insecure=True, ping_interval_s=PING_S, pong_timeout_s=1e5, stale_close_delay_s=1e6
        ),
        channel=ChannelRules(
            ChannelOptions(history_size=1000, history_ttl_s=history_ttl_s, force_recovery=True)
        ),
        node=NodeConfig(tail_check_s=TAIL_CHECK_S, gap_wait_ms=200),
    )


def _faults(random: Random) -> Faults:
    """From hardly any to many at once."""
    severe = random.choice((0.0, 0.02, 0.1, 0.25))
    return Faults(
        throttled=severe * random.random(),
        unknown=severe * random.random(),
        slow=random.choice((0.0, 0.0, 0.02)),
        latency_s=random.choice((0.001, 0.02, 0.3)),
        hint_lost=random.choice((0.0, 0.0, 0.1, 1.0)),
        hint_repeated=random.choice((0.0, 0.2, 0.5)),
        hint_late_s=random.choice((0.01, 0.5, 5.0)),
    )
