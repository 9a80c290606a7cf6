"""Server-side subscriptions as a client connects: all of them, with what it missed,
and the answer, in one tick.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any, Final

import jwt
import pytest

from roomcast.client import subscribe as subscribe_module
from roomcast.fleet.order_signals import (
    DisconnectOrder,
    RefreshOrder,
    SubscribeOrder,
    Target,
    UnsubscribeOrder,
)
from roomcast.ports import Throttled
from roomcast.wire.channels import ChannelOptions, ChannelRules
from roomcast.wire.codes import Disconnect, DisconnectCode
from roomcast.wire.publication import Publication
from tests.unit.worlds import SECRET, Client, Fleet, LocalNode, settled, until

HISTORY: Final = ChannelOptions(history_size=100, history_ttl_s=300)
SURE: Final = replace(HISTORY, force_recovery=True)
RULES: Final = ChannelRules(
    without_namespace=SURE,
    namespaces={
        "plain": ChannelOptions(),
        "seen": replace(SURE, presence=True, join_leave=True, force_push_join_leave=True),
        "own": SURE,
    },
)


@pytest.fixture
def fleet() -> Fleet:
    return Fleet()


@pytest.fixture
async def node(fleet: Fleet) -> AsyncIterator[LocalNode]:
    made = fleet.node(insecure=False, secret=SECRET, rules=RULES)
    yield made
    await made.close()


def token(user: str = "ann", **claims: Any) -> str:
    return jwt.encode({"sub": user, **claims}, SECRET)


async def publish(node: LocalNode, channel: str, *contents: Any) -> None:
    """As a back end does."""
    for data in contents:
        await node.assembly.node.services.appender.submit(
            channel, Publication(data), SURE.history_ttl_s * 1000
        )


async def connect(node: LocalNode, *channels: str, **params: Any) -> tuple[Client, dict[str, Any]]:
    """A client whose token has `channels`, and the answer to its connect."""
    client = node.open()
    result = await client.connect(token=token(channels=list(channels)), **params)
    assert isinstance(result, dict), result
    return client, result


async def test_the_answer_has_every_subscription(node: LocalNode) -> None:
    await publish(node, "room", "before")
    ann, result = await connect(node, "room", "empty", "plain:x")
    epoch = result["subs"]["room"]["epoch"]
    assert result["subs"] == {
        "room": {"recoverable": True, "positioned": True, "epoch": epoch, "offset": 1},
        "empty": {
            "recoverable": True,
            "positioned": True,
            "epoch": result["subs"]["empty"]["epoch"],
        },
        "plain:x": {},
    }
    await publish(node, "room", "after")
    await publish(node, "empty", "first")
    assert ann.socket.published("room") == ["after"]
    assert ann.socket.published("empty") == ["first"]
    assert list(result)[:2] == ["client", "version"]


async def test_a_token_without_subscriptions_is_answered_as_ever(node: LocalNode) -> None:
    _, result = await connect(node)
    assert "subs" not in result


async def test_what_was_missed_comes_with_the_answer(node: LocalNode) -> None:
    await publish(node, "room", 1)
    ann, result = await connect(node, "room")
    await publish(node, "room", 2)
    position = {"recover": True, "epoch": result["subs"]["room"]["epoch"], "offset": 2}
    node.assembly.node.closed(ann.connection)
    await publish(node, "room", 3, 4)
    ann, result = await connect(node, "room", "other", subs={"room": position, "gone": position})
    recovered = result["subs"]["room"]
    assert [pub["data"] for pub in recovered.pop("publications")] == [3, 4]
    assert recovered == {
        "recoverable": True,
        "positioned": True,
        "epoch": position["epoch"],
        "offset": 2,
        "recovered": True,
        "was_recovering": True,
    }
    assert result["subs"].keys() == {"room", "other"}, "the token says what it is subscribed to"
    assert "was_recovering" not in result["subs"]["other"]
    await publish(node, "room", 5)
    assert ann.socket.published("room") == [5]


async def test_what_cannot_be_recovered_is_told(node: LocalNode) -> None:
    await publish(node, "room", 1)
    lost = {"recover": True, "epoch": "another", "offset": 1}
    not_asked = {"recover": False, "epoch": "another", "offset": 1}
    _, result = await connect(node, "room", "other", subs={"room": lost, "other": not_asked})
    assert result["subs"]["room"]["was_recovering"] is True
    assert "recovered" not in result["subs"]["room"]
    assert result["subs"]["room"]["offset"] == 1
    assert "was_recovering" not in result["subs"]["other"]


async def test_all_recoveries_together_bring_no_more_than_one_may(
    node: LocalNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or they would be taken for slowness."""
    monkeypatch.setattr(subscribe_module, "RING_BYTES_MAX", 2500)
    channels = ("one", "two", "three")
    for channel in channels:
        await publish(node, channel, "x" * 1000)
    since = {channel: {"recover": True, "epoch": "", "offset": 0} for channel in channels}
    _, result = await connect(node, *channels, subs=since)
    assert ["recovered" in result["subs"][channel] for channel in channels] == [True, True, False]
    assert result["subs"]["three"]["was_recovering"] is True
    assert result["subs"]["three"]["offset"] == 1


