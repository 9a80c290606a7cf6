"""Measures what an envelope of a hundred records costs a node that has no use for them.

Every node gets every record. The floor is the parsing of the message's JSON. Two cases: records of
channels that nobody here follows, and records that this node wrote itself and that come round.

    python -m benchmarks.envelope
    python -m benchmarks.envelope --json
"""

from __future__ import annotations

import json
import random
import statistics
import time
from collections.abc import Callable, Iterable
from typing import Final

import orjson

from benchmarks.figures import Figure
from benchmarks.rig import end_in_time
from benchmarks.suite import run_alone
from roomcast.delivery.envelope import checked_pubs, pack, record_text
from roomcast.delivery.hub import Hub
from roomcast.delivery.intake import Intake
from roomcast.delivery.shard_keeper import ShardBook
from roomcast.delivery.way import Way
from roomcast.log.item import LogItem
from roomcast.system import SystemClock
from roomcast.wire.publication import Record

__all__ = ["measure"]

RECORDS: Final = 100
# Makes a publication's data 200 bytes of JSON.
TEXT_CHARS: Final = 189
# How often a message is taken in one round. A message takes a tenth of a millisecond.
TIMES: Final = 200
ROUNDS: Final = 15
SHORT_ROUNDS: Final = 5
BOUND: Final = 1.3
_AT_MS: Final = 1_700_000_000_000


class _Had:
    """A channel that has every record already."""

    def has(self, epoch: str, last: int) -> bool:
        return bool(epoch) and last > 0

    def offer(self, records: Iterable[Record]) -> None:
        raise AssertionError(f"{len(list(records))} records were taken that are not needed")


class _Ears:
    """Nobody: what came is known."""

    def greeted(self, greeting: str) -> None: ...
    def came(self) -> None: ...
    def hear(self, record: Record, lambda_at: int) -> None: ...
    def wrote(self) -> None: ...


def measure(short: bool) -> list[Figure]:
    """Both cases beside their floor, in rounds that take turns."""
    body = _message()
    elsewhere = _intake({})
    own = _intake({_channel(index): _Had() for index in range(RECORDS)})
    ways: dict[str, Callable[[], object]] = {
        "floor": lambda: orjson.loads(body),
        "elsewhere": lambda: elsewhere.take([body]),
        "own": lambda: own.take([body]),
    }
    spent: dict[str, list[float]] = {name: [] for name in ways}
    rounds = SHORT_ROUNDS if short else ROUNDS
    for _ in range(rounds):
        for name, way in ways.items():
            spent[name].append(_us(way))
    floor = statistics.median(spent["floor"])
    return [
        Figure(
            f"envelope of {RECORDS} records {what}, CPU",
            statistics.median(spent[name]),
            floor,
            "µs",
            "its JSON parsed",
            bound,
            rounds=rounds,
        )
        for name, what, bound in (
            ("elsewhere", "that nobody here follows", BOUND),
            ("own", "that this node has already", None),
        )
    ]


def _us(way: Callable[[], object]) -> float:
    """CPU of one call, in µs."""
    before = time.process_time()
    for _ in range(TIMES):
        way()
    return (time.process_time() - before) / TIMES * 1e6


def _channel(index: int) -> str:
    return f"rooms:{index}"


def _message() -> str:
    """As the Lambda packs it."""
    pubs = json.dumps([{"data": {"text": "x" * TEXT_CHARS}, "time": _AT_MS}])
    items = [
        LogItem(
            channel=_channel(index),
            offset=index + 1,
            last=index + 1,
            epoch="e" * 16,
            pubs=pubs,
            batch="b" * 16,
            node="another",
            ts=_AT_MS,
            expires_at=_AT_MS // 1000 + 86_400,
        )
        for index in range(RECORDS)
    ]
    texts = [record_text(item, checked_pubs(item)) for item in items]
    [(body, records)] = pack(texts, at=_AT_MS)
    assert records == RECORDS
    return body


def _intake(channels: dict[str, _Had]) -> Intake:
    ears = _Ears()
    shards = ShardBook(1, ears, SystemClock(), random.random)
    way = Way(SystemClock())
    return Intake("node", channels, Hub(), ears, shards, lambda _channel: False, way=way)


if __name__ == "__main__":
    end_in_time()
    run_alone(measure)
