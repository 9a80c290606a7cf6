"""One connection over memory: the commands, their order, and that nothing of it is left behind."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from dataclasses import replace
from typing import Any, Final
from uuid import RFC_4122, UUID

import jwt
import pytest

from roomcast.auth.verifier import sign_connection, sign_subscription
from roomcast.client import lifetime as lifetime_module
from roomcast.client import subscribe as subscribe_module
from roomcast.client import work as work_module
from roomcast.client.lifetime import SLEPT_S
from roomcast.client.read import READS_UNDER_WAY_MAX
from roomcast.config import OPTIONS
from roomcast.delivery.broadcaster import FIRST_BYTES
from roomcast.delivery.canary_rules import canary_item
from roomcast.log import lane as lane_module
from roomcast.log.idempotency import COMMIT_WITHIN_MS, UNREAD_WITHIN_MS
from roomcast.log.item import OFFSET_MAX, LogItem
from roomcast.log.rules import MARGIN_MS, MIN_RETENTION_MS
from roomcast.ports import Rejected, Throttled
from roomcast.wire.channels import ChannelOptions, ChannelRules
from roomcast.wire.codes import Closing, Disconnect
from tests.unit.worlds import SECRET, Client, Fleet, LocalNode, envelope, logged, settled, until

BELIEF_S: Final = (MIN_RETENTION_MS - MARGIN_MS) / 1000
ALLOWED: Final = ChannelOptions(
    allow_subscribe_for_client=True,
    allow_publish_for_subscriber=True,
    history_size=10,
    history_ttl_s=60,
    allow_history_for_subscriber=True,
)
SECURE: Final = ChannelRules(
    without_namespace=ALLOWED,
    namespaces={
        "closed": ChannelOptions(),
        "open": replace(ALLOWED, allow_publish_for_client=True),
    },
)


@pytest.fixture
def fleet() -> Fleet:
    return Fleet()


@pytest.fixture
async def node(fleet: Fleet) -> AsyncIterator[LocalNode]:
    node = fleet.node()
    yield node
    for connection in list(node.assembly.node._connections):
        node.assembly.node.closed(connection)
    await node.assembly.dispatcher.close()


def deep(levels: int = 300) -> Any:
    value: Any = "x"
    for _ in range(levels):
        value = [value]
    return value


def closed_with(client: Client) -> Closing | None:
    return client.socket.closed_with


async def nothing_left(fleet: Fleet, node: LocalNode) -> None:
    await node.assembly.background.finish()
    await settled()
    assert fleet.world.presence == {}
    assert len(node.assembly.dispatcher) == 0
    assert asyncio.all_tasks() == {asyncio.current_task()}


# ---- frames and states


async def test_connect_tells_who_one_is_and_how_the_heart_beats(node: LocalNode) -> None:
    client = node.open()
    result = await client.connect()
    assert result == {"client": client.id, "version": result["version"], "ping": 25, "pong": True}
    assert result["version"]


async def test_ids_of_clients_are_uuids_and_differ(node: LocalNode) -> None:
    ids = [node.open().connection.client for _ in range(200)]
    assert len(set(ids)) == len(ids)
    assert all(str(UUID(each)) == each for each in ids)
    assert {(UUID(each).version, UUID(each).variant) for each in ids} == {(8, RFC_4122)}


async def test_one_frame_may_hold_connect_and_everything_that_follows(node: LocalNode) -> None:
    """SDKs do not wait for the answer to connect."""
    client = node.open()
    ids = await client.say(
        {"connect": {}},
        {"subscribe": {"channel": "room"}},
        {"subscribe": {"channel": "other"}},
        {"publish": {"channel": "room", "data": "hello"}},
        {"history": {"channel": "room", "limit": 0}},
        {"unsubscribe": {"channel": "other"}},
    )
    for command_id in ids:
        assert "error" not in await client.answer(command_id)
    await until(lambda: client.socket.published("room") == ["hello"])
    assert next(iter(client.socket.lines))["id"] == ids[0]


@pytest.mark.parametrize(
    "frame",
    [
        '{"id":1,"subscribe":{"channel":"room"}}',
        '{"id":1,"publish":{"channel":"room","data":1}}',
        '{"send":{"data":1}}',
        "{}",
        "",
        "\n",
        "not JSON",
        "[]",
        '{"id":1}',
        '{"id":1,"nothing":{}}',
        '{"connect":{}}',
        '{"id":1,"connect":{"token":7}}',
    ],
)
async def test_whatever_does_not_begin_with_connect_is_closed(node: LocalNode, frame: str) -> None:
    client = node.open()
    await client.connection.receive(frame)
    assert closed_with(client) is Disconnect.BAD_REQUEST
    assert client.socket.frames == []


@pytest.mark.parametrize(
    "command, why",
    [
        ({"id": 9, "connect": {}}, Disconnect.BAD_REQUEST),
        ({"id": 9, "nothing": {}}, Disconnect.BAD_REQUEST),
        ({"id": 9, "subscribe": {"channel": ""}}, Disconnect.BAD_REQUEST),
        ({"id": 9, "refresh": {"token": "t"}}, Disconnect.BAD_REQUEST),
        ({"send": {"data": 1}}, Disconnect.NOT_AVAILABLE),
    ],
)
async def test_what_breaks_the_protocol_ends_the_connection(
    node: LocalNode, command: Mapping[str, Any], why: Disconnect
) -> None:
    client = await node.client()
    await client.connection.receive(json.dumps(command))
    assert closed_with(client) is why


@pytest.mark.parametrize(
    "command, code",
    [
        ({"rpc": {"method": "m", "data": 1}}, 108),
        ({"ping": {}}, 108),
        ({"sub_refresh": {"channel": "room"}}, 107),
        ({"sub_refresh": {"channel": "room", "token": "t"}}, 103),
        ({"subscribe": {"channel": "nowhere:room"}}, 102),
        ({"publish": {"channel": "nowhere:room", "data": 1}}, 102),
        ({"subscribe": {"channel": "x" * 256}}, 107),
        ({"subscribe": {"channel": "room\u00e9"}}, 107),
        ({"subscribe": {"channel": 7}}, 107),
        ({"publish": {"channel": "room"}}, 107),
        ({"publish": {"channel": "room", "data": "x" * 65_536}}, 106),
        ({"history": {"channel": "plain:room", "limit": 1}}, 108),
        ({"presence": {"channel": "room"}}, 108),
        ({"presence_stats": {"channel": "room"}}, 108),
        (
            {"history": {"channel": "room", "reverse": True, "since": {"offset": 0, "epoch": ""}}},
            107,
        ),
    ],
)
async def test_an_error_is_an_answer_and_the_connection_stays(
    node: LocalNode, command: Mapping[str, Any], code: int
) -> None:
    client = await node.client()
    [command_id] = await client.say(command)
    assert (await client.answer(command_id))["error"]["code"] == code
    assert closed_with(client) is None
    assert isinstance(await client.subscribe("room"), dict)


async def test_nothing_is_carried_out_after_the_command_that_closed(
    fleet: Fleet, node: LocalNode
) -> None:
    client = await node.client()
    await client.connection.receive(
        '{"send":{"data":1}}\n{"id":9,"publish":{"channel":"room","data":1}}\n{"id":10,"subscribe":{"channel":"room"}}'
    )
    assert closed_with(client) is Disconnect.NOT_AVAILABLE
    await settled()
    assert fleet.world.stream == []
    await nothing_left(fleet, node)


# ---- tokens


def connection_token(fleet: Fleet, user: str = "ann", ttl_s: int = 60, **changes: Any) -> str:
    return sign_connection(user, SECRET, ttl_s, now_s=fleet.clock.now_ms() / 1000, **changes)


def subscription_token(
    fleet: Fleet, user: str, channel: str, ttl_s: int = 60, **changes: Any
) -> str:
    return sign_subscription(
        user, channel, SECRET, ttl_s, now_s=fleet.clock.now_ms() / 1000, **changes
    )


@pytest.fixture
async def secure(fleet: Fleet) -> AsyncIterator[LocalNode]:
    node = fleet.node(insecure=False, secret=SECRET, rules=SECURE)
    yield node
    for connection in list(node.assembly.node._connections):
        node.assembly.node.closed(connection)


async def test_a_token_names_the_user_and_what_others_see(fleet: Fleet, secure: LocalNode) -> None:
    token = connection_token(fleet, info={"name": "Ann"})
    client = await secure.client(token=token)
    assert await client.subscribe("room") == {}
    assert await client.publish("room", "hello") == {}
    [push] = client.socket.pushes
    assert push["pub"]["info"] == {"user": "ann", "client": client.id, "conn_info": {"name": "Ann"}}


async def test_an_expired_token_is_told_and_ends_what_the_client_can_do(
    fleet: Fleet, secure: LocalNode
) -> None:
    token = connection_token(fleet)
    fleet.clock.advance(61)
    client = secure.open()
    assert await client.connect(token=token) == 109
    assert closed_with(client) is None
    await client.say({"subscribe": {"channel": "room"}})
    assert closed_with(client) is Disconnect.BAD_REQUEST


@pytest.mark.parametrize("token", ["nonsense", sign_connection("ann", "x" * 32, 0), "a.b.c"])
async def test_a_wrong_token_ends_the_connection(secure: LocalNode, token: str) -> None:
    client = secure.open()
    await client.say({"connect": {"token": token}}, {"subscribe": {"channel": "room"}})
    assert closed_with(client) is Disconnect.INVALID_TOKEN
    assert client.socket.frames == []


async def test_no_token_is_told(fleet: Fleet, secure: LocalNode) -> None:
    assert await secure.open().connect() == 101
    anonymous = fleet.node(
        "b", insecure=False, secret=SECRET, rules=SECURE, allow_anonymous_connect_without_token=True
    )
    client = await anonymous.client()
    assert await client.subscribe("room") == 103
    anonymous.assembly.node.closed(client.connection)


async def test_without_a_key_no_token_is_good(fleet: Fleet) -> None:
    node = fleet.node(insecure=False)
    client = node.open()
    await client.say({"connect": {"token": connection_token(fleet)}})
    assert closed_with(client) is Disconnect.INVALID_TOKEN


async def test_in_insecure_mode_a_token_names_the_user_if_there_is_a_key(fleet: Fleet) -> None:
    with_key = fleet.node(secret=SECRET)
    client = await with_key.client(token=connection_token(fleet))
    assert client.connection.session.user == "ann"
    with_key.assembly.node.closed(client.connection)
    without = fleet.node("b")
    client = await without.client(token="whatever")
    assert client.connection.session.user == ""
    without.assembly.node.closed(client.connection)


async def test_a_subscription_token_opens_what_is_closed(fleet: Fleet, secure: LocalNode) -> None:
    client = await secure.client(token=connection_token(fleet))
    assert await client.subscribe("$private") == 103
    assert await client.subscribe("closed:room") == 103
    token = subscription_token(fleet, "ann", "$private", ttl_s=0, info={"role": "owner"})
    assert await client.subscribe("$private", token=token) == {}
    assert client.connection._subscriptions["$private"].info.chan_info == {"role": "owner"}
    token = subscription_token(fleet, "ann", "closed:room", ttl_s=60)
    assert await client.subscribe("closed:room", token=token) == {"expires": True, "ttl": 60}


async def test_an_expired_or_wrong_subscription_token_is_an_answer(
    fleet: Fleet, secure: LocalNode
) -> None:
    client = await secure.client(token=connection_token(fleet))
    old = subscription_token(fleet, "ann", "$private", ttl_s=60)
    fleet.clock.advance(61)
    assert await client.subscribe("$private", token=old) == 109
    assert await client.subscribe("$private", token="nonsense") == 103
    assert closed_with(client) is None


@pytest.mark.parametrize("user, channel", [("bob", "$private"), ("ann", "$other")])
async def test_somebody_elses_subscription_token_ends_the_connection(
    fleet: Fleet, secure: LocalNode, user: str, channel: str
) -> None:
    client = await secure.client(token=connection_token(fleet))
    await client.say(
        {"subscribe": {"channel": "$private", "token": subscription_token(fleet, user, channel)}}
    )
    assert closed_with(client) is Disconnect.INVALID_TOKEN


async def test_a_subscription_token_for_one_connection_is_for_that_one(
    fleet: Fleet, secure: LocalNode
) -> None:
    client = await secure.client(token=connection_token(fleet))
    claims = {"sub": "ann", "channel": "$private", "client": client.id}
    assert await client.subscribe("$private", token=jwt.encode(claims, SECRET)) == {}
    other = await secure.client(token=connection_token(fleet))
    await other.say({"subscribe": {"channel": "$private", "token": jwt.encode(claims, SECRET)}})
    assert closed_with(other) is Disconnect.INVALID_TOKEN


async def test_a_call_reads_the_history_by_time_where_history_is_allowed(
    fleet: Fleet, secure: LocalNode
) -> None:
    client = await secure.client(token=connection_token(fleet))

    async def called(**data: Any) -> Any:
        return await client.ask("rpc", method="roomcast.history", data=data)

    assert await called(channel="room", limit=1) == 103
    assert await called(channel="no:where", limit=1) == 102
    assert await called(limit=1) == 107
    await client.subscribe("room")
    await client.publish("room", 1)
    fleet.clock.advance(30)
    since_ms = fleet.clock.now_ms()
    await client.publish("room", 2)
    found = (await called(channel="room", limit=-1, since_time=since_ms))["data"]
    assert [each["data"] for each in found["publications"]] == [2]
    assert (found["offset"], found["since_offset"]) == (2, 1)
    assert found["publications"][0]["info"]["user"] == "ann"
    found = (await called(channel="room", limit=-1, until_time=since_ms))["data"]
    assert ([each["data"] for each in found["publications"]], found["until_offset"]) == ([1], 1)


async def test_what_a_client_may_do_depends_on_the_channel(fleet: Fleet, secure: LocalNode) -> None:
    client = await secure.client(token=connection_token(fleet))
    assert await client.publish("room", 1) == 103
    assert await client.ask("history", channel="room", limit=1) == 103
    assert await client.publish("open:room", 1) == {}
    assert await client.subscribe("room") == {}
    assert await client.publish("room", 1) == {}
    assert (await client.ask("history", channel="room", limit=1))["offset"] == 1
    await client.ask("unsubscribe", channel="room")
    assert await client.publish("room", 1) == 103


async def test_a_connection_ends_some_time_after_its_token(
    fleet: Fleet, secure: LocalNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lifetime_module, "EXPIRY_GRACE_S", 0.01)
    token = connection_token(fleet, ttl_s=1)
    fleet.clock.advance(0.99)
    client = await secure.client(token=token)
    assert closed_with(client) is None
    await until(lambda: closed_with(client) is Disconnect.EXPIRED)
    lasting = await secure.client(token=connection_token(fleet, ttl_s=0))
    assert len(lasting.connection._lifetime._deadlines) == 0


# ---- subscribe and unsubscribe


async def test_a_subscription_has_a_position_and_gets_what_follows(node: LocalNode) -> None:
    client, other = await node.client(), await node.client()
    await other.publish("room", "before")
    result = await client.subscribe("room")
    assert result == {
        "recoverable": True,
        "positioned": True,
        "epoch": result["epoch"],
        "offset": 1,
    }
    await other.publish("room", "after")
    assert client.socket.published("room") == ["after"]
    assert client.socket.offsets("room") == [2]
    assert other.socket.pushes == []


async def test_the_reply_to_subscribe_comes_before_any_push(fleet: Fleet, node: LocalNode) -> None:
    """I4."""
    client, other = await node.client(), await node.client()
    await other.publish("room", "before")
    held = fleet.traffic.hold("newest", "answer")
    [subscribe_id] = await client.say({"subscribe": {"channel": "room"}})
    await held.arrived()
    publishing = [
        await other.say({"publish": {"channel": "room", "data": number}}) for number in range(5)
    ]
    for [command_id] in publishing:
        await other.answer(command_id)
    held.release()
    reply = await client.answer(subscribe_id)
    await other.publish("room", 5)
    lines = [line for line in client.socket.lines if line.get("id") != 1]
    assert lines[0] == reply
    offsets = client.socket.offsets("room")
    assert offsets == list(range(reply["subscribe"]["offset"] + 1, 8))


async def test_recovery_goes_on_from_where_the_client_stands(node: LocalNode) -> None:
    client = await node.client()
    for number in range(1, 6):
        await client.publish("room", number)
    history = await client.ask("history", channel="room", limit=0)
    result = await client.subscribe("room", recover=True, epoch=history["epoch"], offset=2)
    assert [pub["data"] for pub in result["publications"]] == [3, 4, 5]
    assert {key: result.get(key) for key in ("recovered", "was_recovering", "offset", "epoch")} == {
        "recovered": True,
        "was_recovering": True,
        "offset": 2,
        "epoch": history["epoch"],
    }
    await client.publish("room", 6)
    assert client.socket.offsets("room") == [6]


@pytest.mark.parametrize("epoch, offset", [("_", 0), ("other", 2), ("", 99)])
async def test_a_position_that_cannot_be_recovered_is_told(
    node: LocalNode, epoch: str, offset: int
) -> None:
    client = await node.client()
    await client.publish("room", 1)
    request = {"recover": True, "epoch": epoch, "offset": offset}
    assert await client.subscribe("room", flag=2, **request) == 112
    result = await client.subscribe("room", flag=1, **request)
    assert result["was_recovering"] is True
    assert "recovered" not in result
    assert "publications" not in result
    assert result["offset"] == 1


async def test_a_channel_is_subscribed_to_once(fleet: Fleet, node: LocalNode) -> None:
    client = await node.client()
    held = fleet.traffic.hold("newest", "sent")
    [first] = await client.say({"subscribe": {"channel": "room"}})
    second = asyncio.create_task(client.subscribe("room"))
    await held.arrived()
    await settled()
    assert not second.done(), "nothing overtakes a subscribe of its own channel"
    held.release()
    assert "error" not in await client.answer(first)
    assert await second == 105


async def test_channels_are_limited(fleet: Fleet) -> None:
    node = fleet.node(channel_limit=2)
    client = await node.client()
    for name in ("one", "two"):
        assert isinstance(await client.subscribe(name), dict)
    assert await client.subscribe("three") == 106
    await client.ask("unsubscribe", channel="one")
    assert isinstance(await client.subscribe("three"), dict)
    node.assembly.node.closed(client.connection)


async def test_unsubscribing_is_answered_after_the_last_push(node: LocalNode) -> None:
    client, other = await node.client(), await node.client()
    await client.subscribe("room")
    await other.publish("room", "one")
    assert await client.ask("unsubscribe", channel="room") == {}
    await other.publish("room", "two")
    assert client.socket.published("room") == ["one"]
    assert "unsubscribe" in client.socket.lines[-1]
    assert await client.ask("unsubscribe", channel="room") == {}
    assert await client.ask("unsubscribe", channel="never") == {}


async def test_an_unsubscribe_waits_for_the_subscribe_before_it(
    fleet: Fleet, node: LocalNode
) -> None:
    client = await node.client()
    held = fleet.traffic.hold("newest", "sent")
    [subscribe_id] = await client.say({"subscribe": {"channel": "room"}})
    leaving = asyncio.create_task(client.ask("unsubscribe", channel="room"))
    await held.arrived()
    held.release()
    assert await leaving == {}
    assert client.socket.reply_to(subscribe_id)
    assert client.connection.session.channels == set()
    assert len(node.assembly.dispatcher) == 0


async def test_other_channels_do_not_wait_for_a_slow_subscribe(
    fleet: Fleet, node: LocalNode
) -> None:
    client = await node.client()
    held = fleet.traffic.hold("newest", "sent")
    await client.say({"subscribe": {"channel": "room"}})
    await held.arrived()
    assert await client.subscribe("plain:room") == {}
    held.release()


async def test_a_log_that_does_not_answer_is_a_temporary_error_and_leaves_nothing(
    fleet: Fleet, node: LocalNode
) -> None:
    client = await node.client()
    fleet.world.fail_next("newest", Rejected("no permission"))
    [command_id] = await client.say({"subscribe": {"channel": "all:room"}})
    error = (await client.answer(command_id))["error"]
    assert (error["code"], error["temporary"]) == (100, True)
    await node.assembly.background.finish()
    assert fleet.world.presence == {}
    assert client.connection.session.channels == set()
    assert isinstance(await client.subscribe("all:room"), dict)
    assert set(fleet.world.presence) == {"all:room"}


async def test_a_presence_that_does_not_answer_is_an_error_and_leaves_nothing(
    fleet: Fleet, node: LocalNode
) -> None:
    client = await node.client()
    fleet.world.fail_next("add", Throttled("slow down"), effect="applied")
    assert await client.subscribe("all:room") == 100
    await node.assembly.background.finish()
    assert fleet.world.presence == {}
    assert len(node.assembly.dispatcher) == 0


@pytest.mark.parametrize(
    "call, stage",
    [
        ("add", "call"),
        ("add", "answer"),
        ("newest", "sent"),
        ("newest", "answer"),
        ("put_head", "answer"),
    ],
)
async def test_a_client_that_goes_while_it_subscribes_leaves_nothing(
    fleet: Fleet, node: LocalNode, call: str, stage: str
) -> None:
    """I6: neither in presence, nor in the hub, nor in the session."""
    client = await node.client()
    held = fleet.traffic.hold(call, stage)  # type: ignore[arg-type]  # a literal
    await client.say({"subscribe": {"channel": "all:room"}})
    await held.arrived()
    node.assembly.node.closed(client.connection)
    await settled()
    assert not client.connection._work.tasks, "nobody works for a client that is gone"
    held.release()
    await nothing_left(fleet, node)
    assert client.connection.session.channels == set()
    assert not client.connection._subscriptions
    assert len(client.socket.lines) == 1


async def test_a_client_that_goes_leaves_nothing(fleet: Fleet, node: LocalNode) -> None:
    client = await node.client()
    for name in ("all:room", "room", "plain:room", "present:room"):
        assert isinstance(await client.subscribe(name), dict)
    assert set(fleet.world.presence) == {"all:room", "present:room"}
    node.assembly.node.closed(client.connection)
    node.assembly.node.closed(client.connection)
    await nothing_left(fleet, node)
    assert len(node.assembly.node) == 0


async def test_who_comes_back_at_once_is_present(fleet: Fleet, node: LocalNode) -> None:
    """The exit of the last subscription must not remove the entry of the next."""
    client = await node.client()
    await client.subscribe("all:room")
    held = fleet.traffic.hold("remove", "sent")
    await client.say(
        {"unsubscribe": {"channel": "all:room"}}, {"subscribe": {"channel": "all:room"}}
    )
    await held.arrived()
    await settled()
    assert fleet.traffic.calls["add"] == 1, "it waits for the exit"
    held.release()
    await until(lambda: fleet.traffic.calls["add"] == 2)
    await settled()
    assert set(fleet.world.presence) == {"all:room"}


async def test_an_exit_that_fails_is_left_to_the_lease(fleet: Fleet, node: LocalNode) -> None:
    client = await node.client()
    await client.subscribe("present:room")
    fleet.world.fail_next("remove", Throttled())
    assert await client.ask("unsubscribe", channel="present:room") == {}
    assert await client.subscribe("present:room") == {}


async def test_a_channel_that_cannot_be_continued_is_told_and_recovered_from(
    fleet: Fleet, node: LocalNode
) -> None:
    client, other = await node.client(), await node.client()
    first = await client.subscribe("all:room")
    await other.publish("all:room", "one")
    fleet.clock.advance(BELIEF_S + 3600)
    assert await other.publish("all:room", "two") == {}
    await until(lambda: client.socket.unsubscribed("all:room") == [2500])
    await node.assembly.background.finish()
    assert fleet.world.presence == {}
    assert client.connection.session.channels == set()
    result = await client.subscribe("all:room", recover=True, epoch=first["epoch"], offset=1)
    assert result["epoch"] != first["epoch"]
    assert "recovered" not in result
    await other.publish("all:room", "three")
    assert client.socket.published("all:room") == ["one", "three"]


# ---- join and leave


async def test_joins_and_leaves_are_told_to_those_who_are_there(node: LocalNode) -> None:
    first = await node.client()
    await first.subscribe("noisy:room")
    second = await node.client()
    await second.subscribe("noisy:room")
    await until(lambda: first.socket.told("noisy:room", "join") == [first.id, second.id])
    assert second.socket.told("noisy:room", "join") == [second.id], "its own, after its reply"
    await second.ask("unsubscribe", channel="noisy:room")
    await until(lambda: first.socket.told("noisy:room", "leave") == [second.id])
    assert second.socket.told("noisy:room", "leave") == []
    third = await node.client()
    await third.subscribe("noisy:room")
    node.assembly.node.closed(third.connection)
    await until(lambda: first.socket.told("noisy:room", "leave") == [second.id, third.id])


async def test_no_join_is_told_for_who_did_not_get_in(fleet: Fleet, node: LocalNode) -> None:
    first, second = await node.client(), await node.client()
    await first.subscribe("all:room")
    fleet.world.fail_next("add", Rejected("no permission"))
    assert await second.subscribe("all:room") == 100
    await settled()
    assert first.socket.told("all:room", "join") == [first.id]
    assert first.socket.told("all:room", "leave") == []


async def test_who_did_not_ask_for_joins_gets_none(fleet: Fleet) -> None:
    rules = ChannelRules(namespaces={"n": ChannelOptions(join_leave=True)})
    node = fleet.node(rules=rules)
    quiet, told = await node.client(), await node.client()
    await quiet.subscribe("n:room")
    await told.subscribe("n:room", join_leave=True)
    await settled()
    assert (quiet.socket.told("n:room", "join"), told.socket.told("n:room", "join")) == (
        [],
        [told.id],
    )
    for client in (quiet, told):
        node.assembly.node.closed(client.connection)


# ---- publish


async def test_a_publication_is_answered_when_it_is_durable(fleet: Fleet, node: LocalNode) -> None:
    """I2."""
    client = await node.client()
    held = fleet.traffic.hold("put_item", "answer")
    [command_id] = await client.say({"publish": {"channel": "room", "data": "x"}})
    await held.arrived()
    await settled()
    assert client.socket.reply_to(command_id) is None
    held.release()
    assert (await client.answer(command_id))["publish"] == {}
    assert logged(fleet.world) == ["x"]


async def test_publications_keep_the_order_of_their_client(fleet: Fleet, node: LocalNode) -> None:
    client = await node.client()
    await client.subscribe("room")
    commands = [{"publish": {"channel": "room", "data": number}} for number in range(60)]
    ids = [command_id for command in commands for command_id in await client.say(command)]
    for command_id in ids:
        await client.answer(command_id)
    assert logged(fleet.world) == list(range(60))
    assert client.socket.published("room") == list(range(60))
    assert len(fleet.world.stream) < 60, "group commit"


async def test_what_has_no_history_goes_out_at_once_and_without_an_offset(
    fleet: Fleet, node: LocalNode
) -> None:
    client = await node.client()
    await client.subscribe("plain:room")
    assert await client.publish("plain:room", {"x": 1}) == {}
    [push] = client.socket.pushes
    assert push["pub"]["data"] == {"x": 1}
    assert "offset" not in push["pub"]
    assert fleet.world.stream == []
    assert fleet.traffic.reads == 0


@pytest.mark.parametrize("channel", ["room", "plain:room"])
async def test_what_cannot_be_written_again_is_refused(node: LocalNode, channel: str) -> None:
    client = await node.client()
    assert await client.publish(channel, deep()) == 107
    assert await client.publish(channel, 1) == {}


async def test_too_much_is_refused_for_a_while(
    fleet: Fleet, node: LocalNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lane_module, "LANE_PUBLICATIONS_MAX", 1)
    client = await node.client()
    held = fleet.traffic.hold("put_item", "sent")
    await client.say({"publish": {"channel": "room", "data": 1}})
    await held.arrived()
    await client.say({"publish": {"channel": "room", "data": 2}})
    [command_id] = await client.say({"publish": {"channel": "room", "data": 3}})
    error = (await client.answer(command_id))["error"]
    assert (error["code"], error["temporary"]) == (111, True)
    held.release()
    await until(lambda: logged(fleet.world) == [1, 2])


async def test_a_log_that_somebody_forged_to_its_end_is_told_and_counted(
    fleet: Fleet, node: LocalNode
) -> None:
    """No offset is left: that is no fault of ours, and trying again would not help."""
    client = await node.client()
    assert await client.publish("room", 1) == {}
    items = fleet.world.items["room"]
    written = items[1]
    assert isinstance(written, LogItem)
    items[OFFSET_MAX] = replace(written, offset=OFFSET_MAX, last=OFFSET_MAX, batch="forged")
    elsewhere = fleet.node("b")
    other = await elsewhere.client()
    for number in range(2):
        [command_id] = await other.say({"publish": {"channel": "room", "data": number}})
        error = (await other.answer(command_id))["error"]
        assert (error["code"], error.get("temporary")) == (108, None)
    assert elsewhere.assembly.appender.counters.publications["not_stored"] == 2
    assert await other.publish("other", 1) == {}, "other channels go on"
    elsewhere.assembly.node.closed(other.connection)
    await elsewhere.assembly.dispatcher.close()


async def test_a_signal_that_is_shed_is_told(
    node: LocalNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = await node.client()
    monkeypatch.setattr(node.assembly.broadcaster, "_bytes", 10**9)
    await client.subscribe("plain:room")
    # Something smaller would have room.
    assert await client.publish("plain:room", "x" * FIRST_BYTES) == 111
    assert client.socket.published("plain:room") == [], "to everybody or to nobody"


async def test_a_publication_that_is_not_in_the_log_is_an_error(
    fleet: Fleet, node: LocalNode
) -> None:
    client = await node.client()
    await client.subscribe("room")
    fleet.world.fail_next("put_item", Rejected("no permission"))
    [command_id] = await client.say({"publish": {"channel": "room", "data": 1}})
    error = (await client.answer(command_id))["error"]
    assert error["code"] == 100
    assert "temporary" not in error, "to try it again is no use"
    assert client.socket.published("room") == []
    assert await client.publish("room", 2) == {}
    assert logged(fleet.world) == [2]


async def test_what_the_table_does_not_take_now_is_to_be_tried_again(
    fleet: Fleet, node: LocalNode
) -> None:
    client = await node.client()
    await client.subscribe("room")
    fleet.world.fail_next("put_item", Throttled("slow down"), times=100)

    async def slow(call: str, _stage: str) -> None:
        fleet.clock.advance(10 if call == "put_item" else 0)
        await asyncio.sleep(0)

    fleet.world.pause = slow
    [command_id] = await client.say({"publish": {"channel": "room", "data": 1}})
    error = (await client.answer(command_id))["error"]
    assert (error["code"], error["temporary"]) == (111, True)


@pytest.mark.parametrize("channel", ["room", "plain:room"])
async def test_what_grows_beyond_its_bound_is_not_to_be_tried_again(
    fleet: Fleet, channel: str
) -> None:
    """A number is written anew: the command itself was not too large."""
    node = fleet.node()
    client = await node.client()
    command = b'{"id":9,"publish":{"channel":"%s","data":[%s]}}'
    numbers = b",".join([b"1e15"] * 10_000)
    await client.connection.receive(command % (channel.encode(), numbers))
    assert (await client.answer(9))["error"] == {"code": 106, "message": "limit exceeded"}
    node.assembly.node.closed(client.connection)


async def test_who_publishes_and_goes_has_published(fleet: Fleet, node: LocalNode) -> None:
    client = await node.client()
    held = fleet.traffic.hold("put_item", "sent")
    await client.say({"publish": {"channel": "room", "data": 1}})
    await held.arrived()
    node.assembly.node.closed(client.connection)
    held.release()
    await node.assembly.appender.drain()
    assert logged(fleet.world) == [1]
    assert len(client.socket.lines) == 1


async def test_commands_under_way_are_bounded(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(work_module, "COMMANDS_UNDER_WAY_MAX", 3)
    node = fleet.node()
    client = await node.client()
    held = fleet.traffic.hold("put_item", "sent")
    publish = {"publish": {"channel": "room", "data": 1}}
    await client.say(publish, publish, publish)
    fourth = asyncio.create_task(client.say(publish))
    await held.arrived()
    await settled()
    assert not fourth.done(), "the next frame is not read"
    held.release()
    [command_id] = await fourth
    assert (await client.answer(command_id))["publish"] == {}
    node.assembly.node.closed(client.connection)


async def test_a_subscribe_that_waited_for_its_turn_too_long_leaves_nothing(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The client is gone when its turn comes."""
    monkeypatch.setattr(work_module, "COMMANDS_UNDER_WAY_MAX", 1)
    node = fleet.node()
    client = await node.client()
    held = fleet.traffic.hold("put_item", "sent")
    await client.say({"publish": {"channel": "room", "data": 1}})
    waiting = asyncio.create_task(client.say({"subscribe": {"channel": "all:room"}}))
    await held.arrived()
    await settled()
    node.assembly.node.closed(client.connection)
    held.release()
    await waiting
    await settled()
    assert fleet.traffic.calls["add"] == 0, "it is not even begun"
    await nothing_left(fleet, node)
    assert not client.connection._subscriptions


