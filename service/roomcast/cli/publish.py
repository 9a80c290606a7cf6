"""`roomcast publish`: publishes once, through a server's HTTP API."""

from __future__ import annotations

import argparse
import json
import sys
from base64 import b64encode
from typing import Any, Final

from roomcast.cli.arguments import Subparsers, add_command, add_server, text
from roomcast.cli.server_api import add_key, call, understood
from roomcast.cli.terminal import Failed
from roomcast.observe.redaction import json_printable, printable

__all__ = ["add"]

_EXAMPLES: Final = """\
examples:
  roomcast publish news '{"text":"hi"}'
  roomcast publish news - < message.json
  roomcast publish news '"hi"' --idempotency-key order-7 --url http://10.0.0.5:8000
  roomcast publish sensors:3 - --bytes < reading.bin

Prints where it is in the channel's log. The key is http_api.key, or ROOMCAST_HTTP_API_KEY; a server
of `roomcast dev` needs none. With an idempotency key the same command may be repeated, and
publishes once. --bytes is for binary channels (publication_data_format).
"""


def add(commands: Subparsers) -> None:
    """Adds `roomcast publish`."""
    parser = add_command(
        commands, "publish", publish, "publish in a channel, through a server's HTTP API", _EXAMPLES
    )
    add_server(parser)
    parser.add_argument(
        "data", type=text, metavar="JSON", help="what is published; - = standard input"
    )
    parser.add_argument(
        "--bytes",
        action="store_true",
        help="the data is bytes and no JSON; as an argument, those of the text",
    )
    parser.add_argument(
        "--idempotency-key",
        type=text,
        metavar="K",
        help="publish once, however often it is repeated",
    )
    parser.add_argument("--skip-history", action="store_true", help="send it without storing")
    add_key(parser)


def publish(arguments: argparse.Namespace) -> int:
    """Publishes. Raises ConfigError, and Failed when it did not happen, or may not have."""
    params: dict[str, Any] = {"channel": arguments.channel}
    if arguments.bytes:
        params["b64data"] = b64encode(_bytes(arguments.data)).decode()
    else:
        params["data"] = _data(arguments.data)
    if arguments.idempotency_key is not None:
        params["idempotency_key"] = arguments.idempotency_key
    if arguments.skip_history:
        params["skip_history"] = True
    result = call(arguments, "publish", params)
    if arguments.json:
        text = json_printable(json.dumps(result, ensure_ascii=False))
    elif "offset" in result:
        with understood(arguments.url):
            text = printable(f"offset {result['offset']}  epoch {result['epoch']}")
    else:
        text = "sent, not stored"
    print(text)
    return 0


def _data(text: str) -> Any:
    """The JSON value in `text`, or on standard input. Raises Failed."""
    try:
        return json.loads(sys.stdin.read() if text == "-" else text, parse_constant=_refuse)
    except (ValueError, RecursionError):
        raise Failed("what is published must be JSON: a text is written '\"text\"'") from None


def _bytes(text: str) -> bytes:
    return sys.stdin.buffer.read() if text == "-" else text.encode()


def _refuse(name: str) -> None:
    raise ValueError(f"{name} is not JSON")
