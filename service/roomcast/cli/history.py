"""`roomcast history`: prints the stored publications of a channel, through a server's HTTP API."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Final

from roomcast.cli.arguments import COUNT_MAX, Subparsers, add_command, add_server, text, whole
from roomcast.cli.moments import Since, since, until
from roomcast.cli.server_api import add_key, call, understood
from roomcast.cli.terminal import has_colours, table
from roomcast.observe.redaction import json_printable, printable

__all__ = ["add", "bounds", "cells"]

_EXAMPLES: Final = """\
examples:
  roomcast history news
  roomcast history news --limit 5 --reverse
  roomcast history news --since 41 --json | jq .publications
  roomcast history news --since 2h
  roomcast history news --since 2026-11-29T10:00Z --until 2026-11-29T10:05Z

Prints what the channel shows of its history, the oldest first, as much as the server gives at once;
`roomcast export` gets all of it. The key as for `roomcast publish`.
"""


def add(commands: Subparsers) -> None:
    """Adds `roomcast history`."""
    parser = add_command(
        commands,
        "history",
        history,
        "print what a channel keeps, through a server's HTTP API",
        _EXAMPLES,
    )
    add_server(parser)
    add_key(parser)
    parser.add_argument(
        "--limit",
        type=whole(1, COUNT_MAX),
        default=COUNT_MAX,
        metavar="N",
        help="publications at most (default: what the server gives at once)",
    )
    parser.add_argument("--reverse", action="store_true", help="the newest first")
    parser.add_argument(
        "--since",
        type=since,
        metavar="WHEN",
        help="begin next to this offset; or with what was appended since then: 2h (ago), "
        "2026-11-29T10:00Z",
    )
    parser.add_argument(
        "--until", type=until, metavar="WHEN", help="end before what was appended then or later"
    )
    parser.add_argument(
        "--epoch",
        type=text,
        default="",
        metavar="E",
        help="that an offset of --since counts in (default: the present one)",
    )


def history(arguments: argparse.Namespace) -> int:
    """Prints publications. Raises ConfigError and Failed."""
    params = {
        "channel": arguments.channel,
        "limit": arguments.limit,
        "reverse": arguments.reverse,
        **bounds(arguments.since, arguments.until, arguments.epoch),
    }
    result = call(arguments, "history", params)
    if arguments.json:
        text = json_printable(json.dumps(result, ensure_ascii=False, indent=2))
    else:
        with understood(arguments.url):
            text = _text(result)
    print(text)
    return 0


def bounds(since: Since | None, until: Since | None, epoch: str) -> dict[str, Any]:
    """The parameters of the API's `history` for the publications between. `epoch`: of an offset."""
    now_ms, params = _now_ms(), dict[str, Any]()
    if since is not None and since.offset is not None:
        params["since"] = {"offset": since.offset, "epoch": epoch}
    elif since is not None:
        params["since_time"] = since.time_ms(now_ms)
    if until is not None:
        params["until_time"] = until.time_ms(now_ms)
    return params


def _now_ms() -> int:
    return time.time_ns() // 1_000_000


def _text(result: Mapping[str, Any]) -> str:
    if not result["publications"]:
        return printable(f"Nothing is shown; the top is offset {result['offset']}.")
    colours = (lambda _: "") if has_colours(sys.stdout) else None
    rows = list(map(cells, result["publications"]))
    return table(("OFFSET", "TIME", "USER", "DATA"), rows, colours)


def _data(publication: Mapping[str, Any]) -> str:
    if "b64data" in publication:
        return printable(f"base64 {publication['b64data']}")
    return json_printable(json.dumps(publication.get("data"), ensure_ascii=False))


def cells(publication: Mapping[str, Any]) -> Sequence[str]:
    """One publication in four texts: offset, time, user, data."""
    published_ms = publication.get("time", 0)
    at = datetime.fromtimestamp(published_ms / 1000, UTC) if published_ms else None
    return (
        printable(str(publication.get("offset", ""))),
        f"{at:%Y-%m-%dT%H:%M:%SZ}" if at else "",
        printable(str(publication.get("info", {}).get("user", ""))),
        _data(publication),
    )
