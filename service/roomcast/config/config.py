"""Configuration: what may be set, its defaults and limits, and how file and environment become one `Config`.

Every option is declared once, next to its field: unit, default, range, and why. The tables in
docs/configuration.md come from these declarations. Nothing here does I/O but reading the one file.
"""

from __future__ import annotations

import difflib
import ipaddress
import json
import math
import re
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import Field, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Final, Literal, TypeVar, cast, get_type_hints

from roomcast.observe.redaction import without_passwords, without_user
from roomcast.wire.channels import ChannelOptions, ChannelRules

__all__ = [
    "CONFIG_VARIABLE",
    "DEV_SECRET",
    "ENVIRONMENT_PREFIX",
    "HOOK_TIMEOUT_S_MAX",
    "MASK",
    "MESSAGE_SIZE_LIMIT_MAX",
    "OPTIONS",
    "AwsConfig",
    "ClientConfig",
    "Config",
    "ConfigError",
    "HooksConfig",
    "HttpApiConfig",
    "NodeConfig",
    "Option",
    "TokenConfig",
    "config_path",
    "dev_config",
    "effective",
    "effective_toml",
    "format_duration",
    "load",
    "reference",
]

ENVIRONMENT_PREFIX: Final = "ROOMCAST_"
CONFIG_VARIABLE: Final = "ROOMCAST_CONFIG"
# Variables with our prefix that configure something else: the test run and the stream Lambda.
FOREIGN_VARIABLES: Final = frozenset(
    {CONFIG_VARIABLE, "ROOMCAST_REQUIRE", "ROOMCAST_CHROMIUM", "ROOMCAST_TOPIC_ARN"}
)
# What every AWS tool goes by; it wins over our own option.
_NO_METADATA: Final = "AWS_EC2_METADATA_DISABLED"
# A publication, with what the log adds to it, must fit one item of 128 KiB.
MESSAGE_SIZE_LIMIT_MAX: Final = 96 * 1024
# What `roomcast dev` signs and verifies with, so that examples can name it. Never a production key.
DEV_SECRET: Final = "secret"  # noqa: S105  # meant to be known
MASK: Final = "***"
# SDKs give up, and reconnect, after 5 s; what a hook allowed takes its time too.
HOOK_TIMEOUT_S_MAX: Final = 4.0
# What an error message quotes of a wrong value: enough to recognise it, and still one line.
FOUND_CHARS_MAX: Final = 60

# Longer names would leave little of a channel's 255 bytes.
_NAMESPACE_NAME: Final = re.compile(r"[A-Za-z0-9_.-]{1,64}")

Kind = Literal["true or false", "whole number", "number", "text", "list", "duration"]
T = TypeVar("T")


class ConfigError(ValueError):
    """The configuration is wrong. The message is one line that names the key, where it is, and what is expected."""


@dataclass(frozen=True, slots=True)
class _Rules:
    """What is declared with a field: its description and what values it takes. `pattern` is for (each) text.

    `secret` is shown nowhere; `lines`: a text may have several lines, and is not quoted in messages.
    """

    doc: str
    unit: str = ""
    minimum: float | None = None
    maximum: float | None = None
    pattern: str = ""
    shape: str = ""
    secret: bool = False
    lines: bool = False


def _option(
    default: T,
    doc: str,
    *,
    unit: str = "",
    within: tuple[float, float] | None = None,
    pattern: str = "",
    shape: str = "",
    secret: bool = False,
    lines: bool = False,
) -> T:
    """A dataclass field with its rules. Typed as its default, because that is what the field holds."""
    minimum, maximum = within or (None, None)
    rules = _Rules(doc, unit, minimum, maximum, pattern, shape, secret, lines)
    return field(default=default, repr=not secret, metadata={"rules": rules})


def _public_key(doc: str) -> str:
    return _option(
        "",
        f"{doc} A line break may be written as `\\n`.",
        pattern=r"(?s)\s*-----BEGIN (RSA )?PUBLIC KEY-----.+-----END (RSA )?PUBLIC KEY-----\s*",
        shape="a public key in PEM form (-----BEGIN PUBLIC KEY-----…)",
        lines=True,
    )


@dataclass(frozen=True, slots=True)
class TokenConfig:
    """[client.token]: how connection and subscription tokens are verified. Without any key, no token is accepted."""

    hmac_secret_key: str = _option(
        "",
        "Key of HS256, HS384 and HS512 tokens; empty: none of them is accepted. "
        "At least 32 bytes, or it can be guessed offline from one token.",
        secret=True,
    )
    rsa_public_key: str = _public_key(
        "Key of RS256, RS384 and RS512 tokens, of 2,048 to 8,192 bits; empty: none but those of keys of the endpoint below."
    )
    ecdsa_public_key: str = _public_key(
        "The same for ES256 (curve P-256), ES384 (P-384) or ES512 (P-521) tokens."
    )
    ed25519_public_key: str = _public_key("The same for EdDSA tokens.")
    jwks_public_endpoint: str = _option(
        "",
        "Where an identity provider publishes its public keys as a JWK set: for RS…, ES… and EdDSA tokens, beside the "
        "keys above. Fetched at the start, every 5 minutes, and when a token names a key that is not known; kept for "
        "6 hours if it cannot be. Set `issuer` and `audience` too: others' tokens may have the same keys. Nodes in subnets "
        "without a way out cannot reach it.",
        # No user:password@ in it; redirects are not followed.
        pattern=r"https://[^/\s@?#{}]+(/[^\s#{}]*)?|http://(localhost|127\.0\.0\.1|\[::1\])(:[0-9]{1,5})?(/[^\s#{}]*)?",
        shape="an https:// address (http:// only of this machine)",
    )
    audience: str = _option("", "Required `aud` of a token; empty: not checked.")
    issuer: str = _option("", "Required `iss` of a token; empty: not checked.")

    @property
    def has_key(self) -> bool:
        """Whether any token can be good."""
        return any(
            (
                self.hmac_secret_key,
                self.rsa_public_key,
                self.ecdsa_public_key,
                self.ed25519_public_key,
                self.jwks_public_endpoint,
            )
        )


