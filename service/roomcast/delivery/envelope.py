"""Envelopes: the JSON texts of the SNS messages that each instance finds in its queue.

The stream Lambda shares this module, so it needs only the standard library. A reader may pass in a
faster decoder.

    {"v": 1, "at": 1700000000000,
     "records": [{"channel": "c", "epoch": "e", "offset": 4, "last": 5, "ts": 1,
                  "pubs": [{"data": …}, …]}, …],
     "signals": [{"kind": "join", "id": "…", "node": "…", "channel": "c", "body": {…}}, …]}

An express hint (service/roomcast/delivery/express.py) is a record that its writer sends itself.
Such records are in envelopes of their own, under another name, so that nobody takes them for what
the stream brings. `node` is the writer:

    {"v": 1, "node": "…", "express": [{"channel": "c", "epoch": "e", …, "pubs": [{"data": …}]}, …]}

Where the stream Lambda publishes to topic shards, its envelopes also have "shards", their number,
and, unless it is the base topic's, "shard", the one whose topic the envelope was published to.

A record or signal that is traced also has "trace", the `traceparent` of the span that sent it.
Readers of releases before traces pass over it, and what such a Lambda sends has none.

A record without `pubs` is a pointer: its publications must be read from the log. A reader that does
not know `v` takes every record for a pointer, and drops the signals and the express hints. One of a
release before express hints passes over their envelopes: it finds neither records nor signals in
them. So old and new nodes can run side by side.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Protocol, TypeGuard

from roomcast.delivery.shards import SHARDS_MAX
from roomcast.frozen import frozen
from roomcast.log.item import ITEM_BYTES_MAX, OFFSET_MAX, LogItem
from roomcast.wire.publication import TIME_MAX, Json, MalformedPublication, Publication, Record
from roomcast.wire.shapes import DEPTH_MAX, is_deeper
from roomcast.wire.trace_context import (
    BY_EXPRESS,
    BY_SIGNAL,
    BY_STREAM,
    TraceContext,
    Trail,
    parse_traceparent,
)

__all__ = [
    "ENVELOPE_BYTES_MAX",
    "ENVELOPE_VERSION",
    "EPOCH_CHARS_MAX",
    "HELLO_KIND",
    "Envelope",
    "Follower",
    "MalformedEnvelope",
    "Signal",
    "checked_pubs",
    "express_text",
    "pack",
    "parse",
    "record_text",
    "signal_text",
]

# What is sent. Another version is read by one release, and sent by the next: the Lambda and the
# nodes of a deployment change one after the other, in either order.
ENVELOPE_VERSION: Final = 1
# The kind of the greetings by which a node proves its own queue.
HELLO_KIND: Final = "hello"
# SNS takes 262,144 bytes with attributes. The difference is for what AWS may count besides the
# body.
ENVELOPE_BYTES_MAX: Final = 240 * 1024
assert ITEM_BYTES_MAX < ENVELOPE_BYTES_MAX, "an item fits an envelope unless escapes blow it up"


# The longest texts that nodes write in the fields of records and signals. Longer ones come from
# another program; readers remember some of these fields, and must not remember long ones.
EPOCH_CHARS_MAX: Final = 64
_ID_CHARS_MAX: Final = 64
_NAME_CHARS_MAX: Final = 255

_OPEN: Final = f'{{"v":{ENVELOPE_VERSION},'
_RECORDS, _SIGNALS, _EXPRESS, _CLOSE = '"records":[', '"signals":[', '"express":[', "]}"
_ENCODER: Final = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":"))
_TOO_DEEP: Final = "nested too deeply"
# SQS refuses these two non-characters. Inside a JSON string their escapes mean the same.
_NON_CHARACTERS: Final = str.maketrans({"\ufffe": "\\ufffe", "\uffff": "\\uffff"})

Loads = Callable[[str], Any]


class MalformedEnvelope(ValueError):
    """A message that no version of roomcast wrote."""


@frozen
class Signal:
    """A best-effort message without an offset: a publication without history, a join, a greeting.

    `id` is unique for its `node`. `body` depends on `kind` (service/roomcast/delivery/signals.py).
    `text`: the JSON of `body` by a strict encoder, where there is one already; None = there is
    none. `trail`: how it came, if it is traced; None = it is not.
    """

    kind: str
    id: str
    node: str
    channel: str
    body: Json
    text: str | None = field(default=None, compare=False, repr=False)
    trail: Trail | None = field(default=None, compare=False)


@dataclass(frozen=True, slots=True)
class Envelope:
    """One parsed message.

    `broken`: entries that were skipped. `unwanted`: records that nobody here needs. `at`: when
    the stream Lambda had its records (ms); 0 = not known. `shards`: the number of topic shards that
    its sender publishes to. `shard`: the one that this was published to; None = the base topic.

    `express`: express hints, which are no records of the stream. `late`: those of channels that
    somebody here reads, and that had come by the stream before.
    """

    records: tuple[Record, ...]
    signals: tuple[Signal, ...]
    broken: int
    at: int = 0
    unwanted: int = 0
    shards: int = 1
    shard: int | None = None
    express: tuple[Record, ...] = ()
    late: int = 0


def checked_pubs(item: LogItem) -> str:
    """The item's `pubs` as one line of JSON that is safe to embed. Raises MalformedPublication.

    Another program may have written the item, and nothing else checks it before the broadcast. The
    JSON is encoded anew: a single value that a reader's decoder refuses would lose every record of
    the same message.
    """
    try:
        pubs = json.loads(item.pubs, parse_int=_whole_number)
    except (ValueError, RecursionError) as error:
        raise MalformedPublication("pubs is not JSON") from error
    if not isinstance(pubs, list) or len(pubs) != item.last - item.offset + 1:
        raise MalformedPublication("pubs is not an array with one entry an offset")
    for index, stored in enumerate(pubs):
        Publication.from_stored(stored, item.offset + index)
    try:
        return _one_line(pubs)
    except ValueError as error:
        raise MalformedPublication("pubs holds what is not JSON everywhere") from error


def record_text(item: LogItem, pubs: str | None) -> str:
    """One record of an envelope; `pubs` from `checked_pubs`, or None for a pointer.

    Raises ValueError for names that readers' decoders refuse: they would lose every record of the
    same message.
    """
    head = (
        f'{{"channel":{_written(item.channel)},"epoch":{_written(item.epoch)},'
        f'"offset":{item.offset},"last":{item.last},"ts":{item.ts}'
    )
    if pubs is None:
        # What is read from the log is not traced.
        return head + "}"
    return f'{head}{_traced(item.trace)},"pubs":{pubs}}}'


def express_text(item: LogItem) -> str:
    """One express hint of an envelope: an append of this node, whose `pubs` it encoded itself.

    Raises ValueError for what SQS does not take.
    """
    return record_text(item, _for_sqs(item.pubs))


def signal_text(signal: Signal) -> str:
    """One signal of an envelope.

    Raises ValueError when `body` is not JSON that every reader takes.
    """
    if signal.text is None:
        tail = _one_line({"body": signal.body})[1:]
    else:
        tail = f'"body":{_for_sqs(signal.text)}}}'
    return (
        f'{{"kind":{_written(signal.kind)},"id":{_written(signal.id)},'
        f'"node":{_written(signal.node)},"channel":{_written(signal.channel)}'
        f"{_traced(signal.trail.context if signal.trail is not None else None)},{tail}"
    )


def _traced(trace: TraceContext | None) -> str:
    return "" if trace is None else f',"trace":"{trace.traceparent()}"'


def pack(
    texts: Iterable[str],
    *,
    signals: bool = False,
    express: str = "",
    at: int = 0,
    shards: int = 1,
    shard: int | None = None,
    bytes_max: int = ENVELOPE_BYTES_MAX,
) -> Iterator[tuple[str, int]]:
    """Join record texts (or signal texts), in order, into as few envelopes as fit `bytes_max`.

    `express`: the texts are express hints of this node. `at`: when they are published, in ms since
    1970 (0 = not known). `shards`, `shard`: the number of topic shards, and the one that they are
    published to; None = the base topic.

    Yields (body, number of texts in it). Raises ValueError for a single text that cannot fit: the
    caller must turn it into a pointer or refuse it before.
    """
    opening = _OPEN + (f'"at":{at},' if at else "")
    if shards > 1:
        opening += f'"shards":{shards},' + ("" if shard is None else f'"shard":{shard},')
    if express:
        opening += f'"node":{_written(express)},' + _EXPRESS
    else:
        opening += _SIGNALS if signals else _RECORDS
    room = bytes_max - len(opening) - len(_CLOSE)
    batch: list[str] = []
    used = 0
    for text in texts:
        size = len(text.encode()) + 1
        if size > room:
            raise ValueError("a record or signal that exceeds an envelope")
        if batch and used + size > room:
            yield opening + ",".join(batch) + _CLOSE, len(batch)
            batch, used = [], 0
        batch.append(text)
        used += size
    if batch:
        yield opening + ",".join(batch) + _CLOSE, len(batch)


class Follower(Protocol):
    """Whoever reads a channel's records."""

    def has(self, epoch: str, last: int) -> bool:
        """Whether a record of `epoch` that ends at offset `last` brings nothing new."""


