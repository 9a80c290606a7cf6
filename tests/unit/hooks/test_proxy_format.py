"""service/roomcast/hooks/proxy_format.py: Centrifugo's documented requests and answers, and what
is none.
"""

from __future__ import annotations

import base64
import json
from typing import Any, Final

import orjson
import pytest

from roomcast.hooks import (
    UNCHANGED,
    Capability,
    Carrier,
    ChannelOverride,
    ConnectEvent,
    ConnectReply,
    Disconnected,
    Grant,
    PublishEvent,
    PublishReply,
    RefreshEvent,
    RefreshReply,
    Refused,
    RpcEvent,
    ServerSubscription,
    SubRefreshEvent,
    SubRefreshReply,
    SubscribeEvent,
    SubscribeReply,
)
from roomcast.hooks.proxy_format import (
    Event,
    MalformedAnswer,
    connect_reply,
    decided,
    publish_reply,
    refresh_reply,
    request_body,
    rpc_reply,
    sub_refresh_reply,
    subscribe_reply,
)

ID: Final = "9336a229-2400-4ebc-8c50-0a643d22e8a0"
COMMON: Final = {"client": ID, "transport": "websocket", "protocol": "json", "encoding": "json"}
META: Final = {"tenant": "acme"}
EVENTS: Final[list[tuple[Event, dict[str, Any]]]] = [
    (ConnectEvent(ID, "", has_token=False), {}),
    (
        ConnectEvent(ID, "", has_token=False, data={"a": 1}, name="js", version="5"),
        {"name": "js", "version": "5", "data": {"a": 1}},
    ),
    (RefreshEvent(ID, "56"), {"user": "56"}),
    (SubscribeEvent(ID, "56", None, "chat:index"), {"user": "56", "channel": "chat:index"}),
    (SubRefreshEvent(ID, "56", None, "channel"), {"user": "56", "channel": "channel"}),
    (
        PublishEvent(ID, "56", None, "chat:index", {"input": "hello"}),
        {"user": "56", "channel": "chat:index", "data": {"input": "hello"}},
    ),
    (
        RpcEvent(ID, "56", None, "getCurrentPrice", {"params": {"object_id": 12}}),
        {"user": "56", "method": "getCurrentPrice", "data": {"params": {"object_id": 12}}},
    ),
]


@pytest.mark.parametrize("event, more", EVENTS)
def test_a_request_is_centrifugos(event: Event, more: dict[str, Any]) -> None:
    assert json.loads(request_body(event)) == COMMON | more


def test_a_request_says_how_the_client_came() -> None:
    event = RefreshEvent(ID, "56", carrier=Carrier("uni_sse", "protobuf", {"cookie": "c"}))
    body = json.loads(request_body(event))
    assert (body["transport"], body["protocol"]) == ("uni_sse", "protobuf")
    # Headers are headers.
    assert "cookie" not in json.dumps(body)


def test_a_request_may_have_the_meta() -> None:
    for event in (
        RefreshEvent(ID, "56", meta=META),
        SubscribeEvent(ID, "56", None, "c", meta=META),
        SubRefreshEvent(ID, "56", None, "c", meta=META),
        PublishEvent(ID, "56", None, "c", 1, meta=META),
        RpcEvent(ID, "56", None, "m", 1, meta=META),
    ):
        assert json.loads(request_body(event, with_meta=True))["meta"] == META
        assert "meta" not in json.loads(request_body(event))
    connect = ConnectEvent(ID, "", has_token=False, meta=META)
    assert "meta" not in json.loads(request_body(connect, with_meta=True))


def test_data_may_be_base64() -> None:
    body = json.loads(request_body(PublishEvent(ID, "56", None, "c", {"a": 1}), binary=True))
    assert body["encoding"] == "binary"
    assert "data" not in body
    assert json.loads(base64.b64decode(body["b64data"])) == {"a": 1}
    nothing = json.loads(request_body(SubscribeEvent(ID, "56", None, "c"), binary=True))
    assert nothing["b64data"] == ""


def b64(value: object) -> str:
    return base64.b64encode(orjson.dumps(value)).decode()


def answer(**members: object) -> bytes:
    return orjson.dumps(members)


