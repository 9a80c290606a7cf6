"""What tests attack, unless they say otherwise."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from tests.security.target import Logs, Target, target, watched


@pytest.fixture
async def logs() -> AsyncIterator[Logs]:
    with watched() as logs:
        yield logs
    assert logs.faults() == []


@pytest.fixture
async def attacked(logs: Logs) -> AsyncIterator[Target]:
    async with target() as attacked:
        yield attacked
        await attacked.still_serves()
