"""Loads a `Config` from a file and the environment. Its only I/O is reading that one file."""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

from roomcast.config.channel_options import (
    NAMESPACE_NAME,
    NAMESPACE_OPTIONS,
    NAMESPACES,
    NAMESPACES_MAX,
    WITHOUT_NAMESPACE,
)
from roomcast.config.checks import conflicts
from roomcast.config.consumer_options import (
    AWS_SQS,
    CONSUMER_OPTIONS,
    CONSUMER_TABLES,
    CONSUMERS,
    CONSUMERS_MAX,
    CONSUMERS_VARIABLE,
    PUBLICATION_DATA_MODE,
    AwsSqsConfig,
    ConsumerConfig,
    PublicationDataModeConfig,
)
from roomcast.config.declaration import ENVIRONMENT_PREFIX, Option, WrongValue, must_be
from roomcast.config.messages import (
    VARIABLES_ALIKE,
    ConfigError,
    Origin,
    one_line,
    quoted,
    shown,
    suggestion,
    untold,
)
from roomcast.config.options import (
    BY_KEY,
    BY_VARIABLE,
    CONFIG_VARIABLE,
    FOREIGN_VARIABLES,
    SECRET_VARIABLE,
    TABLES,
    Config,
    dev_config,
)
from roomcast.config.proxy_options import (
    NAMED,
    NAMED_MAX,
    NAMED_OPTIONS,
    PROXY_NAME,
    SECTIONS,
    ProxiesConfig,
    ProxyConfig,
    proxy_of,
)
from roomcast.wire.channels import ChannelOptions, ChannelRules

__all__ = ["config_path", "load"]

# Every AWS tool follows this variable. It takes precedence over our own option.
_NO_METADATA: Final = "AWS_EC2_METADATA_DISABLED"
_CONSUMER_BY_KEY: Final = {option.key: option for option in CONSUMER_OPTIONS}


@dataclass(slots=True)
class _Values:
    """The values set so far: dataclass fields by table."""

    sections: dict[str, dict[str, Any]] = field(default_factory=dict)
    namespaces: dict[str, ChannelOptions] = field(default_factory=dict)
    # The fields of each named proxy by table: its own ("") and those of `http`.
    proxies: dict[str, dict[str, dict[str, Any]]] = field(default_factory=dict)
    # The place of each namespace in the file, for messages.
    places: dict[str, str] = field(default_factory=dict)
    consumers: tuple[ConsumerConfig, ...] = ()

    def set(self, option: Option, value: object) -> None:
        self.sections.setdefault(option.section, {})[option.attribute] = value

    def of(self, section: str) -> dict[str, Any]:
        return self.sections.get(section, {})


def config_path(path: str | Path | None, environ: Mapping[str, str]) -> Path | None:
    """The file to read: `path`, else the one that ROOMCAST_CONFIG names, else none."""
    chosen = str(path) if path is not None else environ.get(CONFIG_VARIABLE, "")
    return Path(chosen) if chosen else None


def load(path: str | Path | None, environ: Mapping[str, str], *, demo: bool = False) -> Config:
    """The configuration of a file, overridden by the environment's variables.

    The file: `path`, else the one that ROOMCAST_CONFIG names, else none.

    `demo`: without a file, start from `dev_config()` instead of production's defaults. Raises
    ConfigError for the first error.
    """
    file = config_path(path, environ)
    text = "" if file is None else _file_text(file)
    origin = Origin("" if file is None else str(file), text)
    values = _Values()
    try:
        document = tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        # Not only TOMLDecodeError: numbers of thousands of digits are refused by Python itself.
        raise ConfigError(f"{file}: not valid TOML: {one_line(str(error))}") from error
    _take_table(document, "", values, origin)
    _take_environment(_with_secret(environ), values, origin)
    config = _built(dev_config() if demo and file is None else Config(), values)
    if environ.get(_NO_METADATA, "").lower() == "true":
        config = replace(config, node=replace(config.node, imds_endpoint=""))
    for key, message in conflicts(config, values.places):
        raise origin.error(key, message)
    return config


def _file_text(path: Path) -> str:
    try:
        # Some editors begin a file with a byte order mark, which TOML does not allow.
        return path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror or error}") from error
    except ValueError as error:
        raise ConfigError(f"{one_line(str(path))}: not UTF-8 text") from error


def _take_table(table: Mapping[str, Any], path: str, values: _Values, origin: Origin) -> None:
    for name, found in table.items():
        key = f"{path}.{shown(name)}".removeprefix(".")
        if option := BY_KEY.get(key):
            values.set(option, _file_value(option, key, found, origin))
        elif key == NAMESPACES:
            _take_namespaces(found, values, origin)
        elif key == CONSUMERS:
            _take_consumers(found, values, origin)
        elif key == NAMED:
            _take_proxies(found, values, origin)
        elif key not in TABLES:
            known = [*BY_KEY, *TABLES, NAMESPACES, CONSUMERS, NAMED]
            raise origin.error(key, f"is not an option{suggestion(key, known)}")
        elif not isinstance(found, dict):
            raise origin.error(key, f"must be a table, written [{key}]; found {untold(found)}")
        else:
            _take_table(found, key, values, origin)


