"""Sends express hints: this node's own appends, to the other nodes, ahead of the table's stream.

Theory of operation. From the table to the Lambda a record takes some 0.2 s, and the Lambda sends it
to SNS. In channels with the option `express` the node that wrote the record sends it to SNS itself,
as soon as the table has it. So it is at the others in a third of the time. The stream brings it
once more, and readers drop that as a repeat.

Nothing rests on hints. They are sent only of what is in the log. One that is lost, late or made up
costs nobody a read, and is no sign that the stream works (intake.py, resequencer.py).

They count against the region's quota of messages to SNS, which the Lambda needs more. So all nodes
together have a rate, of which each takes its part, by the number of nodes that live. What waits
while the rate is used up goes in one message. What has waited for as long as the stream takes is
dropped. If SNS throttles or fails, no hint is sent for a while. Hints and signals also share what
a node may send at all (allowance.py), and signals come first: they have no other way.

A hint goes through the topic of its channel's topic shard, so that it wakes nobody else.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from math import inf
from typing import Final

import structlog

from roomcast.backoff import FROM_HALF, Backoff
from roomcast.delivery.allowance import Allowance
from roomcast.delivery.envelope import express_text, pack
from roomcast.delivery.ports import NodeTopics
from roomcast.delivery.shards import homes
from roomcast.log.item import LogItem
from roomcast.observe.counters import ExpressCounters
from roomcast.ports import Clock, PortError, Rejected
from roomcast.rates import Bucket, Rate
from roomcast.wire.channels import ChannelRules

__all__ = [
    "HINT_BYTES_MAX",
    "PUBLISHES_AT_ONCE",
    "PUBLISH_LIMIT_S",
    "STALE_S",
    "WAITING_BYTES_MAX",
    "Express",
]

# Bytes of one hint. A larger append comes by the stream alone: SNS and SQS charge for each 64 KB.
HINT_BYTES_MAX: Final = 60 * 1024
# Bytes of all that wait.
WAITING_BYTES_MAX: Final = 2 * 1024 * 1024
# Seconds after which a hint that waits is dropped: the stream is about to bring its record.
STALE_S: Final = 0.2
# The least wait for the rate: a clock may not tell less.
_WAIT_S_MIN: Final = 0.001
# What a node may send at once, in seconds of its rate.
_BURST_S: Final = 0.2
# Calls at once, and seconds for each. A hint that takes longer is of no use.
PUBLISHES_AT_ONCE: Final = 4
PUBLISH_LIMIT_S: Final = 1.0
# Pause after a message that was not taken: of its topic if that refuses, and else of all of them.
_PAUSES: Final = Backoff(1.0, 60.0, FROM_HALF)

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class _Waiting:
    text: str
    size: int
    at_s: float


@dataclass(slots=True)
class _Lane:
    """What waits for the topic of `shard`, oldest first. Until `paused_until_s` it gets nothing.

    `refusals`: messages in a row that it refused.
    """

    shard: int | None
    waiting: deque[_Waiting] = field(default_factory=deque)
    paused_until_s: float = -inf
    refusals: int = 0


class Express:
    """This node's express hints. `run` is its background task, if any channel has them (`is_on`).

    `per_s`: messages a second, of all nodes together. `shards`: the number of topic shards.
    `allowance`: what this node may send to SNS at all.
    """

    def __init__(
        self,
        topics: NodeTopics,
        clock: Clock,
        random: Callable[[], float],
        rules: ChannelRules,
        allowance: Allowance,
        *,
        node: str,
        shards: int,
        per_s: float,
    ) -> None:
        self._topics = topics
        self._allowance = allowance
        self._clock = clock
        self._random = random
        self._rules = rules
        self._node = node
        self._shards = shards
        self._per_s = per_s
        self.is_on = rules.has_express
        # By topic shard; None = the base topic.
        self._lanes: dict[int | None, _Lane] = {}
        self._bytes = 0
        # Until then nothing is sent, after so many failures in a row.
        self._paused_until_s = -inf
        self._failures = 0
        # None until the nodes were counted: nothing is sent before.
        self._rate: Rate | None = None
        self._bucket = Bucket(Rate(per_s, 1.0), clock.monotonic_s())
        self._wake = asyncio.Event()
        self._places = asyncio.Semaphore(PUBLISHES_AT_ONCE)
        self.counters = ExpressCounters()

    @property
    def per_s(self) -> float:
        """This node's part of the rate, in messages a second; 0 = it is not known yet."""
        return self._rate.per_s if self._rate is not None else 0.0

    def offer(self, item: LogItem) -> None:
        """Take an append of this node that is in the log. Returns at once.

        It is sent if its channel is express, and there is time and room.
        """
        if not self.is_on or not self._rules.is_express(item.channel):
            return
        shard = homes(item.channel, self._shards)[0]
        lane = self._lanes.setdefault(shard, _Lane(shard))
        now_s = self._clock.monotonic_s()
        if self._rate is None or now_s < max(self._paused_until_s, lane.paused_until_s):
            self.counters.hints["shed"] += 1
            return
        text = express_text(item)
        one = _Waiting(text, len(text.encode()), now_s)
        if one.size > HINT_BYTES_MAX:
            self.counters.hints["too_large"] += 1
        elif self._bytes + one.size > WAITING_BYTES_MAX:
            self.counters.hints["shed"] += 1
        else:
            lane.waiting.append(one)
            self._bytes += one.size
            self._wake.set()

    async def run(self) -> None:
        """Send what waits, until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            while True:
                await self._wake.wait()
                # What is appended in the same turn goes along.
                await asyncio.sleep(0)
                now_s = self._clock.monotonic_s()
                self._drop_stale(now_s)
                lane = self._next()
                if lane is None:
                    self._wake.clear()
                    continue
                assert self._rate is not None, "nothing waits before"
                wait_s = max(
                    self._bucket.wait_s(self._rate, now_s), self._allowance.hint_wait_s(now_s)
                )
                if wait_s > 0:
                    await asyncio.sleep(max(_WAIT_S_MIN, min(wait_s, STALE_S)))
                elif self._places.locked():
                    async with self._places:
                        # What waited for so long may be of no use any more.
                        continue
                else:
                    self._bucket.take(self._rate, now_s)
                    self._allowance.take(now_s)
                    await self._places.acquire()
                    tasks.create_task(self._publish(lane, *self._take(lane)))

    def share(self, nodes: int) -> None:
        """Take this node's part of the rate among `nodes` of them."""
        per_s = self._per_s / max(nodes, 1)
        rate = Rate(per_s, max(1.0, per_s * _BURST_S))
        if self._rate is None:
            self._bucket = Bucket(rate, self._clock.monotonic_s())
        self._rate = rate

    # ---- what waits

    def _next(self) -> _Lane | None:
        """The topic whose oldest hint has waited for the longest time."""
        lanes = [lane for lane in self._lanes.values() if lane.waiting]
        return min(lanes, key=lambda lane: lane.waiting[0].at_s, default=None)

    def _drop_stale(self, now_s: float) -> None:
        for lane in self._lanes.values():
            while lane.waiting and lane.waiting[0].at_s + STALE_S <= now_s:
                self._shed(lane)

    def _shed(self, lane: _Lane) -> None:
        self._bytes -= lane.waiting.popleft().size
        self.counters.hints["shed"] += 1

    def _take(self, lane: _Lane) -> tuple[str, int]:
        """One message with the hints that fit, from the front, and their number."""
        texts = (one.text for one in lane.waiting)
        body, count = next(pack(texts, express=self._node))
        for _ in range(count):
            self._bytes -= lane.waiting.popleft().size
        return body, count

    # ---- one message

    async def _publish(self, lane: _Lane, body: str, count: int) -> None:
        """It is tried once: the stream brings what is in it."""
        outcome = "not_sent"
        try:
            async with asyncio.timeout(PUBLISH_LIMIT_S):
                if lane.shard is None:
                    await self._topics.publish(body)
                else:
                    await self._topics.publish_to(lane.shard, body)
            outcome, lane.refusals, self._failures = "sent", 0, 0
        except Rejected as error:
            lane.refusals += 1
            lane.paused_until_s = self._until_s(lane.refusals, lane.shard, str(error))
            self._shed_all(lane)
        except (PortError, TimeoutError) as error:
            self._failures += 1
            why = str(error) or "no answer in time"
            self._paused_until_s = self._until_s(self._failures, None, why)
            for each in self._lanes.values():
                self._shed_all(each)
        finally:
            self.counters.messages[outcome] += 1
            self.counters.hints[outcome] += count
            self._places.release()

    def _until_s(self, failures: int, shard: int | None, reason: str) -> float:
        pause_s = _PAUSES.pause_s(failures, self._random())
        _log.warning("express_paused", shard=shard, seconds=round(pause_s, 1), reason=reason)
        return self._clock.monotonic_s() + pause_s

    def _shed_all(self, lane: _Lane) -> None:
        while lane.waiting:
            self._shed(lane)
