"""Run one seed again and tell what happened:
python -m tests.simulation SEED [--mutation NAME] [--log].
"""

from __future__ import annotations

import argparse
import sys
from contextlib import nullcontext

import structlog

from tests.simulation.mutations import MUTATIONS
from tests.simulation.scenario import simulate


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description=__doc__)
    parser.add_argument("seed", type=int)
    parser.add_argument("--mutation", choices=[mutation.name for mutation in MUTATIONS])
    parser.add_argument("--sharded", action="store_true", help="with topic shards")
    parser.add_argument("--express", action="store_true", help="with express hints")
    parser.add_argument(
        "--batched", action="store_true", help="publications are collected before they go out"
    )
    parser.add_argument("--filtered", action="store_true", help="with clients that have filters")
    parser.add_argument(
        "--latest", action="store_true", help="recoveries of the newest publication, and versions"
    )
    parser.add_argument("--log", action="store_true", help="show what the nodes log")
    arguments = parser.parse_args()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(20))
    mutation = next((each for each in MUTATIONS if each.name == arguments.mutation), None)
    with mutation.apply() if mutation else nullcontext():
        outcome = simulate(
            arguments.seed,
            log=arguments.log,
            sharded=arguments.sharded,
            batched=arguments.batched,
            express=arguments.express,
            filtered=arguments.filtered,
            latest=arguments.latest,
        )
    lines = [
        *outcome.trace,
        (
            f"published {outcome.published}, acknowledged {outcome.acknowledged}, delivered "
            f"{outcome.delivered}, "
            f"recovered {outcome.recovered}, retries {outcome.retries}, orders {outcome.orders}, "
            f"commands {outcome.commands}, calls {outcome.calls}"
        ),
        *(f"told {count} times: {reason}" for reason, count in outcome.told.items()),
        *(f"VIOLATION {violation}" for violation in outcome.violations),
    ]
    sys.stdout.write("\n".join(lines) + "\n")
    return 1 if outcome.violations else 0


if __name__ == "__main__":
    sys.exit(main())
