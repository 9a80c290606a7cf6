"""The calls of a load: what the formulas say, and what the parts that make them do in virtual
time.
"""

from __future__ import annotations

import asyncio
from dataclasses import replace
from math import exp
from random import Random
from typing import Final

import pytest

from benchmarks import contention, receives
from roomcast.config.options import AwsConfig
from roomcast.cost import calls as formulas
from roomcast.cost.calls import Calls, Load, Pace, calls_of, receive_rate
from roomcast.delivery import allowance, broadcaster, envelope
from roomcast.delivery.allowance import Allowance
from roomcast.delivery.broadcaster import Broadcaster
from roomcast.delivery.envelope import Signal
from roomcast.log.item import ITEM_PUBLICATIONS_MAX
from roomcast.log.rules import MIN_RETENTION_MS, Pending, Tail, append_item, new_epoch
from roomcast.system import new_id, new_nonce
from roomcast.wire.encoding import encode_stored
from roomcast.wire.publication import ClientInfo, Publication
from tests.simulation import clockwork
from tests.simulation.mishaps import Mishaps

# How far a formula may be from what is counted.
PART: Final = 0.1
IDLE: Final = Load(publications_s=0, clients=0)


def rates(load: Load, pace: Pace | None = None) -> Calls:
    return calls_of(load, pace)


# ---- against the real parts


@pytest.mark.parametrize("pause_ms", [0, 30, 50])
@pytest.mark.parametrize("messages_s", [0.1, 5.0, 40.0, 150.0])
def test_receives_and_deletes_are_those_of_the_poller(messages_s: float, pause_ms: int) -> None:
    row = receives.run(messages_s, pause_ms, messages=1000)
    some, empty = receive_rate(messages_s, Pace(receive_pause_s=pause_ms / 1000))
    assert some + empty == pytest.approx(row.receives_s, rel=PART)
    assert some == pytest.approx(row.deletes_s, rel=PART)


@pytest.mark.parametrize("a_second, seconds", [(1.0, 400.0), (100.0, 10.0), (1000.0, 2.0)])
def test_appends_are_those_of_a_lone_appender(a_second: float, seconds: float) -> None:
    load = contention.Load("one channel", a_second=a_second)
    counted = contention.measure(load, 1, seconds=seconds)
    told = rates(replace(IDLE, instances=1, channels=1, publications_s=a_second, payload_bytes=200))
    idle = rates(replace(IDLE, instances=1, channels=1))
    units = (told.write_units - idle.write_units) / a_second
    assert units == pytest.approx(counted.write_units, rel=PART)


@pytest.mark.parametrize("nodes", [2, 5, 20])
def test_lost_races_are_those_of_appenders_that_share_a_quiet_channel(nodes: int) -> None:
    counted = contention.measure(contention.Load("quiet", a_second=1.0), nodes, seconds=400.0)
    told = rates(replace(IDLE, instances=nodes, channels=1, publications_s=1.0))
    idle = rates(replace(IDLE, instances=nodes, channels=1))
    assert told.of("dynamodb.PutItem") - idle.of("dynamodb.PutItem") == pytest.approx(
        counted.attempts, rel=PART
    )


class Topic:
    def __init__(self) -> None:
        self.messages = 0

    async def publish(self, body: str) -> None:
        self.messages += 1

    async def publish_to(self, shard: int, body: str) -> None:
        raise AssertionError("signals go through the base topic")


async def send_signals(signals_s: float, nodes: int, seconds: float) -> float:
    """The messages a second of one node of so many."""
    random, topic = Random(1), Topic()
    allowed = Allowance(formulas.SIGNAL_MESSAGES_FLEET_S)
    allowed.share(nodes)
    sender = Broadcaster(topic, contention.VirtualClock(), allowed)
    sending = asyncio.create_task(sender.run())
    time = asyncio.get_running_loop().time
    while time() < seconds:
        await asyncio.sleep(random.expovariate(signals_s))
        sender.send(Signal("n", "1", "room", "pub", {"data": {}}))
    sending.cancel()
    await asyncio.gather(sending, return_exceptions=True)
    return topic.messages / time()


@pytest.mark.parametrize(
    "signals_s, nodes", [(1.0, 1), (10.0, 1), (300.0, 1), (300.0, 20), (300.0, 400)]
)
def test_messages_of_signals_are_those_of_the_broadcaster(signals_s: float, nodes: int) -> None:
    counted = clockwork.run(send_signals(signals_s, nodes, 200.0), Mishaps())
    told = rates(replace(IDLE, instances=nodes, history=False, publications_s=nodes * signals_s))
    assert told.of("sns.Publish") == pytest.approx(nodes * counted, rel=PART)


