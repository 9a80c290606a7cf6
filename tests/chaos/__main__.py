"""Run one seed and tell what happened: python -m tests.chaos [SEED] [--seconds S] [--log FILE]."""

from __future__ import annotations

import argparse
import asyncio
import secrets
import sys
from pathlib import Path

from tests.chaos.scenario import DURATION_S, run
from tests.requirements import Missing, find_node


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("seed", type=int, nargs="?", default=None, help="default: a random one")
    parser.add_argument("--seconds", type=float, default=DURATION_S, help="how long faults last")
    parser.add_argument("--log", type=Path, help="write what the instances said to this file")
    arguments = parser.parse_args()
    seed = secrets.randbelow(1_000_000) if arguments.seed is None else arguments.seed
    try:
        node: str | None = find_node()
    except Missing as missing:
        sys.stderr.write(f"without the JavaScript SDK: {missing}\n")
        node = None
    outcome = asyncio.run(run(seed, arguments.seconds, node, print))
    if arguments.log is not None:
        arguments.log.write_text(outcome.report, encoding="utf-8")
    sys.stdout.write(outcome.table() + "\n")
    return 1 if outcome.violations else 0


if __name__ == "__main__":
    sys.exit(main())
