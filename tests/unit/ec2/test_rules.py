"""What a machine's metadata ask of its node."""

from __future__ import annotations

from itertools import pairwise

import pytest

from roomcast.ec2.rules import (
    LAUNCH_ATTEMPTS_MAX,
    LAUNCH_PAUSE_FIRST_S,
    LAUNCH_PAUSE_MAX_S,
    LAUNCH_WAIT_S,
    SPOT_RESERVE_S,
    LaunchHook,
    Outlook,
    SpotNotice,
    TargetState,
    drain_within_s,
    reason_to_drain,
    spot_notice,
    target_of,
)

NOW_MS = 1_700_000_000_000


@pytest.mark.parametrize(
    "text, target",
    [
        ("InService", TargetState.IN_SERVICE),
        ("Terminated", TargetState.TERMINATED),
        ("Warmed:Stopped", TargetState.WARMED),
        ("Warmed:Running", TargetState.WARMED),
        ("Warmed:Hibernated", TargetState.WARMED),
        ("Warmed:Terminated", TargetState.WARMED),
        ("Warmed", TargetState.OTHER),
        ("Standby", TargetState.OTHER),
        ("Detached", TargetState.OTHER),
        ("terminated", TargetState.OTHER),
        ("Terminated:Soon", TargetState.OTHER),
        ("other", TargetState.OTHER),
        ("", TargetState.OTHER),
    ],
)
def test_a_target_state_is_read(text: str, target: TargetState) -> None:
    assert target_of(text) is target


@pytest.mark.parametrize(
    "text, notice",
    [
        ('{"action":"terminate","time":"2023-11-14T22:13:20Z"}', SpotNotice("terminate", NOW_MS)),
        ('{"action":"stop","time":"2023-11-14T23:13:20+01:00"}', SpotNotice("stop", NOW_MS)),
        ('{"action":"stop","time":"2023-11-14T22:13:20"}', SpotNotice("stop", NOW_MS)),
        ('{"action":"terminate"}', SpotNotice("terminate", 0)),
        ('{"action":"terminate","time":"soon"}', SpotNotice("terminate", 0)),
        ('{"action":"terminate","time":7}', SpotNotice("terminate", 0)),
        ('{"action":"hibernate","time":"2023-11-14T22:13:20Z"}', None),
        ('{"action":"dance"}', None),
        ('{"time":"2023-11-14T22:13:20Z"}', None),
        ("[]", None),
        ('{"action":["stop"]}', None),
        ('{"action":{}}', None),
        ("<html>", None),
        ("[" * 100_000, None),
        ("", None),
    ],
)
def test_a_spot_notice_is_read(text: str, notice: SpotNotice | None) -> None:
    assert spot_notice(text) == notice


@pytest.mark.parametrize(
    "outlook, word",
    [
        (Outlook(TargetState.TERMINATED), "terminates"),
        (Outlook(TargetState.WARMED), "warm pool"),
        (Outlook(TargetState.IN_SERVICE, SpotNotice("stop", 0)), "stop"),
        (Outlook(TargetState.OTHER, SpotNotice("terminate", 0)), "terminate"),
    ],
)
def test_what_makes_a_node_drain_is_said(outlook: Outlook, word: str) -> None:
    assert word in reason_to_drain(outlook)


@pytest.mark.parametrize("target", [TargetState.IN_SERVICE, TargetState.OTHER])
def test_nothing_else_makes_it_drain(target: TargetState) -> None:
    assert reason_to_drain(Outlook(target)) == ""


@pytest.mark.parametrize(
    "left_s, drain_s",
    [
        (120.0, 60.0),
        (SPOT_RESERVE_S + 60, 60.0),
        (SPOT_RESERVE_S + 10, 10.0),
        (SPOT_RESERVE_S, 0.0),
        (-5, 0.0),
    ],
)
def test_a_drain_ends_before_the_machine_does(left_s: float, drain_s: float) -> None:
    notice = SpotNotice("terminate", NOW_MS + round(left_s * 1000))
    assert drain_within_s(60.0, Outlook(TargetState.IN_SERVICE, notice), NOW_MS) == drain_s


@pytest.mark.parametrize(
    "outlook", [Outlook(TargetState.TERMINATED), Outlook(notice=SpotNotice("stop", 0))]
)
def test_a_drain_takes_its_time_when_no_end_is_known(outlook: Outlook) -> None:
    assert drain_within_s(60.0, outlook, NOW_MS) == 60.0


# ---- the launch hook


def test_it_is_completed_once() -> None:
    hook = LaunchHook()
    assert hook.is_due(TargetState.IN_SERVICE, 0)
    hook.done()
    assert not hook.is_due(TargetState.IN_SERVICE, 1_000_000)


@pytest.mark.parametrize("target", [TargetState.OTHER, TargetState.TERMINATED, TargetState.WARMED])
def test_it_is_completed_only_on_the_way_into_service(target: TargetState) -> None:
    hook = LaunchHook()
    assert not hook.is_due(target, 0)
    assert hook.is_due(TargetState.IN_SERVICE, 0)


def test_a_machine_that_comes_back_completes_it_again() -> None:
    hook = LaunchHook()
    hook.done()
    assert not hook.is_due(TargetState.OTHER, 0)
    assert hook.is_due(TargetState.IN_SERVICE, 0)


def test_failed_attempts_come_ever_more_seldom_and_have_an_end() -> None:
    hook, now_s, pauses = LaunchHook(), 0.0, list[float]()
    while not hook.is_given_up:
        assert hook.is_due(TargetState.IN_SERVICE, now_s)
        hook.failed(now_s)
        before_s = now_s
        while not hook.is_due(TargetState.IN_SERVICE, now_s) and not hook.is_given_up:
            now_s += 1
        pauses.append(now_s - before_s)
    assert len(pauses) == LAUNCH_ATTEMPTS_MAX
    assert pauses[0] == LAUNCH_PAUSE_FIRST_S
    assert pauses[:-1] == sorted(pauses[:-1])
    assert max(pauses) == LAUNCH_PAUSE_MAX_S
    assert not hook.is_due(TargetState.IN_SERVICE, now_s + 1_000_000)
    hook.is_due(TargetState.OTHER, now_s)
    assert not hook.is_given_up


def test_who_is_not_waited_for_asks_ever_more_seldom_and_not_for_ever() -> None:
    hook, asked_s = LaunchHook(), list[float]()
    for now_s in range(round(2 * LAUNCH_WAIT_S)):
        if hook.is_due(TargetState.IN_SERVICE, now_s):
            asked_s.append(now_s)
            hook.unwanted(now_s)
    assert asked_s[1] == LAUNCH_PAUSE_FIRST_S
    assert LAUNCH_WAIT_S <= asked_s[-1] <= LAUNCH_WAIT_S + LAUNCH_PAUSE_MAX_S
    pauses = [after - before for before, after in pairwise(asked_s)]
    assert pauses == sorted(pauses)
    assert not hook.is_given_up, "that was no failure"


def test_a_machine_that_comes_back_is_waited_for_anew() -> None:
    hook = LaunchHook()
    hook.unwanted(0)
    hook.is_due(TargetState.OTHER, LAUNCH_WAIT_S)
    assert hook.is_due(TargetState.IN_SERVICE, LAUNCH_WAIT_S)
    hook.unwanted(LAUNCH_WAIT_S)
    assert hook.is_due(TargetState.IN_SERVICE, LAUNCH_WAIT_S + LAUNCH_PAUSE_FIRST_S)
