"""Filters: each subscriber gets what passes its own, in order, and no turn is long for it."""

from __future__ import annotations

import asyncio
from typing import Any, Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from roomcast.delivery import sieve as module
from roomcast.delivery.forms import Form, Payload
from roomcast.delivery.hub import Hub
from roomcast.delivery.sieve import CHANNEL_NODES_MAX
from roomcast.wire.channels import Batching
from roomcast.wire.encoding import Sent, encode_told, sent_of, tags_of
from roomcast.wire.protobuf import encode_messages
from roomcast.wire.publication import ClientInfo, Publication
from roomcast.wire.tags_filter import filter_of
from tests.protobuf import as_it_is, parsed
from tests.unit.delivery.test_hub import Curly, Subscriber
from tests.unit.worlds import until

KINDS: Final = ("a", "b", "c", "")
INFO: Final = ClientInfo("ann", "1")


def tagged(*kinds: str, first: int = 1) -> list[Sent]:
    """Publications, each with this tag ("": none), whose data is their offset."""
    return [
        sent_of(Publication(offset, offset, tags={"kind": kind} if kind else None), 0)
        for offset, kind in enumerate(kinds, first)
    ]


def eq(kind: str) -> dict[str, Any]:
    return {"key": "kind", "cmp": "eq", "val": kind}


def filtered(
    made: Hub,
    node: dict[str, Any],
    *,
    payload: Payload = Payload.VALUE,
    numbered: bool = False,
    **options: Any,
) -> Subscriber:
    form = Form(numbered, payload, False, made.shared_filter(filter_of(node)))
    subscriber = Subscriber(form=form, **{"framer": as_it_is, **options})
    made.add("a", subscriber)
    return subscriber


def plain(made: Hub) -> Subscriber:
    subscriber = Subscriber(framer=as_it_is)
    made.add("a", subscriber)
    return subscriber


def test_tags_are_read_from_the_line() -> None:
    odd = {"a": "1", "tags": '"tags":{"a":"2"}', "é": "\n"}
    for publication in (
        Publication({"tags": {"a": "3"}}, 1, INFO, odd, 5),
        Publication('"tags":{', 0, None, odd, 0, text='"\\"tags\\":{"'),
    ):
        assert tags_of(sent_of(publication, 0)) == odd
    for without in (
        Publication({"tags": {"a": "3"}}, 1),
        Publication(1, 1, ClientInfo("ann", "1", {"tags": {"a": "3"}})),
    ):
        assert tags_of(sent_of(without, 0)) == {}


async def test_each_gets_what_passes_and_the_others_everything() -> None:
    made = Hub()
    everything, one, other, none = (
        plain(made),
        filtered(made, eq("a")),
        filtered(made, {"op": "not", "nodes": [eq("a")]}),
        filtered(made, eq("x")),
    )
    made.publish("a", tagged("a", "b", "a", ""))
    assert everything.sink.published("a") == [1, 2, 3, 4]
    assert one.sink.published("a") == [1, 3]
    assert other.sink.published("a") == [2, 4]
    assert none.sink.frames == []
    assert made.count("a") == made.subscriptions == 4
    assert made.sieves.held_back == 8
    assert made.counters.pushes == 8
    for each in (one, everything, none):
        made.remove("a", each)
        made.remove("a", each)
    assert made.count("a") == made.subscriptions == 1
    made.publish("a", tagged("b", first=5))
    assert (one.sink.published("a"), other.sink.published("a")) == ([1, 3], [2, 4, 5])
    made.remove("a", other)
    assert not made.has("a")
    assert made.sieves.bytes == 0


async def test_a_filter_is_tested_once_for_all_who_have_it() -> None:
    made, asked = Hub(), 0
    subscribers = [filtered(made, eq("a")) for _ in range(5)]
    [tags_filter] = {each.form.filter for each in subscribers}
    assert tags_filter is not None
    passes = tags_filter.passes

    def counted(tags: Any) -> bool:
        nonlocal asked
        asked += 1
        return passes(tags)

    tags_filter.passes = counted
    made.publish("a", tagged("a", "b"))
    assert asked == 2
    assert all(each.sink.published("a") == [1] for each in subscribers)


async def test_what_passes_the_same_goes_out_in_the_same_frames() -> None:
    made, curly = Hub(), Curly()
    one = filtered(made, eq("a"), framer=curly)
    other = filtered(made, {"key": "kind", "cmp": "in", "vals": ["a", "z"]}, framer=curly)
    made.publish("a", tagged("a", "b", "a"))
    assert one.sink.frames[0] is other.sink.frames[0]
    assert (curly.made, len(one.sink.frames)) == (1, 1)
    made.publish("a", tagged("z", first=4))
    assert (len(one.sink.frames), len(other.sink.frames)) == (1, 2)


