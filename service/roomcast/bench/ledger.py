"""The ledger of a run: what was published, what came, and what should have come.

A publication is known by its channel and its number there, both from 0 on. Times are in s of one
clock. The ledger is told everything in the order in which it happens.
"""

from __future__ import annotations

from array import array
from collections import Counter
from dataclasses import dataclass, field
from typing import Final

from roomcast.bench.histogram import LatencyHistogram
from roomcast.bench.plan import Plan

__all__ = ["Ledger", "Missing"]

_MICRO: Final = 1_000_000
# What acknowledges and received are: a byte for each publication.
_YES: Final = 1


@dataclass(slots=True)
class _Channel:
    """By number: when each publication was sent, by which publisher, to which address, and whether
    it was acknowledged.
    """

    sent_s: array[float] = field(default_factory=lambda: array("d"))
    publisher: array[int] = field(default_factory=lambda: array("l"))
    address: array[int] = field(default_factory=lambda: array("l"))
    acknowledged: bytearray = field(default_factory=bytearray)
    # (epoch, offset) → number.
    places: dict[tuple[str, int], int] = field(default_factory=dict)


@dataclass(slots=True)
class _Subscription:
    """`first`: what has a lower number was sent before it began, and is not owed.

    `excused`: what has a lower number and is missing was missed while the client was away, and the
    server did not say that it recovered it. `offset`: the last one seen, None = none yet.
    """

    channel: int
    address: int
    first: int
    excused: int = 0
    epoch: str = ""
    offset: int | None = None
    received: bytearray = field(default_factory=bytearray)
    is_live: bool = True


@dataclass(frozen=True, slots=True)
class Missing:
    """Acknowledged publications that did not come. `away`: to clients that were not there."""

    lost: int = 0
    away: int = 0


