"""A task of ECS on Fargate, as far as its container sees it: the task metadata endpoint."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Final
from uuid import uuid4

from aiohttp import web

__all__ = ["CLUSTER", "FakeTask", "fake_task"]

_ACCOUNT: Final = "123456789012"
_REGION: Final = "us-east-1"
CLUSTER: Final = f"arn:aws:ecs:{_REGION}:{_ACCOUNT}:cluster/roomcast"


@dataclass(frozen=True, slots=True)
class FakeTask:
    """`endpoint`: what its container has in ECS_CONTAINER_METADATA_URI_V4."""

    id: str
    arn: str
    endpoint: str


@asynccontextmanager
async def fake_task(cluster: str = CLUSTER) -> AsyncIterator[FakeTask]:
    """A running task of a cluster, given by its ARN."""
    task = uuid4().hex
    arn = f"{cluster.replace(':cluster/', ':task/')}/{task}"

    async def describe(_request: web.Request) -> web.Response:
        return web.json_response(_described(task, arn, cluster))

    app = web.Application()
    app.router.add_get(f"/v4/{task}-0265927825/task", describe)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        port = runner.addresses[0][1]
        yield FakeTask(task, arn, f"http://127.0.0.1:{port}/v4/{task}-0265927825")
    finally:
        await runner.cleanup()


def _described(task: str, arn: str, cluster: str) -> dict[str, object]:
    return {
        "Cluster": cluster,
        "TaskARN": arn,
        "Family": "roomcast",
        "Revision": "7",
        "DesiredStatus": "RUNNING",
        "KnownStatus": "RUNNING",
        "Limits": {"CPU": 1, "Memory": 2048},
        "AvailabilityZone": "us-east-1b",
        "LaunchType": "FARGATE",
        "Containers": [
            {
                "DockerId": f"{task}-0265927825",
                "Name": "node",
                "DockerName": "node",
                "DesiredStatus": "RUNNING",
                "KnownStatus": "RUNNING",
                "Type": "NORMAL",
                "Networks": [{"NetworkMode": "awsvpc", "IPv4Addresses": ["10.0.1.23"]}],
            }
        ],
    }
