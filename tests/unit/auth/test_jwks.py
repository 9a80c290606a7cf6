"""service/roomcast/auth/jwks.py: keys are there when they are needed,
and the endpoint is asked no more often than bounded.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

import pytest
from structlog.testing import capture_logs

from roomcast.auth import jwks as jwks_module
from roomcast.auth.claims import TokenUnverifiable
from roomcast.auth.jwks import (
    DEMAND_PAUSE_S,
    KEY_WAIT_S,
    REFRESH_S,
    STALE_S_MAX,
    FetchFailed,
    JwksKeys,
)
from roomcast.testing.memory import ManualClock
from tests.signers import jwks, signer
from tests.unit.worlds import settled, until

OLD, NEW = signer("ES256", 1), signer("ES256", 2)


class Endpoint:
    """What is published, and how often that was asked for.
    `gate`: closed, an answer has to wait.
    """

    def __init__(self, *keys: Any) -> None:
        self.body = jwks(*keys)
        self.error: FetchFailed | None = None
        self.asked = 0
        self.at_once = 0
        self.at_once_max = 0
        self.gate = asyncio.Event()
        self.gate.set()

    def publish(self, *keys: Any) -> None:
        self.body, self.error = jwks(*keys), None

    def break_down(self) -> None:
        self.error = FetchFailed("status 503")

    async def fetch(self) -> bytes:
        self.asked += 1
        self.at_once += 1
        self.at_once_max = max(self.at_once_max, self.at_once)
        try:
            await self.gate.wait()
        finally:
            self.at_once -= 1
        if self.error is not None:
            raise self.error
        return self.body


@asynccontextmanager
async def running(endpoint: Endpoint, clock: ManualClock) -> AsyncIterator[JwksKeys]:
    """Keys whose first fetch is done, unless the gate is closed."""
    keys = JwksKeys(endpoint.fetch, clock, lambda: 0.5)
    task = asyncio.create_task(keys.run())
    try:
        await until(lambda: endpoint.asked)
        await settled()
        yield keys
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


async def holds(keys: JwksKeys, kid: str | None, algorithm: str = "ES256") -> bool | None:
    """Whether there is a key; None: nobody knows."""
    try:
        return await keys.find(kid, algorithm) is not None
    except TokenUnverifiable:
        return None


async def test_keys_are_there_before_anybody_asks(clock: ManualClock) -> None:
    endpoint = Endpoint(OLD.jwk("old"))
    async with running(endpoint, clock) as keys:
        assert keys.usable
        found = keys.known("old", "ES256")
        assert found is not None
        assert found.key == OLD.public
        assert await keys.find("old", "ES256") is found
        assert endpoint.asked == 1


async def test_before_the_first_answer_a_token_waits_for_it(clock: ManualClock) -> None:
    endpoint = Endpoint(OLD.jwk("old"))
    endpoint.gate.clear()
    async with running(endpoint, clock) as keys:
        assert not keys.usable
        waiting = [asyncio.create_task(holds(keys, kid)) for kid in ("old", "old", "unknown", None)]
        await settled()
        assert not any(each.done() for each in waiting)
        endpoint.gate.set()
        # The fetch began before they asked, so of the unknown one nothing is certain yet.
        assert await asyncio.gather(*waiting) == [True, True, None, True]
        assert endpoint.asked == 1


async def test_a_slow_endpoint_is_not_waited_for_too_long(
    clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jwks_module, "KEY_WAIT_S", 0.01)
    endpoint = Endpoint(OLD.jwk("old"))
    endpoint.gate.clear()
    async with running(endpoint, clock) as keys:
        with pytest.raises(TokenUnverifiable, match="in time"):
            await keys.find("old", "ES256")
        endpoint.gate.set()
        await until(lambda: keys.usable)
        assert await holds(keys, "old")


async def test_a_fetch_has_its_bound(clock: ManualClock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jwks_module, "FETCH_LIMIT_S", 0.01)
    endpoint = Endpoint(OLD.jwk("old"))
    endpoint.gate.clear()
    with capture_logs() as logs:
        async with running(endpoint, clock):
            await until(lambda: logs)
    assert logs[0]["event"] == "jwks_fetch_failed"
    assert logs[0]["reason"] == "no answer within 0.01 s"
    assert endpoint.at_once == 0


async def test_a_new_key_is_fetched_when_a_token_names_it(clock: ManualClock) -> None:
    endpoint = Endpoint(OLD.jwk("old"))
    async with running(endpoint, clock) as keys:
        endpoint.publish(OLD.jwk("old"), NEW.jwk("new"))
        clock.advance(DEMAND_PAUSE_S)
        assert await holds(keys, "new")
        assert await holds(keys, "old")
        assert endpoint.asked == 2


async def test_a_key_that_was_withdrawn_does_not_count_any_more(clock: ManualClock) -> None:
    endpoint = Endpoint(OLD.jwk("old"))
    async with running(endpoint, clock) as keys:
        endpoint.publish(NEW.jwk("new"))
        clock.advance(DEMAND_PAUSE_S)
        assert await holds(keys, "new")
        assert await holds(keys, "old") is None
        clock.advance(DEMAND_PAUSE_S)
        assert await holds(keys, "old") is False


async def test_a_key_that_nobody_published_is_none(clock: ManualClock) -> None:
    endpoint = Endpoint(OLD.jwk("old"))
    async with running(endpoint, clock) as keys:
        clock.advance(DEMAND_PAUSE_S)
        assert await holds(keys, "unknown") is False
        assert endpoint.asked == 2


async def test_whatever_the_flood_there_is_one_fetch_within_the_bound(clock: ManualClock) -> None:
    endpoint = Endpoint(OLD.jwk("old"))
    async with running(endpoint, clock) as keys:
        for second in range(round(3 * DEMAND_PAUSE_S)):
            answers = await asyncio.gather(
                *(holds(keys, f"{second}-{number}") for number in range(50))
            )
            assert True not in answers
            assert await holds(keys, "old")
            clock.advance(1)
        # At the start, then after 30 and 60 seconds.
        assert endpoint.asked == 3
        assert endpoint.at_once_max == 1


async def test_too_soon_after_a_fetch_nobody_knows(clock: ManualClock) -> None:
    """The signer may have taken a new key a moment ago:
    refusing it for good would shut its bearer out.
    """
    endpoint = Endpoint(OLD.jwk("old"))
    async with running(endpoint, clock) as keys:
        endpoint.publish(OLD.jwk("old"), NEW.jwk("new"))
        clock.advance(DEMAND_PAUSE_S - 1)
        assert await holds(keys, "new") is None
        clock.advance(1)
        assert await holds(keys, "new") is True


@pytest.mark.parametrize("kid, algorithm", [("old", "ES384"), ("old", "RS256"), (None, "RS256")])
async def test_what_a_fetch_cannot_change_causes_none(
    clock: ManualClock, kid: str | None, algorithm: str
) -> None:
    endpoint = Endpoint(OLD.jwk("old"))
    async with running(endpoint, clock) as keys:
        clock.advance(DEMAND_PAUSE_S)
        assert await holds(keys, kid, algorithm) is False
        assert endpoint.asked == 1


async def test_keys_go_on_counting_while_the_endpoint_is_down_but_not_for_ever(
    clock: ManualClock,
) -> None:
    endpoint = Endpoint(OLD.jwk("old"))
    with capture_logs() as logs:
        async with running(endpoint, clock) as keys:
            endpoint.break_down()
            clock.advance(DEMAND_PAUSE_S)
            # An unknown one cannot be told from a new one now.
            assert await holds(keys, "new") is None
            assert endpoint.asked == 2
            assert await holds(keys, "old")
            clock.advance(STALE_S_MAX - DEMAND_PAUSE_S)
            assert await holds(keys, "old")
            clock.advance(1)
            assert not keys.usable
            assert keys.known("old", "ES256") is None
            assert await holds(keys, "old") is None
            endpoint.publish(OLD.jwk("old"))
            clock.advance(DEMAND_PAUSE_S)
            assert await holds(keys, "old")
    assert [log["event"] for log in logs] == [
        "jwks_changed",
        "jwks_fetch_failed",
        "jwks_fetch_failed",
    ]
    assert [log.get("keys") for log in logs] == [1, 1, 0]


@pytest.mark.parametrize(
    "body", [b"<html>", b'{"keys":[]}', jwks(*[{}] * 1000), jwks({"kty": "oct"})]
)
async def test_a_senseless_answer_changes_nothing(clock: ManualClock, body: bytes) -> None:
    endpoint = Endpoint(OLD.jwk("old"))
    async with running(endpoint, clock) as keys:
        endpoint.body = body
        clock.advance(DEMAND_PAUSE_S)
        assert await holds(keys, "new") is None
        assert endpoint.asked == 2
        assert await holds(keys, "old")


async def test_down_at_the_start_nobody_knows_anything(clock: ManualClock) -> None:
    endpoint = Endpoint()
    endpoint.break_down()
    async with running(endpoint, clock) as keys:
        for kid in ("old", None):
            assert await holds(keys, kid) is None
        assert endpoint.asked == 1


async def test_the_endpoint_is_asked_again_by_itself(
    clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    endpoint = Endpoint()
    endpoint.break_down()
    pauses: list[int] = []

    def no_pause(_: JwksKeys, failures: int) -> float:
        pauses.append(failures)
        return 0.0

    monkeypatch.setattr(JwksKeys, "_pause_s", no_pause)
    async with running(endpoint, clock) as keys:
        await until(lambda: endpoint.asked >= 3)
        endpoint.publish(OLD.jwk("old"))
        await until(lambda: keys.usable)
        asked = endpoint.asked
        await until(lambda: endpoint.asked > asked)
    assert pauses[:3] == [1, 2, 3]
    assert 0 in pauses


def test_pauses_grow_with_failures_and_are_jittered(clock: ManualClock) -> None:
    for fraction in (0.0, 0.5, 1.0):
        keys = JwksKeys(Endpoint().fetch, clock, lambda: fraction)  # noqa: B023  # called in this round only
        assert REFRESH_S * 0.9 <= keys._pause_s(0) <= REFRESH_S * 1.1
        pauses = [keys._pause_s(failures) for failures in range(1, 2000)]
        assert pauses == sorted(pauses)
        assert 0.5 <= pauses[0] <= 1
        assert 15 <= pauses[-1] <= 30


async def test_a_waiter_that_gives_up_disturbs_nobody(clock: ManualClock) -> None:
    endpoint = Endpoint(OLD.jwk("old"))
    endpoint.gate.clear()
    async with running(endpoint, clock) as keys:
        one, other = (asyncio.create_task(holds(keys, "old")) for _ in range(2))
        await settled()
        one.cancel()
        await asyncio.gather(one, return_exceptions=True)
        assert endpoint.at_once == 1
        endpoint.gate.set()
        assert await other


async def test_the_end_leaves_no_fetch_behind(clock: ManualClock) -> None:
    endpoint = Endpoint(OLD.jwk("old"))
    endpoint.gate.clear()
    async with running(endpoint, clock) as keys:
        waiting = asyncio.create_task(holds(keys, "old"))
        await settled()
    assert endpoint.at_once == 0
    assert await waiting is None
    assert asyncio.all_tasks() == {asyncio.current_task()}


async def test_a_change_is_told_once(clock: ManualClock) -> None:
    endpoint = Endpoint(OLD.jwk("old"))
    with capture_logs() as logs:
        async with running(endpoint, clock) as keys:
            for _ in range(3):
                clock.advance(DEMAND_PAUSE_S)
                await holds(keys, "unknown")
            endpoint.publish(OLD.jwk("old"), NEW.jwk("new"))
            clock.advance(DEMAND_PAUSE_S)
            await holds(keys, "new")
    assert [(log["event"], log["keys"], log["kids"]) for log in logs] == [
        ("jwks_changed", 1, ["old"]),
        ("jwks_changed", 2, ["new", "old"]),
    ]
    assert endpoint.asked == 5


async def test_keys_that_are_refused_are_told_once(clock: ManualClock) -> None:
    endpoint = Endpoint(OLD.jwk("old"), {**NEW.jwk("new"), "alg": "HS256"})
    with capture_logs() as logs:
        async with running(endpoint, clock) as keys:
            for _ in range(3):
                clock.advance(DEMAND_PAUSE_S)
                await holds(keys, "unknown")
    assert [(log["event"], log.get("reasons")) for log in logs] == [
        ("jwks_changed", None),
        ("jwks_keys_refused", ("new: for an algorithm that does not fit it",)),
    ]


def test_a_token_waits_for_less_time_than_sdks_do() -> None:
    # Centrifuge SDKs give a command 5 s.
    assert KEY_WAIT_S < 5
