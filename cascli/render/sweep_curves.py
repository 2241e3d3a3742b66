"""The curves of a sweep's picture, and how each looks in every panel, in colour and in grey."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from cascli.render.marks import SHORT
from cascli.strategies import shown
from cascli.sweeps.table import SweepRow
from cascli.trace import block_length

BASELINES = {"target": "*", "draft": "v", "speculative": "D"}
COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#8c564b", "#e69f00", "#4b0082")
"""Okabe and Ito's colours, which can be told apart with any colour vision, and two more."""
MARKERS = "os^PXp<h>"
"""Markers of the families, whose colours look alike in grey."""
LINE, CONTROL, APART = "-", "--", ""
"""Line styles of a rule, of a control, and of points that no line joins.

A control cuts the target's own distribution without reading the draft. Points are not joined if they differ in the
block length alone, which is not a setting to trace a curve along.
"""
SMALLEST, LARGEST = 6.5, 15.5
"""Sizes of the marks: larger for longer blocks, the same in every family."""
STEPS = 3
"""Minimum number of steps between these two, so that the longer of two block lengths is not twice as large."""
FILLS = ("full", "left", "bottom", "right", "top")
"""Fill styles of curves of one family and block length, by score or other options."""


CurveKey = tuple[str, tuple[tuple[str, Any], ...]]
"""A family, and every parameter that is fixed along its curve; what looks the same at all temperatures."""


class Curve(NamedTuple):
    """Rows that differ in the one parameter that trades quality for cost."""

    family: str
    temperature: float
    others: tuple[tuple[str, Any], ...]
    """Every other parameter: block length, score, etc."""
    rows: list[SweepRow]
    places: list[str]
    """The label of each row's mark: the value of that parameter."""

    @property
    def key(self) -> CurveKey:
        """What it shares with its curves at other temperatures."""
        return self.family, self.others

    @property
    def label(self) -> str:
        """The curve's name, without its temperature; for a single point, with the value of its parameter."""
        place = self.places[0] if len(self.rows) == 1 else ""
        return " ".join(word for word in (self.name, place if "=" in place or not place else f"alpha={place}") if word)

    @property
    def name(self) -> str:
        """The curve's name, without its temperature or a parameter's value."""
        name, _, rule = self.family.partition(" ")
        shown = {key: value for key, value in self.others if key not in ("rule", "level")}
        words = [SHORT.get(name, name), rule, *(f"{key}={value}" for key, value in shown.items())]
        return " ".join(word for word in words if word)


def curves(rows: Sequence[SweepRow]) -> list[Curve]:
    """Rows grouped by family, temperature and all parameters but the one that trades quality for cost, in its order."""
    groups: dict[tuple[str, float, tuple[tuple[str, Any], ...]], list[tuple[float, str, SweepRow]]] = defaultdict(list)
    for row in rows:
        params = dict(shown(row.strategy).params)
        name = _trades(params)
        value = params.pop(name) if name else 0.0
        label = "" if name is None else f"{value:g}" if name == "alpha" else f"{name}={value:g}"
        groups[row.family, row.temperature, tuple(sorted(params.items()))].append((float(value), label, row))
    result = []
    for (family, temperature, others), group in groups.items():
        ordered = sorted(group, key=lambda each: each[0])
        places = [label for _, label, _ in ordered]
        result.append(Curve(family, temperature, others, [row for *_, row in ordered], places))
    return result


def _trades(params: Mapping[str, Any]) -> str | None:
    """The parameter that trades quality for cost: alpha, a threshold or another fraction; else the block length."""
    fractions = [name for name, value in params.items() if isinstance(value, float) and name != "level"]
    for name in ("alpha", "threshold", *fractions, "k"):
        value = params.get(name)
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            return name
    return None


class Look(NamedTuple):
    """How a curve is drawn, in every panel."""

    color: str
    marker: str
    size: float
    line: str
    fill: str
    label: str


def looks_of(curves: Sequence[Curve]) -> dict[CurveKey, Look]:
    """A colour and mark per family, a size per block length, a fill per variant; controls are dashed, with open marks.

    Looks are chosen once for the whole figure, so that a curve missing from a panel shifts nothing.
    """
    families = list(dict.fromkeys(curve.family for curve in curves if curve.family not in BASELINES))
    blocks = sorted({_block(curve) for curve in curves if curve.family not in BASELINES} - {0})
    labels: dict[CurveKey, set[str]] = {}
    for curve in curves:
        labels.setdefault(curve.key, set()).add(curve.label)
    looks = {}
    for curve in curves:
        baseline = BASELINES.get(curve.family)
        alike = [each.others for each in curves if each.family == curve.family and _block(each) == _block(curve)]
        variant = list(dict.fromkeys(alike)).index(curve.others)
        rank = blocks.index(_block(curve)) if _block(curve) in blocks else 0
        size = SMALLEST + (LARGEST - SMALLEST) * rank / max(STEPS, len(blocks) - 1)
        number = 0 if baseline else families.index(curve.family)
        control = is_control(curve)
        looks[curve.key] = Look(
            color="black" if baseline else COLORS[number % len(COLORS)],
            marker=baseline or MARKERS[number % len(MARKERS)],
            size=SMALLEST + (4 if baseline == "*" else 0) if baseline else size,
            line=APART if curve.places[0].startswith("k=") else CONTROL if control else LINE,
            fill="none" if control and not variant else FILLS[variant % len(FILLS)],
            label=curve.label if len(labels[curve.key]) == 1 else curve.name,
        )
    return looks


def _block(curve: Curve) -> int:
    """The block length of its rows; 0 if they have none or differ in it."""
    return block_length(dict(curve.others))


def is_control(curve: Curve) -> bool:
    """Whether its rule only cuts the target's own distribution, so that its answers owe nothing to the draft model."""
    return not shown(curve.rows[0].strategy).reads_draft


def drawn_as(look: Look) -> dict[str, Any]:
    """The look as matplotlib's keyword arguments."""
    return {
        "color": look.color,
        "marker": look.marker,
        "markersize": look.size,
        "linestyle": look.line,
        "linewidth": 1.8,
        "fillstyle": look.fill,
        "markerfacecoloralt": "white",
    }
