"""Real nodes against the embedded AWS, each a process of its own, and raw WebSocket clients."""

from __future__ import annotations

import asyncio
import json
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import aiohttp
import pytest

from roomcast.auth.verifier import sign_connection, sign_subscription
from roomcast.aws.schema import idempotency_table, nodes_table, presence_table, table_schemas
from roomcast.serve.tries import START_TRIES_S
from tests.contract.backends import ROOT
from tests.integration.serving import (
    START_S,
    STOP_S,
    Aws,
    Process,
    deployed,
    environment,
    pump,
    serving,
)
from tests.websocket import WebSocket

DELIVERY_S: Final = 20
PREFIX: Final = "serve-"
SECRET: Final = "a secret of the tests, long enough to be no warning"
SIZE_LIMIT: Final = 4096
ORIGIN: Final = "https://chat.example.com"

# Everything that depends on tokens, permissions and options.
SECURE: Final = f"""
[client]
allowed_origins = ["{ORIGIN}"]
message_size_limit = {SIZE_LIMIT}
[client.token]
hmac_secret_key = "{SECRET}"
[channel.without_namespace]
history_size = 100
history_ttl = "300s"
force_recovery = true
presence = true
join_leave = true
force_push_join_leave = true
allow_subscribe_for_client = true
allow_publish_for_subscriber = true
allow_presence_for_subscriber = true
allow_history_for_subscriber = true
[[channel.namespaces]]
name = "plain"
allow_subscribe_for_client = true
allow_publish_for_client = true
[[channel.namespaces]]
name = "readonly"
allow_subscribe_for_client = true
[node]
drain_s = 0
"""
# Everything that depends on time and numbers.
IMPATIENT: Final = """
[client]
insecure = true
stale_close_delay_s = 0.5
ping_interval_s = 1
pong_timeout_s = 0.2
connection_limit = 2
[node]
drain_s = 0
"""


@pytest.fixture(scope="module")
def aws(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Aws]:
    with deployed(tmp_path_factory.mktemp("serve"), PREFIX) as aws:
        yield aws


@dataclass(frozen=True, slots=True)
class Nodes:
    """Two that share everything, and one that is short of patience."""

    first: Process
    second: Process
    impatient: Process


@pytest.fixture(scope="module")
def nodes(aws: Aws) -> Iterator[Nodes]:
    secure, impatient = aws.config("secure", SECURE), aws.config("impatient", IMPATIENT)
    with ExitStack() as stack:
        stack.enter_context(pump(aws))
        # All at once: most of a start is waiting.
        started = [Process(config, "--port", "0") for config in (secure, secure, impatient)]
        for process in started:
            stack.callback(process.close)
        for process in started:
            process.ready()
        yield Nodes(*started)
        for process in started:
            process.signal()
        for process in started:
            assert process.ended() == 0, process.log
            assert "Traceback" not in process.log, process.log


class Browser:
    """Opens connections, and closes all of them."""

    def __init__(self) -> None:
        self.session = aiohttp.ClientSession()
        self._opened: list[WebSocket] = []

    async def open(self, process: Process, **options: Any) -> WebSocket:
        response = await self.session.ws_connect(f"{process.url}/connection/websocket", **options)
        self._opened.append(WebSocket(response))
        return self._opened[-1]

    async def close(self) -> None:
        await asyncio.gather(*(opened.response.close() for opened in self._opened))
        await self.session.close()

    async def connect(self, process: Process, user: str = "ann") -> WebSocket:
        """A connected client of a secure node."""
        opened = await self.open(process)
        assert (await opened.ask("connect", token=sign_connection(user, SECRET, 60)))["client"]
        return opened


@pytest.fixture
async def browser() -> AsyncIterator[Browser]:
    browser = Browser()
    yield browser
    await browser.close()


@pytest.fixture
def channel(request: pytest.FixtureRequest) -> str:
    """A channel of this test alone."""
    test = str(request.node.name).partition("[")[0].removeprefix("test_")
    return f"{test[:100]}{time.monotonic_ns()}"


# ---- what clients say