@dataclass(frozen=True, slots=True)
class ClientConfig:
    """[client]: connections, and what one of them may use."""

    insecure: bool = _option(
        False,
        "No token needed and everything allowed; binds loopback only unless `--host` is given. For development.",
    )
    allowed_origins: tuple[str, ...] = _option(
        (),
        "Origins whose pages may connect, such as `https://chat.example.com` or `https://*.example.com`; `*`: any. "
        "Empty: only the server's own. Programs that send no `Origin` are not concerned.",
        pattern=r"\*|[a-z][a-z0-9+.-]*://[^/\s,@]+",
        shape="origins such as https://chat.example.com (no path, no slash at the end), or *",
    )
    allow_anonymous_connect_without_token: bool = _option(
        False, "Let clients without a token connect, as the user with the empty name."
    )
    subscribe_to_user_personal_channel: bool = _option(
        False,
        "Subscribe each client that has a user to the channel `#` and the user's name as it connects, without asking it. "
        "Not for users whose name has `#`, `,` or other than printable ASCII characters, or `:` without the option below.",
    )
    user_personal_channel_namespace: str = _option(
        "",
        "Namespace of those channels, `alerts` makes `alerts:#ann`; empty: none.",
        pattern=_NAMESPACE_NAME.pattern,
        shape="the name of a namespace",
    )
    channel_limit: int = _option(
        128,
        "Subscriptions of one connection. Bounds what a single client costs.",
        unit="channels",
        within=(1, 10_000),
    )
    queue_max_size: int = _option(
        1024 * 1024,
        "What may wait to be sent to one connection; a client that is further behind is disconnected (3008) "
        "and recovers from the log. At least 1 MiB: twice what one recovery or one page of history may bring. Half of it is "
        "what one list of a channel's members may have; a longer one gets error 106.",
        unit="bytes",
        within=(1024 * 1024, 256 * 1024 * 1024),
    )
    ping_interval_s: float = _option(
        25.0,
        "Time between the server's pings. Below the idle time-out of load balancers (60 s is common).",
        unit="s",
        within=(1, 3600),
    )
    pong_timeout_s: float = _option(
        8.0,
        "How long a client may take to answer a ping (3012). Below `ping_interval_s`.",
        unit="s",
        within=(0.1, 3600),
    )
    stale_close_delay_s: float = _option(
        10.0,
        "How long a socket may stay open without a successful `connect` (3502).",
        unit="s",
        within=(0.1, 3600),
    )
    connection_limit: int = _option(
        0,
        "Connections of one node; more are refused with 503, so that the load balancer tries another. 0: as many as the "
        "process's limit on descriptors has room for, which is also what a higher number becomes.",
        unit="connections",
        within=(0, 10_000_000),
    )
    user_connection_limit: int = _option(
        0,
        "Connections of one user on one node; a further one is closed for good (3504). Leave room for those that are gone "
        "and not missed yet: up to `ping_interval_s` and `pong_timeout_s`. Clients without a name are not counted. 0: no limit.",
        unit="connections",
        within=(0, 1_000_000),
    )
    publish_rate_limit: float = _option(
        100.0,
        "Publications that one connection may publish in a second, in the long run; twice as many at once. More have to "
        "wait: they are taken later. What would wait for more than 2 s after its frame was read gets error 111: more of "
        "one frame than that has time for, and below one in 2 s any. 0: no limit.",
        unit="publications",
        within=(0, 1_000_000),
    )
    command_rate_limit: float = _option(
        500.0,
        "Commands of any kind that are taken from one connection in a second, in the long run; twice as many at once, and "
        "`channel_limit` more, for the subscriptions of a client that comes back. More have to wait: they are read later. "
        "0: no limit.",
        unit="commands",
        within=(0, 1_000_000),
    )
    handshake_rate_limit: float = _option(
        0.0,
        "New connections of one address (IPv6: of one /64, four times as many of one /56, sixteen times of one /48) in a second, "
        "in the long run; ten times as many at once. More get HTTP 429. Behind a load balancer it needs `trusted_proxies`: "
        "otherwise all clients have the balancer's address. 0: no limit. See [below](#handshakes-behind-a-load-balancer).",
        unit="connections",
        within=(0, 1_000_000),
    )
    trusted_proxies: tuple[str, ...] = _option(
        (),
        "Networks of the load balancers in front of this server, such as `10.0.0.0/16`: who comes from there has the address "
        "that `X-Forwarded-For` says. Empty: the header is not looked at.",
        pattern=r"[0-9A-Fa-f:.]{2,45}(/[0-9]{1,3})?",
        shape="networks such as 10.0.0.0/16",
    )
    message_size_limit: int = _option(
        64 * 1024,
        "Largest command a client may send (error 106); a frame of several may be four times as large "
        "(close code 1009). At most 98,304: a publication must fit a log item.",
        unit="bytes",
        within=(1024, MESSAGE_SIZE_LIMIT_MAX),
    )
    history_max_publication_limit: int = _option(
        300,
        "Publications in one `history` reply, whatever was asked for.",
        unit="publications",
        within=(1, 10_000),
    )
    recovery_max_publication_limit: int = _option(
        300,
        "Publications a client can recover at once; one that missed more is told to start afresh.",
        unit="publications",
        within=(1, 10_000),
    )
    token: TokenConfig = field(default_factory=TokenConfig)


@dataclass(frozen=True, slots=True)
class HttpApiConfig:
    """[http_api]: publishing from a back end."""

    key: str = _option(
        "",
        "Key that callers send as `X-API-Key`; empty: the API is off, unless the server is insecure.",
        secret=True,
    )


