"""service/roomcast/delivery/signals.py: what nodes tell each other,
and that a repeat is known for one.
"""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from roomcast.delivery.envelope import Signal, pack, parse, signal_text
from roomcast.delivery.signals import (
    CHANNELS_MAX,
    HEARD_MAX,
    HELLO_CHANNEL,
    TRIM_KIND,
    Heard,
    broadcast,
    broadcast_of,
    client_of,
    hello,
    join,
    leave,
    publication,
    trim,
    trimmed_to,
)
from roomcast.wire.encoding import stored_of
from roomcast.wire.names import is_valid_name
from roomcast.wire.publication import ClientInfo, Json, MalformedPublication, Publication

ANN = ClientInfo("ann", "c1", {"name": "Ann"}, ["x"])


def test_bodies_are_what_the_other_node_reads() -> None:
    published = Publication({"text": "hi"}, 0, ANN, {"a": "b"}, 5)
    told = publication("n", "1", "chat", stored_of(published))
    assert (told.kind, told.id, told.node, told.channel) == ("pub", "1", "n", "chat")
    assert Publication.from_stored(told.body, 0) == published
    for kind, made in (
        ("join", join("n", "2", "chat", ANN)),
        ("leave", leave("n", "2", "chat", ANN)),
    ):
        assert (made.kind, made.id, made.node, made.channel) == (kind, "2", "n", "chat")
        assert ClientInfo.from_wire(made.body) == ANN


def test_a_broadcast_has_its_publication_once() -> None:
    published, channels = Publication({"text": "hi"}, 0, None, {"a": "b"}, 5), ["chat", "news"]
    told = broadcast("n", "1", channels, stored_of(published))
    [[body, count]] = pack([signal_text(told)], signals=True)
    assert (count, body.count("hi")) == (1, 1)
    [read] = parse(body).signals
    assert read == told
    assert client_of(read) == "", "it is a back end's"
    names, stored = broadcast_of(read)
    assert (names, Publication.from_stored(stored, 0)) == (channels, published)


@pytest.mark.parametrize(
    "body",
    [
        None,
        "chat",
        {"pub": {"data": 1}},
        {"channels": "chat"},
        {"channels": [5]},
        {"channels": ["chat"] * (CHANNELS_MAX + 1)},
    ],
)
def test_a_broadcast_that_no_node_sent(body: Json) -> None:
    with pytest.raises(MalformedPublication):
        broadcast_of(Signal("broadcast", "1", "n", "", body))


def test_whose_doing_a_signal_is() -> None:
    for made in (
        publication("n", "1", "chat", stored_of(Publication({"client": "other"}, info=ANN))),
        join("n", "2", "chat", ANN),
        leave("n", "3", "chat", ANN),
    ):
        assert client_of(made) == "c1"
    assert client_of(publication("n", "4", "chat", stored_of(Publication({"client": "c1"})))) == ""


def test_a_greeting_is_in_a_channel_that_no_client_can_name() -> None:
    greeting = hello("n", "7")
    assert (greeting.kind, greeting.id, greeting.node) == ("hello", "7", "n")
    assert greeting.channel == HELLO_CHANNEL
    assert not is_valid_name(greeting.channel)


def test_what_is_hidden_is_told_with_an_offset() -> None:
    told = trim("n", "1", "chat", 7)
    assert (told.kind, told.channel, trimmed_to(told)) == (TRIM_KIND, "chat", 7)
    for body in (None, "7", True, [7], -1, 2**53):
        assert trimmed_to(Signal(TRIM_KIND, "1", "n", "chat", body)) == 0


def test_signals_survive_the_way_through_an_envelope() -> None:
    sent = [
        publication("n", "1", "c", stored_of(Publication("x"))),
        join("n", "2", "c", ANN),
        hello("n", "3"),
    ]
    ((body, count),) = pack([signal_text(signal) for signal in sent], signals=True)
    assert count == 3
    assert parse(body).signals == tuple(sent)
    assert json.loads(body)["v"] == 1


@given(
    st.integers(1, 5),
    st.lists(st.tuples(st.sampled_from("ab"), st.integers(0, 5).map(str)), max_size=60),
)
def test_a_repeat_is_known_while_it_is_among_the_newest(
    most: int, heard: list[tuple[str, str]]
) -> None:
    memory = Heard(most)
    newest: list[tuple[str, str]] = []
    for node, signal_id in heard:
        first = memory.first_time(Signal("join", signal_id, node, "c", None))
        assert first == ((node, signal_id) not in newest)
        if first:
            newest = [*newest, (node, signal_id)][-most:]
    assert len(memory._ids) <= most


def test_thousands_are_remembered_and_no_more() -> None:
    memory = Heard()
    for number in range(HEARD_MAX + 1):
        assert memory.first_time(hello("n", str(number)))
    assert not memory.first_time(hello("n", str(HEARD_MAX)))
    assert not memory.first_time(hello("n", "1"))
    assert memory.first_time(hello("n", "0"))
    assert len(memory._ids) == HEARD_MAX