def parse(
    body: str,
    loads: Loads = json.loads,
    readers: Mapping[str, Follower] | None = None,
    always: str = "",
    own: str = "",
) -> Envelope:
    """The envelope in `body`. Single broken entries are counted and skipped.

    Most records are of no use to most nodes. So no more is looked at than tells that: a record's
    channel must be in `readers`, or be `always`, and its reader must not have it. Without `readers`
    every record is wanted. Signals of the node `own` are left out, its greetings excepted: it has
    delivered them already. So are its express hints. Raises MalformedEnvelope when `body` is no
    envelope at all.
    """
    try:
        envelope = loads(body)
    except (ValueError, RecursionError) as error:
        raise MalformedEnvelope("not JSON") from error
    if not isinstance(envelope, dict) or not isinstance(envelope.get("v"), int):
        raise MalformedEnvelope("not an envelope")
    known = envelope["v"] == ENVELOPE_VERSION
    at = envelope.get("at", 0)
    at = at if _is_whole(at, 0, TIME_MAX) else 0
    broken = unwanted = 0
    records: list[Record] = []
    for entry in _entries(envelope, "records"):
        try:
            if readers is not None and not _is_wanted(entry, readers, always):
                unwanted += 1
            else:
                records.append(_record(entry, known, at))
        except (MalformedPublication, MalformedEnvelope):
            broken += 1
    signals: list[Signal] = []
    for entry in _entries(envelope, "signals") if known else ():
        try:
            if not (own and _came_round(entry, own)):
                signals.append(_signal(entry))
        except MalformedEnvelope:
            broken += 1
    express: list[Record] = []
    late = 0
    is_own = own and envelope.get("node") == own
    for entry in _entries(envelope, "express") if known and not is_own else ():
        try:
            if readers is None or _is_followed(entry, readers):
                if readers is not None and not _is_wanted(entry, readers, ""):
                    late += 1
                else:
                    express.append(_record(entry, known, at, express=True))
        except (MalformedPublication, MalformedEnvelope):
            broken += 1
    shards, shard = envelope.get("shards", 1), envelope.get("shard")
    shards = shards if _is_whole(shards, 1, SHARDS_MAX) else 1
    shard = shard if _is_whole(shard, 0, shards - 1) else None
    return Envelope(
        tuple(records), tuple(signals), broken, at, unwanted, shards, shard, tuple(express), late
    )


