"""Builds the API's OpenAPI 3.1 document from the declared methods: GET /api/openapi.json."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, Final

from roomcast import __version__
from roomcast.gateway.api.batch import BATCH_FIELDS
from roomcast.gateway.api.fields import Schema, schema
from roomcast.gateway.api.methods import Method

__all__ = ["description"]

_ERROR: Final[Schema] = {"$ref": "#/components/schemas/Error"}
_INFO: Final[Schema] = {"$ref": "#/components/schemas/ClientInfo"}

_SCHEMAS: Final[Mapping[str, Schema]] = {
    "Error": {
        "type": "object",
        "required": ["code", "message"],
        "properties": {
            "code": {
                "type": "integer",
                "description": (
                    "100 something failed, and it is not known whether it was done; 101 no key, or "
                    "another; 102 no such namespace; 104 no such method; 106 over a limit; 107 a "
                    "parameter is wrong; 108 off for the channel; 111 not done, since too much "
                    "waits; 112 a position of another epoch"
                ),
            },
            "message": {"type": "string", "description": "In words, for people; may change."},
        },
    },
    "Failure": {"type": "object", "required": ["error"], "properties": {"error": _ERROR}},
    "ClientInfo": {
        "type": "object",
        "required": ["user", "client"],
        "properties": {
            "user": {"type": "string", "description": "Empty: without a name."},
            "client": {"type": "string", "description": "The connection's id."},
            "conn_info": {"description": "From the connection's token."},
            "chan_info": {"description": "From the subscription."},
        },
    },
    "Publication": {
        "type": "object",
        "required": ["data", "offset"],
        "properties": {
            "data": {
                "description": "What was published: any JSON value; null in a binary channel."
            },
            "b64data": {
                "type": "string",
                "contentEncoding": "base64",
                "description": "In a binary channel: the bytes that were published.",
            },
            "offset": {"type": "integer", "minimum": 1},
            "info": {**_INFO, "description": "Who published it, unless a back end did."},
            "tags": {"type": "object", "additionalProperties": {"type": "string"}},
            "time": {"type": "integer", "description": "When it was taken, in ms since 1970."},
        },
    },
}
_REFUSALS: Final[Mapping[str, str]] = {
    "400": "The body is not JSON.",
    "401": "No key, or another than the server's.",
    "408": "The body was not complete in time.",
    "411": "No Content-Length.",
    "413": "The request is too large.",
    "415": "The body is not application/json, or is compressed.",
    "500": "A fault of the server. For a publication: the outcome is not known.",
}
_PREFACE: Final = (
    "The server API of roomcast, for back ends: the methods of Centrifugo's server API. A request "
    "that reached its method is answered with status 200, whatever came of it: look for `error`. "
    "Members that a method does not know are passed over; `null` is as good as nothing."
)


def description(methods: Collection[Method]) -> Schema:
    """The OpenAPI document."""
    paths = {f"/api/{method.name}": {"post": _operation(method)} for method in methods}
    paths["/api/batch"] = {"post": _batch(methods)}
    return {
        "openapi": "3.1.0",
        "info": {"title": "roomcast server API", "version": __version__, "description": _PREFACE},
        "security": [{"key": []}],
        "paths": paths,
        "components": {
            "schemas": dict(_SCHEMAS),
            "securitySchemes": {"key": {"type": "apiKey", "in": "header", "name": "X-API-Key"}},
        },
    }


def _operation(method: Method) -> Schema:
    result = {"type": "object", "required": ["result"], "properties": {"result": method.result}}
    return _described(method.name, method.summary, schema(method.fields), result)


def _batch(methods: Collection[Method]) -> Schema:
    command = {
        "type": "object",
        "description": "The name of one method, and its parameters.",
        "properties": {method.name: schema(method.fields) for method in methods},
        "minProperties": 1,
        "maxProperties": 1,
    }
    request = schema(BATCH_FIELDS)
    request["properties"]["commands"]["items"] = command
    reply = {
        "type": "object",
        "properties": {"error": _ERROR} | {method.name: method.result for method in methods},
    }
    replies = {
        "type": "object",
        "required": ["replies"],
        "properties": {"replies": {"type": "array", "items": reply}},
    }
    summary = "Carry out several methods, in order or at once."
    return _described("batch", summary, request, replies)


def _described(name: str, summary: str, request: Schema, result: Schema) -> Schema:
    refusals: dict[str, Any] = {
        status: {"description": text, "content": _json({"$ref": "#/components/schemas/Failure"})}
        for status, text in _REFUSALS.items()
    }
    done = {
        "description": "What came of it.",
        "content": _json({"oneOf": [result, {"$ref": "#/components/schemas/Failure"}]}),
    }
    return {
        "operationId": name,
        "summary": summary,
        "requestBody": {"required": True, "content": _json(request)},
        "responses": {"200": done, **refusals},
    }


def _json(described: Schema) -> Schema:
    return {"application/json": {"schema": described}}
