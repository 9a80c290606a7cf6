"""What `python -m benchmarks.walk` follows, and that the way stays short."""

from __future__ import annotations

from benchmarks.walk import Leg, walk

# What a newcomer can follow from the names (docs/decisions/0050-the-house.md).
# One of them, delivery/way.py, only measures how long each part took.
PASSED_MAX = 19
# Six of them are to that file and from it, and two count what all take in a turn. One is to the
# names of channels, which the Lambdas share, and their options not. One asks these whether back
# ends are told of what is published.
MOVES_MAX = 64
# On a busy machine a callback that has to do with something else may come between two of the way,
# which counts as a move.
WALKS_MAX = 8


async def shortest() -> list[Leg]:
    """Both legs of the walk with the fewest moves."""
    legs: list[Leg] = []
    for _ in range(WALKS_MAX):
        legs = min(
            (each for each in (legs, list((await walk()).legs.values())) if each),
            key=lambda both: sum(leg.moves for leg in both),
        )
        if sum(leg.moves for leg in legs) <= MOVES_MAX:
            break
    return legs


async def test_a_publication_passes_few_files_from_a_frame_to_a_push() -> None:
    to_log, from_queue = await shortest()
    assert to_log.files[0] == "gateway/reader.py"
    assert to_log.passed >= {"client/session.py", "log/appender.py", "log/channel_log.py"}
    assert from_queue.files[0] == "delivery/poller.py"
    assert from_queue.passed >= {"delivery/intake.py", "delivery/hub.py", "gateway/writer.py"}
    assert len(to_log.passed | from_queue.passed) <= PASSED_MAX
    assert to_log.handovers + from_queue.handovers < to_log.moves + from_queue.moves <= MOVES_MAX
    # Beside the way.
    assert "observe/counters.py" not in to_log.passed | from_queue.passed
    assert not any(each.startswith("testing/") for each in to_log.files + from_queue.files)
