"""service/roomcast/serve/few_events.py: how many sockets one turn of the event loop serves."""

from __future__ import annotations

import asyncio
import selectors
import socket
from contextlib import ExitStack

from roomcast.cli.leaving import run_to_its_end
from roomcast.serve.few_events import EVENTS_A_TURN, new_event_loop
from tests.unit.worlds import DEADLINE_S


def test_of_very_many_ready_sockets_few_are_served_in_a_turn_and_all_in_their_order() -> None:
    count, turn = 5 * EVENTS_A_TURN, 0
    heard: list[tuple[int, int]] = []

    def hear(number: int) -> None:
        heard.append((turn, number))

    async def serve() -> None:
        nonlocal turn
        loop = asyncio.get_running_loop()

        def hear(number: int) -> None:
            heard.append((turn, number))

        with ExitStack() as stack:
            for number in range(count):
                one, other = socket.socketpair()
                stack.enter_context(one)
                stack.enter_context(other)
                other.send(b"x")
                # Nobody reads it: it is ready again in each turn.
                loop.add_reader(one, hear, number)
                stack.callback(loop.remove_reader, one)
            async with asyncio.timeout(DEADLINE_S):
                while len({number for _, number in heard}) < count:
                    turn += 1
                    await asyncio.sleep(0)

    with asyncio.Runner(loop_factory=new_event_loop) as runner:
        runner.run(serve())
    by_turn = [sum(1 for each, _ in heard if each == one) for one in range(turn + 1)]
    assert max(by_turn) == EVENTS_A_TURN
    assert len(heard) == count, "who was served waits for all others"


def test_a_node_runs_with_it() -> None:
    selected: list[int] = []

    async def work() -> int:
        loop = asyncio.get_running_loop()
        selector: selectors.BaseSelector = loop._selector  # type: ignore[attr-defined]  # asyncio's own
        with ExitStack() as stack:
            for _ in range(2 * EVENTS_A_TURN):
                one, other = socket.socketpair()
                stack.enter_context(one)
                stack.enter_context(other)
                loop.add_writer(one, int)
                stack.callback(loop.remove_writer, one)
            selected.append(len(selector.select(0)))
        return 3

    assert run_to_its_end(work()) == 3
    assert selected == [EVENTS_A_TURN]
