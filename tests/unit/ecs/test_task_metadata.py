"""The task metadata endpoint over HTTP: answers of every kind, and processes that have none."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest
from aiohttp import web
from structlog.testing import capture_logs

from roomcast.ecs import task_metadata
from roomcast.ecs.rules import Task
from roomcast.ecs.task_metadata import ANSWER_BYTES_MAX, PROBES_MAX, this_task
from tests.fakes.ecs import fake_task

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@asynccontextmanager
async def answering(handler: Handler) -> AsyncIterator[str]:
    """Something at the address that answers everything with `handler`."""
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", handler)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    await runner.cleanup()


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(task_metadata, "CALL_LIMIT_S", 0.05)


async def test_a_task_is_told_what_it_is() -> None:
    async with fake_task() as task:
        assert await this_task(task.endpoint) == Task(task.id, fargate=True)


async def test_a_proxy_is_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    async with fake_task() as task:
        assert await this_task(task.endpoint) is not None


async def test_without_an_endpoint_nobody_is_asked() -> None:
    with capture_logs() as logs:
        assert await this_task("") is None
    assert logs == []


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("status", [302, 404, 500])
async def test_an_endpoint_that_fails_is_asked_again(status: int) -> None:
    asked: list[str] = []

    async def handler(request: web.Request) -> web.Response:
        asked.append(request.path)
        return web.Response(status=status, headers={"Location": "http://127.0.0.1:9/"})

    async with answering(handler) as endpoint:
        with capture_logs() as logs:
            assert await this_task(endpoint) is None
    assert asked == ["/task"] * PROBES_MAX
    assert [(each["event"], each["reason"]) for each in logs] == [
        ("task_metadata_unreachable", f"status {status}")
    ]


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("body", ["", "no JSON", "[" * 100_000, "{}", "x" * (ANSWER_BYTES_MAX + 1)])
async def test_an_answer_that_describes_no_task(body: str) -> None:
    async def handler(_request: web.Request) -> web.Response:
        return web.Response(text=body)

    async with answering(handler) as endpoint:
        with capture_logs() as logs:
            assert await this_task(endpoint) is None
    assert [each["event"] for each in logs] == ["task_metadata_unreachable"]


@pytest.mark.usefixtures("impatient")
async def test_nobody_is_there() -> None:
    with capture_logs() as logs:
        # Nothing listens on the port of discard.
        assert await this_task("http://127.0.0.1:9/v4/id") is None
    assert [each["event"] for each in logs] == ["task_metadata_unreachable"]


@pytest.mark.usefixtures("impatient")
async def test_an_endpoint_that_comes_up_late_is_found() -> None:
    answers = iter([web.Response(status=503)])

    async def handler(_request: web.Request) -> web.Response:
        arn = "arn:aws:ecs:eu-west-1:123456789012:task/roomcast/4b2f0d9c7a6e"
        return next(answers, None) or web.json_response({"TaskARN": arn})

    async with answering(handler) as endpoint:
        assert await this_task(endpoint) == Task("4b2f0d9c7a6e", fargate=False)
