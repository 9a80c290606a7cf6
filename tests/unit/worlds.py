"""Nodes over memory: what the tests of the asynchronous shells stand on,
and how they wait without sleeping.
"""

from __future__ import annotations

import asyncio
import itertools
import json
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Final
from unittest.mock import patch

from roomcast.auth.jwks import JwksKeys
from roomcast.auth.jwks_sets import JwksSets
from roomcast.auth.ports import Verifier
from roomcast.auth.verifier import TokenVerifier, verifier_of
from roomcast.client.connection import Connection
from roomcast.concurrency import beside
from roomcast.config import ClientConfig, Config, HooksConfig, NodeConfig, TokenConfig
from roomcast.delivery import broadcaster as broadcaster_module
from roomcast.delivery.envelope import Signal, checked_pubs, pack, record_text, signal_text
from roomcast.delivery.ports import Framer
from roomcast.delivery.shard_keeper import ShardBook
from roomcast.hooks.calls import Hooks
from roomcast.log.channel_log import ChannelLog
from roomcast.log.item import LogItem
from roomcast.node.assembly import Assembly, Ports, assemble, build_core
from roomcast.observe.ports import Tracer
from roomcast.observe.spans import NO_TRACER
from roomcast.testing.memory import (
    ManualClock,
    MemoryChannelTable,
    MemoryLeases,
    MemoryPresence,
    MemoryQueue,
    MemoryTopic,
    MemoryWorld,
    Stage,
)
from roomcast.wire.channels import ChannelOptions, ChannelRules
from roomcast.wire.codes import Closing
from roomcast.wire.publication import ClientInfo, Publication, Record
from tests.protobuf import as_it_is

# What does not happen fails the test all the same;
# a machine that does something else meanwhile is slow.
DEADLINE_S: Final = 30.0
_READS: Final = ("newest", "head", "read_behind", "read_forward", "read_backward")
# Turns of the event loop in which everything that can happen in memory has happened.
SETTLED_TURNS: Final = 200
# Shorter than any test: a hole is read as soon as the test moves its clock.
GAP_WAIT_S: Final = 0.2
# Long polls of memory end at once when something comes; this bounds those that nothing comes to.
POLL_WAIT_S: Final = 0.01
SECRET: Final = "a secret of the tests, long enough to be no warning"

HISTORY: Final = ChannelOptions(history_size=100, history_ttl_s=300, force_recovery=True)
EVERYTHING: Final = replace(HISTORY, presence=True, join_leave=True, force_push_join_leave=True)
# Its publications are bytes.
BINARY: Final = replace(HISTORY, publication_data_format="binary")
RULES: Final = ChannelRules(
    without_namespace=HISTORY,
    namespaces={
        "bin": BINARY,
        "live-bin": ChannelOptions(publication_data_format="binary"),
        "objects": ChannelOptions(publication_data_format="json_object"),
        "all": EVERYTHING,
        "plain": ChannelOptions(),
        "present": ChannelOptions(presence=True),
        "noisy": ChannelOptions(join_leave=True, force_push_join_leave=True),
    },
)


async def until(condition: Callable[[], object]) -> None:
    """Turn the event loop until `condition` holds; fail at the deadline."""
    try:
        async with asyncio.timeout(DEADLINE_S):
            while not condition():  # noqa: ASYNC110  # a condition is looked at every turn, without waiting
                await asyncio.sleep(0)
    except TimeoutError:
        raise AssertionError("what the test waits for did not happen") from None


async def settled() -> None:
    """Let everything happen that needs no time to pass:
    before a test says that something did NOT happen.
    """
    for _ in range(SETTLED_TURNS):
        await asyncio.sleep(0)


@contextmanager
def standing_still() -> Iterator[None]:
    """The event loop's clock stands still: what is timed inside is timed at one moment,
    however long it takes.
    """
    loop = asyncio.get_running_loop()
    now = loop.time()
    loop.time = lambda: now  # type: ignore[method-assign]  # nothing else stops it
    try:
        yield
    finally:
        del loop.time


@contextmanager
def signals_at_any_rate() -> Iterator[None]:
    """Nodes send signals at once: as their clocks stand still, the rate would stop them for good,
    and who gives an order waits until it is sent.
    """
    with (
        patch.object(broadcaster_module, "_BURST", float("inf")),
        patch.object(broadcaster_module, "FLUSH_INTERVAL_S", 0.0),
    ):
        yield


