"""Asks the task metadata endpoint of ECS, version 4, which task this is.

The endpoint is plain HTTP at a link-local address, which ECS gives each container in a variable.
"""

from __future__ import annotations

import asyncio
import json
from typing import Final

import aiohttp
import structlog

from roomcast.ecs.rules import MalformedTask, Task, task_of

__all__ = ["ANSWER_BYTES_MAX", "CALL_LIMIT_S", "PROBES_MAX", "this_task"]

# The endpoint is on the same host: an answer takes a millisecond, or does not come.
CALL_LIMIT_S: Final = 2.0
# Attempts, one in CALL_LIMIT_S. If they fail, the node does without it for its whole life.
PROBES_MAX: Final = 3
# A task of ten containers, each with all its labels and networks, takes a part of it.
ANSWER_BYTES_MAX: Final = 256 * 1024

_OK: Final = 200

_log = structlog.get_logger(__name__)


async def this_task(endpoint: str) -> Task | None:
    """The task that this process is in. None: in none, or it cannot be found out.

    `endpoint`: the value of ECS_CONTAINER_METADATA_URI_V4; "" = there is none.
    """
    if not endpoint:
        return None
    reason = ""
    time = asyncio.get_running_loop().time
    timeout = aiohttp.ClientTimeout(total=CALL_LIMIT_S)
    # Without a proxy from the environment, which would ask for another machine's task.
    async with aiohttp.ClientSession(timeout=timeout) as session:
        for probe in range(PROBES_MAX):
            began_s = time()
            try:
                return task_of(await _answer(session, endpoint.rstrip("/") + "/task"))
            except (aiohttp.ClientError, OSError, ValueError, RecursionError) as error:
                reason = str(error) or "no answer in time"
                if isinstance(error, MalformedTask):
                    break
            if probe + 1 < PROBES_MAX:
                # An agent that is just starting refuses at once, and again at once.
                await asyncio.sleep(max(0.0, CALL_LIMIT_S - (time() - began_s)))
    _log.warning("task_metadata_unreachable", reason=reason[:200])
    return None


async def _answer(session: aiohttp.ClientSession, url: str) -> object:
    """Raises aiohttp.ClientError, OSError, ValueError and RecursionError."""
    async with session.get(url, allow_redirects=False) as response:
        if response.status != _OK:
            raise ValueError(f"status {response.status}")
        body = b""
        async for part in response.content.iter_any():
            body += part
            if len(body) > ANSWER_BYTES_MAX:
                raise MalformedTask(f"more than {ANSWER_BYTES_MAX} bytes")
        document: object = json.loads(body)
        return document
