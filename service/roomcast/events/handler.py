"""The events Lambda: tells an event bus or a queue what the streams of two tables say.

`roomcast.events.records` makes the events and `roomcast.events.targets` their form, both pure. This
is the shell around EventBridge, SQS and the presence table. It imports only boto3 and the standard
library besides them, so that the zip needs no build.

Its environment: ROOMCAST_EVENTS_TARGET, the ARN of an event bus, or the ARN or URL of a queue, in
the function's Region; and ROOMCAST_PRESENCE_TABLE, the name of the table with the states of
channels.
"""

from __future__ import annotations

import json
import math
import os
import sys
import time
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Final
from urllib.parse import urlsplit

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from roomcast.events.occupancy import DynamoStates, States, count, look
from roomcast.events.records import Planned, Touch, plan
from roomcast.events.targets import Body, Target, bodies, calls, target_of

__all__ = ["CALL_S_MAX", "NotOfAws", "Outcome", "handler", "keep", "send"]

# As the stream Lambda's: a call that hangs is cut off well before the function's own time-out, and
# the event source mapping sends the records again.
_CONNECT_TIMEOUT_S: Final = 2
_READ_TIMEOUT_S: Final = 5
_ATTEMPTS_MAX: Final = 3
# Seconds of one call with all its attempts and the pauses between them, and of the answer after it.
# With less time left no further call is made.
CALL_S_MAX: Final = _ATTEMPTS_MAX * (_CONNECT_TIMEOUT_S + _READ_TIMEOUT_S) + 4
# Ends of the names of AWS's own endpoints, as service/roomcast/aws/errors.py has them: that module
# is not in the zip.
_AWS_DOMAINS: Final = (".amazonaws.com", ".amazonaws.com.cn", ".api.aws")
_HTTP_REDIRECTS: Final = 300
_METRICS_NAMESPACE: Final = "roomcast"


class NotOfAws(BotoCoreError):  # type: ignore[misc]  # the SDK has no types
    """A success that AWS did not answer, but whoever stands between."""

    fmt = "the answer has no request id"


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
    target, left_s = target_of(os.environ["ROOMCAST_EVENTS_TARGET"]), _left_s(context)
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
    failed = (*sent.failed, *kept.failed)
    if not failed:
        return {"batchItemFailures": []}
    return {"batchItemFailures": [{"itemIdentifier": _lowest(failed)}]}


def keep(
    states: States,
    touches: Sequence[Touch],
    left_s: Callable[[], float] = lambda: math.inf,
) -> Outcome:
    """Keep the states of all channels that were touched: first who came, then who is there.

    Stops at the first failure: what follows comes again anyway.
    """
    # The last touch says where an entry was; each partition needs one note.
    came = {(touch.channel, touch.partition): touch for touch in touches if touch.came}
    first = {touch.channel: touch for touch in reversed(touches)}
    done = 0
    try:
        for touch in came.values():
            if left_s() < CALL_S_MAX:
                return Outcome(done, tuple(each.sequence for each in touches), "no time left")
            count(states, touch)
        for channel in first:
            if left_s() < CALL_S_MAX:
                return Outcome(done, tuple(each.sequence for each in touches), "no time left")
            look(states, channel)
            done += 1
    except (BotoCoreError, ClientError) as error:
        return Outcome(done, tuple(each.sequence for each in touches), _reason(error))
    return Outcome(done)


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
            return Outcome(done, _sequences(texts[sent:]), _reason(error))
        sent += len(call)
        failed = [body for number, body in enumerate(call) if codes.get(number)]
        done += len(call) - len(failed)
        if failed:
            reason = ",".join(sorted(set(filter(None, codes.values()))))
            return Outcome(done, _sequences([*failed, *texts[sent:]]), reason)
    return Outcome(done)


