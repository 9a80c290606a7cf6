"""The events Lambda: tells an event bus or a queue what the streams of two tables say.

`roomcast.events.records` makes the events and `roomcast.events.targets` their form, both pure. This
is the shell around EventBridge, SQS and the presence table. It imports only boto3 and the standard
library besides them, so that the zip needs no build.

Its environment: ROOMCAST_EVENTS_TARGET, the ARN of an event bus, or the ARN or URL of a queue, in
the function's Region; and ROOMCAST_PRESENCE_TABLE, the name of the table with the states of
channels.
"""

from __future__ import annotations

import math
import os
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

from botocore.exceptions import BotoCoreError, ClientError

from roomcast.events.occupancy import DynamoStates, States, look
from roomcast.events.records import Planned, Touch, plan
from roomcast.events.targets import Body, Target, bodies, calls, target_of
from roomcast.stream_batch import (
    CALL_S_MAX,
    bounded_client,
    reason_of,
    report,
    response,
    time_left,
)

__all__ = ["Outcome", "handler", "keep", "send"]


@dataclass(frozen=True, slots=True)
class Outcome:
    """`done` went well. The records with the sequence numbers `failed` must come again."""

    done: int
    failed: tuple[str, ...] = ()
    reason: str = ""


def handler(event: Mapping[str, Any], context: Any) -> dict[str, list[dict[str, str]]]:
    """Tell what is in `event`. Returns the partial batch response for the mapping: the lowest
    sequence number that failed, from which it sends all records again.

    Raises the error of the very first call to the target if that fails, so that the function's
    Errors metric shows it. `context`: the runtime's; None = the time has no bound.
    """
    target, left_s = target_of(os.environ["ROOMCAST_EVENTS_TARGET"]), time_left(context)
    planned = plan(event)
    texts = bodies(planned.events)
    sent, kept = Outcome(0), Outcome(0)
    try:
        if planned.touches:
            kept = keep(_states(), planned.touches, left_s)
        if texts:
            sent = send(_client("events" if target.is_bus else "sqs"), target, texts, left_s)
    finally:
        _report(planned, texts, sent, kept)
    return response((*sent.failed, *kept.failed))


def keep(
    states: States,
    touches: Sequence[Touch],
    left_s: Callable[[], float] = lambda: math.inf,
) -> Outcome:
    """Keep the states of all channels that were touched: first who came, then who is there.

    Stops at the first failure: what follows comes again anyway.
    """
    # Each partition needs one note.
    came = {(touch.channel, touch.partition): touch for touch in touches if touch.came}
    channels = dict.fromkeys(touch.channel for touch in touches)
    steps = [
        *(partial(states.count, touch) for touch in came.values()),
        *(partial(look, states, channel) for channel in channels),
    ]
    again = tuple(touch.sequence for touch in touches)
    for done, step in enumerate(steps):
        if left_s() < CALL_S_MAX:
            return Outcome(done, again, "no time left")
        try:
            step()
        except (BotoCoreError, ClientError) as error:
            return Outcome(done, again, reason_of(error))
    return Outcome(len(steps))


def send(
    client: Any,
    target: Target,
    texts: Sequence[Body],
    left_s: Callable[[], float] = lambda: math.inf,
) -> Outcome:
    """Send `texts` through `client`, boto3's for the target.

    It stops after the first call with a failure, and when `left_s` leaves no room for another call.
    The first call is always made; its error is raised.
    """
    done = sent = 0
    for call in calls(texts):
        if sent and left_s() < CALL_S_MAX:
            return Outcome(done, _sequences(texts[sent:]), "no time left")
        entries = [target.entry(number, body) for number, body in enumerate(call)]
        try:
            codes = _put(client, target, entries)
        except Exception as error:
            if not sent:
                raise
            return Outcome(done, _sequences(texts[sent:]), reason_of(error))
        sent += len(call)
        failed = [body for number, body in enumerate(call) if codes.get(number)]
        done += len(call) - len(failed)
        if failed:
            reason = ",".join(sorted(set(filter(None, codes.values()))))
            return Outcome(done, _sequences([*failed, *texts[sent:]]), reason)
    return Outcome(done)


def _put(client: Any, target: Target, entries: Sequence[Mapping[str, Any]]) -> dict[int, str]:
    """Make one call. Returns why each entry was not taken; "" = it was."""
    codes = dict.fromkeys(range(len(entries)), "missing in the answer")
    if target.is_bus:
        results = client.put_events(Entries=list(entries)).get("Entries", [])
        return codes | {
            number: "" if result.get("EventId") else str(result.get("ErrorCode"))
            for number, result in zip(codes, results, strict=False)
        }
    url = target.queue_url(client.meta.endpoint_url)
    answer = client.send_message_batch(QueueUrl=url, Entries=list(entries))
    codes |= {int(each["Id"]): str(each.get("Code")) for each in answer.get("Failed", ())}
    return codes | {int(each["Id"]): "" for each in answer.get("Successful", ())}


def _sequences(texts: Iterable[Body]) -> tuple[str, ...]:
    return tuple(body.sequence for body in texts)


def _states() -> States:
    return DynamoStates(
        _client("dynamodb"), os.environ["ROOMCAST_PRESENCE_TABLE"], lambda: uuid.uuid4().hex
    )


@cache
def _client(service: str) -> Any:
    """A client, made on first use and kept for the life of the environment."""
    return bounded_client(service)


def _report(planned: Planned, texts: Sequence[Body], sent: Outcome, kept: Outcome) -> None:
    """Log anything unusual."""
    counts = {
        "records_skipped": sum(planned.skipped.values()),
        "events_truncated": sum(body.truncated for body in texts),
        "events_failed": len(sent.failed) + len(kept.failed),
    }
    if not any(counts.values()):
        return
    is_incomplete = counts["records_skipped"] or counts["events_failed"]
    report(
        "events_batch_incomplete" if is_incomplete else "events_batch_truncated",
        counts,
        {
            "events_sent": sent.done,
            "skipped": dict(planned.skipped),
            "reason": sent.reason or kept.reason,
        },
    )
