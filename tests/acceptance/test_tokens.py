"""Tokens that end while a client is connected: the SDKs ask the application for others,
and their sessions go on.
"""

from __future__ import annotations

import asyncio
import re
import time
import tomllib
from collections import Counter
from collections.abc import Callable
from typing import Any, Final

import aiohttp
import jwt
import pytest

from roomcast.auth.claims import EARLY_S_MAX
from tests.acceptance.conftest import SECURED, OpenPeer
from tests.acceptance.peers import CLIENTS, Refused
from tests.acceptance.roomcast import Dev

# Of the tokens that end during a test: enough to connect with them on a busy machine.
LIFE_S: Final = 6
LONG_S: Final = 3600

Sign = Callable[..., str]


@pytest.fixture
def sign() -> Sign:
    """A token of the application for Ann, good for so many seconds from now."""
    key = tomllib.loads(SECURED.read_text(encoding="utf-8"))["client"]["token"]["hmac_secret_key"]

    def signed(life_s: int, **claims: Any) -> str:
        return jwt.encode({"sub": "ann", "exp": int(time.time()) + life_s, **claims}, key)

    return signed


async def test_sessions_go_on_with_fresh_tokens(
    secured: Dev, peer: OpenPeer, sign: Sign, channel: str
) -> None:
    async def session(sdk: str) -> None:
        # Nobody may publish there but by a token's leave.
        room = f"$news:{channel}-{sdk}"
        fresh = [sign(LONG_S, info={"name": "new"})]
        old = sign(LIFE_S, info={"name": "old"})
        ann = await peer(sdk, secured.ws_urls[0], old, fresh_tokens=fresh)
        await ann.subscribe(
            room,
            token=sign(LIFE_S, channel=room),
            fresh_tokens=[sign(LONG_S, channel=room, allow=["pub"])],
        )
        with pytest.raises(Refused, match="permission denied"):
            await ann.publish(room, "too early")
        await ann.event("token")
        await ann.event("sub_token", channel=room)
        await ann.publish(room, "now")
        published = await ann.event("publication", channel=room)
        assert published["info"]["conn_info"] == {"name": "new"}
        # Once each: nobody reconnected, and nobody subscribed again.
        told = Counter(each["event"] for each in ann.events)
        assert told == {
            "connecting": 1,
            "connected": 1,
            "subscribing": 1,
            "subscribed": 1,
            "token": 1,
            "sub_token": 1,
            "publication": 1,
        }

    await asyncio.gather(*(session(sdk) for sdk in CLIENTS))


async def test_who_refreshes_with_an_expired_token_is_asked_for_another(
    secured: Dev, peer: OpenPeer, sign: Sign
) -> None:
    """The connection is closed, its next one is told 109, and so the SDK asks once more."""

    async def session(sdk: str) -> None:
        fresh = [sign(-10), sign(LONG_S)]
        ann = await peer(sdk, secured.ws_urls[1], sign(LIFE_S), fresh_tokens=fresh)
        await ann.event("token")
        assert (await ann.event("connecting", code=3005))["reason"] == "connection expired"
        await ann.event("token")
        await ann.event("connected")

    await asyncio.gather(*(session(sdk) for sdk in CLIENTS))


async def test_who_refreshes_a_subscription_with_an_expired_token_is_asked_for_another(
    secured: Dev, peer: OpenPeer, sign: Sign, channel: str
) -> None:
    """The connection stays; the subscription begins anew, from where it stood."""

    async def session(sdk: str) -> None:
        room = f"$room:{channel}-{sdk}"
        ann = await peer(sdk, secured.ws_urls[0], sign(LONG_S))
        await ann.subscribe(
            room,
            token=sign(LIFE_S, channel=room),
            fresh_tokens=[sign(-10, channel=room), sign(LONG_S, channel=room)],
        )
        await ann.publish(room, "before")
        await ann.event("sub_token", channel=room)
        assert (await ann.event("subscribing", channel=room, code=2501))[
            "reason"
        ] == "subscription expired"
        await ann.event("sub_token", channel=room)
        again = await ann.event("subscribed", channel=room)
        assert again["recovered"] is True
        await ann.publish(room, "after")
        await ann.event("publication", channel=room, data="after")
        assert [data for _, data in ann.received(room)] == ["before", "after"]
        assert [each["event"] for each in ann.events].count("connected") == 1

    await asyncio.gather(*(session(sdk) for sdk in CLIENTS))


@pytest.mark.parametrize("sdk", CLIENTS)
async def test_a_token_that_is_too_early_is_good_a_moment_later(
    secured: Dev, peer: OpenPeer, sign: Sign, sdk: str
) -> None:
    """As one is to a node whose clock is behind. The SDK comes again by itself,
    with the same token.
    """
    url = secured.urls[0]
    before = await early_tokens(url)
    early = sign(LONG_S, nbf=int(time.time()) + EARLY_S_MAX + 3)
    ann = await peer(sdk, secured.ws_urls[0], early, connected=False)
    await ann.call("connect")
    await ann.event("connected")
    assert await early_tokens(url) > before
    assert "token" not in [each["event"] for each in ann.events]


async def early_tokens(url: str) -> float:
    """How many the node at `url` has seen."""
    async with aiohttp.ClientSession() as http, http.get(f"{url}/metrics") as answer:
        text = await answer.text()
    (count,) = re.findall(
        r'^roomcast_token_failures_total\{reason="early"\} (\S+)$', text, re.MULTILINE
    )
    return float(count)
