"""Whose address counts: the peer's, unless a trusted proxy says whose it is."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from roomcast.gateway.address import FORWARDED_MAX, Addresses

PROXIES = ("10.0.0.0/8", "fd00::/8")


@pytest.mark.parametrize(
    "peer, forwarded, client",
    [
        ("203.0.113.9", [], "203.0.113.9"),
        # Who is not trusted may write what it likes.
        ("203.0.113.9", ["198.51.100.1"], "203.0.113.9"),
        ("10.1.2.3", ["198.51.100.1"], "198.51.100.1"),
        ("10.1.2.3", [], "10.1.2.3"),
        # What its client wrote stands before what the proxy added.
        ("10.1.2.3", ["1.1.1.1, 198.51.100.1"], "198.51.100.1"),
        ("10.1.2.3", ["1.1.1.1", "198.51.100.1"], "198.51.100.1"),
        ("10.1.2.3", ["1.1.1.1, 198.51.100.1, 10.9.9.9"], "198.51.100.1"),
        ("10.1.2.3", ["198.51.100.1:4711"], "198.51.100.1"),
        ("10.1.2.3", ["unknown"], "10.1.2.3"),
        ("10.1.2.3", ["1.1.1.1, unknown"], "10.1.2.3"),
        ("10.1.2.3", [""], "10.1.2.3"),
        ("::ffff:10.1.2.3", ["198.51.100.1"], "198.51.100.1"),
        (
            "2001:db8:1:234:3:4:5:6",
            [],
            "2001:db8:1:234::/64 2001:db8:1:200::/56 2001:db8:1::/48",
        ),
        ("fd00::1", ["[2001:db8:1:2::9]:443"], "2001:db8:1:2::/64 2001:db8:1::/56 2001:db8:1::/48"),
        ("fe80::1%eth0", [], "fe80::/64 fe80::/56 fe80::/48"),
        ("", ["198.51.100.1"], ""),
        ("10.1.2.3", ["198.51.100.1" + ", 10.0.0.1" * FORWARDED_MAX], "10.0.0.1"),
    ],
)
def test_the_last_one_who_is_not_trusted_is_the_client(
    peer: str, forwarded: list[str], client: str
) -> None:
    assert " ".join(Addresses(PROXIES).client(peer, forwarded)) == client


@given(st.ip_addresses(v=4).map(str), st.lists(st.text(max_size=60), max_size=20))
def test_without_trusted_proxies_no_header_counts(peer: str, forwarded: list[str]) -> None:
    assert Addresses(()).client(peer, forwarded) == Addresses(()).client(peer, [])


@given(st.lists(st.text(max_size=60), max_size=20))
def test_any_header_gives_an_address(forwarded: list[str]) -> None:
    assert Addresses(PROXIES).client("10.1.2.3", forwarded)
