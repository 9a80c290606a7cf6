"""service/roomcast/wire/json.py: frames to commands,
and replies and pushes to lines that SDKs can read.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from roomcast.wire import json as protocol
from roomcast.wire.codes import Error, Unsubscribe
from roomcast.wire.json import (
    COMMANDS_MAX,
    LINE_END,
    PING,
    PUBLISH_METHOD,
    Bounds,
    Command,
    ConnectRequest,
    HistoryRequest,
    InvalidRequest,
    OversizedRequest,
    PingRequest,
    Pong,
    PresenceRequest,
    PresenceStatsRequest,
    ProtocolViolation,
    PublishRequest,
    RefreshRequest,
    Request,
    RpcPublishRequest,
    RpcRequest,
    SendRequest,
    SubRefreshRequest,
    SubscribeRequest,
    Unencodable,
    UnsubscribeRequest,
    decode_json,
    decode_payload,
    decode_publications,
    encode_error,
    encode_lines_reply,
    encode_reply,
    encode_stored,
    info_push,
    publication_push,
    subscribe_result,
    unsubscribe_push,
)
from roomcast.wire.publication import ClientInfo, MalformedPublication, Publication, StreamPosition
from roomcast.wire.sent import encode_publication
from tests.frames import decode_frame, decoded

TEXT = st.text(max_size=6) | st.sampled_from(["\n", "\r", "\u2028", "\ufffe", '"', "\x00", "😀"])
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63)
    | st.floats(allow_nan=False, allow_infinity=False)
    | TEXT
)
JSON = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=6,
)
INFOS = st.builds(
    ClientInfo,
    TEXT,
    TEXT,
    JSON.filter(lambda value: value is not None),
    st.none() | st.just({"a": 1}),
)
PUBLICATIONS = st.builds(
    Publication,
    data=JSON,
    offset=st.integers(0, 2**53 - 1),
    info=st.none() | INFOS,
    tags=st.none() | st.dictionaries(TEXT, TEXT, min_size=1, max_size=2),
    time=st.integers(0, 2**53 - 1),
)
METHODS = [
    "connect",
    "ping",
    "subscribe",
    "unsubscribe",
    "publish",
    "presence",
    "presence_stats",
    "history",
    "rpc",
    "send",
    "refresh",
    "sub_refresh",
]


def line(method: str, params: Any, command_id: int = 1) -> str:
    return json.dumps({"id": command_id, method: params})


def decode(method: str, params: Any) -> Request:
    (command,) = decode_frame(line(method, params))
    assert command.id == 1
    return command.request


def parsed(written: bytes) -> dict[str, Any]:
    """The object of one line. Fails unless it is one line of strict JSON."""
    assert b"\n" not in written
    assert b"\r" not in written

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    value = json.loads(written.decode(), parse_constant=refuse)
    assert isinstance(value, dict)
    return value


# ---- every command

C = StreamPosition


@pytest.mark.parametrize(
    "method, params, request_",
    [
        ("connect", {}, ConnectRequest()),
        (
            "connect",
            {
                "token": "t",
                "data": {"a": 1},
                "name": "js",
                "version": "1",
                "headers": {},
                "flag": 1,
            },
            ConnectRequest("t", {"a": 1}, "js", "1"),
        ),
        # As centrifuge-python sends it: everything, also what is empty.
        (
            "connect",
            {"token": "", "data": None, "name": "python", "version": "", "subs": {}},
            ConnectRequest(name="python"),
        ),
        ("subscribe", {"channel": "c"}, SubscribeRequest("c")),
        (
            "subscribe",
            {"channel": "c", "recover": False, "epoch": "", "offset": 0, "flag": 1},
            SubscribeRequest("c", numbered=True),
        ),
        # JS leaves out what is empty: recovery from the beginning of an unknown epoch.
        ("subscribe", {"channel": "c", "recover": True}, SubscribeRequest("c", since=C("", 0))),
        (
            "subscribe",
            {
                "channel": "c",
                "token": "t",
                "positioned": True,
                "recoverable": True,
                "join_leave": True,
                "recover": True,
                "epoch": "e",
                "offset": 2**53 - 1,
                "flag": 3,
                "type": 1,
                "delta": "fossil",
                "tf": {"op": ""},
            },
            SubscribeRequest(
                "c", "t", True, True, True, C("e", 2**53 - 1), True, 1, True, "fossil"
            ),
        ),
        (
            "subscribe",
            {"channel": "c", "epoch": "e", "offset": 5, "flag": 2},
            SubscribeRequest("c", reject_unrecovered=True),
        ),
        ("subscribe", {}, SubscribeRequest("")),
        ("unsubscribe", {"channel": "c"}, UnsubscribeRequest("c")),
        ("publish", {"channel": "c", "data": {"x": [1]}}, PublishRequest("c", {"x": [1]})),
        ("publish", {"channel": "c", "data": None}, PublishRequest("c", None)),
        ("publish", {"channel": "c", "data": 0, "type": 1}, PublishRequest("c", 0, 1)),
        ("presence", {"channel": "c"}, PresenceRequest("c")),
        ("presence_stats", {"channel": "c"}, PresenceStatsRequest("c")),
        ("history", {"channel": "c"}, HistoryRequest("c")),
        (
            "history",
            {"channel": "c", "limit": 0, "since": None, "reverse": False},
            HistoryRequest("c"),
        ),
        (
            "history",
            {"channel": "c", "limit": -1, "reverse": True},
            HistoryRequest("c", -1, None, True),
        ),
        (
            "history",
            {"channel": "c", "limit": 5, "since": {"offset": 3, "epoch": "e"}, "reverse": True},
            HistoryRequest("c", 5, C("e", 3), True),
        ),
        ("history", {"channel": "c", "since": {}}, HistoryRequest("c", 0, C("", 0))),
        ("rpc", {"method": "m", "data": [1]}, RpcRequest("m", [1])),
        ("rpc", {}, RpcRequest("", None)),
        (
            "rpc",
            {"method": "roomcast.other", "data": {"channel": "c"}},
            RpcRequest("roomcast.other", {"channel": "c"}),
        ),
        (
            "rpc",
            {"method": PUBLISH_METHOD, "data": {"channel": "c", "data": None}},
            RpcPublishRequest("c", None),
        ),
        (
            "rpc",
            {
                "method": PUBLISH_METHOD,
                "data": {"channel": "c", "data": [1], "idempotency_key": "k"},
            },
            RpcPublishRequest("c", [1], "k"),
        ),
        ("send", {"data": 1}, SendRequest(1)),
        ("refresh", {"token": "t"}, RefreshRequest("t")),
        ("sub_refresh", {"channel": "c", "token": "t"}, SubRefreshRequest("c", "t")),
        ("ping", {}, PingRequest()),
    ],
)
def test_every_command_is_understood(
    method: str, params: dict[str, Any], request_: Request
) -> None:
    text = line(method, params, 7)
    assert decode_frame(text) == [Command(7, request_, len(text.encode()))]
    assert decode_frame(text.encode()) == decode_frame(text)


@pytest.mark.parametrize("method", METHODS)
def test_unknown_fields_are_no_fault(method: str) -> None:
    params = {"channel": "c", "data": 1, "later": {"x": [1]}}
    text = json.dumps({"id": 1, method: params, "later": 1})
    (command,) = decode_frame(text)
    assert not isinstance(command.request, InvalidRequest)


def test_the_first_method_in_the_protocols_order_wins() -> None:
    params = {"channel": "c", "data": 1}
    for index, method in enumerate(METHODS):
        fields = {"id": 1, **dict.fromkeys(reversed(METHODS[index:]), params)}
        (command,) = decode_frame(json.dumps(fields))
        assert command.request == decode(method, params)
    nulls = {"id": 1, "connect": None, "subscribe": {"channel": "c"}}
    assert decode_frame(json.dumps(nulls))[0].request == SubscribeRequest("c")


# ---- frames


@pytest.mark.parametrize("frame", ["{}", "{}\n", b"{}", b"{}\n", " {} "])
def test_an_empty_object_is_a_pong(frame: str | bytes) -> None:
    (command,) = decode_frame(frame)
    assert (command.id, command.request) == (0, Pong())


def test_several_commands_share_a_frame() -> None:
    lines = [
        line("connect", {}, 1),
        line("subscribe", {"channel": "c"}, 2),
        "{}",
        '{"send":{"data":"ä"}}',
    ]
    for end in ("", "\n"):
        commands = decode_frame("\n".join(lines) + end)
        assert [command.id for command in commands] == [1, 2, 0, 0]
        assert [command.request for command in commands] == [
            ConnectRequest(),
            SubscribeRequest("c"),
            Pong(),
            SendRequest("ä"),
        ]
        assert [command.size for command in commands] == [len(each.encode()) for each in lines]


def test_a_frame_takes_a_connect_and_all_subscriptions_of_an_sdk() -> None:
    assert COMMANDS_MAX > 129
    assert len(decode_frame("\n".join(["{}"] * COMMANDS_MAX))) == COMMANDS_MAX
    with pytest.raises(ProtocolViolation):
        decode_frame("\n".join(["{}"] * (COMMANDS_MAX + 1)))


@pytest.mark.parametrize("command_id", [1, 2**32 - 1])
def test_ids_have_32_bits(command_id: int) -> None:
    assert decode_frame(line("ping", {}, command_id))[0].id == command_id


@pytest.mark.parametrize(
    "frame",
    [
        "",
        "\n",
        "{}\n\n{}",
        "\n{}",
        "x",
        "[]",
        "1",
        "null",
        '"{}"',
        '{"id":1}',
        '{"id":1,"unknown":{}}',
        '{"id":1,"ping":null}',
        '{"id":1,"ping":[]}',
        '{"id":1,"ping":1}',
        '{"id":1,"subscribe":"c"}',
        '{"ping":{}}',
        '{"id":0,"ping":{}}',
        '{"id":-1,"ping":{}}',
        '{"id":4294967296,"ping":{}}',
        '{"id":1.0,"ping":{}}',
        '{"id":"1","ping":{}}',
        '{"id":true,"ping":{}}',
        '{"id":1,"ping":{}}{"id":2,"ping":{}}',
        '{"id":1,"publish":{"channel":"c","data":NaN}}',
        '{"id":1,"publish":{"channel":"c","data":"\t"}}',
        "\ud800",
        b"\xff",
        b'{"id":1,"publish":{"channel":"c","data":"\xed\xa0\x80"}}',
        "[" * 100_000,
        '{"id":1,"publish":{"channel":"c","data":' + "[" * 2000 + "]" * 2000 + "}}",
        # What no double holds, no client of JavaScript could be told.
        '{"id":1,"publish":{"channel":"c","data":1e999}}',
        '{"id":1,"publish":{"channel":"c","data":[-1e400]}}',
    ],
    ids=lambda frame: ascii(frame[:40]),
)
def test_what_is_no_frame_of_the_protocol(frame: str | bytes) -> None:
    with pytest.raises(ProtocolViolation):
        decode_frame(frame)


@pytest.mark.parametrize(
    "sent, received",
    [
        ('"hi \\ud83d"', "hi \ufffd"),
        ('"\\udc00\\ud83d\\ude00"', "\ufffd\U0001f600"),
        ('{"\\ud800": ["\\ud800"]}', {"\ufffd": ["\ufffd"]}),
        ('"\\ud800\\uD800\\udBff"', "\ufffd\ufffd\ufffd"),
        ('"\\ude00\\udfff\\uDc00"', "\ufffd\ufffd\ufffd"),
        ('"\\\\ud800\\ud800"', "\\ud800\ufffd"),
        ('"\\\\\\ud800"', "\\\ufffd"),
    ],
)
def test_half_a_character_becomes_the_replacement_character(sent: str, received: object) -> None:
    """JavaScript cuts strings anywhere, and writes what it cut."""
    frame = f'{{"id":1,"publish":{{"channel":"c","data":{sent}}}}}\n{{"id":2,"ping":{{}}}}'
    published, ping = decode_frame(frame)
    assert published.request == PublishRequest("c", received)
    assert ping.request == PingRequest()


@given(
    st.text(
        st.sampled_from(["\\", "\ud800", "\udbff", "\udc00", "\udfff", "a", '"', "\n"]), max_size=8
    )
)
def test_halves_are_found_wherever_they_stand(text: str) -> None:
    """As JavaScript writes them, and as a page shows them. A backslash before an escape is text,
    and the rest is too.
    """
    written = json.dumps(text)
    shown = text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    if re.search(r"\\\\u[dD]", written):
        # Whether a pair begins there cannot always be seen from its second half;
        # then it may be refused.
        return
    assert decode_payload(written.encode()) == shown


# ---- what is too large, or too many


IDS_FIRST_OR_LAST = [
    b'{"id":7,"publish":{"channel":"c","data":"%b"}}',
    b' { "id" : 7 , "publish":{"channel":"c","data":"%b"}}',
    b'{"publish":{"channel":"c","data":"%b"},"id":7}',
    b'{"publish":{"channel":"c","data":"%b"} , "id" : 7 } ',
]


@pytest.mark.parametrize("text", IDS_FIRST_OR_LAST)
def test_what_is_too_large_is_not_decoded_but_for_its_id(
    text: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    at_limit = text % (b"x" * (1000 - len(text) + 2))
    assert len(at_limit) == 1000
    [taken] = decoded(at_limit, protocol.JSON_FRAMES, Bounds(1000, 128))
    assert (taken.id, type(taken.request)) == (7, PublishRequest)
    monkeypatch.setattr(protocol, "decode_payload", None)
    assert decoded(at_limit, protocol.JSON_FRAMES, Bounds(999, 128)) == [
        Command(7, OversizedRequest(), 1000)
    ]


@pytest.mark.parametrize(
    "text",
    [
        b'{"publish":{"channel":"c","data":{"x":"%b","id":7}}}',
        b'{"publish":{"channel":"c","data":"%b"},"id":0}',
        b'{"publish":{"channel":"c","data":"%b"},"id":4294967296}',
        b'{"publish":{"channel":"c","data":"%b"},"id":7,"x":{}}',
        b'{"send":{"data":"%b"}}',
        b"%b",
    ],
)
def test_what_is_too_large_and_has_no_id_to_be_found_is_a_violation(text: bytes) -> None:
    with pytest.raises(ProtocolViolation):
        decoded(text % (b"x" * 1000), protocol.JSON_FRAMES, Bounds(1000, 128))


def test_subs_of_a_connect_have_a_bound() -> None:
    subs = {f"c{index}": {"recover": True, "epoch": "e", "offset": 1} for index in range(4)}
    [most] = decoded(line("connect", {"subs": subs}), protocol.JSON_FRAMES, Bounds(1000, 4))
    assert isinstance(most.request, ConnectRequest)
    assert len(most.request.since) == 4
    [more] = decoded(line("connect", {"subs": subs}), protocol.JSON_FRAMES, Bounds(1000, 3))
    assert more.request == InvalidRequest("connect")


ARBITRARY_COMMANDS = st.fixed_dictionaries(
    {},
    optional={"id": st.integers(0, 5) | JSON, **dict.fromkeys(METHODS, JSON)},
)
FRAMES = st.one_of(
    st.binary(max_size=30),
    st.text(max_size=30),
    st.lists(ARBITRARY_COMMANDS.map(json.dumps), max_size=3).map("\n".join),
    st.tuples(
        st.sampled_from(METHODS),
        st.dictionaries(
            st.sampled_from(["channel", "data", "token", "since", "limit", "flag", "type"]), JSON
        ),
    ).map(lambda each: line(*each)),
)


@given(FRAMES)
@example("{}{}")
def test_a_frame_is_commands_or_a_violation(frame: str | bytes) -> None:
    try:
        commands = decode_frame(frame)
    except ProtocolViolation:
        return
    assert commands
    for command in commands:
        assert 0 <= command.id < 2**32
        assert command.id or isinstance(command.request, Pong | SendRequest)


# ---- fields of a wrong type: error 107, and the connection stays

FIELDS: dict[str, dict[str, str]] = {
    "connect": {"token": "text", "name": "text", "version": "text"},
    "subscribe": {
        "channel": "text",
        "token": "text",
        "epoch": "text",
        "offset": "count",
        "flag": "count",
        "type": "count",
        "recover": "flag",
        "positioned": "flag",
        "recoverable": "flag",
        "join_leave": "flag",
    },
    "unsubscribe": {"channel": "text"},
    "publish": {"channel": "text", "type": "count"},
    "presence": {"channel": "text"},
    "presence_stats": {"channel": "text"},
    "history": {"channel": "text", "limit": "int", "reverse": "flag", "since": "object"},
    "rpc": {"method": "text"},
    "refresh": {"token": "text"},
    "sub_refresh": {"channel": "text", "token": "text"},
}
WRONG: Mapping[str, list[Any]] = {
    "text": [1, True, [], {}],
    "count": ["1", 1.0, True, -1, [], {}],
    "int": ["1", 1.5, True, [], {}],
    "flag": [1, 0, "true", [], {}],
    "object": [1, "e", True, []],
}


@pytest.mark.parametrize(
    "method, name", [(method, name) for method, fields in FIELDS.items() for name in fields]
)
def test_a_field_of_a_wrong_type_makes_the_request_invalid(method: str, name: str) -> None:
    good = {"channel": "c", "data": 1}
    assert not isinstance(decode(method, good), InvalidRequest)
    for value in WRONG[FIELDS[method][name]]:
        assert decode(method, {**good, name: value}) == InvalidRequest(method), value
    # null is as good as absent.
    assert decode(method, {**good, name: None}) == decode(
        method, {key: value for key, value in good.items() if key != name}
    )


@pytest.mark.parametrize(
    "method, params",
    [
        ("publish", {"channel": "c"}),
        ("history", {"channel": "c", "reverse": True, "since": {"epoch": "e"}}),
        ("history", {"channel": "c", "reverse": True, "since": {"epoch": "e", "offset": 0}}),
        ("history", {"channel": "c", "since": {"offset": -1}}),
        ("history", {"channel": "c", "since": {"offset": "1"}}),
        ("history", {"channel": "c", "since": {"epoch": 1}}),
        ("subscribe", {"channel": "c", "offset": 2**64}),
        ("rpc", {"method": PUBLISH_METHOD}),
        ("rpc", {"method": PUBLISH_METHOD, "data": []}),
        ("rpc", {"method": PUBLISH_METHOD, "data": {"channel": "c"}}),
        ("rpc", {"method": PUBLISH_METHOD, "data": {"data": 1}}),
        ("rpc", {"method": PUBLISH_METHOD, "data": {"channel": "", "data": 1}}),
        ("rpc", {"method": PUBLISH_METHOD, "data": {"channel": 1, "data": 1}}),
        (
            "rpc",
            {"method": PUBLISH_METHOD, "data": {"channel": "c", "data": 1, "idempotency_key": ""}},
        ),
        (
            "rpc",
            {"method": PUBLISH_METHOD, "data": {"channel": "c", "data": 1, "idempotency_key": 1}},
        ),
        (
            "rpc",
            {
                "method": PUBLISH_METHOD,
                "data": {"channel": "c", "data": 1, "idempotency_key": "\x00"},
            },
        ),
    ],
)
def test_values_that_make_no_sense(method: str, params: dict[str, Any]) -> None:
    assert decode(method, params) == InvalidRequest(method)


# ---- publications


@settings(max_examples=50)
@given(st.lists(PUBLICATIONS, max_size=3))
def test_publications_survive_the_log(published: list[Publication]) -> None:
    pubs = "[" + ",".join(encode_stored(each) for each in published) + "]"
    assert "\n" not in pubs
    found = decode_publications(pubs, 5)
    assert [each.offset for each in found] == list(range(5, 5 + len(published)))
    for before, after in zip(published, found, strict=True):
        assert after.stored() == json.loads(json.dumps(before.stored()))


@pytest.mark.parametrize(
    "pubs",
    ["", "x", "{}", "null", "[1]", "[{}]", '[{"data":NaN}]', '[{"data":"\\ud800"}]', "[" * 5000],
)
def test_broken_publications_are_malformed(pubs: str) -> None:
    with pytest.raises(MalformedPublication):
        decode_publications(pubs, 1)


@given(PUBLICATIONS)
def test_a_publication_is_one_line(publication: Publication) -> None:
    assert parsed(encode_publication(publication)) == publication.wire()


def nested(depth: int) -> Any:
    value: Any = 0
    for _ in range(depth):
        value = [value]
    return value


@pytest.mark.parametrize(
    "data", [nested(300), "\ud800", {1: 2}, 2**70, object()], ids=lambda data: str(type(data))
)
def test_what_cannot_be_written_is_told(data: Any) -> None:
    publication = Publication(data)
    for write in (encode_stored, encode_publication):
        with pytest.raises(Unencodable):
            write(publication)
    with pytest.raises(Unencodable):
        encode_reply(1, "rpc", {"data": data})
    with pytest.raises(Unencodable):
        info_push("c", "join", ClientInfo("u", "c", data))


@given(JSON)
def test_json_is_decoded_as_the_standard_library_does(value: Any) -> None:
    text = json.dumps(value)
    assert decode_json(text) == json.loads(text)


@pytest.mark.parametrize(
    "text", ["", "NaN", "Infinity", "1e999", '"\\ud800"', "\ud800", "{", "01", "[" * 5000]
)
def test_what_is_not_json_is_a_value_error(text: str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - the contract: as json.loads
        decode_json(text)


# ---- replies


def test_a_ping_is_an_empty_object() -> None:
    assert parsed(PING) == {}


@pytest.mark.parametrize("method", ["connect", "subscribe", "publish", "unsubscribe"])
def test_a_result_is_there_also_when_it_is_empty(method: str) -> None:
    assert parsed(encode_reply(3, method, {})) == {"id": 3, method: {}}


@given(st.integers(1, 2**32 - 1), st.dictionaries(TEXT, JSON, max_size=3))
def test_a_reply_is_one_line(command_id: int, result: dict[str, Any]) -> None:
    assert parsed(encode_reply(command_id, "rpc", result)) == {"id": command_id, "rpc": result}


@settings(max_examples=50)
@given(st.integers(1, 2**32 - 1), st.lists(PUBLICATIONS, max_size=3))
def test_a_history_reply_holds_the_lines_as_they_are(
    command_id: int, published: list[Publication]
) -> None:
    lines = [encode_publication(each) for each in published]
    reply = parsed(encode_lines_reply(command_id, "history", lines, {"epoch": "e", "offset": 0}))
    # All three are always there: SDKs index them.
    assert reply == {
        "id": command_id,
        "history": {"publications": [each.wire() for each in published], "epoch": "e", "offset": 0},
    }


@pytest.mark.parametrize("error", Error, ids=str)
def test_an_error_has_code_and_message(error: Error) -> None:
    fields: dict[str, Any] = {"code": error.value.code, "message": error.value.message}
    if error.value.temporary:
        fields["temporary"] = True
    assert parsed(encode_error(9, error)) == {"id": 9, "error": fields}


# ---- the subscribe result


@given(
    st.none()
    | st.builds(StreamPosition, st.text(min_size=1, max_size=4), st.integers(0, 2**53 - 1)),
    st.booleans(),
    st.lists(PUBLICATIONS, max_size=3),
    st.booleans(),
    st.booleans(),
)
def test_a_subscribe_result_leaves_out_what_is_empty(
    position: StreamPosition | None,
    recoverable: bool,
    missed: list[Publication],
    recovered: bool,
    was_recovering: bool,
) -> None:
    result = subscribe_result(
        position=position,
        recoverable=recoverable,
        publications=[encode_publication(each) for each in missed],
        recovered=recovered,
        was_recovering=was_recovering,
    )
    reply = parsed(encode_reply(2, "subscribe", result))
    expected = {
        "recoverable": recoverable,
        "positioned": position is not None,
        "epoch": position.epoch if position else "",
        "offset": position.offset if position else 0,
        "publications": [each.wire() for each in missed],
        "recovered": recovered,
        "was_recovering": was_recovering,
    }
    assert reply == {
        "id": 2,
        "subscribe": {name: value for name, value in expected.items() if value},
    }


def test_a_position_at_the_beginning_still_has_an_epoch() -> None:
    result = subscribe_result(position=StreamPosition("e", 0), recoverable=True)
    assert result == {"recoverable": True, "positioned": True, "epoch": "e"}
    assert subscribe_result(position=None, recoverable=False) == {}


# ---- pushes


@given(TEXT, PUBLICATIONS)
def test_a_publication_push(channel: str, publication: Publication) -> None:
    push = parsed(publication_push(channel, encode_publication(publication)))
    assert push == {"push": {"channel": channel, "pub": publication.wire()}}


@given(TEXT, st.sampled_from(["join", "leave"]), INFOS)
def test_a_join_or_leave_push(channel: str, kind: str, info: ClientInfo) -> None:
    push = parsed(info_push(channel, kind, info))
    assert push == {"push": {"channel": channel, kind: {"info": info.wire()}}}


@pytest.mark.parametrize("why", Unsubscribe, ids=str)
def test_an_unsubscribe_push_always_has_channel_code_and_reason(why: Unsubscribe) -> None:
    assert parsed(unsubscribe_push('a"b', why)) == {
        "push": {
            "channel": 'a"b',
            "unsubscribe": {"code": why.value.code, "reason": why.value.reason},
        }
    }


@settings(max_examples=50)
@given(st.lists(PUBLICATIONS, min_size=1, max_size=4))
def test_lines_share_a_frame(published: list[Publication]) -> None:
    lines = [publication_push("c", encode_publication(each)) for each in published]
    frame = LINE_END.join([*lines, PING])
    assert frame.split(b"\n") == [*lines, b"{}"]
    assert all(frame.split(b"\n")), "no empty line: SDKs split at line ends"
