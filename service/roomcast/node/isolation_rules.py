"""Whether a node alone is cut off from the table, or everybody is.

Decided by what others are known to have written.
"""

from __future__ import annotations

__all__ = ["is_alone"]


def is_alone(*, taken_ms: int, ttl_ms: int, sign_ms: int, fresh_ms: int, now_ms: int) -> bool:
    """Whether the table takes what other nodes write, and nothing of this one.

    It has not taken this node's heartbeats for a lease's life.

    `taken_ms`: when it last took one. `sign_ms`: the newest time at which it took something of
    another node, by that node's clock and no later than this one learnt of it; 0 = none is known.
    It counts for `fresh_ms`.

    Nodes beat more often than twice in a lease's life. So in an outage for all, what others wrote
    last is at most half a life newer than what was last taken here; what is newer than that was
    written while this node could not.
    """
    has_ended = now_ms - taken_ms >= ttl_ms
    written_since = sign_ms >= taken_ms + ttl_ms / 2
    return has_ended and written_since and now_ms - sign_ms <= fresh_ms