def _entries(envelope: dict[str, Any], name: str) -> Sequence[Any]:
    entries = envelope.get(name, ())
    return entries if isinstance(entries, list) else ()


def _is_wanted(entry: Any, readers: Mapping[str, Follower], always: str) -> bool:
    """Raises MalformedEnvelope. What it passes over is not checked any further."""
    try:
        channel = entry["channel"]
        reader = readers.get(channel)
        if reader is None:
            return bool(channel == always)
        return not reader.has(entry["epoch"], entry["last"])
    except (TypeError, KeyError) as error:
        raise MalformedEnvelope("a record without channel, epoch or offset") from error


def _is_followed(entry: Any, readers: Mapping[str, Follower]) -> bool:
    """Raises MalformedEnvelope."""
    try:
        return entry["channel"] in readers
    except (TypeError, KeyError) as error:
        raise MalformedEnvelope("an express hint without channel") from error


def _record(entry: Any, known: bool, at: int, *, express: bool = False) -> Record:
    if not isinstance(entry, dict):
        raise MalformedEnvelope("a record is not an object")
    channel, epoch = entry.get("channel"), entry.get("epoch")
    offset, last, ts = entry.get("offset"), entry.get("last"), entry.get("ts", 0)
    if not (_is_text(channel, _NAME_CHARS_MAX) and _is_text(epoch, EPOCH_CHARS_MAX) and epoch):
        raise MalformedEnvelope("a record without channel or epoch")
    if not (_is_whole(offset, 1, OFFSET_MAX) and _is_whole(last, offset, OFFSET_MAX)):
        raise MalformedEnvelope("a record without offsets")
    if not _is_whole(ts, 0, TIME_MAX):
        raise MalformedEnvelope("a record whose time is none")
    pubs = entry.get("pubs") if known else None
    if express and pubs is None:
        raise MalformedEnvelope("an express hint without publications")
    trail = None
    if "trace" in entry and (trace := _trace(entry)) is not None:
        trail = Trail(trace, BY_EXPRESS if express else BY_STREAM, appended_at=ts, lambda_at=at)
    return Record.from_stored(channel, epoch, offset, last, ts, pubs, express=express, trail=trail)


