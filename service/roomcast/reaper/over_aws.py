"""Builds a reaper over AWS: assigns the SDK's clients and the tables to its ports."""

from __future__ import annotations

import asyncio
from typing import Any

from roomcast.aws.estate import SqsEstate
from roomcast.aws.leases import DynamoLeases
from roomcast.aws.presence import DynamoPresence
from roomcast.aws.schema import nodes_table, presence_table
from roomcast.aws.topic import SnsTopic
from roomcast.fleet.deployment import Deployment
from roomcast.ports import Clock
from roomcast.reaper.reaper import Reaper, Sleep, Tell, silent

__all__ = ["reaper_over_aws"]


def reaper_over_aws(
    deployment: Deployment,
    table_prefix: str,
    clock: Clock,
    *,
    dynamodb: Any,
    sns: Any,
    sqs: Any,
    tell: Tell = silent,
    sleep: Sleep = asyncio.sleep,
) -> Reaper:
    """A reaper. The clients' operations are awaitable, whichever SDK is behind them."""
    return Reaper(
        leases=DynamoLeases(dynamodb, nodes_table(table_prefix)),
        presence=DynamoPresence(dynamodb, presence_table(table_prefix)),
        estate=SqsEstate(sqs, sns, deployment, sleep),
        topic=SnsTopic(sns, deployment.topic_arn),
        clock=clock,
        deployment=deployment,
        tell=tell,
        sleep=sleep,
    )
