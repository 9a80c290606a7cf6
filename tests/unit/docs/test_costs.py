"""docs/cost.md: its tables are those of the formulas."""

from __future__ import annotations

import pytest

from docs.costs import PAGE, with_tables


def test_the_tables_are_up_to_date() -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert with_tables(page) == page, "out of date: run python -m docs.costs"


def test_a_page_without_a_place_is_refused() -> None:
    with pytest.raises(ValueError, match="no place"):
        with_tables("# Another page\n")
