"""The hub: who gets what, in as few writes as possible."""

from __future__ import annotations

from service.delivery.hub import FRAME_BYTES_SOFT_MAX, Hub
from service.ports import Framer
from tests.unit.worlds import Socket


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
    def __init__(self, *, join_leave: bool = False, framer: Framer = bracketed) -> None:
        self.sink = Socket(framer)
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
    made.publish("a", [b"1", b"2"])
    assert first.sink.frames == [b"<1\n2>"]
    assert first.sink.frames[0] is second.sink.frames[0], "encoded once"
    assert other.sink.frames == []
    made.publish("nobody", [b"1"])


def test_each_encoding_is_framed_once_for_all_its_subscribers() -> None:
    made, curly = Hub(), Curly()
    plain = subscribed(made, "a", 2)
    others = subscribed(made, "a", 3, framer=curly)
    made.publish("a", [b"1", b"2"])
    assert [each.sink.frames for each in (*plain, *others)] == [[b"<1\n2>"]] * 2 + [[b"{1\n2}"]] * 3
    assert all(each.sink.frames[0] is others[0].sink.frames[0] for each in others)
    assert curly.made == 1


def test_an_encoding_that_nobody_reads_is_not_made() -> None:
    made, curly = Hub(), Curly()
    subscribed(made, "a", 2)
    [other] = subscribed(made, "b", 1, join_leave=True, framer=curly)
    made.publish("a", [b"1"])
    made.tell("a", b"join")
    assert curly.made == 0
    made.remove("b", other)
    made.publish("b", [b"1"])
    [quiet] = subscribed(made, "b", 1, framer=curly)
    made.tell("b", b"join")
    assert curly.made == 0, "nobody there wants to be told"
    assert quiet.sink.frames == []


def test_frames_of_every_encoding_keep_their_order_and_their_bound() -> None:
    made, curly = Hub(), Curly()
    subscribers = [*subscribed(made, "a", 1), *subscribed(made, "a", 1, framer=curly)]
    lines = [str(number).encode() * (FRAME_BYTES_SOFT_MAX // 2) for number in range(5)]
    made.publish("a", lines)
    for subscriber in subscribers:
        assert b"\n".join(frame[1:-1] for frame in subscriber.sink.frames).split(b"\n") == lines
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
    made.publish("a", lines)
    frames = subscriber.sink.frames
    assert b"\n".join(frame[1:-1] for frame in frames).split(b"\n") == lines
    assert all(len(frame) <= FRAME_BYTES_SOFT_MAX + 9 or b"\n" not in frame for frame in frames)
    assert len(frames) == 5


def test_joins_and_leaves_go_to_those_who_want_them() -> None:
    made = Hub()
    [quiet] = subscribed(made, "a", 1)
    [told] = subscribed(made, "a", 1, join_leave=True)
    made.tell("a", b"join")
    made.tell("nobody", b"join")
    assert (quiet.sink.frames, told.sink.frames) == ([], [b"<join>"])


def test_who_left_gets_nothing() -> None:
    made = Hub()
    first, second = subscribed(made, "a", 2)
    made.remove("a", first)
    made.remove("a", first)
    made.remove("nobody", first)
    made.remove("a", Subscriber(framer=Curly()))
    made.publish("a", [b"1"])
    assert (first.sink.frames, second.sink.frames) == ([], [b"<1>"])
    assert made.has("a")
    made.remove("a", second)
    assert not made.has("a")
    assert len(made) == 0


def test_a_lost_channel_is_told_to_all_and_empty() -> None:
    made = Hub()
    subscribers = [*subscribed(made, "a", 2), *subscribed(made, "a", 1, framer=Curly())]
    [other] = subscribed(made, "b", 1)
    made.lost("a")
    made.lost("a")
    assert [subscriber.lost_channels for subscriber in subscribers] == [["a"]] * 3
    assert not made.has("a")
    assert made.has("b")
    assert other.lost_channels == []


def test_who_subscribes_again_when_told_is_not_lost_again() -> None:
    made = Hub()

    class Returning(Subscriber):
        def lost(self, channel: str) -> None:
            super().lost(channel)
            made.add(channel, self)

    subscriber = Returning()
    made.add("a", subscriber)
    made.lost("a")
    assert subscriber.lost_channels == ["a"]
    made.publish("a", [b"1"])
    assert subscriber.sink.frames == [b"<1>"]


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
