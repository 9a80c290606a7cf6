"""GET /metrics: what is documented is served, it moves, and it tells nothing about anybody."""

from __future__ import annotations

import re
import sys
from collections.abc import AsyncIterator, Iterable
from pathlib import Path
from typing import Final

import pytest
from aiohttp import ClientSession, web
from aiohttp.test_utils import TestServer
from prometheus_client import Metric
from prometheus_client.openmetrics.parser import (
    text_string_to_metric_families as openmetrics_families,
)
from prometheus_client.parser import text_string_to_metric_families

from roomcast.fleet.emulation_signals import Outcome
from roomcast.fleet.lease_record import Lease
from roomcast.gateway.http import add_metrics_route
from roomcast.node.health import Health
from roomcast.node.prometheus import FAMILIES, Exposition, Source
from roomcast.observe.counters import ConsumerCounters, Histogram, Transport
from roomcast.ports import Throttled
from tests.unit.recorder import Recorder
from tests.unit.worlds import Fleet, LocalNode, until

PAGE: Final = Path(__file__).parents[3] / "docs" / "metrics.md"
# What no label of ours may be called: each has as many values as there are clients, or channels.
PERSONAL: Final = {"channel", "user", "client", "address", "key", "token", "node"}
SAMPLES_MAX: Final = 400


@pytest.fixture
def fleet() -> Fleet:
    return Fleet()


@pytest.fixture
async def node(fleet: Fleet) -> AsyncIterator[LocalNode]:
    fleet.stream_to_topic()
    node = fleet.node(channel_limit=2, publish_rate_limit=0.4)
    async with node.running():
        yield node


def text_of(node: LocalNode) -> str:
    calls = {("dynamodb.PutItem", "ok"): Histogram()}
    calls["dynamodb.PutItem", "ok"].add(0.004)
    consumers = {"orders": ConsumerCounters(failed={"unreadable": 2}, ages_s={"a": 1, "b": 3})}
    source = Source(node.assembly, node.assembly.node.health, calls, consumers)
    return Exposition(source).text().decode()


def families_of(text: str) -> dict[str, Metric]:
    """By the name that Prometheus shows; the parser leaves the ending of counters out."""
    parsed: Iterable[Metric] = text_string_to_metric_families(text)
    return {f"{each.name}_total" if each.type == "counter" else each.name: each for each in parsed}


def value(text: str, name: str, **labels: str) -> float:
    for family in families_of(text).values():
        for sample in family.samples:
            if sample.name == name and sample.labels == labels:
                return sample.value
    raise AssertionError(f"no {name} {labels}")


async def busy(node: LocalNode) -> None:
    """A bit of everything."""
    one, other = await node.client(), await node.client()
    for client in (one, other):
        await client.subscribe("secret-room")
        await client.subscribe("plain:secret-signals")
    assert await one.subscribe("secret-third") == 106
    for _ in range(3):
        assert await one.publish("secret-room", {"secret": "payload"}) == {}
        # Longer than the rate asks for.
        node.clock.advance(2.5)
    assert await one.publish("plain:secret-signals", "secret") == {}
    # The next one would have to wait for longer than it can.
    assert await one.publish("secret-room", "secret") == 111
    again = await node.client()
    result = await again.subscribe("secret-room", recover=True, epoch="", offset=0)
    assert result["recovered"]
    await until(lambda: len(other.socket.published("plain:secret-signals")) == 1)
    await other.ask("history", channel="secret-room", limit=0)
    node.assembly.node.closed(other.connection)


async def test_the_page_lists_what_is_served(node: LocalNode) -> None:
    listed = re.findall(
        r"^\| `(roomcast_\w+)` \| (\w+) \| ([^|]*) \|",
        PAGE.read_text(encoding="utf-8"),
        re.MULTILINE,
    )
    known = [
        (each.name, each.kind, ", ".join(f"`{name}`" for name in each.labels)) for each in FAMILIES
    ]
    assert [(name, kind, labels.strip()) for name, kind, labels in listed] == known
    served = families_of(text_of(node))
    ours = {name: family for name, family in served.items() if name.startswith("roomcast_")}
    assert set(ours) == {name for name, _, _ in known}
    assert {name: family.type for name, family in ours.items()} == {
        name: kind for name, kind, _ in known
    }
    of_library = {name for name in served if name not in ours}
    of_library_listed = set(
        re.findall(r"`((?:process|python)_\w+)`", PAGE.read_text(encoding="utf-8"))
    )
    # Of the process the library knows something on Linux only.
    assert of_library == {
        name for name in of_library_listed if sys.platform == "linux" or name.startswith("python_")
    }


