"""`roomcast bench`: loads a deployment, and tells what its clients saw."""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import secrets
import shutil
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

from roomcast import __version__
from roomcast.bench.plan import (
    CEILINGS,
    DEFAULTS,
    DELIVERIES_RATE_MAX,
    LIMITS,
    SIZE_MIN,
    SUBSCRIPTIONS_MAX,
    Plan,
)
from roomcast.cli.arguments import Subparsers, UsageError, add_command, text, url, whole
from roomcast.cli.server_api import add_key
from roomcast.cli.terminal import Failed, has_blocks, has_colours
from roomcast.config import Config, load
from roomcast.observe.redaction import json_printable, without_user

if TYPE_CHECKING:
    from roomcast.bench.run import Bench

__all__ = ["PATH", "WAIT_S_MAX", "add", "endpoint"]

# Where a roomcast server takes WebSockets.
PATH: Final = "/connection/websocket"
# Longer than any lag of a pipeline that is alive.
WAIT_S_MAX: Final = 300
# How often the progress is drawn anew.
_DRAW_S: Final = 0.1
# Tokens last as long as the run, and this much longer.
_TOKEN_SPARE_S: Final = 900
# Descriptors beside those of clients and calls.
_DESCRIPTORS: Final = 64
_WIDTH_MAX: Final = 100

_EXAMPLES: Final = f"""\
examples:
  roomcast bench http://127.0.0.1:8000
  roomcast bench http://127.0.0.1:8000 http://127.0.0.1:8001   both instances of roomcast dev
  roomcast bench wss://chat.example.com --namespace room --secret "$SECRET" --grant
  roomcast bench wss://chat.example.com --token "$TOKEN" --api http://10.0.0.5:8000 --key "$KEY"
  roomcast bench http://127.0.0.1:8000 --clients 500 --channels 50 --rate 100 --json

Clients come, subscribe to channels with names of their own, and publish. Then it says how long
everything took, and whether anything was lost, repeated or out of order. It ends by itself, with 1
if something was. Ctrl-C ends it sooner, and prints what it has.

Without --lift-limits: at most {LIMITS["clients"]:,} clients, {LIMITS["rate"]} publications and \
{DELIVERIES_RATE_MAX:,} deliveries a second, {LIMITS["duration"]} s.
Load what is yours only. docs/load.md explains the figures.
"""
_ABOUT: Final = {
    "clients": "that connect",
    "channels": "that they are spread over",
    "rate": "publications a second, of all together; 0 = none",
    "size": "bytes of a publication",
    "duration": "seconds of publishing",
    "ramp": "connects a second",
}
_LEAST: Final = {"rate": 0, "size": SIZE_MIN}


def add(commands: Subparsers) -> None:
    """Adds `roomcast bench`."""
    parser = add_command(
        commands,
        "bench",
        bench,
        "load a deployment of your own, and see what its clients see",
        _EXAMPLES,
    )
    parser.add_argument(
        "urls",
        nargs="+",
        type=endpoint,
        metavar="URL",
        help="where clients connect, in turn: ws://, wss://, http:// or https://, with the path "
        f"{PATH} if it has none",
    )
    load_of = parser.add_argument_group("the load")
    for name, about in _ABOUT.items():
        load_of.add_argument(
            f"--{name}",
            type=whole(_LEAST.get(name, 1), CEILINGS[name]),
            default=DEFAULTS[name],
            metavar="N",
            help=f"{about} (default: {DEFAULTS[name]})",
        )
    load_of.add_argument(
        "--subscriptions",
        type=whole(1, SUBSCRIPTIONS_MAX),
        default=1,
        metavar="N",
        help="channels of each client (default: 1)",
    )
    load_of.add_argument(
        "--publishers",
        type=whole(1, CEILINGS["clients"]),
        metavar="N",
        help="clients that publish, in turn (default: all)",
    )
    load_of.add_argument(
        "--wait",
        type=whole(0, WAIT_S_MAX),
        default=10,
        metavar="N",
        help="seconds at most for what is still to come at the end (default: 10)",
    )
    load_of.add_argument(
        "--lift-limits", action="store_true", help="allow more than the bounds below"
    )
    access = parser.add_argument_group("access")
    access.add_argument(
        "--namespace", type=text, default="", metavar="NAME", help="of the channels (default: none)"
    )
    access.add_argument(
        "--token", type=text, default="", help="connection token of all clients (default: none)"
    )
    access.add_argument(
        "--secret",
        type=text,
        default="",
        help="sign a token for each client with it (HS256; default: client.token.hmac_secret_key)",
    )
    access.add_argument(
        "--grant",
        action="store_true",
        help="let these tokens allow subscribing and publishing, whatever the namespace's options",
    )
    access.add_argument(
        "--origin", type=text, default="", help="the Origin that clients send (default: none)"
    )
    access.add_argument(
        "--api",
        action="append",
        type=url,
        default=[],
        metavar="URL",
        help="publish through the server API there; several are used in turn",
    )
    add_key(access)
    parser.add_argument(
        "--json", action="store_true", help="print one object for programs (docs/load.md)"
    )


def endpoint(text: str) -> str:
    """A WebSocket address. PATH is added where there is no path, and http becomes ws."""
    try:
        parts = urlsplit(text)
        valid = parts.scheme in ("ws", "wss", "http", "https") and bool(parts.hostname)
        valid = valid and parts.port != 0 and "@" not in parts.netloc and not parts.fragment
        (parts.hostname or "").encode("idna")  # raises for what can be no host
    except ValueError:
        valid = False
    if not valid or not text.isprintable() or " " in text:
        found = without_user(text)
        raise argparse.ArgumentTypeError(
            f"must be an address such as ws://127.0.0.1:8000{PATH}; found {found!r}"
        )
    path = parts.path if parts.path not in ("", "/") else PATH
    return parts._replace(scheme=parts.scheme.replace("http", "ws"), path=path).geturl()


