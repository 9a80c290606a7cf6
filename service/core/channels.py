"""Channel names and namespaces: which options a channel has."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

__all__ = [
    "CHANNEL_BYTES_MAX",
    "NAMESPACE_SEPARATOR",
    "RESERVED_PREFIX",
    "ChannelOptions",
    "ChannelRules",
    "is_valid_name",
]

CHANNEL_BYTES_MAX: Final = 255
NAMESPACE_SEPARATOR: Final = ":"
# No client can name such a channel: names are printable ASCII. The service's own records use it.
RESERVED_PREFIX: Final = "\u0001"


@dataclass(frozen=True, slots=True)
class ChannelOptions:
    """What the channels of one namespace may do. Names follow Centrifugo's; everything is off unless switched on.

    A channel has history when both `history_size` (publications) and `history_ttl_s` (seconds) are set.
    """

    history_size: int = 0
    history_ttl_s: int = 0
    force_recovery: bool = False
    force_positioning: bool = False
    presence: bool = False
    join_leave: bool = False
    force_push_join_leave: bool = False
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

    @property
    def has_history(self) -> bool:
        return self.history_size > 0 and self.history_ttl_s > 0


@dataclass(frozen=True, slots=True)
class ChannelRules:
    """The options of every namespace; `without_namespace` for names without a separator."""

    without_namespace: ChannelOptions = field(default_factory=ChannelOptions)
    namespaces: Mapping[str, ChannelOptions] = field(default_factory=dict)

    def options(self, channel: str) -> ChannelOptions | None:
        """The options of `channel`, or None when its namespace is unknown (error 102)."""
        namespace, separator, _ = channel.removeprefix("$").partition(NAMESPACE_SEPARATOR)
        if not separator:
            return self.without_namespace
        return self.namespaces.get(namespace)


def is_valid_name(channel: str) -> bool:
    """1 to 255 printable ASCII characters (PROTOCOL §5: longer ones are error 107)."""
    return 0 < len(channel) <= CHANNEL_BYTES_MAX and channel.isascii() and channel.isprintable()
