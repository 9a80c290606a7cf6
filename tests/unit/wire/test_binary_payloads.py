"""Binary channels: any bytes that are published there are what clients in Protobuf get, by whatever
way, and clients in JSON are refused.
"""

from __future__ import annotations

import json
from base64 import b64decode, b64encode
from dataclasses import replace
from typing import Any, Final

import jwt
import orjson
import pytest
from centrifuge.fossil import apply_delta
from hypothesis import example, given
from hypothesis import strategies as st

from roomcast.auth.claims import ServerSubscription
from roomcast.delivery.envelope import Signal, checked_pubs, express_text, pack, parse, record_text
from roomcast.delivery.forms import Chain, Payload, whole
from roomcast.delivery.fossil import Search, delta
from roomcast.fleet.order_signals import (
    MalformedOrder,
    SubscribeOrder,
    Target,
    order_of,
    order_signal,
)
from roomcast.hooks import (
    ConnectEvent,
    ConnectReply,
    PublishEvent,
    PublishReply,
    SubscribeEvent,
    SubscribeReply,
)
from roomcast.hooks.calls import Hooks
from roomcast.log.channel_log import decode_publications
from roomcast.log.item import LogItem
from roomcast.wire.channels import ChannelOptions, ChannelRules
from roomcast.wire.codes import Disconnect
from roomcast.wire.commands import PUBLISH_METHOD
from roomcast.wire.encoding import encode_stored, publication_push, sent_of
from roomcast.wire.protobuf import PROTOBUF_FRAMES, encode_messages
from roomcast.wire.publication import MalformedPublication, Publication, from_base64, to_base64
from tests.protobuf import command, parsed
from tests.unit.binary import BinaryClient, binary
from tests.unit.worlds import SECRET, Client, Fleet, logged, settled, until

HISTORY: Final = ChannelOptions(
    history_size=100,
    history_ttl_s=300,
    force_recovery=True,
    presence=True,
    allowed_delta_types=("fossil",),
    delta_publish=True,
    allow_channel_compaction=True,
    publication_data_format="binary",
)
LIVE: Final = ChannelOptions(publication_data_format="binary")
RULES: Final = ChannelRules(
    without_namespace=replace(HISTORY, publication_data_format=""),
    namespaces={
        "bin": HISTORY,
        "live": LIVE,
        "fast": replace(HISTORY, express=True),
        "slow": replace(HISTORY, batch_max_delay_ms=1, batch_max_size=3),
        "objects": ChannelOptions(publication_data_format="json_object"),
        "json": ChannelOptions(publication_data_format="json"),
    },
)
NEEDS_PROTOBUF: Final = {
    "code": 108,
    "message": "not available: the channel is binary, and needs Protobuf",
}
# JSON and what is none, what an encoder would escape, and nothing.
RAW: Final = [b"", b"\x00\xff\xfe", b'{"a": 1}\n', "né\ufffe".encode(), b"AAAA", bytes(range(256))]


@pytest.fixture
def fleet() -> Fleet:
    made = Fleet()
    made.stream_to_topic()
    return made


async def refused(client: Client, method: str, /, **params: Any) -> Any:
    [command_id] = await client.say({method: params})
    return (await client.answer(command_id))["error"]


# ---- forms


@given(st.binary(max_size=300), st.booleans())
@example(b"", False)
def test_any_bytes_come_back_byte_for_byte(raw: bytes, marked: bool) -> None:
    """From the stored form through the Lambda and the topic to both encodings."""
    published = Publication(raw, tags={"a": "b"}, time=5, delta=marked)
    pubs = f"[{encode_stored(published)}]"
    item = LogItem("c", 1, 1, "e", pubs, "b", "n", 1, 1)
    assert isinstance(json.loads(pubs)[0]["data"], str), "what nodes of older releases read"
    [record] = parse(next(pack([record_text(item, checked_pubs(item))]))[0], orjson.loads).records
    [hint] = parse(next(pack([express_text(item)], express="n"))[0], orjson.loads).express
    assert record.publications is not None
    assert hint.publications is not None
    for found in (*record.publications, *hint.publications, *decode_publications(pubs, 1)):
        assert found == replace(published, offset=1)
        sent = sent_of(found, 0)
        # The server API, whose answers are JSON.
        line = json.loads(sent.line)
        assert b64decode(line.pop("b64data"), validate=True) == raw
        assert line == {"tags": {"a": "b"}, "time": 5, "offset": 1}
        for payload in Payload:
            push = publication_push("c", whole(sent, payload))
            [message] = parsed(encode_messages(push))
            assert message.push.pub.data == raw
            assert not message.push.pub.delta


