"""service/roomcast/auth/claims.py: which claims open a connection or a channel, and until when."""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from roomcast.auth.claims import (
    EARLY_S_MAX,
    INFO_DEPTH_MAX,
    TOKEN_TIME_MAX,
    ConnectionClaims,
    ServerSubscription,
    SubscriptionClaims,
    TokenEarly,
    TokenExpired,
    TokenInvalid,
    connection_claims,
    subscription_claims,
)
from roomcast.wire.capabilities import Capability, Grant
from roomcast.wire.channels import ChannelOverride
from roomcast.wire.tags_filter import Leaf

NOW_S = 1_700_000_000.5


def b64(value: object) -> str:
    return base64.b64encode(json.dumps(value).encode()).decode()


def nested(levels: int) -> Any:
    value: Any = 1
    for _ in range(levels):
        value = [value]
    return value


@pytest.mark.parametrize(
    "claims, expected",
    [
        ({}, ConnectionClaims("", None)),
        ({"sub": ""}, ConnectionClaims("", None)),
        ({"sub": "ann", "iat": NOW_S + 9999, "jti": 5}, ConnectionClaims("ann", None)),
        ({"sub": "ann", "exp": NOW_S + 10}, ConnectionClaims("ann", math.ceil(NOW_S + 10))),
        ({"sub": "ann", "exp": 1_700_000_060}, ConnectionClaims("ann", 1_700_000_060)),
        ({"sub": "ann", "exp": 1_700_000_060, "expire_at": 0}, ConnectionClaims("ann", None)),
        (
            {"sub": "ann", "exp": 1_700_000_060, "expire_at": 1_700_009_999},
            ConnectionClaims("ann", 1_700_009_999),
        ),
        ({"sub": "ann", "expire_at": 1_700_000_002}, ConnectionClaims("ann", 1_700_000_002)),
        ({"sub": "ann", "nbf": NOW_S}, ConnectionClaims("ann", None)),
        # The signer's clock is ahead of this node's.
        ({"sub": "ann", "nbf": NOW_S + 10}, ConnectionClaims("ann", None)),
        ({"sub": "ann", "nbf": NOW_S + EARLY_S_MAX}, ConnectionClaims("ann", None)),
        ({"sub": "ann", "meta": {"plan": [1]}}, ConnectionClaims("ann", None, meta={"plan": [1]})),
        ({"sub": "ann", "info": {"name": "Ann"}}, ConnectionClaims("ann", None, {"name": "Ann"})),
        ({"sub": "ann", "info": None}, ConnectionClaims("ann", None)),
        ({"sub": "ann", "info": 1, "b64info": b64([2])}, ConnectionClaims("ann", None, [2])),
        ({"sub": "ann", "info": 1, "b64info": ""}, ConnectionClaims("ann", None, 1)),
        ({"sub": "ann", "exp": TOKEN_TIME_MAX}, ConnectionClaims("ann", TOKEN_TIME_MAX)),
    ],
)
def test_a_good_connection_token(claims: dict[str, Any], expected: ConnectionClaims) -> None:
    assert connection_claims(claims, NOW_S) == expected


