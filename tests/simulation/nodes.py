"""The real code of a node on simulated ports, with a clock of its own."""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Callable, Collection, Coroutine, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from random import Random
from types import MappingProxyType
from typing import Any, Final

from roomcast.auth.claims import ConnectionClaims, SubscriptionClaims, TokenInvalid
from roomcast.client.connection import Connection
from roomcast.client.lifetime import SLEPT_S
from roomcast.config import AwsConfig, ClientConfig, Config, NodeConfig
from roomcast.delivery.canary_rules import Hearing
from roomcast.delivery.shards import shard_of
from roomcast.fleet.lease import LeaseKeeper
from roomcast.fleet.lease_record import Lease
from roomcast.hooks.calls import Hooks
from roomcast.log.appender import Full
from roomcast.log.channel_log import NotAppended, OutcomeUnknown
from roomcast.log.lane import LANE_BYTES_MAX
from roomcast.node.assembly import Assembly, Ports, assemble, build_core
from roomcast.ports import PortError
from roomcast.testing.memory import MemoryLeases, MemoryPresence, MemoryQueue, MemoryTopic
from roomcast.wire.channels import ChannelOptions, ChannelRules
from roomcast.wire.publication import Publication, StreamPosition
from roomcast.wire.versions import Version
from tests.simulation.clients import ClientSocket
from tests.simulation.mishaps import Mishaps
from tests.simulation.reasons import Terms
from tests.simulation.world import FATE, Fate, SimulatedTable, SimulatedWorld

__all__ = [
    "DAYS",
    "EPOCH_MS",
    "EXPRESS",
    "HOUR_S",
    "MINUTES",
    "SKEW_S_MAX",
    "TAIL_CHECK_S",
    "Express",
    "Pace",
    "SimulatedClock",
    "SimulatedNode",
]

# What a large publication of these runs takes at most.
_LARGE_BYTES: Final = 64 * 1024
HOUR_S: Final = 3600.0
# The namespace of channels with express hints, on nodes that have the option.
EXPRESS: Final = "express"
# Clocks of nodes differ by at most twice this; with REQUEST_S_MAX it stays below MARGIN.
SKEW_S_MAX: Final = 10 * 60.0
# Where leases live for a minute they must not differ by more.
_SMALL_SKEW_S_MAX: Final = 10.0
TAIL_CHECK_S: Final = 1800.0
# Never, in a run.
PING_S: Final = 1e6
EPOCH_MS: Final = 1_800_000_000_000
# Attempts to open a queue at the start, a second apart.
_OPENINGS_MAX: Final = 100


@dataclass(frozen=True, slots=True)
class Pace:
    """How long a run lasts, about: in quiet times of days nobody can emit twice a
    minute. All in seconds.

    `skew_s`: by how much a clock may be wrong.
    """

    canary_interval_s: float
    lease_ttl_s: float
    heartbeat_s: float
    skew_s: float
    quiet_s: tuple[float, ...]


MINUTES: Final = Pace(30.0, 60.0, 15.0, _SMALL_SKEW_S_MAX, (1.0, 30.0, 600.0))
# Around a day, when what nobody renewed expires, the clocks' differences count.
DAYS: Final = Pace(
    2 * HOUR_S,
    2 * HOUR_S,
    HOUR_S / 2,
    SKEW_S_MAX,
    (1.0, 30.0, 600.0, 12 * HOUR_S, 24 * HOUR_S, 24 * HOUR_S, 25 * HOUR_S),
)


@dataclass(frozen=True, slots=True)
class Express:
    """What a node does in EXPRESS channels: whether it sends hints, at which rate of the fleet."""

    is_on: bool
    per_s: float


