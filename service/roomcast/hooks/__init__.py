"""What an application imports for its hooks: events, replies, and ways to say no.

docs/hooks.md describes it.
"""

from __future__ import annotations

from roomcast.hooks.api import (
    METHOD_CHARS_MAX,
    RESERVED_METHODS,
    UNCHANGED,
    Capability,
    ChannelOverride,
    ConnectEvent,
    ConnectHook,
    ConnectReply,
    Disconnected,
    Grant,
    Json,
    PublishEvent,
    PublishHook,
    PublishReply,
    Refused,
    RpcEvent,
    RpcMethod,
    RpcRegistry,
    ServerSubscription,
    SubscribeEvent,
    SubscribeHook,
    SubscribeReply,
    is_async,
)

__all__ = [
    "METHOD_CHARS_MAX",
    "RESERVED_METHODS",
    "UNCHANGED",
    "Capability",
    "ChannelOverride",
    "ConnectEvent",
    "ConnectHook",
    "ConnectReply",
    "Disconnected",
    "Grant",
    "Json",
    "PublishEvent",
    "PublishHook",
    "PublishReply",
    "Refused",
    "RpcEvent",
    "RpcMethod",
    "RpcRegistry",
    "ServerSubscription",
    "SubscribeEvent",
    "SubscribeHook",
    "SubscribeReply",
    "is_async",
]