async def test_several_commands_in_one_frame(nodes: Nodes, browser: Browser, channel: str) -> None:
    opened = await browser.open(nodes.first)
    ids = await opened.say(
        {"connect": {"token": sign_connection("ann", SECRET, 60, {"name": "Ann"})}},
        {"subscribe": {"channel": channel}},
        {"publish": {"channel": channel, "data": {"text": "hello"}}},
    )
    connected, subscribed, published = [await opened.answer(command_id) for command_id in ids]
    assert connected["connect"]["ping"] == 25
    assert connected["connect"]["version"].startswith("roomcast")
    assert subscribed["subscribe"]["recoverable"] is True
    assert subscribed["subscribe"]["epoch"]
    assert published["publish"] == {}
    await opened.published(channel, 1)
    [publication] = opened.pushes(channel, "pub")
    assert publication["data"] == {"text": "hello"}
    assert publication["offset"] == 1
    client = connected["connect"]["client"]
    assert publication["info"] == {"user": "ann", "client": client, "conn_info": {"name": "Ann"}}


@pytest.mark.parametrize(
    "frame, code",
    [
        ("not JSON", 3501),
        ('{"id":7,"unknown":{}}', 3501),
        ('{"id":7,"connect":{}}', 3501),
        ('{"send":{"data":1}}', 3508),
        ("x" * (4 * SIZE_LIMIT + 1), 1009),
    ],
)
async def test_what_ends_a_connection(
    nodes: Nodes, browser: Browser, frame: str, code: int
) -> None:
    opened = await browser.connect(nodes.first)
    await opened.response.send_str(frame)
    assert await opened.closed() == code


async def test_before_connect_nothing_else_is_welcome(nodes: Nodes, browser: Browser) -> None:
    opened = await browser.open(nodes.first)
    await opened.say({"subscribe": {"channel": "room"}})
    assert await opened.closed() == 3501


async def test_what_is_answered_with_an_error(nodes: Nodes, browser: Browser, channel: str) -> None:
    opened = await browser.connect(nodes.first)
    await opened.ask("subscribe", channel=channel)
    errors: dict[int, tuple[str, dict[str, Any]]] = {
        106: ("publish", {"channel": channel, "data": "x" * SIZE_LIMIT}),
        102: ("subscribe", {"channel": "unknown:room"}),
        107: ("subscribe", {"channel": "x" * 256}),
        103: ("publish", {"channel": "readonly:room", "data": 1}),
        108: ("rpc", {"method": "m", "data": 1}),
        105: ("subscribe", {"channel": channel}),
        112: (
            "history",
            {"channel": channel, "limit": 1, "since": {"epoch": "other", "offset": 1}},
        ),
    }
    for code, (method, params) in errors.items():
        assert await opened.ask(method, **params) == code
    assert await opened.ask("publish", channel=channel, data="the connection stays") == {}


# ---- tokens and origins


async def test_connection_tokens(nodes: Nodes, browser: Browser) -> None:
    assert (
        await (await browser.connect(nodes.first)).ask("subscribe", channel="readonly:room")
    ) == {}
    expired = sign_connection("ann", SECRET, 1, now_s=time.time() - 10)
    for token, code in ((expired, 109), ("", 101)):
        assert await (await browser.open(nodes.first)).ask("connect", token=token) == code
    for token in ("nonsense", sign_connection("ann", "another " + SECRET, 60)):
        opened = await browser.open(nodes.first)
        await opened.say({"connect": {"token": token}})
        assert await opened.closed() == 3500


async def test_subscription_tokens(nodes: Nodes, browser: Browser, channel: str) -> None:
    private = f"${channel}"
    opened = await browser.connect(nodes.first)
    assert await opened.ask("subscribe", channel=private) == 103
    expired = sign_subscription("ann", private, SECRET, 1, now_s=time.time() - 10)
    assert await opened.ask("subscribe", channel=private, token=expired) == 109
    good = sign_subscription("ann", private, SECRET, 60)
    assert (await opened.ask("subscribe", channel=private, token=good))["epoch"]
    other = await browser.connect(nodes.first, "bob")
    await other.say({"subscribe": {"channel": private, "token": good}})
    assert await other.closed() == 3500


async def test_origins(nodes: Nodes, browser: Browser) -> None:
    opened = await browser.open(nodes.first, origin=ORIGIN)
    assert (await opened.ask("connect", token=sign_connection("ann", SECRET, 60)))["client"]
    with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
        await browser.open(nodes.first, origin="https://evil.example.com")
    assert refused.value.status == 403


# ---- time and numbers


async def test_who_is_too_quiet_is_closed(nodes: Nodes, browser: Browser) -> None:
    silent, mute = await asyncio.gather(
        browser.open(nodes.impatient), browser.open(nodes.impatient)
    )
    await mute.ask("connect")
    assert await silent.closed() == 3502
    await mute.until(lambda: {} in mute.lines)
    assert await mute.closed() == 3012


