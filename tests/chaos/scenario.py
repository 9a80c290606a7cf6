"""One run: a fleet behind a proxy that misbehaves, clients that stay,
and at the end nothing lost and nothing twice.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from random import Random
from typing import Final

from roomcast.config import Config, load
from tests.acceptance.peers import Event, Peer
from tests.acceptance.roomcast import Aws, Dev, emulator
from tests.chaos.checker import Bounds, Checker, Log
from tests.chaos.clients import CLIENTS, STREAMING, Balancer, Publisher, open_peer
from tests.chaos.fleet import CONFIG, Fleet
from tests.chaos.proxy import Deliveries, FaultProxy, Phase
from tests.chaos.schedule import Schedule, Strike

__all__ = ["DURATION_S", "Outcome", "run"]

DURATION_S: Final = float(os.environ.get("ROOMCAST_CHAOS_S", "30"))
INSTANCES: Final = 3
# The last one shows so little history that a client may have to be told of what it missed.
CHANNELS: Final = ("red", "green", "express:blue", "hot", "short:grey")
# What a publisher on each instance publishes to all the time, and at the end as fast as it can.
HOT: Final = "hot"
CONTEST_S: Final = 5.0
# Of what the instances' publishers got on average, the least that one may get
# when nothing is wrong.
POOREST_MIN: Final = 0.3
PUBLISHERS: Final = 3
SUBSCRIBERS: Final = 7
# From the last fault to the last delivery: a long poll (20 s), a back-off (10 s),
# a client's pause (20 s).
CONVERGENCE_S: Final = 75.0
# A peer that waits in vain tells all that ever happened to it.
_REASON_CHARS_MAX: Final = 1000
# Entries that could not be removed are tried again every 5 s.
PRESENCE_S: Final = 20.0
# Between two looks at a table, which tells of no event.
PRESENCE_LOOK_S: Final = 0.5
# What is done to deliveries while faults last.
_DISORDER: Final = Deliveries(repeat=0.8, shuffle=0.5, withhold=0.2)


@dataclass(slots=True)
class Outcome:
    """What happened. `events`: everything subscribers were told,
    for a checker to be fed with it again.
    """

    schedule: Schedule
    checker: Checker
    log: Log
    events: list[tuple[str, Event]]
    numbers: list[tuple[str, object]]
    faults: int
    kills: int
    violations: list[str] = field(default_factory=list)
    # What the instances said, for a failure report.
    report: str = ""

    def table(self) -> str:
        """For people."""
        width = max(len(name) for name, _ in self.numbers)
        lines = [f"  {name:<{width}}  {value}" for name, value in self.numbers]
        again = f"python -m tests.chaos {self.schedule.seed} --seconds {self.schedule.duration_s:g}"
        return "\n".join(
            [f"chaos, seed {self.schedule.seed}; again: {again}", *lines, *self.violations]
        )


async def run(
    seed: int, duration_s: float, node: str | None, say: Callable[[str], None]
) -> Outcome:
    """`node`: the path of Node.js, None without the JavaScript SDK.
    `say` is told what begins, as it begins.
    """
    schedule = Schedule.of(seed, duration_s)
    random = Random(f"run {seed}")
    with emulator() as endpoint, _looked_at(endpoint) as aws:
        async with (
            FaultProxy(endpoint, Random(f"proxy {seed}")) as proxy,
            _fleet(proxy, aws, random) as fleet,
        ):
            chaos = _Chaos(schedule, proxy, fleet, random, say)
            try:
                async with AsyncExitStack() as stack:
                    await chaos.open_clients(stack, node)
                    await chaos.rage()
                    await chaos.converge()
                    await chaos.contend()
                    await chaos.part()
                    await chaos.converge()
                    await chaos.compare_presence()
                await asyncio.to_thread(fleet.stop, proxy.subscribed_late)
            except AssertionError as error:
                chaos.broke(str(error))
            return chaos.outcome()


class _Chaos:
    def __init__(
        self,
        schedule: Schedule,
        proxy: FaultProxy,
        fleet: Fleet,
        random: Random,
        say: Callable[[str], None],
    ) -> None:
        self._schedule = schedule
        self._proxy = proxy
        self._fleet = fleet
        self._random = random
        self._say = say
        self._checker = Checker(_bounds(load(CONFIG, {})))
        self._events: list[tuple[str, Event]] = []
        self._delivered = asyncio.Event()
        self._links: list[Balancer] = []
        self._publishers: list[Publisher] = []
        self._contenders: list[Publisher] = []
        self._contest: list[tuple[int, int]] = []
        self._subscribers: list[Peer] = []
        self._cuts = 0
        self._log: Log = {}
        self._converged_s: list[float] = []
        self._broke: list[str] = []

    # ---- before

    async def open_clients(self, stack: AsyncExitStack, node: str | None) -> None:
        urls = [
            f"{each.url.replace('http', 'ws', 1)}/connection/websocket"
            for each in self._fleet.instances()
        ]

        async def opened(
            name: str, sdk: str, told: Callable[[Event], None], targets: Sequence[str] = urls
        ) -> Peer:
            random = Random(f"{name} {self._schedule.seed}")
            link = await stack.enter_async_context(Balancer(targets, random))
            self._links.append(link)
            peer = open_peer(sdk, link.url, told, node, CHANNELS)
            stack.push_async_callback(peer.close)
            await peer.connect()
            return peer

        for index in range(SUBSCRIBERS):
            name = f"subscriber {index} ({CLIENTS[index % len(CLIENTS)]})"
            peer = await opened(name, CLIENTS[index % len(CLIENTS)], self._teller(name))
            self._subscribers.append(peer)
            for channel in CHANNELS:
                await peer.subscribe(channel)
        for index in range(PUBLISHERS):
            name = f"publisher {index}"
            sdk = CLIENTS[index % len(CLIENTS)]
            peer = await opened(name, sdk, lambda event: None)
            random = Random(f"{name} {self._schedule.seed}")
            publisher = Publisher(
                f"p{index}", peer, CHANNELS, self._checker, random, in_order=sdk != STREAMING
            )
            self._publishers.append(publisher)
        for index, url in enumerate(urls):
            name = f"contender {index}"
            peer = await opened(name, "py", lambda event: None, [url])
            random = Random(f"{name} {self._schedule.seed}")
            self._contenders.append(Publisher(f"c{index}", peer, [HOT], self._checker, random))

    def _teller(self, subscriber: str) -> Callable[[Event], None]:
        def told(event: Event) -> None:
            self._events.append((subscriber, event))
            self._checker.happened(subscriber, event)
            self._delivered.set()

        return told

    # ---- meanwhile

    async def rage(self) -> None:
        """All of the schedule, with publishers at work; then all faults end."""
        loop = asyncio.get_running_loop()
        begin_s = loop.time()
        stop = asyncio.Event()
        publishers = [*self._publishers, *self._contenders]
        work = [asyncio.create_task(publisher.run(stop)) for publisher in publishers]
        self._proxy.deliveries = _DISORDER
        try:
            for timed in self._schedule.timed:
                await asyncio.sleep(begin_s + timed.at_s - loop.time())
                self._say(f"{timed.at_s:6.1f} s  {_name(timed.what)}")
                await self._begin(timed.what)
            await asyncio.sleep(begin_s + self._schedule.duration_s - loop.time())
        finally:
            self._say(f"{loop.time() - begin_s:6.1f} s  the end of all faults")
            await self._proxy.calm_down()
            stop.set()
            await asyncio.gather(*work)

    async def _begin(self, what: Phase | Strike) -> None:
        if isinstance(what, Phase):
            await self._proxy.enter(what)
        elif what is Strike.CUT:
            for link in self._random.sample(self._links, len(self._links) // 2):
                link.cut()
                link.mend()
                self._cuts += 1
        else:
            await self._fleet.strike(what)

    # ---- after

    async def converge(self) -> None:
        """Wait until every subscriber stands where the log ends,
        and that does not move any more.
        """
        begin_s = time.monotonic()
        log = await asyncio.to_thread(self._read_log)
        try:
            async with asyncio.timeout(CONVERGENCE_S):
                while True:
                    while self._behind(log):
                        self._delivered.clear()
                        await self._delivered.wait()
                    before, log = log, await asyncio.to_thread(self._read_log)
                    if log == before:
                        break
                self._converged_s.append(time.monotonic() - begin_s)
                await self._fleet.settled()
        except TimeoutError:
            raise AssertionError(f"not converged within {CONVERGENCE_S:.0f} s") from None
        finally:
            self._log = log

    async def contend(self) -> None:
        """When all is well: a publisher on each instance publishes to one channel as
        fast as it is answered.
        """
        await self._fleet.all_well()
        for contender in self._contenders:
            await contender.publish_last(HOT)
        work = (contender.publish_at_once(HOT, CONTEST_S) for contender in self._contenders)
        self._contest = list(await asyncio.gather(*work))
        acknowledged = [each for each, _ in self._contest]
        if min(acknowledged) < POOREST_MIN * sum(acknowledged) / len(acknowledged):
            self._broke.append(f"an instance is starved: {acknowledged} publications of {HOT}")
        if refused := sum(each for _, each in self._contest):
            self._broke.append(
                f"{refused} publications of {HOT} were not acknowledged while nothing was wrong"
            )

    async def part(self) -> None:
        """The last blow, when all else is well: ears are taken, and nothing follows what they miss.

        One message of every publisher in every channel; it must be acknowledged.
        """
        await self._fleet.strike_well((Strike.UNSUBSCRIBE, Strike.DELETE_QUEUE))
        for publisher in self._publishers:
            for channel in CHANNELS:
                await publisher.publish_last(channel)

    async def compare_presence(self) -> None:
        """Wait until exactly those are present who are subscribed."""
        clients = {peer.client for peer in self._subscribers}
        give_up_s = time.monotonic() + PRESENCE_S
        for channel in CHANNELS[:-1]:
            while (members := await asyncio.to_thread(self._fleet.members, channel)) != clients:
                if time.monotonic() > give_up_s:
                    self._broke.append(
                        f"presence of {channel}: {len(clients - members)} are missing, "
                        f"{len(members - clients)} are gone and still there"
                    )
                    break
                await asyncio.sleep(PRESENCE_LOOK_S)

    def broke(self, why: str) -> None:
        """The run cannot go on."""
        self._broke.append(f"broke off: {why[:_REASON_CHARS_MAX]}")

    def _behind(self, log: Log) -> bool:
        for view in self._checker.views.values():
            entries = log[view.channel]
            if entries and (view.position is None or view.position[1] < entries[-1].offset):
                return True
        return False

    def _read_log(self) -> Log:
        return {channel: self._fleet.log(channel) for channel in CHANNELS}

    def outcome(self) -> Outcome:
        violations = [*self._broke, *self._checker.finish(self._log), *self._fleet.violations]
        checker, proxy = self._checker, self._proxy
        noticed = [wound.noticed_s for wound in self._fleet.wounds if wound.noticed_s is not None]
        logged = sum(len(entries) for entries in self._log.values())
        numbers: list[tuple[str, object]] = [
            ("published", checker.published),
            ("acknowledged", checker.acknowledged),
            (
                "unknown",
                (
                    f"{checker.published - checker.acknowledged} (in the log: "
                    f"{logged - checker.acknowledged})"
                ),
            ),
            (
                "one channel, each instance",
                " : ".join(str(each) for each, _ in self._contest) or "-",
            ),
            ("delivered", f"{checker.delivered} to {SUBSCRIBERS} subscribers"),
            ("recovered", checker.recovered),
            ("told", checker.told),
            ("lost", checker.lost),
            ("calls to AWS", sum(proxy.calls.values())),
            ("repeated by SQS", proxy.repeated),
            ("reordered by SQS", f"{proxy.shuffled} receives, {proxy.withheld} messages held back"),
            *((f"fault: {fault}", count) for fault, count in sorted(proxy.injected.items())),
            *(
                (f"strike: {strike}", count)
                for strike, count in sorted(self._fleet.strikes.items())
            ),
            ("clients cut", self._cuts),
            ("deafness noticed after", ", ".join(f"{each:.1f} s" for each in noticed) or "-"),
            (
                "converged after",
                ", ".join(f"{each:.1f} s" for each in self._converged_s) or "never",
            ),
            ("violations", len(violations)),
        ]
        return Outcome(
            self._schedule,
            checker,
            self._log,
            self._events,
            numbers,
            faults=sum(proxy.injected.values()),
            kills=self._fleet.strikes[Strike.KILL],
            violations=violations,
            report=self._fleet.report,
        )


@contextmanager
def _looked_at(endpoint: str) -> Iterator[Aws]:
    aws = Aws(endpoint)
    try:
        yield aws
    finally:
        aws.close()


@asynccontextmanager
async def _fleet(proxy: FaultProxy, aws: Aws, random: Random) -> AsyncIterator[Fleet]:
    """Everything that blocks, in threads: the proxy must go on meanwhile."""
    options = [
        "--aws-endpoint",
        proxy.url,
        "--instances",
        str(INSTANCES),
        "--restart",
        "--config",
        str(CONFIG),
    ]
    dev = Dev(*options)
    try:
        await asyncio.to_thread(dev.until_ready)
        # It says so by two ways: the fleet is told of its instances by the other one.
        for node in dev.nodes:
            await asyncio.to_thread(dev.until_said, node, "pid")
        yield Fleet(dev, aws, random)
    finally:
        await asyncio.to_thread(dev.close)


def _bounds(config: Config) -> Callable[[str], Bounds]:
    """What the instances go by."""

    def bounds(channel: str) -> Bounds:
        options = config.channel.options(channel)
        assert options is not None, "the channels here have options"
        return Bounds(
            min(options.history_size, config.client.recovery_max_publication_limit),
            options.history_ttl_s,
        )

    return bounds


def _name(what: Phase | Strike) -> str:
    return what.name if isinstance(what, Phase) else what.value
