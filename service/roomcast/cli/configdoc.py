"""`roomcast configdoc`: prints every option of the configuration, as docs/configuration.md has
them.
"""

from __future__ import annotations

import argparse
import json
from typing import Any, Final

from roomcast.cli.arguments import Subparsers, UsageError, add_command
from roomcast.config import CONSUMER_OPTIONS, OPTIONS, Option, reference

__all__ = ["add"]

_ALL: Final = (*OPTIONS, *CONSUMER_OPTIONS)
_EXAMPLES: Final = """\
examples:
  roomcast configdoc                       all tables, as Markdown
  roomcast configdoc client.token          one section
  roomcast configdoc --json | jq '.[] | select(.secret)'

Options of [channel.without_namespace] are those of each [[channel.namespaces]] as well.
Those of consumers have no variables of their own: ROOMCAST_CONSUMERS has all of them as JSON.
"""


def add(commands: Subparsers) -> None:
    """Adds `roomcast configdoc`."""
    parser = add_command(
        commands, "configdoc", configdoc, "print every option, what it takes and why", _EXAMPLES
    )
    parser.add_argument("section", nargs="?", metavar="SECTION", help="only this one")
    parser.add_argument("--json", action="store_true", help="print an array of options")


def configdoc(arguments: argparse.Namespace) -> int:
    """Prints the options. Raises UsageError."""
    options = [option for option in _ALL if arguments.section in (None, option.section)]
    if not options:
        sections = dict.fromkeys(option.section for option in _ALL)
        raise UsageError(f"no section is called that; there are {', '.join(sections)}")
    if arguments.json:
        print(json.dumps([_told(option) for option in options], ensure_ascii=False, indent=2))
    else:
        print(reference(options if arguments.section else None), end="")
    return 0


def _told(option: Option) -> dict[str, Any]:
    return {
        "option": option.key,
        "variable": "" if option in CONSUMER_OPTIONS else option.variable,
        "takes": option.expected(),
        "unit": option.rules.unit,
        "default": option.to_file(option.default),
        "secret": option.rules.secret,
        "doc": option.rules.doc,
    }
