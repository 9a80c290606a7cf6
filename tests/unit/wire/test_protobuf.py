"""service/roomcast/wire/protobuf.py: whatever is said in JSON can be said in
Protobuf, and means the same.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from base64 import b64decode
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import orjson
import pytest
from centrifuge.codecs import _ProtobufCodec as Sdk
from hypothesis import example, given
from hypothesis import strategies as st

from roomcast.delivery.envelope import checked_pubs, pack, parse, record_text
from roomcast.delivery.forms import Payload, whole
from roomcast.log.channel_log import decode_publications
from roomcast.log.item import LogItem
from roomcast.wire import commands, encoding, protobuf
from roomcast.wire.codes import Disconnect, Error, Unsubscribe
from roomcast.wire.commands import (
    COMMANDS_MAX,
    DATA_AND_TEXT_BYTES_MAX,
    HISTORY_METHOD,
    LINE_END,
    PUBLISH_METHOD,
    Bounds,
    Command,
    ConnectRequest,
    HistoryRequest,
    InvalidRequest,
    OversizedRequest,
    PingRequest,
    Pong,
    ProtocolViolation,
    PublishRequest,
    Request,
    RpcPublishRequest,
    SendRequest,
    SubscribeRequest,
    text_to_keep,
)
from roomcast.wire.encoding import (
    PING,
    disconnect_push,
    encode_called_history,
    encode_error,
    encode_lines_reply,
    encode_member,
    encode_presence_reply,
    encode_push,
    encode_reply,
    encode_stored,
    encode_told,
    publication_push,
    refresh_push,
    sent_of,
    subscribe_push,
    subscribe_result,
    told_push,
    unsubscribe_push,
)
from roomcast.wire.protobuf import PROTOBUF_FRAMES, encode_messages
from roomcast.wire.protobuf_schema import SCHEMA, FieldShape
from roomcast.wire.publication import ClientInfo, Publication, StreamPosition
from roomcast.wire.tags_filter import NODES_MAX, filter_of
from tests.frames import decode_frame, decode_messages, decoded
from tests.protobuf import as_it_is, command, parsed, read_messages, without_empty

ROOT: Final = Path(__file__).parents[3]

TEXT = st.text(max_size=6) | st.sampled_from(["\n", "\u2028", "\ufffe", '"', "\x00", "😀"])
NUMBERS = st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False, allow_infinity=False)
JSON = st.recursive(
    st.none() | st.booleans() | NUMBERS | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=6,
)
SCALARS: Final = {
    "bool": st.booleans(),
    "int32": st.integers(-(2**31), 2**31 - 1),
    "int64": st.integers(-(2**63), 2**63 - 1),
    "uint32": st.integers(0, 2**32 - 1),
    "uint64": st.integers(0, 2**64 - 1),
    "string": TEXT | st.just(PUBLISH_METHOD),
}
LEAVES: Final = st.builds(
    lambda leaf, value: {"key": "k", **leaf, **value},
    st.sampled_from([{"cmp": "eq", "val": "v"}, {"cmp": "in", "vals": ["v", "w"]}, {"cmp": "ex"}]),
    st.sampled_from([{}, {"key": ""}, {"val": "x"}]),
)
FILTERS: Final = st.recursive(
    LEAVES,
    lambda inner: st.builds(
        lambda op, nodes: {"op": op, "nodes": nodes},
        st.sampled_from(["and", "or", "not", "", "?"]),
        st.lists(inner, min_size=1, max_size=2),
    ),
    max_leaves=4,
)


def values(message: str) -> st.SearchStrategy[dict[str, Any]]:
    """The JSON of any message of the table."""
    if message == "FilterNode":
        return FILTERS
    fields: dict[str, st.SearchStrategy[Any]] = {}
    for name, field in SCHEMA[message].items():
        match field.shape:
            case FieldShape.SCALAR:
                fields[name] = SCALARS[field.of]
            case FieldShape.JSON:
                fields[name] = JSON
            case FieldShape.TEXTS:
                fields[name] = st.dictionaries(TEXT, TEXT, max_size=2)
            case FieldShape.MESSAGE:
                fields[name] = values(field.of)
            case FieldShape.LIST:
                fields[name] = st.lists(values(field.of), max_size=2)
            case FieldShape.MAP:
                fields[name] = st.dictionaries(TEXT, values(field.of), max_size=2)
    made = st.fixed_dictionaries({}, optional=fields)
    return made.map(_with_differences_of_text) if message == "Publication" else made


def _with_differences_of_text(publication: dict[str, Any]) -> dict[str, Any]:
    return (
        publication | {"data": str(publication.get("data"))}
        if publication.get("delta")
        else publication
    )


METHODS: Final = [name for name in SCHEMA["Command"] if name != "id"]
COMMANDS: Final = st.sampled_from(METHODS).flatmap(
    lambda method: st.builds(
        lambda number, params: {"id": number, method: params},
        st.integers(1, 2**32 - 1),
        values(SCHEMA["Command"][method].of),
    )
)


def decode(fields: Mapping[str, Any]) -> Command:
    [decoded] = decode_messages(command(fields))
    return decoded


def without_text(request: Request) -> Request:
    """What is kept of a payload's bytes has nothing that stands for it in JSON; nor has data of no
    bytes.
    """
    if not isinstance(request, PublishRequest):
        return request
    return replace(request, text=None) if request.data != b"" else InvalidRequest("publish")


# ---- commands


@given(COMMANDS)
@example({"id": 1, "publish": {"channel": "c", "data": None}})
@example({"id": 1, "history": {"channel": "c", "since": {}, "limit": -1}})
@example(
    {
        "id": 1,
        "rpc": {
            "method": PUBLISH_METHOD,
            "data": {"channel": "c", "data": 1, "idempotency_key": "k"},
        },
    }
)
def test_a_command_means_what_its_json_means(fields: dict[str, Any]) -> None:
    [meant] = decode_frame(json.dumps(fields))
    decoded = decode(fields)
    assert (decoded.id, without_text(decoded.request)) == (meant.id, meant.request)


@given(st.lists(COMMANDS | st.just({}), min_size=1, max_size=4))
def test_a_frame_holds_several_commands(several: list[dict[str, Any]]) -> None:
    decoded = decode_messages(b"".join(command(fields) for fields in several))
    meant = decode_frame("\n".join(json.dumps(fields) for fields in several))
    assert [(each.id, without_text(each.request)) for each in decoded] == [
        (each.id, each.request) for each in meant
    ]


def test_a_command_is_as_large_as_its_message() -> None:
    encoded = command({"id": 1, "publish": {"channel": "c", "data": "x" * 100}})
    assert decode_messages(encoded)[0].size == len(encoded) - 1
    large = command({"id": 1, "publish": {"channel": "c", "data": "x" * 100_000}})
    assert decode_messages(large)[0].size == len(large) - 3


def test_what_the_sdk_sends_is_understood() -> None:
    sent = Sdk.encode_commands(
        [
            {"id": 1, "connect": {"token": "t", "name": "python", "headers": {"a": "b"}}},
            {"id": 2, "subscribe": {"channel": "c", "recover": True, "epoch": "e", "offset": 7}},
            {},
            {"send": {"data": "eyJhIjoxfQ=="}},
        ]
    )
    connect, subscribe, pong, send = decode_messages(sent)
    assert (connect.id, connect.request) == (
        1,
        commands.ConnectRequest("t", name="python", headers={"a": "b"}),
    )
    since = StreamPosition("e", 7)
    assert subscribe.request == SubscribeRequest("c", since=since)
    assert pong == Command(0, Pong(), 0)
    assert (send.id, send.request) == (0, SendRequest({"a": 1}))


def test_an_empty_message_is_a_pong() -> None:
    assert decode_messages(b"\x00") == [Command(0, Pong(), 0)]
    # A length need not be written in as few bytes as possible.
    assert decode_messages(b"\x80\x00\x00") == [Command(0, Pong(), 0)] * 2


def test_a_frame_holds_so_many_commands_and_no_more() -> None:
    assert len(decode_messages(b"\x00" * COMMANDS_MAX)) == COMMANDS_MAX
    with pytest.raises(ProtocolViolation, match="too many"):
        decode_messages(b"\x00" * (COMMANDS_MAX + 1))


PING_COMMAND: Final = b"\x04\x08\x01\x5a\x00"
# Frames that no client of this protocol sends, and what is wrong with them.
MALFORMED: Final[Mapping[str, bytes]] = {
    "an empty frame": b"",
    "a length that is cut off": b"\x80",
    "a length that is cut off behind a command": PING_COMMAND + b"\xff",
    "a length of eleven bytes": b"\x80" * 10 + b"\x00",
    "a length beyond the frame": b"\x05\x08\x01\x5a\x00",
    "a length of nearly 64 bits": b"\xff" * 9 + b"\x7f",
    "a message that is cut off": b"\x03\x08\x01\x5a",
    "a field that is longer than its message": b"\x04\x08\x01\x5a\x09",
    "a field with number 0": b"\x02\x00\x00",
    "a wire type that there is not": b"\x02\x0f\x00",
    "a group that does not end": b"\x01\x0b",
    "a group that did not begin": b"\x01\x0c",
    "groups in groups without end": b"\xd0\x0f" + b"\x9b\x06" * 1000,
    "a text that is not UTF-8": b"\x08\x08\x01\x3a\x04\x0a\x02\xff\xfe",
    "a command without id": b"\x02\x5a\x00",
    "a command without a request": b"\x02\x08\x01",
    "a command of which nothing is known": b"\x03\xa0\x06\x01",
}


@pytest.mark.parametrize("frame", MALFORMED.values(), ids=MALFORMED)
def test_what_is_not_of_this_protocol_is_refused(frame: bytes) -> None:
    with pytest.raises(ProtocolViolation):
        decode_messages(frame)
    assert decode_messages(PING_COMMAND) == [Command(1, PingRequest(), 4)]


def test_unknown_fields_are_skipped() -> None:
    known = command({"id": 1, "unsubscribe": {"channel": "c"}})
    unknown = (
        b"\xa0\x06\x01" + b"\xaa\x06\x02hi" + b"\xad\x06\x00\x00\x00\x00" + b"\xb3\x06\xb4\x06"
    )
    [one, other] = decode_messages(
        known + bytes([len(known) - 1 + len(unknown)]) + known[1:] + unknown
    )
    assert one.request == other.request == commands.UnsubscribeRequest("c")


def test_a_field_of_another_type_is_an_unknown_field() -> None:
    """The channel's name as a number: as Protobuf has it, and as if there were none."""
    [decoded] = decode_messages(b"\x06\x08\x01\x32\x02\x08\x05")
    assert decoded.request == commands.UnsubscribeRequest("")


