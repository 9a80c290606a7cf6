"""A process that was suspended takes no keys for a while."""

from __future__ import annotations

from unittest.mock import ANY

import pytest

from roomcast.client.lifetime import SLEPT_S
from roomcast.gateway.api import watch as watch_module
from roomcast.gateway.api.watch import AWAKE_CHECK_S, UNREAD_S, Watch
from roomcast.log.idempotency import UNREAD_WITHIN_MS
from roomcast.testing.memory import ManualClock
from tests.unit.gateway.api.conftest import Caller, Serve
from tests.unit.worlds import until


async def test_what_may_have_waited_in_a_socket_is_not_published_with_its_key(
    caller: Caller,
) -> None:
    """Its caller may have published it elsewhere, so long ago that the key is forgotten."""
    clock = caller.node.clock
    clock.advance(AWAKE_CHECK_S + SLEPT_S)
    assert "result" in await caller.publish(idempotency_key="in time")
    clock.advance(AWAKE_CHECK_S + SLEPT_S + 1)
    assert (await caller.publish(idempotency_key="late"))["error"] == {"code": 111, "message": ANY}
    assert "result" in await caller.publish(), "without a key nothing is promised"
    clock.advance(UNREAD_S - 1)
    assert "error" in await caller.publish(idempotency_key="late")
    clock.advance(1)
    assert "result" in await caller.publish(idempotency_key="late")
    assert len(caller.stored()) == 3


async def test_a_suspension_is_noticed_between_requests_as_well(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or the first look after it would take the sleep for its own pause."""
    monkeypatch.setattr(watch_module, "AWAKE_CHECK_S", 0.001)
    caller = await serve()
    watch = caller.watch
    caller.node.clock.advance(SLEPT_S + 1)
    await until(lambda: watch._woke_s is not None)
    assert "error" in await caller.publish(idempotency_key="late")


def test_hours_without_a_suspension_are_none() -> None:
    clock = ManualClock()
    watch = Watch(clock)
    for _ in range(200):
        clock.advance(AWAKE_CHECK_S)
        watch.look()
        assert not watch.may_have_waited()


def test_a_suspension_that_is_not_noticed_leaves_the_key_enough_time() -> None:
    assert (AWAKE_CHECK_S + SLEPT_S) * 1000 <= UNREAD_WITHIN_MS
