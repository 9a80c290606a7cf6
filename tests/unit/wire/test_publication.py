"""service/roomcast/wire/publication.py: what of a publication is stored, what clients get,
and what is refused.
"""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from roomcast.wire.publication import (
    ClientInfo,
    MalformedPublication,
    Publication,
    Record,
    StreamPosition,
)

SCALARS = (
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8)
)
JSON = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=8,
)
PRESENT = JSON.filter(lambda value: value is not None)
INFOS = st.builds(
    ClientInfo,
    user=st.text(max_size=5),
    client=st.text(max_size=5),
    conn_info=st.none() | PRESENT,
    chan_info=st.none() | PRESENT,
)
PUBLICATIONS = st.builds(
    Publication,
    data=JSON,
    offset=st.integers(0, 2**53 - 1),
    info=st.none() | INFOS,
    tags=st.none()
    | st.dictionaries(st.text(max_size=5), st.text(max_size=5), min_size=1, max_size=3),
    time=st.integers(0, 2**53 - 1),
)


@given(PUBLICATIONS)
def test_what_is_stored_comes_back(publication: Publication) -> None:
    stored = json.loads(json.dumps(publication.stored()))
    assert Publication.from_stored(stored, publication.offset) == publication


@given(PUBLICATIONS)
def test_the_offset_is_on_the_wire_and_not_in_the_log(publication: Publication) -> None:
    stored, wire = publication.stored(), publication.wire()
    assert "offset" not in stored
    assert wire.pop("offset", 0) == publication.offset
    assert wire == stored


@given(PUBLICATIONS)
def test_what_is_empty_is_left_out(publication: Publication) -> None:
    wire = publication.wire()
    assert wire["data"] == publication.data  # also when it is null
    for name in ("offset", "info", "tags", "time"):
        assert (name in wire) == bool(getattr(publication, name))


@given(INFOS)
def test_client_info_always_has_its_ids(info: ClientInfo) -> None:
    wire = info.wire()
    assert (wire["user"], wire["client"]) == (info.user, info.client)
    assert ("conn_info" in wire) == (info.conn_info is not None)
    assert ("chan_info" in wire) == (info.chan_info is not None)
    assert len(wire) <= 4
    assert ClientInfo.from_wire(wire) == info


def test_an_empty_publication_is_its_data_alone() -> None:
    assert Publication(None, tags={}).wire() == {"data": None}
    assert Publication(0, 3, ClientInfo("", "c"), {"a": "b"}, 5).wire() == {
        "data": 0,
        "offset": 3,
        "info": {"user": "", "client": "c"},
        "tags": {"a": "b"},
        "time": 5,
    }


@given(JSON)
def test_arbitrary_json_is_a_publication_or_malformed(value: Any) -> None:
    try:
        publication = Publication.from_stored(value, 7)
    except MalformedPublication:
        return
    assert "data" in value
    assert publication.data == value["data"]


@given(st.fixed_dictionaries({"data": JSON}, optional={"info": JSON, "tags": JSON, "time": JSON}))
def test_no_field_of_a_wrong_shape_gets_through(stored: dict[str, Any]) -> None:
    try:
        publication = Publication.from_stored(stored, 7)
    except MalformedPublication:
        return
    assert type(publication.time) is int
    assert publication.tags is None or all(type(tag) is str for tag in publication.tags.values())
    assert (
        publication.info is None
        or type(publication.info.user) is type(publication.info.client) is str
    )


@pytest.mark.parametrize(
    "stored",
    [
        None,
        [],
        "data",
        {},
        {"info": {}},
        {"data": 1, "tags": []},
        {"data": 1, "tags": "a"},
        {"data": 1, "tags": {"a": 1}},
        {"data": 1, "tags": {"a": None}},
        {"data": 1, "time": "1"},
        {"data": 1, "time": 1.0},
        {"data": 1, "time": True},
        {"data": 1, "time": None},
        {"data": 1, "info": []},
        {"data": 1, "info": "ann"},
        {"data": 1, "info": {"user": 1}},
        {"data": 1, "info": {"user": "a", "client": None}},
    ],
)
def test_wrong_shapes_are_malformed(stored: Any) -> None:
    with pytest.raises(MalformedPublication):
        Publication.from_stored(stored, 1)


def test_unknown_and_null_fields_are_no_fault() -> None:
    stored = {"data": 1, "info": None, "tags": None, "later": {"x": 1}, "offset": 99}
    assert Publication.from_stored(stored, 4) == Publication(1, 4)
    assert Publication.from_stored({"data": 1, "info": {}}, 4).info == ClientInfo("", "")


@pytest.mark.parametrize("offset, last", [(0, 0), (0, 1), (2, 1), (-1, -1)])
def test_a_record_covers_offsets_from_one(offset: int, last: int) -> None:
    with pytest.raises(AssertionError, match="I1"):
        Record("c", "e", offset, last, 0, None)


@pytest.mark.parametrize("count", [0, 1, 3])
def test_a_record_has_one_publication_an_offset(count: int) -> None:
    publications = tuple(Publication(0, 5 + index) for index in range(count))
    with pytest.raises(AssertionError, match="I1"):
        Record("c", "e", 5, 6, 0, publications)


def test_positions_of_two_epochs_differ() -> None:
    assert StreamPosition("a", 1) == StreamPosition("a", 1) != StreamPosition("b", 1)
