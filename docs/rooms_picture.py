"""Draws the rooms and their imports as SVG, in layers: arrows lead down to the imported rooms.

The layout is that of Sugiyama, in four steps: leave out arrows that follow from others, assign each
room to a layer, order each layer so that few arrows cross, and move rooms to straighten their
arrows. The result is deterministic. No maintained library that pip installs does this alone: all
call Graphviz, a program of the system (docs/decisions/0050-the-house.md).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise, product
from random import Random
from typing import Final
from xml.sax.saxutils import escape

__all__ = ["Box", "picture", "reduced"]

# All lengths are in px at the picture's original size.
BOX_HEIGHT: Final = 34
LAYER_HEIGHT: Final = 68
CHARACTER_WIDTH: Final = 8.6
BADGE_WIDTH: Final = 26
GAP: Final = 22
MARGIN: Final = 24
# The legend is one line of text.
LEGEND_WIDTH: Final = 600
LEGEND_HEIGHT: Final = 58
# The width that an arrow reserves in each layer that it passes through.
PASSAGE_WIDTH: Final = 10
# Attempts at each step. For some thirty rooms, more attempts find nothing better.
SHUFFLES: Final = 60
SWEEPS: Final = 12
MOVES: Final = 1500
# The weight of straight arrows, relative to the position of rooms.
STRAIGHT: Final = 50.0

NUMBERS: Final = re.compile(r"^[①-⑨](?:–[①-⑨])?")

STYLE: Final = """
    .paper { fill: #ffffff; stroke: #d0d7de; }
    .room { fill: #f6f8fa; stroke: #57606a; }
    .way { fill: #e8f3ff; stroke: #0969da; }
    .file { fill: #ffffff; stroke: #8c959f; stroke-dasharray: 4 3; }
    text { fill: #1f2328; }
    .name { font-weight: 600; }
    .number { fill: #0969da; font-weight: 600; }
    .note { fill: #57606a; font-size: 13px; }
    .line { fill: none; stroke: #6e7781; stroke-width: 1.4; marker-end: url(#tip); }
    #tip path { fill: #6e7781; }
    @media (prefers-color-scheme: dark) {
      .paper { fill: #0d1117; stroke: #30363d; }
      .room { fill: #161b22; stroke: #8b949e; }
      .way { fill: #0c2d6b; stroke: #58a6ff; }
      .file { fill: #0d1117; stroke: #6e7681; }
      text { fill: #e6edf3; }
      .number { fill: #79c0ff; }
      .note { fill: #9aa4af; }
      .line { stroke: #8b949e; }
      #tip path { fill: #8b949e; }
    }
"""


@dataclass(frozen=True, slots=True)
class Box:
    """The box of one room. `about`: one line. Circled numbers at its beginning are drawn.

    `is_file`: a single file, not a folder.
    """

    about: str
    is_file: bool

    @property
    def number(self) -> str:
        """The room's steps in the message's way: "②", "④–⑧", or ""."""
        found = NUMBERS.match(self.about)
        return found[0] if found else ""


# A node is a room, or the place where an arrow passes a layer. Such a place is a triple: from, to,
# layer.
Node = str | tuple[str, str, int]
Layers = list[list[Node]]
Segments = list[tuple[Node, Node]]


def reduced(imports: Mapping[str, frozenset[str]]) -> dict[str, frozenset[str]]:
    """`imports` without those that follow from others: of a → b → c and a → c, without the last
    one.
    """

    def reached(name: str) -> frozenset[str]:
        found: set[str] = set()
        waiting = list(imports[name])
        while waiting:
            each = waiting.pop()
            if each not in found:
                found.add(each)
                waiting += imports[each]
        return frozenset(found)

    behind = {name: reached(name) for name in imports}
    return {
        name: frozenset(each for each in own if not any(each in behind[other] for other in own))
        for name, own in imports.items()
    }


def picture(boxes: Mapping[str, Box], imports: Mapping[str, frozenset[str]]) -> str:
    """The SVG. `imports` has a key for each of `boxes`, names no others, and has no cycle."""
    arrows = reduced(imports)
    layers, segments = _ordered(arrows)
    at = _placed(layers, segments, boxes)
    right = max(at[node] + _width(node, boxes) / 2 for layer in layers for node in layer)
    width = max(right + MARGIN, LEGEND_WIDTH)
    height = len(layers) * LAYER_HEIGHT + LEGEND_HEIGHT
    return "".join(_drawn(boxes, arrows, layers, at, round(width), height))


# ---- layers


def _layered(arrows: Mapping[str, frozenset[str]]) -> dict[str, int]:
    """The layer of each room, 0 at the bottom. A room is above all that it imports, with short
    arrows.
    """
    layer: dict[str, int] = {}

    def lowest(name: str) -> int:
        if name not in layer:
            layer[name] = 1 + max((lowest(each) for each in arrows[name]), default=-1)
        return layer[name]

    for name in arrows:
        lowest(name)
    importers = {name: [each for each in arrows if name in arrows[each]] for name in arrows}
    for _, name in product(range(len(arrows)), sorted(arrows)):
        above = [layer[each] for each in importers[name]]
        # Moving a room up shortens its arrows in total if more come in than go out.
        if above and len(above) > len(arrows[name]):
            layer[name] = min(above) - 1
    return layer


def _ordered(arrows: Mapping[str, frozenset[str]]) -> tuple[Layers, Segments]:
    """The layers from the bottom, each from left to right, and the segments of arrows between them.

    A segment has its upper end first.
    """
    level = _layered(arrows)
    layers: Layers = [[] for _ in range(max(level.values()) + 1)]
    segments: Segments = []
    for name in sorted(level):
        layers[level[name]].append(name)
    for name in sorted(arrows):
        for target in sorted(arrows[name]):
            ways = _way(name, target, level)
            for node in ways[1:-1]:
                assert not isinstance(node, str), "what is between the ends is a passage"
                layers[node[2]].append(node)
            segments += pairwise(ways)
    chance = Random(0)
    best, fewest = layers, (10**9, 0.0)
    for _ in range(SHUFFLES):
        tried = [list(layer) for layer in layers]
        for layer in tried:
            chance.shuffle(layer)
        _swept(tried, segments)
        found = _crossings(tried, segments), _slant(tried, segments)
        if found < fewest:
            best, fewest = tried, found
    return best, segments


def _way(name: str, target: str, level: Mapping[str, int]) -> list[Node]:
    between = range(level[name] - 1, level[target], -1)
    return [name, *((name, target, each) for each in between), target]


def _swept(layers: Layers, segments: Segments) -> None:
    """Orders the layers in place: by the mean position of each node's neighbours, then pair by
    pair.
    """
    joined: dict[Node, list[Node]] = {node: [] for layer in layers for node in layer}
    for upper, lower in segments:
        joined[upper].append(lower)
        joined[lower].append(upper)
    for sweep in range(SWEEPS):
        order = range(len(layers)) if sweep % 2 else range(len(layers) - 1, -1, -1)
        for index in order:
            beside = {node: place for layer in layers for place, node in enumerate(layer)}
            fixed = set(
                layers[index - 1] if sweep % 2 and index else layers[(index + 1) % len(layers)]
            )

            def middle(
                node: Node, fixed: set[Node] = fixed, beside: Mapping[Node, int] = beside
            ) -> float:
                places = [beside[each] for each in joined[node] if each in fixed]
                return sum(places) / len(places) if places else beside[node]

            layers[index].sort(key=middle)
    improved = True
    while improved:
        improved = False
        for layer in layers:
            for left in range(len(layer) - 1):
                before = _crossings(layers, segments, layer)
                layer[left], layer[left + 1] = layer[left + 1], layer[left]
                if _crossings(layers, segments, layer) < before:
                    improved = True
                else:
                    layer[left], layer[left + 1] = layer[left + 1], layer[left]


def _crossings(layers: Layers, segments: Segments, only: Sequence[Node] | None = None) -> int:
    """The number of crossings between segments. `only`: count those that end in that layer."""
    place = {node: each for layer in layers for each, node in enumerate(layer)}
    level = {node: index for index, layer in enumerate(layers) for node in layer}
    near = segments if only is None else [pair for pair in segments if not {*pair}.isdisjoint(only)]
    between: dict[int, list[tuple[int, int]]] = {}
    for upper, lower in near:
        between.setdefault(level[lower], []).append((place[upper], place[lower]))
    return sum(
        (one[0] - other[0]) * (one[1] - other[1]) < 0
        for pairs in between.values()
        for index, one in enumerate(pairs)
        for other in pairs[:index]
    )


def _slant(layers: Layers, segments: Segments) -> float:
    """The horizontal length of all arrows with centred layers: a measure for comparing orders."""
    place = {
        node: each - (len(layer) - 1) / 2 for layer in layers for each, node in enumerate(layer)
    }
    return sum(abs(place[upper] - place[lower]) for upper, lower in segments)


# ---- places


def _width(node: Node, boxes: Mapping[str, Box]) -> float:
    if not isinstance(node, str):
        return PASSAGE_WIDTH
    number = boxes[node].number
    return (
        28 + len(node) * CHARACTER_WIDTH + (BADGE_WIDTH * (1 + len(number) // 3) if number else 0)
    )


def _placed(layers: Layers, segments: Segments, boxes: Mapping[str, Box]) -> dict[Node, float]:
    """The middle of each node, from the left: near its neighbours, in order, and apart from
    others.
    """
    joined: dict[Node, list[Node]] = {node: [] for layer in layers for node in layer}
    for upper, lower in segments:
        joined[upper].append(lower)
        joined[lower].append(upper)
    at: dict[Node, float] = {}
    for layer in layers:
        right = 0.0
        for node in layer:
            at[node] = right + _width(node, boxes) / 2
            right += _width(node, boxes) + GAP
        for node in layer:
            at[node] -= right / 2
    for move in range(MOVES):
        for layer in layers if move % 2 else layers[::-1]:
            wanted = [_wanted(node, joined, at) for node in layer]
            at.update(zip(layer, _apart(layer, wanted, boxes), strict=True))
    left = min(at[node] - _width(node, boxes) / 2 for layer in layers for node in layer)
    return {node: place - left + MARGIN for node, place in at.items()}


def _wanted(node: Node, joined: Mapping[Node, list[Node]], at: Mapping[Node, float]) -> float:
    """The ideal place: for a room between its neighbours, for a passage in line with its arrow."""
    if isinstance(node, str):
        pulls = [at[other] for other in joined[node]] or [at[node]]
        # Only part of the distance, so that rooms that pull at each other come to rest.
        return (at[node] + 2 * sum(pulls) / len(pulls)) / 3
    first, last, _ = node
    line = [
        place for each, place in at.items() if not isinstance(each, str) and each[:2] == node[:2]
    ]
    return (at[first] + at[last] + STRAIGHT * sum(line) / len(line)) / (2 + STRAIGHT)


def _apart(layer: Sequence[Node], wanted: Sequence[float], boxes: Mapping[str, Box]) -> list[float]:
    """The places nearest to `wanted` (least squares) at which the nodes of a layer do not touch."""
    # Subtract the width to the left of each node. Then only their order must hold.
    offsets = [0.0]
    for one, other in pairwise(layer):
        offsets.append(offsets[-1] + (_width(one, boxes) + _width(other, boxes)) / 2 + GAP)
    # Each block of touching nodes: its wanted place, its weight, and its number of nodes.
    blocks: list[tuple[float, float, int]] = []
    for node, place, offset in zip(layer, wanted, offsets, strict=True):
        blocks.append((place - offset, 1.0 if isinstance(node, str) else STRAIGHT, 1))
        while len(blocks) > 1 and blocks[-2][0] > blocks[-1][0]:
            (left, light, few), (right, heavy, many) = blocks[-2:]
            mean = (left * light + right * heavy) / (light + heavy)
            blocks[-2:] = [(mean, light + heavy, few + many)]
    flat = [mean for mean, _, count in blocks for _ in range(count)]
    return [mean + offset for mean, offset in zip(flat, offsets, strict=True)]


# ---- the drawing


def _drawn(
    boxes: Mapping[str, Box],
    arrows: Mapping[str, frozenset[str]],
    layers: Layers,
    at: Mapping[Node, float],
    width: int,
    height: int,
) -> Iterator[str]:
    level = {node: index for index, layer in enumerate(layers) for node in layer}
    top = {node: (len(layers) - 1 - index) * LAYER_HEIGHT + MARGIN for node, index in level.items()}
    said = "; ".join(
        f"{name} imports {', '.join(sorted(arrows[name])) or 'no other'}" for name in boxes
    )
    yield (
        "<!-- python -m docs.rooms -->\n"
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" '
        f'height="{height}" role="img" aria-labelledby="title desc"\n'
        "  font-family=\"system-ui, -apple-system, 'Segoe UI', Helvetica, Arial, sans-serif\" "
        'font-size="15">\n'
        '  <title id="title">The rooms of roomcast, and what they import</title>\n'
        f'  <desc id="desc">{escape(said)}.</desc>\n'
        f"  <style>{STYLE}  </style>\n"
        '  <defs>\n    <marker id="tip" viewBox="0 0 10 10" refX="9" refY="5" markerWidth="7" '
        'markerHeight="7" orient="auto">\n      <path d="M0 0 10 5 0 10z"/>\n'
        "    </marker>\n  </defs>\n"
        f'  <rect class="paper" x="0.5" y="0.5" width="{width - 1}" height="{height - 1}" '
        'rx="10"/>\n'
    )
    places = {node: level[node] for layer in layers for node in layer if isinstance(node, str)}
    ways = [_way(name, target, places) for name in boxes for target in arrows[name]]
    # Arrows leave and arrive side by side, in the order of their other ends.
    leave = {
        name: sorted((way for way in ways if way[0] == name), key=lambda way: at[way[1]])
        for name in boxes
    }
    arrive = {
        name: sorted((way for way in ways if way[-1] == name), key=lambda way: at[way[-2]])
        for name in boxes
    }
    for way in sorted(ways, key=str):
        first, last = str(way[0]), str(way[-1])
        x = at[first] + _beside(leave[first].index(way), len(leave[first]), _width(first, boxes))
        end = at[last] + _beside(arrive[last].index(way), len(arrive[last]), _width(last, boxes))
        rows = [(at[node], top[node], top[node] + BOX_HEIGHT) for node in way[1:-1]]
        curve = _curve((x, top[first] + BOX_HEIGHT), rows, (end, top[last] - 1))
        yield f'  <path class="line" d="{curve}"/>\n'
    for name, box in boxes.items():
        yield _box(name, box, at[name], top[name], _width(name, boxes))
    yield from _legend(height - LEGEND_HEIGHT + 22)
    yield "</svg>\n"


def _beside(number: int, count: int, width: float) -> float:
    """The distance between a box's middle and the end of the `number`th of `count` arrows."""
    return (width - 20) * ((number + 1) / (count + 1) - 0.5)


def _curve(
    start: tuple[float, float],
    rows: Sequence[tuple[float, float, float]],
    end: tuple[float, float],
) -> str:
    """A smooth path that is vertical at its ends and within rows of boxes.

    `rows`: the middle, the top and the bottom of the path in each row of boxes that it passes.
    """
    x, y = start
    path = f"M{x:.0f} {y:.0f}"
    for to, top, bottom in (*rows, (*end, end[1])):
        bend = (y + top) / 2
        path += f"C{x:.0f} {bend:.0f} {to:.0f} {bend:.0f} {to:.0f} {top:.0f}"
        path += f"V{bottom:.0f}" if bottom > top else ""
        x, y = to, bottom
    return path


def _box(name: str, box: Box, middle: float, top: float, width: float) -> str:
    kind = "way" if box.number else "file" if box.is_file else "room"
    radius = 4 if box.is_file else 8
    shape = (
        f'<rect class="{kind}" x="{middle - width / 2:.0f}" y="{top:.0f}" width="{width:.0f}" '
        f'height="{BOX_HEIGHT}" rx="{radius}"/>'
    )
    number = f'<tspan class="number">{box.number}</tspan> ' if box.number else ""
    text = (
        f'<text class="name" text-anchor="middle" x="{middle:.0f}" y="{top + 22:.0f}">'
        f"{number}{escape(name)}</text>"
    )
    return f"  <g><title>{escape(name)}: {escape(box.about)}</title>{shape}{text}</g>\n"


def _legend(y: float) -> Iterable[str]:
    x = MARGIN
    for kind, text in (("way", "on a message's way"), ("room", "room"), ("file", "single file")):
        yield (
            f'  <rect class="{kind}" x="{x}" y="{y - 11}" width="20" height="14" rx="3"/>'
            f'<text class="note" x="{x + 28}" y="{y}">{text}</text>\n'
        )
        x += 28 + round(len(text) * 6.6) + 24
    yield (
        f'  <text class="note" x="{MARGIN}" y="{y + 22}">An arrow leads to what a room imports. '
        "Arrows that follow from others are left out.</text>\n"
    )
