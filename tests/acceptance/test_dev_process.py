"""`roomcast dev` as a process: what it says, how it ends, and that nothing outlives it."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.acceptance.conftest import OpenPeer
from tests.acceptance.link import Link
from tests.acceptance.roomcast import Aws, Dev, emulator, roomcast

Start = Callable[..., Dev]


@pytest.fixture(scope="module")
def elsewhere() -> Iterator[str]:
    """The endpoint of an emulator that runs already, and goes on when `roomcast dev` is gone."""
    with emulator() as endpoint:
        yield endpoint


@pytest.fixture
def its_aws(elsewhere: str) -> Iterator[Aws]:
    looked_at = Aws(elsewhere)
    yield looked_at
    looked_at.close()


@pytest.fixture
def start() -> Iterator[Start]:
    started: list[Dev] = []

    def begin(*arguments: str) -> Dev:
        started.append(Dev(*arguments))
        started[-1].until_ready()
        return started[-1]

    yield begin
    for each in started:
        each.close()


async def test_an_orderly_end_leaves_nothing_behind(
    elsewhere: str, its_aws: Aws, start: Start, peer: OpenPeer, channel: str
) -> None:
    dev = await asyncio.to_thread(start, "--aws-endpoint", elsewhere)
    assert dev.aws_endpoint == elsewhere
    assert dev.ready["pid"] == dev.process.pid
    assert len(set(dev.urls)) == len(set(dev.nodes)) == 2
    for node in dev.nodes:
        assert [url for url in its_aws.queues() if node in url]
        assert its_aws.subscription_of(node)
    clients = [await peer(sdk, url) for sdk, url in zip(("js", "py"), dev.ws_urls, strict=True)]
    for client in clients:
        await client.subscribe(channel)
    await clients[0].publish(channel, "kept")

    await asyncio.to_thread(dev.stop, signal.SIGINT)
    for client in clients:
        assert (await client.event("connecting", code=3001))["reason"] == "shutdown"
    assert its_aws.queues() == []
    assert its_aws.subscriptions() == []
    assert its_aws.rows("roomcast-nodes") == []
    assert its_aws.rows("roomcast-presence") == []
    assert its_aws.log(channel) == [(1, "kept")]
    assert dev.complaints == []


async def test_a_killed_supervisor_takes_everything_with_it(
    elsewhere: str, its_aws: Aws, start: Start
) -> None:
    dev = await asyncio.to_thread(start, "--aws-endpoint", elsewhere)
    dev.process.kill()
    dev.process.wait()
    await asyncio.to_thread(dev.until_nobody_is_left)
    # Its instances ended in order, though nobody told them to.
    assert its_aws.queues() == []
    assert its_aws.subscriptions() == []
    assert its_aws.rows("roomcast-nodes") == []


async def test_a_killed_instance_is_reported_started_again_and_missed_by_nobody(
    start: Start, peer: OpenPeer, channel: str
) -> None:
    dev = await asyncio.to_thread(start, "--restart")
    async with Link(dev.ws_urls[0]) as link:
        ann, bob = await peer("js", link.url), await peer("py", dev.ws_urls[1])
        for each in (ann, bob):
            await each.subscribe(channel)
        await ann.publish(channel, "before")
        await bob.event("publication", channel=channel)

        os.kill(dev.pids[0], signal.SIGKILL)
        await ann.event("subscribing", channel=channel)
        # The other goes on, with the dead one's queue still at the topic.
        await bob.publish(channel, "meanwhile")
        await bob.event("publication", channel=channel, data="meanwhile")
        port = dev.urls[0].rpartition(":")[2]
        ended = f"the instance on port {port} ({dev.nodes[0]}) ended: SIGKILL"
        await asyncio.to_thread(dev.until_said, ended)

        back = await ann.event("subscribed", channel=channel, was_recovering=True)
        assert back["recovered"]
        await ann.publish(channel, "after")
        for each in (ann, bob):
            await each.event("publication", channel=channel, data="after")
            assert each.received(channel) == [(1, "before"), (2, "meanwhile"), (3, "after")]
        await ann.close()
    await asyncio.to_thread(dev.stop)


@pytest.mark.parametrize("command", ["serve", "dev"])
def test_no_test_listens_where_others_may(command: str) -> None:
    with pytest.raises(AssertionError, match="fixed port"):
        roomcast(command)


def test_a_port_in_use_is_one_line() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        ended = roomcast("dev", "--port", port)
    assert ended.returncode == 1
    assert ended.stdout == ""
    assert ended.stderr.count("\n") == 1
    assert f"port {port} is in use" in ended.stderr
    assert "--port" in ended.stderr


def test_a_wrong_key_in_the_configuration_is_named(tmp_path: Path) -> None:
    file = tmp_path / "roomcast.toml"
    file.write_text("[client]\nchannel_limits = 5\n", encoding="utf-8")
    ended = roomcast("dev", "--port", "0", "--config", str(file))
    assert ended.returncode == 2
    assert ended.stdout == ""
    assert ended.stderr.count("\n") == 1
    assert "client.channel_limits" in ended.stderr


def test_an_endpoint_where_nobody_answers_is_one_line() -> None:
    with socket.socket() as unused:  # bound but not listening: nobody else gets the port
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}"
        ended = roomcast("dev", "--port", "0", "--aws-endpoint", url)
    assert ended.returncode == 1
    assert ended.stdout == ""
    assert ended.stderr == f"roomcast dev: no AWS emulator answers at {url}\n"