@asynccontextmanager
async def running(work: Coroutine[None, None, None]) -> AsyncIterator[asyncio.Task[None]]:
    """A background task for the time of the context. It must not end by itself."""
    async with beside(work) as task:
        yield task
        assert not task.done(), task


class Held:
    """Calls that wait at one stage until the test lets them go."""

    def __init__(self, release: Callable[[], None]) -> None:
        self.count = 0
        self._open = asyncio.Event()
        self._release = release

    async def arrived(self, count: int = 1) -> None:
        await until(lambda: self.count >= count)

    def release(self) -> None:
        """Those that wait, and all that come."""
        self._release()
        self._open.set()

    async def wait(self) -> None:
        self.count += 1
        await self._open.wait()


class Traffic:
    """Counts the calls of every port of a world, and holds those that a test wants held."""

    def __init__(self, world: MemoryWorld) -> None:
        self.calls: Counter[str] = Counter()
        self._held: dict[tuple[str, Stage], Held] = {}
        world.pause = self._pause

    def hold(self, call: str, stage: Stage = "call") -> Held:
        key = (call, stage)

        def release() -> None:
            if self._held.get(key) is held:
                del self._held[key]

        held = Held(release)
        self._held[key] = held
        return held

    @property
    def reads(self) -> int:
        """Of the channels table."""
        return sum(self.calls[call] for call in _READS)

    async def _pause(self, call: str, stage: Stage) -> None:
        if stage == "call":
            self.calls[call] += 1
        held = self._held.get((call, stage))
        if held is None:
            await asyncio.sleep(0)
        else:
            await held.wait()


class Ids:
    """Different ids, the same in every run."""

    def __init__(self, prefix: str) -> None:
        self._prefix = prefix
        self._numbers = itertools.count(1)

    def __call__(self) -> str:
        return f"{self._prefix}{next(self._numbers):012d}"


def no_jitter() -> float:
    """Back-off without waiting."""
    return 0.0


class Deaf:
    """Ears for which nothing here is."""

    def greeted(self, greeting: str) -> None:
        pass

    def came(self) -> None:
        pass

    def hear(self, record: Record, lambda_at: int) -> None:
        pass

    def wrote(self) -> None:
        pass

    def request(self, shard: int | None = None) -> None:
        pass


def one_topic(clock: ManualClock) -> ShardBook:
    """What a node without topic shards knows of them."""
    return ShardBook(1, Deaf(), clock, no_jitter)


def log_over(
    world: MemoryWorld,
    clock: ManualClock,
    *,
    node: str = "a",
    generation: str = "0",
    random: Callable[[], float] = no_jitter,
) -> ChannelLog:
    """A channel log of one node."""
    table = MemoryChannelTable(world, clock)
    return ChannelLog(table, clock, Ids(node), random, node=node, generation=generation)


class Socket:
    """The client's end of a connection, without a network: what was sent to it, decoded."""

    is_binary = False
    is_unidirectional = False
    session = ""

    def __init__(self, framer: Framer = as_it_is) -> None:
        self.framer = framer
        # What its client has not read.
        self.unsent_bytes = 0
        self.is_gone = False
        self.frames: list[bytes] = []
        self.closed_with: Closing | None = None
        # What was decoded so far, of how many frames: tests look at every turn of the loop.
        self._lines: list[dict[str, Any]] = []
        self._replies: dict[int, dict[str, Any]] = {}
        self._decoded = 0

    def send(self, frame: bytes) -> None:
        assert self.closed_with is None, "nothing is sent after the close"
        self.frames.append(frame)

    def close(self, why: Closing) -> None:
        self.closed_with = self.closed_with or why

    @property
    def lines(self) -> list[dict[str, Any]]:
        self._decode()
        # A copy: a test may compare what came with what came before.
        return list(self._lines)

    def reply_to(self, command_id: int) -> dict[str, Any] | None:
        self._decode()
        return self._replies.get(command_id)

    def _decode(self) -> None:
        for frame in self.frames[self._decoded :]:
            for line in map(json.loads, frame.split(b"\n")):
                self._lines.append(line)
                if "id" in line:
                    self._replies.setdefault(line["id"], line)
        self._decoded = len(self.frames)

    @property
    def pushes(self) -> list[dict[str, Any]]:
        return [line["push"] for line in self.lines if "push" in line]

    def published(self, channel: str) -> list[Any]:
        """The data of the publications of `channel` in the order they came."""
        return [
            push["pub"]["data"]
            for push in self.pushes
            if push["channel"] == channel and "pub" in push
        ]

    def offsets(self, channel: str) -> list[int]:
        return [
            push["pub"]["offset"]
            for push in self.pushes
            if push["channel"] == channel and "pub" in push
        ]

    def told(self, channel: str, kind: str) -> list[str]:
        """The client ids of the join or leave pushes of `channel`."""
        return [
            push[kind]["info"]["client"]
            for push in self.pushes
            if push["channel"] == channel and kind in push
        ]

    def unsubscribed(self, channel: str) -> list[int]:
        return [
            push["unsubscribe"]["code"]
            for push in self.pushes
            if push["channel"] == channel and "unsubscribe" in push
        ]