async def test_every_form_may_have_a_filter() -> None:
    made = Hub()
    number = made.number("a")
    numbered = filtered(made, eq("a"), numbered=True)
    binary = filtered(made, eq("a"), payload=Payload.BYTES, framer=encode_messages)
    made.publish("a", tagged("b", "a"))
    assert numbered.sink.pushes == [
        {"id": number, "pub": {"data": 2, "offset": 2, "tags": {"kind": "a"}}}
    ]
    [reply] = parsed(binary.sink.frames[0])
    assert (reply.push.pub.data, dict(reply.push.pub.tags)) == (b"2", {"kind": "a"})


async def test_who_is_lost_is_told_with_a_filter_too() -> None:
    made = Hub()
    one, other = filtered(made, eq("a")), plain(made)
    made.lost("a")
    assert (one.lost_channels, other.lost_channels) == (["a"], ["a"])
    assert made.subscriptions == 0


# ---- when it takes turns


@pytest.fixture
def slowly(monkeypatch: pytest.MonkeyPatch) -> None:
    """A turn is one step, and a step is one test."""
    monkeypatch.setattr(module, "TESTS_A_TURN", 1)
    monkeypatch.setattr(module, "_TESTS_A_STEP", 1)


@pytest.mark.usefixtures("slowly")
async def test_the_tests_of_a_turn_are_bounded_and_nobody_else_waits() -> None:
    made = Hub()
    everything = plain(made)
    some = [filtered(made, eq(kind)) for kind in ("a", "b")]
    made.publish("a", tagged("a", "b", "a"))
    made.publish("a", tagged("b", first=4))
    assert everything.sink.published("a") == [1, 2, 3, 4]
    assert [each.sink.frames for each in some] == [[], []]
    turns = 0
    while made.sieves.bytes:
        await asyncio.sleep(0)
        turns += 1
    assert turns >= 8, "one test each"
    assert [each.sink.published("a") for each in some] == [[1, 3], [2, 4]]


@pytest.mark.usefixtures("slowly")
async def test_who_comes_while_something_waits_gets_what_follows() -> None:
    made = Hub()
    first = filtered(made, eq("a"))
    made.publish("a", tagged("a", "a"))
    same, another = filtered(made, eq("a")), filtered(made, {"cmp": "nex"})
    made.publish("a", tagged("a", first=3))
    gone = filtered(made, eq("a"))
    made.remove("a", gone)
    await until(lambda: not made.sieves.bytes)
    assert [each.sink.published("a") for each in (first, same, another, gone)] == [
        [1, 2, 3],
        [3],
        [3],
        [],
    ]
    assert made.sieves.held_back == 0


@pytest.mark.usefixtures("slowly")
async def test_joins_stay_behind_what_was_published_before() -> None:
    made = Hub()
    one = filtered(made, eq("a"), join_leave=True)
    quiet = filtered(made, eq("a"))
    assert made.tell("a", [encode_told("join", INFO)]) == 1
    made.publish("a", tagged("a"))
    assert made.tell("a", [encode_told("leave", INFO)]) == 1
    late = filtered(made, eq("a"), join_leave=True)
    made.publish("a", tagged("a", first=2))
    await until(lambda: quiet.sink.published("a") == [1, 2])
    assert [next(iter(push.keys() - {"channel"})) for push in one.sink.pushes] == [
        "join",
        "pub",
        "leave",
        "pub",
    ]
    assert late.sink.published("a") == [2]
    assert late.sink.told("a", "leave") == []


@pytest.mark.usefixtures("slowly")
async def test_what_waits_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "WAITING_BYTES_MAX", 2_000)
    made = Hub()
    one = filtered(made, eq("a"))
    for offset in range(1, 100):
        made.publish("a", tagged("a", first=offset))
        assert made.sieves.bytes <= 2_000
    assert len(one.sink.published("a")) > 80
    await made.end_batches()
    assert one.sink.published("a") == list(range(1, 100))


@pytest.mark.usefixtures("slowly")
async def test_what_waits_for_nobody_is_forgotten() -> None:
    made = Hub()
    one = filtered(made, eq("a"))
    made.publish("a", tagged("a", "a"))
    made.remove("a", one)
    assert made.sieves.bytes == 0
    two = filtered(made, eq("a"))
    made.publish("a", tagged("a", "a", first=3))
    made.lost("a")
    assert made.sieves.bytes == 0
    await asyncio.sleep(0)
    assert (one.sink.frames, two.sink.frames) == ([], [])


