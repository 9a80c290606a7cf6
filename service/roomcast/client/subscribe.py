"""Carries out subscriptions: enters presence, finds the position, and replies before any push."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial
from typing import Final, Protocol

import structlog

from roomcast.client.effects import Subscribe
from roomcast.client.lifetime import Lifetime
from roomcast.client.peer import Peer
from roomcast.client.services import ANSWER_LIMIT_S, Services
from roomcast.client.subscriptions import Subscription, Subscriptions
from roomcast.client.work import Work
from roomcast.concurrency import beside, each_to_its_end
from roomcast.delivery.forms import Form, Payload, whole
from roomcast.delivery.join_reads import JoinRequest, JoinResult
from roomcast.delivery.recovery import RING_BYTES_MAX, Window
from roomcast.delivery.tags_filters import TagsFilter
from roomcast.ports import PortError
from roomcast.wire.codes import Error
from roomcast.wire.encoding import publication_push, subscribe_push, subscribe_result
from roomcast.wire.publication import BASE64_DATA, StreamPosition, to_base64

__all__ = [
    "PRESENCE_ENTRIES_AT_ONCE",
    "RECOVERY_TESTS_MAX",
    "SUBSCRIBE_LIMIT_S",
    "ConnectAnswer",
    "Subscribing",
    "limit_from_now",
]

# Presence entries that are made at once for one client. The server may subscribe it to many
# channels as it connects.
PRESENCE_ENTRIES_AT_ONCE: Final = 16
# Seconds for a subscribe, or a connect with subscriptions.
SUBSCRIBE_LIMIT_S: Final = ANSWER_LIMIT_S

# Tests of missed publications, each by one node of a filter, in one turn of the event loop: some
# 2 ms. So many recover as that allows, and no more: 128 nodes, the most of a filter, recover 156
# publications.
RECOVERY_TESTS_MAX: Final = 20_000

_log = structlog.get_logger(__name__)


class ConnectAnswer(Protocol):
    """The answer to a `connect` with subscriptions. One of the two is called, at most once."""

    def send(self, subs: Mapping[str, Mapping[str, object]]) -> None:
        """The client is connected. `subs`: the result of each subscription, by channel."""

    def refuse(self, reason: str) -> None:
        """One of the subscriptions could not be made."""


class Subscribing:
    """Carries out the effect Subscribe: one, or many at once."""

    __slots__ = ("_lifetime", "_peer", "_services", "_subscriptions", "_work")

    def __init__(
        self,
        services: Services,
        peer: Peer,
        lifetime: Lifetime,
        work: Work,
        subscriptions: Subscriptions,
    ) -> None:
        self._services = services
        self._peer = peer
        self._lifetime = lifetime
        self._work = work
        self._subscriptions = subscriptions

    # ---- one channel

    async def subscribe(self, effect: Subscribe, limit_s: float | None = None) -> None:
        """Enter presence, find the position at the same time, and let the client in.

        A failed subscribe leaves nothing behind. `limit_s`: a deadline from an earlier
        `limit_from_now`; None = one from now.
        """
        channel, subscription = effect.channel, self._subscriptions.make(effect)
        entered = False
        try:
            if not self._joined_at_once(effect, subscription):
                async with asyncio.timeout_at(limit_s or limit_from_now()):
                    await self._subscriptions.exited(channel)
                    entered = subscription.has_presence
                    if not effect.options.has_history:
                        if entered:
                            await self._enter(effect)
                        self._services.dispatcher.join_unordered(
                            channel, subscription, partial(self._admit, effect, subscription, None)
                        )
                    elif entered:
                        async with _to_its_end(self._enter(effect)) as entering:
                            await self._join(effect, subscription, entering)
                    else:
                        await self._join(effect, subscription)
        except (PortError, TimeoutError) as error:
            await self._services.failures.wait()
            _log.warning(
                "subscribe_failed",
                channel=channel,
                client=self._peer.client,
                reason=_reason_of(error),
            )
            if not effect.is_server_side:
                self._peer.fail(effect.id, Error.INTERNAL)
        finally:
            if not self._subscriptions.has(channel, subscription):
                self._subscriptions.abandon(effect, entered=entered)
        self._subscriptions.announce(channel, subscription)

    def _joined_at_once(self, effect: Subscribe, subscription: Subscription) -> bool:
        """Let the client in if nothing has to be waited for: neither the log nor presence.

        That is so in most cases, and much cheaper than to be prepared for a wait.
        """
        return (
            effect.options.has_history
            and not subscription.has_presence
            and not self._subscriptions.is_exiting(effect.channel)
            and self._services.dispatcher.join_at_once(
                effect.channel,
                subscription,
                effect.since,
                partial(self._window, effect, subscription),
                partial(self._admit, effect, subscription),
            )
        )

    async def _join(
        self,
        effect: Subscribe,
        subscription: Subscription,
        ready: asyncio.Future[None] | None = None,
    ) -> None:
        await self._services.dispatcher.join(
            effect.channel,
            subscription,
            effect.since,
            partial(self._window, effect, subscription),
            partial(self._admit, effect, subscription),
            ready,
            caller=self._peer.caller,
        )

    def _admit(
        self, effect: Subscribe, subscription: Subscription, start: JoinResult | None
    ) -> bool:
        """Queue the reply. The dispatcher adds the subscription in the same tick. I4.

        `start`: the position where it starts. None: the channel has no history.
        """
        if self._peer.has_ended:
            return False
        if start is not None and start.recovered is False and effect.reject_unrecovered:
            self._peer.fail(effect.id, Error.UNRECOVERABLE_POSITION)
            return False
        if not self._has_room(effect.channel, subscription):
            # Nobody waits for an answer to a subscription by the server.
            if effect.is_server_side:
                _log.warning("filters_full", channel=effect.channel, client=self._peer.client)
            else:
                self._peer.fail(effect.id, Error.LIMIT_EXCEEDED)
            return False
        start = _passing(start, subscription.form.filter)
        missed = _missed(start, subscription)
        result = self._result(effect, start, subscription.form, missed)
        if effect.is_server_side:
            self._push(effect.channel, start, subscription.form, result)
        else:
            self._peer.reply(effect.id, "subscribe", result)
        self._subscriptions.add({effect.channel: subscription})
        return True

    def _push(
        self, channel: str, start: JoinResult | None, form: Form, result: dict[str, object]
    ) -> None:
        """Push a server-side subscription. Each missed publication follows as a push of its own."""
        for name in ("publications", "recovered", "was_recovering"):
            result.pop(name, None)
        lines = [subscribe_push(channel, result)]
        if start is not None:
            lines += [publication_push(channel, whole(sent, form.payload)) for sent in start.missed]
        for line in lines:
            self._peer.send(line)

    # ---- many at once, for `connect`

    async def subscribe_all(
        self, effects: Sequence[Subscribe], answer: ConnectAnswer, limit_s: float
    ) -> None:
        """Make the server's subscriptions and send `answer`, all in one tick.

        If one of them fails, none is made, and `connect` is refused. `limit_s`: a deadline from
        `limit_from_now`.
        """
        subscriptions = {effect.channel: self._subscriptions.make(effect) for effect in effects}
        done = asyncio.get_running_loop().create_future()
        self._work.first_change(subscriptions, done)
        try:
            await self._join_all(effects, subscriptions, answer, limit_s)
        except (PortError, TimeoutError) as error:
            await self._services.failures.wait()
            answer.refuse(_reason_of(error))
        finally:
            done.set_result(None)
            for effect in effects:
                if not self._subscriptions.has(effect.channel, subscriptions[effect.channel]):
                    self._subscriptions.abandon(effect, entered=effect.options.has_entries)
        for channel, subscription in subscriptions.items():
            self._subscriptions.announce(channel, subscription)

    async def _join_all(
        self,
        effects: Sequence[Subscribe],
        subscriptions: Mapping[str, Subscription],
        answer: ConnectAnswer,
        limit_s: float,
    ) -> None:
        """Join all channels. Raises PortError and TimeoutError; presence entries may remain."""

        def admit(starts: Sequence[JoinResult | None]) -> bool:
            if self._peer.has_ended:
                return False
            for channel, subscription in subscriptions.items():
                if not self._has_room(channel, subscription):
                    answer.refuse(f"too many different filters in {channel}")
                    return False
            answer.send(self._results(effects, starts, subscriptions))
            self._subscriptions.add(subscriptions)
            return True

        requests = [
            JoinRequest(
                effect.channel,
                subscriptions[effect.channel],
                effect.since,
                partial(self._window, effect, subscriptions[effect.channel])
                if effect.options.has_history
                else None,
            )
            for effect in effects
        ]
        async with asyncio.timeout_at(limit_s), _to_its_end(self._enter_all(effects)) as entering:
            await self._services.dispatcher.join_all(
                requests, admit, entering, caller=self._peer.caller
            )

    async def _enter_all(self, effects: Sequence[Subscribe]) -> None:
        """Enter presence where the channels have it. Raises PortError after all have ended."""
        entering = [effect for effect in effects if effect.options.has_entries]
        for failure in await each_to_its_end(PRESENCE_ENTRIES_AT_ONCE, entering, self._enter):
            raise failure

    def _results(
        self,
        effects: Sequence[Subscribe],
        starts: Sequence[JoinResult | None],
        subscriptions: Mapping[str, Subscription],
    ) -> dict[str, dict[str, object]]:
        """The result of each subscription, for the answer to `connect`.

        All recoveries together may bring as many bytes as a single one. A channel beyond that
        counts as not recovered.
        """
        results: dict[str, dict[str, object]] = {}
        room, tests = RING_BYTES_MAX, RECOVERY_TESTS_MAX
        for effect, start in zip(effects, starts, strict=True):
            form = subscriptions[effect.channel].form
            if start is not None and start.recovered:
                size = sum(sent.size for sent in start.missed)
                cost = len(start.missed) * form.filter.nodes if form.filter else 0
                if size > room or cost > tests:
                    start = JoinResult(start.position, False, ())  # noqa: PLW2901  # for what follows
                else:
                    room, tests = room - size, tests - cost
                    start = _passing(start, form.filter)  # noqa: PLW2901  # for what follows
            lines = [whole(sent, form.payload) for sent in start.missed] if start else []
            results[effect.channel] = self._result(effect, start, form, lines)
        return results

    # ---- within

    async def _enter(self, effect: Subscribe) -> None:
        await self._services.presence.enter(effect.channel, effect.info)

    def _has_room(self, channel: str, subscription: Subscription) -> bool:
        return self._services.dispatcher.has_room_for(channel, subscription.form.filter)

    def _window(self, effect: Subscribe, subscription: Subscription) -> Window:
        limit = self._services.limits.recovery_publications_max
        if (tags_filter := subscription.form.filter) is not None:
            limit = min(limit, RECOVERY_TESTS_MAX // tags_filter.nodes)
        return Window(
            size=effect.options.history_size,
            trim=0,
            cutoff_ts=self._services.clock.now_ms() - effect.options.history_ttl_s * 1000,
            limit=limit,
            newest_only=effect.options.recovers_newest,
        )

    def _result(
        self, effect: Subscribe, start: JoinResult | None, form: Form, missed: Sequence[bytes]
    ) -> dict[str, object]:
        """The result for the client. From here on, the subscription's deadline runs."""
        result = (
            self._lifetime.last_until(effect.channel, effect.expires_at)
            if not effect.is_server_side
            else {}
        )
        if effect.ends_at is not None:
            self._lifetime.end_at(effect.channel, effect.ends_at)
        if isinstance(effect.data, bytes):
            result[BASE64_DATA] = to_base64(effect.data)
        elif effect.data is not None:
            result["data"] = effect.data
        number = self._services.dispatcher.number(effect.channel) if form.numbered else 0
        if start is None:
            return result | subscribe_result(position=None, recoverable=False, number=number)
        position = start.position
        is_behind = missed or form.filter is None
        if start.recovered and effect.since is not None and is_behind:
            # The client applies the missed publications from its own position on. If its filter
            # held all of them back, it has no others to learn from where it stands.
            position = StreamPosition(position.epoch, effect.since.offset)
        return result | subscribe_result(
            position=position if effect.positioned else None,
            recoverable=effect.recoverable,
            publications=missed,
            recovered=bool(start.recovered),
            was_recovering=start.recovered is not None,
            delta=form.delta,
            number=number,
        )