class Client:
    """Says what a client says, and waits for the answers."""

    def __init__(self, connection: Connection, socket: Socket) -> None:
        self.connection = connection
        self.socket = socket
        self._ids = itertools.count(1)

    @property
    def id(self) -> str:
        return self.connection.session.client

    async def say(self, *commands: Mapping[str, Any]) -> list[int]:
        """One frame with these commands, each with an id of its own. Returns their ids."""
        numbered = [{"id": next(self._ids), **command} for command in commands]
        await self.connection.receive("\n".join(json.dumps(command) for command in numbered))
        return [command["id"] for command in numbered]

    async def answer(self, command_id: int) -> dict[str, Any]:
        await until(lambda: self.socket.reply_to(command_id))
        reply = self.socket.reply_to(command_id)
        assert reply is not None
        return reply

    async def ask(self, method: str, /, **params: Any) -> Any:
        """The result of a command, or its error's code."""
        [command_id] = await self.say({method: params})
        reply = await self.answer(command_id)
        return reply["error"]["code"] if "error" in reply else reply[method]

    async def connect(self, **params: Any) -> Any:
        return await self.ask("connect", **params)

    async def subscribe(self, channel: str, **params: Any) -> Any:
        return await self.ask("subscribe", channel=channel, **params)

    async def publish(self, channel: str, data: Any) -> Any:
        return await self.ask("publish", channel=channel, data=data)


