"""The rows of the `nodes` table, as data: leases, and the tombstones of dead nodes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

__all__ = ["NODE_CHARS_MAX", "Lease", "Standing", "Tombstone", "standing"]

# The id of a lease, by which others name its node, is no longer than that.
NODE_CHARS_MAX: Final = 256


@dataclass(frozen=True, slots=True)
class Lease:
    """What a node holds, and its figures.

    Times are in ms. `queue` is the queue's name, `state` is starting | live | draining.

    `badge`: the node's badge, "" when its release has none. `canary`: the newest canary that the
    node heard. `queue_url`, `subscription_arn`: "" as long as
    they are not known. `instance`: the machine's id, "" outside EC2. `lag_ms`: how late the newest
    message came out of the queue. `skew_ms`: how far the node's clock is ahead of the queue's,
    negative: behind; 0 also when its release does not report it. `users`: the number of different
    users connected. `channels`: the number of channels with subscribers. `reaped`: when the
    clean-up after this node began, 0 = it has not.
    """

    node: str
    queue: str
    state: str
    started_at: int
    heartbeat_at: int
    expires_at: int
    canary: int = 0
    queue_url: str = ""
    subscription_arn: str = ""
    instance: str = ""
    version: str = ""
    connections: int = 0
    channels: int = 0
    users: int = 0
    lag_ms: int = 0
    skew_ms: int = 0
    reaped: int = 0
    badge: str = ""


@dataclass(frozen=True, slots=True)
class Tombstone:
    """The remains of a dead node's lease, after everything that it held was removed.

    `cleared_at`: when the last removal ended (ms). The table calls it `buried`.

    The node may wake up, and write presence entries before its next heartbeat shows that the lease
    is lost.
    """

    node: str
    instance: str
    cleared_at: int


Standing = Literal["live", "expired", "reaped"]


def standing(lease: Lease, now_ms: int) -> Standing:
    """The standing of a lease's node."""
    if lease.reaped:
        return "reaped"
    return "live" if lease.expires_at > now_ms else "expired"
