"""The port of a queue that back ends send to, and that all nodes receive from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from roomcast.consumers.messages import QueueMessage

__all__ = ["WorkQueue"]


class WorkQueue(Protocol):
    """A message is given to one receiver at a time, and hidden from the others meanwhile.

    It is delivered at least once, until it is deleted or expires. Messages of one group, which only
    FIFO queues have, come in their order, and none as long as one of them is hidden.
    """

    @property
    def url(self) -> str: ...

    async def receive(self) -> Sequence[QueueMessage]:
        """Long poll: up to 10 messages. Raises Gone, Throttled, UnknownOutcome, Rejected."""

    async def delete(self, receipts: Sequence[str]) -> None:
        """Take messages out of the queue, in batches of 10.

        Raises Gone, Throttled, UnknownOutcome, Rejected when some may not be deleted: they come
        again. One that is already deleted counts as success.
        """

    async def hide(self, pauses: Mapping[str, int]) -> None:
        """Let messages come again after so many seconds from now, by receipt; 0 = at once.

        Raises as `delete` does: some then come when their visibility time-out is over.
        """

    async def receives_max(self) -> int:
        """How often a message is received before the queue moves it to its dead-letter queue; 0 =
        it has none. Raises Gone, Throttled, UnknownOutcome, Rejected.
        """