def _trace(entry: dict[str, Any]) -> TraceContext | None:
    trace = parse_traceparent(entry["trace"])
    return trace if trace is not None and trace.sampled else None


def _came_round(entry: Any, own: str) -> bool:
    """What it says yes to is not checked any further."""
    return isinstance(entry, dict) and entry.get("node") == own and entry.get("kind") != HELLO_KIND


def _signal(entry: Any) -> Signal:
    if not isinstance(entry, dict):
        raise MalformedEnvelope("a signal is not an object")
    kind, signal_id, node, channel = (entry.get(name) for name in ("kind", "id", "node", "channel"))
    if not (_is_text(kind, _ID_CHARS_MAX) and _is_text(signal_id, _ID_CHARS_MAX)):
        raise MalformedEnvelope("a signal without kind or id")
    if not (_is_text(node, _NAME_CHARS_MAX) and _is_text(channel, _NAME_CHARS_MAX)):
        raise MalformedEnvelope("a signal without node or channel")
    trail = None
    if "trace" in entry and (trace := _trace(entry)) is not None:
        trail = Trail(trace, BY_SIGNAL)
    return Signal(kind, signal_id, node, channel, entry.get("body"), trail=trail)


def _is_text(found: Any, chars_max: int) -> TypeGuard[str]:
    return isinstance(found, str) and len(found) <= chars_max


def _is_whole(found: Any, minimum: int, maximum: int) -> TypeGuard[int]:
    """Whether `found` is an integer from `minimum` to `maximum`.

    JSON's true is refused: Python takes it for an integer as well.
    """
    return isinstance(found, int) and not isinstance(found, bool) and minimum <= found <= maximum


def _one_line(value: Json) -> str:
    """`value` as JSON that every decoder takes.

    Raises ValueError for NaN, infinity, lone surrogates and deep nesting.
    """
    try:
        text = _written(value)
    except RecursionError as error:
        raise ValueError(_TOO_DEEP) from error
    # Each array and object has an opening bracket, so few of them are not deep.
    if text.count("[") + text.count("{") > DEPTH_MAX and is_deeper(value, DEPTH_MAX):
        raise ValueError(_TOO_DEEP)
    return text


def _written(value: Json) -> str:
    """The same, of a value that is known not to be deep. Raises RecursionError if it is."""
    return _for_sqs(_ENCODER.encode(value))


def _for_sqs(text: str) -> str:
    """JSON as SQS takes it. Raises ValueError for lone surrogates."""
    if text.isascii():
        return text
    text.encode()  # UnicodeEncodeError is a ValueError
    return text.translate(_NON_CHARACTERS)


def _whole_number(text: str) -> int:
    """Raises ValueError for a number that is infinite as a double."""
    if math.isinf(float(text)):
        raise ValueError("a number beyond a double")
    return int(text)
