"""service/roomcast/wire/commands.py: frames to commands."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from roomcast.wire import commands
from roomcast.wire.commands import (
    _HALF,
    _REPLACEMENT,
    COMMANDS_MAX,
    HISTORY_METHOD,
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
    UnsubscribeRequest,
    decode_payload,
)
from roomcast.wire.publication import StreamPosition
from roomcast.wire.tags_filter import Leaf
from tests.frames import BOUNDS, decode_frame, decoded

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
                "headers": {"Authorization": "mine"},
                "flag": 1,
            },
            ConnectRequest("t", {"a": 1}, "js", "1", headers={"Authorization": "mine"}),
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
                "tf": {"key": "a", "cmp": "in", "vals": ["y", "x"]},
            },
            SubscribeRequest(
                "c",
                "t",
                True,
                True,
                True,
                C("e", 2**53 - 1),
                True,
                1,
                True,
                "fossil",
                filter=Leaf("in", "a", ("x", "y")),
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
        # What the protocol does not have is not of its `history`.
        ("history", {"channel": "c", "since_time": 5}, HistoryRequest("c")),
        (
            "rpc",
            {
                "method": HISTORY_METHOD,
                "data": {"channel": "c", "limit": 5, "since_time": 7, "until_time": 2**53 - 1},
            },
            HistoryRequest("c", 5, rpc=True, since_ms=7, until_ms=2**53 - 1),
        ),
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
        # The first is no half, but text; so the second has none before it.
        ('"\\\\ud83d\\ude00"', "\\ud83d\ufffd"),
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
    assert decode_payload(written.encode()) == shown


@pytest.mark.parametrize("text", [b'"\0"', b'"\0\\ud800"', b'["\0", "\\\\"]', b'\0\0"\\ud800"'])
def test_what_stands_in_for_a_backslash_meanwhile_is_no_way_to_write_one(text: bytes) -> None:
    with pytest.raises(ProtocolViolation):
        decode_payload(text)


def test_to_replace_a_half_nothing_is_filled_in() -> None:
    """With a group of the pattern in it, 64 KiB of halves took 34 ms in one turn, and not 2."""
    assert _HALF.groups == 0
    assert b"\\1" not in _REPLACEMENT


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
    [taken] = decoded(at_limit, commands.JSON_FRAMES, Bounds(1000, 128))
    assert (taken.id, type(taken.request)) == (7, PublishRequest)
    monkeypatch.setattr(commands, "decode_payload", None)
    assert decoded(at_limit, commands.JSON_FRAMES, Bounds(999, 128)) == [
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
        decoded(text % (b"x" * 1000), commands.JSON_FRAMES, Bounds(1000, 128))


def test_subs_of_a_connect_have_a_bound() -> None:
    subs = {f"c{index}": {"recover": True, "epoch": "e", "offset": 1} for index in range(4)}
    [most] = decoded(line("connect", {"subs": subs}), commands.JSON_FRAMES, Bounds(1000, 4))
    assert isinstance(most.request, ConnectRequest)
    assert len(most.request.since) == 4
    [more] = decoded(line("connect", {"subs": subs}), commands.JSON_FRAMES, Bounds(1000, 3))
    assert more.request == InvalidRequest("connect")


# ---- a connect that is all that its client says


def connect_of(frame: str | bytes, bounds: Bounds = BOUNDS) -> Command:
    [command] = decoded(frame, commands.CONNECT_FRAMES, bounds)
    return command


@pytest.mark.parametrize("frame", ["{}", b"{}", " {\n} \n"])
def test_a_connect_may_say_nothing(frame: str | bytes) -> None:
    command = connect_of(frame)
    assert command.request == ConnectRequest()
    # It is answered, and so it is counted as others are.
    assert command.id


def test_a_connect_without_a_command_says_the_same_as_with_one() -> None:
    params = {
        "token": "t",
        "data": {"a": [1]},
        "name": "n",
        "version": "v",
        "subs": {"c": {"recover": True, "epoch": "e", "offset": 3}},
        "unknown": 1,
    }
    [command] = decode_frame(line("connect", params))
    alone = json.dumps(params, indent=1)
    assert connect_of(alone).request == command.request
    assert connect_of(alone).size == len(alone)


@pytest.mark.parametrize(
    "params", [{"token": 7}, {"subs": [1]}, {"name": {}}, {"headers": []}, {"headers": {"a": 1}}]
)
def test_fields_of_a_connect_without_a_command_are_checked(params: dict[str, Any]) -> None:
    assert connect_of(json.dumps(params)).request == InvalidRequest("connect")


def test_a_connect_without_a_command_has_the_bounds_of_others() -> None:
    text = json.dumps({"subs": {f"c{index}": {} for index in range(4)}})
    assert connect_of(text, Bounds(len(text), 4)).request == ConnectRequest()
    assert connect_of(text, Bounds(len(text), 3)).request == InvalidRequest("connect")
    with pytest.raises(ProtocolViolation):
        connect_of(text, Bounds(len(text) - 1, 4))


@pytest.mark.parametrize(
    "frame", ["", b"", "\n", "null", "[]", "7", '"{}"', "{", "{}{}", "{}\n{}", b"\xff", "\ud800"]
)
def test_what_is_no_connect(frame: str | bytes) -> None:
    with pytest.raises(ProtocolViolation):
        connect_of(frame)


@given(st.binary(max_size=30) | st.text(max_size=30) | JSON.map(json.dumps))
def test_a_frame_is_a_connect_or_a_violation(frame: str | bytes) -> None:
    try:
        command = connect_of(frame)
    except ProtocolViolation:
        return
    assert isinstance(command.request, ConnectRequest | InvalidRequest)


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
        ("subscribe", {"channel": "c", "tf": {}}),
        ("subscribe", {"channel": "c", "tf": [{"key": "a", "cmp": "ex"}]}),
        ("history", {"channel": "c", "reverse": True, "since": {"epoch": "e"}}),
        ("history", {"channel": "c", "reverse": True, "since": {"epoch": "e", "offset": 0}}),
        ("history", {"channel": "c", "since": {"offset": -1}}),
        ("history", {"channel": "c", "since": {"offset": "1"}}),
        ("history", {"channel": "c", "since": {"epoch": 1}}),
        ("subscribe", {"channel": "c", "offset": 2**64}),
        ("rpc", {"method": PUBLISH_METHOD}),
        ("rpc", {"method": HISTORY_METHOD}),
        ("rpc", {"method": HISTORY_METHOD, "data": "c"}),
        ("rpc", {"method": HISTORY_METHOD, "data": {"channel": ""}}),
        ("rpc", {"method": HISTORY_METHOD, "data": {"channel": "c", "since_time": -1}}),
        ("rpc", {"method": HISTORY_METHOD, "data": {"channel": "c", "until_time": 2**53}}),
        ("rpc", {"method": HISTORY_METHOD, "data": {"channel": "c", "until_time": True}}),
        ("rpc", {"method": HISTORY_METHOD, "data": {"channel": "c", "since_time": "1"}}),
        ("rpc", {"method": HISTORY_METHOD, "data": {"channel": "c", "since": 5}}),
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
