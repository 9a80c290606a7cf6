"""Carries a plan out: clients come, publications are sent, what is under way is waited for, and all
leave. It ends by itself, and sooner when it is interrupted.
"""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Callable, Collection, Coroutine
from dataclasses import dataclass
from datetime import UTC, datetime
from time import perf_counter
from typing import Any, Final

import aiohttp

from roomcast.bench.advice import Declined
from roomcast.bench.api import ApiClient
from roomcast.bench.client import ATTEMPTS_MAX, Client, Shared
from roomcast.bench.ledger import Ledger
from roomcast.bench.plan import Plan
from roomcast.bench.report import Times
from roomcast.bench.session import direct

__all__ = ["Access", "Bench", "Progress"]

_CONNECTING: Final = "connecting"
_PUBLISHING: Final = "publishing"
_WAITING: Final = "waiting"
# Between two looks at what is awaited, or at whether it is enough.
_LOOK_S: Final = 0.05
# Connects under way at once.
_CONNECTING_MAX: Final = 200
# What was due while publishing lasted is sent this much later at most.
_OVERRUN_S: Final = 1.0
# For all clients to leave in order.
_LEAVE_S: Final = 5.0
# When everybody is told to leave at once, closes come in portions of that size.
_LEAVING_MAX: Final = 200


@dataclass(frozen=True, slots=True)
class Access:
    """`token_of`: the connection token of a client. `origin`: the header of handshakes. `key`: of
    the server API. Each "" = none.
    """

    token_of: Callable[[int], str]
    origin: str = ""
    key: str = ""


@dataclass(frozen=True, slots=True)
class Progress:
    """`done`: of the present phase, 0 to 1. `told`: what is done, with figures."""

    done: float
    told: str


