"""Makes one call to a running server's HTTP API."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final, NoReturn

from roomcast.cli.terminal import Failed
from roomcast.config import load

if TYPE_CHECKING:
    from roomcast.cli.post import Answer

__all__ = ["CALL_TIMEOUT_S", "add_key", "call", "decoded", "understood"]

# When DynamoDB does not answer, a publication may take a minute. After that its outcome is known.
CALL_TIMEOUT_S: Final = 70.0
# Characters of what somebody else says: enough for one line.
_REASON_CHARS_MAX: Final = 200
_OK: Final = 200
_UNAUTHORIZED: Final = 401


def add_key(parser: argparse._ActionsContainer) -> None:
    """Adds the argument for the API's key."""
    parser.add_argument("--key", type=_key, help="of the HTTP API (default: http_api.key)")


def _key(found: str) -> str:
    if not found.isprintable():
        # Not quoted, as secrets are not.
        raise argparse.ArgumentTypeError("must be text without control characters")
    return found


def call(arguments: argparse.Namespace, method: str, params: Mapping[str, Any]) -> dict[str, Any]:
    """The result of `method`.

    Raises ConfigError, and Failed with the error of the server or of the connection.
    """
    from http.client import HTTPException

    from roomcast.cli.post import post

    key = (
        arguments.key
        if arguments.key is not None
        else load(arguments.config, os.environ).http_api.key
    )
    url = arguments.url.rstrip("/")
    headers = {"Content-Type": "application/json"}
    if key:
        # The library takes texts for Latin-1, and the server for UTF-8.
        headers["X-API-Key"] = key.encode().decode("latin-1")
    try:
        answer = post(f"{url}/api/{method}", headers, json.dumps(params).encode(), CALL_TIMEOUT_S)
    except TimeoutError as error:
        raise Failed(f"{url}: no answer within {CALL_TIMEOUT_S:.0f} s") from error
    except (OSError, HTTPException) as error:
        raise Failed(f"{url}: {_reason(error)}") from error
    if answer.status != _OK:
        raise Failed(_refused(answer, url))
    match _document(answer.body):
        case None:
            raise Failed(
                f"{url}/api/{method} answers with what is no JSON: is it a roomcast server?"
            )
        case {"result": dict(result)}:
            return result
        case {"error": {"code": int(code), "message": str(message)}}:
            raise Failed(f"{method}: {message} ({code})")
    raise Failed(_strange(url))


@contextmanager
def understood(url: str) -> Iterator[None]:
    """For the reading of an answer of the server at `url`. Raises Failed if it is none of ours."""
    try:
        yield
    except (ValueError, LookupError, TypeError, AttributeError, OverflowError) as error:
        raise Failed(_strange(url)) from error


def decoded(text: str | bytes) -> Any:
    """The value of a JSON text. Raises ValueError, also for what is nested too deeply."""

    def refuse(name: str) -> NoReturn:
        raise ValueError(f"{name} is not JSON")

    try:
        return json.loads(text, parse_constant=refuse)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error


def _document(body: bytes) -> Any:
    """The value in `body`; None if it is no JSON."""
    try:
        return decoded(body)
    except ValueError:
        return None


def _strange(url: str) -> str:
    return f"{url} answers as no roomcast server does"


def _reason(error: Exception) -> str:
    """The reason why the server could not be reached, without numbers."""
    cause = getattr(error, "reason", error)
    told = str(getattr(cause, "strerror", None) or cause or type(error).__name__)
    return told[:_REASON_CHARS_MAX]


def _refused(answer: Answer, url: str) -> str:
    if answer.status == _UNAUTHORIZED:
        return (
            f"{url} wants another key (--key, http_api.key or ROOMCAST_HTTP_API_KEY), or has none "
            "itself: its HTTP API is off"
        )
    if answer.elsewhere:
        elsewhere = answer.elsewhere[:_REASON_CHARS_MAX]
        return f"{url} redirects to {elsewhere}: give that address if it is meant"
    match _document(answer.body):
        case {"error": {"message": str(why)}}:
            pass
        case _:
            why = answer.reason
    return f"{url} refuses the request: {why[:_REASON_CHARS_MAX]} (HTTP {answer.status})"
