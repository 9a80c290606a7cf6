"""service/roomcast/wire/encoding.py: lines that SDKs can read, and the text in the log."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from roomcast.log.channel_log import decode_publications
from roomcast.wire.codes import Disconnect, Error, Unsubscribe
from roomcast.wire.commands import LINE_END
from roomcast.wire.encoding import (
    PING,
    Unencodable,
    bare_pushes,
    disconnect_push,
    encode_error,
    encode_lines_reply,
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
from roomcast.wire.publication import ClientInfo, MalformedPublication, Publication, StreamPosition
from tests.unit.wire.test_commands import JSON, TEXT

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


def parsed(written: bytes) -> dict[str, Any]:
    """The object of one line. Fails unless it is one line of strict JSON."""
    assert b"\n" not in written
    assert b"\r" not in written

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    value = json.loads(written.decode(), parse_constant=refuse)
    assert isinstance(value, dict)
    return value


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
    assert parsed(sent_of(publication, 0).line) == publication.wire()


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
    with pytest.raises(Unencodable):
        encode_stored(publication)
    with pytest.raises(Unencodable):
        sent_of(publication, 0)
    with pytest.raises(Unencodable):
        encode_reply(1, "rpc", {"data": data})
    with pytest.raises(Unencodable):
        encode_told("join", ClientInfo("u", "c", data))


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
    lines = [sent_of(each, 0).line for each in published]
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
        publications=[sent_of(each, 0).line for each in missed],
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
    push = parsed(publication_push(channel, sent_of(publication, 0).line))
    assert push == {"push": {"channel": channel, "pub": publication.wire()}}


@given(TEXT, st.sampled_from(["join", "leave"]), INFOS)
def test_a_join_or_leave_push(channel: str, kind: str, info: ClientInfo) -> None:
    push = parsed(told_push(channel, encode_told(kind, info)))
    assert push == {"push": {"channel": channel, kind: {"info": info.wire()}}}


@pytest.mark.parametrize("why", Unsubscribe, ids=str)
def test_an_unsubscribe_push_always_has_channel_code_and_reason(why: Unsubscribe) -> None:
    assert parsed(unsubscribe_push('a"b', why)) == {
        "push": {
            "channel": 'a"b',
            "unsubscribe": {"code": why.value.code, "reason": why.value.reason},
        }
    }


@given(TEXT, PUBLICATIONS, INFOS, st.dictionaries(TEXT, JSON, max_size=3))
def test_a_bare_push_is_what_is_in_a_push(
    channel: str, publication: Publication, info: ClientInfo, fields: dict[str, Any]
) -> None:
    pushes = [
        publication_push(channel, sent_of(publication, 0).line),
        publication_push(7, sent_of(publication, 0).line),
        told_push(channel, encode_told("join", info)),
        unsubscribe_push(channel, Unsubscribe.SERVER),
        subscribe_push(channel, fields),
        refresh_push({"expires": True, "ttl": 1}),
        disconnect_push(Disconnect.SHUTDOWN),
        encode_push("connect", fields),
    ]
    bare = bare_pushes(LINE_END.join(pushes))
    assert list(map(parsed, bare)) == [parsed(push)["push"] for push in pushes]


def test_a_ping_is_a_ping_to_all() -> None:
    assert bare_pushes(PING) == [PING]
    push = disconnect_push(Disconnect.SLOW)
    assert bare_pushes(LINE_END.join([PING, push, PING]))[::2] == [PING, PING]


def test_a_push_about_the_connection_that_cannot_be_written_is_told() -> None:
    nested: Any = []
    for _ in range(1000):
        nested = [nested]
    with pytest.raises(Unencodable):
        encode_push("connect", {"data": nested})


@settings(max_examples=50)
@given(st.lists(PUBLICATIONS, min_size=1, max_size=4))
def test_lines_share_a_frame(published: list[Publication]) -> None:
    lines = [publication_push("c", sent_of(each, 0).line) for each in published]
    frame = LINE_END.join([*lines, PING])
    assert frame.split(b"\n") == [*lines, b"{}"]
    assert all(frame.split(b"\n")), "no empty line: SDKs split at line ends"
