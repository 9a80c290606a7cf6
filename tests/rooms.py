"""The rooms of the code: what each of them may import, and what its modules do import.

The rules are data. `breaches` and `unused` hold the code against them;
docs/rooms.py makes the table and the picture in docs/architecture.md from them.
"""

from __future__ import annotations

import ast
import functools
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

__all__ = [
    "LIBRARIES",
    "MODULES",
    "PURE",
    "ROOMS",
    "SOURCE",
    "Module",
    "Room",
    "breaches",
    "read",
    "room_of",
    "unused",
]

ROOT: Final = Path(__file__).parents[1]
SOURCE: Final = ROOT / "service"

# What a pure module cannot use: clocks, chance, the machine, the loop, logs.
# Nor is any of it asynchronous.
IMPURE: Final = frozenset(
    {
        "asyncio", "concurrent", "io", "logging", "multiprocessing", "os", "pathlib", "random", "secrets", "select",
        "selectors", "shutil", "signal", "socket", "ssl", "structlog", "subprocess", "sys", "tempfile", "threading",
        "time", "uuid",
    }
)  # fmt: skip
# The names by which a module reads the environment.
ENVIRONMENT: Final = frozenset({"environ", "environb", "getenv", "getenvb"})


@dataclass(frozen=True, slots=True)
class Room:
    """What the modules of a room may import besides each other and the standard library.

    `about`: one line, for people. `rooms`: other rooms. `environment`:
    whether it may read the environment.
    """

    about: str
    rooms: frozenset[str]
    libraries: frozenset[str]
    environment: bool


def _room(about: str, rooms: str = "", libraries: str = "", *, environment: bool = False) -> Room:
    return Room(about, frozenset(rooms.split()), frozenset(libraries.split()), environment)


