"""A reaper over AWS: which client of the SDK and which table each of its ports gets."""

from __future__ import annotations

import asyncio
from typing import Any

from service.adapters.estate import SqsEstate
from service.adapters.leases import DynamoLeases
from service.adapters.presence import DynamoPresence
from service.adapters.schema import nodes_table, presence_table
from service.adapters.topic import SnsTopic
from service.core.holdings import Deployment
from service.ports import Clock
from service.reaper.reaper import Reaper, Sleep, Tell, silent

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
    """The clients' operations are awaited, whichever SDK is behind them."""
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