@pytest.mark.parametrize(
    "claims, reason",
    [
        ([], "claims are not an object"),
        ("ann", "claims are not an object"),
        (None, "claims are not an object"),
        ({"sub": 7}, "sub is not a string"),
        ({"sub": None}, "sub is not a string"),
        ({"sub": ["ann"]}, "sub is not a string"),
        (
            {"sub": "ann", "channel": "news"},
            "a subscription token where a connection token belongs",
        ),
        ({"sub": "ann", "channel": ""}, "a subscription token where a connection token belongs"),
        ({"sub": "ann", "channel": None}, "a subscription token where a connection token belongs"),
        ({"sub": "ann", "exp": None}, "exp is not a number"),
        ({"sub": "ann", "exp": "1800000000"}, "exp is not a number"),
        ({"sub": "ann", "exp": True}, "exp is not a number"),
        ({"sub": "ann", "exp": math.nan}, "exp is out of range"),
        ({"sub": "ann", "exp": math.inf}, "exp is out of range"),
        ({"sub": "ann", "exp": -1}, "exp is out of range"),
        ({"sub": "ann", "exp": 10**400}, "exp is out of range"),
        ({"sub": "ann", "expire_at": "0"}, "expire_at is not a number"),
        ({"sub": "ann", "expire_at": False}, "expire_at is not a number"),
        ({"sub": "ann", "iat": "whatever"}, "iat is not a number"),
        ({"sub": "ann", "iat": None}, "iat is not a number"),
        ({"sub": "ann", "iat": -1}, "iat is out of range"),
        ({"sub": "ann", "nbf": "soon"}, "nbf is not a number"),
        ({"sub": "ann", "b64info": 5}, "b64info is not a string"),
        ({"sub": "ann", "b64info": "@@@@"}, "b64info is not base64 of JSON"),
        ({"sub": "ann", "b64info": "YQ"}, "b64info is not base64 of JSON"),
        (
            {"sub": "ann", "b64info": base64.b64encode(b"{").decode()},
            "b64info is not base64 of JSON",
        ),
        (
            {"sub": "ann", "b64info": base64.b64encode(b"\xff").decode()},
            "b64info is not base64 of JSON",
        ),
        (
            {"sub": "ann", "b64info": base64.b64encode(b"[" * 100_000).decode()},
            "b64info is not base64 of JSON",
        ),
        ({"sub": "ann", "info": nested(INFO_DEPTH_MAX + 1)}, "info is nested too deeply"),
        ({"sub": "ann", "b64info": b64(nested(INFO_DEPTH_MAX + 1))}, "info is nested too deeply"),
        ({"channels": "news"}, "channels is not a list of strings"),
        ({"channels": {"news": 1}}, "channels is not a list of strings"),
        ({"channels": ["news", 5]}, "channels is not a list of strings"),
        ({"channels": [""]}, "a subscription to what is no channel name"),
        ({"channels": ["x" * 256]}, "a subscription to what is no channel name"),
        ({"channels": ["no\nname"]}, "a subscription to what is no channel name"),
        ({"subs": ["news"]}, "subs is not an object"),
        ({"subs": {"news": None}}, "subs are not objects"),
        ({"subs": {"\u00e9": {}}}, "a subscription to what is no channel name"),
        ({"subs": {"news": {"data": nested(INFO_DEPTH_MAX + 1)}}}, "data is nested too deeply"),
        ({"subs": {"news": {"b64data": "@"}}}, "b64data is not base64"),
        ({"subs": {"news": {"override": []}}}, "override is not an object"),
        ({"subs": {"news": {"override": {"presence": True}}}}, "presence is not an object"),
        (
            {"subs": {"news": {"override": {"presence": {"value": 1}}}}},
            "override of presence is not true or false",
        ),
        ({"caps": {"channels": ["news"]}}, "caps are not objects"),
        ({"caps": ["sub"]}, "caps are not objects"),
        ({"caps": [{"channels": "news", "allow": ["sub"]}]}, "channels is not a list of strings"),
        ({"caps": [{"channels": ["news"], "allow": "sub"}]}, "allow is not a list of strings"),
        (
            {"caps": [{"channels": ["x" * 256], "allow": ["sub"]}]},
            "caps for what is no channel name",
        ),
        (
            {"caps": [{"channels": ["n"], "allow": [], "match": "regex"}]},
            "caps with a match that is not known",
        ),
        ({"caps": [{"channels": ["n"], "allow": [], "match": 1}]}, "match is not a string"),
    ],
)
def test_a_connection_token_that_was_never_good(claims: object, reason: str) -> None:
    with pytest.raises(TokenInvalid) as caught:
        connection_claims(claims, NOW_S)
    assert caught.value.reason == reason


@pytest.mark.parametrize("kind", [connection_claims, subscription_claims])
def test_a_token_that_comes_too_early(kind: Callable[..., Any]) -> None:
    """It is no good yet, and no bad one either. One that is over as well will never be good."""
    claims = {"sub": "ann"} | ({"channel": "news"} if kind is subscription_claims else {})
    with pytest.raises(TokenEarly) as early:
        kind(claims | {"nbf": NOW_S + EARLY_S_MAX + 0.5}, NOW_S)
    assert early.value.early_s == pytest.approx(EARLY_S_MAX + 0.5)
    with pytest.raises(TokenExpired):
        kind(claims | {"nbf": NOW_S + 100, "exp": NOW_S - 1}, NOW_S)
    with pytest.raises(TokenInvalid):
        kind(claims | {"nbf": NOW_S + 100, "exp": None}, NOW_S)
    assert kind(claims | {"nbf": NOW_S + EARLY_S_MAX, "exp": NOW_S + 60}, NOW_S).user == "ann"


