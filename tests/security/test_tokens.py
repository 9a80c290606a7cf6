"""Forged, stolen and stale tokens, one after the other to a listening node:
none lets anybody in or into a channel.
"""

from __future__ import annotations

import base64
import hmac
import json
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any, Final

import jwt
import pytest

from roomcast.client.session import CONNECT_BYTES_A_CHANNEL, CONNECT_BYTES_MIN
from roomcast.config import ClientConfig, TokenConfig
from roomcast.wire.codes import Disconnect, Error
from tests.security.target import Target, target, watched
from tests.signers import signer
from tests.unit.worlds import SECRET
from tests.websocket import WebSocket

# Both ways to verify at once: what may be confused with what.
TOKENS: Final = TokenConfig(
    hmac_secret_key=SECRET,
    rsa_public_key=signer("RS256").pem,
    ecdsa_public_key=signer("ES256").pem,
    audience="chat",
    issuer="https://id.example.com",
)
PRIVATE: Final = "$private"
INVALID: Final = Disconnect.INVALID_TOKEN.value.code
# A token that is none is one that is not there: permission is denied.
# One for somebody else is an attempt.
DENIED: Final = Error.PERMISSION_DENIED.value.code
EXPIRED: Final = Error.TOKEN_EXPIRED.value.code
# It is to come again.
EARLY: Final = Error.INTERNAL.value.code

Claims = Mapping[str, Any]


def segment(value: bytes) -> str:
    return base64.urlsafe_b64encode(value).rstrip(b"=").decode()


def handmade(header: Claims, claims: Claims, key: bytes | None) -> str:
    """Signed as HS256 whatever the header says; `key` None = not at all."""
    signed = f"{segment(json.dumps(header).encode())}.{segment(json.dumps(claims).encode())}"
    mac = b"" if key is None else hmac.digest(key, signed.encode(), "sha256")
    return f"{signed}.{segment(mac)}"


def hs256(claims: Claims, key: str = SECRET) -> str:
    return jwt.encode(dict(claims), key, algorithm="HS256")


def tampered(claims: Claims) -> str:
    """Somebody else's claims under a signature of ours."""
    header, _, signature = hs256(claims).split(".")
    return f"{header}.{segment(json.dumps({**claims, 'sub': 'admin'}).encode())}.{signature}"


def without(claims: Claims, name: str) -> Claims:
    return {each: value for each, value in claims.items() if each != name}


def own_key(claims: Claims) -> str:
    """With the key to check it by in its header."""
    other = signer("ES256", 2)
    return other.sign(
        claims, kid=None, jwk=other.jwk(), jku="http://127.0.0.1:9/jwks", x5u="http://127.0.0.1:9/x"
    )


# Of good claims, what somebody may make who has no key, and what the node must say to it.
ATTACKS: Final[dict[str, tuple[Callable[[Claims], str], int]]] = {
    "no algorithm": (lambda claims: handmade({"alg": "none"}, claims, None), INVALID),
    "no algorithm, signed": (
        lambda claims: handmade({"alg": "nOnE"}, claims, SECRET.encode()),
        INVALID,
    ),
    "no algorithm said": (
        lambda claims: handmade({"typ": "JWT"}, claims, SECRET.encode()),
        INVALID,
    ),
    "no signature": (lambda claims: handmade({"alg": "HS256"}, claims, None), INVALID),
    "another algorithm of the secret": (
        lambda c: handmade({"alg": "HS512"}, c, SECRET.encode()),
        INVALID,
    ),
    "an algorithm without a key": (
        lambda c: handmade({"alg": "EdDSA"}, c, SECRET.encode()),
        INVALID,
    ),
    "an algorithm with another key": (
        lambda c: handmade({"alg": "RS256"}, c, SECRET.encode()),
        INVALID,
    ),
    "the public key as the secret": (
        lambda claims: handmade({"alg": "HS256"}, claims, signer("RS256").pem.encode()),
        INVALID,
    ),
    "the other public key as the secret": (
        lambda claims: handmade({"alg": "HS256"}, claims, signer("ES256").pem.strip().encode()),
        INVALID,
    ),
    "another secret": (lambda claims: hs256(claims, "another " + SECRET), INVALID),
    "an empty secret": (lambda claims: handmade({"alg": "HS256"}, claims, b""), INVALID),
    "another private key": (lambda claims: signer("RS256", 2).sign(claims, kid=None), INVALID),
    "a key of its own": (own_key, INVALID),
    "tampered claims": (tampered, INVALID),
    "a signature cut off": (lambda claims: hs256(claims)[:-2], INVALID),
    "expired": (lambda claims: hs256({**claims, "exp": claims["iat"] - 1}), EXPIRED),
    "expired and forged": (
        lambda claims: hs256({**claims, "exp": 1}, "another " + SECRET),
        INVALID,
    ),
    "not yet good": (
        lambda claims: hs256({**claims, "nbf": claims["iat"] + 3600, "exp": 2e9}),
        EARLY,
    ),
    "another audience": (lambda claims: hs256({**claims, "aud": "elsewhere"}), INVALID),
    "no audience": (lambda claims: hs256(without(claims, "aud")), INVALID),
    "another issuer": (
        lambda claims: hs256({**claims, "iss": "https://id.example.com.evil.com"}),
        INVALID,
    ),
    "no issuer": (lambda claims: hs256(without(claims, "iss")), INVALID),
    "of no size": (lambda claims: hs256({**claims, "x": "x" * 100_000}), INVALID),
    "with a large header": (
        lambda claims: handmade({"alg": "HS256", "x": "x" * 50_000}, claims, SECRET.encode()),
        INVALID,
    ),
    "no token": (lambda claims: "x" * 50_000, INVALID),
    "of more than a token's size": (lambda claims: hs256({**claims, "x": "x" * 9_000}), INVALID),
}