def _hook(doc: str) -> str:
    return _option(
        "",
        doc,
        pattern=r"[A-Za-z_]\w*(\.\w+)*:[A-Za-z_]\w*(\.\w+)*",
        shape="a name such as package.module:function",
    )


@dataclass(frozen=True, slots=True)
class HooksConfig:
    """[hooks]: the application's own code, in this process. See docs/hooks.md."""

    connect: str = _hook(
        "Async function that is asked when a client connects, `package.module:function`; empty: none."
    )
    subscribe: str = _hook("The same when a client subscribes without a token.")
    publish: str = _hook("The same when a client publishes.")
    rpc: str = _hook(
        "Registry of the methods that clients may call, `package.module:registry`; empty: none."
    )
    timeout_s: float = _option(
        3.0,
        "How long a call of them may take; then the client gets error 100. SDKs wait 5 s for all of an answer.",
        unit="s",
        within=(0.01, HOOK_TIMEOUT_S_MAX),
    )
    directory: str = _option(
        ".",
        "Where their modules are looked for, besides the installed packages, which come first; relative to where the server is "
        "started. Empty: nowhere else.",
    )


@dataclass(frozen=True, slots=True)
class AwsConfig:
    """[aws]: which resources are ours. Credentials come as every AWS tool takes them, never from here."""

    region: str = _option(
        "",
        "Region; empty: as the AWS tools find it (`AWS_REGION`, profile, instance).",
        pattern=r"[a-z]{2}(-[a-z]+)+-[0-9]",
        shape="a region such as eu-central-1",
    )
    endpoint_url: str = _option(
        "",
        "Endpoint of an emulator; empty: `AWS_ENDPOINT_URL`, else AWS itself.",
        # No user:password@ in it: it is logged.
        pattern=r"https?://[^/\s@?#]+/?",
        shape="an address such as http://127.0.0.1:5000",
    )
    table_prefix: str = _option(
        "roomcast-",
        "Prefix of the tables' names: …channels, …nodes, …presence, …idempotency. Tells deployments in one "
        "account apart.",
        pattern=r"[A-Za-z0-9_.-]{1,200}",
        shape="1 to 200 letters, digits, -, _ or .",
    )
    topic_arn: str = _option(
        "",
        "ARN of the SNS topic that every node's queue is subscribed to; `roomcast serve` needs it. "
        "deploy/ makes the topic, for emulators `roomcast provision`, which prints its ARN.",
        pattern=r"arn:[a-z-]+:sns:[a-z0-9-]+:[0-9]{12}:[A-Za-z0-9_-]{1,256}",
        shape="the ARN of an SNS topic",
    )
    queue_prefix: str = _option(
        "roomcast-",
        "Prefix of the queues' names; the node's name follows. At most 40 characters: SQS takes 80 in all.",
        pattern=r"[A-Za-z0-9_-]{1,40}",
        shape="1 to 40 letters, digits, - or _",
    )
    log_generation: str = _option(
        "0",
        "Change it after the tables were restored from a backup: every channel then begins a new epoch, "
        "because offsets went back.",
        pattern=r"[0-9a-z]{1,8}",
        shape="1 to 8 digits or small letters",
    )
    autoscaling_group: str = _option(
        "",
        "Name of the Auto Scaling group that the instance is in; empty: none. The nodes tell it when they serve and "
        "when they have drained, at the two hooks below.",
        pattern=r"[!-~]([ -~]{0,253}[!-~])?",
        shape="the name of an Auto Scaling group",
    )
    launch_hook: str = _option(
        "",
        "Lifecycle hook of the group at which a new instance waits until one of its nodes serves; empty: none.",
        pattern=r"[A-Za-z0-9_/-]{1,255}",
        shape="the name of a lifecycle hook",
    )
    terminate_hook: str = _option(
        "",
        "Lifecycle hook of the group at which an instance waits until its nodes have drained; empty: none. Its heartbeat "
        "time-out may be short: it is renewed every 20 s.",
        pattern=r"[A-Za-z0-9_/-]{1,255}",
        shape="the name of a lifecycle hook",
    )
    metrics_namespace: str = _option(
        "",
        "CloudWatch namespace in which each node puts its connections, channels, appends, lag and health once a minute; "
        "empty: none. With `autoscaling_group`, for that group and over all groups.",
        pattern=r"(?!AWS/)[A-Za-z0-9._/#-][A-Za-z0-9 ._/#:-]{0,254}",
        shape="a namespace such as roomcast, which does not begin with AWS/",
    )


@dataclass(frozen=True, slots=True)
class NodeConfig:
    """[node]: the life of one server process, and how it stays in step with the log."""

    drain_s: float = _option(
        30.0,
        "Time over which a stopping node closes its connections, so that they do not all reconnect at once. "
        "Below the load balancer's deregistration delay.",
        unit="s",
        within=(0, 3600),
    )
    lease_ttl_s: float = _option(
        60.0,
        "A node whose heartbeat is older counts as dead: its presence entries are ignored, its queue is up for removal.",
        unit="s",
        within=(1, 3600),
    )
    heartbeat_s: float = _option(
        15.0,
        "Time between heartbeats. Below half of `lease_ttl_s`: one may be lost.",
        unit="s",
        within=(0.1, 1800),
    )
    gap_wait_ms: int = _option(
        200,
        "How long a publication that came too early waits for the ones before it, before the log is read. "
        "SNS and SQS reorder, and a read costs money.",
        unit="ms",
        within=(0, 10_000),
    )
    tail_check_s: float = _option(
        300.0,
        "Time between looks at the log's end for each channel with local subscribers (jittered): "
        "finds a lost last publication. Costs one read each.",
        unit="s",
        within=(1, 86_400),
    )
    canary_interval_s: float = _option(
        30.0,
        "Time between canaries: records that one node writes and every node must hear. A node that misses two or "
        "three finds out whether it is deaf or the pipeline is silent.",
        unit="s",
        within=(1, 3600),
    )
    queue_probe_s: float = _option(
        5.0,
        "How long a starting node waits to hear its own greeting through its queue before it serves all the same.",
        unit="s",
        within=(0.1, 300),
    )
    imds_endpoint: str = _option(
        "http://169.254.169.254",
        "Instance metadata service (version 2) of an EC2 instance: its id becomes part of the node's, and it says when the "
        "instance is to end. At this address only machines that say they are of EC2 are asked. Empty, or "
        "`AWS_EC2_METADATA_DISABLED=true`: never.",
        pattern=r"(https?://[^/\s@?#]+/?)?",
        shape="an address such as http://169.254.169.254, or empty",
    )
    lifecycle_poll_s: float = _option(
        5.0,
        "Time between looks at the instance metadata (jittered): an instance that Auto Scaling terminates, or a spot "
        "instance that is taken away, drains as after SIGTERM. 0: never.",
        unit="s",
        within=(0, 3600),
    )


