"""Measures the delay that one client that does not read causes to the others.

The measure is the time from the first to the last recipient of each publication. A thousand clients
read, in rounds that take turns: with one more client that stalls and is cut off in the middle of
the round, and without. The kernel reports when a publication arrived.

    python -m benchmarks.slow_consumer
"""

from __future__ import annotations

import statistics
import sys

from benchmarks.rig import CLIENTS, Process, end_in_time, percentile, rig, say

__all__: list[str] = []

ROUNDS = 15
PUBLICATIONS = 20
PAD = "x" * 4000
_QUEUE_BYTES_MAX = 1024 * 1024
# Bytes below the bound at the start of a round, so that it is passed half-way.
_BELOW = PUBLICATIONS * len(PAD) // 2


def spreads(node: Process, crowd: Process) -> list[float]:
    """The spread of each publication, in ms."""
    found: list[float] = []
    for _ in range(PUBLICATIONS):
        node.begin("broadcast", way="roomcast", count=1, pad=PAD)
        read = crowd.ask("read", publications=1)
        node.answer()
        if read["missing"]:
            raise SystemExit(f"{read['missing']} clients did not get everything")
        found.append(read["spread_ms"])
    return found


def stalled(node: Process, crowd: Process) -> list[float]:
    """The same with one more client, which does not read."""
    crowd.ask("stall")
    node.ask("fill", below=_BELOW)
    found = spreads(node, crowd)
    code = node.ask("gone")["closed_with"]
    crowd.ask("forget")
    if code != 3008:
        raise SystemExit(f"the client that does not read was not cut off with 3008: {code}")
    return found


def main() -> None:
    """Prints ms, which depend on this machine, and ratios, which depend on it less."""
    end_in_time()
    without: list[list[float]] = []
    with_one: list[list[float]] = []
    with rig(queue_bytes_max=_QUEUE_BYTES_MAX) as (node, crowd):
        spreads(node, crowd)
        for number in range(ROUNDS):
            if number % 2:
                with_one.append(stalled(node, crowd))
                without.append(spreads(node, crowd))
            else:
                without.append(spreads(node, crowd))
                with_one.append(stalled(node, crowd))
    sys.stdout.write(
        f"{CLIENTS} clients, {PUBLICATIONS} publications of about {len(PAD)} bytes a round\n"
    )
    for what, rounds in (("none stalled", without), ("one stalled and cut off", with_one)):
        say(f"{what}: spread", [statistics.median(each) for each in rounds], " ms")
        say(f"{what}: spread, the slowest tenth", [percentile(each, 0.9) for each in rounds], " ms")
    pairs = list(zip(with_one, without, strict=True))
    say(
        "one / none: spread",
        [statistics.median(one) / statistics.median(none) for one, none in pairs],
    )
    say(
        "one / none: spread, the slowest tenth",
        [percentile(one, 0.9) / percentile(none, 0.9) for one, none in pairs],
    )


if __name__ == "__main__":
    main()
