"""Objects whose fields are set once: they are values, and the type checker keeps them so."""

from __future__ import annotations

import pytest

from roomcast.frozen import frozen


@frozen
class Point:
    across: int
    down: int = 0


def test_they_are_compared_and_hashed_by_their_fields() -> None:
    assert Point(1, 2) == Point(1, 2) != Point(1)
    assert {Point(1), Point(1, 0), Point(2)} == {Point(1), Point(2)}
    assert not hasattr(Point(1), "__dict__")


def test_a_field_is_for_the_type_checker_to_refuse() -> None:
    """It says so here, too, when it would let it pass: the comment would be one that is unused."""
    point = Point(1)
    point.across = 2  # type: ignore[misc]  # it is frozen
    with pytest.raises(AttributeError):
        point.up = 1  # type: ignore[attr-defined]  # there is none
