"""Cookies and tickets: signed, for one purpose, and with an end."""

from __future__ import annotations

import pytest

from roomcast.admin.sessions import TICKET_S, TOKEN_CHARS_MAX, Session, Signer

NOW_S = 1_000_000.0
SESSION = Session(1_000_600, "a-random-name")


@pytest.fixture
def signer() -> Signer:
    return Signer("a hash")


def test_a_cookie_is_good_until_its_session_ends(signer: Signer) -> None:
    cookie = signer.cookie(SESSION)
    assert signer.session_of("cookie", cookie, NOW_S) == SESSION
    assert signer.session_of("cookie", cookie, SESSION.ends_at - 0.1) == SESSION
    assert signer.session_of("cookie", cookie, SESSION.ends_at) is None


def test_every_node_with_the_hash_takes_it_and_another_hash_ends_it(signer: Signer) -> None:
    cookie = signer.cookie(SESSION)
    assert Signer("a hash").session_of("cookie", cookie, NOW_S) == SESSION
    assert Signer("another hash").session_of("cookie", cookie, NOW_S) is None


def test_a_ticket_is_short_and_keeps_the_end_of_its_session(signer: Signer) -> None:
    ticket = signer.ticket(SESSION, NOW_S)
    assert signer.session_of("ticket", ticket, NOW_S + TICKET_S - 1) == SESSION
    assert signer.session_of("ticket", ticket, NOW_S + TICKET_S) is None
    late = signer.ticket(SESSION, SESSION.ends_at - 1)
    assert signer.session_of("ticket", late, SESSION.ends_at) is None


def test_neither_is_taken_for_the_other(signer: Signer) -> None:
    assert signer.session_of("ticket", signer.cookie(SESSION), NOW_S) is None
    assert signer.session_of("cookie", signer.ticket(SESSION, NOW_S), NOW_S) is None


def test_what_was_changed_is_not_taken(signer: Signer) -> None:
    cookie = signer.cookie(SESSION)
    for place in range(len(cookie)):
        for other in ("0", "9", "A", "."):
            changed = cookie[:place] + other + cookie[place + 1 :]
            if changed != cookie:
                assert signer.session_of("cookie", changed, NOW_S) is None, changed


@pytest.mark.parametrize("token", ["", ".", "...", "1.1.a.b", "é" * 20, "9" * TOKEN_CHARS_MAX * 2])
def test_what_is_no_token_is_not_taken(signer: Signer, token: str) -> None:
    assert signer.session_of("cookie", token, NOW_S) is None
