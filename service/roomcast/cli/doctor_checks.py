"""Tests everything that a node needs of AWS, in the node's own order, and leaves nothing behind.

The checks act like a node. They read and write each table. They create a queue under a lease,
subscribe it, and send a greeting through the topic, and one straight to the queue, as nodes send to
each other. They write a canary that has to come back through the stream and the Lambda.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Final

from roomcast.auth.verifier import verifier_of
from roomcast.aws.schema import channels_table, idempotency_table, nodes_table, presence_table
from roomcast.concurrency import beside
from roomcast.config import Config
from roomcast.delivery import signals
from roomcast.delivery.canary_rules import CANARY_CHANNEL, canary_item, next_number
from roomcast.fleet.lease import LeaseKeeper, NothingToReport
from roomcast.fleet.lease_record import standing
from roomcast.fleet.mailbox import Mailbox
from roomcast.log.item import LogItem
from roomcast.node.assembly import Assembly, Ports, assemble, build_core
from roomcast.ports import Clock, NewId, PortError
from roomcast.presence.ports import Member
from roomcast.setup.causes import advice, texts_of
from roomcast.wire.names import RESERVED_PREFIX
from roomcast.wire.publication import ClientInfo

__all__ = ["CHANNEL_WRITE_UNITS_S", "PIPELINE_S", "Check", "Doctor"]

# DynamoDB's stream, the Lambda (with a cold start), SNS and SQS usually take a second at most.
PIPELINE_S: Final = 30.0
# The interval of checks for the canary: well below the measured times.
_LOOK_S: Final = 0.02
# A heartbeat this far in the future is an error: machines with NTP differ far less, and a lease
# lasts far longer.
_CLOCKS_APART_MS: Final = 2000
# Numbers to try before giving up, because other nodes write canaries as well.
_TRIES_MAX: Final = 5
# The channel of everything that the checks write. No client can subscribe to it.
_CHANNEL: Final = RESERVED_PREFIX + "doctor"
# A channel's log is one partition of the table. Each partition has this many write units a second,
# whatever the table's capacity.
# https://docs.aws.amazon.com/amazondynamodb/latest/developerguide/bp-partition-key-design.html
CHANNEL_WRITE_UNITS_S: Final = 1000
_WRITE_UNIT_BYTES: Final = 1024
_SKIPPED: Final = "not tried: it needs what failed above"


@dataclass(frozen=True, slots=True)
class Check:
    """One check. `outcome`: ok, warning (it works, but needs attention), failed, skipped, or note
    (nothing was tested, but it is good to know). `ask`: what to do, "" = nothing is known.
    """

    name: str
    outcome: str
    told: str
    took_ms: int = 0
    ask: str = ""


def _ceiling(config: Config) -> str:
    """The write rate that one channel can reach with these options, in words."""
    channel = config.channel
    if not any(
        options.has_history for options in (channel.without_namespace, *channel.namespaces.values())
    ):
        return (
            "no channel has history in this configuration, so nothing is written for a "
            "publication: docs/scaling.md"
        )
    units = config.client.message_size_limit // _WRITE_UNIT_BYTES + 1
    return (
        f"with history about {CHANNEL_WRITE_UNITS_S:,} write units of DynamoDB a second, on all "
        "instances together. Each KiB of an append costs one. They are enough for some "
        f"{CHANNEL_WRITE_UNITS_S // units} publications as large as client.message_size_limit "
        "allows, or for thousands of small ones that share appends: docs/scaling.md"
    )


class Doctor:
    """Runs the checks. `tell` receives each check when it is done."""

    def __init__(
        self, config: Config, ports: Ports, *, node: str, tell: Callable[[Check], None]
    ) -> None:
        """`node`: the id for everything that is written. It must be new."""
        self._config = config
        self._ports = ports
        self._clock: Clock = ports.clock
        self._new_id: NewId = ports.new_id
        self._node = node
        self._tell = tell
        self._checks: list[Check] = []
        self._lease = LeaseKeeper(
            ports.leases,
            ports.clock,
            ports.random,
            owner=NothingToReport(),
            node=node,
            new_id=ports.new_id,
            ttl_s=config.node.lease_ttl_s,
            heartbeat_s=config.node.heartbeat_s,
        )
        self._assembly: Assembly = assemble(
            build_core(config, ports, node_id=node),
            lease=self._lease,
            verifier=verifier_of(config.client, insecure=config.client.insecure),
        )

    async def run(self) -> list[Check]:
        """Runs every check, in order.

        A check that lacks the result of an earlier one says so. Nothing is raised for it.
        """
        prefix = self._config.aws.table_prefix
        tables = [
            await self._check(f"table {channels_table(prefix)}", self._channels),
            await self._check(f"table {idempotency_table(prefix)}", self._keys),
            await self._check(f"table {presence_table(prefix)}", self._presence),
            await self._check(f"table {nodes_table(prefix)}", self._nodes),
        ]
        async with AsyncExitStack() as stack:
            opened = await self._check("queue", lambda: self._open(stack), needs=tables[3])
            await self._check("topic to queue", self._greet, needs=opened)
            await self._check("node to queue", self._send, needs=opened)
            shards = self._config.aws.topic_shards > 1
            joined = shards and await self._check("topic shards", self._join_shards, needs=opened)
            emitted = await self._check("table to queue", self._emit, needs=tables[0] and opened)
            if shards:
                await self._check(
                    "table to topic shards", self._hear_shards, needs=joined and emitted
                )

            async def clean_up() -> str:
                await stack.aclose()
                return "nothing is left of it"

            await self._check("clean-up", clean_up, needs=tables[3])
        self._done(Check("ceiling of a channel", "note", _ceiling(self._config)))
        return self._checks

    async def _check(
        self, name: str, work: Callable[[], Awaitable[str | None]], *, needs: bool = True
    ) -> bool:
        """Runs one check, and returns whether it passed.

        `work` returns the message. A "!" before it makes it a warning.
        """
        if not needs:
            self._done(Check(name, "skipped", _SKIPPED))
            return False
        started_s, ask = self._clock.monotonic_s(), ""
        try:
            told = await work() or ""
            outcome = "warning" if told.startswith("!") else "ok"
            told = told.removeprefix("!")
        except (PortError, TimeoutError) as error:
            outcome, told = "failed", str(error) or type(error).__name__
            ask = next(filter(None, map(advice, texts_of(error))), "")
        took_ms = round((self._clock.monotonic_s() - started_s) * 1000)
        self._done(Check(name, outcome, told, took_ms, ask))
        return outcome != "failed"

    def _done(self, check: Check) -> None:
        self._checks.append(check)
        self._tell(check)

    # ---- tables

    async def _channels(self) -> str:
        """Only reads: the canary writes."""
        await self._assembly.log.head(_CHANNEL)
        await self._ports.table.newest(CANARY_CHANNEL)
        return "can be read"

    async def _keys(self) -> str:
        await self._assembly.log.key_position(_CHANNEL, "")
        return "can be read"

    async def _presence(self) -> str:
        member = Member(self._node, ClientInfo("", self._node))
        await self._ports.presence.add(_CHANNEL, member)
        try:
            found = await self._ports.presence.members(_CHANNEL)
        finally:
            await self._ports.presence.remove(_CHANNEL, member)
        if member not in found:
            raise PortError("what was written is not read back")
        return "can be written and read"

    async def _nodes(self) -> str:
        leases, now = await self._ports.leases.all(), self._clock.now_ms()
        ahead_ms = max((lease.heartbeat_at - now for lease in leases), default=0)
        if ahead_ms > _CLOCKS_APART_MS:
            return (
                f"!a node's clock is {ahead_ms / 1000:.0f} s ahead of this one's: leases go by "
                "clocks; is NTP running?"
            )
        live = sum(standing(lease, now) == "live" for lease in leases)
        dead = len(leases) - live
        nodes = f"{live} live node{'' if live == 1 else 's'}"
        if dead:
            return f"!{nodes}, {dead} dead: is the reaper running? `roomcast reap` cleans up"
        return nodes

    # ---- queue, topic and pipeline

    async def _open(self, stack: AsyncExitStack) -> str:
        """Opens a queue under a lease, so that the reaper finds it if this process dies."""
        stack.push_async_callback(self._lease.drop)
        stack.push_async_callback(self._assembly.listener.close)
        await stack.enter_async_context(beside(self._lease.run()))
        await self._assembly.listener.open()
        await stack.enter_async_context(beside(self._assembly.poller.run()))
        return "made, subscribed and polled"

    async def _greet(self) -> str:
        if not await self._assembly.listener.prove():
            raise PortError(
                "a message to the topic did not come back within "
                f"{self._config.node.queue_probe_s:g} s: is aws.topic_arn the topic that this "
                "account's queues may be subscribed to?"
            )
        return "a message came back"

    async def _send(self) -> str:
        """Sends to its own queue what nodes send to the queues of others."""
        greeting = signals.hello(self._node, self._new_id())
        heard = self._assembly.shards.greetings.sent(greeting.id)
        mailbox = Mailbox(self._ports.queue, self._ports.leases, self._clock)
        await mailbox.send(self._lease.id, greeting)
        wait_s = self._config.node.queue_probe_s
        try:
            async with asyncio.timeout(wait_s):
                await heard.wait()
        except TimeoutError:
            raise PortError(
                f"a message to the queue did not come out of it within {wait_s:g} s"
            ) from None
        return "a message came out of it"

    async def _join_shards(self) -> str:
        shards = self._config.aws.topic_shards
        unheard: list[int] = []
        for shard in range(shards):
            for _ in range(_TRIES_MAX):
                # A subscription may take a moment to take effect.
                if await self._assembly.shard_keeper.join(shard):
                    break
            else:
                unheard.append(shard)
        if unheard:
            raise PortError(
                f"no message came back through topic shards {', '.join(map(str, unheard))} of "
                f"{shards}"
            )
        return f"subscribed to {shards}, and a message came back through each"

    async def _hear_shards(self) -> str:
        """The canary that was written last must come through each topic shard as well."""
        plan, number = self._assembly.shards.plan, self._assembly.ears.newest
        if plan.told == 1:
            return (
                "!the stream Lambda publishes to the base topic only: it may go by "
                f"{plan.number} topic shards when all nodes do"
            )
        if not plan.agrees:
            raise PortError(
                f"the stream Lambda publishes to {plan.told} topic shards, and aws.topic_shards "
                f"is {plan.number}"
            )
        missing = set(range(plan.number))
        try:
            async with asyncio.timeout(PIPELINE_S):
                # Its coming tells nobody, as above.
                while missing := {each for each in missing if not plan.has_heard(each, number)}:  # noqa: ASYNC110
                    await asyncio.sleep(_LOOK_S)
        except TimeoutError:
            raise PortError(
                f"an item in the table did not come through topic shards {sorted(missing)} within "
                f"{PIPELINE_S:g} s: may the Lambda publish to their topics?"
            ) from None
        return "an item came through each"

    async def _emit(self) -> str:
        number = await self._emitted()
        try:
            async with asyncio.timeout(PIPELINE_S):
                while self._assembly.ears.newest < number:  # noqa: ASYNC110  # a canary tells nobody that it came
                    await asyncio.sleep(_LOOK_S)
        except TimeoutError:
            raise PortError(
                f"an item in the table did not come back within {PIPELINE_S:g} s: look at the "
                "table's stream, the Lambda's event source mapping, and the Lambda's errors"
            ) from None
        latency = self._assembly.ears.latency
        assert latency is not None, "a canary was heard"
        return (
            f"an item came back: {latency.to_lambda_ms} ms to the Lambda, {latency.to_node_ms} ms "
            "from there"
        )

    async def _emitted(self) -> int:
        """The number of a canary that has just been written to the table."""
        interval_ms = round(self._config.node.canary_interval_s * 1000)
        for _ in range(_TRIES_MAX):
            newest, now = await self._ports.table.newest(CANARY_CHANNEL), self._clock.now_ms()
            known = newest.last if isinstance(newest, LogItem) else 0
            item = canary_item(
                next_number(known, now, interval_ms),
                node=self._node,
                batch=self._new_id(),
                now=now,
                generation=self._config.aws.log_generation,
            )
            if (
                await self._ports.table.put_item(item, tail_valid_until_ms=now + interval_ms)
                is None
            ):
                return item.last
        raise PortError("other nodes emitted canaries at every moment; try again")
