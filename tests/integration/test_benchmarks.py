"""The benchmarks do what they say; not what they measure, which a loaded machine cannot tell."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable
from contextlib import AbstractContextManager, closing
from math import isfinite
from pathlib import Path

import pytest

from benchmarks import (
    arrivals,
    batching,
    comings,
    connections,
    end_to_end,
    express,
    fanout,
    floods,
    hot_channel,
    hot_room,
    http_api,
    inbound,
    json_floods,
    lifecycle,
    mixed,
    new_channels,
    presence,
    processes,
    publish_cpu,
    slow_consumer,
    transports,
)
from benchmarks.contest import Contestant, c_loop, serve
from benchmarks.figures import Skipped
from benchmarks.hot_channel import ALONE, FOUR, PAIR, THREE, Layout, Run
from benchmarks.node import WAYS
from benchmarks.peer_fanout import PEERS
from benchmarks.rig import Process, percentile, rig
from roomcast.testing.memory import ManualClock

pytestmark = [
    pytest.mark.fleet,
    pytest.mark.skipif(sys.platform != "linux", reason="epoll and SO_TIMESTAMPNS"),
]

CLIENTS = 20


def test_connections_and_what_they_say_are_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arrivals, "_CLIENTS", CLIENTS)
    monkeypatch.setattr(inbound, "_CROWD", CLIENTS)
    monkeypatch.setattr(inbound, "_COMMANDS", 200)
    monkeypatch.setattr(inbound, "_SHORT_ROUNDS", 1)
    monkeypatch.setattr(inbound, "_SHAPES", (("one", 1, 1), ("many", CLIENTS, 2)))
    figures = [
        # Fewer would not take a page more.
        connections.memory(500, rounds=1),
        connections.pings(CLIENTS, 1.0, crowd=500),
        arrivals.coming(rounds=1),
        arrivals.storm(CLIENTS),
        *inbound.measure(short=True),
    ]
    assert all(figure.floor > 0 for figure in figures)
    assert all(figure.value > 0 for figure in figures[1:])


def test_every_way_reaches_every_client() -> None:
    with rig(queue_bytes_max=1024 * 1024, clients=CLIENTS) as (node, crowd):
        for way in WAYS:
            assert fanout.measured(node, crowd, way) > 0


def test_every_transport_delivers_to_every_client() -> None:
    cost = transports.deliveries(rounds=1, clients=CLIENTS)
    assert {*transports.FLOORS, *transports.FLOORS.values()} == set(cost)
    assert all(us > 0 for [us] in cost.values())


def test_commands_are_measured_over_every_way() -> None:
    times = transports.commands(rounds=1)
    assert set(times) == {"websocket", "own", "other", "bare"}
    assert all(len(found) == transports.COMMANDS and min(found) > 0 for found in times.values())


def test_what_is_collected_and_compressed_is_less(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batching, "CLIENTS", CLIENTS)
    monkeypatch.setattr(batching, "ROUNDS_SHORT", 1)
    figures = batching.measure(short=True)
    assert all(figure.value > 0 and figure.floor > 0 for figure in figures)
    sizes = {each.name.partition(", ")[2]: each.ratio for each in figures if each.unit == "B"}
    assert sizes["of ten the newest: bytes"] == pytest.approx(0.1, abs=0.01)
    assert sizes["compressed once for all: bytes"] < 0.9
    assert sizes["compressed, batches of ten: bytes"] < 0.4


def test_a_client_that_does_not_read_is_cut_off_in_the_middle_of_its_round() -> None:
    with rig(queue_bytes_max=1024 * 1024, clients=CLIENTS) as (node, crowd):
        for _ in range(2):
            assert len(slow_consumer.stalled(node, crowd)) == slow_consumer.PUBLICATIONS
            assert len(slow_consumer.spreads(node, crowd)) == slow_consumer.PUBLICATIONS


def test_those_who_come_and_go_leave_a_neighbour_its_answers() -> None:
    started: list[Process] = []
    try:
        started.append(node := Process("benchmarks.node", 1024 * 1024, 0, "seen"))
        port = node.answer()["port"]
        started.append(clients := Process("benchmarks.comings", "clients", port))
        clients.ask("come", clients=CLIENTS)
        with closing(floods.Neighbour(port)) as neighbour:
            assert comings.measured(clients, neighbour, looping=3, seconds=0.5)
    finally:
        for process in started:
            process.end()


def test_who_publishes_to_new_channels_leaves_a_neighbour_its_answers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(new_channels, "ROUND_S", 0.5)
    monkeypatch.setattr(new_channels, "_WARM_S", 0.5)
    monkeypatch.setattr(new_channels, "FLOODING", 3)
    figures = new_channels.figures(0.001, rounds=1)
    assert len(figures) == len(new_channels.ASKS)
    assert all(figure.value > 0 < figure.floor for figure in figures)


def test_a_node_comes_and_goes(tmp_path: Path) -> None:
    with lifecycle.deployment(tmp_path) as config:
        for clients in (0, CLIENTS):
            start_s, end_s = lifecycle.measured(config, clients)
            assert start_s > 0
            assert end_s > 0


@pytest.mark.parametrize("kind", publish_cpu.KINDS)
def test_publications_are_measured_in_both_ways(kind: str) -> None:
    costs = publish_cpu.measured(kind, list(publish_cpu.WAYS), rounds=1, publications=3)
    assert set(costs.ways) == set(publish_cpu.WAYS)
    assert all(ratio > 0 for way in costs.ways for ratio in costs.ratios(way))


def test_every_way_over_http_is_measured() -> None:
    costs = http_api.measured(list(http_api.WAYS), rounds=1, share=0.05)
    assert all(us > 0 for [us] in costs.values())
    found = http_api.figures(costs)
    assert len(found) == 8
    assert all(figure.rounds == 1 and figure.ratio > 0 for figure in found)


def test_subscribers_of_all_forms_get_everything() -> None:
    costs = mixed.measured(rounds=1, subscribers=2 * len(mixed.FORMS))
    assert costs.keys() == {"plain", "mixed"}
    [found] = mixed.figures({"plain": [2.0, 4.0, 9.0], "mixed": [5.0, 6.0, 1.0]})
    assert found.ratio == 1.25
    assert found.met


def test_a_publication_is_followed_from_instance_to_instance() -> None:
    times = end_to_end.measured(rounds=1, publications=5)
    for found in (times.put, times.chain, times.same, times.other):
        assert len(found) == 5
        assert all(ms > 0 for ms in found)
    assert min(times.chain) > min(times.put)
    assert len(end_to_end.figures(times, 1)) == 3


def test_express_hints_come_sooner_than_the_stream() -> None:
    took_ms = express.measured(publications=6)
    assert all(len(found) == 3 for found in took_ms.values())
    # A delay of the stream is between the two.
    assert min(took_ms[express.PLAIN]) > min(took_ms[express.EXPRESS])
    assert len(express.figures(took_ms)) == 2


def test_the_publishers_of_one_room_are_acknowledged() -> None:
    runs, floor = hot_room.measured(rounds=1, seconds=1.5, publishers=5)
    [found] = hot_room.figures(runs, floor)
    assert found.value > 0
    assert found.floor > 0
    runs[0].errors["111"] += 1
    with pytest.raises(SystemExit, match="111"):
        hot_room.figures(runs, floor)


def test_a_publication_that_costs_too_much_is_named() -> None:
    dear = publish_cpu.Costs([100.0] * 3, {"lean": [60.0, 71.0, 200.0], "SDK": [900.0] * 3})
    assert publish_cpu.missed("kept", dear) == [
        "a publication costs 0.71 of a PutItem, more than 0.7"
    ]
    dear.ways["lean"][1] = 70.0
    assert publish_cpu.missed("kept", dear) == []
    assert publish_cpu.missed("closed", dear) == []


async def test_presence_is_asked_for_in_every_way() -> None:
    bench = presence.Bench(members=50, listed=20, clock=ManualClock())
    found = await presence.measured(bench, rounds=2, asks=3)
    assert len(found) == 7
    assert all(value > 0 for values in found.values() for value in values)
    assert bench.reads == 4, "one of each channel in a round"


async def test_one_channel_is_published_to_from_two_instances() -> None:
    with hot_channel.fleet(2) as urls:
        layout = Layout(2, 2)
        run = await hot_channel.measured(urls, layout, seconds=2.0)
        assert len(run.acknowledged) == 2
        assert sum(run.acknowledged) > 0
        assert len(run.acks_ms) >= sum(run.acknowledged)
        [line] = hot_channel.as_json([hot_channel.result(layout, [run], [run])], [])["layouts"]
        assert line["total_to_alone"] == 1
        assert line["acknowledged"] == run.acknowledged


def test_what_is_too_slow_or_unfair_in_one_channel_is_named() -> None:
    def found(layout: Layout, acknowledged: list[int], ack_ms: float, **errors: int) -> list[str]:
        alone = Run([1000], 1.0, [10.0])
        run = Run(acknowledged, 1.0, [ack_ms], Counter(errors))
        return hot_channel.missed([hot_channel.result(layout, [run], [alone])])

    assert found(ALONE, [1000], 600.0) == []
    assert found(THREE, [85, 100, 100], 600.0) == []
    assert found(FOUR, [140, 140, 140, 140], 600.0) == []
    assert found(PAIR, [18, 20], 600.0) == []

    assert found(ALONE, [1000], 601.0) == ["1 x 30: ack p99 601 ms, more than 600"]
    assert found(ALONE, [1000], 1.0, e111=2) == ["1 x 30: errors: {'e111': 2}"]
    assert found(THREE, [80, 80, 80], 1.0) == [
        "3 x 10: total ÷ one instance's 0.24, less than 0.25"
    ]
    assert found(THREE, [80, 100, 110], 1.0) == ["3 x 10: poorest ÷ mean 0.83, less than 0.85"]
    assert found(FOUR, [130, 130, 130, 130], 1.0) == [
        "4 x 25: total ÷ one instance's 0.52, less than 0.55"
    ]
    assert found(PAIR, [16, 20], 1.0) == ["2 x 1: poorest ÷ mean 0.89, less than 0.9"]
    assert len(found(FOUR, [0, 0, 0, 0], 1.0)) == 2, "nothing at all is uneven as well"


def test_every_flood_is_sent_and_a_neighbour_is_answered() -> None:
    node = Process("benchmarks.node", 1024 * 1024, 0)
    try:
        port = node.answer()["port"]
        attack = Process("benchmarks.json_floods", port)
        try:
            for kind in json_floods.FLOODS:
                without, flooded, sent = json_floods.none_and(kind, port, attack, asks=3)
                assert len(without) == len(flooded) == 3
                assert sent >= json_floods.ATTACKERS
        finally:
            attack.end()
    finally:
        node.end()


@pytest.mark.parametrize("kind", [floods.NONE, *floods.KINDS])
def test_a_flood_goes_on_while_the_neighbour_is_measured(
    monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.setattr(floods, "ROUND_S", 0.2)
    started: list[Process] = []
    try:
        started.append(node := Process("benchmarks.node", 1024 * 1024, 0))
        port = node.answer()["port"]
        started.append(flooding := Process("benchmarks.floods", "attack", port))
        with closing(floods.Neighbour(port)) as neighbour:
            assert floods.measured(flooding, neighbour, kind)
    finally:
        for process in started:
            process.end()


# npm has a minute.
@pytest.mark.timeout(180)
@pytest.mark.parametrize(
    "enter",
    [serve, c_loop, *(peer.run for peer in PEERS)],
    ids=["roomcast", "C", *(peer.program for peer in PEERS)],
)
def test_each_server_of_a_contest_reaches_every_client(
    enter: Callable[[int], AbstractContextManager[Contestant]],
) -> None:
    try:
        for peer in PEERS:
            if peer.run == enter:
                assert peer.version()
        with enter(CLIENTS) as contestant:
            # Too few deliveries for a figure; what did not arrive would end it.
            assert isfinite(contestant.delivery_us(2))
    except Skipped as reason:
        pytest.skip(str(reason))


def test_percentiles() -> None:
    values = [float(value) for value in range(11)]
    assert [percentile(values, part) for part in (0, 0.5, 0.9, 1)] == [0, 5, 9, 10]


def test_several_processes_are_measured() -> None:
    with processes.emulator() as endpoint, processes.host(endpoint, 2) as host:
        assert len(host.pids) == 3, "the supervisor counts too"
        crowd = processes.Crowd()
        crowd.come(host.port, CLIENTS, processes.CHANNEL)
        assert sum(host.connections()) == CLIENTS
        processes.delivery_us(host, crowd, 2)
        own = [processes.Crowd(), processes.Crowd()]
        for index, each in enumerate(own):
            each.come(host.own_ports[index], CLIENTS, f"{processes.CHANNEL}-{index}")
        found = processes.together(host, own, 2)
        assert found.cpu > 0
        assert found.per_s > 0
        for each in (crowd, *own):
            each.leave()


def test_every_connection_goes_to_one_of_two_sockets() -> None:
    assert 0.5 <= processes.evenness(130) < 1.0
