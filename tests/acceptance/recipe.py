"""A recipe of docs/recipes in a folder of its own, as its reader has it."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from tests.acceptance.roomcast import environment
from tests.acceptance.servers import listening
from tests.acceptance.snippets import marked
from tests.requirements import JS_DIRECTORY

__all__ = ["ORIGIN", "folder_served", "laid_out", "replaced", "script"]

# Where the recipes' sites are, and what the tests' pages may come from.
ORIGIN: Final = ("http://127.0.0.1:9000", "http://127.0.0.1:*")
_LANGUAGES: Final = {".html": "html", ".py": "python", ".toml": "toml"}


def replaced(text: str, *changes: tuple[str, str]) -> str:
    """`text` with each first of `changes`, which must be there, as its second."""
    for written, here in changes:
        assert written in text, written
        text = text.replace(written, here)
    return text


def laid_out(directory: Path, page: str, test: str, *names: str) -> None:
    """The files that `page` shows, with the SDK as npm has installed it."""
    for name in names:
        text = marked(page, f"{test} {name}", _LANGUAGES[Path(name).suffix])
        (directory / name).write_text(text)
    (directory / "node_modules").symlink_to(JS_DIRECTORY / "node_modules")
    config = directory / "roomcast.toml"
    # `roomcast` is started elsewhere by the tests.
    text = replaced(config.read_text(), ORIGIN)
    config.write_text(text.replace("[hooks]", f'[hooks]\ndirectory = "{directory}"'))


@contextmanager
def script(path: Path, **variables: str) -> Iterator[str]:
    """The address of the site that `path` serves at port 9000: at a free one, here.
    `variables`: of its environment.
    """
    path.write_text(replaced(path.read_text(), ("port=9000", "port=0")))
    environ = environment() | variables | {"PYTHONUNBUFFERED": "1"}
    with listening(
        sys.executable,
        path.name,
        folder=path.parent,
        said=r"Running on (http://[0-9.:]+)",
        environ=environ,
    ) as url:
        yield url


@contextmanager
def folder_served(directory: Path) -> Iterator[str]:
    """The address at which `python -m http.server` shows `directory`, as recipes have it."""
    command = (sys.executable, "-u", "-m", "http.server", "0", "--bind", "127.0.0.1")
    with listening(*command, folder=directory, said=r"port (\d+)") as port:
        yield f"http://127.0.0.1:{port}"
