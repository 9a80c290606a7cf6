"""service/roomcast/auth/jwks_sets.py: every endpoint is fetched, and none waits for another."""

from __future__ import annotations

import asyncio
from typing import Any

from structlog.testing import capture_logs

from roomcast.auth.jwks import FetchFailed, JwksKeys
from roomcast.auth.jwks_sets import JwksSets, jwks_sets
from roomcast.concurrency import beside
from roomcast.config import ClientConfig, SubscriptionTokenConfig, TokenConfig
from roomcast.testing.memory import ManualClock
from tests.signers import jwks, signer
from tests.unit.worlds import until


def made(client: ClientConfig) -> JwksSets | None:
    return jwks_sets(client, ManualClock(), lambda: 0.5)


def test_which_endpoints_there_are() -> None:
    assert made(ClientConfig()) is None
    several = TokenConfig(
        jwks_public_endpoint="https://{{t}}.example/", issuer_regex="(?P<t>one|two)"
    )
    of_tokens = made(ClientConfig(token=several))
    assert of_tokens is not None
    assert of_tokens.of("https://one.example/") is not None
    assert of_tokens.of("https://two.example/") is not None
    assert of_tokens.of("https://evil.example/") is None
    own: dict[str, Any] = {"jwks_public_endpoint": "https://subs.example/"}
    off = made(ClientConfig(subscription_token=SubscriptionTokenConfig(**own)))
    assert off is None
    both = made(
        ClientConfig(token=several, subscription_token=SubscriptionTokenConfig(enabled=True, **own))
    )
    assert both is not None
    assert both.of("https://subs.example/") is not None


async def test_one_that_does_not_answer_holds_up_no_other() -> None:
    asked = asyncio.Event()

    async def silent() -> bytes:
        asked.set()
        raise FetchFailed("status 503")

    async def answers() -> bytes:
        return jwks(signer("ES256").jwk("k1"))

    clock = ManualClock()
    down = JwksKeys(silent, clock, lambda: 0.5, endpoint="https://down.example/")
    up = JwksKeys(answers, clock, lambda: 0.5, endpoint="https://up.example/")
    sets = JwksSets({"down": down, "up": up})
    with capture_logs() as logs:
        async with beside(sets.run()):
            await until(lambda: up.usable and asked.is_set())
            assert not sets.usable, "a token of the other one could not be verified"
            assert up.known("k1", "ES256")
    told = {entry["event"]: entry["endpoint"] for entry in logs}
    assert told == {
        "jwks_fetch_failed": "https://down.example/",
        "jwks_changed": "https://up.example/",
    }
