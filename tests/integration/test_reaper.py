"""The reaper against the embedded AWS, through each of its doors: as the Lambda,
from the command line, by itself.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path
from typing import Any, Final

import aiohttp
import boto3
import pytest

from roomcast.aws.clients import connect
from roomcast.aws.estate import SqsEstate
from roomcast.aws.leases import DynamoLeases, lease_attributes
from roomcast.aws.presence import DynamoPresence
from roomcast.aws.queue import SqsInstanceQueue
from roomcast.aws.schema import nodes_table, presence_table
from roomcast.aws.threads import ThreadedClient
from roomcast.delivery.envelope import Signal, parse
from roomcast.fleet.deployment import Deployment, queue_tags
from roomcast.fleet.lease_record import Lease
from roomcast.presence.ports import Member
from roomcast.reaper.handler import Clients, Settings, asked, carry_out
from roomcast.reaper.over_aws import reaper_over_aws
from roomcast.reaper.reaper import Reaper
from roomcast.reaper.rules import ORPHAN_AGE_MS, REAP_GRACE_MS
from roomcast.testing.memory import ManualClock
from roomcast.wire.publication import ClientInfo
from tests.contract.backends import REGION, ROOT, SESSION, AwsBackend, aws_backend, emulator
from tests.integration.serving import Ahead, deployed, no_wait, serving
from tests.websocket import WebSocket

EVENTS: Final = ROOT / "tests" / "fixtures" / "events"
TTL_MS: Final = 60_000
DEAD_MS: Final = TTL_MS + REAP_GRACE_MS + 1000
ROOM: Final = "room"
COMMAND_S: Final = 60
# Two pages each of ListQueues and of ListSubscriptionsByTopic.
MANY: Final = 1500
SUBSCRIBED: Final = 150
# Calls of a test's own at once; the clients' pools are as large.
AT_ONCE: Final = 16
# What BatchWriteItem takes.
BATCH: Final = 25

pytestmark = [pytest.mark.fleet, pytest.mark.timeout(120)]

_prefixes: Final = (f"reaper{number}-" for number in count(1))


@dataclass(slots=True)
class Site:
    """One deployment, its nodes made with the adapters that nodes use,
    and a clock for its reaper.
    """

    backend: AwsBackend
    endpoint: str
    clock: ManualClock

    @property
    def deployment(self) -> Deployment:
        return self.backend.deployment

    @property
    def leases(self) -> DynamoLeases:
        return DynamoLeases(self.backend.clients.tables, nodes_table(self.backend.prefix))

    @property
    def presence(self) -> DynamoPresence:
        return DynamoPresence(self.backend.clients.tables, presence_table(self.backend.prefix))

    @property
    def estate(self) -> SqsEstate:
        clients = self.backend.clients
        return SqsEstate(clients.sqs, clients.sns, self.deployment, no_wait)

    @property
    def reaper(self) -> Reaper:
        clients = self.backend.clients
        return reaper_over_aws(
            self.deployment,
            self.backend.prefix,
            self.clock,
            dynamodb=clients.tables,
            sns=clients.sns,
            sqs=clients.sqs,
            sleep=no_wait,
        )

    def lease(self, name: str, *, silent_ms: int = 0, **changes: Any) -> Lease:
        heard = self.clock.now_ms() - silent_ms
        made = Lease(name, f"{self.backend.prefix}{name}", "live", heard, heard, heard + TTL_MS)
        return replace(made, **changes)

    async def node(
        self, name: str, *, silent_ms: int = 0, members: int = 2, **changes: Any
    ) -> SqsInstanceQueue:
        """A node as it stands when it serves, last heard of `silent_ms` ago. Its queue."""
        lease = self.lease(name, silent_ms=silent_ms, **changes)
        await self.leases.put(lease)
        queue = await self.queue(lease.queue, name)
        assert await self.leases.heartbeat(
            replace(
                lease,
                queue_url=queue.queue_url or "",
                subscription_arn=queue.subscription_arn or "",
            )
        )
        presence = self.presence
        for number in range(members):
            info = ClientInfo("ann", f"{name}-c{number}", {"name": "Ann"})
            for channel in (ROOM, f"own-{name}"):
                await presence.add(channel, Member(name, info))
        return queue

    async def queue(self, name: str, node: str) -> SqsInstanceQueue:
        clients = self.backend.clients
        queue = SqsInstanceQueue(
            control=clients.sqs,
            poll=clients.sqs_poll,
            sns=clients.sns,
            topic_arn=self.deployment.topic_arn,
            tags=lambda: queue_tags(self.deployment.topic_arn, node),
            wait_s=1,
            sleep=no_wait,
        )
        await queue.open(name)
        return queue

    async def left(self) -> tuple[set[str], set[str], set[str], set[str]]:
        """Whose leases, queues, subscriptions and presence entries there are."""
        prefix = self.backend.prefix
        queues = {name.removeprefix(prefix) for name in await self.estate.queues()}
        endpoints = [
            self.deployment.queue_of(each.endpoint) for each in await self.estate.subscriptions()
        ]
        rows = await self.backend.clients.tables.scan(
            TableName=presence_table(prefix), ConsistentRead=True
        )
        owners = {
            (row["member"] if row["key"]["S"].startswith("channel#") else row["key"])["S"]
            .removeprefix("node#")
            .partition("#")[0]
            for row in rows["Items"]
        }
        return (
            {lease.node for lease in await self.leases.all()},
            queues,
            {str(name).removeprefix(prefix) for name in endpoints},
            owners,
        )

    def config(self, directory: Path) -> Path:
        """A configuration file that leads here."""
        path = directory / "roomcast.toml"
        path.write_text(
            f'[aws]\nregion = "{REGION}"\nendpoint_url = "{self.endpoint}"\n'
            f'topic_arn = "{self.deployment.topic_arn}"\n'
            f'table_prefix = "{self.backend.prefix}"\nqueue_prefix = "{self.backend.prefix}"\n'
        )
        return path

    def lambda_clients(self) -> Clients:
        session = boto3.session.Session(
            aws_access_key_id="test", aws_secret_access_key="test", region_name=REGION
        )
        dynamodb, sns, sqs = (
            ThreadedClient(session.client(service, endpoint_url=self.endpoint))
            for service in ("dynamodb", "sns", "sqs")
        )
        # The emulator knows no lifecycle actions.
        return Clients(dynamodb, sns, sqs, autoscaling=None)


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    with emulator() as url:
        yield url


@pytest.fixture
async def site(endpoint: str) -> AsyncIterator[Site]:
    async with aws_backend(endpoint, next(_prefixes)) as backend:
        # The emulator stamps what is made with the time of this machine.
        yield Site(backend, endpoint, ManualClock(time.time_ns() // 1_000_000))


def whole(*names: str) -> tuple[set[str], set[str], set[str], set[str]]:
    return set(names), set(names), set(names), set(names)


async def leaves(queue: SqsInstanceQueue, number: int) -> Sequence[Signal]:
    """The leaves that a node hears, when `number` of them have come."""
    heard: list[Signal] = []
    give_up_s = time.monotonic() + COMMAND_S
    while len(heard) < number:
        assert time.monotonic() < give_up_s, f"only {heard}"
        heard += [
            signal for message in await queue.receive() for signal in parse(message.body).signals
        ]
    return heard


async def test_what_dead_nodes_left_is_removed_and_nothing_else(site: Site) -> None:
    queue = await site.node("n1")
    await site.node("n2", silent_ms=TTL_MS + REAP_GRACE_MS - 5000)
    dead = ["n3", "n4", "n5"]
    for name in dead:
        await site.node(name, silent_ms=DEAD_MS)

    shown = await site.reaper.run(dry_run=True)
    assert sorted(each.node for each in shown.nodes) == dead
    assert {(each.outcome, len(each.subscriptions), each.channels) for each in shown.nodes} == {
        ("found", 1, 2)
    }
    assert (shown.live, shown.queues, shown.subscriptions, shown.failed) == (2, (), (), 0)
    assert await site.left() == whole("n1", "n2", *dead)
    assert all(not lease.reaped for lease in await site.leases.all())

    done = await site.reaper.run()
    assert sorted((each.node, each.outcome, each.members) for each in done.nodes) == [
        (name, "removed", 4) for name in dead
    ]
    assert done.failed == 0
    assert await site.left() == whole("n1", "n2")
    told = await leaves(queue, 12)
    assert {(signal.kind, signal.node) for signal in told} == {("leave", name) for name in dead}
    assert {ClientInfo.from_wire(signal.body).client for signal in told} == {
        f"{name}-c{number}" for name in dead for number in range(2)
    }
    assert (await site.reaper.run()).is_empty


async def test_a_silent_node_that_is_reaped_is_told_by_its_next_heartbeat(site: Site) -> None:
    await site.node("n1", silent_ms=DEAD_MS)
    [lease] = await site.leases.all()
    await site.reaper.run()
    assert not await site.leases.heartbeat(replace(lease, heartbeat_at=site.clock.now_ms()))
    assert await site.left() == whole()


async def test_a_queue_without_a_lease_goes_when_it_is_old(site: Site) -> None:
    await site.queue(f"{site.backend.prefix}orphan", "gone")
    await site.backend.clients.sqs.create_queue(QueueName=f"{site.backend.prefix}foreign")
    await site.node("n1")
    site.clock.advance((ORPHAN_AGE_MS - 60_000) / 1000)
    await site.leases.put(site.lease("n1"))
    assert (await site.reaper.run()).is_empty
    site.clock.advance(120)
    await site.leases.put(site.lease("n1"))
    report = await site.reaper.run()
    assert [(each.queue, each.node, each.outcome) for each in report.queues] == [
        (f"{site.backend.prefix}orphan", "gone", "removed")
    ]
    assert (await site.left())[1:3] == ({"n1", "foreign"}, {"n1"})


async def test_a_subscription_without_its_queue_goes(site: Site) -> None:
    await site.queue(f"{site.backend.prefix}deleted", "gone")
    await site.estate.delete_queue(f"{site.backend.prefix}deleted")
    [stale] = (await site.reaper.run()).subscriptions
    assert (stale.queue, stale.outcome) == (f"{site.backend.prefix}deleted", "removed")
    assert await site.left() == whole()


async def test_a_fleet_of_more_than_a_page_of_queues(site: Site) -> None:
    """All with leases, but one of the last: a list that was cut would not have it."""
    names = [f"n{number:04}" for number in range(MANY)]
    orphan = names[-3]
    clients = site.backend.clients
    gate = asyncio.Semaphore(AT_ONCE)

    async def make(name: str) -> None:
        async with gate:
            await clients.sqs.create_queue(
                QueueName=site.backend.prefix + name,
                tags=queue_tags(site.deployment.topic_arn, name),
            )

    # In this order: the emulator lists them as they were made.
    await asyncio.gather(*map(make, names))
    for name in names[-SUBSCRIBED:]:
        # One at a time: the emulator walks through its subscriptions at each new one, and fails
        # when another thread adds to them meanwhile.
        await clients.sns.subscribe(
            TopicArn=site.deployment.topic_arn,
            Protocol="sqs",
            Endpoint=site.deployment.queue_arn(site.backend.prefix + name),
        )
    site.clock.advance(ORPHAN_AGE_MS / 1000 + 60)
    rows = [lease_attributes(site.lease(name)) for name in names if name != orphan]
    for start in range(0, len(rows), BATCH):
        requests = [{"PutRequest": {"Item": row}} for row in rows[start : start + BATCH]]
        await clients.tables.batch_write_item(
            RequestItems={nodes_table(site.backend.prefix): requests}
        )
    report = await site.reaper.run()
    assert [each.queue for each in report.queues] == [site.backend.prefix + orphan]
    assert [len(each.subscriptions) for each in report.queues] == [1], "it was on the last page"
    assert len(await site.estate.subscriptions()) == SUBSCRIBED - 1
    assert (report.live, report.nodes, report.failed) == (MANY - 1, (), 0)
    assert len(await site.estate.queues()) == MANY - 1


async def test_as_a_lambda_for_an_instance_that_was_terminated(site: Site) -> None:
    event = json.loads((EVENTS / "terminate_successful.json").read_text(encoding="utf-8"))
    instance = event["detail"]["EC2InstanceId"]
    await site.node("n1", instance="i-other")
    for name in ("n2", "n3"):
        await site.node(name, instance=instance)
    settings = Settings(site.deployment, site.backend.prefix)
    request = asked(event)
    assert request is not None
    counts = await carry_out(request, settings, site.lambda_clients())
    assert counts == {"live": 0, "reaped": 2, "orphans": 0, "failed": 0}
    assert await site.left() == whole("n1")


async def test_as_a_lambda_on_a_schedule(site: Site) -> None:
    event = json.loads((EVENTS / "scheduled.json").read_text(encoding="utf-8"))
    await site.node("n1")
    await site.node("n2", silent_ms=DEAD_MS)
    request = asked(event)
    assert request is not None
    settings, clients = Settings(site.deployment, site.backend.prefix), site.lambda_clients()
    for reaped in (1, 0):
        counts = await carry_out(request, settings, clients)
        assert counts == {"live": 1, "reaped": reaped, "orphans": 0, "failed": 0}
    assert await site.left() == whole("n1")


async def command(config: Path, *words: str) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of `roomcast`."""
    inherited = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("AWS_", "ROOMCAST_"))
    }
    own = {
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_CONFIG_FILE": os.devnull,
        "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
        "NO_PROXY": "127.0.0.1",
    }

    def run() -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "roomcast", *words, "--config", str(config)],
            cwd=ROOT,
            env=inherited | own,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=COMMAND_S,
        )

    done = await asyncio.to_thread(run)
    return done.returncode, done.stdout, done.stderr


