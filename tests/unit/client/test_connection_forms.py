"""Shorter pushes, as a client asks for them: what is granted,
and that nobody gets a difference from what it does not have.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any, Final

import pytest
from centrifuge.fossil import apply_delta

from roomcast.delivery.recovery import RING_BYTES_MAX
from roomcast.gateway.writer import Writer, protobuf_frame, text_frame
from roomcast.wire.channels import ChannelOptions, ChannelRules
from roomcast.wire.codes import Disconnect
from tests.unit.gateway.test_writer import Transport
from tests.unit.worlds import Client, Fleet, LocalNode, settled, until

OPEN: Final = ChannelOptions(
    history_size=100, history_ttl_s=300, join_leave=True, force_push_join_leave=True
)
SHORT: Final = replace(
    OPEN, allow_channel_compaction=True, allowed_delta_types=("fossil",), delta_publish=True
)
RULES: Final = ChannelRules(
    without_namespace=SHORT,
    namespaces={"open": OPEN, "live": replace(SHORT, history_size=0, history_ttl_s=0)},
)
COMPACTION: Final = 1
# A difference between two of these pays.
TEXTS: Final = [f"{'the same words again and again ' * 5}{number}" for number in range(20)]


@pytest.fixture
async def node() -> AsyncIterator[LocalNode]:
    made = Fleet().node(rules=RULES)
    yield made
    await made.close()


def pubs(client: Client) -> list[dict[str, Any]]:
    return [push["pub"] for push in client.socket.pushes if "pub" in push]


def decoded(client: Client, recovered: list[dict[str, Any]] | None = None) -> list[Any]:
    """What the application of a client with differences gets."""
    before, data = b"", []
    for pub in [*(recovered or []), *pubs(client)]:
        text = pub["data"].encode()
        before = bytes(apply_delta(before, text)) if pub.get("delta") else text
        data.append(json.loads(before))
    return data


async def test_both_are_granted_where_the_channel_allows_them(node: LocalNode) -> None:
    client = await node.client()
    granted = await client.subscribe("room", flag=COMPACTION, delta="fossil")
    assert granted["delta"] is True
    assert granted["id"] > 0
    for channel, delta in (("open:room", None), ("live:room", None)):
        result = await client.subscribe(channel, flag=COMPACTION, delta="fossil")
        assert result.get("delta") is delta
        assert ("id" in result) == (channel == "live:room")
    other = await node.client()
    assert (await other.subscribe("room", flag=COMPACTION))["id"] == granted["id"], (
        "the same for all of a node"
    )
    assert not {"id", "delta"} & set(await (await node.client()).subscribe("room"))


async def test_a_kind_of_differences_that_is_not_known_ends_the_connection(node: LocalNode) -> None:
    client = await node.client()
    await client.say({"subscribe": {"channel": "room", "delta": "xdelta"}})
    await settled()
    assert client.socket.closed_with is Disconnect.BAD_REQUEST


async def test_a_number_stands_for_the_name_in_pushes_of_the_channel_only(node: LocalNode) -> None:
    client, other = await node.client(), await node.client()
    number = (await client.subscribe("room", flag=COMPACTION))["id"]
    await other.subscribe("room")
    await other.publish("room", 1)
    await until(lambda: pubs(client))
    assert {push.get("id") for push in client.socket.pushes} == {number}
    assert not any("channel" in push for push in client.socket.pushes)
    assert all(push["channel"] == "room" for push in other.socket.pushes)
    node.assembly.dispatcher._hub.lost("room")
    assert client.socket.pushes[-1]["channel"] == "room", "the end of a subscription has the name"
    assert client.socket.pushes[-1]["unsubscribe"]["code"] == 2500


async def test_who_comes_later_begins_whole(node: LocalNode) -> None:
    writer, first = await node.client(), await node.client()
    await first.subscribe("room", delta="fossil")
    for text in TEXTS[:3]:
        await writer.publish("room", text)
    later = await node.client()
    await later.subscribe("room", delta="fossil")
    for text in TEXTS[3:6]:
        await writer.publish("room", text)
    assert decoded(first) == TEXTS[:6]
    assert decoded(later) == TEXTS[3:6]
    assert [pub.get("delta", False) for pub in pubs(later)] == [False, True, True]


async def test_what_was_missed_is_whole_and_so_is_the_next_one(node: LocalNode) -> None:
    writer, client = await node.client(), await node.client()
    joined = await client.subscribe("room", delta="fossil", recoverable=True)
    for text in TEXTS[:5]:
        await writer.publish("room", text)
    back = await node.client()
    result = await back.subscribe(
        "room", delta="fossil", recover=True, epoch=joined["epoch"], offset=2
    )
    assert result["recovered"] is True
    assert result["delta"] is True
    for text in TEXTS[5:7]:
        await writer.publish("room", text)
    assert decoded(back, result["publications"]) == TEXTS[2:7]


async def test_a_recovery_that_would_be_too_large_as_text_is_plain_and_stays_so(
    node: LocalNode,
) -> None:
    """As text every quotation mark takes a byte more."""
    writer, client = await node.client(), await node.client()
    joined = await client.subscribe("room", delta="fossil", recoverable=True)
    quotes = ['""'] * 4000
    count = RING_BYTES_MAX // len(json.dumps(quotes, separators=(",", ":"))) - 1
    for _ in range(count):
        assert await writer.publish("room", quotes) == {}
    back = await node.client()
    result = await back.subscribe(
        "room", delta="fossil", recover=True, epoch=joined["epoch"], offset=0
    )
    assert result["recovered"] is True
    assert "delta" not in result
    assert [pub["data"] for pub in result["publications"]] == [quotes] * count
    await writer.publish("room", "next")
    assert [pub["data"] for pub in pubs(back)] == ["next"]


async def test_only_what_is_marked_or_published_by_clients_there_may_be_a_difference() -> None:
    made = Fleet().node(rules=ChannelRules(without_namespace=replace(SHORT, delta_publish=False)))
    client, writer = await made.client(), await made.client()
    await client.subscribe("room", delta="fossil")
    for text in TEXTS[:3]:
        await writer.publish("room", text)
    assert not any(pub.get("delta") for pub in pubs(client))
    assert decoded(client) == TEXTS[:3]
    await made.close()


@pytest.mark.parametrize("framer, is_binary", [(text_frame, False), (protobuf_frame, True)])
def test_a_writer_knows_its_encoding(framer: Any, is_binary: bool) -> None:
    assert Writer(Transport(), 1, framer).is_binary is is_binary