@pytest.mark.parametrize(
    "data",
    [
        b"\xff\xfe",
        b"{",
        b"{} {}",
        b"nan",
        b"NaN",
        b"1e999",
        b'"\xff"',
        b"[" * 100_000,
        b"\x00",
        b" ",
    ],
)
def test_bytes_that_are_no_json_are_for_publications_alone(data: bytes) -> None:
    published, sent, called = decode_messages(
        command({"id": 7, "publish": {"channel": "c", "data": data}})
        + command({"send": {"data": data}})
        + command({"id": 8, "rpc": {"method": "sum", "data": data}})
    )
    assert (published.id, published.request) == (7, PublishRequest("c", data))
    assert isinstance(published.request, PublishRequest)
    assert published.request.raw == data
    assert sent.request == InvalidRequest("send")
    assert (called.id, called.request) == (8, InvalidRequest("rpc"))


def test_no_bytes_are_no_null() -> None:
    none = decode({"id": 1, "publish": {"channel": "c", "data": b""}}).request
    null = decode({"id": 1, "publish": {"channel": "c", "data": b"null"}}).request
    assert none == PublishRequest("c", b"")
    assert null == PublishRequest("c", None)
    below = decode({"id": 1, "publish": {"channel": "c", "data": b"{", "type": -1}}).request
    assert below == InvalidRequest("publish")


