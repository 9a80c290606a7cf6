"""The hub: who gets what, in as few writes as possible."""

from __future__ import annotations

from service.delivery.hub import FRAME_BYTES_SOFT_MAX, Hub
from tests.unit.worlds import Socket


class Subscriber:
    def __init__(self, *, join_leave: bool = False) -> None:
        self.sink = Socket()
        self.join_leave = join_leave
        self.lost_channels: list[str] = []

    def lost(self, channel: str) -> None:
        self.lost_channels.append(channel)


def hub() -> Hub:
    """Frames that can be told from payloads."""
    return Hub(lambda payload: b"<" + payload + b">")


def subscribed(made: Hub, channel: str, count: int, *, join_leave: bool = False) -> list[Subscriber]:
    subscribers = [Subscriber(join_leave=join_leave) for _ in range(count)]
    for subscriber in subscribers:
        made.add(channel, subscriber)
    return subscribers


def test_all_subscribers_of_a_channel_get_the_same_frame_and_no_others() -> None:
    made = hub()
    first, second = subscribed(made, "a", 2)
    [other] = subscribed(made, "b", 1)
    made.publish("a", [b"1", b"2"])
    assert first.sink.frames == [b"<1\n2>"]
    assert first.sink.frames[0] is second.sink.frames[0], "encoded once"
    assert other.sink.frames == []
    made.publish("nobody", [b"1"])


def test_nothing_published_is_nothing_sent() -> None:
    made = hub()
    [subscriber] = subscribed(made, "a", 1)
    made.publish("a", [])
    assert subscriber.sink.frames == []


def test_lines_are_joined_into_frames_of_a_bounded_size() -> None:
    made = hub()
    [subscriber] = subscribed(made, "a", 1)
    lines = [str(number).encode() * (FRAME_BYTES_SOFT_MAX // 3) for number in range(7)]
    lines.insert(3, b"x" * 3 * FRAME_BYTES_SOFT_MAX)
    made.publish("a", lines)
    frames = subscriber.sink.frames
    assert b"\n".join(frame[1:-1] for frame in frames).split(b"\n") == lines
    assert all(len(frame) <= FRAME_BYTES_SOFT_MAX + 9 or b"\n" not in frame for frame in frames)
    assert len(frames) == 5


def test_joins_and_leaves_go_to_those_who_want_them() -> None:
    made = hub()
    [quiet] = subscribed(made, "a", 1)
    [told] = subscribed(made, "a", 1, join_leave=True)
    made.tell("a", b"join")
    made.tell("nobody", b"join")
    assert (quiet.sink.frames, told.sink.frames) == ([], [b"<join>"])


def test_who_left_gets_nothing() -> None:
    made = hub()
    first, second = subscribed(made, "a", 2)
    made.remove("a", first)
    made.remove("a", first)
    made.remove("nobody", first)
    made.publish("a", [b"1"])
    assert (first.sink.frames, second.sink.frames) == ([], [b"<1>"])
    assert made.has("a")
    made.remove("a", second)
    assert not made.has("a")
    assert len(made) == 0


def test_a_lost_channel_is_told_to_all_and_empty() -> None:
    made = hub()
    subscribers = subscribed(made, "a", 3)
    [other] = subscribed(made, "b", 1)
    made.lost("a")
    made.lost("a")
    assert [subscriber.lost_channels for subscriber in subscribers] == [["a"]] * 3
    assert not made.has("a")
    assert made.has("b")
    assert other.lost_channels == []


def test_who_subscribes_again_when_told_is_not_lost_again() -> None:
    made = hub()

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
