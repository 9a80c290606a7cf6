"""`roomcast publish` and `roomcast history`: one call of a running server's HTTP API."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

from roomcast.cli.terminal import Failed, has_colours, table
from roomcast.config import load
from roomcast.observe.redaction import json_printable, printable

if TYPE_CHECKING:
    from urllib.error import HTTPError

__all__ = ["CALL_TIMEOUT_S", "EXAMPLES", "cells", "history", "publish"]

EXAMPLES: Final[Mapping[str, str]] = {
    "publish": """\
examples:
  roomcast publish news '{"text":"hi"}'
  roomcast publish news - < message.json
  roomcast publish news '"hi"' --idempotency-key order-7 --url http://10.0.0.5:8000

Prints where it is in the channel's log. The key is http_api.key, or ROOMCAST_HTTP_API_KEY; a server of
`roomcast dev` needs none. With an idempotency key the same command may be repeated, and publishes once.
""",
    "history": """\
examples:
  roomcast history news
  roomcast history news --limit 5 --reverse
  roomcast history news --since 41 --json | jq .publications

Prints what the channel shows of its history, the oldest first. The key as for `roomcast publish`.
""",
}

# A publication may take a minute when DynamoDB does not answer; then it is known whether it happened.
CALL_TIMEOUT_S: Final = 70.0
# The answer of an API that is asked for no more than an answer holds.
_ANSWER_BYTES_MAX: Final = 16 * 1024 * 1024
_UNAUTHORIZED: Final = 401


def publish(arguments: argparse.Namespace) -> int:
    """Publish. Raises ConfigError, and Failed when it did not happen, or may not have."""
    params: dict[str, Any] = {"channel": arguments.channel, "data": _data(arguments.data)}
    if arguments.idempotency_key is not None:
        params["idempotency_key"] = arguments.idempotency_key
    if arguments.skip_history:
        params["skip_history"] = True
    result = _call(arguments, "publish", params)
    if arguments.json:
        print(json_printable(json.dumps(result, ensure_ascii=False)))
    elif "offset" in result:
        print(f"offset {result['offset']}  epoch {result['epoch']}")
    else:
        print("sent, not stored")
    return 0


def history(arguments: argparse.Namespace) -> int:
    """Print publications. Raises ConfigError and Failed."""
    params = {"channel": arguments.channel, "limit": arguments.limit, "reverse": arguments.reverse}
    if arguments.since is not None:
        params["since"] = {"offset": arguments.since, "epoch": arguments.epoch}
    result = _call(arguments, "history", params)
    if arguments.json:
        print(json_printable(json.dumps(result, ensure_ascii=False, indent=2)))
    elif result["publications"]:
        colours = (lambda _: "") if has_colours(sys.stdout) else None
        print(
            table(
                ("OFFSET", "TIME", "USER", "DATA"),
                list(map(cells, result["publications"])),
                colours,
            )
        )
    else:
        print(f"Nothing is shown; the top is offset {result['offset']}.")
    return 0


def cells(publication: Mapping[str, Any]) -> Sequence[str]:
    """One publication in four texts: offset, time, user, data."""
    published_ms = publication.get("time", 0)
    at = datetime.fromtimestamp(published_ms / 1000, UTC) if published_ms else None
    return (
        str(publication.get("offset", "")),
        f"{at:%Y-%m-%dT%H:%M:%SZ}" if at else "",
        printable(str(publication.get("info", {}).get("user", ""))),
        json_printable(json.dumps(publication.get("data"), ensure_ascii=False)),
    )


def _data(text: str) -> Any:
    """The JSON value in `text`, or on standard input. Raises Failed."""
    try:
        return json.loads(sys.stdin.read() if text == "-" else text, parse_constant=_refuse)
    except (ValueError, RecursionError):
        raise Failed("what is published must be JSON: a text is written '\"text\"'") from None


def _refuse(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def _call(arguments: argparse.Namespace, method: str, params: Mapping[str, Any]) -> Any:
    """The result of `method`. Raises ConfigError, and Failed with what the server, or the way to it, says."""
    from http.client import HTTPException
    from urllib.error import HTTPError
    from urllib.request import Request, urlopen

    key = (
        arguments.key
        if arguments.key is not None
        else load(arguments.config, os.environ).http_api.key
    )
    address = f"{arguments.url.rstrip('/')}/api/{method}"
    request = Request(  # noqa: S310  # the command line takes http and https only
        address,
        json.dumps(params).encode(),
        {"Content-Type": "application/json", **({"X-API-Key": key} if key else {})},
    )
    try:
        with urlopen(request, timeout=CALL_TIMEOUT_S) as response:  # noqa: S310  # as above
            answer = json.loads(response.read(_ANSWER_BYTES_MAX))
    except HTTPError as error:
        with error:
            raise Failed(_refused(error, arguments.url)) from error
    except (OSError, HTTPException) as error:
        raise Failed(f"{arguments.url}: {_reason(error)}") from error
    except ValueError as error:
        raise Failed(f"{address} answers with what is no JSON: is it a roomcast server?") from error
    if "error" in answer:
        raise Failed(f"{method}: {answer['error']['message']} ({answer['error']['code']})")
    return answer["result"]


def _reason(error: Exception) -> str:
    """Why the server could not be reached, without numbers."""
    cause = getattr(error, "reason", error)
    return str(getattr(cause, "strerror", None) or cause or type(error).__name__)


def _refused(error: HTTPError, url: str) -> str:
    if error.code == _UNAUTHORIZED:
        return f"{url} wants another key (--key, http_api.key or ROOMCAST_HTTP_API_KEY), or has none itself: its HTTP API is off"
    try:
        told = json.loads(error.read(_ANSWER_BYTES_MAX))["error"]["message"]
    except (ValueError, KeyError, TypeError):
        told = error.reason
    return f"{url} refuses the request: {told} (HTTP {error.code})"
