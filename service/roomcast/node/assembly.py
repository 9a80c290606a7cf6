"""Builds everything between the sockets and the ports of a node.

The application, the tests and the simulation all use it.

A node's lease reports on the node, and the node's queue is recorded in the lease: each needs the
other. So a node is built in two steps, and the caller makes the lease between them:

    core = build_core(...)          hub, log, dispatcher, signals, presence; what is heard
    lease = LeaseKeeper(...)        reports what the core knows
    assembly = assemble(core, ...)  listener, poller, canary, health, the node itself
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Protocol

from roomcast import __version__
from roomcast.auth.ports import Verifier
from roomcast.auth.verifier import CountedVerifier
from roomcast.client.connection import Connection
from roomcast.client.services import Limits, Services
from roomcast.client.session import Policy
from roomcast.config import ClientConfig, Config
from roomcast.delivery import signals
from roomcast.delivery.allowance import Allowance
from roomcast.delivery.announcements import Announcements
from roomcast.delivery.broadcaster import Broadcaster
from roomcast.delivery.canary import Canary, CanaryEars, OtherEars
from roomcast.delivery.catch_up import CatchUp
from roomcast.delivery.dispatcher import Dispatcher
from roomcast.delivery.express import Express
from roomcast.delivery.gap_wait import GapWait
from roomcast.delivery.greetings import Greetings
from roomcast.delivery.hub import Hub
from roomcast.delivery.intake import Intake
from roomcast.delivery.listener import Listener, QueueHolder
from roomcast.delivery.node_count import NodeCount
from roomcast.delivery.open_channel import Timings
from roomcast.delivery.poller import Poller
from roomcast.delivery.ports import NodeQueue, NodeTopics
from roomcast.delivery.publisher import Publisher
from roomcast.delivery.queue_state import QueueState
from roomcast.delivery.shard_keeper import ShardBook, ShardKeeper
from roomcast.delivery.signal_bus import NodeBus, SignalBus, SignalListeners
from roomcast.delivery.trails import Trails
from roomcast.fleet.badges import badge_of_node
from roomcast.fleet.drain_signals import DRAIN_KINDS
from roomcast.fleet.draining import Draining
from roomcast.fleet.emulation import Emulation, Sessions
from roomcast.fleet.emulation_signals import EMULATION_KINDS
from roomcast.fleet.inquiries import Inquiries
from roomcast.fleet.inquiry_signals import INQUIRY_KINDS
from roomcast.fleet.mailbox import Mailbox
from roomcast.fleet.node_info import NodeInfo
from roomcast.fleet.node_info_signals import SURVEY_KINDS
from roomcast.fleet.order_post import OrderPost
from roomcast.fleet.order_signals import ORDER_KINDS
from roomcast.fleet.orders import Orders, Subject
from roomcast.fleet.ports import Leases
from roomcast.fleet.roster import Roster
from roomcast.hooks.calls import HookCalls, Hooks
from roomcast.hooks.passed_headers import PassedHeaders
from roomcast.log.appender import Appender
from roomcast.log.channel_log import ChannelLog
from roomcast.log.ports import ChannelTable
from roomcast.log.watched_table import WatchedTable
from roomcast.node.health import Health, IsolationHealth, KeysHealth, LeaseHealth
from roomcast.node.node import Background, Node
from roomcast.node.own_lease import OwnNumbers
from roomcast.node.report import NodeReport, Sources
from roomcast.observe.counters import ClientCounters
from roomcast.observe.ports import Tracer
from roomcast.observe.spans import NO_TRACER
from roomcast.ports import Clock, NewId
from roomcast.presence.book import PresenceBook
from roomcast.presence.connections import ConnectionEntries
from roomcast.presence.ports import Presence
from roomcast.rates import Rate

__all__ = [
    "BURST_S",
    "Assembly",
    "Core",
    "NodeLease",
    "Ports",
    "assemble",
    "build_core",
    "rate",
]

# The burst of a client, in seconds of its rate. People are not evenly busy.
BURST_S: Final = 2.0
_NO_HOOKS: Final = Hooks()


def _goes_on() -> None:
    """What nobody can end but whoever runs it."""


def rate(per_s: float, burst_s: float, more: int = 0) -> Rate | None:
    """A rate from the configuration; 0 a second = no limit.

    The burst is what `burst_s` seconds allow, and `more` on top.
    """
    return Rate(per_s, max(1.0, per_s * burst_s + more)) if per_s else None


@dataclass(frozen=True, slots=True)
class Ports:
    """Everything that a node gets from outside. `random` gives [0, 1)."""

    table: ChannelTable
    presence: Presence
    leases: Leases
    queue: NodeQueue
    topic: NodeTopics
    clock: Clock
    new_id: NewId
    random: Callable[[], float]


class NodeLease(QueueHolder, OtherEars, LeaseHealth, Protocol):
    """This node's lease: a LeaseKeeper."""


