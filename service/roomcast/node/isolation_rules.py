"""Decides whether one node alone is cut off from the table, or all nodes are.

The known writes of other nodes decide it.
"""

from __future__ import annotations

__all__ = ["is_alone"]


def is_alone(*, taken_ms: int, ttl_ms: int, sign_ms: int, fresh_ms: int, now_ms: int) -> bool:
    """Whether the table takes writes of other nodes, but not of this one.

    That is, it has taken no heartbeat of this node for a lease's life.

    `taken_ms`: when it last took one. `sign_ms`: the newest time at which it took a write of
    another node, by that node's clock, but no later than when this node learnt of it; 0 = none is
    known. It counts for `fresh_ms`.

    Nodes send more than two heartbeats in a lease's life. So in an outage for all nodes, the last
    write of others is at most half a life newer than this node's. A write that is newer was made
    while this node could not write.
    """
    has_ended = now_ms - taken_ms >= ttl_ms
    written_since = sign_ms >= taken_ms + ttl_ms / 2
    return has_ended and written_since and now_ms - sign_ms <= fresh_ms