async def test_labels_are_those_that_are_declared_and_no_one_s(node: LocalNode) -> None:
    await busy(node)
    served = families_of(text_of(node))
    for family in FAMILIES:
        assert not PERSONAL & set(family.labels), family.name
        for sample in served[family.name].samples:
            assert set(sample.labels) - {"le"} == set(family.labels), family.name


async def test_nothing_tells_a_name_or_a_payload(node: LocalNode) -> None:
    await busy(node)
    text = text_of(node)
    assert "secret" not in text
    assert not [each for each in node.assembly.node._connections if each.client in text]
    assert sum(len(family.samples) for family in families_of(text).values()) < SAMPLES_MAX


async def test_what_happened_is_counted(node: LocalNode) -> None:
    await busy(node)
    text = text_of(node)
    stored = value(text, "roomcast_publications_total", outcome="stored")
    expected = {
        ("roomcast_connections", ()): 2,
        ("roomcast_connections_opened_total", ()): 3,
        ("roomcast_subscriptions", ()): 3,
        ("roomcast_channels", ()): 2,
        ("roomcast_commands_total", (("method", "connect"), ("code", "0"))): 3,
        ("roomcast_commands_total", (("method", "subscribe"), ("code", "106"))): 1,
        ("roomcast_commands_total", (("method", "publish"), ("code", "111"))): 1,
        ("roomcast_commands_total", (("method", "history"), ("code", "0"))): 1,
        ("roomcast_limits_hit_total", (("limit", "channels"),)): 1,
        ("roomcast_limits_hit_total", (("limit", "publish_rate"),)): 1,
        ("roomcast_limits_hit_total", (("limit", "handshake_rate"),)): 0,
        ("roomcast_publications_signalled_total", ()): 1,
        ("roomcast_publish_seconds_count", ()): stored,
        ("roomcast_append_publications_sum", ()): stored,
        ("roomcast_append_attempts_sum", ()): stored,
        ("roomcast_append_turn_seconds_count", ()): stored,
        ("roomcast_append_losses_sum", ()): 0,
        ("roomcast_append_writers_sum", ()): 0,
        ("roomcast_append_throttled_total", ()): 0,
        ("roomcast_recoveries_total", (("outcome", "recovered"),)): 1,
        ("roomcast_recovered_publications_total", ()): stored,
        ("roomcast_pushes_total", ()): 2 * (stored + 1),
        ("roomcast_canary_hearing", (("state", "well"),)): 1,
        (
            "roomcast_aws_call_seconds_count",
            (("operation", "dynamodb.PutItem"), ("outcome", "ok")),
        ): 1,
    }
    assert stored == 3
    assert {key: value(text, key[0], **dict(key[1])) for key in expected} == expected
    assert value(text, "roomcast_sent_bytes_total", to="channel") > 0
    assert value(text, "roomcast_ring_bytes") > 0
    assert value(text, "roomcast_queue_messages_total") > 0


async def test_consumers_are_told_by_their_names(node: LocalNode) -> None:
    text = text_of(node)
    for line in (
        'roomcast_consumer_failed_total{consumer="orders",reason="unreadable"} 2.0',
        'roomcast_consumer_receives_total{consumer="orders",outcome="failed"} 0.0',
        'roomcast_consumer_age_seconds{consumer="orders"} 3.0',
    ):
        assert line in text


async def test_transports_and_commands_on_their_way_are_seen(fleet: Fleet) -> None:
    node, other = fleet.node("here"), fleet.node("there")
    async with node.running(), other.running():
        now = fleet.clock.now_ms()
        queue = other.queue_names[-1]
        fleet.world.leases["there"] = Lease("there", queue, "live", now, now, now + 60_000)
        queue = node.queue_names[-1]
        fleet.world.leases["here"] = Lease("here", queue, "live", now, now, now + 60_000)
        counters = node.assembly.node.services.counters
        for transport in (Transport.SSE, Transport.SSE, Transport.WEBSOCKET):
            counters.came(transport)
        counters.went(Transport.SSE)
        emulation = node.assembly.node.emulation
        emulation.sessions.enter("s", Taker())
        assert await emulation.take("here", "s", b"1") is Outcome.TAKEN
        assert await emulation.take("there", "guessed", b"1") is Outcome.UNKNOWN
        text, told = text_of(node), text_of(other)
    expected = {
        ("roomcast_transport_connections", (("transport", "sse"),)): 1,
        ("roomcast_transport_connections", (("transport", "http_stream"),)): 0,
        ("roomcast_transport_connections_opened_total", (("transport", "sse"),)): 2,
        ("roomcast_transport_connections_opened_total", (("transport", "websocket"),)): 1,
        ("roomcast_sessions", ()): 1,
        ("roomcast_emulation_requests_total", (("way", "here"), ("outcome", "taken"))): 1,
        ("roomcast_emulation_requests_total", (("way", "mailbox"), ("outcome", "unknown"))): 1,
        ("roomcast_emulation_answer_seconds_count", ()): 1,
        ("roomcast_mailbox_signals_total", (("outcome", "sent"),)): 1,
        ("roomcast_mailbox_messages_total", (("outcome", "sent"),)): 1,
        ("roomcast_mailbox_seconds_count", ()): 1,
    }
    assert {key: value(text, key[0], **dict(key[1])) for key in expected} == expected
    assert value(told, "roomcast_emulation_for_others_total", outcome="unknown") == 1


