"""Declares every option beside its field, with unit, default, range and reason.

The tables in docs/configuration.md are generated from these declarations.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from roomcast.config.channel_options import NAMESPACE_NAME, WITHOUT_NAMESPACE_OPTIONS
from roomcast.config.consumer_options import ConsumerConfig
from roomcast.config.declaration import Option, declare, declared
from roomcast.config.proxy_options import PROXY_OPTIONS, ProxiesConfig
from roomcast.wire.channels import ChannelOptions, ChannelRules
from roomcast.wire.event_kinds import CONNECTION_KINDS, is_of_connections

__all__ = [
    "BY_KEY",
    "BY_VARIABLE",
    "CONFIG_VARIABLE",
    "DEV_SECRET",
    "FOREIGN_VARIABLES",
    "HOOK_TIMEOUT_S_MAX",
    "MESSAGE_SIZE_LIMIT_MAX",
    "OPTIONS",
    "PROCESSES_MAX",
    "RECEIVE_PAUSE_MS_MAX",
    "SECRET_VARIABLE",
    "TABLES",
    "TOPIC_SHARDS_MAX",
    "AdminConfig",
    "AwsConfig",
    "ClientConfig",
    "Config",
    "HooksConfig",
    "HttpApiConfig",
    "NodeConfig",
    "ServerConfig",
    "SubscriptionTokenConfig",
    "TlsConfig",
    "TokenConfig",
    "TracingConfig",
    "WebSocketConfig",
    "dev_config",
]

CONFIG_VARIABLE: Final = "ROOMCAST_CONFIG"
# A JSON object of further variables: a whole secret of Secrets Manager, which ECS can only put into
# one variable unless it is told each name in it.
SECRET_VARIABLE: Final = "ROOMCAST_SECRET"  # noqa: S105  # a name
# Variables with our prefix for other programs: the test run and the stream Lambda.
FOREIGN_VARIABLES: Final = frozenset(
    {
        CONFIG_VARIABLE,
        SECRET_VARIABLE,
        "ROOMCAST_REQUIRE",
        "ROOMCAST_CHROMIUM",
        "ROOMCAST_TOPIC_ARN",
    }
)
# Processes of one machine, each with a queue of its own: more than any instance type has cores for.
PROCESSES_MAX: Final = 256
# A publication and the log's own fields must fit one item of 128 KiB.
MESSAGE_SIZE_LIMIT_MAX: Final = 96 * 1024
# The secret with which `roomcast dev` signs and verifies, so that examples can name it. Never a
# production key.
DEV_SECRET: Final = "secret"  # noqa: S105  # meant to be known
# SDKs give up after 5 s and reconnect. The work after a hook takes time too.
HOOK_TIMEOUT_S_MAX: Final = 4.0
# Below `node.gap_wait_ms`, so that a pause alone causes no read of the log.
RECEIVE_PAUSE_MS_MAX: Final = 150
# As many as the stream Lambda publishes to.
TOPIC_SHARDS_MAX: Final = 16
_PORT_MAX: Final = 65_535


def _public_key(doc: str) -> str:
    return declare(
        "",
        f"{doc} A line break may be written as `\\n`. For a rotation it may be two keys, one "
        "after the other: each of them verifies.",
        pattern=r"(?s)\s*-----BEGIN (RSA )?PUBLIC KEY-----.+-----END (RSA )?PUBLIC KEY-----\s*",
        shape="a public key in PEM form (-----BEGIN PUBLIC KEY-----…)",
        lines=True,
    )


@dataclass(frozen=True, slots=True)
class TokenConfig:
    """[client.token]: verification of connection and subscription tokens.

    Without any key, no token is accepted.
    """

    hmac_secret_key: str = declare(
        "",
        "Key of HS256, HS384 and HS512 tokens; empty: none of them is accepted. "
        "At least 32 bytes, or it can be guessed offline from one token.",
        secret=True,
    )
    hmac_previous_secret_key: str = declare(
        "",
        "A second key of such tokens, for a rotation: the one before, or the one to come. See "
        "[operations.md](operations.md#rotate-a-key).",
        secret=True,
    )
    hmac_previous_secret_key_valid_until: int = declare(
        0,
        "When that second key ends, in seconds since 1970. A token that it signed is answered as "
        "an expired one from then on, so that clients fetch another. 0: it has no end.",
        unit="s since 1970",
        # The year 9999: milliseconds, which some would write, are beyond it.
        within=(0, 253_402_300_799),
    )
    rsa_public_key: str = _public_key(
        "Key of RS256, RS384 and RS512 tokens, of 2,048 to 8,192 bits; empty: none but those of "
        "keys of the endpoint below."
    )
    ecdsa_public_key: str = _public_key(
        "The same for ES256 (curve P-256), ES384 (P-384) or ES512 (P-521) tokens."
    )
    ed25519_public_key: str = _public_key("The same for EdDSA tokens.")
    jwks_public_endpoint: str = declare(
        "",
        "Where an identity provider publishes its public keys as a JWK set: for RS…, ES… and "
        "EdDSA tokens, beside the keys above. Fetched at the start, every 5 minutes, and when a "
        "token names a key that is not known; kept for 6 hours if it cannot be. Weak keys, secrets "
        "and those for other algorithms are left out, and the log says why (`jwks_keys_refused`). "
        "Set `issuer` and `audience` too: others' tokens may have the same keys. `{{name}}` stands "
        "for what a group of `issuer_regex` or `audience_regex` found, for providers with an "
        "endpoint each: [below](#several-issuers). Nodes in subnets without a way out cannot reach "
        "it.",
        # No user:password@. Redirects are not followed. Without what `{{…}}` stands for, it is
        # held against JWKS_ADDRESS (checks.py).
        pattern=r"https?://([^/\s@?#{}]|\{\{\w+\}\})+(/([^\s#{}]|\{\{\w+\}\})*)?",
        shape="an https:// address (http:// only of this machine)",
    )
    audience: str = declare("", "Required `aud` of a token; empty: not checked.")
    audience_regex: str = declare(
        "",
        "Regular expression (RE2) that an `aud` of a token must match as a whole; empty: not "
        "checked. Not together with `audience`.",
    )
    issuer: str = declare("", "Required `iss` of a token; empty: not checked.")
    issuer_regex: str = declare(
        "",
        "Regular expression (RE2) that the `iss` of a token must match as a whole, for several "
        "issuers; empty: not checked. Not together with `issuer`. See [below](#several-issuers).",
    )
    user_id_claim: str = declare(
        "",
        "Claim that names the user in place of `sub`, such as `user_id` or `cognito:username`: "
        "text, or a whole number. A token without it is for an anonymous user. Of connection "
        "tokens and of subscription tokens.",
        pattern=r"[A-Za-z_][A-Za-z0-9_:./-]{0,127}",
        shape="the name of a claim",
    )

    @property
    def has_key(self) -> bool:
        """Whether any token can be valid."""
        return any(
            (
                self.hmac_secret_key,
                self.hmac_previous_secret_key,
                self.rsa_public_key,
                self.ecdsa_public_key,
                self.ed25519_public_key,
                self.jwks_public_endpoint,
            )
        )


@dataclass(frozen=True, slots=True)
class SubscriptionTokenConfig(TokenConfig):
    """[client.subscription_token]: the same for subscription tokens alone, if `enabled`."""

    enabled: bool = declare(
        False,
        "Subscription tokens are verified with the options of this table alone, and none of "
        "`[client.token]` holds for them.",
    )


@dataclass(frozen=True, slots=True)
class ClientConfig:
    """[client]: connections, and the limits of one connection."""

    insecure: bool = declare(
        False,
        "No token needed and everything allowed; binds loopback only unless `--host` is given. "
        "For development.",
    )
    allowed_origins: tuple[str, ...] = declare(
        (),
        "Origins whose pages may connect, such as `https://chat.example.com` or "
        "`https://*.example.com`; `*`: any. Empty: only the server's own. Programs that send no "
        "`Origin` are not concerned.",
        pattern=r"\*|[a-z][a-z0-9+.-]*://[^/\s,@]+",
        shape="origins such as https://chat.example.com (no path, no slash at the end), or *",
    )
    allow_anonymous_connect_without_token: bool = declare(
        False, "Let clients without a token connect, as the user with the empty name."
    )
    subscribe_to_user_personal_channel: bool = declare(
        False,
        "Subscribe each client that has a user to the channel `#` and the user's name as it "
        "connects, without asking it. Not for users whose name has `#`, `,` or other than "
        "printable ASCII characters, or `:` without the option below.",
    )
    user_personal_channel_namespace: str = declare(
        "",
        "Namespace of those channels, `alerts` makes `alerts:#ann`; empty: none.",
        pattern=NAMESPACE_NAME.pattern,
        shape="the name of a namespace",
    )
    user_personal_single_connection: bool = declare(
        False,
        "A user has one connection: a new one closes the others, on all nodes, for good (3504). "
        "Needs `subscribe_to_user_personal_channel`. Each `connect` of a user then costs a signal "
        "to all nodes. Switch it on when every node has this release. See "
        "[below](#one-connection-a-user).",
    )
    events: tuple[str, ...] = declare(
        (),
        "What back ends are told of connections: `connected`, `disconnected`. Needs the events "
        "Lambda. Costs two writes a connection. See [events.md](events.md).",
        pattern="|".join(CONNECTION_KINDS),
        shape="`connected`, `disconnected`",
    )
    channel_limit: int = declare(
        128,
        "Subscriptions of one connection. Bounds what a single client costs.",
        unit="channels",
        within=(1, 10_000),
    )
    queue_max_size: int = declare(
        1024 * 1024,
        "What may wait to be sent to one connection; a client that is further behind is "
        "disconnected (3008) and recovers from the log. At least 1 MiB: twice what one recovery "
        "or one page of history may bring. Half of it is what one list of a channel's members may "
        "have; a longer one gets error 106.",
        unit="bytes",
        within=(1024 * 1024, 256 * 1024 * 1024),
    )
    queue_total_max_size: int = declare(
        256 * 1024 * 1024,
        "What may wait to be sent to all connections of an instance (of each process, with "
        "`node.processes`) that read slowly. Beyond it, those for which most waits are "
        "disconnected (3008), until an eighth is free. The default is a quarter of the memory of a "
        "machine with 1 GiB, and enough for 256 connections that are as far behind as "
        "`queue_max_size` lets them. What waits for several is counted for each.",
        unit="bytes",
        within=(1024 * 1024, 1024 * 1024 * 1024 * 1024),
    )
    write_delay_ms: int = declare(
        0,
        "For how long what goes to one connection is collected before it goes out in one write, "
        "and as one frame where the transport allows it. For connections that get many messages a "
        "second; all of them come that much later, replies too. Below `pong_timeout_s`. "
        '`"0s"`: each goes out at once. See [below](#batching).',
        within=(0, 1000),
        says_unit=True,
    )
    ping_interval_s: float = declare(
        25.0,
        "Time between the server's pings. Below the idle time-out of load balancers (60 s is "
        "common).",
        unit="s",
        within=(1, 3600),
    )
    pong_timeout_s: float = declare(
        8.0,
        "How long a client may take to answer a ping (3012). Below `ping_interval_s`.",
        unit="s",
        within=(0.1, 3600),
    )
    stale_close_delay_s: float = declare(
        10.0,
        "How long a socket may stay open without a successful `connect` (3502).",
        unit="s",
        within=(0.1, 3600),
    )
    connection_limit: int = declare(
        0,
        "Connections of one node; more are refused with 503, so that the load balancer tries "
        "another. 0: as many as the process's limit on descriptors has room for, which is also "
        "what a higher number becomes.",
        unit="connections",
        within=(0, 10_000_000),
    )
    user_connection_limit: int = declare(
        0,
        "Connections of one user on one node; a further one is closed for good (3504). Leave room "
        "for those that are gone and not missed yet: up to `ping_interval_s` and "
        "`pong_timeout_s`. Clients without a name are not counted. 0: no limit.",
        unit="connections",
        within=(0, 1_000_000),
    )
    publish_rate_limit: float = declare(
        100.0,
        "Publications that one connection may publish in a second, in the long run; twice as many "
        "at once. More have to wait: they are taken later. What would wait for more than 2 s "
        "after its frame was read gets error 111: more of one frame than that has time for, and "
        "below one in 2 s any. 0: no limit.",
        unit="publications",
        within=(0, 1_000_000),
    )
    command_rate_limit: float = declare(
        500.0,
        "Commands of any kind that are taken from one connection in a second, in the long run; "
        "twice as many at once, and `channel_limit` more, for the subscriptions of a client that "
        "comes back. More have to wait: they are read later. 0: no limit.",
        unit="commands",
        within=(0, 1_000_000),
    )
    handshake_rate_limit: float = declare(
        0.0,
        "New connections of one address (IPv6: of one /64, four times as many of one /56, sixteen "
        "times of one /48) in a second, in the long run; ten times as many at once. More get HTTP "
        "429. Behind a load balancer it needs `trusted_proxies`: otherwise all clients have the "
        "balancer's address. 0: no limit. See [below](#handshakes-behind-a-load-balancer).",
        unit="connections",
        within=(0, 1_000_000),
    )
    trusted_proxies: tuple[str, ...] = declare(
        (),
        "Networks of the load balancers in front of this server, such as `10.0.0.0/16`: who comes "
        "from there has the address that `X-Forwarded-For` says. Empty: the header is not looked "
        "at.",
        pattern=r"[0-9A-Fa-f:.]{2,45}(/[0-9]{1,3})?",
        shape="networks such as 10.0.0.0/16",
    )
    message_size_limit: int = declare(
        64 * 1024,
        "Largest command a client may send (error 106); a frame of several may be four times as "
        "large (close code 1009). At most 98,304: a publication must fit a log item.",
        unit="bytes",
        within=(1024, MESSAGE_SIZE_LIMIT_MAX),
    )
    history_max_publication_limit: int = declare(
        300,
        "Publications in one `history` reply, whatever was asked for.",
        unit="publications",
        within=(1, 10_000),
    )
    recovery_max_publication_limit: int = declare(
        300,
        "Publications a client can recover at once; one that missed more is told to start afresh.",
        unit="publications",
        within=(1, 10_000),
    )
    token: TokenConfig = field(default_factory=TokenConfig)
    subscription_token: SubscriptionTokenConfig = field(default_factory=SubscriptionTokenConfig)

    @property
    def token_of_subscriptions(self) -> TokenConfig:
        """How subscription tokens are verified."""
        return self.subscription_token if self.subscription_token.enabled else self.token


@dataclass(frozen=True, slots=True)
class WebSocketConfig:
    """[websocket]: the transport of `/connection/websocket`."""

    compression: bool = declare(
        False,
        "Compress messages (permessage-deflate) for clients that offer it, as browsers do. What "
        "goes to many is compressed once for all of them, and no connection keeps a compressor. "
        "See [below](#compression), and [security.md](security.md#compression) for what must not "
        "be in one message.",
    )
    compression_min_size: int = declare(
        128,
        "Messages of fewer bytes are not compressed: it would save little.",
        unit="bytes",
        within=(0, 64 * 1024),
    )
    compression_level: int = declare(
        1,
        "zlib's level: 1 is the fastest, 9 the smallest. Messages of more than 8 KiB are "
        "compressed at 6 at most, or clients could make some that take long.",
        within=(1, 9),
    )


@dataclass(frozen=True, slots=True)
class HttpApiConfig:
    """[http_api]: publishing from a back end."""

    key: str = declare(
        "",
        "Key that callers send as `X-API-Key`, or as `Authorization: apikey …`; empty: the API is "
        "off, unless the server is insecure.",
        secret=True,
    )


@dataclass(frozen=True, slots=True)
class TlsConfig:
    """[server.tls], [server.internal_tls]: the certificate of both ports, of the internal one."""

    cert_file: str = declare(
        "",
        "PEM file with the certificate, and behind it those of the authorities in between; empty: "
        "no TLS. Read again when it changes. A relative path begins where the server is started.",
    )
    key_file: str = declare(
        "", "PEM file with the certificate's private key, without a passphrase."
    )

    @property
    def is_on(self) -> bool:
        """Whether the port speaks TLS."""
        return bool(self.cert_file)


@dataclass(frozen=True, slots=True)
class ServerConfig:
    """[server]: the addresses and certificates of one server process."""

    internal_port: int = declare(
        0,
        "Port of its own for what is not for clients: `/health`, `/metrics`, `/admin` and the "
        "server API are there and nowhere else, and what clients use is at `--port` only. 0: "
        "everything is at `--port`. See [below](#two-ports).",
        within=(0, _PORT_MAX),
    )
    internal_address: str = declare(
        "",
        "Address to listen on for that port, such as `127.0.0.1`; empty: the one of `--host`.",
        pattern=r"[0-9A-Za-z.:_-]{1,253}",
        shape="an address or a host name",
    )
    tls_external: bool = declare(
        False,
        "Keep the certificate of `[server.tls]` for the port of clients: the internal port is then "
        "without TLS, unless it has a certificate of its own.",
    )
    tls: TlsConfig = field(default_factory=TlsConfig)
    internal_tls: TlsConfig = field(default_factory=TlsConfig)

    @property
    def tls_of_internal(self) -> TlsConfig:
        """The certificate of the internal port."""
        if self.internal_tls.is_on:
            return self.internal_tls
        return TlsConfig() if self.tls_external else self.tls


@dataclass(frozen=True, slots=True)
class AdminConfig:
    """[admin]: the operations page at /admin. See docs/admin.md."""

    password_hash: str = declare(
        "",
        "Hash of the password of the page, as `roomcast passwordhash` prints it, the same on every "
        "node; empty: there is no page. Sessions are signed with a key that is made from it: keep "
        "it secret. Another one ends every session.",
        secret=True,
        pattern=r"scrypt\$ln=[0-9]{1,2},r=[0-9]{1,2},p=[0-9]{1,2}\$[A-Za-z0-9_-]{22,86}\$[A-Za-z0-9_-]{43}",
        shape="what `roomcast passwordhash` prints (scrypt$ln=…)",
    )
    write: bool = declare(
        False,
        "Let the page publish, end subscriptions and connections, and drain nodes. Without it, the "
        "page reads only.",
    )
    session_ttl_s: float = declare(
        28_800.0,
        "How long who logged in stays so, whatever they do: a working day.",
        unit="s",
        within=(60, 604_800),
    )


def _hook(doc: str) -> str:
    return declare(
        "",
        doc,
        pattern=r"[A-Za-z_]\w*(\.\w+)*:[A-Za-z_]\w*(\.\w+)*",
        shape="a name such as package.module:function",
    )


@dataclass(frozen=True, slots=True)
class HooksConfig:
    """[hooks]: the application's own code in this process. See docs/hooks.md."""

    connect: str = _hook(
        "Async function that is asked when a client connects, `package.module:function`; empty: "
        "none."
    )
    subscribe: str = _hook("The same when a client subscribes without a token.")
    publish: str = _hook("The same when a client publishes.")
    rpc: str = _hook(
        "Registry of the methods that clients may call, `package.module:registry`; empty: none."
    )
    refresh: str = _hook(
        "Async function that is asked whether a connection goes on whose time is over; empty: "
        "none. With it, no client refreshes its connection by a token."
    )
    sub_refresh: str = _hook("The same for a subscription whose time is over.")
    start: str = _hook(
        "Async function that is called as the server starts, before clients come, for 30 s at "
        "most; empty: none. What it raises ends the start."
    )
    stop: str = _hook(
        "Async function that is called after the last client is gone, for 5 s at most; empty: none."
    )
    timeout_s: float = declare(
        3.0,
        "How long a call of them may take; then the client gets error 100. SDKs wait 5 s for all "
        "of an answer.",
        unit="s",
        within=(0.01, HOOK_TIMEOUT_S_MAX),
    )
    directory: str = declare(
        ".",
        "Where their modules are looked for, besides the installed packages, which come first; "
        "relative to where the server is started. Empty: nowhere else.",
    )


