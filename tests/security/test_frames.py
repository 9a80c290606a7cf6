"""Whatever a client says, in either encoding: an answer or a close, no fault of ours,
and everybody else is served.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Hashable
from typing import Any, Final

import aiohttp
import pytest
from aiohttp import WSMsgType
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message
from hypothesis import given, settings
from hypothesis import strategies as st

from roomcast.wire.codes import Disconnect, Error
from roomcast.wire.commands import JSON_FRAMES
from roomcast.wire.protobuf import PROTOBUF_FRAMES
from roomcast.wire.protobuf_schema import SCHEMA, FieldShape, message_class
from tests.protobuf import command, read_messages
from tests.security.mutator import Mutator, commands, json_frames, protobuf_frames
from tests.security.target import DEADLINE_S, RULES, Target, target, watched
from tests.unit.worlds import SECRET, Fleet, settled
from tests.websocket import PROTOBUF

MUTANTS: Final = 1500
# Outcomes (answers, pushes, codes of a close) that differ;
# fewer mean that the mutants do not get past the parser.
OUTCOMES_MIN: Final = 25
# One of so many of the attacker's connections does not say `connect` by itself.
UNCONNECTED_EVERY: Final = 10
# Errors that clients are answered with, of different codes.
ERRORS_MIN: Final = 4
EXAMPLES: Final = 60
SEED: Final = 20_231
# What a close may say: the protocol's codes, and those of WebSocket for frames that break
# its rules or bounds.
CLOSES: Final = {each.value.code for each in Disconnect} | {1007, 1009}
CODES: Final = {each.value.code for each in Error}


class Attacker:
    """Sends one frame after another; connects again when it was closed."""

    def __init__(self, attacked: Target, *, protobuf: bool) -> None:
        self.attacked = attacked
        self.protobuf = protobuf
        self.connects = 0
        self._response: aiohttp.ClientWebSocketResponse | None = None

    async def say(self, frame: bytes) -> Hashable:
        """What came of it, until the server has read it to its end."""
        response = self._response
        if response is None or response.closed:
            response = self._response = await self._connected()
        kind = WSMsgType.BINARY if self.protobuf else WSMsgType.TEXT
        await response.send_frame(frame, kind)
        # What is read after the frame is answered after it.
        # Twice: a close comes a turn later than what was read with it,
        # and the next frame must not be lost to a connection that is about to end.
        await response.ping(b"1")
        came: set[Hashable] = set()
        while True:
            message = await response.receive(DEADLINE_S)
            if message.type is WSMsgType.PONG:
                if message.data == b"2":
                    return frozenset(came)
                await response.ping(b"2")
                continue
            if message.type is kind:
                came |= {_shape(line) for line in self._lines(message.data)}
                continue
            assert message.type in (WSMsgType.CLOSE, WSMsgType.CLOSED, WSMsgType.CLOSING), message
            await response.close()
            assert response.close_code in CLOSES, (frame, response.close_code)
            self._response = None
            return frozenset({*came, ("close", response.close_code)})

    async def close(self) -> None:
        if self._response is not None:
            await self._response.close()

    async def _connected(self) -> aiohttp.ClientWebSocketResponse:
        """Now and then without `connect`: what is said before it has to be looked at as well."""
        self.connects += 1
        protocols = (PROTOBUF,) if self.protobuf else ()
        response = await self.attacked.upgrade(protocols=protocols, autoping=False, autoclose=False)
        if self.connects % UNCONNECTED_EVERY:
            said: dict[str, Any] = {"id": 1, "connect": {"token": self.attacked.token()}}
            if self.protobuf:
                await response.send_bytes(command(said))
            else:
                await response.send_str(json.dumps(said))
        return response

    def _lines(self, data: Any) -> list[dict[str, Any]]:
        if self.protobuf:
            return read_messages(data)
        return [json.loads(line) for line in data.split("\n")]


def _shape(line: dict[str, Any]) -> Hashable:
    """What a line says, without whatever differs from one time to the next."""
    if "push" in line:
        return ("push", *sorted(line["push"].keys() - {"channel", "id"}))
    if "error" in line:
        assert line["error"]["code"] in CODES, line
        return ("error", line["error"]["code"])
    return tuple(
        (method, *(sorted(result) if isinstance(result, dict) else ()))
        for method, result in line.items()
        if method != "id"
    )


@pytest.mark.parametrize("protobuf", [False, True], ids=["json", "protobuf"])
async def test_mutated_frames_are_answered_or_refused(protobuf: bool) -> None:
    """A corpus of valid frames, mutated, to a node over a socket."""
    with watched() as logs:
        async with target() as attacked:
            said = commands(attacked.token(), attacked.subscription_token("$private"))
            mutator = Mutator((protobuf_frames if protobuf else json_frames)(said), SEED)
            attacker = Attacker(attacked, protobuf=protobuf)
            for frame in list(mutator.corpus):
                mutator.learn(frame, await attacker.say(frame))
            for _ in range(MUTANTS):
                mutant = mutator.mutant()
                mutator.learn(mutant, await attacker.say(mutant))
            await attacker.close()
            await attacked.still_serves()
    assert logs.faults() == []
    outcomes = {
        each for outcome in mutator.outcomes if isinstance(outcome, frozenset) for each in outcome
    }
    assert (
        len([each for each in outcomes if isinstance(each, tuple) and each[0] == "error"])
        >= ERRORS_MIN
    )
    assert ("close", Disconnect.BAD_REQUEST.value.code) in outcomes
    assert ("push", "pub") in outcomes
    assert len(mutator.outcomes) >= OUTCOMES_MIN
    # Some connections outlived several of them.
    assert attacker.connects < MUTANTS * 0.95


# ---- what nobody has thought of

texts = st.sampled_from(
    ["", "room", "plain:a", "shut:a", "$private", "no:where", "a#ann", "a#", "#", ":", "\x01x"]
)
values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.sampled_from([2**31, 2**32 - 1, 2**32, 2**63, 2**64, -1])
    | texts
    | st.text(max_size=20),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(texts | st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=8,
)
METHODS: Final = {
    name: field.of for name, field in SCHEMA["Command"].items() if field.shape is FieldShape.MESSAGE
}


@st.composite
def spoken(draw: st.DrawFn) -> bytes:
    """A command in JSON whose names are right and whose values may be anything."""
    method = draw(st.sampled_from(sorted(METHODS)))
    fields = SCHEMA[METHODS[method]]
    params: Any = {name: draw(values | texts) for name in fields if draw(st.booleans())}
    if "channel" in fields and draw(st.booleans()):
        params["channel"] = draw(texts)
    if draw(st.integers(0, 9)) == 0:
        params = draw(values)
    number = draw(st.integers(1, 50) | values)
    # A line may also be no object at all, and the same thing may be deeper than anything
    # can be written again.
    said: Any = draw(st.one_of(*[st.just({"id": number, method: params})] * 9, values))
    line = json.dumps(said)
    if draw(st.integers(0, 19)) == 0:
        depth = draw(st.sampled_from([100, 500, 1100, 4000]))
        line = line.replace("1", "[" * depth + "]" * depth, 1)
    return line.encode()


@st.composite
def filled(draw: st.DrawFn, name: str = "Command") -> Message:
    """A message with any of its fields, as another library would write it."""
    message = message_class(name)()
    chosen: dict[str, list[FieldDescriptor]] = {}
    for field in message.DESCRIPTOR.fields:
        # A command is of one kind, as a rule.
        chosen.setdefault(
            "request" if name == "Command" and field.message_type else field.name, []
        ).append(field)
    for alternatives in chosen.values():
        field = draw(st.sampled_from(alternatives))
        if name == "Command" or draw(st.booleans()):
            _fill(draw, message, field)
    return message


def _fill(draw: st.DrawFn, message: Message, field: FieldDescriptor) -> None:
    kind = field.type
    if field.message_type is not None and field.message_type.GetOptions().map_entry:
        of = field.message_type.fields_by_name["value"].message_type
        for key in draw(st.lists(texts, max_size=2)):
            if of is None:
                getattr(message, field.name)[key] = draw(texts)
            else:
                getattr(message, field.name)[key].CopyFrom(draw(filled(of.name)))
    elif hasattr(many := getattr(message, field.name), "extend"):
        # The nodes of a filter, or its values.
        if field.message_type is None:
            many.extend(draw(st.lists(texts, max_size=3)))
        else:
            many.extend(draw(st.lists(filled(field.message_type.name), max_size=2)))
    elif field.message_type is not None:
        getattr(message, field.name).CopyFrom(draw(filled(field.message_type.name)))
    elif kind == FieldDescriptor.TYPE_BOOL:
        setattr(message, field.name, draw(st.booleans()))
    elif kind == FieldDescriptor.TYPE_STRING:
        setattr(
            message, field.name, draw(texts | st.text(st.characters(codec="utf-8"), max_size=20))
        )
    elif kind == FieldDescriptor.TYPE_BYTES:
        encoded = values.map(json.dumps).map(str.encode)
        setattr(message, field.name, draw(encoded | st.binary(max_size=20)))
    else:
        bits = 64 if kind in (FieldDescriptor.TYPE_INT64, FieldDescriptor.TYPE_UINT64) else 32
        is_unsigned = kind in (FieldDescriptor.TYPE_UINT32, FieldDescriptor.TYPE_UINT64)
        low, high = (0, 2**bits - 1) if is_unsigned else (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
        setattr(message, field.name, draw(st.integers(low, high) | st.integers(max(low, -1), 50)))


def _with_length(message: Message) -> bytes:
    encoded: bytes = message.SerializeToString()
    length = bytearray()
    left = len(encoded)
    while left > 0x7F:
        length.append(left & 0x7F | 0x80)
        left >>= 7
    return bytes([*length, left]) + encoded


async def _carried_out(frames: list[bytes], *, protobuf: bool, connected: bool) -> None:
    """A client says `frames`; the node has no fault, and serves another one afterwards."""
    fleet = Fleet()
    node = fleet.node(insecure=True, secret=SECRET, rules=RULES, message_size_limit=4096)
    with watched() as logs:
        client = node.open()
        if connected:
            await client.connect()
        for frame in frames:
            if client.socket.closed_with is None:
                await client.connection.receive(frame, PROTOBUF_FRAMES if protobuf else JSON_FRAMES)
        await settled()
        assert client.socket.closed_with is None or isinstance(
            client.socket.closed_with, Disconnect
        )
        for line in client.socket.lines:
            _shape(line)
        node.assembly.node.closed(client.connection)
        honest = await node.client()
        assert await honest.publish("plain:after", 1) == {}
        await node.close()
        await asyncio.sleep(0)
    assert logs.faults() == []


@settings(max_examples=EXAMPLES)
@given(st.lists(spoken(), min_size=1, max_size=12), st.booleans())
async def test_commands_with_any_values_in_json(frames: list[bytes], connected: bool) -> None:
    await _carried_out(frames, protobuf=False, connected=connected)


@settings(max_examples=EXAMPLES)
@given(st.lists(filled().map(_with_length), min_size=1, max_size=12), st.booleans())
async def test_commands_with_any_values_in_protobuf(frames: list[bytes], connected: bool) -> None:
    await _carried_out(frames, protobuf=True, connected=connected)


@settings(max_examples=EXAMPLES)
@given(st.lists(st.binary(max_size=100), min_size=1, max_size=5), st.booleans())
async def test_frames_of_any_bytes(frames: list[bytes], protobuf: bool) -> None:
    await _carried_out(frames, protobuf=protobuf, connected=True)