# ---- publish by a call


def publish_call(data: Any, key: str | None = None, channel: str = "room") -> dict[str, Any]:
    call = {"channel": channel, "data": data} | ({} if key is None else {"idempotency_key": key})
    return {"method": "roomcast.publish", "data": call}


async def test_a_call_that_publishes_is_answered_with_the_position(
    fleet: Fleet, node: LocalNode
) -> None:
    client = await node.client()
    subscribed = await client.subscribe("room")
    assert await client.publish("room", 1) == {}
    answer = await client.ask("rpc", **publish_call({"x": 2}))
    assert answer == {"data": {"offset": 2, "epoch": subscribed["epoch"]}}
    assert client.socket.published("room") == [1, {"x": 2}]
    assert client.socket.pushes[-1]["pub"]["info"]["client"] == client.id
    assert fleet.traffic.calls["put_keyed_item"] == 0, "only a key costs a transaction"


async def test_what_was_published_with_a_key_is_not_published_again(
    fleet: Fleet, node: LocalNode
) -> None:
    client, other = await node.client(), await fleet.node("b").client()
    await client.subscribe("room")
    first = await client.ask("rpc", **publish_call("x", "k"))
    for again in (client, other):
        assert await again.ask("rpc", **publish_call("x", "k")) == first
    assert (await client.ask("rpc", **publish_call("x", "another")))["data"]["offset"] == 2
    assert logged(fleet.world) == client.socket.published("room") == ["x", "x"]


