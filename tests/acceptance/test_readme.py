"""The two clients of README.md do what it says: what one publishes at one instance,
the other prints at another.
"""

from __future__ import annotations

import asyncio
import re
import sys
from asyncio.subprocess import Process
from collections.abc import Sequence
from typing import Final

import pytest

from tests.acceptance.roomcast import Dev
from tests.acceptance.servers import started
from tests.acceptance.snippets import marked
from tests.requirements import JS_DIRECTORY

README: Final = "README.md"
# As the README has them: the addresses of `make run`.
URLS: Final = (
    "ws://127.0.0.1:8000/connection/websocket",
    "ws://127.0.0.1:8001/connection/websocket",
)
TEST: Final = "test_readme.py"
LINE_S: Final = 20.0


def pointed_at(text: str, dev: Dev, channel: str) -> str:
    """The snippet with the addresses of `dev` and a channel of its own."""
    assert any(url in text for url in URLS)
    for url, own in zip(URLS, dev.ws_urls, strict=True):
        text = text.replace(url, own)
    # Quoted as in either language; the variable of that name stays.
    return re.sub(r"(['\"])news\1", repr(channel), text)


async def printed(process: Process, lines: Sequence[str]) -> None:
    """`process` prints exactly `lines` next."""
    assert process.stdout is not None, "asked for a pipe"
    for line in lines:
        async with asyncio.timeout(LINE_S):
            found = (await process.stdout.readline()).decode().rstrip("\n")
        assert found == line


@pytest.mark.parametrize("language", ["js", "python"])
def test_a_client_takes_about_ten_lines(language: str) -> None:
    lines = [line for line in marked(README, TEST, language).splitlines() if line.strip()]
    assert len(lines) <= 14


async def test_the_clients_hear_each_other(dev: Dev, node: str, channel: str) -> None:
    python, js = (
        pointed_at(marked(README, TEST, language), dev, channel) for language in ("python", "js")
    )
    async with started(sys.executable, "-c", python, folder=JS_DIRECTORY) as first:
        await printed(first, ["1 {'text': 'hello from Python'}"])
        async with started(
            node, "--input-type=module", "--eval", js, folder=JS_DIRECTORY
        ) as second:
            await printed(second, ["2 { text: 'hello from JavaScript' }"])
            await printed(first, ["2 {'text': 'hello from JavaScript'}"])
