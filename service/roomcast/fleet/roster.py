"""The register of this node's connections by user and client id.

Connections are found without a search through the others.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Generic, Protocol, TypeVar

from roomcast.fleet.order_signals import Target

__all__ = ["Present", "Roster"]


class Present(Protocol):
    """A connection whose user is known. It is compared by identity."""

    @property
    def client(self) -> str:
        """Its id, unique over all nodes."""

    @property
    def user(self) -> str:
        """Its user; "" = anonymous."""

    @property
    def session_name(self) -> str:
        """The session of its stream; "" = it has none."""


Connected = TypeVar("Connected", bound=Present)


class Roster(Generic[Connected]):
    """The connections of one node from their `connect` to their end."""

    def __init__(self) -> None:
        self._by_client: dict[str, Connected] = {}
        # By user, then by client id; no inner dictionary is empty. Dictionaries keep an order,
        # which makes tests and logs easier to follow.
        self._by_user: dict[str, dict[str, Connected]] = {}

    def __len__(self) -> int:
        """The number of connections."""
        return len(self._by_client)

    @property
    def users(self) -> int:
        """The number of different users here. All anonymous clients count as one."""
        return len(self._by_user)

    def has(self, client: str) -> bool:
        """Whether the client with this id is connected here."""
        return client in self._by_client

    def of_user(self, user: str) -> int:
        """The number of connections of `user`."""
        return len(self._by_user.get(user, ()))

    def enter(self, connection: Connected) -> None:
        """Add a connection. Its user must not change any more."""
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
        """The connections that match `target`, as of now."""
        found: Iterable[Connected]
        if target.client:
            one = self._by_client.get(target.client)
            found = [one] if one is not None and target.user in (None, one.user) else []
        else:
            found = self._by_user.get(target.user or "", {}).values()
        session = target.session
        return [each for each in found if not session or each.session_name == session]
