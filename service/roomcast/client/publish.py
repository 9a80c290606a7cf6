"""Carries out `publish` for one client.

A publication waits for its rate, is appended to the log or sent as a signal, and is answered when
it is durable.
"""

from __future__ import annotations

import asyncio
from functools import partial
from typing import Final

from roomcast.client.effects import AskPublish, Close, Publish
from roomcast.client.hooks import ClientHooks
from roomcast.client.lifetime import Lifetime
from roomcast.client.peer import Peer
from roomcast.client.services import ANSWER_LIMIT_S, Services
from roomcast.client.work import Pace, Place, Work
from roomcast.log.appender import Full, TooLarge
from roomcast.observe.counters import Limit
from roomcast.wire.codes import Disconnect, Error
from roomcast.wire.encoding import Unencodable, stored_of
from roomcast.wire.publication import Publication, StreamPosition

__all__ = ["PUBLISH_WAIT_S", "Publishing"]

# Seconds that a publication may wait for its rate after its frame was read. A client gives it up
# after 5. The rest is for the append and for the application's hook.
PUBLISH_WAIT_S: Final = 2.0
assert PUBLISH_WAIT_S < ANSWER_LIMIT_S, "what waited can still be answered in time"


class Publishing:
    """Carries out `publish` for one client. A publication holds a place until it is answered."""

    __slots__ = ("_asked", "_caller", "_hooks", "_lifetime", "_pace", "_peer", "_services", "_work")

    def __init__(
        self, services: Services, peer: Peer, lifetime: Lifetime, work: Work, hooks: ClientHooks
    ) -> None:
        self._services = services
        self._peer = peer
        self._lifetime = lifetime
        self._work = work
        self._hooks = hooks
        # It is made for the first publication, when the user is known.
        self._caller = peer.caller
        # The last publication for which the hook was called, or will be. The next one waits for it.
        self._asked: asyncio.Task[None] | None = None
        rate = services.limits.publishes
        self._pace = (
            Pace(rate, Limit.PUBLISH_RATE, services.clock, services.counters) if rate else None
        )

    async def publish(self, effect: Publish, read_s: float) -> None:
        """Hand `effect` over as soon as its rate allows it and a place is free.

        It is answered later.

        `read_s`: when its frame was read (monotonic seconds). Publications keep their order.
        """
        received_ms = self._services.clock.now_ms()
        if (place := await self._place(effect.id, read_s)) is not None:
            self._hand_over(effect, received_ms, place)

    async def publish_if_allowed(self, effect: AskPublish, read_s: float, size: int) -> None:
        """As `publish`, if the hook allows it. The hook is called for one publication at a time.

        `size`: bytes of the command, whose data waits for the hook.
        """
        received_ms = self._services.clock.now_ms()
        limit_s = asyncio.get_running_loop().time() + self._hooks.wait_s
        if (place := await self._place(effect.id, read_s, size)) is None:
            return
        self._asked = self._work.track(self._ask(effect, self._asked, received_ms, limit_s, place))
        # A task that is cancelled before its first step must give its place back, too.
        self._asked.add_done_callback(lambda _: place.give_back())

    async def _ask(
        self,
        effect: AskPublish,
        before: asyncio.Task[None] | None,
        received_ms: int,
        limit_s: float,
        place: Place,
    ) -> None:
        if before is not None and not await _is_over(before, limit_s):
            place.give_back()
            self._peer.fail(effect.id, Error.TOO_MANY_REQUESTS)
            # The next publication waits for this task, and must not overtake the earlier ones.
            await asyncio.wait([before])
            return
        decision = await self._hooks.publish(effect)
        if isinstance(decision, Publish):
            self._hand_over(decision, received_ms, place.hand_over())
            return
        place.give_back()
        if isinstance(decision, Close):
            self._peer.close(decision.why)
        else:
            self._peer.fail(decision.id, decision.error)

    async def _place(self, command_id: int, read_s: float, size: int = 0) -> Place | None:
        """Wait for its rate and a place. None: it was refused, or the connection has ended."""
        place = await self._work.place_in_time(self._pace, read_s + PUBLISH_WAIT_S, size)
        if place is None:
            self._peer.fail(command_id, Error.TOO_MANY_REQUESTS)
        elif self._peer.has_ended:
            # It waited in vain. Nobody would hear that it was published, and it may come again
            # elsewhere.
            place.give_back()
            return None
        return place

    def _hand_over(self, effect: Publish, received_ms: int, place: Place) -> None:
        """Give `effect` to the publisher. `place` is given back with the answer."""
        if effect.key is not None and self._lifetime.slept():
            # The client may have published it elsewhere so long ago that its key has expired.
            place.give_back()
            self._peer.close(Disconnect.NO_PONG)
            return
        publisher = self._services.publisher
        publication = Publication(
            effect.data,
            info=effect.info,
            tags=effect.tags,
            time=received_ms,
            delta=effect.options.delta_publish,
            text=effect.text,
        )
        try:
            if not effect.options.has_history:
                publisher.send(effect.channel, stored_of(publication))
                place.give_back()
                self._peer.reply(effect.id, "publish", {})
                return
            position = self._services.appender.submit(
                effect.channel,
                publication,
                effect.options.history_ttl_s * 1000,
                effect.key,
                received_ms=received_ms,
                caller=self._caller,
                version=effect.version,
            )
        except (Full, TooLarge, Unencodable) as error:
            place.give_back()
            self._peer.fail(effect.id, publisher.error(error))
        else:
            position.add_done_callback(partial(self._published, effect.id, effect.rpc, place))

    def _published(
        self, command_id: int, rpc: bool, place: Place, position: asyncio.Future[StreamPosition]
    ) -> None:
        """Answer. The publication is in the log now, as I2 demands."""
        place.give_back()
        if position.cancelled():
            self._peer.fail(command_id, Error.INTERNAL)
        elif (failure := position.exception()) is not None:
            self._peer.fail(command_id, self._services.publisher.error(failure))
        elif rpc:
            at = position.result()
            self._peer.reply(command_id, "rpc", {"data": {"offset": at.offset, "epoch": at.epoch}})
        else:
            self._peer.reply(command_id, "publish", {})


async def _is_over(before: asyncio.Task[None], limit_s: float) -> bool:
    """Wait for `before` until the limit, which is in the event loop's time."""
    left_s = limit_s - asyncio.get_running_loop().time()
    await asyncio.wait([before], timeout=max(0.0, left_s))
    return before.done()
