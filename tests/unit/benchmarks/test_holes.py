"""The benchmark of holes, and what it must show."""

from __future__ import annotations

from benchmarks.holes import FIXED_MS, Load, measured


def test_a_wait_that_follows_the_canaries_spares_most_reads() -> None:
    load = Load(nodes=2, a_second=10)
    fixed, derived = (measured(load, wait_ms, 200) for wait_ms in (FIXED_MS, 0))
    assert fixed.reads > 10
    assert derived.reads < fixed.reads / 4
    # Nothing is lost by waiting.
    assert len(derived.took_s) == derived.foreign
