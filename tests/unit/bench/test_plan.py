"""service/roomcast/bench/plan.py: who is where, and what is too much."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from roomcast.bench.plan import (
    CEILINGS,
    DEFAULTS,
    DELIVERIES_RATE_MAX,
    LIMITS,
    SIZE_MIN,
    Plan,
    payload,
)

URLS = ("ws://a:1/x", "ws://b:1/x", "ws://c:1/x")


def plan(**changes: Any) -> Plan:
    clients = changes.get("clients", 12)
    return Plan(
        **{"urls": URLS[:2], "run": "r", "clients": clients, "publishers": clients} | changes
    )


@given(st.integers(1, 7), st.integers(1, 3), st.integers(1, 5))
def test_subscribers_of_a_channel_are_spread_over_all_urls(
    channels: int, urls: int, times: int
) -> None:
    made = plan(clients=channels * urls * times, channels=channels, urls=URLS[:urls])
    at = Counter(
        (channel, made.url_of(client))
        for client in range(made.clients)
        for channel in made.channels_of(client)
    )
    assert at == {(channel, url): times for channel in range(channels) for url in range(urls)}


@given(st.integers(1, 9), st.integers(1, 9), st.integers(1, 9), st.data())
def test_publishers_take_turns_in_their_own_channels(
    clients: int, channels: int, publishers: int, data: st.DataObject
) -> None:
    publishers = min(publishers, clients)
    subscriptions = data.draw(st.integers(1, channels))
    made = plan(
        clients=clients, channels=channels, publishers=publishers, subscriptions=subscriptions
    )
    turns = Counter[tuple[int, int]]()
    for publication in range(publishers * subscriptions * 2):
        publisher = made.publisher_of(publication)
        channel = made.channel_of(publication, publisher)
        assert channel in made.channels_of(publisher)
        turns[publisher, channel] += 1
    assert turns == {
        (publisher, channel): 2
        for publisher in range(publishers)
        for channel in made.channels_of(publisher)
    }


def test_through_apis() -> None:
    made = plan(channels=3, apis=("http://b:1", "http://d:1"))
    publishers = [made.publisher_of(publication) for publication in range(4)]
    assert publishers == [-1, -2, -1, -2]
    assert [made.channel_of(each, -1) for each in range(4)] == [0, 1, 2, 0]
    # The first API is where clients of the second URL are.
    assert made.address_of(-1) == made.address_of(next(n for n in range(9) if made.url_of(n) == 1))
    assert made.address_of(-2) not in {made.address_of(client) for client in range(12)}


def test_paths() -> None:
    assert plan().has_paths
    assert not plan(urls=URLS[:1]).has_paths
    assert not plan(urls=("ws://a:1/x",), apis=("http://a:1",)).has_paths
    assert plan(urls=URLS[:1], apis=("http://b:1",)).has_paths


def test_one_client_for_each_url_comes_first() -> None:
    assert plan(channels=1, urls=URLS).first_clients() == [0, 1, 2]
    assert plan(channels=4, urls=URLS).first_clients() == [0, 1, 2]
    assert plan(clients=1, urls=URLS).first_clients() == [0]


def test_names_and_times() -> None:
    assert plan().channel_name(3) == "bench-r-3"
    assert plan(namespace="room").channel_name(3) == "room:bench-r-3"
    assert plan(rate=4).due_s(6) == 1.5
    assert plan(rate=4, duration=3).publications == 12


@given(st.integers(SIZE_MIN, 2000), st.integers(0, 10**9))
def test_a_publication_has_its_size(size: int, number: int) -> None:
    text = payload(plan(size=size), number)
    assert len(text.encode()) == size
    assert json.loads(text)["n"] == number
    assert json.loads(text)["bench"] == "r"


def test_the_default_is_within_the_limits() -> None:
    made = Plan(URLS, "r")
    assert list(made.excesses(lifted=False)) == []
    assert all(DEFAULTS[name] <= LIMITS[name] <= CEILINGS[name] for name in DEFAULTS)
    assert DEFAULTS.keys() == LIMITS.keys() == CEILINGS.keys()


@pytest.mark.parametrize("name", sorted(LIMITS))
def test_limits_and_ceilings(name: str) -> None:
    few = {"clients": 1, "publishers": 1, "channels": 1000, "rate": 1, "duration": 1}

    def excesses(value: int, *, lifted: bool) -> list[str]:
        return list(plan(**few | {name: value, "publishers": 1}).excesses(lifted=lifted))

    assert excesses(LIMITS[name], lifted=False) == []
    told = excesses(LIMITS[name] + 1, lifted=False)
    assert told == [f"--{name} {LIMITS[name] + 1} is more than {LIMITS[name]}"]
    assert excesses(CEILINGS[name], lifted=True) == []
    assert len(excesses(CEILINGS[name] + 1, lifted=True)) == 1


def test_too_many_deliveries() -> None:
    made = plan(clients=1000, channels=10, rate=51)
    assert made.deliveries_rate == 5100 > DELIVERIES_RATE_MAX
    (told,) = made.excesses(lifted=False)
    assert told == (
        "51 publications a second to 100 subscribers each are 5100 deliveries a second, which is "
        "more than 5000"
    )
    assert list(made.excesses(lifted=True)) == []
    endless = plan(clients=1000, channels=1, rate=1000, duration=86_400)
    assert [each[:23] for each in endless.excesses(lifted=True)] == ["the deliveries are more"]
