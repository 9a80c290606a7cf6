"""Work beside other work: it ends with its context, so many run at a time,
and errors go where they belong.
"""

from __future__ import annotations

import asyncio
import gc
from itertools import pairwise

import pytest

from roomcast.concurrency import Portions, SharedCall, beside, each, each_to_its_end
from tests.unit.worlds import settled, until


class Works:
    """Works that wait until they are let go; those named in `failing` fail then."""

    def __init__(self, *failing: int) -> None:
        self.failing = set(failing)
        self.begun: list[int] = []
        self.ended: list[int] = []
        self.at_once = self.most = 0
        self.go_on = asyncio.Event()

    async def __call__(self, item: int) -> int:
        self.begun.append(item)
        self.at_once += 1
        self.most = max(self.most, self.at_once)
        try:
            await self.go_on.wait()
            await asyncio.sleep(0)
            if item in self.failing:
                raise ValueError(item)
        finally:
            self.at_once -= 1
        self.ended.append(item)
        return -item


async def test_so_many_at_a_time_and_results_in_order() -> None:
    works = Works()
    running = asyncio.create_task(each(3, range(10), works))
    await until(lambda: len(works.begun) == 3)
    await settled()
    assert works.begun == [0, 1, 2]
    works.go_on.set()
    assert await running == [-item for item in range(10)]
    assert works.most == 3
    assert await each(3, [], works) == []


async def test_the_first_error_ends_all() -> None:
    works = Works(1)
    works.go_on.set()
    with pytest.raises(ValueError, match="1"):
        await each(2, range(100), works)
    assert len(works.begun) < 10
    assert works.at_once == 0


async def test_all_come_to_their_end_whatever_fails() -> None:
    works = Works(1, 7)
    works.go_on.set()
    failures = await each_to_its_end(2, range(10), works)
    assert sorted(failure.args[0] for failure in failures) == [1, 7]
    assert sorted(works.ended) == [0, 2, 3, 4, 5, 6, 8, 9]


async def test_who_gives_up_leaves_nothing_running() -> None:
    works = Works()
    running = asyncio.create_task(each(2, range(4), works))
    await until(lambda: works.at_once == 2)
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    assert running.cancelled()
    assert works.at_once == 0


async def test_work_ends_with_its_context() -> None:
    works = Works()

    async def work() -> None:
        await works(1)

    async with beside(work()) as task:
        await until(lambda: works.at_once == 1)
    assert task.cancelled()
    assert works.at_once == 0


class Answer:
    """A call that waits until it is let go."""

    def __init__(self, error: Exception | None = None) -> None:
        self.go_on = asyncio.Event()
        self.calls = 0
        self.ends = 0
        self._error = error

    async def __call__(self) -> str:
        self.calls += 1
        await self.go_on.wait()
        if self._error is not None:
            raise self._error
        return "answer"

    def ended(self) -> None:
        self.ends += 1


async def test_one_call_for_all_who_ask() -> None:
    answer = Answer()
    shared = SharedCall(answer(), answer.ended)
    asking = [asyncio.create_task(shared.result()) for _ in range(3)]
    await settled()
    assert not shared.done
    answer.go_on.set()
    assert await asyncio.gather(*asking) == ["answer"] * 3
    assert (answer.calls, answer.ends, shared.done) == (1, 1, True)
    assert await shared.result() == "answer"


async def test_who_gives_up_takes_nothing_from_the_others() -> None:
    answer = Answer()
    shared = SharedCall(answer(), answer.ended)
    leaving, staying = (asyncio.create_task(shared.result()) for _ in range(2))
    await settled()
    leaving.cancel()
    await settled()
    assert leaving.cancelled()
    assert not staying.done()
    answer.go_on.set()
    assert await staying == "answer"


async def test_an_error_is_for_all_who_wait_and_for_nobody_else() -> None:
    answer = Answer(ValueError("no"))
    shared = SharedCall(answer(), answer.ended)
    asking = [asyncio.create_task(shared.result()) for _ in range(2)]
    await settled()
    answer.go_on.set()
    errors = await asyncio.gather(*asking, return_exceptions=True)
    assert [str(error) for error in errors] == ["no", "no"]
    unheard: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _loop, about: unheard.append(about))
    SharedCall(answer(), answer.ended)
    await settled()
    gc.collect()
    await settled()
    assert unheard == []
    assert answer.ends == 2


async def test_a_call_that_is_cancelled_itself_has_ended() -> None:
    answer = Answer()
    shared = SharedCall(answer(), answer.ended)
    asking = asyncio.create_task(shared.result())
    await settled()
    shared.task.cancel()
    await settled()
    assert asking.cancelled()
    assert answer.ends == 1


async def test_so_many_go_on_in_a_turn_and_nobody_waits_without_need() -> None:
    portions, order = Portions(2), list[int]()

    async def go(number: int) -> None:
        await portions.wait()
        order.append(number)

    going = [asyncio.create_task(go(number)) for number in range(5)]
    await asyncio.sleep(0)
    assert order == [0, 1], "at once, as long as there is room"
    going[2].cancel()
    seen = []
    while len(order) < 4:
        await asyncio.sleep(0)
        seen.append(len(order))
    assert order == [0, 1, 3, 4], "first come, first served, without who gave up"
    await settled()
    await asyncio.wait_for(portions.wait(), 1)
    assert max(later - earlier for earlier, later in pairwise([2, *seen])) <= 2


async def test_who_comes_later_does_not_overtake() -> None:
    portions, order = Portions(1), list[int]()

    async def go(number: int) -> None:
        await portions.wait()
        order.append(number)

    going = [asyncio.create_task(go(number)) for number in range(3)]
    for number in range(3, 8):
        await asyncio.sleep(0)
        going.append(asyncio.create_task(go(number)))
    await asyncio.gather(*going)
    assert order == list(range(8))