async def test_what_was_not_answered_is_published_again_with_its_key(
    fleet: Fleet, node: LocalNode
) -> None:
    """I2: the node fell silent after the write; the client asks another one."""
    client, other = await node.client(), await fleet.node("b").client()
    held = fleet.traffic.hold("put_keyed_item", "answer")
    [command_id] = await client.say({"rpc": publish_call("x", "k")})
    await held.arrived()
    assert client.socket.reply_to(command_id) is None
    held.release()
    answer = await other.ask("rpc", **publish_call("x", "k"))
    assert (await client.answer(command_id))["rpc"] == answer
    assert logged(fleet.world) == ["x"]


@pytest.mark.parametrize(
    "call, error",
    [
        (publish_call(1, ""), 107),
        (publish_call(1, "x" * 65), 107),
        (publish_call(1, "k", ""), 107),
        (publish_call(1, "k", "x" * 256), 107),
        (publish_call(deep(), "k"), 107),
        (publish_call(1, "k", "unknown:room"), 102),
        (publish_call(1, "k", "plain:room"), 108),
        (publish_call(1, None, "plain:room"), 108),
        ({"method": "roomcast.publish"}, 107),
        ({"method": "roomcast.publish", "data": {"channel": "room"}}, 107),
        (publish_call("x" * 70_000, "k"), 106),
    ],
)
async def test_a_call_that_is_refused(fleet: Fleet, node: LocalNode, call: Any, error: int) -> None:
    client = await node.client()
    assert await client.ask("rpc", **call) == error
    assert fleet.world.stream == []
    assert fleet.world.keys == {}
    assert await client.publish("room", 1) == {}, "the connection lives"