@dataclass(frozen=True, slots=True)
class Config:
    """Everything that can be set. Build it with `load`, or from the parts: the defaults are those of production."""

    client: ClientConfig = field(default_factory=ClientConfig)
    channel: ChannelRules = field(default_factory=ChannelRules)
    http_api: HttpApiConfig = field(default_factory=HttpApiConfig)
    hooks: HooksConfig = field(default_factory=HooksConfig)
    aws: AwsConfig = field(default_factory=AwsConfig)
    node: NodeConfig = field(default_factory=NodeConfig)


# The fields of core's ChannelOptions; there they are rules, here they are what a file may say.
# From which part of two names on (difflib's ratio) one may be meant by the other. Variables all begin alike, so that
# any two of them are similar: what differs must be similar as well.
_NAMES_ALIKE: Final = 0.6
_VARIABLES_ALIKE: Final = 0.77

_CHANNEL_RULES: Final[Mapping[str, _Rules]] = {
    "history_size": _Rules(
        "Publications a channel shows at most. With `history_ttl`, switches history on.",
        "publications",
        0,
        1_000_000,
    ),
    "history_ttl": _Rules(
        'For how long they are shown: `"300s"`, `"5m"`, `"12h"`, `"7d"`. Needs `history_size`.',
        "",
        0,
        366 * 86_400,
    ),
    "force_recovery": _Rules("Every subscription recovers what it missed. Needs history."),
    "force_positioning": _Rules(
        "Every subscription is checked for gaps, and told when one cannot be closed. Needs history."
    ),
    "allow_recovery": _Rules(
        "A subscriber who asks for it recovers what it missed, though it may not read the history otherwise. Who may "
        "(`allow_history_for_…`, `hst` of a token) needs no such option."
    ),
    "allow_positioning": _Rules(
        "A subscriber who asks for it is checked for gaps, though it may not read the history."
    ),
    "presence": _Rules("Keep who is in the channel. Costs two writes a member."),
    "join_leave": _Rules(
        "Tell subscribers who ask for it, and may ask who is there (`allow_presence_for_…`), when a client comes and goes."
    ),
    "force_push_join_leave": _Rules("Tell all subscribers. Needs `join_leave`."),
    "allow_user_limited_channels": _Rules(
        "A name such as `dialogue#ann,bob` lists who may be in: they may subscribe, and nobody else does without a token. "
        "Without it `#` means nothing: such a channel is open to whom the options below open any other."
    ),
    "allow_subscribe_for_client": _Rules(
        "A client with a user may subscribe without a subscription token."
    ),
    "allow_subscribe_for_anonymous": _Rules(
        "A client without a user may do so too, where the option above lets those with a user."
    ),
    "allow_publish_for_client": _Rules("A client with a user may publish."),
    "allow_publish_for_subscriber": _Rules(
        "A client that has a user and is subscribed may publish."
    ),
    "allow_publish_for_anonymous": _Rules(
        "A client without a user may do so too, where one of the two options above lets those with a user."
    ),
    "allow_presence_for_client": _Rules("A client with a user may ask who is there."),
    "allow_presence_for_subscriber": _Rules(
        "A client that has a user and is subscribed may ask who is there."
    ),
    "allow_presence_for_anonymous": _Rules(
        "A client without a user may do so too, where one of the two options above lets those with a user."
    ),
    "allow_history_for_client": _Rules("A client with a user may read the history."),
    "allow_history_for_subscriber": _Rules(
        "A client that has a user and is subscribed may read the history."
    ),
    "allow_history_for_anonymous": _Rules(
        "A client without a user may do so too, where one of the two options above lets those with a user."
    ),
    "allow_channel_compaction": _Rules(
        "Call the channel by a number in the pushes of clients that offer it, as SDKs do: shorter than a long name."
    ),
    "allowed_delta_types": _Rules(
        "Ways in which a client may ask for publications as differences from the one before: `fossil`. Needs history.",
        pattern="fossil",
        shape="`fossil`, or nothing",
    ),
    "delta_publish": _Rules(
        "Publications may go out as differences; without it, those that the server API marks with `delta`. Needs "
        "`allowed_delta_types`."
    ),
}
_NAMESPACES_MAX: Final = 1000

_DURATION: Final = re.compile(
    r"(?:(\d{1,9})d)?(?:(\d{1,9})h)?(?:(\d{1,9})m)?(?:(\d{1,9})s)?", re.ASCII
)
_UNIT_SECONDS: Final = (("d", 86_400), ("h", 3600), ("m", 60), ("s", 1))
_WHOLE: Final = re.compile(r"[+-]?\d{1,18}", re.ASCII)
_DECIMAL: Final = re.compile(r"[+-]?\d{1,18}(\.\d{1,18})?", re.ASCII)
_SWITCHES: Final = {"true": True, "1": True, "false": False, "0": False}


class _Wrong(Exception):
    """A value that an option does not take."""


