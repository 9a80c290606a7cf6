"""service/roomcast/client/work.py: places, turns, and the end of running tasks.

Rates are in test_limits.py.
"""

from __future__ import annotations

import asyncio

import pytest

from roomcast.client import work as work_module
from roomcast.client.peer import Peer
from roomcast.client.session import Session
from roomcast.client.work import COMMANDS_UNDER_WAY_MAX, PLACE_BYTES, Work
from roomcast.observe.counters import ClientCounters
from roomcast.wire.codes import Disconnect
from tests.unit.client.test_session import policy
from tests.unit.worlds import Socket, settled


class Ended:
    """A connection that only ends."""

    def end(self) -> None:
        pass


@pytest.fixture
def socket() -> Socket:
    return Socket()


@pytest.fixture
async def work(socket: Socket) -> Work:
    return Work(Peer(Session("c1", policy()), socket, ClientCounters(), Ended()))


async def test_a_place_is_given_back_once(work: Work) -> None:
    place = await work.place()
    free = work._places._value
    other = place.hand_over()
    place.give_back()
    assert work._places._value == free, "it was handed over"
    other.give_back()
    other.give_back()
    assert work._places._value == free + 1


@pytest.mark.parametrize(
    "size, count",
    [
        (0, 1),
        (1, 1),
        (PLACE_BYTES, 1),
        (PLACE_BYTES + 1, 2),
        (64 * 1024, 32),
        (PLACE_BYTES * COMMANDS_UNDER_WAY_MAX * 2, COMMANDS_UNDER_WAY_MAX),
    ],
)
async def test_a_large_command_takes_several_places_and_gives_all_of_them_back(
    work: Work, size: int, count: int
) -> None:
    place = await work.place(size)
    assert work._places._value == COMMANDS_UNDER_WAY_MAX - count
    place.hand_over().give_back()
    assert work._places._value == COMMANDS_UNDER_WAY_MAX
    ended = asyncio.get_running_loop().create_future()

    async def wait() -> None:
        await ended

    task = await work.start(wait(), size)
    assert work._places._value == COMMANDS_UNDER_WAY_MAX - count
    ended.set_result(None)
    await task
    await settled()
    assert work._places._value == COMMANDS_UNDER_WAY_MAX


async def test_a_large_command_that_is_given_up_gives_back_what_it_has(work: Work) -> None:
    places = [await work.place(PLACE_BYTES * COMMANDS_UNDER_WAY_MAX // 2) for _ in range(2)]
    waiting = asyncio.create_task(work.place(PLACE_BYTES * COMMANDS_UNDER_WAY_MAX))
    places[0].give_back()
    await settled()
    assert not waiting.done(), "it has half of its places"
    waiting.cancel()
    await asyncio.wait([waiting])
    places[1].give_back()
    assert work._places._value == COMMANDS_UNDER_WAY_MAX


async def test_what_waits_for_a_place_and_is_given_up_never_begins(
    monkeypatch: pytest.MonkeyPatch, socket: Socket
) -> None:
    monkeypatch.setattr(work_module, "COMMANDS_UNDER_WAY_MAX", 1)
    work = Work(Peer(Session("c1", policy()), socket, ClientCounters(), Ended()))
    place = await work.place()
    begun: list[str] = []

    async def begin(name: str) -> None:
        begun.append(name)

    waiting = asyncio.create_task(work.start(begin("given up")))
    await settled()
    waiting.cancel()
    await asyncio.wait([waiting])
    place.give_back()
    await (await work.start(begin("next")))
    assert begun == ["next"]
    await settled()
    assert work.tasks == 0


async def test_changes_of_one_channel_come_one_after_the_other(work: Work) -> None:
    done: list[str] = []
    let = {name: asyncio.get_running_loop().create_future() for name in ("first", "second")}

    async def change(name: str) -> None:
        if name in let:
            await let[name]
        done.append(name)

    await work.start_change("a", change("first"))
    work.track_change("a", lambda: change("second"))
    work.track_change("b", lambda: change("another channel's"))
    turn = asyncio.create_task(work.turn("a"))
    await settled()
    assert done == ["another channel's"]
    assert work.changes == 1
    let["first"].set_result(None)
    await settled()
    assert done == ["another channel's", "first"]
    assert not turn.done(), "an order came behind what it waited for"
    let["second"].set_result(None)
    await turn
    assert done == ["another channel's", "first", "second"]
    assert work.changes == 0


async def test_orders_for_any_channel_wait_for_the_connect(work: Work) -> None:
    done: list[str] = []
    connect = asyncio.get_running_loop().create_future()

    async def change() -> None:
        done.append("order")

    work.first_change(["a"], connect)
    work.track_change("b", change)
    await settled()
    assert not done
    connect.set_result(None)
    await settled()
    assert done == ["order"]


async def test_after_the_end_nothing_begins(work: Work, socket: Socket) -> None:
    begun: list[str] = []

    async def begin() -> None:
        begun.append("late")

    work.cancel()
    task = work.track(begin())
    await asyncio.wait([task])
    assert task.cancelled()
    assert not begun
    assert socket.closed_with is None


async def test_what_fails_closes_the_connection(work: Work, socket: Socket) -> None:
    async def fail() -> None:
        raise RuntimeError("a fault of ours")

    await asyncio.wait([work.track(fail())])
    await settled()
    assert socket.closed_with is Disconnect.SERVER_ERROR
