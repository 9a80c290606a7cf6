"""service/roomcast/serve/plan.py: what a process settles before anything is started."""

from __future__ import annotations

import subprocess
import sys
from typing import Final

import pytest

from roomcast.config import Config, ConfigError
from roomcast.serve.descriptors import places
from roomcast.serve.plan import planned

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
