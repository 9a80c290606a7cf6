"""Measures how many publications a second 200 publishers of one room get acknowledged.

One instance of `roomcast serve` against the embedded AWS, whose one thread takes some ms for each
call. Publishers are WebSocket clients that publish again once they are answered. The floor is what
PutItem alone comes to there: items with one publication, one after the other, by the client of AWS
that the instance has. Appends that hold many publications are what makes the difference. Both take
turns.

    python -m benchmarks.hot_room --rounds 5
"""

from __future__ import annotations

import argparse
import asyncio
import json
import secrets
import statistics
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict
from typing import Final

from benchmarks import hot_channel
from benchmarks.end_to_end import aws, channel_table, item_of_one
from benchmarks.figures import Figure
from benchmarks.hot_channel import Layout, Run
from benchmarks.rig import end_in_time, options_of, percentile
from benchmarks.serving import WAYS, Cloud, closed, node

__all__ = ["figures", "measure", "measured"]

ROUNDS: Final = 5
ROUNDS_MAX: Final = 20
SECONDS: Final = 6.0
SECONDS_SHORT: Final = 3.0
PUBLISHERS: Final = 200
# The ratio that is aimed at: 2,000 a second where a PutItem takes 3 ms.
PUT_ITEMS_MIN: Final = 6.0
_START_S: Final = 120
_ROUND_S: Final = 60


async def put_items_per_s(cloud: Cloud, seconds: float) -> float:
    """Writes one item after the other for `seconds`."""
    channel, count = f"bare-{secrets.token_hex(4)}", 0
    async with aws(cloud) as clients:
        table = channel_table(clients)
        begun_s = time.monotonic()
        while (took_s := time.monotonic() - begun_s) < seconds:
            count += 1
            item = item_of_one(channel, count)
            await table.put_item(item, item.expires_at * 1000)
    return count / took_s


def measured(
    rounds: int, seconds: float, publishers: int = PUBLISHERS
) -> tuple[list[Run], list[float]]:
    """The runs, and how many PutItems a second there were in their rounds."""
    runs: list[Run] = []
    floor: list[float] = []
    with ExitStack() as stack:
        cloud = stack.enter_context(closed())
        url = f"http://127.0.0.1:{stack.enter_context(node(cloud, WAYS['lean'])).port}"
        for number in range(rounds):
            layout = Layout(1, publishers)
            runs.append(asyncio.run(hot_channel.measured([url], layout, seconds)))
            floor.append(asyncio.run(put_items_per_s(cloud, seconds / 3)))
            sys.stderr.write(f"hot_room: round {number + 1} of {rounds}\n")
    return runs, floor


def figures(runs: Sequence[Run], floor: Sequence[float]) -> list[Figure]:
    """What is told of them. Raises SystemExit where something was not acknowledged."""
    for run in runs:
        if run.errors:
            raise SystemExit(f"errors: {dict(run.errors)}")
    return [
        Figure(
            f"one room, {PUBLISHERS} publishers, acknowledged",
            statistics.median(run.per_s for run in runs),
            statistics.median(floor),
            "1/s",
            "PutItem, one after the other",
            PUT_ITEMS_MIN,
            higher_is_better=True,
            rounds=len(runs),
        )
    ]


def measure(short: bool) -> list[Figure]:
    """For the suite. `short`: fewer rounds, and shorter ones."""
    return figures(*(measured(2, SECONDS_SHORT) if short else measured(ROUNDS, SECONDS)))


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints rates, which depend on this machine, and their ratio, which depends on it less."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.hot_room", description=__doc__)
    parser.add_argument("--json", action="store_true", help="print JSON, not a table")
    options = options_of(parser, arguments, ROUNDS, ROUNDS_MAX)
    end_in_time(_START_S + options.rounds * _ROUND_S)
    runs, floor = measured(options.rounds, SECONDS)
    [found] = figures(runs, floor)
    if options.json:
        sys.stdout.write(json.dumps(asdict(found) | {"ratio": found.ratio}, indent=2) + "\n")
        return 0
    acks_ms = [ms for run in runs for ms in run.acks_ms]
    sys.stdout.write(
        f"acknowledged {found.value:.0f}/s, after {percentile(acks_ms, 0.5):.0f} ms (p50), "
        f"{percentile(acks_ms, 0.99):.0f} ms (p99)\n"
        f"{found.floor_name}: {found.floor:.0f}/s\n"
        f"acknowledged / {found.floor_name}: {found.ratio:.1f}   at least {PUT_ITEMS_MIN:g}\n"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
