"""From when on, and until when: what is taken for what."""

from __future__ import annotations

import argparse
from typing import Any

import pytest

from roomcast.cli.moments import OFFSET_MAX, Since, since, until

NOW_MS = 1_700_000_000_000
TEN = 1_795_946_400_000


@pytest.mark.parametrize(
    "found, expected",
    [
        ("41", Since(offset=41)),
        ("0", Since(offset=0)),
        (str(OFFSET_MAX), Since(offset=OFFSET_MAX)),
        ("90s", Since(seconds=90)),
        ("5m", Since(seconds=300)),
        ("2h", Since(seconds=7200)),
        ("-2h", Since(seconds=7200)),
        ("1d", Since(seconds=86_400)),
        ("2026-11-29T10:00Z", Since(at_ms=TEN)),
        ("2026-11-29T10:00:00.250+00:00", Since(at_ms=TEN + 250)),
        ("2026-11-29T11:00:00+01:00", Since(at_ms=TEN)),
    ],
)
def test_since(found: str, expected: Since) -> None:
    assert since(found) == expected
    if expected.offset is None:
        assert until(found) == expected


@pytest.mark.parametrize(
    "kind, found",
    [
        *((kind, found) for kind in (since, until) for found in (
            "yesterday", "-1", "5w", "٣", "", "--2h", "2026-11-29T10:00", "2026-11-29",
            "1969-12-31T00:00Z", "0001-01-01T00:00+23:59", "9999-12-31T23:59-23:59x",
        )),
        (since, str(OFFSET_MAX + 1)),
        (until, "41"),
    ],
)  # fmt: skip
def test_what_is_none(kind: Any, found: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="must be"):
        kind(found)


def test_times() -> None:
    assert Since(seconds=60).time_ms(NOW_MS) == NOW_MS - 60_000
    assert Since(seconds=999_999_999).time_ms(1000) == 0
    assert Since(at_ms=5).time_ms(NOW_MS) == 5