@dataclass(frozen=True, slots=True)
class Option:
    """One option: `key` is its dotted path in the file, `attribute` the dataclass field it sets."""

    key: str
    attribute: str
    kind: Kind
    default: Any
    rules: _Rules

    @property
    def section(self) -> str:
        """The table of the file that holds it."""
        return self.key.rpartition(".")[0]

    @property
    def variable(self) -> str:
        """The environment variable that sets it; namespaces have none."""
        return ENVIRONMENT_PREFIX + self.key.upper().replace(".", "_")

    def expected(self) -> str:
        """What it takes, in words."""
        rules = self.rules
        bounds = ""
        if rules.minimum is not None and self.kind == "duration":
            bounds = f" up to {format_duration(int(rules.maximum or 0))}"
        elif rules.minimum is not None:
            bounds = f" from {rules.minimum:.12g} to {rules.maximum:.12g}"
        if self.kind == "duration":
            return f'a duration such as "300s", "5m", "12h" or "7d"{bounds}'
        if self.kind == "list":
            return f"a list of {rules.shape}"
        if self.kind == "text":
            return rules.shape or "text without control characters"
        return self.kind if self.kind == "true or false" else f"a {self.kind}{bounds}"

    def from_file(self, found: object) -> object:
        """The field's value for what the file has. Raises _Wrong."""
        if self.kind == "true or false" and isinstance(found, bool):
            return found
        if isinstance(found, bool):
            raise _Wrong
        if self.kind == "whole number" and isinstance(found, int):
            return self._in_range(found)
        if self.kind == "number" and isinstance(found, int | float):
            return float(self._in_range(found))
        if self.kind == "text" and isinstance(found, str):
            return self._shaped(found, empty=True)
        if self.kind == "list" and isinstance(found, list):
            return tuple(self._shaped(entry) for entry in found)
        if self.kind == "duration" and isinstance(found, str):
            return self._in_range(_seconds(found))
        raise _Wrong

    def from_variable(self, found: str) -> object:
        """The field's value for the text of an environment variable. Raises _Wrong."""
        if self.kind == "true or false":
            if found.lower() not in _SWITCHES:
                raise _Wrong
            return _SWITCHES[found.lower()]
        if self.kind == "whole number":
            return self._in_range(int(_matching(_WHOLE, found)))
        if self.kind == "number":
            return self._in_range(float(_matching(_DECIMAL, found)))
        if self.kind == "list":
            return (
                tuple(self._shaped(entry.strip()) for entry in found.split(","))
                if found.strip()
                else ()
            )
        return self.from_file(found)

    def to_file(self, value: Any) -> Any:
        """The opposite of `from_file`; secrets are masked."""
        if self.rules.secret:
            return MASK if value else ""
        if self.kind == "duration":
            return format_duration(value)
        return list(value) if self.kind == "list" else value

    def _in_range(self, found: T) -> T:
        number = cast("float", found)
        minimum, maximum = self.rules.minimum, self.rules.maximum
        if isinstance(number, float) and not math.isfinite(number):
            raise _Wrong
        if minimum is not None and maximum is not None and not minimum <= number <= maximum:
            raise _Wrong
        return found

    def _shaped(self, found: object, *, empty: bool = False) -> str:
        if not isinstance(found, str):
            raise _Wrong
        # A newline that a secrets' file ends with would otherwise become part of a key unseen.
        line = found.replace("\r\n", "").replace("\n", "") if self.rules.lines else found
        if not line.isprintable():
            raise _Wrong
        if found == "" and empty and self.default == "":
            return found
        if self.rules.pattern and not re.fullmatch(self.rules.pattern, found):
            raise _Wrong
        return found


def format_duration(duration_s: int) -> str:
    """The shortest single-unit text: 300 -> "5m", 90 -> "90s"."""
    for unit, seconds in _UNIT_SECONDS:
        if duration_s and duration_s % seconds == 0:
            return f"{duration_s // seconds}{unit}"
    return "0s"


def _seconds(text: str) -> int:
    match = _DURATION.fullmatch(text)
    if not match or not text:
        raise _Wrong
    parts = zip(match.groups(default="0"), _UNIT_SECONDS, strict=True)
    return sum(int(count) * seconds for count, (_, seconds) in parts)


def _matching(pattern: re.Pattern[str], text: str) -> str:
    if not pattern.fullmatch(text):
        raise _Wrong
    return text


def _kind(annotation: object) -> Kind:
    kinds: dict[object, Kind] = {
        bool: "true or false",
        int: "whole number",
        float: "number",
        str: "text",
    }
    return kinds.get(annotation, "list")


def _declared(section: str, holder: type) -> Iterator[Option]:
    hints = get_type_hints(holder)
    declared: tuple[Field[Any], ...] = fields(holder)
    for each in declared:
        if "rules" in each.metadata:
            yield Option(
                f"{section}.{each.name}",
                each.name,
                _kind(hints[each.name]),
                each.default,
                each.metadata["rules"],
            )


def _channel_options(section: str) -> tuple[Option, ...]:
    hints = get_type_hints(ChannelOptions)
    attributes = {each.name.removesuffix("_s"): each for each in fields(ChannelOptions)}
    assert attributes.keys() == _CHANNEL_RULES.keys(), (
        "every field of ChannelOptions can be set, and nothing else"
    )
    return tuple(
        Option(
            f"{section}.{name}",
            attributes[name].name,
            "duration" if attributes[name].name != name else _kind(hints[name]),
            attributes[name].default,
            rules,
        )
        for name, rules in _CHANNEL_RULES.items()
    )


_NAMESPACES: Final = "channel.namespaces"
_WITHOUT_NAMESPACE: Final = "channel.without_namespace"
_NAMESPACE_OPTIONS: Final = {
    option.key.rpartition(".")[2]: option for option in _channel_options(_NAMESPACES)
}

