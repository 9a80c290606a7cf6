"""Reads how a deployment is set up, one part after the other, and judges it.

What may not be read, or cannot be reached from here, is said and is no failure: nodes do not need
these permissions, and whoever runs `roomcast doctor` as a node does not have them.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final

from roomcast.account.ports import NotAllowed
from roomcast.account.rules import Finding
from roomcast.config import Config, ConsumerConfig
from roomcast.delivery.canary_rules import CANARY_CHANNEL
from roomcast.fleet.lease_record import Lease, standing
from roomcast.fleet.ports import Leases
from roomcast.log.item import LogItem
from roomcast.log.ports import ChannelTable
from roomcast.ports import Clock, PortError
from roomcast.setup.causes import advice
from roomcast.setup.ports import SetupReader
from roomcast.setup.readings import Table
from roomcast.setup.rules import (
    EVENTS_FINDING,
    MAPPING_FINDING,
    clock_finding,
    consumer_finding,
    events_finding,
    function_finding,
    generation_finding,
    gets_appends,
    key_finding,
    mapping_finding,
    node_finding,
    place_finding,
    secret_finding,
    skew_finding,
    stream_finding,
    table_finding,
    topic_finding,
    ttl_finding,
    versions_finding,
)

__all__ = ["NODES_MAX", "SetupChecks", "WantedTable"]

# Live nodes whose queues are looked at, two calls each. What is wrong with one by its making is
# wrong with all.
NODES_MAX: Final = 20

Work = Callable[[], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class WantedTable:
    """A table that there should be. `is_log`: the stream Lambda reads its stream. `expires_by`: the
    attribute of TTL, "" = none. `has_events`: the events Lambda reads its stream, if events are
    wanted.
    """

    name: str
    is_log: bool
    expires_by: str
    has_events: bool = False


class SetupChecks:
    """`tell` receives each finding when it is there."""

    def __init__(
        self,
        config: Config,
        reader: SetupReader,
        leases: Leases,
        log: ChannelTable,
        clock: Clock,
        tables: Sequence[WantedTable],
        tell: Callable[[Finding], None],
        *,
        region: str,
        version: str,
        key_bytes_min: int,
    ) -> None:
        """`region`: in which it is read. `version`: of this release. `key_bytes_min`: of a secret
        that is long enough.
        """
        self._config = config
        self._reader = reader
        self._leases = leases
        self._log = log
        self._clock = clock
        self._tables = tables
        self._tell = tell
        self._region = region
        self._version = version
        self._key_bytes_min = key_bytes_min
        self._findings: list[Finding] = []
        self._denied: set[str] = set()
        self._live: Sequence[Lease] = ()
        # What is under which key of KMS; of queues, SNS must use it as well.
        self._keys: dict[str, list[str]] = {}
        self._queue_keys: set[str] = set()

    async def run(self) -> list[Finding]:
        """Runs every check, in order. Nothing is raised for one that fails."""
        for table in self._tables:
            await self._check(f"set-up of {table.name}", partial(self._table, table))
        await self._check("set-up of the topic", self._topic)
        await self._check("releases", self._nodes)
        await self._check("queues of nodes", self._queues)
        for consumer in self._config.consumers:
            for url in consumer.aws_sqs.queues if consumer.enabled else ():
                work = partial(self._consumer, consumer, url)
                await self._check(f"consumer {consumer.name}", work)
        await self._check("log generation", self._generation)
        if self._config.aws.queue_kms_key_id:
            self._under(self._config.aws.queue_kms_key_id, "queues", is_queue=True)
        for key, what in self._keys.items():
            names = ", ".join(dict.fromkeys(what))
            await self._check(f"key of KMS: {names}", partial(self._key, key, names))
        client = self._config.client
        secrets = {
            "client.token.hmac_secret_key": client.token.hmac_secret_key,
            "client.token.hmac_previous_secret_key": client.token.hmac_previous_secret_key,
            "client.subscription_token.hmac_secret_key": client.subscription_token.hmac_secret_key,
            "client.subscription_token.hmac_previous_secret_key": (
                client.subscription_token.hmac_previous_secret_key
            ),
            "http_api.key": self._config.http_api.key,
        }
        self._found(
            secret_finding(
                secrets,
                insecure=client.insecure,
                bytes_min=self._key_bytes_min,
            )
        )
        if self._denied:
            names = ", ".join(sorted(self._denied))
            self._found(
                Finding(
                    "rest of the set-up",
                    "skipped",
                    f"could not be read, for want of {names}",
                    "instances do not need that; run it once as somebody who may read the set-up",
                )
            )
        return self._findings

    async def _check(self, name: str, work: Work) -> None:
        try:
            await work()
        except NotAllowed as error:
            self._denied.add(error.permission)
        except (PortError, TimeoutError) as error:
            told = str(error) or type(error).__name__
            self._found(Finding(name, "skipped", f"could not be read: {told}", advice(told)))

    def _found(self, finding: Finding) -> None:
        self._findings.append(finding)
        self._tell(finding)

    # ---- tables, stream, Lambda

    async def _table(self, wanted: WantedTable) -> None:
        sent_ms = self._clock.now_ms()
        table = await self._reader.table(wanted.name)
        # Halfway between question and answer it was the time that AWS says.
        here_ms = (sent_ms + self._clock.now_ms()) // 2
        self._found(table_finding(wanted.name, table, self._region))
        if table is None:
            return
        if table.key:
            self._under(table.key, "tables")
        if wanted.is_log:
            if table.answered_ms:
                self._found(clock_finding(here_ms, table.answered_ms))
            self._found(place_finding(self._config.aws.topic_arn, table))
            self._found(stream_finding(wanted.name, table, self._region))
            if table.stream_arn:
                await self._check(MAPPING_FINDING, partial(self._lambda, table))
        if wanted.has_events and _wants_events(self._config):
            await self._check(EVENTS_FINDING, partial(self._events, table))
        if wanted.expires_by:
            await self._check(f"TTL of {wanted.name}", partial(self._expiry, wanted))

    async def _expiry(self, wanted: WantedTable) -> None:
        found = await self._reader.expires_by(wanted.name)
        self._found(ttl_finding(wanted.name, found, wanted.expires_by, self._region))

    async def _lambda(self, table: Table) -> None:
        mappings = await self._reader.mappings(table.stream_arn)
        if not mappings and self._config.aws.endpoint_url:
            told = "there is none: an emulator's stream is read otherwise"
            self._found(Finding(MAPPING_FINDING, "note", told))
            return
        self._found(mapping_finding(mappings, self._region))
        of_appends = [each for each in mappings if gets_appends(each)]
        for name in dict.fromkeys(each.function for each in of_appends if each.function):
            await self._check("stream Lambda", partial(self._function, name))

    async def _events(self, table: Table) -> None:
        mappings = await self._reader.mappings(table.stream_arn) if table.stream_arn else ()
        if not mappings and self._config.aws.endpoint_url:
            told = "there is none: an emulator's stream is read otherwise"
            self._found(Finding(EVENTS_FINDING, "note", told))
            return
        self._found(events_finding(table, mappings, self._region))

    async def _function(self, name: str) -> None:
        aws, function = self._config.aws, await self._reader.function(name)
        self._found(function_finding(function, aws.topic_arn, aws.topic_shards))

    # ---- topic, nodes and their queues

    async def _topic(self) -> None:
        arn = self._config.aws.topic_arn
        topic = await self._reader.topic(arn)
        if topic is not None and topic.key:
            self._under(topic.key, "topic")
        self._found(topic_finding(arn, topic))

    async def _nodes(self) -> None:
        now_ms = self._clock.now_ms()
        self._live = [
            lease for lease in await self._leases.all() if standing(lease, now_ms) == "live"
        ]
        self._found(versions_finding(self._live, self._version))
        self._found(skew_finding(self._live))

    async def _queues(self) -> None:
        looked_at = [
            lease for lease in self._live if lease.queue_url and lease.state != "starting"
        ][:NODES_MAX]
        found = [await self._queue(lease) for lease in looked_at]
        wrong = [finding for finding in found if finding.outcome != "ok"]
        for finding in wrong:
            self._found(finding)
        if found and not wrong:
            self._found(Finding("queues of nodes", "ok", f"{len(found)}: {found[0].told}"))

    async def _queue(self, lease: Lease) -> Finding:
        aws, queue = self._config.aws, await self._reader.queue(lease.queue_url)
        if queue is not None and queue.key:
            self._under(queue.key, "queues", is_queue=True)
        subscription = None
        if lease.subscription_arn:
            subscription = await self._reader.subscription(lease.subscription_arn)
        return node_finding(lease, queue, subscription, aws.topic_arn, aws.topic_shards)

    async def _consumer(self, consumer: ConsumerConfig, url: str) -> None:
        region = consumer.aws_sqs.region
        if region and region != self._region:
            told = f"{url} is in {region}, and was not looked at"
            self._found(Finding(f"consumer {consumer.name}", "note", told))
            return
        queue = await self._reader.queue(url)
        if queue is not None and queue.key:
            self._under(queue.key, "queues of consumers")
        self._found(consumer_finding(consumer.name, url, queue, self._region))

    async def _generation(self) -> None:
        newest = await self._log.newest(CANARY_CHANNEL)
        written = newest if isinstance(newest, LogItem) else None
        self._found(
            generation_finding(written, self._config.aws.log_generation, self._clock.now_ms())
        )

    # ---- keys

    def _under(self, key: str, what: str, *, is_queue: bool = False) -> None:
        self._keys.setdefault(key, []).append(what)
        if is_queue:
            self._queue_keys.add(key)

    async def _key(self, key: str, what: str) -> None:
        found = await self._reader.key(key)
        self._found(key_finding(what, found, sends=key in self._queue_keys))


def _wants_events(config: Config) -> bool:
    """Whether back ends are told of anything."""
    return bool(config.client.events) or any(
        options.events for options in config.channel.all_options()
    )