@dataclass(frozen=True, slots=True)
class AwsConfig:
    """[aws]: the names of this deployment's resources.

    Credentials come from the usual places of AWS tools, never from here.
    """

    region: str = declare(
        "",
        "Region; empty: as the AWS tools find it (`AWS_REGION`, profile, instance).",
        pattern=r"[a-z]{2}(-[a-z]+)+-[0-9]",
        shape="a region such as eu-central-1",
    )
    endpoint_url: str = declare(
        "",
        "Endpoint of an emulator; empty: `AWS_ENDPOINT_URL`, else AWS itself.",
        # No user:password@, because the address is logged.
        pattern=r"https?://[^/\s@?#]+/?",
        shape="an address such as http://127.0.0.1:5000",
    )
    table_prefix: str = declare(
        "roomcast-",
        "Prefix of the tables' names: …channels, …nodes, …presence, …idempotency. Tells "
        "deployments in one account apart.",
        pattern=r"[A-Za-z0-9_.-]{1,200}",
        shape="1 to 200 letters, digits, -, _ or .",
    )
    topic_arn: str = declare(
        "",
        "ARN of the SNS topic that every node's queue is subscribed to; `roomcast serve` needs it. "
        "deploy/ makes the topic, for emulators `roomcast provision`, which prints its ARN.",
        pattern=r"arn:[a-z-]+:sns:[a-z0-9-]+:[0-9]{12}:[A-Za-z0-9_-]{1,256}",
        shape="the ARN of an SNS topic",
    )
    topic_shards: int = declare(
        1,
        "Number of topic shards (scaling.md): each channel with history belongs to one, which has "
        "a topic of its own, and an instance hears those of the channels that it serves. Their "
        "topics are named like that of `topic_arn`, with `-shard-0` and so on behind. 1: there is "
        "one topic for all. To change it takes an order of steps (deploy/README.md).",
        within=(1, TOPIC_SHARDS_MAX),
    )
    queue_prefix: str = declare(
        "roomcast-",
        "Prefix of the queues' names; the node's name follows. At most 40 characters: SQS takes "
        "80 in all.",
        pattern=r"[A-Za-z0-9_-]{1,40}",
        shape="1 to 40 letters, digits, - or _",
    )
    queue_kms_key_id: str = declare(
        "",
        "ARN of a key of KMS that encrypts the queues; empty: SQS's own does. The key's policy has "
        "to let SNS use it (deploy/README.md), or nothing gets into the queues.",
        pattern=r"arn:[a-z-]+:kms:[a-z0-9-]+:[0-9]{12}:(key|alias)/[A-Za-z0-9/_-]{1,256}",
        shape="the ARN of a key of KMS",
    )
    sns_quota: float = declare(
        300.0,
        "Messages that SNS takes in a second, of all that the account publishes in the region: "
        "300 in most, 30,000 in us-east-1 (scaling.md). Set it where yours is another, and lower "
        "where others use it too.",
        unit="messages a second",
        within=(1, 1_000_000),
    )
    sns_signals_share: float = declare(
        0.5,
        "Share of that quota for what nodes send themselves: signals (channels without history, "
        "joins and leaves, orders) and express hints. Each node sends its part, by the number of "
        "live nodes: one message a second at least, and 20 of signals at most. The rest is for "
        "the stream Lambda, by which all else comes.",
        within=(0.01, 0.9),
    )
    express_rate_limit: float = declare(
        100.0,
        "Messages of express hints a second, of all nodes together: each sends its part, by the "
        "number of live nodes, as far as signals leave room in `sns_signals_share`. What it does "
        "not get to in time comes by the table's stream alone.",
        unit="messages a second",
        within=(0.1, 30_000),
    )
    receive_pause_ms: int = declare(
        0,
        "How long a node waits after a receive that brought messages, and fewer than ten, before "
        "the next one. Messages that flow gather meanwhile, and share calls to SQS: with 30 to "
        "50, a node that hears 40 to 300 messages a second makes a third to two thirds of them "
        "(cost.md). Adds up to as much to the way of messages. 0: no pause.",
        unit="ms",
        within=(0, RECEIVE_PAUSE_MS_MAX),
    )
    lean_calls: bool = declare(
        True,
        "Make the calls that are made most (PutItem and Query of the log, PutItem and DeleteItem "
        "of presence, Publish, ReceiveMessage, DeleteMessageBatch) without going through all of "
        "the SDK, for a third of its CPU. "
        "`false`: through the SDK, as all others. So it is behind a proxy in any case.",
    )
    log_generation: str = declare(
        "0",
        "Change it after the tables were restored from a backup: every channel then begins a new "
        "epoch, because offsets went back.",
        pattern=r"[0-9a-z]{1,8}",
        shape="1 to 8 digits or small letters",
    )
    autoscaling_group: str = declare(
        "",
        "Name of the Auto Scaling group that the instance is in; empty: none. The nodes tell it "
        "when they serve and when they have drained, at the two hooks below. In a task of ECS "
        "there is no group: it is the name that metrics go by.",
        pattern=r"[!-~]([ -~]{0,253}[!-~])?",
        shape="the name of an Auto Scaling group",
    )
    launch_hook: str = declare(
        "",
        "Lifecycle hook of the group at which a new instance waits until one of its nodes serves; "
        "empty: none.",
        pattern=r"[A-Za-z0-9_/-]{1,255}",
        shape="the name of a lifecycle hook",
    )
    terminate_hook: str = declare(
        "",
        "Lifecycle hook of the group at which an instance waits until its nodes have drained; "
        "empty: none. Its heartbeat time-out may be short: it is renewed every 20 s.",
        pattern=r"[A-Za-z0-9_/-]{1,255}",
        shape="the name of a lifecycle hook",
    )
    metrics_namespace: str = declare(
        "",
        "CloudWatch namespace of a node's connections, publications, appends, delivery, lag and "
        "health, which it logs once a minute in the embedded metric format; empty: it does not. "
        "CloudWatch Logs makes metrics of these lines, with `autoscaling_group` as their only "
        "dimension.",
        pattern=r"(?!AWS/)[A-Za-z0-9._/#-][A-Za-z0-9 ._/#:-]{0,254}",
        shape="a namespace such as roomcast, which does not begin with AWS/",
    )


