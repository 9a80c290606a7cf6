"""Events in the form of EventBridge and of SQS, within the bounds of one call. Pure."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from roomcast.events.records import Event

__all__ = [
    "CALL_BYTES_MAX",
    "CALL_ENTRIES_MAX",
    "EVENT_BYTES_MAX",
    "SOURCE",
    "Body",
    "NoTarget",
    "Target",
    "bodies",
    "calls",
    "target_of",
]

# PutEvents and SendMessageBatch: both bounds hold for one call. PutEvents: at most 10 entries
# (https://docs.aws.amazon.com/eventbridge/latest/APIReference/API_PutEvents.html), which are less
# than 256 KB together, by source, type, time and detail
# (https://docs.aws.amazon.com/eventbridge/latest/userguide/eb-putevent-size.html). More than that,
# which AWS may take in some Regions, is never tried.
CALL_ENTRIES_MAX: Final = 10
CALL_BYTES_MAX: Final = 256 * 1024
# What PutEvents counts of an entry besides its detail: source, type and time, with room to spare.
_AROUND_BYTES: Final = 256
EVENT_BYTES_MAX: Final = CALL_BYTES_MAX - _AROUND_BYTES
SOURCE: Final = "roomcast"
# What an application put into an event. Without these it always fits: the rest is bounded by the
# bytes of a channel's name and of a user's.
_PAYLOADS: Final = ("data", "b64data", "tags", "info", "conn_info", "chan_info")
_BUS: Final = re.compile(r"arn:[a-z-]+:events:([a-z0-9-]+):[0-9]{12}:event-bus/[A-Za-z0-9/_.-]+")
_QUEUE_ARN: Final = re.compile(
    r"arn:[a-z-]+:sqs:[a-z0-9-]+:([0-9]{12}):([A-Za-z0-9_-]{1,80}(\.fifo)?)"
)
_QUEUE: Final = re.compile(r"https?://[^\s/]+/[^\s]*?([A-Za-z0-9_-]+(\.fifo)?)")


class NoTarget(ValueError):
    """Neither an event bus nor a queue."""


@dataclass(frozen=True, slots=True)
class Target:
    """Where events go. `name`: the ARN of a bus, or a queue's URL; or only that URL's path,
    "/account/name", where the queue's ARN was given.
    """

    name: str
    is_bus: bool
    is_fifo: bool

    def queue_url(self, endpoint: str) -> str:
        """The queue's URL. `endpoint`: the URL of SQS in this Region, which differs from partition
        to partition.
        """
        return f"{endpoint.rstrip('/')}{self.name}" if self.name.startswith("/") else self.name

    def entry(self, number: int, body: Body) -> dict[str, Any]:
        """`body` as an entry of a call."""
        if self.is_bus:
            return {
                "Source": SOURCE,
                "DetailType": body.kind,
                "Detail": body.text,
                "EventBusName": self.name,
            }
        entry = {"Id": str(number), "MessageBody": body.text}
        if self.is_fifo:
            entry |= {"MessageGroupId": _hash(body.group), "MessageDeduplicationId": _hash(body.id)}
        return entry


@dataclass(frozen=True, slots=True)
class Body:
    """An event as JSON text."""

    id: str
    kind: str
    group: str
    text: str
    size: int
    sequence: str
    truncated: bool


def target_of(name: str) -> Target:
    """Raises NoTarget."""
    if _BUS.fullmatch(name):
        return Target(name, True, False)
    if match := _QUEUE_ARN.fullmatch(name):
        return Target(f"/{match[1]}/{match[2]}", False, match[3] is not None)
    if match := _QUEUE.fullmatch(name):
        return Target(name, False, match[2] is not None)
    raise NoTarget("must be the ARN of an event bus, or the ARN or URL of an SQS queue")


def bodies(events: Sequence[Event]) -> list[Body]:
    """The events as texts, in order. One that is too large goes without what is in it."""
    return [_body(event) for event in events]


def calls(all_of_them: Sequence[Body]) -> Iterator[Sequence[Body]]:
    """Split them, in order, into calls within both bounds."""
    call: list[Body] = []
    used = 0
    for body in all_of_them:
        size = body.size + _AROUND_BYTES
        assert size <= CALL_BYTES_MAX, "every event fits a call of its own"
        if call and (len(call) == CALL_ENTRIES_MAX or used + size > CALL_BYTES_MAX):
            yield call
            call, used = [], 0
        call.append(body)
        used += size
    if call:
        yield call


def _body(event: Event) -> Body:
    text, fields = _text(event.fields), event.fields
    truncated = len(text) > EVENT_BYTES_MAX
    if truncated:
        kept = {name: value for name, value in fields.items() if name not in _PAYLOADS}
        text = _text({**kept, "truncated": True})
    if len(text) > EVENT_BYTES_MAX:
        # A user's name without measure: whoever needs it asks by the client's id.
        text = _text({**kept, "user": "", "truncated": True})
    return Body(
        fields["id"], fields["type"], event.group, text, len(text), event.sequence, truncated
    )


def _text(fields: Mapping[str, Any]) -> str:
    # In ASCII: a character is a byte, and no target refuses one.
    return json.dumps(fields, separators=(",", ":"))


def _hash(text: str) -> str:
    """A name as SQS takes it, which a channel's need not be."""
    return hashlib.sha256(text.encode(errors="backslashreplace")).hexdigest()
