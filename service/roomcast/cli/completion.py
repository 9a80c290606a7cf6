"""`roomcast completion`: prints what makes a shell complete commands and options."""

from __future__ import annotations

import argparse
import sys
from typing import Final

from roomcast.cli.arguments import Subparsers, add_command
from roomcast.cli.terminal import Failed

__all__ = ["SHELLS", "add"]

# Those of the library that the tests look at.
SHELLS: Final = ("bash", "zsh", "fish")

_EXAMPLES: Final = """\
examples:
  eval "$(roomcast completion bash)"                                  in this shell
  roomcast completion bash > ~/.local/share/bash-completion/completions/roomcast
  roomcast completion zsh > "${fpath[1]}/_roomcast"
  roomcast completion fish > ~/.config/fish/completions/roomcast.fish

Write it anew after an update. It needs pip install 'roomcast[completion]' where it is printed, and
nothing where it is used.
"""


def add(commands: Subparsers) -> None:
    """Adds `roomcast completion`."""
    parser = add_command(
        commands,
        "completion",
        completion,
        "print what makes a shell complete commands and options",
        _EXAMPLES,
    )
    parser.add_argument("shell", choices=SHELLS, metavar="SHELL", help=", ".join(SHELLS))


def completion(arguments: argparse.Namespace) -> int:
    """Prints it. Raises Failed where the library is missing."""
    try:
        import shtab
    except ImportError:
        raise Failed("completion needs shtab: pip install 'roomcast[completion]'") from None
    parser: argparse.ArgumentParser = arguments.all_commands
    _mark_files(parser)
    sys.stdout.write(shtab.complete(parser, shell=arguments.shell))
    return 0


def _mark_files(parser: argparse.ArgumentParser) -> None:
    """Has arguments that are files complete as such."""
    import shtab

    for action in parser._actions:  # noqa: SLF001  # argparse has no other way to them
        if action.metavar == "FILE":
            action.complete = shtab.FILE  # type: ignore[attr-defined]  # where the library looks
        if isinstance(action.choices, dict):
            for each in action.choices.values():
                _mark_files(each)
