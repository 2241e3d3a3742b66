"""The curves of a sweep's picture, and how each looks: in every panel, in colour and in grey."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from cascli import rules
from cascli.render.marks import SHORT
from cascli.strategies import parse
from cascli.sweeps.table import SweepRow
from cascli.trace import block_length

BASELINES = {"target": "*", "draft": "v", "speculative": "D"}
COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#8c564b", "#e69f00", "#4b0082")
"""Of Okabe and Ito, which can be told apart whatever one's eyes, and two more."""
MARKERS = "os^PXp<h>"
"""Of the families: their colours are alike in grey."""
LINE, CONTROL, APART = "-", "--", ""
"""Of a rule; of a control, which cuts the target's own distribution without a look at the draft; and of points that
differ in the block length alone, which is no setting that a curve could be turned along."""
SMALLEST, LARGEST = 6.5, 15.5
"""Of the marks: larger for longer blocks, the same in every family."""
STEPS = 3
"""Steps at least between these two, so that of two block lengths the longer is not twice as large."""
FILLS = ("full", "left", "bottom", "right", "top")
"""Of curves of one family and block length, by score or other options."""


CurveKey = tuple[str, tuple[tuple[str, Any], ...]]
"""A family, and every parameter that its curve holds still: what looks the same at all temperatures."""


class Curve(NamedTuple):
    """Rows that differ in the one parameter that trades quality for cost."""

    family: str
    temperature: float
    others: tuple[tuple[str, Any], ...]
    """Every other parameter: block length, score and the like."""
    rows: list[SweepRow]
    places: list[str]
    """What each row's mark is labelled with: the value of that parameter."""

    @property
    def key(self) -> CurveKey:
        """What it has in common with its curves at other temperatures."""
        return self.family, self.others

    @property
    def label(self) -> str:
        """What the curve is, without its temperature; of a single point with its place."""
        place = self.places[0] if len(self.rows) == 1 else ""
        return " ".join(word for word in (self.name, place if "=" in place or not place else f"alpha={place}") if word)

    @property
    def name(self) -> str:
        """The same without a place."""
        name, _, rule = self.family.partition(" ")
        shown = {key: value for key, value in self.others if key not in ("rule", "level")}
        words = [SHORT.get(name, name), rule, *(f"{key}={value}" for key, value in shown.items())]
        return " ".join(word for word in words if word)


def curves(rows: Sequence[SweepRow]) -> list[Curve]:
    """Rows by family, temperature and all parameters but alpha or threshold, in whose order each curve is drawn."""
    groups: dict[tuple[str, float, tuple[tuple[str, Any], ...]], list[tuple[float, str, SweepRow]]] = defaultdict(list)
    for row in rows:
        params = dict(parse(row.strategy).params)
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
    """A colour and mark a family, a size a block length or score; dashed with open marks are the controls.

    They are chosen once for the whole figure, so that a panel that lacks a curve shifts nothing.
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
    """The block length of its rows; 0 of none, and of points that differ in it."""
    return block_length(dict(curve.others))


def is_control(curve: Curve) -> bool:
    """Whether its rule is the target's own distribution, cut: nothing of the draft model's taste is in its answers."""
    rule = parse(curve.rows[0].strategy).params.get("rule")
    return rule is not None and not rules.load(str(rule)).reads_draft


def drawn_as(look: Look) -> dict[str, Any]:
    """What matplotlib calls it."""
    return {
        "color": look.color,
        "marker": look.marker,
        "markersize": look.size,
        "linestyle": look.line,
        "linewidth": 1.8,
        "fillstyle": look.fill,
        "markerfacecoloralt": "white",
    }