@dataclass(frozen=True, slots=True)
class Core:
    """The first half of a node.

    The lease reports on it, and the queue brings messages to it.
    """

    config: Config
    ports: Ports
    node_id: str
    hooks: Hooks
    tracer: Tracer
    connections: set[Connection]
    ears: CanaryEars
    shards: ShardBook
    greetings: Greetings
    queue_state: QueueState
    table: WatchedTable
    log: ChannelLog
    hub: Hub
    dispatcher: Dispatcher
    catch_up: CatchUp
    appender: Appender
    allowance: Allowance
    node_count: NodeCount
    express: Express
    broadcaster: Broadcaster
    listeners: SignalListeners
    intake: Intake
    bus: SignalBus
    announcements: Announcements
    presence: PresenceBook
    roster: Roster[Subject]
    background: Background
    numbers: OwnNumbers
    orders: Orders
    node_info: NodeInfo
    mailbox: Mailbox
    emulation: Emulation
    draining: Draining


@dataclass(frozen=True, slots=True)
class Assembly:
    """The parts that the caller must start and end. `node` has the rest."""

    node: Node
    hub: Hub
    table: WatchedTable
    log: ChannelLog
    appender: Appender
    dispatcher: Dispatcher
    allowance: Allowance
    node_count: NodeCount
    express: Express
    broadcaster: Broadcaster
    intake: Intake
    listener: Listener
    poller: Poller
    queue_state: QueueState
    ears: CanaryEars
    canary: Canary
    shards: ShardBook
    shard_keeper: ShardKeeper
    catch_up: CatchUp
    background: Background
    hooks: HookCalls

    async def finish(self) -> None:
        """Wait until all accepted work is done: appends, presence entries, signals.

        The caller bounds the time.
        """
        await self.appender.drain()
        await self.node.emulation.finish()
        await self.node.orders.sent()
        await self.node.draining.finish()
        self.node.services.departures.finish()
        await self.background.finish()
        await self.broadcaster.flushed()
        await self.node.services.presence.finish()


