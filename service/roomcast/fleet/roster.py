"""Who is connected here.

Connections are found by user and by client id, without looking at the others.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Generic, Protocol, TypeVar

from roomcast.fleet.order_signals import Target

__all__ = ["Present", "Roster"]


class Present(Protocol):
    """A connection that has said who it is. Its identity is the object's."""

    @property
    def client(self) -> str:
        """Its id, unique over all nodes."""

    @property
    def user(self) -> str:
        """Empty = without a name."""


Connected = TypeVar("Connected", bound=Present)


class Roster(Generic[Connected]):
    """The connections of one node from their `connect` to their end."""

    def __init__(self) -> None:
        self._by_client: dict[str, Connected] = {}
        # None of them is empty. Dictionaries for their order: tests and logs are easier to follow.
        self._by_user: dict[str, dict[str, Connected]] = {}

    def __len__(self) -> int:
        """Connections."""
        return len(self._by_client)

    @property
    def users(self) -> int:
        """How many different users have connections here, those without a name as one."""
        return len(self._by_user)

    def has(self, client: str) -> bool:
        """Whether the client with this id is connected here."""
        return client in self._by_client

    def of_user(self, user: str) -> int:
        """Connections of `user`."""
        return len(self._by_user.get(user, ()))

    def enter(self, connection: Connected) -> None:
        """Its user must not change from now on."""
        self._by_client[connection.client] = connection
        self._by_user.setdefault(connection.user, {})[connection.client] = connection

    def leave(self, connection: Connected) -> None:
        """Idempotent."""
        if self._by_client.get(connection.client) is not connection:
            return
        del self._by_client[connection.client]
        of_user = self._by_user[connection.user]
        del of_user[connection.client]
        if not of_user:
            del self._by_user[connection.user]

    def find(self, target: Target) -> Sequence[Connected]:
        """The connections that `target` means, as they are now."""
        if target.session:
            # Sessions are for transports that are not one lasting connection, and WebSocket is.
            return []
        if target.client:
            found = self._by_client.get(target.client)
            return [found] if found is not None and target.user in (None, found.user) else []
        return list(self._by_user.get(target.user or "", {}).values())
