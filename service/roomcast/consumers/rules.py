"""What becomes of a message that was not carried out: it comes again, or it is given up on.

Pure: errors in, verdicts out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from roomcast.backoff import FROM_HALF, Backoff
from roomcast.consumers.messages import QueueMessage
from roomcast.log.idempotency import RETRY_WITHIN_MS
from roomcast.wire.codes import Error
from roomcast.wire.publication import Json

__all__ = [
    "AGAIN_S_MAX",
    "REASONS",
    "Failed",
    "again_s",
    "failure_among",
    "failure_of",
    "is_too_old",
    "lines_of",
]

# What may succeed another time: the node or the table has too much to do, or is out. Whether it
# happened is not known, and its key says so when it is tried again.
_AGAIN: Final = (Error.INTERNAL, Error.REFUSED, Error.TOO_MANY_REQUESTS)
_AGAIN_CODES: Final = frozenset(error.value.code for error in _AGAIN)
# Of two errors with one code, the first.
_NAMES: Final[Mapping[int, str]] = {
    error.value.code: error.name.lower() for error in reversed(tuple(Error))
}
# By which failures are counted: the errors of the API, and what has none there.
REASONS: Final = (
    *dict.fromkeys(_NAMES[error.value.code] for error in Error),
    "unreadable",
    "too_old",
    "fault",
)
# The pause before a message comes again, by how often it was received. The longest is a quarter of
# an hour, so that some eighty receives fit into the time for which its key is good.
AGAIN_S_MAX: Final = 900
_PAUSES: Final = Backoff(5.0, AGAIN_S_MAX, FROM_HALF)


class Failed(Exception):
    """A message was not carried out. `reason`: one of REASONS. `again`: it may succeed another
    time; otherwise it never will. `why`: for people, without its content.
    """

    def __init__(self, reason: str, *, again: bool, why: str = "") -> None:
        super().__init__(f"{reason}: {why}")
        self.reason = reason
        self.again = again
        self.why = why


def failure_of(error: Error, why: str) -> Failed:
    """The failure for a refusal of the API."""
    return _failure(error.value.code, why)


def failure_among(responses: Sequence[Mapping[str, Json]]) -> Failed | None:
    """The failure of a broadcast, by its answer for each channel; None = there is none.

    What may succeed another time comes first: it is all done again, and what has a key is there
    once.
    """
    failures = [
        _failure(int(error["code"]), str(error["message"]))
        for error in (response.get("error") for response in responses)
        if isinstance(error, dict)
    ]
    return max(failures, key=lambda failure: failure.again, default=None)


def _failure(code: int, why: str) -> Failed:
    return Failed(_NAMES.get(code, "internal"), again=code in _AGAIN_CODES, why=why)


def again_s(receives: int, random: float) -> int:
    """Whole seconds until a message comes again that was received so often. `random`: [0, 1)."""
    return round(_PAUSES.pause_s(max(1, receives), random))


def is_too_old(message: QueueMessage, now_ms: int) -> bool:
    """Whether an earlier attempt may have been so long ago that its key has expired.

    Nobody tried before the queue first gave it out.
    """
    return now_ms - message.first_received_ms > RETRY_WITHIN_MS


def lines_of(messages: Sequence[QueueMessage]) -> list[list[QueueMessage]]:
    """Those of one receive, in lines: messages of one group in their order, and each other one by
    itself. The lines are in the order of their first messages.
    """
    lines: dict[tuple[str, str], list[QueueMessage]] = {}
    for message in messages:
        key = (message.group, "" if message.group else message.id)
        lines.setdefault(key, []).append(message)
    return list(lines.values())
