"""The `roomcast` command: arguments in, exit code out. What a command needs is imported when it runs."""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import importlib.util
import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NoReturn
from urllib.parse import urlsplit

from roomcast import __version__
from roomcast.cli import channels, doctor, fleet, tail
from roomcast.cli.terminal import Failed, has_colours
from roomcast.config import Config, ConfigError, config_path, effective, effective_toml, load
from roomcast.observe.redaction import printable, without_passwords, without_user

if TYPE_CHECKING:
    from roomcast.auth.keys import SigningKey

__all__ = ["EXIT_DONE", "EXIT_FAILED", "EXIT_USAGE", "main"]

EXIT_DONE: Final = 0
EXIT_FAILED: Final = 1
EXIT_USAGE: Final = 2

PORT_MAX: Final = 65_535
# One machine's worth: each is a process, on a port of its own.
INSTANCES_MAX: Final = 32
TOKEN_TTL_S_MAX: Final = 10 * 366 * 86_400

# What every emulator takes when nobody names a region.
EMULATOR_REGION: Final = "us-east-1"

_LOOPBACK: Final = "127.0.0.1"
# Where `roomcast dev` and `roomcast serve` listen if nothing else is said.
_SERVER_URL: Final = "http://127.0.0.1:8000"
_COUNT_MAX: Final = 2**31 - 1
_EVERY_ADDRESS: Final = "0.0.0.0"  # noqa: S104  # a server behind a load balancer; insecure ones bind loopback
_KEY_VARIABLE: Final = "ROOMCAST_CLIENT_TOKEN_HMAC_SECRET_KEY"

_EXAMPLES: Final = {
    "roomcast": """\
examples:
  roomcast dev                                 two instances, an embedded AWS and a demo page
  roomcast serve --config roomcast.toml        one instance against AWS
  roomcast nodes                               all instances, and how they are doing
  roomcast doctor                              is everything there that an instance needs?
  roomcast publish news '{"text":"hi"}'         publish from a shell; history and tail show it
  roomcast token --user ann                    a token for trying things out
  roomcast checkconfig --config roomcast.toml  is it right, and what is in effect?
""",
    "dev": """\
examples:
  roomcast dev
  roomcast dev --instances 4 --port 9000
  roomcast dev --aws-endpoint http://127.0.0.1:4566   an emulator that runs already

When all instances are ready, one line of JSON on stdout tells their addresses and process ids.
Ctrl-C ends everything it started.
""",
    "serve": """\
examples:
  roomcast serve --config /etc/roomcast.toml
  ROOMCAST_CLIENT_TOKEN_HMAC_SECRET_KEY=… roomcast serve --port 8001

Credentials, region and AWS_ENDPOINT_URL are taken as every AWS tool takes them.
SIGTERM stops it in order: connections are asked to go elsewhere, then its queue is deleted.
""",
    "provision": """\
examples:
  roomcast provision --aws-endpoint http://127.0.0.1:4566

For emulators. In production deploy/template.yaml creates them: see deploy/README.md.
""",
    "token": """\
examples:
  roomcast token --user ann
  roomcast token --user ann --info '{"name":"Ann"}' --ttl 600
  roomcast token --user ann --channel news             a subscription token
  roomcast token --user ann --claims '{"caps":[{"channels":["news"],"allow":["sub","pub"]}]}'
  roomcast token --user ann --private-key key.pem --kid 2026-11

Signed with client.token.hmac_secret_key (HS256); without a configuration, with the key of `roomcast dev`.
With --private-key: RS256 for an RSA key, ES256, ES384 or ES512 by the curve of an EC key, EdDSA for an Ed25519 key.
""",
    "checkconfig": """\
examples:
  roomcast checkconfig --config roomcast.toml
  roomcast checkconfig --json | jq .client

Prints the configuration in effect, file and environment together; secrets are masked.
Exit code 2 and one line on stderr when something in it is wrong.
""",
    **channels.EXAMPLES,
    **tail.EXAMPLES,
    **fleet.EXAMPLES,
    **doctor.EXAMPLES,
}


class _UsageError(Exception):
    """The arguments do not fit together. One line."""


