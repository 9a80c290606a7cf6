"""The composition root: builds a node from its configuration, and starts and ends it in order.

    start   instance metadata → clients → lease → queue and subscription → poller → own greeting heard → listen → ready
            → launch hook completed
    end     not ready → no new clients → clients answered and closed in slices → unsubscribe, delete the queue
            → what was accepted is done (appends, presence, signals) → lease dropped → termination hook completed
            → clients of AWS closed

Each step is a cleanup context of the aiohttp application; the end is the start backwards.
"""

from __future__ import annotations

import asyncio
import os
import re
import signal
import socket
import sys
from collections.abc import AsyncIterator, Coroutine, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import replace
from functools import partial
from typing import Final

import structlog
from aiohttp import web

from roomcast import __version__
from roomcast.auth.jwks import JwksKeys
from roomcast.auth.jwks_endpoint import fetch_jwks
from roomcast.auth.verifier import TokenVerifier
from roomcast.aws.calls import Calls
from roomcast.aws.clients import AwsClients, connect
from roomcast.aws.errors import CALL_LIMIT_S
from roomcast.aws.leases import DynamoLeases
from roomcast.aws.metrics import CloudWatchMetrics
from roomcast.aws.schema import channels_table, idempotency_table, nodes_table, presence_table
from roomcast.concurrency import beside
from roomcast.config import Config, ConfigError
from roomcast.ec2.autoscaling import AutoScalingInstance
from roomcast.ec2.instance_metadata import InstanceMetadata, this_machine
from roomcast.ec2.lifecycle import Lifecycle
from roomcast.fleet.holdings import Lease
from roomcast.fleet.lease import LeaseKeeper
from roomcast.gateway.api.server import Api
from roomcast.gateway.door import Door, end_proxied, give_way, name_no_version
from roomcast.gateway.http import add_health_routes, add_metrics_route
from roomcast.gateway.keys import HEALTH, NODE
from roomcast.gateway.websocket import WebSocketGateway
from roomcast.hooks.calls import Hooks, load_hooks
from roomcast.node.assembly import Assembly, assemble, rate
from roomcast.node.isolation import Isolation
from roomcast.node.node import ANSWERS_S, Health
from roomcast.node.prometheus import Exposition, Source
from roomcast.observe.cloudwatch import Readings, Reporter
from roomcast.observe.counters import Limit
from roomcast.observe.redaction import printable, without_passwords
from roomcast.ports import PortError
from roomcast.rates import Turnstile
from roomcast.serve.aws_ports import aws_ports, instance_queue, region_of
from roomcast.serve.descriptors import Places, places, widened
from roomcast.serve.tries import END_TRIES_S, START_TRIES_S, Tries
from roomcast.system import SystemClock, new_nonce, random_fraction
from roomcast.wire.channels import RESERVED_PREFIX

__all__ = ["serve"]

# What the end of a node may take beyond its drain: answering accepted publications, presence entries of clients
# that left, signals that wait. Each is bounded by the time-outs of single calls; this bounds them together.
FINISH_S: Final = 15.0
# A name is for people and for AWS resource names, of letters that both take. With prefix and nonces a queue's name
# stays within the 80 characters of SQS.
_HOST_CHARS_MAX: Final = 20
# How many seconds' new connections may come from one address at once: an office comes back together after an outage.
HANDSHAKE_BURST_S: Final = 10.0

_log = structlog.get_logger(__name__)


async def serve(
    config: Config,
    *,
    host: str,
    port: int,
    demo_urls: Sequence[str] | None,
    exit_on_stdin_close: bool,
) -> int:
    """Run one node until SIGTERM or SIGINT (or the end of standard input). Returns the exit code.

    `demo_urls`: base URLs of all instances of a development set-up, which serves the demo page; None = production.
    """
    try:
        listening = _bound(host, port)
    except OSError as error:
        return _refuse(
            f"cannot listen on {host}:{port}: {error.strerror or error}; choose another --port"
        )
    with listening:
        stop = asyncio.Event()
        loop = asyncio.get_running_loop()
        for name in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(name, stop.set)
        if exit_on_stdin_close:
            loop.add_reader(sys.stdin.fileno(), _stop_at_end, stop)
        async with this_machine(config.node.imds_endpoint, SystemClock()) as machine:
            try:
                app = build_app(config, demo_urls=demo_urls, machine=machine)
            except ConfigError as error:
                return _refuse(str(error), code=2)
            app[_STOP], app[_FAULTS], app[_LEFT], app[_LEFT_UNDER] = stop, [], [], []
            return await _run(app, listening, host)


