"""The items of the `channels` table: log items and heads, and their form in DynamoDB.

The stream Lambda shares this module, so it needs only the standard library. One log item holds the
publications of one append. Its key is the offset of its first publication. Offset 0 is the
channel's head.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from roomcast.frozen import frozen
from roomcast.wire.event_kinds import EVENTS_ATTRIBUTE, PUBLISHED, Mark
from roomcast.wire.trace_context import TraceContext, parse_traceparent
from roomcast.wire.versions import VERSION_MAX, Version

__all__ = [
    "HEAD_OFFSET",
    "ITEM_BYTES_MAX",
    "ITEM_KEYS_MAX",
    "ITEM_PUBLICATIONS_MAX",
    "OFFSET_MAX",
    "AttributeMap",
    "Head",
    "LogItem",
    "MalformedItem",
    "parse_head",
    "parse_item",
    "parse_log_item",
]

# An item in DynamoDB's JSON: {"channel": {"S": "…"}, "offset": {"N": "1"}, …}.
AttributeMap = Mapping[str, Mapping[str, Any]]

HEAD_OFFSET: Final = 0
# Bytes of one append. An item and its envelope must fit one SNS message of 256 KiB, with room for
# escapes. And a busy channel must not be bound by the rate of items.
ITEM_BYTES_MAX: Final = 128 * 1024
ITEM_PUBLICATIONS_MAX: Final = 500
# DynamoDB, TransactWriteItems: "up to 100 actions". One is the log item, the others are idempotency
# keys.
ITEM_KEYS_MAX: Final = 99
# The greatest offset: JavaScript clients hold offsets in doubles.
OFFSET_MAX: Final = 2**53 - 1


# Nodes and Lambdas of older releases pass over these attributes.
_TRACE: Final = "trace"
_NEWEST_VERSION: Final = "newest_version"
_NEWEST_VERSION_EPOCH: Final = "newest_version_epoch"


class MalformedItem(ValueError):
    """An item of the table that no node wrote, or that is damaged."""


@frozen
class LogItem:
    """One append.

    `pubs` is the JSON text of an array with one object an offset. `ts` is in ms, `expires_at` in s.

    `batch` identifies this append for ever. By it a node tells its own earlier attempt from another
    node's item.

    `trace`: the span of this append, if one of its publications is traced. `newest_version`: of the
    channel's publications up to these, as far as any had a version. `told`: back ends are told of
    the publications. Who reads the item back does not learn it.
    """

    channel: str
    offset: int
    last: int
    epoch: str
    pubs: str
    batch: str
    node: str
    ts: int
    expires_at: int
    trace: TraceContext | None = None
    newest_version: Version | None = None
    told: bool = False

    def __post_init__(self) -> None:
        assert 1 <= self.offset <= self.last <= OFFSET_MAX, (
            "I1: a log item covers at least one offset"
        )
        assert self.last - self.offset < ITEM_PUBLICATIONS_MAX, "I7: bounded item"
        assert self.epoch, "an epoch is never empty"

    def attributes(self) -> dict[str, dict[str, str]]:
        attributes = {
            "channel": {"S": self.channel},
            "offset": {"N": str(self.offset)},
            "last": {"N": str(self.last)},
            "epoch": {"S": self.epoch},
            "pubs": {"S": self.pubs},
            "batch": {"S": self.batch},
            "node": {"S": self.node},
            "ts": {"N": str(self.ts)},
            "expires_at": {"N": str(self.expires_at)},
        }
        if self.trace is not None:
            attributes[_TRACE] = {"S": self.trace.traceparent()}
        if self.newest_version is not None:
            attributes |= _version_attributes(self.newest_version)
        if self.told:
            attributes[EVENTS_ATTRIBUTE] = {"S": Mark((PUBLISHED,)).text()}
        return attributes


@dataclass(frozen=True, slots=True)
class Head:
    """A channel's head: `epoch` begins after `floor`.

    The tail that it implies is valid until `tail_valid_until` (ms).

    Publications with offsets up to `trim`, which is not beyond `floor`, are hidden. `version` is
    random and changes with every write. `newest_version`: of the publications up to `floor`.
    """

    channel: str
    epoch: str
    floor: int
    tail_valid_until: int
    trim: int
    version: str
    expires_at: int
    newest_version: Version | None = None

    def __post_init__(self) -> None:
        assert self.epoch, "an epoch is never empty"
        assert 0 <= self.floor <= OFFSET_MAX, "a floor is an offset"

    def attributes(self) -> dict[str, dict[str, str]]:
        attributes = {
            "channel": {"S": self.channel},
            "offset": {"N": str(HEAD_OFFSET)},
            "epoch": {"S": self.epoch},
            "floor": {"N": str(self.floor)},
            "believe_until": {"N": str(self.tail_valid_until)},
            "trim": {"N": str(self.trim)},
            "version": {"S": self.version},
            "expires_at": {"N": str(self.expires_at)},
        }
        if self.newest_version is not None:
            attributes |= _version_attributes(self.newest_version)
        return attributes


def parse_item(attributes: AttributeMap) -> LogItem | Head:
    """Raises MalformedItem."""
    if _number(attributes, "offset") == HEAD_OFFSET:
        return parse_head(attributes)
    return parse_log_item(attributes)


def parse_log_item(attributes: AttributeMap) -> LogItem:
    """Raises MalformedItem. `pubs` is not checked. A trace that is none is left out."""
    offset, last = _number(attributes, "offset"), _number(attributes, "last")
    epoch = _text(attributes, "epoch")
    if not epoch or not 1 <= offset <= last <= OFFSET_MAX or last - offset >= ITEM_PUBLICATIONS_MAX:
        raise MalformedItem("offsets or epoch of a log item out of range")
    return LogItem(
        channel=_text(attributes, "channel"),
        offset=offset,
        last=last,
        epoch=epoch,
        pubs=_text(attributes, "pubs"),
        batch=_text(attributes, "batch"),
        node=_text(attributes, "node", ""),
        ts=_number(attributes, "ts", 0),
        expires_at=_number(attributes, "expires_at"),
        trace=_trace(attributes),
        newest_version=_newest_version(attributes),
    )


def parse_head(attributes: AttributeMap) -> Head:
    """Raises MalformedItem."""
    epoch, floor = _text(attributes, "epoch"), _number(attributes, "floor")
    if not epoch or not 0 <= floor <= OFFSET_MAX:
        raise MalformedItem("epoch or floor of a head out of range")
    return Head(
        channel=_text(attributes, "channel"),
        epoch=epoch,
        floor=floor,
        tail_valid_until=_number(attributes, "believe_until"),
        # Who hides something writes the top as both. More than that would hide what is yet to come.
        trim=min(_number(attributes, "trim", 0), floor),
        version=_text(attributes, "version"),
        expires_at=_number(attributes, "expires_at"),
        newest_version=_newest_version(attributes),
    )


def _version_attributes(version: Version) -> dict[str, dict[str, str]]:
    attributes = {_NEWEST_VERSION: {"N": str(version.number)}}
    if version.epoch:
        attributes[_NEWEST_VERSION_EPOCH] = {"S": version.epoch}
    return attributes


def _newest_version(attributes: AttributeMap) -> Version | None:
    """Raises MalformedItem. To pass over a broken one would let in what is stale."""
    if _NEWEST_VERSION not in attributes:
        return None
    number = _number(attributes, _NEWEST_VERSION)
    if not 1 <= number <= VERSION_MAX:
        raise MalformedItem("version of an item out of range")
    return Version(number, _text(attributes, _NEWEST_VERSION_EPOCH, ""))


def _trace(attributes: AttributeMap) -> TraceContext | None:
    if (value := attributes.get(_TRACE)) is None:
        return None
    trace = parse_traceparent(value.get("S"))
    return trace if trace is not None and trace.sampled else None


def _text(attributes: AttributeMap, name: str, default: str | None = None) -> str:
    value = attributes.get(name, {}).get("S", default)
    if not isinstance(value, str):
        raise MalformedItem(f"attribute {name} is not a string")
    return value


def _number(attributes: AttributeMap, name: str, default: int | None = None) -> int:
    value = attributes.get(name, {}).get("N", default)
    try:
        return int(value)
    except (TypeError, ValueError) as error:
        raise MalformedItem(f"attribute {name} is not a whole number") from error
