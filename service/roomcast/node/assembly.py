"""Everything between the sockets and the ports, put together once: by the application, by tests, by the simulation."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final

from roomcast import __version__
from roomcast.auth.ports import Verifier
from roomcast.auth.verifier import CountedVerifier
from roomcast.client.services import Limits, Services
from roomcast.client.session import Policy
from roomcast.config import Config
from roomcast.delivery import signals
from roomcast.delivery.broadcaster import Broadcaster
from roomcast.delivery.canary import Canary
from roomcast.delivery.catch_up import CatchUp
from roomcast.delivery.dispatcher import Dispatcher, Timings
from roomcast.delivery.envelope import Signal
from roomcast.delivery.hub import Hub
from roomcast.delivery.intake import Intake
from roomcast.delivery.listener import Listener
from roomcast.delivery.poller import Poller
from roomcast.delivery.ports import InstanceQueue, Topic
from roomcast.delivery.publisher import Publisher
from roomcast.fleet.census import Census
from roomcast.fleet.order_signals import ORDER_KINDS
from roomcast.fleet.orders import Orders, Subject
from roomcast.fleet.ports import Leases
from roomcast.fleet.roster import Roster
from roomcast.fleet.survey import SURVEY_KINDS
from roomcast.hooks.calls import HookCalls, Hooks
from roomcast.log.appender import Appender
from roomcast.log.channel_log import ChannelLog
from roomcast.log.ports import ChannelTable
from roomcast.log.watched_table import WatchedTable
from roomcast.node.node import Background, Health, Node
from roomcast.observe.counters import ClientTally
from roomcast.ports import Clock, NewId
from roomcast.presence.book import PresenceBook
from roomcast.presence.ports import Presence
from roomcast.rates import Rate
from roomcast.wire.publication import ClientInfo, Record

__all__ = ["BURST_S", "DEAF_FAILURES", "Assembly", "Ports", "assemble", "rate"]

# Receives that fail in a row before a node counts as deaf: well over the time that a throttled call takes.
DEAF_FAILURES = 5
# What a client may do at once: as much as in so many seconds. People are not evenly busy.
BURST_S: Final = 2.0
_NO_HOOKS: Final = Hooks()


def rate(per_s: float, burst_s: float, more: int = 0) -> Rate | None:
    """As it is configured: 0 = no limit. `burst_s`: seconds whose things may be done at once, and `more` of them."""
    return Rate(per_s, max(1.0, per_s * burst_s + more)) if per_s else None


@dataclass(frozen=True, slots=True)
class Ports:
    """All that a node has of the outside. `random` gives [0, 1)."""

    table: ChannelTable
    presence: Presence
    leases: Leases
    queue: InstanceQueue
    topic: Topic
    clock: Clock
    new_id: NewId
    random: Callable[[], float]


@dataclass(frozen=True, slots=True)
class Assembly:
    """The parts that somebody must start and end; `node` has the rest."""

    node: Node
    hub: Hub
    table: WatchedTable
    log: ChannelLog
    appender: Appender
    dispatcher: Dispatcher
    broadcaster: Broadcaster
    intake: Intake
    listener: Listener
    poller: Poller
    canary: Canary
    catch_up: CatchUp
    background: Background
    hooks: HookCalls

    async def finish(self) -> None:
        """Wait until what was accepted is done: appends, presence entries, signals. The caller bounds the time."""
        await self.appender.drain()
        await self.background.finish()
        await self.broadcaster.flushed()
        await self.node.services.presence.finish()


def assemble(
    config: Config,
    ports: Ports,
    *,
    node_id: str,
    verifier: Verifier,
    health: Health,
    hold_queue: Callable[[str], Awaitable[None]],
    newest_canary_elsewhere: Callable[[], Awaitable[int]],
    hooks: Hooks = _NO_HOOKS,
) -> Assembly:
    """Build a node; nothing is started and no port is called.

    `hold_queue` is told each queue name before its queue is created; `newest_canary_elsewhere` gives the newest
    canary that another live node heard. `hooks`: the application's own.
    """
    client, clock = config.client, ports.clock
    table = WatchedTable(ports.table, clock)
    log = ChannelLog(
        table, clock, ports.new_id, ports.random, node=node_id, generation=config.aws.log_generation
    )
    hub = Hub()
    dispatcher = Dispatcher(
        log,
        hub,
        clock,
        ports.random,
        Timings(gap_wait_s=config.node.gap_wait_ms / 1000, tail_check_s=config.node.tail_check_s),
        recovery_publications_max=client.recovery_max_publication_limit,
    )
    catch_up = CatchUp(dispatcher.tails, dispatcher.check_tail, clock, ports.random)
    appender = Appender(
        log, clock, dispatcher.offer_one, generation=config.aws.log_generation, random=ports.random
    )
    broadcaster = Broadcaster(ports.topic, clock)
    background = Background()
    listener = Listener(
        ports.queue,
        ports.topic,
        ports.new_id,
        node=node_id,
        # A name of its own for each queue: SQS refuses one that was deleted less than a minute ago.
        queue_name=lambda: f"{config.aws.queue_prefix}{node_id}-{ports.new_id()[:8]}",
        greeting_wait_s=config.node.queue_probe_s,
        opened=hold_queue,
        catch_up=catch_up.request,
    )
    canary = Canary(
        table,
        clock,
        ports.new_id,
        ports.random,
        node=node_id,
        generation=config.aws.log_generation,
        interval_s=config.node.canary_interval_s,
        greet=listener.greet,
        rebuild=lambda: poller.rebuild_next(),  # noqa: PLW0108  # the poller is made below
        catch_up=catch_up.request,
        newest_elsewhere=newest_canary_elsewhere,
    )

    table.written = canary.wrote

    def canary_heard(record: Record, published_at: int) -> None:
        """It came through the queue: that proves as much as a greeting."""
        listener.heard()
        canary.hear(record, published_at)

    def has_join_leave(channel: str) -> bool:
        options = config.channel.options(channel)
        return options is not None and options.join_leave

    def ordered(signal: Signal) -> None:
        orders.heard(signal)

    def surveyed(signal: Signal) -> None:
        census.heard(signal)

    def trimmed(signal: Signal) -> None:
        dispatcher.hide(signal.channel, signals.trimmed_to(signal))

    handlers = {
        **dict.fromkeys(ORDER_KINDS, ordered),
        **dict.fromkeys(SURVEY_KINDS, surveyed),
        signals.TRIM_KIND: trimmed,
    }
    roster: Roster[Subject] = Roster()
    intake = Intake(
        node_id,
        dispatcher,
        hub,
        listener.greeted,
        canary_heard,
        has_join_leave,
        handlers,
        roster.has,
        canary.came,
    )
    poller = Poller(ports.queue, clock, ports.random, intake.take, listener.rebuild)
    health.deaf = lambda: poller.is_gone or poller.failures >= DEAF_FAILURES
    health.unproved = lambda: not listener.hears
    health.undeleted = lambda: poller.undeleted
    health.table = table.trouble
    health.canary = canary

    def broadcast(outgoing: Signal) -> bool:
        """To the other nodes and to this one's clients, or to nobody."""
        accepted = broadcaster.send(outgoing)
        if accepted:
            intake.deliver_own(outgoing)
        return accepted

    def hide(channel: str, offset: int) -> None:
        """Whoever does not hear it finds out when it looks at the channel's head."""
        broadcast(signals.trim(node_id, ports.new_id(), channel, offset))

    presence = PresenceBook(
        ports.presence,
        ports.leases,
        clock,
        node=node_id,
        # Half, as with recovery and history: what else goes to the client has room behind it.
        list_bytes_max=config.client.queue_max_size // 2,
    )

    def entered_again(channel: str, info: ClientInfo) -> None:
        """Whoever took this node for dead told everybody that its clients left."""
        options = config.channel.options(channel)
        if options is not None and options.join_leave:
            broadcast(signals.join(node_id, ports.new_id(), channel, info))

    presence.entered_again = entered_again
    orders = Orders(roster, broadcast, ports.new_id, node=node_id)
    census = Census(
        ports.leases,
        hub,
        clock,
        ports.new_id,
        broadcast,
        background.start,
        lambda: presence.node,
        node=node_id,
    )
    tally = ClientTally()
    hook_calls = HookCalls(hooks, config.hooks.timeout_s)
    node = Node(
        Services(
            version=f"roomcast {__version__}",
            policy=Policy(
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
                asks_subscribe=hooks.subscribe is not None,
                asks_publish=hooks.publish is not None,
                has_methods=hooks.rpc is not None,
            ),
            limits=Limits(
                ping_interval_s=client.ping_interval_s,
                pong_timeout_s=client.pong_timeout_s,
                stale_close_delay_s=client.stale_close_delay_s,
                history_publications_max=client.history_max_publication_limit,
                recovery_publications_max=client.recovery_max_publication_limit,
                user_connections=client.user_connection_limit,
                publishes=rate(client.publish_rate_limit, BURST_S),
                # A client that comes back subscribes to all its channels at once.
                commands=rate(client.command_rate_limit, BURST_S, client.channel_limit),
            ),
            verifier=CountedVerifier(verifier, tally.token_failures),
            clock=clock,
            new_id=ports.new_id,
            random=ports.random,
            node=node_id,
            log=log,
            publisher=Publisher(appender, ports.new_id, broadcast, node=node_id),
            dispatcher=dispatcher,
            presence=presence,
            roster=roster,
            signal=broadcast,
            hide=hide,
            background=background.start,
            hooks=hook_calls,
            tally=tally,
        ),
        health,
        orders,
        census,
        connection_limit=client.connection_limit,
    )
    return Assembly(
        node,
        hub,
        table,
        log,
        appender,
        dispatcher,
        broadcaster,
        intake,
        listener,
        poller,
        canary,
        catch_up,
        background,
        hook_calls,
    )
