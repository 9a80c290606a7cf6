"""Decides how a node follows its machine's life cycle: pure functions of the instance metadata."""

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
# About an hour of attempts: the default time-out of a hook.
LAUNCH_ATTEMPTS_MAX: Final = 60
# A group that does not wait for this machine may begin to wait later, because the machine reaches
# its hook some time after it has started. From the first such answer on, attempts go on for this
# long. Auto Scaling prepares a machine for some minutes at most.
LAUNCH_WAIT_S: Final = 600.0
# The part of a spot instance's last two minutes that remains after its clients are closed.
SPOT_RESERVE_S: Final = 30.0

_WARM_POOL: Final = "Warmed:"
# The actions on a spot instance that leave time. The third, "hibernate", begins at once.
_SPOT_ENDS: Final = frozenset({"stop", "terminate"})


class TargetState(Enum):
    """The state to which Auto Scaling takes this machine."""

    IN_SERVICE = "InService"
    TERMINATED = "Terminated"
    # It waits in a warm pool, or ends from there. It serves nobody.
    WARMED = "Warmed"
    # In no group, on standby, detached, or unknown to this release: it has no consequence.
    OTHER = "other"


@dataclass(frozen=True, slots=True)
class SpotNotice:
    """A spot instance is about to be interrupted. `action`: stop or terminate.

    `at_ms` 0: the time is not given.
    """

    action: str
    at_ms: int


@dataclass(frozen=True, slots=True)
class Outlook:
    """The machine's future as the instance metadata announce it."""

    target: TargetState = TargetState.OTHER
    notice: SpotNotice | None = None


def target_of(text: str) -> TargetState:
    """Reads the value of `autoscaling/target-lifecycle-state`, "" if there is none."""
    if text.startswith(_WARM_POOL):
        return TargetState.WARMED
    return next(
        (each for each in (TargetState.IN_SERVICE, TargetState.TERMINATED) if each.value == text),
        TargetState.OTHER,
    )


def spot_notice(text: str) -> SpotNotice | None:
    """Reads the value of `spot/instance-action`. None: the value requires nothing."""
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
        # Always UTC, marked by a Z.
        at_ms = round((at if at.tzinfo else at.replace(tzinfo=UTC)).timestamp() * 1000)
    except (KeyError, TypeError, ValueError, OverflowError):
        at_ms = 0
    return SpotNotice(action, at_ms)


def reason_to_drain(outlook: Outlook) -> str:
    """The reason for the node to end, for the log. "" = it may go on."""
    if outlook.notice is not None:
        return f"the spot instance is about to {outlook.notice.action}"
    if outlook.target is TargetState.TERMINATED:
        return "Auto Scaling terminates this instance"
    if outlook.target is TargetState.WARMED:
        return "Auto Scaling keeps this instance in the warm pool"
    return ""


def drain_within_s(configured_s: float, outlook: Outlook, now_ms: int) -> float:
    """The seconds over which to close the clients.

    Fewer than configured when the machine ends before.
    """
    if outlook.notice is None or not outlook.notice.at_ms:
        return configured_s
    left_s = (outlook.notice.at_ms - now_ms) / 1000 - SPOT_RESERVE_S
    return min(configured_s, max(0.0, left_s))


class LaunchHook:
    """Tracks whether the launch hook must still be completed. Seconds are monotonic.

    The metadata show the machine's target, not whether its group waits at a hook, or will. So each
    time that the machine comes into service the hook is completed once. If no group waits, the
    attempts are repeated for some time.
    """

    __slots__ = ("_attempts", "_done", "_not_before_s", "_unwanted_since_s")

    def __init__(self) -> None:
        self._begin_anew()

    def _begin_anew(self) -> None:
        self._attempts, self._done, self._not_before_s = 0, False, float("-inf")
        self._unwanted_since_s: float | None = None

    @property
    def is_given_up(self) -> bool:
        """Whether all allowed attempts failed."""
        return not self._done and self._attempts >= LAUNCH_ATTEMPTS_MAX

    def is_due(self, target: TargetState, now_s: float) -> bool:
        """Whether to complete the hook now, on a node that serves."""
        if target is not TargetState.IN_SERVICE:
            # The machine may come back from there, and wait at the hook again.
            self._begin_anew()
            return False
        return not self._done and not self.is_given_up and now_s >= self._not_before_s

    def done(self) -> None:
        """The hook is completed, or no group will ever wait at it."""
        self._done = True

    def unwanted(self, now_s: float) -> None:
        """No group waits at the hook, perhaps not yet."""
        if self._unwanted_since_s is None:
            self._unwanted_since_s = now_s
        if now_s - self._unwanted_since_s >= LAUNCH_WAIT_S:
            self.done()
        else:
            self.failed(now_s)

    def failed(self, now_s: float) -> None:
        """The attempt failed. The next one comes later each time."""
        self._attempts += 1
        self._not_before_s = now_s + _LAUNCH_BACKOFF.pause_s(self._attempts)
