"""What a method of the API is: its parameters, its result, and who carries it out."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import orjson

from roomcast.gateway.api.fields import Parameter, Schema
from roomcast.gateway.api.refusals import Refused
from roomcast.node.node import Node
from roomcast.wire.channels import ChannelOptions
from roomcast.wire.codes import Error
from roomcast.wire.publication import Json

__all__ = [
    "BODY_ROOM_BYTES",
    "ESCAPED_MAX",
    "ApiCall",
    "Handler",
    "Method",
    "Params",
    "known",
    "sized",
]

# What a request may hold besides payloads.
BODY_ROOM_BYTES: Final = 16 * 1024
# How much longer a payload may be in a request than as it is kept: JSON may escape each character,
# "é" as "\\u00e9".
ESCAPED_MAX: Final = 3

Params = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class ApiCall:
    """What a method works with.

    `received_ms`: when the first bytes of the request were read (wall clock).

    `late`: they may have waited for that for long. `payload_bytes_max`: of a publication's data.
    """

    node: Node
    received_ms: int
    late: bool
    payload_bytes_max: int


Handler = Callable[[ApiCall, Params], Awaitable[Mapping[str, Json]]]


@dataclass(frozen=True, slots=True)
class Method:
    """One method. `result`: what the handler returns, as JSON Schema.

    `payloads`: how many a request may hold.

    `room_bytes`: what a request may hold besides them. The handler raises Refused, and nothing
    else.
    """

    name: str
    summary: str
    fields: tuple[Parameter, ...]
    result: Schema
    handler: Handler
    doc: str = ""
    payloads: int = 1
    room_bytes: int = BODY_ROOM_BYTES

    def body_bytes_max(self, payload_bytes_max: int) -> int:
        """How large a request may be."""
        return self.payloads * payload_bytes_max * ESCAPED_MAX + self.room_bytes


def known(call: ApiCall, channel: str) -> ChannelOptions:
    """The options of `channel`. Raises Refused when its namespace is not configured."""
    options = call.node.services.policy.rules.options(channel)
    if options is None:
        raise Refused(Error.UNKNOWN_CHANNEL)
    return options


def sized(call: ApiCall, name: str, payload: Json) -> Json:
    """`payload`, which is parameter `name`. Raises Refused when it is too large."""
    try:
        size = len(orjson.dumps(payload))
    except orjson.JSONEncodeError:
        raise Refused(Error.BAD_REQUEST, f"{name} is nested too deeply") from None
    if size > call.payload_bytes_max:
        raise Refused(Error.LIMIT_EXCEEDED, f"{name} is larger than {call.payload_bytes_max} bytes")
    return payload
