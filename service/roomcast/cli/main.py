"""The entry point of `roomcast`: parses the arguments and returns the exit code.

Each command imports its needs when it runs.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from roomcast import __version__
from roomcast.cli import (
    bench,
    checkconfig,
    checktoken,
    completion,
    configdoc,
    cost,
    defaultconfig,
    dev,
    doctor,
    drain,
    export,
    genconfig,
    history,
    nodes,
    passwordhash,
    provision,
    publish,
    reap,
    replay,
    restore,
    serve,
    tail,
    token,
)
from roomcast.cli.arguments import Parser, UsageError
from roomcast.cli.leaving import LEAVE_S, leave_within
from roomcast.cli.terminal import Failed
from roomcast.config import ConfigError
from roomcast.observe.lines import tell
from roomcast.observe.redaction import printable, without_passwords

__all__ = ["EXIT_DONE", "EXIT_FAILED", "EXIT_USAGE", "main"]

EXIT_DONE: Final = 0
EXIT_FAILED: Final = 1
EXIT_USAGE: Final = 2

_EXAMPLES: Final = """\
examples:
  roomcast dev                                 two instances, an embedded AWS and a demo page
  roomcast serve --config roomcast.toml        one instance against AWS
  roomcast nodes                               all instances, and how they are doing
  roomcast drain NODE                          have one instance send its clients elsewhere, and end
  roomcast doctor                              is everything there that an instance needs?
  roomcast publish news '{"text":"hi"}'         publish from a shell; history and tail show it
  roomcast export news --output news.jsonl     a channel's history as lines of JSON; replay reads it
  roomcast bench http://127.0.0.1:8000         load it, and see what its clients see
  roomcast cost --clients 5000 --rate 20       what such a fleet costs a month
  roomcast token --user ann                    a token for trying things out
  roomcast genconfig --output roomcast.toml    a configuration to begin with
  roomcast checkconfig --config roomcast.toml  is it right, and what is in effect?
"""
# In the order of the help text.
_COMMANDS: Final = (
    dev, serve, provision, token, checktoken, publish, history, tail, export, replay, bench, nodes,
    drain, reap, restore, doctor, cost, genconfig, passwordhash, checkconfig, configdoc,
    defaultconfig, completion,
)  # fmt: skip


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command. `argv` None: that of this process, which then ends.

    Returns 0 for success, 1 for failure, 2 for a wrong usage or configuration. Never raises for
    those.
    """
    if argv is not None:
        return _run(argv)
    _open_streams()
    code = _run(None)
    leave_within(LEAVE_S, code)
    return code


def _open_streams() -> None:
    """Opens what whoever started this process has closed, as a shell does at `>&-`.

    Python has None there, and the next file or socket would get the descriptor: what a library
    prints would go into it.
    """
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, Path(os.devnull).open(mode, encoding="utf-8"))  # noqa: SIM115  # stays open


def _run(argv: Sequence[str] | None) -> int:
    try:
        arguments = _parser().parse_args(argv)
        run: Callable[[argparse.Namespace], int] = arguments.run
        code = run(arguments)
        sys.stdout.flush()
    except SystemExit as exit_:  # --help and --version
        return exit_.code if isinstance(exit_.code, int) else EXIT_DONE
    except (UsageError, ConfigError) as error:
        return _complain(error, EXIT_USAGE)
    except Failed as error:
        return _complain(error, EXIT_FAILED)
    except BrokenPipeError:
        # The reader of our output is gone, as with `| head`. Python would complain again at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_FAILED
    except KeyboardInterrupt:
        return _complain("interrupted", EXIT_FAILED)
    except Exception as error:  # noqa: BLE001  # the promise is one line and an exit code, whatever happened
        return _complain(_told(error), EXIT_FAILED)
    return code


def _told(error: Exception) -> str:
    from roomcast.ports import PortError

    if isinstance(error, OSError) and error.strerror:
        return error.strerror if error.filename is None else f"{error.filename}: {error.strerror}"
    if isinstance(error, PortError) and str(error):
        return str(error)
    return f"{type(error).__name__}: {error}".removesuffix(": ")


def _complain(reason: object, code: int) -> int:
    text = printable(without_passwords(" ".join(str(reason).split())))
    tell(f"roomcast: {text}")
    return code


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="roomcast",
        description="Real-time WebSocket channels over DynamoDB, SNS and SQS.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"roomcast {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for each in _COMMANDS:
        each.add(commands)
    # What `completion` tells of.
    parser.set_defaults(all_commands=parser)
    return parser