@pytest.mark.parametrize(
    "result, reply",
    [
        ({"user": "56"}, ConnectReply("56")),
        ({"user": ""}, ConnectReply()),
        (
            {
                "user": "56",
                "expire_at": 1565436268,
                "info": {"name": "Ann"},
                "data": {"hello": 1},
                "channels": ["news"],
                "subs": {
                    "team:a": {
                        "info": {"role": "x"},
                        "b64data": b64([1]),
                        "override": {"presence": {"value": True}, "join_leave": {"value": False}},
                        "cache_recover": True,
                    }
                },
                "meta": META,
                "caps": [{"channels": ["t:*"], "match": "wildcard", "allow": ["pub", "xyz"]}],
                "labels": {"of": "another edition"},
            },
            ConnectReply(
                "56",
                1565436268,
                {"name": "Ann"},
                {"hello": 1},
                {
                    "news": ServerSubscription(),
                    "team:a": ServerSubscription(
                        {"role": "x"},
                        [1],
                        ChannelOverride(presence=True, join_leave=False),
                        raw=b"[1]",
                        cache_recover=True,
                    ),
                },
                (Grant(("t:*",), frozenset({Capability.PUBLISH}), is_pattern=True),),
                META,
            ),
        ),
        (
            {"user": "56", "expire_at": 0, "info": {"a": 1}, "b64info": b64({"b": 2})},
            ConnectReply("56", info={"b": 2}),
        ),
        (None, None),
    ],
)
def test_connect(result: object, reply: ConnectReply | None) -> None:
    assert decided(answer(result=result), connect_reply) == reply


@pytest.mark.parametrize(
    "result, reply",
    [
        ({"expire_at": 1565436268}, RefreshReply(1565436268)),
        (
            {"expire_at": 1565436268, "info": [1], "meta": META},
            RefreshReply(1565436268, [1], META),
        ),
        ({"expired": True, "expire_at": 1565436268}, None),
        ({"expired": False}, None),
        ({}, None),
        (None, None),
    ],
)
def test_refresh(result: object, reply: RefreshReply | None) -> None:
    assert decided(answer(result=result), refresh_reply) == reply


@pytest.mark.parametrize(
    "result, reply",
    [
        ({}, SubscribeReply()),
        (None, SubscribeReply()),
        (
            {
                "info": {"role": "owner"},
                "data": [1],
                "expire_at": 9,
                "override": {"force_recovery": {"value": True}, "presence": None},
                "allow": ["hst", "prs"],
            },
            SubscribeReply(
                {"role": "owner"},
                [1],
                9,
                ChannelOverride(force_recovery=True),
                frozenset({Capability.HISTORY, Capability.PRESENCE}),
            ),
        ),
    ],
)
def test_subscribe(result: object, reply: SubscribeReply) -> None:
    assert decided(answer(result=result), subscribe_reply) == reply


@pytest.mark.parametrize(
    "result, reply",
    [
        ({"expire_at": 1565436268}, SubRefreshReply(1565436268)),
        ({}, SubRefreshReply(None)),
        ({"expired": True}, None),
        (None, None),
    ],
)
def test_sub_refresh(result: object, reply: SubRefreshReply | None) -> None:
    assert decided(answer(result=result), sub_refresh_reply) == reply


@pytest.mark.parametrize(
    "result, reply",
    [
        ({}, PublishReply()),
        (None, PublishReply()),
        ({"data": {"input": "HELLO"}}, PublishReply({"input": "HELLO"})),
        ({"b64data": b64("text")}, PublishReply("text")),
        ({"skip_history": True}, PublishReply(UNCHANGED, skip_history=True)),
        ({"tags": {}, "version": 0, "idempotency_key": ""}, PublishReply()),
        ({"tags": {"a": "b"}}, PublishReply(tags={"a": "b"})),
        ({"version": 7, "version_epoch": "e"}, PublishReply(version=7, version_epoch="e")),
    ],
)
def test_publish(result: object, reply: PublishReply) -> None:
    assert decided(answer(result=result), publish_reply) == reply


def test_what_cannot_be_carried_out_is_not_passed_over() -> None:
    with pytest.raises(MalformedAnswer, match="idempotency_key cannot be given here"):
        decided(answer(result={"idempotency_key": "k"}), publish_reply)


