"""`backend`: every test of this directory runs on memory and on the embedded AWS.

To AWS there are two ways: the one of a node, and the one all through the SDK.
"""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator, Iterator
from typing import Final

import pytest

from tests.contract.backends import PRESENCE_SHARDS, Backend, MemoryBackend, aws_backend, emulator

_prefixes: Final = (f"test{number}-" for number in itertools.count(1))


@pytest.fixture(scope="session")
def aws_endpoint() -> Iterator[str]:
    with emulator() as endpoint_url:
        yield endpoint_url


@pytest.fixture(params=["memory", "aws", "sdk"])
async def backend(request: pytest.FixtureRequest) -> AsyncIterator[Backend]:
    """Tests may also ask for "sharded": AWS, where each channel has PRESENCE_SHARDS."""
    if request.param == "memory":
        yield MemoryBackend()
        return
    endpoint_url, lean = request.getfixturevalue("aws_endpoint"), request.param != "sdk"
    async with aws_backend(endpoint_url, next(_prefixes), lean=lean) as aws:
        if request.param == "sharded":
            aws.presence_shards = PRESENCE_SHARDS
        yield aws
