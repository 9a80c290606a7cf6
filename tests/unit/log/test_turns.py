"""Several nodes that write to one channel, in virtual time: all are served, whatever the schedule,
old nodes among them.
"""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass
from random import Random
from typing import Final

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.contention import (
    BESIDE,
    BOUNDS,
    CLOSED,
    FAR,
    HUNDRED,
    PEAK,
    THOUSAND,
    Bound,
    VirtualClock,
    measure,
)
from roomcast.log.appender import Appender
from roomcast.log.channel_log import APPEND_DEADLINE_S, Appended, ChannelLog, Lost
from roomcast.log.item import LogItem
from roomcast.log.rules import Pending, item_tail
from roomcast.ports import Contended, Throttled
from roomcast.testing.memory import MemoryChannelTable, MemoryWorld, Stage
from roomcast.wire.publication import Publication
from tests.simulation import clockwork
from tests.simulation.mishaps import Mishaps

CHANNEL: Final = "room"
TTL_MS: Final = 300_000
# The short form of the benchmark.
SECONDS: Final = {HUNDRED: 15.0, THOUSAND: 5.0, PEAK: 5.0, CLOSED: 5.0, BESIDE: 60.0, FAR: 60.0}
# Twenty nodes take long to simulate: the benchmark itself does.
SHORT: Final = tuple(bound for bound in BOUNDS if bound.nodes <= 5)


@pytest.mark.parametrize(
    "bound", SHORT, ids=lambda bound: f"{bound.load.name}, {bound.nodes} nodes"
)
def test_a_channel_of_several_nodes_is_fast_and_fair(bound: Bound) -> None:
    """Exact, as time is virtual."""
    row = measure(bound.load, bound.nodes, seconds=SECONDS[bound.load])
    assert list(bound.missed(row)) == []


# ---- whatever the schedule


@dataclass(frozen=True, slots=True)
class Node:
    """What one node publishes: so many, with so many seconds between,
    and of ten of them so many with a key.
    """

    count: int
    pause_s: float
    keyed: int


NODES: Final = st.lists(
    st.builds(
        Node,
        count=st.integers(1, 60),
        pause_s=st.sampled_from([0.0, 0.001, 0.02, 0.5]),
        keyed=st.sampled_from([0, 1, 10]),
    ),
    min_size=2,
    max_size=5,
)


# Thousands of publications; a machine that does something else meanwhile takes longer.
@pytest.mark.timeout(240)
@settings(max_examples=20, deadline=None)
@given(
    nodes=NODES,
    half_s=st.sampled_from([0.0005, 0.0025, 0.02, 0.25]),
    even=st.booleans(),
    trouble=st.sampled_from([0.0, 0.0, 0.05, 0.2]),
    seed=st.integers(0, 2**32),
)
def test_every_publication_is_answered_in_time_while_the_table_answers(
    nodes: list[Node], half_s: float, even: bool, trouble: float, seed: int
) -> None:
    """I1 and I2 as well. `even`: all calls take the same time; `trouble`:
    a part of the writes is throttled or contended.
    """
    mishaps = Mishaps()
    with mishaps.collected():
        clockwork.run(_publish_all(nodes, half_s, even, trouble, Random(seed)), mishaps)
    assert not mishaps.found, mishaps.found[:3]


