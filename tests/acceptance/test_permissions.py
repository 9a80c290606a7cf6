"""Who may do what: tokens of `roomcast token`, namespaces of a configuration file, both SDKs."""

from __future__ import annotations

import pytest

from tests.acceptance.conftest import OpenPeer, Token
from tests.acceptance.peers import CLIENTS, Refused
from tests.acceptance.roomcast import Dev

EITHER = pytest.mark.parametrize("sdk", CLIENTS)


@EITHER
async def test_a_channel_without_history(
    secured: Dev, peer: OpenPeer, secured_token: Token, channel: str, sdk: str
) -> None:
    channel = f"live:{channel}"
    ann = await peer("py", secured.ws_urls[0], secured_token("ann"))
    bob = await peer(sdk, secured.ws_urls[1], secured_token("bob"))
    joined = await bob.subscribe(channel)
    assert not joined["recoverable"]
    assert joined["position"] is None
    await ann.publish(channel, {"typing": True})
    message = await bob.event("publication", channel=channel)
    assert (message["offset"], message["data"]) == (0, {"typing": True})
    assert message["info"]["user"] == "ann"
    for refused_call in (bob.history(channel), bob.presence(channel), bob.presence_stats(channel)):
        with pytest.raises(Refused, match="not available") as refused:
            await refused_call
        assert refused.value.code == 108


@EITHER
async def test_subscribers_may_what_others_may_not(
    secured: Dev, peer: OpenPeer, secured_token: Token, channel: str, sdk: str
) -> None:
    channel = f"room:{channel}"
    ann = await peer(sdk, secured.ws_urls[0], secured_token("ann"))
    for refused_call in (ann.publish(channel, 1), ann.history(channel), ann.presence(channel)):
        with pytest.raises(Refused, match="permission denied") as refused:
            await refused_call
        assert refused.value.code == 103
    await ann.subscribe(channel)
    await ann.publish(channel, 1)
    assert [each["data"] for each in (await ann.history(channel))["publications"]] == [1]
    assert {each["user"] for each in (await ann.presence(channel)).values()} == {"ann"}


@EITHER
async def test_without_a_token_only_what_is_open_to_all(
    secured: Dev, peer: OpenPeer, channel: str, sdk: str
) -> None:
    nobody = await peer(sdk, secured.ws_urls[0])
    joined = await nobody.subscribe(f"news:{channel}")
    # This namespace forces nothing, and the client asked for nothing.
    assert not joined["recoverable"]
    for closed, code in ((f"room:{channel}", 103), (f"nowhere:{channel}", 102), (channel, 103)):
        await nobody.call("subscribe", channel=closed)
        assert (await nobody.event("unsubscribed", channel=closed))["code"] == code
    with pytest.raises(Refused, match="permission denied"):
        await nobody.publish(f"news:{channel}", "I say")


@EITHER
async def test_who_has_no_name_may_not_what_subscribers_may(
    secured: Dev, peer: OpenPeer, secured_token: Token, channel: str, sdk: str
) -> None:
    channel = f"wall:{channel}"
    ann = await peer(sdk, secured.ws_urls[0], secured_token("ann"))
    nobody = await peer(sdk, secured.ws_urls[1])
    await nobody.subscribe(channel)
    await ann.subscribe(channel)
    await ann.publish(channel, "hello")
    await nobody.event("publication", channel=channel, data="hello")
    for refused_call in (nobody.publish(channel, "I say"), nobody.history(channel)):
        with pytest.raises(Refused, match="permission denied") as refused:
            await refused_call
        assert refused.value.code == 103
    assert [each["data"] for each in (await ann.history(channel))["publications"]] == ["hello"]


@EITHER
async def test_a_channel_is_for_the_users_in_its_name_where_that_is_allowed(
    secured: Dev, peer: OpenPeer, secured_token: Token, channel: str, sdk: str
) -> None:
    ann, bob, eve = [
        await peer(sdk, secured.ws_urls[0], secured_token(user)) for user in ("ann", "bob", "eve")
    ]
    between = f"between:{channel}#ann,bob"
    for each in (ann, bob):
        await each.subscribe(between)
    await ann.publish(between, "just you and me")
    await bob.event("publication", channel=between, data="just you and me")
    await eve.call("subscribe", channel=between)
    assert (await eve.event("unsubscribed", channel=between))["code"] == 103
    # This namespace lets every client in, and says nothing of lists.
    await eve.subscribe(f"live:{channel}#ann,bob")


@EITHER
async def test_a_token_of_another_key_is_the_end(
    secured: Dev, peer: OpenPeer, token: Token, sdk: str
) -> None:
    """The key of `roomcast dev` without a configuration is not the one of this configuration."""
    mallory = await peer(sdk, secured.ws_urls[0], token("ann"), connected=False)
    await mallory.call("connect")
    assert (await mallory.event("disconnected"))["code"] == 3500


@EITHER
async def test_an_expired_token_is_replaced(
    secured: Dev, peer: OpenPeer, secured_token: Token, expired_token: str, channel: str, sdk: str
) -> None:
    url = secured.ws_urls[0]
    late = await peer(sdk, url, expired_token, fresh_tokens=[secured_token("ann")])
    await late.subscribe(f"room:{channel}")
    assert {each["user"] for each in (await late.presence(f"room:{channel}")).values()} == {"ann"}


@EITHER
async def test_a_private_channel_needs_its_own_token(
    secured: Dev, peer: OpenPeer, secured_token: Token, channel: str, sdk: str
) -> None:
    channel = f"$room:{channel}"
    invitation = secured_token("ann", "--channel", channel, "--info", '{"role":"guest"}')
    ann = await peer(sdk, secured.ws_urls[0], secured_token("ann"))
    await ann.subscribe(channel, token=invitation)
    await ann.publish(channel, "among us")
    await ann.event("publication", channel=channel)

    bob = await peer(sdk, secured.ws_urls[1], secured_token("bob"))
    await bob.call("subscribe", channel=channel)
    assert (await bob.event("unsubscribed", channel=channel))["code"] == 103
    stolen = await peer(sdk, secured.ws_urls[1], secured_token("bob"))
    await stolen.call("subscribe", channel=channel, token=invitation)
    assert (await stolen.event("disconnected"))["code"] == 3500


@pytest.fixture
def expired_token(secured_token: Token) -> str:
    """A token that is good for a second, from some time ago: signed as `roomcast token` signs."""
    import jwt

    from tests.acceptance.conftest import SECURED

    key = SECURED.read_text(encoding="utf-8").partition('hmac_secret_key = "')[2].partition('"')[0]
    claims = jwt.decode(secured_token("ann", "--ttl", "60"), key, algorithms=["HS256"])
    return jwt.encode(
        {**claims, "iat": 1_000_000_000, "exp": 1_000_000_001}, key, algorithm="HS256"
    )
