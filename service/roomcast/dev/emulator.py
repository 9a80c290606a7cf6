"""The embedded AWS: moto's server in a process of its own, on loopback.

It ends when its standard input ends.

`python -m roomcast.dev.emulator --port N` prints
{"event":"listening","endpoint":"http://127.0.0.1:N"} once it listens. Tables, topics and queues
live in memory, and end with the process.
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
from collections.abc import Callable, Sequence
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
# moto keeps every shard iterator that it ever issued, some ten a second. This many take 16 MB. As
# on AWS, an iterator is useless after a quarter of an hour.
_SHARD_ITERATORS_MAX: Final = 10_000
# moto keeps every published message for the assertions of unit tests.
_SENT_NOTIFICATIONS_MAX: Final = 16


class _Newest(OrderedDict[str, Any]):
    """A dict that forgets its oldest entries."""

    def __setitem__(self, key: str, value: Any) -> None:
        super().__setitem__(key, value)
        if len(self) > _SHARD_ITERATORS_MAX:
            self.popitem(last=False)


class _QuietHandler(MotoRequestHandler):
    """Writes no access log, and turns off Nagle's algorithm: answers are written in pieces, which
    must not wait for the peer's delayed ACK.
    """

    disable_nagle_algorithm = True

    def log_request(self, code: int | str = "-", size: int | str = "-") -> None:
        pass


def correct_moto(region: str) -> None:
    """Bounds the lists that moto would keep for ever, and corrects its SNS delivery and its
    writes to DynamoDB.

    On AWS a publisher does not notice that a subscribed queue is gone, and the delivery is dropped.
    moto fails the whole publish, so one killed instance would silence all others.
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
    _correct_writes()


def _correct_writes() -> None:
    """Lets only one write run at a time, and checks a transaction's conditions before any write.

    moto answers in threads, and checks a condition and writes in two steps: of two writes at once,
    both could win. In a transaction it writes first. To cancel, it replaces each table by an
    earlier copy. Other writes in between are lost. A reader of the table's stream has seen items
    that never existed, and its stream then stays empty.
    """
    writing = threading.RLock()
    put_item, update_item = DynamoDBBackend.put_item, DynamoDBBackend.update_item
    delete_item = DynamoDBBackend.delete_item

    def alone(write: Callable[..., Any]) -> Callable[..., Any]:
        def write_alone(self: DynamoDBBackend, *args: Any, **kwargs: Any) -> Any:
            with writing:
                return write(self, *args, **kwargs)

        return write_alone

    def transact_checked(self: DynamoDBBackend, transact_items: list[dict[str, Any]]) -> None:
        with writing:
            reasons = [
                _reason_against(self, kind, write)
                for each in transact_items
                for kind, write in each.items()
            ]
            if any(code is not None for code, _, _ in reasons):
                raise TransactionCanceledException(reasons)
            for each in transact_items:
                for kind, write in each.items():
                    carry_out(self, kind, write)

    def carry_out(self: DynamoDBBackend, kind: str, write: dict[str, Any]) -> None:
        table = write["TableName"]
        if kind == "Put":
            put_item(self, table, write["Item"])
        elif kind == "Delete":
            delete_item(self, table, write["Key"])
        elif kind == "Update":
            update_item(
                self,
                table,
                write["Key"],
                update_expression=write["UpdateExpression"],
                expression_attribute_names=write.get("ExpressionAttributeNames") or {},
                expression_attribute_values=write.get("ExpressionAttributeValues") or {},
            )

    for name in ("put_item", "update_item", "delete_item"):
        setattr(DynamoDBBackend, name, alone(getattr(DynamoDBBackend, name)))
    DynamoDBBackend.transact_write_items = transact_checked  # type: ignore[method-assign]  # as above


def _reason_against(
    backend: DynamoDBBackend, kind: str, write: dict[str, Any]
) -> tuple[str | None, str | None, Any]:
    """Code, message and item of the reason to cancel a transaction with a write of this kind.

    All three are None if its condition holds.
    """
    table = backend.get_table(write["TableName"])
    names = (table.hash_key_attr, table.range_key_attr)
    place = write["Item"] if kind == "Put" else write["Key"]
    current = backend.get_item(write["TableName"], {name: place[name] for name in names if name})
    condition = get_filter_expression(
        write.get("ConditionExpression"),
        write.get("ExpressionAttributeNames"),
        write.get("ExpressionAttributeValues"),
    )
    if condition.expr(current):
        return None, None, None
    tell = write.get("ReturnValuesOnConditionCheckFailure") == "ALL_OLD"
    old_item = current.to_json()["Attributes"] if tell and current is not None else None
    return "ConditionalCheckFailed", "The conditional request failed", old_item


def main(arguments: Sequence[str] | None = None) -> int:
    """Serves until SIGTERM or the end of standard input. Returns 1 if the port is taken."""
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
    # Running long polls must not delay the end: all threads are daemons.
    threading.Thread(target=server.serve_forever, name="emulator", daemon=True).start()
    port = listener.getsockname()[1]
    sys.stdout.write(
        json.dumps({"event": "listening", "endpoint": f"http://{_HOST}:{port}"}) + "\n"
    )
    sys.stdout.flush()
    # Nobody reads standard output any further, so moto's output goes to standard error.
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    while not lifeline.wait(None):
        pass
    return 0


if __name__ == "__main__":
    sys.exit(main())