BLOCKS: Final = st.sampled_from([b"\x80" * 40, b"abc" * 20, bytes(range(128, 192)), b"\xff", b""])


@given(st.lists(st.lists(BLOCKS, max_size=6).map(b"".join), min_size=2, max_size=4))
def test_differences_of_bytes(raws: list[bytes]) -> None:
    chain, before = Chain(), b""
    sent = [
        sent_of(Publication(raw, offset=number, delta=True), 0)
        for number, raw in enumerate(raws, 1)
    ]
    for link, raw in zip(chain.links(sent, Search(100_000)), raws, strict=True):
        [message] = parsed(encode_messages(publication_push("c", link.line(Payload.BYTES))))
        pub = message.push.pub
        before = bytes(apply_delta(before, pub.data)) if pub.delta else pub.data
        assert before == raw


def test_a_difference_of_bytes_may_begin_within_what_would_be_a_character() -> None:
    """And what looks like one long character costs nothing."""
    before, after = b"\x80" * 50_000 + b"a", b"\x80" * 50_000 + b"b"
    assert len(delta(before, after, Search(100), is_text=False) or b"") < 30
    link, other = Chain().links(
        [sent_of(Publication(raw, offset=1, delta=True), 0) for raw in (before, after)], Search(999)
    )
    assert link.difference is None
    assert other.difference is not None


def test_nothing_differs_from_what_was_of_another_kind() -> None:
    """Where a channel became binary, or was, during an update."""
    sent = [
        sent_of(Publication(data, offset=1, delta=True), 0)
        for data in ("é" * 100, ("é" * 100).encode(), ("é" * 100).encode(), "é" * 100)
    ]
    links = Chain().links(sent, Search(9999))
    assert [link.difference is None for link in links] == [True, True, False, True]


@pytest.mark.parametrize("data", [None, 5, {"a": 1}, "?", "AA", "AA==\n", " AA==", "AA==AA==", "é"])
def test_a_stored_form_that_is_not_base64_is_malformed(data: Any) -> None:
    with pytest.raises(MalformedPublication):
        Publication.from_stored({"data": data, "b64": True}, 1)
    # The mark counts if it is true.
    assert Publication.from_stored({"data": data, "b64": 1}, 1).data == data


@given(st.binary())
def test_base64_is_what_others_write(raw: bytes) -> None:
    assert to_base64(raw) == b64encode(raw).decode()
    assert from_base64(to_base64(raw)) == raw


# ---- clients


@pytest.mark.parametrize("channel", ["bin:room", "live:room", "fast:room", "slow:room"])
async def test_pushes_on_the_same_node_and_on_another(fleet: Fleet, channel: str) -> None:
    here, there = fleet.node("a", rules=RULES), fleet.node("b", rules=RULES)
    async with here.running(), there.running():
        clients = [await binary(node) for node in (here, there)]
        for client in clients:
            await client.ask("subscribe", channel=channel, flag=1)
        await clients[0].publish(channel, *RAW)
        for client in clients:
            assert await client.pushed(channel, len(RAW)) == RAW


async def test_history_and_recovery_have_the_same_bytes(fleet: Fleet) -> None:
    """From what this node kept, and from the log."""
    here, there = fleet.node("a", rules=RULES), fleet.node("b", rules=RULES)
    writer, witness = await binary(here), await binary(here)
    epoch = (await witness.ask("subscribe", channel="bin:room")).epoch
    await writer.publish("bin:room", *RAW)
    for node in (here, there):
        reader = await binary(node)
        history = await reader.ask("history", channel="bin:room", limit=100)
        assert [pub.data for pub in history.publications] == RAW
        back = await reader.ask(
            "subscribe", channel="bin:room", recover=True, epoch=epoch, offset=0
        )
        assert back.recovered
        assert [pub.data for pub in back.publications] == RAW


async def test_a_subscriber_that_asks_for_differences_gets_them(fleet: Fleet) -> None:
    node = fleet.node("a", rules=RULES)
    client = await binary(node)
    assert (await client.ask("subscribe", channel="bin:room", delta="fossil")).delta
    raws = [b"\x80\xff" * 100 + bytes([number]) for number in range(3)]
    await client.publish("bin:room", *raws)
    found = await client.pushed("bin:room", 3)
    assert found[0] == raws[0]
    assert all(len(each) < 30 for each in found[1:])
    assert bytes(apply_delta(found[0], found[1])) == raws[1]
    assert bytes(apply_delta(raws[1], found[2])) == raws[2]


