"""What two people on two instances do, with the published SDKs for JavaScript
and Python, unchanged.
"""

from __future__ import annotations

import asyncio
import json
from itertools import permutations
from typing import Any

import pytest

from tests.acceptance.conftest import OpenPeer, Token
from tests.acceptance.link import Link
from tests.acceptance.peers import CLIENTS, DEADLINE_S, PROTOBUF, SDKS, Peer, Refused
from tests.acceptance.roomcast import Dev

# Who speaks and who listens: the SDK of instance 1, then that of instance 2.
BOTH_WAYS = pytest.mark.parametrize(
    "here, there",
    [
        *permutations(SDKS),
        ("js", f"py{PROTOBUF}"),
        (f"js{PROTOBUF}", "py"),
        (f"py{PROTOBUF}", f"js{PROTOBUF}"),
    ],
)
EITHER = pytest.mark.parametrize("sdk", CLIENTS)
# Presence may be a second old (service/roomcast/presence/book.py), and has no event.
PRESENCE_POLL_S = 0.1


@BOTH_WAYS
async def test_a_message_crosses_instances_and_sdks(
    dev: Dev, peer: OpenPeer, token: Token, channel: str, here: str, there: str
) -> None:
    ann = await peer(here, dev.ws_urls[0], token("ann", "--info", '{"name":"Ann"}'))
    bob = await peer(there, dev.ws_urls[1], token("bob"))
    joined = [await each.subscribe(channel) for each in (ann, bob)]
    assert joined[0]["position"] == joined[1]["position"]
    assert joined[0]["position"]["epoch"]
    assert all(each["recoverable"] and not each["was_recovering"] for each in joined)

    data = {"text": "héllo ⏎\n \u2028 \uffff 🜲", "nested": [1, 2.5, None, True, {"": ""}]}
    await ann.publish(channel, data)
    for each in (ann, bob):
        message = await each.event("publication", channel=channel)
        assert message["offset"] == 1
        assert message["data"] == data
        assert message["info"] == {
            "user": "ann",
            "client": ann.client,
            "conn_info": {"name": "Ann"},
        }
    await bob.publish(channel, "back")
    for each in (ann, bob):
        message = await each.event("publication", channel=channel)
        assert message["info"]["client"] == bob.client
        assert each.received(channel) == [(1, data), (2, "back")]


@pytest.mark.parametrize("sdk", [f"{sdk}{PROTOBUF}" for sdk in SDKS])
async def test_bytes_arrive_as_they_were_sent(
    dev: Dev, peer: OpenPeer, channel: str, sdk: str
) -> None:
    """From one SDK in Protobuf to both on another instance, and from the log."""
    ann = await peer(sdk, dev.ws_urls[0])
    others = [await peer(f"{other}{PROTOBUF}", dev.ws_urls[1]) for other in SDKS]
    in_json = await peer("js", dev.ws_urls[1])
    for each in (ann, *others, in_json):
        await each.subscribe(channel)
    texts = ['{"input": "test"}', ' {\n\t"a" : [1.0, 1E2, "\\u00e9"] }\n', '{"compact":true}']
    for text in texts:
        await ann.publish_text(channel, text)
    for each in (ann, *others):
        assert [(await each.event("publication", channel=channel))["text"] for _ in texts] == texts
        history = await each.history(channel)
        assert [message["text"] for message in history["publications"]] == texts
    assert [(await in_json.event("publication", channel=channel))["data"] for _ in texts] == [
        json.loads(text) for text in texts
    ]