async def test_who_answers_pings_stays(nodes: Nodes, browser: Browser) -> None:
    opened = await browser.open(nodes.impatient)
    await opened.ask("connect")
    for pings in (1, 2):
        await opened.until(lambda pings=pings: opened.lines.count({}) == pings)  # type: ignore[misc]
        await opened.response.send_str("{}")
    assert await opened.ask("publish", channel="room", data=1) == {}


async def test_a_full_node_refuses_and_has_room_again(nodes: Nodes, browser: Browser) -> None:
    held = [await browser.open(nodes.impatient) for _ in range(2)]
    with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
        await browser.open(nodes.impatient)
    assert refused.value.status == 503
    for opened in held:
        await opened.response.close()
    async with asyncio.timeout(DELIVERY_S):
        while True:
            try:
                await browser.open(nodes.impatient)
                break
            except aiohttp.WSServerHandshakeError:
                continue  # the end of the others has not got there yet


# ---- two nodes


async def test_two_people_on_two_nodes_share_a_room(
    nodes: Nodes, browser: Browser, channel: str
) -> None:
    ann, bob = await browser.connect(nodes.first), await browser.connect(nodes.second, "bob")
    for opened in (ann, bob):
        await opened.ask("subscribe", channel=channel)
    for number in range(10):
        who = (ann, bob)[number % 2]
        assert await who.ask("publish", channel=channel, data=number) == {}
    for opened in (ann, bob):
        assert await opened.published(channel, 10) == list(range(10))
        offsets = [publication["offset"] for publication in opened.pushes(channel, "pub")]
        assert offsets == list(range(1, 11))


async def test_what_has_no_history_reaches_the_other_node(
    nodes: Nodes, browser: Browser, channel: str
) -> None:
    name = f"plain:{channel}"
    ann, bob = await browser.connect(nodes.first), await browser.connect(nodes.second, "bob")
    assert await bob.ask("subscribe", channel=name) == {}
    assert await ann.ask("publish", channel=name, data="typing") == {}
    assert await bob.published(name, 1) == ["typing"]
    assert "offset" not in bob.pushes(name, "pub")[0]


async def test_presence_and_who_comes_and_goes(
    nodes: Nodes, browser: Browser, channel: str
) -> None:
    ann = await browser.connect(nodes.first)
    await ann.ask("subscribe", channel=channel)
    bob = await browser.connect(nodes.second, "bob")
    await bob.ask("subscribe", channel=channel)

    def users(kind: str) -> list[str]:
        return [push["info"]["user"] for push in ann.pushes(channel, kind)]

    await ann.until(lambda: users("join") == ["ann", "bob"])
    async with asyncio.timeout(DELIVERY_S):
        # What this node has read of presence may be a second old.
        while await ann.ask("presence_stats", channel=channel) != {
            "num_clients": 2,
            "num_users": 2,
        }:
            pass
    presence = (await ann.ask("presence", channel=channel))["presence"]
    assert sorted(entry["user"] for entry in presence.values()) == ["ann", "bob"]
    assert all(entry["client"] == key for key, entry in presence.items())
    await bob.response.close()
    await ann.until(lambda: users("leave") == ["bob"])
    async with asyncio.timeout(DELIVERY_S):
        while (await ann.ask("presence_stats", channel=channel))["num_clients"] != 1:
            pass


async def test_recovery_on_the_other_node(nodes: Nodes, browser: Browser, channel: str) -> None:
    ann, bob = await browser.connect(nodes.first), await browser.connect(nodes.second, "bob")
    await ann.ask("subscribe", channel=channel)
    position = await bob.ask("subscribe", channel=channel)
    for number in range(1, 4):
        await ann.ask("publish", channel=channel, data=number)
    await bob.published(channel, 3)
    await bob.response.close()
    for number in range(4, 8):
        await ann.ask("publish", channel=channel, data=number)

    back = await browser.connect(nodes.second, "bob")
    result = await back.ask(
        "subscribe", channel=channel, recover=True, epoch=position["epoch"], offset=3
    )
    assert (result["recovered"], result["was_recovering"], result["offset"]) == (True, True, 3)
    assert [publication["data"] for publication in result["publications"]] == [4, 5, 6, 7]
    await ann.ask("publish", channel=channel, data=8)
    assert await back.published(channel, 1) == [8]

    lost = await browser.connect(nodes.first, "bob")
    result = await lost.ask("subscribe", channel=channel, recover=True, epoch="_", offset=0)
    assert result["was_recovering"] is True
    assert "recovered" not in result
    assert result["offset"] == 8


