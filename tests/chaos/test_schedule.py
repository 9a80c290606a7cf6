"""A seed gives the same schedule every time, and a short run leaves no kind of trouble out."""

from __future__ import annotations

import pytest

from tests.chaos.proxy import Phase
from tests.chaos.scenario import DURATION_S
from tests.chaos.schedule import Schedule, Strike

pytestmark = pytest.mark.chaos


@pytest.mark.parametrize("duration_s", [20, 40, 300])
@pytest.mark.parametrize("seed", range(20))
def test_every_kind_occurs(seed: int, duration_s: float) -> None:
    timed = Schedule.of(seed, duration_s).timed
    assert set(Strike) <= {each.what for each in timed if isinstance(each.what, Strike)}
    phases = [each.what for each in timed if isinstance(each.what, Phase)]
    assert len({phase.name for phase in phases}) == 9
    assert [each.at_s for each in timed] == sorted(each.at_s for each in timed)
    assert timed[-1].at_s < duration_s


def test_the_seed_decides() -> None:
    assert Schedule.of(7, DURATION_S) == Schedule.of(7, DURATION_S)
    assert Schedule.of(7, DURATION_S) != Schedule.of(8, DURATION_S)
