"""Badges of nodes: by them, ids of clients and sessions say which node has them.

A node keeps its badge for its life. Its lease has it as well, so the badge leads to the node's
queue, though lease and queue may be replaced. Two nodes may have one badge by chance.
"""

from __future__ import annotations

import re
from hashlib import sha256
from typing import Final

__all__ = [
    "CLIENT_DIGITS",
    "badge_of_client",
    "badge_of_node",
    "badge_of_session",
    "client_id",
    "session_name",
]

_BADGE_CHARS: Final = 8
# Random hexadecimal digits of a client's id. Of the bits of one of them, two are not used.
CLIENT_DIGITS: Final = 23

_BADGE: Final = re.compile(r"[0-9a-f]{8}")
_CLIENT: Final = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-8[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}")


def badge_of_node(node: str) -> str:
    """The badge of the node whose first lease has the id `node`: eight hexadecimal digits."""
    return sha256(node.encode()).hexdigest()[:_BADGE_CHARS]


def client_id(badge: str, digits: str) -> str:
    """The id of a client: a UUID of version 8 (RFC 9562 §5.8) that begins with `badge`.

    `digits`: CLIENT_DIGITS random ones.
    """
    variant = "89ab"[int(digits[7], 16) & 3]
    return f"{badge}-{digits[:4]}-8{digits[4:7]}-{variant}{digits[8:11]}-{digits[11:]}"


def session_name(badge: str, secret: str) -> str:
    """The name of a session. `secret`: what nobody can guess."""
    return badge + secret


def badge_of_client(client: str) -> str | None:
    """The badge of the node that made this id. None: a node of an older release did, or nobody."""
    return client[:_BADGE_CHARS] if _CLIENT.fullmatch(client) else None


def badge_of_session(session: str) -> str | None:
    """The badge of the node that made this name. None: no node did."""
    return session[:_BADGE_CHARS] if _BADGE.match(session) else None
