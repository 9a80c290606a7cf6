"""Programs of the documentation's readers: servers that say where they listen, and clients."""

from __future__ import annotations

import asyncio
import re
import subprocess
import threading
from asyncio.subprocess import PIPE, Process
from collections import deque
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Final

from tests.acceptance.roomcast import environment

__all__ = ["listening", "started"]

_STOP_S: Final = 30.0


@contextmanager
def listening(
    *command: str, folder: Path, said: str, environ: Mapping[str, str] | None = None
) -> Iterator[str]:
    """What the first group of `said` finds in what a server prints: where it listens.

    `environ`: its environment; None = `environment()`.
    """
    server = subprocess.Popen(
        command,
        cwd=folder,
        env=environment() if environ is None else dict(environ),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert server.stdout is not None, "asked for a pipe"
    # A server that nobody listens to stops when the pipe is full.
    rest = threading.Thread(target=deque, args=(server.stdout, 0), daemon=True)
    with server:
        try:
            # It says so soon, or ends; the test has its time.
            printed = ""
            while not (found := re.search(said, printed)):
                line = server.stdout.readline()
                assert line, f"{command} did not start:\n{printed}"
                printed += line
            rest.start()
            yield found[1]
        finally:
            server.terminate()
            try:
                server.wait(timeout=_STOP_S)
            except subprocess.TimeoutExpired:
                server.kill()
                raise
            if rest.ident is not None:
                rest.join()


@asynccontextmanager
async def started(
    *command: str, folder: Path, environ: Mapping[str, str] | None = None
) -> AsyncIterator[Process]:
    """A client, which is killed at the end. `environ`: None = ours."""
    process = await asyncio.create_subprocess_exec(*command, cwd=folder, env=environ, stdout=PIPE)
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()
