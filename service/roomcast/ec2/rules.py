"""What the life of the machine asks of its node.

Pure decisions from what the instance metadata say.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import Enum
from typing import Final

from roomcast.backoff import Backoff

__all__ = [
    "LAUNCH_ATTEMPTS_MAX",
    "LAUNCH_PAUSE_FIRST_S",
    "LAUNCH_PAUSE_MAX_S",
    "LAUNCH_WAIT_S",
    "SPOT_RESERVE_S",
    "LaunchHook",
    "Outlook",
    "SpotNotice",
    "TargetState",
    "drain_within_s",
    "reason_to_drain",
    "spot_notice",
    "target_of",
]

# Between attempts to complete the launch hook, doubled each time.
LAUNCH_PAUSE_FIRST_S: Final = 5.0
LAUNCH_PAUSE_MAX_S: Final = 60.0
_LAUNCH_BACKOFF: Final = Backoff(LAUNCH_PAUSE_FIRST_S, LAUNCH_PAUSE_MAX_S)
# About an hour of attempts: that is how long a hook waits unless its group says otherwise.
LAUNCH_ATTEMPTS_MAX: Final = 60
# A group that does not wait for this machine may not wait yet: it comes to its hook some time after
# the machine has begun to run. From its first such answer on it is asked for so long; the longest
# machine that Auto Scaling prepares takes minutes.
LAUNCH_WAIT_S: Final = 600.0
# Of the two minutes that a spot instance has left: for what comes after the clients were closed.
SPOT_RESERVE_S: Final = 30.0

_WARM_POOL: Final = "Warmed:"
# What happens to a spot instance; the third, "hibernate", begins at once and leaves no time for
# anything.
_SPOT_ENDS: Final = frozenset({"stop", "terminate"})


class TargetState(Enum):
    """The state that Auto Scaling takes this machine to."""

    IN_SERVICE = "InService"
    TERMINATED = "Terminated"
    # To wait in a warm pool, or from there to its end: nobody is served from it.
    WARMED = "Warmed"
    # In no group, on standby, detached, or a word that this release does not know: nothing follows
    # from it.
    OTHER = "other"


@dataclass(frozen=True, slots=True)
class SpotNotice:
    """A spot instance is about to be taken away: `action` is stop or terminate.

    `at_ms` 0: it is not said when.
    """

    action: str
    at_ms: int


@dataclass(frozen=True, slots=True)
class Outlook:
    """What the instance metadata say of the machine's future."""

    target: TargetState = TargetState.OTHER
    notice: SpotNotice | None = None


def target_of(text: str) -> TargetState:
    """The value of `autoscaling/target-lifecycle-state`; "" when there is none."""
    if text.startswith(_WARM_POOL):
        return TargetState.WARMED
    return next(
        (each for each in (TargetState.IN_SERVICE, TargetState.TERMINATED) if each.value == text),
        TargetState.OTHER,
    )


def spot_notice(text: str) -> SpotNotice | None:
    """The value of `spot/instance-action`; None for one that asks for nothing."""
    try:
        document = json.loads(text)
    except (ValueError, RecursionError):
        return None
    if not isinstance(document, dict):
        return None
    action = document.get("action")
    if not isinstance(action, str) or action not in _SPOT_ENDS:
        return None
    try:
        at = datetime.fromisoformat(document["time"])
        # Always UTC, and said so by a Z.
        at_ms = round((at if at.tzinfo else at.replace(tzinfo=UTC)).timestamp() * 1000)
    except (KeyError, TypeError, ValueError, OverflowError):
        at_ms = 0
    return SpotNotice(action, at_ms)


def reason_to_drain(outlook: Outlook) -> str:
    """Why the node has to end, for the log; "" as long as it may go on."""
    if outlook.notice is not None:
        return f"the spot instance is about to {outlook.notice.action}"
    if outlook.target is TargetState.TERMINATED:
        return "Auto Scaling terminates this instance"
    if outlook.target is TargetState.WARMED:
        return "Auto Scaling keeps this instance in the warm pool"
    return ""


def drain_within_s(configured_s: float, outlook: Outlook, now_ms: int) -> float:
    """Over how many seconds clients may be closed.

    Fewer than configured when the machine is gone before.
    """
    if outlook.notice is None or not outlook.notice.at_ms:
        return configured_s
    left_s = (outlook.notice.at_ms - now_ms) / 1000 - SPOT_RESERVE_S
    return min(configured_s, max(0.0, left_s))


class LaunchHook:
    """Whether the launch hook is still to be completed. Seconds are monotonic.

    The metadata tell where the machine goes, not whether its group waits there at a hook, or will:
    so each time that it comes into service the hook is completed once, and asked for some time
    whether somebody waits for that.
    """

    __slots__ = ("_attempts", "_done", "_not_before_s", "_unwanted_since_s")

    def __init__(self) -> None:
        self._begin_anew()

    def _begin_anew(self) -> None:
        self._attempts, self._done, self._not_before_s = 0, False, float("-inf")
        self._unwanted_since_s: float | None = None

    @property
    def is_given_up(self) -> bool:
        """Whether there were as many attempts as there may be, and all of them failed."""
        return not self._done and self._attempts >= LAUNCH_ATTEMPTS_MAX

    def is_due(self, target: TargetState, now_s: float) -> bool:
        """Whether to complete it now, on a node that serves."""
        if target is not TargetState.IN_SERVICE:
            # From wherever it goes now it may come back, and wait for the hook again.
            self._begin_anew()
            return False
        return not self._done and not self.is_given_up and now_s >= self._not_before_s

    def done(self) -> None:
        """It is completed, or nobody will ever wait for it."""
        self._done = True

    def unwanted(self, now_s: float) -> None:
        """Nobody waits for it: perhaps not yet."""
        if self._unwanted_since_s is None:
            self._unwanted_since_s = now_s
        if now_s - self._unwanted_since_s >= LAUNCH_WAIT_S:
            self.done()
        else:
            self.failed(now_s)

    def failed(self, now_s: float) -> None:
        """It is tried again, later each time."""
        self._attempts += 1
        self._not_before_s = now_s + _LAUNCH_BACKOFF.pause_s(self._attempts)
