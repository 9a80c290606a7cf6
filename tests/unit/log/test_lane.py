"""service/roomcast/log/lane.py: how much of what waits goes into one item."""

from __future__ import annotations

from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from roomcast.log.item import ITEM_BYTES_MAX, ITEM_KEYS_MAX, ITEM_PUBLICATIONS_MAX
from roomcast.log.lane import fill
from roomcast.log.rules import Pending


def text_bytes(queue: Sequence[Pending]) -> int:
    return len(("[" + ",".join(pending.text for pending in queue) + "]").encode())


SIZES = st.one_of(
    st.lists(st.integers(1, 60_000), max_size=8),
    st.integers(ITEM_PUBLICATIONS_MAX - 3, ITEM_PUBLICATIONS_MAX + 3).map(
        lambda length: [1] * length
    ),
    st.tuples(st.integers(1, 400), st.integers(ITEM_PUBLICATIONS_MAX, 600)).map(
        lambda size: [size[0]] * size[1]
    ),
    st.integers(-4, 4).map(lambda off: [1000, ITEM_BYTES_MAX - 1000 - 3 + off]),
    st.integers(-4, 4).map(lambda off: [ITEM_BYTES_MAX - 3 + off, 1]),
)


@given(SIZES)
def test_one_item_takes_as_much_of_the_queue_as_fits(sizes: list[int]) -> None:
    queue = [Pending.of("x" * size) for size in sizes]
    taken = fill(queue)
    assert (taken >= 1) == bool(queue)
    assert taken <= min(len(queue), ITEM_PUBLICATIONS_MAX)
    assert taken <= 1 or text_bytes(queue[:taken]) <= ITEM_BYTES_MAX
    if taken < min(len(queue), ITEM_PUBLICATIONS_MAX):
        # One byte may be given away for a comma that the last one does not need.
        assert text_bytes(queue[: taken + 1]) > ITEM_BYTES_MAX - 1


def test_what_is_too_large_for_an_item_goes_alone() -> None:
    large = Pending.of("x" * (ITEM_BYTES_MAX + 1))
    assert fill([large]) == fill([large, large]) == 1
    assert fill([Pending.of("x"), large]) == 1


def test_an_item_has_no_key_twice() -> None:
    """The second publication of a key must find the first one in the log."""
    keys = ["a", None, "b", "a", None]
    assert fill([Pending.of("0", key) for key in keys]) == 3
    assert fill([Pending.of("0", key) for key in keys[3:]]) == 2


def test_an_item_has_no_more_keys_than_a_transaction_has_room_for() -> None:
    keys = [None, *(f"k{number}" for number in range(ITEM_KEYS_MAX)), None, "one more", None]
    assert fill([Pending.of("0", key) for key in keys]) == ITEM_KEYS_MAX + 2
