"""Tokens over the life of a connection: when they end, what replaces them,
and keys that are slow to come.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import replace
from typing import Any, Final

import jwt
import pytest
from structlog.testing import capture_logs

from roomcast.auth.claims import EARLY_S_MAX
from roomcast.auth.jwks import DEMAND_PAUSE_S, FetchFailed, JwksKeys
from roomcast.client import lifetime as lifetime_module
from roomcast.client.lifetime import EXPIRY_GRACE_S
from roomcast.wire.channels import ChannelOptions, ChannelRules
from roomcast.wire.codes import Closing, Disconnect
from tests.signers import jwks, signer
from tests.unit.worlds import SECRET, Client, Fleet, LocalNode, settled, standing_still, until

HISTORY: Final = ChannelOptions(
    history_size=10, history_ttl_s=60, allow_recovery=True, allow_positioning=True
)
RULES: Final = ChannelRules(
    without_namespace=replace(HISTORY, allow_subscribe_for_client=True),
    namespaces={
        "plain": ChannelOptions(),
        "present": replace(
            HISTORY, presence=True, join_leave=True, allow_presence_for_subscriber=True
        ),
    },
)


@pytest.fixture
def fleet() -> Fleet:
    return Fleet()


@pytest.fixture
async def node(fleet: Fleet) -> AsyncIterator[LocalNode]:
    node = fleet.node(insecure=False, secret=SECRET, rules=RULES)
    yield node
    await node.close()


@pytest.fixture
def no_grace(monkeypatch: pytest.MonkeyPatch) -> None:
    """What expires ends at once: a token's end is as far away as the test's clock says
    when it is presented.
    """
    monkeypatch.setattr(lifetime_module, "EXPIRY_GRACE_S", 0.0)


def token(fleet: Fleet, ttl_s: float | None = 60, **claims: Any) -> str:
    ends = {} if ttl_s is None else {"exp": fleet.clock.now_ms() / 1000 + ttl_s}
    return jwt.encode({"sub": "ann", **ends, **claims}, SECRET)


def closed_with(client: Client) -> Closing | None:
    return client.socket.closed_with


async def late(client: Client, name: str | None = None) -> float:
    """In how many seconds the connection, or its subscription, ends if nothing is done."""
    return client.connection._lifetime._deadlines._ends[name] - asyncio.get_running_loop().time()


# ---- connections


async def test_connect_says_when_the_token_must_be_refreshed(fleet: Fleet, node: LocalNode) -> None:
    client = node.open()
    ends = token(fleet, 91)
    fleet.clock.advance(0.5)
    result = await client.connect(token=ends)
    assert result["expires"] is True
    # Rounded up: a client that comes too early would have to come again.
    assert result["ttl"] == 91
    assert 85 + EXPIRY_GRACE_S < await late(client) <= 90.5 + EXPIRY_GRACE_S
    fleet.clock.advance(0.5)
    # `expire_at` is what counts; 0 is never.
    result = await node.open().connect(
        token=token(fleet, expire_at=fleet.clock.now_ms() / 1000 + 5)
    )
    assert (result["expires"], result["ttl"]) == (True, 5)
    for lasting in (token(fleet, None), token(fleet, expire_at=0)):
        client = node.open()
        result = await client.connect(token=lasting)
        assert "expires" not in result
        assert "ttl" not in result
        assert len(client.connection._lifetime._deadlines) == 0


async def test_a_time_to_live_is_never_left_out(fleet: Fleet, node: LocalNode) -> None:
    result = await node.open().connect(token=token(fleet, 0.001))
    assert (result["expires"], result["ttl"]) == (True, 1)
    # Nor too large for the field: some signers write milliseconds.
    client = node.open()
    result = await client.connect(token=token(fleet, exp=fleet.clock.now_ms()))
    assert (result["expires"], result["ttl"]) == (True, 2**31 - 1)


async def test_a_refresh_makes_the_connection_last(fleet: Fleet, node: LocalNode) -> None:
    client = await node.client(token=token(fleet, info={"name": "old"}))
    fleet.clock.advance(59)
    result = await client.ask("refresh", token=token(fleet, 3600, info={"name": "new"}))
    assert result == {
        "client": client.id,
        "version": result["version"],
        "expires": True,
        "ttl": 3600,
    }
    assert await late(client) > 3600
    assert client.connection.session.info.conn_info == {"name": "new"}
    # A token that lasts for ever ends it all; and one more may still come.
    assert await client.ask("refresh", token=token(fleet, None)) == {
        "client": client.id,
        "version": result["version"],
    }
    assert len(client.connection._lifetime._deadlines) == 0
    assert (await client.ask("refresh", token=token(fleet)))["ttl"] == 60


@pytest.mark.usefixtures("no_grace")
async def test_a_connection_that_is_not_refreshed_ends_and_one_that_is_goes_on(
    fleet: Fleet, node: LocalNode
) -> None:
    old = token(fleet)
    fleet.clock.advance(59.95)
    with standing_still():
        lazy, eager = await node.client(token=old), await node.client(token=old)
        await eager.ask("refresh", token=token(fleet, 3600))
    await until(lambda: closed_with(lazy))
    assert closed_with(lazy) is Disconnect.EXPIRED
    assert isinstance(await eager.subscribe("room"), dict)


async def test_there_is_some_time_to_refresh_after_the_end(fleet: Fleet, node: LocalNode) -> None:
    client = await node.client(token=token(fleet))
    fleet.clock.advance(60 + EXPIRY_GRACE_S - 1)
    assert isinstance(await client.subscribe("room"), dict)
    assert (await client.ask("refresh", token=token(fleet)))["ttl"] == 60


@pytest.mark.parametrize(
    "claims, why",
    [
        ({"sub": "bob"}, Disconnect.INVALID_TOKEN),
        ({"sub": ""}, Disconnect.INVALID_TOKEN),
        ({"channel": "room"}, Disconnect.INVALID_TOKEN),
        ({"exp": 1}, Disconnect.EXPIRED),
        ({"nbf": 4e9, "exp": 1}, Disconnect.EXPIRED),
        ({"sub": "bob", "exp": 1}, Disconnect.EXPIRED),
    ],
)
async def test_a_refresh_with_a_token_that_does_not_do(
    fleet: Fleet, node: LocalNode, claims: dict[str, Any], why: Disconnect
) -> None:
    client = await node.client(token=token(fleet))
    wrong = jwt.encode({"sub": "ann", "exp": fleet.clock.now_ms() / 1000 + 60, **claims}, SECRET)
    await client.say({"refresh": {"token": wrong}}, {"subscribe": {"channel": "room"}})
    assert closed_with(client) is why
    assert why.value.terminal == (why is Disconnect.INVALID_TOKEN)


@pytest.mark.parametrize("wrong", ["", "nonsense", jwt.encode({"sub": "ann"}, "x" * 32)])
async def test_a_refresh_with_no_token_of_ours(fleet: Fleet, node: LocalNode, wrong: str) -> None:
    client = await node.client(token=token(fleet))
    await client.say({"refresh": {"token": wrong}})
    assert closed_with(client) is Disconnect.INVALID_TOKEN


async def test_a_node_whose_clock_is_behind_lets_nobody_in_and_refuses_nobody_for_good(
    fleet: Fleet, node: LocalNode
) -> None:
    """SDKs come again by themselves after a temporary error, with the same token:
    by then it is good, here or elsewhere.
    """
    behind_s = EARLY_S_MAX + 20
    issued_s = fleet.clock.now_ms() / 1000 + behind_s
    fresh = {"nbf": issued_s, "exp": issued_s + 3600}
    refused = node.open()
    assert await refused.ask("connect", token=token(fleet, **fresh)) == 100
    assert refused.socket.lines[-1]["error"]["temporary"] is True
    client = await node.client(token=token(fleet))
    assert await client.subscribe("$room", token=token(fleet, channel="$room", **fresh)) == 100
    assert await client.ask("refresh", token=token(fleet, **fresh)) == 100
    result = await client.subscribe("$room", token=token(fleet, 90, channel="$room"))
    assert isinstance(result, dict)
    assert (
        await client.ask(
            "sub_refresh", channel="$room", token=token(fleet, channel="$room", **fresh)
        )
        == 100
    )
    assert closed_with(client) is None
    assert client.socket.pushes == [], "the subscription goes on as well"
    assert node.assembly.node.services.counters.token_failures["early"] == 4
    fleet.clock.advance(behind_s - EARLY_S_MAX)
    assert isinstance(await node.open().connect(token=token(fleet, **fresh)), dict)


async def test_who_never_expires_may_not_refresh(fleet: Fleet, node: LocalNode) -> None:
    client = await node.client(token=token(fleet, None))
    await client.say({"refresh": {"token": token(fleet)}})
    assert closed_with(client) is Disconnect.BAD_REQUEST


async def test_capabilities_of_the_token_open_what_the_options_do_not(
    fleet: Fleet, node: LocalNode
) -> None:
    caps = [{"channels": ["plain:*"], "match": "wildcard", "allow": ["sub", "pub"]}]
    client = await node.client(token=token(fleet, caps=caps))
    assert await client.subscribe("plain:a") == {}
    assert await client.publish("plain:b", 1) == {}
    assert await client.subscribe("present:a") == 103
    assert await client.publish("room", 1) == 103
    await client.ask("refresh", token=token(fleet))
    assert await client.publish("plain:b", 1) == 103


# ---- subscriptions


async def test_subscribe_says_when_its_token_must_be_refreshed(
    fleet: Fleet, node: LocalNode
) -> None:
    client = await node.client(token=token(fleet, None))
    for channel in ("$room", "plain:a"):
        result = await client.subscribe(channel, token=token(fleet, 90, channel=channel))
        assert (result["expires"], result["ttl"]) == (True, 90)
        assert 90 < await late(client, channel) <= 90 + EXPIRY_GRACE_S
    result = await client.subscribe("$b", recoverable=True, token=token(fleet, 7, channel="$b"))
    assert result["recoverable"] is True
    assert result["epoch"]
    assert result["ttl"] == 7
    assert await client.subscribe("$c", token=token(fleet, None, channel="$c")) == {}
    assert len(client.connection._lifetime._deadlines) == 3
    for channel in ("$room", "plain:a", "$b"):
        await client.ask("unsubscribe", channel=channel)
    assert len(client.connection._lifetime._deadlines) == 0


async def test_a_sub_refresh_makes_the_subscription_last(fleet: Fleet, node: LocalNode) -> None:
    client = await node.client(token=token(fleet, None))
    await client.subscribe("$room", token=token(fleet, channel="$room"))
    assert await client.publish("$room", 1) == 103
    fleet.clock.advance(59)
    fresh = token(fleet, 3600, channel="$room", allow=["pub"])
    assert await client.ask("sub_refresh", channel="$room", token=fresh) == {
        "expires": True,
        "ttl": 3600,
    }
    assert await late(client, "$room") > 3600
    assert await client.publish("$room", 1) == {}
    # Some SDKs leave the channel to the token.
    assert await client.ask("sub_refresh", token=token(fleet, 7, channel="$room")) == {
        "expires": True,
        "ttl": 7,
    }
    lasting = token(fleet, None, channel="$room")
    assert await client.ask("sub_refresh", channel="$room", token=lasting) == {}
    assert len(client.connection._lifetime._deadlines) == 0


@pytest.mark.usefixtures("no_grace")
async def test_a_subscription_that_is_not_refreshed_ends_and_the_connection_stays(
    fleet: Fleet, node: LocalNode
) -> None:
    client, witness = (
        await node.client(token=token(fleet, None)),
        await node.client(token=token(fleet, None)),
    )
    assert isinstance(
        await witness.subscribe(
            "present:room", join_leave=True, token=token(fleet, None, channel="present:room")
        ),
        dict,
    )
    old = token(fleet, channel="present:room")
    fleet.clock.advance(59.95)
    await client.subscribe("present:room", token=old)
    await until(lambda: client.socket.unsubscribed("present:room"))
    assert client.socket.unsubscribed("present:room") == [2501]
    assert closed_with(client) is None
    await until(lambda: client.id in witness.socket.told("present:room", "leave"))
    await node.assembly.background.finish()
    assert {member.info.client for member in fleet.world.presence["present:room"].values()} == {
        witness.id
    }
    # It comes again: the SDK with its old token first, which is told, then with a new one.
    fleet.clock.advance(1.05)
    assert await client.subscribe("present:room", token=old) == 109
    fresh = token(fleet, channel="present:room")
    assert (await client.subscribe("present:room", token=fresh))["ttl"] == 60
    assert await client.publish("room", 1) == 103


async def test_an_expired_token_in_a_sub_refresh_makes_the_client_subscribe_again(
    fleet: Fleet, node: LocalNode
) -> None:
    """An SDK takes the error for the end of the subscription,
    unless it has been told to subscribe again before.
    """
    client = await node.client(token=token(fleet, None))
    await client.subscribe("$room", token=token(fleet, channel="$room"))
    old = token(fleet, -1, channel="$room")
    assert await client.ask("sub_refresh", channel="$room", token=old) == 109
    assert client.socket.unsubscribed("$room") == [2501]
    push, reply = client.socket.lines[-2:]
    assert "push" in push
    assert reply["error"]["code"] == 109
    assert (await client.subscribe("$room", token=token(fleet, channel="$room")))["ttl"] == 60


@pytest.mark.parametrize(
    "claims",
    [
        {"sub": "bob"},
        {"sub": ""},
        {"channel": "$other"},
        {"channel": "$other", "client": "c"},
        {"client": "c"},
    ],
)
async def test_a_sub_refresh_with_somebody_elses_token_ends_the_connection(
    fleet: Fleet, node: LocalNode, claims: dict[str, Any]
) -> None:
    client = await node.client(token=token(fleet, None))
    for channel in ("$room", "$other"):
        await client.subscribe(channel, token=token(fleet, channel=channel))
    wrong = token(fleet, **{"channel": "$room", **claims})
    await client.say({"sub_refresh": {"channel": "$room", "token": wrong}})
    assert closed_with(client) is Disconnect.INVALID_TOKEN


async def test_a_sub_refresh_that_makes_no_sense_is_an_answer(
    fleet: Fleet, node: LocalNode
) -> None:
    client = await node.client(token=token(fleet, None))
    await client.subscribe("$room", token=token(fleet, channel="$room"))
    good = token(fleet, channel="$room")
    for params, code in (
        ({"channel": "$room"}, 107),
        ({"channel": "x" * 256, "token": good}, 107),
        ({"channel": "$other", "token": token(fleet, channel="$other")}, 103),
        ({"token": token(fleet, channel="$other")}, 103),
        ({"channel": "$room", "token": "nonsense"}, 103),
        ({"channel": "$room", "token": token(fleet)}, 103),
    ):
        assert await client.ask("sub_refresh", **params) == code
    assert closed_with(client) is None
    assert client.socket.unsubscribed("$room") == []
    await client.subscribe("room")
    await client.say({"sub_refresh": {"channel": "room", "token": token(fleet, channel="room")}})
    assert closed_with(client) is Disconnect.BAD_REQUEST


async def test_a_subscription_token_changes_what_the_subscription_gets(
    fleet: Fleet, node: LocalNode
) -> None:
    client = await node.client(token=token(fleet, None))
    override = {"presence": {"value": False}, "force_recovery": {"value": True}}
    result = await client.subscribe(
        "present:a", token=token(fleet, None, channel="present:a", override=override)
    )
    assert result["recoverable"] is True
    assert fleet.world.presence == {}


async def test_a_connection_has_one_timer_for_all_that_expires(
    fleet: Fleet, node: LocalNode
) -> None:
    loop = asyncio.get_running_loop()
    client = await node.client(token=token(fleet))
    timers, tasks = len(loop._scheduled), len(asyncio.all_tasks())  # type: ignore[attr-defined]  # nothing public tells
    for number in range(100):
        channel = f"$c{number}"
        assert isinstance(
            await client.subscribe(channel, token=token(fleet, 90, channel=channel)), dict
        )
    assert len(client.connection._lifetime._deadlines) == 101
    alive = [each for each in loop._scheduled if not each.cancelled()]  # type: ignore[attr-defined]  # as above
    assert len(alive) <= timers
    await until(lambda: len(asyncio.all_tasks()) <= tasks)
    client.connection.end()
    assert len(client.connection._lifetime._deadlines) == 0
    assert client.connection._lifetime._deadlines._timer is None


# ---- keys of an endpoint


class Provider:
    """An identity provider. Its answers wait for `gate`."""

    def __init__(self, fleet: Fleet) -> None:
        self.body: bytes | None = jwks(signer("ES256").jwk("k1"))
        self.gate = asyncio.Event()
        self.gate.set()
        self.fetched = 0
        self.keys = JwksKeys(self._fetch, fleet.clock, lambda: 0.5)
        self.fetching: asyncio.Task[None] | None = None

    async def begin(self) -> None:
        """The first fetch is done, unless the gate is closed."""
        self.fetching = asyncio.create_task(self.keys.run())
        await until(lambda: self.fetched)
        await settled()

    async def _fetch(self) -> bytes:
        self.fetched += 1
        await self.gate.wait()
        if self.body is None:
            raise FetchFailed("status 503")
        return self.body


@pytest.fixture
async def provider(fleet: Fleet) -> AsyncIterator[Provider]:
    """Not asked until `begin`."""
    provider = Provider(fleet)
    yield provider
    if provider.fetching is not None:
        provider.fetching.cancel()
        with suppress(asyncio.CancelledError):
            await provider.fetching


@pytest.fixture
async def other(fleet: Fleet, provider: Provider) -> AsyncIterator[LocalNode]:
    """A node that has its keys from the provider, and a secret beside them."""
    node = fleet.node(jwks=provider.keys, insecure=False, secret=SECRET, rules=RULES)
    yield node
    await node.close()


def signed(fleet: Fleet, kid: str | None = "k1", number: int = 1, **claims: Any) -> str:
    ends = {"exp": fleet.clock.now_ms() / 1000 + 60}
    return signer("ES256", number).sign({"sub": "ann", **ends, **claims}, kid)


def error(client: Client, command_id: int) -> dict[str, Any] | None:
    reply = client.socket.reply_to(command_id)
    return reply["error"] if reply and "error" in reply else None


async def test_an_endpoint_that_is_down_is_a_temporary_error(
    fleet: Fleet, provider: Provider, other: LocalNode
) -> None:
    provider.body = None
    await provider.begin()
    client = other.open()
    [command_id] = await client.say({"connect": {"token": signed(fleet)}})
    assert error(client, command_id) == {
        "code": 100,
        "message": "internal server error",
        "temporary": True,
    }
    assert closed_with(client) is None
    # That was the answer to connect: whoever goes on as if it had been another is closed.
    await client.say({"subscribe": {"channel": "room"}})
    assert closed_with(client) is Disconnect.BAD_REQUEST
    # And others are let in.
    member = await other.client(token=token(fleet))
    assert await member.subscribe("$room", token=signed(fleet, channel="$room")) == 100
    assert await member.ask("refresh", token=signed(fleet)) == 100
    assert (await member.subscribe("$room", token=token(fleet, channel="$room")))["ttl"] == 60
    assert (
        await member.ask("sub_refresh", channel="$room", token=signed(fleet, channel="$room"))
        == 100
    )
    assert closed_with(member) is None
    assert len(member.connection._lifetime._deadlines) == 2
    # It answers again: so do we.
    provider.body = jwks(signer("ES256").jwk("k1"))
    fleet.clock.advance(DEMAND_PAUSE_S)
    assert (await other.open().connect(token=signed(fleet)))["ttl"] == 60
    assert (await member.ask("refresh", token=signed(fleet)))["ttl"] == 60


async def test_a_slow_endpoint_holds_up_nobody_else(
    fleet: Fleet, provider: Provider, other: LocalNode
) -> None:
    provider.gate.clear()
    await provider.begin()
    waiting = [other.open() for _ in range(20)]
    connects = [asyncio.create_task(each.connect(token=signed(fleet))) for each in waiting]
    await settled()
    assert not any(each.done() for each in connects)
    for _ in range(20):
        assert (await other.open().connect(token=token(fleet)))["ttl"] == 60
    # One of them gives up meanwhile.
    waiting[0].connection.end()
    provider.gate.set()
    results = await asyncio.gather(*connects[1:])
    assert {result["ttl"] for result in results} == {60}
    assert provider.fetched == 1
    await settled()
    assert waiting[0].socket.frames == []
    connects[0].cancel()


async def test_rotation_lets_everybody_in(
    fleet: Fleet, provider: Provider, other: LocalNode
) -> None:
    await provider.begin()
    old = await other.client(token=signed(fleet))
    provider.body = jwks(signer("ES256", 2).jwk("k2"))
    # The first to come with the new key is early; its SDK comes again.
    assert await other.open().connect(token=signed(fleet, "k2", 2)) == 100
    fleet.clock.advance(DEMAND_PAUSE_S)
    assert (await other.open().connect(token=signed(fleet, "k2", 2)))["ttl"] == 60
    assert (await old.ask("refresh", token=signed(fleet, "k2", 2)))["ttl"] == 60
    # A client of long ago is told to get another token, though its key is gone.
    late_comer = other.open()
    assert await late_comer.connect(token=signed(fleet, "k1", exp=1)) == 109
    assert closed_with(late_comer) is None


async def test_a_flood_of_unknown_keys_causes_one_fetch(
    fleet: Fleet, provider: Provider, other: LocalNode
) -> None:
    await provider.begin()
    for number in range(200):
        assert await other.open().connect(token=signed(fleet, f"k{number + 100}", 2)) == 100
    assert provider.fetched == 1
    assert (await other.open().connect(token=signed(fleet)))["ttl"] == 60
    fleet.clock.advance(DEMAND_PAUSE_S)
    mallory = other.open()
    await mallory.say({"connect": {"token": signed(fleet, "k9", 2)}})
    assert closed_with(mallory) is Disconnect.INVALID_TOKEN
    assert provider.fetched == 2


# ---- what is written down


async def test_no_token_is_ever_written_to_the_log(
    fleet: Fleet, provider: Provider, other: LocalNode
) -> None:
    await provider.begin()
    good = token(fleet)
    said = [
        good,
        token(fleet, channel="$room"),
        token(fleet, -5, channel="$room"),
        token(fleet, -5),
    ]
    bad = [
        signed(fleet, "unknown-kid", 2),
        good[:-3] + "AAA",
        "secretive-nonsense",
        "secretive.non.sense",
        jwt.encode({"sub": "ann"}, "", algorithm="none"),
        token(fleet, sub=["secretive-user"]),
        token(fleet, sub="ann", aud="secretive-audience", nbf=4e9),
        "secretive" * 1000,
        "secretive\ud800",
    ]
    with capture_logs() as logs:
        for each in bad:
            await other.open().connection.receive(json.dumps({"id": 1, "connect": {"token": each}}))
            client = await other.client(token=good)
            await client.subscribe("$room", token=said[1])
            for command in (
                {"subscribe": {"channel": "$other", "token": each}},
                {"sub_refresh": {"channel": "$room", "token": each}},
                {"sub_refresh": {"channel": "$room", "token": said[2]}},
                {"refresh": {"token": each}},
            ):
                await client.say(command)
            await (await other.client(token=good)).say({"refresh": {"token": said[3]}})
            assert await other.open().connect(token=said[3]) == 109
    assert {log["event"] for log in logs} >= {
        "token_refused",
        "token_unverifiable",
        "client_closed",
    }
    text = repr(logs)
    for each in (*said, *bad):
        # Each part by itself too: header, payload, signature.
        for part in {each, *each.split(".")}:
            assert len(part) < 8 or part not in text
    assert "secretive" not in text
