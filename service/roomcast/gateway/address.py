"""Whose address a request comes from: the peer's, or what proxies that are trusted say of it."""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from typing import Final

__all__ = ["FORWARDED_MAX", "Addresses"]

# Entries of X-Forwarded-For that are looked at, from the last one: there are no longer chains of
# proxies of one's own.
FORWARDED_MAX: Final = 8
# What one customer gets of IPv6 at the least, often and at the most: single addresses are as many
# as somebody wants.
_PREFIXES_V6: Final = (64, 56, 48)

_Address = ipaddress.IPv4Address | ipaddress.IPv6Address


class Addresses:
    """Addresses of clients.

    `trusted`: networks whose hosts say the truth about who called them; others say what they like.
    """

    def __init__(self, trusted: Sequence[str]) -> None:
        """Raises ValueError for what is no network."""
        self._trusted = [ipaddress.ip_network(each) for each in trusted]

    def client(self, peer: str, forwarded: Sequence[str]) -> tuple[str, ...]:
        """The client's address; of IPv6 its networks from the narrowest on: /64, /56 and /48.

        `forwarded`: the X-Forwarded-For headers in their order.

        Each proxy appends whom it was called by. From the end, the first one who is not trusted is
        the client: what stands before was written by itself.
        """
        address = _parsed(peer)
        if address is None:
            # No socket of the internet: those who come through it have one bucket.
            return (peer,)
        entries = (
            ",".join(forwarded).rsplit(",", FORWARDED_MAX)[-FORWARDED_MAX:] if forwarded else []
        )
        for entry in reversed(entries):
            if not self._is_trusted(address):
                break
            before = _parsed(_without_port(entry.strip()))
            if before is None:
                break
            address = before
        return _named(address)

    def _is_trusted(self, address: _Address) -> bool:
        return any(address in network for network in self._trusted)


def _parsed(text: str) -> _Address | None:
    try:
        address = ipaddress.ip_address(text.partition("%")[0])
    except ValueError:
        return None
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return mapped or address


def _without_port(entry: str) -> str:
    """`192.0.2.1:4711` and `[2001:db8::1]:4711`, as some proxies write it."""
    if entry.startswith("["):
        return entry[1:].partition("]")[0]
    host, _, port = entry.partition(":")
    return host if port.isdigit() and "." in host else entry


def _named(address: _Address) -> tuple[str, ...]:
    if isinstance(address, ipaddress.IPv6Address):
        return tuple(
            str(ipaddress.ip_network((address, prefix), strict=False)) for prefix in _PREFIXES_V6
        )
    return (str(address),)
