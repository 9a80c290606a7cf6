"""The signal by which the reaper tells a node that ECS has begun to stop its task.

The load balancer lets no new client in by then, and SIGTERM comes only when it has let go of the
old ones, or cut them off: docs/decisions/0079-fargate.md.
"""

from __future__ import annotations

from typing import Final

from roomcast.delivery.envelope import Signal
from roomcast.wire.names import RESERVED_PREFIX

__all__ = ["END_KIND", "end_signal", "ends"]

END_KIND: Final = "end"
_CHANNEL: Final = RESERVED_PREFIX + "end"
# What is no node's id, so that no node takes the signal for one of its own.
_SENDER: Final = "reaper"


def end_signal(instance: str) -> Signal:
    """To each node of the task with this id. It has the same id whenever it is sent."""
    return Signal(END_KIND, instance, _SENDER, _CHANNEL, {"instance": instance})


def ends(signal: Signal, instance: str) -> bool:
    """Whether the task with the id `instance` is the one that is stopped."""
    return isinstance(signal.body, dict) and signal.body.get("instance") == instance
