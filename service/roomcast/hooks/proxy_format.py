"""Centrifugo's proxy format: the JSON of a hook's request, and the reply in the JSON of its answer.

    event                           request: client, transport, protocol, encoding and …
    connect      ConnectEvent       name, version, data
    refresh      RefreshEvent       user
    subscribe    SubscribeEvent     user, channel, data
    sub_refresh  SubRefreshEvent    user, channel
    publish      PublishEvent       user, channel, data
    rpc          RpcEvent           user, method, data

An answer is an object with `result`, `error` or `disconnect`. See
https://centrifugal.dev/docs/server/proxy. What Centrifugo ignores is ignored; what is of the wrong
shape raises MalformedAnswer, since a reply that is not understood must allow nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, Final, TypeVar

import orjson

from roomcast.auth.claims import (
    ServerSubscription,
    TokenInvalid,
    allow_of,
    caps_of,
    data_of,
    override_of,
    payload_of,
    server_filter_of,
    subs_of,
)
from roomcast.hooks.events import (
    UNCHANGED,
    ConnectEvent,
    ConnectReply,
    Disconnected,
    PublishEvent,
    PublishReply,
    RefreshEvent,
    RefreshReply,
    Refused,
    RpcEvent,
    SubRefreshEvent,
    SubRefreshReply,
    SubscribeEvent,
    SubscribeReply,
)
from roomcast.wire.publication import Json, Payload, to_base64
from roomcast.wire.shapes import (
    COUNT,
    FLAG,
    INTEGER,
    OBJECT,
    OBJECT_OF_TEXTS,
    TEXT,
    member_or_null,
)

__all__ = [
    "Event",
    "MalformedAnswer",
    "connect_reply",
    "decided",
    "publish_reply",
    "refresh_reply",
    "request_body",
    "rpc_reply",
    "sub_refresh_reply",
    "subscribe_reply",
]

Event = ConnectEvent | RefreshEvent | SubscribeEvent | SubRefreshEvent | PublishEvent | RpcEvent
R = TypeVar("R")
Result = Mapping[str, Any]

# A result that Centrifugo knows and that is not carried out here. To leave it out silently would
# publish something else than the back end decided.
_NOT_OF_PUBLISH: Final = "idempotency_key"


class MalformedAnswer(ValueError):
    """An answer that is not of the format. The text names the field, and nothing of its value."""


# ---- requests


def request_body(event: Event, *, binary: bool = False, with_meta: bool = False) -> bytes:
    """The body of the request about `event`.

    `binary`: its data is base64 of JSON (`binary_encoding`). Bytes, which are published in a binary
    channel, are base64 in any case. `with_meta`: it has the connection's meta
    (`include_connection_meta`).
    """
    binary = binary or (isinstance(event, PublishEvent) and isinstance(event.data, bytes))
    body: dict[str, Json] = {
        "client": event.client,
        "transport": event.carrier.transport,
        "protocol": event.carrier.protocol,
        "encoding": "binary" if binary else "json",
    }
    match event:
        case ConnectEvent():
            body |= {
                name: said
                for name, said in (("name", event.name), ("version", event.version))
                if said
            }
            _put_data(body, event.data, binary=binary)
        case RefreshEvent():
            body["user"] = event.user
        case SubscribeEvent() | PublishEvent():
            body |= {"user": event.user, "channel": event.channel}
            _put_data(body, event.data, binary=binary)
        case SubRefreshEvent():
            body |= {"user": event.user, "channel": event.channel}
        case RpcEvent():
            body |= {"user": event.user, "method": event.method}
            _put_data(body, event.data, binary=binary)
    if with_meta and event.meta is not None and not isinstance(event, ConnectEvent):
        body["meta"] = event.meta
    return orjson.dumps(body)


def _put_data(body: dict[str, Json], data: Payload, *, binary: bool) -> None:
    if isinstance(data, bytes):
        body["b64data"] = to_base64(data)
    elif binary:
        body["b64data"] = "" if data is None else to_base64(orjson.dumps(data))
    elif data is not None:
        body["data"] = data


# ---- answers


def decided(answer: bytes, reply_of: Callable[[Result | None], R]) -> R:
    """The reply in `answer`. `reply_of`: one of the functions below.

    Raises Refused and Disconnected, which the back end may choose, MalformedAnswer, and ValueError
    for a code or text that clients cannot be sent.
    """
    try:
        found = orjson.loads(answer)
    except ValueError:
        raise MalformedAnswer("the answer is not JSON") from None
    if not isinstance(found, dict):
        raise MalformedAnswer("the answer is not an object")
    try:
        # Also an empty one is a no: only its code is missing.
        disconnect = member_or_null(found, "disconnect", OBJECT, None, MalformedAnswer)
        if disconnect is not None:
            raise Disconnected(
                _code(disconnect), member_or_null(disconnect, "reason", TEXT, "", MalformedAnswer)
            )
        error = member_or_null(found, "error", OBJECT, None, MalformedAnswer)
        if error is not None:
            raise Refused(
                _code(error),
                # An error of ours has a text.
                member_or_null(error, "message", TEXT, "", MalformedAnswer) or "refused",
                temporary=member_or_null(
                    error, "temporary", FLAG, False, MalformedAnswer
                ),  # the default
            )
        result = member_or_null(found, "result", OBJECT, None, MalformedAnswer)
        return reply_of(result)
    except TokenInvalid as error:
        raise MalformedAnswer(error.reason) from None


def connect_reply(result: Result | None) -> ConnectReply | None:
    """None: the back end has no opinion."""
    if result is None:
        return None
    return ConnectReply(
        user=_text(result, "user"),
        expires_at=_expire_at(result),
        info=payload_of(result, "info", orjson.loads),
        data=payload_of(result, "data", orjson.loads),
        subs=_subs(result),
        caps=caps_of(result),
        meta=result.get("meta"),
    )


def _subs(result: Result) -> Mapping[str, ServerSubscription]:
    """As in a token, and `cache_recover` as well."""
    grants = result.get("subs") or {}
    return {
        channel: replace(
            sub,
            cache_recover=member_or_null(
                grants.get(channel, {}), "cache_recover", FLAG, False, MalformedAnswer
            ),
        )
        for channel, sub in subs_of(result, orjson.loads).items()
    }


def refresh_reply(result: Result | None) -> RefreshReply | None:
    """None: the connection does not go on. So it is without an `expire_at`, as in Centrifugo."""
    if result is None or _is_expired(result) or (expires_at := _expire_at(result)) is None:
        return None
    return RefreshReply(
        expires_at, payload_of(result, "info", orjson.loads), meta=result.get("meta")
    )


def subscribe_reply(result: Result | None, *, is_binary: bool = False) -> SubscribeReply:
    """What says neither no nor more lets the client subscribe. `is_binary`: the channel is."""
    result = result or {}
    given = data_of(result, orjson.loads)
    return SubscribeReply(
        info=payload_of(result, "info", orjson.loads),
        data=given["raw"] if is_binary and "raw" in given else given["data"],
        expires_at=_expire_at(result),
        override=override_of(result),
        allow=allow_of(result),
        server_tags_filter=server_filter_of(result),
    )


def sub_refresh_reply(result: Result | None) -> SubRefreshReply | None:
    """None: the subscription does not go on. Without an `expire_at` it does for good."""
    if result is None or _is_expired(result):
        return None
    return SubRefreshReply(_expire_at(result))


def publish_reply(result: Result | None, *, is_binary: bool = False) -> PublishReply:
    """What says neither no nor more lets the publication through. `is_binary`: it is bytes."""
    result = result or {}
    if result.get(_NOT_OF_PUBLISH):
        raise MalformedAnswer(f"{_NOT_OF_PUBLISH} cannot be given here")
    if is_binary:
        data: Payload = data_of(result, orjson.loads).get("raw", result.get("data"))
    else:
        data = payload_of(result, "data", orjson.loads)
    return PublishReply(
        UNCHANGED if data is None else data,
        tags=member_or_null(result, "tags", OBJECT_OF_TEXTS, None, MalformedAnswer) or None,
        version=member_or_null(result, "version", COUNT, 0, MalformedAnswer),
        version_epoch=_text(result, "version_epoch"),
        skip_history=member_or_null(
            result, "skip_history", FLAG, False, MalformedAnswer
        ),  # the default
    )


def rpc_reply(result: Result | None) -> Json:
    """The answer to the client."""
    return payload_of(result or {}, "data", orjson.loads)


def _is_expired(result: Result) -> bool:
    return member_or_null(result, "expired", FLAG, False, MalformedAnswer)  # the default


def _expire_at(result: Result) -> int | None:
    """Seconds since 1970. 0 is never, as in Centrifugo."""
    return member_or_null(result, "expire_at", INTEGER, 0, MalformedAnswer) or None


def _code(said: Result) -> int:
    return member_or_null(said, "code", INTEGER, 0, MalformedAnswer)


def _text(result: Result, name: str) -> str:
    return member_or_null(result, name, TEXT, "", MalformedAnswer)