async def test_a_publication_with_a_key(fleet: Fleet) -> None:
    node = fleet.node("a", rules=RULES)
    client = await binary(node)
    raw = b"\x00\x01"
    call = {"channel": "bin:room", "b64data": to_base64(raw), "idempotency_key": "k"}
    answers = [
        json.loads((await client.ask("rpc", method=PUBLISH_METHOD, data=call)).data)
        for _ in range(2)
    ]
    assert answers[0] == answers[1]
    assert len(logged(fleet.world, "bin:room")) == 1
    history = await client.ask("history", channel="bin:room", limit=9)
    assert [pub.data for pub in history.publications] == [raw]


@pytest.mark.parametrize(
    "call",
    [
        {"channel": "bin:room", "b64data": "?"},
        {"channel": "bin:room", "b64data": 5},
        {"channel": "bin:room", "b64data": None},
        {"channel": "bin:room", "b64data": "AA==", "data": 1},
        {"channel": "bin:room", "data": 1},
        {"channel": "room", "b64data": "AA=="},
        {"channel": "bin:room"},
    ],
)
async def test_calls_to_publish_that_are_wrong(fleet: Fleet, call: Any) -> None:
    node = fleet.node("a", rules=RULES)
    client = await binary(node)
    assert await client.refused("rpc", method=PUBLISH_METHOD, data=call) == 107
    assert fleet.world.stream == []


async def test_what_a_client_in_json_may_not(fleet: Fleet) -> None:
    node = fleet.node("a", rules=RULES)
    writer, client = await binary(node), await node.client()
    await writer.publish("bin:room", b"\xff")
    assert await refused(client, "subscribe", channel="bin:room") == NEEDS_PROTOBUF
    assert await refused(client, "publish", channel="bin:room", data=1) == NEEDS_PROTOBUF
    assert await refused(client, "history", channel="bin:room", limit=1) == NEEDS_PROTOBUF
    call = {"channel": "bin:room", "b64data": "AA=="}
    assert await refused(client, "rpc", method=PUBLISH_METHOD, data=call) == NEEDS_PROTOBUF
    # Who is there has no payload.
    assert (await client.ask("presence", channel="bin:room"))["presence"] == {}
    # It may do anything else, and can subscribe elsewhere.
    await client.subscribe("room")
    assert client.socket.closed_with is None
    assert len(logged(fleet.world, "bin:room")) == 1


@pytest.mark.parametrize("is_unidirectional", [False, True])
async def test_the_server_subscribes_no_client_in_json(
    fleet: Fleet, is_unidirectional: bool
) -> None:
    async def admits(_: ConnectEvent) -> ConnectReply:
        return ConnectReply(subs={"bin:room": ServerSubscription()})

    node = fleet.node("a", rules=RULES, hooks=Hooks(connect=admits))
    client = node.open()
    client.socket.is_unidirectional = is_unidirectional
    await client.say({"connect": {}})
    await until(lambda: client.socket.closed_with)
    assert client.socket.closed_with is Disconnect.INAPPROPRIATE_PROTOCOL
    subscribed = await BinaryClient(node).ask("connect")
    assert "bin:room" in subscribed.subs


@pytest.mark.parametrize("raw", [b"\xff\x00", b'{"a": 1}'])
async def test_data_that_goes_with_a_subscription(fleet: Fleet, raw: bytes) -> None:
    """By a token, by either hook, and by an order from another node."""

    async def admits(event: ConnectEvent) -> ConnectReply:
        return ConnectReply(subs={"bin:hook": ServerSubscription(data=raw)})

    async def lets(event: SubscribeEvent) -> SubscribeReply:
        return SubscribeReply(data=raw)

    node = fleet.node("a", rules=RULES, secret=SECRET, hooks=Hooks(connect=admits, subscribe=lets))
    claims = {"sub": "ann", "subs": {"bin:token": {"b64data": to_base64(raw)}}}
    client = BinaryClient(node)
    connected = await client.ask("connect", token=jwt.encode(claims, SECRET))
    assert {name: sub.data for name, sub in connected.subs.items()} == {
        "bin:hook": raw,
        "bin:token": raw,
    }
    assert (await client.ask("subscribe", channel="bin:room")).data == raw
    given = SubscribeOrder(Target("ann"), "bin:order", ServerSubscription(data=raw))
    order = order_of(order_signal(given, "b", "1"))
    assert order == given
    node.assembly.node.orders.give(order)

    def pushed() -> list[Any]:
        pushes = [each.push for each in client.socket.messages]
        return [push for push in pushes if push.channel == "bin:order"]

    await until(pushed)
    assert pushed()[0].subscribe.data == raw


