"""What `roomcast dev` checks and hands to its children, without starting any."""

from __future__ import annotations

import socket
import subprocess
import sys
from pathlib import Path

import pytest

import roomcast
from roomcast.config import OPTIONS, ServerConfig, load
from roomcast.dev.provision import Provisioned
from roomcast.dev.supervisor import DevOptions, _child_environment, _usable_ports, run_dev
from tests.processes import unread

RESOURCES = Provisioned("arn:aws:sns:us-east-1:123456789012:roomcast-topic", "arn:stream", (), ())


def test_the_children_see_the_emulator_and_no_account() -> None:
    inherited = {
        "PATH": "/bin",
        "ROOMCAST_CLIENT_INSECURE": "true",
        "AWS_PROFILE": "production",
        "AWS_SESSION_TOKEN": "t",
        "AWS_ENDPOINT_URL_SQS": "https://sqs.us-east-1.amazonaws.com",
        "NO_PROXY": "example.com",
    }
    environment = _child_environment(inherited, "http://emulator.test:4566", RESOURCES)
    assert environment["PATH"] == "/bin"
    assert environment["ROOMCAST_CLIENT_INSECURE"] == "true"
    assert not {"AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_ENDPOINT_URL_SQS"} & set(environment)
    assert environment["AWS_ENDPOINT_URL"] == "http://emulator.test:4566"
    assert (
        environment["AWS_CONFIG_FILE"] == environment["AWS_SHARED_CREDENTIALS_FILE"] == "/dev/null"
    )
    assert environment["ROOMCAST_AWS_TOPIC_ARN"] == RESOURCES.topic_arn
    aws = [name for name in environment if name.startswith(("AWS_", "ROOMCAST_AWS_"))]
    config = load(None, {name: environment[name] for name in aws}, demo=True)
    assert (config.node.imds_endpoint, config.aws.metrics_namespace) == ("", "")
    # Wherever these are from, each instance has one port, without TLS.
    server = {option.variable for option in OPTIONS if option.key.startswith("server.")}
    assert server <= set(environment)
    assert load(None, {name: environment[name] for name in server}).server == ServerConfig()
    assert environment["NO_PROXY"] == "example.com,127.0.0.1,localhost,emulator.test"


def test_any_free_port_means_different_ones() -> None:
    ports = _usable_ports(DevOptions(instances=4, port=0))
    assert len(set(ports)) == 4
    assert 0 not in ports


@pytest.mark.parametrize("option", ["--port", "--emulator-port"])
async def test_a_port_in_use_is_one_line_and_exit_code_1(
    option: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        options = (
            DevOptions(instances=1, port=port)
            if option == "--port"
            else DevOptions(port=0, emulator_port=port)
        )
        assert await run_dev(options) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err == (
        f"roomcast dev: port {port} is in use: stop what listens there, or choose another "
        f"with {option}\n"
    )


async def test_a_second_instance_without_a_port_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    assert await run_dev(DevOptions(instances=1, port=65_536)) == 1
    assert "there is no port 65536" in capsys.readouterr().err


STOPPED = """
import asyncio, os, signal
from roomcast.dev.supervisor import DevOptions, run_dev

async def stopped():
    # It runs when the supervisor waits for the first time.
    asyncio.get_running_loop().call_soon(os.kill, os.getpid(), signal.SIGTERM)
    # An address where nobody is: nothing is started before somebody answers.
    return await run_dev(DevOptions(port=0, aws_endpoint="http://127.0.0.1:9"))

code = asyncio.run(stopped())
"""
AGAIN = """
os.kill(os.getpid(), signal.SIGINT)
os.kill(os.getpid(), signal.SIGTERM)
"""
END = """
raise SystemExit(code)
"""


def test_a_signal_after_the_end_makes_no_failure_of_it() -> None:
    done = subprocess.run(
        [sys.executable, "-c", STOPPED + AGAIN + END],
        stderr=subprocess.PIPE,
        text=True,
        timeout=30,
        cwd=Path(roomcast.__file__).parents[1],
    )
    assert (done.returncode, done.stderr) == (0, "stopping; Ctrl-C again kills at once\n")


def test_it_stops_also_if_nobody_reads_what_it_says() -> None:
    """As in `roomcast dev 2>&1 | less`. Its own line about the stop found no room."""
    with (
        unread() as stderr,
        subprocess.Popen(
            [sys.executable, "-c", STOPPED + END],
            stderr=stderr,
            cwd=Path(roomcast.__file__).parents[1],
        ) as process,
    ):
        try:
            assert process.wait(20) == 0
        finally:
            process.kill()
