"""Stands between a process and its AWS and writes down each call: which action of IAM, on what, under which conditions."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Final
from urllib.parse import parse_qs

import aiohttp
from aiohttp import web

__all__ = ["Action", "Recorder", "recorder"]

# Of one connection only.
_HOP_BY_HOP: Final = frozenset({"connection", "content-length", "keep-alive", "transfer-encoding"})
_ACCOUNT: Final = "123456789012"
# Calls whose name is not their permission's.
_PERMISSIONS: Final = {
    ("sqs", "DeleteMessageBatch"): "DeleteMessage",
    ("sns", "PublishBatch"): "Publish",
}
# The service that signs the request, by what its name is in ARNs and actions.
_SIGNED_AS: Final = {"monitoring": "cloudwatch"}


@dataclass(frozen=True, slots=True)
class Action:
    """What IAM is asked for one call. `context`: keys of conditions."""

    name: str
    resource: str
    context: Mapping[str, str] = field(default_factory=dict)


class Recorder:
    """Forwards everything to `upstream`. The answers of the operations in `lost` are not passed on."""

    def __init__(self, upstream: str, region: str) -> None:
        self._upstream = upstream
        self._region = region
        self.lost: set[str] = set()
        self.actions: list[Action] = []
        # Of queues, as they were made.
        self._tags: dict[str, dict[str, str]] = {}
        self._session: aiohttp.ClientSession | None = None
        self.url = ""

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        body = await request.read()
        service = _service(request)
        operation, parameters = _call(request, body)
        self.actions.extend(self._asked(service, operation, parameters))
        headers = {name: value for name, value in request.headers.items() if name.lower() not in _HOP_BY_HOP}
        assert self._session is not None
        async with self._session.request(
            request.method, self._upstream + request.path_qs, headers=headers, data=body
        ) as response:
            content = await response.read()
            kept = {
                name: value for name, value in response.headers.items() if name.lower() not in _HOP_BY_HOP
            }
        if operation in self.lost and request.transport is not None:
            request.transport.close()
        return web.Response(status=response.status, headers=kept, body=content)

    def _asked(self, service: str, operation: str, parameters: Mapping[str, Any]) -> Iterator[Action]:
        if service == "dynamodb":
            yield from self._of_tables(operation, parameters)
        elif service == "sqs":
            yield from self._of_queue(operation, parameters)
        else:
            name = f"{service}:{_PERMISSIONS.get((service, operation), operation)}"
            yield Action(
                name, self._resource(service, operation, parameters), _context(operation, parameters)
            )

    def _of_tables(self, operation: str, parameters: Mapping[str, Any]) -> Iterator[Action]:
        """A transaction asks for each of its parts."""
        if operation == "TransactWriteItems":
            for part in parameters["TransactItems"]:
                [(kind, what)] = part.items()
                yield Action(f"dynamodb:{kind}Item", self._arn("dynamodb", f"table/{what['TableName']}"))
            return
        tables = parameters["RequestItems"] if "RequestItems" in parameters else [parameters["TableName"]]
        for table in tables:
            yield Action(f"dynamodb:{operation}", self._arn("dynamodb", f"table/{table}"))

    def _of_queue(self, operation: str, parameters: Mapping[str, Any]) -> Iterator[Action]:
        if operation == "ListQueues":
            yield Action("sqs:ListQueues", "*")
            return
        queue = parameters.get("QueueName") or parameters["QueueUrl"].rpartition("/")[2]
        arn = self._arn("sqs", queue)
        if operation == "CreateQueue":
            tags = self._tags[queue] = dict(parameters["tags"])
            requested = {f"aws:RequestTag/{key}": value for key, value in tags.items()}
            yield Action("sqs:CreateQueue", arn, requested)
            yield Action("sqs:TagQueue", arn, requested)
            return
        context = {f"aws:ResourceTag/{key}": value for key, value in self._tags.get(queue, {}).items()}
        yield Action(f"sqs:{_PERMISSIONS.get(('sqs', operation), operation)}", arn, context)

    def knows(self, queue: str, tags: Mapping[str, str]) -> None:
        """A queue that somebody else made."""
        self._tags[queue] = dict(tags)

    def _resource(self, service: str, operation: str, parameters: Mapping[str, Any]) -> str:
        if service == "sns" and "TopicArn" in parameters:
            return str(parameters["TopicArn"])
        if service == "autoscaling":
            group = parameters["AutoScalingGroupName"]
            return self._arn("autoscaling", f"autoScalingGroup:uuid:autoScalingGroupName/{group}")
        # Authorized without a resource.
        assert (service, operation) in {("sns", "Unsubscribe"), ("cloudwatch", "PutMetricData")}, operation
        return "*"

    def _arn(self, service: str, what: str) -> str:
        return f"arn:aws:{service}:{self._region}:{_ACCOUNT}:{what}"

    @asynccontextmanager
    async def listening(self) -> AsyncIterator[None]:
        async with aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0),
            auto_decompress=False,
            timeout=aiohttp.ClientTimeout(total=None),
        ) as self._session:
            runner = web.ServerRunner(web.Server(self.handle, access_log=None), shutdown_timeout=1.0)
            await runner.setup()
            try:
                await web.TCPSite(runner, "127.0.0.1", 0).start()
                self.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
                yield
            finally:
                await runner.cleanup()


@asynccontextmanager
async def recorder(upstream: str, region: str) -> AsyncIterator[Recorder]:
    """One that listens, on loopback."""
    recording = Recorder(upstream, region)
    async with recording.listening():
        yield recording


def _service(request: web.BaseRequest) -> str:
    """As the signature says: Credential=KEY/DATE/REGION/SERVICE/aws4_request."""
    scope = request.headers["Authorization"].partition("Credential=")[2].partition(",")[0]
    signed = scope.split("/")[3]
    return _SIGNED_AS.get(signed, signed)


def _call(request: web.BaseRequest, body: bytes) -> tuple[str, Mapping[str, Any]]:
    """The operation and its parameters, of the protocols with JSON and with forms."""
    if target := request.headers.get("X-Amz-Target"):
        return target.partition(".")[2], json.loads(body)
    form = {name: values[0] for name, values in parse_qs(body.decode(), keep_blank_values=True).items()}
    return form["Action"], form


def _context(operation: str, parameters: Mapping[str, Any]) -> dict[str, str]:
    if operation == "Subscribe":
        return {"sns:Protocol": parameters["Protocol"], "sns:Endpoint": parameters["Endpoint"]}
    if operation == "PutMetricData":
        return {"cloudwatch:namespace": parameters["Namespace"]}
    return {}
