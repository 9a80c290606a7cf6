"""Shares this process's descriptors out between clients, other connections and AWS.

There must always be enough for the sockets to AWS.
"""

from __future__ import annotations

import resource
from dataclasses import dataclass
from typing import Final

__all__ = ["RESERVED", "Places", "places", "widened"]

# Descriptors that are not for clients: connections to AWS, the JWKS endpoint, instance metadata,
# name resolution, the event loop, standard streams, and the application's hooks.
RESERVED: Final = 256
# Bounds of the places for connections that are no clients, which are a tenth of all places. These
# connections are not let in yet, are refused, or use plain HTTP, as health checks of a load
# balancer do. They end within seconds.
_STRANGERS_MIN, _STRANGERS_MAX = 1, 256
# Places beyond `client.connection_limit`, when that bounds the places: for connections that come at
# once in a storm and are refused.
_REFUSED_MIN: Final = 64
# Bounds of the places that only the internal port has, which are a tenth of all: health checks,
# monitoring and back ends get in while clients, or whoever floods their port, have all the others.
_INTERNAL_MIN, _INTERNAL_MAX = 1, 1024


@dataclass(frozen=True, slots=True)
class Places:
    """`sockets`: connections of any kind that may be open at once at the port of clients.

    `clients`: how many of them may be clients. `internal`: connections that may be open at the
    internal port, besides; 0 = there is none.
    """

    sockets: int
    clients: int
    internal: int = 0


def widened() -> int:
    """Raise this process's limit on descriptors as far as allowed. Returns the new limit."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == hard:
        return soft
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    except (OSError, ValueError):
        # Without a hard limit, the kernel has a limit of its own that it does not report.
        return soft
    return hard


def places(
    descriptors: int, connection_limit: int, *, has_internal_port: bool = False, back_ends: int = 0
) -> Places:
    """The places for connections. `connection_limit`: `client.connection_limit`, 0 = no limit.
    `back_ends`: connections that hooks over HTTP may have.

    A process with few descriptors keeps half of them for itself.
    """
    assert descriptors > 0, "the limit is a number"
    sockets = max(1, descriptors - min(RESERVED + back_ends, (descriptors + 1) // 2))
    internal = 0
    if has_internal_port:
        internal = min(max(_INTERNAL_MIN, sockets // 10), _INTERNAL_MAX)
        sockets = max(1, sockets - internal)
    strangers = min(max(_STRANGERS_MIN, sockets // 10), _STRANGERS_MAX)
    clients = max(1, sockets - strangers)
    if not connection_limit or connection_limit >= clients:
        return Places(sockets, clients, internal)
    refused = max(_REFUSED_MIN, connection_limit // 4)
    return Places(min(sockets, connection_limit + refused), connection_limit, internal)