class Taker:
    """A session that takes everything."""

    def take(self, frame: bytes) -> bool:
        return True


async def test_writers_of_one_channel_are_seen(fleet: Fleet) -> None:
    node, other = fleet.node("here"), fleet.node("there")
    async with node.running(), other.running():
        here, there = await node.client(), await other.client()
        for client in (here, there):
            assert await client.publish("contended", 1) == {}
        # It knows nothing yet of the other's, and loses the race;
        # before that the table has no room twice.
        for _ in range(2):
            fleet.world.fail_next("put_item", Throttled("slow down"))
        assert await here.publish("contended", 2) == {}
        # It knows of the other now, and lets it have its turn.
        assert await here.publish("contended", 3) == {}
        text = text_of(node)
    expected = {
        "roomcast_append_attempts_count": 3,
        "roomcast_append_attempts_sum": 6,
        "roomcast_append_losses_sum": 1,
        "roomcast_append_races_total": 1,
        "roomcast_append_throttled_total": 2,
        "roomcast_append_writers_sum": 2,
        "roomcast_append_turn_seconds_count": 3,
    }
    assert {name: value(text, name) for name in expected} == expected
    assert value(text, "roomcast_append_attempts_bucket", le="3.0") == 2
    assert value(text, "roomcast_append_turn_seconds_bucket", le="0.0") == 2
    assert value(text, "roomcast_append_turn_seconds_sum") > 0


async def test_health_is_told(node: LocalNode) -> None:
    assert value(text_of(node), "roomcast_ready") == 1
    health: Health = node.assembly.node.health
    health.draining = True
    text = text_of(node)
    assert (value(text, "roomcast_ready"), value(text, "roomcast_draining")) == (0, 1)


async def test_registries_do_not_share_anything(node: LocalNode) -> None:
    """Several nodes in one process, as in tests, have their own."""
    assert text_of(node).count("# TYPE roomcast_ready gauge") == 1
    assert text_of(node).count("# TYPE process_open_fds gauge") == 1


async def test_it_is_served_as_prometheus_reads_it(node: LocalNode) -> None:
    app = web.Application()
    add_metrics_route(app, lambda: text_of(node).encode())
    async with TestServer(app) as server, ClientSession() as session:
        answer = await session.get(server.make_url("/metrics"))
        assert answer.status == 200
        assert answer.headers["Content-Type"] == "text/plain; version=0.0.4; charset=utf-8"
        assert value(await answer.text(), "roomcast_ready") == 1


async def test_traced_latencies_are_exemplars_and_only_in_openmetrics(fleet: Fleet) -> None:
    tracer = Recorder()
    node = fleet.node("a", tracer=tracer)
    async with node.running():
        client = await node.client()
        await client.publish("room", "one")
    exposition = Exposition(Source(node.assembly, node.assembly.node.health, {}))
    trace_id = tracer.spans[0].context.trace_id
    text = exposition.text().decode()
    assert trace_id not in text
    openmetrics = exposition.openmetrics().decode()
    parsed: Iterable[Metric] = openmetrics_families(openmetrics)  # type: ignore[no-untyped-call]
    exemplars = {
        sample.name: sample.exemplar
        for family in parsed
        for sample in family.samples
        if sample.exemplar is not None
    }
    assert exemplars.keys() == {
        "roomcast_publish_seconds_bucket",
        "roomcast_append_turn_seconds_bucket",
    }
    for exemplar in exemplars.values():
        assert exemplar.labels == {"trace_id": trace_id}
        assert float(str(exemplar.timestamp)) == fleet.clock.now_ms() / 1000
    # Otherwise both say the same. The process's own differ from one moment to the next.
    names = re.findall(r"^(roomcast_\S+) \S+$", text, re.MULTILINE)
    assert names == re.findall(r"^(roomcast_\S+) \S+(?: # .*)?$", openmetrics, re.MULTILINE)
