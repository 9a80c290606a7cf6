"""One run of the whole: real nodes and simulated clients in a simulated AWS, all from one seed."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from functools import partial
from random import Random
from typing import Any

from roomcast.concurrency import Budget
from roomcast.delivery.canary_rules import CANARY_CHANNEL
from roomcast.delivery.shard_rules import IDLE_S
from roomcast.log.item import LogItem
from roomcast.log.rules import MARGIN_MS, MIN_RETENTION_MS
from roomcast.wire.publication import StreamPosition
from roomcast.wire.versions import Version
from tests.simulation import clockwork, filters
from tests.simulation.checker import Checker, Kind, View, Violation, contents
from tests.simulation.clients import SimulatedClient
from tests.simulation.contest import Contest
from tests.simulation.ears import Ears, Wound, wound
from tests.simulation.mail import Mail
from tests.simulation.mishaps import Mishaps
from tests.simulation.nodes import (
    DAYS,
    EXPRESS,
    HOUR_S,
    MINUTES,
    SKEW_S_MAX,
    TAIL_CHECK_S,
    Express,
    SimulatedClock,
    SimulatedNode,
)
from tests.simulation.reasons import Position, Reason
from tests.simulation.versions import RETRIED_WITHIN_S, Versions
from tests.simulation.world import (
    READS,
    SUBSCRIBING_S_MAX,
    Faults,
    SimulatedTable,
    SimulatedWorld,
)

# The part of runs that last for minutes, in which nodes must notice that they cannot hear;
# the others last for days.
SHORT = 0.35
# When all faults are over, everybody has caught up after two tail checks.
SETTLE_S = 2.6 * TAIL_CHECK_S
# How soon, when no hint is lost: requests under way,
# visibility time-outs and back-offs are over by then.
PROMPT_S = 400.0
# The part of publications that have a key, and of publishers that lose their connection
# before an answer comes.
KEYED = 0.25
CUT_OFF = 0.1
# The part of runs in which half of the publications are large, and how large.
LARGE = 0.15
PADDING_BYTES = 60_000
# The part of runs that begin with several writers of one channel.
CONTESTED = 0.1
# The part of runs in which a node sleeps until the epochs of its channels are over.
OUTLIVED = 0.1
# Numbers of topic shards.
SHARDS = (2, 4, 16)
# The parts of channels and of nodes with express hints, and messages of them a second.
EXPRESS_CHANNELS = 0.8
EXPRESS_NODES = 0.8
EXPRESS_PER_S = (1.0, 30.0, 1000.0)
# How publications are collected before they go out.
BATCH_SIZES = (0, 2, 10)
BATCH_DELAYS_MS = (1, 20, 300, 5000)
# Tests of filters in one turn of a node.
TESTS_A_TURN = (1, 5, 20_000)
# How long no hint arrives when what is written cannot be read either.
SILENT_S = 6.0


@dataclass(slots=True)
class Outcome:
    """What one run came to. `violations` is empty when all invariants held."""

    seed: int
    violations: list[Violation]
    published: int
    acknowledged: int
    delivered: int
    recovered: int
    # Clients that were told that they cannot go on, by the reason.
    told: Counter[Reason]
    retries: int
    # Orders that were given, and commands of sessions that were taken.
    orders: int
    commands: int
    calls: int
    # Express hints that nodes heard, before the stream's records and after them.
    hints: Counter[str]
    # Publications that were left out, because the log had a newer version.
    stale: int = 0
    trace: list[str] = field(default_factory=list)


class Scenario:
    """Everything that happens in one run is drawn from the seed.

    `sharded`: with topic shards. `batched`: publications are collected before they go out.
    `express`: with channels whose publications go out as express hints. `filtered`: with clients
    that have filters. `latest`: recoveries bring the newest publication, and back ends publish
    versions. The other runs stay what they are without these.
    """

    def __init__(
        self,
        seed: int,
        *,
        sharded: bool = False,
        batched: bool = False,
        express: bool = False,
        filtered: bool = False,
        latest: bool = False,
    ) -> None:
        self.seed = seed
        self.sharded = sharded
        self.express = Random(f"express {seed}") if express else None
        self.shards = Random(f"shards {seed}").choice(SHARDS) if sharded else 1
        self.random = Random(seed)
        self.mishaps = Mishaps()
        self.calm = Faults()
        self.faults = _faults(self.random)
        self.world = SimulatedWorld(self.random, self.calm)
        self.world.now_ms = SimulatedClock(0).now_ms
        self.world.skew_ms = round(SKEW_S_MAX * 1000)
        self.checker = Checker(
            self.world.truth, self.world.committed.__contains__, self._troubled_s
        )
        self.filters = Random(f"filters {seed}") if filtered else None
        self.checker.kind_of = filters.kind_of
        self.options: dict[str, Any] = _batches(Random(f"batches {seed}")) if batched else {}
        self.checker.newest_only = bool(self.options.get("batch_flush_latest"))
        self.versions = Versions(Random(f"versions {seed}")) if latest else None
        if latest:
            self.checker.recovers_newest = True
            self.options |= {"force_recovery_mode": "cache", "auto_cache_recover": True}
        self.nodes: list[SimulatedNode] = []
        # Kept, or their tasks would be taken for tasks that nobody holds.
        self.dead: list[SimulatedNode] = []
        self.clients: list[SimulatedClient] = []
        self.channels = [f"channel-{number}" for number in range(self.random.choice((1, 1, 2)))]
        self.mail = Mail(self.world, self.random, self.checker, self.nodes, self.clients)
        self.published = 0
        self.node_count = 0
        self.trace: list[str] = []
        # Whether everything that was published reaches every queue sooner or later.
        self.hints_reliable = self.faults.hint_lost == 0
        # Whether publications are so large that some tens of them are more than a recovery brings.
        self.large = self.random.random() < LARGE
        self.pace = MINUTES if self.random.random() < SHORT else DAYS
        # Where canaries are hours apart, a node learns as late that the Lambda goes by another
        # number.
        self.is_changed = sharded and self.pace is MINUTES
        self.world.shards = self._new_shards() if self.is_changed else self.shards
        if self.express is not None:
            self._make_express(self.express)

    def _make_express(self, dice: Random) -> None:
        self.channels = [
            f"{EXPRESS}:{name}" if dice.random() < EXPRESS_CHANNELS else name
            for name in self.channels
        ]
        self.faults.express_lost = dice.choice((0.0, 0.3, 0.8))
        self.faults.express_late_s = dice.choice((0.0, 0.5, 20.0))

    async def run(self) -> None:
        random = self.random
        for _ in range(random.choice((1, 2, 2, 3))):
            self._add_node()
        await self._until(lambda: all(node.ready for node in self.nodes), 300)
        # Of its own chance: the other runs stay what they are without it.
        if Random(f"contest {self.seed}").random() < CONTESTED:
            self._note("contest")
            await Contest(self.world, random, self.checker).run()
        for number in range(random.randint(2, 4)):
            client = SimulatedClient(
                f"client-{number}",
                self.channels,
                self.checker,
                random,
                self._pick_node,
                self._wanted,
            )
            client.refreshed = self.mail.refreshed
            self.clients.append(client)
            client.come()
        for _ in range(random.choice((1, 1, 2, 3))):
            self.world.faults = self.faults
            await self._busy_time()
            if random.random() < 0.5:
                self.world.faults = self.calm
            await self._quiet_time()
        if self.pace is DAYS and random.random() < OUTLIVED:
            await self._outlive_epochs()
        if self.sharded:
            await self._leave_shards()
        await self._settle()
        await self.mail.settle(
            2 * self.pace.heartbeat_s + PROMPT_S, topic_loses=not self.hints_reliable
        )
        if self.pace is MINUTES and not self.checker.violations:
            ears = Ears(
                self.world,
                random,
                self.checker,
                publish=self._publish_everywhere,
                caught_up=self._caught_up,
                note=self._note,
                hints=self.express is not None and not self.sharded,
            )
            await ears.try_all(self.nodes)

    def outcome(self) -> Outcome:
        """After the end of everything."""
        stream = [item for item in self.world.stream if item.channel != CANARY_CHANNEL]
        self.checker.finish(stream, self.world.heads)
        if self.versions is not None:
            held = {item.batch: contents(item) for item in stream}
            for wrong in self.versions.judge(stream, self.world.heads, held):
                self.checker.fail(Kind.STALE, wrong)
        for mishap in self.mishaps.found:
            self.checker.fail(Kind.MISHAP, mishap)
        return Outcome(
            seed=self.seed,
            violations=self.checker.violations,
            published=len(self.checker.attempted),
            acknowledged=len(self.checker.acknowledged),
            delivered=self.checker.delivered,
            recovered=self.checker.recovered,
            told=self.checker.told,
            retries=sum(client.retries for client in self.clients),
            orders=self.mail.orders,
            commands=self.mail.taken,
            calls=self.world.calls,
            hints=sum(
                (Counter(node.assembly.intake.express) for node in (*self.nodes, *self.dead)),
                Counter[str](),
            ),
            stale=0 if self.versions is None else self.versions.stale,
            trace=self.trace,
        )

    # ---- what happens

    async def _busy_time(self) -> None:
        random = self.random
        actions: list[tuple[float, Callable[[], None]]] = [
            (8.0, self._publish),
            (1.0, self._drop_client),
            (0.5, self._client_goes),
            (0.5, self._client_comes),
            (0.4, self._read_history),
            (0.3, self._kill_node),
            (0.3, self._freeze_node),
            (0.3, self._wound),
            (0.1, self._silence),
            (0.2, self._remove_history),
            (0.3, self._expire),
            (0.1, self._poison),
            (0.2, self._outage),
            (0.1, self._boast),
            (4.0, self.mail.command),
            (0.5, self.mail.enter),
            (0.3, self.mail.leave),
            (1.0, self.mail.order_one),
            (0.3, self.mail.order_all),
        ]
        if self.is_changed:
            actions.append((0.3, self._change_shards))
        if self.versions is not None:
            actions.append((6.0, self._publish_states))
        weights = [weight for weight, _ in actions]
        for _ in range(random.randint(10, 40)):
            action = random.choices([call for _, call in actions], weights)[0]
            self._note(action.__name__)
            action()
            await asyncio.sleep(random.choice((0.0, 0.001, 0.02, 0.3, 2.0)))

    async def _quiet_time(self) -> None:
        random = self.random
        goes = random.choice((0.0, 0.5, 1.0, 1.0))
        for client in self.clients:
            if random.random() < goes:
                client.go()
        length_s = random.choice(self.pace.quiet_s)
        if length_s == 24 * HOUR_S:
            length_s += random.uniform(-60, SKEW_S_MAX)
        self._note(f"quiet for {length_s:.0f} s")
        await asyncio.sleep(length_s)
        self._expire()
        for client in self.clients:
            client.come()

    async def _outlive_epochs(self) -> None:
        """A node sleeps, with its clients and an append under way,
        while the epochs of its channels end and others begin elsewhere.
        """
        self._note("outlive epochs")
        sleeper = self.random.choice(self.nodes)
        for client in self.clients:
            if client.node is sleeper:
                self._publish_by(client, self.random.choice(self.channels))
        await asyncio.sleep(self.random.choice((0.0, 0.001, 0.02)))
        sleeper.fate.freeze(26 * HOUR_S)
        for client in self.clients:
            if client.node is not sleeper:
                client.go()
        await asyncio.sleep(25 * HOUR_S)
        self._expire()
        for client in self.clients:
            client.come()
        for _ in range(3):
            await asyncio.sleep(30.0)
            self._publish()
            # Perhaps to the sleeper, which is in the epoch before.
            self._drop_client()

    async def _leave_shards(self) -> None:
        """All go until nobody hears a topic shard any more, and publish as soon as they are back:
        while nodes subscribe, and nothing follows that would show that something is missing.
        """
        self._note("topic shards are left")
        for client in self.clients:
            client.go()
        await asyncio.sleep(IDLE_S + self.random.choice((1.0, 60.0)))
        for client in self.clients:
            client.come()
        for _ in range(3):
            await asyncio.sleep(self.random.uniform(0, SUBSCRIBING_S_MAX / 3))
            self._publish_everywhere()

    async def _settle(self) -> None:
        """No more faults: everybody must end up at the top of the log."""
        self.world.faults = self.calm
        self.world.down = frozenset()
        self.world.stand_still(0.0)
        for node in self.nodes:
            node.fate.thaw()
        if not any(node.ready for node in self.nodes):
            self._add_node()
        for client in self.clients:
            client.come()
        if self.hints_reliable and not await self._until(self._has_everything, PROMPT_S):
            self.checker.fail(
                Kind.LATE,
                f"no hint was lost for good, yet not all caught up within {PROMPT_S:.0f} s",
            )
        settled = await self._until(self._caught_up, SETTLE_S)
        await self._until(lambda: not any(client.waiting for client in self.clients), PROMPT_S)
        for client in self.clients:
            if client.waiting:
                self.checker.fail(
                    Kind.UNANSWERED, f"{client.name} waits for {client.waiting} answers"
                )
        if settled:
            return
        tops = self._tops()
        for client in self.clients:
            for content in client.unanswered:
                self.checker.fail(
                    Kind.UNANSWERED,
                    f"{client.name}: {content} is not acknowledged for {SETTLE_S:.0f} s",
                )
            for view in client.views.values():
                if not view.subscribed or not self._stands(view, [tops[view.channel]]):
                    self.checker.fail(
                        Kind.STUCK,
                        f"{client.name}: {view.channel} at {view.position} for {SETTLE_S:.0f} s "
                        f"(subscribed: {view.subscribed}); the log is at {tops[view.channel]}",
                    )

    def _caught_up(self) -> bool:
        return self._all_stand({channel: {end} for channel, end in self._tops().items()})

    def _has_everything(self) -> bool:
        """No hint tells of an epoch that begins without a publication,
        so who stands at the end before it misses nothing.
        """
        return self._all_stand(
            {channel: self.world.ends_alike(channel) for channel in self.channels}
        )

    def _all_stand(self, where: Mapping[str, Collection[Position]]) -> bool:
        return not any(client.unanswered for client in self.clients) and all(
            view.subscribed and self._stands(view, where[view.channel])
            for client in self.clients
            for view in client.views.values()
        )

    def _stands(self, view: View, where: Collection[Position]) -> bool:
        """Whether it is at one of these positions, or all that lies before it does not pass."""
        if view.position in where:
            return True
        if view.kinds is None or view.position is None:
            return False
        epoch, offset = view.position
        passing = [
            item.offset + index
            for item in self.world.stream
            if (item.channel, item.epoch) == (view.channel, epoch)
            for index, content in enumerate(contents(item))
            if filters.kind_of(content) in view.kinds
        ]
        return any(
            end[0] == epoch
            and offset <= end[1]
            and not any(offset < each <= end[1] for each in passing)
            for end in where
        )

    def _wanted(self) -> filters.Wanted:
        return None if self.filters is None else filters.wanted(self.filters)

    def _tops(self) -> dict[str, Position]:
        return {channel: self.world.end(channel) for channel in self.channels}

    # ---- single events

    def _publish(self) -> None:
        client = self.random.choice(self.clients)
        channel = self.random.choice(self.channels)
        for _ in range(self.random.choice((1, 1, 1, 2, 5))):
            self._publish_by(client, channel)
        if self.random.random() < CUT_OFF:
            client.drop()

    def _publish_by(self, client: SimulatedClient, channel: str) -> None:
        self.published += 1
        publish = client.publish_keyed if self.random.random() < KEYED else client.publish
        padding = PADDING_BYTES if self.large and self.random.random() < 0.5 else 0
        publish(channel, f"message-{self.published}", padding)

    def _publish_states(self) -> None:
        """Back ends do, which know of each other or not."""
        assert self.versions is not None, "only in runs with versions"
        random = self.versions.random
        channel = random.choice(self.channels)
        for _ in range(random.choice((1, 1, 2, 5))):
            content, version = self.versions.next(channel)
            self._publish_state(channel, content, version, self._now_s() + RETRIED_WITHIN_S)

    def _publish_state(self, channel: str, content: str, version: Version, until_s: float) -> None:
        assert self.versions is not None, "only in runs with versions"
        node = self._pick_node()
        if node is None:
            return
        key = content if content.endswith("7") else None
        answered = partial(self.versions.answered, channel, content)
        # A version that came back would not be known again behind one of another epoch.
        again = None
        if not self.versions.is_renumbered:
            again = partial(self._publish_state, channel, content, version, until_s)
        node.start(node.publish_state(channel, content, version, key, answered, again, until_s))

    def _publish_everywhere(self) -> None:
        for channel in self.channels:
            self.published += 1
            self.random.choice(self.clients).publish(channel, f"message-{self.published}")

    def _drop_client(self) -> None:
        self.random.choice(self.clients).drop()

    def _client_goes(self) -> None:
        self.random.choice(self.clients).go()

    def _client_comes(self) -> None:
        self.random.choice(self.clients).come()

    def _read_history(self) -> None:
        self.random.choice(self.clients).read_history(self.random.choice(self.channels))

    def _kill_node(self) -> None:
        victim = self.random.choice(self.nodes)
        victim.die()
        self.nodes.remove(victim)
        self.dead.append(victim)
        for client in self.clients:
            if not client.connected and not client.away:
                client.drop()
        self._add_node()

    def _freeze_node(self) -> None:
        """Suspend it for moments, for longer than a tail is valid beyond its margin, or a day."""
        seconds = self.random.choice((0.1, 30.0, 25 * 60.0, 26 * HOUR_S, 26 * HOUR_S))
        self.random.choice(self.nodes).fate.freeze(seconds)

    def _wound(self) -> None:
        if self.world.queues:
            self.hints_reliable = False
            queue = self.random.choice(sorted(self.world.queues))
            wound(self.world, queue, self.random.choice(list(Wound)))

    def _silence(self) -> None:
        """The stream brings nothing for a while."""
        self.world.stand_still(self.random.choice((5.0, 60.0, 300.0)))

    def _change_shards(self) -> None:
        """The Lambda goes by another number of topic shards, on which the nodes agree."""
        self.world.shards = self._new_shards()

    def _new_shards(self) -> int:
        return self.random.choice((1, self.shards))

    def _remove_history(self) -> None:
        ready = [node for node in self.nodes if node.ready]
        if ready:
            node, channel = self.random.choice(ready), self.random.choice(self.channels)
            node.start(node.remove_history(channel, partial(self._removed, channel)))

    def _removed(self, channel: str, position: StreamPosition) -> None:
        for client in self.clients:
            client.hidden[channel] = (position.epoch, position.offset)

    def _expire(self) -> None:
        self.world.expire_some(SimulatedClock(0).now_ms())

    def _poison(self) -> None:
        """Another program appends, by the rules, what nobody can read."""
        channel, now_ms = self.random.choice(self.channels), SimulatedClock(0).now_ms()
        table = SimulatedTable(self.world, SimulatedClock(0))
        items = table._log_items(channel)
        newest = items[-1] if items else None
        if newest is None or newest.epoch != self.world.end(channel)[0]:
            return
        if newest.expires_at * 1000 - MARGIN_MS <= now_ms:
            return
        self.hints_reliable = False
        offset = newest.last + 1
        expires_at = max(newest.expires_at, (now_ms + MIN_RETENTION_MS) // 1000)
        table._write(
            LogItem(
                channel=channel,
                offset=offset,
                last=offset,
                epoch=newest.epoch,
                pubs='[{"data":',
                newest_version=newest.newest_version,
                batch=f"poison-{len(self.world.stream)}",
                node="another",
                ts=now_ms,
                expires_at=expires_at,
            )
        )

    def _outage(self) -> None:
        """Nothing answers, or what is written cannot be read, for a while;
        it may be too long for who waits for a hole.
        """
        loop = asyncio.get_running_loop()
        self.world.down = self.random.choice((None, READS))
        if self.world.down is READS and self.random.random() < 0.8:
            self.hints_reliable = False
            self.world.silent_until_s = loop.time() + SILENT_S
            self._publish()
            loop.call_later(SILENT_S, self._publish)
        self.mail.order_one()
        self.mail.command()
        loop.call_later(self.random.choice((5.0, 150.0, 300.0)), self._end_outage)

    def _end_outage(self) -> None:
        self.world.down = frozenset()

    def _boast(self) -> None:
        self.random.choice(self.clients).boast(
            self.random.choice(self.channels), self.random.randint(1, 500)
        )

    # ---- within

    def _add_node(self) -> None:
        self.node_count += 1
        name = f"node-{self.node_count}"
        node = SimulatedNode(
            self.world,
            self.random,
            name,
            self.pace,
            self.mishaps,
            self.shards,
            self.options,
            self._express(),
            None if self.filters is None else filters.hooks(),
        )
        if self.filters is not None:
            # Of few tests a turn, most wait.
            sieves = node.assembly.hub.sieves
            sieves._budget = Budget(self.filters.choice(TESTS_A_TURN), sieves.go)
        self.nodes.append(node)

    def _express(self) -> Express | None:
        """Nodes may differ, as with all options."""
        if (dice := self.express) is None:
            return None
        return Express(dice.random() < EXPRESS_NODES, dice.choice(EXPRESS_PER_S))

    def _pick_node(self) -> SimulatedNode | None:
        ready = [node for node in self.nodes if node.ready]
        return self.random.choice(ready) if ready else None

    async def _until(self, condition: Callable[[], bool], limit_s: float) -> bool:
        loop = asyncio.get_running_loop()
        end = loop.time() + limit_s
        step = 0.5
        while not condition():
            if loop.time() >= end:
                return False
            await asyncio.sleep(step)
            step = min(60.0, step * 1.5)
        return True

    def _troubled_s(self) -> float:
        """When something failed last, or was slow:
        now, as long as a node is suspended or may have a full lane.
        """
        if any(node.fate.frozen is not None or node.may_have_a_full_lane for node in self.nodes):
            return asyncio.get_running_loop().time()
        return max(self.world.troubled_s, *(node.fate.thawed_at_s for node in self.nodes))

    def _note(self, what: str) -> None:
        self.trace.append(f"{self._now_s():12.3f} {what}")

    def _now_s(self) -> float:
        return asyncio.get_running_loop().time()


def simulate(
    seed: int,
    *,
    log: bool = False,
    sharded: bool = False,
    batched: bool = False,
    express: bool = False,
    filtered: bool = False,
    latest: bool = False,
) -> Outcome:
    """Run the scenario of `seed`. `log`: show what the nodes log. The others: as of a Scenario."""
    scenario = Scenario(
        seed, sharded=sharded, batched=batched, express=express, filtered=filtered, latest=latest
    )
    perform(scenario, log=log)
    return scenario.outcome()


def perform(scenario: Scenario, *, log: bool = False) -> None:
    """Run `scenario` to its end, on a loop of its own. `log`: show what the nodes log."""
    with scenario.mishaps.collected(shown=log):
        try:
            clockwork.run(scenario.run(), scenario.mishaps)
        except clockwork.Stuck as stuck:
            scenario.checker.fail(Kind.STUCK, str(stuck))


def _batches(random: Random) -> dict[str, int]:
    """Options of the channels."""
    return {
        "batch_max_size": random.choice(BATCH_SIZES),
        "batch_max_delay_ms": random.choice(BATCH_DELAYS_MS),
        "batch_flush_latest": random.random() < 0.3,
    }


def _faults(random: Random) -> Faults:
    """From hardly any to many at once."""
    severe = random.choice((0.0, 0.02, 0.1, 0.25))
    return Faults(
        throttled=severe * random.random(),
        unknown=severe * random.random(),
        slow=random.choice((0.0, 0.0, 0.02)),
        latency_s=random.choice((0.001, 0.02, 0.3)),
        hint_lost=random.choice((0.0, 0.0, 0.1, 1.0)),
        hint_repeated=random.choice((0.0, 0.2, 0.5)),
        hint_late_s=random.choice((0.01, 0.5, 5.0)),
    )