def _named_tables(
    found: object, array: str, origin: Origin, *, most: int, pattern: re.Pattern[str], shape: str
) -> Iterator[tuple[str, str, Mapping[str, Any]]]:
    """The place, name and content of each table of `array`, whose names differ. `shape`: of names,
    in words.
    """
    if not isinstance(found, list) or not all(isinstance(table, dict) for table in found):
        raise origin.error(array, f"must be tables, each written [[{array}]] with a name in it")
    if len(found) > most:
        raise origin.error(array, f"must be at most {most} tables; found {len(found)}")
    names: set[str] = set()
    for index, table in enumerate(found):
        place = f"{array}[{index}]"
        name = table.get("name")
        if name is None:
            raise origin.error(place, "needs a name")
        if not isinstance(name, str) or not pattern.fullmatch(name):
            raise origin.error(f"{place}.name", f"must be {shape}; found {quoted(name)}")
        if name in names:
            raise origin.error(
                f"{place}.name", f"must differ from the others; found {quoted(name)} again"
            )
        names.add(name)
        yield place, name, table


def _take_proxies(found: object, values: _Values, origin: Origin) -> None:
    tables = _named_tables(
        found,
        NAMED,
        origin,
        most=NAMED_MAX,
        pattern=PROXY_NAME,
        shape="2 to 64 letters, digits, -, _ or .",
    )
    for place, name, table in tables:
        values.proxies[name] = {"": {}, "http": {}}
        _take_proxy(table, place, "", values.proxies[name], origin)


def _take_proxy(
    table: Mapping[str, Any],
    place: str,
    within: str,
    chosen: Mapping[str, dict[str, Any]],
    origin: Origin,
) -> None:
    """`within`: the table within that of the proxy; "" = it is that."""
    for each, value in table.items():
        path = f"{within}.{shown(each)}".removeprefix(".")
        key = f"{place}.{path}"
        if path == "name":
            continue
        if option := NAMED_OPTIONS.get(path):
            chosen[within][option.attribute] = _file_value(option, key, value, origin)
        elif path != "http":
            raise origin.error(
                key, f"is not an option{suggestion(path, [*NAMED_OPTIONS, 'name', 'http'])}"
            )
        elif not isinstance(value, dict):
            raise origin.error(key, f"must be a table; found {untold(value)}")
        else:
            _take_proxy(value, place, path, chosen, origin)


def _take_namespaces(found: object, values: _Values, origin: Origin) -> None:
    tables = _named_tables(
        found,
        NAMESPACES,
        origin,
        most=NAMESPACES_MAX,
        pattern=NAMESPACE_NAME,
        shape="1 to 64 letters, digits, -, _ or .",
    )
    for place, name, table in tables:
        chosen: dict[str, Any] = {}
        for each, value in table.items():
            key = f"{place}.{shown(each)}"
            if each == "name":
                continue
            if each not in NAMESPACE_OPTIONS:
                raise origin.error(
                    key, f"is not an option{suggestion(each, [*NAMESPACE_OPTIONS, 'name'])}"
                )
            option = NAMESPACE_OPTIONS[each]
            chosen[option.attribute] = _file_value(option, key, value, origin)
        values.namespaces[name] = ChannelOptions(**chosen)
        values.places[name] = place


def _take_consumers(found: object, values: _Values, origin: Origin) -> None:
    if not isinstance(found, list) or not all(isinstance(table, dict) for table in found):
        raise origin.error(CONSUMERS, f"must be tables, each written [[{CONSUMERS}]]")
    if len(found) > CONSUMERS_MAX:
        raise origin.error(CONSUMERS, f"must be at most {CONSUMERS_MAX} tables; found {len(found)}")
    values.consumers = tuple(
        _consumer(table, f"{CONSUMERS}[{index}]", origin) for index, table in enumerate(found)
    )


def _consumer(table: Mapping[str, Any], place: str, origin: Origin) -> ConsumerConfig:
    chosen: dict[str, dict[str, Any]] = {
        section: {} for section in (CONSUMERS, AWS_SQS, PUBLICATION_DATA_MODE)
    }

    def take(table: Mapping[str, Any], section: str, place: str) -> None:
        for name, value in table.items():
            key, here = f"{section}.{name}", f"{place}.{shown(name)}"
            if option := _CONSUMER_BY_KEY.get(key):
                chosen[section][option.attribute] = _file_value(option, here, value, origin)
            elif key not in CONSUMER_TABLES:
                known = [*_CONSUMER_BY_KEY, *CONSUMER_TABLES]
                raise origin.error(here, f"is not an option{suggestion(key, known)}")
            elif not isinstance(value, dict):
                raise origin.error(here, f"must be a table; found {untold(value)}")
            else:
                take(value, key, here)

    take(table, CONSUMERS, place)
    mode = PublicationDataModeConfig(**chosen[PUBLICATION_DATA_MODE])
    aws_sqs = AwsSqsConfig(publication_data_mode=mode, **chosen[AWS_SQS])
    return ConsumerConfig(aws_sqs=aws_sqs, **chosen[CONSUMERS])