async def _run(app: web.Application, listening: socket.socket, host: str) -> int:
    """From the start to the end of `app`; the exit code."""
    # On every line from here on: the logs of several nodes are often read together.
    structlog.contextvars.bind_contextvars(node=app[_NODE_ID])
    # Requests of the HTTP API are answered too.
    runner = web.AppRunner(app, handle_signals=False, shutdown_timeout=ANSWERS_S)
    stop, door = app[_STOP], None
    try:
        if not await _started(runner, stop):
            return _exit_code(app)
        door = _door(runner, app, listening)
        door.open()
        app[HEALTH].listening = True
        _log.info("ready", node=app[NODE].id, host=host, port=listening.getsockname()[1])
        if (lifecycle := app.get(_LIFECYCLE)) is not None:
            lifecycle.ready()
        await stop.wait()
        await _drain(door, app)
    except PortError as error:
        return _refuse(f"cannot start: {error}")
    except OSError as error:
        # Another process that started at the same moment may have bound the address as well, and listened first.
        return _refuse(
            f"cannot listen on {host}:{listening.getsockname()[1]}: {error.strerror or error}"
        )
    finally:
        await runner.cleanup()
        if door is not None:
            await door.end()
    _log.info("stopped", node=app[NODE].id)
    return _exit_code(app)


def _door(runner: web.AppRunner, app: web.Application, listening: socket.socket) -> Door:
    assert runner.server is not None, "it is set up"
    return Door(
        runner.server,
        listening,
        places_max=app[_PLACES].sockets,
        on_full=lambda: app[NODE].services.tally.limited(Limit.SOCKETS),
    )


def _exit_code(app: web.Application) -> int:
    """Whoever watches this process starts it again after a fault, and not after an orderly end."""
    return 1 if app[_FAULTS] else 0


def build_app(
    config: Config, *, demo_urls: Sequence[str] | None, machine: InstanceMetadata | None
) -> web.Application:
    """The application of one node, not yet started. Raises ConfigError."""
    if not config.aws.topic_arn:
        raise ConfigError(
            "aws.topic_arn is not set: give the ARN of the SNS topic that connects the instances"
        )
    hooks = load_hooks(config.hooks)
    host = socket.gethostname() if machine is None else machine.id
    node_id = _node_id(host)
    app = web.Application()
    app[_HOOKS] = hooks
    app[HEALTH] = Health()
    app[_PLACES] = places(widened(), config.client.connection_limit)
    client = replace(config.client, connection_limit=app[_PLACES].clients)
    app[_CONFIG] = config = replace(config, client=client)
    app[_HOST] = host
    if machine is not None:
        app[_MACHINE] = machine
    app[_NODE_ID] = node_id
    app[_CLOCK] = SystemClock()
    keys = None
    if endpoint := config.client.token.jwks_public_endpoint:
        keys = app[_TOKEN_KEYS] = JwksKeys(
            partial(fetch_jwks, endpoint), app[_CLOCK], random_fraction
        )
    app[_VERIFIER] = TokenVerifier(config.client.token, insecure=config.client.insecure, jwks=keys)
    app.cleanup_ctx.extend(
        [_token_keys, _aws_clients, _lifecycle, _lease, _node, _queue, _ears, _reporter]
    )
    app[_CALLS] = Calls()
    app[_STARTING] = Tries(app[_CLOCK], random_fraction, START_TRIES_S)
    handshakes = rate(config.client.handshake_rate_limit, HANDSHAKE_BURST_S)
    gateway = WebSocketGateway(
        allowed_origins=config.client.allowed_origins,
        message_size_limit=config.client.message_size_limit,
        queue_bytes_max=config.client.queue_max_size,
        turnstile=Turnstile(handshakes) if handshakes else None,
        trusted_proxies=config.client.trusted_proxies,
    )
    app.on_response_prepare.extend([give_way, name_no_version, end_proxied])
    app.router.add_get("/connection/websocket", gateway.handle)
    add_health_routes(app)
    add_metrics_route(app, lambda: app[_EXPOSITION].text())  # noqa: PLW0108  # it is made at the start
    Api(
        key=config.http_api.key,
        insecure=config.client.insecure,
        message_size_limit=config.client.message_size_limit,
    ).add_routes(app)
    if demo_urls is not None:
        from roomcast.dev.demo import add_demo_routes

        add_demo_routes(
            app, node=node_id, peers=demo_urls, client=config.client, channels=config.channel
        )
    return app


# ---- the start, step by step; each step ends in the reverse order


