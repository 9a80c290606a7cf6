"""Keeps and encodes the members of one channel.

The members of this node are kept as they come and go, those of other nodes as they were read.

Each member is encoded once, and lists are joined from these parts. So many requests cost little,
also while members come and go. And of a list that is too large no more is encoded than shows that
it is.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from itertools import islice
from typing import Final

from roomcast.wire.encoding import Unencodable, encode_member
from roomcast.wire.publication import ClientInfo

__all__ = ["Crowd", "ListTooLarge", "encoded", "listing", "together", "totals"]


# Bytes of a member's part of a list, besides the user once and the client id twice:
# "":{"user":"","client":""} and a comma.
_PART_BYTES_MIN: Final = 27


class ListTooLarge(Exception):
    """The list is larger than the caller's bound."""


class Crowd:
    """The members of one channel by client id."""

    __slots__ = ("_parts", "bytes_min", "infos", "parts_bytes", "users")

    def __init__(self) -> None:
        self.infos: dict[str, ClientInfo] = {}
        # The number of members by user.
        self.users: Counter[str] = Counter()
        # A lower bound on the bytes of all parts of a list, known without encoding them.
        self.bytes_min = 0
        # The parts of a list that were made for earlier ones: of the first members in `infos`, in
        # its order; and their size, with a comma each.
        self._parts: dict[str, bytes] = {}
        self.parts_bytes = 0

    def __len__(self) -> int:
        return len(self.infos)

    def add(self, info: ClientInfo) -> None:
        """Add a member. It replaces an earlier one of the same client."""
        self.discard(info.client)
        self.infos[info.client] = info
        self.users[info.user] += 1
        self.bytes_min += _bytes_min(info)

    def discard(self, client: str) -> None:
        """Idempotent."""
        info = self.infos.pop(client, None)
        if info is None:
            return
        self.users[info.user] -= 1
        if not self.users[info.user]:
            del self.users[info.user]
        self.bytes_min -= _bytes_min(info)
        if (part := self._parts.pop(client, None)) is not None:
            self.parts_bytes -= len(part) + 1

    def parts(self, bytes_max: int) -> Collection[bytes]:
        """Each member's part of a list; b"" for one who cannot be encoded.

        Raises ListTooLarge as soon as the parts, with a comma each, exceed `bytes_max`.
        """
        for info in islice(self.infos.values(), len(self._parts), None):
            if self.parts_bytes > bytes_max:
                break
            part = _part(info)
            self._parts[info.client] = part
            self.parts_bytes += len(part) + 1
        if self.parts_bytes > bytes_max:
            raise ListTooLarge
        return self._parts.values()


def encoded(members: Iterable[ClientInfo]) -> list[bytes]:
    """Each member's part of a list, but of those who cannot be encoded."""
    return [part for info in members if (part := _part(info))]


def _part(info: ClientInfo) -> bytes:
    try:
        return encode_member(info)
    except Unencodable:
        # A member that cannot be encoded must not hide the others.
        return b""


def _bytes_min(info: ClientInfo) -> int:
    return _PART_BYTES_MIN + 2 * len(info.client) + len(info.user)


def together(own: Crowd, others: Crowd) -> Mapping[str, ClientInfo]:
    """All members by client id."""
    return {**others.infos, **own.infos}


def totals(own: Crowd, others: Crowd) -> tuple[int, int]:
    """The numbers of clients and of users. A client is in one of the two crowds at most."""
    more, fewer = (own, others) if len(own.users) > len(others.users) else (others, own)
    users = len(more.users) + sum(user not in more.users for user in fewer.users)
    return len(own) + len(others), users


def listing(own: Crowd, others: Crowd, bytes_max: int) -> bytes:
    """The JSON object of all members' infos by client id.

    Raises ListTooLarge beyond `bytes_max`.
    """
    # Do not encode many members for a list that is refused.
    if own.bytes_min + others.bytes_min > bytes_max:
        raise ListTooLarge
    # Two braces, and one comma less than parts.
    parts_max = bytes_max - 1
    there = others.parts(parts_max - own.parts_bytes)
    here = own.parts(parts_max - others.parts_bytes)
    return b"{%b}" % b",".join(filter(None, (*there, *here)))
