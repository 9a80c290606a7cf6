"""Says how a client came, for the application's hooks."""

from __future__ import annotations

from aiohttp import web

from roomcast.hooks.events import Carrier
from roomcast.node.node import Node
from roomcast.observe.counters import Transport

__all__ = ["carrier_of"]


def carrier_of(
    request: web.Request, node: Node, transport: Transport, *, is_binary: bool
) -> Carrier:
    """How the client of `request` comes to `node`, with those of its headers that hooks want."""
    protocol = "protobuf" if is_binary else "json"
    return node.services.hooks.carrier(transport.value, protocol, request.headers.items)
