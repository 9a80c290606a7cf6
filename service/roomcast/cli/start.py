"""Prepares the start of a server: checks hooks, collects warnings, starts logging."""

from __future__ import annotations

import argparse
import importlib.util
import re
import sys
from typing import Any, Final

from roomcast.cli.terminal import has_colours
from roomcast.config import Config, ConfigError

__all__ = [
    "concerns",
    "log_levels",
    "look_at_certificates",
    "look_at_hooks",
    "start_logs",
    "warn_on_stderr",
]

# Of another machine than this one.
_IN_THE_CLEAR: Final = re.compile(r"http://(?!(localhost|127\.0\.0\.1|\[::1\])([:/]|$))")

# Headers that browsers add by themselves, in small letters.
_OF_BROWSERS: Final = ("cookie", "authorization")


def look_at_hooks(config: Config) -> None:
    """Imports the configured hooks, and makes those over HTTP. Raises ConfigError when one is
    missing or cannot be.

    The import runs their modules.
    """
    from roomcast.hooks.calls import load_hooks
    from roomcast.hooks.over_http import BackEnds, with_http_hooks
    from roomcast.system import random_fraction

    with_http_hooks(load_hooks(config.hooks), config, BackEnds(random_fraction))


def look_at_certificates(config: Config) -> None:
    """Reads the configured certificates. Raises ConfigError when one cannot be used."""
    from roomcast.serve.certificates import certificates_of
    from roomcast.system import SystemClock

    certificates_of(config, SystemClock())


def concerns(config: Config) -> list[tuple[str, str]]:
    """Allowed options that are hardly ever intended: (event name, explanation)."""
    return [*_of_access(config), *_of_proxies(config), *_of_pages(config)]


def _of_proxies(config: Config) -> list[tuple[str, str]]:
    """Hooks that are asked in the clear, by another machine."""
    return [
        (
            "hook_in_the_clear",
            f"{place}.endpoint is http:// of another machine: whoever is between reads all of it",
        )
        for place, proxy in config.proxies.by_place()
        if proxy.is_on and _IN_THE_CLEAR.match(proxy.endpoint)
    ]


def _of_pages(config: Config) -> list[tuple[str, str]]:
    """Hooks that are told who a visitor is by what a browser adds to any page's request."""
    if "*" not in config.client.allowed_origins:
        return []
    return [
        (
            "any_page_is_its_visitor",
            (
                f"client.allowed_origins has *, and {place}.http_headers passes {name} on: a page "
                "of any site connects in its visitor's name"
            ),
        )
        for place, proxy in config.proxies.by_place()
        for name in proxy.http_headers
        if proxy.is_on and name.lower() in _OF_BROWSERS
    ]


def _of_access(config: Config) -> list[tuple[str, str]]:
    client = config.client
    if client.insecure:
        return [
            ("insecure_mode", "client.insecure is on: no token is needed and everything is allowed")
        ]
    if (
        not client.token.has_key
        and not client.allow_anonymous_connect_without_token
        and not config.hooks.connect
        and not config.proxies.connect.is_on
    ):
        return [
            (
                "nobody_can_connect",
                (
                    "no token key is configured and anonymous clients are not allowed: nobody can "
                    "connect"
                ),
            )
        ]
    return []


def log_levels(config: Config) -> dict[str, Any]:
    """The levels of `log.levels`, by room or module. Raises ConfigError for what is none."""
    levels = dict(each.split("=") for each in config.log.levels)
    for name in levels:
        try:
            found = importlib.util.find_spec(f"roomcast.{name}")
        except ModuleNotFoundError:  # what is around it is none
            found = None
        if found is None:
            raise ConfigError(
                f"log.levels: there is no room or module {name!r}; docs/logs.md has those that log"
            )
    return levels


def start_logs(arguments: argparse.Namespace, config: Config) -> None:
    """Starts logging to stderr at the configured levels: for people on a terminal, else JSON.

    Raises ConfigError.
    """
    from roomcast.observe import logs

    level: Any = arguments.log_level or config.log.level
    logs.configure(
        level,
        levels=log_levels(config),
        console=sys.stderr.isatty(),
        colors=has_colours(sys.stderr),
    )


def warn_on_stderr() -> None:
    """For a command that prints a result: what the server's parts log is no part of it."""
    from roomcast.observe import logs

    logs.configure("warning", console=True, colors=has_colours(sys.stderr))
