"""The public interface for an application's hooks: events, replies, and errors to raise.

docs/hooks.md describes it.
"""

from __future__ import annotations

from roomcast.auth.claims import ServerSubscription
from roomcast.hooks.api import (
    METHOD_CHARS_MAX,
    RESERVED_METHODS,
    ConnectHook,
    PublishHook,
    RpcMethod,
    RpcRegistry,
    SubscribeHook,
    is_async,
)
from roomcast.hooks.events import (
    UNCHANGED,
    ConnectEvent,
    ConnectReply,
    Disconnected,
    PublishEvent,
    PublishReply,
    Refused,
    RpcEvent,
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