class Ledger:
    """What happened in a run of `plan`, up to now."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._channels = [_Channel() for _ in range(plan.channels)]
        self._subscriptions: dict[tuple[int, int], _Subscription] = {}
        # Connections. `problems`: failed connects, by reason. `closes`: ended connections, by
        # reason.
        self.connect_us = LatencyHistogram()
        self.connected: set[int] = set()
        # Those of them whose connection ended, and who are not back.
        self.gone: set[int] = set()
        self.reconnects = 0
        self.problems: Counter[str] = Counter()
        self.closes: Counter[str] = Counter()
        # Publications. `not_sent`: nobody could send them, or it was too late. `late_us`: how long
        # after its time one was sent at most.
        self.acknowledged_us = LatencyHistogram()
        self.sent = self.not_sent = self.refused = self.late_us = 0
        # Those whose answer cannot come any more.
        self._abandoned = 0
        self.refusals: Counter[str] = Counter()
        self.first_sent_s = 0.0
        # Deliveries.
        self.same_us, self.other_us = LatencyHistogram(), LatencyHistogram()
        self.received = self.repeated = self.out_of_order = self.foreign = 0
        self.last_received_s = 0.0

    # ---- connections

    def came(self, client: int, took_us: int) -> None:
        """A client is connected and has all its subscriptions."""
        if client in self.connected:
            self.reconnects += 1
            self.gone.discard(client)
            return
        self.connected.add(client)
        self.connect_us.record(took_us)

    def went(self, client: int, reason: str) -> None:
        """A client's connection ended, though it should not have."""
        self.closes[reason] += 1
        self.gone.add(client)
        for channel in self._plan.channels_of(client):
            if (subscription := self._subscriptions.get((client, channel))) is not None:
                subscription.is_live = False

    def subscribed(
        self,
        client: int,
        channel: int,
        position: tuple[str, int] | None = None,
        *,
        recovered: bool = False,
    ) -> None:
        """A client is subscribed, for the first time or again. `position`: (epoch, offset) of the
        reply; None = it has none. `recovered`: what was missed since the last time comes now.
        """
        sent = len(self._channels[channel].sent_s)
        subscription = self._subscriptions.get((client, channel))
        if subscription is None:
            subscription = _Subscription(channel, self._plan.address_of(client), sent)
            self._subscriptions[client, channel] = subscription
        elif not recovered:
            # What was on its way when it subscribed may come yet. What does not is excused as well.
            subscription.excused = sent
        subscription.is_live = True
        if not recovered:
            subscription.epoch, subscription.offset = position or ("", None)

    def unsubscribed(self, client: int, channel: int) -> None:
        """The server ended a subscription."""
        self._subscriptions[client, channel].is_live = False

    def position(self, client: int, channel: int) -> tuple[str, int] | None:
        """(epoch, offset) from which the client recovers, or None."""
        subscription = self._subscriptions.get((client, channel))
        if subscription is None or not subscription.epoch or subscription.offset is None:
            return None
        return subscription.epoch, subscription.offset

    # ---- publications

    def publishes(self, channel: int, publisher: int, now_s: float, late_s: float) -> int:
        """A publication is about to be sent, `late_s` after its time. Returns its number in the
        channel.
        """
        if not self.sent:
            self.first_sent_s = now_s
        self.sent += 1
        self.late_us = max(self.late_us, int(late_s * _MICRO))
        published = self._channels[channel]
        published.sent_s.append(now_s)
        published.publisher.append(publisher)
        published.address.append(self._plan.address_of(publisher))
        published.acknowledged.append(0)
        return len(published.sent_s) - 1

    def acknowledges(self, channel: int, number: int, now_s: float) -> None:
        """The server said that it has it."""
        published = self._channels[channel]
        assert not published.acknowledged[number], "it is answered once"
        published.acknowledged[number] = _YES
        self.acknowledged_us.record(int((now_s - published.sent_s[number]) * _MICRO))

    def refuses(self, reason: str) -> None:
        """The server said that it did not take one, or that it does not know."""
        self.refused += 1
        self.refusals[reason] += 1

    def abandons(self, count: int) -> None:
        """Connections ended with so many publications that were not answered."""
        self._abandoned += count

    @property
    def unanswered(self) -> int:
        return self.sent - self.acknowledged_us.count - self.refused

    @property
    def awaited(self) -> int:
        """Publications whose answer may yet come."""
        return self.unanswered - self._abandoned

    # ---- deliveries

    def delivered(
        self, client: int, channel: int, number: int, offset: int | None, now_s: float
    ) -> None:
        """A publication came to a subscriber. `offset`: None where there is no history."""
        subscription = self._subscriptions[client, channel]
        published = self._channels[channel]
        if not 0 <= number < len(published.sent_s):
            self.foreign += 1
            return
        received = subscription.received
        if number >= len(received):
            received.extend(bytes(number + 1 - len(received)))
        if received[number]:
            self.repeated += 1
            return
        received[number] = _YES
        self.received += 1
        self.last_received_s = now_s
        if offset is not None:
            before, subscription.offset = subscription.offset, offset
            content = published.places.setdefault((subscription.epoch, offset), number)
            if (before is not None and offset != before + 1) or content != number:
                self.out_of_order += 1
        took_us = int((now_s - published.sent_s[number]) * _MICRO)
        same = published.address[number] == subscription.address
        (self.same_us if same else self.other_us).record(took_us)

    def passed(self, client: int, channel: int, offset: int | None) -> None:
        """A publication of somebody else came: it has its place in the order."""
        self.foreign += 1
        if offset is not None:
            self._subscriptions[client, channel].offset = offset

    def missing(self) -> Missing:
        """What is missing now."""
        lost = away = 0
        for subscription in self._subscriptions.values():
            published = self._channels[subscription.channel].acknowledged
            owed = _bits(published) & ~_bits(subscription.received) & ~_below(subscription.first)
            excused = owed & _below(subscription.excused) if subscription.is_live else owed
            away += excused.bit_count()
            lost += (owed ^ excused).bit_count()
        return Missing(lost, away)

    def swapped(self) -> int:
        """Publications of a client that stand in the log before one that it sent earlier, in the
        same channel.
        """
        count = 0
        for channel in self._channels:
            latest: dict[tuple[str, int], int] = {}
            for (epoch, _), number in sorted(channel.places.items()):
                publisher = channel.publisher[number]
                if publisher >= 0:
                    count += number < latest.get((epoch, publisher), number)
                    latest[epoch, publisher] = number
        return count


def _bits(flags: bytearray) -> int:
    """Flags of a byte each as one number, whose set bits are counted quickly."""
    return int.from_bytes(flags, "little")


def _below(number: int) -> int:
    """All flags below `number`."""
    return (1 << 8 * number) - 1
