"""Presence as clients get it: of few members, and of so many that a reply would
fill the client's queue.
"""

from __future__ import annotations

from typing import Any, Final

import pytest

from roomcast.client import read as reading
from roomcast.fleet.lease_record import Lease
from roomcast.presence.ports import Member
from tests.unit.worlds import Fleet, LocalNode, info

CHANNEL: Final = "all:x"
MANY: Final = 10_000
QUEUE_BYTES: Final = 1024 * 1024


def crowded(members: int, **client: Any) -> tuple[Fleet, LocalNode]:
    """A node, and members of CHANNEL on another one."""
    fleet = Fleet()
    now = fleet.clock.now_ms()
    fleet.world.leases["b"] = Lease("b", "q", "live", now, now, now + 3_600_000)
    infos = [
        info(f"00000000-0000-4000-8000-{number:012d}", f"user {number}")
        for number in range(members)
    ]
    fleet.world.presence[CHANNEL] = {("b", each.client): Member("b", each) for each in infos}
    return fleet, fleet.node(**client)


async def test_few_members_are_told() -> None:
    _, node = crowded(2)
    client = await node.client()
    await client.subscribe(CHANNEL)
    told = await client.ask("presence", channel=CHANNEL)
    assert len(told["presence"]) == 3
    assert told["presence"][client.id] == {"user": "", "client": client.id}
    assert await client.ask("presence_stats", channel=CHANNEL) == {"num_clients": 3, "num_users": 3}
    await node.close()


async def test_of_too_many_there_is_an_error_and_their_number() -> None:
    fleet, node = crowded(MANY, queue_max_size=QUEUE_BYTES)
    client = await node.client()
    await client.subscribe(CHANNEL)
    for _ in range(10):
        assert await client.ask("presence", channel=CHANNEL) == 106
        assert await client.ask("presence_stats", channel=CHANNEL) == {
            "num_clients": MANY + 1,
            "num_users": MANY + 1,
        }
    assert client.socket.closed_with is None
    assert sum(len(frame) for frame in client.socket.frames) < QUEUE_BYTES / 100
    assert fleet.traffic.calls["members"] == 1
    await node.close()


@pytest.mark.parametrize("queue_bytes", [QUEUE_BYTES, 4 * QUEUE_BYTES])
async def test_a_reply_leaves_half_of_the_queue(queue_bytes: int) -> None:
    """Whoever wants to show more members gives clients a larger queue."""
    most = 0
    for members in (3_000, 4_000, 5_000, MANY):
        _, node = crowded(members, queue_max_size=queue_bytes)
        client = await node.client()
        told = await client.ask("presence", channel=CHANNEL)
        if told != 106:
            most = members
            assert len(told["presence"]) == members
            assert max(len(frame) for frame in client.socket.frames) < queue_bytes / 2 + 100
        await node.close()
    assert most == (MANY if queue_bytes > QUEUE_BYTES else 4_000)


async def test_a_table_that_does_not_answer_is_an_error_in_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Otherwise SDKs reconnect, and all that the client asks for later waits behind it.
    History has a table of its own.
    """
    monkeypatch.setattr(reading, "PRESENCE_LIMIT_S", 0.02)
    fleet, node = crowded(2)
    client = await node.client()
    held = fleet.traffic.hold("members", "answer")
    asked = await client.say(*({"presence": {"channel": CHANNEL}} for _ in range(8)))
    assert await client.ask("history", channel="room", limit=1) != 100
    for command in asked:
        assert (await client.answer(command))["error"]["code"] == 100
    held.release()
    await node.close()