async def test_history_is_paged_in_both_directions(
    nodes: Nodes, browser: Browser, channel: str
) -> None:
    ann, bob = await browser.connect(nodes.first), await browser.connect(nodes.second, "bob")
    for opened in (ann, bob):
        await opened.ask("subscribe", channel=channel)
    for command_id in await ann.say(
        *[{"publish": {"channel": channel, "data": number}} for number in range(1, 8)]
    ):
        assert (await ann.answer(command_id))["publish"] == {}

    seen: list[int] = []
    since: dict[str, Any] = {}
    while True:
        page = await bob.ask("history", channel=channel, limit=3, **since)
        if not page["publications"]:
            break
        seen += [publication["data"] for publication in page["publications"]]
        since = {"since": {"epoch": page["epoch"], "offset": page["publications"][-1]["offset"]}}
    assert seen == [1, 2, 3, 4, 5, 6, 7]
    page = await bob.ask("history", channel=channel, limit=2, reverse=True)
    assert [publication["data"] for publication in page["publications"]] == [7, 6]
    assert page["offset"] == 7
    since = {"since": {"epoch": page["epoch"], "offset": 6}}
    page = await bob.ask("history", channel=channel, limit=-1, reverse=True, **since)
    assert [publication["data"] for publication in page["publications"]] == [5, 4, 3, 2, 1]


# ---- health, start and end


async def test_health(nodes: Nodes, browser: Browser) -> None:
    for what in ("live", "ready"):
        async with browser.session.get(f"{nodes.first.url}/health/{what}") as response:
            body = await response.json()
            assert (response.status, body["status"], body["node"]) == (200, "ok", nodes.first.node)


async def test_systemd_gets_signs_of_life(aws: Aws, tmp_path: Path) -> None:
    name = str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as told:
        told.bind(name)
        told.settimeout(START_S)
        watched = {"NOTIFY_SOCKET": name, "WATCHDOG_USEC": "200000"}
        with serving(aws.config("watched", SECURE), environment() | watched) as process:
            process.ready()
            for _ in range(5):
                assert await asyncio.to_thread(told.recv, 100) == b"WATCHDOG=1"
            process.signal()
            assert await asyncio.to_thread(process.ended) == 0, process.log


async def test_an_orderly_end_leaves_nothing(
    aws: Aws, nodes: Nodes, browser: Browser, channel: str
) -> None:
    """I6."""
    ann = await browser.connect(nodes.first)
    await ann.ask("subscribe", channel=channel)
    with serving(aws.config("ending", SECURE)) as process:
        process.ready()
        bob = await browser.connect(process, "bob")
        await bob.ask("subscribe", channel=channel)
        await ann.until(lambda: len(ann.pushes(channel, "join")) == 2)
        assert len(aws.queues_of(process.node)) == len(aws.subscriptions_of(process.node)) == 1
        assert process.node in aws.leases()
        assert aws.presence_of(process.node)
        accepted = await bob.say(
            *[{"publish": {"channel": channel, "data": each}} for each in range(20)]
        )
        process.signal()
        assert await bob.closed() == 3001
        assert await asyncio.to_thread(process.ended) == 0, process.log
    assert "Traceback" not in process.log
    await ann.until(lambda: len(ann.pushes(channel, "leave")) == 1)
    assert aws.queues_of(process.node) == []
    assert aws.subscriptions_of(process.node) == []
    assert process.node not in aws.leases()
    assert aws.presence_of(process.node) == []
    # What was accepted before the end is in the log; what was acknowledged, for certain.
    acknowledged = sum(any(line.get("id") == each for line in bob.lines) for each in accepted)
    history = await ann.ask("history", channel=channel, limit=100)
    data = [publication["data"] for publication in history["publications"]]
    assert data == list(range(len(data)))
    assert len(data) >= acknowledged


def _without(aws: Aws, missing: Callable[[str], str]) -> str:
    """The prefix of tables that are all there but for one."""
    prefix = f"{missing('no-')}-"
    for schema in table_schemas(prefix):
        if schema.name != missing(prefix):
            aws.client("dynamodb").create_table(**schema.create)
    return prefix


