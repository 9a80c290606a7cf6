"""A queue of back ends in memory, with visibility time-outs, groups and dead letters."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from roomcast.consumers.messages import QueueMessage
from roomcast.ports import Clock, PortError

__all__ = ["MemoryWorkQueue"]

_RECEIVE_MAX = 10


@dataclass(slots=True)
class _Held:
    """A message in the queue. `hidden_ms`: until when it is hidden."""

    message: QueueMessage
    hidden_ms: int = 0


class MemoryWorkQueue:
    """A WorkQueue. `receives_max`: 0 = it has no dead-letter queue. `wait_s`: of a long poll.

    `fail_next`: errors of the next calls, by method. `dead`: bodies of dead letters.
    """

    url = "https://sqs.memory/000000000000/work"

    def __init__(
        self,
        clock: Clock,
        *,
        receives_max: int = 0,
        visibility_s: int = 30,
        messages_max: int = _RECEIVE_MAX,
        wait_s: float = 0.01,
    ) -> None:
        self._clock = clock
        self._receives_max = receives_max
        self._visibility_s = visibility_s
        self._messages_max = messages_max
        self._wait_s = wait_s
        self._held: dict[str, _Held] = {}
        self._sent = 0
        self._receives = 0
        self._arrived = asyncio.Event()
        self.fail_next: dict[str, list[PortError]] = {}
        self.dead: list[str] = []

    def __len__(self) -> int:
        """The number of messages in it, hidden or not."""
        return len(self._held)

    def send(self, body: str, *, group: str = "", **attributes: str) -> str:
        """Returns the message's id."""
        self._sent += 1
        id_ = f"message-{self._sent}"
        now_ms = self._clock.now_ms()
        self._held[id_] = _Held(QueueMessage(id_, body, attributes, "", now_ms, 0, 0, group))
        self._arrived.set()
        return id_

    async def receive(self) -> Sequence[QueueMessage]:
        self._fail("receive")
        if not (messages := self._taken()):
            self._arrived.clear()
            try:
                async with asyncio.timeout(self._wait_s):
                    await self._arrived.wait()
            except TimeoutError:
                return ()
            messages = self._taken()
        return messages

    async def delete(self, receipts: Sequence[str]) -> None:
        self._fail("delete")
        for held in self._with(receipts):
            del self._held[held.message.id]

    async def hide(self, pauses: Mapping[str, int]) -> None:
        self._fail("hide")
        for held in self._with(list(pauses)):
            held.hidden_ms = self._clock.now_ms() + pauses[held.message.receipt] * 1000
        self._arrived.set()

    async def receives_max(self) -> int:
        self._fail("receives_max")
        return self._receives_max

    def _taken(self) -> list[QueueMessage]:
        now_ms, taken = self._clock.now_ms(), list[QueueMessage]()
        # A group of which a message is hidden gives none.
        held_up = {
            held.message.group for held in self._held.values() if held.hidden_ms > now_ms
        } - {""}
        for id_, held in list(self._held.items()):
            message = held.message
            if held.hidden_ms > now_ms or message.group in held_up:
                continue
            if self._receives_max and message.receives >= self._receives_max:
                self.dead.append(message.body)
                del self._held[id_]
                continue
            if len(taken) == self._messages_max:
                break
            self._receives += 1
            held.hidden_ms = now_ms + self._visibility_s * 1000
            held.message = replace(
                message,
                receipt=f"receipt-{self._receives}",
                first_received_ms=message.first_received_ms or now_ms,
                receives=message.receives + 1,
            )
            taken.append(held.message)
        return taken

    def _with(self, receipts: Sequence[str]) -> list[_Held]:
        return [held for held in self._held.values() if held.message.receipt in receipts]

    def _fail(self, method: str) -> None:
        if failures := self.fail_next.get(method):
            raise failures.pop(0)