@dataclass(frozen=True, slots=True)
class NodeConfig:
    """[node]: the life of one server process, and its synchronisation with the log."""

    processes: int = declare(
        1,
        "Processes of `roomcast serve` on this machine, each a node of its own; they share the "
        "port. 0: one for each core that may be used. `--processes` wins over it. More than one "
        "needs Linux.",
        unit="processes",
        within=(0, PROCESSES_MAX),
    )
    drain_s: float = declare(
        30.0,
        "Time over which a stopping node closes its connections, so that they do not all "
        "reconnect at once. Below the load balancer's deregistration delay. On Fargate at most "
        "60, since it takes half as long again at most, and what follows its time.",
        unit="s",
        within=(0, 3600),
    )
    lease_ttl_s: float = declare(
        60.0,
        "A node whose heartbeat is older counts as dead: its presence entries are ignored, its "
        "queue is up for removal.",
        unit="s",
        within=(1, 3600),
    )
    heartbeat_s: float = declare(
        15.0,
        "Time between heartbeats. Below half of `lease_ttl_s`: one may be lost.",
        unit="s",
        within=(0.1, 1800),
    )
    gap_wait_ms: int = declare(
        0,
        "How long a publication that came too early waits for the ones before it, before the log "
        "is read. They may be on their way, and a read costs money. 0: as long as the way from the "
        "table to the node takes, by the canaries, and half as much again, from 200 ms to 2 s.",
        unit="ms",
        within=(0, 10_000),
    )
    tail_check_s: float = declare(
        300.0,
        "Time between looks at the log's end for each channel with local subscribers (jittered): "
        "finds a lost last publication. Costs one read each.",
        unit="s",
        within=(1, 86_400),
    )
    canary_interval_s: float = declare(
        30.0,
        "Time between canaries: records that one node writes and every node must hear. A node "
        "that misses two or three finds out whether it is deaf or the pipeline is silent.",
        unit="s",
        within=(1, 3600),
    )
    queue_probe_s: float = declare(
        5.0,
        "How long a starting node waits to hear its own greeting through its queue before it "
        "serves all the same.",
        unit="s",
        within=(0.1, 300),
    )
    imds_endpoint: str = declare(
        "http://169.254.169.254",
        "Instance metadata service (version 2) of an EC2 instance: its id becomes part of the "
        "node's, and it says when the instance is to end. At this address only machines that say "
        "they are of EC2 are asked. Empty, or `AWS_EC2_METADATA_DISABLED=true`: never.",
        pattern=r"(https?://[^/\s@?#]+/?)?",
        shape="an address such as http://169.254.169.254, or empty",
    )
    lifecycle_poll_s: float = declare(
        5.0,
        "Time between looks at the instance metadata (jittered): an instance that Auto Scaling "
        "terminates, or a spot instance that is taken away, drains as after SIGTERM. 0: never, "
        "which the lifecycle hooks of `[aws]` do not allow.",
        unit="s",
        within=(0, 3600),
    )