async def test_two_who_speak_at_once_are_heard_in_one_order(
    dev: Dev, peer: OpenPeer, channel: str
) -> None:
    ann, bob = await peer("js", dev.ws_urls[0]), await peer("py", dev.ws_urls[1])
    for each in (ann, bob):
        await each.subscribe(channel)
    said = [
        (each, f"{name} {number}")
        for number in range(25)
        for name, each in (("ann", ann), ("bob", bob))
    ]
    await asyncio.gather(*(each.publish(channel, text) for each, text in said))
    for each in (ann, bob):
        await each.event("publication", channel=channel, offset=len(said))
    assert ann.received(channel) == bob.received(channel)
    assert [offset for offset, _ in ann.received(channel)] == list(range(1, len(said) + 1))
    assert sorted(data for _, data in ann.received(channel)) == sorted(text for _, text in said)
    # One client's messages keep the order in which it sent them.
    for name in ("ann", "bob"):
        of_one = [data for _, data in ann.received(channel) if data.startswith(name)]
        assert of_one == [f"{name} {number}" for number in range(25)]


@EITHER
async def test_history(dev: Dev, peer: OpenPeer, channel: str, sdk: str) -> None:
    writer, reader = await peer("py", dev.ws_urls[0]), await peer(sdk, dev.ws_urls[1])
    assert (await reader.history(channel))["publications"] == []
    for number in range(1, 6):
        await writer.publish(channel, number)

    async def numbers(**options: Any) -> list[int]:
        result = await reader.history(channel, **options)
        assert result["offset"] == 5
        assert all(message["offset"] == message["data"] for message in result["publications"])
        return [message["data"] for message in result["publications"]]

    epoch = (await reader.history(channel, limit=0))["epoch"]
    since = {"offset": 3, "epoch": epoch}
    assert await numbers(limit=0) == []
    assert await numbers() == [1, 2, 3, 4, 5]
    assert await numbers(limit=2) == [1, 2]
    assert await numbers(since=since) == [4, 5]
    assert await numbers(since=since, limit=1) == [4]
    assert await numbers(reverse=True) == [5, 4, 3, 2, 1]
    assert await numbers(reverse=True, limit=2) == [5, 4]
    assert await numbers(reverse=True, since=since) == [2, 1]
    with pytest.raises(Refused, match="unrecoverable position") as refused:
        await reader.history(channel, since={"offset": 3, "epoch": "of another time"})
    assert refused.value.code == 112


@BOTH_WAYS
async def test_presence_and_joins_over_both_instances(
    dev: Dev, peer: OpenPeer, token: Token, channel: str, here: str, there: str
) -> None:
    ann = await peer(here, dev.ws_urls[0], token("ann", "--info", '{"name":"Ann"}'))
    bob = await peer(there, dev.ws_urls[1], token("bob"))
    again = await peer("py", dev.ws_urls[1], token("ann"))
    everybody = (ann, bob, again)
    for each in everybody:
        await each.subscribe(channel)
    for each in everybody:
        await ann.event("join", info=_info(each, everybody))
    members = {each.client: _info(each, everybody) for each in everybody}
    for each in everybody:
        assert await each.presence(channel) == members
        assert await each.presence_stats(channel) == {"num_clients": 3, "num_users": 2}

    await bob.unsubscribe(channel)
    await ann.event("leave", info=_info(bob, everybody))
    await again.disconnect()
    await ann.event("leave", info=_info(again, everybody))
    await _until_present(ann, channel, {ann.client})
    await _until_present(bob, channel, {ann.client})
    came = [event["info"]["client"] for event in ann.events if event["event"] == "join"]
    assert sorted(came) == sorted(members)


@EITHER
async def test_a_client_that_is_cut_off_leaves(
    dev: Dev, peer: OpenPeer, channel: str, sdk: str
) -> None:
    ann = await peer("py", dev.ws_urls[0])
    await ann.subscribe(channel)
    async with Link(dev.ws_urls[1]) as link:
        bob = await peer(sdk, link.url)
        await bob.subscribe(channel)
        first = bob.client
        link.cut()
        left = await ann.event("leave")
        assert left["info"]["client"] == first
        await _until_present(ann, channel, {ann.client})
        link.mend()
        await bob.event("subscribed", channel=channel)
        assert bob.client != first
        await _until_present(ann, channel, {ann.client, bob.client})
        await bob.close()


