"""service/roomcast/gateway/api/fields.py:
whatever comes is read as declared, or refused by name.
"""

from __future__ import annotations

from typing import Any

import jsonschema_rs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from roomcast.gateway.api.batch import BATCH_FIELDS
from roomcast.gateway.api.fields import (
    ABSENT,
    BASE64,
    CHANNEL,
    FLAG,
    INFO,
    KEY,
    PAYLOAD,
    TAGS,
    Kind,
    ListOf,
    Object,
    Parameter,
    Text,
    Whole,
    read,
    schema,
)
from roomcast.gateway.api.refusals import Refusal
from roomcast.gateway.api.server import METHODS
from roomcast.wire.codes import Error

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=6,
)
FIELDS = {**{name: method.fields for name, method in METHODS.items()}, "batch": BATCH_FIELDS}
# Every name that a parameter, or a member of one, has.
NAMES = st.sampled_from(
    sorted(
        {field.name for fields in FIELDS.values() for field in fields}
        | {"code", "value", "offset", "other"}
    )
)


def attempt(fields: tuple[Parameter, ...], params: Any) -> dict[str, Any] | Refusal:
    try:
        return read(fields, params)
    except Refusal as refused:
        return refused


@given(st.sampled_from(sorted(FIELDS)), st.dictionaries(NAMES, JSON, max_size=8) | JSON)
def test_whatever_comes_is_a_request_or_refused(method: str, params: Any) -> None:
    outcome = attempt(FIELDS[method], params)
    if isinstance(outcome, Refusal):
        assert outcome.error is Error.BAD_REQUEST
        assert outcome.why
    else:
        assert outcome.keys() == {field.name for field in FIELDS[method]}


@given(st.sampled_from(sorted(FIELDS)), st.data())
def test_a_refusal_names_what_is_wrong(method: str, data: st.DataObject) -> None:
    if not FIELDS[method]:
        return
    field = data.draw(st.sampled_from(FIELDS[method]))
    outcome = attempt((field,), {field.name: data.draw(JSON)})
    assert not isinstance(outcome, Refusal) or outcome.why.startswith(field.name)


KINDS: list[Kind] = [
    CHANNEL,
    FLAG,
    KEY,
    TAGS,
    PAYLOAD,
    INFO,
    Text(3),
    Whole(-2, 7),
    ListOf(Text(2), 2, 1),
    Object((Parameter("a", FLAG, "A.", required=True), Parameter("b", Whole(0, 1), "B."))),
]


@given(
    st.sampled_from(KINDS),
    JSON
    | st.integers(-4, 9)
    | st.text("abé", max_size=4)
    | st.lists(st.text("a", max_size=3), max_size=3),
)
def test_what_is_taken_is_what_the_schema_says(kind: Kind, value: Any) -> None:
    """But for `null`, which is as good as nothing, and numbers such as 1.0,
    which JSON Schema takes for whole ones.
    """
    try:
        kind.read(value, "it")
    except Refusal:
        taken = False
    else:
        taken = True
    fits = jsonschema_rs.Draft202012Validator(kind.schema()).is_valid(value)
    if not (isinstance(value, float) or (isinstance(value, dict) and value)):
        assert taken == fits


def test_null_is_nothing_except_where_it_is_a_value() -> None:
    fields = (
        Parameter("flag", FLAG, "A flag.", default=False),
        Parameter("data", PAYLOAD, "Data.", default=ABSENT),
        Parameter("info", INFO, "Info."),
    )
    assert read(fields, {}) == {"flag": False, "data": ABSENT, "info": None}
    assert read(fields, {"flag": None, "data": None, "info": None}) == {
        "flag": False,
        "data": None,
        "info": None,
    }


@pytest.mark.parametrize("value", [None, "", "x", 5])
def test_what_is_required_must_be_there(value: Any) -> None:
    field = Parameter("name", Text(1), "A name.", required=True)
    given_it = {} if value is None else {"name": value}
    if value in ("", "x"):
        assert read((field,), given_it) == {"name": value}
        return
    with pytest.raises(Refusal) as caught:
        read((field,), given_it)
    assert caught.value.why == (
        "name is required" if value is None else "name must be a string of at most 1 characters"
    )


def test_base64_is_the_bytes_of_a_value() -> None:
    assert BASE64.read("bnVsbA==", "it") == b"null"
    assert BASE64.read("WzFd", "it") == b"[1]"
    assert BASE64.read("", "it") is None
    for wrong in ("nul", "é", "b nVsbA==", 5, None):
        with pytest.raises(Refusal, match="it must be base64"):
            BASE64.read(wrong, "it")


def test_names_within_others_are_whole() -> None:
    field = Parameter("outer", ListOf(Object((Parameter("inner", Whole(0, 1), "In."),)), 3), "Out.")
    with pytest.raises(Refusal) as caught:
        read((field,), {"outer": [{"inner": 1}, {"inner": 2}]})
    assert caught.value.why.startswith("outer[1].inner must")
    assert schema((field,))["properties"]["outer"]["description"] == "Out."