# Every option that both the file and the environment can set, in the order of the documentation.
OPTIONS: Final[tuple[Option, ...]] = (
    *_declared("client", ClientConfig),
    *_declared("client.token", TokenConfig),
    *_channel_options(_WITHOUT_NAMESPACE),
    *_declared("http_api", HttpApiConfig),
    *_declared("hooks", HooksConfig),
    *_declared("aws", AwsConfig),
    *_declared("node", NodeConfig),
)
_BY_KEY: Final = {option.key: option for option in OPTIONS}
_BY_VARIABLE: Final = {option.variable: option for option in OPTIONS}
assert len(_BY_VARIABLE) == len(OPTIONS), "no two options share a variable"
assert not FOREIGN_VARIABLES & _BY_VARIABLE.keys(), (
    "no option hides behind somebody else's variable"
)
_TABLES: Final = frozenset({"channel", *(option.section for option in OPTIONS)})


class _Origin:
    """Where a key was set, for messages."""

    def __init__(self, path: str, text: str) -> None:
        self._path = path
        self._lines = _key_lines(text)
        self._variables: dict[str, str] = {}

    def from_environment(self, option: Option) -> None:
        self._variables[option.key] = option.variable

    def error(self, key: str, message: str) -> ConfigError:
        """`message` follows the name of the key."""
        if key in self._variables:
            return ConfigError(f"environment: {self._variables[key]} {message}")
        if not self._path:
            return ConfigError(f"{key} {message}")
        enclosing = key
        while enclosing and enclosing not in self._lines:
            enclosing = enclosing.rpartition(".")[0]
        line = f", line {self._lines[enclosing]}" if enclosing else ""
        return ConfigError(f"{self._path}{line}: {key} {message}")


_HEADER_LINE: Final = re.compile(r"\s*\[(\[?)([^\[\]]+)\]\]?\s*(?:#.*)?")
_KEY_LINE: Final = re.compile(r"\s*([A-Za-z0-9_.\-\"' ]+?)\s*=")


def _key_lines(text: str) -> dict[str, int]:
    """The line of each table and key.

    The parser does not tell, so this is a look at the lines that is right for files as people write them;
    where it finds nothing, a message names the table's line or none.
    """
    lines: dict[str, int] = {}
    table = ""
    arrays: dict[str, int] = {}
    for number, line in enumerate(text.splitlines(), start=1):
        if header := _HEADER_LINE.fullmatch(line):
            table = _dotted(header[2])
            if header[1]:
                arrays[table] = arrays.get(table, -1) + 1
                lines.setdefault(table, number)
                table = f"{table}[{arrays[table]}]"
            lines.setdefault(table, number)
        elif assignment := _KEY_LINE.match(line):
            lines.setdefault(f"{table}.{_dotted(assignment[1])}".removeprefix("."), number)
    return lines


def _dotted(text: str) -> str:
    return ".".join(part.strip().strip("\"'") for part in text.split("."))


@dataclass(slots=True)
class _Values:
    """What was set so far: dataclass fields by table."""

    sections: dict[str, dict[str, Any]] = field(default_factory=dict)
    namespaces: dict[str, ChannelOptions] = field(default_factory=dict)
    # Where each namespace stands in the file, for messages.
    places: dict[str, str] = field(default_factory=dict)

    def set(self, option: Option, value: object) -> None:
        self.sections.setdefault(option.section, {})[option.attribute] = value

    def of(self, section: str) -> dict[str, Any]:
        return self.sections.get(section, {})


def config_path(path: str | Path | None, environ: Mapping[str, str]) -> Path | None:
    """The file to read: the one given, else what ROOMCAST_CONFIG names, else none."""
    chosen = str(path) if path is not None else environ.get(CONFIG_VARIABLE, "")
    return Path(chosen) if chosen else None


def load(path: str | Path | None, environ: Mapping[str, str], *, demo: bool = False) -> Config:
    """The configuration of a file (or ROOMCAST_CONFIG's, or none) with the environment's variables over it.

    `demo`: when there is no file, begin with `dev_config()` rather than with production's defaults.
    Raises ConfigError for the first thing that is wrong.
    """
    file = config_path(path, environ)
    text = "" if file is None else _file_text(file)
    origin = _Origin("" if file is None else str(file), text)
    values = _Values()
    try:
        document = tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise ConfigError(f"{file}: not valid TOML: {_one_line(str(error))}") from error
    _take_table(document, "", values, origin)
    _take_environment(environ, values, origin)
    config = _built(dev_config() if demo and file is None else Config(), values)
    if environ.get(_NO_METADATA, "").lower() == "true":
        config = replace(config, node=replace(config.node, imds_endpoint=""))
    for key, message in _conflicts(config, values.places):
        raise origin.error(key, message)
    return config


def _file_text(path: Path) -> str:
    try:
        # Some editors begin a file with a byte order mark, which TOML does not know.
        return path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror or error}") from error
    except ValueError as error:
        raise ConfigError(f"{_one_line(str(path))}: not UTF-8 text") from error


def _take_table(table: Mapping[str, Any], path: str, values: _Values, origin: _Origin) -> None:
    for name, found in table.items():
        key = f"{path}.{_shown(name)}".removeprefix(".")
        if option := _BY_KEY.get(key):
            values.set(option, _file_value(option, key, found, origin))
        elif key == _NAMESPACES:
            _take_namespaces(found, values, origin)
        elif key not in _TABLES:
            raise origin.error(
                key, f"is not an option{_suggestion(key, [*_BY_KEY, *_TABLES, _NAMESPACES])}"
            )
        elif not isinstance(found, dict):
            raise origin.error(key, f"must be a table, written [{key}]; found {_quoted(found)}")
        else:
            _take_table(found, key, values, origin)