def build_core(
    config: Config,
    ports: Ports,
    *,
    node_id: str,
    hooks: Hooks = _NO_HOOKS,
    end: Callable[[], None] = _goes_on,
    tracer: Tracer = NO_TRACER,
) -> Core:
    """Build the first half of a node. Nothing is started and no port is called.

    `hooks`: the application's hooks. `end` has the node drain and end, by an order to drain.
    `tracer`: what records spans of publications.
    """
    client, rules, generation = config.client, config.channel, config.aws.log_generation
    clock, new_id, random = ports.clock, ports.new_id, ports.random
    connections: set[Connection] = set()
    roster: Roster[Subject] = Roster()
    background = Background()
    queue_state = QueueState()
    greetings = Greetings()
    gap_wait = GapWait(config.node.gap_wait_ms)
    ears = CanaryEars(greetings, clock, random, gap_wait, interval_s=config.node.canary_interval_s)
    shards = ShardBook(config.aws.topic_shards, ears, clock, random)
    # ---- the log
    table = WatchedTable(ports.table, clock, shards)
    log = ChannelLog(
        table,
        clock,
        new_id,
        random,
        node=node_id,
        generation=generation,
        told=rules.tells_published,
    )
    # ---- delivery
    hub = Hub(rules.batching)
    trails = Trails(tracer, clock, hub.count)
    dispatcher = Dispatcher(
        log,
        hub,
        clock,
        random,
        Timings(gap_wait, config.node.tail_check_s),
        recovery_publications_max=client.recovery_max_publication_limit,
        shards=shards,
        trails=trails,
    )
    catch_up = CatchUp(dispatcher.tails, dispatcher.check_tail, clock, random)
    allowance = Allowance(config.aws.sns_quota * config.aws.sns_signals_share)
    express = Express(
        ports.topic,
        clock,
        random,
        rules,
        allowance,
        node=node_id,
        shards=config.aws.topic_shards,
        per_s=config.aws.express_rate_limit,
    )
    appender = Appender(
        log,
        clock,
        dispatcher.offer,
        generation=generation,
        random=random,
        appended=express.offer,
        tracer=tracer,
    )
    # ---- signals
    broadcaster = Broadcaster(ports.topic, clock, allowance)
    node_count = NodeCount((allowance, express), random)
    listeners = SignalListeners()
    intake = Intake(
        node_id,
        dispatcher.channels,
        hub,
        ears,
        shards,
        rules.has_join_leave,
        listeners,
        roster.has,
        way=dispatcher.way,
        trails=trails,
    )
    bus = NodeBus(broadcaster, intake)
    announcements = Announcements(bus, dispatcher, rules, new_id, node=node_id)
    # ---- who is here, and there
    presence = PresenceBook(
        ports.presence,
        ports.leases,
        clock,
        node=node_id,
        # Half of the client's queue, as for recovery and history, so that other data has room as
        # well.
        list_bytes_max=client.queue_max_size // 2,
        listener=announcements,
    )
    numbers = OwnNumbers(presence, connections, hub, roster)
    node_info = NodeInfo(ports.leases, hub, clock, new_id, bus, background, numbers, node=node_id)
    mailbox = Mailbox(ports.queue, ports.leases, clock)
    order_post = OrderPost(mailbox, broadcaster, lambda: presence.node, node=node_id)
    orders = Orders(roster, order_post, new_id, node=node_id)
    emulation = Emulation(Sessions(), mailbox, new_id, lambda: presence.node)
    draining = Draining(mailbox, new_id, lambda: presence.node, connections, end)
    listeners.add(DRAIN_KINDS, draining.heard)
    listeners.add(EMULATION_KINDS, emulation.heard)
    listeners.add(ORDER_KINDS, orders.heard)
    listeners.add(SURVEY_KINDS, node_info.heard)
    listeners.add({signals.TRIM_KIND}, announcements.trimmed)
    return Core(
        config,
        ports,
        node_id,
        hooks,
        tracer,
        connections,
        ears,
        shards,
        greetings,
        queue_state,
        table,
        log,
        hub,
        dispatcher,
        catch_up,
        appender,
        allowance,
        node_count,
        express,
        broadcaster,
        listeners,
        intake,
        bus,
        announcements,
        presence,
        roster,
        background,
        numbers,
        orders,
        node_info,
        mailbox,
        emulation,
        draining,
    )


def assemble(
    core: Core,
    *,
    lease: NodeLease,
    verifier: Verifier,
    isolation: IsolationHealth | None = None,
    keys: KeysHealth | None = None,
    listening: bool = False,
) -> Assembly:
    """Build the node around `core`. Nothing is started and no port is called.

    `isolation`, `keys`: parts that the node's health reports on; None = it does not. `listening`:
    whether clients are let in from the start.
    """
    config, ports, node_id = core.config, core.ports, core.node_id
    clock, new_id, random = ports.clock, ports.new_id, ports.random
    listener = Listener(
        ports.queue,
        ports.topic,
        core.greetings,
        new_id,
        node=node_id,
        queue_prefix=f"{config.aws.queue_prefix}{node_id}-",
        greeting_wait_s=config.node.queue_probe_s,
        holder=lease,
        catch_up=core.catch_up,
        shards=core.shards,
    )
    poller = Poller(
        ports.queue,
        clock,
        random,
        core.queue_state,
        core.intake,
        listener,
        pause_s=config.aws.receive_pause_ms / 1000,
    )
    canary = Canary(
        core.ears,
        core.table,
        clock,
        new_id,
        random,
        node=node_id,
        generation=config.aws.log_generation,
        interval_s=config.node.canary_interval_s,
        greeter=listener,
        rebuilder=core.queue_state,
        catch_up=core.catch_up,
        neighbours=lease,
    )
    shard_keeper = ShardKeeper(
        core.shards,
        ports.queue,
        ports.topic,
        clock,
        new_id,
        random,
        node=node_id,
        catch_up=core.catch_up,
    )
    health = Health(
        listening=listening,
        queue=poller,
        greetings=core.greetings,
        canary=core.ears,
        table=core.table,
        shards=core.shards,
        lease=lease,
        isolation=isolation,
        keys=keys,
    )
    hook_calls = HookCalls(
        core.hooks,
        _hook_limit_s(config),
        is_binary=config.channel.is_binary,
        passed=PassedHeaders(config.proxies.all_on()),
    )
    services = _services(core, verifier, hook_calls)
    inquiries = _inquiries(core, services, health)
    core.listeners.add(INQUIRY_KINDS, inquiries.heard)
    node = Node(
        services,
        health,
        core.orders,
        core.node_info,
        inquiries,
        core.emulation,
        core.draining,
        core.connections,
        connection_limit=config.client.connection_limit,
    )
    return Assembly(
        node,
        core.hub,
        core.table,
        core.log,
        core.appender,
        core.dispatcher,
        core.allowance,
        core.node_count,
        core.express,
        core.broadcaster,
        core.intake,
        listener,
        poller,
        core.queue_state,
        core.ears,
        canary,
        core.shards,
        shard_keeper,
        core.catch_up,
        core.background,
        hook_calls,
    )