# Those of service/roomcast/observe/logs.py.
_LEVELS: Final = ("debug", "info", "warning", "error")


@dataclass(frozen=True, slots=True)
class LogConfig:
    """[log]: what is written to standard error. See docs/logs.md."""

    level: str = declare(
        "info",
        "Events from this level on: debug, info, warning or error. `--log-level` goes before it.",
        pattern="|".join(_LEVELS),
        shape="debug, info, warning or error",
    )
    levels: tuple[str, ...] = declare(
        (),
        "Other levels for rooms or modules of the code, such as `client.comings=warning`, which "
        "leaves out the lines at each connect and close.",
        pattern=rf"[a-z_]+(\.[a-z_]+)*=({'|'.join(_LEVELS)})",
        shape='levels such as "client=warning" or "delivery.canary=debug"',
    )


@dataclass(frozen=True, slots=True)
class TracingConfig:
    """[tracing]: spans for OpenTelemetry. Where they go stands in the variables OTEL_…."""

    enabled: bool = declare(
        False,
        "Traces publications from their command to their pushes, and exports the spans over OTLP "
        "(HTTP). Needs `pip install 'roomcast[otel]'`. See [traces.md](traces.md).",
    )
    sample_ratio: float = declare(
        0.01,
        "The part of publications that is traced, unless the caller of the server API decides by "
        "its `traceparent` header.",
        within=(0, 1),
    )
    channel_names: bool = declare(
        False,
        "Puts channels' names into spans. They may hold the ids of people, and whoever reads the "
        "traces sees them.",
    )


