"""What the queue brings: records to their channels, signals to the hub, each once."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

import pytest

from roomcast.delivery import signals
from roomcast.delivery.canary_rules import canary_item
from roomcast.delivery.envelope import Signal, checked_pubs, pack, record_text
from roomcast.delivery.forms import PLAIN
from roomcast.delivery.hub import Hub
from roomcast.delivery.intake import Intake
from roomcast.delivery.signals import HEARD_MAX
from roomcast.delivery.way import Way
from roomcast.log.item import LogItem
from roomcast.testing.memory import ManualClock
from roomcast.wire.encoding import stored_of
from roomcast.wire.publication import ClientInfo, Publication, Record
from tests.contract.items import log_item
from tests.unit.worlds import Socket, envelope, info

CHANNEL: Final = "plain:room"
# Its options have no join_leave.
QUIET: Final = "quiet:room"


class Subscriber:
    join_leave = True
    form = PLAIN

    def __init__(self) -> None:
        self.sink = Socket()

    def lost(self, channel: str) -> None:
        raise AssertionError("nothing is lost here")


class Channel:
    """An open channel. Keeps what each call offers it."""

    def __init__(self, top: int = 0) -> None:
        self.top = top
        self.calls: list[list[Record]] = []

    def has(self, epoch: str, last: int) -> bool:
        return last <= self.top

    def offer(self, records: Iterable[Record]) -> None:
        self.calls.append(list(records))


class Ears:
    """Keeps what it hears."""

    def __init__(self) -> None:
        self.greetings: list[str] = []
        self.canaries: list[tuple[int, int]] = []
        # Messages that came from the table.
        self.times = 0

    def greeted(self, greeting: str) -> None:
        self.greetings.append(greeting)

    def came(self) -> None:
        self.times += 1

    def hear(self, record: Record, lambda_at: int) -> None:
        self.canaries.append((record.offset, lambda_at))


class Shards:
    """Keeps what came through which topic shard."""

    def __init__(self) -> None:
        self.greetings: list[str] = []
        self.heard: list[tuple[int | None, int, int]] = []

    def greeted(self, greeting: str) -> None:
        self.greetings.append(greeting)

    def came(self, shard: int | None, shards: int, canary: int) -> None:
        self.heard.append((shard, shards, canary))


class World:
    def __init__(self) -> None:
        self.shards = Shards()
        self.room, self.other, self.ahead = Channel(), Channel(), Channel(top=3)
        self.ears = Ears()
        self.hub = Hub()
        self.clock = ManualClock()
        self.way = Way(self.clock)
        self.heard: list[tuple[str, int]] = []
        self.intake = Intake(
            "a",
            {"room": self.room, "other": self.other, "ahead": self.ahead},
            self.hub,
            self.ears,
            self.shards,
            lambda channel: channel != QUIET,
            {"order": self._heard, "commands": self._heard},
            is_here=lambda client: client == "mine",
            way=self.way,
        )
        self.subscriber = Subscriber()
        self.hub.add(CHANNEL, self.subscriber)
        self.socket = self.subscriber.sink

    def _heard(self, signal: Signal) -> None:
        # What was sent before goes out before.
        self.heard.append((signal.id, len(self.socket.frames)))

    def take(self, *sent: Signal) -> None:
        self.intake.take([envelope(signals=[signal]) for signal in sent])


def pub(number: int, node: str = "b") -> Signal:
    return signals.publication(node, f"id{number}", CHANNEL, stored_of(Publication(data=number)))


@pytest.fixture
def world() -> World:
    return World()


def test_the_records_of_one_channel_in_one_receive_are_offered_together(world: World) -> None:
    first, second = log_item(1), log_item(2, 3, channel="other")
    world.intake.take([envelope([first]), envelope([second]), envelope([first])])
    [records] = world.room.calls
    assert [(record.channel, record.offset, record.last) for record in records] == [
        ("room", 1, 1),
        ("room", 1, 1),
    ]
    [[record]] = world.other.calls
    assert (record.channel, record.offset, record.last) == ("other", 2, 3)


def test_what_nobody_here_needs_is_not_read_but_shows_that_the_queue_works(world: World) -> None:
    elsewhere = log_item(1, channel="elsewhere")
    had = log_item(2, 3, channel="ahead")
    new = log_item(3, 4, channel="ahead")
    # Their publications are broken. Nobody looks.
    for item in (elsewhere, had):
        body = envelope([item]).replace('"pubs":[', '"pubs":["broken",')
        assert '"broken"' in body
        world.intake.take([body])
        world.ears.times -= 1
    assert (world.ahead.calls, world.ears.times) == ([], 0)
    world.intake.take([envelope([elsewhere, new, had])])
    [[record]] = world.ahead.calls
    assert (record.offset, record.last) == (3, 4)
    assert len(record.publications or ()) == 2


def test_publications_without_history_are_pushed_once_and_without_an_offset(world: World) -> None:
    world.take(pub(1), pub(2), pub(1))
    world.take(pub(2), pub(3))
    assert world.socket.published(CHANNEL) == [1, 2, 3]
    assert all("offset" not in push["pub"] for push in world.socket.pushes)


def broadcast(number: int, *channels: str, node: str = "b") -> Signal:
    stored = stored_of(Publication(data=number))
    return signals.broadcast(node, f"id{number}", list(channels), stored)


def test_a_broadcast_goes_to_its_channels_once_and_in_its_place(world: World) -> None:
    world.hub.add("more", world.subscriber)
    world.take(pub(1), broadcast(2, CHANNEL, "nobody here", "more"), pub(3))
    world.take(broadcast(2, CHANNEL, "more"))
    assert world.socket.published(CHANNEL) == [1, 2, 3]
    assert world.socket.published("more") == [2]
    world.intake.deliver_own(broadcast(4, "more", node="a"))
    world.take(broadcast(4, "more", node="a"))
    assert world.socket.published("more") == [2, 4]


def test_a_broadcast_that_cannot_be_read_costs_no_other(world: World) -> None:
    bodies: list[Any] = [
        None,
        {"channels": CHANNEL},
        {"channels": [CHANNEL]},
        {"channels": [CHANNEL], "pub": 5},
    ]
    broken = [
        Signal("broadcast", f"broken{number}", "b", "", body) for number, body in enumerate(bodies)
    ]
    world.take(pub(1), *broken, pub(2))
    assert world.socket.published(CHANNEL) == [1, 2]


def test_a_broadcast_that_nobody_here_follows_is_not_read_any_further(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    world.take(Signal("broadcast", "id", "b", "", {"channels": ["elsewhere"], "pub": "broken"}))
    assert "signal_malformed" not in caplog.text


def test_what_one_receive_brings_is_one_write(world: World) -> None:
    world.take(*[pub(number) for number in range(10)])
    assert len(world.socket.frames) == 1


async def test_comings_and_goings_of_one_receive_are_one_write(world: World) -> None:
    """One client can cause hundreds a second, each to all subscribers of a channel."""
    ids = [f"c{number}" for number in range(10)]
    world.take(
        *(signals.join("b", f"j{each}", CHANNEL, info(each)) for each in ids),
        *(signals.leave("b", f"l{each}", CHANNEL, info(each)) for each in ids),
    )
    assert len(world.socket.frames) == 1
    assert world.socket.told(CHANNEL, "join") == world.socket.told(CHANNEL, "leave") == ids


async def test_a_coming_that_cannot_be_encoded_costs_no_other(world: World) -> None:
    deep: Any = []
    for _ in range(300):
        deep = [deep]
    unencodable = ClientInfo("u", "deep", deep).wire()
    world.intake._deliver_signals(
        [
            signals.join("b", "id1", CHANNEL, info("c1")),
            Signal("join", "id2", "b", CHANNEL, unencodable),
            signals.join("b", "id3", CHANNEL, info("c3")),
        ]
    )
    assert world.socket.told(CHANNEL, "join") == ["c1", "c3"]


def test_the_own_copy_of_a_signal_is_dropped(world: World) -> None:
    world.intake.deliver_own(pub(1, "a"))
    world.take(pub(1, "a"))
    assert world.socket.published(CHANNEL) == [1]


async def test_a_publication_and_the_leave_after_it_stay_in_order(world: World) -> None:
    world.take(
        signals.join("b", "id1", CHANNEL, info("c1")),
        pub(2),
        signals.leave("b", "id3", CHANNEL, info("c1")),
        pub(4),
    )
    kinds = [next(kind for kind in push if kind != "channel") for push in world.socket.pushes]
    assert kinds == ["join", "pub", "leave", "pub"]
    assert world.socket.told(CHANNEL, "join") == world.socket.told(CHANNEL, "leave") == ["c1"]


async def test_comings_and_goings_are_told_only_where_the_channel_has_them(world: World) -> None:
    """Whoever cleans up after a dead node does not know the options,
    and says of everybody that they left.
    """
    world.hub.add(QUIET, world.subscriber)
    world.take(
        signals.leave("gone", "id1", QUIET, info("c1")),
        signals.join("b", "id2", QUIET, info("c2")),
        signals.leave("gone", "id3", CHANNEL, info("c1")),
    )
    assert [push["channel"] for push in world.socket.pushes] == [CHANNEL]


async def test_who_is_here_has_not_left_another_node(world: World) -> None:
    """Somebody took this node for dead, and says under its former lease that its clients left."""
    world.intake.deliver_own(signals.leave("a", "id1", CHANNEL, info("mine")))
    assert world.socket.told(CHANNEL, "leave") == ["mine"], "what the node itself says holds"
    world.take(
        signals.leave("lease-1", "id2", CHANNEL, info("mine")),
        signals.leave("lease-1", "id3", CHANNEL, info("theirs")),
        Signal("leave", "id4", "lease-1", CHANNEL, ["mine"]),
        signals.join("b", "id5", CHANNEL, info("mine")),
    )
    assert world.socket.told(CHANNEL, "leave") == ["mine", "theirs"]
    assert world.socket.told(CHANNEL, "join") == ["mine"]


def test_only_the_own_greeting_is_heard(world: World) -> None:
    world.take(signals.hello("b", "theirs"), signals.hello("a", "ours"))
    assert world.ears.greetings == ["ours"]
    assert world.socket.frames == []


@pytest.mark.parametrize(
    "body",
    [
        "",
        "{",
        "null",
        "[]",
        '{"v":"1"}',
        '{"v":1,"records":[1],"signals":[1,{"kind":1}]}',
        '{"v":1,"records":7}',
        '{"v":1,"signals":[{"kind":"pub","id":"i","node":"b","channel":"plain:room","body":7}]}',
        '{"v":1,"signals":[{"kind":"join","id":"j","node":"b","channel":"plain:room","body":[]}]}',
        '{"v":1,"signals":[{"kind":"unknown","id":"k","node":"b","channel":"plain:room","body":{}}]}',
    ],
)
def test_a_broken_message_takes_nothing_with_it(world: World, body: str) -> None:
    world.intake.take([body, envelope(signals=[pub(1)]), envelope([log_item(1)])])
    assert world.socket.published(CHANNEL) == [1]
    assert len(world.room.calls[0]) == 1


def test_a_version_that_is_not_known_is_read_from_the_log(world: World) -> None:
    body = envelope([log_item(4, 5)]).replace('"v":1', '"v":2')
    world.intake.take([body])
    [[record]] = world.room.calls
    assert (record.offset, record.last, record.publications) == (4, 5, None)


def test_a_signal_of_a_channel_without_subscribers_is_dropped(world: World) -> None:
    world.hub.remove(CHANNEL, world.subscriber)
    world.take(pub(1))
    world.hub.add(CHANNEL, world.subscriber)
    world.take(pub(1))
    assert world.socket.frames == [], "a repeat is one, also of what nobody wanted"


# ---- what is for the node


def test_what_is_for_the_node_is_handed_on_once_and_in_its_place(world: World) -> None:
    order = Signal("order", "7", "b", "", {})
    world.take(pub(1), order, pub(2), order)
    assert world.heard == [("7", 1)]
    assert world.socket.published(CHANNEL) == [1, 2]
    world.intake.deliver_own(Signal("order", "8", "a", "", {}))
    world.take(Signal("order", "8", "a", "", {}))
    assert [number for number, _ in world.heard] == ["7", "8"], "its own copy is dropped"


def test_busy_channels_do_not_make_it_forgotten(world: World) -> None:
    order = Signal("order", "7", "b", "", {})
    world.take(order)
    world.take(*(pub(number) for number in range(HEARD_MAX + 1)))
    world.take(order)
    assert len(world.heard) == 1


def test_clients_with_many_commands_do_not_make_it_forgotten(world: World) -> None:
    order = Signal("order", "7", "b", "", {})
    world.take(order)
    world.take(*(Signal("commands", f"c{n}", "b", "", {}) for n in range(HEARD_MAX + 1)))
    world.take(order)
    assert [number for number, _ in world.heard].count("7") == 1


def through(shard: int | None, *items: LogItem) -> str:
    """An envelope of a Lambda that goes by four topic shards."""
    texts = [record_text(item, checked_pubs(item)) for item in items]
    [(body, _)] = pack(texts, at=7, shards=4, shard=shard)
    return body


def test_what_comes_through_a_topic_shard_says_nothing_of_the_base_topic(world: World) -> None:
    """A canary too: otherwise a node whose subscription to the base topic is gone would be well."""
    canary = canary_item(5, node="b", batch="x", now=1, generation="0")
    world.intake.take([through(2, canary, log_item(1)), through(3, log_item(1, channel="?"))])
    assert (world.ears.times, world.ears.canaries) == (0, [])
    assert world.shards.heard == [(2, 4, 5), (3, 4, 0)]
    assert len(world.room.calls) == 1
    world.intake.take([through(None, canary)])
    assert (world.ears.times, world.ears.canaries) == (1, [(5, 7)])
    assert world.shards.heard[2:] == [(None, 4, 5)]
    world.intake.take([through(None, log_item(1))])
    assert (world.ears.times, len(world.shards.heard)) == (2, 3), "canaries say enough"


def test_signals_say_nothing_of_the_lambda(world: World) -> None:
    world.take(pub(1), signals.hello("a", "mine"))
    assert world.shards.heard == []
    assert world.shards.greetings == world.ears.greetings == ["mine"]