def _put(client: Any, target: Target, entries: Sequence[Mapping[str, Any]]) -> dict[int, str]:
    """Make one call. Returns why each entry was not taken; "" = it was."""
    if target.is_bus:
        results = client.put_events(Entries=list(entries)).get("Entries", [])
        return {
            number: ""
            if number < len(results) and results[number].get("EventId")
            else str(
                results[number].get("ErrorCode")
                if number < len(results)
                else "missing in the answer"
            )
            for number in range(len(entries))
        }
    url = target.queue_url(client.meta.endpoint_url)
    answer = client.send_message_batch(QueueUrl=url, Entries=list(entries))
    codes = dict.fromkeys(range(len(entries)), "missing in the answer")
    codes |= {int(each["Id"]): str(each.get("Code")) for each in answer.get("Failed", ())}
    return codes | {int(each["Id"]): "" for each in answer.get("Successful", ())}


def _sequences(texts: Iterable[Body]) -> tuple[str, ...]:
    return tuple(body.sequence for body in texts)


def _lowest(sequences: Iterable[str]) -> str:
    """The lowest sequence number, as the event has it. They are compared as numbers."""
    return min(sequences, key=int)


def _states() -> States:
    return DynamoStates(
        _client("dynamodb"), os.environ["ROOMCAST_PRESENCE_TABLE"], lambda: uuid.uuid4().hex
    )


@cache
def _client(service: str) -> Any:
    """A client, made on first use and kept for the life of the environment."""
    config = Config(
        connect_timeout=_CONNECT_TIMEOUT_S,
        read_timeout=_READ_TIMEOUT_S,
        retries={"mode": "standard", "total_max_attempts": _ATTEMPTS_MAX},
    )
    client = boto3.client(service, config=config)
    if (urlsplit(client.meta.endpoint_url).hostname or "").endswith(_AWS_DOMAINS):
        client.meta.events.register("after-call", _demand_request_id)
    return client


def _demand_request_id(http_response: Any, parsed: Any, **_: Any) -> None:
    """Raises NotOfAws for a success without AWS's id. An error is raised by the SDK itself."""
    about = parsed.get("ResponseMetadata", {})
    if http_response.status_code < _HTTP_REDIRECTS and not about.get("RequestId"):
        raise NotOfAws


def _left_s(context: Any) -> Callable[[], float]:
    """Returns the seconds that this invocation may still take, each time it is called."""
    if context is None:
        return lambda: math.inf
    return lambda: float(context.get_remaining_time_in_millis()) / 1000


def _reason(error: Exception) -> str:
    """The part of an SDK error that may be logged: its message can quote the request."""
    if isinstance(error, ClientError):
        return str(error.response.get("Error", {}).get("Code", "ClientError"))
    return type(error).__name__


def _report(planned: Planned, texts: Sequence[Body], sent: Outcome, kept: Outcome) -> None:
    """Log anything unusual, as one line in CloudWatch's embedded metric format: no payloads, no
    names.
    """
    counts = {
        "records_skipped": sum(planned.skipped.values()),
        "events_truncated": sum(body.truncated for body in texts),
        "events_failed": len(sent.failed) + len(kept.failed),
    }
    if not any(counts.values()):
        return
    line = {
        "_aws": {
            "Timestamp": int(time.time() * 1000),
            "CloudWatchMetrics": [
                {
                    "Namespace": _METRICS_NAMESPACE,
                    "Dimensions": [["FunctionName"]],
                    "Metrics": [
                        {"Name": name, "Unit": "Count"} for name, number in counts.items() if number
                    ],
                }
            ],
        },
        "FunctionName": os.environ.get("AWS_LAMBDA_FUNCTION_NAME", "none"),
        "event": "events_batch_incomplete"
        if counts["records_skipped"] or counts["events_failed"]
        else "events_batch_truncated",
        **counts,
        "events_sent": sent.done,
        "skipped": dict(planned.skipped),
        "reason": sent.reason or kept.reason,
    }
    # Not through `logging`: the runtime's handler puts a prefix before the line.
    sys.stdout.write(json.dumps(line, separators=(",", ":")) + "\n")
    sys.stdout.flush()
