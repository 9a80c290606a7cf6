"""What every test may use: a browser and Node.js where they are there, and Hypothesis' bounds."""

from __future__ import annotations

import functools
import sys

import pytest

from tests.requirements import find_browser, find_node, obtain, required


@functools.cache
def _load_profile(name: str) -> None:
    """Hypothesis with the bounds of this project."""
    # Half a second that most single tests need not pay.
    import hypothesis

    # No bounds on time: a machine that does something else meanwhile is no fault of the code.
    any_speed = (hypothesis.HealthCheck.too_slow,)
    # Derandomized: a run that passed once passes again.
    hypothesis.settings.register_profile(
        "roomcast", deadline=None, suppress_health_check=any_speed, derandomize=True
    )
    # For further interpreters: the first of the same examples.
    hypothesis.settings.register_profile(
        "brief",
        deadline=None,
        suppress_health_check=any_speed,
        derandomize=True,
        max_examples=20,
    )
    # A search for more: `--hypothesis-profile=explore`.
    hypothesis.settings.register_profile(
        "explore", deadline=None, suppress_health_check=any_speed, max_examples=5_000
    )
    hypothesis.settings.load_profile(name)


def pytest_collectstart(collector: pytest.Collector) -> None:
    """Set Hypothesis' bounds before a file that uses it is imported:
    `@settings` reads them there.
    """
    if isinstance(collector, pytest.Module) and b"hypothesis" in collector.path.read_bytes():
        _load_profile(collector.config.getoption("--hypothesis-profile") or "roomcast")


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    """Refuse a misspelt ROOMCAST_REQUIRE: it would demand nothing."""
    # Hypothesis' own hook, which comes later, asks for the profile by its name.
    if profile := config.getoption("--hypothesis-profile"):
        _load_profile(profile)
    try:
        required()
    except ValueError as error:
        raise pytest.UsageError(str(error)) from error


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Without a test of Hypothesis, spare its import: its plug-in does it to sum up nothing."""
    if "hypothesis" not in sys.modules:
        session.config.pluginmanager.unregister(name="hypothesispytest")


@pytest.fixture(scope="session")
def browser() -> str:
    """The path of a Chromium. Without one the test is skipped,
    or fails if ROOMCAST_REQUIRE lists `browser`.
    """
    return obtain("browser", find_browser)


@pytest.fixture(scope="session")
def node() -> str:
    """The path of Node.js; the packages of tests/acceptance/js are there.
    Else as with `browser`.
    """
    return obtain("node", find_node)