@pytest.mark.parametrize("data", [b"\xff\x00", b"", b"7"])
def test_bytes_go_and_come_back_as_they_are(data: bytes) -> None:
    body = json.loads(request_body(PublishEvent(ID, "56", None, "c", data)))
    assert body["encoding"] == "binary"
    assert base64.b64decode(body["b64data"]) == data
    found = publish_reply({"b64data": body["b64data"]}, is_binary=True)
    assert found == (PublishReply(data) if data else PublishReply())
    assert publish_reply({}, is_binary=True) == PublishReply()


def test_rpc() -> None:
    assert decided(answer(result={"data": {"price": 1}}), rpc_reply) == {"price": 1}
    assert decided(answer(result={"b64data": b64(2)}), rpc_reply) == 2
    assert decided(answer(result={}), rpc_reply) is None


REPLIES: Final = [
    connect_reply,
    refresh_reply,
    subscribe_reply,
    sub_refresh_reply,
    publish_reply,
    rpc_reply,
]


@pytest.mark.parametrize("reply_of", REPLIES)
def test_a_back_end_says_no(reply_of: Any) -> None:
    with pytest.raises(Refused) as refused:
        decided(answer(error={"code": 1000, "message": "custom error"}), reply_of)
    error = refused.value.error
    assert (error.code, error.message, error.temporary) == (1000, "custom error", False)
    with pytest.raises(Refused) as refused:
        decided(answer(error={"code": 429, "temporary": True}, result={}), reply_of)
    assert refused.value.error.temporary
    with pytest.raises(Disconnected) as closed:
        decided(
            answer(disconnect={"code": 4500, "reason": "disconnect reason"}, result={}), reply_of
        )
    assert (closed.value.why.code, closed.value.why.reason) == (4500, "disconnect reason")


@pytest.mark.parametrize("reply_of", REPLIES)
@pytest.mark.parametrize(
    "said",
    [
        b"",
        b"<html>",
        b"[]",
        b"null",
        b'"yes"',
        b"[" * 100_000,
        answer(result=[]),
        answer(result="yes"),
        answer(error="no"),
        answer(error={}, result={"user": "a", "expire_at": 9}),
        answer(disconnect={}, result={"user": "a", "expire_at": 9}),
        answer(error={"code": "403"}),
        answer(error={"code": 403, "message": 1}),
        answer(disconnect={"code": 4500, "reason": []}),
        answer(disconnect={"code": True}),
        # A no whose code was forgotten.
        answer(error={}),
        answer(disconnect={}),
        answer(error={}, result={"user": "ann"}),
        answer(error=None, disconnect={}, result={"user": "ann"}),
    ],
)
def test_what_is_no_answer_allows_nothing(reply_of: Any, said: bytes) -> None:
    with pytest.raises(ValueError, match=r".+"):
        decided(said, reply_of)


@pytest.mark.parametrize(
    "result, reply_of",
    [
        ({"user": 56}, connect_reply),
        ({"user": "a", "expire_at": "soon"}, connect_reply),
        ({"user": "a", "subs": {"c": 1}}, connect_reply),
        ({"user": "a", "channels": ["é"]}, connect_reply),
        ({"user": "a", "caps": [{"channels": ["a"], "match": "regex"}]}, connect_reply),
        ({"user": "a", "b64info": "?"}, connect_reply),
        ({"expire_at": 9, "expired": "no"}, refresh_reply),
        ({"override": {"presence": True}}, subscribe_reply),
        ({"override": {"presence": {"value": 1}}}, subscribe_reply),
        ({"allow": "pub"}, subscribe_reply),
        ({"expired": 1}, sub_refresh_reply),
        ({"skip_history": 1}, publish_reply),
        ({"b64data": b64(1)[:-2]}, publish_reply),
    ],
)
def test_a_result_of_the_wrong_shape_allows_nothing(result: object, reply_of: Any) -> None:
    with pytest.raises(MalformedAnswer):
        decided(answer(result=result), reply_of)


def test_codes_that_clients_cannot_be_sent_are_a_fault() -> None:
    for said in (answer(error={"code": 42}), answer(disconnect={"code": 1000, "reason": "x"})):
        with pytest.raises(ValueError, match="code is from"):
            decided(said, connect_reply)
