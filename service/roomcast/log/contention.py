"""Decides the turns of nodes that append to the same channel.

Theory of operation. An append is a race for the next offset, and the winner knows the new tail
first. If the winner went on at once, it would win again, and the others would starve. Each race
that they lose costs write units of the channel's partition. Nobody coordinates the nodes. Each node
sees other writers by the items that beat its own and by the items that it reads, and follows three
rules:

- The winner of a race gives way for a round, so that each other writer that it saw lately can have
  a turn. Nodes that all do so keep their distance, and collide less often than by chance. A winner
  that saw no other writer leaves a short gap now and then, in which a newcomer gets in. From then
  on both know of each other.
- The loser tries again at once, behind the item that beat its own. A read would show nothing newer,
  and take a round trip more. After many lost races in a row it pauses for a random time. A node
  that knows of other writers never appends behind a tail that it knew before a pause.
- A node that was throttled leaves a gap between its appends. Each refusal makes the gap half as
  long again. Time without a refusal raises the rate of every node by the same amount, so the gaps
  of all nodes that share a partition become alike. Each refusal also halves the bytes of an append:
  a partition with little capacity left never has room for a large item while others write small
  ones.

This module decides only the time of attempts. The rules of the log decide what is written and on
which condition (service/roomcast/log/rules.py).

Pure: monotonic seconds and random fractions of 1 come in, seconds to wait go out.
docs/decisions/0036-turns.md has the figures.
"""

from __future__ import annotations

from math import inf
from typing import Final

from roomcast.log.item import ITEM_BYTES_MAX

__all__ = ["Contention", "RoundTrip"]

# The round trip of a write to DynamoDB, before the first one is measured.
_ROUND_TRIP_FIRST_S: Final = 0.01
# Bounds of the average. Below them the event loop's own time matters more. Above them a wait would
# be too long for publishers.
_ROUND_TRIP_MIN_S: Final = 0.001
_ROUND_TRIP_MAX_S: Final = 1.0
# The least weight of a measurement. All writers of a channel must have nearly the same average, or
# their turns collide. The next bound limits how far a measurement may exceed the average, because a
# call that hung says nothing.
_ROUND_TRIP_WEIGHT: Final = 1 / 64
_ROUND_TRIP_OUTLIER: Final = 2.0

# How long another writer is remembered, in round trips, and the bounds of that. With less, a quiet
# writer is forgotten between two publications, and must find a gap each time. With more, a busy
# writer gives way in vain.
_SEEN_ROUND_TRIPS: Final = 100
_SEEN_MIN_S: Final = 0.8
_SEEN_MAX_S: Final = 10.0
# Other writers that are remembered. With more writers, waits do not grow.
_WRITERS_MAX: Final = 64
# The length of a turn in round trips. To learn of the item before takes half of one, and to write
# behind it a whole one.
_TURN_ROUND_TRIPS: Final = 1.5
# The length of an attempt after its wait: a read of the tail, and a write.
_ATTEMPT_ROUND_TRIPS: Final = 2.0
# A writer that sees no other leaves a gap of so many round trips after so many close appends. A
# newcomer needs one round trip to read the tail and one to write. The gap costs a lone writer an
# eighth of its time at most.
_GAP_EVERY: Final = 8
_GAP_ROUND_TRIPS: Final = 2.0
# Races in a row that a node tries without a pause. About half of all races are lost, so few nodes
# get so far.
_RACES_AT_ONCE: Final = 24
# The longest single wait for others. It is far below the deadline of waiting publications.
_PAUSE_MAX_S: Final = 3.0
# The gap between appends of a channel whose partition throttles: its bounds and its growth; and by
# how many appends a second the rate recovers each second.
_THROTTLED_GAP_FIRST_S: Final = 0.02
_THROTTLED_GAP_MAX_S: Final = 1.0
_THROTTLED_GAP_GROWTH: Final = 1.5
_THROTTLED_RATE_GROWTH: Final = 5.0
# The least bound on an append's bytes when the partition throttles, which is some write units; and
# its growth with each append that goes in.
_THROTTLED_BYTES_MIN: Final = 8 * 1024
_THROTTLED_BYTES_GROWTH: Final = 8 * 1024
# A gap below it makes no difference.
_THROTTLED_GAP_MIN_S: Final = 0.002
# The longest time between two appends for which the rate recovers.
_THROTTLED_REST_S: Final = 5.0


