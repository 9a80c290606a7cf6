"""`roomcast restore`: makes tables out of backups, ready for a stack of data."""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import re
import string
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

from roomcast.cli.arguments import Subparsers, UsageError, add_command
from roomcast.cli.over_aws import connected
from roomcast.cli.terminal import Failed, progress
from roomcast.config import Config, load
from roomcast.observe.redaction import json_printable

if TYPE_CHECKING:
    from roomcast.aws.restoring import Restored, Source

__all__ = ["add", "generation_of"]

_EXAMPLES: Final = """\
examples:
  roomcast restore --to-prefix restored- --to-time 2026-11-30T12:00:00Z --dry-run
  roomcast restore --to-prefix restored- --to-time 2026-11-30T12:00:00Z
  roomcast restore --to-prefix restored- --channels-backup ARN --idempotency-backup ARN

Restores the tables channels and idempotency, whose names begin with --from-prefix, into new tables,
and gives these what DynamoDB does not restore: stream, TTL, point-in-time recovery, tags and
protection from deletion. Both must be of one moment: a key without its publication makes a
publication that is lost look done. A restore takes minutes to hours. If it is interrupted, run it
again: it goes on where it was. Then it says how to use the tables. It changes nothing that was
there.
"""

_PREFIX: Final = re.compile(r"[A-Za-z0-9_.-]{1,200}")
_ARN: Final = re.compile(r"arn:[a-z-]+:[a-z0-9-]+:[a-z0-9-]*:[0-9]*:\S+")
_DIGITS: Final = string.digits + string.ascii_lowercase


@dataclass(frozen=True, slots=True)
class _Told:
    """What a run comes to. `parameters`: of deploy/data.yaml and deploy/template.yaml."""

    dry_run: bool
    tables: list[Restored]
    table_prefix: str
    stream_arn: str
    log_generation: str
    parameters: Mapping[str, Mapping[str, str]]


def add(commands: Subparsers) -> None:
    """Adds `roomcast restore`."""
    parser = add_command(
        commands,
        "restore",
        restore,
        "restore the tables from backups, under other names",
        _EXAMPLES,
    )
    parser.add_argument(
        "--from-prefix",
        type=_prefix,
        metavar="PREFIX",
        help="of the tables that were backed up (default: aws.table_prefix)",
    )
    parser.add_argument(
        "--to-prefix", type=_prefix, metavar="PREFIX", required=True, help="of the new tables"
    )
    parser.add_argument(
        "--to-time",
        type=_moment,
        metavar="TIME",
        help="by point-in-time recovery, as 2026-11-30T12:00:00Z",
    )
    for table in ("channels", "idempotency"):
        parser.add_argument(
            f"--{table}-backup", type=_arn, metavar="ARN", help=f"backup of the table {table}"
        )
    parser.add_argument(
        "--kms-key",
        type=_arn,
        metavar="ARN",
        help="encrypt the new tables with this key (default: as the old ones)",
    )
    parser.add_argument(
        "--no-deletion-protection",
        action="store_false",
        dest="protect",
        help="leave the new tables without protection from deletion",
    )
    parser.add_argument("--dry-run", action="store_true", help="only say what would be done")
    parser.add_argument(
        "--json", action="store_true", help="print what was done, and the parameters, as an object"
    )


def restore(arguments: argparse.Namespace) -> int:
    """Restores, or says what it would do. Raises ConfigError, UsageError and Failed."""
    backups = [arguments.channels_backup, arguments.idempotency_backup]
    if arguments.to_time is None and not all(backups):
        raise UsageError("give --to-time, or --channels-backup and --idempotency-backup")
    if arguments.to_time is not None and any(backups):
        raise UsageError("--to-time and backups exclude each other")
    config = load(arguments.config, os.environ)
    if arguments.from_prefix is None:
        arguments.from_prefix = config.aws.table_prefix
    if arguments.from_prefix == arguments.to_prefix:
        raise UsageError("--to-prefix must differ from --from-prefix: tables are not overwritten")
    told = asyncio.run(_restore(config, arguments))
    if arguments.json:
        print(json_printable(json.dumps(asdict(told), ensure_ascii=False, indent=2)))
    else:
        print(_text(told))
    return 0