async def test_bytes_go_with_no_subscription_to_json(fleet: Fleet) -> None:
    async def lets(event: SubscribeEvent) -> SubscribeReply:
        return SubscribeReply(data=b"\xff")

    node = fleet.node("a", rules=RULES, secret=SECRET, hooks=Hooks(subscribe=lets))
    claims = {"sub": "ann", "subs": {"room": {"b64data": "/w=="}}}
    client = BinaryClient(node)
    connect = {"id": 1, "connect": {"token": jwt.encode(claims, SECRET)}}
    await client.connection.receive(command(connect), PROTOBUF_FRAMES)
    await until(lambda: client.socket.closed_with)
    assert client.socket.closed_with is Disconnect.INVALID_TOKEN
    other = await binary(node, token=jwt.encode({"sub": "ann"}, SECRET))
    assert await other.refused("subscribe", channel="room") == 100
    order = SubscribeOrder(Target("ann"), "room", ServerSubscription(data=b"\xff"))
    node.assembly.node.orders.give(order)
    await settled()
    assert other.connection.session.channels == set()


@pytest.mark.parametrize("b64data", [5, "?", "AA", None])
def test_an_order_whose_data_is_not_base64_is_malformed(b64data: Any) -> None:
    body = {"user": "ann", "b64data": b64data}
    with pytest.raises(MalformedOrder):
        order_of(Signal("subscribe", "1", "b", "bin:room", body))


@pytest.mark.parametrize(
    "channel, raw, code",
    [
        ("room", b"\xff", 107),
        ("room", b"", 107),
        ("json:room", b"\xff", 107),
        ("json:room", b"[1]", 0),
        ("objects:room", b"[1]", 107),
        ("objects:room", b"null", 107),
        ("objects:room", b' {"a":1}', 0),
        ("objects:room", b"", 107),
        ("bin:room", b"x" * 70_000, 0),
        # With base64 it is more than an item.
        ("bin:room", b"x" * 100_000, 106),
        ("nowhere:room", b"\xff", 102),
    ],
)
async def test_what_may_be_published_where(
    fleet: Fleet, channel: str, raw: bytes, code: int
) -> None:
    node = fleet.node("a", rules=RULES, message_size_limit=1_000_000)
    client = await binary(node)
    assert await client.refused("publish", channel=channel, data=raw) == code


async def test_objects_alone_in_json(fleet: Fleet) -> None:
    node = fleet.node("a", rules=RULES)
    client = await node.client()
    await client.publish("objects:room", {})
    wrong: list[Any] = [[], 1, None, "{}"]
    for data in wrong:
        error = await refused(client, "publish", channel="objects:room", data=data)
        assert error == {"code": 107, "message": "bad request"}


async def test_a_hook_gets_bytes_and_may_replace_them(fleet: Fleet) -> None:
    seen: list[object] = []

    async def asks(event: PublishEvent) -> PublishReply | None:
        seen.append(event.data)
        answers: dict[object, object] = {
            b"other": b"\xff\x00",
            b"wrong": "text",
            b"[2]": [2],
        }
        if event.data == b"same":
            return PublishReply()
        if event.data == {"a": 1}:
            return PublishReply([event.data])
        return PublishReply(answers[event.data]) if event.data in answers else None

    node = fleet.node("a", rules=RULES, hooks=Hooks(publish=asks))
    client = await binary(node)
    await client.ask("subscribe", channel="bin:room")
    await client.publish("bin:room", b"same", b"other", b"as ever")
    for wrong in (b"wrong", b"[2]"):
        assert await client.refused("publish", channel="bin:room", data=wrong) == 100
    assert await client.pushed("bin:room", 3) == [b"same", b"\xff\x00", b"as ever"]
    # A JSON channel's hook gets values, and may not reply with what the channel does not take.
    assert await client.refused("publish", channel="objects:room", data=b'{"a": 1}') == 107
    assert seen[-1] == {"a": 1}


async def test_an_older_node_reads_base64_as_text(fleet: Fleet) -> None:
    """A node that does not know the mark: it takes the stored data for the value."""
    node = fleet.node("a", rules=RULES)
    client = await binary(node)
    await client.publish("bin:room", b"\xff\x00")
    [item] = fleet.world.stream
    [stored] = json.loads(item.pubs)
    assert stored.pop("b64") is True
    assert stored["data"] == "/wA="
    assert Publication.from_stored(stored, 1).data == "/wA="


async def test_frames_without_a_payload_at_all(fleet: Fleet) -> None:
    """Such as a publish without any field, which names no channel."""
    node = fleet.node("a", rules=RULES)
    client = await binary(node)
    await client.connection.receive(command({"id": 9, "publish": {}}), PROTOBUF_FRAMES)
    await settled()
    assert client.socket.closed_with is Disconnect.BAD_REQUEST
