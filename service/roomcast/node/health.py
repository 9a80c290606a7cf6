"""Judges whether a node can hear and store, for `GET /health/ready`."""

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
    "ShardsHealth",
    "TableHealth",
]

# Receives that fail in a row before a node counts as deaf. Throttled calls end well before that.
DEAF_FAILURES: Final = 5


class Ears(Protocol):
    """The state of the canaries."""

    hearing: Hearing
    latency: Latency | None

    @property
    def silence_s(self) -> float: ...

    @property
    def late_s(self) -> float: ...


class QueueHealth(Protocol):
    """The state of the queue, from the poller."""

    @property
    def is_gone(self) -> bool: ...

    @property
    def failures(self) -> int:
        """The number of receives that failed in a row."""

    @property
    def undeleted(self) -> str:
        """Why messages cannot be deleted and come again and again; "" = they can."""


class GreetingsHealth(Protocol):
    """The state of the greetings."""

    @property
    def hears(self) -> bool:
        """Whether it is proved that the queue gets the topic's messages."""


class TableHealth(Protocol):
    """The state of the channels table."""

    def trouble(self) -> str:
        """A text about the calls that fail; "" = none do."""


class ShardsHealth(Protocol):
    """The state of the topic shards."""

    def trouble(self) -> str:
        """A text about what this node may not hear; "" = it hears all that it should."""


class LeaseHealth(Protocol):
    """The state of the lease."""

    @property
    def failures(self) -> int:
        """The number of heartbeats that failed in a row."""


class IsolationHealth(Protocol):
    """The state of this node in comparison with others."""

    def is_cut_off(self) -> bool:
        """Whether the tables fail for this node, but take writes of others."""


class KeysHealth(Protocol):
    """The state of the keys that verify tokens."""

    @property
    def usable(self) -> bool:
        """False = they were never fetched, or not for too long."""


@dataclass(slots=True)
class Health:
    """The health of a node. A part that is None is not judged.

    Not ready: this node alone cannot hear or store, or is about to end. Degraded: it may not hear
    or store everything. A fault that all nodes share leaves a node ready, because no other node
    would serve its clients better.
    """

    listening: bool = False
    draining: bool = False
    queue: QueueHealth | None = None
    greetings: GreetingsHealth | None = None
    canary: Ears | None = None
    table: TableHealth | None = None
    shards: ShardsHealth | None = None
    lease: LeaseHealth | None = None
    isolation: IsolationHealth | None = None
    keys: KeysHealth | None = None

    def reasons(self) -> list[str]:
        """The reasons why this node is not ready; empty when it is."""
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
        """The reasons why this node is degraded; empty when it is not.

        A degraded node reads from the log what it does not hear, and refuses what fails.
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
        if self.shards is not None and (unheard := self.shards.trouble()):
            doubts.append(f"{unheard}: their channels are read from the log")
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