async def _token_keys(app: web.Application) -> AsyncIterator[None]:
    """The start does not wait for them: who comes before is asked to come again."""
    keys = app.get(_TOKEN_KEYS)
    if keys is None:
        yield
        return
    app[HEALTH].keyless = lambda: not keys.usable
    async with _task(app, keys.run()):
        yield


async def _aws_clients(app: web.Application) -> AsyncIterator[None]:
    aws = app[_CONFIG].aws
    async with connect(
        region=region_of(aws),
        endpoint_url=aws.endpoint_url or None,
        autoscaling=_MACHINE in app and bool(aws.autoscaling_group),
        cloudwatch=bool(aws.metrics_namespace),
        calls=app[_CALLS],
    ) as clients:
        app[_CLIENTS] = clients
        yield


async def _lifecycle(app: web.Application) -> AsyncIterator[None]:
    """On a machine whose life others decide. Its end is the last that the group hears of this node."""
    config, machine = app[_CONFIG], app.get(_MACHINE)
    if machine is None or not config.node.lifecycle_poll_s:
        yield
        return
    aws, client = config.aws, app[_CLIENTS].autoscaling
    lifecycle = Lifecycle(
        machine,
        None
        if client is None
        else AutoScalingInstance(client, group=aws.autoscaling_group, instance=machine.id),
        app[_CLOCK],
        random_fraction,
        launch_hook=aws.launch_hook,
        terminate_hook=aws.terminate_hook,
        poll_s=config.node.lifecycle_poll_s,
        stop=app[_STOP].set,
        others_here=lambda: app[_LEASE].others_here(),  # noqa: PLW0108  # the lease is made after this
    )
    app[_LIFECYCLE] = lifecycle
    async with _task(app, lifecycle.run()):
        yield
        await lifecycle.released()


async def _lease(app: web.Application) -> AsyncIterator[None]:
    config = app[_CONFIG]
    lease = LeaseKeeper(
        DynamoLeases(app[_CLIENTS].tables, nodes_table(config.aws.table_prefix)),
        app[_CLOCK],
        random_fraction,
        node=app[_NODE_ID],
        new_id=lambda: _node_id(app[_HOST]),
        ttl_s=config.node.lease_ttl_s,
        heartbeat_s=config.node.heartbeat_s,
        instance=app[_HOST] if _MACHINE in app else "",
        version=__version__,
    )
    app[_LEASE] = lease
    async with _task(app, lease.run()):
        yield
    left_under = app[_LEFT_UNDER]
    with _reported(app, "lease_not_dropped"):
        async with _bounded(CALL_LIMIT_S):
            # A lease that ended tells the reaper where to look; one that was dropped tells that there is nothing.
            given_back = partial(lease.abandon, left_under) if app[_LEFT] else lease.drop
            await Tries(app[_CLOCK], random_fraction, END_TRIES_S).until_done("lease", given_back)


