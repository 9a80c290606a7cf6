"""`roomcast doctor` against the embedded AWS: what it says, its exit code,
and that nothing is left.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from tests.contract.backends import ROOT
from tests.integration.serving import Aws, deployed, environment, pump

COMMAND_S: Final = 60
CONFIG: Final = "[client]\ninsecure = true\n"

pytestmark = [pytest.mark.fleet, pytest.mark.timeout(180)]


@pytest.fixture(scope="module")
def aws(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Aws]:
    with deployed(tmp_path_factory.mktemp("doctor"), "doctor-") as aws, pump(aws):
        yield aws


def doctor(config: Path, *options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "roomcast", "doctor", "--config", str(config), *options],
        cwd=ROOT,
        env=environment(),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=COMMAND_S,
    )


def nothing_is_left(aws: Aws) -> None:
    assert not aws.leases()
    assert not aws.client("sqs").list_queues().get("QueueUrls", [])
    assert not aws.client("sns").list_subscriptions()["Subscriptions"]


def test_all_is_well(aws: Aws) -> None:
    done = doctor(aws.config("well", CONFIG))
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    found = {line[9:].split("  ")[0]: line.split()[0] for line in lines if line[0] != " "}
    assert len(found) == 26
    others = {name: outcome for name, outcome in found.items() if outcome != "ok"}
    assert others == {
        # This server is insecure, and the emulator has a pump in place of a Lambda.
        "secrets": "warning",
        "event source mapping": "note",
        "log generation": "note",
        "ceiling of a channel": "note",
    }, done.stdout
    assert lines[-1].startswith("note     ceiling of a channel")
    assert "ms)" not in lines[-1], "nothing was tried"
    assert "\x1b" not in done.stdout, "colours are for terminals"
    nothing_is_left(aws)


def test_what_is_missing_is_named(aws: Aws) -> None:
    done = doctor(aws.config("astray", CONFIG, table_prefix="astray-"), "--json")
    assert done.returncode == 1
    checks = {check["name"]: check for check in json.loads(done.stdout)}
    assert checks["table astray-channels"]["outcome"] == "failed"
    assert "compare aws.table_prefix" in checks["table astray-channels"]["ask"]
    assert checks["set-up of astray-channels"]["outcome"] == "failed"
    assert checks["queue"]["outcome"] == "skipped"
    [line] = done.stderr.splitlines()
    assert " checks failed: set-up of astray-channels, " in line
    nothing_is_left(aws)


def test_a_topic_that_is_not_there(aws: Aws) -> None:
    done = doctor(aws.config("mute", CONFIG, topic_arn=f"{aws.made.topic_arn}-of-old"), "--json")
    assert done.returncode == 1
    checks = {check["name"]: check for check in json.loads(done.stdout)}
    assert checks["set-up of the topic"]["outcome"] == "failed"
    assert checks["queue"]["outcome"] == "failed"
    assert "set aws.topic_arn" in checks["queue"]["ask"]
    assert checks["topic to queue"]["outcome"] == "skipped"
    nothing_is_left(aws)


def test_without_a_topic_it_is_wrong_usage(tmp_path: Path) -> None:
    config = tmp_path / "empty.toml"
    config.write_text(CONFIG, encoding="utf-8")
    done = doctor(config)
    assert done.returncode == 2
    assert done.stderr.startswith("roomcast: aws.topic_arn is not set")
