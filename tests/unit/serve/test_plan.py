"""service/roomcast/serve/plan.py: what a process settles before anything is started."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from typing import Final

import pytest

from roomcast.config import AwsConfig, Config, ConfigError, NodeConfig, TracingConfig
from roomcast.ecs.rules import FARGATE_STOP_S, Task, drain_max_s
from roomcast.node.node import ANSWERS_S
from roomcast.serve.descriptors import places
from roomcast.serve.plan import planned
from roomcast.serve.process import FINISH_S
from roomcast.serve.supervisor import DRAIN_JITTER
from roomcast.serve.tries import END_TRIES_S

TASK: Final = Task("4b2f0d9c7a6e4c1f8d35e0b1a2c3d4e5", fargate=True)
# In a process of its own: nobody can raise a limit again that was lowered here.
SCRIPT: Final = """
import resource, sys
from dataclasses import replace
from roomcast.config import AwsConfig, ClientConfig, Config
from roomcast.serve.plan import planned

soft, hard, limit = map(int, sys.argv[1:])
resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
config = Config(client=ClientConfig(connection_limit=limit), aws=AwsConfig(topic_arn="topic"))
plan = planned(config, None)
print(
    *resource.getrlimit(resource.RLIMIT_NOFILE),
    plan.places.sockets,
    plan.places.clients,
    plan.config.client.connection_limit,
)
"""


@pytest.mark.parametrize("limit", [0, 20, 1_000_000])
def test_a_start_raises_its_limit_on_descriptors_and_has_places_by_it(limit: int) -> None:
    soft, hard = 128, 512
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(soft), str(hard), str(limit)],
        capture_output=True,
        text=True,
        check=True,
    )
    room = places(hard, limit)
    assert [int(each) for each in done.stdout.split()] == [
        hard, hard, room.sockets, room.clients, room.clients,
    ]  # fmt: skip
    assert places(soft, 0).clients < places(hard, 0).clients


def test_without_a_topic_nothing_is_settled() -> None:
    with pytest.raises(ConfigError, match="topic_arn"):
        planned(Config(), None)


def test_a_task_gives_the_node_its_name_and_the_reaper_its_instance() -> None:
    plan = planned(Config(aws=AwsConfig(topic_arn="topic")), None, TASK)
    assert plan.instance == plan.host == TASK.id
    assert plan.node_id.startswith(TASK.id[:20] + "-")
    assert planned(Config(aws=AwsConfig(topic_arn="topic")), None).instance == ""


@pytest.mark.parametrize("drain_s, fits", [(60.0, True), (60.1, False)])
def test_a_drain_that_fargate_would_cut_off_is_refused_in_words(drain_s: float, fits: bool) -> None:
    config = Config(aws=AwsConfig(topic_arn="topic"), node=NodeConfig(drain_s=drain_s))
    # On instances of one's own a task may have as long as it likes.
    assert planned(config, None, Task(TASK.id, fargate=False)).task is not None
    if fits:
        assert planned(config, None, TASK).task == TASK
        return
    with pytest.raises(ConfigError, match=r"node\.drain_s must be at most 60 .* found 60\.1"):
        planned(config, None, TASK)


def test_a_drain_that_just_fits_a_task_leaves_time_for_what_follows() -> None:
    longest_s = drain_max_s(TASK, DRAIN_JITTER)
    assert longest_s is not None
    # The last answers, what was accepted, and queue and lease when calls are tried again.
    assert DRAIN_JITTER * longest_s + ANSWERS_S + FINISH_S + END_TRIES_S < FARGATE_STOP_S


def test_tracing_without_its_extra_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "roomcast.observe.otel", None)
    config = Config(aws=AwsConfig(topic_arn="topic"), tracing=TracingConfig(enabled=True))
    with pytest.raises(ConfigError, match=r"pip install 'roomcast\[otel\]'"):
        planned(config, None)
    assert planned(replace(config, tracing=TracingConfig()), None).tracing is None


def test_without_tracing_nothing_of_opentelemetry_is_imported() -> None:
    script = (
        "import sys, roomcast.serve.process, roomcast.serve.plan\n"
        "print(*[name for name in sys.modules if name.startswith('opentelemetry')])"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == []
