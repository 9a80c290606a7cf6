"""`roomcast provision`: creates the resources that an emulator needs."""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
from functools import partial
from typing import Final

from roomcast.cli.arguments import Subparsers, UsageError, add_command, add_log_level, url
from roomcast.cli.in_time import in_time
from roomcast.cli.start import start_logs
from roomcast.cli.terminal import Failed
from roomcast.config import load

__all__ = ["LIMIT_S", "add"]

# For all of it, which takes a second or two. Each call has time-outs, but an answer that comes byte
# by byte meets none of them.
LIMIT_S: Final = 180.0
# The usual region of emulators.
EMULATOR_REGION: Final = "us-east-1"


_EXAMPLES: Final = """\
examples:
  roomcast provision --aws-endpoint http://127.0.0.1:4566

For emulators. In production deploy/data.yaml creates them: see deploy/README.md.
"""


def add(commands: Subparsers) -> None:
    """Adds `roomcast provision`."""
    parser = add_command(
        commands,
        "provision",
        run,
        "create tables, topic and what else is needed, on an emulator",
        _EXAMPLES,
    )
    parser.add_argument(
        "--aws-endpoint",
        type=url,
        metavar="URL",
        help="the emulator (default: as configured, AWS_ENDPOINT_URL)",
    )
    parser.add_argument(
        "--json",
        action="store_true",
        help="print an object: topic_arn, stream_arn, tables, created, topic_shards",
    )
    add_log_level(parser)


def run(arguments: argparse.Namespace) -> int:
    """Creates missing resources and prints all. Raises ConfigError, UsageError and Failed."""
    config = load(arguments.config, os.environ)
    endpoint = (
        arguments.aws_endpoint or config.aws.endpoint_url or os.environ.get("AWS_ENDPOINT_URL")
    )
    if not endpoint:
        # Never AWS itself by accident: there the templates own these resources.
        raise UsageError(
            "provision is for emulators: give --aws-endpoint, aws.endpoint_url or AWS_ENDPOINT_URL"
        )
    start_logs(arguments, config)
    from roomcast.dev.provision import DUMMY_CREDENTIALS, TOPIC_NAME, ProvisionError, provision

    region = (
        config.aws.region or os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
    )
    # Some emulators keep resources by account and derive it from the key. So the servers' own key
    # is used, if they have one.
    own_key = any(name in os.environ for name in ("AWS_ACCESS_KEY_ID", "AWS_PROFILE"))
    try:
        made = in_time(
            LIMIT_S,
            partial(
                provision,
                endpoint,
                config.aws.table_prefix,
                region=region or EMULATOR_REGION,
                credentials=None if own_key else DUMMY_CREDENTIALS,
                topic_name=config.aws.topic_arn.rpartition(":")[2] or TOPIC_NAME,
                topic_shards=config.aws.topic_shards,
            ),
        )
    except ProvisionError as error:
        raise Failed(str(error)) from error
    except TimeoutError as error:
        raise Failed(f"the AWS emulator at {endpoint} took more than {LIMIT_S:g} s") from error
    if arguments.json:
        print(json.dumps(dataclasses.asdict(made)))
    else:
        for table in made.tables:
            print(f"table  {table}{'  (new)' if table in made.created else ''}")
        print(f"topic  {made.topic_arn}\nstream {made.stream_arn}")
        if made.topic_shards > 1:
            print(f"shards {made.topic_shards}, with a topic each")
    return 0
