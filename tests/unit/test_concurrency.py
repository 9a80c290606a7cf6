"""Work beside other work: it ends with its context, so many run at a time,
and errors go where they belong.
"""

from __future__ import annotations

import asyncio
import gc
from collections import Counter
from itertools import count, pairwise
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from roomcast.concurrency import (
    Budget,
    FairPlaces,
    Lines,
    Portions,
    SharedCall,
    beside,
    each,
    each_to_its_end,
)
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


async def test_what_a_turn_has_is_there_again_in_the_next_one() -> None:
    left: list[int] = []
    budget = Budget(3, lambda: left.append(budget.left))
    budget.take()
    assert budget.left == 2
    # Who has begun may take more than there is.
    budget.take(4)
    assert budget.left == -2
    await asyncio.sleep(0)
    assert left == [3]
    # Nobody is called again who took nothing.
    await asyncio.sleep(0)
    assert left == [3]


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


# ---- places that callers share fairly

CALLERS = "abcde"
# What happens to lines: so many come and stand in those of some callers, one is served, or the one
# that came so long ago gives up.
STEPS = st.lists(
    st.one_of(
        st.tuples(st.sets(st.sampled_from(CALLERS), min_size=1, max_size=2), st.integers(1, 25)),
        st.just("serve"),
        st.integers(0, 20),
    ),
    max_size=20,
)


class Queue:
    """Lines, and what is known of who stands in them."""

    def __init__(self) -> None:
        self.lines: Lines[int] = Lines()
        self.standing: dict[int, set[str]] = {}
        # How many were served since each one is the first of a line.
        self.others: Counter[int] = Counter()
        self._numbers = count()

    def come(self, callers: set[str]) -> None:
        one = next(self._numbers)
        self.standing[one] = callers
        for caller in callers:
            self.lines.stand(one, caller)

    def give_up(self, one: int) -> None:
        self.standing.pop(one, None)
        self.lines.leave(one)

    def serve(self) -> None:
        served = self.lines.next()
        if served is None:
            assert not self.standing
            return
        firsts = self.firsts()
        assert served in firsts, "first come, first served"
        del self.standing[served]
        self.others = Counter({one: self.others[one] + 1 for one in firsts - {served}})
        assert max(self.others.values(), default=0) <= 2 * len(CALLERS)

    def firsts(self) -> set[int]:
        """The first of each line."""
        lines = ([one for one, its in self.standing.items() if each in its] for each in CALLERS)
        return {min(line) for line in lines if line}


@given(STEPS)
def test_who_waits_is_served_once_and_waits_for_few_of_other_lines(
    steps: list[tuple[set[str], int] | str | int],
) -> None:
    queue, came = Queue(), 0
    for step in steps:
        if isinstance(step, tuple):
            came += step[1]
            for _ in range(step[1]):
                queue.come(step[0])
        elif isinstance(step, int):
            queue.give_up(came - 1 - step)
        else:
            queue.serve()
        assert len(queue.lines) == len(queue.standing)
    while queue.standing:
        queue.serve()
    assert queue.lines.next() is None


def test_long_lines_take_turns_and_a_new_one_has_its_turn_soon() -> None:
    lines: Lines[str] = Lines()
    for number in range(50):
        for caller in "abc":
            lines.stand(f"{caller}{number}", caller)
    turns = Counter(str(lines.next())[0] for _ in range(60))
    assert max(turns.values()) - min(turns.values()) <= 2
    for number in range(5):
        lines.stand(f"n{number}", "n")
        waited = 0
        while lines.next() != f"n{number}":
            waited += 1
        # Who comes again in the same round has its turn where it was.
        assert waited <= (1 if number == 0 else 3)


def test_callers_that_come_once_keep_no_long_line_waiting() -> None:
    lines: Lines[str] = Lines()
    for number in range(50):
        lines.stand(f"long{number}", "long")
    served = Counter[bool]()
    for number in range(100):
        lines.stand(f"n{number}", f"once{number}")
        served[str(lines.next()).startswith("long")] += 1
    assert served == {True: 50, False: 50}


