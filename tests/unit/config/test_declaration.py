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
from roomcast.config.declaration import WrongValue, must_be, seconds_of
from roomcast.config.options import BY_KEY


@given(st.integers(0, 400 * 86_400))
def test_a_duration_survives_being_written(duration_s: int) -> None:
    assert seconds_of(format_duration(duration_s)) == duration_s


@pytest.mark.parametrize(
    "text, seconds",
    [("300s", 300), ("5m", 300), ("12h", 43_200), ("7d", 604_800), ("1d2h3m4s", 93_784)],
)
def test_durations(text: str, seconds: int) -> None:
    assert seconds_of(text) == seconds


@pytest.mark.parametrize(
    "text, milliseconds, written",
    [("20ms", 20, "20ms"), ("1s", 1000, "1s"), ("0s", 0, "0s"), ("1000ms", 1000, "1s")],
)
def test_delays(text: str, milliseconds: int, written: str) -> None:
    assert BY_KEY["client.write_delay"].from_file(text) == milliseconds
    assert BY_KEY["client.write_delay"].to_file(milliseconds) == written


@pytest.mark.parametrize("text", ["", "20", "20 ms", "-1ms", "1m", "1.5s", "1s1ms", "1001ms", 20])
def test_what_is_no_delay(text: object) -> None:
    option = BY_KEY["client.write_delay"]
    with pytest.raises(WrongValue):
        option.from_file(text)
    assert must_be(option, text).startswith(
        'must be a duration such as "20ms", "200ms" or "1s" up to 1s; found '
    )


@given(st.integers(0, 10_000))
def test_a_delay_survives_being_written(delay_ms: int) -> None:
    option = BY_KEY["channel.without_namespace.batch_max_delay"]
    assert option.from_file(option.to_file(delay_ms)) == delay_ms


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
    assert type(taken) is type(each.default)
    assert each.from_file(each.to_file(taken)) == taken or each.rules.secret
