"""The methods about nodes: info, and drain, which is roomcast's own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import structlog

from roomcast.fleet.lease_record import NODE_CHARS_MAX, Lease
from roomcast.fleet.mailbox import NodeUnknown
from roomcast.gateway.api.fields import Parameter, Schema, Text
from roomcast.gateway.api.methods import ApiCall, Method, Params
from roomcast.gateway.api.refusals import Refusal, bad_field
from roomcast.log.appender import Full
from roomcast.ports import PortError
from roomcast.wire.codes import Error
from roomcast.wire.publication import Json

__all__ = ["DRAIN", "INFO"]

_log = structlog.get_logger(__name__)


async def _info(call: ApiCall, _asked: Params) -> Mapping[str, Json]:
    try:
        leases = await call.node.node_info.nodes()
    except PortError as error:
        _log.warning("api_failed", method="info", reason=str(error))
        raise Refusal(Error.INTERNAL) from error
    now_ms = call.node.services.clock.now_ms()
    return {"nodes": [_node(lease, now_ms) for lease in leases]}


async def _drain(call: ApiCall, asked: Params) -> Mapping[str, Json]:
    node, draining = asked["node"], call.node.draining
    is_here = draining.is_here(node)
    try:
        answer = await draining.drain(node)
    except NodeUnknown as error:
        raise bad_field("node", "must be the id of a node that lives, as info tells it") from error
    except Full as error:
        raise Refusal(Error.TOO_MANY_REQUESTS) from error
    except PortError as error:
        _log.warning("api_failed", method="drain", reason=str(error))
        raise Refusal(
            Error.INTERNAL, "the node did not say that it drains; perhaps it does"
        ) from error
    return {"num_clients": answer.connections, "here": is_here}


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

DRAIN: Final = Method(
    "drain",
    "Have one node drain and end, as SIGTERM has.",
    (Parameter("node", Text(NODE_CHARS_MAX), "Which node: the `uid` of `info`.", required=True),),
    {
        "type": "object",
        "required": ["num_clients", "here"],
        "properties": {
            "num_clients": {**_COUNT, "description": "Connections that it still has."},
            "here": {
                "type": "boolean",
                "description": "It is the node that was asked, which takes no further requests.",
            },
        },
    },
    _drain,
)
