"""The description of an API method: its parameters, its result and its handler."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final, Protocol

import orjson

from roomcast.concurrency import Turns
from roomcast.frozen import frozen
from roomcast.gateway.api.fields import INFO, Parameter, Schema, not_base64
from roomcast.gateway.api.refusals import Refusal
from roomcast.node.node import Node
from roomcast.wire.channels import ChannelOptions
from roomcast.wire.codes import Error
from roomcast.wire.publication import Json
from roomcast.wire.trace_context import TraceContext, parse_traceparent

__all__ = [
    "BODY_ROOM_BYTES",
    "CALLER",
    "COMMANDS_AT_A_TIME",
    "COMMANDS_A_TURN",
    "CONTAINERS_MAX",
    "ESCAPED_MAX",
    "TRACED_A_CALL",
    "ApiCall",
    "Begun",
    "Containers",
    "Handler",
    "Method",
    "Params",
    "Parents",
    "UnderWay",
    "decoded",
    "known",
    "payload_bytes",
    "sized",
]

# Bytes of a request beside its payloads.
BODY_ROOM_BYTES: Final = 16 * 1024
# In whose line appends and histories of the API wait: who has the key is one caller. No client has
# this id, and a user's begins otherwise.
CALLER: Final = "api"
# How many times longer a payload may be in a request than in the log: JSON may escape each
# character, "é" as "\\u00e9".
ESCAPED_MAX: Final = 3

# Arrays and objects in one request, also in its base64. They cost most to decode: up to 10 ms at
# this bound. Each has an opening bracket, so a count of brackets suffices before decoding. Brackets
# within strings count too.
CONTAINERS_MAX: Final = 65_536
# Commands of batches, and channels of broadcasts, in one turn of the event loop: some milliseconds.
COMMANDS_A_TURN: Final = 16
# Those of them that one request carries out without giving way.
COMMANDS_AT_A_TIME: Final = 8
# Publications of one request that are traced because its caller is. Each has up to ten spans.
TRACED_A_CALL: Final = 8
assert COMMANDS_A_TURN % COMMANDS_AT_A_TIME == 0, "a turn has room for whole ones"

Params = Mapping[str, Any]


class Containers:
    """The arrays and objects that one request may still have; CONTAINERS_MAX at first."""

    def __init__(self) -> None:
        self._left = CONTAINERS_MAX

    def take(self, text: bytes) -> None:
        """Counts those of `text`, before it is decoded. Raises Refusal beyond the bound."""
        count = text.count(b"[") + text.count(b"{")
        if count > self._left:
            raise Refusal(
                Error.LIMIT_EXCEEDED,
                f"the request has more than {CONTAINERS_MAX} arrays and objects",
            )
        self._left -= count


class Parents:
    """The parent of a request's publications in their traces: what its `traceparent` headers name.

    Two of them are none. The TRACED_A_CALL first publications have it. The others are not traced:
    one request may hold a thousand.
    """

    __slots__ = ("_left", "_parent")

    def __init__(self, headers: Sequence[str] = ()) -> None:
        self._parent = parse_traceparent(headers[0]) if len(headers) == 1 else None
        self._left = TRACED_A_CALL

    def next(self) -> TraceContext | None:
        """The parent of the next publication; None = the request names none."""
        if self._parent is not None and self._parent.sampled:
            if not self._left:
                return replace(self._parent, sampled=False)
            self._left -= 1
        return self._parent


@frozen
class ApiCall:
    """The context of one call.

    `received_ms`: when the first bytes of the request were read (wall clock).

    `late`: the request may have waited for a long time before it was read. `payload_bytes_max`:
    bytes of a publication's data. `containers`: those that were not taken yet.
    `turns`: those of the node, each for COMMANDS_AT_A_TIME. `parents`: of its publications, in
    their traces. `key`: the idempotency key of stored publications that bring none; None = they
    have none.
    """

    node: Node
    received_ms: int
    late: bool
    payload_bytes_max: int
    containers: Containers
    turns: Turns
    parents: Parents = field(default_factory=Parents)
    key: str | None = None


class UnderWay:
    """Paces the commands of one request: their turns, and how many are under way at once.

    Several in a row share one turn: to wait for a turn costs as much as half of a publication.
    """

    __slots__ = ("_free", "_freed", "_left", "_turns")

    def __init__(self, turns: Turns, at_once: int) -> None:
        self._turns = turns
        # Commands that may still begin beside those under way.
        self._free = at_once
        # Done when one of these is, while `begin` waits for that.
        self._freed: asyncio.Future[None] | None = None
        # Commands that may still be begun in this turn.
        self._left = 0

    async def begin(self) -> None:
        """Waits until the next command may begin. It is under way until `end`.

        One call at a time.
        """
        if not self._free:
            self._freed = asyncio.get_running_loop().create_future()
            await self._freed
            self._left = 0
        self._free -= 1
        if self._left:
            self._left -= 1
        else:
            await self.turn()

    async def turn(self) -> None:
        """Waits for a turn, whose first command is the one that waits."""
        await self._turns.wait()
        self._left = COMMANDS_AT_A_TIME - 1

    def end(self, _future: object = None) -> None:
        """One command is done. Also for `add_done_callback`."""
        self._free += 1
        if self._freed is not None and not self._freed.done():
            self._freed.set_result(None)

    def waited(self) -> None:
        """The request waited for something else: its next command takes another turn."""
        self._left = 0


class Begun(Protocol):
    """A command that was begun, and is done later."""

    @property
    def future(self) -> asyncio.Future[Any] | None:
        """Done when the command is. None = it is done, and its result is empty."""

    @property
    def size(self) -> int:
        """Bytes of its payload."""

    def may_precede(self, asked: Params) -> bool:
        """Whether the same method with `asked` may begin before this one is done, and still have
        its effect after it.
        """

    async def result(self) -> Mapping[str, Json]:
        """Raises Refusal."""


Handler = Callable[[ApiCall, Params], Awaitable[Mapping[str, Json]]]


@dataclass(frozen=True, slots=True)
class Method:
    """One method. `result`: JSON Schema of the value that the handler returns.

    `payloads`: the number of payloads that a request may hold. `room_bytes`: bytes of a request
    beside them. `begin` does the same as the handler, and does not wait for the result.

    The handler and `begin` raise only Refusal.
    """

    name: str
    summary: str
    fields: tuple[Parameter, ...]
    result: Schema
    handler: Handler
    doc: str = ""
    payloads: int = 1
    room_bytes: int = BODY_ROOM_BYTES
    begin: Callable[[ApiCall, Params], Begun] | None = None

    def body_bytes_max(self, payload_bytes_max: int) -> int:
        """The greatest length of a request, in bytes."""
        return self.payloads * payload_bytes_max * ESCAPED_MAX + self.room_bytes


def known(call: ApiCall, channel: str) -> ChannelOptions:
    """The options of `channel`. Raises Refusal when its namespace is not configured."""
    options = call.node.services.policy.rules.options(channel)
    if options is None:
        raise Refusal(Error.UNKNOWN_CHANNEL)
    return options


def decoded(call: ApiCall, name: str, text: bytes) -> Json:
    """The value of the parameter `name`, which is BASE64 of `text`.

    Raises Refusal when it is not JSON, nested too deeply, or more than the request may hold.
    """
    call.containers.take(text)
    try:
        value = orjson.loads(text)
    except ValueError:
        raise not_base64(name) from None
    return INFO.read(value, name)


def sized(call: ApiCall, name: str, payload: Json) -> Json:
    """`payload`, the value of the parameter `name`. Raises Refusal when it is too large."""
    payload_bytes(call, name, payload)
    return payload


def payload_bytes(call: ApiCall, name: str, payload: Json) -> int:
    """The bytes of `payload`, the value of the parameter `name`, as JSON.

    Raises Refusal when they are too many.
    """
    try:
        size = len(orjson.dumps(payload))
    except orjson.JSONEncodeError:
        raise Refusal(Error.BAD_REQUEST, f"{name} is nested too deeply") from None
    if size > call.payload_bytes_max:
        raise Refusal(Error.LIMIT_EXCEEDED, f"{name} is larger than {call.payload_bytes_max} bytes")
    return size