def bench(arguments: argparse.Namespace) -> int:
    """Loads, and prints what happened. Raises ConfigError, UsageError, and Failed when nobody could
    connect, or something was lost, repeated or out of order.
    """
    config = load(arguments.config, os.environ)
    plan = _plan(arguments)
    token_of = _tokens(arguments, config, plan)
    _widen(plan)
    key = arguments.key if arguments.key is not None else config.http_api.key
    from roomcast.bench.advice import Declined
    from roomcast.bench.report import report
    from roomcast.bench.run import Access, Bench
    from roomcast.cli.bench_text import Look, bench_text

    loading = Bench(plan, Access(token_of, arguments.origin, key))
    try:
        asyncio.run(_run(loading))
    except Declined as error:
        raise Failed(str(error)) from error
    told = {
        "roomcast": __version__,
        **report(plan, loading.ledger, loading.times, interrupted=loading.interrupted),
    }
    if arguments.json:
        print(json_printable(json.dumps(told, ensure_ascii=False)))
    else:
        width = min(shutil.get_terminal_size().columns, _WIDTH_MAX)
        look = Look(width, has_colours(sys.stdout), has_blocks(sys.stdout))
        print(bench_text(told, loading.ledger, look))
    if told["reasons"]:
        raise Failed("; ".join(told["reasons"]))
    return 0


def _plan(arguments: argparse.Namespace) -> Plan:
    """Raises UsageError."""
    publishers = arguments.publishers or arguments.clients
    if arguments.api and arguments.publishers is not None:
        raise UsageError("--publishers are clients: with --api nobody of them publishes")
    if publishers > arguments.clients:
        raise UsageError(f"--publishers {publishers} is more than --clients {arguments.clients}")
    if arguments.subscriptions > arguments.channels:
        raise UsageError(
            f"--subscriptions {arguments.subscriptions} is more than "
            f"--channels {arguments.channels}"
        )
    plan = Plan(
        urls=arguments.urls,
        run=secrets.token_hex(4),
        clients=arguments.clients,
        channels=arguments.channels,
        subscriptions=arguments.subscriptions,
        publishers=publishers,
        rate=arguments.rate,
        size=arguments.size,
        duration=arguments.duration,
        ramp=arguments.ramp,
        wait=arguments.wait,
        namespace=arguments.namespace,
        apis=[each.rstrip("/") for each in arguments.api],
    )
    for excess in plan.excesses(lifted=arguments.lift_limits):
        hint = "" if arguments.lift_limits else " (--lift-limits allows it)"
        raise UsageError(f"{excess}{hint}")
    return plan


def _tokens(arguments: argparse.Namespace, config: Config, plan: Plan) -> Callable[[int], str]:
    """The token of each client, by its number. Raises UsageError."""
    configured = config.client.token
    secret = arguments.secret or ("" if arguments.token else configured.hmac_secret_key)
    if arguments.token and arguments.secret:
        raise UsageError("--token and --secret exclude each other")
    if not secret:
        if arguments.grant:
            raise UsageError("--grant needs --secret: it is written into tokens")
        return lambda _client: arguments.token
    from roomcast.auth.verifier import sign_connection
    from roomcast.wire.capabilities import Capability

    allow = [Capability.SUBSCRIBE.value, Capability.PUBLISH.value, Capability.HISTORY.value]
    channels = [plan.channel_name(0).removesuffix("0") + "*"]
    caps = [{"channels": channels, "match": "wildcard", "allow": allow}]
    return lambda client: sign_connection(
        f"bench-{plan.run}-{client}",
        secret,
        plan.clients // plan.ramp + arguments.duration + plan.wait + _TOKEN_SPARE_S,
        audience=configured.audience,
        issuer=configured.issuer,
        user_id_claim=configured.user_id_claim,
        claims={"caps": caps} if arguments.grant else None,
    )


def _widen(plan: Plan) -> None:
    """Takes as many descriptors as there are. Raises UsageError when they are too few."""
    from roomcast.bench.api import CALLS_MAX
    from roomcast.serve.descriptors import widened

    needed = plan.clients + (CALLS_MAX if plan.apis else 0) + _DESCRIPTORS
    if (limit := widened()) < needed:
        raise UsageError(
            f"{plan.clients} clients need {needed} open files, and this process may have {limit} "
            "(ulimit -n)"
        )


async def _run(loading: Bench) -> None:
    """Raises Declined."""
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, loading.interrupt)
    drawing = asyncio.create_task(_draw(loading)) if sys.stderr.isatty() else None
    try:
        await loading.run()
    finally:
        if drawing is not None:
            drawing.cancel()
            with suppress(asyncio.CancelledError):
                await drawing


async def _draw(loading: Bench) -> None:
    """Keeps a line of progress on stderr, and takes it away at the end."""
    from roomcast.bench.chart import progress_bar

    blocks = has_blocks(sys.stderr)
    try:
        while True:
            progress = loading.progress()
            width = min(shutil.get_terminal_size().columns - 1, _WIDTH_MAX)
            line = progress_bar(progress.done, progress.told, width, blocks=blocks)
            print(f"\r{line}", end="", file=sys.stderr, flush=True)
            await asyncio.sleep(_DRAW_S)
    finally:
        print("\r\x1b[K", end="", file=sys.stderr, flush=True)
