"""Turns in a channel that several nodes append to.

Who gives way, for how long, and whose knowledge is too old.

Theory of operation. An append is a race for the next offset, and whoever wins it knows the new end
first. If the winner went on at once it would win again, the others would starve, and each race that
they lose costs write units of the channel's partition. Nobody coordinates the nodes. Each sees who
else writes, from the items that beat its own and from those that it reads, and keeps to three
rules:

- Who won gives way for a round: so long that each other writer that it saw lately can have a turn.
  All who do so keep their distance from each other, and meet less often than by chance. Who saw
  nobody leaves a short gap now and then, so that somebody who waits gets in; from then on both know
  of each other.
- Who lost tries again at once, behind the item that beat its own: that is as new as what a read
  would tell, a round trip later. After many races in a row it pauses for a random time. Who knows
  of others never tries with what it knew before a pause.
- Who was throttled leaves a gap between its appends. Each refusal makes the gap half as long again,
  and time in which there is none adds the same rate to everybody's: so the gaps of all who share a
  partition become alike. And it tries with half as much: a partition that has little left never has
  room for a large item while others write small ones.

Only the time of attempts is decided here. What is written, and on what condition, is the log's
(service/roomcast/log/rules.py).

Pure: monotonic seconds and random fractions of 1 come in, seconds to wait go out.
docs/decisions/0036-turns.md has the figures.
"""

from __future__ import annotations

from math import inf
from typing import Final

from roomcast.log.item import ITEM_BYTES_MAX

__all__ = ["Contention", "RoundTrip"]

# Of a write to DynamoDB, before the first one is measured.
_ROUND_TRIP_FIRST_S: Final = 0.01
# Below it the event loop's own time counts for more; above it a wait would be longer than
# publishers have patience.
_ROUND_TRIP_MIN_S: Final = 0.001
_ROUND_TRIP_MAX_S: Final = 1.0
# The least weight of a measurement: all writers of a channel must come to nearly the same average,
# or their rounds drift into each other. And how far one may exceed the average: a call that hung
# tells nothing.
_ROUND_TRIP_WEIGHT: Final = 1 / 64
_ROUND_TRIP_OUTLIER: Final = 2.0

# How many round trips another writer is remembered, and for how long at the least and at the most.
# Shorter: a quiet writer is forgotten between two publications, and must find a gap each time.
# Longer: a busy one gives way in vain.
_SEEN_ROUND_TRIPS: Final = 100
_SEEN_MIN_S: Final = 0.8
_SEEN_MAX_S: Final = 10.0
# Other writers that are remembered; with more, waits are as long as with these.
_WRITERS_MAX: Final = 64
# A turn, in round trips: to learn of the item before takes half of one, to write behind it a whole
# one.
_TURN_ROUND_TRIPS: Final = 1.5
# What an attempt takes from the end of its wait: a read of the log's end, and a write.
_ATTEMPT_ROUND_TRIPS: Final = 2.0
# Who sees nobody leaves a gap of so many round trips after so many appends that followed each other
# closely: a newcomer needs one to read the end and one to write. It costs an eighth of a lone
# writer's time at the most.
_GAP_EVERY: Final = 8
_GAP_ROUND_TRIPS: Final = 2.0
# Races in a row that are tried at once. Each is lost with about even odds, so hardly anybody comes
# so far.
_RACES_AT_ONCE: Final = 24
# The longest that anybody waits for others at once: far from the deadline of what waits.
_PAUSE_MAX_S: Final = 3.0
# The gap between appends of a channel whose partition throttles: its bounds, how it grows, and by
# how many appends a second each second makes its rate higher again.
_THROTTLED_GAP_FIRST_S: Final = 0.02
_THROTTLED_GAP_MAX_S: Final = 1.0
_THROTTLED_GAP_GROWTH: Final = 1.5
_THROTTLED_RATE_GROWTH: Final = 5.0
# What an append may have when the partition throttles, at the least: some write units. And how much
# more with each append that goes in.
_THROTTLED_BYTES_MIN: Final = 8 * 1024
_THROTTLED_BYTES_GROWTH: Final = 8 * 1024
# A gap below it makes no difference.
_THROTTLED_GAP_MIN_S: Final = 0.002
# For so long at the most the rate grows between two appends.
_THROTTLED_REST_S: Final = 5.0


class RoundTrip:
    """How long a write takes, from sending to its answer.

    An average over all channels of a node, of the last writes mostly.
    """

    __slots__ = ("_count", "s")

    def __init__(self) -> None:
        self.s = _ROUND_TRIP_FIRST_S
        self._count = 0

    def took(self, seconds: float) -> None:
        """A write was answered after `seconds`."""
        self._count += 1
        # The guess bounds nothing: the table may be far away.
        bounded = min(seconds, self.s * _ROUND_TRIP_OUTLIER) if self._count > 1 else seconds
        average = self.s + (bounded - self.s) * max(1 / self._count, _ROUND_TRIP_WEIGHT)
        self.s = min(max(average, _ROUND_TRIP_MIN_S), _ROUND_TRIP_MAX_S)


class Contention:
    """What one node knows of the other writers of one channel, and when its own turn is.

    `lost`: races lost since the last append that went in. `bytes_max`: what an append may have.
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
        # Appends in a row that followed each other closely with nobody seen, and when the last one
        # ended.
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
        """Another node's item was met."""
        if node in self._seen or len(self._seen) < _WRITERS_MAX:
            self._seen[node] = now_s

    def wait_s(self, now_s: float) -> float:
        """Seconds until this node's turn; 0 = now."""
        return max(0.0, self._next_s - now_s)

    def must_look(self, now_s: float) -> bool:
        """Whether the log's end is to be read again before an attempt: somebody else moves it."""
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
        """A race that was entered at `sent_s` was lost; seconds to pause before anything else.

        After a pause what was known is too old.
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