async def _node(app: web.Application) -> AsyncIterator[None]:
    """Everything between the sockets and the ports; its end waits for what was accepted."""
    config, clients, node_id = app[_CONFIG], app[_CLIENTS], app[_NODE_ID]
    prefix = config.aws.table_prefix
    table_name, keys_name = channels_table(prefix), idempotency_table(prefix)
    presence_name, nodes_name = presence_table(prefix), nodes_table(prefix)
    lease = app[_LEASE]
    queue = instance_queue(config.aws, clients, lambda: lease.id)
    ports = aws_ports(config.aws, clients, app[_CLOCK], queue)

    async def hold(name: str) -> None:
        # Called while the queue is opened, whose name the error would have alone.
        with _named(f"table {nodes_name}"):
            await lease.hold(name)

    assembly = assemble(
        config,
        ports,
        node_id=node_id,
        verifier=app[_VERIFIER],
        hooks=app[_HOOKS],
        health=app[HEALTH],
        hold_queue=hold,
        newest_canary_elsewhere=lease.newest_canary_elsewhere,
    )
    # End early when one cannot be read. The keys would show at the first publication with one, presence at the first
    # subscription to a channel that has it.
    nobodys = RESERVED_PREFIX + "check"
    tried = app[_STARTING].until_done
    await tried(f"table {table_name}", partial(assembly.log.head, nobodys))
    await tried(f"table {keys_name}", partial(assembly.log.key_position, nobodys, ""))
    await tried(f"table {presence_name}", partial(ports.presence.members, nobodys))
    await tried(f"table {nodes_name}", ports.leases.all)
    app[_ASSEMBLY], app[NODE] = assembly, assembly.node
    app[_EXPOSITION] = Exposition(Source(assembly, app[HEALTH], app[_CALLS].histograms))
    presence = assembly.node.services.presence

    def numbers(held: Lease) -> Lease:
        return replace(
            held,
            connections=len(assembly.node),
            channels=len(assembly.hub),
            users=assembly.node.services.roster.users,
        )

    assembly.node.census.itself = numbers

    def report(held: Lease) -> Lease:
        return replace(
            numbers(held),
            queue_url=queue.queue_url or "",
            subscription_arn=queue.subscription_arn or "",
            canary=assembly.canary.newest,
            lag_ms=assembly.poller.lag_ms,
            skew_ms=assembly.poller.skew_ms,
        )

    def lost(next_lease: Lease) -> None:
        presence.move(next_lease.node)
        if not next_lease.queue:
            assembly.poller.rebuild_next()

    lease.report, lease.lost = report, lost
    isolation = Isolation(
        lease,
        assembly.table,
        assembly.canary,
        app[_CLOCK],
        random_fraction,
        look_s=config.node.heartbeat_s,
        canary_interval_s=config.node.canary_interval_s,
    )
    app[HEALTH].heartbeats_failed = lambda: lease.failures
    app[HEALTH].cut_off = isolation.is_cut_off
    async with (
        _task(app, isolation.run()),
        _task(app, assembly.broadcaster.run()),
        _task(app, assembly.catch_up.run()),
        _task(app, presence.run()),
    ):
        yield
        with _reported(app, "not_finished"):
            async with _bounded(FINISH_S):
                await assembly.finish()
    if not presence.is_clean:
        app[_LEFT].append("presence")
        app[_LEFT_UNDER].extend(presence.left_under)
        _log.error("presence_left_behind")
    await assembly.dispatcher.close()


async def _queue(app: web.Application) -> AsyncIterator[None]:
    listener = app[_ASSEMBLY].listener
    try:
        await app[_STARTING].until_done(
            f"queue for topic {app[_CONFIG].aws.topic_arn}", listener.open
        )
        yield
    finally:
        with _reported(app, "queue_not_deleted"):
            await Tries(app[_CLOCK], random_fraction, END_TRIES_S).until_done(
                "queue", listener.close
            )


async def _ears(app: web.Application) -> AsyncIterator[None]:
    """Poll, and hear the own greeting before anything is read from the log or any client is let in.

    A topic that refuses the greeting is no reason to refuse the start: durable publications go through the table and the
    Lambda. The node is degraded until it hears something, and the log says why.
    """
    listener, poller = app[_ASSEMBLY].listener, app[_ASSEMBLY].poller
    async with _task(app, poller.run()):
        if not await listener.prove():
            # Serve all the same, degraded: durable publications are found by reading the log.
            listener.prove_later()
        await app[_LEASE].enter("live")
        async with _task(app, app[_ASSEMBLY].canary.run()):
            yield


async def _reporter(app: web.Application) -> AsyncIterator[None]:
    aws, assembly, health = app[_CONFIG].aws, app[_ASSEMBLY], app[HEALTH]
    if not aws.metrics_namespace:
        yield
        return
    metrics = CloudWatchMetrics(
        app[_CLIENTS].cloudwatch, namespace=aws.metrics_namespace, group=aws.autoscaling_group
    )

    readings = Readings(
        connections=lambda: len(assembly.node),
        channels=lambda: len(assembly.hub),
        queue_lag_ms=lambda: assembly.poller.lag_ms,
        canary_age_s=lambda: assembly.canary.silence_s,
        degraded=lambda: bool(health.doubts()),
        # To start and to drain is no fault.
        not_ready=lambda: health.listening and not health.draining and bool(health.reasons()),
    )
    async with _task(
        app, Reporter(metrics, random_fraction, readings, assembly.appender.tally).run()
    ):
        yield


# ---- the end


async def _drain(door: Door, app: web.Application) -> None:
    """From ready to no client left. What the node holds is released by the cleanup contexts afterwards."""
    node, drain_s = app[NODE], app[_CONFIG].node.drain_s
    if (lifecycle := app.get(_LIFECYCLE)) is not None:
        lifecycle.drain()
        drain_s = lifecycle.drain_s(drain_s)
    app[HEALTH].draining = True
    await door.close()
    # Beside the drain: the table of leases may take its time to answer, and clients need not wait for that.
    async with beside(app[_LEASE].enter("draining")):
        await node.drain(drain_s, random_fraction)


