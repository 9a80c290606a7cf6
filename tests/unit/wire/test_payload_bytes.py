"""What a client publishes as bytes, in Protobuf, is what clients in Protobuf get,
by whatever way it comes to them.
"""

from __future__ import annotations

import json
from typing import Final

import pytest

from roomcast.auth.claims import ServerSubscription
from roomcast.hooks import ConnectEvent, ConnectReply, PublishEvent, PublishReply
from roomcast.hooks.calls import Hooks
from roomcast.wire.channels import ChannelOptions, ChannelRules
from tests.unit.binary import BinaryClient, binary
from tests.unit.worlds import Fleet, until

OPEN: Final = ChannelOptions(
    history_size=100,
    history_ttl_s=300,
    force_recovery=True,
    allow_subscribe_for_client=True,
    allow_publish_for_client=True,
    allow_history_for_client=True,
)
RULES: Final = ChannelRules(
    without_namespace=OPEN,
    namespaces={
        "live": ChannelOptions(allow_subscribe_for_client=True, allow_publish_for_client=True),
    },
)
# No encoder writes these by itself.
RAW: Final = [
    b'{"input": "test"}',
    b' {\n  "a" : 1.0,\t"b": [1E2, "\\u00e9"]\n}\r\n',
    b'"\\/"',
    b"12345678901234567890123",
    b'{"compact":true}',
]
# As JSON clients get them: on one line. And what a decoder makes of that.
LINES: Final = [raw.translate(None, b"\r\n") for raw in RAW]
DATA: Final = [json.loads(raw) for raw in RAW]


@pytest.fixture
def fleet() -> Fleet:
    made = Fleet()
    made.stream_to_topic()
    return made


@pytest.mark.parametrize("channel", ["room", "live:room"])
async def test_pushes_on_the_same_node_and_on_another(fleet: Fleet, channel: str) -> None:
    here, there = fleet.node("a", rules=RULES), fleet.node("b", rules=RULES)
    async with here.running(), there.running():
        clients = [await binary(node) for node in (here, there)]
        in_json = await there.client()
        for client in clients:
            await client.ask("subscribe", channel=channel)
        await in_json.subscribe(channel)
        await clients[0].publish(channel, *RAW)
        for client in clients:
            assert await client.pushed(channel, len(RAW)) == RAW
        await until(lambda: len(in_json.socket.published(channel)) == len(RAW))
        assert in_json.socket.published(channel) == DATA
        assert all(b'"text"' not in frame for frame in in_json.socket.frames)
        said = b"".join(in_json.socket.frames)
        assert all(b'"data":%b,' % line in said for line in LINES)


async def test_history_and_recovery_have_the_same_bytes(fleet: Fleet) -> None:
    """From what this node kept, and from the log."""
    here, there = fleet.node("a", rules=RULES), fleet.node("b", rules=RULES)
    writer, witness = await binary(here), await binary(here)
    epoch = (await witness.ask("subscribe", channel="room")).epoch
    await writer.publish("room", *RAW)
    for node in (here, there):
        reader = await binary(node)
        history = await reader.ask("history", channel="room", limit=100)
        assert [pub.data for pub in history.publications] == RAW
        back = await reader.ask("subscribe", channel="room", recover=True, epoch=epoch, offset=0)
        assert back.recovered
        assert [pub.data for pub in back.publications] == RAW
        in_json = await node.client()
        again = await in_json.subscribe("room", recover=True, epoch=epoch, offset=0)
        assert [pub["data"] for pub in again["publications"]] == DATA


async def test_server_side_subscriptions_recover_the_same_bytes(fleet: Fleet) -> None:
    async def admits(_: ConnectEvent) -> ConnectReply:
        return ConnectReply(subs={"room": ServerSubscription()})

    node = fleet.node("a", rules=RULES, hooks=Hooks(connect=admits))
    writer = await binary(node)
    before = (await writer.ask("history", channel="room")).epoch
    await writer.publish("room", *RAW)
    back = BinaryClient(node)
    subs = {"room": {"recover": True, "epoch": before, "offset": 0}}
    connected = await back.ask("connect", subs=subs)
    assert [pub.data for pub in connected.subs["room"].publications] == RAW


async def test_a_hook_may_replace_them(fleet: Fleet) -> None:
    async def asks(event: PublishEvent) -> PublishReply:
        return (
            PublishReply({"seen": event.data})
            if event.data == {"input": "test"}
            else PublishReply()
        )

    node = fleet.node("a", rules=RULES, hooks=Hooks(publish=asks))
    client = await binary(node)
    await client.ask("subscribe", channel="room")
    await client.publish("room", RAW[0], RAW[1])
    assert await client.pushed("room", 2) == [b'{"seen":{"input":"test"}}', RAW[1]]


async def test_what_is_published_in_json_is_written_anew(fleet: Fleet) -> None:
    node = fleet.node("a", rules=RULES)
    client, in_json = await binary(node), await node.client()
    await client.ask("subscribe", channel="room")
    frame = '{"id":9,"publish":{"channel":"room","data":{"a": [1, 2.0]},"text":"injected"}}'
    await in_json.connection.receive(frame)
    assert await client.pushed("room", 1) == [b'{"a":[1,2.0]}']


async def test_a_payload_whose_bytes_do_not_fit_beside_it_is_written_anew(fleet: Fleet) -> None:
    node = fleet.node("a", rules=RULES)
    client = await binary(node)
    await client.ask("subscribe", channel="room")
    large = json.dumps({"text": "x" * 60_000}).encode()
    await client.publish("room", large)
    assert await client.pushed("room", 1) == [large.replace(b" ", b"")]
