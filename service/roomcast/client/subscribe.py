"""How the client gets into a channel: presence, its position, and the reply before any push."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial
from typing import Final

import structlog

from roomcast.client.expiry import Expiry
from roomcast.client.peer import Peer
from roomcast.client.services import ANSWER_LIMIT_S, Services
from roomcast.client.session import Join
from roomcast.client.subscriptions import Subscription, Subscriptions
from roomcast.concurrency import beside, each_to_its_end
from roomcast.delivery.forms import Form, Payload, whole
from roomcast.delivery.join_reads import Joined, Joining
from roomcast.delivery.recovery import RING_BYTES_MAX, Window
from roomcast.ports import PortError
from roomcast.wire.codes import Error
from roomcast.wire.json import publication_push, subscribe_push, subscribe_result
from roomcast.wire.publication import StreamPosition

__all__ = ["PRESENCE_ENTRIES_AT_ONCE", "SUBSCRIBE_LIMIT_S", "Joins", "limit_from_now", "reason_of"]

# Presence entries that are made at once for a client that is subscribed to many channels as it connects.
PRESENCE_ENTRIES_AT_ONCE: Final = 16
# Of a subscribe, or a connect with subscriptions.
SUBSCRIBE_LIMIT_S: Final = ANSWER_LIMIT_S

_log = structlog.get_logger(__name__)


class Joins:
    """Carries out what the session calls a Join: one, or many at once."""

    __slots__ = ("_expiry", "_peer", "_services", "_subscriptions")

    def __init__(
        self, services: Services, peer: Peer, subscriptions: Subscriptions, expiry: Expiry
    ) -> None:
        self._services = services
        self._peer = peer
        self._subscriptions = subscriptions
        self._expiry = expiry

    # ---- one channel

    async def join(self, join: Join, limit_s: float | None = None) -> None:
        """Enter presence and find the position, at the same time, and be let in; whatever fails leaves nothing behind.

        `limit_s`: as from `limit_from_now`, when a part of the time is over.
        """
        channel, subscription = join.channel, self._subscriptions.make(join)
        entered = False
        try:
            async with asyncio.timeout_at(limit_s or limit_from_now()):
                await self._subscriptions.exited(channel)
                entered = subscription.has_presence
                if not join.options.has_history:
                    if entered:
                        await self._enter(join)
                    self._services.dispatcher.join_unordered(
                        channel, subscription, partial(self._admit_unordered, join, subscription)
                    )
                elif entered:
                    async with _to_its_end(self._enter(join)) as entering:
                        await self._join_ordered(join, subscription, entering)
                else:
                    await self._join_ordered(join, subscription)
        except (PortError, TimeoutError) as error:
            _log.warning(
                "subscribe_failed",
                channel=channel,
                client=self._peer.client,
                reason=reason_of(error),
            )
            if not join.is_server_side:
                self._peer.fail(join.id, Error.INTERNAL)
        finally:
            if not self._subscriptions.has(channel, subscription):
                self._subscriptions.not_joined(join, entered=entered)
        if self._subscriptions.has(channel, subscription):
            self._subscriptions.tell_join(channel, subscription)

    async def _enter(self, join: Join) -> None:
        await self._services.presence.enter(join.channel, join.info)

    async def _join_ordered(
        self, join: Join, subscription: Subscription, ready: Awaitable[None] | None = None
    ) -> None:
        await self._services.dispatcher.join(
            join.channel,
            subscription,
            join.since,
            partial(self._window, join),
            partial(self._admit, join, subscription),
            ready,
        )

    def _admit(self, join: Join, subscription: Subscription, joined: Joined) -> bool:
        """Queue the reply; the dispatcher adds the subscription in the same tick. I4."""
        if self._peer.has_ended:
            return False
        if joined.recovered is False and join.reject_unrecovered:
            self._peer.fail(join.id, Error.UNRECOVERABLE_POSITION)
            return False
        self._tell_subscribed(join, subscription, joined)
        self._subscriptions.add({join.channel: subscription})
        return True

    def _admit_unordered(self, join: Join, subscription: Subscription) -> bool:
        if self._peer.has_ended:
            return False
        self._tell_subscribed(join, subscription, None)
        self._subscriptions.add({join.channel: subscription})
        return True

    def _tell_subscribed(
        self, join: Join, subscription: Subscription, joined: Joined | None
    ) -> None:
        missed = _missed(joined, subscription)
        result = self._subscribed(join, joined, subscription.form, missed)
        if not join.is_server_side:
            self._peer.reply(join.id, "subscribe", result)
            return
        # The push has a position only, so what was missed follows as pushes of its own.
        for name in ("publications", "recovered", "was_recovering"):
            result.pop(name, None)
        lines = [subscribe_push(join.channel, result)]
        payload = subscription.form.payload
        lines += (
            [publication_push(join.channel, whole(sent, payload)) for sent in joined.missed]
            if joined
            else []
        )
        for line in lines:
            self._peer.send(line)

    # ---- many at once

    async def join_all(
        self,
        joins: Sequence[Join],
        subscriptions: Mapping[str, Subscription],
        welcome: Callable[[Mapping[str, Mapping[str, object]]], None],
        limit_s: float,
    ) -> None:
        """Make the server's `subscriptions`, those of `joins`, all in one tick, or none.

        In that tick `welcome` is called first, to answer with what there is to say of each channel. Raises PortError
        and, at `limit_s`, TimeoutError; then there may be presence entries.
        """

        def admit(joined: Sequence[Joined | None]) -> bool:
            if self._peer.has_ended:
                return False
            welcome(self._results(joins, joined, subscriptions))
            self._subscriptions.add(subscriptions)
            return True

        joining = [self._joining(join, subscriptions[join.channel]) for join in joins]
        async with asyncio.timeout_at(limit_s), _to_its_end(self._enter_all(joins)) as entering:
            await self._services.dispatcher.join_all(joining, admit, entering)

    async def _enter_all(self, joins: Sequence[Join]) -> None:
        """Enter presence where the channels have it. Raises PortError, when all of them are done."""
        entering = [join for join in joins if join.options.presence]
        for failure in await each_to_its_end(PRESENCE_ENTRIES_AT_ONCE, entering, self._enter):
            raise failure

    def _joining(self, join: Join, subscription: Subscription) -> Joining:
        window = partial(self._window, join) if join.options.has_history else None
        return Joining(join.channel, subscription, join.since, window)

    def _results(
        self,
        joins: Sequence[Join],
        joined: Sequence[Joined | None],
        subscriptions: Mapping[str, Subscription],
    ) -> dict[str, dict[str, object]]:
        """What the answer to `connect` says of each channel. All recoveries together bring no more than one may."""
        results: dict[str, dict[str, object]] = {}
        room = RING_BYTES_MAX
        for join, one in zip(joins, joined, strict=True):
            if one is not None and one.recovered:
                size = sum(sent.size for sent in one.missed)
                if size > room:
                    one = Joined(one.position, False, ())  # noqa: PLW2901  # as if the log did not have it
                else:
                    room -= size
            form = subscriptions[join.channel].form
            lines = [whole(sent, form.payload) for sent in one.missed] if one else []
            results[join.channel] = self._subscribed(join, one, form, lines)
        return results

    # ---- within

    def _window(self, join: Join) -> Window:
        return Window(
            size=join.options.history_size,
            trim=0,
            cutoff_ts=self._services.clock.now_ms() - join.options.history_ttl_s * 1000,
            limit=self._services.limits.recovery_publications_max,
        )

    def _subscribed(
        self, join: Join, joined: Joined | None, form: Form, missed: Sequence[bytes]
    ) -> dict[str, object]:
        """What a client is told of its new subscription. `joined` None = the channel has no history."""
        result = (
            self._expiry.last_until(join.channel, join.expires_at)
            if not join.is_server_side
            else {}
        )
        if join.ends_at is not None:
            self._expiry.end_at(join.channel, join.ends_at)
        if join.data is not None:
            result["data"] = join.data
        number = self._services.dispatcher.number(join.channel) if form.numbered else 0
        if joined is None:
            return result | subscribe_result(position=None, recoverable=False, number=number)
        position = joined.position
        if joined.recovered and join.since is not None:
            # The client goes on from its own position through what it gets now.
            position = StreamPosition(position.epoch, join.since.offset)
        return result | subscribe_result(
            position=position if join.positioned else None,
            recoverable=join.recoverable,
            publications=missed,
            recovered=bool(joined.recovered),
            was_recovering=joined.recovered is not None,
            delta=form.delta,
            number=number,
        )


@asynccontextmanager
async def _to_its_end(entering: Coroutine[None, None, None]) -> AsyncIterator[Awaitable[None]]:
    """Presence is entered beside the reads of the log, which wait for it at last.

    When those fail, it ends first: an entry that is on its way could arrive after it was removed. It is given up only when
    its time is over, or nobody waits any more.
    """
    async with beside(entering) as task:
        try:
            yield task
        except PortError:
            await asyncio.wait([task])
            raise


def _missed(joined: Joined | None, subscription: Subscription) -> list[bytes]:
    """What it missed, in its form. As text it may be more than a recovery brings: then it gets no differences."""
    missed, payload = joined.missed if joined else (), subscription.form.payload
    lines = [whole(sent, payload) for sent in missed]
    if payload is not Payload.TEXT or sum(map(len, lines)) <= RING_BYTES_MAX:
        return lines
    subscription.form = replace(subscription.form, payload=Payload.VALUE, delta=False)
    return [sent.line for sent in missed]


def limit_from_now() -> float:
    """Until when what begins now must be answered, in the event loop's time."""
    return asyncio.get_running_loop().time() + SUBSCRIBE_LIMIT_S


def reason_of(error: PortError | TimeoutError) -> str:
    """Why a join failed, for the log."""
    return str(error) or f"not done within {SUBSCRIBE_LIMIT_S} s"
