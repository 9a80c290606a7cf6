"""Makes one call to a running server's HTTP API."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

from roomcast.cli.arguments import text
from roomcast.cli.terminal import Failed
from roomcast.config import load

if TYPE_CHECKING:
    from urllib.error import HTTPError

__all__ = ["CALL_TIMEOUT_S", "add_key", "call"]

# When DynamoDB does not answer, a publication may take a minute. After that its outcome is known.
CALL_TIMEOUT_S: Final = 70.0
# Bytes of an answer. No command asks for more than that.
_ANSWER_BYTES_MAX: Final = 16 * 1024 * 1024
_UNAUTHORIZED: Final = 401


def add_key(parser: argparse._ActionsContainer) -> None:
    """Adds the argument for the API's key."""
    parser.add_argument("--key", type=text, help="of the HTTP API (default: http_api.key)")


def call(arguments: argparse.Namespace, method: str, params: Mapping[str, Any]) -> Any:
    """The result of `method`.

    Raises ConfigError, and Failed with the error of the server or of the connection.
    """
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
    """The reason why the server could not be reached, without numbers."""
    cause = getattr(error, "reason", error)
    return str(getattr(cause, "strerror", None) or cause or type(error).__name__)


def _refused(error: HTTPError, url: str) -> str:
    if error.code == _UNAUTHORIZED:
        return (
            f"{url} wants another key (--key, http_api.key or ROOMCAST_HTTP_API_KEY), or has none "
            "itself: its HTTP API is off"
        )
    try:
        why = json.loads(error.read(_ANSWER_BYTES_MAX))["error"]["message"]
    except (ValueError, KeyError, TypeError):
        why = error.reason
    return f"{url} refuses the request: {why} (HTTP {error.code})"