def test_data_may_have_white_space_and_half_an_emoji() -> None:
    for data, value in (
        (b' {\n"text": "a\\u00e9" }\r\n', "a\u00e9"),
        (b'{ "text":"a\\ud83d"}', "a\ufffd"),
    ):
        said = decode({"id": 1, "publish": {"channel": "c", "data": data}}).request
        # Half a character is mended for everybody.
        kept = None if b"\\ud83d" in data else data.decode()
        assert said == PublishRequest("c", {"text": value}, text=kept)


WHITE: Final = st.text(st.sampled_from(" \n\r\t"), max_size=3)


@st.composite
def written(draw: st.DrawFn) -> bytes:
    """A JSON value as somebody may write it: spaced, escaped, with numbers of one's own."""
    text = json.dumps(
        draw(JSON),
        ensure_ascii=draw(st.booleans()),
        indent=draw(st.none() | st.integers(0, 2)),
        separators=draw(st.sampled_from([None, (",", ":"), (" ,\t", ": ")])),
    )
    text = draw(WHITE) + text + draw(WHITE)
    return draw(
        st.sampled_from([text, "1.0", "1e2", "-0", "12345678901234567890123", '{"a":1,"a":2}'])
    ).encode()


@given(written(), st.booleans())
def test_bytes_come_out_as_they_went_in(raw: bytes, older: bool) -> None:
    """From the client through the log, the Lambda and the topic to another client;
    JSON gets the same value on one line.
    """
    said = decode({"id": 1, "publish": {"channel": "c", "data": raw}}).request
    assert isinstance(said, PublishRequest)
    published = Publication(said.data, text=said.text)
    pubs = f"[{encode_stored(published)}]"
    item = LogItem("c", 1, 1, "e", pubs, "b", "n", 1, 1)
    assert json.loads(pubs)[0]["data"] == said.data, "what nodes of older releases read"
    [record] = parse(next(pack([record_text(item, checked_pubs(item))]))[0], orjson.loads).records
    assert record.publications is not None
    for found in (*record.publications, *decode_publications(pubs, 1)):
        sent = sent_of(found, 0)
        line = publication_push("c", whole(sent, Payload.BYTES))
        [message] = parsed(encode_messages(line))
        assert message.push.pub.data == raw
        line = raw.translate(None, b"\r\n") if said.text is not None else orjson.dumps(said.data)
        assert sent.line == b'{"data":%b,"offset":1}' % line
        if older:
            # Without the text, as an older node would have written it.
            plain = sent_of(replace(found, text=None), 0)
            [message] = parsed(encode_messages(publication_push("c", plain.line)))
            assert json.loads(message.push.pub.data) == said.data


