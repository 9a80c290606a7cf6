"""The method `info`: the live nodes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import structlog

from roomcast.fleet.lease_record import Lease
from roomcast.gateway.api.fields import Schema
from roomcast.gateway.api.methods import ApiCall, Method, Params
from roomcast.gateway.api.refusals import Refusal
from roomcast.ports import PortError
from roomcast.wire.codes import Error
from roomcast.wire.publication import Json

__all__ = ["INFO"]

_log = structlog.get_logger(__name__)


async def _info(call: ApiCall, _asked: Params) -> Mapping[str, Json]:
    try:
        leases = await call.node.node_info.nodes()
    except PortError as error:
        _log.warning("api_failed", method="info", reason=str(error))
        raise Refusal(Error.INTERNAL) from error
    now_ms = call.node.services.clock.now_ms()
    return {"nodes": [_node(lease, now_ms) for lease in leases]}


def _node(lease: Lease, now_ms: int) -> Mapping[str, Json]:
    return {
        "uid": lease.node,
        "name": lease.instance or lease.node,
        "version": lease.version,
        "num_clients": lease.connections,
        "num_users": lease.users,
        "num_channels": lease.channels,
        "uptime": max(0, now_ms - lease.started_at) // 1000,
    }


_COUNT: Final[Schema] = {"type": "integer", "minimum": 0}

INFO: Final = Method(
    "info",
    "List the nodes that live.",
    (),
    {
        "type": "object",
        "required": ["nodes"],
        "properties": {
            "nodes": {
                "type": "array",
                "items": {
                    "type": "object",
                    "required": ["uid", "name"],
                    "properties": {
                        "uid": {"type": "string", "description": "The id of its lease."},
                        "name": {
                            "type": "string",
                            "description": "The EC2 instance it is on, else its id.",
                        },
                        "version": {"type": "string"},
                        "num_clients": {**_COUNT, "description": "Open connections."},
                        "num_users": {**_COUNT, "description": "Different users, on this node."},
                        "num_channels": {
                            **_COUNT,
                            "description": "Channels with subscribers, on this node.",
                        },
                        "uptime": {**_COUNT, "description": "s."},
                    },
                },
            }
        },
    },
    _info,
)