def _take_namespaces(found: object, values: _Values, origin: _Origin) -> None:
    if not isinstance(found, list) or not all(isinstance(table, dict) for table in found):
        raise origin.error(
            _NAMESPACES, f"must be tables, each written [[{_NAMESPACES}]] with a name in it"
        )
    if len(found) > _NAMESPACES_MAX:
        raise origin.error(
            _NAMESPACES, f"must be at most {_NAMESPACES_MAX} tables; found {len(found)}"
        )
    for index, table in enumerate(found):
        place = f"{_NAMESPACES}[{index}]"
        name = table.get("name")
        if name is None:
            raise origin.error(place, "needs a name")
        if not isinstance(name, str) or not _NAMESPACE_NAME.fullmatch(name):
            raise origin.error(
                f"{place}.name",
                f"must be 1 to 64 letters, digits, -, _ or .; found {_quoted(name)}",
            )
        if name in values.namespaces:
            raise origin.error(
                f"{place}.name", f"must differ from the others; found {_quoted(name)} again"
            )
        chosen: dict[str, Any] = {}
        for each, value in table.items():
            key = f"{place}.{_shown(each)}"
            if each == "name":
                continue
            if each not in _NAMESPACE_OPTIONS:
                raise origin.error(
                    key, f"is not an option{_suggestion(each, [*_NAMESPACE_OPTIONS, 'name'])}"
                )
            option = _NAMESPACE_OPTIONS[each]
            chosen[option.attribute] = _file_value(option, key, value, origin)
        values.namespaces[name] = ChannelOptions(**chosen)
        values.places[name] = place


def _file_value(option: Option, key: str, found: object, origin: _Origin) -> object:
    try:
        return option.from_file(found)
    except _Wrong:
        raise origin.error(key, _must_be(option, found)) from None


def _take_environment(environ: Mapping[str, str], values: _Values, origin: _Origin) -> None:
    for variable in sorted(environ):
        if not variable.startswith(ENVIRONMENT_PREFIX) or variable in FOREIGN_VARIABLES:
            continue
        option = _BY_VARIABLE.get(variable)
        if option is None:
            hint = _suggestion(
                variable, [*_BY_VARIABLE, *FOREIGN_VARIABLES], alike=_VARIABLES_ALIKE
            )
            raise ConfigError(f"environment: {_shown(variable)} is not an option{hint}")
        origin.from_environment(option)
        try:
            values.set(option, option.from_variable(environ[variable]))
        except _Wrong:
            raise origin.error(option.key, _must_be(option, environ[variable])) from None


def _built(base: Config, values: _Values) -> Config:
    token = replace(base.client.token, **values.of("client.token"))
    return Config(
        client=replace(base.client, token=token, **values.of("client")),
        channel=ChannelRules(
            replace(base.channel.without_namespace, **values.of(_WITHOUT_NAMESPACE)),
            {**base.channel.namespaces, **values.namespaces},
        ),
        http_api=replace(base.http_api, **values.of("http_api")),
        hooks=replace(base.hooks, **values.of("hooks")),
        aws=replace(base.aws, **values.of("aws")),
        node=replace(base.node, **values.of("node")),
    )


