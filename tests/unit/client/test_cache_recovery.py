"""Channels that recover in mode `cache`: a subscription begins with the newest publication."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Final

import pytest

from roomcast.auth.verifier import sign_connection
from roomcast.fleet.order_signals import SubscribeOrder, Target
from roomcast.hooks import ConnectEvent, ConnectReply, ServerSubscription
from roomcast.hooks.calls import Hooks
from roomcast.log.rules import MARGIN_MS, MIN_RETENTION_MS
from roomcast.ports import Throttled
from roomcast.wire.channels import ChannelOptions, ChannelRules
from tests.unit.worlds import HISTORY, SECRET, Client, Fleet, LocalNode, settled, until

NEWEST: Final = replace(HISTORY, history_size=10, force_recovery=True, force_recovery_mode="cache")
AUTO: Final = replace(NEWEST, auto_cache_recover=True)
RULES: Final = ChannelRules(
    NEWEST,
    {
        "auto": AUTO,
        "asked": replace(NEWEST, force_recovery=False, allow_recovery=True),
        "fossil": replace(AUTO, allowed_delta_types=("fossil",), delta_publish=True),
        "one": replace(AUTO, history_size=1),
    },
)
SINCE: Final = {"recover": True}
TAIL_VALID_S: Final = (MIN_RETENTION_MS - MARGIN_MS) / 1000


@pytest.fixture
def fleet() -> Fleet:
    return Fleet()


@pytest.fixture
def node(fleet: Fleet) -> LocalNode:
    return fleet.node(rules=RULES)


async def published(node: LocalNode, *data: Any, channel: str = "room") -> None:
    """By a client that does not subscribe."""
    client = await node.client()
    for each in data:
        assert await client.publish(channel, each) == {}


def had(result: dict[str, Any]) -> list[Any]:
    return [pub["data"] for pub in result.get("publications", ())]


async def test_the_first_subscribe_may_ask_for_the_newest(fleet: Fleet, node: LocalNode) -> None:
    """As SDKs do with an empty `since`. What Centrifugo answers: the client's own offset, which is
    none, and the publication's.
    """
    await published(node, 1, 2, 3)
    epoch = fleet.world.stream[0].epoch
    client = await node.client()
    reads = fleet.traffic.reads
    result = await client.subscribe("room", **SINCE)
    assert fleet.traffic.reads - reads <= 3, "the tail, the newest publication and the head"
    [publication] = result.pop("publications")
    assert (publication["data"], publication["offset"]) == (3, 3)
    assert result == {
        "recoverable": True,
        "positioned": True,
        "epoch": epoch,
        "recovered": True,
        "was_recovering": True,
    }
    await published(node, 4)
    await until(lambda: client.socket.offsets("room") == [4])


async def test_it_is_one_read_for_all_who_come(fleet: Fleet, node: LocalNode) -> None:
    await published(node, 1, 2)
    assert had(await (await node.client()).subscribe("room", **SINCE)) == [2]
    reads = fleet.traffic.reads
    for _ in range(3):
        assert had(await (await node.client()).subscribe("room", **SINCE)) == [2]
    assert fleet.traffic.reads == reads


@pytest.mark.parametrize(
    "since",
    [{"offset": 1}, {"offset": 1, "epoch": "another"}, {"offset": 9, "epoch": "another"}],
)
async def test_whatever_was_missed_the_newest_comes(node: LocalNode, since: dict[str, Any]) -> None:
    await published(node, *range(1, 6))
    result = await (await node.client()).subscribe("room", **SINCE, **since)
    assert (had(result), result["recovered"]) == ([5], True)


async def test_who_has_the_newest_gets_nothing_again(fleet: Fleet, node: LocalNode) -> None:
    await published(node, 1, 2)
    epoch = fleet.world.stream[0].epoch
    result = await (await node.client()).subscribe("room", **SINCE, epoch=epoch, offset=2)
    assert (had(result), result["recovered"], result["offset"]) == ([], True, 2)


async def test_who_claims_to_be_ahead_gets_what_there_is(fleet: Fleet, node: LocalNode) -> None:
    """After a read: this node may be behind."""
    await published(node, 1, 2)
    epoch = fleet.world.stream[0].epoch
    result = await (await node.client()).subscribe("room", **SINCE, epoch=epoch, offset=7)
    assert (had(result), result["recovered"]) == ([2], True)


async def test_a_node_that_is_behind_reads_on_first(fleet: Fleet, node: LocalNode) -> None:
    await published(node, 1)
    before = await (await node.client()).subscribe("room", **SINCE)
    other = fleet.node("b", rules=RULES)
    await published(other, 2, 3)
    result = await (await node.client()).subscribe("room", **SINCE, epoch=before["epoch"], offset=2)
    assert (had(result), result["recovered"]) == ([3], True)


async def test_where_there_is_nothing_nothing_is_recovered(fleet: Fleet, node: LocalNode) -> None:
    """Nor is that an error, though the client would have one (as in Centrifugo)."""
    refuse_unrecovered = 2
    for channel in ("room", "auto:room"):
        client = await node.client()
        result = await client.subscribe(channel, **SINCE, flag=refuse_unrecovered)
        assert result["was_recovering"] is True
        assert "recovered" not in result
        assert not had(result)
        await published(node, 1, channel=channel)
        await until(lambda: client.socket.offsets(channel) == [1])  # noqa: B023  # at once


@pytest.mark.parametrize("how", ["removed", "expired"])
async def test_what_is_not_shown_any_more_is_not_recovered(
    fleet: Fleet, node: LocalNode, how: str
) -> None:
    await published(node, 1, 2)
    if how == "removed":
        await node.assembly.log.remove_history("room")
    else:
        fleet.clock.advance(NEWEST.history_ttl_s + 1)
    result = await (await node.client()).subscribe("room", **SINCE)
    assert "recovered" not in result
    assert not had(result)
    assert result["offset"] == 2


async def test_after_the_epoch_there_is_none(fleet: Fleet, node: LocalNode) -> None:
    await published(node, 1)
    fleet.clock.advance(TAIL_VALID_S + 1)
    result = await (await node.client()).subscribe("room", **SINCE)
    assert "recovered" not in result


async def test_a_subscription_that_does_not_ask_begins_at_the_end(node: LocalNode) -> None:
    await published(node, 1)
    result = await (await node.client()).subscribe("room")
    assert "was_recovering" not in result
    assert (had(result), result["offset"]) == ([], 1)


async def test_it_comes_by_itself_where_the_options_say_so(node: LocalNode) -> None:
    await published(node, 1, 2, channel="auto:room")
    client = await node.client()
    result = await client.subscribe("auto:room")
    assert (had(result), result["recovered"], result["was_recovering"]) == ([2], True, True)
    await client.ask("unsubscribe", channel="auto:room")
    assert had(await client.subscribe("auto:room")) == [2]


async def test_who_may_recover_may_have_the_newest(node: LocalNode) -> None:
    await published(node, 1, 2, channel="asked:room")
    result = await (await node.client()).subscribe("asked:room", **SINCE, recoverable=True)
    assert (had(result), result["recovered"]) == ([2], True)


async def test_a_history_of_one_is_enough(node: LocalNode) -> None:
    await published(node, 1, 2, 3, channel="one:room")
    assert had(await (await node.client()).subscribe("one:room")) == [3]


async def test_it_is_whole_and_so_is_the_next_one(node: LocalNode) -> None:
    """As after any recovery."""
    text = "a long text that hardly changes " * 5
    await published(node, text + "1", channel="fossil:room")
    client = await node.client()
    result = await client.subscribe("fossil:room", delta="fossil")
    assert result["delta"] is True
    [publication] = result["publications"]
    assert "delta" not in publication
    await published(node, text + "2", text + "3", channel="fossil:room")
    await until(lambda: client.socket.offsets("fossil:room") == [2, 3])
    pushes = [push["pub"] for push in client.socket.pushes if "pub" in push]
    assert ["delta" in push for push in pushes] == [False, True]


async def test_a_log_that_does_not_answer_is_an_error(fleet: Fleet, node: LocalNode) -> None:
    await published(node, 1)
    fleet.world.fail_next("newest", Throttled("busy"), times=1000)
    client = await node.client()
    [command] = await client.say({"subscribe": {"channel": "auto:room"}})
    for _ in range(400):
        fleet.clock.advance(1.0)
        await settled()
        if client.socket.reply_to(command) is not None:
            break
    assert (await client.answer(command))["error"]["code"] == 100


# ---- by the server


async def subs_at_connect(client: Client, channel: str, **connect: Any) -> dict[str, Any]:
    result = await client.connect(**connect)
    found: dict[str, Any] = result["subs"][channel]
    return found


async def test_server_side_subscriptions_begin_with_it_too(fleet: Fleet) -> None:
    """A client that only listens can ask for nothing."""
    node = fleet.node(rules=RULES, insecure=False, secret=SECRET)
    back_end = fleet.node("b", rules=RULES)
    for channel in ("auto:room", "room"):
        await published(back_end, 1, 2, channel=channel)
    subs: dict[str, Any] = {"auto:room": {}, "room": {}}
    subs["auto:off"] = {"override": {"force_recovery": {"value": False}}}
    token = sign_connection(
        "ann", SECRET, 3600, None, now_s=fleet.clock.now_ms() // 1000, claims={"subs": subs}
    )
    result = await node.open().connect(token=token)
    assert had(result["subs"]["auto:room"]) == [2]
    assert result["subs"]["auto:room"]["recovered"] is True
    assert "was_recovering" not in result["subs"]["room"]
    assert "was_recovering" not in result["subs"]["auto:off"]
    again = {"room": {"recover": True, "epoch": "another", "offset": 7}}
    assert had(await subs_at_connect(node.open(), "room", token=token, subs=again)) == [2]


async def test_the_connect_hook_may_ask_for_it(fleet: Fleet) -> None:
    async def connect(_event: ConnectEvent) -> ConnectReply:
        return ConnectReply(
            "ann",
            subs={"room": ServerSubscription(cache_recover=True), "other": ServerSubscription()},
        )

    node = fleet.node(rules=RULES, insecure=False, secret=SECRET, hooks=Hooks(connect=connect))
    back_end = fleet.node("b", rules=RULES)
    for channel in ("room", "other"):
        await published(back_end, 1, 2, channel=channel)
    result = await node.open().connect()
    assert had(result["subs"]["room"]) == [2]
    assert "was_recovering" not in result["subs"]["other"]


def test_an_unset_mode_is_stream() -> None:
    """As in Centrifugo."""
    assert not ChannelOptions().recovers_newest
    assert not ChannelOptions(force_recovery_mode="").recovers_newest


async def test_an_order_of_the_server_api_brings_it_behind_the_subscription(
    node: LocalNode,
) -> None:
    await published(node, 1, 2, channel="auto:room")
    client = await node.client()
    node.assembly.node.orders.give(SubscribeOrder(Target(client=client.id), "auto:room"))
    await until(lambda: client.socket.offsets("auto:room") == [2])
    assert [next(iter(push.keys() - {"channel"})) for push in client.socket.pushes] == [
        "subscribe",
        "pub",
    ]
