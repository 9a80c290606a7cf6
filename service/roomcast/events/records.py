"""Makes events of stream records. Pure: records in, events out.

The tables tell what happened, whoever wrote them. So what a node would have to remember is not lost
with it: when the reaper removes its entries, their clients have left.

An event's id follows from the item that it is of. The same record makes the same ids whenever it
comes, and no other record does.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from roomcast.log.item import HEAD_OFFSET, MalformedItem, parse_log_item
from roomcast.wire.event_kinds import (
    EVENTS_ATTRIBUTE,
    MOVED_ATTRIBUTE,
    OCCUPANCY_KINDS,
    PUBLISHED,
    Mark,
    is_of_connections,
)
from roomcast.wire.publication import ClientInfo, Publication

__all__ = ["OCCUPANCY", "Event", "Planned", "Touch", "plan"]

# What keys of the presence table begin with: those of entries are in aws/presence.py.
OCCUPANCY: Final = "occupancy"
_CHANNEL: Final = "channel"
_SEPARATOR: Final = "#"


@dataclass(frozen=True, slots=True)
class Event:
    """One event. `fields`: its JSON object. `sequence`: of its record, as the stream has it.

    `group`: the channel or the client, within which events have an order.
    """

    fields: Mapping[str, Any]
    sequence: str
    group: str


@dataclass(frozen=True, slots=True)
class Touch:
    """A client came to or left `channel`, so that it may be occupied or vacated.

    `partition`: the key of its entry. `came`: it did not leave. `kinds`: those that are wanted.
    """

    channel: str
    partition: str
    came: bool
    kinds: tuple[str, ...]
    sequence: str


@dataclass(frozen=True, slots=True)
class Planned:
    """What is to be told and done for some records. `skipped`: how many were unreadable, by the
    name of the error.
    """

    events: tuple[Event, ...]
    touches: tuple[Touch, ...]
    skipped: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class _Entry:
    """A client's entry in an image. `write`: the number of its write, which its node uses once."""

    node: str
    info: ClientInfo
    mark: Mark
    write: str
    moved: bool


def plan(event: Mapping[str, Any]) -> Planned:
    """What the records of `event` mean. Never raises: records that cannot be read are skipped."""
    events: list[Event] = []
    touches: list[Touch] = []
    skipped: Counter[str] = Counter()
    for record in event.get("Records", ()):
        try:
            found = list(_of_record(record))
        except Exception as error:  # noqa: BLE001 - one bad record must not hold up a shard
            skipped[type(error).__name__] += 1
        else:
            events += (each for each in found if isinstance(each, Event))
            touches += (each for each in found if isinstance(each, Touch))
    return Planned(tuple(events), tuple(touches), skipped)


def _of_record(record: Mapping[str, Any]) -> Iterator[Event | Touch]:
    change = record["dynamodb"]
    if "offset" in change["Keys"]:
        yield from _of_log(record)
        return
    kind, _, channel = change["Keys"]["key"]["S"].partition(_SEPARATOR)
    if kind == OCCUPANCY:
        yield from _of_occupancy(record, channel)
    elif kind.partition("-")[0] == _CHANNEL:
        yield from _of_entry(record, channel)


def _of_log(record: Mapping[str, Any]) -> Iterator[Event]:
    change = record["dynamodb"]
    if record["eventName"] != "INSERT" or int(change["Keys"]["offset"]["N"]) == HEAD_OFFSET:
        return
    image = change["NewImage"]
    if EVENTS_ATTRIBUTE not in image:
        return
    item = parse_log_item(image)
    pubs = json.loads(item.pubs)
    if not isinstance(pubs, list) or len(pubs) != item.last - item.offset + 1:
        raise MalformedItem("not one publication an offset")
    for offset, stored in enumerate(pubs, item.offset):
        publication = Publication.from_stored(stored, offset)
        wire = publication.wire()
        wire.pop("time", None)
        yield Event(
            {
                "id": f"{PUBLISHED}:{item.channel}:{item.epoch}:{offset}",
                "type": PUBLISHED,
                "time_ms": publication.time or item.ts,
                "channel": item.channel,
                "epoch": item.epoch,
                **wire,
            },
            change["SequenceNumber"],
            item.channel,
        )


def _of_occupancy(record: Mapping[str, Any], channel: str) -> Iterator[Event]:
    """The state of a channel came, or went."""
    if record["eventName"] == "MODIFY":
        return
    came, change = record["eventName"] == "INSERT", record["dynamodb"]
    image = change["NewImage" if came else "OldImage"]
    kind = OCCUPANCY_KINDS[0 if came else 1]
    if kind in Mark.parse(image[EVENTS_ATTRIBUTE]["S"]).kinds:
        yield Event(
            {
                "id": f"{kind}:{image['occupation']['S']}",
                "type": kind,
                "time_ms": _time_ms(change),
                "channel": channel,
            },
            change["SequenceNumber"],
            channel,
        )


def _of_entry(record: Mapping[str, Any], channel: str) -> Iterator[Event | Touch]:
    """A client's entry came or went, which is its own coming or going."""
    change = record["dynamodb"]
    before, after = _entry(change, "OldImage"), _entry(change, "NewImage")
    entry = after or before
    if entry is None or (before is not None and after is not None):
        return
    came, mark, sequence = after is not None, entry.mark, change["SequenceNumber"]
    kinds: tuple[str, ...] = mark.entered() if came else mark.left()
    if entry.moved and not came:
        kinds = ()
    in_channel = {} if is_of_connections(channel) else {"channel": channel}
    for kind in kinds:
        yield Event(
            {
                "id": f"{kind}:{entry.node}:{entry.write}",
                "type": kind,
                "time_ms": _time_ms(change),
                **in_channel,
                **entry.info.wire(),
                "node": entry.node,
                "since_ms": mark.since_ms,
                **({"again": True} if came and mark.again else {}),
            },
            sequence,
            channel if in_channel else entry.info.client,
        )
    if in_channel and (occupancy := mark.occupancy()):
        yield Touch(channel, change["Keys"]["key"]["S"], came, occupancy, sequence)


def _entry(change: Mapping[str, Any], name: str) -> _Entry | None:
    """The entry in an image. None: there is none, or it is nobody, or nothing is to be told.

    Raises any error of a damaged one.
    """
    image = change.get(name)
    if not image or "info" not in image or EVENTS_ATTRIBUTE not in image:
        return None
    node, separator, client = change["Keys"]["member"]["S"].partition(_SEPARATOR)
    if not separator:
        raise MalformedItem("an entry without its node")
    info = ClientInfo.from_wire(json.loads(image["info"]["S"]))
    if info.client != client:
        raise MalformedItem("an entry of another client")
    mark = Mark.parse(image[EVENTS_ATTRIBUTE]["S"])
    return _Entry(node, info, mark, str(int(image["write"]["N"])), MOVED_ATTRIBUTE in image)


def _time_ms(change: Mapping[str, Any]) -> int:
    return round(float(change["ApproximateCreationDateTime"]) * 1000)