async def test_a_call_that_the_table_refused_is_an_error(fleet: Fleet, node: LocalNode) -> None:
    client = await node.client()
    fleet.world.fail_next("put_keyed_item", Rejected("no permission"))
    assert await client.ask("rpc", **publish_call("x", "k")) == 100
    assert (await client.ask("rpc", **publish_call("x", "k")))["data"]["offset"] == 1


async def test_what_waited_too_long_to_be_read_is_not_published_with_its_key(
    fleet: Fleet, node: LocalNode
) -> None:
    """The process slept; the frame was in its socket's buffer all the time."""
    client, awake = await node.client(), await node.client()
    fleet.clock.advance(25 + SLEPT_S)
    assert (await awake.ask("rpc", **publish_call(1, "1")))["data"]["offset"] == 1
    fleet.clock.advance(1)
    await client.say({"rpc": publish_call(2, "2")})
    assert closed_with(client) is Disconnect.NO_PONG
    await settled()
    assert logged(fleet.world) == [1]
    assert len(fleet.world.keys) == 1


async def test_a_key_counts_from_when_its_publication_was_read(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not from when there was room for it."""
    monkeypatch.setattr(work_module, "COMMANDS_UNDER_WAY_MAX", 1)
    node = fleet.node()
    client = await node.client()
    held = fleet.traffic.hold("put_item", "answer")
    await client.say({"publish": {"channel": "room", "data": 1}})
    waiting = asyncio.create_task(client.say({"rpc": publish_call(2, "2")}))
    await held.arrived()
    await settled()
    fleet.clock.advance(COMMIT_WITHIN_MS / 1000)
    held.release()
    [command_id] = await waiting
    assert (await client.answer(command_id))["error"]["code"] == 111
    assert logged(fleet.world) == [1]
    node.assembly.node.closed(client.connection)


async def test_a_ping_that_is_far_too_late_ends_the_connection(fleet: Fleet) -> None:
    node = fleet.node(ping_interval_s=0.001, pong_timeout_s=60)
    client = await node.client()
    await until(lambda: client.connection._lifetime._pong_timer)
    fleet.clock.advance(SLEPT_S + 1)
    await until(lambda: closed_with(client) is Disconnect.NO_PONG)
    node.assembly.node.closed(client.connection)


def test_a_suspension_is_noticed_in_time() -> None:
    [ping] = [option for option in OPTIONS if option.key == "client.ping_interval_s"]
    assert ping.rules.maximum is not None
    assert (ping.rules.maximum + SLEPT_S) * 1000 <= UNREAD_WITHIN_MS


async def test_too_many_calls_are_refused_for_a_while(
    fleet: Fleet, node: LocalNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lane_module, "LANE_PUBLICATIONS_MAX", 1)
    client = await node.client()
    held = fleet.traffic.hold("put_keyed_item", "sent")
    await client.say({"rpc": publish_call(1, "1")})
    await held.arrived()
    await client.say({"rpc": publish_call(2, "2")})
    assert await client.ask("rpc", **publish_call(3, "3")) == 111
    held.release()
    await until(lambda: logged(fleet.world) == [1, 2])


# ---- history and presence


async def test_history_is_paged_in_both_directions(node: LocalNode) -> None:
    client = await node.client()
    for number in range(1, 8):
        await client.publish("room", number)
    first = await client.ask("history", channel="room", limit=3)
    assert [pub["data"] for pub in first["publications"]] == [1, 2, 3]
    assert first["offset"] == 7
    since = {"epoch": first["epoch"], "offset": 3}
    page = await client.ask("history", channel="room", limit=3, since=since)
    assert [pub["data"] for pub in page["publications"]] == [4, 5, 6]
    page = await client.ask("history", channel="room", limit=2, since=since, reverse=True)
    assert [pub["data"] for pub in page["publications"]] == [2, 1]
    page = await client.ask("history", channel="room", limit=-1, reverse=True)
    assert [pub["data"] for pub in page["publications"]] == [7, 6, 5, 4, 3, 2, 1]
    page = await client.ask("history", channel="room")
    assert page == {"publications": [], "epoch": first["epoch"], "offset": 7}
    other = {"epoch": "other", "offset": 3}
    assert await client.ask("history", channel="room", limit=1, since=other) == 112


async def test_a_history_that_cannot_be_read_is_an_error(fleet: Fleet, node: LocalNode) -> None:
    client = await node.client()
    fleet.world.fail_next("newest", Rejected("no permission"))
    assert await client.ask("history", channel="room", limit=1) == 100


async def test_history_is_capped(fleet: Fleet) -> None:
    node = fleet.node(history_max_publication_limit=2)
    client = await node.client()
    for number in range(4):
        await client.publish("room", number)
    for limit in (-1, 3, 1000):
        page = await client.ask("history", channel="room", limit=limit)
        assert len(page["publications"]) == 2
    node.assembly.node.closed(client.connection)


async def test_presence_tells_who_is_there(fleet: Fleet, node: LocalNode) -> None:
    clients = [await node.client() for _ in range(3)]
    for client in clients[:2]:
        await client.subscribe("all:room")
    presence = (await clients[2].ask("presence", channel="all:room"))["presence"]
    assert presence == {client.id: {"user": "", "client": client.id} for client in clients[:2]}
    stats = await clients[2].ask("presence_stats", channel="all:room")
    assert stats == {"num_clients": 2, "num_users": 1}
    await clients[0].ask("unsubscribe", channel="all:room")
    await node.assembly.background.finish()
    presence = (await clients[2].ask("presence", channel="all:room"))["presence"]
    assert set(presence) == {clients[1].id}
    assert (await clients[2].ask("presence", channel="all:empty"))["presence"] == {}


async def test_a_presence_that_cannot_be_read_is_an_error(fleet: Fleet, node: LocalNode) -> None:
    client = await node.client()
    fleet.world.fail_next("members", Rejected("too many"))
    assert await client.ask("presence", channel="all:room") == 100


# ---- time


async def test_a_socket_that_says_nothing_is_closed(fleet: Fleet) -> None:
    node = fleet.node(stale_close_delay_s=0.01)
    silent = node.open()
    spoken = await node.client()
    refused = fleet.node("b", insecure=False, stale_close_delay_s=0.01).open()
    assert await refused.connect() == 101
    await until(lambda: closed_with(silent) is Disconnect.STALE)
    await until(lambda: closed_with(refused) is Disconnect.STALE)
    assert closed_with(spoken) is None
    node.assembly.node.closed(spoken.connection)


async def test_a_client_that_does_not_answer_pings_is_closed(fleet: Fleet) -> None:
    node = fleet.node(ping_interval_s=0.01, pong_timeout_s=0.01)
    client = await node.client()
    await until(lambda: {} in client.socket.lines)
    await until(lambda: closed_with(client) is Disconnect.NO_PONG)


@pytest.mark.parametrize(
    "unsent_at_ping, unsent_at_deadline, why",
    [
        (1, 0, Disconnect.SLOW),
        (0, 1, Disconnect.SLOW),
        (0, 0, Disconnect.NO_PONG),
    ],
)
async def test_a_pong_that_waits_behind_what_is_not_read_is_slowness(
    node: LocalNode, unsent_at_ping: int, unsent_at_deadline: int, why: Disconnect
) -> None:
    """Not silence: it may answer as soon as it comes to read the ping."""
    client = await node.client()
    heartbeat = client.connection._lifetime
    client.socket.unsent_bytes = unsent_at_ping
    heartbeat._ping()
    client.socket.unsent_bytes = unsent_at_deadline
    heartbeat._no_pong()
    assert closed_with(client) is why


async def test_a_client_that_answers_pings_stays(fleet: Fleet) -> None:
    node = fleet.node(ping_interval_s=0.001, pong_timeout_s=60)
    client = await node.client()
    for _ in range(5):
        await until(lambda: client.connection._lifetime._pong_timer)
        timer = client.connection._lifetime._pong_timer
        await client.connection.receive("{}")
        assert timer is not None
        assert timer.cancelled()
    assert client.socket.lines.count({}) >= 5
    assert closed_with(client) is None
    node.assembly.node.closed(client.connection)


async def test_a_pong_that_nobody_asked_for_is_harmless(node: LocalNode) -> None:
    client = await node.client()
    await client.connection.receive("{}\n{}")
    assert closed_with(client) is None


# ---- the end


async def test_a_fault_of_ours_ends_the_connection(
    fleet: Fleet, node: LocalNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its client must not wait for an answer that never comes."""

    async def broken(*_: object, **__: object) -> None:
        raise RuntimeError("a bug")

    client = await node.client()
    monkeypatch.setattr(node.assembly.dispatcher, "join", broken)
    await client.say({"subscribe": {"channel": "all:room"}})
    await until(lambda: closed_with(client) is Disconnect.SERVER_ERROR)
    await nothing_left(fleet, node)


async def test_nothing_is_sent_after_the_end(fleet: Fleet, node: LocalNode) -> None:
    client, other = await node.client(), await node.client()
    await client.subscribe("all:room")
    held = fleet.traffic.hold("members", "answer")
    await client.say({"presence": {"channel": "all:room"}})
    await held.arrived()
    client.connection.close(Disconnect.SHUTDOWN)
    client.connection.close(Disconnect.SLOW)
    held.release()
    before = list(client.socket.frames)
    await other.publish("all:room", 1)
    await settled()
    assert client.socket.frames == before
    assert closed_with(client) is Disconnect.SHUTDOWN


async def test_what_a_closed_connection_says_is_not_carried_out(
    fleet: Fleet, node: LocalNode
) -> None:
    client = await node.client()
    client.connection.close(Disconnect.SHUTDOWN)
    await client.say(
        {"publish": {"channel": "room", "data": 1}}, {"subscribe": {"channel": "room"}}
    )
    await settled()
    assert fleet.world.stream == []
    await nothing_left(fleet, node)


async def test_a_pong_behind_commands_that_wait_is_waited_for(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The client cannot know that this node does not read: it has answered."""
    monkeypatch.setattr(work_module, "COMMANDS_UNDER_WAY_MAX", 1)
    node = fleet.node(ping_interval_s=0.01, pong_timeout_s=0.005)
    client = await node.client()
    held = fleet.traffic.hold("newest")
    history = {"history": {"channel": "room", "limit": 1}}
    waiting = asyncio.create_task(client.say(history, history))
    await held.arrived()
    timers: set[int] = set()

    def pongs_were_missed() -> bool:
        timers.add(id(client.connection._lifetime._pong_timer))
        return len(timers) > 3

    await until(pongs_were_missed)
    assert closed_with(client) is None
    held.release()
    await waiting
    await until(lambda: closed_with(client) is Disconnect.NO_PONG)


async def test_a_subscribe_that_takes_too_long_is_answered_in_time(
    fleet: Fleet, node: LocalNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(subscribe_module, "SUBSCRIBE_LIMIT_S", 0.02)
    client = await node.client()
    held = fleet.traffic.hold("newest")
    assert await client.subscribe("room") == 100
    assert client.connection.session.channels == set()
    held.release()
    monkeypatch.setattr(subscribe_module, "SUBSCRIBE_LIMIT_S", 4.5)
    assert "epoch" in await client.subscribe("room")


async def test_one_client_reads_a_few_at_a_time(fleet: Fleet, node: LocalNode) -> None:
    client = await node.client()
    held = fleet.traffic.hold("newest")
    said = [{"history": {"channel": "room", "limit": 1}} for _ in range(20)]
    saying = asyncio.create_task(client.say(*said))
    await held.arrived(READS_UNDER_WAY_MAX)
    await settled()
    assert held.count == READS_UNDER_WAY_MAX
    held.release()
    for command_id in await saying:
        assert "history" in await client.answer(command_id)


async def test_what_waits_for_its_turn_ends_with_its_connection(
    fleet: Fleet, node: LocalNode
) -> None:
    client = await node.client()
    held = fleet.traffic.hold("newest")
    await client.say(*({"history": {"channel": "room", "limit": 1}} for _ in range(10)))
    await held.arrived(READS_UNDER_WAY_MAX)
    node.assembly.node.closed(client.connection)
    await until(lambda: not client.connection._work.tasks)
    held.release()


async def test_a_subscribe_waits_for_a_presence_exit_but_not_for_long(
    fleet: Fleet, node: LocalNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(subscribe_module, "SUBSCRIBE_LIMIT_S", 0.02)
    client = await node.client()
    assert "epoch" in await client.subscribe("all:room")
    held = fleet.traffic.hold("remove")
    assert await client.ask("unsubscribe", channel="all:room") == {}
    assert await client.subscribe("all:room") == 100
    held.release()


async def test_a_canary_proves_the_queue(fleet: Fleet, node: LocalNode) -> None:
    item = canary_item(7, node="b", batch="batch", now=fleet.clock.now_ms(), generation="0")
    assert not node.assembly.listener.hears
    node.assembly.intake.take([envelope([item])])
    assert node.assembly.listener.hears
    assert node.assembly.ears.newest == 7