def _inquiries(core: Core, services: Services, health: Health) -> Inquiries:
    """The node's inquiries, and what it tells of itself when another node asks."""
    sources = Sources(
        health,
        core.connections,
        core.roster,
        core.hub,
        core.appender,
        services.publisher,
        core.broadcaster,
        core.allowance,
        core.queue_state,
        core.ears,
        core.mailbox.counters,
        services.counters,
        core.dispatcher.way.counters,
    )
    clock = core.ports.clock
    return Inquiries(
        core.node_info,
        core.mailbox,
        core.bus,
        core.background,
        NodeReport(sources, clock),
        clock,
        core.ports.new_id,
        lambda: core.presence.node,
        node=core.node_id,
    )


def _services(core: Core, verifier: Verifier, hook_calls: HookCalls) -> Services:
    """The services of connections."""
    config, ports, counters = core.config, core.ports, ClientCounters()
    return Services(
        version=f"roomcast {__version__}",
        policy=_policy(config, core.hooks),
        limits=_limits(config.client),
        verifier=CountedVerifier(verifier, counters.token_failures),
        clock=ports.clock,
        new_id=ports.new_id,
        random=ports.random,
        node=core.node_id,
        badge=badge_of_node(core.node_id),
        log=core.log,
        appender=core.appender,
        publisher=Publisher(ports.new_id, core.bus.send, node=core.node_id, tracer=core.tracer),
        dispatcher=core.dispatcher,
        presence=core.presence,
        entries=ConnectionEntries(core.presence, core.background.start, node=core.node_id)
        if config.client.events
        else None,
        roster=core.roster,
        signal=core.bus.send,
        give=core.orders.give,
        hide=core.announcements.hide,
        background=core.background.start,
        hooks=hook_calls,
        counters=counters,
    )


def _hook_limit_s(config: Config) -> float:
    """The time of a hook's call that may take longest. Those over HTTP have their own within it."""
    over_http = (proxy.timeout_ms / 1000 for proxy in config.proxies.all_on())
    return max(config.hooks.timeout_s, *over_http, 0.0)


def _policy(config: Config, hooks: Hooks) -> Policy:
    client, channels = config.client, config.channel.all_options()
    return Policy(
        rules=config.channel,
        insecure=client.insecure,
        allow_anonymous=client.allow_anonymous_connect_without_token,
        channel_limit=client.channel_limit,
        message_size_limit=client.message_size_limit,
        personal_namespace=(
            client.user_personal_channel_namespace
            if client.subscribe_to_user_personal_channel
            else None
        ),
        single_connection=client.user_personal_single_connection,
        # A hook over HTTP is asked where a channel's options say so.
        asks_subscribe=hooks.subscribe is not None
        and not any(each.subscribe_proxy_enabled for each in channels),
        asks_publish=hooks.publish is not None
        and not any(each.publish_proxy_enabled for each in channels),
        has_methods=hooks.rpc is not None,
        refreshes=hooks.refresh is not None,
        refreshes_subscriptions=hooks.sub_refresh is not None
        and not any(each.sub_refresh_proxy_enabled for each in channels),
        keeps_meta=any(name != "connect" for name in hooks.names()),
    )


def _limits(client: ClientConfig) -> Limits:
    return Limits(
        ping_interval_s=client.ping_interval_s,
        pong_timeout_s=client.pong_timeout_s,
        stale_close_delay_s=client.stale_close_delay_s,
        history_publications_max=client.history_max_publication_limit,
        recovery_publications_max=client.recovery_max_publication_limit,
        user_connections=client.user_connection_limit,
        publishes=rate(client.publish_rate_limit, BURST_S),
        # A client that reconnects subscribes to all its channels at once.
        commands=rate(client.command_rate_limit, BURST_S, client.channel_limit),
    )
