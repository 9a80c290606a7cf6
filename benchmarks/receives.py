"""Counts the calls to SQS of a node that hears messages, with and without a pause between receives,
in virtual time.

The poller and the deleter are the real ones, over a queue that long-polls as SQS does. Messages
come at random times. A call takes 10 ms.

    python -m benchmarks.receives           every rate, with `aws.receive_pause_ms` 0, 30 and 50
    python -m benchmarks.receives --json    the rows as JSON

The simulation is deterministic: the same seed gives the same figures on every machine.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from collections import deque
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from random import Random
from typing import Any, Final, cast

from benchmarks.rig import percentile
from roomcast.delivery.poller import Poller
from roomcast.delivery.ports import InstanceQueue, Message
from roomcast.delivery.queue_state import QueueState
from roomcast.system import SystemClock
from tests.simulation import clockwork
from tests.simulation.mishaps import Mishaps

__all__ = ["CALL_S", "Row", "run"]

CALL_S: Final = 0.010
POLL_WAIT_S: Final = 20.0
RATES: Final = (0.1, 1.0, 5.0, 10.0, 20.0, 40.0, 80.0, 150.0, 300.0, 600.0)
PAUSES_MS: Final = (0, 30, 50)
# Messages of a run: enough for a figure, and a run takes a second or less.
MESSAGES: Final = 3_000
_RECEIVE_MAX: Final = 10


@dataclass(frozen=True, slots=True)
class Row:
    """One run. Calls are a second. Delays in ms, from when a message is in the queue until the node
    has handed it on.
    """

    messages_s: float
    pause_ms: int
    receives_s: float
    deletes_s: float
    mean_ms: float
    p99_ms: float


class _Queue:
    """An SQS queue, and the time until its messages were handed on."""

    def __init__(self) -> None:
        self._waiting: deque[tuple[str, float]] = deque()
        self._came = asyncio.Event()
        self._sent_s: dict[str, float] = {}
        self.receives = self.deletes = 0
        self.delays_s: list[float] = []

    def send(self, body: str) -> None:
        self._sent_s[body] = asyncio.get_running_loop().time()
        self._waiting.append((body, self._sent_s[body]))
        self._came.set()

    async def receive(self) -> Sequence[Message]:
        self.receives += 1
        await asyncio.sleep(CALL_S / 2)
        try:
            async with asyncio.timeout(POLL_WAIT_S):
                while not self._waiting:
                    self._came.clear()
                    await self._came.wait()
        except TimeoutError:
            pass
        count = min(_RECEIVE_MAX, len(self._waiting))
        taken = [self._waiting.popleft() for _ in range(count)]
        await asyncio.sleep(CALL_S / 2)
        return [Message(body, body, 0) for body, _ in taken]

    async def delete(self, receipts: Sequence[str]) -> None:
        assert 1 <= len(receipts) <= _RECEIVE_MAX, "what SQS deletes in a call"
        self.deletes += 1
        await asyncio.sleep(CALL_S)

    def take(self, bodies: Sequence[str], queued_at: Sequence[int] = ()) -> None:
        assert len(queued_at) == len(bodies)
        now_s = asyncio.get_running_loop().time()
        self.delays_s += [now_s - self._sent_s.pop(body) for body in bodies]

    async def rebuild(self) -> None:
        raise AssertionError("nothing takes this queue away")


async def _run(messages_s: float, pause_ms: int, messages: int, seed: int) -> Row:
    random, queue = Random(seed), _Queue()
    poller = Poller(
        cast(InstanceQueue, cast(Any, queue)),
        SystemClock(),
        random.random,
        QueueState(),
        queue,
        queue,
        pause_s=pause_ms / 1000,
    )
    polling = asyncio.create_task(poller.run())
    time = asyncio.get_running_loop().time
    begun_s = time()
    for number in range(messages):
        await asyncio.sleep(random.expovariate(messages_s))
        queue.send(str(number))
    took_s = time() - begun_s
    row = Row(
        messages_s,
        pause_ms,
        queue.receives / took_s,
        queue.deletes / took_s,
        sum(queue.delays_s) / len(queue.delays_s) * 1000,
        percentile(queue.delays_s, 0.99) * 1000,
    )
    polling.cancel()
    await asyncio.gather(polling, return_exceptions=True)
    return row


def run(messages_s: float, pause_ms: int, *, messages: int = MESSAGES, seed: int = 1) -> Row:
    """The calls of one node while `messages` come, `messages_s` a second."""
    mishaps = Mishaps()
    with mishaps.collected():
        row = clockwork.run(_run(messages_s, pause_ms, messages, seed), mishaps)
    assert not mishaps.found, mishaps.found[:3]
    return row


def _table(rows: Sequence[Row]) -> str:
    lines = ["messages/s  pause ms  receives/s  deletes/s  calls, part  mean ms  99 of 100 ms"]
    alone = 0.0
    for row in rows:
        calls = row.receives_s + row.deletes_s
        if not row.pause_ms:
            alone = calls
        lines.append(
            f"{row.messages_s:>10g}{row.pause_ms:>10}{row.receives_s:>12.2f}{row.deletes_s:>11.2f}"
            f"{calls / alone:>13.2f}{row.mean_ms:>9.1f}{row.p99_ms:>15.1f}"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.receives")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    rows = [run(rate, pause_ms) for rate in RATES for pause_ms in PAUSES_MS]
    told = json.dumps([asdict(row) for row in rows]) if options.json else _table(rows)
    sys.stdout.write(told + "\n")


if __name__ == "__main__":
    main()