# Two nodes that beat often: how far the reaper's clock goes ahead decides which of
# them it takes for dead.
KILLED: Final = f"""
[client]
insecure = true
[channel.without_namespace]
presence = true
join_leave = true
force_push_join_leave = true
[node]
drain_s = 0
lease_ttl_s = {TTL_MS // 1000}
heartbeat_s = 0.5
"""
# A node that did not beat for so long is the one that was killed, however slow the machine.
SILENT_MS: Final = 8000


async def test_after_a_node_is_killed_others_are_told_and_nothing_is_left(tmp_path: Path) -> None:
    with deployed(tmp_path, "killed-") as aws, ExitStack() as stack:
        config = aws.config("killed", KILLED)
        killed, lives = (stack.enter_context(serving(config)) for _ in range(2))
        for process in (killed, lives):
            process.ready()
        async with (
            aiohttp.ClientSession() as session,
            session.ws_connect(f"{killed.url}/connection/websocket") as hers,
            session.ws_connect(f"{lives.url}/connection/websocket") as his,
            connect(region=REGION, endpoint_url=aws.endpoint, session=SESSION) as clients,
        ):
            ann, bob = WebSocket(hers), WebSocket(his)
            client = (await ann.ask("connect"))["client"]
            await bob.ask("connect")
            await bob.ask("subscribe", channel=ROOM)
            await ann.ask("subscribe", channel=ROOM)
            await bob.until(lambda: len(bob.pushes(ROOM, "join")) == 2)
            assert aws.left_of(killed.node)
            killed.signal(signal.SIGKILL)
            killed.ended()

            deployment = Deployment(aws.made.topic_arn, aws.prefix)
            reaper = reaper_over_aws(
                deployment,
                aws.prefix,
                Ahead(TTL_MS + REAP_GRACE_MS - SILENT_MS),
                dynamodb=clients.tables,
                sns=clients.sns,
                sqs=clients.sqs,
            )
            give_up_s = time.monotonic() + COMMAND_S
            while not (found := await reaper.run()).nodes:
                # It is dead when it was silent for long enough: time has no event.
                assert time.monotonic() < give_up_s
                await asyncio.sleep(0.2)
            assert [(each.node, each.outcome, each.members) for each in found.nodes] == [
                (killed.node, "removed", 1)
            ]
            assert found.failed == 0
            await bob.until(lambda: bob.pushes(ROOM, "leave"))
            assert [leave["info"]["client"] for leave in bob.pushes(ROOM, "leave")] == [client]
            presence = await bob.ask("presence", channel=ROOM)
            assert client not in presence["presence"]
        assert not aws.left_of(killed.node)
        assert aws.left_of(lives.node)
        assert "lease_lost" not in lives.log