def test_who_stands_in_several_lines_is_served_in_the_first_turn_of_any() -> None:
    lines: Lines[str] = Lines()
    for number in range(50):
        lines.stand(f"a{number}", "a")
    lines.stand("both", "a")
    lines.stand("both", "b")
    lines.stand("b0", "b")
    served = [lines.next() for _ in range(4)]
    assert "both" in served
    assert len(lines) == 52 - 4
    lines.leave("a49")
    lines.leave("a49")
    assert len(lines) == 52 - 5


class Work:
    """What holds places. `order`: who has got one, in their order."""

    def __init__(self, at_once: int, a_turn: int = 100) -> None:
        self.places = FairPlaces(at_once, a_turn)
        self.order: list[str] = []
        self.under_way = self.most = 0
        self.go_on = asyncio.Event()

    def begin(self, caller: str, what: str = "") -> asyncio.Task[None]:
        return asyncio.create_task(self._work(caller, what))

    async def _work(self, caller: str, what: str) -> None:
        async with self.places.of(caller):
            self.order.append(caller + what)
            self.under_way += 1
            self.most = max(self.most, self.under_way)
            try:
                await self.go_on.wait()
                await asyncio.sleep(0)
            finally:
                self.under_way -= 1


async def test_so_many_have_a_place_and_others_wait_behind_their_own() -> None:
    work = Work(2)
    working = [work.begin("many", str(number)) for number in range(20)]
    await settled()
    assert work.order == ["many0", "many1"]
    working.append(work.begin("few"))
    await settled()
    assert work.places.waiting == 19
    working.pop(10).cancel()
    await settled()
    assert work.places.waiting == 18, "who gives up leaves its line"
    work.go_on.set()
    await asyncio.gather(*working)
    assert work.most == 2
    assert work.order.index("few") <= 4
    many = [each for each in work.order if each != "few"]
    assert many == [f"many{each}" for each in range(20) if each != 10]
    assert (work.places.free, work.places.waiting) == (2, 0)


async def test_of_those_who_waited_few_go_on_in_one_turn() -> None:
    work = Work(8, a_turn=2)
    working = [work.begin("a", str(number)) for number in range(24)]
    await settled()
    assert len(work.order) == 8, "who need not wait is not held back"
    work.go_on.set()
    seen = [8]
    while len(work.order) < 24:
        await asyncio.sleep(0)
        seen.append(len(work.order))
    assert max(later - earlier for earlier, later in pairwise(seen)) == 2
    await asyncio.gather(*working)
    await settled()
    assert work.places.free == 8


async def test_who_gives_up_in_the_moment_of_its_turn_passes_the_place_on() -> None:
    work = Work(1)
    work.places.free -= 1
    second, third = work.begin("b"), work.begin("c")
    await settled()
    assert work.places.waiting == 2
    work.places.give_back()
    # It has the place, and has not run since.
    assert work.places.waiting == 1
    second.cancel()
    work.go_on.set()
    await asyncio.gather(second, third, return_exceptions=True)
    assert second.cancelled()
    assert work.order == ["c"]
    assert (work.places.free, work.places.waiting) == (1, 0)


@pytest.mark.parametrize("seed", range(20))
async def test_no_place_is_lost_whoever_gives_up_when(seed: int) -> None:
    random, work = Random(seed), Work(3, a_turn=2)
    work.go_on.set()
    working: list[asyncio.Task[None]] = []
    for _ in range(300):
        match random.randrange(4):
            case 0 | 1:
                working.append(work.begin(random.choice(CALLERS)))
            case 2 if working:
                random.choice(working).cancel()
            case _:
                await asyncio.sleep(0)
        assert work.under_way <= 3
    await asyncio.gather(*working, return_exceptions=True)
    await settled()
    assert (work.places.free, work.places.waiting) == (3, 0)


async def test_another_caller_may_join_who_waits() -> None:
    work = Work(1)
    working = [work.begin("many", str(number)) for number in range(20)]
    await settled()
    turn = work.places.stand({"many"})
    waiting = asyncio.create_task(work.places.wait(turn))
    work.places.join(turn, "few")
    work.go_on.set()
    await waiting
    assert len(work.order) <= 3
    work.places.give_back()
    await asyncio.gather(*working)
    # Who is done joins nobody.
    work.places.join(turn, "few")
    assert (work.places.free, work.places.waiting) == (1, 0)
