"""The public interface for an application's hooks: events, replies, and errors to raise.

docs/hooks.md describes it.
"""

from __future__ import annotations

from roomcast.auth.claims import ServerSubscription
from roomcast.hooks.api import (
    METHOD_CHARS_MAX,
    RESERVED_METHODS,
    ConnectHook,
    LifeHook,
    PublishHook,
    RefreshHook,
    RpcMethod,
    RpcRegistry,
    SubRefreshHook,
    SubscribeHook,
    is_async,
)
from roomcast.hooks.events import (
    UNCHANGED,
    Carrier,
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
from roomcast.wire.capabilities import Capability, Grant
from roomcast.wire.channels import ChannelOverride
from roomcast.wire.publication import Json

__all__ = [
    "METHOD_CHARS_MAX",
    "RESERVED_METHODS",
    "UNCHANGED",
    "Capability",
    "Carrier",
    "ChannelOverride",
    "ConnectEvent",
    "ConnectHook",
    "ConnectReply",
    "Disconnected",
    "Grant",
    "Json",
    "LifeHook",
    "PublishEvent",
    "PublishHook",
    "PublishReply",
    "RefreshEvent",
    "RefreshHook",
    "RefreshReply",
    "Refused",
    "RpcEvent",
    "RpcMethod",
    "RpcRegistry",
    "ServerSubscription",
    "SubRefreshEvent",
    "SubRefreshHook",
    "SubRefreshReply",
    "SubscribeEvent",
    "SubscribeHook",
    "SubscribeReply",
    "is_async",
]
