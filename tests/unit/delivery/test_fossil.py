"""Differences in Fossil's format, read by the published SDK for Python."""

from __future__ import annotations

import pytest
from centrifuge.fossil import apply_delta
from hypothesis import given
from hypothesis import strategies as st

from roomcast.delivery.fossil import SEARCHED_BYTES_MAX, Search, delta

BYTES = st.binary(max_size=300)


def applied(source: bytes, difference: bytes) -> bytes:
    return bytes(apply_delta(source, difference))


def difference_of(source: bytes, target: bytes) -> bytes:
    """With nothing searched before."""
    difference = delta(source, target, Search(1_000_000))
    assert difference is not None
    return difference


@given(BYTES, BYTES)
def test_it_makes_the_target_of_the_source(source: bytes, target: bytes) -> None:
    assert applied(source, difference_of(source, target)) == target


@given(
    st.lists(st.sampled_from([b"alpha " * 4, b"beta " * 5, b"gamma" * 6, b"x"]), max_size=8),
    st.randoms(),
)
def test_parts_that_moved_are_copied(parts: list[bytes], random: object) -> None:
    moved = list(parts)
    random.shuffle(moved)  # type: ignore[attr-defined]  # hypothesis's random
    source, target = b"".join(parts), b"".join(moved)
    assert applied(source, difference_of(source, target)) == target


@given(st.text(max_size=200), st.text(max_size=40), st.integers(0, 200), st.integers(0, 200))
def test_of_texts_it_is_a_text(text: str, inserted: str, at: int, until: int) -> None:
    changed = text[:at] + inserted + text[max(at, until) :]
    difference = difference_of(text.encode(), changed.encode())
    difference.decode()
    assert applied(text.encode(), difference) == changed.encode()


def test_no_copy_begins_or_ends_within_a_character() -> None:
    before = ("é" * 40 + "ü" * 40).encode()
    after = ("é" * 40 + "ñ" + "ü" * 40).encode()
    difference = difference_of(before, after)
    assert "ñ" in difference.decode()
    assert len(difference) < len(after) / 4
    assert applied(before, difference) == after


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda text: text.replace(b"score: 0", b"score: 1"), id="within"),
        pytest.param(lambda text: b"first " + text, id="before"),
        pytest.param(lambda text: text + b" last", id="after"),
        pytest.param(lambda text: text[400:] + text[:400], id="exchanged"),
    ],
)
def test_a_small_change_is_a_small_difference(change: object) -> None:
    text = b", ".join(b"player %d, score: %d" % (n, n // 7) for n in range(50))
    changed = change(text)  # type: ignore[operator]  # one of those above
    difference = difference_of(text, changed)
    assert applied(text, difference) == changed
    assert len(difference) < len(changed) / 10


def test_what_is_too_large_to_be_searched_is_copied_at_its_ends_only() -> None:
    middle = bytes(n * n % 251 for n in range(SEARCHED_BYTES_MAX + 1))
    source, target = (
        b"head" * 10 + middle + b"tail" * 10,
        b"head" * 10 + middle[::-1] + b"tail" * 10,
    )
    difference = difference_of(source, target)
    assert applied(source, difference) == target
    assert len(middle) < len(difference) < len(middle) + 60


def test_what_is_searched_is_counted_and_comes_to_an_end() -> None:
    source, target = bytes(range(250)) * 16, bytes(range(250))[::-1] * 16
    search, differences = Search(10_000), 0
    while (difference := delta(source, target, search)) is not None:
        assert applied(source, difference) == target
        differences += 1
    assert differences == 3, "each searches 4,000 bytes"
    assert -4_500 < search.left <= 0
    assert delta(source, source, search) is None