async def test_nothing_falls_between_the_answer_and_the_first_push(
    fleet: Fleet, node: LocalNode
) -> None:
    """I4, in one channel while the log is read for another."""
    await publish(node, "slow", 1)
    other, _ = await connect(node, "quick")
    held = fleet.traffic.hold("read_backward")
    since = {"slow": {"recover": True, "epoch": "", "offset": 0}, "quick": {"recover": True}}
    connecting = asyncio.create_task(connect(node, "quick", "slow", subs=since))
    await held.arrived()
    await publish(node, "quick", "during")
    held.release()
    ann, result = await connecting
    quick = result["subs"]["quick"]
    assert [pub["data"] for pub in quick["publications"]] == ["during"]
    assert [pub["data"] for pub in result["subs"]["slow"]["publications"]] == [1]
    await publish(node, "quick", "after")
    assert ann.socket.offsets("quick") == [2]
    assert other.socket.offsets("quick") == [1, 2]
    assert "connect" in ann.socket.lines[0]


async def test_it_is_present_and_others_are_told(node: LocalNode) -> None:
    bob = node.open()
    await bob.connect(token=token("bob", channels=["seen:x"]))
    ann = node.open()
    subs = {"seen:x": {"info": {"role": "guest"}, "data": {"hello": 1}}}
    result = await ann.connect(token=token(subs=subs, info={"name": "Ann"}))
    assert result["subs"]["seen:x"]["data"] == {"hello": 1}
    assert bob.socket.told("seen:x", "join") == [bob.id, ann.id]
    members = await node.assembly.node.services.presence.members("seen:x")
    assert members[ann.id].wire() == {
        "user": "ann",
        "client": ann.id,
        "conn_info": {"name": "Ann"},
        "chan_info": {"role": "guest"},
    }
    node.assembly.node.closed(ann.connection)
    await node.assembly.background.finish()
    assert bob.socket.told("seen:x", "leave") == [ann.id]
    assert (await node.assembly.node.services.presence.members("seen:x")).keys() == {bob.id}


async def test_commands_behind_connect_find_the_subscriptions(
    fleet: Fleet, node: LocalNode
) -> None:
    ann = node.open()
    held = fleet.traffic.hold("newest")
    saying = asyncio.create_task(
        ann.say(
            {"connect": {"token": token(channels=["room"])}},
            {"subscribe": {"channel": "room"}},
            {"subscribe": {"channel": "plain:x", "token": "bad"}},
        )
    )
    await held.arrived()
    await settled()
    assert ann.socket.frames == []
    held.release()
    _, again, bad = await saying
    assert (await ann.answer(again))["error"]["code"] == 105
    assert (await ann.answer(bad))["error"]["code"] == 103


# ---- what goes wrong


async def test_an_unknown_channel_in_a_token(node: LocalNode) -> None:
    ann = node.open()
    assert await ann.connect(token=token(channels=["room", "no:where"])) == 102
    assert len(node.assembly.node.services.roster) == 0
    await ann.say({"ping": {}})
    assert ann.socket.closed_with is Disconnect.BAD_REQUEST


