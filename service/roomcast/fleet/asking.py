"""One signal to another node, and one back: who asks, and who is asked.

Both go straight to the queue of the node that they are for (service/roomcast/fleet/mailbox.py).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Generic, TypeVar

from roomcast.delivery.envelope import Signal
from roomcast.fleet.mailbox import Mailbox
from roomcast.ports import PortError, UnknownOutcome

__all__ = ["Asking"]

Answer = TypeVar("Answer")


class Asking(Generic[Answer]):
    """One a kind of question. `len`: those of this node that wait for their answer."""

    def __init__(
        self,
        mailbox: Mailbox,
        within_s: float,
        answers_max: int,
        not_answered: Callable[[str, str], None],
    ) -> None:
        """`within_s`: how long an answer is waited for, and how long one may take to be sent.

        `answers_max`: answers to other nodes that are under way at once. Further ones are not sent.
        `not_answered` is told of a node that could not be answered, and why.
        """
        self._mailbox = mailbox
        self._within_s = within_s
        self._answers_max = answers_max
        self._not_answered = not_answered
        self._asked: dict[str, asyncio.Future[Answer]] = {}
        self._answering: set[asyncio.Task[None]] = set()

    def __len__(self) -> int:
        return len(self._asked)

    async def ask(self, node: str, signal: Signal, *, in_order: bool = False) -> Answer:
        """Send `signal` to `node`, and return its answer. The caller bounds how many wait.

        `in_order`: as for `Mailbox.send`. Raises PortError, such as NodeUnknown; UnknownOutcome
        when there is no answer in time.
        """
        asked: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self._asked[signal.id] = asked
        try:
            async with asyncio.timeout(self._within_s):
                await self._mailbox.send(node, signal, in_order=in_order)
                return await asked
        except TimeoutError as error:
            raise UnknownOutcome(f"no answer within {self._within_s:g} s") from error
        finally:
            del self._asked[signal.id]

    def answered(self, signal_id: str, answer: Answer) -> None:
        """Another node's answer to the signal with this id came. One that nobody waits for is
        passed over.
        """
        waiting = self._asked.get(signal_id)
        if waiting is not None and not waiting.done():
            waiting.set_result(answer)

    def answer(self, node: str, signal: Signal) -> None:
        """Begin to send an answer, `signal`, to `node`."""
        if len(self._answering) < self._answers_max:
            answering = asyncio.create_task(self._answer(node, signal), name="answer")
            self._answering.add(answering)
            answering.add_done_callback(self._answering.discard)

    async def finish(self) -> None:
        """Wait until other nodes are answered. The caller bounds the time."""
        while self._answering:
            await asyncio.wait(self._answering)

    async def _answer(self, node: str, signal: Signal) -> None:
        try:
            async with asyncio.timeout(self._within_s):
                await self._mailbox.send(node, signal)
        except (TimeoutError, PortError) as error:
            self._not_answered(node, str(error) or "not done in time")