@pytest.mark.usefixtures("slowly")
async def test_another_filter_counts_from_its_change_on() -> None:
    made = Hub()
    one, same = filtered(made, eq("a")), filtered(made, eq("a"))
    made.publish("a", tagged("a", "b"))

    def change() -> None:
        one.form = Form(filter=made.shared_filter(filter_of(eq("b"))))

    made.change_filter("a", one, change)
    made.publish("a", tagged("a", "b", first=3))
    await until(lambda: not made.sieves.bytes)
    assert (one.sink.published("a"), same.sink.published("a")) == ([1, 4], [1, 3])
    assert made.subscriptions == 2
    made.remove("a", one)
    made.remove("a", same)
    assert not made.has("a")
    made.change_filter("a", one, change)


def test_different_filters_of_a_channel_are_bounded() -> None:
    made = Hub()
    nodes = [eq(str(number)) for number in range(99)]
    held = [
        filtered(made, {"op": "or", "nodes": [*nodes[:-1], eq(f"x{number}")]})
        for number in range(CHANNEL_NODES_MAX // 100)
    ]
    assert not made.has_room_for("a", made.shared_filter(filter_of(eq("a"))))
    assert made.has_room_for("a", held[0].form.filter), "it is there"
    assert made.has_room_for("a", None)
    assert made.has_room_for("b", made.shared_filter(filter_of(eq("a"))))
    made.remove("a", held[0])
    assert made.has_room_for("a", made.shared_filter(filter_of(eq("a"))))
    made.filters._bytes_max = 0
    assert not made.has_room_for("b", made.shared_filter(filter_of(eq("a"))))
    assert made.has_room_for("a", held[1].form.filter)


# ---- with batches


async def test_what_is_collected_is_filtered_when_it_goes_out() -> None:
    made = Hub(lambda _: Batching(1000, 3600.0, latest=False))
    first = filtered(made, eq("a"))
    made.publish("a", tagged("a", "b"))
    late = filtered(made, eq("a"))
    made.publish("a", tagged("a", "a", first=3))
    made.flush("a")
    assert (first.sink.published("a"), late.sink.published("a")) == ([1, 3, 4], [3, 4])


async def test_the_newest_is_the_newest_that_passes() -> None:
    made = Hub(lambda _: Batching(1000, 3600.0, latest=True))
    everything, one, other = plain(made), filtered(made, eq("a")), filtered(made, eq("b"))
    made.publish("a", tagged("a", "a", "b"))
    late, late_too = plain(made), filtered(made, eq("b"))
    made.flush("a")
    assert (everything.sink.published("a"), one.sink.published("a")) == ([3], [2])
    assert (other.sink.published("a"), late.sink.frames, late_too.sink.frames) == ([3], [], [])
    assert made.batches.superseded == 2
    made.publish("a", tagged("b", "a", first=4))
    made.remove("a", one)
    made.remove("a", other)
    made.remove("a", late_too)
    made.publish("a", tagged("a", first=6))
    made.flush("a")
    assert (everything.sink.published("a"), late.sink.published("a")) == ([3, 6], [6])


# ---- against a model

STEPS: Final = st.lists(
    st.tuples(st.just("publish"), st.lists(st.sampled_from(KINDS), min_size=1, max_size=4))
    | st.tuples(st.just("come"), st.sampled_from([*KINDS, "all"]))
    | st.tuples(st.just("go"), st.integers(0, 20))
    | st.tuples(st.just("turn"), st.none()),
    max_size=25,
)


@given(STEPS, st.integers(1, 30))
async def test_whoever_comes_and_goes_gets_what_the_model_says(
    steps: list[tuple[str, Any]], tests_a_turn: int
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "TESTS_A_TURN", tests_a_turn)
        patch.setattr(module, "_TESTS_A_STEP", tests_a_turn)
        made, top = Hub(), 0
        here: list[tuple[Subscriber, str]] = []
        wanted: dict[int, list[int]] = {}
        gone: list[Subscriber] = []
        for step, what in steps:
            if step == "publish":
                published = tagged(*what, first=top + 1)
                top += len(what)
                made.publish("a", published)
                for each, kind in here:
                    wanted[id(each)] += [
                        sent.offset
                        for sent in published
                        if kind == "all" or tags_of(sent).get("kind", "") == kind
                    ]
            elif step == "come":
                node = eq(what) if what else {"key": "kind", "cmp": "nex"}
                each = plain(made) if what == "all" else filtered(made, node)
                here.append((each, what))
                wanted[id(each)] = []
            elif step == "go" and here:
                each, _ = here.pop(what % len(here))
                made.remove("a", each)
                gone.append(each)
            else:
                await asyncio.sleep(0)
        await made.sieves.end()
        for each, _ in here:
            assert each.sink.published("a") == wanted[id(each)]
        for each in gone:
            got = each.sink.published("a")
            assert got == wanted[id(each)][: len(got)], "in order, up to when it left"
        assert made.sieves.bytes == 0
