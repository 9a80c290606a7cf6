"""A start, or an end, whose calls of AWS fail: what may come right is tried again,
what is refused is not; nothing is left, or the lease leads to it.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from random import Random
from typing import Final

import pytest

from roomcast.aws.errors import ATTEMPTS_MAX
from roomcast.reaper.rules import REAP_GRACE_MS
from roomcast.serve.tries import START_TRIES_S
from tests.chaos.proxy import Fault, FaultProxy
from tests.integration.serving import START_S, Aws, Process, deployed, reaping

PREFIX: Final = "start-faults-"
CONFIG: Final = "[client]\ninsecure = true\n[node]\ndrain_s = 0\n"
# In the order of a start. Each fails with all attempts of the SDK, so that it is ours to go on.
CALLS: Final = (
    ("dynamodb.Scan", Fault.THROTTLED),
    ("dynamodb.PutItem", Fault.RESET_AFTER),
    ("sqs.CreateQueue", Fault.RESET_AFTER),
    ("sns.Subscribe", Fault.ERROR_AFTER),
)

pytestmark = pytest.mark.timeout(180)


@pytest.fixture(scope="module")
def aws(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Aws]:
    with deployed(tmp_path_factory.mktemp("start-faults"), PREFIX) as aws:
        yield aws


@pytest.fixture
async def proxy(aws: Aws) -> AsyncIterator[FaultProxy]:
    async with FaultProxy(aws.endpoint, Random(1)) as proxy:
        yield proxy


def queues(aws: Aws) -> list[str]:
    return list(aws.client("sqs").list_queues(QueueNamePrefix=PREFIX).get("QueueUrls", []))


def subscriptions(aws: Aws) -> list[str]:
    answer = aws.client("sns").list_subscriptions_by_topic(TopicArn=aws.made.topic_arn)
    return [each["Endpoint"] for each in answer["Subscriptions"]]


async def test_answers_that_are_lost_at_the_start_end_nothing(aws: Aws, proxy: FaultProxy) -> None:
    for operation, fault in CALLS:
        proxy.plan(operation, fault, ATTEMPTS_MAX)
    process = Process(aws.config("lost", CONFIG, endpoint_url=proxy.url), "--port", "0")
    try:
        event = await asyncio.to_thread(process.said, "ready", START_S + START_TRIES_S)
        assert len(queues(aws)) == 1, "the one whose making was not answered is gone"
        assert len(subscriptions(aws)) == 1
        assert process.log.count("tried_again") >= len(CALLS) - 1, process.log
        assert sum(proxy.injected.values()) == len(CALLS) * ATTEMPTS_MAX
        process.signal()
        assert await asyncio.to_thread(process.ended) == 0, process.log
    finally:
        await asyncio.to_thread(process.close)
    assert "Traceback" not in process.log
    assert (queues(aws), subscriptions(aws), aws.leases()) == ([], [], set())
    assert not aws.left_of(event["node"])


@pytest.mark.parametrize("operation", ["dynamodb.PutItem", "sqs.CreateQueue", "sns.Subscribe"])
async def test_what_is_refused_at_the_start_ends_it_at_once(
    aws: Aws, proxy: FaultProxy, operation: str
) -> None:
    proxy.plan(operation, Fault.DENIED, 1)
    process = Process(aws.config("denied", CONFIG, endpoint_url=proxy.url), "--port", "0")
    try:
        assert await asyncio.to_thread(process.ended, START_S) == 1, process.log
    finally:
        await asyncio.to_thread(process.close)
    assert "tried_again" not in process.log
    assert "Traceback" not in process.log
    [line] = [line for line in process.lines if not line.startswith("{")]
    name = operation.partition(".")[2]
    assert line.startswith("roomcast: cannot start: queue for topic ")
    assert name in line
    assert "not authorized" in line
    assert (queues(aws), subscriptions(aws), aws.leases()) == ([], [], set())


@pytest.mark.parametrize("operation", ["sns.Unsubscribe", "sqs.DeleteQueue", "dynamodb.DeleteItem"])
async def test_answers_that_are_lost_at_the_end_leave_nothing(
    aws: Aws, proxy: FaultProxy, operation: str
) -> None:
    process = Process(aws.config("ends", CONFIG, endpoint_url=proxy.url), "--port", "0")
    try:
        await asyncio.to_thread(process.ready)
        proxy.plan(operation, Fault.RESET, ATTEMPTS_MAX)
        process.signal()
        assert await asyncio.to_thread(process.ended) == 0, process.log
    finally:
        await asyncio.to_thread(process.close)
    assert proxy.injected == {Fault.RESET: ATTEMPTS_MAX}
    assert "Traceback" not in process.log
    assert (queues(aws), subscriptions(aws), aws.leases()) == ([], [], set())


# Stands for a fault of ours in the end of the queue.
CANNOT_CLOSE: Final = """
import sys
from roomcast.aws.queue import SqsInstanceQueue

async def close(self):
    if self.queue_url is not None:
        raise ZeroDivisionError("a fault of ours")

SqsInstanceQueue.close = close
from roomcast.cli.main import main
sys.exit(main(sys.argv[1:]))
"""


async def test_what_a_fault_of_ours_left_has_a_lease_that_leads_to_it(aws: Aws) -> None:
    process = Process(aws.config("faulty", CONFIG), "--port", "0", program=("-c", CANNOT_CLOSE))
    try:
        await asyncio.to_thread(process.ready)
        process.signal()
        assert await asyncio.to_thread(process.ended) == 1, process.log
    finally:
        await asyncio.to_thread(process.close)
    assert "ZeroDivisionError" in process.log
    assert (len(queues(aws)), len(subscriptions(aws))) == (1, 1)
    assert aws.leases() == {process.node}
    # The lease has ended with its node, and not a minute later.
    async with reaping(aws, REAP_GRACE_MS + 1) as reaper:
        assert (await reaper.run()).failed == 0
    assert (queues(aws), subscriptions(aws), aws.leases()) == ([], [], set())


# An orderly end, and then the signals that somebody sends once more.
SIGNALLED_AGAIN: Final = """
import os, signal, sys
from roomcast.cli.main import main
code = main(sys.argv[1:])
for number in (signal.SIGTERM, signal.SIGINT):
    os.kill(os.getpid(), number)
sys.exit(code)
"""


async def test_a_signal_after_the_end_makes_no_failure_of_it(aws: Aws) -> None:
    config = aws.config("signalled", CONFIG)
    process = Process(config, "--port", "0", program=("-c", SIGNALLED_AGAIN))
    try:
        await asyncio.to_thread(process.ready)
        process.signal()
        assert await asyncio.to_thread(process.ended) == 0, process.log
    finally:
        await asyncio.to_thread(process.close)
    assert "Traceback" not in process.log
