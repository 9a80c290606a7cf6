"""The proxy's faults are what the instances take them for:
otherwise the chaos would be of another kind than meant.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from random import Random
from typing import Final

import pytest

from roomcast.aws.clients import AwsClients, connect
from roomcast.aws.errors import port_errors
from roomcast.ports import PortError, Rejected, Throttled, UnknownOutcome
from tests.acceptance.roomcast import emulator
from tests.chaos.proxy import Deliveries, Fault, FaultProxy, Phase
from tests.contract.backends import REGION, SESSION

pytestmark = pytest.mark.chaos

LIMIT_S: Final = 20.0
# Less patience than a request is late.
IMPATIENT_S: Final = 0.3
LATE_S: Final = 0.6
SERVICES: Final = ("log", "sns", "sqs")


@pytest.fixture(scope="module")
def upstream() -> Iterator[str]:
    with emulator() as endpoint:
        yield endpoint


@pytest.fixture
async def proxy(upstream: str) -> AsyncIterator[FaultProxy]:
    async with FaultProxy(upstream, Random(1), late_s=(LATE_S, LATE_S)) as started:
        yield started


@pytest.fixture
async def clients(proxy: FaultProxy) -> AsyncIterator[AwsClients]:
    async with connect(region=REGION, endpoint_url=proxy.url, session=SESSION) as opened:
        yield opened


async def call(clients: AwsClients, service: str, limit_s: float = LIMIT_S) -> None:
    """Raises PortError."""
    async with port_errors(limit_s):
        match service:
            case "log":
                await clients.log.list_tables()
            case "sns":
                await clients.sns.list_topics()
            case "sqs":
                await clients.sqs.list_queues()


async def every(clients: AwsClients) -> list[type[PortError] | None]:
    """What calls of all services raise; at the same time,
    as the SDK's own attempts take a while.
    """
    calls = (call(clients, service) for service in SERVICES)
    raised = await asyncio.gather(*calls, return_exceptions=True)
    return [type(each) if isinstance(each, PortError) else None for each in raised]


@pytest.mark.parametrize(
    "fault, meaning",
    [
        (Fault.THROTTLED, Throttled),
        (Fault.EXPIRED, Throttled),
        (Fault.DENIED, Rejected),
        (Fault.ERROR, UnknownOutcome),
        (Fault.ERROR_AFTER, UnknownOutcome),
        (Fault.RESET, UnknownOutcome),
        (Fault.RESET_AFTER, UnknownOutcome),
    ],
)
async def test_what_a_fault_means(
    proxy: FaultProxy, clients: AwsClients, fault: Fault, meaning: type[PortError]
) -> None:
    assert await every(clients) == [None] * len(SERVICES)
    await proxy.enter(Phase("all", {fault: 1.0}))
    assert await every(clients) == [meaning] * len(SERVICES)
    assert proxy.injected[fault] >= len(SERVICES)
    await proxy.calm_down()
    assert await every(clients) == [None] * len(SERVICES)


async def test_a_fault_that_is_planned_meets_one_operation(
    proxy: FaultProxy, clients: AwsClients
) -> None:
    proxy.plan("sqs.ListQueues", Fault.DENIED, 2)
    assert await every(clients) == [None, None, Rejected]
    assert await every(clients) == [None, None, Rejected]
    assert await every(clients) == [None] * len(SERVICES)
    assert proxy.injected == {Fault.DENIED: 2}


async def test_nobody_listens_in_an_outage(proxy: FaultProxy, clients: AwsClients) -> None:
    assert await every(clients) == [None] * len(SERVICES)
    await proxy.enter(Phase("down", down=True))
    # Connections of before were cut, which may have been after a request was sent.
    # New ones cannot be made.
    assert all(await every(clients))
    assert await every(clients) == [Throttled] * len(SERVICES)
    assert proxy.injected[Fault.DOWN] >= len(SERVICES)
    await proxy.calm_down()
    assert await every(clients) == [None] * len(SERVICES)


async def test_a_black_hole_gives_up_with_its_phase(proxy: FaultProxy, clients: AwsClients) -> None:
    await proxy.enter(Phase("black hole", {Fault.SWALLOWED: 1.0}))
    with pytest.raises(UnknownOutcome):
        await call(clients, "log", IMPATIENT_S)
    await proxy.calm_down()
    await call(clients, "log")
    assert proxy.injected[Fault.SWALLOWED] == 1


async def test_what_is_late_still_arrives(proxy: FaultProxy, clients: AwsClients) -> None:
    await proxy.enter(Phase("late", {Fault.LATE: 1.0}))
    with pytest.raises(UnknownOutcome):
        async with port_errors(IMPATIENT_S):
            await clients.log.create_table(
                TableName="late",
                KeySchema=[{"AttributeName": "key", "KeyType": "HASH"}],
                AttributeDefinitions=[{"AttributeName": "key", "AttributeType": "S"}],
                BillingMode="PAY_PER_REQUEST",
            )
    await proxy.calm_down()
    assert "late" in (await clients.log.list_tables())["TableNames"]
    assert proxy.came_late == {"dynamodb.CreateTable": 1}


async def test_messages_come_again_and_in_any_order_but_are_all_there(
    proxy: FaultProxy, clients: AwsClients
) -> None:
    url = (
        await clients.sqs.create_queue(
            QueueName="disordered", Attributes={"VisibilityTimeout": "1"}
        )
    )["QueueUrl"]
    proxy.deliveries = Deliveries(repeat=1.0, shuffle=1.0, withhold=0.3)
    sent = [str(number) for number in range(30)]
    for body in sent:
        await clients.sqs.send_message(QueueUrl=url, MessageBody=body)
    came: list[str] = []
    async with asyncio.timeout(LIMIT_S):
        while set(came) != set(sent):
            answer = await clients.sqs_poll.receive_message(
                QueueUrl=url, MaxNumberOfMessages=10, WaitTimeSeconds=1
            )
            for message in answer.get("Messages", ()):
                came.append(message["Body"])
                await clients.sqs.delete_message(
                    QueueUrl=url, ReceiptHandle=message["ReceiptHandle"]
                )
    assert proxy.repeated == len(came) - len(set(came)) > 0
    assert proxy.withheld > 0
    assert proxy.shuffled > 0
    assert came != sorted(came, key=int)


async def test_the_pump_is_spared_unless_the_phase_says_so(proxy: FaultProxy) -> None:
    # No `roomcast` in the name that this client gives itself.
    async with SESSION.client("sqs", endpoint_url=proxy.url) as pump:
        await proxy.enter(Phase("instances", {Fault.EXPIRED: 1.0}))
        await pump.list_queues()
        await proxy.enter(Phase("all", {Fault.EXPIRED: 1.0}, pump=True))
        with pytest.raises(pump.exceptions.ClientError, match="ExpiredToken"):
            await pump.list_queues()
