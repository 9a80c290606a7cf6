"""Whether a node can hear and store: what `GET /health/ready` tells."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Protocol

from roomcast.delivery.canary_rules import Hearing, Latency
from roomcast.log.watched_table import FAILURES_TOLD

__all__ = [
    "DEAF_FAILURES",
    "Ears",
    "GreetingsHealth",
    "Health",
    "IsolationHealth",
    "KeysHealth",
    "LeaseHealth",
    "QueueHealth",
    "TableHealth",
]

# Receives that fail in a row before a node counts as deaf: well over the time that a throttled call
# takes.
DEAF_FAILURES: Final = 5


class Ears(Protocol):
    """What the canary knows."""

    hearing: Hearing
    latency: Latency | None

    @property
    def silence_s(self) -> float: ...

    @property
    def late_s(self) -> float: ...


class QueueHealth(Protocol):
    """What the poller knows."""

    @property
    def is_gone(self) -> bool: ...

    @property
    def failures(self) -> int:
        """Receives that failed in a row."""

    @property
    def undeleted(self) -> str:
        """Why messages cannot be deleted, "" = they can: they come again and again."""


class GreetingsHealth(Protocol):
    """What greetings prove."""

    @property
    def hears(self) -> bool:
        """Whether the queue was proved to bring what the topic gets."""


class TableHealth(Protocol):
    """What the watch of the channels table knows."""

    def trouble(self) -> str:
        """What fails of its calls, "" = nothing does."""


class LeaseHealth(Protocol):
    """What the keeper of the lease knows."""

    @property
    def failures(self) -> int:
        """Heartbeats that were not taken since the last that was."""


class IsolationHealth(Protocol):
    """What this node knows of others."""

    def is_cut_off(self) -> bool:
        """The tables do not answer this node, and take what others write."""


class KeysHealth(Protocol):
    """The keys that tokens are verified with."""

    @property
    def usable(self) -> bool:
        """False: they could not be fetched, or not for too long."""


@dataclass(slots=True)
class Health:
    """What readiness rests on; of a part that is None nothing is said.

    Not ready: this node alone cannot hear or store, or is about to end. Degraded: it may not hear
    or store all. A fault of everybody's leaves it ready: no other node would serve its clients
    better.
    """

    listening: bool = False
    draining: bool = False
    queue: QueueHealth | None = None
    greetings: GreetingsHealth | None = None
    canary: Ears | None = None
    table: TableHealth | None = None
    lease: LeaseHealth | None = None
    isolation: IsolationHealth | None = None
    keys: KeysHealth | None = None

    def reasons(self) -> list[str]:
        """Why this node is not ready; empty when it is."""
        reasons = []
        if not self.listening:
            reasons.append("starting: clients are not let in yet")
        if self.draining:
            reasons.append("draining: this node is about to end")
        if self._is_deaf():
            reasons.append("deaf: the queue cannot be received from")
        if self.canary is not None and self.canary.hearing is Hearing.DEAF:
            reasons.append("deaf: other nodes heard newer canaries; this one tries new queues")
        if self.isolation is not None and self.isolation.is_cut_off():
            reasons.append(
                "cut off: the tables do not answer this node, and take what other nodes write"
            )
        return reasons

    def doubts(self) -> list[str]:
        """Why this node is degraded though ready.

        What it does not hear it reads from the log, and what fails is refused.
        """
        doubts = []
        if self.greetings is not None and not self.greetings.hears:
            doubts.append("the queue has not brought a greeting of this node yet")
        if self.queue is not None and (undeleted := self.queue.undeleted):
            doubts.append(f"messages cannot be deleted: {undeleted}")
        if self.keys is not None and not self.keys.usable:
            doubts.append(
                "no keys from client.token.jwks_public_endpoint:"
                " clients with their tokens have to wait"
            )
        if self.table is not None and (table := self.table.trouble()):
            doubts.append(f"the channels table fails: {table} in a row")
        if self.lease is not None and (failed := self.lease.failures) >= FAILURES_TOLD:
            doubts.append(f"the nodes table fails: {failed} heartbeats in a row")
        if self.canary is None or self.canary.hearing is not Hearing.SILENT:
            return doubts
        if late_s := self.canary.late_s:
            doubts.append(
                f"what was written {late_s:.0f} s ago has not come through the queue:"
                " the pipeline is silent, as far as this node can tell"
            )
        else:
            doubts.append(
                f"no canary came for {self.canary.silence_s:.0f} s:"
                " the pipeline is silent, as far as this node can tell"
            )
        return doubts

    def _is_deaf(self) -> bool:
        queue = self.queue
        return queue is not None and (queue.is_gone or queue.failures >= DEAF_FAILURES)
