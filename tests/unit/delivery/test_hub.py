"""The hub: who gets what, in as few writes as possible."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from centrifuge.fossil import apply_delta
from hypothesis import given
from hypothesis import strategies as st

from roomcast.delivery import hub as module
from roomcast.delivery.forms import PLAIN, Form, Payload
from roomcast.delivery.hub import FRAME_BYTES_SOFT_MAX, SEARCHED_A_TURN, Hub
from roomcast.delivery.ports import Framer
from roomcast.wire.encoding import Sent, encode_told, publication_push, sent_of, told_push
from roomcast.wire.protobuf import encode_messages
from roomcast.wire.publication import ClientInfo, Publication
from tests.protobuf import as_it_is, parsed
from tests.unit.worlds import Socket

INFO = ClientInfo("ann", "1")


def sent(*lines: bytes) -> list[Sent]:
    return [Sent(offset, line, 0) for offset, line in enumerate(lines, 1)]


def pushed(*lines: bytes, channel: str = "a") -> bytes:
    return b"\n".join(publication_push(channel, line) for line in lines)


def bracketed(payload: bytes) -> bytes:
    """A frame that can be told from its payload."""
    return b"<" + payload + b">"


class Curly:
    """Frames of another encoding; it knows how many it has made."""

    def __init__(self) -> None:
        self.made = 0

    def __call__(self, payload: bytes) -> bytes:
        self.made += 1
        return b"{" + payload + b"}"


class Subscriber:
    def __init__(
        self, *, join_leave: bool = False, framer: Framer = bracketed, form: Form = PLAIN
    ) -> None:
        self.sink = Socket(framer)
        self.form = form
        self.join_leave = join_leave
        self.lost_channels: list[str] = []

    def lost(self, channel: str) -> None:
        self.lost_channels.append(channel)


def subscribed(
    made: Hub, channel: str, count: int, *, join_leave: bool = False, framer: Framer = bracketed
) -> list[Subscriber]:
    subscribers = [Subscriber(join_leave=join_leave, framer=framer) for _ in range(count)]
    for subscriber in subscribers:
        made.add(channel, subscriber)
    return subscribers


def test_all_subscribers_of_a_channel_get_the_same_frame_and_no_others() -> None:
    made = Hub()
    first, second = subscribed(made, "a", 2)
    [other] = subscribed(made, "b", 1)
    made.publish("a", sent(b"1", b"2"))
    assert first.sink.frames == [b"<" + pushed(b"1", b"2") + b">"]
    assert first.sink.frames[0] is second.sink.frames[0], "encoded once"
    assert other.sink.frames == []
    made.publish("nobody", sent(b"1"))


def test_each_encoding_is_framed_once_for_all_its_subscribers() -> None:
    made, curly = Hub(), Curly()
    plain = subscribed(made, "a", 2)
    others = subscribed(made, "a", 3, framer=curly)
    made.publish("a", sent(b"1", b"2"))
    both = pushed(b"1", b"2")
    assert [each.sink.frames for each in (*plain, *others)] == [[b"<" + both + b">"]] * 2 + [
        [b"{" + both + b"}"]
    ] * 3
    assert all(each.sink.frames[0] is others[0].sink.frames[0] for each in others)
    assert curly.made == 1


def test_an_encoding_that_nobody_reads_is_not_made() -> None:
    made, curly = Hub(), Curly()
    subscribed(made, "a", 2)
    [other] = subscribed(made, "b", 1, join_leave=True, framer=curly)
    made.publish("a", sent(b"1"))
    made.tell("a", [encode_told("join", INFO)])
    assert curly.made == 0
    made.remove("b", other)
    made.publish("b", sent(b"1"))
    [quiet] = subscribed(made, "b", 1, framer=curly)
    made.tell("b", [encode_told("join", INFO)])
    assert curly.made == 0, "nobody there wants to be told"
    assert quiet.sink.frames == []


def test_frames_of_every_encoding_keep_their_order_and_their_bound() -> None:
    made, curly = Hub(), Curly()
    subscribers = [*subscribed(made, "a", 1), *subscribed(made, "a", 1, framer=curly)]
    lines = [str(number).encode() * (FRAME_BYTES_SOFT_MAX // 2) for number in range(5)]
    made.publish("a", sent(*lines))
    wanted = pushed(*lines).split(b"\n")
    for subscriber in subscribers:
        assert b"\n".join(frame[1:-1] for frame in subscriber.sink.frames).split(b"\n") == wanted
        assert len(subscriber.sink.frames) == 5


def test_nothing_published_is_nothing_sent() -> None:
    made = Hub()
    [subscriber] = subscribed(made, "a", 1)
    made.publish("a", [])
    assert subscriber.sink.frames == []


def test_lines_are_joined_into_frames_of_a_bounded_size() -> None:
    made = Hub()
    [subscriber] = subscribed(made, "a", 1)
    lines = [str(number).encode() * (FRAME_BYTES_SOFT_MAX // 3) for number in range(7)]
    lines.insert(3, b"x" * 3 * FRAME_BYTES_SOFT_MAX)
    made.publish("a", sent(*lines))
    wanted = pushed(*lines).split(b"\n")
    frames = subscriber.sink.frames
    assert b"\n".join(frame[1:-1] for frame in frames).split(b"\n") == wanted
    assert all(len(frame) <= FRAME_BYTES_SOFT_MAX + 99 or b"\n" not in frame for frame in frames)
    assert len(frames) == 5


def test_joins_and_leaves_go_to_those_who_want_them() -> None:
    made = Hub()
    [quiet] = subscribed(made, "a", 1)
    [told] = subscribed(made, "a", 1, join_leave=True)
    made.tell("a", [encode_told("join", INFO)])
    made.tell("nobody", [encode_told("join", INFO)])
    assert (quiet.sink.frames, told.sink.frames) == (
        [],
        [b"<" + told_push("a", encode_told("join", INFO)) + b">"],
    )


def test_who_left_gets_nothing() -> None:
    made = Hub()
    first, second = subscribed(made, "a", 2)
    made.remove("a", first)
    made.remove("a", first)
    made.remove("nobody", first)
    made.remove("a", Subscriber(framer=Curly()))
    made.publish("a", sent(b"1"))
    assert (first.sink.frames, second.sink.frames) == ([], [b"<" + pushed(b"1") + b">"])
    assert made.has("a")
    made.remove("a", second)
    assert not made.has("a")
    assert len(made) == 0


async def test_a_lost_channel_is_told_to_all_and_empty() -> None:
    made = Hub()
    subscribers = [*subscribed(made, "a", 2), *subscribed(made, "a", 1, framer=Curly())]
    [other] = subscribed(made, "b", 1)
    made.lost("a")
    made.lost("a")
    assert [subscriber.lost_channels for subscriber in subscribers] == [["a"]] * 3
    assert not made.has("a")
    assert made.has("b")
    assert other.lost_channels == []


async def test_of_those_who_lose_a_channel_few_are_told_in_a_turn(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "LOST_A_TURN", 10)
    made = Hub()
    subscribers = [*subscribed(made, "a", 25), *subscribed(made, "b", 20)]
    made.lost("a")
    made.lost("b")
    made.publish("a", sent(b"1"))
    turns = list[int]()
    while sum(turns) < len(subscribers):
        told = sum(len(each.lost_channels) for each in subscribers)
        turns.append(told - sum(turns))
        await asyncio.sleep(0)
    assert turns == [10, 10, 10, 10, 5], "in the order in which they were lost"
    assert [each.lost_channels for each in subscribers] == [["a"]] * 25 + [["b"]] * 20
    assert not any(each.sink.frames for each in subscribers), "it is lost for all at once"


async def test_who_comes_while_others_lose_a_channel_is_not_told(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "LOST_A_TURN", 1)
    made = Hub()
    subscribers = subscribed(made, "a", 5)
    made.lost("a")
    [new] = subscribed(made, "a", 1)
    gone = subscribers.pop()
    made.remove("a", gone)
    assert made.subscriptions == 1
    for _ in range(10):
        await asyncio.sleep(0)
    assert [each.lost_channels for each in subscribers] == [["a"]] * 4
    assert new.lost_channels == []
    made.publish("a", sent(b"1"))
    assert new.sink.frames == [b"<" + pushed(b"1") + b">"]


async def test_subscriptions_are_counted_as_they_come_and_go() -> None:
    made = Hub()
    first, second, third = subscribed(made, "a", 3)
    [other] = subscribed(made, "b", 1)
    made.add("a", second)
    assert made.subscriptions == 4
    for subscriber in (first, first, other):
        made.remove("a", subscriber)
    assert made.subscriptions == 3
    made.lost("a")
    made.remove("a", third)
    assert made.subscriptions == 1
    made.remove("b", other)
    assert made.subscriptions == 0


async def test_who_subscribes_again_when_told_is_not_lost_again() -> None:
    made = Hub()

    class Returning(Subscriber):
        def lost(self, channel: str) -> None:
            super().lost(channel)
            made.add(channel, self)

    subscriber = Returning()
    made.add("a", subscriber)
    made.lost("a")
    assert subscriber.lost_channels == ["a"]
    made.publish("a", sent(b"1"))
    assert subscriber.sink.frames == [b"<" + pushed(b"1") + b">"]


def test_channels_and_their_subscribers_are_counted() -> None:
    made, curly = Hub(), Curly()
    plain = subscribed(made, "a", 2)
    others = subscribed(made, "a", 3, framer=curly)
    subscribed(made, "b", 1)
    assert (len(made), list(made.names())) == (2, ["a", "b"])
    assert [made.count(channel) for channel in ("a", "b", "c")] == [5, 1, 0]
    for each in (*plain, *others):
        made.remove("a", each)
    assert (list(made.names()), made.count("a")) == (["b"], 0)


# ---- shorter forms


def publications(*data: Any, delta: bool = True) -> list[Sent]:
    return [
        sent_of(Publication(each, offset, delta=delta), 0) for offset, each in enumerate(data, 1)
    ]


def test_a_number_stands_for_the_name_as_long_as_somebody_is_there() -> None:
    made = Hub()
    number = made.number("a")
    assert made.number("a") == number
    numbered = Subscriber(framer=as_it_is, form=Form(numbered=True), join_leave=True)
    made.add("a", numbered)
    [named] = subscribed(made, "a", 1, framer=as_it_is)
    assert made.number("a") == number
    assert made.number("b") not in (0, number)
    made.publish("a", publications(1))
    made.tell("a", [encode_told("leave", INFO)])
    assert numbered.sink.lines == [
        {"push": {"id": number, "pub": {"data": 1, "offset": 1}}},
        {"push": {"id": number, "leave": {"info": {"user": "ann", "client": "1"}}}},
    ]
    assert named.sink.lines == [{"push": {"channel": "a", "pub": {"data": 1, "offset": 1}}}]


class Follower(Subscriber):
    """One who gets differences in JSON, and puts them together as an SDK does."""

    def __init__(self) -> None:
        super().__init__(framer=as_it_is, form=Form(payload=Payload.TEXT, delta=True))

    def follow(self) -> tuple[list[Any], int]:
        """The data of what it got, and how many of them came as differences."""
        before, data, differences = b"", [], 0
        for push in self.sink.pushes:
            pub = push["pub"]
            assert isinstance(pub["data"], str)
            if pub.get("delta"):
                before, differences = (
                    bytes(apply_delta(before, pub["data"].encode())),
                    differences + 1,
                )
            else:
                before = pub["data"].encode()
            data.append(json.loads(before))
        return data, differences


SCORES = [
    {"score": [0, n], "title": "a match that goes on and on, and whose title does not change"}
    for n in range(9)
]


async def test_differences_begin_with_a_whole_publication_for_each() -> None:
    made, first = Hub(), Follower()
    [plain] = subscribed(made, "a", 1, framer=as_it_is)
    made.publish("a", publications(SCORES[0]))
    made.add("a", first)
    made.publish("a", publications(*SCORES[1:3]))
    second = Follower()
    made.add("a", second)
    made.publish("a", publications(*SCORES[3:6]))
    assert first.follow() == (SCORES[1:6], 4)
    assert second.follow() == (SCORES[3:6], 2)
    assert plain.sink.published("a") == SCORES[:6]


async def test_what_is_not_to_be_a_difference_is_whole_and_the_next_one_differs_from_it() -> None:
    made, follower = Hub(), Follower()
    made.add("a", follower)
    made.publish("a", publications(SCORES[0]))
    made.publish("a", publications(SCORES[1], delta=False))
    made.publish("a", publications(SCORES[2]))
    assert follower.follow() == (SCORES[:3], 1)
    assert "delta" not in follower.sink.pushes[1]["pub"]


async def test_a_difference_that_is_longer_is_not_sent() -> None:
    made, follower = Hub(), Follower()
    made.add("a", follower)
    made.publish("a", publications("a" * 50, 1))
    assert follower.follow() == (["a" * 50, 1], 0)


async def test_of_a_full_batch_few_are_searched_in_one_turn() -> None:
    """The others go out whole, and so does what follows them in the same turn."""
    made, follower, other = Hub(), Follower(), Follower()
    made.add("a", follower)
    made.add("b", other)
    halves = ["".join(chr(97 + n * n * prime % 23) for n in range(2000)) for prime in (5, 7)]
    texts = [f"{n:4} {halves[n % 2]}{halves[1 - n % 2]}." + "!" * (n % 2) for n in range(32)]
    made.publish("a", publications(*texts))
    data, differences = follower.follow()
    assert data == texts
    assert 0 < differences <= SEARCHED_A_TURN // 4000 + 1
    made.publish("b", publications(*SCORES[:2]))
    assert other.follow() == (SCORES[:2], 0)
    await asyncio.sleep(0)
    made.publish("b", publications(SCORES[2]))
    assert other.follow() == (SCORES[:3], 1)


async def test_who_comes_back_after_all_had_left_starts_whole() -> None:
    made, first, second = Hub(), Follower(), Follower()
    [plain] = subscribed(made, "a", 1, framer=as_it_is)
    made.add("a", first)
    made.publish("a", publications(SCORES[0]))
    made.remove("a", first)
    made.publish("a", publications(SCORES[1]))
    made.add("a", second)
    made.publish("a", publications(*SCORES[2:4]))
    assert second.follow() == (SCORES[2:4], 1)
    assert plain.sink.published("a") == SCORES[:4]


async def test_in_protobuf_and_as_text_go_the_bytes_that_the_publisher_sent() -> None:
    """Also where one publication after another is a difference: it is one of these bytes."""
    made = Hub()
    plain, text, binary, chain = (
        Subscriber(framer=framer, form=form)
        for framer, form in (
            (as_it_is, PLAIN),
            (as_it_is, Form(payload=Payload.TEXT, delta=True)),
            (encode_messages, Form(payload=Payload.BYTES)),
            (encode_messages, Form(payload=Payload.BYTES, delta=True)),
        )
    )
    for subscriber in (plain, text, binary, chain):
        made.add("a", subscriber)
    raws = [json.dumps(score, indent=1) + "\n" for score in SCORES[:3]]
    stored = [
        Publication(score, offset, text=raw, delta=True)
        for offset, (score, raw) in enumerate(zip(SCORES, raws, strict=False), 1)
    ]
    made.publish("a", [sent_of(each, 0) for each in stored])
    assert plain.sink.published("a") == SCORES[:3]
    assert all(
        each.keys() == {"data", "offset"} for each in (push["pub"] for push in plain.sink.pushes)
    )
    pushed = [message.push.pub for frame in binary.sink.frames for message in parsed(frame)]
    assert [pub.data.decode() for pub in pushed] == raws
    chains = [
        [
            (pub["data"].encode(), pub.get("delta", False))
            for pub in (push["pub"] for push in text.sink.pushes)
        ],
        [
            (each.push.pub.data, each.push.pub.delta)
            for frame in chain.sink.frames
            for each in parsed(frame)
        ],
    ]
    for parts in chains:
        before = b""
        for (part, is_difference), raw in zip(parts, raws, strict=True):
            before = bytes(apply_delta(before, part)) if is_difference else part
            assert before.decode() == raw
        assert [is_difference for _, is_difference in parts] == [False, True, True]


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["publish", "publish", "come", "go"]),
            st.one_of(st.text(max_size=60), st.sampled_from(SCORES), st.none()),
            st.booleans(),
        ),
        max_size=25,
    )
)
async def test_differences_always_give_what_was_published(
    steps: list[tuple[str, Any, bool]],
) -> None:
    made = Hub()
    here: list[tuple[Follower, list[Any]]] = []
    gone: list[tuple[Follower, list[Any]]] = []
    for step, data, delta in steps:
        if step == "publish":
            made.publish("a", publications(data, delta=delta))
            for _, wanted in here:
                wanted.append(data)
        elif step == "come":
            here.append((Follower(), []))
            made.add("a", here[-1][0])
        elif here:
            gone.append(here.pop(0))
            made.remove("a", gone[-1][0])
    for follower, wanted in here + gone:
        assert follower.follow()[0] == wanted