class RoundTrip:
    """The time of a write, from sending it to its answer.

    It is an average over all channels of a node, mostly of the last writes.
    """

    __slots__ = ("_count", "s")

    def __init__(self) -> None:
        self.s = _ROUND_TRIP_FIRST_S
        self._count = 0

    def took(self, seconds: float) -> None:
        """A write was answered after `seconds`."""
        self._count += 1
        # The first measurement is not bounded by the initial guess: the table may be far away.
        bounded = min(seconds, self.s * _ROUND_TRIP_OUTLIER) if self._count > 1 else seconds
        average = self.s + (bounded - self.s) * max(1 / self._count, _ROUND_TRIP_WEIGHT)
        self.s = min(max(average, _ROUND_TRIP_MIN_S), _ROUND_TRIP_MAX_S)


class Contention:
    """What one node knows about the other writers of one channel, and when its own turn is.

    `lost`: races lost since the last append that went in. `bytes_max`: the bound on an append.
    """

    __slots__ = (
        "_gap_s",
        "_next_s",
        "_round_trip",
        "_seen",
        "_streak",
        "_won_s",
        "bytes_max",
        "lost",
    )

    def __init__(self, round_trip: RoundTrip) -> None:
        self._round_trip = round_trip
        # When each other writer was seen last.
        self._seen: dict[str, float] = {}
        # When this node's next turn is.
        self._next_s = 0.0
        # The number of close appends in a row without another writer, and when the last one ended.
        self._streak = 0
        self._won_s = -inf
        self._gap_s = 0.0
        self.lost = 0
        self.bytes_max = ITEM_BYTES_MAX

    def others(self, now_s: float) -> int:
        """How many other writers were seen lately."""
        since_s = now_s - min(max(_SEEN_ROUND_TRIPS * self._round_trip.s, _SEEN_MIN_S), _SEEN_MAX_S)
        if self._seen:
            self._seen = {node: at_s for node, at_s in self._seen.items() if at_s > since_s}
        return len(self._seen)

    def saw(self, node: str, now_s: float) -> None:
        """An item of another node was seen."""
        if node in self._seen or len(self._seen) < _WRITERS_MAX:
            self._seen[node] = now_s

    def wait_s(self, now_s: float) -> float:
        """Seconds until this node's turn; 0 = now."""
        return max(0.0, self._next_s - now_s)

    def must_look(self, now_s: float) -> bool:
        """Whether the tail must be read again before an attempt, because others write as well."""
        return self.others(now_s) > 0

    def won(self, sent_s: float, now_s: float, random: float) -> int:
        """An append that was last sent at `sent_s` went in. Returns how many others write.

        `random`: a fraction of 1, as everywhere here.
        """
        self._round_trip.took(now_s - sent_s)
        others, round_trip_s = self.others(now_s), self._round_trip.s
        self.lost = 0
        self._next_s = 0.0
        if others:
            self._streak = 0
            round_trips = (1 + others) * _TURN_ROUND_TRIPS - _ATTEMPT_ROUND_TRIPS
            self._next_s = now_s + min(round_trips * round_trip_s, _PAUSE_MAX_S)
        else:
            closely = sent_s - self._won_s < round_trip_s
            self._streak = self._streak + 1 if closely else 0
            if self._streak and self._streak % _GAP_EVERY == 0:
                self._next_s = now_s + _GAP_ROUND_TRIPS * round_trip_s
        self.bytes_max = min(self.bytes_max + _THROTTLED_BYTES_GROWTH, ITEM_BYTES_MAX)
        self._shrink_gap(now_s)
        self._won_s = now_s
        self._next_s = max(self._next_s, sent_s + self._gap_s * (0.5 + random))
        return others

    def lose(self, sent_s: float, now_s: float, random: float) -> float:
        """A race that was entered at `sent_s` was lost.

        Returns the seconds to pause before the next step.

        After a pause, the known tail is too old.
        """
        self._round_trip.took(now_s - sent_s)
        self.lost += 1
        if self.lost < _RACES_AT_ONCE:
            return 0.0
        return min(self.others(now_s) * self._round_trip.s, _PAUSE_MAX_S) * random

    def throttled(self) -> None:
        """The partition refused a write."""
        gap_s = max(self._gap_s * _THROTTLED_GAP_GROWTH, _THROTTLED_GAP_FIRST_S)
        self._gap_s = min(gap_s, _THROTTLED_GAP_MAX_S)
        self.bytes_max = max(self.bytes_max // 2, _THROTTLED_BYTES_MIN)

    def _shrink_gap(self, now_s: float) -> None:
        if self._gap_s:
            rested_s = min(now_s - self._won_s, _THROTTLED_REST_S)
            self._gap_s = 1 / (1 / self._gap_s + _THROTTLED_RATE_GROWTH * rested_s)
            if self._gap_s < _THROTTLED_GAP_MIN_S:
                self._gap_s = 0.0
