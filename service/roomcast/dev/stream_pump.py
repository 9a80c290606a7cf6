"""Replaces the Lambda in `roomcast dev`: reads the table's stream and calls the real handler.

`python -m roomcast.dev.stream_pump --endpoint URL --stream-arn ARN --topic-arn ARN` starts at the
oldest record and runs until SIGTERM or the end of standard input. `roomcast.dev.event_source`
decides when to repeat a batch and when to give it up. This module does the I/O, in one thread:
shards take turns.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from botocore.exceptions import BotoCoreError, ClientError
from botocore.parsers import ResponseParserError

from roomcast.backoff import Backoff
from roomcast.dev.event_source import (
    EventSourceMapping,
    Idle,
    Invoke,
    MappingOptions,
    StreamRecord,
    event_record,
    failure_document,
    is_append,
    is_told,
)
from roomcast.dev.lifeline import Lifeline
from roomcast.dev.provision import DUMMY_CREDENTIALS, client

__all__ = ["Handler", "OnFailure", "StreamPump", "main"]

# Lambda reads an idle shard 4 times a second. A developer prefers it faster. It costs 5 % of one
# core with moto.
POLL_INTERVAL_S: Final = 0.1
# Shards split and end every few hours (on emulators: never).
_SHARDS_INTERVAL_S: Final = 30.0
_ERROR_BACKOFF: Final = Backoff(0.1, 5.0)
_SDK_ERRORS: Final = (BotoCoreError, ClientError, ResponseParserError)

Handler = Callable[[Mapping[str, Any], object], object]
OnFailure = Callable[[Mapping[str, Any]], None]

logger = logging.getLogger("roomcast.stream_pump")


class StreamPump:
    """Pumps every shard of one stream, parents before their children."""

    def __init__(
        self,
        streams: Any,
        stream_arn: str,
        region: str,
        handler: Handler,
        on_failure: OnFailure,
        options: MappingOptions | None = None,
        clock_s: Callable[[], float] = time.time,
        wanted: Callable[[StreamRecord], bool] = is_append,
    ) -> None:
        self._streams = streams
        self._stream_arn = stream_arn
        self._region = region
        self._handler = handler
        self._on_failure = on_failure
        self._options = options or MappingOptions()
        self._wanted = wanted
        self._clock_s = clock_s
        self._shards: dict[str, _Shard] = {}
        self._parents: dict[str, str] = {}
        self._look_at_s = 0.0
        self._errors_in_a_row = 0
        self._not_before_s = 0.0

    def turn(self) -> bool:
        """Gives every shard one step.

        Returns whether any work was done, so that the next turn should follow at once.

        An error of the emulator is never raised: the pump backs off, then goes on from the same
        place.
        """
        now_s = self._clock_s()
        if now_s < self._not_before_s:
            return False
        try:
            if now_s >= self._look_at_s:
                self._find_shards()
                self._look_at_s = now_s + _SHARDS_INTERVAL_S
            busy = False
            for shard_id, shard in list(self._shards.items()):
                parent = self._shards.get(self._parents.get(shard_id, ""))
                if not shard.ended and (parent is None or parent.ended):
                    busy |= self._step(shard)
                    if shard.ended:
                        self._look_at_s = 0.0
        except _SDK_ERRORS as error:
            self._back_off(error)
            return False
        self._errors_in_a_row = 0
        return busy

    def _find_shards(self) -> None:
        start: dict[str, str] = {}
        while True:
            stream = self._streams.describe_stream(StreamArn=self._stream_arn, **start)[
                "StreamDescription"
            ]
            for shard in stream["Shards"]:
                shard_id = shard["ShardId"]
                if shard_id not in self._shards:
                    self._shards[shard_id] = _Shard(
                        shard_id, EventSourceMapping(self._options, self._wanted)
                    )
                    self._parents[shard_id] = shard.get("ParentShardId", "")
            if not stream.get("LastEvaluatedShardId"):
                return
            start = {"ExclusiveStartShardId": stream["LastEvaluatedShardId"]}

    def _step(self, shard: _Shard) -> bool:
        step = shard.mapping.step(self._clock_s())
        self._give_up(shard)
        if isinstance(step, Invoke):
            self._invoke(shard, step.records)
            self._give_up(shard)
            return True
        if isinstance(step, Idle) and shard.closed:
            shard.ended = True
            return True
        return isinstance(step, Idle) and self._read(shard)

    def _invoke(self, shard: _Shard, records: Sequence[StreamRecord]) -> None:
        try:
            # Through JSON, as for a real function.
            response = self._handler(json.loads(json.dumps({"Records": records})), None)
        except Exception as error:  # noqa: BLE001 - any exception of a function is a failed invocation
            logger.warning(
                "function failed on %d records, trying again: %s", len(records), _one_line(error)
            )
            shard.mapping.raised(self._clock_s())
        else:
            shard.mapping.answered(response, self._clock_s())

    def _give_up(self, shard: _Shard) -> None:
        for discarded in shard.mapping.take_discarded():
            logger.error("gave up on %d records: %s", len(discarded.records), discarded.condition)
            self._on_failure(
                failure_document(discarded, self._stream_arn, shard.shard_id, self._clock_s())
            )

    def _read(self, shard: _Shard) -> bool:
        iterator = shard.iterator or self._new_iterator(shard)
        # After a failed read the iterator's state is unknown, so a new one is taken.
        shard.iterator = None
        answer = self._streams.get_records(ShardIterator=iterator, Limit=self._options.batch_size)
        shard.iterator = answer.get("NextShardIterator")
        records = answer["Records"]
        if records:
            shard.last_read = records[-1]["dynamodb"]["SequenceNumber"]
            shard.mapping.add(
                event_record(record, self._stream_arn, self._region) for record in records
            )
        shard.closed = shard.iterator is None
        return bool(records)

    def _new_iterator(self, shard: _Shard) -> str:
        place: dict[str, str] = {"ShardIteratorType": "TRIM_HORIZON"}
        if shard.last_read is not None:
            place = {
                "ShardIteratorType": "AFTER_SEQUENCE_NUMBER",
                "SequenceNumber": shard.last_read,
            }
        source = {"StreamArn": self._stream_arn, "ShardId": shard.shard_id}
        try:
            return str(self._streams.get_shard_iterator(**source, **place)["ShardIterator"])
        except self._streams.exceptions.TrimmedDataAccessException:
            # The pump was away for longer than the stream keeps its records: it goes on with the
            # oldest one.
            return str(
                self._streams.get_shard_iterator(**source, ShardIteratorType="TRIM_HORIZON")[
                    "ShardIterator"
                ]
            )

    def _back_off(self, error: Exception) -> None:
        if self._errors_in_a_row == 0:
            logger.warning("cannot read the stream, trying again: %s", _one_line(error))
        self._errors_in_a_row += 1
        self._not_before_s = self._clock_s() + _ERROR_BACKOFF.pause_s(self._errors_in_a_row)


class _Shard:
    """One shard. `closed`: read to its end. `ended`: also delivered, so that its children may
    begin.
    """

    def __init__(self, shard_id: str, mapping: EventSourceMapping) -> None:
        self.shard_id = shard_id
        self.mapping = mapping
        self.iterator: str | None = None
        self.last_read: str | None = None
        self.closed = False
        self.ended = False


def main(arguments: Sequence[str] | None = None) -> int:
    """Pumps until it should end. Returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m roomcast.dev.stream_pump", description=__doc__)
    parser.add_argument("--endpoint", required=True, help="the emulator's URL")
    parser.add_argument("--region", default="us-east-1")
    parser.add_argument("--stream-arn", required=True)
    parser.add_argument("--topic-arn", required=True)
    parser.add_argument("--topic-shards", type=int, default=1)
    parser.add_argument("--events-queue-url", help="where events go")
    parser.add_argument("--presence-table")
    parser.add_argument("--presence-stream-arn")
    parser.add_argument("--on-failure", type=Path, help="JSON lines file for what was given up on")
    options = parser.parse_args(arguments)
    lifeline = Lifeline()
    logging.basicConfig(level=logging.INFO, format="stream pump: %(message)s", stream=sys.stderr)
    logging.getLogger("botocore").setLevel(logging.WARNING)

    # The function's environment, as Lambda sets it.
    os.environ |= {
        "ROOMCAST_TOPIC_ARN": options.topic_arn,
        "ROOMCAST_TOPIC_SHARDS": str(options.topic_shards),
        "AWS_ENDPOINT_URL": options.endpoint,
        "AWS_REGION": options.region,
        "AWS_DEFAULT_REGION": options.region,
        "AWS_ACCESS_KEY_ID": DUMMY_CREDENTIALS.access_key_id,
        "AWS_SECRET_ACCESS_KEY": DUMMY_CREDENTIALS.secret_access_key,
    }
    from roomcast.stream_lambda.handler import handler

    streams = client("dynamodbstreams", options.endpoint, options.region, DUMMY_CREDENTIALS)
    on_failure = _append_to(options.on_failure)
    pumps = [StreamPump(streams, options.stream_arn, options.region, handler, on_failure)]
    if options.events_queue_url:
        os.environ |= {
            "ROOMCAST_EVENTS_TARGET": options.events_queue_url,
            "ROOMCAST_PRESENCE_TABLE": options.presence_table,
        }
        from roomcast.events.handler import handler as tell

        pumps += [
            StreamPump(streams, arn, options.region, tell, on_failure, wanted=is_told)
            for arn in (options.stream_arn, options.presence_stream_arn)
        ]
    wait_s = 0.0
    while not lifeline.wait(wait_s):
        busy = [pump.turn() for pump in pumps]
        wait_s = 0.0 if any(busy) else POLL_INTERVAL_S
    return 0


def _append_to(path: Path | None) -> OnFailure:
    def append(document: Mapping[str, Any]) -> None:
        if path is not None:
            with path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(document) + "\n")

    return append


def _one_line(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())


if __name__ == "__main__":
    sys.exit(main())