# In the order in which a reader meets them. Whatever lies beside the rooms is named like one.
ROOMS: Final[Mapping[str, Room]] = {
    "wire": _room(
        "① the Centrifuge protocol: frames to commands, replies and pushes, in JSON and Protobuf",
        "frozen patterns",
        "google orjson",
    ),
    "client": _room(
        "② one connection: its session (pure decisions) and what carries them out",
        "auth concurrency delivery fleet frozen hooks log observe ports presence rates wire",
        "structlog",
    ),
    "log": _room(
        "③ the channel log: items, rules, turns, appends, history, idempotency, versions",
        "backoff concurrency frozen observe ports wire",
        "orjson structlog",
    ),
    "delivery": _room(
        "④–⑧ envelope, poller, intake, order, hub, forms; canary and catch-up beside them",
        "backoff concurrency frozen log observe ports rates wire",
        "orjson structlog",
    ),
    "gateway": _room(
        "⑨ sockets and HTTP: WebSocket, writer, server API, health",
        "client concurrency delivery fleet frozen hooks log node observe ports presence rates wire auth __version__",
        "aiohttp orjson structlog",
    ),
    "consumers": _room(
        "what back ends put into queues of SQS, carried out as the server API does",
        "backoff concurrency config gateway log node observe ports rates wire",
        "orjson structlog",
    ),
    "presence": _room("who is in a channel", "concurrency fleet ports rates wire", "structlog"),
    "fleet": _room(
        "what nodes know of each other: lease, roster, orders, what they hold",
        "auth backoff concurrency delivery log observe ports rates wire",
        "structlog",
    ),
    "reaper": _room(
        "what dead nodes left behind, and its end; by hand or as a Lambda",
        "concurrency delivery fleet ports presence wire",
    ),
    "auth": _room(
        "from a token to its claims: keys, signatures, JWKS",
        "backoff config frozen patterns ports wire",
        "cryptography jwt orjson structlog",
    ),
    "hooks": _room(
        "what an application imports, and how its code is called",
        "auth config observe ports rates wire",
        "orjson structlog",
    ),
    "transactions": _room(
        "what an application imports to publish in its own DynamoDB transaction",
        "backoff log wire",
    ),
    "node": _room(
        "one node put together, and its health",
        "auth client config delivery fleet hooks log observe ports presence rates wire __version__",
        "structlog",
    ),
    "admin": _room(
        "the operations page at /admin: who may see it, what it asks, and its files",
        "auth client concurrency config fleet gateway hooks log node observe ports presence rates wire",
        "aiohttp orjson structlog",
    ),
    "serve": _room(
        "one process: from its configuration to a node over AWS, its start and its end",
        "admin auth aws backoff concurrency config consumers delivery dev ec2 ecs fleet gateway hooks node observe ports rates reaper system wire "
        "__version__",
        "aiohttp structlog",
    ),
    "aws": _room(
        "the ports over AWS, one file each",
        "account backoff concurrency consumers delivery fleet log observe ports presence setup wire",
        "aioboto3 aiobotocore botocore structlog",
    ),
    "ec2": _room("the life cycle of an Auto Scaling group; optional", "backoff ports", "structlog"),
    "ecs": _room("which task of ECS this is; optional", "", "structlog"),
    "observe": _room(
        "what a node tells of itself: logs, counters, CloudWatch, traces",
        "ports rates wire __version__",
        "orjson structlog",
    ),
    "config": _room("what may be set, and where it is read from", "observe patterns wire"),
    "bench": _room(
        "`roomcast bench`: the load of a deployment, its clients, and what they saw",
        "backoff wire __version__",
        "aiohttp orjson",
    ),
    "account": _room(
        "what an account must have before the first deployment; read, never changed", "ports"
    ),
    "setup": _room(
        "how a deployment is set up: what is wrong with it, and what to do",
        "account config delivery fleet log ports",
    ),
    "cost": _room("`roomcast cost`: the calls that a load takes, and the bill"),
    "cli": _room(
        "the `roomcast` command, one module a command",
        "account admin auth aws backoff bench concurrency config cost delivery dev fleet hooks log node observe ports presence reaper serve setup system "
        "wire __version__",
        "aiohttp structlog",
        environment=True,
    ),
    "dev": _room(
        "`roomcast dev`: embedded AWS, supervisor, demo page",
        "auth aws backoff config delivery events gateway observe stream_lambda wire",
        "aiohttp boto3 botocore moto werkzeug",
        environment=True,
    ),
    "testing": _room(
        "in-memory twins of the ports, also for tests of applications",
        "aws consumers delivery fleet log ports presence wire",
    ),
    "stream_lambda": _room(
        "④ the Lambda behind the table's stream", "delivery log stream_batch", environment=True
    ),
    "events": _room(
        "the Lambda that tells back ends what happened, behind two tables' streams",
        "log stream_batch wire",
        "botocore",
        environment=True,
    ),
    "stream_batch": _room(
        "what the Lambdas behind streams share: bounded clients, the answer to the mapping",
        "",
        "boto3 botocore",
        environment=True,
    ),
    "ports": _room("what all ports have in common: errors, time, chance"),
    "system": _room("the real clock and real chance", ""),
    "concurrency": _room("work beside work"),
    "rates": _room("token buckets"),
    "frozen": _room("objects that do not change, cheap to make"),
    "patterns": _room("regular expressions in linear time", "", "re2"),
    "backoff": _room("pauses between attempts that fail"),
    "__main__": _room("`python -m roomcast`", "cli"),
    "__version__": _room("the version"),
}

# Libraries, rooms and the environment that single modules may use beyond what their room may.
MODULES: Final[Mapping[str, Room]] = {
    # One GET, which no SDK makes.
    "auth.jwks_endpoint": _room("", "", "aiohttp"),
    # The requests to an application's back end.
    "hooks.over_http": _room("", "", "aiohttp yarl"),
    # Not of the SDK, which reads nothing of what is asked here:
    # a small HTTP service on the machine itself.
    "ec2.instance_metadata": _room("", "", "aiohttp"),
    "ecs.task_metadata": _room("", "", "aiohttp"),
    # The calls that are made most, over the SDK's own connections.
    "aws.lean": _room("", "", "aiohttp orjson yarl"),
    "aws.clients": _room("", "", "aiohttp"),
    "ec2.autoscaling": _room("", "aws", "botocore"),
    "cli.completion": _room("", "", "shtab"),
    "node.prometheus": _room("", "", "prometheus_client"),
    # What a certificate says, and whether its key fits.
    "serve.certificates": _room("", "", "cryptography"),
    # The extra `otel`. Only serve.plan imports it, when it is wanted.
    "observe.otel": _room("", "", "opentelemetry requests", environment=True),
    # Where the machine's identity stands.
    "serve.aws_ports": _room("", environment=True),
    "reaper.over_aws": _room("", "aws"),
    # Its environment is all the configuration that a Lambda gets.
    "reaper.handler": _room("", "aws ec2 system", "boto3 botocore", environment=True),
}