async def test_from_the_command_line(site: Site, tmp_path: Path) -> None:
    config = site.config(tmp_path)
    await site.node("n1", version="1.2.3", connections=5)
    await site.node("n2", silent_ms=DEAD_MS)

    code, out, err = await command(config, "nodes", "--json")
    assert (code, err) == (0, "")
    nodes = json.loads(out)
    assert [(each["node"], each["standing"]) for each in nodes] == [
        ("n1", "live"),
        ("n2", "expired"),
    ]
    assert (nodes[0]["version"], nodes[0]["connections"]) == ("1.2.3", 5)
    assert nodes[0]["queue_url"].endswith(f"/{site.backend.prefix}n1")

    code, out, err = await command(config, "reap", "--dry-run")
    assert (code, err) == (0, "")
    assert "n2" in out
    assert out.endswith("Nothing was changed (--dry-run); 1 node lives.\n")
    assert await site.left() == whole("n1", "n2")

    code, out, err = await command(config, "reap", "--json")
    assert (code, err) == (0, "")
    [node] = json.loads(out)["nodes"]
    assert (node["node"], node["outcome"], node["channels"], node["members"]) == (
        "n2",
        "removed",
        2,
        4,
    )
    assert await site.left() == whole("n1")

    code, out, err = await command(config, "reap")
    assert (code, out, err) == (0, "Nothing to clean up; 1 node lives.\n", "")
