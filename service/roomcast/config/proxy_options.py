"""The options of hooks over HTTP: Centrifugo's proxies, where the thing is the same.

`[client.proxy.connect]` and the like have one proxy each; `[[proxies]]` has further ones by name,
for namespaces that ask another back end.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final

from roomcast.config.declaration import (
    MASK,
    Option,
    WrongValue,
    declare,
    declared,
)
from roomcast.wire.channels import ChannelRules
from roomcast.wire.shapes import FLAG, OBJECT, OBJECT_OF_TEXTS, OBJECTS, TEXT, whole

__all__ = [
    "NAMED",
    "NAMED_MAX",
    "NAMED_OPTIONS",
    "PROXY_NAME",
    "PROXY_OPTIONS",
    "SECTIONS",
    "DisconnectOf",
    "ErrorOf",
    "ProxiesConfig",
    "ProxyConfig",
    "ProxyHttpConfig",
    "StatusTransform",
    "proxy_of",
]

# The table of each event, by the hook's name.
SECTIONS: Final[Mapping[str, str]] = {
    "connect": "client.proxy.connect",
    "refresh": "client.proxy.refresh",
    "subscribe": "channel.proxy.subscribe",
    "publish": "channel.proxy.publish",
    "sub_refresh": "channel.proxy.sub_refresh",
    "rpc": "rpc.proxy",
}
NAMED: Final = "proxies"
PROXY_NAME: Final = re.compile(r"[A-Za-z0-9_.-]{2,64}")
NAMED_MAX: Final = 100
# SDKs give up after 5 s and reconnect. The work after a hook takes time too.
_TIMEOUT_MS_MAX: Final = 4000
_HEADERS_MAX: Final = 32
_HEADER_NAME: Final = r"[A-Za-z0-9!#$%&'*+.^_`|~-]{1,64}"
_HEADER_VALUE_CHARS_MAX: Final = 8192
_TRANSFORMS_MAX: Final = 100
_STATUS: Final = whole(100, 599)
_CODE: Final = whole(1, 4999)


@dataclass(frozen=True, slots=True)
class ErrorOf:
    """An error for the client."""

    code: int
    message: str
    temporary: bool = False


@dataclass(frozen=True, slots=True)
class DisconnectOf:
    """A close for the client."""

    code: int
    reason: str


@dataclass(frozen=True, slots=True)
class StatusTransform:
    """What an answer with `status_code` means. One of the two is set."""

    status_code: int
    to_error: ErrorOf | None = None
    to_disconnect: DisconnectOf | None = None


class _StaticHeaders:
    """Headers in a file: a table of texts. Their values may be secrets."""

    def read(self, found: object) -> object:
        if not OBJECT_OF_TEXTS.fits(found) or len(found) > _HEADERS_MAX:
            raise WrongValue
        for name, value in found.items():
            if (
                not re.fullmatch(_HEADER_NAME, name)
                or not 0 < len(value) <= _HEADER_VALUE_CHARS_MAX
                or not value.isprintable()
                or not value.isascii()
            ):
                raise WrongValue
        return tuple(found.items())

    def write(self, value: Any) -> object:
        return dict.fromkeys((name for name, _ in value), MASK)


class _Transforms:
    """Transforms in a file: a list of tables."""

    def read(self, found: object) -> object:
        if not OBJECTS.fits(found) or len(found) > _TRANSFORMS_MAX:
            raise WrongValue
        return tuple(_transform(each) for each in found)

    def write(self, value: Any) -> object:
        return [_transform_table(each) for each in value]


def _transform(found: Mapping[str, Any]) -> StatusTransform:
    """Raises WrongValue."""
    if found.keys() - {"status_code", "to_error", "to_disconnect"}:
        raise WrongValue
    status = found.get("status_code")
    error, disconnect = found.get("to_error"), found.get("to_disconnect")
    if not _STATUS.fits(status) or (error is None) == (disconnect is None):
        raise WrongValue
    if error is not None:
        code, message, temporary = _members(error, "code", "message", "temporary")
        temporary = False if temporary is None else temporary
        if not (_CODE.fits(code) and TEXT.fits(message) and FLAG.fits(temporary)):
            raise WrongValue
        return StatusTransform(status, to_error=ErrorOf(code, message, temporary))
    code, reason = _members(disconnect, "code", "reason")
    if not (_CODE.fits(code) and TEXT.fits(reason)):
        raise WrongValue
    return StatusTransform(status, to_disconnect=DisconnectOf(code, reason))


def _members(found: object, *names: str) -> Iterator[Any]:
    if not OBJECT.fits(found) or found.keys() - set(names):
        raise WrongValue
    return iter([found.get(name) for name in names])


def _transform_table(each: StatusTransform) -> Mapping[str, object]:
    table: dict[str, object] = {"status_code": each.status_code}
    if (error := each.to_error) is not None:
        table["to_error"] = {
            "code": error.code,
            "message": error.message,
            "temporary": error.temporary,
        }
    if (disconnect := each.to_disconnect) is not None:
        table["to_disconnect"] = {"code": disconnect.code, "reason": disconnect.reason}
    return table


@dataclass(frozen=True, slots=True)
class ProxyHttpConfig:
    """What only requests over HTTP have."""

    static_headers: tuple[tuple[str, str], ...] = declare(
        (),
        "Headers of every request, such as a secret by which the back end knows that it is asked "
        "by this server. Their values are shown nowhere. No client can give one of these names.",
        shape='a table of header names and texts, such as {X-Hook-Secret = "…"}',
        secret=True,
        codec=_StaticHeaders(),
    )
    status_to_code_transforms: tuple[StatusTransform, ...] = declare(
        (),
        "What answers with another status than 200 mean to the client: an error or a close. Any "
        "other such answer is a fault: error 100, which SDKs take for temporary.",
        shape=(
            "a list of tables such as {status_code = 404, to_error = {code = 404, message = "
            '"not found"}} or {status_code = 403, to_disconnect = {code = 4503, reason = "no"}}'
        ),
        codec=_Transforms(),
    )


def _names_of_headers(doc: str) -> tuple[str, ...]:
    return declare((), doc, pattern=_HEADER_NAME, shape="names of headers")


@dataclass(frozen=True, slots=True)
class ProxyConfig:
    """A hook over HTTP. See docs/http-hooks.md."""

    enabled: bool = declare(True, "`false`: it is not asked.")
    endpoint: str = declare(
        "",
        "Address that a POST asks, in Centrifugo's proxy format; empty: none. Its host is asked "
        "and no other: redirects are not followed. `http://` is for the same machine or a network "
        "of one's own. Secrets belong into `http.static_headers`.",
        # No user:password@.
        pattern=r"https?://[A-Za-z0-9.\[\]:_-]+(/[!-\"$-~]*)?",
        shape="an address such as https://app.example.com/centrifugo/connect",
    )
    timeout_ms: int = declare(
        1000,
        "How long a call may take, with all attempts; then the client gets error 100. SDKs wait "
        "5 s for all of an answer.",
        within=(10, _TIMEOUT_MS_MAX),
        says_unit=True,
    )
    http_headers: tuple[str, ...] = _names_of_headers(
        "Headers of the client's own request that are passed on, such as `Cookie`. Whoever "
        "connects directly can set them as they like."
    )
    emulated_headers: tuple[str, ...] = _names_of_headers(
        "The same of the `headers` that SDKs of browsers send within `connect`. They are the "
        "client's claim and nothing else: only for what the back end verifies, such as a token."
    )
    include_connection_meta: bool = declare(
        False, "Requests have the connection's `meta`, of its token or of the connect hook."
    )
    binary_encoding: bool = declare(False, "Requests have the data as base64, in `b64data`.")
    aws_iam: bool = declare(
        False,
        "Sign requests with the credentials of this server (SigV4), for Lambda function URLs and "
        "API Gateways that AWS_IAM guards.",
    )
    http: ProxyHttpConfig = field(default_factory=ProxyHttpConfig)

    @property
    def is_on(self) -> bool:
        """Whether it is asked."""
        return self.enabled and bool(self.endpoint)


@dataclass(frozen=True, slots=True)
class ProxiesConfig:
    """All hooks over HTTP, each event's and the named ones."""

    connect: ProxyConfig = field(default_factory=ProxyConfig)
    refresh: ProxyConfig = field(default_factory=ProxyConfig)
    subscribe: ProxyConfig = field(default_factory=ProxyConfig)
    publish: ProxyConfig = field(default_factory=ProxyConfig)
    sub_refresh: ProxyConfig = field(default_factory=ProxyConfig)
    rpc: ProxyConfig = field(default_factory=ProxyConfig)
    named: Mapping[str, ProxyConfig] = field(default_factory=dict)

    def of_namespaces(self, hook: str, rules: ChannelRules) -> Mapping[str, ProxyConfig]:
        """The proxies that channels ask about the event `hook`, by name; "" = the event's own.

        Those that are off are left out.
        """
        names = {
            getattr(options, f"{hook}_proxy_name")
            for options in rules.all_options()
            if getattr(options, f"{hook}_proxy_enabled")
        }
        found = {name: self.named[name] if name else getattr(self, hook) for name in sorted(names)}
        return {name: proxy for name, proxy in found.items() if proxy.is_on}

    def by_place(self) -> Iterator[tuple[str, ProxyConfig]]:
        """Each, with its table in the file."""
        for hook, section in SECTIONS.items():
            yield section, getattr(self, hook)
        for index, proxy in enumerate(self.named.values()):
            yield f"{NAMED}[{index}]", proxy

    def all_on(self) -> tuple[ProxyConfig, ...]:
        """Those that may be asked."""
        return tuple(proxy for _, proxy in self.by_place() if proxy.is_on)


def _options(section: str) -> tuple[Option, ...]:
    return (*declared(section, ProxyConfig), *declared(f"{section}.http", ProxyHttpConfig))


PROXY_OPTIONS: Final = tuple(
    option for section in SECTIONS.values() for option in _options(section)
)
# By their path within a table of [[proxies]].
NAMED_OPTIONS: Final = {option.key.removeprefix(f"{NAMED}."): option for option in _options(NAMED)}


def proxy_of(base: ProxyConfig, own: Mapping[str, Any], http: Mapping[str, Any]) -> ProxyConfig:
    """`base` with the fields in `own`, and those of its `http` in `http`."""
    return replace(base, **own, http=replace(base.http, **http))