# Data in, data out: no clock, chance, environment, log, I/O or await.
PURE: Final = frozenset(
    {
        "wire", "account.readings", "account.rules", "admin.passwords", "admin.sessions", "auth.claims", "auth.summary", "backoff", "bench.advice", "bench.chart", "bench.commands", "bench.histogram", "bench.ledger", "bench.plan", "bench.report", "client.closings", "client.effects", "client.permissions", "client.session", "cost", "config.channel_options", "config.checks", "config.consumer_options", "consumers.messages", "consumers.rules", "config.declaration", "config.issuers", "patterns", "config.messages", "config.options", "config.rendering", "hooks.api", "hooks.events", "log.contention", "log.idempotency", "log.item", "log.rules", "log.times", "delivery.allowance", "delivery.canary_rules", "delivery.envelope", "delivery.forms", "delivery.fossil", "delivery.gap_wait", "log.versions", "config.proxy_checks", "config.proxy_options", "hooks.faults", "hooks.passed_headers", "hooks.proxy_format",
        "delivery.queue_clock", "delivery.recovery", "delivery.resequencer",
        "delivery.shard_rules", "delivery.shards", "delivery.signals", "delivery.tags_filters", "delivery.tail_checks", "dev.event_source", "events.records", "events.targets", "ec2.rules", "ecs.rules", "fleet.badges", "fleet.drain_signals", "fleet.end_signals", "fleet.deployment", "fleet.inquiry_signals", "fleet.lease_record",
        "fleet.order_signals", "fleet.roster", "frozen", "fleet.node_info_signals", "node.isolation_rules", "observe.counters", "observe.emf",
        "observe.redaction", "presence.lists", "rates", "reaper.rules", "serve.supervision", "setup.causes", "setup.readings", "setup.rules", "transactions.conversation", "transactions.message", "transactions.verdict",
    }
)  # fmt: skip

# Libraries that no pure module imports, whatever its room may:
# those that are not data in, data out.
LIBRARIES: Final = frozenset({"orjson", "google", "jwt", "re2"})


@dataclass(slots=True)
class Module:
    """What one file does, by line. `imports`: absolute dotted names.
    `name`: without the leading `roomcast.`.
    """

    name: str
    imports: list[tuple[int, str]] = field(default_factory=list)
    asynchronous: list[int] = field(default_factory=list)
    environment: list[int] = field(default_factory=list)


def room_of(name: str) -> str:
    """The room of a module, both without the leading `roomcast.`."""
    return name.partition(".")[0]


def parse(name: str, source: str) -> Module:
    """What `source`, the text of module `name`, does.
    Imports within functions and for type checkers count.
    """
    module = Module(name)
    for part in ast.walk(ast.parse(source)):
        line = getattr(part, "lineno", 0)
        if isinstance(part, ast.Import):
            module.imports += [(line, alias.name) for alias in part.names]
        elif isinstance(part, ast.ImportFrom):
            base = f"{'.' * part.level}{part.module or ''}"
            module.imports += [(line, f"{base}.{alias.name}") for alias in part.names]
        elif isinstance(part, ast.AsyncFunctionDef | ast.AsyncFor | ast.AsyncWith | ast.Await):
            module.asynchronous.append(line)
        if _reads_environment(part):
            module.environment.append(line)
    return module


