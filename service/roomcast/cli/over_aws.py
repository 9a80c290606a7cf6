"""Connects the AWS clients for one command, from the configuration."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from roomcast.config import Config

if TYPE_CHECKING:
    from roomcast.aws.clients import AwsClients

__all__ = ["connected"]


@asynccontextmanager
async def connected(config: Config) -> AsyncIterator[AwsClients]:
    """The clients, closed at the end. Importing the SDK takes most of a second."""
    from roomcast.aws.clients import connect
    from roomcast.serve.aws_ports import region_of

    async with connect(
        region=region_of(config.aws),
        endpoint_url=config.aws.endpoint_url or None,
        lean=config.aws.lean_calls,
    ) as clients:
        yield clients
