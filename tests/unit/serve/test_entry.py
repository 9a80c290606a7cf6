"""service/roomcast/serve/entry.py: what asks a process to stop."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Iterator

import pytest

from roomcast.serve.entry import stopped_by_signals
from tests.unit.worlds import settled

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


@pytest.fixture(autouse=True)
def own_handlers() -> Iterator[None]:
    """The process goes on after the test, and with it when one fails."""
    before = {number: signal.signal(number, lambda *_: None) for number in SIGNALS}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", SIGNALS)
async def test_a_signal_asks_it_to_stop_and_another_one_ends_nothing(number: int) -> None:
    """SIGHUP comes when the terminal is closed: it ended the process at once."""
    stop = asyncio.Event()
    with stopped_by_signals(stop):
        os.kill(os.getpid(), number)
        await asyncio.wait_for(stop.wait(), 5)
        os.kill(os.getpid(), number)
    os.kill(os.getpid(), number)


async def test_what_nohup_started_outlives_its_terminal() -> None:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    stop = asyncio.Event()
    with stopped_by_signals(stop):
        os.kill(os.getpid(), signal.SIGHUP)
        await settled()
        assert not stop.is_set()
        os.kill(os.getpid(), signal.SIGTERM)
        await asyncio.wait_for(stop.wait(), 5)
