"""The embedded AWS: moto's server in a process of its own, on loopback.

It ends with its standard input.

`python -m roomcast.dev.emulator --port N` prints
{"event":"listening","endpoint":"http://127.0.0.1:N"} when it listens. Nothing is kept: with the
process its tables, topics and queues are gone.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import socket
import sys
import threading
from collections import OrderedDict, deque
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, Final

from moto.core.models import DEFAULT_ACCOUNT_ID
from moto.dynamodb.comparisons import get_filter_expression
from moto.dynamodb.exceptions import TransactionCanceledException
from moto.dynamodb.models import DynamoDBBackend
from moto.dynamodbstreams.models import dynamodbstreams_backends
from moto.moto_server.werkzeug_app import (
    DomainDispatcherApplication,
    MotoRequestHandler,
    create_backend_app,
)
from moto.sns.models import Subscription, Topic
from moto.sqs.exceptions import QueueDoesNotExist
from werkzeug.serving import make_server

from roomcast.dev.lifeline import Lifeline

__all__ = ["main"]

_HOST: Final = "127.0.0.1"
_BACKLOG: Final = 128
# moto remembers every shard iterator it ever gave out, some ten a second. This many are 16 MB, and
# as on AWS one that is a quarter of an hour old is of no use any more.
_SHARD_ITERATORS_MAX: Final = 10_000
# moto keeps every message ever published for the assertions of unit tests.
_SENT_NOTIFICATIONS_MAX: Final = 16


class _Newest(OrderedDict[str, Any]):
    """A dict that forgets its oldest entries."""

    def __setitem__(self, key: str, value: Any) -> None:
        super().__setitem__(key, value)
        if len(self) > _SHARD_ITERATORS_MAX:
            self.popitem(last=False)


class _QuietHandler(MotoRequestHandler):
    """No access log. Answers are written in pieces, which must not wait for the peer's delayed ACK."""

    disable_nagle_algorithm = True

    def log_request(self, code: int | str = "-", size: int | str = "-") -> None:
        pass


def correct_moto(region: str) -> None:
    """Bound what moto would keep for ever; make it deliver as SNS and write as DynamoDB.

    A subscribed queue that is gone costs the publisher nothing on AWS (the delivery is dropped);
    moto fails the whole publish, so that one killed instance would silence all others.
    """
    dynamodbstreams_backends[DEFAULT_ACCOUNT_ID][region].shard_iterators = _Newest()
    deliver = Subscription.publish

    def deliver_or_drop(self: Subscription, *args: Any, **kwargs: Any) -> None:
        with suppress(QueueDoesNotExist):
            deliver(self, *args, **kwargs)

    Subscription.publish = deliver_or_drop  # type: ignore[method-assign]  # this is what it is for
    initialise = Topic.__init__

    def initialise_bounded(self: Topic, *args: Any, **kwargs: Any) -> None:
        initialise(self, *args, **kwargs)
        self.sent_notifications = deque(maxlen=_SENT_NOTIFICATIONS_MAX)  # type: ignore[assignment]  # append is all moto does

    Topic.__init__ = initialise_bounded  # type: ignore[method-assign]  # as above
    _correct_transactions()


def _correct_transactions() -> None:
    """Look at the conditions of a transaction before anything is written, one write at a time.

    moto writes first. To cancel, it replaces each table by a copy from before: what others wrote
    meanwhile is lost, a reader of the table's stream has seen what never was, and then reads a
    stream that gets nothing more.
    """
    writing = threading.RLock()
    put_item, transact = DynamoDBBackend.put_item, DynamoDBBackend.transact_write_items

    def put_alone(self: DynamoDBBackend, *args: Any, **kwargs: Any) -> Any:
        with writing:
            return put_item(self, *args, **kwargs)

    def transact_puts(self: DynamoDBBackend, transact_items: list[dict[str, Any]]) -> None:
        with writing:
            if any(list(item) != ["Put"] for item in transact_items):
                transact(self, transact_items)
                return
            puts = [item["Put"] for item in transact_items]
            reasons = [_reason_against(self, put) for put in puts]
            if any(code is not None for code, _, _ in reasons):
                raise TransactionCanceledException(reasons)
            for put in puts:
                put_item(self, put["TableName"], put["Item"])

    DynamoDBBackend.put_item = put_alone  # type: ignore[method-assign]  # as above
    DynamoDBBackend.transact_write_items = transact_puts  # type: ignore[method-assign]  # as above


def _reason_against(
    backend: DynamoDBBackend, put: dict[str, Any]
) -> tuple[str | None, str | None, Any]:
    """Code, message and item of the reason to cancel a transaction with `put`.

    None three times: its condition holds.
    """
    table = backend.get_table(put["TableName"])
    names = (table.hash_key_attr, table.range_key_attr)
    current = backend.get_item(
        put["TableName"], {name: put["Item"][name] for name in names if name}
    )
    condition = get_filter_expression(
        put.get("ConditionExpression"),
        put.get("ExpressionAttributeNames"),
        put.get("ExpressionAttributeValues"),
    )
    if condition.expr(current):
        return None, None, None
    tell = put.get("ReturnValuesOnConditionCheckFailure") == "ALL_OLD"
    told = current.to_json()["Attributes"] if tell and current is not None else None
    return "ConditionalCheckFailed", "The conditional request failed", told


def main(arguments: Sequence[str] | None = None) -> int:
    """Serve until SIGTERM or the end of standard input. 1 = the port is taken."""
    parser = argparse.ArgumentParser(prog="python -m roomcast.dev.emulator", description=__doc__)
    parser.add_argument("--port", type=int, default=0, help="0 = any free port")
    parser.add_argument("--region", default="us-east-1")
    options = parser.parse_args(arguments)

    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((_HOST, options.port))
    except OSError as error:
        sys.stderr.write(f"emulator: port {options.port} cannot be used: {error.strerror}\n")
        return 1
    listener.listen(_BACKLOG)

    lifeline = Lifeline()
    logging.getLogger("werkzeug").setLevel(logging.CRITICAL)
    correct_moto(options.region)
    server = make_server(
        _HOST,
        options.port,
        DomainDispatcherApplication(create_backend_app),
        threaded=True,
        request_handler=_QuietHandler,
        fd=listener.fileno(),
    )
    # Long polls under way must not hold up the end: all threads are daemons.
    threading.Thread(target=server.serve_forever, name="emulator", daemon=True).start()
    port = listener.getsockname()[1]
    sys.stdout.write(
        json.dumps({"event": "listening", "endpoint": f"http://{_HOST}:{port}"}) + "\n"
    )
    sys.stdout.flush()
    # Nobody reads further: what moto prints goes to where its errors go.
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    while not lifeline.wait(None):
        pass
    return 0


if __name__ == "__main__":
    sys.exit(main())
