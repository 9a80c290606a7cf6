"""Tag filters of the published SDKs, made by the builder of the one for Python; those of tokens;
and tags from PyPI `cent`.
"""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Iterator, Mapping
from typing import Final

import cent
import pytest
from centrifuge.filter import Filter, FilterNode

from roomcast.auth.verifier import sign_subscription
from roomcast.system import SystemClock
from tests.acceptance.conftest import SECURED, OpenPeer, Token
from tests.acceptance.link import Link
from tests.acceptance.peers import CLIENTS, Peer
from tests.acceptance.roomcast import Dev

CONFIG: Final = tomllib.loads(SECURED.read_text(encoding="utf-8"))
EITHER = pytest.mark.parametrize("sdk", CLIENTS)
# What is published, and its tags.
TAGS: Final[Mapping[str, Mapping[str, str]]] = {
    "apple": {"ticker": "AAPL", "price": "150.25"},
    "microsoft": {"ticker": "MSFT", "price": "9.5", "note": ""},
    "odd": {"ticker": "AA", "price": "cheap"},
    "none": {},
    "end": {"ticker": "END", "price": "150.250", "note": "end"},
}
# What each filter lets through beside "end", in the order in which it is published.
FILTERS: Final[Mapping[str, tuple[FilterNode, str]]] = {
    "eq": (Filter.eq("ticker", "AAPL"), "apple"),
    "neq": (Filter.neq("ticker", "AAPL"), "microsoft odd none"),
    "in": (Filter.is_in("ticker", ["MSFT", "AA"]), "microsoft odd"),
    "nin": (Filter.not_in("ticker", ["MSFT", "AA"]), "apple none"),
    "ex": (Filter.exists("note"), "microsoft"),
    "nex": (Filter.not_exists("note"), "apple odd none"),
    "sw": (Filter.starts_with("ticker", "AA"), "apple odd"),
    "ew": (Filter.ends_with("ticker", "FT"), "microsoft"),
    "ct": (Filter.contains("ticker", "AP"), "apple"),
    "gt": (Filter.gt("price", "9.5"), "apple"),
    "gte": (Filter.gte("price", "9.50"), "apple microsoft"),
    "lt": (Filter.lt("price", "150.25"), "microsoft"),
    "lte": (Filter.lte("price", "+150.25"), "apple microsoft"),
    "all": (Filter.all(Filter.exists("price"), Filter.gte("price", "100")), "apple"),
    "any": (Filter.any(Filter.eq("ticker", "AA"), Filter.gt("price", "100")), "apple odd"),
    "negate": (Filter.negate(Filter.exists("price")), "none"),
}


@pytest.fixture
def publish(secured: Dev) -> Iterator[Callable[..., None]]:
    """Publishes in channels, at instance 1, what has a name in TAGS."""
    client = cent.Client(f"{secured.urls[0]}/api", CONFIG["http_api"]["key"])

    def published(channels: list[str], *names: str) -> None:
        for name in names:
            client.broadcast(
                cent.BroadcastRequest(channels=channels, data=name, tags=dict(TAGS[name]))
            )

    yield published
    client._session.close()


async def until_the_end(peer: Peer, channel: str) -> list[str]:
    """The publications that come before "end"."""
    found: list[str] = []
    while (data := (await peer.event("publication", channel=channel))["data"]) != "end":
        found.append(data)
    return found


@EITHER
async def test_every_comparison(
    secured: Dev,
    peer: OpenPeer,
    secured_token: Token,
    publish: Callable[..., None],
    channel: str,
    sdk: str,
) -> None:
    ann = await peer(sdk, secured.ws_urls[1], secured_token("ann"))
    channels = {name: f"market:{channel}-{name}" for name in FILTERS}
    for name, (node, _) in FILTERS.items():
        # The last publication passes all of them.
        node = Filter.any(node, Filter.eq("note", "end"))  # noqa: PLW2901  # for what follows
        await ann.subscribe(channels[name], filter=node.node)
    publish(list(channels.values()), *TAGS)
    for name, (_, wanted) in FILTERS.items():
        assert await until_the_end(ann, channels[name]) == wanted.split(), name


@EITHER
async def test_what_passes_is_recovered(
    secured: Dev,
    peer: OpenPeer,
    secured_token: Token,
    publish: Callable[..., None],
    channel: str,
    sdk: str,
) -> None:
    channel = f"market:{channel}"
    node = Filter.any(Filter.gt("price", "100"), Filter.eq("note", "end")).node
    signed = sign_subscription(
        "ann",
        channel,
        CONFIG["client"]["token"]["hmac_secret_key"],
        300,
        now_s=SystemClock().now_ms() / 1000,
        claims={"server_tags_filter": {"op": "not", "nodes": [{"key": "note", "cmp": "nex"}]}},
    )
    async with Link(secured.ws_urls[1]) as link:
        bob = await peer(sdk, link.url, secured_token("bob"))
        await bob.subscribe(channel, filter=node)
        # By the server: what has a note.
        ann = await peer(sdk, secured.ws_urls[1], secured_token("ann"))
        await ann.subscribe(channel, token=signed)
        publish([channel], "microsoft", "apple", "odd")
        assert (await bob.event("publication", channel=channel))["data"] == "apple"
        link.cut()
        await bob.event("connecting")
        publish([channel], "odd", "apple", "none", "microsoft", "apple", "none")
        link.mend()
        assert (await bob.event("subscribed", channel=channel))["recovered"]
        publish([channel], "microsoft", "end")
        assert await until_the_end(bob, channel) == ["apple", "apple"]
        assert await until_the_end(ann, channel) == ["microsoft"] * 3
        # Where a namespace has none, the SDK ends the subscription.
        await bob.call("subscribe", channel=f"room:{channel[-8:]}", filter=node)
        assert (await bob.event("unsubscribed"))["code"] == 107
        await bob.disconnect()
