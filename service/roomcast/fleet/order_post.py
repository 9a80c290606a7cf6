"""Sends orders of the application to the other nodes, each at least once.

The id of a client, and the name of a session, say which node has them: an order for one of them
goes straight to that node's queue. An order for a user, who may be anywhere, goes to all nodes, by
the topic, and so does one whose node is not known or whose queue does not take it. But sessions are
secret, and never go to all. All messages of an order have one id, so no node carries it out twice.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from itertools import count
from typing import Final, Protocol

import structlog

from roomcast.backoff import Backoff
from roomcast.delivery.broadcaster import SIGNAL_BYTES_MAX, Sent
from roomcast.delivery.envelope import Signal
from roomcast.fleet.badges import badge_of_client, badge_of_node, badge_of_session
from roomcast.fleet.mailbox import Mailbox
from roomcast.fleet.order_signals import Target
from roomcast.log.appender import Full
from roomcast.ports import PortError, Rejected, Throttled, UnknownOutcome
from roomcast.rates import Rate, Seldom

__all__ = ["QUEUE_S", "SENDING_BYTES_MAX", "SEND_S", "OrderPost", "ToAll"]

# Seconds to try to send an order, and those of them for a queue: a call of the SDK may hang for
# longer, and the topic is left. Whoever gave the order waits.
SEND_S: Final = 5.0
QUEUE_S: Final = 2.0
assert QUEUE_S < SEND_S, "there is time for the topic"
# The pauses between attempts to publish an order.
_AGAIN: Final = Backoff(0.1, 1.0)
# Bytes of orders that are being sent: some 40,000, most of which share messages. Another one is
# refused.
SENDING_BYTES_MAX: Final = 8 * 1024 * 1024
assert SIGNAL_BYTES_MAX < SENDING_BYTES_MAX, "there is room for one"
# Log lines a second of each kind: whoever may not send to queues would have one for each order.
_TOLD: Final = Rate(per_s=1.0, burst=1.0)

_log = structlog.get_logger(__name__)


class ToAll(Protocol):
    """The broadcaster."""

    def publish(self, signal: Signal) -> Sent | None:
        """Queue `signal` for all other nodes, and tell when the topic has it. None = it was
        dropped.
        """


class OrderPost:
    """One a node."""

    def __init__(
        self, mailbox: Mailbox, to_all: ToAll, lease: Callable[[], str], *, node: str
    ) -> None:
        """`lease`: the id of this node's present lease."""
        self._mailbox = mailbox
        self._to_all = to_all
        self._lease = lease
        self._badge = badge_of_node(node)
        self._sending: set[asyncio.Task[None]] = set()
        self._sending_bytes = 0
        self._not_sent, self._not_mailed = Seldom(_TOLD), Seldom(_TOLD)

    def send(self, signal: Signal, size: int, target: Target) -> asyncio.Future[None]:
        """Send an order for `target`, of which `signal` has `size` bytes, to the nodes that may
        have it, except this one. Raises Full: it is sent to none.

        The future is done when SQS or SNS has it. It raises PortError: perhaps they have.
        """
        if self._sending_bytes + size > SENDING_BYTES_MAX:
            raise Full("too many orders are being sent")
        badge, sent = _badge(target), None
        if badge is None and not target.session:
            # At once, so that orders that are given together keep their order.
            sent = self._to_all.publish(signal)
            if sent is None:
                raise Full("too many signals wait to be sent")
        sending = asyncio.create_task(
            self._send(signal, badge, sent, is_secret=bool(target.session)), name="order"
        )
        self._sending.add(sending)
        self._sending_bytes += size
        sending.add_done_callback(partial(self._was_sent, size))
        return sending

    async def finish(self) -> None:
        """Wait until all orders were sent. The caller bounds the time."""
        while self._sending:
            await asyncio.wait(self._sending)

    def _was_sent(self, size: int, sending: asyncio.Task[None]) -> None:
        self._sending.discard(sending)
        self._sending_bytes -= size
        if not sending.cancelled():
            # Whoever gave the order may not wait for it.
            sending.exception()

    async def _send(
        self, signal: Signal, badge: str | None, sent: Sent | None, *, is_secret: bool
    ) -> None:
        """`sent`: of the first attempt to publish, if there was one. `is_secret`: it is for one
        node only. Raises PortError.
        """
        try:
            async with asyncio.timeout(SEND_S):
                is_mailed = badge is not None and await self._is_mailed(signal, badge, is_secret)
                if not (is_mailed or is_secret):
                    await self._publish(signal, sent)
        except (TimeoutError, PortError) as error:
            _note(self._not_sent, "order_not_sent", signal, error)
            if isinstance(error, PortError):
                raise
            raise UnknownOutcome("an order was not sent in time") from error

    async def _is_mailed(self, signal: Signal, badge: str, is_secret: bool) -> bool:
        """Put `signal` into the queues of the nodes with `badge`. False = it may be in none.

        Raises PortError and TimeoutError if it `is_secret`.
        """
        try:
            async with asyncio.timeout(QUEUE_S):
                nodes = set(await self._mailbox.nodes_with(badge)) - {self._lease()}
                await asyncio.gather(
                    *(self._mailbox.send(node, signal, in_order=True) for node in nodes)
                )
        except (TimeoutError, PortError) as error:
            if is_secret:
                raise
            _note(self._not_mailed, "order_not_mailed", signal, error)
            return False
        # The badge may be this node's, which does not have the client: then perhaps nobody has.
        return bool(nodes) or badge == self._badge

    async def _publish(self, signal: Signal, sent: Sent | None) -> None:
        """Goes on until the topic has it. Raises Rejected."""
        for failures in count(1):
            if sent is None:
                sent = self._to_all.publish(signal)
            failure = Throttled("too many signals wait to be sent") if sent is None else await sent
            if failure is None:
                return
            if isinstance(failure, Rejected):
                raise failure
            await asyncio.sleep(_AGAIN.pause_s(failures))
            sent = None


def _badge(target: Target) -> str | None:
    """The badge of the node that has what `target` is; None = it is not known."""
    if target.client:
        return badge_of_client(target.client)
    return badge_of_session(target.session) if target.session else None


def _note(told: Seldom, event: str, signal: Signal, error: Exception) -> None:
    passed_over = told.again(asyncio.get_running_loop().time())
    if passed_over is not None:
        reason = str(error) or "not done in time"
        _log.warning(event, kind=signal.kind, reason=reason, passed_over=passed_over)
