"""The server API, called by PyPI `cent` unchanged, about clients that are on the other instance."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final

import cent
import pytest

from tests.acceptance.conftest import OpenPeer, Token
from tests.acceptance.peers import CLIENTS, SDKS, Peer
from tests.acceptance.roomcast import Dev, roomcast
from tests.acceptance.snippets import marked

KEY = "any key: the server is insecure"
PAGE: Final = "docs/api.md"
TEST: Final = "test_server_api.py"


@pytest.fixture
def back_end(dev: Dev) -> Iterator[cent.Client]:
    """At instance 1."""
    client = cent.Client(f"{dev.urls[0]}/api", KEY)
    yield client
    client._session.close()


@pytest.fixture
async def async_back_end(dev: Dev) -> AsyncIterator[cent.AsyncClient]:
    """At instance 1, for applications that do not block."""
    client = cent.AsyncClient(f"{dev.urls[0]}/api", KEY)
    yield client
    await client._session.close()


@pytest.fixture
def user(channel: str) -> str:
    """A user whom no other test has."""
    return f"user-{channel}"


@pytest.fixture
async def there(dev: Dev, peer: OpenPeer, token: Token, user: str) -> Callable[..., Any]:
    """Opens clients at instance 2."""

    async def open_there(sdk: str, name: str = user, *options: str) -> Peer:
        return await peer(
            sdk, dev.ws_urls[1], token(name, *options), fresh_tokens=[token(name, *options)]
        )

    return open_there


async def call(method: Callable[[Any], Any], request: Any) -> Any:
    """One call of the blocking client."""
    return await asyncio.to_thread(method, request)


@contextmanager
def refused(code: int) -> Iterator[None]:
    with pytest.raises(cent.CentApiResponseError) as caught:
        yield
    assert caught.value.code == code


def test_the_example_of_the_page(dev: Dev, back_end: cent.Client, channel: str) -> None:
    """As it stands there, but for the address and the channel."""
    example = marked(PAGE, TEST, "python")
    example = example.replace("http://127.0.0.1:8000", dev.urls[0]).replace('"…"', repr(KEY))
    subprocess.run([sys.executable, "-c", example.replace('"news"', repr(channel))], check=True)
    history = back_end.history(cent.HistoryRequest(channel=channel, limit=10))
    assert [each.data for each in history.publications] == [{"text": "hi"}]


# ---- clients


@pytest.mark.parametrize("sdk", CLIENTS)
async def test_a_client_is_disconnected(
    back_end: cent.Client, there: Any, user: str, sdk: str
) -> None:
    one, other, spared = await there(sdk), await there(sdk), await there("py")
    bystander = await there("py", f"{user}-another")
    custom = cent.Disconnect(code=4500, reason="banned")
    await call(
        back_end.disconnect, cent.DisconnectRequest(user=user, client=one.client, disconnect=custom)
    )
    await one.event("disconnected", code=4500, reason="banned")
    await call(back_end.disconnect, cent.DisconnectRequest(user=user, whitelist=[spared.client]))
    await other.event("disconnected", code=3503)
    assert {event["event"] for each in (spared, bystander) for event in each.events} == {
        "connecting",
        "connected",
    }


@pytest.mark.parametrize("sdk", CLIENTS)
async def test_orders_for_one_client_are_for_no_other_of_its_user(
    back_end: cent.Client, there: Any, user: str, channel: str, sdk: str
) -> None:
    one, other = await there(sdk), await there("py")
    whom = {"user": user, "client": one.client}
    await call(back_end.subscribe, cent.SubscribeRequest(channel=channel, **whom))
    await one.event("subscribed", channel=channel, server_side=True)
    published = await call(back_end.publish, cent.PublishRequest(channel=channel, data="hi"))
    await one.event("publication", channel=channel, offset=published.offset)
    await call(back_end.unsubscribe, cent.UnsubscribeRequest(channel=channel, **whom))
    await one.event("unsubscribed", channel=channel, server_side=True)
    for _ in range(2):
        # The second time there is no such client: that is no error.
        await call(back_end.disconnect, cent.DisconnectRequest(**whom))
    await one.event("disconnected", code=3503)
    await call(back_end.refresh, cent.RefreshRequest(expired=True, **whom))
    assert {event["event"] for event in other.events} == {"connecting", "connected"}


@pytest.mark.parametrize("sdk", CLIENTS)
async def test_a_client_that_may_come_back_does(
    back_end: cent.Client, there: Any, user: str, sdk: str
) -> None:
    """After a code of the application, and after what a node says that ends."""
    ann = await there(sdk)
    for code, reason in ((4000, "come again"), (3001, "shutdown")):
        said = cent.Disconnect(code=code, reason=reason)
        await call(back_end.disconnect, cent.DisconnectRequest(user=user, disconnect=said))
        await ann.event("connecting", code=code, reason=reason)
        await ann.event("connected")


@pytest.mark.parametrize("sdk", CLIENTS)
async def test_a_client_is_subscribed_and_unsubscribed(
    back_end: cent.Client, there: Any, user: str, channel: str, sdk: str
) -> None:
    ann = await there(sdk)
    first = await call(back_end.publish, cent.PublishRequest(channel=channel, data={"n": 1}))
    for number in (2, 3):
        await call(back_end.publish, cent.PublishRequest(channel=channel, data={"n": number}))
    await call(
        back_end.subscribe,
        cent.SubscribeRequest(
            user=user,
            channel=channel,
            data={"hello": "there"},
            info={"role": "guest"},
            recover_since=cent.StreamPosition(offset=first.offset, epoch=first.epoch),
        ),
    )
    news = await ann.event("subscribed", channel=channel, server_side=True, data={"hello": "there"})
    assert news["position"] == {"offset": 1, "epoch": first.epoch}
    await ann.event("publication", channel=channel, offset=3)
    assert ann.received(channel) == [(2, {"n": 2}), (3, {"n": 3})]
    await call(back_end.publish, cent.PublishRequest(channel=channel, data={"n": 4}))
    await ann.event("publication", channel=channel, offset=4, server_side=True)
    # A second instance looks at the entries a second later at the latest.
    await _until(
        lambda: (
            back_end.presence(cent.PresenceRequest(channel=channel)).presence.keys() == {ann.client}
        )
    )
    presence = await call(back_end.presence, cent.PresenceRequest(channel=channel))
    assert presence.presence[ann.client].chan_info == {"role": "guest"}
    await call(back_end.unsubscribe, cent.UnsubscribeRequest(user=user, channel=channel))
    await ann.event("unsubscribed", channel=channel, server_side=True)
    await call(back_end.publish, cent.PublishRequest(channel=channel, data={"n": 5}))
    await _until(
        lambda: back_end.presence_stats(cent.PresenceStatsRequest(channel=channel)).num_clients == 0
    )
    assert [offset for offset, _ in ann.received(channel)] == [2, 3, 4]


@pytest.mark.parametrize("sdk", SDKS)
async def test_a_subscription_of_the_clients_own_is_ended(
    back_end: cent.Client, there: Any, user: str, channel: str, sdk: str
) -> None:
    ann = await there(sdk)
    await ann.subscribe(channel)
    await call(back_end.unsubscribe, cent.UnsubscribeRequest(user=user, channel=channel))
    await ann.event("unsubscribed", channel=channel, code=2000)


@pytest.mark.parametrize("sdk", SDKS)
async def test_a_connection_is_made_to_last_and_to_expire(
    back_end: cent.Client, there: Any, user: str, sdk: str
) -> None:
    ann = await there(sdk)
    await call(back_end.refresh, cent.RefreshRequest(user=user, expire_at=int(time.time()) + 3600))
    await call(back_end.refresh, cent.RefreshRequest(user=user, expired=True))
    await ann.event("connecting", code=3005)
    await ann.event("connected")


async def test_subscriptions_come_with_the_token_and_recover(
    back_end: cent.Client, there: Any, user: str, channel: str
) -> None:
    subs = {channel: {"data": {"hello": 1}}}
    for sdk in CLIENTS:
        ann = await there(sdk, f"{user}-{sdk}", "--claims", json.dumps({"subs": subs}))
        await ann.event("subscribed", channel=channel, server_side=True, data={"hello": 1})
        before = await call(
            back_end.publish, cent.PublishRequest(channel=channel, data=f"{sdk} is there")
        )
        await ann.event("publication", channel=channel, offset=before.offset)
        reconnect = cent.Disconnect(code=4000, reason="again")
        # Subscribed through whatever it misses between the two.
        await call(
            back_end.disconnect, cent.DisconnectRequest(user=f"{user}-{sdk}", disconnect=reconnect)
        )
        await call(back_end.publish, cent.PublishRequest(channel=channel, data=f"{sdk} is away"))
        await ann.event("connecting", code=4000)
        await ann.event(
            "subscribed", channel=channel, server_side=True, was_recovering=True, recovered=True
        )
        after = await call(
            back_end.publish, cent.PublishRequest(channel=channel, data=f"{sdk} is back")
        )
        await ann.event("publication", channel=channel, offset=after.offset)
        offsets = [offset for offset, _ in ann.received(channel)]
        assert offsets == list(range(before.offset, after.offset + 1))


# ---- channels


async def test_what_is_published_reaches_everybody_and_is_kept(
    back_end: cent.Client, there: Any, channel: str
) -> None:
    ann = await there("js")
    await ann.subscribe(channel)
    request = cent.PublishRequest(
        channel=channel, data={"text": "Grüße"}, tags={"kind": "note"}, idempotency_key="once"
    )
    published = [await call(back_end.publish, request) for _ in range(2)]
    assert published[0] == published[1]
    await ann.event("publication", channel=channel, offset=1, data={"text": "Grüße"})
    broadcast = await call(
        back_end.broadcast, cent.BroadcastRequest(channels=[channel, "no:where"], data=[1, None])
    )
    first, second = broadcast.responses
    assert (first.error, first.result.offset) == (None, 2)
    assert (second.error.code, second.result) == (102, None)
    history = await call(back_end.history, cent.HistoryRequest(channel=channel, limit=-1))
    assert [(each.offset, each.data, each.tags) for each in history.publications] == [
        (1, {"text": "Grüße"}, {"kind": "note"}),
        (2, [1, None], None),
    ]
    assert (history.offset, history.epoch) == (2, published[0].epoch)
    since = cent.StreamPosition(offset=2, epoch=history.epoch)
    reverse = cent.HistoryRequest(channel=channel, limit=10, since=since, reverse=True)
    assert [each.offset for each in (await call(back_end.history, reverse)).publications] == [1]
    await call(back_end.history_remove, cent.HistoryRemoveRequest(channel=channel))
    empty = await call(back_end.history, cent.HistoryRequest(channel=channel, limit=-1))
    assert (empty.publications, empty.offset, empty.epoch) == ([], 2, history.epoch)


async def test_what_there_is_on_all_instances(
    dev: Dev, back_end: cent.Client, there: Any, peer: OpenPeer, channel: str
) -> None:
    clients = [await there("py"), await peer("py", dev.ws_urls[0])]
    for each in clients:
        await each.subscribe(channel)
    info = await call(back_end.info, cent.InfoRequest())
    assert {node.uid for node in info.nodes} == set(dev.nodes)
    assert all(node.version and node.name and node.uptime >= 0 for node in info.nodes)
    channels = await call(back_end.channels, cent.ChannelsRequest(pattern=f"{channel}*"))
    assert {name: found.num_clients for name, found in channels.channels.items()} == {channel: 2}
    assert channels.partial is False
    everything = await call(back_end.channels, cent.ChannelsRequest())
    assert everything.channels[channel].num_clients == 2
    stats = await call(back_end.presence_stats, cent.PresenceStatsRequest(channel=channel))
    assert (stats.num_clients, stats.num_users) == (2, 2)


async def test_a_batch(async_back_end: cent.AsyncClient, channel: str) -> None:
    requests = [
        cent.PublishRequest(channel=channel, data=1),
        cent.BroadcastRequest(channels=[channel], data=2),
        cent.HistoryRequest(channel=channel, limit=-1),
        cent.PresenceRequest(channel=channel),
        cent.InfoRequest(),
    ]
    for parallel in (False, True):
        result = await async_back_end.batch(cent.BatchRequest(requests=requests, parallel=parallel))
        published, broadcast, history, presence, info = result.replies
        assert isinstance(published, cent.PublishResult)
        assert isinstance(broadcast, cent.BroadcastResult)
        assert isinstance(history, cent.HistoryResult)
        assert isinstance(presence, cent.PresenceResult)
        assert isinstance(info, cent.InfoResult)
        assert published.offset > 0
        assert parallel or [each.data for each in history.publications] == [1, 2]


async def test_the_client_that_does_not_block(
    async_back_end: cent.AsyncClient, there: Any, user: str, channel: str
) -> None:
    ann = await there("py")
    await async_back_end.subscribe(cent.SubscribeRequest(user=user, channel=channel))
    await ann.event("subscribed", channel=channel, server_side=True)
    published = await async_back_end.publish(cent.PublishRequest(channel=channel, data="hi"))
    await ann.event("publication", channel=channel, offset=published.offset)
    await async_back_end.unsubscribe(cent.UnsubscribeRequest(user=user, channel=channel))
    await ann.event("unsubscribed", channel=channel)
    await async_back_end.disconnect(cent.DisconnectRequest(user=user))
    await ann.event("disconnected", code=3503)
    with refused(102):
        await async_back_end.presence(cent.PresenceRequest(channel="no:where"))


def test_errors_are_cents_own(secured: Dev, back_end: cent.Client, channel: str) -> None:
    with refused(107):
        back_end.broadcast(cent.BroadcastRequest(channels=[], data={}))
    with refused(112):
        back_end.history(
            cent.HistoryRequest(
                channel=channel, limit=1, since=cent.StreamPosition(offset=1, epoch="other")
            )
        )
    stranger = cent.Client(f"{secured.urls[0]}/api", "another key")
    with pytest.raises(cent.CentUnauthorizedError):
        stranger.info(cent.InfoRequest())
    stranger._session.close()


@pytest.mark.parametrize(
    "method, request_",
    [
        ("connections", cent.ConnectionsRequest(user="ann", expression="")),
        ("block_user", cent.BlockUserRequest(user="ann")),
        ("revoke_token", cent.RevokeTokenRequest(uid="a token")),
    ],
)
def test_methods_that_are_not_provided(back_end: cent.Client, method: str, request_: Any) -> None:
    with pytest.raises(cent.CentTransportError) as caught:
        getattr(back_end, method)(request_)
    assert caught.value.status_code == 404


# ---- from a shell


async def test_commands_from_a_shell(dev: Dev, there: Any, channel: str) -> None:
    ann = await there("js")
    await ann.subscribe(channel)
    url = ("--url", dev.urls[0])
    published = await asyncio.to_thread(
        roomcast, "publish", *url, channel, '{"text":"hi"}', "--json"
    )
    assert published.returncode == 0, published.stderr
    await ann.event("publication", channel=channel, data={"text": "hi"}, offset=1)
    history = await asyncio.to_thread(roomcast, "history", *url, channel, "--json")
    assert [each["data"] for each in json.loads(history.stdout)["publications"]] == [{"text": "hi"}]
    following = asyncio.create_task(
        asyncio.to_thread(roomcast, "tail", "--url", dev.urls[1], channel, "--count", "1", "--json")
    )
    # Ann's own, then that of the command.
    for _ in range(2):
        await ann.event("join", channel=channel)
    await ann.publish(channel, "seen")
    tail = await following
    assert (tail.returncode, json.loads(tail.stdout)["data"]) == (0, "seen")


async def _until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not await asyncio.to_thread(condition):
            pass
