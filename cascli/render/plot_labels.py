"""Short labels next to the marks of a plot, which cover neither each other nor a mark if possible."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Point = tuple[float, float]
DISTANCES = (11.0, 18.0, 27.0, 38.0)
"""From a mark to the middle of its label, in points; sideways, up to a quarter of the label's width is added."""
DIRECTIONS = 12
MARK = 5.0
"""Half of a mark's width, in points."""
LINE_FROM = 27.0
"""Distance from which a thin line connects a label to its mark."""


class Label(NamedTuple):
    """A text for a point of the figure, in pixels."""

    text: str
    at: Point
    color: tuple[float, float, float]


class Box(NamedTuple):
    """A rectangle of the figure, in pixels."""

    left: float
    bottom: float
    right: float
    top: float

    def overlap(self, other: Box) -> float:
        """The area that both cover."""
        width = min(self.right, other.right) - max(self.left, other.left)
        height = min(self.top, other.top) - max(self.bottom, other.bottom)
        return max(width, 0.0) * max(height, 0.0)


def place_labels(axes: Axes, labels: Sequence[Label], curves: Sequence[Sequence[Point]], *, size: float) -> None:
    """Write each label as close to its mark as there is room; if there is none, where it covers least.

    Args:
        axes: of a figure whose layout is settled.
        labels: in order of priority. Labels with the same text at the same place are written once.
        curves: the marks that must not be covered, in pixels; the lines between those of one curve are avoided too.
        size: of the text, in points.
    """
    pixels = axes.figure.dpi / 72
    frame = Box(*axes.get_window_extent().extents)
    taken = [_around(point, MARK * pixels, MARK * pixels) for curve in curves for point in curve]
    taken += [_around(point, pixels, pixels) for curve in curves for point in _between(curve, 4 * pixels)]
    for label in _distinct(labels):
        if not (frame.left <= label.at[0] <= frame.right and frame.bottom <= label.at[1] <= frame.top):
            continue
        half = (0.3 * size * len(label.text) * pixels, 0.55 * size * pixels)
        distance, middle = min(_places(label.at, half, pixels), key=lambda each: _covered(each[1], half, taken, frame))
        taken.append(_around(middle, *half))
        axes.annotate(
            label.text,
            tuple(axes.transData.inverted().transform(label.at)),
            xytext=((middle[0] - label.at[0]) / pixels, (middle[1] - label.at[1]) / pixels),
            textcoords="offset points",
            ha="center",
            va="center",
            fontsize=size,
            color=label.color,
            arrowprops={"arrowstyle": "-", "lw": 0.6, "color": label.color} if distance >= LINE_FROM else None,
        )


def _distinct(labels: Sequence[Label]) -> Iterator[Label]:
    """Drop labels whose text is already at the same pixel: curves often start at a common point."""
    seen = set()
    for label in labels:
        key = label.text, round(label.at[0]), round(label.at[1])
        if key not in seen:
            seen.add(key)
            yield label


def _between(curve: Sequence[Point], step: float) -> Iterator[Point]:
    """Points along the lines of a curve."""
    for (x, y), (to_x, to_y) in pairwise(curve):
        count = int(math.dist((x, y), (to_x, to_y)) / step)
        for number in range(1, count):
            share = number / count
            yield x + share * (to_x - x), y + share * (to_y - y)


def _around(point: Point, width: float, height: float) -> Box:
    return Box(point[0] - width, point[1] - height, point[0] + width, point[1] + height)


def _places(at: Point, half: Point, pixels: float) -> Iterator[tuple[float, Point]]:
    """Candidate middles of a label around its mark, and their distances: above first, then around, then further out."""
    for distance in DISTANCES:
        for step in range(DIRECTIONS):
            # Alternate between the two sides of the top.
            turn = (step + 1) // 2 * (1 if step % 2 else -1)
            angle = math.pi / 2 + turn * 2 * math.pi / DIRECTIONS
            reach = distance * pixels
            x, y = math.cos(angle) * (reach + half[0] / 2), math.sin(angle) * reach
            yield distance, (at[0] + x, at[1] + y)


def _covered(middle: Point, half: Point, taken: Sequence[Box], frame: Box) -> float:
    """The area of other things that a label would cover, plus the area of the label that would be cut off."""
    box = _around(middle, *half)
    outside = (box.right - box.left) * (box.top - box.bottom) - box.overlap(frame)
    return sum(box.overlap(each) for each in taken) + outside