class SimulatedClock:
    """The Clock of one node: virtual time, less or more."""

    def __init__(self, skew_s: float) -> None:
        self._skew_s = skew_s

    def now_ms(self) -> int:
        return EPOCH_MS + round((asyncio.get_running_loop().time() + self._skew_s) * 1000)

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
    """It starts as a real one does (service/roomcast/serve/process.py).
    It can freeze, and die between any two steps.
    """

    def __init__(
        self,
        world: SimulatedWorld,
        random: Random,
        name: str,
        pace: Pace,
        mishaps: Mishaps,
        shards: int = 1,
        options: Mapping[str, Any] = MappingProxyType({}),
        express: Express | None = None,
        hooks: Hooks | None = None,
    ) -> None:
        self.fate = Fate(woken=self._woken)
        self.name = name
        # Whether it was suspended for so long that it closes its connections.
        self.slept = False
        self._mishaps = mishaps
        self._config = config = _config(random, pace, shards, options, express)
        self._context = contextvars.copy_context()
        self._context.run(FATE.set, self.fate)
        self._sockets: list[ClientSocket] = []
        self._connections: set[Connection] = set()
        self._tasks: list[asyncio.Task[Any]] = []
        self.ready = False
        self.clock = clock = SimulatedClock(random.uniform(-pace.skew_s, pace.skew_s))
        self._table = SimulatedTable(world, clock)
        self._queue = MemoryQueue(world, wait_s=HOUR_S)
        leases = MemoryLeases(world)
        core = self._core = build_core(
            config,
            Ports(
                table=self._table,
                presence=MemoryPresence(world),
                leases=leases,
                queue=self._queue,
                topic=MemoryTopic(world),
                clock=clock,
                new_id=lambda: f"{random.getrandbits(64):016x}",
                random=random.random,
            ),
            node_id=name,
            hooks=hooks or Hooks(),
        )
        self.lease = LeaseKeeper(
            leases,
            clock,
            random.random,
            owner=self,
            node=name,
            new_id=lambda: f"{name}-{random.getrandbits(32):08x}",
            ttl_s=config.node.lease_ttl_s,
            heartbeat_s=config.node.heartbeat_s,
        )
        self.assembly: Assembly = assemble(
            core, lease=self.lease, verifier=NoTokens(), listening=True
        )
        self.health = self.assembly.node.health
        self._start(self._run())

    @property
    def may_have_a_full_lane(self) -> bool:
        """Whether so much waits to be appended that another large publication might find no room
        in a channel's lane.
        """
        return self.assembly.appender.waiting_bytes + _LARGE_BYTES > LANE_BYTES_MAX

    @property
    def queue_name(self) -> str:
        """The queue that it has now; "" = none."""
        return self._queue._name or ""

    @property
    def shards_wanted(self) -> Collection[int]:
        """The topic shards of the channels that it has open; empty when there are none."""
        shards = self._config.aws.topic_shards
        channels = self.assembly.dispatcher.channels if shards > 1 else ()
        return {shard_of(channel, shards) for channel in channels}

    def terms(self, channel: str) -> Terms:
        """What it goes by, right now."""
        options = self._config.channel.options(channel)
        assert options is not None, "the channels here have options"
        return Terms(
            publications_max=self._config.client.recovery_max_publication_limit,
            history_size=options.history_size,
            history_ttl_ms=options.history_ttl_s * 1000,
            now_ms=self.clock.now_ms(),
            unanswered_s=self._table.unanswered_s(channel),
        )

    def attach(self, socket: ClientSocket, inbox: asyncio.Queue[bytes]) -> None:
        """A client connects: pump its frames into a connection, as the gateway does."""
        self._sockets.append(socket)
        self._start(self._pump(socket, inbox))

    async def remove_history(self, channel: str, removed: Callable[[StreamPosition], None]) -> None:
        """As by the API; `removed` is told up to where."""
        with suppress(PortError):
            removed(await self.assembly.log.remove_history(channel))

    async def publish_state(
        self,
        channel: str,
        content: str,
        version: Version,
        key: str | None,
        answered: Callable[[StreamPosition], None],
        again: Callable[[], None] | None,
        until_s: float,
    ) -> None:
        """As by the API; `answered` is told where it is, or where the log ends. `again`: what its
        back end does until `until_s` when the outcome is not known.
        """
        options = self._config.channel.options(channel)
        assert options is not None, "the channels here have options"
        submit = self.assembly.appender.submit
        try:
            position = await submit(
                channel, Publication(content), options.history_ttl_s * 1000, key, version=version
            )
        except (Full, NotAppended):
            return
        except OutcomeUnknown:
            if again is not None and self.clock.monotonic_s() < until_s:
                again()
            return
        answered(position)

    def start(self, work: Coroutine[Any, Any, None]) -> None:
        """Something that happens on this node."""
        self._start(work)

    def owns(self, queue: str) -> bool:
        """Whether it made the queue, now or before."""
        return f"-{self.name}-" in f"-{queue}"

    def is_unready(self) -> bool:
        """Whether it says that it cannot hear."""
        return bool(self.health.reasons())

    def is_deaf(self) -> bool:
        """Whether it says that others hear what it does not."""
        return self.assembly.ears.hearing is Hearing.DEAF and self.is_unready()

    def is_in_doubt(self) -> bool:
        """Whether it says that it may not hear everything."""
        return bool(self.health.reasons() or self.health.doubts())

    def die(self) -> None:
        """As `kill -9`: nothing is said to anybody, and what was sent may still arrive."""
        self.fate.dead = True
        self.ready = False
        for socket in self._sockets:
            socket.open = False

    def _woken(self, slept_s: float) -> None:
        """What waited to be read may be as old as the sleep.

        Here timers go on meanwhile, and there are no pings:
        the time of the last one is set back instead.
        """
        if slept_s > SLEPT_S:
            self.slept = True
            for connection in self._connections:
                connection._lifetime._awake_ms -= round((PING_S + slept_s) * 1000)

    async def _run(self) -> None:
        assembly = self.assembly
        self._start_background("lease", self.lease.run())
        self._start_background("broadcaster", assembly.broadcaster.run())
        self._start_background("count of nodes", assembly.node_count.run(self.lease))
        self._start_background("catch up", assembly.catch_up.run())
        for _ in range(_OPENINGS_MAX):
            try:
                await assembly.listener.open()
                break
            except PortError:
                # A real one ends, and another is started.
                with suppress(PortError):
                    await assembly.listener.close()
                await asyncio.sleep(1.0)
        self._start_background("poller", assembly.poller.run())
        if not await assembly.listener.prove():
            assembly.listener.prove_later()
        await self.lease.enter("live")
        self._start_background("canary", assembly.canary.run())
        self._start_background("topic shards", assembly.shard_keeper.run())
        if assembly.express.is_on:
            self._start_background("express hints", assembly.express.run())
        self.ready = not self.fate.dead

    def report(self, held: Lease) -> Lease:
        """Of a LeaseOwner: as a real one, less what changes without telling anything."""
        return replace(held, canary=self._core.ears.newest)

    def lost(self, next_lease: Lease) -> None:
        """Of a LeaseOwner: as a real one."""
        self._core.presence.move(next_lease.node)
        if not next_lease.queue:
            self._core.queue_state.rebuild_next()

    async def _pump(self, socket: ClientSocket, inbox: asyncio.Queue[bytes]) -> None:
        connection = self.assembly.node.open(socket)
        self._connections.add(connection)
        try:
            while frame := await inbox.get():
                await connection.receive(frame)
        finally:
            self._connections.discard(connection)
            self.assembly.node.closed(connection)

    def _start(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task: asyncio.Task[None] = self._context.run(asyncio.get_running_loop().create_task, work)
        self._tasks.append(task)
        return task

    def _start_background(self, name: str, work: Coroutine[Any, Any, None]) -> None:
        """For the node's whole life."""
        task = self._start(work)
        task.add_done_callback(
            partial(self._mishaps.background_task_ended, f"{name} of {self.name}")
        )


def _config(
    random: Random,
    pace: Pace,
    shards: int,
    options: Mapping[str, Any],
    express: Express | None,
) -> Config:
    """Nodes of one fleet may differ in what they keep, show and bring:
    a rolling change of configuration.
    """
    config = _plain_config(random, pace, shards, options)
    if express is None:
        return config
    plain = config.channel.without_namespace
    return replace(
        config,
        aws=replace(config.aws, express_rate_limit=express.per_s),
        channel=ChannelRules(plain, {EXPRESS: replace(plain, express=express.is_on)}),
    )


def _plain_config(random: Random, pace: Pace, shards: int, options: Mapping[str, Any]) -> Config:
    return Config(
        aws=AwsConfig(topic_shards=shards),
        client=ClientConfig(
            insecure=True,
            ping_interval_s=PING_S,
            pong_timeout_s=1e5,
            stale_close_delay_s=1e6,
            recovery_max_publication_limit=random.choice((300, 300, 300, 6)),
        ),
        channel=ChannelRules(
            ChannelOptions(
                history_size=random.choice((1000, 1000, 1000, 8)),
                history_ttl_s=random.choice((60, 3600, 3 * 86_400)),
                force_recovery=True,
                allow_tags_filter=True,
                **options,
            )
        ),
        node=NodeConfig(
            tail_check_s=TAIL_CHECK_S,
            canary_interval_s=pace.canary_interval_s,
            lease_ttl_s=pace.lease_ttl_s,
            heartbeat_s=pace.heartbeat_s,
        ),
    )
