"""Joins and leaves: at once while little happens, and within bounds whatever happens."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Collection

import pytest
from structlog.testing import capture_logs

from roomcast.delivery import joins_and_leaves as module
from roomcast.delivery.hub import Hub
from roomcast.delivery.joins_and_leaves import BURST_S, WRITES_PER_S, JoinsAndLeaves
from roomcast.wire.encoding import Unencodable
from roomcast.wire.publication import ClientInfo
from tests.unit.delivery.test_hub import bracketed, subscribed
from tests.unit.worlds import info, settled, standing_still, until


def told(frames: Collection[bytes]) -> list[tuple[str, str]]:
    """Who joined and left, by the frames of one subscriber."""
    found = []
    for line in b"\n".join(frame[1:-1] for frame in frames).splitlines():
        kind = "join" if b'"join"' in line else "leave"
        found.append((kind, line.partition(b'"client":"')[2].partition(b'"')[0].decode()))
    return found


class Rooms:
    """Channels with subscribers that take joins and leaves."""

    def __init__(self, channels: int, members: int) -> None:
        self.hub = Hub()
        self.names = [f"room-{number}" for number in range(channels)]
        self.members = {
            name: subscribed(self.hub, name, members, join_leave=True, framer=bracketed)
            for name in self.names
        }
        self.joins_and_leaves = JoinsAndLeaves(self.hub)

    def say(self, kind: str, client: str, *names: str) -> None:
        for name in names or self.names:
            self.joins_and_leaves.add(name, kind, info(client))
        self.joins_and_leaves.go()

    @property
    def writes(self) -> int:
        return self.hub.counters.frames


async def test_what_there_is_time_for_is_told_at_once() -> None:
    rooms = Rooms(2, 3)
    rooms.say("join", "c1")
    rooms.say("leave", "c1", "room-1")
    assert told(rooms.members["room-0"][2].sink.frames) == [("join", "c1")]
    assert told(rooms.members["room-1"][0].sink.frames) == [("join", "c1"), ("leave", "c1")]


async def test_who_leaves_many_large_channels_leaves_others_their_turn(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "WRITES_A_TURN", 50)
    rooms, a_turn, last = Rooms(64, 20), Counter[int](), 0
    rooms.say("leave", "c1")
    for turn in range(64):
        a_turn[turn], last = rooms.writes - last, rooms.writes
        await asyncio.sleep(0)
    assert rooms.writes == 64 * 20
    assert max(a_turn.values()) == 60, "what fits, and the channel that does not any more"
    for name in rooms.names:
        assert told(rooms.members[name][0].sink.frames) == [("leave", "c1")]


async def test_what_comes_in_the_same_turn_shares_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "WRITES_A_TURN", 50)
    rooms = Rooms(64, 20)
    for name in rooms.names:
        rooms.say("leave", "c1", name)
    assert rooms.writes == 60


async def test_beyond_the_rate_a_channel_hears_of_many_in_one_write(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "WRITES_PER_S", 1000)
    rooms = Rooms(1, 150)
    with standing_still():
        rooms.say("join", "c0")
        assert rooms.writes == 150
        for number in range(1, 5):
            rooms.say("join", f"c{number}")
        await settled()
        assert rooms.writes == 150, "that was more than may go out at once"
        assert rooms.joins_and_leaves.waiting_bytes > 0
    await until(lambda: rooms.writes > 150)
    assert rooms.writes == 300
    for member in rooms.members["room-0"]:
        assert told(member.sink.frames) == [("join", f"c{number}") for number in range(5)]
    assert rooms.joins_and_leaves.waiting_bytes == 0


async def test_of_very_many_a_turn_tells_a_large_channel_few() -> None:
    """What waits for a large channel grows as it waits: all at once, it was megabytes a socket."""
    rooms = Rooms(1, 300)
    with standing_still():
        rooms.say("join", "first")
        for number in range(1000):
            rooms.joins_and_leaves.add("room-0", "join", info(f"c{number}"))
        before = rooms.hub.counters.bytes
        rooms.joins_and_leaves.go()
        sent = rooms.hub.counters.bytes - before
        assert sent <= 2 * 300 * module.TOLD_BYTES_MAX, "with what is around them"
        assert rooms.joins_and_leaves.waiting_bytes > 0
    member = rooms.members["room-0"][0]
    await until(lambda: rooms.joins_and_leaves.waiting_bytes == 0)
    clients = ["first", *(f"c{number}" for number in range(1000))]
    assert told(member.sink.frames) == [("join", client) for client in clients]
    assert max(map(len, member.sink.frames)) <= 2 * module.TOLD_BYTES_MAX


async def test_one_that_is_larger_is_told_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "TOLD_BYTES_MAX", 10)
    rooms = Rooms(2, 1)
    for client in ("a", "b"):
        for name in rooms.names:
            rooms.joins_and_leaves.add(name, "join", info(client))
    rooms.joins_and_leaves.go()
    for name in rooms.names:
        frames = rooms.members[name][0].sink.frames
        assert [told([frame]) for frame in frames] == [[("join", "a")], [("join", "b")]]


async def test_of_a_client_that_comes_and_goes_in_a_loop_the_last_counts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "WRITES_PER_S", 1000)
    rooms = Rooms(1, 150)
    with standing_still():
        rooms.say("join", "other")
        for _ in range(100):
            rooms.say("join", "c1")
            rooms.say("leave", "c1")
        rooms.say("join", "c2")
        rooms.say("leave", "c2")
        rooms.say("join", "c2")
    await until(lambda: rooms.writes > 150)
    assert told(rooms.members["room-0"][0].sink.frames) == [
        ("join", "other"),
        ("join", "c1"),
        ("leave", "c1"),
        ("leave", "c2"),
        ("join", "c2"),
    ]


async def test_channels_have_their_turn_one_after_the_other(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """One in which somebody comes and goes all the time keeps none waiting for long."""
    monkeypatch.setattr(module, "WRITES_PER_S", 1000)
    rooms = Rooms(3, 150)
    with standing_still():
        rooms.say("join", "c1", "room-0")
        rooms.say("leave", "c1", "room-0")
        rooms.say("join", "c2", "room-1")
        rooms.say("join", "c1", "room-0")
    await until(lambda: rooms.members["room-1"][0].sink.frames)
    assert told(rooms.members["room-0"][0].sink.frames)[-1] == ("join", "c1")
    assert rooms.writes == 3 * 150


async def test_large_infos_count_as_several_writes() -> None:
    rooms = Rooms(1, 100)
    large = ClientInfo("ann", "c1", conn_info="x" * module.WRITE_BYTES * 100)
    with standing_still():
        rooms.joins_and_leaves.add("room-0", "join", large)
        rooms.joins_and_leaves.go()
        assert WRITES_PER_S * BURST_S < 100 * 100
        rooms.say("join", "c2")
        await settled()
        assert rooms.writes == 100
    await until(lambda: rooms.writes == 200)


async def test_what_waits_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "WAITING_BYTES_MAX", 10_000)
    monkeypatch.setattr(module, "WRITES_PER_S", 1000)
    rooms = Rooms(1, 150)
    with standing_still():
        rooms.say("join", "c")
        for number in range(100):
            rooms.say("join", f"c{number}")
            assert rooms.joins_and_leaves.waiting_bytes <= 10_000
    with capture_logs() as logs:
        await until(lambda: rooms.writes > 150)
    heard = len(told(rooms.members["room-0"][0].sink.frames))
    assert 10 < heard < 101
    [line] = logs
    assert (line["event"], line["count"]) == ("joins_and_leaves_shed", 101 - heard)


async def test_what_cannot_be_encoded_is_refused_alone() -> None:
    rooms = Rooms(1, 1)
    with pytest.raises(Unencodable):
        rooms.joins_and_leaves.add("room-0", "join", ClientInfo("ann", "c1", 2**70))
    rooms.say("join", "c2")
    assert told(rooms.members["room-0"][0].sink.frames) == [("join", "c2")]


async def test_a_channel_that_has_closed_meanwhile_is_passed_over() -> None:
    rooms = Rooms(1, 1)
    rooms.joins_and_leaves.add("nobody", "join", info("c1"))
    rooms.say("join", "c1")
    assert rooms.writes == 1
    assert rooms.joins_and_leaves.waiting_bytes == 0
