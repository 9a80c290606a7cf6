"""The stream Lambda: sends each append to the `channels` table over SNS to the instances that hear
the topic of its channel.

`plan` is the pure part: stream records in, PublishBatch entries out. `publish` and `publish_all`
are the shell around SNS. The module imports only the modules of `roomcast` for envelopes, items and
batches of a stream, so that the zip needs no build.

Order is not kept here, and no reader relies on it: DynamoDB Streams promise order for one item
only, and each append is an item of its own. Sequence numbers serve only the partial batch response.
"""

from __future__ import annotations

import math
import os
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache, partial
from typing import Any, Final

from roomcast.delivery.envelope import ENVELOPE_BYTES_MAX, checked_pubs, pack, record_text
from roomcast.delivery.shards import SHARDS_MAX, homes, topic_of
from roomcast.log.item import HEAD_OFFSET, MalformedItem, parse_log_item
from roomcast.stream_batch import (
    CALL_S_MAX,
    bounded_client,
    lowest,
    reason_of,
    report,
    response,
    time_left,
)

__all__ = [
    "BATCH_BYTES_MAX",
    "BATCH_ENTRIES_MAX",
    "RECORD_BYTES_MAX",
    "Entry",
    "Outcome",
    "Planned",
    "calls",
    "handler",
    "plan",
    "publish",
    "publish_all",
]

# PublishBatch: both bounds hold for one call (SNS API reference).
# Emulators do not check the second.
BATCH_ENTRIES_MAX: Final = 10
BATCH_BYTES_MAX: Final = 256 * 1024
# The largest single record in an envelope. The rest is for the envelope's own text.
RECORD_BYTES_MAX: Final = ENVELOPE_BYTES_MAX - 64
assert ENVELOPE_BYTES_MAX <= BATCH_BYTES_MAX, "every envelope fits a call of its own"

# The base topic and each topic shard's. All of them are called at once: the first call for each is
# always made, so that none waits until the function's time is over.
_TOPICS_MAX: Final = 1 + SHARDS_MAX
# Codes of a topic that is not there, or that the role may not publish to.
_REFUSALS: Final = frozenset(
    {"NotFound", "NotFoundException", "AuthorizationError", "AuthorizationErrorException"}
)


@dataclass(frozen=True, slots=True)
class Entry:
    """One SNS message. `sequence` is the lowest sequence number of the records in `body`,
    as the event has it. `shard` is the topic shard that it is for, None = the base topic.
    """

    body: str
    body_bytes: int
    sequence: str
    shard: int | None = None


@dataclass(frozen=True, slots=True)
class Planned:
    """What to publish for one event.

    `entries` have every valid append once, or once for each topic, if it is for all. `pointers`
    counts records without their publications. `skipped` counts unreadable records by the name of
    the error.
    """

    entries: tuple[Entry, ...]
    pointers: int
    skipped: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class Outcome:
    """`published` messages went out. `failed` ones must be sent again; they may have gone out.

    `refused` ones are not sent again: the topic of their topic shard takes none.
    """

    published: int
    failed: tuple[Entry, ...]
    reason: str = ""
    refused: int = 0


@dataclass(frozen=True, slots=True)
class _Appended:
    text: str
    sequence: str
    is_pointer: bool
    homes: tuple[int | None, ...]