@pytest.mark.parametrize("publications", [1, 20])
def test_bytes_are_those_of_a_stored_item(publications: int) -> None:
    publication = Publication("x" * 198, info=ClientInfo("ann", new_id()), time=1_800_000_000_000)
    now_ms = 1_800_000_000_000
    item = append_item(
        "room:lobby",
        Tail(new_epoch("0", new_id()), 10_000, now_ms + MIN_RETENTION_MS, 0),
        [Pending.of(encode_stored(publication))] * publications,
        batch=new_id(),
        node=f"i-0123456789abcdef0-{new_nonce()}",
        now=now_ms,
        history_ttl_ms=300_000,
    )
    size = sum(
        len(name) + len(text)
        for name, value in item.attributes().items()
        for text in value.values()
    )
    told = formulas.ITEM_BYTES + publications * (formulas.PUBLICATION_BYTES + 200)
    assert told == pytest.approx(size, rel=PART)


def test_bounds_are_those_of_the_product() -> None:
    assert formulas.APPEND_PUBLICATIONS_MAX == ITEM_PUBLICATIONS_MAX
    assert formulas.MESSAGE_BYTES_MAX == envelope.ENVELOPE_BYTES_MAX
    assert formulas.SIGNAL_WAIT_S == broadcaster.FLUSH_INTERVAL_S
    assert formulas.SIGNAL_MESSAGES_S == broadcaster.MESSAGES_PER_S
    assert formulas.SIGNAL_MESSAGES_S_MIN == allowance.PER_S_MIN
    aws = AwsConfig()
    assert aws.sns_quota * aws.sns_signals_share == formulas.SIGNAL_MESSAGES_FLEET_S


# ---- the formulas among themselves


def test_an_idle_fleet_polls_beats_and_emits_canaries() -> None:
    told = rates(replace(IDLE, instances=4))
    assert told.of("dynamodb.PutItem") == pytest.approx(4 / 13.5 + 1 / 33.3, rel=0.01)
    # A canary wakes each of them.
    assert told.of("sqs.ReceiveMessage") == pytest.approx(
        4 / 33.3 * (1 + 1 / (exp(20 / 33.3) - 1)), rel=0.01
    )
    assert told.of("sqs.DeleteMessageBatch") == pytest.approx(4 / 33.3, rel=0.01)
    # In its log: no call.
    assert told.reports_s == 4 / 60
    assert not told.of("sns.Publish")


def test_without_history_nothing_is_stored() -> None:
    told, idle = rates(Load(history=False, clients=0)), rates(IDLE)
    assert told.write_units == idle.write_units
    assert told.stored_bytes == 0
    assert told.of("lambda.Invoke") == idle.of("lambda.Invoke")


def test_lambda_runs_as_often_as_it_polls_at_most_until_batches_are_full() -> None:
    busy = rates(Load(publications_s=100_000, channels=1_000_000))
    assert busy.of("lambda.Invoke") == pytest.approx(1000, rel=0.05)
    some = rates(Load(publications_s=1000, channels=100_000))
    assert some.of("lambda.Invoke") == pytest.approx(16, rel=0.01)
    one = rates(Load(publications_s=1000, channels=1))
    assert one.of("lambda.Invoke") == pytest.approx(4, rel=0.01), "one channel is in one shard"


def test_topic_shards_make_messages_of_which_each_node_hears_some() -> None:
    load = Load(instances=10, channels=10, clients=10, publications_s=1000)
    one, sixteen = rates(load), rates(replace(load, topic_shards=16))
    assert sixteen.sns_requests > one.sns_requests
    assert sixteen.received_bytes < one.received_bytes / 4


def test_express_hints_are_bounded_and_heard_by_all() -> None:
    load = Load(instances=10, publications_s=2000, channels=2000)
    plain, hints = rates(load), rates(replace(load, express=True))
    assert hints.of("sns.Publish") == pytest.approx(100)
    assert hints.of("sqs.ReceiveMessage") > 2 * plain.of("sqs.ReceiveMessage")


def test_clients_that_come_and_go_are_written_and_told() -> None:
    load = Load(publications_s=0, channels=100, clients=1000, stay_s=100)
    told = rates(replace(load, presence=True, joins_and_leaves=True))
    assert told.of("dynamodb.DeleteItem") == pytest.approx(10, rel=0.02)
    assert told.of("sns.Publish") == pytest.approx(2 * 10 / (1 + 10 * 0.02), rel=0.01)


def test_a_pause_saves_receives_and_nothing_else() -> None:
    load = Load(instances=10, history=False, publications_s=100)
    without, paused = rates(load), rates(load, Pace(receive_pause_s=0.05))
    assert paused.of("sqs.ReceiveMessage") < without.of("sqs.ReceiveMessage") / 2
    assert {**paused.operations, "sqs.ReceiveMessage": 0, "sqs.DeleteMessageBatch": 0} == {
        **without.operations,
        "sqs.ReceiveMessage": 0,
        "sqs.DeleteMessageBatch": 0,
    }


def test_large_messages_count_for_several_requests() -> None:
    small = rates(Load(history=False, publications_s=1))
    large = rates(Load(history=False, publications_s=1, payload_bytes=96 * 1024))
    assert large.of("sns.Publish") == small.of("sns.Publish")
    assert large.sns_requests > 1.9 * small.sns_requests
    assert large.sqs_requests > 1.3 * small.sqs_requests
