"""What the client publishes: kept to its rate, appended or sent as a signal, and answered when it is durable."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from typing import Final

from roomcast.client.ask import Asking
from roomcast.client.pace import Pace
from roomcast.client.peer import Peer
from roomcast.client.services import ANSWER_LIMIT_S, Services
from roomcast.client.session import AskPublish, Close, Publish
from roomcast.client.tasks import Place, Tasks
from roomcast.log.appender import Full, TooLarge
from roomcast.observe.counters import Limit
from roomcast.wire.codes import Disconnect, Error
from roomcast.wire.json import Unencodable
from roomcast.wire.publication import Publication, StreamPosition

__all__ = ["PUBLISH_WAIT_S", "Publishing"]

# How long a publication waits for its rate after its frame was read. Its client gives it up after 5 s: what is left is for
# the append, and for the application's say.
PUBLISH_WAIT_S: Final = 2.0
assert PUBLISH_WAIT_S < ANSWER_LIMIT_S, "who waited can still be answered in time"


class Publishing:
    """`places`: for what is under way at once. `slept`: whether this process was suspended (service/roomcast/client/heartbeat.py)."""

    __slots__ = ("_asked", "_asking", "_pace", "_peer", "_places", "_services", "_slept", "_tasks")

    def __init__(
        self,
        services: Services,
        peer: Peer,
        asking: Asking,
        tasks: Tasks,
        places: asyncio.Semaphore,
        slept: Callable[[], bool],
    ) -> None:
        self._services = services
        self._peer = peer
        self._asking = asking
        self._tasks = tasks
        self._places = places
        self._slept = slept
        # The newest one that the application is, or was, asked about: the next one waits for it.
        self._asked: asyncio.Task[None] | None = None
        self._pace = Pace(
            services.limits.publishes, Limit.PUBLISH_RATE, services.clock, services.tally
        )

    async def publish(self, effect: Publish, read_s: float) -> None:
        """Take it, as soon as its rate lets it and there is a place; publications keep their order. It is answered later.

        `read_s`: when its frame was read (monotonic seconds).
        """
        received_ms = self._services.clock.now_ms()
        if not await self._is_in_time(effect.id, read_s):
            return
        await self._places.acquire()
        place = Place(self._places)
        if self._peer.has_ended:
            # It waited for its place in vain: nobody would hear that it was published, and it may come again elsewhere.
            place.give_back()
            return
        self._hand_over(effect, received_ms, place)

    async def publish_if_allowed(self, effect: AskPublish, read_s: float) -> None:
        """As `publish`, if the application lets it: it is asked about one after the other, beside further commands."""
        received_ms = self._services.clock.now_ms()
        limit_s = asyncio.get_running_loop().time() + self._asking.wait_s
        if not await self._is_in_time(effect.id, read_s):
            return
        await self._places.acquire()
        place = Place(self._places)
        self._asked = self._tasks.track(self._ask(effect, self._asked, received_ms, limit_s, place))
        # Also when it is cancelled before its first step: whoever waits for a place must get one.
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
            # The next one waits for this: it must not overtake those before it.
            await asyncio.wait([before])
            return
        said = await self._asking.publish(effect)
        if isinstance(said, Publish):
            self._hand_over(said, received_ms, place.hand_over())
            return
        place.give_back()
        if isinstance(said, Close):
            self._peer.close(said.why)
        else:
            self._peer.fail(said.id, said.error)

    async def _is_in_time(self, command_id: int, read_s: float) -> bool:
        """Wait until its rate lets it. False = it cannot wait that long, and was told so; or the connection has ended."""
        if not await self._pace.keep(read_s + PUBLISH_WAIT_S):
            self._peer.fail(command_id, Error.TOO_MANY_REQUESTS)
            return False
        return not self._peer.has_ended

    def _hand_over(self, effect: Publish, received_ms: int, place: Place) -> None:
        """`place` is given back with the answer."""
        if effect.key is not None and self._slept():
            # Its client may have published it elsewhere so long ago that the key is forgotten.
            place.give_back()
            self._peer.close(Disconnect.NO_PONG)
            return
        publisher = self._services.publisher
        published = Publication(
            effect.data,
            info=effect.info,
            time=received_ms,
            delta=effect.options.delta_publish,
            text=effect.text,
        )
        try:
            if not effect.options.has_history:
                publisher.send(effect.channel, published)
                place.give_back()
                self._peer.reply(effect.id, "publish", {})
                return
            position = self._services.appender.submit(
                effect.channel,
                published,
                effect.options.history_ttl_s * 1000,
                effect.key,
                received_ms=received_ms,
            )
        except (Full, TooLarge, Unencodable) as error:
            place.give_back()
            self._peer.fail(effect.id, publisher.error(error))
        else:
            position.add_done_callback(partial(self._published, effect.id, effect.rpc, place))

    def _published(
        self, command_id: int, rpc: bool, place: Place, position: asyncio.Future[StreamPosition]
    ) -> None:
        """I2: answered only now, when the publication is in the log."""
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
    """Wait for it, until the limit, which is in the event loop's time."""
    left_s = limit_s - asyncio.get_running_loop().time()
    await asyncio.wait([before], timeout=max(0.0, left_s))
    return before.done()
