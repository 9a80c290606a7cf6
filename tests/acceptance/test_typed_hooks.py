"""An application's hooks, checked with `mypy --strict` against the package as it is installed."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import venv
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Final

import pytest

from tests.acceptance.snippets import marked
from tests.acceptance.test_hooks import PAGE, TEST

ROOT: Final = Path(__file__).parents[2]
MYPY_S: Final = 50

Check = Callable[[str], tuple[int, str]]


@pytest.fixture(scope="module")
def interpreter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One whose installed packages have roomcast as its users have it: as files, with py.typed.

    A link to this directory is not what they have. Then the package is laid into an environment of
    its own; the interface for applications needs nothing else.
    """
    files = metadata.distribution("roomcast").files or []
    if any(str(each) == "roomcast/py.typed" for each in files):
        return Path(sys.executable)
    directory = tmp_path_factory.mktemp("installed")
    venv.create(directory, symlinks=True, with_pip=False)
    installed = next((directory / "lib").glob("python3*")) / "site-packages"
    shutil.copytree(ROOT / "service" / "roomcast", installed / "roomcast")
    return directory / "bin" / "python"


@pytest.fixture
def check(interpreter: Path, tmp_path: Path) -> Check:
    """Checks the text of a module, in a project of its own. The exit code, and what is said."""

    def run(text: str) -> tuple[int, str]:
        (tmp_path / "chat_hooks.py").write_text(text)
        done = subprocess.run(
            [
                sys.executable,
                "-m",
                "mypy",
                "--strict",
                "--python-executable",
                interpreter,
                "chat_hooks.py",
            ],
            cwd=tmp_path,
            env={name: value for name, value in os.environ.items() if name != "MYPYPATH"},
            capture_output=True,
            text=True,
            timeout=MYPY_S,
        )
        return done.returncode, done.stdout + done.stderr

    return run


def test_the_example_of_the_page_has_its_types(check: Check) -> None:
    assert check(marked(PAGE, TEST, "python")) == (0, "Success: no issues found in 1 source file\n")


def test_a_mistake_in_it_is_found(check: Check) -> None:
    text = marked(PAGE, TEST, "python").replace("ConnectReply(user, ", "ConnectReply(7, ")
    code, said = check(text)
    assert code == 1
    assert 'Argument 1 to "ConnectReply" has incompatible type "int"; expected "str"' in said
