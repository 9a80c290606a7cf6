"""The invariants hold under every schedule tried, and the checker sees each way of breaking them.

ROOMCAST_SIMULATION_SEEDS sets how many schedules (60 by default;
the tox environment `simulation` runs thousands).
"""

from __future__ import annotations

import gc
import os
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context

import pytest

from tests.simulation.mutations import MUTATIONS
from tests.simulation.reasons import Reason
from tests.simulation.scenario import Outcome, simulate

SEEDS = int(os.environ.get("ROOMCAST_SIMULATION_SEEDS", "60"))
SEEDS_A_JOB = 25
# With few seeds, the mutations that need few; with many, all of them.
THOROUGH = SEEDS >= 1000
# Mutations that some of the first schedules show.
QUICK = {
    "no hold",
    "repeats not dropped",
    "no batch id",
    "ack before commit",
    "hub before reply",
    "recovery refused without a read",
    "overtaken in the lane",
    "key ignored",
    "a repeated key is told the tail",
    "a task fails unseen",
    "the winner does not give way",
    "a retry from the tail learned before the pause",
    "a topic shard is joined and not caught up with",
    "an express hint before its commit",
    "an express hint is not held",
    "a batch goes to who came later as well",
    "a batch is dropped",
    "recoveries are not filtered",
    "tests of a full turn are dropped",
    "what is stale is appended",
    "a version is not carried on",
    "the newest is not read",
    "a repeat is carried out",
    "a repeated command is taken",
}
# With express hints, one run of so many has topic shards as well, and one of so many batches.
SHARDED_EVERY, BATCHED_EVERY = 4, 3
# With filters half as many: below them the runs are what they are without.
FILTERED_SEEDS = SEEDS // 2
# Fewer runs show what is different with latest values.
LATEST_SEEDS = SEEDS // 3


def simulate_some(
    first: int,
    *,
    seeds: int = SEEDS,
    sharded: bool = False,
    batched: bool = False,
    latest: bool = False,
) -> list[Outcome]:
    last = min(first + SEEDS_A_JOB, seeds)
    return [
        simulate(seed, sharded=sharded, batched=batched, latest=latest)
        for seed in range(first, last)
    ]


def simulate_filtered(first: int) -> list[Outcome]:
    last = min(first + SEEDS_A_JOB, FILTERED_SEEDS)
    return [
        simulate(seed, batched=seed % BATCHED_EVERY == 0, filtered=True)
        for seed in range(first, last)
    ]


def simulate_express(first: int) -> list[Outcome]:
    last = min(first + SEEDS_A_JOB, SEEDS)
    return [
        simulate(
            seed,
            sharded=seed % SHARDED_EVERY == 0,
            batched=seed % BATCHED_EVERY == 0,
            express=True,
        )
        for seed in range(first, last)
    ]


def first_caught(number: int) -> int | None:
    """The first seed with which mutation `number` is seen, by what it breaks."""
    mutation = MUTATIONS[number]
    for seed in range(mutation.seeds):
        with mutation.apply():
            outcome = simulate(
                seed,
                sharded=mutation.sharded,
                batched=mutation.batched,
                express=mutation.express,
                filtered=mutation.filtered,
                latest=mutation.latest,
            )
        if mutation.is_seen(outcome.violations):
            return seed
    return None


@pytest.fixture(scope="module")
def pool() -> Iterator[ProcessPoolExecutor]:
    # What is there before a run need not be looked at after each one.
    with ProcessPoolExecutor(
        os.cpu_count(), mp_context=get_context("spawn"), initializer=gc.freeze
    ) as executor:
        yield executor


@pytest.mark.timeout(600)
def test_the_invariants_hold(pool: ProcessPoolExecutor) -> None:
    outcomes = [
        outcome
        for some in pool.map(simulate_some, range(0, SEEDS, SEEDS_A_JOB))
        for outcome in some
    ]
    broken = [outcome for outcome in outcomes if outcome.violations]
    message = "\n".join(
        f"seed {outcome.seed}: {outcome.violations[0]} (again: python -m tests.simulation "
        f"{outcome.seed})"
        for outcome in broken
    )
    assert not broken, message
    assert len(outcomes) == SEEDS
    # The schedules exercise what they are for.
    assert sum(outcome.acknowledged for outcome in outcomes) > 10 * SEEDS
    assert sum(outcome.recovered for outcome in outcomes) > SEEDS
    assert sum(outcome.retries for outcome in outcomes) > SEEDS
    assert sum(outcome.orders for outcome in outcomes) > SEEDS
    assert sum(outcome.commands for outcome in outcomes) > SEEDS
    told = sum((outcome.told for outcome in outcomes), Counter[Reason]())
    assert told.total() > SEEDS
    if THOROUGH:
        # Twenty reads of one hole that fail in a row are rarer than a thousand schedules:
        # tests/unit/delivery/test_open_channel.py has them.
        assert set(Reason) - {Reason.SILENCE} <= set(told)


