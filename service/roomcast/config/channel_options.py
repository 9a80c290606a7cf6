"""The options of channels: the fields of `ChannelOptions`, with their limits and reasons."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import fields
from typing import Final, get_type_hints

from roomcast.config.declaration import Option, Rules, kind_of, unit_of
from roomcast.wire.channels import (
    BATCH_PUBLICATIONS_MAX,
    BINARY,
    JSON,
    JSON_OBJECT,
    RECOVERY_MODES,
    ChannelOptions,
)
from roomcast.wire.event_kinds import CHANNEL_KINDS
from roomcast.wire.names import PRESENCE_SHARDS_MAX

__all__ = [
    "NAMESPACES",
    "NAMESPACES_MAX",
    "NAMESPACE_NAME",
    "NAMESPACE_OPTIONS",
    "WITHOUT_NAMESPACE",
    "WITHOUT_NAMESPACE_OPTIONS",
]

# Longer names would leave little of a channel's 255 bytes.
NAMESPACE_NAME: Final = re.compile(r"[A-Za-z0-9_.-]{1,64}")


# Names of hooks over HTTP: config/proxy_options.py.
_PROXY: Final = r"[A-Za-z0-9_.-]{2,64}"
_PROXY_SHAPE: Final = "the name of one of `[[proxies]]`"

_CHANNEL_RULES: Final[Mapping[str, Rules]] = {
    "history_size": Rules(
        "Publications a channel shows at most. With `history_ttl`, switches history on.",
        "publications",
        0,
        1_000_000,
    ),
    "history_ttl": Rules(
        'For how long they are shown: `"300s"`, `"5m"`, `"12h"`, `"7d"`. Needs `history_size`.',
        "",
        0,
        366 * 86_400,
    ),
    "force_recovery": Rules("Every subscription recovers what it missed. Needs history."),
    "force_recovery_mode": Rules(
        "What a recovery brings: `stream`, all that was missed; or `cache`, the newest "
        "publication, for channels whose every publication has the whole state. See "
        "[concepts.md](concepts.md#latest-value-channels).",
        pattern="|".join(RECOVERY_MODES),
        shape="`stream` or `cache`",
    ),
    "auto_cache_recover": Rules(
        "Every subscription begins with the newest publication, though its client does not ask to "
        'recover. Needs `force_recovery` and `force_recovery_mode = "cache"`.'
    ),
    "force_positioning": Rules(
        "Every subscription is checked for gaps, and told when one cannot be closed. Needs history."
    ),
    "allow_recovery": Rules(
        "A subscriber who asks for it recovers what it missed, though it may not read the history "
        "otherwise. Who may (`allow_history_for_…`, `hst` of a token) needs no such option."
    ),
    "allow_positioning": Rules(
        "A subscriber who asks for it is checked for gaps, though it may not read the history."
    ),
    "presence": Rules("Keep who is in the channel. Costs two writes a member."),
    "presence_shards": Rules(
        "Partitions of the presence table that the members of a channel are spread over, by the "
        "client's id. One takes 1,000 entries and removals a second; each further one is a query "
        "more whenever a node reads who is there. Nodes that differ in it see each other's "
        "members. See [scaling.md](scaling.md#presence).",
        "shards",
        1,
        PRESENCE_SHARDS_MAX,
    ),
    "join_leave": Rules(
        "Tell subscribers who ask for it, and may ask who is there (`allow_presence_for_…`), when "
        "a client comes and goes."
    ),
    "force_push_join_leave": Rules("Tell all subscribers. Needs `join_leave`."),
    "allow_user_limited_channels": Rules(
        "A name such as `dialogue#ann,bob` lists who may be in: they may subscribe, and nobody "
        "else does without a token. Without it `#` means nothing: such a channel is open to whom "
        "the options below open any other."
    ),
    "channel_regex": Rules(
        "Regular expression (RE2) that a client's name for a channel must match, without the "
        "namespace and its colon: others get error 107. Write `^` and `$` where all of it is "
        'meant: `"^[0-9]+$"`. It matches in microseconds, whatever the name: back-references '
        "and looking ahead are no part of RE2, and what would take long is refused at the start. "
        "Not asked for the server's own subscriptions, nor by the server API. Empty: any name.",
    ),
    "allow_subscribe_for_client": Rules(
        "A client with a user may subscribe without a subscription token."
    ),
    "allow_subscribe_for_anonymous": Rules(
        "A client without a user may do so too, where the option above lets those with a user."
    ),
    "allow_publish_for_client": Rules("A client with a user may publish."),
    "allow_publish_for_subscriber": Rules(
        "A client that has a user and is subscribed may publish."
    ),
    "allow_publish_for_anonymous": Rules(
        "A client without a user may do so too, where one of the two options above lets those "
        "with a user."
    ),
    "allow_presence_for_client": Rules("A client with a user may ask who is there."),
    "allow_presence_for_subscriber": Rules(
        "A client that has a user and is subscribed may ask who is there."
    ),
    "allow_presence_for_anonymous": Rules(
        "A client without a user may do so too, where one of the two options above lets those "
        "with a user."
    ),
    "allow_history_for_client": Rules("A client with a user may read the history."),
    "allow_history_for_subscriber": Rules(
        "A client that has a user and is subscribed may read the history."
    ),
    "allow_history_for_anonymous": Rules(
        "A client without a user may do so too, where one of the two options above lets those "
        "with a user."
    ),
    "allow_channel_compaction": Rules(
        "Call the channel by a number in the pushes of clients that offer it, as SDKs do: shorter "
        "than a long name."
    ),
    "allowed_delta_types": Rules(
        "Ways in which a client may ask for publications as differences from the one before: "
        "`fossil`. Needs history.",
        pattern="fossil",
        shape="`fossil`, or nothing",
    ),
    "delta_publish": Rules(
        "Publications may go out as differences; without it, those that the server API marks with "
        "`delta`. Needs `allowed_delta_types`."
    ),
    "allow_tags_filter": Rules(
        "A subscriber may ask for the publications whose tags pass its filter, and gets no others: "
        "saves what it would throw away, and hides nothing. See "
        "[payloads.md](payloads.md#tag-filters)."
    ),
    "express": Rules(
        "The instance that writes sends publications to the others at once, ahead of the table's "
        "stream: they get there in about a third of the time. Costs messages to SNS, bounded by "
        "`aws.express_rate_limit` (scaling.md). Needs history."
    ),
    "subscribe_proxy_enabled": Rules(
        "Ask the hook over HTTP of `[channel.proxy.subscribe]` when a client subscribes without a "
        "token. See [http-hooks.md](http-hooks.md)."
    ),
    "subscribe_proxy_name": Rules(
        "Ask the one of `[[proxies]]` with this name instead.", pattern=_PROXY, shape=_PROXY_SHAPE
    ),
    "publish_proxy_enabled": Rules(
        "Ask the hook over HTTP of `[channel.proxy.publish]` when a client publishes."
    ),
    "publish_proxy_name": Rules(
        "Ask the one of `[[proxies]]` with this name instead.", pattern=_PROXY, shape=_PROXY_SHAPE
    ),
    "sub_refresh_proxy_enabled": Rules(
        "Ask the hook over HTTP of `[channel.proxy.sub_refresh]` whether a subscription goes on "
        "whose time is over. With it, no client refreshes one by a token."
    ),
    "sub_refresh_proxy_name": Rules(
        "Ask the one of `[[proxies]]` with this name instead.", pattern=_PROXY, shape=_PROXY_SHAPE
    ),
    "batch_max_size": Rules(
        "Publications of a channel that are collected at most before they go out together. Needs "
        "`batch_max_delay`. 0: as many as come in that time, 1,000 at most.",
        "publications",
        0,
        BATCH_PUBLICATIONS_MAX,
    ),
    "batch_max_delay": Rules(
        "For how long a channel's publications are collected, once for all subscribers of a node: "
        'from the first one on. One write a socket then brings all of them. `"0s"`: each goes out '
        "at once. See [below](#batching).",
        "",
        0,
        10_000,
    ),
    "batch_flush_latest": Rules(
        "Of the publications that were collected, send only the newest: for feeds whose every "
        "publication has the whole state. Offsets then have gaps. Needs `batch_max_delay`."
    ),
    "events": Rules(
        "What back ends are told of the channels: `joined`, `left`, `subscribed`, `unsubscribed`, "
        "`occupied`, `vacated`, `published` (needs history). Needs the events Lambda. All but "
        "`published` cost two writes a member, as `presence` does. See [events.md](events.md).",
        pattern="|".join(CHANNEL_KINDS),
        shape="kinds of events: " + ", ".join(f"`{kind}`" for kind in CHANNEL_KINDS),
    ),
    "publication_data_format": Rules(
        "What publications hold: `json` (as if it is empty), `json_object`: an object and nothing "
        "else, or `binary`: any bytes, also none, for Protobuf clients alone. Set it to `binary` "
        "when every node is of a release that has it. See [payloads.md](payloads.md).",
        pattern=f"{JSON}|{JSON_OBJECT}|{BINARY}",
        shape=f"`{JSON}`, `{JSON_OBJECT}`, `{BINARY}`, or nothing",
    ),
}
NAMESPACES_MAX: Final = 1000


def _channel_options(section: str) -> tuple[Option, ...]:
    hints = get_type_hints(ChannelOptions)
    attributes = {unit_of(each.name)[0]: each for each in fields(ChannelOptions)}
    assert attributes.keys() == _CHANNEL_RULES.keys(), (
        "every field of ChannelOptions can be set, and nothing else"
    )
    return tuple(
        Option(
            f"{section}.{name}",
            attributes[name].name,
            unit_of(attributes[name].name)[1] or kind_of(hints[attributes[name].name]),
            attributes[name].default,
            rules,
        )
        for name, rules in _CHANNEL_RULES.items()
    )


NAMESPACES: Final = "channel.namespaces"
WITHOUT_NAMESPACE: Final = "channel.without_namespace"
NAMESPACE_OPTIONS: Final = {
    option.key.rpartition(".")[2]: option for option in _channel_options(NAMESPACES)
}
# The options of channels outside every namespace.
WITHOUT_NAMESPACE_OPTIONS: Final = _channel_options(WITHOUT_NAMESPACE)
