"""The start and the end of one node over AWS, step by step.

    start   start hook → keys of tokens → clients of AWS → life cycle → lease → tables read
            → queue and subscription → poller → own greeting heard → live → canary
            → consumers → listen (internal port, then clients) → ready → launch hook completed
    end     not ready → no new clients → consumers, and clients answered and closed in slices
            → canary, poller
            → unsubscribe, delete the queue → what was accepted is done (appends, presence, signals)
            → lease dropped → termination hook completed → clients of AWS closed
            → stop hook → waiting spans exported

As each step of the start begins, it puts its end on one stack. So the end is the start backwards,
even when the start failed half-way.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

import structlog
from aiohttp import web

from roomcast import __version__
from roomcast.admin.reaping import DryRun
from roomcast.aws.calls import Calls
from roomcast.aws.clients import AwsClients, QueueClients, connect
from roomcast.aws.errors import CALL_LIMIT_S
from roomcast.aws.schema import channels_table, idempotency_table, nodes_table, presence_table
from roomcast.concurrency import beside
from roomcast.consumers.consumers import Consumers
from roomcast.delivery.envelope import Signal
from roomcast.ec2.autoscaling import AutoScalingInstance
from roomcast.ec2.lifecycle import Lifecycle
from roomcast.ec2.ports import NodesHere
from roomcast.fleet.deployment import Deployment
from roomcast.fleet.end_signals import END_KIND, ends
from roomcast.fleet.lease import LeaseKeeper
from roomcast.gateway.door import Door
from roomcast.hooks.api import LifeHook
from roomcast.node.assembly import Assembly, Ports, assemble, build_core
from roomcast.node.isolation import Isolation
from roomcast.node.node import ANSWERS_S
from roomcast.node.own_lease import ItsLease
from roomcast.node.prometheus import Exposition, Source
from roomcast.observe.cloudwatch import Destination, Reporter
from roomcast.observe.counters import Limit
from roomcast.observe.logs import write_line
from roomcast.observe.spans import NO_TRACER
from roomcast.ports import PortError
from roomcast.reaper.over_aws import reaper_over_aws
from roomcast.serve.aws_ports import (
    aws_ports,
    consumer_clients,
    instance_queue,
    region_of,
    work_queue,
)
from roomcast.serve.entry import Entrance
from roomcast.serve.http_app import build_apps
from roomcast.serve.plan import StartPlan
from roomcast.serve.readings import counts_of, readings_of
from roomcast.serve.supervised import Supervised
from roomcast.serve.tries import END_TRIES_S, START_TRIES_S, Tries
from roomcast.system import random_fraction
from roomcast.wire.names import RESERVED_PREFIX

__all__ = ["APPLICATION_START_S", "APPLICATION_STOP_S", "FINISH_S", "NodeProcess"]

# Seconds that a node may take after its drain to finish accepted work: publications to answer,
# presence entries of clients that left, and waiting signals. Time-outs bound each single call; this
# bounds them together.
FINISH_S: Final = 15.0
# Seconds for the application's start hook, such as one that connects to a database, and for its
# stop hook, which comes out of the time that whoever ends the process allows.
APPLICATION_START_S: Final = 30.0
APPLICATION_STOP_S: Final = 5.0
# A channel that nobody uses. A read of it tells whether a table answers.
_NOBODYS: Final = RESERVED_PREFIX + "check"

_log = structlog.get_logger(__name__)


class _NamedLease:
    """The lease as the listener and the canary need it. An error of `hold` names the table.

    Otherwise the error, which comes while the queue is opened, would name only the queue.
    """

    def __init__(self, lease: LeaseKeeper, table: str) -> None:
        self._lease = lease
        self._table = table

    @property
    def failures(self) -> int:
        return self._lease.failures

    async def hold(self, queue: str) -> None:
        try:
            await self._lease.hold(queue)
        except PortError as error:
            raise type(error)(f"table {self._table}: {error}") from error

    async def newest_canary_elsewhere(self) -> int:
        return await self._lease.newest_canary_elsewhere()


class _EndOfTask:
    """Ends this process when the reaper says that ECS has begun to stop its task."""

    def __init__(self, task: str, stop: asyncio.Event) -> None:
        self._task = task
        self._stop = stop

    def heard(self, signal: Signal) -> None:
        if ends(signal, self._task) and not self._stop.is_set():
            _log.warning("node_has_to_end", reason="ECS stops this task", instance=self._task)
            self._stop.set()


class _Parts:
    """The parts of one process, built over `clients`. Nothing is started."""

    def __init__(
        self,
        plan: StartPlan,
        clients: AwsClients,
        queues: Mapping[str, QueueClients],
        calls: Calls,
        stop: asyncio.Event,
        neighbours: NodesHere | None,
    ) -> None:
        """`queues`: the clients of the consumers' queues, by region. `neighbours` None: the other
        nodes of this machine are those that its leases tell of.
        """
        config, aws, clock = plan.config, plan.config.aws, plan.clock
        # A queue's tags name the lease, and the lease names the queue: each needs the other.
        queue = instance_queue(aws, clients, lambda: self.lease.id)
        self.ports: Ports = aws_ports(config, clients, clock, queue)
        tracer = NO_TRACER if plan.tracing is None else plan.tracing.tracer
        core = build_core(
            config,
            self.ports,
            node_id=plan.node_id,
            hooks=plan.hooks,
            end=stop.set,
            tracer=tracer,
        )
        self.presence = core.presence
        self.lease = LeaseKeeper(
            self.ports.leases,
            clock,
            random_fraction,
            owner=ItsLease(core.numbers, queue, core.queue_state, core.ears, core.presence),
            node=plan.node_id,
            new_id=plan.new_id,
            ttl_s=config.node.lease_ttl_s,
            heartbeat_s=config.node.heartbeat_s,
            instance=plan.instance,
            version=__version__,
        )
        self.isolation = Isolation(
            self.lease,
            core.table,
            core.ears,
            clock,
            random_fraction,
            look_s=config.node.heartbeat_s,
            canary_interval_s=config.node.canary_interval_s,
        )
        self.assembly: Assembly = assemble(
            core,
            lease=_NamedLease(self.lease, nodes_table(aws.table_prefix)),
            verifier=plan.verifier,
            isolation=self.isolation,
            keys=plan.keys,
        )
        self.consumers = Consumers(
            config.consumers,
            partial(work_queue, queues),
            self.assembly.node,
            clock,
            random_fraction,
            message_size_limit=config.client.message_size_limit,
        )
        self.exposition = Exposition(
            Source(
                self.assembly,
                self.assembly.node.health,
                calls.histograms,
                self.consumers.counters,
            )
        )
        if plan.task is not None:
            core.listeners.add({END_KIND}, _EndOfTask(plan.task.id, stop).heard)
        self.lifecycle = _lifecycle(plan, clients, neighbours or self.lease, stop)
        self.reporter = _reporter(plan, self.assembly)
        self.dry_run = _dry_run(plan, clients)


@dataclass(frozen=True, slots=True)
class _Doors:
    """`internal`: the other port's; None = everything is behind that of the clients."""

    clients: Door
    internal: Door | None


