"""The charts are pictures that everybody can read: in words, in light and in dark."""

from __future__ import annotations

import re
from typing import Final
from xml.etree import ElementTree

import pytest

from benchmarks.chart import STYLE, Kind, Row, dots, steps

SVG: Final = "{http://www.w3.org/2000/svg}"
ROWS: Final = (
    Row("C & co", 7.0, "7.00 µs", Kind.OTHER),
    Row("ours", 9.0, "9.00 µs <", Kind.OURS, strong=True),
    Row("late", 300.0, "300 µs", Kind.MISSED),
)
# WCAG 2.2, 1.4.3 and 1.4.11.
TEXT_CONTRAST: Final = 4.5
SHAPE_CONTRAST: Final = 3.0


def drawn(mark: float | None = None) -> ElementTree.Element:
    return ElementTree.fromstring(dots("Title", "What it shows.", ROWS, mark))  # noqa: S314  # ours


def test_the_picture_says_in_words_what_it_shows() -> None:
    picture = drawn()
    assert picture.get("role") == "img"
    ids = {each.get("id"): each for each in picture.iter() if each.get("id")}
    said = [ids[name].text for name in (picture.get("aria-labelledby") or "").split()]
    assert said == [
        "Title",
        "What it shows. C & co: 7.00 µs; ours: 9.00 µs <; late: 300 µs.",
    ]


def test_each_kind_has_a_shape_of_its_own() -> None:
    picture = drawn()
    shapes = [
        (each.tag.removeprefix(SVG), each.get("class"))
        for each in picture.iter()
        if each.get("class") in {kind.value for kind in Kind}
    ]
    assert shapes == [("circle", "other"), ("circle", "ours"), ("polygon", "missed")]
    # Disc and ring: the ring is filled like the paper.
    light = STYLE.partition("@media")[0]
    assert colour(light, "other") == colour(light, "paper")
    assert colour(light, "ours") != colour(light, "paper")


def test_a_factor_is_as_long_everywhere() -> None:
    rows = [Row(str(value), value, "", Kind.OTHER) for value in (1.0, 10.0, 100.0)]
    picture = ElementTree.fromstring(dots("t", "d", rows))  # noqa: S314
    one, ten, hundred = [float(each.get("cx") or 0) for each in picture.iter(f"{SVG}circle")]
    assert ten - one == pytest.approx(hundred - ten, abs=0.2)
    assert one < ten


def test_everything_is_within_the_picture() -> None:
    picture = drawn(mark=8.0)
    width, height = float(picture.get("width") or 0), float(picture.get("height") or 0)
    for each in picture.iter():
        for name in ("x", "x1", "x2", "cx"):
            assert 0 <= float(each.get(name) or 0) <= width
        for name in ("y", "y1", "y2", "cy"):
            assert 0 <= float(each.get(name) or 0) <= height
    [mark] = [each for each in picture.iter() if each.get("class") == "mark"]
    [seven, nine] = [float(each.get("cx") or 0) for each in picture.iter(f"{SVG}circle")]
    assert seven < float(mark.get("x1") or 0) < nine


@pytest.mark.parametrize(
    "low, high, expected",
    [
        (7.4, 306.0, [5, 10, 20, 50, 100, 200, 500]),
        (1.0, 1.9, [1, 1.5, 2]),
        (1.0, 1.0, [1, 1.5]),
        (0.6, 2.1, [0.5, 0.7, 1, 1.5, 2, 3]),
    ],
)
def test_an_axis_has_round_numbers_around_its_values(
    low: float, high: float, expected: list[float]
) -> None:
    assert steps(low, high) == pytest.approx(expected)


def test_there_is_enough_contrast_in_light_and_dark() -> None:
    light, _, dark = STYLE.partition("@media")
    for theme in (light, dark):
        paper = colour(theme, "paper")
        for name in (None, "note", "step"):
            assert contrast(colour(theme, name), paper) >= TEXT_CONTRAST, name
        for name in ("ours", "other", "missed", "mark"):
            assert contrast(colour(theme, name, "stroke"), paper) >= SHAPE_CONTRAST, name


def colour(theme: str, name: str | None, attribute: str = "fill") -> str:
    """Of a class, or of text where `name` is None."""
    selector = "text" if name is None else rf"\.{name}"
    found = re.search(rf"{selector} {{[^}}]*{attribute}: (#\w{{6}})", theme)
    assert found, (name, attribute)
    return found[1]


def contrast(one: str, other: str) -> float:
    """As WCAG defines it: 1 to 21."""
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def luminance(hexadecimal: str) -> float:
    parts = [int(hexadecimal[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    linear = [
        part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts
    ]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