@EITHER
async def test_unsubscribed_is_silent_until_subscribed_again(
    dev: Dev, peer: OpenPeer, channel: str, sdk: str
) -> None:
    url = dev.ws_urls[0]
    writer, reader = await peer("py", url), await peer(sdk, url)
    other = f"{channel}-other"
    await reader.subscribe(channel)
    await reader.subscribe(other)
    await writer.publish(channel, "heard")
    await reader.event("publication", channel=channel)

    await reader.unsubscribe(channel)
    # On one instance a subscriber is served before the acknowledgement, so what comes later tells.
    await writer.publish(channel, "missed")
    await writer.publish(other, "afterwards")
    await reader.event("publication", channel=other)
    assert reader.received(channel) == [(1, "heard")]

    again = await reader.subscribe(channel)
    assert again["recovered"]
    await writer.publish(channel, "heard again")
    await reader.event("publication", channel=channel, data="heard again")
    assert reader.received(channel) == [(1, "heard"), (2, "missed"), (3, "heard again")]


@BOTH_WAYS
async def test_what_is_published_again_with_its_key_is_published_once(
    dev: Dev, peer: OpenPeer, channel: str, here: str, there: str
) -> None:
    """Whether on the same instance or on another."""
    ann, bob = await peer(here, dev.ws_urls[0]), await peer(there, dev.ws_urls[1])
    subscribed = await bob.subscribe(channel)
    call = {"channel": channel, "data": {"text": "once"}, "idempotency_key": "5f0c3a4e"}
    answers = [await each.rpc("roomcast.publish", call) for each in (ann, ann, bob)]
    assert answers == [{"offset": 1, "epoch": subscribed["position"]["epoch"]}] * 3
    # A canceled transaction harms neither the log nor its stream.
    await ann.publish(channel, "afterwards")
    await bob.event("publication", channel=channel, offset=2)
    assert bob.received(channel) == [(1, {"text": "once"}), (2, "afterwards")]
    with pytest.raises(Refused, match="bad request"):
        await ann.rpc("roomcast.publish", {**call, "idempotency_key": ""})


@EITHER
async def test_what_is_not_provided_is_said_so(
    dev: Dev, peer: OpenPeer, channel: str, sdk: str
) -> None:
    client = await peer(sdk, dev.ws_urls[0])
    with pytest.raises(Refused, match="not available") as refused:
        await client.rpc("sum", [1, 2])
    assert refused.value.code == 108
    with pytest.raises(Refused, match="unknown channel") as refused:
        await client.publish(f"nowhere:{channel}", 1)
    assert refused.value.code == 102
    await client.publish(channel, "still here")


@EITHER
async def test_a_message_too_large_is_refused_and_the_connection_lives(
    dev: Dev, peer: OpenPeer, channel: str, sdk: str
) -> None:
    client = await peer(sdk, dev.ws_urls[0])
    await client.subscribe(channel)
    with pytest.raises(Refused, match="limit exceeded") as refused:
        await client.publish(channel, "x" * 70_000)
    assert refused.value.code == 106
    large = "x" * 60_000
    await client.publish(channel, large)
    await client.event("publication", channel=channel)
    assert client.received(channel) == [(1, large)]
    assert [event["event"] for event in client.events if event["event"] in _CONNECTION] == [
        "connecting",
        "connected",
    ]


_CONNECTION = ("connecting", "connected", "disconnected", "error")


def _info(peer: Peer, everybody: tuple[Peer, ...]) -> dict[str, Any]:
    user, info = {0: ("ann", {"name": "Ann"}), 1: ("bob", None), 2: ("ann", None)}[
        everybody.index(peer)
    ]
    return {"user": user, "client": peer.client, "conn_info": info}


async def _until_present(peer: Peer, channel: str, clients: set[str]) -> None:
    loop = asyncio.get_running_loop()
    give_up_s = loop.time() + DEADLINE_S
    while (present := set(await peer.presence(channel))) != clients:
        assert loop.time() < give_up_s, f"{present} are there, not {clients}"
        await asyncio.sleep(PRESENCE_POLL_S)
