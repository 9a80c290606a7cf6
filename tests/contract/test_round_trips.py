"""How many round trips to AWS an answer takes, one after the other:
the table of docs/architecture.md, counted.

A node over the real adapters and the embedded AWS. Its calls wait at a gate.
Whatever waits there when nothing else can happen goes through together, and that is one round trip.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import jwt
import pytest

from roomcast.aws.calls import Calls
from roomcast.aws.presence import _LOCKS
from roomcast.client.subscribe import PRESENCE_ENTRIES_AT_ONCE
from roomcast.testing.memory import MemoryWorld
from roomcast.wire.channels import ChannelOptions, ChannelRules
from tests.contract.backends import AwsBackend, aws_backend
from tests.unit.worlds import SECRET, Client, LocalNode, config, local_node, settled, until

PAGE: Final = Path(__file__).parents[2] / "docs" / "architecture.md"
ROWS: Final = re.compile(r"^\| (\w[^|]*?) \| (none|`[^|]*`) \|$", re.MULTILINE)
LOGGED: Final = ChannelOptions(
    history_size=100,
    history_ttl_s=300,
    force_recovery=True,
    allow_subscribe_for_client=True,
    allow_publish_for_client=True,
    allow_history_for_client=True,
    allow_presence_for_client=True,
)
RULES: Final = ChannelRules(
    without_namespace=LOGGED,
    namespaces={
        "seen": replace(LOGGED, presence=True, join_leave=True),
        "plain": replace(LOGGED, history_size=0, history_ttl_s=0, force_recovery=False),
    },
)

Measured = dict[str, str]


class Gate(Calls):
    """Counts round trips. Open, unless something is counted."""

    def __init__(self) -> None:
        super().__init__()
        self._is_open = True
        self._waiting: list[tuple[str, asyncio.Event]] = []
        self._under_way = 0

    async def call(
        self, operation: str, called: Callable[..., Awaitable[Any]], **params: Any
    ) -> Any:
        if not self._is_open:
            go_on = asyncio.Event()
            self._waiting.append((operation.partition(".")[2], go_on))
            await go_on.wait()
        else:
            self._under_way += 1
        try:
            return await called(**params)
        finally:
            self._under_way -= 1

    async def count(self, work: Coroutine[None, None, object]) -> str:
        """Do `work`; its round trips, as the page has them."""
        self._is_open = False
        doing, trips = asyncio.create_task(work), list[str]()
        while not await self._is_done(doing):
            trips.append(" + ".join(sorted({f"`{operation}`" for operation, _ in self._waiting})))
            self._release()
            await until(lambda: self._under_way == 0)
        self._is_open = True
        self._release()
        assert isinstance(doing.result(), dict), doing.result()
        return " → ".join(trips) or "none"

    async def _is_done(self, doing: asyncio.Task[object]) -> bool:
        """Or it waits for round trips: all that begin together are there.

        It may wait for its turn before that, which takes time and no round trip.
        """
        await until(lambda: self._waiting or doing.done())
        await settled()
        return doing.done()

    def _release(self) -> None:
        waiting, self._waiting = self._waiting, []
        self._under_way += len(waiting)
        for _, go_on in waiting:
            go_on.set()


class Bench:
    """Nodes that share the embedded AWS, and what was counted."""

    def __init__(self, backend: AwsBackend, gate: Gate) -> None:
        self._backend = backend
        self._gate = gate
        self._world = MemoryWorld()
        self._nodes: list[LocalNode] = []
        self.measured: Measured = {}

    def node(self) -> LocalNode:
        """One that has seen nothing yet."""
        backend = self._backend
        node = local_node(
            self._world,
            backend.clock,
            f"n{len(self._nodes)}",
            config(rules=RULES, insecure=False, secret=SECRET),
            table=backend.table(),
            presence=backend.presence(),
            leases=backend.leases(),
        )
        self._nodes.append(node)
        return node

    async def client(self, node: LocalNode) -> Client:
        return await node.client(token=token())

    async def count(self, what: str, work: Coroutine[None, None, object]) -> None:
        self.measured[what] = await self._gate.count(work)

    async def close(self) -> None:
        for node in self._nodes:
            await node.close()


@pytest.fixture
async def bench(aws_endpoint: str) -> AsyncIterator[Bench]:
    gate = Gate()
    async with aws_backend(aws_endpoint, "trips-", gate) as backend:
        bench = Bench(backend, gate)
        yield bench
        await bench.close()


def token(channels: Sequence[str] = ()) -> str:
    return jwt.encode({"sub": "ann", "channels": list(channels)}, SECRET)


async def connecting(bench: Bench) -> None:
    node, writer = bench.node(), await bench.client(bench.node())
    await bench.count("connect", node.open().connect(token=token()))
    # Channels share locks by chance: those of these are different ones.
    channels = list(
        {hash(name) % _LOCKS: name for name in (f"seen:{number}" for number in range(99))}.values()
    )
    channels = channels[:PRESENCE_ENTRIES_AT_ONCE]
    for channel in channels:
        assert await writer.publish(channel, 1) == {}
    await bench.count(
        "connect, with up to 16 server-side subscriptions, each the first on the node, "
        "with presence",
        node.open().connect(token=token(channels)),
    )


async def subscribing(bench: Bench) -> None:
    writer = await bench.client(bench.node())
    for name, presence in (("room", ""), ("seen:room", ", with presence")):
        client, again = await bench.client(node := bench.node()), await bench.client(node)
        await bench.count(
            f"subscribe, the first of the channel ever{presence}", client.subscribe(f"{name}-new")
        )
        assert await writer.publish(name, 1) == {}
        await bench.count(f"subscribe, the first on the node{presence}", client.subscribe(name))
        await bench.count(f"subscribe, a later one{presence}", again.subscribe(name))
        await bench.count(f"unsubscribe{presence}", client.ask("unsubscribe", channel=name))


async def recovering(bench: Bench) -> None:
    writer = await bench.client(bench.node())
    for name, presence in (("back", ""), ("seen:back", ", with presence")):
        epoch = (await writer.subscribe(name))["epoch"]
        for number in range(3):
            assert await writer.publish(name, number) == {}
        since: dict[str, Any] = {"recover": True, "epoch": epoch, "offset": 1}
        client, again = await bench.client(node := bench.node()), await bench.client(node)
        await bench.count(
            f"subscribe and recover, the first on the node{presence}",
            client.subscribe(name, **since),
        )
        await bench.count(
            f"subscribe and recover, a later one{presence}", again.subscribe(name, **since)
        )


async def publishing(bench: Bench) -> None:
    one, other = await bench.client(bench.node()), await bench.client(bench.node())
    await bench.count("publish, the first in the channel ever", one.publish("news", 1))
    await bench.count("publish, a later one", one.publish("news", 2))
    await bench.count("publish, the first on the node", other.publish("news", 3))
    await bench.count("publish beside another node that does", other.publish("news", 4))
    assert await one.publish("keys", 1) == {}
    await bench.count(
        "publish with a key, a later one",
        one.ask(
            "rpc",
            method="roomcast.publish",
            data={"channel": "keys", "data": 2, "idempotency_key": "k"},
        ),
    )
    await bench.count("publish in a channel without history", one.publish("plain:x", 1))


async def reading(bench: Bench) -> None:
    client = await bench.client(bench.node())
    for name in ("read", "seen:read"):
        assert await client.publish(name, 1) == {}
    await bench.count("history", client.ask("history", channel="read", limit=10))
    await bench.count(
        "presence, once a second of a channel on a node",
        client.ask("presence", channel="seen:read"),
    )
    await bench.count("presence, again", client.ask("presence", channel="seen:read"))


async def test_the_page_says_how_many_round_trips_there_are(bench: Bench) -> None:
    for measure in (connecting, subscribing, recovering, publishing, reading):
        await measure(bench)
    told = dict(ROWS.findall(PAGE.read_text(encoding="utf-8").partition("## Round trips\n")[2]))
    assert bench.measured == told


async def test_what_is_done_one_after_the_other_counts_as_much(aws_endpoint: str) -> None:
    gate = Gate()

    async def call(name: str) -> None:
        async def called() -> None:
            await asyncio.sleep(0)

        await gate.call(f"dynamodb.{name}", called)

    async def work() -> dict[str, str]:
        await call("Query")
        await asyncio.gather(call("PutItem"), call("GetItem"), call("PutItem"))
        return {}

    assert await gate.count(work()) == "`Query` → `GetItem` + `PutItem`"
