"""Publications that are collected: all of them come, in order, and each to those it is for."""

from __future__ import annotations

import asyncio
from itertools import pairwise
from typing import Any, Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from roomcast.delivery import batches as module
from roomcast.delivery.batches import BATCH_BYTES_MAX, COMINGS_MAX
from roomcast.delivery.hub import Hub
from roomcast.wire.channels import Batching
from roomcast.wire.encoding import encode_told
from roomcast.wire.publication import ClientInfo
from tests.protobuf import as_it_is
from tests.unit.delivery.test_hub import SCORES, Follower, Subscriber, publications
from tests.unit.worlds import until

# Longer than any test: what is collected goes out when the test says so.
LONG: Final = Batching(size=1000, delay_s=3600.0, latest=False)


def hub(batching: Batching = LONG) -> Hub:
    return Hub(lambda channel: batching if channel.startswith("a") else None)


def plain(made: Hub, channel: str = "a", **options: Any) -> Subscriber:
    subscriber = Subscriber(framer=as_it_is, **options)
    made.add(channel, subscriber)
    return subscriber


async def test_what_is_collected_goes_out_in_one_frame_that_is_made_once() -> None:
    made = hub()
    first, second = plain(made), plain(made)
    for number in range(3):
        made.publish("a", publications(number))
    assert first.sink.frames == []
    assert made.flush("a") == 6
    assert first.sink.published("a") == [0, 1, 2]
    assert len(first.sink.frames) == 1
    assert first.sink.frames[0] is second.sink.frames[0]
    assert made.flush("a") == 0
    assert made.batches.bytes == 0


async def test_a_channel_whose_publications_are_not_collected_gets_them_at_once() -> None:
    made = hub()
    other = plain(made, "b")
    made.publish("b", publications(1))
    assert other.sink.published("b") == [1]
    assert made.flush("b") == 0


async def test_the_time_runs_from_the_first_publication_on() -> None:
    made = hub(Batching(size=1000, delay_s=0.01, latest=False))
    [one, other] = plain(made), plain(made, "a2")
    made.publish("a", publications(1))
    made.publish("a2", publications(2))
    assert (one.sink.frames, other.sink.frames) == ([], [])
    await until(lambda: one.sink.frames and other.sink.frames)
    made.publish("a", publications(3))
    assert len(one.sink.frames) == 1
    await until(lambda: len(one.sink.frames) == 2)
    assert one.sink.published("a") == [1, 3]


async def test_so_many_publications_go_out_before_the_time() -> None:
    made = hub(Batching(size=3, delay_s=3600.0, latest=False))
    subscriber = plain(made)
    for number in range(8):
        made.publish("a", publications(number))
    assert len(subscriber.sink.frames) == 2
    assert subscriber.sink.published("a") == [0, 1, 2, 3, 4, 5]