@asynccontextmanager
async def _to_its_end(entering: Coroutine[None, None, None]) -> AsyncIterator[asyncio.Future[None]]:
    """Enter presence beside the reads of the log. The reads wait for it at their end.

    When the reads fail, the entry is completed first: an entry on its way could arrive after its
    removal. It is cancelled only when the time is over or nobody waits any more.
    """
    async with beside(entering) as task:
        try:
            yield task
        except PortError:
            await asyncio.wait([task])
            raise


def _passing(start: JoinResult | None, tags_filter: TagsFilter | None) -> JoinResult | None:
    """`start` with those of the missed publications that pass."""
    if start is None or tags_filter is None or not start.missed:
        return start
    return replace(start, missed=tags_filter.of(start.missed))


def _missed(start: JoinResult | None, subscription: Subscription) -> list[bytes]:
    """The publications that a subscription missed, as lines in its form.

    As text they may exceed the bytes of a recovery. Then the subscription gets whole publications
    and no differences.
    """
    missed, payload = start.missed if start else (), subscription.form.payload
    lines = [whole(sent, payload) for sent in missed]
    if payload is not Payload.TEXT or sum(map(len, lines)) <= RING_BYTES_MAX:
        return lines
    subscription.form = replace(subscription.form, payload=Payload.VALUE, delta=False)
    return [sent.line for sent in missed]


def limit_from_now() -> float:
    """The deadline of a command that begins now, in the event loop's time."""
    return asyncio.get_running_loop().time() + SUBSCRIBE_LIMIT_S


def _reason_of(error: PortError | TimeoutError) -> str:
    """Why a subscribe failed, for the log."""
    return str(error) or f"not done within {SUBSCRIBE_LIMIT_S} s"