def test_a_text_that_is_not_of_the_data_does_not_reach_clients_in_json() -> None:
    """Another program may have written it into the log."""
    for text in ("}}", "2", '{"a":1}\n{}', "[" * 600 + "]" * 600, "NaN"):
        sent = sent_of(Publication({"a": 1}, offset=1, text=text), 0)
        assert sent.line == b'{"data":{"a":1},"offset":1}'


def test_bytes_are_kept_beside_the_data_only_where_they_differ_and_fit() -> None:
    assert text_to_keep(b'{"a":1}', {"a": 1}) is None
    assert text_to_keep(b'{"a": 1}', {"a": 1}) == '{"a": 1}'
    # This is no half of a character, but text that looks like one.
    assert text_to_keep(b' "\\\\ud83d"', "\\ud83d") == ' "\\\\ud83d"'
    assert text_to_keep(b' "\\\\\\ud83d"', "\\\ufffd") is None
    data = "x" * (DATA_AND_TEXT_BYTES_MAX // 2 - 5)
    # Both with quotation marks, of which the text's own are escaped.
    raw = f' "{data}"'.encode()
    assert len(raw) - 1 + len(orjson.dumps(raw.decode())) == DATA_AND_TEXT_BYTES_MAX - 1
    assert text_to_keep(raw, data) == raw.decode()
    assert text_to_keep(b" " + raw, data) == " " + raw.decode()
    assert text_to_keep(b"  " + raw, data) is None
    deep: Any = 1
    for _ in range(300):
        deep = [deep]
    assert text_to_keep(b" " + json.dumps(deep).encode(), deep) is None


def test_a_publish_with_a_key() -> None:
    call = {"channel": "c", "data": 1, "idempotency_key": "k"}
    decoded = decode({"id": 1, "rpc": {"method": PUBLISH_METHOD, "data": call}})
    assert decoded.request == RpcPublishRequest("c", 1, "k")


def test_history_by_a_call_is_json_in_its_data() -> None:
    call = {"channel": "c", "limit": 2, "since_time": 7}
    decoded = decode({"id": 1, "rpc": {"method": HISTORY_METHOD, "data": call}})
    assert decoded.request == HistoryRequest("c", 2, rpc=True, since_ms=7)
    told = {"epoch": "e", "offset": 1, "since_offset": 0}
    line = encode_called_history(3, [b'{"data":{"a":1},"offset":1}'], told)
    [reply] = read_messages(encode_messages(line))
    assert reply["id"] == 3
    assert reply["rpc"]["data"] == {
        "publications": [{"data": {"a": 1}, "offset": 1}],
        **told,
    }


def test_what_is_too_large_is_not_decoded_but_for_its_id(monkeypatch: pytest.MonkeyPatch) -> None:
    encoded = command({"id": 300, "publish": {"channel": "c", "data": b'"%b"' % (b"x" * 1000)}})
    size = len(encoded) - 2
    [taken] = decoded(encoded, PROTOBUF_FRAMES, Bounds(size, 128))
    assert (taken.id, type(taken.request)) == (300, PublishRequest)
    monkeypatch.setattr(protobuf, "_COMMAND", None)
    assert decoded(encoded, PROTOBUF_FRAMES, Bounds(size - 1, 128)) == [
        Command(300, OversizedRequest(), size)
    ]
    # Without an id, and with one that is none.
    for message in (b"\x3a" + bytes(1000), b"\x08\x00" + bytes(1000), b"\x08" + b"\xff" * 1000):
        with pytest.raises(ProtocolViolation):
            PROTOBUF_FRAMES.decode(message, Bounds(999, 128))


def test_subs_of_a_connect_have_a_bound_that_is_looked_at_first(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    encoded = command(
        {"id": 1, "connect": {"subs": {f"c{index}": {"recover": True} for index in range(4)}}}
    )
    [most] = decoded(encoded, PROTOBUF_FRAMES, Bounds(1000, 4))
    assert isinstance(most.request, ConnectRequest)
    assert len(most.request.since) == 4
    monkeypatch.setattr(protobuf, "_read", None)
    assert decoded(encoded, PROTOBUF_FRAMES, Bounds(1000, 3)) == [
        Command(1, InvalidRequest("connect"), len(encoded) - 1)
    ]
    # Nor where there is no id to answer to.
    unanswerable = command({"connect": {"subs": {f"c{index}": {} for index in range(4)}}})
    with pytest.raises(ProtocolViolation):
        decoded(unanswerable, PROTOBUF_FRAMES, Bounds(1000, 3))


def test_nodes_of_a_filter_have_a_bound_that_is_looked_at_first(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    leaf = {"key": "k", "cmp": "ex"}
    several = {"op": "or", "nodes": [leaf] * (NODES_MAX - 1)}
    most = decode({"id": 1, "subscribe": {"channel": "c", "tf": several}}).request
    assert isinstance(most, SubscribeRequest)
    assert most.filter == filter_of(several)
    # In `connect` nobody reads them.
    subs = {"c": {"recover": True, "tf": {"op": "not", "nodes": [several]}}}
    asked = decode({"id": 1, "connect": {"subs": subs}}).request
    assert isinstance(asked, ConnectRequest)
    assert list(asked.since) == ["c"]
    monkeypatch.setattr(protobuf, "_read", None)
    for tf in ({"op": "not", "nodes": [several]}, {"op": "or", "nodes": [{}] * 30_000}):
        refused = decode({"id": 1, "subscribe": {"channel": "c", "tf": tf}})
        assert refused.request == InvalidRequest("subscribe")
        with pytest.raises(ProtocolViolation):
            decode({"subscribe": {"channel": "c", "tf": tf}})


@given(st.binary(max_size=40))
def test_any_bytes_are_commands_or_a_violation(frame: bytes) -> None:
    try:
        commands = decode_messages(frame)
    except ProtocolViolation:
        return
    assert commands


@given(
    st.lists(COMMANDS, min_size=1, max_size=3),
    st.lists(st.tuples(st.integers(0), st.integers(0, 255)), max_size=4),
    st.integers(0, 5),
)
def test_damaged_frames_are_commands_or_a_violation(
    several: list[dict[str, Any]], damage: list[tuple[int, int]], cut: int
) -> None:
    frame = bytearray(b"".join(command(fields) for fields in several))
    for at, byte in damage:
        frame[at % len(frame)] = byte
    try:
        commands = decode_messages(bytes(frame[: len(frame) - cut]))
    except ProtocolViolation:
        return
    assert all(isinstance(each, Command) for each in commands)


def test_the_parser_in_python_refuses_the_same() -> None:
    """Where there is no compiled one, Protobuf's own code in Python parses,
    which raises other errors.
    """
    program = f"""
from google.protobuf.internal import api_implementation
from roomcast.wire.commands import ProtocolViolation
from tests.frames import decode_messages
assert api_implementation.Type() == "python"
for frame in {list(MALFORMED.values())!r}:
    try:
        print(decode_messages(frame))
    except ProtocolViolation:
        print("refused")
print(decode_messages({PING_COMMAND!r}))
"""
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=ROOT,
        env={**os.environ, "PROTOCOL_BUFFERS_PYTHON_IMPLEMENTATION": "python"},
        capture_output=True,
        text=True,
        timeout=50,
    )
    assert done.returncode == 0, done.stderr
    *refused, ping = done.stdout.splitlines()
    assert refused == ["refused"] * len(MALFORMED)
    assert "PingRequest()" in ping


# ---- replies and pushes

INFOS = st.builds(ClientInfo, TEXT, TEXT, st.none() | JSON, st.none() | st.just({"a": 1}))
PUBLICATIONS = st.builds(
    Publication,
    data=JSON,
    offset=st.integers(0, 2**53 - 1),
    info=st.none() | INFOS,
    tags=st.none() | st.dictionaries(TEXT, TEXT, min_size=1, max_size=2),
    time=st.integers(0, 2**53 - 1),
)
POSITIONS = st.builds(StreamPosition, TEXT, st.integers(0, 2**53 - 1))
IDS = st.integers(1, 2**32 - 1)
RESULTS: Final = [name for name in SCHEMA["Reply"] if name not in ("id", "error", "push")]


@given(
    st.lists(
        st.sampled_from(RESULTS).flatmap(
            lambda method: st.builds(
                lambda number, result: encode_reply(number, method, result),
                IDS,
                values(SCHEMA["Reply"][method].of),
            )
        )
        | st.builds(encode_error, IDS, st.sampled_from(Error))
        | st.builds(
            lambda number, pubs, at: encode_lines_reply(
                number,
                "history",
                [sent_of(pub, 0).line for pub in pubs],
                {"epoch": at.epoch, "offset": at.offset},
            ),
            IDS,
            st.lists(PUBLICATIONS, max_size=2),
            POSITIONS,
        )
        | st.builds(
            lambda number, pubs, found: encode_called_history(
                number, [sent_of(pub, 0).line for pub in pubs], {"epoch": "e", **found}
            ),
            IDS,
            st.lists(PUBLICATIONS, max_size=2),
            st.dictionaries(st.sampled_from(["since_offset", "until_offset"]), IDS),
        )
        | st.builds(
            lambda number, pubs, at, flag: encode_reply(
                number,
                "subscribe",
                subscribe_result(
                    position=at,
                    recoverable=flag,
                    publications=[sent_of(pub, 0).line for pub in pubs],
                    recovered=flag,
                    was_recovering=flag,
                ),
            ),
            IDS,
            st.lists(PUBLICATIONS, max_size=2),
            st.none() | POSITIONS,
            st.booleans(),
        )
        | st.builds(lambda pub: publication_push("c", sent_of(pub, 0).line), PUBLICATIONS)
        | st.builds(
            lambda channel, kind, info: told_push(channel, encode_told(kind, info)),
            TEXT | st.integers(1, 2**53),
            st.sampled_from(["join", "leave"]),
            INFOS,
        )
        | st.builds(lambda pub: publication_push(7, sent_of(pub, 0).line), PUBLICATIONS)
        | st.builds(
            lambda number, infos: encode_presence_reply(
                number, b"{" + b",".join(encode_member(each) for each in infos) + b"}"
            ),
            IDS,
            st.lists(INFOS, max_size=2, unique_by=lambda info: info.client),
        )
        | st.builds(disconnect_push, st.sampled_from(Disconnect))
        | st.builds(unsubscribe_push, TEXT, st.sampled_from(Unsubscribe))
        | st.builds(subscribe_push, TEXT, values("Subscribe"))
        | st.builds(refresh_push, values("Refresh"))
        | st.builds(encode_push, st.just("refresh"), values("Refresh"))
        | st.just(PING),
        min_size=1,
        max_size=4,
    )
)
def test_whatever_is_said_in_lines_is_said_in_messages(lines: list[bytes]) -> None:
    as_it_is(LINE_END.join(lines))


def test_every_line_that_can_be_written_is_in_that_test() -> None:
    written = {
        name for name in encoding.__all__ if name.startswith("encode_") or name.endswith("_push")
    }
    # For the log, and for a part of a line.
    others = {"encode_stored", "encode_member", "encode_told"}
    assert written - others == {
        "disconnect_push",
        "encode_called_history",
        "encode_error",
        "encode_lines_reply",
        "encode_presence_reply",
        "encode_push",
        "encode_reply",
        "publication_push",
        "refresh_push",
        "subscribe_push",
        "told_push",
        "unsubscribe_push",
    }


@given(values("Push"))
def test_every_push_of_the_table_goes_through(push: dict[str, Any]) -> None:
    as_it_is(orjson.dumps({"push": push}))


@given(JSON)
def test_data_is_the_text_of_its_json(data: Any) -> None:
    line = publication_push("c", sent_of(Publication(data), 0).line)
    [reply] = Sdk.decode_replies(encode_messages(line))
    assert reply["push"]["channel"] == "c"
    # The SDK has bytes as base64.
    assert b64decode(reply["push"]["pub"]["data"]) == orjson.dumps(data)


def test_null_is_data_too() -> None:
    line = publication_push("c", sent_of(Publication(None, offset=1), 0).line)
    [said] = read_messages(encode_messages(line))
    assert said == {"push": {"channel": "c", "pub": {"data": None, "offset": 1}}}


def test_a_ping_is_an_empty_message() -> None:
    assert encode_messages(PING) == b"\x00"


def test_an_empty_result_is_there() -> None:
    for method in RESULTS:
        [reply] = Sdk.decode_replies(encode_messages(encode_reply(3, method, {})))
        assert reply == {"id": 3, method: {}}


@pytest.mark.parametrize("size", [1, 100, 127, 128, 129, 16_383, 16_384, 2_097_151, 2_097_152])
def test_messages_of_any_size_can_be_told_apart(size: int) -> None:
    line = encode_reply(1, "rpc", {"data": "x" * size})
    assert as_it_is(LINE_END.join([line, PING, line]))


def test_what_a_field_cannot_hold_does_not_keep_the_rest_back() -> None:
    published = Publication("x", offset=7, time=2**63, tags={"a": "b"})
    [said] = read_messages(encode_messages(publication_push("c", sent_of(published, 0).line)))
    assert said["push"]["pub"] == {"data": "x", "offset": 7, "tags": {"a": "b"}}


def test_what_the_table_does_not_know_is_left_out() -> None:
    line = orjson.dumps({"id": 1, "publish": {"news": 1}, "news": {}})
    assert read_messages(encode_messages(line)) == [{"id": 1, "publish": {}}]
    with pytest.raises(AssertionError, match="add it to"):
        without_empty({"id": 1, "publish": {"news": 1}})


def test_data_that_is_nested_as_deeply_as_json_may_be() -> None:
    data: Any = 1
    for _ in range(250):
        data = [data]
    line = encode_lines_reply(
        1, "history", [sent_of(Publication(data), 0).line], {"epoch": "e", "offset": 1}
    )
    assert b"[" * 250 in encode_messages(line)
