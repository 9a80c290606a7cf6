"""Carries out publishing transactions with the application's client, boto3's or aioboto3's."""

from __future__ import annotations

import asyncio
import random
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, Final

from roomcast.log.item import LogItem
from roomcast.transactions.conversation import (
    ACTIONS_MAX,
    Call,
    Conversation,
    Pause,
    Sources,
    TailExpired,
    Wanted,
)
from roomcast.transactions.message import InvalidMessage, Message, pending_of
from roomcast.wire.publication import StreamPosition

__all__ = ["WITHIN_S", "Channels", "Positions"]

# How long one transaction may be tried. An application's own request waits for it.
WITHIN_S: Final = 10.0

# The positions of what was published, by channel, in the order of its messages.
Positions = Mapping[str, Sequence[StreamPosition]]


@dataclass(slots=True)
class _Sending:
    """One call. `until_ms`: None = at any time. `count`: how often the SDK has sent it."""

    until_ms: int | None
    count: int = 0


# The SDK passes only the request to its hook, so this travels with the task or thread.
_sending: ContextVar[_Sending | None] = ContextVar("roomcast_sending", default=None)


def _check(**_: Any) -> None:
    """The `before-send` hook: runs after signing, for each attempt. A process that was suspended
    before it finds out here; after it, the signature is too old on arrival.
    """
    sending = _sending.get()
    if sending is None:
        return
    if sending.until_ms is not None and _now_ms() >= sending.until_ms:
        raise TailExpired
    sending.count += 1


@dataclass(frozen=True, slots=True)
class Channels:
    """The channels of a deployment, for publishing in transactions.

    `table`: the name of its `channels` table. `history_ttl_s`: how long publications are kept, as
    the channel's namespace says; shorter ones are kept for a day all the same. `generation`: as
    `aws.log_generation`. `within_s`: how long one transaction may be tried. `events`: back ends are
    told of what is published, as where the namespace's `events` have `published`.
    """

    table: str = "roomcast-channels"
    history_ttl_s: int = 0
    generation: str = "0"
    within_s: float = WITHIN_S
    events: bool = False
    _node: str = field(default_factory=lambda: f"transactions-{uuid.uuid4().hex[:8]}", init=False)

    def write(
        self,
        client: Any,
        writes: Sequence[Mapping[str, Any]],
        publications: Mapping[str, Sequence[Message]],
    ) -> Positions:
        """Carry out `writes` and publish in one transaction: all of it, or nothing.

        `client`: boto3's client of DynamoDB. `writes`: TransactItems, which may be empty.
        `publications`: by channel; a channel needs history. Together at most 100.

        Raises InvalidMessage, NothingWritten, OutcomeUnknown, or the client's own error:
        TransactionCanceledException when a condition of `writes` did not hold. Its
        CancellationReasons begin with theirs, in their order. Nothing was written then.
        """
        conversation = _begun(client, self._wanted(writes, publications))
        while (step := conversation.next()) is not None:
            if isinstance(step, Pause):
                time.sleep(step.seconds)
                continue
            with _told(conversation, step):
                conversation.answer = getattr(client, step.operation)(**step.parameters)
        return _positions(conversation.items)

    async def write_async(
        self,
        client: Any,
        writes: Sequence[Mapping[str, Any]],
        publications: Mapping[str, Sequence[Message]],
    ) -> Positions:
        """The same with aioboto3's client."""
        conversation = _begun(client, self._wanted(writes, publications))
        while (step := conversation.next()) is not None:
            if isinstance(step, Pause):
                await asyncio.sleep(step.seconds)
                continue
            with _told(conversation, step):
                conversation.answer = await getattr(client, step.operation)(**step.parameters)
        return _positions(conversation.items)

    def _wanted(
        self,
        writes: Sequence[Mapping[str, Any]],
        publications: Mapping[str, Sequence[Message]],
    ) -> Wanted:
        if not publications:
            raise InvalidMessage("nothing to publish")
        if len(writes) + len(publications) > ACTIONS_MAX:
            raise InvalidMessage(f"more than {ACTIONS_MAX} writes and channels in one transaction")
        now_ms = _now_ms()
        return Wanted(
            self.table,
            self.generation,
            self.history_ttl_s * 1000,
            self.within_s,
            self._node,
            tuple(writes),
            {
                channel: pending_of(channel, messages, now_ms)
                for channel, messages in publications.items()
            },
            self.events,
        )


def _now_ms() -> int:
    return time.time_ns() // 1_000_000


_SOURCES: Final = Sources(_now_ms, time.monotonic, random.random, lambda: uuid.uuid4().hex)


def _begun(client: Any, wanted: Wanted) -> Conversation:
    # Once a client is enough, and it may be asked as often as one likes.
    client.meta.events.register(
        "before-send.dynamodb.TransactWriteItems", _check, unique_id="roomcast-transactions"
    )
    return Conversation(wanted, _SOURCES)


@contextmanager
def _told(conversation: Conversation, call: Call) -> Iterator[None]:
    """Around a call: how late it may be sent, and what becomes of its error."""
    sending = _Sending(call.send_until_ms)
    token = _sending.set(sending)
    try:
        yield
    except Exception as error:  # noqa: BLE001  # the conversation decides
        conversation.failure, conversation.sends = error, sending.count
    finally:
        _sending.reset(token)


def _positions(items: Mapping[str, LogItem]) -> Positions:
    return {
        channel: [
            StreamPosition(item.epoch, offset) for offset in range(item.offset, item.last + 1)
        ]
        for channel, item in items.items()
    }
