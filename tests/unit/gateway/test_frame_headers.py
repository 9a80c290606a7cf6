"""service/roomcast/gateway/frame_headers.py: a frame without a mask, wherever it is cut."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from roomcast.gateway.frame_headers import Masks
from tests.unit.gateway.frames import BINARY, CLOSE, PING, TEXT, masked

SIZES = st.integers(0, 140) | st.sampled_from([125, 126, 127, 65535, 65536])
OPCODES = st.sampled_from([0, TEXT, BINARY, CLOSE, PING])
FRAMES = st.lists(st.builds(lambda opcode, size: masked(opcode, bytes(size)), OPCODES, SIZES))


def passed(said: bytes, cuts: list[int]) -> bytes:
    """What is passed on of `said`, which comes in pieces."""
    masks = Masks()
    ends = [0, *sorted(min(cut, len(said)) for cut in cuts), len(said)]
    return b"".join(masks.masked(said[begin:end]) for begin, end in pairwise(ends))


@given(FRAMES, st.lists(st.integers(0, 400)))
def test_what_is_masked_is_passed_on_however_it_comes(frames: list[bytes], cuts: list[int]) -> None:
    said = b"".join(frames)
    assert passed(said, cuts) == said


@given(FRAMES, FRAMES, SIZES, st.lists(st.integers(0, 400)))
def test_a_frame_without_a_mask_is_the_end(
    before: list[bytes], behind: list[bytes], size: int, cuts: list[int]
) -> None:
    whole, bare = b"".join(before), bytearray(masked(TEXT, bytes(size)))
    bare[1] &= 0x7F
    found = passed(whole + bytes(bare) + b"".join(behind), cuts)
    # Of that frame itself no more than what does not say yet that it has no mask.
    assert found in (whole, whole + bytes(bare[:1]))


@pytest.mark.parametrize("size", [0, 1, 125, 126, 127, 65535, 65536])
def test_after_whole_frames_it_is_between_two_of_them(size: int) -> None:
    said = masked(TEXT, b"x" * size)
    masks = Masks()
    assert masks.is_between
    for piece, is_between in (
        (said, True),
        (said[:-1], False),
        (said[-1:], True),
        (said[:1], False),
    ):
        assert masks.masked(piece) == piece
        assert masks.is_between is is_between
    masks.masked(b"\0")
    assert not masks.is_between
    assert masks.masked(said) == b"", "that was a frame without a mask"
    assert not masks.is_between
