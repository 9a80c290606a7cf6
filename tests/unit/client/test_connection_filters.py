"""Filters by tags: who may set one, what a subscriber gets then, live and recovered."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any, Final

import pytest

from roomcast.auth.verifier import sign_connection, sign_subscription
from roomcast.client import subscribe as subscribe_module
from roomcast.client.subscribe import RECOVERY_TESTS_MAX
from roomcast.delivery import hub as hub_module
from roomcast.hooks import (
    ConnectReply,
    PublishEvent,
    PublishReply,
    ServerSubscription,
    SubscribeReply,
)
from roomcast.hooks.calls import Hooks
from roomcast.wire.channels import ChannelRules
from roomcast.wire.codes import Disconnect
from roomcast.wire.encoding import stored_of
from roomcast.wire.publication import Publication
from tests.unit.worlds import HISTORY, SECRET, Client, Fleet, LocalNode, settled, until

NOW_S: Final = 1_700_000_000
FILTERED: Final = replace(
    HISTORY,
    allow_subscribe_for_client=True,
    allow_publish_for_client=True,
    allow_tags_filter=True,
    allow_recovery=True,
    allow_positioning=True,
    allow_channel_compaction=True,
    allowed_delta_types=("fossil",),
)
RULES: Final = ChannelRules(FILTERED, {"closed": replace(FILTERED, allow_tags_filter=False)})
A: Final = {"key": "kind", "cmp": "eq", "val": "a"}
B: Final = {"key": "kind", "cmp": "eq", "val": "b"}
LARGE: Final = {"key": "size", "cmp": "gte", "val": "10"}


@pytest.fixture
def fleet() -> Fleet:
    return Fleet()


@asynccontextmanager
async def node(
    fleet: Fleet, hooks: Hooks | None = None, **changes: Any
) -> AsyncIterator[LocalNode]:
    secure: dict[str, Any] = {"insecure": False, "secret": SECRET, "rules": RULES}
    made = fleet.node(hooks=hooks, **secure | changes)
    yield made
    await made.close()


def token(**claims: Any) -> str:
    return sign_connection("ann", SECRET, 3600, None, now_s=NOW_S, claims=claims or None)


def sub_token(channel: str = "room", **claims: Any) -> str:
    return sign_subscription("ann", channel, SECRET, 3600, now_s=NOW_S, claims=claims or None)


async def publish(node: LocalNode, *kinds: str, channel: str = "room", size: str = "") -> None:
    """As a back end does: each with this tag, whose data is the same."""
    for kind in kinds:
        tags: Mapping[str, str] = {"kind": kind} | ({"size": size} if size else {})
        await node.assembly.node.services.appender.submit(
            channel, Publication(kind, tags=tags), FILTERED.history_ttl_s * 1000
        )
    await settled()


async def joined(node: LocalNode, channel: str = "room", **asked: Any) -> tuple[Client, Any]:
    client = await node.client(token=token())
    return client, await client.subscribe(channel, **asked)


# ---- by the client


async def test_a_client_gets_what_passes_live_and_recovered(fleet: Fleet) -> None:
    async with node(fleet) as served:
        client, result = await joined(served, tf=A, recoverable=True)
        since = {"recover": True, "epoch": result["epoch"], "offset": 0}
        await publish(served, "a", "b", "a")
        assert client.socket.published("room") == ["a", "a"]
        assert client.socket.offsets("room") == [1, 3], "with a gap, which is none"
        _, result = await joined(served, tf=B, **since)
        assert [each["data"] for each in result["publications"]] == ["b"]
        assert (result["recovered"], result.get("offset", 0)) == (True, 0)
        # Who has missed nothing that passes goes on from the top.
        none, result = await joined(served, tf={"cmp": "ex", "key": "x"}, **since)
        assert (result["recovered"], result["offset"]) == (True, 3)
        assert "publications" not in result
        await publish(served, "x")
        assert none.socket.published("room") == []


async def test_a_channel_without_history_has_filters_too(fleet: Fleet) -> None:
    rules = ChannelRules(replace(FILTERED, history_size=0, history_ttl_s=0))
    async with node(fleet, rules=rules) as served, served.running():
        client, _ = await joined(served, tf=A)
        for kind in "bab":
            served.assembly.node.services.publisher.send(
                "room",
                stored_of(Publication(kind, tags={"kind": kind})),
            )
        await until(lambda: client.socket.published("room"))
        assert client.socket.published("room") == ["a"]


async def test_who_may_not_ask_or_asks_for_nonsense_is_refused(fleet: Fleet) -> None:
    async with node(fleet) as served:
        client = await served.client(token=token())
        for channel, asked in (
            ("closed:room", {"tf": A}),
            ("room", {"tf": {"key": "kind", "cmp": "is", "val": "a"}}),
            ("room", {"tf": A, "delta": "fossil"}),
        ):
            assert await client.subscribe(channel, **asked) == 107
        # Nothing of it is left: without the filter it is in.
        assert isinstance(await client.subscribe("room", delta="fossil"), dict)
        assert isinstance(await client.subscribe("closed:room"), dict)


async def test_a_number_for_the_channel_goes_with_a_filter(fleet: Fleet) -> None:
    async with node(fleet) as served:
        client, result = await joined(served, tf=A, flag=1)
        await publish(served, "b", "a")
        [push] = client.socket.pushes
        assert (push["id"], push["pub"]["data"]) == (result["id"], "a")


async def test_beyond_the_bound_nobody_gets_another_filter(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub_module, "CHANNEL_NODES_MAX", 1)
    async with node(fleet) as served:
        first, _ = await joined(served, tf=A)
        client, refused = await joined(served, tf=B)
        assert refused == 106
        assert isinstance(await client.subscribe("other", tf=B), dict)
        assert isinstance(await client.subscribe("room", tf=A), dict), "it is there"
        assert isinstance((await joined(served))[1], dict)
        # What the server subscribes to as well.
        subs = {"room": {"server_tags_filter": B}}
        assert await served.open().connect(token=token(subs=subs)) == 100
        await publish(served, "b", "a")
        assert first.socket.published("room") == client.socket.published("room") == ["a"]


async def test_what_a_recovery_tests_is_bounded(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(subscribe_module, "RECOVERY_TESTS_MAX", 6)
    assert RECOVERY_TESTS_MAX > 1_000
    both = {"op": "or", "nodes": [A, B]}
    async with node(fleet) as served:
        _, result = await joined(served, recoverable=True)
        since = {"recover": True, "epoch": result["epoch"], "offset": 0}
        await publish(served, "a", "b", "a")
        for tf, recovered in ((A, True), (both, False), (None, True)):
            _, result = await joined(served, tf=tf, **since)
            assert result.get("recovered", False) is recovered, tf
        # All subscriptions of a connect together.
        await publish(served, "a", "b", "a", channel="other")
        subs: dict[str, Any] = {name: {"server_tags_filter": A} for name in ("other", "room")}
        told = {name: {"recover": True, "epoch": since["epoch"]} for name in subs}
        other = await served.client(token=token())
        told["other"]["epoch"] = (await other.subscribe("other", positioned=True))["epoch"]
        answer = await served.open().connect(token=token(subs=subs), subs=told)
        assert [sub.get("recovered", False) for sub in answer["subs"].values()] == [True, True]
        subs["more"] = {"server_tags_filter": A}
        await publish(served, "a", channel="more")
        told["more"] = {
            "recover": True,
            "epoch": (await other.subscribe("more", positioned=True))["epoch"],
        }
        answer = await served.open().connect(token=token(subs=subs), subs=told)
        assert sum(sub.get("recovered", False) for sub in answer["subs"].values()) == 2


# ---- by the server


async def test_a_token_narrows_what_the_client_gets(fleet: Fleet) -> None:
    async with node(fleet) as served:
        one, _ = await joined(served, token=sub_token(server_tags_filter=LARGE))
        # In a channel where clients may not ask, and with no difference from what was held back.
        both, _ = await joined(served, token=sub_token(server_tags_filter=LARGE), tf=A)
        plain, result = await joined(
            served, token=sub_token(server_tags_filter=LARGE), delta="fossil"
        )
        assert "delta" not in result
        await publish(served, "a", "b", size="10")
        await publish(served, "a", "b", size="9")
        await publish(served, "a", "b")
        assert one.socket.published("room") == plain.socket.published("room") == ["a", "b"]
        assert both.socket.published("room") == ["a"]
        closed = sub_token("closed:room", server_tags_filter=A)
        client, _ = await joined(served, "closed:room", token=closed)
        await publish(served, "b", "a", channel="closed:room")
        assert client.socket.published("closed:room") == ["a"]


async def test_a_filter_of_a_token_that_is_none_lets_nobody_in(fleet: Fleet) -> None:
    async with node(fleet) as served:
        _, refused = await joined(served, token=sub_token(server_tags_filter={"key": "a"}))
        assert refused == 103
        client = served.open()
        subs: dict[str, Any] = {"room": {"server_tags_filter": []}}
        await client.say({"connect": {"token": token(subs=subs)}})
        assert client.socket.closed_with is Disconnect.INVALID_TOKEN


async def test_a_new_token_brings_a_new_filter(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with node(fleet) as served:
        client, _ = await joined(served, token=sub_token(server_tags_filter=A))
        await publish(served, "a", "b")

        async def refresh(**claims: Any) -> Any:
            return await client.ask("sub_refresh", channel="room", token=sub_token(**claims))

        assert isinstance(await refresh(server_tags_filter=B), dict)
        await publish(served, "a", "b")
        # Without one, the filter stays.
        assert isinstance(await refresh(), dict)
        assert isinstance(await refresh(server_tags_filter=B), dict)
        await publish(served, "a", "b")
        assert client.socket.published("room") == ["a", "b", "b"]
        # If it cannot be had, the subscription ends: the old one may show too much.
        monkeypatch.setattr(hub_module, "CHANNEL_NODES_MAX", 1)
        assert await refresh(server_tags_filter=A) == 106
        assert client.socket.unsubscribed("room") == [2501]
        await publish(served, "a", "b")
        assert client.socket.published("room") == ["a", "b", "b"]


async def test_who_takes_differences_gets_whole_publications_from_the_filter_on(
    fleet: Fleet,
) -> None:
    rules = ChannelRules(replace(FILTERED, delta_publish=True))
    async with node(fleet, rules=rules) as served:
        client, result = await joined(served, token=sub_token(), delta="fossil")
        assert result["delta"] is True
        fresh = sub_token(server_tags_filter=A)
        assert isinstance(await client.ask("sub_refresh", channel="room", token=fresh), dict)
        long = {"kind": "a", "text": "the same each time " * 20}
        for number, kind in enumerate("aba"):
            await served.assembly.node.services.appender.submit(
                "room",
                Publication({**long, "number": number}, tags={"kind": kind}, delta=True),
                FILTERED.history_ttl_s * 1000,
            )
        await settled()
        pushed = [push["pub"] for push in client.socket.pushes]
        assert [json.loads(each["data"])["number"] for each in pushed] == [0, 2]
        assert not any("delta" in each for each in pushed)


async def test_a_new_filter_waits_for_the_subscription(fleet: Fleet) -> None:
    """Also of an SDK that leaves the channel to the token."""
    async with node(fleet) as served:
        client = await served.client(token=token())
        held = fleet.traffic.hold("newest")
        first = sub_token(server_tags_filter=A)
        await client.say({"subscribe": {"channel": "room", "token": first}})
        await held.arrived()
        fresh = sub_token(server_tags_filter=B)
        refreshing = asyncio.create_task(client.ask("sub_refresh", token=fresh))
        await settled()
        held.release()
        assert isinstance(await refreshing, dict)
        await publish(served, "a", "b")
        assert client.socket.published("room") == ["b"]


async def test_the_filter_of_a_hook_holds_for_what_is_recovered(fleet: Fleet) -> None:
    """Of a subscription that the server makes, in one recovery with one of a token."""

    async def connect(_: Any) -> ConnectReply:
        return ConnectReply(subs={"room": ServerSubscription(server_tags_filter=B)})

    async with node(fleet, Hooks(connect=connect)) as served:
        asked: dict[str, Any] = {"token": token(subs={"other": {"server_tags_filter": A}})}
        first = await served.open().connect(**asked)
        for channel in ("room", "other"):
            await publish(served, "a", "b", "a", "b", channel=channel)
        since = {
            channel: {
                "recover": True,
                "epoch": first["subs"][channel].get("epoch", ""),
                "offset": 1,
            }
            for channel in ("room", "other")
        }
        again = served.open()
        answer = await again.connect(**asked, subs=since)
        assert {
            channel: [(pub["offset"], pub["data"]) for pub in sub["publications"]]
            for channel, sub in answer["subs"].items()
        } == {"room": [(2, "b"), (4, "b")], "other": [(3, "a")]}
        assert all(sub["recovered"] for sub in answer["subs"].values())
        await publish(served, "a", "b")
        assert again.socket.published("room") == ["b"]


async def test_what_a_new_token_filters_is_what_the_client_asked_for_as_well(fleet: Fleet) -> None:
    async with node(fleet) as served:
        client, _ = await joined(served, token=sub_token(), tf=A)
        fresh = sub_token(server_tags_filter=LARGE)
        assert isinstance(await client.ask("sub_refresh", channel="room", token=fresh), dict)
        await publish(served, "a", "b", size="11")
        await publish(served, "a")
        assert client.socket.published("room") == ["a"]


async def test_subscriptions_of_a_connect_have_filters(fleet: Fleet) -> None:
    async with node(fleet) as served:
        first = token(subs={"room": {"server_tags_filter": A}})
        client = served.open()
        answer = await client.connect(token=first)
        await publish(served, "b", "a")
        assert client.socket.published("room") == ["a"]
        since = {"recover": True, "epoch": answer["subs"]["room"].get("epoch", "")}
        answer = await served.open().connect(token=first, subs={"room": since})
        [missed] = answer["subs"]["room"]["publications"]
        assert (missed["data"], answer["subs"]["room"]["recovered"]) == ("a", True)


async def test_hooks_set_filters_and_tags(fleet: Fleet) -> None:
    async def subscribe(_: Any) -> SubscribeReply:
        return SubscribeReply(server_tags_filter=A)

    async def tag(event: PublishEvent) -> PublishReply:
        return PublishReply(tags={"kind": event.data})

    async with node(fleet, Hooks(subscribe=subscribe, publish=tag)) as served:
        client, result = await joined(served, tf=A)
        assert isinstance(result, dict)
        other, _ = await joined(served, tf={"op": "not", "nodes": [A]})
        for kind in ("b", "a"):
            assert await client.publish("room", kind) == {}
        await settled()
        assert client.socket.published("room") == ["a"]
        assert other.socket.published("room") == [], "the server's filter counts, too"
        assert client.socket.pushes[0]["pub"]["tags"] == {"kind": "a"}


async def test_the_connect_hook_sets_filters(fleet: Fleet) -> None:
    async def connect(_: Any) -> ConnectReply:
        return ConnectReply(subs={"room": ServerSubscription(server_tags_filter=B)})

    async with node(fleet, Hooks(connect=connect)) as served:
        client = await served.client(token=token())
        await publish(served, "a", "b")
        assert client.socket.published("room") == ["b"]
