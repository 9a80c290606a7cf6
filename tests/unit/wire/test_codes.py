"""service/roomcast/wire/codes.py: numbers that the published SDKs act on."""

from __future__ import annotations

import json
from enum import Enum

import pytest

from roomcast.wire.codes import (
    REASON_BYTES_MAX,
    Disconnect,
    DisconnectCode,
    Error,
    Unsubscribe,
    code_of,
    is_reason,
)

# What an SDK tries again by itself.
TEMPORARY = {100, 111}
# The Centrifuge protocol's own, as far as the service uses them.
ERRORS = {
    100: "internal server error",
    101: "unauthorized",
    102: "unknown channel",
    103: "permission denied",
    104: "method not found",
    105: "already subscribed",
    106: "limit exceeded",
    107: "bad request",
    108: "not available",
    109: "token expired",
    110: "expired",
    111: "too many requests",
    112: "unrecoverable position",
}
DISCONNECTS = {
    3000: "connection closed",
    3001: "shutdown",
    3004: "internal server error",
    3005: "connection expired",
    3006: "subscription expired",
    3008: "slow",
    3010: "insufficient state",
    3012: "no pong",
    3013: "too many requests",
    3500: "invalid token",
    3501: "bad request",
    3502: "stale",
    3503: "force disconnect",
    3504: "connection limit",
    3505: "channel limit",
    3506: "inappropriate protocol",
    3507: "permission denied",
    3508: "not available",
}


def test_errors_are_the_protocols() -> None:
    assert {each.value.code: each.value.message for each in Error} == ERRORS


def test_only_errors_that_may_pass_are_temporary() -> None:
    assert {each.value.code for each in Error if each.value.temporary} == TEMPORARY
    assert {
        each for each in Error if not each.value.temporary and each.value.code in TEMPORARY
    } == {Error.REFUSED}


def test_disconnects_are_the_protocols() -> None:
    assert {each.value.code: each.value.reason for each in Disconnect} == DISCONNECTS


@pytest.mark.parametrize("codes", [Error, Disconnect, Unsubscribe])
def test_no_number_has_two_names(codes: type[Enum]) -> None:
    """But for the one error that is temporary or not."""
    members = [member for member in codes.__members__.values() if member is not Error.REFUSED]
    assert len({member.value.code for member in members}) == len(members)


def test_errors_leave_room_for_the_clients_and_the_applications_own() -> None:
    assert all(100 <= each.value.code < 400 for each in Error)


@pytest.mark.parametrize(
    "code, terminal",
    [
        (3000, False),
        (3499, False),
        (3500, True),
        (3999, True),
        (4000, False),
        (4499, False),
        (4500, True),
        (4999, True),
        (5000, False),
        (1009, False),
    ],
)
def test_sdks_reconnect_below_3500_only(code: int, terminal: bool) -> None:
    assert DisconnectCode(code, "").terminal is terminal


def test_what_another_node_can_serve_is_not_terminal() -> None:
    assert not Disconnect.SHUTDOWN.value.terminal
    assert not Disconnect.SLOW.value.terminal
    assert not Disconnect.EXPIRED.value.terminal
    assert not Disconnect.INSUFFICIENT_STATE.value.terminal
    assert Disconnect.INVALID_TOKEN.value.terminal
    assert Disconnect.BAD_REQUEST.value.terminal


def test_what_closes_a_connection_may_be_the_applications_own() -> None:
    custom = DisconnectCode(4500, "banned")
    assert code_of(custom) is custom
    assert code_of(Disconnect.SHUTDOWN) == DisconnectCode(3001, "shutdown")


def test_a_hole_makes_clients_subscribe_again_and_the_applications_wish_does_not() -> None:
    assert Unsubscribe.INSUFFICIENT_STATE.value.code == 2500
    assert Unsubscribe.EXPIRED.value.code == 2501
    assert Unsubscribe.SERVER.value.code == 2000


@pytest.mark.parametrize("why", [*Disconnect, *Unsubscribe], ids=str)
def test_reasons_fit_a_close_frame_and_are_no_json(why: Disconnect | Unsubscribe) -> None:
    assert why.value.reason
    assert is_reason(why.value.reason)
    # Older SDKs read a JSON reason as orders.
    with pytest.raises(ValueError, match="Expecting value"):
        json.loads(why.value.reason)


@pytest.mark.parametrize(
    "text, is_one",
    [
        ("", True),
        ("bye", True),
        ("é" * (REASON_BYTES_MAX // 2), True),
        ("é" * (REASON_BYTES_MAX // 2 + 1), False),
        ('{"reconnect":true}', False),
        ("1", False),
        ("\ud800", False),
        ("[" * REASON_BYTES_MAX, True),
    ],
)
def test_what_a_close_frame_can_give_as_its_reason(text: str, is_one: bool) -> None:
    """125 bytes, two of them the code; and no JSON, which older SDKs obey."""
    assert is_reason(text) == is_one