def handler(event: Mapping[str, Any], context: Any) -> dict[str, list[dict[str, str]]]:
    """Publish the appends in `event`. Returns the partial batch response for the mapping.

    The one identifier in the response is the lowest sequence number in any failed entry. The event
    source mapping sends that record and all later ones again.

    Raises the error of the very first call if that fails, so that nothing went out. Then the
    mapping retries the whole batch, and the function's Errors metric shows it.

    `context`: the runtime's, which knows the time that is left; None = there is no bound.
    """
    planned = plan(event, at=time.time_ns() // 1_000_000, shards=_shards())
    outcome = Outcome(0, ())
    try:
        if planned.entries:
            outcome = publish_all(_sns(), _topic_arn(), planned.entries, time_left(context))
    finally:
        _report(planned, outcome)
    return response(entry.sequence for entry in outcome.failed)


def plan(event: Mapping[str, Any], *, at: int = 0, shards: int = 1) -> Planned:
    """Pack the stream records of `event` into as few SNS messages as possible.

    Never raises: records that cannot be read are skipped.

    `at`: the time to write into the messages, in ms since 1970. `shards`: the number of topic
    shards.
    """
    appends: list[_Appended] = []
    skipped: Counter[str] = Counter()
    for record in event.get("Records", ()):
        try:
            append = _append(record, shards)
        except Exception as error:  # noqa: BLE001 - one bad record must not hold up a shard
            skipped[type(error).__name__] += 1
        else:
            if append is not None:
                appends.append(append)
    by_home: defaultdict[int | None, list[_Appended]] = defaultdict(list)
    for append in appends:
        for home in append.homes:
            by_home[home].append(append)
    entries = [
        entry
        for home, of_home in by_home.items()
        for entry in _packed(of_home, at=at, shards=shards, shard=home)
    ]
    return Planned(tuple(entries), sum(append.is_pointer for append in appends), skipped)


def _packed(
    appends: Sequence[_Appended], *, at: int, shards: int, shard: int | None
) -> Iterator[Entry]:
    """The messages for one topic."""
    start = 0
    texts = (append.text for append in appends)
    for body, count in pack(texts, at=at, shards=shards, shard=shard):
        within = appends[start : start + count]
        sequence = lowest(append.sequence for append in within)
        yield Entry(body, len(body.encode()), sequence, shard)
        start += count
    assert start == len(appends), "every valid append is in exactly one entry of its topic"


def calls(entries: Sequence[Entry]) -> Iterator[Sequence[Entry]]:
    """Split `entries`, in order, into PublishBatch calls within both of its bounds."""
    call: list[Entry] = []
    used = 0
    for entry in entries:
        assert entry.body_bytes <= ENVELOPE_BYTES_MAX, "I7: bounded message"
        if call and (len(call) == BATCH_ENTRIES_MAX or used + entry.body_bytes > BATCH_BYTES_MAX):
            yield call
            call, used = [], 0
        call.append(entry)
        used += entry.body_bytes
    if call:
        yield call


def publish(
    client: Any,
    topic_arn: str,
    entries: Sequence[Entry],
    left_s: Callable[[], float] = lambda: math.inf,
) -> Outcome:
    """Send `entries` through `client`, boto3's for SNS.

    It stops after the first call with a failure: the mapping sends all later records again anyway.
    It also stops when `left_s`, the seconds that the function may still take, leaves no room for
    another call. The first call is always made.

    An entry counts as published only if the answer lists it as successful. If a call raises, all
    its entries failed. If that was the first call, its error is raised.
    """
    published = 0
    sent = 0
    for call in calls(entries):
        if sent and left_s() < CALL_S_MAX:
            return Outcome(published, tuple(entries[sent:]), "no time left")
        try:
            answer = client.publish_batch(
                TopicArn=topic_arn,
                PublishBatchRequestEntries=[
                    {"Id": str(index), "Message": entry.body} for index, entry in enumerate(call)
                ],
            )
        except Exception as error:
            if not sent:
                raise
            return Outcome(published, tuple(entries[sent:]), reason_of(error))
        sent += len(call)
        accepted = {success["Id"] for success in answer.get("Successful", ())}
        failed = tuple(entry for index, entry in enumerate(call) if str(index) not in accepted)
        published += len(call) - len(failed)
        if failed:
            codes = sorted({str(failure.get("Code")) for failure in answer.get("Failed", ())})
            return Outcome(
                published, (*failed, *entries[sent:]), ",".join(codes) or "missing in the answer"
            )
    return Outcome(published, ())


def publish_all(
    client: Any,
    topic_arn: str,
    entries: Sequence[Entry],
    left_s: Callable[[], float] = lambda: math.inf,
) -> Outcome:
    """Send each of `entries` to its topic, as `publish` does, all topics at once.

    If nothing went out and a first call failed, the error of one of them is raised.
    """
    by_shard: defaultdict[int | None, list[Entry]] = defaultdict(list)
    for entry in entries:
        by_shard[entry.shard].append(entry)
    runs = [
        partial(_publish_to, client, topic_arn, shard, of_shard, left_s)
        for shard, of_shard in by_shard.items()
    ]
    if len(runs) == 1:
        ends = [runs[0]()]
    else:
        with ThreadPoolExecutor(_TOPICS_MAX) as threads:
            ends = list(threads.map(lambda run: run(), runs))
    outcomes = [outcome for outcome, _ in ends]
    errors = [error for _, error in ends if error is not None]
    published = sum(outcome.published for outcome in outcomes)
    if errors and not published:
        raise errors[0]
    return Outcome(
        published,
        tuple(entry for outcome in outcomes for entry in outcome.failed),
        ",".join(sorted({outcome.reason for outcome in outcomes if outcome.reason})),
        sum(outcome.refused for outcome in outcomes),
    )


def _publish_to(
    client: Any,
    topic_arn: str,
    shard: int | None,
    entries: Sequence[Entry],
    left_s: Callable[[], float],
) -> tuple[Outcome, Exception | None]:
    """As `publish`, to the topic of `shard`. Returns the error in place of raising it.

    What the topic of a topic shard refuses is not sent again, or the records behind it would wait
    with it: those of all topics, for as long as the mapping tries. The nodes read what they do not
    hear from the log.
    """
    try:
        outcome, error = publish(client, topic_of(topic_arn, shard), entries, left_s), None
    except Exception as raised:  # noqa: BLE001 - whoever asked decides
        outcome, error = Outcome(0, tuple(entries), reason_of(raised)), raised
    if shard is None or outcome.reason not in _REFUSALS:
        return outcome, error
    return Outcome(outcome.published, (), outcome.reason, len(outcome.failed)), None


def _append(record: Mapping[str, Any], shards: int) -> _Appended | None:
    """One record's text, or None if it is no append. Raises any error of an unreadable one."""
    if record["eventName"] != "INSERT":
        return None
    change = record["dynamodb"]
    if int(change["Keys"]["offset"]["N"]) == HEAD_OFFSET:
        return None
    sequence = lowest([change["SequenceNumber"]])
    item = parse_log_item(change["NewImage"])
    text = record_text(item, checked_pubs(item))
    its_homes = homes(item.channel, shards)
    if len(text.encode()) <= RECORD_BYTES_MAX:
        return _Appended(text, sequence, False, its_homes)
    pointer = record_text(item, None)
    if len(pointer.encode()) > RECORD_BYTES_MAX:
        raise MalformedItem("channel or epoch too long for a message")
    return _Appended(pointer, sequence, True, its_homes)


@cache
def _sns() -> Any:
    """The SNS client, made on first use and kept for the life of the environment."""
    return bounded_client("sns", _TOPICS_MAX)


def _topic_arn() -> str:
    return os.environ["ROOMCAST_TOPIC_ARN"]


def _shards() -> int:
    """The number of topic shards to publish to. Raises ValueError when it is none."""
    shards = int(os.environ.get("ROOMCAST_TOPIC_SHARDS", "1"))
    if not 1 <= shards <= SHARDS_MAX:
        raise ValueError(f"ROOMCAST_TOPIC_SHARDS must be from 1 to {SHARDS_MAX}")
    return shards


def _report(planned: Planned, outcome: Outcome) -> None:
    """Log anything unusual.

    An event without trouble logs nothing: lines and custom metrics cost more than the function.
    """
    counts = {
        "records_skipped": sum(planned.skipped.values()),
        "records_as_pointers": planned.pointers,
        "messages_failed": len(outcome.failed) + outcome.refused,
    }
    if not any(counts.values()):
        return
    is_incomplete = counts["records_skipped"] or counts["messages_failed"]
    report(
        "stream_batch_incomplete" if is_incomplete else "stream_batch_pointers",
        counts,
        {
            "messages_published": outcome.published,
            "skipped": dict(planned.skipped),
            "reason": outcome.reason,
        },
    )