class NodeProcess:
    """One a process.

    The caller sets `stop` to end it. A background task that ends by itself sets it as well.
    """

    def __init__(
        self,
        plan: StartPlan,
        stop: asyncio.Event,
        *,
        demo_urls: Sequence[str] | None,
        shared: Supervised | None = None,
    ) -> None:
        """`shared`: the port that this process shares with others, besides its own."""
        self._plan = plan
        self._stop = stop
        self._shared = shared
        self._demo_urls = demo_urls
        self._calls = Calls()
        self._starting = Tries(plan.clock, random_fraction, START_TRIES_S)
        # The ends of all steps that were started.
        self._stack = AsyncExitStack()
        # Background tasks that ended by themselves.
        self._faults: list[str] = []
        # Things that the end could not remove.
        self._left: list[str] = []
        # The leases of presence entries that could not be removed.
        self._left_under: list[str] = []

    @property
    def node_id(self) -> str:
        return self._plan.node_id

    @property
    def exit_code(self) -> int:
        """1 after a fault, else 0.

        A supervisor restarts this process after a fault, and not after an orderly end.
        """
        return 1 if self._faults else 0

    async def run(self, clients: Entrance, internal: Entrance | None = None) -> bool:
        """Run until no client is left. False = it was told to stop before it was ready.

        `internal`: the address of what is not for clients; None = it is where they are.

        `end` must follow. Raises PortError, and OSError of an address.
        """
        parts = await self._started()
        if parts is None:
            return False
        doors = await self._stack.enter_async_context(self._served(parts, clients, internal))
        health, node_id = parts.assembly.node.health, self._plan.node_id
        own = {"port": clients.port}
        if internal is not None:
            own["internal_port"] = internal.port
        if self._shared is None:
            self._opened(parts, host=clients.host, **own)
        else:
            shared = {"port": self._shared.port, "internal_port": self._shared.internal_port}
            told = {name: shared[name] for name in own}
            told |= {f"own_{name}": port for name, port in own.items()}
            opened = partial(self._opened, parts, host=clients.host, **told)
            await self._beside(
                self._shared.follow(
                    doors.clients,
                    health,
                    node=node_id,
                    port=clients.port,
                    opened=opened,
                    internal_door=doors.internal,
                )
            )
        await self._stop.wait()
        await self._drain(parts, doors.clients)
        return True

    def _opened(self, parts: _Parts, **address: str | int) -> None:
        """Clients are let in at `address` from now on."""
        parts.assembly.node.health.listening = True
        _log.info("ready", node=self._plan.node_id, **address)
        if parts.lifecycle is not None:
            parts.lifecycle.ready()

    async def end(self) -> None:
        """Release everything that the node holds, whether or not `run` succeeded."""
        await self._stack.aclose()

    # ---- the start, step by step; each step ends in the reverse order

    async def _started(self) -> _Parts | None:
        """Run the start. None when it was told to stop meanwhile. Raises PortError."""
        start = asyncio.create_task(self._start())
        stopped = asyncio.create_task(self._stop.wait())
        try:
            await asyncio.wait((start, stopped), return_when=asyncio.FIRST_COMPLETED)
            if not start.done():
                start.cancel()
                await asyncio.gather(start, return_exceptions=True)
                return None
            return await start
        finally:
            stopped.cancel()

    async def _start(self) -> _Parts:
        plan, stack = self._plan, self._stack
        aws = plan.config.aws
        if plan.tracing is not None:
            # The last step of the end: until then there may be spans.
            stack.push_async_callback(plan.tracing.close)
        if plan.config.proxies.all_on():
            await plan.back_ends.open()
            stack.push_async_callback(plan.back_ends.close)
        await self._start_application()
        if plan.keys is not None:
            # The start does not wait for the keys. Clients that come before them are told to retry.
            await self._beside(plan.keys.run())
        clients = await stack.enter_async_context(
            connect(
                region=region_of(aws),
                endpoint_url=aws.endpoint_url or None,
                autoscaling=plan.machine is not None and bool(aws.autoscaling_group),
                calls=self._calls,
                lean=aws.lean_calls,
            )
        )
        queues = await stack.enter_async_context(consumer_clients(plan.config, self._calls))
        parts = _Parts(plan, clients, queues, self._calls, self._stop, self._shared)
        if parts.lifecycle is not None:
            await self._beside(parts.lifecycle.run())
            # The last call to the Auto Scaling group.
            stack.push_async_callback(parts.lifecycle.released)
        stack.push_async_callback(self._give_lease_back, parts.lease)
        await self._beside(parts.lease.run())
        await self._start_node(parts)
        await self._start_queue(parts)
        await self._start_ears(parts)
        if parts.reporter is not None:
            await self._beside(parts.reporter.run())
        if parts.consumers.counters:
            await self._beside(parts.consumers.run())
            stack.push_async_callback(parts.consumers.end)
        return parts

    async def _start_application(self) -> None:
        """Call the application's start hook. Its stop hook is called at the end, if that was done.

        Raises PortError.
        """
        hooks = self._plan.hooks
        if hooks.start is not None:
            try:
                async with asyncio.timeout(APPLICATION_START_S):
                    await hooks.start()
            except TimeoutError:
                raise PortError(f"hooks.start: not done within {APPLICATION_START_S:g} s") from None
            except Exception as error:
                said = " ".join(f"{type(error).__name__}: {error}".split())
                raise PortError(f"hooks.start: {said}") from error
        if hooks.stop is not None:
            self._stack.push_async_callback(self._stop_application, hooks.stop)

    async def _stop_application(self, stop: LifeHook) -> None:
        """Nothing waits for it: whatever it raises, the end goes on."""
        try:
            async with asyncio.timeout(APPLICATION_STOP_S):
                await stop()
        except Exception as error:  # noqa: BLE001  # the application's own code
            _log.error("stop_hook_failed", exc_info=error)

    async def _start_node(self, parts: _Parts) -> None:
        """Start everything between the sockets and the ports. Its end waits for accepted work."""
        assembly, stack = parts.assembly, self._stack
        await self._read_tables(parts)
        stack.push_async_callback(assembly.dispatcher.close)
        stack.callback(self._note_presence_left, parts)
        await self._beside(parts.isolation.run())
        await self._beside(assembly.broadcaster.run())
        await self._beside(assembly.node_count.run(parts.lease))
        await self._beside(assembly.catch_up.run())
        await self._beside(parts.presence.run())
        stack.push_async_callback(self._finish, assembly)

    async def _read_tables(self, parts: _Parts) -> None:
        """Read each table once, so that the start fails if one cannot be read. Raises PortError.

        Otherwise a fault of the idempotency table would only show at the first publication with a
        key, and one of the presence table at the first subscription to a channel with presence.
        """
        prefix, tried = self._plan.config.aws.table_prefix, self._starting.until_done
        log, ports = parts.assembly.log, parts.ports
        await tried(f"table {channels_table(prefix)}", partial(log.head, _NOBODYS))
        await tried(f"table {idempotency_table(prefix)}", partial(log.key_position, _NOBODYS, ""))
        await tried(f"table {presence_table(prefix)}", partial(ports.presence.members, _NOBODYS))
        await tried(f"table {nodes_table(prefix)}", ports.leases.all)

    async def _start_queue(self, parts: _Parts) -> None:
        listener = parts.assembly.listener
        # Pushed before the queue is opened: a failed attempt may leave something behind.
        self._stack.push_async_callback(self._give_queue_back, parts)
        await self._starting.until_done(
            f"queue for topic {self._plan.config.aws.topic_arn}", listener.open
        )

    async def _start_ears(self, parts: _Parts) -> None:
        """Poll, and wait for the own greeting before anything is read or any client is let in.

        If the topic refuses the greeting, the start goes on: durable publications go through the
        table and the Lambda. The node is degraded until it hears something, and the log says why.
        """
        assembly = parts.assembly
        await self._beside(assembly.poller.run())
        if not await assembly.listener.prove():
            assembly.listener.prove_later()
        await parts.lease.enter("live")
        await self._beside(assembly.canary.run())
        await self._beside(assembly.shard_keeper.run())
        if assembly.express.is_on:
            await self._beside(assembly.express.run())

    @asynccontextmanager
    async def _served(
        self, parts: _Parts, clients: Entrance, internal: Entrance | None
    ) -> AsyncIterator[_Doors]:
        """Serve the node's HTTP applications behind open doors. Raises OSError."""
        plan = self._plan
        apps = build_apps(
            plan.config,
            parts.assembly.node,
            metrics=parts.exposition.text,
            openmetrics=parts.exposition.openmetrics,
            demo_urls=self._demo_urls,
            shared_port=None if self._shared is None else self._shared.internal_port,
            dry_run=parts.dry_run,
        )
        for certificate in {plan.certificate, plan.internal_certificate} - {None}:
            assert certificate is not None
            await self._beside(certificate.follow())
        served = [(apps.clients, clients, plan.certificate, plan.places.sockets)]
        if internal is not None:
            # The first one: who asks about this node is answered before clients come.
            served.insert(
                0, (apps.internal, internal, plan.internal_certificate, plan.places.internal)
            )
        counters = parts.assembly.node.services.counters
        runners: list[web.AppRunner] = []
        doors: list[Door] = []
        async with AsyncExitStack() as ends:
            ends.push_async_callback(_end, runners, doors)
            for app, entrance, certificate, places_max in served:
                # Requests of the HTTP API have as much time for their answers as clients.
                runner = web.AppRunner(app, handle_signals=False, shutdown_timeout=ANSWERS_S)
                runners.append(runner)
                await runner.setup()
                assert runner.server is not None, "it is set up"
                door = Door(
                    runner.server,
                    entrance.held,
                    places_max=places_max,
                    tls=None if certificate is None else certificate.context,
                    on_full=partial(counters.limited, Limit.SOCKETS),
                )
                doors.append(door)
                door.open()
            yield _Doors(doors[-1], None if internal is None else doors[0])

    # ---- the end

    async def _drain(self, parts: _Parts, door: Door) -> None:
        """Drain until no client is left. The stack releases everything else afterwards.

        `door`: that of the clients. An internal one stays open meanwhile, and tells of the drain.
        """
        node, drain_s = parts.assembly.node, self._plan.config.node.drain_s
        if parts.lifecycle is not None:
            parts.lifecycle.drain()
            drain_s = parts.lifecycle.drain_s(drain_s)
        node.health.draining = True
        await door.close()
        # Beside the drain, because the table of leases may answer slowly, and clients need not wait
        # for it.
        async with beside(parts.lease.enter("draining")):
            await asyncio.gather(node.drain(drain_s, random_fraction), parts.consumers.end())

    async def _give_queue_back(self, parts: _Parts) -> None:
        with self._reported("queue_not_deleted"):
            await self._ending().until_done("queue", parts.assembly.listener.close)

    async def _finish(self, assembly: Assembly) -> None:
        with self._reported("not_finished"):
            async with _bounded(FINISH_S):
                await assembly.finish()

    def _note_presence_left(self, parts: _Parts) -> None:
        if not parts.presence.is_clean:
            self._left.append("presence")
            self._left_under.extend(parts.presence.left_under)
            _log.error("presence_left_behind")

    async def _give_lease_back(self, lease: LeaseKeeper) -> None:
        with self._reported("lease_not_dropped"):
            async with _bounded(CALL_LIMIT_S):
                # An expired lease makes the reaper clean up. A dropped one says that nothing is
                # left.
                given_back = partial(lease.abandon, self._left_under) if self._left else lease.drop
                await self._ending().until_done("lease", given_back)

    def _ending(self) -> Tries:
        return Tries(self._plan.clock, random_fraction, END_TRIES_S)

    @contextmanager
    def _reported(self, event: str) -> Iterator[None]:
        """For steps of the end: log and remember a failure, and go on with the next step.

        A fault of ours is remembered as well, and raised: the lease must still lead to what it
        left.
        """
        try:
            yield
        except PortError as error:
            self._left.append(event)
            _log.error(event, reason=str(error) or type(error).__name__)
        except Exception:
            self._left.append(event)
            raise

    # ---- background tasks

    async def _beside(self, work: Coroutine[None, None, None]) -> None:
        """Run a background task until the end.

        If it ends by itself, that is a fault, and logged.
        """
        task = await self._stack.enter_async_context(beside(work))
        task.add_done_callback(self._unexpected_end)

    def _unexpected_end(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled():
            _log.critical("background_task_ended", task=task.get_name(), exc_info=task.exception())
            # A node that does not poll, beat or flush is worse than none. End in order, so that
            # another takes over.
            self._faults.append(task.get_name())
            self._stop.set()


async def _end(runners: Sequence[web.AppRunner], doors: Sequence[Door]) -> None:
    """Ends what was served. All at once, because what waits for an answer has ANSWERS_S in all."""
    await asyncio.gather(*(door.close() for door in doors))
    await asyncio.gather(*(runner.cleanup() for runner in runners))
    await asyncio.gather(*(door.end() for door in doors))


def _lifecycle(
    plan: StartPlan, clients: AwsClients, neighbours: NodesHere, stop: asyncio.Event
) -> Lifecycle | None:
    """The life cycle of a machine in an Auto Scaling group; None elsewhere."""
    config, machine = plan.config, plan.machine
    if machine is None or not config.node.lifecycle_poll_s:
        return None
    group = None
    if clients.autoscaling is not None:
        group = AutoScalingInstance(
            clients.autoscaling, group=config.aws.autoscaling_group, instance=machine.id
        )
    return Lifecycle(
        machine,
        group,
        plan.clock,
        random_fraction,
        launch_hook=config.aws.launch_hook,
        terminate_hook=config.aws.terminate_hook,
        poll_s=config.node.lifecycle_poll_s,
        stop=stop,
        neighbours=neighbours,
    )


def _reporter(plan: StartPlan, assembly: Assembly) -> Reporter | None:
    """The reporter of metrics for CloudWatch; None if that is not configured."""
    aws = plan.config.aws
    if not aws.metrics_namespace:
        return None
    destination = Destination(
        aws.metrics_namespace, aws.autoscaling_group, plan.node_id, write_line
    )
    return Reporter(
        destination, plan.clock, random_fraction, readings_of(assembly), counts_of(assembly)
    )


def _dry_run(plan: StartPlan, clients: AwsClients) -> DryRun:
    """What looks for the remains of dead nodes, and removes nothing."""
    aws = plan.config.aws
    deployment = Deployment(aws.topic_arn, aws.queue_prefix, aws.topic_shards)

    async def run(tell: Callable[[str], None]) -> Mapping[str, Any]:
        reaper = reaper_over_aws(
            deployment,
            aws.table_prefix,
            plan.clock,
            dynamodb=clients.tables,
            sns=clients.sns,
            sqs=clients.sqs,
            tell=tell,
        )
        return (await reaper.run(dry_run=True)).as_json()

    return run


@asynccontextmanager
async def _bounded(within_s: float) -> AsyncIterator[None]:
    """Bound a step of the start. Raises PortError when it takes longer."""
    try:
        async with asyncio.timeout(within_s):
            yield
    except TimeoutError:
        raise PortError(f"not done within {within_s:g} s") from None
