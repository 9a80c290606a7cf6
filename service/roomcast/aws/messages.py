"""Deletes messages of a queue of SQS, and sets when they come again: ten in a call."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from itertools import islice
from typing import Any, Final

from roomcast.aws.errors import CALL_LIMIT_S, port_errors
from roomcast.ports import PortError, Throttled, UnknownOutcome

__all__ = ["delete_messages", "hide_messages"]

# The limit of SQS on one call.
_TOGETHER: Final = 10
# Attempts with what failed. After them a message is delivered again.
_ATTEMPTS_MAX: Final = 2

_Entries = Sequence[Mapping[str, Any]]


async def delete_messages(control: Any, url: str, receipts: Sequence[str]) -> None:
    """Raises Gone and Rejected at once. Raises Throttled and UnknownOutcome after all batches, when
    some may not be deleted.
    """
    entries = [{"ReceiptHandle": receipt} for receipt in receipts]
    await _in_batches(control.delete_message_batch, url, entries, "deleted")


async def hide_messages(control: Any, url: str, pauses: Mapping[str, int]) -> None:
    """`pauses`: seconds from now, by receipt. Raises as `delete_messages` does."""
    entries = [
        {"ReceiptHandle": receipt, "VisibilityTimeout": pause_s}
        for receipt, pause_s in pauses.items()
    ]
    await _in_batches(control.change_message_visibility_batch, url, entries, "hidden")


async def _in_batches(
    call: Callable[..., Awaitable[Any]], url: str, entries: _Entries, done: str
) -> None:
    failure: PortError | None = None
    rest = iter(entries)
    while batch := list(islice(rest, _TOGETHER)):
        try:
            await _batch(call, url, batch, done)
        except (Throttled, UnknownOutcome) as error:
            failure = error  # for these ten: the others may still be done
    if failure is not None:
        raise failure


async def _batch(
    call: Callable[..., Awaitable[Any]], url: str, entries: _Entries, done: str
) -> None:
    left, code = list(entries), ""
    for _ in range(_ATTEMPTS_MAX):
        async with port_errors(CALL_LIMIT_S):
            answer = await call(
                QueueUrl=url, Entries=[{"Id": str(id_), **each} for id_, each in enumerate(left)]
            )
            # Entries can fail in an answer of HTTP 200. A sender's fault would fail again, so it is
            # not repeated.
            failed = [entry for entry in answer.get("Failed", ()) if not entry["SenderFault"]]
            if not failed:
                return
            left, code = [left[int(entry["Id"])] for entry in failed], failed[0].get("Code", "")
    raise Throttled(f"{len(left)} of {len(entries)} messages were not {done}: {code}")
