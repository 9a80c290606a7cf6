"""service/roomcast/fleet/badges.py: which node has a client or a session, by its id or name."""

from __future__ import annotations

from uuid import UUID

import pytest

from roomcast.fleet.badges import (
    CLIENT_DIGITS,
    badge_of_client,
    badge_of_node,
    badge_of_session,
    client_id,
    session_name,
)

BADGE = badge_of_node("node-1")


def test_a_badge_is_the_nodes_own_and_stays() -> None:
    assert badge_of_node("node-1") == BADGE
    assert len({badge_of_node(f"node-{number}") for number in range(1000)}) == 1000


@pytest.mark.parametrize("digits", ["0" * CLIENT_DIGITS, "f" * CLIENT_DIGITS])
def test_an_id_says_its_badge_and_is_a_uuid(digits: str) -> None:
    client = client_id(BADGE, digits)
    assert badge_of_client(client) == BADGE
    assert str(UUID(client)) == client
    assert UUID(client).version == 8


def test_each_random_digit_counts() -> None:
    digits = "0123456789abcdef0123456"
    others = {
        client_id(BADGE, digits[:at] + ("1" if digits[at] == "0" else "0") + digits[at + 1 :])
        for at in range(CLIENT_DIGITS)
    }
    assert len(others | {client_id(BADGE, digits)}) == CLIENT_DIGITS + 1


@pytest.mark.parametrize(
    "client",
    ["", "c", BADGE, "0b1f0a6e-7d0c-4a55-9d2e-3c1f5b8a9e01", client_id(BADGE, "0" * 23) + "0"],
)
def test_what_another_release_made_or_nobody_has_no_badge(client: str) -> None:
    assert badge_of_client(client) is None


def test_a_session_says_its_badge() -> None:
    assert badge_of_session(session_name(BADGE, "secret")) == BADGE
    assert badge_of_session("secret") is None
