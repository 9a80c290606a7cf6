"""How many descriptors this process may have, and how they are shared out.

Its sockets to AWS must never be missing.
"""

from __future__ import annotations

import resource
from dataclasses import dataclass
from typing import Final

__all__ = ["RESERVED", "Places", "places", "widened"]

# For all that is no client's: pools of connections to AWS, the JWKS endpoint, instance metadata,
# name resolution, the event loop, standard streams, and what the application's hooks open.
RESERVED: Final = 256
# Of the places, a tenth and between these many are for who is not a client: who is not let in yet,
# refused, or speaks plain HTTP, such as the load balancer's health checks. They leave within
# seconds.
_STRANGERS_MIN, _STRANGERS_MAX = 1, 256
# Beyond `client.connection_limit`, when that is what bounds the places: as many as come at once in
# a storm, and are told to go elsewhere.
_REFUSED_MIN: Final = 64


@dataclass(frozen=True, slots=True)
class Places:
    """`sockets`: connections that may be open at once, whatever they are.

    `clients`: of them, those of clients.
    """

    sockets: int
    clients: int


def widened() -> int:
    """Raise this process's limit on descriptors to what it may raise it to. What it is then."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == hard:
        return soft
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    except (OSError, ValueError):
        # Where the hard limit is none at all, the kernel has one of its own that it does not tell.
        return soft
    return hard


def places(descriptors: int, connection_limit: int) -> Places:
    """How many connections there may be. `connection_limit`: `client.connection_limit`, 0 = none.

    A process with few descriptors keeps half of them for itself.
    """
    assert descriptors > 0, "the limit is a number"
    sockets = max(1, descriptors - min(RESERVED, (descriptors + 1) // 2))
    strangers = min(max(_STRANGERS_MIN, sockets // 10), _STRANGERS_MAX)
    clients = max(1, sockets - strangers)
    if not connection_limit or connection_limit >= clients:
        return Places(sockets, clients)
    refused = max(_REFUSED_MIN, connection_limit // 4)
    return Places(min(sockets, connection_limit + refused), connection_limit)