@pytest.fixture
async def attacked() -> AsyncIterator[Target]:
    with watched() as logs:
        # A frame may be as large as that, so that the token itself is looked at.
        async with target(token=TOKENS, size_limit=256 * 1024) as attacked:
            yield attacked
            await attacked.still_serves()
    assert logs.faults() == []


def claims_of(attacked: Target, **more: Any) -> Claims:
    now_s = round(attacked.now_s)
    named = {"aud": TOKENS.audience, "iss": TOKENS.issuer}
    return {"sub": "ann", "iat": now_s, "exp": now_s + 60, **named, **more}


CHANNELS: Final = ClientConfig().channel_limit


def told(method: str, code: int, token: str) -> int:
    """What `method` says where `connect` says `code` to a token that it looks at."""
    if method == "connect" and len(token) > CONNECT_BYTES_MIN + CHANNELS * CONNECT_BYTES_A_CHANNEL:
        # Not even decoded.
        return Disconnect.BAD_REQUEST.value.code
    if method in ("subscribe", "sub_refresh") and code == INVALID:
        return DENIED
    if method == "refresh" and code == EXPIRED:
        return Disconnect.EXPIRED.value.code
    return code


async def outcome(socket: WebSocket, method: str, **params: Any) -> Any:
    """An error's code, the code of a close, or what was granted."""
    [command_id] = await socket.say({method: params})
    try:
        reply = await socket.answer(command_id)
    except AssertionError:
        return socket.response.close_code
    return reply["error"]["code"] if "error" in reply else reply


@pytest.mark.parametrize("name", ATTACKS)
async def test_no_such_token_opens_anything(attacked: Target, name: str) -> None:
    """To connect, to go on being connected, to subscribe, to go on being subscribed."""
    make, code = ATTACKS[name]
    good = claims_of(attacked)
    token, of_channel = make(good), make({**good, "channel": PRIVATE})
    for method, params in (
        ("connect", {"token": token}),
        ("refresh", {"token": token}),
        ("subscribe", {"channel": PRIVATE, "token": of_channel}),
        ("sub_refresh", {"channel": "$mine", "token": make({**good, "channel": "$mine"})}),
    ):
        async with await attacked.upgrade() as response:
            socket = WebSocket(response)
            if method != "connect":
                assert (await socket.ask("connect", token=attacked.token()))["client"]
                assert "epoch" in await socket.ask(
                    "subscribe", channel="$mine", token=attacked.subscription_token("$mine")
                )
            assert await outcome(socket, method, **params) == told(method, code, token), method
            assert not attacked.node.assembly.hub.has(PRIVATE)


@pytest.mark.parametrize(
    "changes",
    [
        {"channel": "$other"},
        {"channel": PRIVATE + "x"},
        {"channel": ""},
        {"channel": [PRIVATE]},
        {"channel": None},
        {"sub": "bob"},
        {"sub": ""},
        {"sub": "ANN"},
        {"sub": "ann "},
    ],
    ids=str,
)
async def test_a_token_is_for_its_channel_and_its_user(attacked: Target, changes: Claims) -> None:
    token = hs256({**claims_of(attacked, channel=PRIVATE), **changes})
    async with await attacked.upgrade() as response:
        socket = WebSocket(response)
        assert (await socket.ask("connect", token=attacked.token()))["client"]
        assert await outcome(socket, "subscribe", channel=PRIVATE, token=token) in (INVALID, DENIED)
        assert not attacked.node.assembly.hub.has(PRIVATE)


async def test_one_kind_of_token_is_not_the_other(attacked: Target) -> None:
    async with await attacked.upgrade() as response:
        socket = WebSocket(response)
        assert (
            await outcome(socket, "connect", token=attacked.subscription_token(PRIVATE)) == INVALID
        )
    async with await attacked.upgrade() as response:
        socket = WebSocket(response)
        assert (await socket.ask("connect", token=attacked.token()))["client"]
        assert await outcome(socket, "subscribe", channel=PRIVATE, token=attacked.token()) == DENIED


async def test_a_connection_is_not_refreshed_for_somebody_else(attacked: Target) -> None:
    async with await attacked.upgrade() as response:
        socket = WebSocket(response)
        assert (await socket.ask("connect", token=attacked.token()))["client"]
        assert await outcome(socket, "refresh", token=attacked.token("bob")) == INVALID


async def test_what_is_right_is_let_in(attacked: Target) -> None:
    """Or the others would be refused for whatever reason."""
    claims = claims_of(attacked)
    for token in (
        hs256(claims),
        signer("RS256").sign(claims, None),
        signer("ES256").sign(claims, None),
    ):
        async with await attacked.upgrade() as response:
            socket = WebSocket(response)
            assert (await socket.ask("connect", token=token))["client"]
            granted = hs256({**claims, "channel": PRIVATE})
            assert "epoch" in await socket.ask("subscribe", channel=PRIVATE, token=granted)
            assert attacked.node.assembly.hub.has(PRIVATE)