class Bench:
    """One run. `ledger` and `times` have what happened, also when it was interrupted."""

    def __init__(self, plan: Plan, access: Access) -> None:
        self.ledger = Ledger(plan)
        # The phase that was interrupted last. "" = none was.
        self.interrupted = ""
        self._plan, self._access = plan, access
        self._clients: list[Client] = []
        self._refusal: Declined | None = None
        # A fault of this command.
        self._fault: BaseException | None = None
        self._phase = _CONNECTING
        self._progress: Callable[[], Progress] = lambda: Progress(0.0, "begins")
        self._began_s = self._came_s = self._published_s = self._ended_s = 0.0
        self._started_at = ""
        # Clients that are connecting for the first time.
        self._coming: set[Client] = set()
        # Clients, and what is being sent: UNANSWERED_MAX for each client at most, or CALLS_MAX.
        self._tasks: set[asyncio.Task[None]] = set()

    def interrupt(self) -> None:
        """Ends the present phase. What is under way after that of publishing is still waited for:
        another interrupt ends that.
        """
        self.interrupted = self._phase

    def progress(self) -> Progress:
        """How far it is."""
        return self._progress()

    @property
    def times(self) -> Times:
        """Of a run that has ended."""
        return Times(
            self._started_at,
            self._ended_s - self._began_s,
            self._came_s - self._began_s,
            self._published_s - self._came_s,
        )

    async def run(self) -> None:
        """Raises Declined when nobody could connect, or nothing could be published."""
        self._started_at = datetime.now(UTC).isoformat(timespec="seconds")
        self._began_s = perf_counter()
        connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=5.0)
        async with direct(connector) as session:
            shared = Shared(
                self._plan,
                self.ledger,
                session,
                self._access.token_of,
                self._access.origin,
                self._gave_up,
            )
            try:
                await self._connect(shared)
                self._came_s = perf_counter()
                # What exists now stays until the end: no collection need look at it again.
                gc.collect()
                gc.freeze()
                await self._publish(ApiClient(shared, self._access.key))
                self._published_s = perf_counter()
                await self._wait()
            finally:
                await self._leave()
                gc.unfreeze()
                self._ended_s = perf_counter()
        if self._fault is not None:
            raise self._fault
        if self._refusal is not None:
            raise self._refusal

    def _gave_up(self, refusal: Declined) -> None:
        self._refusal = self._refusal or refusal

    @property
    def _is_over(self) -> bool:
        """Whether nothing more is to be begun."""
        return bool(self.interrupted or self._refusal or self._fault)

    # ---- phases

    async def _connect(self, shared: Shared) -> None:
        """One client for each URL, and when these are there all others. Raises Declined."""
        wanted = self._plan.clients
        self._progress = lambda: Progress(
            len(self.ledger.connected) / wanted,
            f"{len(self.ledger.connected):,} of {wanted:,} clients connected",
        )
        first = frozenset(self._plan.first_clients())
        for number in sorted(first):
            client = self._comes(number, shared, 1)
            await self._until(client.settled.is_set)
            if client.refusal is not None:
                raise client.refusal
        began_s = perf_counter()
        others = [number for number in range(wanted) if number not in first]
        for place, number in enumerate(others):
            await self._until_s(began_s + place / self._plan.ramp)
            await self._until(lambda: self._connecting < _CONNECTING_MAX)
            if self._is_over:
                return
            self._comes(number, shared, ATTEMPTS_MAX)
        await self._until(lambda: not self._connecting)

    def _comes(self, number: int, shared: Shared, attempts: int) -> Client:
        client = Client(number, shared, attempts)
        self._clients.append(client)
        self._coming.add(client)
        self._begin(client.run())
        return client

    @property
    def _connecting(self) -> int:
        self._coming = {client for client in self._coming if not client.settled.is_set()}
        return len(self._coming)

    async def _publish(self, api: ApiClient) -> None:
        """Publishes at the rate of the plan, whatever the answers. What cannot be sent in time is
        counted, and not sent.
        """
        plan, ledger = self._plan, self.ledger
        clients = {client.number: client for client in self._clients}
        self._phase = _PUBLISHING
        began_s = perf_counter()
        ends_s = began_s + plan.duration
        self._progress = lambda: Progress(
            (perf_counter() - began_s) / plan.duration,
            f"{ledger.sent:,} published, {ledger.received:,} delivered",
        )
        for publication in range(plan.publications):
            due_s = began_s + plan.due_s(publication)
            await self._until_s(due_s)
            now_s = perf_counter()
            if self._is_over:
                return
            if now_s >= ends_s + _OVERRUN_S:
                ledger.not_sent += plan.publications - publication
                return
            publisher = self._able(plan.publisher_of(publication), clients, api)
            if publisher is None:
                ledger.not_sent += 1
                continue
            channel = plan.channel_of(publication, publisher)
            number = ledger.publishes(channel, publisher, now_s, now_s - due_s)
            self._begin(
                clients[publisher].publish(channel, number)
                if publisher >= 0
                else api.publish(-1 - publisher, channel, number)
            )
        await self._until_s(ends_s)

    def _able(self, publisher: int, clients: dict[int, Client], api: ApiClient) -> int | None:
        """That publisher; in place of a client that cannot publish now, the next one that can."""
        if publisher < 0:
            return publisher if api.may_publish else None
        for step in range(self._plan.publishers):
            number = (publisher + step) % self._plan.publishers
            if (client := clients.get(number)) is not None and client.may_publish:
                return number
        return None

    async def _wait(self) -> None:
        """Until every publication is answered, everything has come and everybody is back: `wait`
        seconds at most.
        """
        self._phase, before = _WAITING, self.interrupted
        wait_s, began_s = self._plan.wait, perf_counter()
        lost, now_s = 0, began_s
        self._progress = lambda: Progress(
            (perf_counter() - began_s) / max(wait_s, 1),
            f"waiting for {lost:,} deliveries, {self.ledger.awaited:,} answers, "
            f"{len(self.ledger.gone):,} clients",
        )
        while self.interrupted == before and not self._refusal and not self._fault:
            lost = self.ledger.missing().lost
            looked_s = perf_counter() - now_s
            is_there = not (lost or self.ledger.awaited or self.ledger.gone)
            if is_there or perf_counter() > began_s + wait_s:
                return
            # Looking takes its time where there are many clients; receiving needs it more.
            await asyncio.sleep(max(_LOOK_S, looked_s * 5))
            now_s = perf_counter()

    async def _leave(self) -> None:
        """All clients close their connections; who does not within bounds is cut off."""
        self._progress = lambda: Progress(1.0, "closes connections")
        ends_s = perf_counter() + _LEAVE_S
        for first in range(0, len(self._clients), _LEAVING_MAX):
            portion = self._clients[first : first + _LEAVING_MAX]
            leaving = [asyncio.create_task(client.leave()) for client in portion]
            await _ended(leaving, ends_s)
        await _ended(self._tasks, ends_s)

    # ---- waiting

    async def _until(self, holds: Callable[[], bool]) -> None:
        while not holds() and not self._is_over:  # noqa: ASYNC110  # it looks at several things
            await asyncio.sleep(_LOOK_S)

    async def _until_s(self, when_s: float) -> None:
        """Until then. It lets others have their turn in any case."""
        while (left_s := when_s - perf_counter()) > 0 and not self._is_over:  # noqa: ASYNC110  # as above
            await asyncio.sleep(min(left_s, _LOOK_S))
        await asyncio.sleep(0)

    def _begin(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled():
            self._fault = self._fault or task.exception()


async def _ended(tasks: Collection[asyncio.Task[None]], until_s: float) -> None:
    """Waits for `tasks`, and cancels those that take longer than until then."""
    tasks = list(tasks)
    if not tasks:
        return
    await asyncio.wait(tasks, timeout=max(until_s - perf_counter(), 0.0))
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
