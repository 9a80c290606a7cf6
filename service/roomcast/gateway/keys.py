"""Typed keys of what the aiohttp application carries."""

from __future__ import annotations

from aiohttp import web

from roomcast.node.node import Health, Node

__all__ = ["HEALTH", "NODE"]

NODE: web.AppKey[Node] = web.AppKey("node", Node)
HEALTH: web.AppKey[Health] = web.AppKey("health", Health)