@dataclass(slots=True)
class LocalNode:
    """One node over memory. Nothing runs in its background unless `running` is entered."""

    world: MemoryWorld
    clock: ManualClock
    assembly: Assembly
    queue_names: list[str]

    def open(self) -> Client:
        """A socket that has not said anything."""
        socket = Socket()
        return Client(self.assembly.node.open(socket), socket)

    async def client(self, **connect: Any) -> Client:
        """A connected client."""
        client = self.open()
        result = await client.connect(**connect)
        assert isinstance(result, dict), result
        return client

    async def close(self) -> None:
        """All clients leave, and nothing of the node is left in the background."""
        for connection in list(self.assembly.node._connections):
            self.assembly.node.closed(connection)
        await self.assembly.background.finish()
        await self.assembly.dispatcher.close()

    @asynccontextmanager
    async def sending(self) -> AsyncIterator[None]:
        """Only send signals: orders are not given before somebody takes them."""
        async with running(self.assembly.broadcaster.run()):
            yield

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Listen as a real node does."""
        assembly = self.assembly
        await assembly.listener.open()
        work = (assembly.poller.run(), assembly.broadcaster.run(), assembly.catch_up.run())
        tasks = [asyncio.create_task(each) for each in work]
        try:
            assert await assembly.listener.prove()
            yield
        finally:
            for task in tasks:
                task.cancel()
            ends = await asyncio.gather(*tasks, return_exceptions=True)
            await assembly.dispatcher.close()
            await assembly.listener.close()
        # A background task that ended by itself ended with an error.
        assert all(isinstance(end, asyncio.CancelledError) for end in ends), ends


@dataclass(slots=True)
class Fleet:
    """Nodes that share a world."""

    world: MemoryWorld = field(default_factory=MemoryWorld)
    clock: ManualClock = field(default_factory=ManualClock)
    traffic: Traffic = field(init=False)

    def __post_init__(self) -> None:
        self.traffic = Traffic(self.world)
        self.world.now_ms = self.clock.now_ms

    def node(
        self,
        name: str = "a",
        *,
        jwks: JwksKeys | None = None,
        hooks: Hooks | None = None,
        tracer: Tracer = NO_TRACER,
        **changes: Any,
    ) -> LocalNode:
        configured = config(**changes)
        return local_node(self.world, self.clock, name, configured, jwks, hooks, tracer)

    def stream_to_topic(self) -> None:
        """From now on, whatever is appended is broadcast: the stream,
        its Lambda and the topic in one.
        """
        self.world.on_insert.append(lambda item: self.world.send(envelope([item])))


def config(
    *,
    rules: ChannelRules = RULES,
    insecure: bool = True,
    secret: str = "",
    node: NodeConfig | None = None,
    hook_timeout_s: float = 3.0,
    **client: Any,
) -> Config:
    """A configuration whose timers do not fire while a test runs."""
    return Config(
        client=replace(
            ClientConfig(insecure=insecure, token=TokenConfig(hmac_secret_key=secret)),
            **client,
        ),
        channel=rules,
        hooks=HooksConfig(timeout_s=hook_timeout_s),
        node=node or NodeConfig(gap_wait_ms=round(GAP_WAIT_S * 1000)),
    )


class OnlyQueues:
    """A NodeLease that knows which queues the node has had. No other node has heard a canary."""

    failures = 0

    def __init__(self) -> None:
        self.names: list[str] = []

    async def hold(self, queue: str) -> None:
        self.names.append(queue)

    async def newest_canary_elsewhere(self) -> int:
        return 0


def local_node(
    world: MemoryWorld,
    clock: ManualClock,
    name: str,
    configured: Config,
    jwks: JwksKeys | None = None,
    hooks: Hooks | None = None,
    tracer: Tracer = NO_TRACER,
    **ports: Any,
) -> LocalNode:
    """`ports`: those that are not memory's."""
    lease = OnlyQueues()
    memory = Ports(
        table=MemoryChannelTable(world, clock),
        presence=MemoryPresence(world),
        leases=MemoryLeases(world),
        queue=MemoryQueue(world, POLL_WAIT_S),
        topic=MemoryTopic(world),
        clock=clock,
        new_id=ids(name),
        random=no_jitter,
    )
    core = build_core(
        configured,
        replace(memory, **ports),
        node_id=name,
        hooks=hooks or Hooks(),
        tracer=tracer,
    )
    # It has counted the nodes, and is alone.
    core.allowance.share(1)
    assembly = assemble(
        core,
        lease=lease,
        verifier=_verifier(configured.client, jwks),
        listening=True,
    )
    return LocalNode(world, clock, assembly, lease.names)


def _verifier(client: ClientConfig, jwks: JwksKeys | None) -> Verifier:
    """`jwks`: the keys of an endpoint that the configuration names then."""
    if jwks is None:
        return verifier_of(client, insecure=client.insecure)
    endpoint = "https://id.example/jwks"
    token = replace(client.token, jwks_public_endpoint=endpoint)
    return TokenVerifier(token, insecure=client.insecure, jwks=JwksSets({endpoint: jwks}))


def ids(name: str) -> Callable[[], str]:
    """The first eight characters differ too: they name the node's queues."""
    numbers = itertools.count(1)
    return lambda: f"{next(numbers):08d}{name}"


def record(
    offset: int,
    last: int | None = None,
    *,
    channel: str = "room",
    epoch: str,
    ts: int = 1,
    pointer: bool = False,
) -> Record:
    """A record whose publications say their offsets; `pointer`: without them."""
    last = offset if last is None else last
    publications = tuple(Publication(data=each, offset=each) for each in range(offset, last + 1))
    return Record(channel, epoch, offset, last, ts, None if pointer else publications)


def envelope(items: Iterable[LogItem] = (), signals: Iterable[Signal] = ()) -> str:
    """One message of the queue."""
    texts = [record_text(item, checked_pubs(item)) for item in items]
    if texts:
        [(body, _)] = pack(texts)
    else:
        [(body, _)] = pack([signal_text(signal) for signal in signals], signals=True)
    return body


def logged(world: MemoryWorld, channel: str = "room") -> list[Any]:
    """The data of everything in a channel's log, by offset; fails if there is a hole. I1."""
    items = [item for _, item in sorted(world.items[channel].items()) if isinstance(item, LogItem)]
    for before, after in itertools.pairwise(items):
        assert after.offset == before.last + 1, "I1: no hole"
    return [entry["data"] for item in items for entry in json.loads(item.pubs)]


def info(client: str = "c", user: str = "u") -> ClientInfo:
    return ClientInfo(user, client)
