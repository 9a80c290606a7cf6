"""service/roomcast/cli/leaving.py and service/roomcast/__main__.py: the end of the process,
though code of an application goes on, and its streams.
"""

from __future__ import annotations

import asyncio
import subprocess
import sys

import pytest

from roomcast.cli.leaving import run_to_its_end
from tests.processes import unread

# What an application leaves behind, and what a command returns.
LEFT = """
import asyncio, sys, threading
import roomcast.cli.leaving as leaving
import roomcast.cli.main as main

leaving.LEAVE_S = main.LEAVE_S = 0.2
for_ever = threading.Event()

async def work():
    {left}
    return 3

main._run = lambda _argv: leaving.run_to_its_end(work())
sys.exit(main.main())
"""
NEVER_CANCELLED = """
    async def stubborn():
        while True:
            try:
                await asyncio.sleep(3600)
            except asyncio.CancelledError:
                pass
    stubborn = asyncio.create_task(stubborn())
    await asyncio.sleep(0)
"""


def test_who_leaves_waits_for_nobody_who_reads_why() -> None:
    left = "threading.Thread(target=for_ever.wait).start()"
    with unread() as stderr:
        ended = subprocess.run(
            [sys.executable, "-c", LEFT.format(left=left)], stderr=stderr, timeout=20
        )
    assert ended.returncode == 3


@pytest.mark.parametrize(
    "left",
    [
        "asyncio.get_running_loop().run_in_executor(None, for_ever.wait)",
        "threading.Thread(target=for_ever.wait).start()",
        NEVER_CANCELLED.strip(),
    ],
)
def test_what_goes_on_is_left(left: str) -> None:
    ended = subprocess.run(
        [sys.executable, "-c", LEFT.format(left=left)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ended.returncode == 3, ended.stderr
    assert ended.stderr == (
        "roomcast: what still goes on 0.2 s after the end, such as a thread of a hook, is left\n"
    )


def test_who_leaves_nothing_is_not_cut_short() -> None:
    async def work() -> int:
        asyncio.get_running_loop().call_later(3600, print)
        return 5

    assert run_to_its_end(work()) == 5


def test_ctrl_c_while_the_program_is_imported_is_one_line() -> None:
    program = """
import sys
class Interrupts:
    def find_spec(self, name, *_):
        if name == "roomcast.cli.main":
            raise KeyboardInterrupt
sys.meta_path.insert(0, Interrupts())
from roomcast.__main__ import run
sys.exit(run())
"""
    ended = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False
    )
    assert (ended.returncode, ended.stderr) == (1, "roomcast: interrupted\n")


@pytest.mark.parametrize("closed", [0, 1, 2])
def test_a_stream_that_is_closed_is_one_that_nobody_reads(closed: int) -> None:
    program = (
        "import sys; import roomcast.cli.main as main; "
        "main._run = lambda _: print(sys.stdin.read(), file=sys.stderr) or print('out') or 0; "
        "sys.exit(main.main())"
    )
    ended = subprocess.run(
        ["sh", "-c", f'exec "$0" -c "$1" {closed}>&-', sys.executable, program],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (ended.returncode, ended.stdout) == (0, "" if closed == 1 else "out\n"), ended.stderr
