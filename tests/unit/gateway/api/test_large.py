"""service/roomcast/gateway/api/large.py: what large requests take once they are decoded."""

from __future__ import annotations

import asyncio
import itertools
import tracemalloc
from collections import Counter

import pytest

from roomcast.concurrency import Turns
from roomcast.gateway.api import server as server_module
from roomcast.gateway.api.batch import BATCH_COMMANDS_MAX, Batch
from roomcast.gateway.api.large import LARGE_BYTES, UNDER_WAY_BYTES, LargeRequests
from roomcast.gateway.api.methods import ApiCall, Containers
from tests.unit.gateway.api.conftest import Caller
from tests.unit.worlds import settled


class Carried:
    """Requests that are carried out until they are told to end."""

    def __init__(self) -> None:
        self.large = LargeRequests()
        self.begun: list[int] = []
        self.end = asyncio.Event()
        self.tasks: list[asyncio.Task[None]] = []

    def come(self, size: int) -> asyncio.Task[None]:
        self.tasks.append(asyncio.create_task(self._carry_out(size)))
        return self.tasks[-1]

    async def _carry_out(self, size: int) -> None:
        async with self.large.of(size):
            self.begun.append(size)
            await self.end.wait()


async def test_of_many_large_ones_few_begin_in_one_turn() -> None:
    carried, begun = Carried(), []
    for _ in range(20):
        carried.come(LARGE_BYTES + 1)
    while len(carried.begun) < 20:
        await asyncio.sleep(0)
        begun.append(len(carried.begun))
    assert begun[-1] == 20
    assert max(after - before for before, after in itertools.pairwise(begun)) == 1
    carried.end.set()
    await asyncio.gather(*carried.tasks)


async def test_so_many_bytes_are_under_way_and_the_rest_waits_in_its_order() -> None:
    carried = Carried()
    sizes = [UNDER_WAY_BYTES // 2, UNDER_WAY_BYTES // 2, UNDER_WAY_BYTES // 2, LARGE_BYTES + 1]
    for size in sizes:
        carried.come(size)
    await settled()
    assert carried.begun == sizes[:2]
    carried.come(LARGE_BYTES)
    await settled()
    assert carried.begun == [*sizes[:2], LARGE_BYTES], "a small one waits for nobody"
    carried.end.set()
    await asyncio.gather(*carried.tasks)
    assert carried.begun == [*sizes[:2], LARGE_BYTES, *sizes[2:]]


async def test_who_gives_up_takes_nothing_and_lets_the_next_one_in() -> None:
    carried = Carried()
    first = carried.come(UNDER_WAY_BYTES)
    await settled()
    given_up = carried.come(UNDER_WAY_BYTES)
    next_one = carried.come(LARGE_BYTES + 1)
    await settled()
    given_up.cancel()
    await settled()
    assert carried.begun == [UNDER_WAY_BYTES]
    first.cancel()
    await settled()
    assert carried.begun == [UNDER_WAY_BYTES, LARGE_BYTES + 1]
    # The room comes and the caller goes in the same moment.
    late = carried.come(UNDER_WAY_BYTES)
    await settled()
    next_one.cancel()
    await asyncio.sleep(0)
    late.cancel()
    await settled()
    carried.come(UNDER_WAY_BYTES)
    await settled()
    assert carried.begun[-1] == UNDER_WAY_BYTES, "all of the room is there again"
    carried.end.set()
    await asyncio.gather(*carried.tasks, return_exceptions=True)


async def test_requests_of_the_api_are_decoded_so(
    caller: Caller, monkeypatch: pytest.MonkeyPatch
) -> None:
    turn, decoded = 0, Counter[int]()
    real = Containers.take

    def counted(self: Containers, text: bytes) -> None:
        decoded[turn] += 1
        real(self, text)

    async def count() -> None:
        nonlocal turn
        while True:
            turn += 1
            await asyncio.sleep(0)

    monkeypatch.setattr(Containers, "take", counted)
    counting = asyncio.create_task(count())
    command = {"publish": {"channel": "plain:room", "data": "x" * LARGE_BYTES}}
    answers = await asyncio.gather(
        *(caller.post({"commands": [command] * 2}, to="batch") for _ in range(20))
    )
    counting.cancel()
    assert [status for status, _ in answers] == [200] * 20
    assert (decoded.total(), max(decoded.values())) == (20, 1)


async def test_replies_take_no_more_memory_than_is_counted(caller: Caller) -> None:
    call = ApiCall(
        caller.node.assembly.node,
        0,
        False,
        4096,
        Containers(),
        Turns(2),
    )
    asked = {"commands": [{"none": 1}] * BATCH_COMMANDS_MAX}
    tracemalloc.start()
    try:
        await Batch(server_module.METHODS).carry_out(call, asked)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < BATCH_COMMANDS_MAX * 1024
