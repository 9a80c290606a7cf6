"""The ports of a node over AWS: which client of the SDK, which table and which tags each of them gets."""

from __future__ import annotations

import os
from collections.abc import Callable

from service.adapters.aws import AwsClients
from service.adapters.channel_table import DynamoChannelTable
from service.adapters.leases import DynamoLeases
from service.adapters.presence import DynamoPresence
from service.adapters.queue import SqsInstanceQueue
from service.adapters.schema import channels_table, idempotency_table, nodes_table, presence_table
from service.adapters.topic import SnsTopic
from service.assembly import Ports
from service.config import AwsConfig
from service.core.holdings import queue_tags
from service.ports import Clock
from service.system import new_id, random_fraction

__all__ = ["aws_ports", "instance_queue", "region_of"]


def region_of(aws: AwsConfig) -> str | None:
    """The topic's region is the only one that can work: arn:aws:sns:REGION:… None: what the SDK finds.

    It does not look at AWS_REGION, as other AWS tools do.
    """
    return aws.region or (
        aws.topic_arn.split(":")[3] if aws.topic_arn else os.environ.get("AWS_REGION") or None
    )


def instance_queue(aws: AwsConfig, clients: AwsClients, lease_id: Callable[[], str]) -> SqsInstanceQueue:
    """The queue of a node; `lease_id` is asked for whenever one is made."""
    return SqsInstanceQueue(
        control=clients.sqs,
        poll=clients.sqs_poll,
        sns=clients.sns,
        topic_arn=aws.topic_arn,
        # What the reaper goes by: a queue is ours by its tags, never by its name.
        tags=lambda: queue_tags(aws.topic_arn, lease_id()),
    )


def aws_ports(aws: AwsConfig, clients: AwsClients, clock: Clock, queue: SqsInstanceQueue) -> Ports:
    """Everything else, with `queue`."""
    prefix = aws.table_prefix
    return Ports(
        table=DynamoChannelTable(clients.log, channels_table(prefix), idempotency_table(prefix), clock),
        presence=DynamoPresence(clients.tables, presence_table(prefix)),
        leases=DynamoLeases(clients.tables, nodes_table(prefix)),
        queue=queue,
        topic=SnsTopic(clients.sns, aws.topic_arn),
        clock=clock,
        new_id=new_id,
        random=random_fraction,
    )
