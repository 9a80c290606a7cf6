"""Sends a signal to one other node: straight into its queue, whose name its lease has."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from roomcast.concurrency import SharedCall
from roomcast.delivery.envelope import Signal, pack, signal_text
from roomcast.delivery.ports import Gone, QueuePost
from roomcast.fleet.lease_record import standing
from roomcast.fleet.ports import Leases
from roomcast.ports import Clock, PortError

__all__ = ["LEASES_S", "Mailbox", "NodeUnknown"]

# Leases that were read are good for so long. A node whose queue was replaced is looked up at once.
LEASES_S: Final = 10.0


class NodeUnknown(PortError):
    """No live node has this id."""


class Mailbox:
    """One a node. Delivery is at least once, or not at all if the other node's queue is replaced
    meanwhile.
    """

    def __init__(self, post: QueuePost, leases: Leases, clock: Clock) -> None:
        self._post = post
        self._leases = leases
        self._clock = clock
        # The queues of live nodes, and when they were read (monotonic s).
        self._queues: Mapping[str, str] = {}
        self._read_s = float("-inf")
        self._reading: SharedCall[None] | None = None

    async def send(self, node: str, signal: Signal) -> None:
        """Put `signal` into the queue of `node`. Raises PortError, such as NodeUnknown, and
        ValueError if it does not fit a message.
        """
        body, _ = next(pack([signal_text(signal)], signals=True))
        age_s = self._clock.monotonic_s() - self._read_s
        if age_s > LEASES_S or node not in self._queues:
            await self._read()
        try:
            await self._post.post(self._queue(node), body)
        except Gone:
            # It has another one by now, or is no more.
            await self._read()
            await self._post.post(self._queue(node), body)

    def _queue(self, node: str) -> str:
        queue = self._queues.get(node)
        if queue is None:
            raise NodeUnknown(f"no live node {node!r}")
        return queue

    async def _read(self) -> None:
        """Read the leases. All who ask meanwhile share it."""
        if self._reading is None:
            self._reading = SharedCall(self._read_leases(), self._was_read, name="mailbox leases")
        await self._reading.result()

    def _was_read(self) -> None:
        self._reading = None

    async def _read_leases(self) -> None:
        now_ms, began_s = self._clock.now_ms(), self._clock.monotonic_s()
        leases = await self._leases.all()
        self._queues = {
            lease.node: lease.queue for lease in leases if standing(lease, now_ms) == "live"
        }
        self._read_s = began_s
