"""Finds the address that a request comes from: the peer's own, or the one that trusted proxies
report.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from typing import Final

__all__ = ["FORWARDED_MAX", "Addresses"]

# Entries of X-Forwarded-For that are read, counted from the last. No chain of one's own proxies is
# longer.
FORWARDED_MAX: Final = 8
# Lengths of the IPv6 prefixes that one customer gets: at the least, often and at the most. A limit
# on single addresses would not bind, because one customer has as many as they want.
_PREFIXES_V6: Final = (64, 56, 48)

_Address = ipaddress.IPv4Address | ipaddress.IPv6Address


class Addresses:
    """Addresses of clients.

    `trusted`: networks of proxies. X-Forwarded-For is believed only if one of them sent it.
    """

    def __init__(self, trusted: Sequence[str]) -> None:
        """Raises ValueError for an entry that is not a network."""
        self._trusted = [ipaddress.ip_network(each) for each in trusted]

    def client(self, peer: str, forwarded: Sequence[str]) -> tuple[str, ...]:
        """The client's address. For IPv6: its networks, from the narrowest on (/64, /56 and /48).

        `forwarded`: the X-Forwarded-For headers in their order.

        Each proxy appends the address of its caller. Read from the end, the first address that is
        not trusted is the client's. The client wrote the entries before it, so they are ignored.
        """
        address = _parsed(peer)
        if address is None:
            # The peer has no IP address (a Unix socket): all such peers share one bucket.
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
    """Strips the port, which some proxies append: `192.0.2.1:4711`, `[2001:db8::1]:4711`."""
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