async def test_the_bytes_of_a_channel_and_of_all_are_bounded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made = hub()
    subscriber, other = plain(made), plain(made, "a2")
    [third] = publications("x" * (BATCH_BYTES_MAX // 3))
    for _ in range(2):
        made.publish("a", [third])
    assert subscriber.sink.frames == []
    made.publish("a", [third])
    assert sum(map(len, subscriber.sink.frames)) > BATCH_BYTES_MAX // 3 * 3
    monkeypatch.setattr(module, "BATCHES_BYTES_MAX", BATCH_BYTES_MAX // 2)
    made.publish("a", [third])
    made.publish("a2", [third])
    assert len(other.sink.frames) == 1, "there is no room for it"
    made.remove("a", subscriber)
    assert made.batches.bytes == 0, "nobody is there for what waited"
    made.publish("a2", [third])
    assert len(other.sink.frames) == 1


async def test_who_comes_meanwhile_gets_what_follows() -> None:
    made = hub()
    first, fresh = plain(made), Follower()
    made.publish("a", publications(*SCORES[:2]))
    second = plain(made)
    made.add("a", fresh)
    made.publish("a", publications(SCORES[2]))
    third = plain(made)
    made.flush("a")
    assert first.sink.published("a") == SCORES[:3]
    assert second.sink.published("a") == [SCORES[2]]
    assert fresh.follow() == ([SCORES[2]], 0)
    assert third.sink.frames == []
    made.publish("a", publications(SCORES[3]))
    made.flush("a")
    assert third.sink.published("a") == second.sink.published("a")[1:] == [SCORES[3]]
    assert fresh.follow() == (SCORES[2:4], 1)


async def test_when_many_came_at_different_places_the_batch_goes_out_early() -> None:
    """What follows each place is encoded by itself."""
    made, encoded = hub(), list[int]()

    def framer(lines: bytes) -> bytes:
        encoded.append(lines.count(b"\n") + 1)
        return lines

    came = [Subscriber(framer=framer)]
    made.add("a", came[0])
    for number in range(40):
        made.publish("a", publications(number))
        # Two at each place: they share it.
        for _ in range(2):
            came.append(Subscriber(framer=framer))
            made.add("a", came[-1])
    made.flush("a")
    assert max(encoded) <= COMINGS_MAX + 1
    assert sum(encoded) < 40 * (COMINGS_MAX + 1)
    for index, each in enumerate(came):
        assert each.sink.published("a") == list(range((index + 1) // 2, 40))


async def test_of_a_feed_only_the_newest_goes_out() -> None:
    made = hub(Batching(size=3, delay_s=3600.0, latest=True))
    first, follower = plain(made), Follower()
    made.add("a", follower)
    made.publish("a", publications(*SCORES[:2]))
    late = plain(made)
    made.publish("a", publications(SCORES[2]))
    assert first.sink.published("a") == late.sink.published("a") == [SCORES[2]]
    made.publish("a", publications(SCORES[3]))
    later = plain(made)
    made.flush("a")
    assert first.sink.published("a") == [SCORES[2], SCORES[3]]
    assert later.sink.frames == [], "it is behind that already"
    assert follower.follow() == ([SCORES[2], SCORES[3]], 1), "of what it got before"
    assert made.batches.superseded == 2


async def test_joins_do_not_overtake_and_the_end_of_a_channel_comes_behind() -> None:
    made = hub()
    subscriber = plain(made, join_leave=True)
    made.publish("a", publications(1))
    made.tell("a", [encode_told("join", ClientInfo("ann", "1"))])
    assert ["pub" in push for push in subscriber.sink.pushes] == [True, False]
    made.publish("a", publications(2))
    seen: list[int] = []

    def lost(channel: str) -> None:
        seen.append(len(subscriber.sink.pushes))

    subscriber.lost = lost  # type: ignore[method-assign]
    made.lost("a")
    assert seen == [3]
    assert subscriber.sink.published("a") == [1, 2]


async def test_what_many_channels_have_leaves_others_their_turn(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "PUSHES_A_TURN", 4)
    made = hub(Batching(size=1000, delay_s=0.005, latest=False))
    names = [f"a{number}" for number in range(12)]
    subscribers = [plain(made, name) for name in names for _ in range(2)]
    loop = asyncio.get_running_loop()
    now = loop.time()
    for name in names:
        made.publish(name, publications(1))
    turns: list[int] = []
    loop.time = lambda: now + 1.0  # type: ignore[method-assign]  # all are due at once
    try:
        while len(turns) < 100 and made.counters.pushes < len(subscribers):
            turns.append(made.counters.pushes)
            await asyncio.sleep(0)
    finally:
        del loop.time
    assert made.counters.pushes == len(subscribers)
    assert max(after - before for before, after in pairwise(turns)) <= 4


async def test_at_the_end_of_a_node_nothing_is_collected_any_more(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made = hub()
    subscribers = [plain(made, f"a{number}") for number in range(3)]
    for number in range(3):
        made.publish(f"a{number}", publications(1))
    monkeypatch.setattr("roomcast.delivery.hub.PUSHES_A_TURN", 1)
    await made.end_batches()
    made.publish("a0", publications(2))
    assert [len(each.sink.frames) for each in subscribers] == [2, 1, 1]
    assert made.batches.bytes == 0


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["publish", "publish", "publish", "come", "come", "go", "flush"]),
            st.one_of(st.text(max_size=60), st.sampled_from(SCORES), st.none()),
            st.booleans(),
        ),
        max_size=30,
    ),
    st.integers(1, 6),
)
async def test_each_gets_all_that_is_for_it_once_and_in_order(
    steps: list[tuple[str, Any, bool]], size: int
) -> None:
    made = hub(Batching(size, 3600.0, latest=False))
    here: list[tuple[Follower | Subscriber, list[Any]]] = []
    gone: list[tuple[Follower | Subscriber, list[Any]]] = []
    for step, data, flag in steps:
        if step == "publish":
            made.publish("a", publications(data, delta=flag))
            for _, wanted in here:
                wanted.append(data)
        elif step == "flush":
            made.flush("a")
        elif step == "come":
            here.append((Follower() if flag else Subscriber(framer=as_it_is), []))
            made.add("a", here[-1][0])
        elif here:
            gone.append(here.pop(0))
            made.remove("a", gone[-1][0])
    made.flush("a")
    for subscriber, wanted in here:
        assert got(subscriber) == wanted
    for subscriber, wanted in gone:
        seen = got(subscriber)
        assert seen == wanted[: len(seen)]
        assert len(wanted) - len(seen) < size, "what waited when it went"
    assert made.batches.bytes == 0


def got(subscriber: Follower | Subscriber) -> list[Any]:
    if isinstance(subscriber, Follower):
        return subscriber.follow()[0]
    return subscriber.sink.published("a")


@given(st.lists(st.sampled_from(["publish", "come", "flush"]), max_size=30), st.integers(1, 6))
async def test_of_a_feed_each_gets_a_newer_one_each_time_and_ends_with_the_newest(
    steps: list[str], size: int
) -> None:
    made = hub(Batching(size, 3600.0, latest=True))
    here: list[tuple[Follower | Subscriber, int]] = []
    count = 0
    for step in steps:
        if step == "publish":
            count += 1
            made.publish("a", publications(count))
        elif step == "flush":
            made.flush("a")
        else:
            here.append((Follower() if count % 2 else Subscriber(framer=as_it_is), count))
            made.add("a", here[-1][0])
    made.flush("a")
    for subscriber, came_at in here:
        seen = got(subscriber)
        assert seen == sorted(set(seen))
        assert seen[-1:] == ([count] if count > came_at else [])
        assert all(each > came_at for each in seen)
