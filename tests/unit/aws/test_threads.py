"""Calls of a blocking client, awaited."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest

from roomcast.aws.errors import port_errors
from roomcast.aws.threads import ThreadedClient
from roomcast.ports import Throttled
from tests.unit.aws.fakes import client_error

DEADLINE_S = 5.0


class Blocking:
    """Two calls that wait for each other."""

    def __init__(self) -> None:
        self.both = threading.Barrier(2, timeout=DEADLINE_S)

    def meet(self, *, name: str) -> dict[str, Any]:
        self.both.wait()
        return {"name": name, "thread": threading.get_ident()}

    def fail(self) -> None:
        raise client_error("Throttling")


async def test_calls_run_beside_the_loop_and_each_other() -> None:
    client = ThreadedClient(Blocking())
    answers = await asyncio.gather(client.meet(name="a"), client.meet(name="b"))
    assert [answer["name"] for answer in answers] == ["a", "b"]
    assert threading.get_ident() not in {answer["thread"] for answer in answers}


async def test_an_error_comes_to_who_awaits_it() -> None:
    with pytest.raises(Throttled):
        async with port_errors(DEADLINE_S):
            await ThreadedClient(Blocking()).fail()


def test_an_operation_that_does_not_exist() -> None:
    with pytest.raises(AttributeError):
        ThreadedClient(Blocking()).gone  # noqa: B018  # asking is the point


def test_a_call_that_hangs_does_not_hold_up_the_end_of_the_loop() -> None:
    begun, told, ended = threading.Event(), threading.Event(), threading.Event()

    class Hanging:
        def hang(self) -> None:
            begun.set()
            told.wait(DEADLINE_S)
            ended.set()

    async def give_up() -> None:
        call = asyncio.ensure_future(ThreadedClient(Hanging()).hang())
        await asyncio.to_thread(begun.wait, DEADLINE_S)
        call.cancel()

    asyncio.run(give_up())
    assert begun.is_set()
    assert not ended.is_set()
    told.set()
