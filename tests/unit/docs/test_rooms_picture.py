"""The picture of the rooms: what it shows, and that it can be read."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from itertools import combinations
from typing import Final

import pytest

from docs.rooms import svg
from docs.rooms_picture import Box, picture, reduced

SVG: Final = "{http://www.w3.org/2000/svg}"
BOXES: Final = {
    "top": Box("the first", is_file=False),
    "middle": Box("④–⑧ between <them>", is_file=False),
    "low": Box("a file", is_file=True),
}
IMPORTS: Final = {
    "top": frozenset({"middle", "low"}),
    "middle": frozenset({"low"}),
    "low": frozenset[str](),
}


def test_arrows_that_follow_from_others_are_left_out() -> None:
    assert reduced(IMPORTS) == IMPORTS | {"top": frozenset({"middle"})}


def test_each_room_is_a_box_and_each_arrow_a_line() -> None:
    root = ET.fromstring(picture(BOXES, IMPORTS))  # noqa: S314 - our own text
    assert [group[0].text for group in root.iter(f"{SVG}g")] == [
        f"{name}: {box.about}" for name, box in BOXES.items()
    ]
    assert [group[1].get("class") for group in root.iter(f"{SVG}g")] == ["room", "way", "file"]
    assert sum(path.get("class") == "line" for path in root.iter(f"{SVG}path")) == 2


def test_who_does_not_see_it_is_told_what_it_shows() -> None:
    root = ET.fromstring(picture(BOXES, IMPORTS))  # noqa: S314 - our own text
    labels = {part.get("id"): part.text for part in root if part.get("id")}
    assert str(root.get("aria-labelledby")).split() == list(labels)
    assert labels["desc"] == "top imports middle; middle imports low; low imports no other."


def rectangles(text: str) -> list[tuple[float, float, float, float]]:
    """Left, top, right and bottom of each box."""
    root = ET.fromstring(text)  # noqa: S314 - our own text
    found = []
    for group in root.iter(f"{SVG}g"):
        x, y, width, height = (
            float(str(group[1].get(key))) for key in ("x", "y", "width", "height")
        )
        found.append((x, y, x + width, y + height))
    return found


@pytest.mark.parametrize("text", [picture(BOXES, IMPORTS), svg()], ids=["three", "ours"])
def test_boxes_do_not_overlap_and_lie_within(text: str) -> None:
    boxes = rectangles(text)
    size = re.search(r'viewBox="0 0 (\d+) (\d+)"', text)
    assert size
    assert all(left > 0 and top > 0 for left, top, _, _ in boxes)
    assert all(right < int(size[1]) and bottom < int(size[2]) for _, _, right, bottom in boxes)
    for one, other in combinations(boxes, 2):
        apart = one[2] < other[0] or other[2] < one[0] or one[3] < other[1] or other[3] < one[1]
        assert apart, (one, other)


def test_every_arrow_leads_down() -> None:
    ways = re.findall(r'class="line" d="M\S+ (\d+)[^"]* (\d+)"', svg())
    assert len(ways) > 20
    assert all(int(start) < int(end) for start, end in ways)
