"""Calls a running server's HTTP API: once, or again while it fails in passing."""

from __future__ import annotations

import argparse
import json
import os
import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final, NoReturn, TypeVar

from roomcast.backoff import FROM_HALF, Backoff
from roomcast.cli.terminal import Failed
from roomcast.config import load

if TYPE_CHECKING:
    from roomcast.cli.post import Answer

__all__ = [
    "CALL_TIMEOUT_S",
    "TRIES_MAX",
    "CallFailed",
    "Calls",
    "add_key",
    "batch",
    "call",
    "decoded",
    "error_of",
    "find_key",
    "understood",
]

# When DynamoDB does not answer, a publication may take a minute. After that its outcome is known.
CALL_TIMEOUT_S: Final = 70.0
# Characters of what somebody else says: enough for one line.
_REASON_CHARS_MAX: Final = 200
_OK: Final = 200
_UNAUTHORIZED: Final = 401
_SERVER_ERROR: Final = 500
# Errors of the API that may pass: AWS failed, and too much waits.
_PASSING: Final = (100, 111)
# How often in a row something is tried that fails in passing. Together the pauses are some 40 s: as
# long as an instance takes that another one replaces.
TRIES_MAX: Final = 8
_BACKOFF: Final = Backoff(0.5, 10.0, FROM_HALF)

T = TypeVar("T")


class CallFailed(Failed):
    """A call failed. `code`: the error of the API, 0 = none. `may_pass`: it may go well later."""

    def __init__(self, why: str, *, code: int = 0, may_pass: bool = False) -> None:
        super().__init__(why)
        self.code = code
        self.may_pass = may_pass


class Calls:
    """Makes calls again that fail in passing, TRIES_MAX times in a row at most, with pauses.

    Only for what may be done twice.
    """

    def __init__(self, sleep: Callable[[float], None] = time.sleep) -> None:
        self._sleep = sleep
        self._failures = 0

    def made(self, make: Callable[[], T]) -> T:
        """The result of `make`. Raises CallFailed."""
        while True:
            try:
                result = make()
            except CallFailed as error:
                self.failed(error)
            else:
                self._failures = 0
                return result

    def failed(self, error: CallFailed) -> None:
        """Pauses, if it may be made again. Raises `error` otherwise."""
        self._failures += 1
        if not error.may_pass or self._failures >= TRIES_MAX:
            raise error
        self._sleep(_BACKOFF.pause_s(self._failures, random.random()))

    def went_on(self) -> None:
        """What is done went on: the next failure is the first one in a row."""
        self._failures = 0


def add_key(parser: argparse._ActionsContainer) -> None:
    """Adds the argument for the API's key."""
    parser.add_argument("--key", type=_key, help="of the HTTP API (default: http_api.key)")


def _key(found: str) -> str:
    if not found.isprintable():
        # Not quoted, as secrets are not.
        raise argparse.ArgumentTypeError("must be text without control characters")
    return found


def find_key(arguments: argparse.Namespace) -> None:
    """Gives `arguments` the configured key, unless one is given. For many calls. Raises
    ConfigError.
    """
    if arguments.key is None:
        arguments.key = load(arguments.config, os.environ).http_api.key


def call(arguments: argparse.Namespace, method: str, params: Mapping[str, Any]) -> dict[str, Any]:
    """The result of `method`.

    Raises ConfigError, and CallFailed with the error of the server or of the connection.
    """
    match _answered(arguments, method, params):
        case {"result": dict(result)}:
            return result
        case answer:
            raise error_of(answer, method) or CallFailed(_strange(arguments.url))


def batch(arguments: argparse.Namespace, commands: Sequence[Any], **params: Any) -> list[Any]:
    """The replies to a batch of `commands`, one for each. Raises as `call` does."""
    match _answered(arguments, "batch", {"commands": commands, **params}):
        case {"replies": list(replies)} if len(replies) == len(commands):
            return replies
        case answer:
            raise error_of(answer, "batch") or CallFailed(_strange(arguments.url))


def error_of(answer: Any, what: str) -> CallFailed | None:
    """The error that `answer`, or a reply of a batch, tells. None = it tells none."""
    match answer:
        case {"error": {"code": int(code), "message": str(message)}}:
            return CallFailed(f"{what}: {message} ({code})", code=code, may_pass=code in _PASSING)
    return None


def _answered(arguments: argparse.Namespace, method: str, params: Mapping[str, Any]) -> Any:
    """The JSON value that the server answers with. Raises ConfigError and CallFailed."""
    from http.client import HTTPException

    from roomcast.cli.post import post

    find_key(arguments)
    url = arguments.url.rstrip("/")
    headers = {"Content-Type": "application/json"}
    if arguments.key:
        # The library takes texts for Latin-1, and the server for UTF-8.
        headers["X-API-Key"] = arguments.key.encode().decode("latin-1")
    try:
        answer = post(f"{url}/api/{method}", headers, json.dumps(params).encode(), CALL_TIMEOUT_S)
    except TimeoutError as error:
        why = f"{url}: no answer within {CALL_TIMEOUT_S:.0f} s"
        raise CallFailed(why, may_pass=True) from error
    except (OSError, HTTPException) as error:
        raise CallFailed(f"{url}: {_reason(error)}", may_pass=True) from error
    if answer.status != _OK:
        raise CallFailed(_refused(answer, url), may_pass=answer.status >= _SERVER_ERROR)
    document = _document(answer.body)
    if document is None:
        raise CallFailed(
            f"{url}/api/{method} answers with what is no JSON: is it a roomcast server?"
        )
    return document


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
