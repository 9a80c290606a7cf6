"""The floor of benchmarks/publish_cpu.py: PutItem through aioboto3, in a process of its own.

It reads JSON lines from standard input, answers each on standard output, and ends with its input.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from typing import Any, Final

import aioboto3
from aiobotocore.config import AioConfig

from roomcast.dev.provision import DUMMY_CREDENTIALS

__all__: list[str] = []

_CONNECTIONS_MAX: Final = 64


class Floor:
    """Writes items such as the node writes, with the same condition, into another table."""

    def __init__(self, client: Any, table: str) -> None:
        self._client = client
        self._table = table
        self._offset = 0

    async def put(self, count: int, writers: int, pad: str) -> float:
        """Writes `count` items by `writers` at a time. Returns the CPU seconds of this process."""
        left = iter(range(count))
        cpu_s = time.process_time()
        async with asyncio.TaskGroup() as group:
            for _ in range(writers):
                group.create_task(self._write(left, pad))
        return time.process_time() - cpu_s

    async def _write(self, left: Any, pad: str) -> None:
        for _ in left:
            self._offset += 1
            await self._client.put_item(
                TableName=self._table,
                Item={
                    "channel": {"S": "bench-floor"},
                    "offset": {"N": str(self._offset)},
                    "last": {"N": str(self._offset)},
                    "epoch": {"S": "0.0123456789ab"},
                    "pubs": {"S": json.dumps([{"data": {"text": pad}, "time": 1_700_000_000_000}])},
                    "batch": {"S": "0123456789abcdef01234567"},
                    "node": {"S": "0123456789abcdef01234567"},
                    "ts": {"N": "1700000000000"},
                    "expires_at": {"N": "4000000000"},
                },
                ConditionExpression="attribute_not_exists(#offset)",
                ExpressionAttributeNames={"#offset": "offset"},
                ReturnValuesOnConditionCheckFailure="ALL_OLD",
            )


async def main(endpoint: str, region: str, table: str) -> None:
    """Writes as it is told until the end of standard input."""
    session = aioboto3.Session(
        aws_access_key_id=DUMMY_CREDENTIALS.access_key_id,
        aws_secret_access_key=DUMMY_CREDENTIALS.secret_access_key,
        region_name=region,
    )
    config = AioConfig(max_pool_connections=_CONNECTIONS_MAX)
    async with session.client("dynamodb", endpoint_url=endpoint, config=config) as client:
        floor = Floor(client, table)
        _answer({"pid": os.getpid()})
        while line := await asyncio.to_thread(sys.stdin.readline):
            asked = json.loads(line)
            del asked["do"]
            _answer({"cpu_s": await floor.put(**asked)})


def _answer(answer: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(answer) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