async def _restore(config: Config, arguments: argparse.Namespace) -> _Told:
    from roomcast.aws.restoring import Moment, NamedBackup, Restoration
    from roomcast.aws.schema import channels_table, idempotency_table, table_schemas
    from roomcast.fleet.deployment import APP, APP_TAG
    from roomcast.ports import PortError
    from roomcast.system import SystemClock

    named = {"channels": channels_table, "idempotency": idempotency_table}
    schemas = {schema.name: schema for schema in table_schemas(arguments.to_prefix)}

    def source(table: str) -> Source:
        backup = getattr(arguments, f"{table}_backup")
        if backup:
            return NamedBackup(backup)
        return Moment(named[table](arguments.from_prefix), arguments.to_time)

    wanted = [(schemas[named[table](arguments.to_prefix)], source(table)) for table in named]
    async with connected(config) as clients:
        restoration = Restoration(
            clients.tables,
            protect=arguments.protect,
            key_arn=arguments.kms_key or "",
            tell=progress(),
        )
        try:
            if arguments.dry_run:
                tables = await restoration.plan(wanted, {APP_TAG: APP})
            else:
                tables = await restoration.restore(wanted, {APP_TAG: APP})
        except PortError as error:
            again = "" if arguments.dry_run else "; run it again to go on"
            raise Failed(f"{error}{again}") from error
    stream_arn = tables[0].stream_arn
    generation = generation_of(SystemClock().now_ms())
    data = {"TablePrefix": arguments.to_prefix, "ChannelsStreamArn": stream_arn}
    if arguments.kms_key:
        data["KmsKeyArn"] = arguments.kms_key
    return _Told(
        arguments.dry_run,
        tables,
        arguments.to_prefix,
        stream_arn,
        generation,
        {"data": data, "fleet": {"LogGeneration": generation}},
    )


def generation_of(now_ms: int) -> str:
    """A log generation that no deployment had before `now_ms`: the time in seconds, in the letters
    and digits that `aws.log_generation` takes. One that was used before would make offsets count
    that went back.
    """
    left, text = now_ms // 1000, ""
    while left:
        left, digit = divmod(left, len(_DIGITS))
        text = _DIGITS[digit] + text
    return text


def _text(told: _Told) -> str:
    lines = []
    for each in told.tables:
        steps = ", ".join(each.steps) or "nothing: all is there"
        lines += [f"{each.table}, from {each.source}", f"  {steps}"]
    if told.dry_run:
        return "\n".join([*lines, "Nothing was changed (--dry-run)."])

    def given(which: str) -> str:
        return " ".join(f"{name}={value}" for name, value in told.parameters[which].items())

    stack = f'"$STACK-data-{told.log_generation}"'
    return "\n".join(
        [
            *lines,
            "",
            "A stack of data that uses them, beside the one that there is:",
            "",
            f"  aws cloudformation deploy --stack-name {stack} \\",
            f"    --template-file deploy/data.yaml --parameter-overrides {given('data')}",
            "",
            "Then the fleet goes over to it (deploy/README.md, Restore) with",
            "",
            f"  DataStack={stack} {given('fleet')}",
        ]
    )


def _prefix(text: str) -> str:
    if not _PREFIX.fullmatch(text):
        raise argparse.ArgumentTypeError("must be 1 to 200 letters, digits, -, _ or .")
    return text


def _arn(text: str) -> str:
    if not _ARN.fullmatch(text):
        raise argparse.ArgumentTypeError("must be an ARN")
    return text


def _moment(text: str) -> datetime:
    """A time with its distance from UTC. Without one it could be anybody's."""
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        moment = None
    if moment is None or moment.tzinfo is None:
        raise argparse.ArgumentTypeError("must be a time such as 2026-11-30T12:00:00Z")
    return moment.astimezone(UTC)