@pytest.fixture(scope="module")
def refused(aws: Aws) -> Iterator[dict[str, Process]]:
    """Starts that cannot succeed, all at once."""
    missing_topic = aws.made.topic_arn + "-missing"
    with ExitStack() as stack:
        taken = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        # Connections come about, since the kernel takes them, and nothing is ever said.
        silent = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        closed = stack.enter_context(socket.socket())
        closed.bind(("127.0.0.1", 0))

        def config(name: str, **changes: str) -> Path:
            return aws.config(name, "[client]\ninsecure = true\n", **changes)

        def address(listener: socket.socket) -> str:
            return f"http://127.0.0.1:{listener.getsockname()[1]}"

        starts = {
            "no topic": Process(config("no-topic", topic_arn=""), "--port", "0"),
            "missing topic": Process(
                config("missing-topic", topic_arn=missing_topic), "--port", "0"
            ),
            "missing table": Process(
                config("missing-table", table_prefix="absent-"), "--port", "0"
            ),
            **{
                f"missing table: {missing('')}": Process(
                    config(missing("no-"), table_prefix=_without(aws, missing)), "--port", "0"
                )
                for missing in (idempotency_table, presence_table, nodes_table)
            },
            "port in use": Process(config("port-in-use"), "--port", str(taken.getsockname()[1])),
            "nothing listens": Process(
                config("closed", endpoint_url=address(closed)), "--port", "0"
            ),
            "silent": Process(config("silent", endpoint_url=address(silent)), "--port", "0"),
        }
        for process in starts.values():
            stack.callback(process.close)
        yield starts


# Two of them try for as long as a start may.
@pytest.mark.timeout(120)
@pytest.mark.parametrize(
    "start, code, words",
    [
        ("no topic", 2, ["aws.topic_arn"]),
        ("missing topic", 1, ["topic"]),
        ("missing table", 1, ["absent-"]),
        # It would show only when somebody publishes with a key,
        # or subscribes where there is presence.
        ("missing table: idempotency", 1, ["cannot start: table no-idempotency-idempotency: "]),
        ("missing table: presence", 1, ["cannot start: table no-presence-presence: "]),
        ("missing table: nodes", 1, ["cannot start: table no-nodes-nodes: "]),
        ("port in use", 1, ["cannot listen", "--port"]),
        ("nothing listens", 1, ["cannot start"]),
        ("silent", 1, ["cannot start"]),
    ],
)
def test_a_start_that_cannot_succeed_says_why_in_one_line(
    aws: Aws, refused: dict[str, Process], start: str, code: int, words: list[str]
) -> None:
    process = refused[start]
    assert process.ended(START_S + START_TRIES_S) == code, process.log
    assert "Traceback" not in process.log
    [line] = [line for line in process.lines if not line.startswith("{")]
    assert line.startswith("roomcast: ")
    assert all(word in line for word in words), line


@pytest.mark.timeout(120)
def test_a_start_that_failed_leaves_nothing(
    aws: Aws, nodes: Nodes, refused: dict[str, Process]
) -> None:
    for process in refused.values():
        process.ended(START_S + START_TRIES_S)
    living = {nodes.first.node, nodes.second.node, nodes.impatient.node}
    assert aws.leases() == living
    queues = aws.client("sqs").list_queues(QueueNamePrefix=PREFIX).get("QueueUrls", [])
    assert len(queues) == len(living)
    assert all(any(node in queue for node in living) for queue in queues)


# Stands for a mistake of ours in a background task.
FAULTY: Final = """
import sys
from roomcast.delivery.poller import Poller

async def run(self):
    raise RuntimeError("a mistake")

Poller.run = run
from roomcast.cli.main import main
sys.exit(main(sys.argv[1:]))
"""


def test_a_node_whose_background_task_ends_ends_with_a_failure(aws: Aws) -> None:
    """An orderly end all the same; but systemd is to start it again."""
    config = aws.config("faulty", SECURE)
    done = subprocess.run(
        [sys.executable, "-c", FAULTY, "serve", "--config", str(config), "--port", "0"],
        cwd=ROOT,
        env=environment(),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=START_S + STOP_S,
    )
    assert done.returncode == 1, done.stderr
    assert "background_task_ended" in done.stderr
    [node] = {json.loads(line)["node"] for line in done.stderr.splitlines() if '"node"' in line}
    assert not aws.left_of(node)
