"""The description of the API: that it has everything, and that the API keeps to it
whatever it is asked.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import orjson
import pytest
import schemathesis
from hypothesis import HealthCheck, settings
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from roomcast.gateway.api import server
from roomcast.gateway.api.batch import BATCH_FIELDS
from roomcast.gateway.api.fields import ListOf, Object, Parameter
from roomcast.gateway.api.openapi import description
from roomcast.gateway.api.server import METHODS
from roomcast.wire.codes import Error
from tests.unit.gateway.api.conftest import KEY, SIZE_LIMIT, Caller
from tests.unit.served import Served

# Half a second to import; setup.cfg keeps pytest from loading it for every test.
pytest_plugins = ("schemathesis.pytest.plugin",)

DESCRIPTION: Final = description(METHODS.values())
SERVER: Final = Path(server.__file__).read_text(encoding="utf-8")
# Statuses with which the server refuses; 404 is of no method.
REFUSALS: Final = set(re.findall(r"_refusal\(\s*(\d+)", SERVER)) - {"200", "404"}
PAGE: Final = Path(__file__).parents[4] / "docs" / "api.md"
# Requests for each method, good and bad ones. Fewer where the profile says so.
EXAMPLES: Final = min(60, settings().max_examples)


# ---- what it says


def operation(name: str) -> dict[str, Any]:
    found: dict[str, Any] = DESCRIPTION["paths"][f"/api/{name}"]["post"]
    return found


def test_it_is_json() -> None:
    assert orjson.loads(orjson.dumps(DESCRIPTION)) == DESCRIPTION
    assert DESCRIPTION["openapi"] == "3.1.0"


def test_every_method_is_described_and_no_other() -> None:
    methods = {
        *("publish", "broadcast", "subscribe", "unsubscribe", "disconnect", "refresh", "presence"),
        *("presence_stats", "history", "history_remove", "channels", "info"),
        "drain",
    }
    assert METHODS.keys() == methods
    assert DESCRIPTION["paths"].keys() == {f"/api/{name}" for name in (*methods, "batch")}
    for name in (*methods, "batch"):
        assert operation(name)["operationId"] == name
        assert operation(name)["summary"]
        assert operation(name)["responses"].keys() == {"200", *REFUSALS}
    commands = operation("batch")["requestBody"]["content"]["application/json"]["schema"][
        "properties"
    ]
    assert commands["commands"]["items"]["properties"].keys() == methods


def test_the_page_has_every_status() -> None:
    text = PAGE.read_text(encoding="utf-8")
    listed = text[text.index("- Other statuses") : text.index("| code | when |")]
    assert len(REFUSALS) > 5
    assert set(re.findall(r"(?<![\d,])[45]\d\d\b", listed)) == {*REFUSALS, "404"}


def fields_of(described: dict[str, Any], fields: tuple[Parameter, ...]) -> None:
    """All `fields` are in `described`, down to the innermost."""
    assert described["properties"].keys() == {field.name for field in fields}
    assert described.get("required", []) == [field.name for field in fields if field.required]
    for field in fields:
        found = described["properties"][field.name]
        assert found["description"] == field.doc
        assert field.doc
        kind = field.kind
        if isinstance(kind, ListOf):
            kind, found = kind.kind, found["items"]
        if isinstance(kind, Object):
            fields_of(found, kind.fields)


@pytest.mark.parametrize("name", [*METHODS, "batch"])
def test_every_parameter_is_described(name: str) -> None:
    request = operation(name)["requestBody"]["content"]["application/json"]["schema"]
    fields_of(request, METHODS[name].fields if name in METHODS else BATCH_FIELDS)


def test_every_error_of_a_method_is_described() -> None:
    codes = DESCRIPTION["components"]["schemas"]["Error"]["properties"]["code"]["description"]
    told = [
        *(Error.INTERNAL, Error.UNAUTHORIZED, Error.UNKNOWN_CHANNEL, Error.METHOD_NOT_FOUND),
        *(Error.LIMIT_EXCEEDED, Error.BAD_REQUEST, Error.NOT_AVAILABLE, Error.TOO_MANY_REQUESTS),
        Error.UNRECOVERABLE_POSITION,
    ]
    assert [error for error in told if str(error.value.code) not in codes] == []


async def test_it_is_what_the_server_gives(caller: Caller) -> None:
    async with caller.client.get("/api/openapi.json", headers={"X-API-Key": KEY}) as response:
        assert await response.json() == DESCRIPTION


# ---- that it is true


@pytest.fixture(scope="module")
def served() -> Iterator[Served]:
    started = Served(key=KEY, size_limit=SIZE_LIMIT)
    yield started
    started.close()


SCHEMA: Final = schemathesis.openapi.from_dict(DESCRIPTION)
CHECKS: Final = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
]


@SCHEMA.parametrize()
@settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck))
def test_the_api_does_what_its_description_says(
    case: schemathesis.Case[Any], served: Served
) -> None:
    response = case.call(base_url=served.url, headers={"X-API-Key": KEY})
    case.validate_response(response, checks=CHECKS)
