"""What the Lambdas behind the tables' streams share: clients whose calls end in time, the answer to
the event source mapping, and the line of a batch with trouble.

It needs only boto3 and the standard library, so that their zips need no build.
"""

from __future__ import annotations

import json
import math
import os
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final
from urllib.parse import urlsplit

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

__all__ = [
    "AWS_DOMAINS",
    "CALL_S_MAX",
    "CONNECTIONS_MAX",
    "NotOfAws",
    "bounded_client",
    "lowest",
    "reason_of",
    "report",
    "response",
    "time_left",
]

# AWS answers in tens of ms. A call that hangs is cut off well before the function's own time-out,
# because the event source mapping sends the records again anyway.
_CONNECT_TIMEOUT_S: Final = 2
_READ_TIMEOUT_S: Final = 5
_ATTEMPTS_MAX: Final = 3
# Seconds of one call with all its attempts and the pauses between them, and of the answer after it.
# With less time left no further call is made: the function would be ended, and what it had sent
# would be sent again.
CALL_S_MAX: Final = _ATTEMPTS_MAX * (_CONNECT_TIMEOUT_S + _READ_TIMEOUT_S) + 4
# Connections that a client keeps, as the SDK has it by itself.
CONNECTIONS_MAX: Final = 10
# Ends of the names of AWS's own endpoints, as service/roomcast/aws/errors.py has them: that module
# is not in the zips. Each of them gives requests an id, which emulators need not do.
AWS_DOMAINS: Final = (".amazonaws.com", ".amazonaws.com.cn", ".api.aws")
_HTTP_REDIRECTS: Final = 300
_METRICS_NAMESPACE: Final = "roomcast"


class NotOfAws(BotoCoreError):  # type: ignore[misc]  # the SDK has no types
    """A success that AWS did not answer, but whoever stands between."""

    fmt = "the answer has no request id"


def bounded_client(service: str, connections_max: int = CONNECTIONS_MAX) -> Any:
    """A client of `service` whose calls end within CALL_S_MAX, and raise NotOfAws for the answers
    of others. Region and endpoint are as boto3 finds them.
    """
    config = Config(
        connect_timeout=_CONNECT_TIMEOUT_S,
        read_timeout=_READ_TIMEOUT_S,
        max_pool_connections=connections_max,
        retries={"mode": "standard", "total_max_attempts": _ATTEMPTS_MAX},
    )
    client = boto3.client(service, config=config)
    if (urlsplit(client.meta.endpoint_url).hostname or "").endswith(AWS_DOMAINS):
        client.meta.events.register("after-call", _demand_request_id)
    return client


def _demand_request_id(http_response: Any, parsed: Any, **_: Any) -> None:
    """Raises NotOfAws for a success without AWS's id. An error is raised by the SDK itself."""
    about = parsed.get("ResponseMetadata", {})
    if http_response.status_code < _HTTP_REDIRECTS and not about.get("RequestId"):
        raise NotOfAws


def time_left(context: Any) -> Callable[[], float]:
    """Returns the seconds that this invocation may still take, each time it is called. `context`:
    the runtime's; None = there is no bound.
    """
    if context is None:
        return lambda: math.inf
    return lambda: float(context.get_remaining_time_in_millis()) / 1000


def response(failed: Iterable[str]) -> dict[str, list[dict[str, str]]]:
    """The partial batch response for the mapping. Its one identifier is the lowest sequence number
    of those that `failed`: the mapping sends that record and all later ones again.
    """
    sequences = tuple(failed)
    if not sequences:
        return {"batchItemFailures": []}
    return {"batchItemFailures": [{"itemIdentifier": lowest(sequences)}]}


def lowest(sequences: Iterable[str]) -> str:
    """The lowest sequence number, as the event has it.

    They are compared as numbers: their length varies, and some emulators pad them. Raises
    ValueError for other text.
    """
    return min(sequences, key=int)


def reason_of(error: Exception) -> str:
    """The part of an SDK error that may be logged: its message can quote the request."""
    if isinstance(error, ClientError):
        return str(error.response.get("Error", {}).get("Code", "ClientError"))
    return type(error).__name__


def report(name: str, counts: Mapping[str, int], about: Mapping[str, Any]) -> None:
    """Log the event `name`, as one line in CloudWatch's embedded metric format. Those of `counts`
    that are not 0 are metrics. `about`: what else the line says, which has no payloads and no
    names.
    """
    metrics = [{"Name": each, "Unit": "Count"} for each, count in counts.items() if count]
    line = {
        "_aws": {
            "Timestamp": int(time.time() * 1000),
            "CloudWatchMetrics": [
                {
                    "Namespace": _METRICS_NAMESPACE,
                    # Deployments of one account share the namespace.
                    "Dimensions": [["FunctionName"]],
                    "Metrics": metrics,
                }
            ],
        },
        "FunctionName": os.environ.get("AWS_LAMBDA_FUNCTION_NAME", "none"),
        "event": name,
        **counts,
        **about,
    }
    # Not through `logging`: the runtime's handler puts a prefix before the line, which is then no
    # metric.
    sys.stdout.write(json.dumps(line, separators=(",", ":")) + "\n")
    sys.stdout.flush()
