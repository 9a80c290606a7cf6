"""Namespaces, and the options of channels."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Final

from roomcast.patterns import pattern
from roomcast.wire.codes import Error
from roomcast.wire.event_kinds import PUBLISHED, has_entries
from roomcast.wire.names import NAMESPACE_SEPARATOR, is_valid_name, listed_users

__all__ = [
    "BATCH_PUBLICATIONS_MAX",
    "BINARY",
    "JSON",
    "JSON_OBJECT",
    "RECOVERY_MODES",
    "Batching",
    "ChannelOptions",
    "ChannelOverride",
    "ChannelRules",
]

# What publications hold, as Centrifugo names it in `publication_data_format`. "" is JSON as well.
JSON: Final = "json"
JSON_OBJECT: Final = "json_object"
BINARY: Final = "binary"
# The values of `force_recovery_mode`: a recovery brings all publications that were missed, or the
# newest.
RECOVERY_MODES: Final = ("stream", "cache")
# Publications of one batch, whatever the configuration says.
BATCH_PUBLICATIONS_MAX: Final = 1000


@dataclass(frozen=True, slots=True)
class Batching:
    """How a channel's publications are collected before they go out to its subscribers.

    All go out when `size` of them were collected, and `delay_s` after the first one at the latest.
    `latest`: of those only the newest does.
    """

    size: int
    delay_s: float
    latest: bool


@dataclass(frozen=True, slots=True)
class ChannelOptions:
    """The options of the channels of one namespace.

    The names follow Centrifugo's. Every option is off by default.

    A channel has history when both `history_size` (publications) and `history_ttl_s` (seconds) are
    set.

    `…_for_client` applies to clients with a user. `…_for_subscriber` applies to clients with a user
    that are subscribed to the channel. Clients without a user need `…_for_anonymous` in addition to
    one of them.
    """

    history_size: int = 0
    history_ttl_s: int = 0
    force_recovery: bool = False
    force_recovery_mode: str = "stream"
    auto_cache_recover: bool = False
    force_positioning: bool = False
    allow_recovery: bool = False
    allow_positioning: bool = False
    presence: bool = False
    presence_shards: int = 1
    join_leave: bool = False
    force_push_join_leave: bool = False
    allow_user_limited_channels: bool = False
    channel_regex: str = ""
    allow_subscribe_for_client: bool = False
    allow_subscribe_for_anonymous: bool = False
    allow_publish_for_client: bool = False
    allow_publish_for_subscriber: bool = False
    allow_publish_for_anonymous: bool = False
    allow_presence_for_client: bool = False
    allow_presence_for_subscriber: bool = False
    allow_presence_for_anonymous: bool = False
    allow_history_for_client: bool = False
    allow_history_for_subscriber: bool = False
    allow_history_for_anonymous: bool = False
    allow_channel_compaction: bool = False
    allowed_delta_types: tuple[str, ...] = ()
    delta_publish: bool = False
    express: bool = False
    subscribe_proxy_enabled: bool = False
    subscribe_proxy_name: str = ""
    publish_proxy_enabled: bool = False
    publish_proxy_name: str = ""
    sub_refresh_proxy_enabled: bool = False
    sub_refresh_proxy_name: str = ""
    batch_max_size: int = 0
    batch_max_delay_ms: int = 0
    batch_flush_latest: bool = False
    publication_data_format: str = ""
    allow_tags_filter: bool = False
    events: tuple[str, ...] = ()

    @property
    def is_binary(self) -> bool:
        """Whether publications are bytes, which only Protobuf clients get and send."""
        return self.publication_data_format == BINARY

    def takes(self, data: object) -> bool:
        """Whether `data`, a JSON value or bytes, may be published."""
        if isinstance(data, bytes):
            return self.publication_data_format == BINARY
        if not self.publication_data_format:
            return True
        return self.publication_data_format == JSON or (
            self.publication_data_format == JSON_OBJECT and isinstance(data, dict)
        )

    @property
    def has_entries(self) -> bool:
        """Whether it is stored who is in the channel: for those who ask, or for events."""
        return self.presence or has_entries(self.events)

    @property
    def has_history(self) -> bool:
        return self.history_size > 0 and self.history_ttl_s > 0

    @property
    def recovers_newest(self) -> bool:
        """Whether a recovery brings the newest publication, and nothing else that was missed."""
        return self.force_recovery_mode == "cache"

    @property
    def batching(self) -> Batching | None:
        """None = each publication goes out at once."""
        if not self.batch_max_delay_ms:
            return None
        return Batching(
            self.batch_max_size or BATCH_PUBLICATIONS_MAX,
            self.batch_max_delay_ms / 1000,
            self.batch_flush_latest,
        )

    def takes_name(self, channel: str) -> bool:
        """Whether a client may call one of these channels `channel`, by `channel_regex`."""
        if not self.channel_regex:
            return True
        _, separator, rest = channel.removeprefix("$").partition(NAMESPACE_SEPARATOR)
        return pattern(self.channel_regex).is_in(rest if separator else channel)

    def users_of(self, channel: str) -> frozenset[str] | None:
        """The users listed in the name of `channel`, if lists are enabled. None = it is not limited
        to users.
        """
        return listed_users(channel) if self.allow_user_limited_channels else None


@dataclass(frozen=True, slots=True)
class ChannelOverride:
    """Changes of a token to one subscription's options. None = unchanged.

    The names are those of ChannelOptions. Recovery and positions still need a channel with history.
    Pushes of joins still need `join_leave`.
    """

    presence: bool | None = None
    join_leave: bool | None = None
    force_push_join_leave: bool | None = None
    force_recovery: bool | None = None
    force_positioning: bool | None = None

    def over(self, options: ChannelOptions) -> ChannelOptions:
        said = {each.name: getattr(self, each.name) for each in fields(self)}
        changes = {name: value for name, value in said.items() if value is not None}
        return replace(options, **changes) if changes else options


@dataclass(frozen=True, slots=True)
class ChannelRules:
    """The options of every namespace. `without_namespace`: for names without a separator."""

    without_namespace: ChannelOptions = field(default_factory=ChannelOptions)
    namespaces: Mapping[str, ChannelOptions] = field(default_factory=dict)

    def all_options(self) -> tuple[ChannelOptions, ...]:
        """Those of every namespace, and of channels without one."""
        return (self.without_namespace, *self.namespaces.values())

    def options(self, channel: str) -> ChannelOptions | None:
        """The options of `channel`, or None when its namespace is unknown (error 102)."""
        namespace, separator, _ = channel.removeprefix("$").partition(NAMESPACE_SEPARATOR)
        if not separator:
            return self.without_namespace
        return self.namespaces.get(namespace)

    def find(self, channel: str) -> ChannelOptions | Error:
        """The options of `channel` as a client names it, or why there is no such channel.

        BAD_REQUEST: nothing can have that name, or nothing in its namespace (`channel_regex`).
        UNKNOWN_CHANNEL: its namespace is unknown.
        """
        if not is_valid_name(channel):
            return Error.BAD_REQUEST
        options = self.options(channel)
        if options is None:
            return Error.UNKNOWN_CHANNEL
        return options if options.takes_name(channel) else Error.BAD_REQUEST

    def batching(self, channel: str) -> Batching | None:
        """How publications of `channel` are collected; None = they are not."""
        options = self.options(channel)
        return None if options is None else options.batching

    def has_join_leave(self, channel: str) -> bool:
        """Whether clients of `channel` get join and leave pushes."""
        options = self.options(channel)
        return options is not None and options.join_leave

    def presence_shards(self, channel: str) -> int:
        """The partitions that the members of `channel` are spread over."""
        options = self.options(channel)
        return 1 if options is None else options.presence_shards

    def events(self, channel: str) -> tuple[str, ...]:
        """The kinds of events of `channel` that back ends are told."""
        options = self.options(channel)
        return () if options is None else options.events

    def tells_published(self, channel: str) -> bool:
        """Whether they are told what is published there."""
        return PUBLISHED in self.events(channel)

    def is_binary(self, channel: str) -> bool:
        """Whether publications of `channel` are bytes."""
        options = self.options(channel)
        return options is not None and options.is_binary

    def is_express(self, channel: str) -> bool:
        """Whether appends to `channel` go out as express hints as well."""
        options = self.options(channel)
        return options is not None and options.express

    @property
    def has_express(self) -> bool:
        """Whether any channel's do."""
        return any(each.express for each in self.all_options())