async def _publish_all(
    nodes: list[Node], half_s: float, even: bool, trouble: float, random: Random
) -> None:
    world = MemoryWorld()

    async def pause(call: str, stage: Stage) -> None:
        if stage == "call":
            return
        await asyncio.sleep(half_s if even else half_s * random.uniform(0.6, 1.8))
        if (
            stage == "sent"
            and call.startswith("put_")
            and call != "put_head"
            and random.random() < trouble
        ):
            error = random.choice((Throttled, Contended))("simulated")
            world.fail_next(call, error)

    world.pause = pause
    positions: dict[str, asyncio.Future[int]] = {}
    waited_s: list[float] = []

    async def publish(name: str, node: Node) -> None:
        appender = _appender(world, random, name)
        answers = []
        for number in range(node.count):
            key = f"{name}-{number}" if number % 10 < node.keyed else None
            content = f"{name}-{number}"
            answers.append(asyncio.ensure_future(_answered(appender, content, key, waited_s)))
            positions[content] = answers[-1]
            await asyncio.sleep(node.pause_s)
        await asyncio.gather(*answers)
        await appender.drain()

    await asyncio.gather(*(publish(f"node-{number}", node) for number, node in enumerate(nodes)))
    assert max(waited_s) <= APPEND_DEADLINE_S
    top = 0
    found: dict[str, int] = {}
    for item in world.stream:
        assert item.offset == top + 1, "I1"
        top = item.last
        for offset, stored in enumerate(json.loads(item.pubs), item.offset):
            assert found.setdefault(stored["data"], offset) == offset, "I2: never twice"
    assert found == {content: position.result() for content, position in positions.items()}


async def _answered(
    appender: Appender, content: str, key: str | None, waited_s: list[float]
) -> int:
    now = asyncio.get_running_loop().time
    begun_s = now()
    position = await appender.submit(CHANNEL, Publication(content), TTL_MS, key)
    waited_s.append(now() - begun_s)
    return position.offset


def _appender(world: MemoryWorld, random: Random, name: str) -> Appender:
    clock = VirtualClock()
    log = ChannelLog(
        MemoryChannelTable(world, clock),
        clock,
        lambda: f"{random.getrandbits(64):016x}",
        random.random,
        node=name,
        generation="0",
    )
    return Appender(log, clock, lambda _: None, generation="0", random=random.random)


# ---- during a roll


def test_nodes_of_the_release_before_do_not_starve_new_ones_nor_the_other_way_round() -> None:
    """They race without giving way: written again at once, behind whatever beat them,
    resolved after three losses.
    """
    mishaps = Mishaps()
    with mishaps.collected():
        new, old = clockwork.run(_roll(), mishaps)
    assert new > 100
    assert old > 100


async def _roll() -> tuple[int, int]:
    world, random = MemoryWorld(), Random(7)

    async def pause(call: str, stage: Stage) -> None:
        if stage != "call":
            await asyncio.sleep(random.uniform(0.002, 0.004))

    world.pause = pause
    appender, counts = _appender(world, random, "new"), [0, 0]
    old = appender_of_before(world, random, counts)

    async def client() -> None:
        while True:
            await appender.submit(CHANNEL, Publication("new"), TTL_MS)
            counts[0] += 1

    tasks = [asyncio.create_task(each) for each in (old, client(), client())]
    await asyncio.sleep(20)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    return counts[0], counts[1]


async def appender_of_before(world: MemoryWorld, random: Random, counts: list[int]) -> None:
    clock = VirtualClock()
    table = MemoryChannelTable(world, clock)
    log = ChannelLog(
        table,
        clock,
        lambda: f"{random.getrandbits(64):016x}",
        random.random,
        node="old",
        generation="0",
    )
    tail, lost = (await log.resolve(CHANNEL)).tail, 0
    while True:
        outcome = await log.append(CHANNEL, tail, [Pending.of('{"data":"old"}')], TTL_MS)
        assert isinstance(outcome, (Appended, Lost))
        holder: LogItem | None = outcome.item if isinstance(outcome, Appended) else outcome.holder
        assert holder is not None
        known = item_tail(holder, clock.now_ms(), "0")
        assert known is not None
        tail = known
        if isinstance(outcome, Appended):
            counts[1], lost = counts[1] + 1, 0
            continue
        lost += 1
        if lost % 3 == 0:
            tail = (await log.resolve(CHANNEL)).tail
        if lost >= 3:
            await log.back_off(min(lost - 3, 3))
