"""The filters of a node: equal ones are one object, and none outlives its subscribers."""

from __future__ import annotations

from roomcast.delivery.tags_filters import TagsFilter, TagsFilters
from roomcast.wire.tags_filter import filter_of
from tests.unit.delivery.test_sieve import tagged


def test_equal_filters_are_one_and_go_with_the_last_who_has_them() -> None:
    filters = TagsFilters()
    one, again, other = (
        filters.shared(filter_of({"key": "kind", "cmp": "eq", "val": val})) for val in "aab"
    )
    assert one is again
    assert one is not other
    assert (len(filters), filters.bytes) == (2, one.weight + other.weight)
    del again
    assert len(filters) == 2
    weight = other.weight
    del one
    assert (len(filters), filters.bytes) == (1, weight)
    assert filters.has_room
    del other
    assert (len(filters), filters.bytes) == (0, 0)


def test_there_is_no_room_for_too_many() -> None:
    filters = TagsFilters(bytes_max=5_000)
    held: list[TagsFilter] = []
    while filters.has_room:
        value = str(len(held))
        held.append(filters.shared(filter_of({"key": "kind", "cmp": "eq", "val": value})))
    assert 1 < len(held) < 7
    del held[0]
    assert filters.has_room


def test_what_passes_of_many() -> None:
    tags_filter = TagsFilters().shared(filter_of({"key": "kind", "cmp": "neq", "val": "a"}))
    found = tags_filter.of(tagged("a", "b", "", "a"))
    assert [sent.offset for sent in found] == [2, 3]
