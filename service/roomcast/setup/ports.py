"""What is read of a deployment's set-up. Nothing is changed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from roomcast.account.readings import Key
from roomcast.setup.readings import (
    Function,
    Queue,
    StreamMapping,
    Subscription,
    Table,
    Topic,
)

__all__ = ["SetupReader"]


class SetupReader(Protocol):
    """The calls that the checks need. Each raises NotAllowed, or another PortError.

    None = there is no such thing.
    """

    async def table(self, name: str) -> Table | None:
        """Without `expires_by`."""

    async def expires_by(self, table: str) -> str: ...

    async def mappings(self, stream_arn: str) -> Sequence[StreamMapping]: ...

    async def function(self, name: str) -> Function: ...

    async def topic(self, arn: str) -> Topic | None: ...

    async def subscription(self, arn: str) -> Subscription | None: ...

    async def queue(self, url: str) -> Queue | None: ...

    async def key(self, key: str) -> Key: ...
