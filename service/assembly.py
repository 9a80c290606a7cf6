"""Everything between the sockets and the ports, put together once: by the application, by tests, by the simulation."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from service import __version__
from service.config import Config
from service.connection import Limits, Services, Verifier
from service.core import signals
from service.core.envelope import Signal
from service.core.publication import ClientInfo, Record
from service.core.session import Policy
from service.delivery.broadcaster import Broadcaster
from service.delivery.canary import Canary
from service.delivery.dispatcher import Dispatcher, Timings
from service.delivery.hub import Hub
from service.delivery.intake import Intake
from service.delivery.listener import Listener
from service.delivery.poller import Poller
from service.log.appender import Appender
from service.log.channel_log import ChannelLog
from service.node import Background, Health, Node
from service.ports import ChannelTable, Clock, Framer, InstanceQueue, Leases, NewId, Presence, Topic
from service.presence import PresenceBook
from service.publisher import Publisher

__all__ = ["DEAF_FAILURES", "Assembly", "Ports", "assemble"]

# Receives that fail in a row before a node counts as deaf: well over the time that a throttled call takes.
DEAF_FAILURES = 5


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
    log: ChannelLog
    appender: Appender
    dispatcher: Dispatcher
    broadcaster: Broadcaster
    intake: Intake
    listener: Listener
    poller: Poller
    canary: Canary
    background: Background

    async def finish(self) -> None:
        """Wait until what was accepted is done: appends, presence entries, signals. The caller bounds the time."""
        await self.appender.drain()
        await self.background.finish()
        await self.broadcaster.flushed()


def assemble(
    config: Config,
    ports: Ports,
    *,
    node_id: str,
    verifier: Verifier,
    framer: Framer,
    health: Health,
    hold_queue: Callable[[str], Awaitable[None]],
    newest_canary_elsewhere: Callable[[], Awaitable[int]],
) -> Assembly:
    """Build a node; nothing is started and no port is called.

    `hold_queue` is told each queue name before its queue is created; `newest_canary_elsewhere` gives the newest
    slot that another live node heard.
    """
    client, clock = config.client, ports.clock
    log = ChannelLog(
        ports.table, clock, ports.new_id, ports.random, node=node_id, generation=config.aws.log_generation
    )
    hub = Hub(framer)
    dispatcher = Dispatcher(
        log,
        hub,
        clock,
        ports.random,
        Timings(gap_wait_s=config.node.gap_wait_ms / 1000, tail_check_s=config.node.tail_check_s),
        recovery_publications_max=client.recovery_max_publication_limit,
    )
    appender = Appender(log, clock, dispatcher.offer_one, generation=config.aws.log_generation)
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
        catch_up=dispatcher.catch_up,
    )
    canary = Canary(
        ports.table,
        clock,
        ports.new_id,
        ports.random,
        node=node_id,
        generation=config.aws.log_generation,
        interval_s=config.node.canary_interval_s,
        greet=listener.greet,
        rebuild=lambda: poller.rebuild_next(),  # noqa: PLW0108  # the poller is made below
        catch_up=dispatcher.catch_up,
        newest_elsewhere=newest_canary_elsewhere,
    )

    def canary_heard(record: Record, published_at: int) -> None:
        """It came through the queue: that proves as much as a greeting."""
        listener.heard()
        canary.hear(record, published_at)

    intake = Intake(node_id, dispatcher, hub, listener.greeted, canary_heard)
    poller = Poller(ports.queue, clock, ports.random, intake.take, listener.rebuild)
    health.deaf = lambda: poller.is_gone or poller.failures >= DEAF_FAILURES
    health.unproved = lambda: not listener.hears
    health.canary = canary

    def broadcast(outgoing: Signal) -> bool:
        """To the other nodes and to this one's clients, or to nobody."""
        accepted = broadcaster.send(outgoing)
        if accepted:
            intake.deliver_own(outgoing)
        return accepted

    presence = PresenceBook(ports.presence, ports.leases, clock, node=node_id)

    def entered_again(channel: str, info: ClientInfo) -> None:
        """Whoever took this node for dead told everybody that its clients left."""
        options = config.channel.options(channel)
        if options is not None and options.join_leave:
            broadcast(signals.join(node_id, ports.new_id(), channel, info))

    presence.entered_again = entered_again
    node = Node(
        Services(
            version=f"roomcast {__version__}",
            policy=Policy(
                rules=config.channel,
                insecure=client.insecure,
                allow_anonymous=client.allow_anonymous_connect_without_token,
                channel_limit=client.channel_limit,
                message_size_limit=client.message_size_limit,
            ),
            limits=Limits(
                ping_interval_s=client.ping_interval_s,
                pong_timeout_s=client.pong_timeout_s,
                stale_close_delay_s=client.stale_close_delay_s,
                history_publications_max=client.history_max_publication_limit,
                recovery_publications_max=client.recovery_max_publication_limit,
            ),
            verifier=verifier,
            clock=clock,
            new_id=ports.new_id,
            random=ports.random,
            framer=framer,
            node=node_id,
            log=log,
            publisher=Publisher(appender, ports.new_id, broadcast, node=node_id),
            dispatcher=dispatcher,
            presence=presence,
            signal=broadcast,
            background=background.start,
        ),
        health,
        connection_limit=client.connection_limit,
    )
    return Assembly(
        node, log, appender, dispatcher, broadcaster, intake, listener, poller, canary, background
    )