@dataclass(frozen=True, slots=True)
class Config:
    """The whole configuration.

    Build it with `load`, or from the parts. The defaults are those of production.
    """

    client: ClientConfig = field(default_factory=ClientConfig)
    channel: ChannelRules = field(default_factory=ChannelRules)
    websocket: WebSocketConfig = field(default_factory=WebSocketConfig)
    server: ServerConfig = field(default_factory=ServerConfig)
    http_api: HttpApiConfig = field(default_factory=HttpApiConfig)
    admin: AdminConfig = field(default_factory=AdminConfig)
    hooks: HooksConfig = field(default_factory=HooksConfig)
    proxies: ProxiesConfig = field(default_factory=ProxiesConfig)
    aws: AwsConfig = field(default_factory=AwsConfig)
    node: NodeConfig = field(default_factory=NodeConfig)
    log: LogConfig = field(default_factory=LogConfig)
    tracing: TracingConfig = field(default_factory=TracingConfig)
    consumers: tuple[ConsumerConfig, ...] = ()

    def events(self, channel: str) -> tuple[str, ...]:
        """The kinds of events that are told of entries in `channel`: a channel, or the pseudo
        channel of connections.
        """
        return self.client.events if is_of_connections(channel) else self.channel.events(channel)


# Every option that both the file and the environment can set, in the order of the documentation.
OPTIONS: Final[tuple[Option, ...]] = (
    *declared("client", ClientConfig),
    *declared("client.token", TokenConfig),
    *declared("client.subscription_token", SubscriptionTokenConfig),
    *WITHOUT_NAMESPACE_OPTIONS,
    *declared("websocket", WebSocketConfig),
    *declared("server", ServerConfig),
    *declared("server.tls", TlsConfig),
    *declared("server.internal_tls", TlsConfig),
    *declared("http_api", HttpApiConfig),
    *declared("admin", AdminConfig),
    *declared("hooks", HooksConfig),
    *PROXY_OPTIONS,
    *declared("aws", AwsConfig),
    *declared("node", NodeConfig),
    *declared("log", LogConfig),
    *declared("tracing", TracingConfig),
)
BY_KEY: Final = {option.key: option for option in OPTIONS}
BY_VARIABLE: Final = {option.variable: option for option in OPTIONS}
assert len(BY_VARIABLE) == len(OPTIONS), "no two options share a variable"
assert not FOREIGN_VARIABLES & BY_VARIABLE.keys(), "no option hides behind somebody else's variable"
# Each table, and those around it.
TABLES: Final = frozenset(
    section.rsplit(".", depth)[0]
    for section in {option.section for option in OPTIONS}
    for depth in range(section.count(".") + 1)
)


def dev_config() -> Config:
    """The configuration of `roomcast dev` without a file: insecure, with every feature of a chat
    room.
    """
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
            # For ephemeral publications: they go straight to the topic, and are not stored.
            {
                "typing": ChannelOptions(
                    allow_subscribe_for_client=True, allow_publish_for_subscriber=True
                )
            },
        ),
        # A short drain: Ctrl-C is pressed often, and few clients are connected.
        node=NodeConfig(drain_s=1.0),
    )
