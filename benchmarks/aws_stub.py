"""The AWS that benchmarks/publish_cpu.py measures a node against: canned answers, kept alive.

The embedded AWS closes each connection after its answer, and so a node that is measured against it
reconnects for each call. This one keeps connections, answers at once, and knows as much as one node
needs: the log's items, one queue, and a Lambda that packs appends four times a second.

    python -m benchmarks.aws_stub [SECONDS]      prints {"endpoint": "http://127.0.0.1:…"}

Calls of the log's table are answered after SECONDS, at once by default.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections import defaultdict, deque
from typing import Any, Final
from urllib.parse import parse_qs

import orjson
from aiohttp import web

from roomcast.aws.queue import RECEIVE_MAX
from roomcast.delivery.envelope import checked_pubs, pack, record_text
from roomcast.log.item import HEAD_OFFSET, parse_log_item

__all__ = ["REGION", "TABLE_PREFIX", "TOPIC_ARN"]

REGION: Final = "eu-west-1"
TABLE_PREFIX: Final = "bench-"
TOPIC_ARN: Final = f"arn:aws:sns:{REGION}:000000000000:bench"
# As often as Lambda reads a shard.
_LAMBDA_S: Final = 0.25
_QUEUED_MAX: Final = 10_000
_CHANNEL_ITEMS_MAX: Final = 128
_ID: Final = {"x-amzn-RequestId": "0" * 32}

Item = dict[str, dict[str, str]]


class Stub:
    """The state of the tables, the topic and the queue. `delay_s`: of calls of the log's table."""

    def __init__(self, delay_s: float = 0.0) -> None:
        self._delay_s = delay_s
        self._channels: dict[str, dict[int, Item]] = defaultdict(dict)
        self._appends: list[Item] = []
        self._queue: deque[str] = deque(maxlen=_QUEUED_MAX)
        self._filled = asyncio.Event()
        self._messages = 0

    async def handle(self, request: web.Request) -> web.Response:
        body = await request.read()
        target = request.headers.get("X-Amz-Target")
        if target is None:
            return self._sns(parse_qs(body.decode()))
        operation, asked = target.partition(".")[2], orjson.loads(body)
        if self._delay_s and asked.get("TableName") == f"{TABLE_PREFIX}channels":
            await asyncio.sleep(self._delay_s)
        answer = await self._answer(operation, asked)
        return web.Response(
            body=orjson.dumps(answer), content_type="application/x-amz-json-1.0", headers=_ID
        )

    async def pack(self) -> None:
        """The Lambda: what was appended goes into the queue."""
        while True:
            await asyncio.sleep(_LAMBDA_S)
            appends, self._appends = self._appends, []
            items = [parse_log_item(item) for item in appends]
            texts = [record_text(item, checked_pubs(item)) for item in items]
            for body, _ in pack(texts, at=time.time_ns() // 1_000_000):
                self._send(body)

    def _send(self, body: str) -> None:
        self._queue.append(body)
        self._filled.set()

    def _sns(self, asked: dict[str, list[str]]) -> web.Response:
        [action] = asked["Action"]
        told = "<SubscriptionArn>arn:bench</SubscriptionArn>"
        if action == "Publish":
            self._send(asked["Message"][0])
            told = "<MessageId>1</MessageId>"
        text = (
            f"<{action}Response><{action}Result>{told}</{action}Result><ResponseMetadata>"
            f"<RequestId>1</RequestId></ResponseMetadata></{action}Response>"
        )
        return web.Response(text=text, content_type="text/xml", headers=_ID)

    async def _answer(self, operation: str, asked: dict[str, Any]) -> dict[str, Any]:
        match operation:
            case "PutItem" if asked["TableName"] == f"{TABLE_PREFIX}channels":
                self._put(asked["Item"])
            case "Query" if asked["TableName"] == f"{TABLE_PREFIX}channels":
                return {"Items": self._read(asked)}
            case "Query" | "Scan":
                return {"Items": []}
            case "CreateQueue" | "GetQueueUrl":
                return {"QueueUrl": "http://127.0.0.1/000000000000/bench"}
            case "ReceiveMessage":
                return {"Messages": await self._receive(asked["WaitTimeSeconds"])}
            case "DeleteMessageBatch":
                return {"Successful": [{"Id": entry["Id"]} for entry in asked["Entries"]]}
        return {}

    def _put(self, item: Item) -> None:
        offset, items = int(item["offset"]["N"]), self._channels[item["channel"]["S"]]
        items[offset] = item
        if len(items) > _CHANNEL_ITEMS_MAX:
            del items[min(set(items) - {HEAD_OFFSET})]
        if offset != HEAD_OFFSET:
            self._appends.append(item)

    def _read(self, asked: dict[str, Any]) -> list[Item]:
        values = asked["ExpressionAttributeValues"]
        low, high = int(values[":low"]["N"]), int(values[":high"]["N"])
        items = self._channels.get(values[":channel"]["S"], {})
        offsets = sorted(
            (offset for offset in items if low <= offset <= high),
            reverse=not asked["ScanIndexForward"],
        )
        return [items[offset] for offset in offsets[: asked["Limit"]]]

    async def _receive(self, wait_s: float) -> list[dict[str, Any]]:
        if not self._queue:
            self._filled.clear()
            try:
                async with asyncio.timeout(wait_s):
                    await self._filled.wait()
            except TimeoutError:
                return []
        messages: list[dict[str, Any]] = []
        while self._queue and len(messages) < RECEIVE_MAX:
            self._messages += 1
            messages.append(
                {
                    "MessageId": str(self._messages),
                    "ReceiptHandle": f"{self._messages:0>180}",
                    "Body": self._queue.popleft(),
                    "Attributes": {"SentTimestamp": str(time.time_ns() // 1_000_000)},
                }
            )
        return messages


async def main() -> None:
    """Serves until the end of standard input."""
    stub = Stub(float(sys.argv[1]) if len(sys.argv) > 1 else 0.0)
    app = web.Application(client_max_size=2**20)
    app.router.add_post("/{path:.*}", stub.handle)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    packing = asyncio.create_task(stub.pack())
    [(host, port)] = runner.addresses
    sys.stdout.write(json.dumps({"endpoint": f"http://{host}:{port}"}) + "\n")
    sys.stdout.flush()
    await asyncio.to_thread(sys.stdin.read)
    packing.cancel()
    await runner.cleanup()


if __name__ == "__main__":
    asyncio.run(main())
