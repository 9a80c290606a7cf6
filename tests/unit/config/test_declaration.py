"""service/roomcast/config/declaration.py: values as a file or a variable has them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from roomcast.config import (
    OPTIONS,
    Option,
    format_duration,
)
from roomcast.config.declaration import WrongValue, seconds_of


@given(st.integers(0, 400 * 86_400))
def test_a_duration_survives_being_written(duration_s: int) -> None:
    assert seconds_of(format_duration(duration_s)) == duration_s


@pytest.mark.parametrize(
    "text, seconds",
    [("300s", 300), ("5m", 300), ("12h", 43_200), ("7d", 604_800), ("1d2h3m4s", 93_784)],
)
def test_durations(text: str, seconds: int) -> None:
    assert seconds_of(text) == seconds


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3),
)


@given(st.sampled_from(OPTIONS), values)
def test_an_option_takes_a_value_of_its_type_or_refuses(each: Option, value: object) -> None:
    try:
        taken = each.from_file(value)
    except WrongValue:
        return
    assert type(taken) is (int if each.kind == "duration" else type(each.default))
    assert each.from_file(each.to_file(taken)) == taken or each.rules.secret