def hold_all(pool: ProcessPoolExecutor, seeds: int = SEEDS, **kind: bool) -> list[Outcome]:
    """All seeds of one kind of runs. Returns what they came to."""
    some = pool.map(partial(simulate_some, seeds=seeds, **kind), range(0, seeds, SEEDS_A_JOB))
    outcomes = [outcome for each in some for outcome in each]
    [option] = kind
    message = "\n".join(
        f"seed {outcome.seed}: {outcome.violations[0]} (again: python -m tests.simulation "
        f"{outcome.seed} --{option})"
        for outcome in outcomes
        if outcome.violations
    )
    assert not message, message
    assert sum(outcome.delivered for outcome in outcomes) > 10 * seeds
    return outcomes


@pytest.mark.timeout(600)
def test_the_invariants_hold_with_express_hints(pool: ProcessPoolExecutor) -> None:
    some = pool.map(simulate_express, range(0, SEEDS, SEEDS_A_JOB))
    outcomes = [outcome for each in some for outcome in each]
    message = "\n".join(
        f"seed {outcome.seed}: {outcome.violations[0]} (again: python -m tests.simulation "
        f"{outcome.seed} --express{' --sharded' * (outcome.seed % SHARDED_EVERY == 0)}"
        f"{' --batched' * (outcome.seed % BATCHED_EVERY == 0)})"
        for outcome in outcomes
        if outcome.violations
    )
    assert not message, message
    assert sum(outcome.delivered for outcome in outcomes) > 10 * SEEDS
    # Hints came first, and late ones were dropped.
    assert sum(outcome.hints["first"] for outcome in outcomes) > SEEDS / 2
    assert sum(outcome.hints["late"] for outcome in outcomes) > 0


@pytest.mark.timeout(600)
def test_the_invariants_hold_with_topic_shards(pool: ProcessPoolExecutor) -> None:
    hold_all(pool, sharded=True)


@pytest.mark.timeout(600)
def test_the_invariants_hold_with_batches(pool: ProcessPoolExecutor) -> None:
    hold_all(pool, batched=True)


@pytest.mark.timeout(600)
def test_the_invariants_hold_with_filters(pool: ProcessPoolExecutor) -> None:
    some = pool.map(simulate_filtered, range(0, FILTERED_SEEDS, SEEDS_A_JOB))
    outcomes = [outcome for each in some for outcome in each]
    message = "\n".join(
        f"seed {outcome.seed}: {outcome.violations[0]} (again: python -m tests.simulation "
        f"{outcome.seed} --filtered{' --batched' * (outcome.seed % BATCHED_EVERY == 0)})"
        for outcome in outcomes
        if outcome.violations
    )
    assert not message, message
    assert sum(outcome.delivered for outcome in outcomes) > 10 * FILTERED_SEEDS
    assert sum(outcome.recovered for outcome in outcomes) > FILTERED_SEEDS


@pytest.mark.timeout(600)
def test_the_invariants_hold_with_latest_values(pool: ProcessPoolExecutor) -> None:
    outcomes = hold_all(pool, LATEST_SEEDS, latest=True)
    assert sum(outcome.stale for outcome in outcomes) > LATEST_SEEDS
    assert sum(outcome.recovered for outcome in outcomes) > LATEST_SEEDS


def test_a_seed_repeats_itself() -> None:
    assert simulate(7) == simulate(7)
    assert simulate(7, express=True) == simulate(7, express=True)


@pytest.mark.timeout(600)
def test_each_mutation_is_seen(pool: ProcessPoolExecutor) -> None:
    numbers = [
        number for number, mutation in enumerate(MUTATIONS) if THOROUGH or mutation.name in QUICK
    ]
    caught = dict(zip(numbers, pool.map(first_caught, numbers), strict=True))
    missed = [
        f"{MUTATIONS[number].name} ({MUTATIONS[number].breaks})"
        for number, seed in caught.items()
        if seed is None
    ]
    assert not missed, f"the checker did not see: {missed}"


def test_the_quick_mutations_exist() -> None:
    assert {mutation.name for mutation in MUTATIONS} >= QUICK
