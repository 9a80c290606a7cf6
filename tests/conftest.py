"""What every test may use: the browser and Node.js where there are any, and Hypothesis' bounds."""

from __future__ import annotations

import hypothesis
import pytest

from tests.requirements import find_browser, find_node, obtain, required

# No bounds on time: a machine that does something else meanwhile is no fault of the code.
# Derandomized: a run that passed once passes again; a search for more is `--hypothesis-profile=explore`.
_ANY_SPEED = (hypothesis.HealthCheck.too_slow,)
hypothesis.settings.register_profile(
    "roomcast", deadline=None, suppress_health_check=_ANY_SPEED, derandomize=True
)
hypothesis.settings.register_profile(
    "explore", deadline=None, suppress_health_check=_ANY_SPEED, max_examples=5_000
)
hypothesis.settings.load_profile("roomcast")


def pytest_configure() -> None:
    """Refuse a misspelt ROOMCAST_REQUIRE: it would demand nothing."""
    try:
        required()
    except ValueError as error:
        raise pytest.UsageError(str(error)) from error


@pytest.fixture(scope="session")
def browser() -> str:
    """The path of a Chromium. Without one the test is skipped, or fails if ROOMCAST_REQUIRE lists `browser`."""
    return obtain("browser", find_browser)


@pytest.fixture(scope="session")
def node() -> str:
    """The path of Node.js; the packages of tests/acceptance/js are there. Else as with `browser`."""
    return obtain("node", find_node)