@functools.cache
def read() -> list[Module]:
    """Every module of the packages."""
    files = [*(SOURCE / "roomcast").rglob("*.py"), *(ROOT / "stream_lambda").rglob("*.py")]
    return [
        parse(_name(path), path.read_text(encoding="utf-8"))
        for path in sorted(files)
        # A link to the Lambda's folder.
        if not path.is_relative_to(SOURCE / "roomcast" / "stream_lambda")
    ]


def breaches(module: Module) -> Iterator[str]:
    """What `module` does that its room, or its being pure, forbids."""
    if module.name and room_of(module.name) not in ROOMS:
        yield f"{module.name}: in no room; add it to ROOMS in tests/rooms.py"
        return
    pure = _is_pure(module.name)
    for line, imported in module.imports:
        where = f"{module.name}:{line}: imports {imported}"
        if imported.startswith("."):
            yield f"{where}: write the absolute name"
        elif (target := _target(imported)) is not None:
            if room_of(module.name) != target and target not in _allowed(module.name, "rooms"):
                yield f"{where}, which its room may not"
            elif pure and target not in PURE and not _is_pure(_own(imported)):
                yield f"{where}, which is not pure"
        else:
            library = imported.partition(".")[0]
            if library in sys.stdlib_module_names or library == "__future__":
                if pure and library in IMPURE:
                    yield f"{where}, which is not pure"
            elif library not in _allowed(module.name, "libraries"):
                yield f"{where}, a library that its room may not use"
            elif pure and library not in LIBRARIES:
                yield f"{where}, a library that no pure module uses"
    if pure:
        yield from (f"{module.name}:{line}: is asynchronous" for line in module.asynchronous)
    if not any(each.environment for each in _rules(module.name)):
        yield from (f"{module.name}:{line}: reads the environment" for line in module.environment)


def unused(modules: Iterable[Module]) -> Iterator[str]:
    """Allowances that no module needs, and pure modules that are not there."""
    modules = list(modules)
    for title, rules in (*ROOMS.items(), *MODULES.items()):
        own = [each for each in modules if _covers(title, each.name)]
        if not own and title != "__version__":
            yield f"{title}: there is no such module"
        targets = {_target(name) for each in own for _, name in each.imports}
        libraries = {name.partition(".")[0] for each in own for _, name in each.imports}
        yield from (f"{title}: imports nothing of {name}" for name in sorted(rules.rooms - targets))
        yield from (f"{title}: does not use {name}" for name in sorted(rules.libraries - libraries))
        if rules.environment and not any(each.environment for each in own):
            yield f"{title}: does not read the environment"
    names = {each.name for each in modules}
    for title in sorted(PURE):
        if not any(_covers(title, name) for name in names):
            yield f"{title}: pure, but there is no such module"


def _name(path: Path) -> str:
    base = SOURCE / "roomcast" if path.is_relative_to(SOURCE) else ROOT
    parts = path.relative_to(base).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _own(imported: str) -> str:
    return imported.removeprefix("roomcast.")


def _target(imported: str) -> str | None:
    """The room of what is imported; None: not ours."""
    root = imported.partition(".")[0]
    if root not in ("roomcast", "stream_lambda"):
        return None
    return room_of(_own(imported))


def _covers(title: str, name: str) -> bool:
    return name == title or name.startswith(f"{title}.")


def _is_pure(name: str) -> bool:
    """Whether a module, or a name in one, is pure;
    a room's face (__init__) that hands names on is not asked.
    """
    return any(_covers(title, name) for title in PURE)


def _rules(name: str) -> list[Room]:
    return [rules for title, rules in (*ROOMS.items(), *MODULES.items()) if _covers(title, name)]


def _allowed(name: str, kind: str) -> frozenset[str]:
    return frozenset().union(*(getattr(rules, kind) for rules in _rules(name)))


def _reads_environment(part: ast.AST) -> bool:
    """Is `part` os.environ, os.getenv, or an import of either?"""
    if isinstance(part, ast.Attribute):
        return (
            part.attr in ENVIRONMENT and isinstance(part.value, ast.Name) and part.value.id == "os"
        )
    return (
        isinstance(part, ast.ImportFrom)
        and part.module == "os"
        and any(alias.name in ENVIRONMENT for alias in part.names)
    )
