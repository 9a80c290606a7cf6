"""The simulated AWS: tables, stream, Lambda, topic and queues that delay, repeat, reorder, lose, throttle and forget."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass
from random import Random
from typing import TypeVar

from service.adapters.memory import MemoryWorld
from service.core.envelope import checked_pubs, pack, record_text
from service.core.log_item import LogItem
from service.ports import Throttled, UnknownOutcome

T = TypeVar("T")

# A request may be under way for this long; with twice the clock skew it stays below MARGIN.
REQUEST_S_MAX = 60.0
VISIBILITY_S = 12.0


@dataclass(slots=True)
class Faults:
    """Probabilities a call or message, and bounds in seconds. All zero: a world without faults."""

    throttled: float = 0.0
    unknown: float = 0.0
    slow: float = 0.0
    latency_s: float = 0.01
    hint_lost: float = 0.0
    hint_repeated: float = 0.0
    hint_late_s: float = 0.1


@dataclass(slots=True)
class Fate:
    """What the simulation does to one node; the world asks for it by the task that calls."""

    dead: bool = False
    # Done when the process goes on.
    frozen: asyncio.Future[None] | None = None
    frozen_at_s: float = 0.0
    # Called with the seconds it took, before anything goes on.
    woken: Callable[[float], None] = lambda _: None

    def freeze(self, seconds: float) -> None:
        if self.frozen is None:
            loop = asyncio.get_running_loop()
            self.frozen = loop.create_future()
            self.frozen_at_s = loop.time()
            loop.call_later(seconds, self.thaw)

    def thaw(self) -> None:
        frozen, self.frozen = self.frozen, None
        if frozen is not None:
            self.woken(asyncio.get_running_loop().time() - self.frozen_at_s)
            frozen.set_result(None)


FATE: ContextVar[Fate | None] = ContextVar("fate", default=None)

_ANSWERS_ONLY = ("receive", "delete", "open", "close")


class SimulatedWorld(MemoryWorld):
    """A MemoryWorld in which every call meets the faults of the moment. `random` decides, so a seed repeats all."""

    def __init__(self, random: Random, faults: Faults) -> None:
        super().__init__()
        self.random = random
        self.faults = faults
        self.calls = 0
        self.on_insert.append(self._streamed)
        self._unread: list[LogItem] = []
        self._lambda_due = False

    async def perform(self, call: str, effect: Callable[[], T], check: Callable[[], None] | None = None) -> T:
        fate = FATE.get()
        self.calls += 1
        await self._stand_still(fate)
        if check is not None:
            check()
        faults, random = self.faults, self.random
        await asyncio.sleep(self._latency())
        if fate is not None and fate.dead:
            if random.random() < 0.5:
                effect()  # it was on its way when its sender died
            await _never()
        roll = random.random()
        if roll < faults.throttled:
            raise Throttled("simulated")
        if roll < faults.throttled + faults.unknown:
            return await self._lose_answer(call, effect)
        result = effect()
        await asyncio.sleep(self._latency())
        await self._stand_still(fate)
        return result

    async def _lose_answer(self, call: str, effect: Callable[[], T]) -> T:
        random = self.random
        kind = random.choice(("nothing", "applied", "late"))
        if kind == "applied":
            effect()
        elif kind == "late" and call not in _ANSWERS_ONLY:
            asyncio.get_running_loop().call_later(random.uniform(0, REQUEST_S_MAX), effect)
        if call in ("receive", "delete"):
            asyncio.get_running_loop().call_later(VISIBILITY_S, self.redeliver_all)
        await asyncio.sleep(self._latency())
        raise UnknownOutcome("simulated")

    async def _stand_still(self, fate: Fate | None) -> None:
        """A process that is suspended goes on later as if nothing had happened; a dead one never."""
        if fate is None:
            return
        if fate.dead:
            await _never()
        while fate.frozen is not None:
            await asyncio.shield(fate.frozen)
        if fate.dead:
            await _never()

    def _latency(self) -> float:
        if self.random.random() < self.faults.slow:
            return self.random.uniform(0, REQUEST_S_MAX / 2)
        return self.random.uniform(0, self.faults.latency_s)

    def redeliver_all(self) -> None:
        for name in list(self.queues):
            self.redeliver(name)

    # ---- stream, Lambda, topic

    def _streamed(self, item: LogItem) -> None:
        self._unread.append(item)
        if not self._lambda_due:
            self._lambda_due = True
            delay = self.random.uniform(0.01, 0.05 + self.faults.hint_late_s)
            asyncio.get_running_loop().call_later(delay, self._run_lambda)

    def _run_lambda(self) -> None:
        self._lambda_due = False
        items, self._unread = self._unread, []
        self.random.shuffle(items)  # order is promised for one item only
        for body, _ in pack(record_text(item, checked_pubs(item)) for item in items):
            self.send(body)
            if self.random.random() < self.faults.hint_repeated:
                self.send(body)  # the batch was retried

    def send(self, body: str) -> None:
        """From the topic to each queue on its own: late, twice, or not at all."""
        loop, faults, random = asyncio.get_running_loop(), self.faults, self.random
        for name in sorted(self.subscriptions):
            copies = 0 if random.random() < faults.hint_lost else 1
            copies += random.random() < faults.hint_repeated
            for _ in range(copies):
                loop.call_later(random.uniform(0, faults.hint_late_s), self._arrive, name, body)

    def _arrive(self, name: str, body: str) -> None:
        if name in self.queues:
            subscriptions, self.subscriptions = self.subscriptions, {name}
            try:
                super().send(body)
            finally:
                self.subscriptions = subscriptions

    # ---- the table forgets

    def expire_some(self, now_ms: int) -> None:
        """TTL deletes some of the expired items, in any order."""
        for channel in sorted(self.items):
            expired = [
                offset
                for offset, item in sorted(self.items[channel].items())
                if item.expires_at * 1000 < now_ms
            ]
            for offset in expired:
                if self.random.random() < 0.6:
                    self.expire(channel, offset)
        for key in sorted(self.keys):
            if self.keys[key].expires_at * 1000 < now_ms and self.random.random() < 0.6:
                self.expire_key(key)


async def _never() -> None:
    await asyncio.get_running_loop().create_future()