def _take_consumers_of(text: str, values: _Values) -> None:
    """Those of the environment, in place of the file's. Raises ConfigError."""
    try:
        _take_consumers(json.loads(text), values, Origin("", ""))
    except ConfigError as error:
        raise ConfigError(f"environment: {CONSUMERS_VARIABLE}: {error}") from None
    except (ValueError, RecursionError):
        raise ConfigError(f"environment: {CONSUMERS_VARIABLE} is not JSON") from None


def _file_value(option: Option, key: str, found: object, origin: Origin) -> object:
    try:
        return option.from_file(found)
    except WrongValue:
        raise origin.error(key, must_be(option, found)) from None


def _with_secret(environ: Mapping[str, str]) -> Mapping[str, str]:
    """The environment with the variables of ROOMCAST_SECRET, which win over others of their names.

    Raises ConfigError, which never says a value.
    """
    text = environ.get(SECRET_VARIABLE, "")
    if not text:
        return environ
    try:
        variables = json.loads(text)
    except (ValueError, RecursionError):
        raise ConfigError(f"environment: {SECRET_VARIABLE} is not JSON") from None
    if not isinstance(variables, dict):
        raise ConfigError(f"environment: {SECRET_VARIABLE} is not an object of variables")
    for name, value in variables.items():
        if name not in BY_VARIABLE and name != CONSUMERS_VARIABLE:
            raise ConfigError(
                f"environment: {shown(name)} in {SECRET_VARIABLE} is not an option"
                f"{suggestion(name, list(BY_VARIABLE), alike=VARIABLES_ALIKE)}"
            )
        if not isinstance(value, str):
            raise ConfigError(f"environment: {name} in {SECRET_VARIABLE} is not text")
    return {**environ, **variables}


def _take_environment(environ: Mapping[str, str], values: _Values, origin: Origin) -> None:
    for variable in sorted(environ):
        if not variable.startswith(ENVIRONMENT_PREFIX) or variable in FOREIGN_VARIABLES:
            continue
        if variable == CONSUMERS_VARIABLE:
            if environ[variable].strip():
                _take_consumers_of(environ[variable], values)
            continue
        option = BY_VARIABLE.get(variable)
        if option is None:
            known = [*BY_VARIABLE, *FOREIGN_VARIABLES, CONSUMERS_VARIABLE]
            hint = suggestion(variable, known, alike=VARIABLES_ALIKE)
            raise ConfigError(f"environment: {shown(variable)} is not an option{hint}")
        origin.from_environment(option.key, option.variable)
        try:
            values.set(option, option.from_variable(environ[variable]))
        except WrongValue:
            raise origin.error(option.key, must_be(option, environ[variable])) from None


def _built(base: Config, values: _Values) -> Config:
    token = replace(base.client.token, **values.of("client.token"))
    subscription_token = replace(
        base.client.subscription_token, **values.of("client.subscription_token")
    )
    tls = replace(base.server.tls, **values.of("server.tls"))
    internal_tls = replace(base.server.internal_tls, **values.of("server.internal_tls"))
    return Config(
        client=replace(
            base.client,
            token=token,
            subscription_token=subscription_token,
            **values.of("client"),
        ),
        channel=ChannelRules(
            replace(base.channel.without_namespace, **values.of(WITHOUT_NAMESPACE)),
            {**base.channel.namespaces, **values.namespaces},
        ),
        websocket=replace(base.websocket, **values.of("websocket")),
        server=replace(base.server, tls=tls, internal_tls=internal_tls, **values.of("server")),
        http_api=replace(base.http_api, **values.of("http_api")),
        admin=replace(base.admin, **values.of("admin")),
        hooks=replace(base.hooks, **values.of("hooks")),
        proxies=_built_proxies(base.proxies, values),
        aws=replace(base.aws, **values.of("aws")),
        node=replace(base.node, **values.of("node")),
        log=replace(base.log, **values.of("log")),
        tracing=replace(base.tracing, **values.of("tracing")),
        consumers=values.consumers,
    )


def _built_proxies(base: ProxiesConfig, values: _Values) -> ProxiesConfig:
    events = {
        hook: proxy_of(getattr(base, hook), values.of(section), values.of(f"{section}.http"))
        for hook, section in SECTIONS.items()
    }
    named = {
        name: proxy_of(ProxyConfig(), chosen[""], chosen["http"])
        for name, chosen in values.proxies.items()
    }
    return ProxiesConfig(**events, named={**base.named, **named})
