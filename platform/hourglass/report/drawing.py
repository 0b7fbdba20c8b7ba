"""A network as one SVG picture: descriptions of its layers in, text out.

The picture needs nothing else: no script, no font, no request. Text is measured by a generous guess,
and every column is as wide as its longest text, so that none runs into the next.
"""

import math
import re
import textwrap
import xml.etree.ElementTree as ET
from collections.abc import Sequence
from itertools import pairwise

from hourglass.model.network import Layer, Link

FONT = "DejaVu Sans, Verdana, Helvetica, Arial, sans-serif"
INK, FAINT, FLOW, PAPER = "#24292f", "#57606a", "#e9eef4", "#ffffff"
FILL = {"row": "#8c96a3", "hidden": "#2f6db3", "code": "#d9541e", "output": "#8c96a3"}
MARGIN, HEAD, LINE, SMALL = 28, 66, 16, 12
LOWEST, HIGHEST, THICK = 26, 230, 46
ASIDE = 40
"""Characters of a line at the side."""
LONGEST = 80
"""Characters of the heading; a longer one is cut, and ends in '…'."""
WIDE = 0x2E80
"""The first of the characters that are as wide as high (Chinese, Japanese, Korean)."""
NO_XML = re.compile(r"[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
"""Characters that no XML file may hold, escaped or not. Source: W3C 2008, XML 1.0, section 2.2."""


def draw(
    heading: str, summary: str, layers: Sequence[Layer], aside: Sequence[tuple[str, str]]
) -> str:
    """The picture as SVG: layers from left to right, `aside` (name, what it is) to the right."""
    above, below = _reach(layers)
    top = MARGIN + HEAD
    axis, feet = top + above, top + above + below
    columns, after = _columns(layers)
    notes = [(name, textwrap.wrap(text, ASIDE, break_on_hyphens=False)) for name, text in aside]
    heading = heading if len(heading) <= LONGEST else heading[: LONGEST - 1] + "…"
    labels = [_wide(text, SMALL) for name, lines in notes for text in (name, *lines)]
    titles = MARGIN + max(_wide(heading, 20), _wide(summary, 14))
    below_feet = feet + LINE * (1 + max(len(layer.lines) for layer in layers))
    below_notes = top + sum(_depth(lines) for _, lines in notes)
    right, bottom = max(after + max(labels, default=0.0), titles), max(below_feet, below_notes)
    root = _paper(right + MARGIN, bottom + MARGIN, f"{heading}: {summary}")
    _text(root, MARGIN, MARGIN + 18, heading, size=20, weight="bold", anchor="start")
    _text(root, MARGIN, MARGIN + 42, summary, size=14, fill=FAINT, anchor="start")
    _network(root, layers, columns, axis, feet)
    _beside(root, notes, after, top)
    ET.indent(root)
    file: bytes = ET.tostring(root, encoding="utf-8", xml_declaration=True)
    return file.decode() + "\n"


def height(units: int, most: int) -> float:
    """Of a block: grows with the log of its units; the widest layer, of `most`, is the highest."""
    return LOWEST + (HIGHEST - LOWEST) * math.log(units) / math.log(max(most, 2))


def _reach(layers: Sequence[Layer]) -> tuple[float, float]:
    """How far blocks and words go above and below the axis."""
    stacks = [_stack(layer.links) for layer in layers if layer.links]
    up = max([HIGHEST / 2, *(-stack[0][0] + LINE for stack in stacks)])
    down = max([HIGHEST / 2, *(stack[-1][1] + LINE for stack in stacks)])
    return up, down


def _stack(links: Sequence[Link]) -> list[tuple[float, float]]:
    """Top and bottom of each connection's words, beside the axis: one above another, in the middle.

    Its arrow is below the lines of its kind; that of a single one is on the axis.
    """
    if len(links) == 1:
        return [(-len(links[0].kind) * LINE - 8.0, len(links[0].lines) * LINE + 8.0)]
    highs = [(len(link.kind) + len(link.lines)) * LINE + 16.0 for link in links]
    gap, tops = 18.0, []
    top = -(sum(highs) + gap * (len(highs) - 1)) / 2
    for high in highs:
        tops.append((top, top + high))
        top += high + gap
    return tops


def _columns(layers: Sequence[Layer]) -> tuple[list[float], float]:
    """The middle of each block, and where the words at the side begin."""
    middles: list[float] = []
    x = float(MARGIN)
    for layer in layers:
        words = max(_wide(line, SMALL) for line in layer.lines)
        labels = [_wide(text, SMALL) for link in layer.links for text in (*link.kind, *link.lines)]
        # Words below a block may reach under the connections, which have none there.
        half = max(THICK, words) / 2
        between = THICK + max([64.0, *(wide + 26 for wide in labels)]) if middles else 0.0
        x = max(x + half, middles[-1] + between) if middles else x + half
        middles.append(x)
        x += half + 12
    return middles, x + 28


def _wide(text: str, size: int) -> float:
    """Width of `text` in pixels, rather too much: fonts differ."""
    return size * sum(0.66 if ord(letter) < WIDE else 1.0 for letter in text)


def _paper(width: float, height: float, title: str) -> ET.Element:
    size = {"width": f"{width:.0f}", "height": f"{height:.0f}"}
    root = ET.Element("svg", size, xmlns="http://www.w3.org/2000/svg")
    root.attrib |= {"viewBox": f"0 0 {width:.0f} {height:.0f}", "role": "img", "font-family": FONT}
    ET.SubElement(root, "title").text = _allowed(title)
    ET.SubElement(root, "rect", size, fill=PAPER)
    return root


def _network(
    root: ET.Element, layers: Sequence[Layer], columns: Sequence[float], axis: float, feet: float
) -> None:
    """The silhouette, on it the connections, and the blocks."""
    most = max(layer.units for layer in layers)
    highs = [height(layer.units, most) for layer in layers]
    gaps = [(left + THICK / 2, right - THICK / 2) for left, right in pairwise(columns)]
    for (left, right), pair in zip(gaps, pairwise(highs), strict=True):
        _flow(root, left, right, axis, pair)
    for layer, (left, right) in zip(layers[1:], gaps, strict=True):
        _connect(root, layer.links, left, right, axis)
    for layer, x, high in zip(layers, columns, highs, strict=True):
        _block(root, layer, x, high, axis, feet)


def _flow(
    root: ET.Element, left: float, right: float, axis: float, highs: tuple[float, float]
) -> None:
    """The pale shape between two blocks: the silhouette of the network."""
    a, b = highs[0] / 2, highs[1] / 2
    corners = [(left, axis - a), (right, axis - b), (right, axis + b), (left, axis + a)]
    ET.SubElement(
        root, "polygon", points=" ".join(f"{x:.1f},{y:.1f}" for x, y in corners), fill=FLOW
    )


def _connect(
    root: ET.Element, links: Sequence[Link], left: float, right: float, axis: float
) -> None:
    """The connections into a layer: an arrow each, the kind above it, the parameters below."""
    middle = (left + right) / 2
    for link, (top, _) in zip(links, _stack(links), strict=True):
        y = axis + top + len(link.kind) * LINE + 8
        group = ET.SubElement(root, "g", {"class": "link"})
        line = {"x1": f"{left + 6:.1f}", "x2": f"{right - 12:.1f}", "y1": f"{y:.1f}"}
        ET.SubElement(group, "line", line, y2=f"{y:.1f}", stroke=FAINT)
        tip = f"{right - 12:.1f},{y - 4:.1f} {right - 4:.1f},{y:.1f} {right - 12:.1f},{y + 4:.1f}"
        ET.SubElement(group, "polygon", points=tip, fill=FAINT)
        for number, words in enumerate(link.kind):
            _text(group, middle, axis + top + LINE * (number + 0.8), words)
        for number, words in enumerate(link.lines):
            _text(group, middle, y + LINE * (number + 1), words, fill=FAINT)


def _block(root: ET.Element, layer: Layer, x: float, high: float, axis: float, feet: float) -> None:
    """The block of a layer, and below it, all at one height, what it is."""
    group = ET.SubElement(root, "g", {"class": layer.role})
    place = {"x": f"{x - THICK / 2:.1f}", "y": f"{axis - high / 2:.1f}"}
    size = {"width": str(THICK), "height": f"{high:.1f}", "rx": "5"}
    ET.SubElement(group, "rect", place | size, fill=FILL[layer.role])
    for number, words in enumerate(layer.lines):
        look = {"weight": "bold"} if number == 0 else {"fill": FAINT} if number > 1 else {}
        if number == 0 and layer.role == "code":
            look["fill"] = FILL["code"]
        _text(group, x, feet + LINE * (number + 1.2), words, **look)


def _beside(
    root: ET.Element, notes: Sequence[tuple[str, Sequence[str]]], x: float, top: float
) -> None:
    """Names in bold, what they are below them."""
    y = top
    for name, lines in notes:
        _text(root, x, y, name, weight="bold", anchor="start")
        for number, line in enumerate(lines):
            _text(root, x, y + LINE * (number + 1), line, anchor="start")
        y += _depth(lines)


def _depth(lines: Sequence[str]) -> float:
    """Pixels down to the next name at the side."""
    return LINE * (len(lines) + 1.6)


def _text(parent: ET.Element, x: float, y: float, words: str, **style: object) -> None:
    """`words` with their baseline at y, in the middle of x unless `anchor` says otherwise."""
    looks = {"size": SMALL, "fill": INK, "anchor": "middle", **style}
    names = {"size": "font-size", "weight": "font-weight", "anchor": "text-anchor"}
    given = {names.get(key, key): str(value) for key, value in looks.items()}
    ET.SubElement(parent, "text", {"x": f"{x:.1f}", "y": f"{y:.1f}", **given}).text = _allowed(
        words
    )


def _allowed(words: str) -> str:
    return NO_XML.sub("\ufffd", words)
