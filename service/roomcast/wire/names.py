"""The names of channels, and what else of them the Lambdas know.

They share this module, so it needs only the standard library.
"""

from __future__ import annotations

from typing import Final

__all__ = [
    "CHANNEL_BYTES_MAX",
    "NAMESPACE_SEPARATOR",
    "PRESENCE_SHARDS_MAX",
    "RESERVED_PREFIX",
    "USERS_SEPARATOR",
    "is_valid_name",
    "listed_users",
    "personal_channel",
]

CHANNEL_BYTES_MAX: Final = 255
NAMESPACE_SEPARATOR: Final = ":"
# In user-limited channels, the list of users follows the last separator: `dialogue#ann,bob`.
USERS_SEPARATOR: Final = "#"
_BETWEEN_USERS: Final = ","
# Clients cannot name channels with this prefix, because names are printable ASCII. The service's
# own records use it.
RESERVED_PREFIX: Final = "\u0001"
# Presence shards of one channel: each is a query whenever its members are read.
PRESENCE_SHARDS_MAX: Final = 16


def listed_users(channel: str) -> frozenset[str] | None:
    """The users that a channel's name lists. None = it has no list.

    `users_of` decides whether the list applies.
    """
    _, separator, users = channel.rpartition(USERS_SEPARATOR)
    return frozenset(users.split(_BETWEEN_USERS)) if separator else None


def personal_channel(user: str, namespace: str) -> str | None:
    """The channel that only `user` may enter. None if there is none: for anonymous users, and for
    user names that do not fit a channel's name or would let others in.
    """
    channel = f"{namespace}{NAMESPACE_SEPARATOR if namespace else ''}{USERS_SEPARATOR}{user}"
    fits = is_valid_name(channel) and listed_users(channel) == frozenset([user])
    if not user or not fits or (not namespace and NAMESPACE_SEPARATOR in user):
        return None
    return channel


def is_valid_name(channel: str) -> bool:
    """1 to 255 printable ASCII characters (PROTOCOL §5: longer ones are error 107)."""
    return 0 < len(channel) <= CHANNEL_BYTES_MAX and channel.isascii() and channel.isprintable()
