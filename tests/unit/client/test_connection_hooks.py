"""A connection and the application's hooks: what is asked when, in which order,
and what becomes of the answers.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, Final

import pytest

from roomcast.auth.verifier import sign_connection, sign_subscription
from roomcast.client import hooks as hooks_module
from roomcast.client import subscribe as subscribe_module
from roomcast.client.hooks import ASKS_UNDER_WAY_MAX
from roomcast.client.work import COMMANDS_UNDER_WAY_MAX, PLACE_BYTES
from roomcast.hooks import (
    Capability,
    ConnectEvent,
    ConnectReply,
    Disconnected,
    Grant,
    Json,
    PublishEvent,
    PublishReply,
    Refused,
    RpcEvent,
    RpcRegistry,
    ServerSubscription,
    SubscribeEvent,
    SubscribeReply,
)
from roomcast.hooks.calls import Hooks
from roomcast.observe.counters import HookOutcome
from roomcast.wire.channels import ChannelOverride
from roomcast.wire.codes import Disconnect, DisconnectCode
from roomcast.wire.publication import Publication
from tests.unit.worlds import HISTORY, SECRET, Client, Fleet, LocalNode, logged, settled, until

# Real time in which a test waits for a time-out of the product.
SHORT_S: Final = 0.02
# When the clock of a world begins.
NOW_S: Final = 1_700_000_000


@pytest.fixture
def fleet() -> Fleet:
    return Fleet()


@asynccontextmanager
async def node(fleet: Fleet, hooks: Hooks, **changes: Any) -> AsyncIterator[LocalNode]:
    """A secure node with these hooks; nothing of it is left, and nothing is under way in them."""
    secure: dict[str, Any] = {"insecure": False, "secret": SECRET}
    made = fleet.node(hooks=hooks, **secure | changes)
    yield made
    await made.close()
    await until(lambda: made.assembly.hooks.counters.under_way == 0)


def token(user: str, **claims: Any) -> str:
    return sign_connection(user, SECRET, 3600, None, now_s=NOW_S, claims=claims or None)


class Script:
    """A hook whose replies a test gives one by one, and which remembers what it was asked."""

    def __init__(self) -> None:
        self.events: list[Any] = []
        self.cancelled = 0
        self._replies: dict[int, asyncio.Future[Any]] = {}

    def _reply(self, index: int) -> asyncio.Future[Any]:
        return self._replies.setdefault(index, asyncio.get_running_loop().create_future())

    async def __call__(self, event: Any) -> Any:
        self.events.append(event)
        try:
            return await self._reply(len(self.events) - 1)
        except asyncio.CancelledError:
            self.cancelled += 1
            raise

    async def asked(self, count: int = 1) -> None:
        await until(lambda: len(self.events) >= count)

    def answer(self, index: int, reply: object = None) -> None:
        """To the call of that number, now or when it comes; an exception is raised."""
        if isinstance(reply, Exception):
            self._reply(index).set_exception(reply)
        else:
            self._reply(index).set_result(reply)


def saying(reply: object) -> Callable[[Any], Any]:
    async def hook(_event: object) -> Any:
        if isinstance(reply, Exception):
            raise reply
        return reply

    return hook


def outcomes(node: LocalNode, hook: str) -> dict[str, int]:
    calls = node.assembly.hooks.counters.calls
    return {outcome: number for (name, outcome), number in calls.items() if name == hook and number}


# ---- connect


async def test_a_hook_knows_who_connects(fleet: Fleet) -> None:
    events: list[ConnectEvent] = []

    async def connect(event: ConnectEvent) -> ConnectReply:
        events.append(event)
        return ConnectReply(
            "ann",
            info={"name": "Ann"},
            data={"hello": "ann"},
            subs={"all:room": ServerSubscription(data=1)},
            caps=(Grant(("all:*",), frozenset({Capability.PUBLISH}), is_pattern=True),),
        )

    async with node(fleet, Hooks(connect=connect)) as served:
        client = served.open()
        result = await client.connect(data={"session": "s"}, name="js", version="5")
        assert events == [
            ConnectEvent(
                client.id, "", has_token=False, data={"session": "s"}, name="js", version="5"
            )
        ]
        assert result["data"] == {"hello": "ann"}
        assert result["subs"]["all:room"]["data"] == 1
        assert "expires" not in result
        assert client.connection.user == "ann"
        assert await client.publish("all:room", "hi") == {}
        [published] = [push for push in client.socket.pushes if "pub" in push]
        assert published["pub"]["info"] == {
            "user": "ann",
            "client": client.id,
            "conn_info": {"name": "Ann"},
        }


async def test_a_hook_hears_what_the_token_says(fleet: Fleet) -> None:
    connect = Script()
    connect.answer(0)
    async with node(fleet, Hooks(connect=connect)) as served:
        client = served.open()
        said = token("ann", info={"name": "Ann"}, meta={"plan": "free"})
        result = await client.connect(token=said)
        assert connect.events == [
            ConnectEvent(
                client.id,
                "ann",
                has_token=True,
                info={"name": "Ann"},
                meta={"plan": "free"},
                data=None,
            )
        ]
        assert result["expires"]
        assert "data" not in result
        assert client.connection.user == "ann"


async def test_a_bad_token_is_not_asked_about(fleet: Fleet) -> None:
    connect = Script()
    async with node(fleet, Hooks(connect=connect)) as served:
        client = served.open()
        await client.say({"connect": {"token": "bad"}})
        assert client.socket.closed_with is Disconnect.INVALID_TOKEN
        assert connect.events == []


@pytest.mark.parametrize(
    "reply, error",
    [
        (None, {"code": 101, "message": "unauthorized"}),
        (ConnectReply(), {"code": 101, "message": "unauthorized"}),
        (Refused(401, "sign in first"), {"code": 401, "message": "sign in first"}),
        (
            Refused(1000, "later", temporary=True),
            {"code": 1000, "message": "later", "temporary": True},
        ),
        (
            RuntimeError("secret"),
            {"code": 100, "message": "internal server error", "temporary": True},
        ),
        ("yes", {"code": 100, "message": "internal server error", "temporary": True}),
    ],
)
async def test_a_connect_that_is_refused(
    fleet: Fleet, reply: object, error: dict[str, Any]
) -> None:
    async with node(fleet, Hooks(connect=saying(reply))) as served:
        client = served.open()
        [command] = await client.say({"connect": {}})
        assert (await client.answer(command))["error"] == error
        assert len(served.assembly.node.services.roster) == 0
        # It is of no more use.
        await client.say({"subscribe": {"channel": "room"}})
        assert client.socket.closed_with is Disconnect.BAD_REQUEST


async def test_a_connect_that_is_cut_off(fleet: Fleet) -> None:
    async with node(fleet, Hooks(connect=saying(Disconnected(4500, "banned")))) as served:
        client = served.open()
        await client.say({"connect": {}})
        assert client.socket.closed_with == DisconnectCode(4500, "banned")
        assert client.socket.lines == []


async def test_what_follows_a_connect_waits_for_its_hook(fleet: Fleet) -> None:
    connect = Script()
    async with node(fleet, Hooks(connect=connect), insecure=True) as served:
        client = served.open()
        saying_ = asyncio.create_task(
            client.say({"connect": {}}, {"subscribe": {"channel": "room"}})
        )
        await connect.asked()
        await settled()
        assert client.socket.lines == []
        connect.answer(0)
        connected, subscribed = await saying_
        await client.answer(subscribed)
        assert [line["id"] for line in client.socket.lines] == [connected, subscribed]


async def test_a_connect_whose_client_goes(fleet: Fleet) -> None:
    connect = Script()
    async with node(fleet, Hooks(connect=connect), insecure=True) as served:
        client = served.open()
        saying_ = asyncio.create_task(client.say({"connect": {}}))
        await connect.asked()
        served.assembly.node.closed(client.connection)
        await saying_
        await until(lambda: connect.cancelled == 1)
        assert outcomes(served, "connect") == {"cancelled": 1}
        assert client.socket.lines == []


async def test_a_connect_whose_hook_is_slow(fleet: Fleet) -> None:
    connect = Script()
    async with node(fleet, Hooks(connect=connect), insecure=True, hook_timeout_s=SHORT_S) as served:
        assert await served.open().connect() == 100
        assert outcomes(served, "connect") == {"timed_out": 1}


async def test_a_connection_that_the_hook_lets_last_a_while(fleet: Fleet) -> None:
    expires_at = fleet.clock.now_ms() // 1000 + 60
    reply = ConnectReply("ann", expires_at=expires_at)
    async with node(fleet, Hooks(connect=saying(reply))) as served:
        client = served.open()
        result = await client.connect()
        # Its client could only refresh a token, and has none.
        assert "expires" not in result
        assert "ttl" not in result
        assert len(client.connection._lifetime._deadlines) == 1
        await client.say({"refresh": {"token": token("ann")}})
        assert client.socket.closed_with is Disconnect.BAD_REQUEST
        over = ConnectReply("ann", expires_at=1)
    async with node(fleet, Hooks(connect=saying(over))) as served:
        client = await served.client()
        await until(lambda: client.socket.closed_with)
        assert client.socket.closed_with is Disconnect.EXPIRED


async def test_a_users_connections_are_limited_whoever_named_the_user(fleet: Fleet) -> None:
    hooks = Hooks(connect=saying(ConnectReply("ann")))
    async with node(fleet, hooks, user_connection_limit=1) as served:
        await served.client()
        second = served.open()
        await second.say({"connect": {}})
        assert second.socket.closed_with is Disconnect.CONNECTION_LIMIT


# ---- subscribe


async def test_a_hook_lets_in(fleet: Fleet) -> None:
    events: list[SubscribeEvent] = []

    async def subscribe(event: SubscribeEvent) -> SubscribeReply | None:
        events.append(event)
        if event.channel == "other":
            return None
        return SubscribeReply(
            {"role": "owner"}, {"welcome": 1}, override=ChannelOverride(presence=True)
        )

    async with node(fleet, Hooks(subscribe=subscribe)) as served:
        client = await served.client(token=token("ann", info={"name": "Ann"}))
        result = await client.subscribe("room", data={"invitation": 7}, recoverable=True)
        assert events == [
            SubscribeEvent(client.id, "ann", {"name": "Ann"}, "room", {"invitation": 7})
        ]
        assert result["data"] == {"welcome": 1}
        assert result["recoverable"]
        assert "expires" not in result
        presence = await served.assembly.node.services.presence.members("room")
        assert presence[client.id].chan_info == {"role": "owner"}
        assert await client.subscribe("other") == 103
        assert await client.subscribe("room") == 105


@pytest.mark.parametrize(
    "reply, code", [(Refused(403, "not yours"), 403), (ValueError(), 100), (5, 100)]
)
async def test_a_subscribe_that_is_refused_leaves_nothing(
    fleet: Fleet, reply: object, code: int
) -> None:
    async with node(fleet, Hooks(subscribe=saying(reply)), insecure=True) as served:
        client = await served.client()
        assert await client.subscribe("all:room") == code
        assert client.connection.session.channels == set()
        assert await client.ask("unsubscribe", channel="all:room") == {}


async def test_a_subscribe_that_ends_the_connection(fleet: Fleet) -> None:
    hooks = Hooks(subscribe=saying(Disconnected(4000, "come again")))
    async with node(fleet, hooks, insecure=True) as served:
        client = await served.client()
        await client.say({"subscribe": {"channel": "room"}})
        await until(lambda: client.socket.closed_with)
        assert client.socket.closed_with == DisconnectCode(4000, "come again")


async def test_subscribes_are_asked_about_at_once_and_block_nobody_else(fleet: Fleet) -> None:
    subscribe = Script()
    async with node(fleet, Hooks(subscribe=subscribe), insecure=True) as served:
        client = await served.client()
        one, two, published = await client.say(
            {"subscribe": {"channel": "one"}},
            {"subscribe": {"channel": "two"}},
            {"publish": {"channel": "three", "data": "hi"}},
        )
        await subscribe.asked(2)
        await client.answer(published)
        subscribe.answer(1)
        await client.answer(two)
        assert client.socket.reply_to(one) is None
        subscribe.answer(0)
        await client.answer(one)


async def test_what_concerns_the_channel_waits_for_its_hook(fleet: Fleet) -> None:
    subscribe = Script()
    async with node(fleet, Hooks(subscribe=subscribe), insecure=True) as served:
        client = await served.client()
        saying_ = asyncio.create_task(
            client.say(
                {"subscribe": {"channel": "room"}},
                {"publish": {"channel": "room", "data": "hi"}},
                {"unsubscribe": {"channel": "room"}},
            )
        )
        await subscribe.asked()
        await settled()
        assert [line["id"] for line in client.socket.lines] == [1]
        subscribe.answer(0)
        joined, published, left = await saying_
        for command in (joined, published, left):
            assert "error" not in await client.answer(command)
        assert client.connection.session.channels == set()


async def test_one_client_does_not_take_all_calls(fleet: Fleet) -> None:
    subscribe = Script()
    async with node(fleet, Hooks(subscribe=subscribe), insecure=True) as served:
        client = await served.client()
        await client.say(
            *({"subscribe": {"channel": f"c{each}"}} for each in range(ASKS_UNDER_WAY_MAX + 1))
        )
        await subscribe.asked(ASKS_UNDER_WAY_MAX)
        await settled()
        assert len(subscribe.events) == ASKS_UNDER_WAY_MAX
        subscribe.answer(0)
        await subscribe.asked(ASKS_UNDER_WAY_MAX + 1)


async def test_a_subscribe_whose_client_goes(fleet: Fleet) -> None:
    subscribe = Script()
    async with node(fleet, Hooks(subscribe=subscribe), insecure=True) as served:
        client = await served.client()
        await client.say({"subscribe": {"channel": "room"}})
        await subscribe.asked()
        served.assembly.node.closed(client.connection)
        await until(lambda: subscribe.cancelled == 1)
        assert outcomes(served, "subscribe") == {HookOutcome.CANCELLED.value: 1}


async def test_a_subscription_that_the_hook_lets_last_a_while(fleet: Fleet) -> None:
    subscribe = Script()
    subscribe.answer(0, SubscribeReply(expires_at=1))
    async with node(fleet, Hooks(subscribe=subscribe), insecure=True) as served:
        client = await served.client()
        result = await client.subscribe("room")
        assert "ttl" not in result
        await until(lambda: client.socket.unsubscribed("room"))
        # An SDK subscribes again after this code.
        assert client.socket.unsubscribed("room") == [2501]
        subscribe.answer(1, SubscribeReply(expires_at=fleet.clock.now_ms() // 1000 + 60))
        await client.subscribe("room")
        assert len(client.connection._lifetime._deadlines) == 1


async def test_a_token_for_the_channel_decides(fleet: Fleet) -> None:
    subscribe = Script()
    async with node(fleet, Hooks(subscribe=subscribe)) as served:
        client = await served.client(token=token("ann"))
        for_room = sign_subscription("ann", "$room", SECRET, 3600, None, now_s=NOW_S)
        assert isinstance(await client.subscribe("$room", token=for_room), dict)
        assert await client.subscribe("$other") == 103
        assert subscribe.events == []


# ---- publish


async def test_a_hook_may_change_what_is_published(fleet: Fleet) -> None:
    events: list[PublishEvent] = []

    async def publish(event: PublishEvent) -> PublishReply | None:
        events.append(event)
        if event.data == "none":
            return None
        return PublishReply() if event.data == "as it is" else PublishReply({"said": event.data})

    async with node(fleet, Hooks(publish=publish)) as served:
        client = await served.client(token=token("ann"))
        assert await client.publish("room", "hi") == {}
        assert await client.publish("room", "as it is") == {}
        assert await client.publish("room", "none") == 103
        assert client.connection._work._places._value == COMMANDS_UNDER_WAY_MAX
        answer = await client.ask(
            "rpc", method="roomcast.publish", data={"channel": "room", "data": "rpc"}
        )
        assert answer["data"]["offset"] == 3
        assert logged(fleet.world) == [{"said": "hi"}, "as it is", {"said": "rpc"}]
        assert events[0] == PublishEvent(client.id, "ann", None, "room", "hi")


@pytest.mark.parametrize(
    "reply, code", [(Refused(422, "no"), 422), (ValueError(), 100), ("yes", 100)]
)
async def test_a_publication_that_is_refused_is_not_in_the_log(
    fleet: Fleet, reply: object, code: int
) -> None:
    async with node(fleet, Hooks(publish=saying(reply)), insecure=True) as served:
        client = await served.client()
        assert await client.publish("room", "hi") == code
        assert "room" not in fleet.world.items or logged(fleet.world) == []
        # Its place is free again.
        assert client.connection._work._places._value == COMMANDS_UNDER_WAY_MAX


async def test_publications_keep_their_order(fleet: Fleet) -> None:
    publish = Script()
    async with node(fleet, Hooks(publish=publish), insecure=True) as served:
        client = await served.client()
        commands = await client.say(
            {"publish": {"channel": "room", "data": 1}},
            {"publish": {"channel": "room", "data": 2}},
            {"publish": {"channel": "room", "data": 3}},
            {"history": {"channel": "other"}},
        )
        await client.answer(commands[-1])
        await settled()
        assert [event.data for event in publish.events] == [1]
        publish.answer(1, Refused(422, "not two"))
        publish.answer(2)
        publish.answer(0)
        for command in commands:
            await client.answer(command)
        assert logged(fleet.world) == [1, 3]
        assert client.connection._work._places._value == COMMANDS_UNDER_WAY_MAX


async def test_a_publication_that_waits_too_long_is_known_not_to_be(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hooks_module, "ASK_LIMIT_S", 60.0 + SHORT_S)
    publish = Script()
    async with node(fleet, Hooks(publish=publish), insecure=True, hook_timeout_s=60.0) as served:
        client = await served.client()
        first, second, third = await client.say(
            *({"publish": {"channel": "room", "data": each}} for each in (1, 2, 3))
        )
        for command in (second, third):
            assert (await client.answer(command))["error"]["code"] == 111
        [last] = await client.say({"publish": {"channel": "room", "data": 4}})
        monkeypatch.setattr(hooks_module, "ASK_LIMIT_S", 120.0)
        [late] = await client.say({"publish": {"channel": "room", "data": 5}})
        await settled()
        assert len(publish.events) == 1
        publish.answer(0)
        publish.answer(1)
        publish.answer(2)
        await client.answer(first)
        await client.answer(last)
        await client.answer(late)
        assert [event.data for event in publish.events][-1] == 5
        assert logged(fleet.world)[0] == 1
        assert 2 not in logged(fleet.world)
        assert client.connection._work._places._value == COMMANDS_UNDER_WAY_MAX


async def test_the_rate_is_looked_at_before_the_hook(fleet: Fleet) -> None:
    publish = Script()
    publish.answer(0)
    publish.answer(1)
    async with node(fleet, Hooks(publish=publish), insecure=True, publish_rate_limit=0.4) as served:
        client = await served.client()
        codes = [await client.publish("room", each) for each in range(3)]
        assert codes == [{}, 111, 111]
        assert len(publish.events) == 1


async def test_more_publications_than_there_are_places(fleet: Fleet) -> None:
    async with node(
        fleet,
        Hooks(publish=saying(None)),
        insecure=True,
        publish_rate_limit=0,
        command_rate_limit=0,
    ) as served:
        client = await served.client()
        count = COMMANDS_UNDER_WAY_MAX + 10
        commands = await client.say(
            *({"publish": {"channel": "room", "data": each}} for each in range(count))
        )
        for command in commands:
            assert (await client.answer(command))["publish"] == {}
        assert logged(fleet.world) == list(range(count))


async def test_who_waits_for_a_place_when_the_connection_ends_does_not_wait_for_ever(
    fleet: Fleet,
) -> None:
    """Otherwise nobody would ever see that the socket is closed:
    the connection would count as open.
    """
    publish = Script()
    async with node(
        fleet, Hooks(publish=publish), insecure=True, publish_rate_limit=0, command_rate_limit=0
    ) as served:
        client = await served.client()
        commands = (
            {"publish": {"channel": "room", "data": each}}
            for each in range(COMMANDS_UNDER_WAY_MAX + 10)
        )
        saying_them = asyncio.create_task(client.say(*commands))
        await publish.asked()
        await settled()
        assert not saying_them.done()
        client.connection.close(Disconnect.EXPIRED)
        await asyncio.wait_for(saying_them, 10)
        await until(lambda: client.connection._work.tasks == 0)
        assert client.connection._work._places._value == COMMANDS_UNDER_WAY_MAX


@pytest.mark.parametrize("method", ["rpc", "publish", "subscribe"])
async def test_what_waits_for_a_hook_is_bounded_in_bytes(fleet: Fleet, method: str) -> None:
    """A hook that is slow must not let one client fill the memory: decoded, data is far larger."""
    hook, methods = Script(), RpcRegistry()

    @methods.method("slow")
    async def slow(event: RpcEvent) -> Json:
        await hook(event)
        return None

    asked = {
        "rpc": Hooks(rpc=methods),
        "publish": Hooks(publish=hook),
        "subscribe": Hooks(subscribe=hook),
    }
    data = "x" * 40 * PLACE_BYTES
    most = COMMANDS_UNDER_WAY_MAX // 41
    others: dict[str, Any] = {"rpc": {"method": "slow"}, "publish": {"channel": "room"}}
    async with node(
        fleet,
        asked[method],
        insecure=True,
        message_size_limit=len(data) + 1024,
        publish_rate_limit=0,
        command_rate_limit=0,
    ) as served:
        client = await served.client()
        commands = (
            {method: others.get(method, {"channel": f"room{each}"}) | {"data": data}}
            for each in range(2 * most)
        )
        saying_them = asyncio.create_task(client.say(*commands))
        await hook.asked()
        await settled()
        assert not saying_them.done()
        assert client.connection._work.tasks == most
        for each in range(2 * most):
            hook.answer(each)
        for command in await saying_them:
            assert "error" not in await client.answer(command)
        await settled()
        assert client.connection._work._places._value == COMMANDS_UNDER_WAY_MAX


async def test_the_server_api_is_not_asked_about(fleet: Fleet) -> None:
    # What a hook refuses to clients, the application's back end may say.
    publish = Script()
    async with node(fleet, Hooks(publish=publish), insecure=True) as served:
        appender = served.assembly.node.services.appender
        await appender.submit(
            "room", Publication("from the back end"), HISTORY.history_ttl_s * 1000
        )
        assert logged(fleet.world) == ["from the back end"]
        assert publish.events == []


async def test_what_the_hook_gave_outlives_a_refresh_of_the_token(fleet: Fleet) -> None:
    reply = ConnectReply(
        info={"name": "Ann"}, caps=(Grant(("room",), frozenset({Capability.PUBLISH})),)
    )
    async with node(fleet, Hooks(connect=saying(reply))) as served:
        client = await served.client(token=token("ann"))
        assert await client.publish("room", 1) == {}
        assert (await client.ask("refresh", token=token("ann")))["expires"] is True
        assert await client.publish("room", 2) == {}
        assert client.connection.session.info.conn_info == {"name": "Ann"}
        await client.ask("refresh", token=token("ann", info={"name": "of the token"}))
        assert client.connection.session.info.conn_info == {"name": "of the token"}


@pytest.mark.parametrize("hook", ["subscribe", "rpc"])
async def test_what_does_not_find_a_place_in_time_is_not_asked_about(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch, hook: str
) -> None:
    """Its client would have given up before the answer, and would reconnect."""
    monkeypatch.setattr(hooks_module, "ASK_LIMIT_S", SHORT_S)
    script = Script()
    hooks = Hooks(subscribe=script) if hook == "subscribe" else Hooks(rpc=registry(wait=script))
    commands: list[dict[str, Any]] = [
        {"subscribe": {"channel": f"room-{number}"}}
        if hook == "subscribe"
        else {"rpc": {"method": "wait"}}
        for number in range(ASKS_UNDER_WAY_MAX + 1)
    ]
    async with node(fleet, hooks, insecure=True, hook_timeout_s=60.0) as served:
        client = await served.client()
        *first, last = await client.say(*commands)
        assert (await client.answer(last))["error"] == {
            "code": 111, "message": "too many requests", "temporary": True,
        }  # fmt: skip
        assert len(script.events) == ASKS_UNDER_WAY_MAX
        assert client.socket.reply_to(first[-1]) is None
        assert f"room-{ASKS_UNDER_WAY_MAX}" not in client.connection.session.channels
        for number in range(ASKS_UNDER_WAY_MAX):
            script.answer(number, Refused(422, "no"))
        for command in first:
            assert (await client.answer(command))["error"]["code"] == 422


# ---- calls


def registry(**methods: Callable[[Any], Any]) -> RpcRegistry:
    made = RpcRegistry()
    for name, function in methods.items():
        made.method(name)(function)
    return made


async def test_a_call(fleet: Fleet) -> None:
    async def add(event: RpcEvent) -> Json:
        return {
            "sum": sum(event.data),
            "for": event.user,
            "method": event.method,
            "client": event.client,
        }

    hooks = Hooks(rpc=registry(add=add, nothing=saying(None)))
    async with node(fleet, hooks) as served:
        client = await served.client(token=token("ann"))
        answer = await client.ask("rpc", method="add", data=[1, 2])
        assert answer == {"data": {"sum": 3, "for": "ann", "method": "add", "client": client.id}}
        assert await client.ask("rpc", method="nothing") == {"data": None}
        assert await client.ask("rpc", method="gone", data=1) == 104


async def test_without_a_registry_there_are_no_calls(fleet: Fleet) -> None:
    async with node(fleet, Hooks(connect=saying(None)), insecure=True) as served:
        client = await served.client()
        assert await client.ask("rpc", method="add") == 108


async def test_calls_overtake_each_other_and_are_given_up_at_the_end(fleet: Fleet) -> None:
    slow = Script()
    async with node(
        fleet, Hooks(rpc=registry(slow=slow, quick=saying(1))), insecure=True
    ) as served:
        client = await served.client()
        first, second = await client.say({"rpc": {"method": "slow"}}, {"rpc": {"method": "quick"}})
        await client.answer(second)
        assert client.socket.reply_to(first) is None
        await slow.asked()
        served.assembly.node.closed(client.connection)
        await until(lambda: slow.cancelled == 1)
        assert outcomes(served, "rpc") == {"answered": 1, "cancelled": 1}


@pytest.mark.parametrize(
    "reply, code", [(Refused(999, "no"), 999), (RuntimeError(), 100), ({1: 2}, 100), (b"", 100)]
)
async def test_a_call_that_fails(fleet: Fleet, reply: object, code: int) -> None:
    async with node(fleet, Hooks(rpc=registry(m=saying(reply))), insecure=True) as served:
        client = await served.client()
        assert await client.ask("rpc", method="m") == code
        counted = served.assembly.node.services.counters.commands
        assert counted["rpc", "application" if code == 999 else 100] == 1


async def answered(client: Client) -> Json:
    return await client.ask("rpc", method="m")


async def test_a_call_that_is_too_slow(fleet: Fleet) -> None:
    hooks = Hooks(rpc=registry(m=Script()))
    async with node(fleet, hooks, insecure=True, hook_timeout_s=SHORT_S) as served:
        assert await answered(await served.client()) == 100
        assert outcomes(served, "rpc") == {"timed_out": 1}


async def test_a_call_that_ends_the_connection(fleet: Fleet) -> None:
    hooks = Hooks(rpc=registry(m=saying(Disconnected(4501, "enough"))))
    async with node(fleet, hooks, insecure=True) as served:
        client = await served.client()
        await client.say({"rpc": {"method": "m"}})
        await until(lambda: client.socket.closed_with)
        assert client.socket.closed_with == DisconnectCode(4501, "enough")


async def test_the_time_of_the_hook_is_a_part_of_the_subscribes(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(subscribe_module, "SUBSCRIBE_LIMIT_S", SHORT_S)
    subscribe = Script()
    async with node(fleet, Hooks(subscribe=subscribe), insecure=True) as served:
        client = await served.client()
        [command] = await client.say({"subscribe": {"channel": "room"}})
        await subscribe.asked()
        now = asyncio.get_running_loop().time
        over_s = now() + SHORT_S
        await until(lambda: now() > over_s)
        subscribe.answer(0)
        assert (await client.answer(command))["error"]["code"] == 100
        assert client.connection.session.channels == set()