async def test_more_channels_than_a_connection_may_have(fleet: Fleet) -> None:
    node = fleet.node(insecure=False, secret=SECRET, rules=RULES, channel_limit=2)
    ann = node.open()
    await ann.say({"connect": {"token": token(channels=["one", "two", "three"])}})
    assert ann.socket.closed_with is Disconnect.CHANNEL_LIMIT
    assert ann.socket.frames == []
    assert len(node.assembly.node.services.roster) == 0
    await node.close()


@pytest.mark.parametrize("call", ["newest", "add"])
async def test_when_the_table_fails_nothing_is_left_and_it_may_come_again(
    fleet: Fleet, node: LocalNode, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    monkeypatch.setattr(subscribe_module, "SUBSCRIBE_LIMIT_S", 0.05)
    held = fleet.traffic.hold(call)
    ann = node.open()
    assert await ann.connect(token=token(channels=["room", "seen:x"])) == 100
    held.release()
    await node.assembly.background.finish()
    assert len(node.assembly.node.services.roster) == 0
    assert not len(node.assembly.hub)
    assert not len(node.assembly.dispatcher)
    assert await node.assembly.node.services.presence.members("seen:x") == {}
    assert not ann.connection._work.changes
    fleet.world.fail_next("add", Throttled("simulated"))
    assert await node.open().connect(token=token(channels=["seen:x"])) == 100
    _, result = await connect(node, "room", "seen:x")
    assert result["subs"].keys() == {"room", "seen:x"}


async def test_a_client_that_goes_away_meanwhile_leaves_nothing(
    fleet: Fleet, node: LocalNode
) -> None:
    ann = node.open()
    held = fleet.traffic.hold("newest")
    saying = asyncio.create_task(
        ann.say({"connect": {"token": token(channels=["room", "seen:x"])}})
    )
    await held.arrived()
    node.assembly.node.closed(ann.connection)
    held.release()
    await saying
    await node.assembly.background.finish()
    assert ann.socket.frames == []
    assert not len(node.assembly.hub)
    assert not len(node.assembly.dispatcher)
    assert await node.assembly.node.services.presence.members("seen:x") == {}
    assert len(node.assembly.node.services.roster) == 0


async def test_orders_find_who_is_about_to_be_connected(fleet: Fleet, node: LocalNode) -> None:
    orders = node.assembly.node.orders
    banned, welcome = node.open(), node.open()
    held = fleet.traffic.hold("newest")
    saying = [
        asyncio.create_task(each.say({"connect": {"token": token(user, channels=["one", "two"])}}))
        for each, user in ((banned, "eve"), (welcome, "ann"))
    ]
    await held.arrived(2)
    orders.give(DisconnectOrder(Target("eve"), DisconnectCode(4500, "banned")))
    orders.give(UnsubscribeOrder(Target("ann"), "one"))
    orders.give(SubscribeOrder(Target("ann"), "three"))
    orders.give(RefreshOrder(Target("ann"), info="new"))
    held.release()
    await asyncio.gather(*saying)
    assert (banned.socket.closed_with, banned.socket.frames) == (DisconnectCode(4500, "banned"), [])
    await until(lambda: len(welcome.socket.lines) == 3)
    assert welcome.socket.lines[0]["connect"]["subs"].keys() == {"one", "two"}
    told = {
        push["channel"]: next(iter(push.keys() - {"channel"})) for push in welcome.socket.pushes
    }
    assert told == {"one": "unsubscribe", "three": "subscribe"}
    assert welcome.connection.session.channels == {"two", "three"}


# ---- channels of users


@pytest.mark.parametrize("namespace, channel", [("", "#ann"), ("own", "own:#ann")])
async def test_a_personal_channel(fleet: Fleet, namespace: str, channel: str) -> None:
    node = fleet.node(
        insecure=False,
        secret=SECRET,
        rules=RULES,
        subscribe_to_user_personal_channel=True,
        user_personal_channel_namespace=namespace,
        allow_anonymous_connect_without_token=True,
    )
    ann, result = await connect(node, "room")
    assert result["subs"].keys() == {"room", channel}
    await publish(node, channel, "for Ann")
    assert ann.socket.published(channel) == ["for Ann"]
    assert "subs" not in await node.open().connect()
    eve = node.open()
    await eve.connect(token=token("eve"))
    assert await eve.subscribe(channel) == 103
    await node.close()