def _conflicts(config: Config, places: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """Keys and messages for options that are fine alone but not together."""
    client, node, aws = config.client, config.node, config.aws
    if client.pong_timeout_s >= client.ping_interval_s:
        yield (
            "client.pong_timeout_s",
            f"must be below client.ping_interval_s ({client.ping_interval_s:g}); found {client.pong_timeout_s:g}",
        )
    for network in client.trusted_proxies:
        if not _is_network(network):
            yield (
                "client.trusted_proxies",
                f"must be networks such as 10.0.0.0/16; found {_quoted(network)}",
            )
    namespace = client.user_personal_channel_namespace
    if namespace and namespace not in config.channel.namespaces:
        yield (
            "client.user_personal_channel_namespace",
            f"must be the name of one of [[{_NAMESPACES}]]; found {_quoted(namespace)}",
        )
    elif client.subscribe_to_user_personal_channel and not client.insecure:
        yield from _personal_channel_conflicts(config, namespace, places)
    if node.heartbeat_s >= node.lease_ttl_s / 2:
        yield (
            "node.heartbeat_s",
            f"must be below half of node.lease_ttl_s ({node.lease_ttl_s:g}); found {node.heartbeat_s:g}",
        )
    for name in ("launch_hook", "terminate_hook"):
        if getattr(aws, name) and not aws.autoscaling_group:
            yield f"aws.{name}", "needs aws.autoscaling_group"
    if aws.topic_arn and aws.region and aws.topic_arn.split(":")[3] != aws.region:
        yield (
            "aws.topic_arn",
            f"must be in aws.region ({aws.region}); found {_quoted(aws.topic_arn)}",
        )
    yield from _channel_conflicts(config.channel.without_namespace, _WITHOUT_NAMESPACE)
    for name, options in config.channel.namespaces.items():
        yield from _channel_conflicts(options, places.get(name, _NAMESPACES))


# Options of a namespace that open all of its channels to every client with a user.
_OPENING: Final = (
    "allow_subscribe_for_client",
    "allow_publish_for_client",
    "allow_presence_for_client",
    "allow_history_for_client",
)


def _personal_channel_conflicts(
    config: Config, namespace: str, places: Mapping[str, str]
) -> Iterator[tuple[str, str]]:
    """Personal channels that others could use: `#` alone keeps nobody out."""
    options, table = config.channel.without_namespace, _WITHOUT_NAMESPACE
    if namespace:
        options, table = config.channel.namespaces[namespace], places.get(namespace, _NAMESPACES)
    for name in _OPENING:
        if getattr(options, name) and not options.allow_user_limited_channels:
            yield (
                f"{table}.{name}",
                "needs allow_user_limited_channels too: others could use personal channels",
            )


def _is_network(text: str) -> bool:
    try:
        ipaddress.ip_network(text)
    except ValueError:
        return False
    return True


def _channel_conflicts(options: ChannelOptions, table: str) -> Iterator[tuple[str, str]]:
    if options.history_size and not options.history_ttl_s:
        yield f"{table}.history_size", "needs history_ttl too"
    if options.history_ttl_s and not options.history_size:
        yield f"{table}.history_ttl", "needs history_size too"
    for name in ("force_recovery", "force_positioning"):
        if getattr(options, name) and not options.has_history:
            yield f"{table}.{name}", "needs history_size and history_ttl"
    if options.allowed_delta_types and not options.has_history:
        yield f"{table}.allowed_delta_types", "needs history_size and history_ttl"
    if options.delta_publish and not options.allowed_delta_types:
        yield f"{table}.delta_publish", "needs allowed_delta_types"
    if options.force_push_join_leave and not options.join_leave:
        yield f"{table}.force_push_join_leave", "needs join_leave"


def dev_config() -> Config:
    """What `roomcast dev` runs with when there is no file: insecure, with all a chat room can show switched on."""
    return Config(
        client=ClientConfig(insecure=True, token=TokenConfig(hmac_secret_key=DEV_SECRET)),
        channel=ChannelRules(
            ChannelOptions(
                history_size=100,
                history_ttl_s=300,
                force_recovery=True,
                presence=True,
                join_leave=True,
                force_push_join_leave=True,
            ),
            # What nobody wants to read later: it goes straight to the topic, and is stored nowhere.
            {
                "typing": ChannelOptions(
                    allow_subscribe_for_client=True, allow_publish_for_subscriber=True
                )
            },
        ),
        # A short drain: Ctrl-C is pressed often, and few are connected.
        node=NodeConfig(drain_s=1.0),
    )


def effective(config: Config) -> dict[str, Any]:
    """The configuration as a file would have it, every option included; secrets masked. Only JSON types."""
    holders: dict[str, object] = {
        "client": config.client,
        "client.token": config.client.token,
        _WITHOUT_NAMESPACE: config.channel.without_namespace,
        "http_api": config.http_api,
        "hooks": config.hooks,
        "aws": config.aws,
        "node": config.node,
    }
    document: dict[str, Any] = {}
    for option in OPTIONS:
        table = document
        for part in option.section.split("."):
            table = table.setdefault(part, {})
        table[option.key.rpartition(".")[2]] = option.to_file(
            getattr(holders[option.section], option.attribute)
        )
    document["channel"]["namespaces"] = [
        {"name": name}
        | {
            key: option.to_file(getattr(options, option.attribute))
            for key, option in _NAMESPACE_OPTIONS.items()
        }
        for name, options in config.channel.namespaces.items()
    ]
    return document


def effective_toml(config: Config) -> str:
    """`effective` as TOML: apart from the masks, a file that means the same."""
    document = effective(config)
    lines: list[str] = []

    def put(header: str, table: Mapping[str, Any]) -> None:
        lines.append(header)
        # JSON's texts, numbers, switches and lists are also TOML's.
        lines.extend(
            f"{key} = {json.dumps(value, ensure_ascii=False)}"
            for key, value in table.items()
            if not isinstance(value, dict)
        )
        lines.append("")

    put("[client]", document["client"])
    put("[client.token]", document["client"]["token"])
    put(f"[{_WITHOUT_NAMESPACE}]", document["channel"]["without_namespace"])
    for namespace in document["channel"]["namespaces"]:
        put(f"[[{_NAMESPACES}]]", namespace)
    put("[http_api]", document["http_api"])
    put("[hooks]", document["hooks"])
    put("[aws]", document["aws"])
    put("[node]", document["node"])
    return "\n".join(lines[:-1]) + "\n"


def reference() -> str:
    """The tables of docs/configuration.md, as Markdown."""
    lines: list[str] = []
    sections = list(dict.fromkeys(option.section for option in OPTIONS))
    for section in sections:
        title = f"`[{section}]`"
        if section == _WITHOUT_NAMESPACE:
            title += f" and `[[{_NAMESPACES}]]`"
        lines += [
            f"### {title}",
            "",
            "| option | takes | default | what and why |",
            "| --- | --- | --- | --- |",
        ]
        for option in OPTIONS:
            if option.section != section:
                continue
            unit = f", {option.rules.unit}" if option.rules.unit else ""
            takes = option.expected().replace("*", r"\*")
            default = json.dumps(option.to_file(option.default))
            name = option.key.rpartition(".")[2]
            lines.append(f"| `{name}` | {takes}{unit} | `{default}` | {option.rules.doc} |")
        lines.append("")
    return "\n".join(lines)


def _must_be(option: Option, found: object) -> str:
    hidden = option.rules.secret or option.rules.lines
    return f"must be {option.expected()}" + ("" if hidden else f"; found {_quoted(found)}")


def _quoted(found: object) -> str:
    if isinstance(found, dict):
        return "a table"
    if isinstance(found, bool):
        return str(found).lower()
    if isinstance(found, list) and any(isinstance(entry, dict) for entry in found):
        return "a list of tables"
    # Masked before it is cut: the end of a password may be what is cut off.
    text = without_user(found) if isinstance(found, str) else found
    shown = ascii(text) if not str(text).isprintable() else without_passwords(repr(text))
    return shown if len(shown) <= FOUND_CHARS_MAX else shown[:FOUND_CHARS_MAX] + "…"


def _shown(name: str) -> str:
    """A key as it is, unless it is one that could garble the message."""
    return name if re.fullmatch(r"[A-Za-z0-9_-]{1,80}", name) else _quoted(name)


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _suggestion(name: str, known: list[str], *, alike: float = _NAMES_ALIKE) -> str:
    # The right name in the wrong table is the likelier slip than a name that looks alike.
    last = name.rpartition(".")[2]
    close = [key for key in known if key.rpartition(".")[2] == last] or difflib.get_close_matches(
        name, known, n=1, cutoff=alike
    )
    return f" (did you mean {close[0]}?)" if close else ""