async def _started(runner: web.AppRunner, stop: asyncio.Event) -> bool:
    """Run the start; False when it was told to stop before it was done. Raises PortError."""
    setup = asyncio.create_task(runner.setup())
    stopped = asyncio.create_task(stop.wait())
    try:
        await asyncio.wait((setup, stopped), return_when=asyncio.FIRST_COMPLETED)
        if not setup.done():
            setup.cancel()
            await asyncio.gather(setup, return_exceptions=True)
            return False
        await setup
        return True
    finally:
        stopped.cancel()


@asynccontextmanager
async def _task(app: web.Application, work: Coroutine[None, None, None]) -> AsyncIterator[None]:
    """A background task for the time of the context. One that ends by itself is a fault: it is logged."""
    async with beside(work) as task:
        task.add_done_callback(partial(_unexpected_end, app))
        yield


def _unexpected_end(app: web.Application, task: asyncio.Task[None]) -> None:
    if not task.cancelled():
        _log.critical("background_task_ended", task=task.get_name(), exc_info=task.exception())
        # A node that does not poll, beat or flush is worse than none: end in order, so that another takes over.
        app[_FAULTS].append(task.get_name())
        app[_STOP].set()


@contextmanager
def _named(what: str) -> Iterator[None]:
    """AWS's own words seldom name what is missing."""
    try:
        yield
    except PortError as error:
        raise type(error)(f"{what}: {error}") from error


@asynccontextmanager
async def _bounded(within_s: float) -> AsyncIterator[None]:
    """Raises PortError when it takes longer."""
    try:
        async with asyncio.timeout(within_s):
            yield
    except TimeoutError:
        raise PortError(f"not done within {within_s:g} s") from None


@contextmanager
def _reported(app: web.Application, event: str) -> Iterator[None]:
    """For the end: a failure is logged and remembered, and what comes after it goes on."""
    try:
        yield
    except PortError as error:
        app[_LEFT].append(event)
        _log.error(event, reason=str(error) or type(error).__name__)


def _bound(host: str, port: int) -> socket.socket:
    """A socket that holds the address from now on; it listens only when the node is ready. Raises OSError."""
    family, _, _, _, address = socket.getaddrinfo(
        host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )[0]
    bound = socket.socket(family, socket.SOCK_STREAM)
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(address)
    except OSError:
        bound.close()
        raise
    return bound


def _stop_at_end(stop: asyncio.Event) -> None:
    """Standard input is readable: at its end, whoever started this process is gone or wants it to stop."""
    if not os.read(sys.stdin.fileno(), _STDIN_BYTES):
        asyncio.get_running_loop().remove_reader(sys.stdin.fileno())
        stop.set()


def _refuse(why: str, code: int = 1) -> int:
    sys.stderr.write(f"roomcast: {printable(without_passwords(why))}\n")
    return code


def _node_id(host: str) -> str:
    """Unique for each start of each process: instance id or host name, then a nonce."""
    name = re.sub(r"[^a-z0-9]+", "-", host.lower().partition(".")[0]).strip("-")[:_HOST_CHARS_MAX]
    return f"{name or 'node'}-{new_nonce()}"


_CONFIG: Final = web.AppKey("config", Config)
_PLACES: Final = web.AppKey("places", Places)
_STOP: Final = web.AppKey("stop", asyncio.Event)
# Background tasks that ended by themselves.
_FAULTS: Final = web.AppKey("faults", list[str])
# What the end could not remove.
_LEFT: Final = web.AppKey("left", list[str])
# The leases under which presence entries are among that.
_LEFT_UNDER: Final = web.AppKey("left_under", list[str])
_MACHINE: Final = web.AppKey("machine", InstanceMetadata)
# What the machine is called: its instance id, else its host name.
_HOST: Final = web.AppKey("host", str)
_NODE_ID: Final = web.AppKey("node_id", str)
_TOKEN_KEYS: Final = web.AppKey("token_keys", JwksKeys)
_VERIFIER: Final = web.AppKey("verifier", TokenVerifier)
_HOOKS: Final = web.AppKey("hooks", Hooks)
_CLOCK: Final = web.AppKey("clock", SystemClock)
_CALLS: Final = web.AppKey("calls", Calls)
_STARTING: Final = web.AppKey("starting", Tries)
_EXPOSITION: Final = web.AppKey("exposition", Exposition)
_CLIENTS: Final = web.AppKey("clients", AwsClients)
_LEASE: Final = web.AppKey("lease", LeaseKeeper)
_LIFECYCLE: Final = web.AppKey("lifecycle", Lifecycle)
_ASSEMBLY: Final = web.AppKey("assembly", Assembly)

_STDIN_BYTES: Final = 4096