@pytest.mark.parametrize(
    "claims",
    [
        {"exp": NOW_S},
        {"exp": 0},
        {"exp": NOW_S - 1e-3},
        {"exp": NOW_S + 10, "expire_at": NOW_S},
        {"expire_at": 1},
    ],
)
def test_an_expired_token(claims: dict[str, Any]) -> None:
    with pytest.raises(TokenExpired):
        connection_claims({"sub": "ann", **claims}, NOW_S)
    with pytest.raises(TokenExpired):
        subscription_claims({"sub": "ann", "channel": "news", **claims}, NOW_S)


def test_an_expired_token_with_a_lasting_connection_must_still_be_presented_in_time() -> None:
    with pytest.raises(TokenExpired):
        connection_claims({"sub": "ann", "exp": NOW_S - 1, "expire_at": 0}, NOW_S)


def test_a_token_of_somebody_else_is_invalid_rather_than_expired() -> None:
    # A client would fetch a new one for ever otherwise.
    with pytest.raises(TokenInvalid):
        connection_claims({"sub": "ann", "exp": 1, "aud": "other"}, NOW_S, audience="chat")


@pytest.mark.parametrize(
    "claims, good",
    [
        ({"aud": "chat", "iss": "us"}, True),
        ({"aud": ["other", "chat"], "iss": "us"}, True),
        ({"aud": "chat"}, False),
        ({"iss": "us"}, False),
        ({"aud": "chatter", "iss": "us"}, False),
        ({"aud": ["chatter"], "iss": "us"}, False),
        ({"aud": [], "iss": "us"}, False),
        ({"aud": {"chat": 1}, "iss": "us"}, False),
        ({"aud": "chat", "iss": ["us"]}, False),
        ({"aud": None, "iss": None}, False),
    ],
)
def test_audience_and_issuer(claims: dict[str, Any], good: bool) -> None:
    def accepted() -> bool:
        try:
            connection_claims(claims, NOW_S, audience="chat", issuer="us")
            subscription_claims({"channel": "news", **claims}, NOW_S, audience="chat", issuer="us")
        except TokenInvalid:
            return False
        return True

    assert accepted() == good
    # Not required, not looked at.
    assert connection_claims(claims, NOW_S) == ConnectionClaims("", None)


@pytest.mark.parametrize(
    "claims, expected",
    [
        ({"channel": "news"}, SubscriptionClaims("", "news", None)),
        (
            {
                "sub": "ann",
                "channel": "news",
                "exp": 1_700_000_100,
                "info": {"a": 1},
                "client": "c1",
            },
            SubscriptionClaims("ann", "news", 1_700_000_100, {"a": 1}, "c1"),
        ),
        (
            {
                "sub": "ann",
                "channel": "news",
                "exp": 1_700_000_100,
                "expire_at": 0,
                "b64info": b64("x"),
            },
            SubscriptionClaims("ann", "news", None, "x"),
        ),
        (
            {
                "channel": "news",
                "override": {"presence": {"value": True}},
                "allow": ["pub", "hst", "fly"],
                "server_tags_filter": {"key": "a", "cmp": "eq", "val": "x"},
            },
            SubscriptionClaims(
                "",
                "news",
                None,
                override=ChannelOverride(presence=True),
                allow=frozenset({Capability.PUBLISH, Capability.HISTORY}),
                server_tags_filter=Leaf("eq", "a", ("x",)),
            ),
        ),
    ],
)
def test_a_good_subscription_token(claims: dict[str, Any], expected: SubscriptionClaims) -> None:
    assert subscription_claims(claims, NOW_S) == expected


@pytest.mark.parametrize(
    "claims, reason",
    [
        ({"sub": "ann"}, "a subscription token without channel"),
        ({"sub": "ann", "channel": ""}, "a subscription token without channel"),
        ({"sub": "ann", "channel": None}, "channel is not a string"),
        ({"sub": "ann", "channel": ["news"]}, "channel is not a string"),
        ({"sub": None, "channel": "news"}, "sub is not a string"),
        ({"sub": "ann", "channel": "news", "client": 1}, "client is not a string"),
        ({"channel": "news", "allow": "pub"}, "allow is not a list of strings"),
        ({"channel": "news", "allow": [1]}, "allow is not a list of strings"),
        (
            {"channel": "news", "server_tags_filter": {}},
            "server_tags_filter is no filter: a cmp that is not known",
        ),
        (
            {"channel": "news", "override": {"presence": {"value": "yes"}}},
            "override of presence is not true or false",
        ),
    ],
)
def test_a_subscription_token_that_was_never_good(claims: dict[str, Any], reason: str) -> None:
    with pytest.raises(TokenInvalid) as caught:
        subscription_claims(claims, NOW_S)
    assert caught.value.reason == reason


