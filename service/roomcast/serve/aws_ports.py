"""Makes the ports of a node over AWS, each with its SDK client, table and tags."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager

from roomcast.aws.calls import Calls
from roomcast.aws.channel_table import DynamoChannelTable
from roomcast.aws.clients import AwsClients, QueueClients, connect_queues
from roomcast.aws.leases import DynamoLeases
from roomcast.aws.presence import DynamoPresence
from roomcast.aws.queue import SqsInstanceQueue
from roomcast.aws.schema import channels_table, idempotency_table, nodes_table, presence_table
from roomcast.aws.topic import SnsTopic
from roomcast.aws.work_queue import SqsWorkQueue
from roomcast.config import AwsConfig, Config, ConsumerConfig
from roomcast.consumers.consumers import enabled
from roomcast.fleet.deployment import queue_tags
from roomcast.node.assembly import Ports
from roomcast.ports import Clock
from roomcast.system import new_id, random_fraction

__all__ = ["aws_ports", "consumer_clients", "instance_queue", "region_of", "work_queue"]


def region_of(aws: AwsConfig) -> str | None:
    """The region of the AWS clients; None = the region that the SDK finds.

    Only the region of the topic can work: arn:aws:sns:REGION:…

    AWS_REGION is read here because the SDK does not read it, unlike other AWS tools.
    """
    return aws.region or (
        aws.topic_arn.split(":")[3] if aws.topic_arn else os.environ.get("AWS_REGION") or None
    )


def instance_queue(
    aws: AwsConfig, clients: AwsClients, lease_id: Callable[[], str]
) -> SqsInstanceQueue:
    """The queue of a node. `lease_id` is called whenever a queue is made."""
    return SqsInstanceQueue(
        control=clients.sqs,
        poll=clients.sqs_poll,
        sns=clients.sns,
        topic_arn=aws.topic_arn,
        shards=aws.topic_shards,
        key_id=aws.queue_kms_key_id,
        # The reaper knows our queues by their tags, never by their names.
        tags=lambda: queue_tags(aws.topic_arn, lease_id()),
    )


def aws_ports(config: Config, clients: AwsClients, clock: Clock, queue: SqsInstanceQueue) -> Ports:
    """All ports, with `queue` among them."""
    prefix = config.aws.table_prefix
    return Ports(
        table=DynamoChannelTable(
            clients.log, channels_table(prefix), idempotency_table(prefix), clock
        ),
        presence=DynamoPresence(
            clients.tables,
            presence_table(prefix),
            shards=config.channel.presence_shards,
            events=config.events,
        ),
        leases=DynamoLeases(clients.tables, nodes_table(prefix)),
        queue=queue,
        topic=SnsTopic(clients.sns, config.aws.topic_arn),
        clock=clock,
        new_id=new_id,
        random=random_fraction,
    )


@asynccontextmanager
async def consumer_clients(
    config: Config, calls: Calls
) -> AsyncIterator[Mapping[str, QueueClients]]:
    """The clients of consumers' queues, by the region that consumers name. Without consumers there
    are none. Raises PortError.
    """
    aws, queues = config.aws, Counter[str]()
    for consumer in enabled(config.consumers):
        queues[consumer.aws_sqs.region] += len(consumer.aws_sqs.queues)
    async with AsyncExitStack() as stack:
        yield {
            region: await stack.enter_async_context(
                connect_queues(
                    count,
                    region=region or region_of(aws),
                    endpoint_url=aws.endpoint_url or None,
                    calls=calls,
                    lean=aws.lean_calls,
                )
            )
            for region, count in queues.items()
        }


def work_queue(
    clients: Mapping[str, QueueClients], consumer: ConsumerConfig, url: str
) -> SqsWorkQueue:
    """The queue of a consumer with this URL. `clients`: those of `consumer_clients`."""
    sqs = consumer.aws_sqs
    its = clients[sqs.region]
    return SqsWorkQueue(
        its.control,
        its.poll,
        url,
        messages_max=sqs.max_number_of_messages,
        wait_s=sqs.wait_time_time_s,
        visibility_s=sqs.visibility_timeout_s,
    )