class _Parser(argparse.ArgumentParser):
    """One line for a wrong usage, instead of the whole usage text."""

    def error(self, message: str) -> NoReturn:
        raise _UsageError(f"{message} (see {self.prog} --help)")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command. Returns 0 done, 1 failed, 2 wrong usage or configuration; never raises for those."""
    try:
        arguments = _parser().parse_args(argv)
        run: Callable[[argparse.Namespace], int] = arguments.run
        code = run(arguments)
        sys.stdout.flush()
    except SystemExit as exit_:  # --help and --version
        return exit_.code if isinstance(exit_.code, int) else EXIT_DONE
    except (_UsageError, ConfigError) as error:
        return _complain(error, EXIT_USAGE)
    except Failed as error:
        return _complain(error, EXIT_FAILED)
    except BrokenPipeError:
        # Whoever read our output has gone, for example `| head`; Python would complain once more at exit.
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
    told = printable(without_passwords(" ".join(str(reason).split())))
    print(f"roomcast: {told}", file=sys.stderr)
    return code


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="roomcast",
        description="Real-time WebSocket channels over DynamoDB, SNS and SQS.",
        epilog=_EXAMPLES["roomcast"],
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"roomcast {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    def command(
        name: str, run: Callable[[argparse.Namespace], int], text: str
    ) -> argparse.ArgumentParser:
        added: argparse.ArgumentParser = commands.add_parser(
            name,
            help=text,
            description=text[0].upper() + text[1:] + ".",
            epilog=_EXAMPLES[name],
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        added.set_defaults(run=run)
        added.add_argument(
            "--config", metavar="FILE", help="TOML file (default: $ROOMCAST_CONFIG, else none)"
        )
        return added

    dev = command(
        "dev", _dev, "run everything on this machine: embedded AWS, instances and a demo page"
    )
    dev.add_argument(
        "--instances",
        type=_whole(1, INSTANCES_MAX),
        default=2,
        metavar="N",
        help="servers (default: 2)",
    )
    dev.add_argument(
        "--host",
        type=_text,
        default=_LOOPBACK,
        help=f"address the servers listen on (default: {_LOOPBACK}; any other lets the network in)",
    )
    dev.add_argument(
        "--port",
        type=_whole(0, PORT_MAX),
        default=8000,
        help="of the first server; the others follow; 0 = any that are free (default: 8000)",
    )
    dev.add_argument(
        "--aws-endpoint",
        type=_url,
        metavar="URL",
        help="use the emulator that runs there and start none",
    )
    dev.add_argument(
        "--emulator-port",
        type=_whole(0, PORT_MAX),
        default=0,
        metavar="PORT",
        help="of the embedded AWS (default: 0 = any that is free)",
    )
    dev.add_argument("--restart", action="store_true", help="start a server again when it dies")
    _add_log_level(dev)

    serve = command("serve", _serve, "run one instance against the AWS that the environment names")
    serve.add_argument(
        "--host", type=_text, help="address to listen on (default: all; loopback if insecure)"
    )
    serve.add_argument(
        "--port",
        type=_whole(0, PORT_MAX),
        default=8000,
        help="0 = any that is free (default: 8000)",
    )
    _add_log_level(serve)
    development = serve.add_argument_group("development only, used by `roomcast dev`")
    development.add_argument(
        "--demo",
        action="store_true",
        help="serve the demo page; without a configuration file, be insecure",
    )
    development.add_argument(
        "--peers",
        type=_urls,
        metavar="URL,…",
        help="all instances, for the demo page (needs --demo)",
    )
    development.add_argument(
        "--exit-on-stdin-close",
        action="store_true",
        help="stop, in order, when standard input ends",
    )

    provision = command(
        "provision", _provision, "create tables, topic and what else is needed, on an emulator"
    )
    provision.add_argument(
        "--aws-endpoint",
        type=_url,
        metavar="URL",
        help="the emulator (default: as configured, AWS_ENDPOINT_URL)",
    )
    provision.add_argument(
        "--json",
        action="store_true",
        help="print an object: topic_arn, stream_arn, tables, created",
    )
    _add_log_level(provision)

    token = command("token", _token, "print a signed token for trying things out")
    token.add_argument(
        "--user", type=_text, required=True, metavar="U", help='who it is for ("" = anonymous)'
    )
    token.add_argument(
        "--channel", type=_text, metavar="C", help="make it a subscription token for this channel"
    )
    token.add_argument(
        "--ttl",
        type=_whole(0, TOKEN_TTL_S_MAX),
        default=3600,
        metavar="S",
        help="seconds it is good for; 0 = for ever (default: 3600)",
    )
    token.add_argument("--info", type=_json, metavar="JSON", help="what others see of this user")
    token.add_argument(
        "--claims",
        type=_json_object,
        metavar="JSON",
        help="an object with further claims: caps, subs, meta, …",
    )
    token.add_argument(
        "--private-key",
        metavar="FILE",
        help="sign with this key (PEM, no password), not with the secret",
    )
    token.add_argument(
        "--kid",
        type=_text,
        default="",
        metavar="K",
        help="name of the key, as in the JWK set that has it",
    )
    token.add_argument(
        "--json", action="store_true", help="print an object: token, user, channel, expires_at"
    )

    _add_channel_commands(command)

    nodes = command(
        "nodes", fleet.nodes, "list the nodes: which live, what they hold, how far behind they are"
    )
    nodes.add_argument(
        "--json", action="store_true", help="print an array with an object for each lease"
    )

    reap = command(
        "reap",
        fleet.reap,
        "clean up after nodes that died: queues, subscriptions, presence, leases",
    )
    reap.add_argument(
        "--dry-run", action="store_true", help="only say what would be removed, and why"
    )
    reap.add_argument(
        "--json", action="store_true", help="print what was found and done as an object"
    )

    checking = command(
        "doctor",
        doctor.doctor,
        "try out configuration, permissions and the pipeline from end to end",
    )
    checking.add_argument(
        "--json", action="store_true", help="print an array with an object for each check"
    )

    checkconfig = command(
        "checkconfig", _checkconfig, "validate the configuration and print what is in effect"
    )
    checkconfig.add_argument("--json", action="store_true", help="print JSON instead of TOML")
    return parser


def _add_channel_commands(command: Callable[..., argparse.ArgumentParser]) -> None:
    publish = command(
        "publish", channels.publish, "publish in a channel, through a server's HTTP API"
    )
    history = command(
        "history", channels.history, "print what a channel keeps, through a server's HTTP API"
    )
    following = command(
        "tail", tail.tail, "show what is published in a channel as it comes, over a WebSocket"
    )
    for each in (publish, history, following):
        each.add_argument("channel", type=_text, metavar="CHANNEL")
        each.add_argument(
            "--url", type=_url, default=_SERVER_URL, help=f"of the server (default: {_SERVER_URL})"
        )
        each.add_argument("--json", action="store_true", help="print JSON, as the server tells it")
    publish.add_argument(
        "data", type=_text, metavar="JSON", help="what is published; - = standard input"
    )
    publish.add_argument(
        "--idempotency-key",
        type=_text,
        metavar="K",
        help="publish once, however often it is repeated",
    )
    publish.add_argument("--skip-history", action="store_true", help="send it without storing")
    for each in (publish, history):
        each.add_argument("--key", type=_text, help="of the HTTP API (default: http_api.key)")
    history.add_argument(
        "--limit",
        type=_whole(1, _COUNT_MAX),
        default=_COUNT_MAX,
        metavar="N",
        help="publications at most (default: what the server gives at once)",
    )
    history.add_argument("--reverse", action="store_true", help="the newest first")
    history.add_argument(
        "--since",
        type=_whole(0, _COUNT_MAX),
        metavar="OFFSET",
        help="begin next to this publication",
    )
    history.add_argument(
        "--epoch",
        type=_text,
        default="",
        metavar="E",
        help="that --since counts in (default: the present one)",
    )
    following.add_argument(
        "--token",
        type=_text,
        default="",
        help="connection token (default: none; roomcast token makes one)",
    )
    following.add_argument(
        "--channel-token",
        type=_text,
        default="",
        metavar="TOKEN",
        help="subscription token, if it takes one",
    )
    following.add_argument(
        "--count", type=_whole(1, _COUNT_MAX), metavar="N", help="end after so many publications"
    )


def _add_log_level(parser: argparse.ArgumentParser) -> None:
    # The levels of service/roomcast/observe/logs.py, which is too slow to import for a help text.
    parser.add_argument(
        "--log-level",
        choices=("debug", "info", "warning", "error"),
        default="info",
        metavar="LEVEL",
        help="debug, info, warning or error (default: info)",
    )


def _dev(arguments: argparse.Namespace) -> int:
    last = arguments.port + arguments.instances - 1
    if arguments.port and last > PORT_MAX:
        raise _UsageError(
            f"--port and --instances need ports up to {last}; {PORT_MAX} is the last one"
        )
    # Before anything is started: every instance would fail over it, less clearly.
    _look_at_hooks(load(arguments.config, os.environ, demo=True))
    if arguments.aws_endpoint is None and not all(
        importlib.util.find_spec(name) for name in ("moto", "flask")
    ):
        raise Failed(
            "the embedded AWS is not installed: pip install 'roomcast[dev]' (or use --aws-endpoint)"
        )
    _start_logs(arguments)
    from roomcast.dev.supervisor import DevOptions, run_dev

    path = config_path(arguments.config, os.environ)
    options = DevOptions(
        instances=arguments.instances,
        host=arguments.host,
        port=arguments.port,
        aws_endpoint=arguments.aws_endpoint,
        emulator_port=arguments.emulator_port,
        config=None if path is None else str(path),
        restart=arguments.restart,
        log_level=arguments.log_level,
    )
    return asyncio.run(run_dev(options))


def _serve(arguments: argparse.Namespace) -> int:
    if arguments.peers is not None and not arguments.demo:
        raise _UsageError("--peers needs --demo")
    config = load(arguments.config, os.environ, demo=arguments.demo)
    _start_logs(arguments)
    _warn(config)
    import structlog

    from roomcast.ports import PortError
    from roomcast.serve import serve as app

    private = config.client.insecure or arguments.demo
    serving = app.serve(
        config,
        host=arguments.host or (_LOOPBACK if private else _EVERY_ADDRESS),
        port=arguments.port,
        demo_urls=(arguments.peers or ()) if arguments.demo else None,
        exit_on_stdin_close=arguments.exit_on_stdin_close,
    )
    try:
        return asyncio.run(serving)
    except (ConfigError, PortError, OSError):
        raise  # one line says enough
    except Exception:
        structlog.get_logger().exception("serve_failed")
        raise


def _provision(arguments: argparse.Namespace) -> int:
    config = load(arguments.config, os.environ)
    endpoint = (
        arguments.aws_endpoint or config.aws.endpoint_url or os.environ.get("AWS_ENDPOINT_URL")
    )
    if not endpoint:
        # Never AWS itself by accident: there the templates own these resources.
        raise _UsageError(
            "provision is for emulators: give --aws-endpoint, aws.endpoint_url or AWS_ENDPOINT_URL"
        )
    _start_logs(arguments)
    from roomcast.dev.provision import DUMMY_CREDENTIALS, TOPIC_NAME, ProvisionError, provision

    region = (
        config.aws.region or os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
    )
    # Some emulators keep resources by account and read it out of the key: the servers' key, if they have one.
    own_key = any(name in os.environ for name in ("AWS_ACCESS_KEY_ID", "AWS_PROFILE"))
    try:
        made = provision(
            endpoint,
            config.aws.table_prefix,
            region=region or EMULATOR_REGION,
            credentials=None if own_key else DUMMY_CREDENTIALS,
            topic_name=config.aws.topic_arn.rpartition(":")[2] or TOPIC_NAME,
        )
    except ProvisionError as error:
        raise Failed(str(error)) from error
    if arguments.json:
        print(json.dumps(dataclasses.asdict(made)))
    else:
        for table in made.tables:
            print(f"table  {table}{'  (new)' if table in made.created else ''}")
        print(f"topic  {made.topic_arn}\nstream {made.stream_arn}")
    return EXIT_DONE


def _token(arguments: argparse.Namespace) -> int:
    config = load(arguments.config, os.environ, demo=True)
    token = config.client.token
    key = _signing_key(arguments, config)
    from roomcast.auth.verifier import sign_connection, sign_subscription

    now_s = int(time.time())
    common: dict[str, Any] = {
        "audience": token.audience,
        "issuer": token.issuer,
        "now_s": now_s,
        "kid": arguments.kid,
        "claims": arguments.claims,
    }
    if arguments.channel is None:
        signed = sign_connection(arguments.user, key, arguments.ttl, arguments.info, **common)
    else:
        signed = sign_subscription(
            arguments.user, arguments.channel, key, arguments.ttl, arguments.info, **common
        )
    if arguments.json:
        answer = {
            "token": signed,
            "user": arguments.user,
            "channel": arguments.channel,
            "expires_at": now_s + arguments.ttl if arguments.ttl else None,
        }
        print(json.dumps({name: value for name, value in answer.items() if value is not None}))
    else:
        print(signed)
    return EXIT_DONE


def _signing_key(arguments: argparse.Namespace, config: Config) -> str | SigningKey:
    """The private key that was named, else the secret. Raises ConfigError and _UsageError."""
    if arguments.private_key is not None:
        from roomcast.auth.keys import KeyRefused, private_key

        try:
            return private_key(Path(arguments.private_key).read_bytes())
        except KeyRefused as error:
            raise _UsageError(f"--private-key: {error}") from error
    secret = config.client.token.hmac_secret_key
    if not secret:
        raise ConfigError(
            f"client.token.hmac_secret_key is not set (nor {_KEY_VARIABLE}): nothing to sign with"
        )
    if config_path(arguments.config, os.environ) is None and _KEY_VARIABLE not in os.environ:
        print(
            "roomcast: no key is configured; signed with the one of `roomcast dev`", file=sys.stderr
        )
    return secret


def _checkconfig(arguments: argparse.Namespace) -> int:
    config = load(arguments.config, os.environ)
    from roomcast.auth.verifier import TokenVerifier

    # Looks at the keys; that one is short is said below, not logged.
    TokenVerifier(config.client.token, insecure=True)
    _look_at_hooks(config)
    if arguments.json:
        print(json.dumps(effective(config), ensure_ascii=False, indent=2))
    else:
        print(effective_toml(config), end="")
    for _event, reason in _concerns(config):
        print(f"roomcast: warning: {reason}", file=sys.stderr)
    return EXIT_DONE


def _look_at_hooks(config: Config) -> None:
    """Raises ConfigError when one of them is not there. Importing them runs what their modules do when imported."""
    from roomcast.hooks.calls import load_hooks

    load_hooks(config.hooks)


def _concerns(config: Config) -> list[tuple[str, str]]:
    """What is allowed, and yet hardly ever meant: (event name, what it means)."""
    client = config.client
    if client.insecure:
        return [
            ("insecure_mode", "client.insecure is on: no token is needed and everything is allowed")
        ]
    if (
        not client.token.has_key
        and not client.allow_anonymous_connect_without_token
        and not config.hooks.connect
    ):
        return [
            (
                "nobody_can_connect",
                "no token key is configured and anonymous clients are not allowed: nobody can connect",
            )
        ]
    return []


def _warn(config: Config) -> None:
    import structlog

    for event, reason in _concerns(config):
        structlog.get_logger().warning(event, reason=reason)


def _start_logs(arguments: argparse.Namespace) -> None:
    from roomcast.observe import logs as telemetry

    telemetry.configure(
        arguments.log_level, console=sys.stderr.isatty(), colors=has_colours(sys.stderr)
    )


def _whole(minimum: int, maximum: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        # int() alone would also take "1_000", " 5 " and digits of other scripts.
        if not (
            text.isascii()
            and text.isdigit()
            and len(text) <= 12
            and minimum <= int(text) <= maximum
        ):
            raise argparse.ArgumentTypeError(
                f"must be a whole number from {minimum} to {maximum}; found {text!r}"
            )
        return int(text)

    return parse


def _text(text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise argparse.ArgumentTypeError("must be valid Unicode") from None
    return text


def _url(text: str) -> str:
    try:
        parts = urlsplit(text)
        # As for aws.endpoint_url: no path, and no password that would show up in logs.
        valid = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
        valid = (
            valid
            and text.rstrip("/") == f"{parts.scheme}://{parts.netloc}"
            and "@" not in parts.netloc
        )
    except ValueError:
        valid = False
    if not valid or not text.isprintable() or " " in text:
        found = without_user(text)
        raise argparse.ArgumentTypeError(
            f"must be an address such as http://127.0.0.1:5000; found {found!r}"
        )
    return text


def _urls(text: str) -> tuple[str, ...]:
    return tuple(_url(each) for each in text.split(",") if each)


def _json_object(text: str) -> Any:
    found = _json(text)
    if not isinstance(found, dict):
        raise argparse.ArgumentTypeError("must be a JSON object")
    return found


def _json(text: str) -> Any:
    def refuse(name: str) -> NoReturn:
        raise ValueError(f"{name} is not JSON")

    try:
        return json.loads(_text(text), parse_constant=refuse)
    except (ValueError, RecursionError):
        raise argparse.ArgumentTypeError("must be JSON") from None