def test_subscriptions_of_the_server() -> None:
    claims = {
        "channels": ["news", "room"],
        "subs": {
            "room": {
                "info": {"role": "guest"},
                "data": [1],
                "override": {"force_recovery": {"value": True}},
                "server_tags_filter": {"key": "a", "cmp": "ex"},
            },
            "$private": {"b64info": b64("i"), "b64data": b64("d"), "info": 5, "data": 5},
            "quiet": {
                "override": {
                    "presence": {"value": False},
                    "join_leave": {},
                    "unknown": 5,
                    "force_positioning": None,
                }
            },
        },
    }
    assert connection_claims(claims, NOW_S).subs == {
        "news": ServerSubscription(),
        "room": ServerSubscription(
            {"role": "guest"},
            [1],
            ChannelOverride(force_recovery=True),
            server_tags_filter=Leaf("ex", "a", ()),
        ),
        "$private": ServerSubscription("i", "d", raw=b'"d"'),
        "quiet": ServerSubscription(override=ChannelOverride(presence=False, join_leave=False)),
    }
    absents: list[dict[str, Any]] = [
        {},
        {"channels": None, "subs": None},
        {"channels": [], "subs": {}},
    ]
    for absent in absents:
        assert connection_claims(absent, NOW_S).subs == {}


def test_capabilities() -> None:
    claims = {
        "caps": [
            {"channels": ["news", "room"], "allow": ["sub", "pub"]},
            {"channels": ["user:*"], "match": "wildcard", "allow": ["hst", "prs", "brew coffee"]},
            {},
        ]
    }
    assert connection_claims(claims, NOW_S).caps == (
        Grant(("news", "room"), frozenset({Capability.SUBSCRIBE, Capability.PUBLISH})),
        Grant(("user:*",), frozenset({Capability.HISTORY, Capability.PRESENCE}), is_pattern=True),
        Grant((), frozenset()),
    )
    assert connection_claims({}, NOW_S).caps == ()


def test_info_may_be_nested_as_deeply_as_said() -> None:
    info = nested(INFO_DEPTH_MAX)
    assert connection_claims({"info": info}, NOW_S).info == info


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
)
CLAIM_NAMES = [
    "sub", "exp", "expire_at", "nbf", "iat", "aud", "iss", "info", "b64info", "channel", "client",
    "meta", "channels", "subs", "caps", "allow", "override",
]  # fmt: skip


@given(
    st.dictionaries(st.sampled_from(CLAIM_NAMES), json_values),
    st.floats(0, 4e9),
    st.sampled_from(["", "chat"]),
)
def test_whatever_a_signer_wrote_is_accepted_or_refused(
    claims: dict[str, Any], now_s: float, audience: str
) -> None:
    for check in (connection_claims, subscription_claims):
        try:
            checked = check(claims, now_s, audience=audience)
        except (TokenInvalid, TokenExpired, TokenEarly):
            continue
        assert isinstance(checked.user, str)
        assert checked.expires_at is None or checked.expires_at > now_s
        assert ("channel" in claims) == isinstance(checked, SubscriptionClaims)
        assert claims.get("exp", now_s + 1) > now_s


@given(st.integers(1, TOKEN_TIME_MAX), st.floats(0, 4e9))
def test_a_token_is_good_until_exactly_its_time(exp: int, now_s: float) -> None:
    if now_s < exp:
        assert connection_claims({"exp": exp}, now_s).expires_at == exp
    else:
        with pytest.raises(TokenExpired):
            connection_claims({"exp": exp}, now_s)


def test_data_for_binary_channels_need_be_no_json() -> None:
    claims = {"subs": {"bin:room": {"b64data": "/wA="}, "room": {"b64data": "eyAiYSI6IDEgfQ=="}}}
    assert connection_claims(claims, NOW_S).subs == {
        "bin:room": ServerSubscription(data=b"\xff\x00", raw=b"\xff\x00"),
        "room": ServerSubscription(data={"a": 1}, raw=b'{ "a": 1 }'),
    }
    deep = b64(nested(INFO_DEPTH_MAX + 1))
    with pytest.raises(TokenInvalid, match="data is nested too deeply"):
        connection_claims({"subs": {"room": {"b64data": deep}}}, NOW_S)
