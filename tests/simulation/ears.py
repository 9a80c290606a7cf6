"""I5: a node that cannot hear notices within its bound, says so, heals,
and what it missed is read from the log.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from enum import StrEnum
from itertools import chain, pairwise
from random import Random
from typing import Final

from roomcast.delivery.canary import REBUILD_PAUSE_MAX_S
from roomcast.delivery.canary_rules import CANARY_CHANNEL, MISSED_INTERVALS
from tests.simulation.checker import Checker, Kind
from tests.simulation.nodes import MINUTES, SimulatedNode
from tests.simulation.world import SimulatedWorld

__all__ = ["Ears", "Wound", "wound"]

_INTERVAL_S: Final = MINUTES.canary_interval_s
# By how much of an interval turns come later, at random.
_JITTER: Final = 0.5
# What calls, messages and probes take in a world without faults:
# a probe is sent and heard within 5 s each.
_CALLS_S: Final = 15.0
# From the last thing heard to a node's word that it does not hear, and a look at the log.
# That it alone is deaf shows when what others heard has grown from its first look to the next.
NOTICE_S: Final = (MISSED_INTERVALS + _JITTER + 1 + _JITTER) * _INTERVAL_S + 2 * _CALLS_S
# From there to its word that it is deaf: others' canaries must be seen to grow,
# and meanwhile it may take another queue.
DEAF_S: Final = NOTICE_S + (1 + _JITTER) * _INTERVAL_S + 2 * _CALLS_S
# From the first word to a queue that hears, and the next canary in it.
# The pause of an earlier rebuild may not be over.
HEAL_S: Final = NOTICE_S + REBUILD_PAUSE_MAX_S + 2 * _INTERVAL_S + _CALLS_S
# How long all canaries are counted.
_LISTENED_S: Final = 10 * _INTERVAL_S
# From a write that does not come round to its node's word that it doubts: at most 15 s until it is
# late, and a probe.
ROUND_NOTICE_S: Final = 15.0 + _CALLS_S
# How long the pipeline is silent: twice as long as may go unnoticed.
_SILENCE_S: Final = 2 * NOTICE_S
_LOOK_S: Final = 1.0


class Wound(StrEnum):
    """How a node loses its ears."""

    UNSUBSCRIBED = "subscription lost"
    DELETED = "queue deleted"
    DEAF = "queue deaf"


def wound(world: SimulatedWorld, queue: str, kind: Wound) -> None:
    """Nobody is told."""
    if kind is Wound.UNSUBSCRIBED:
        world.subscriptions.discard(queue)
    elif kind is Wound.DELETED:
        world.delete_queue(queue)
    else:
        world.deaf.add(queue)


class Ears:
    """Tries the ears of a fleet in a world without faults.

    `publish`: somebody publishes in every channel. `caught_up`:
    whether all clients have what is in the log.
    """

    def __init__(
        self,
        world: SimulatedWorld,
        random: Random,
        checker: Checker,
        *,
        publish: Callable[[], None],
        caught_up: Callable[[], bool],
        note: Callable[[str], None],
        hints: bool = False,
    ) -> None:
        """`hints`: whether what is published may be heard by express hints."""
        self._world = world
        self._random = random
        self._checker = checker
        self._publish = publish
        self._caught_up = caught_up
        self._note = note
        self._hints = hints

    async def try_all(self, nodes: Sequence[SimulatedNode]) -> None:
        """After all faults: everybody hears, one node emits for all,
        and who loses its ears gets others.
        """
        if not await self._all_well(nodes, "after all faults"):
            return
        await self._listen(nodes)
        trials = [self._silence, self._wound_some, self._wound_some]
        if self._world.shards > 1:
            trials += [self._wound_shards] * 3
        if self._hints:
            trials += [self._silence_with_hints] * 3
        await self._random.choice(trials if len(nodes) == 1 else [*trials, self._cut_off])(nodes)
        await self._all_well(nodes, "after its wound")

    # ---- what is tried

    async def _listen(self, nodes: Sequence[SimulatedNode]) -> None:
        """A canary an interval for the whole fleet, and everybody hears it."""
        # Nodes that began with different numbers agree after a turn.
        await asyncio.sleep(2 * _INTERVAL_S)
        since = len(self._world.stream)
        await asyncio.sleep(_LISTENED_S)
        emitted = [
            (item.offset, written_s)
            for item, written_s in zip(
                self._world.stream[since:], self._world.written_s[since:], strict=True
            )
            if item.channel == CANARY_CHANNEL
        ]
        least = int(_LISTENED_S / (_INTERVAL_S * (1 + _JITTER))) - 1
        most = int(_LISTENED_S / _INTERVAL_S) + 1
        if not least <= len(emitted) <= most:
            self._checker.fail(
                Kind.CANARIES,
                f"{len(emitted)} in {_LISTENED_S:.0f} s, of {len(nodes)} nodes: {emitted}",
            )
        if any(after <= before for (before, _), (after, _) in pairwise(emitted)):
            self._checker.fail(Kind.CANARIES, f"numbers do not grow: {emitted}")
        heard = {node.name: node.assembly.ears.newest for node in nodes}
        if len(emitted) > 1 and min(heard.values()) < emitted[-2][0]:
            self._checker.fail(
                Kind.CANARIES, f"{emitted} were emitted, and the newest heard are {heard}"
            )

    async def _wound_some(self, nodes: Sequence[SimulatedNode]) -> None:
        """They say so, take other queues, and read what they missed;
        the others stay as ready as they were.
        """
        wounded = self._random.sample(nodes, self._random.randint(1, len(nodes)))
        others = [node for node in nodes if node not in wounded]
        old = {node.name: node.queue_name for node in wounded}
        for node in wounded:
            kind = self._random.choice(list(Wound))
            self._note(f"{kind} of {node.name}")
            wound(self._world, node.queue_name, kind)
        self._publish()
        left = {node.name: node for node in wounded}
        unready: set[str] = set()

        def noticed() -> bool:
            unready.update(node.name for node in others if node.is_unready())
            for node in list(left.values()):
                if node.is_in_doubt() or node.queue_name != old[node.name]:
                    del left[node.name]
            return not left

        if not await self._until(noticed, NOTICE_S):
            self._checker.fail(Kind.DEAF, f"{sorted(left)} did not notice within {NOTICE_S:.0f} s")
        if not await self._until(self._caught_up, NOTICE_S):
            self._checker.fail(
                Kind.DEAF, f"what {sorted(old)} did not hear was not read from the log"
            )
        noticed()
        if unready:
            self._checker.fail(
                Kind.DEAF, f"{sorted(old)} were wounded, and {unready} said that they are deaf"
            )

    async def _wound_shards(self, nodes: Sequence[SimulatedNode]) -> None:
        """Subscriptions to topic shards are lost: what is published meanwhile is read from the log,
        and they come back.
        """
        for node in nodes:
            for shard in list(self._world.shard_subscriptions):
                if self._random.random() < 0.7:
                    self._world.unsubscribe(node.queue_name, shard)
        self._note("subscriptions to topic shards are lost")
        self._publish()
        if not await self._until(self._caught_up, NOTICE_S):
            self._checker.fail(
                Kind.DEAF, f"what topic shards did not bring was not read within {NOTICE_S:.0f} s"
            )

    async def _cut_off(self, nodes: Sequence[SimulatedNode]) -> None:
        """One hears nothing, whatever queue it takes:
        it must say that it is not ready as long as others hear.
        """
        victim = self._random.choice(nodes)
        self._note(f"{victim.name} is cut off")
        self._world.is_cut_off = victim.owns
        self._publish()
        if not await self._until(victim.is_deaf, DEAF_S):
            self._checker.fail(
                Kind.DEAF, f"{victim.name} did not say within {DEAF_S:.0f} s that it is deaf"
            )
        if not await self._until(self._caught_up, _CALLS_S):
            self._checker.fail(
                Kind.DEAF, f"what {victim.name} did not hear was not read from the log"
            )
        if deaf := [node.name for node in nodes if node is not victim and node.is_unready()]:
            self._checker.fail(
                Kind.DEAF, f"{victim.name} was cut off, and {deaf} said that they are deaf"
            )
        self._world.is_cut_off = lambda _: False

    async def _silence(self, nodes: Sequence[SimulatedNode]) -> None:
        """The stream brings nothing any more: no node's fault, and no reason to end one."""
        self._note("the stream is silent")
        old = {node.name: node.queue_name for node in nodes}
        self._world.stand_still(_SILENCE_S)
        self._publish()
        unready: set[str] = set()

        def noticed() -> bool:
            unready.update(node.name for node in nodes if node.is_unready())
            return all(node.is_in_doubt() for node in nodes)

        if not await self._until(noticed, NOTICE_S):
            self._checker.fail(Kind.DEAF, f"the silence was not noticed within {NOTICE_S:.0f} s")
        if not await self._until(self._caught_up, _CALLS_S):
            self._checker.fail(Kind.DEAF, "what the stream did not bring was not read from the log")
        await asyncio.sleep(_SILENCE_S - NOTICE_S)
        noticed()
        if unready or any(node.queue_name != old[node.name] for node in nodes):
            self._checker.fail(
                Kind.DEAF, f"the stream was silent; unready: {unready}, queues before: {old}"
            )

    async def _silence_with_hints(self, nodes: Sequence[SimulatedNode]) -> None:
        """The stream brings nothing, and express hints come, which are no sign of it:
        who writes doubts as soon as without them.
        """
        self._note("the stream is silent, and hints come")
        since = len(self._world.stream)
        self._world.stand_still(_SILENCE_S)
        self._publish()

        def doubted() -> bool:
            self._publish()
            return not silent()

        def silent() -> set[str]:
            wrote = {item.node for item in self._world.stream[since:first]}
            return {node.name for node in nodes if node.name in wrote and not node.is_in_doubt()}

        await asyncio.sleep(_LOOK_S)
        first = len(self._world.stream)
        if not await self._until(doubted, ROUND_NOTICE_S):
            self._checker.fail(
                Kind.DEAF,
                f"what {sorted(silent())} wrote did not come round for {ROUND_NOTICE_S:.0f} s, "
                "and they did not notice",
            )
        self._world.stand_still(0.0)
        if not await self._until(self._caught_up, _CALLS_S):
            self._checker.fail(Kind.DEAF, "what the stream brought late did not arrive")

    async def _all_well(self, nodes: Sequence[SimulatedNode], when: str) -> bool:
        if await self._until(lambda: not any(map(self._complaint, nodes)), HEAL_S):
            return True
        for node in nodes:
            if complaint := self._complaint(node):
                self._checker.fail(Kind.DEAF, f"{node.name} {when}: {complaint} for {HEAL_S:.0f} s")
        return False

    # ---- within

    def _complaint(self, node: SimulatedNode) -> str:
        """Why it is not to be relied on: what it says itself, or what it does not know."""
        world, queue = self._world, node.queue_name
        lease = world.leases.get(node.lease.id)
        said = [*node.health.reasons(), *node.health.doubts()]
        if not node.ready:
            return "it has not started"
        if queue not in world.queues or queue not in world.subscriptions or queue in world.deaf:
            return f"its queue {queue!r} does not hear ({said})"
        if said:
            return f"it says {said}"
        if lease is None or lease.queue != queue:
            return f"its queue is {queue!r}, and its lease {lease}"
        if lease.expires_at <= node.clock.now_ms():
            return f"its lease ended: {lease}"
        subscribed = world.shard_subscriptions
        if left := [
            each
            for each in (*world.queues, *world.subscriptions, *chain(*subscribed.values()))
            if node.owns(each) and each != queue
        ]:
            return f"it left {left} behind"
        if missing := [
            shard for shard in node.shards_wanted if queue not in world.subscribers(shard)
        ]:
            return f"its queue {queue!r} is not subscribed to topic shards {missing}"
        return ""

    async def _until(self, condition: Callable[[], bool], limit_s: float) -> bool:
        loop = asyncio.get_running_loop()
        end_s = loop.time() + limit_s
        while not condition():
            if loop.time() >= end_s:
                return False
            await asyncio.sleep(_LOOK_S)
        return True
