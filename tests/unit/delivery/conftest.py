"""What tests of this room share."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from tests.unit.delivery.room import Room


@pytest.fixture
async def room() -> AsyncIterator[Room]:
    room = Room()
    yield room
    await room.dispatcher.close()
