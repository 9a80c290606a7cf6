"""Runs one node in this process until it is told to end: `roomcast serve`."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import AsyncExitStack

import structlog

from roomcast.config import Config, ConfigError
from roomcast.ec2.instance_metadata import this_machine
from roomcast.ecs.task_metadata import this_task
from roomcast.ports import PortError
from roomcast.serve.collector import look_seldom
from roomcast.serve.entry import (
    Address,
    Entrance,
    Worker,
    entrance,
    internal_address,
    refuse,
    refuse_address,
    stop_at_end_of_input,
    stopped_by_signals,
)
from roomcast.serve.plan import planned
from roomcast.serve.process import NodeProcess
from roomcast.serve.supervised import supervised
from roomcast.system import SystemClock

__all__ = ["serve"]

_log = structlog.get_logger(__name__)


async def serve(
    config: Config,
    *,
    host: str,
    port: int,
    demo_urls: Sequence[str] | None,
    exit_on_stdin_close: bool,
    worker: Worker | None = None,
    task_endpoint: str = "",
) -> int:
    """Run one node until SIGTERM or SIGINT (or the end of standard input). Returns the exit code.

    Both signals are ignored afterwards.

    `demo_urls`: base URLs of all instances of a development set-up, which serves the demo page;
    None = production.

    `worker`: this process is one of several that share the port; None = it is the only one.

    `task_endpoint`: the task metadata endpoint of ECS; "" = this is no task.
    """
    look_seldom()
    own_port = port if worker is None else worker.own_port
    shared_internal = internal_address(config, host)
    own_internal = shared_internal
    if own_internal is not None and worker is not None:
        own_internal = Address(own_internal.host, worker.own_internal_port)
    stop = asyncio.Event()
    async with AsyncExitStack() as stack:
        try:
            clients = stack.enter_context(entrance(host, own_port))
        except OSError as error:
            return refuse_address(host, own_port, error)
        internal = None
        if own_internal is not None:
            try:
                internal = stack.enter_context(entrance(own_internal.host, own_internal.port))
            except OSError as error:
                return refuse_address(own_internal.host, own_internal.port, error, internal=True)
        if exit_on_stdin_close:
            stop_at_end_of_input(stop)
        shared = None
        if worker is not None:
            shared = await stack.enter_async_context(
                supervised(worker, stop, host, shared_internal)
            )
        task = await this_task(task_endpoint)
        # A task is no machine: nothing of a group's life cycle is about it.
        imds_endpoint = config.node.imds_endpoint if task is None else ""
        machine = await stack.enter_async_context(this_machine(imds_endpoint, SystemClock()))
        try:
            # It imports the hooks, whose modules may hang. Nothing is there yet that must end in
            # order, so until then a signal ends the process at once.
            plan = planned(config, machine, task)
        except ConfigError as error:
            return refuse(str(error), code=2)
        stack.enter_context(stopped_by_signals(stop))
        # On every log line from here on, because logs of several nodes are often read together.
        structlog.contextvars.bind_contextvars(node=plan.node_id)
        process = NodeProcess(plan, stop, demo_urls=demo_urls, shared=shared)
        return await _exit_code(process, clients, internal)


async def _exit_code(process: NodeProcess, clients: Entrance, internal: Entrance | None) -> int:
    """Run `process` to its end. Returns the exit code."""
    try:
        if not await process.run(clients, internal):
            return process.exit_code
    except PortError as error:
        return refuse(f"cannot start: {error}")
    except OSError as error:
        # Another process that started at the same time may have bound the address, too, and
        # listened first.
        addresses = [f"{each.host}:{each.port}" for each in (clients, internal) if each is not None]
        return refuse(f"cannot listen on {' and '.join(addresses)}: {error.strerror or error}")
    finally:
        await process.end()
    _log.info("stopped", node=process.node_id)
    return process.exit_code
