"""Typed keys of the aiohttp application's values."""

from __future__ import annotations

from aiohttp import web

from roomcast.node.health import Health
from roomcast.node.node import Node

__all__ = ["HEALTH", "NODE"]

NODE: web.AppKey[Node] = web.AppKey("node", Node)
HEALTH: web.AppKey[Health] = web.AppKey("health", Health)
