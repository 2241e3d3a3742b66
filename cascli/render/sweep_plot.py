"""Quality against cost: a curve for each rule, baselines as marks, the Pareto front."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TextIO

from cascli.render.plots import pyplot
from cascli.strategies import parse
from cascli.sweep.table import SweepRow, front

if TYPE_CHECKING:
    from matplotlib.axes import Axes

BASELINES = {"target": "*", "draft": "v", "speculative": "D"}
COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#8c564b", "#e69f00", "#4b0082")
"""Of Okabe and Ito, which can be told apart whatever one's eyes, and two more."""
STYLES = ("-", "--", ":", "-.")
MARKERS = "osP^X"
"""Of the curves of one family, by block length or score."""
PANELS = (
    ("target_calls_per_token", "target calls per token"),
    ("rejection_rate", "rejection rate: rejected / tested drafts"),
    ("speed_vs_target", "speed over target alone"),
)


class Curve(NamedTuple):
    """Rows that differ in the one parameter that trades quality for cost."""

    family: str
    temperature: float
    others: tuple[tuple[str, Any], ...]
    """Every other parameter: block length, score and the like."""
    rows: list[SweepRow]

    @property
    def label(self) -> str:
        """What the curve is, without its temperature."""
        more = " ".join(f"{key}={value}" for key, value in self.others if key not in ("rule", "level"))
        return f"{self.family} {more}".strip()


def curves(rows: Sequence[SweepRow]) -> list[Curve]:
    """Rows by family, temperature and all parameters but alpha or threshold, in whose order each curve is drawn."""
    groups: dict[tuple[str, float, tuple[tuple[str, Any], ...]], list[tuple[float, SweepRow]]] = defaultdict(list)
    for row in rows:
        params = dict(parse(row.strategy).params)
        place = float(params.pop("alpha", params.pop("threshold", 0.0)))
        groups[row.family, row.temperature, tuple(sorted(params.items()))].append((place, row))
    result = []
    for (family, temperature, others), group in groups.items():
        ordered = [row for _, row in sorted(group, key=lambda each: each[0])]
        result.append(Curve(family, temperature, others, ordered))
    return result


def plot_sweep(rows: Sequence[SweepRow], metric: str, path: Path | TextIO) -> None:
    """Draw a PNG or SVG with one panel a cost; what no record knows has no panel."""
    plt = pyplot()
    shown = [panel for panel in PANELS if any(getattr(row, panel[0]) is not None for row in rows)] or PANELS[:1]
    figure, grid = plt.subplots(
        1, len(shown), figsize=(4.7 * len(shown), 4.6), layout="constrained", sharey=True, squeeze=False
    )
    panels = grid[0]
    drawn = curves(rows)
    looks = _looks(drawn)
    labels: dict[str, Any] = {}
    for axes, (field, label) in zip(panels, shown, strict=True):
        _panel(axes, drawn, field, looks)
        axes.set_xlabel(label)
        handles, names = axes.get_legend_handles_labels()
        labels = dict(zip(names, handles, strict=True)) | labels
    panels[0].set_ylabel(f"{metric} ({_kinds(rows)} over prompts)")
    figure.legend(labels.values(), labels.keys(), loc="outside lower center", ncols=5, frameon=False, fontsize=8)
    figure.savefig(path, dpi=150, format=None if isinstance(path, Path) else "svg")
    plt.close(figure)


class Look(NamedTuple):
    """How a curve is drawn, in every panel."""

    color: str
    marker: str
    line: str
    filled: bool
    label: str


def _looks(curves: Sequence[Curve]) -> dict[int, Look]:
    """A colour a family and a line style a temperature, chosen once for the whole figure; by the curve's place."""
    families = list(dict.fromkeys(curve.family for curve in curves if curve.family not in BASELINES))
    temperatures = sorted({curve.temperature for curve in curves})
    several = len(temperatures) > 1
    looks = {}
    for place, curve in enumerate(curves):
        baseline = BASELINES.get(curve.family)
        kinds = list(dict.fromkeys(each.others for each in curves if each.family == curve.family))
        marker = baseline or MARKERS[kinds.index(curve.others) % len(MARKERS)]
        color = "black" if baseline else COLORS[families.index(curve.family) % len(COLORS)]
        level = temperatures.index(curve.temperature)
        label = curve.label + (f", T = {curve.temperature:g}" if several else "")
        looks[place] = Look(color, marker, STYLES[level % len(STYLES)], level == 0, label)
    return looks


def _kinds(rows: Sequence[SweepRow]) -> str:
    """What the bars are."""
    kinds = {row.quality_interval_kind for row in rows if row.quality_interval is not None}
    return "range" if kinds and kinds <= {"range", "no scatter"} else "95% interval"


def _panel(axes: Axes, curves: Sequence[Curve], field: str, looks: Mapping[int, Look]) -> None:
    for place, curve in enumerate(curves):
        known = [row for row in curve.rows if row.quality is not None and getattr(row, field) is not None]
        if known:
            _errors(axes, known, field, looks[place])
    if field == "target_calls_per_token":
        for temperature in sorted({curve.temperature for curve in curves}):
            _at_one_temperature(axes, [curve for curve in curves if curve.temperature == temperature], field)


def _at_one_temperature(axes: Axes, curves: Sequence[Curve], field: str) -> None:
    """The Pareto front, and what deferring at random would give: answers at another temperature are other answers."""
    _random_deferral(axes, curves)
    best = front([row for curve in curves for row in curve.rows])
    axes.step(
        [getattr(row, field) for row in best],
        [row.quality or 0.0 for row in best],
        where="post",
        color="grey",
        lw=4,
        alpha=0.25,
        label="Pareto front",
    )


def _errors(axes: Axes, group: Sequence[SweepRow], field: str, look: Look) -> None:
    quality = [row.quality or 0.0 for row in group]
    bounds = [row.quality_interval or (value, value) for row, value in zip(group, quality, strict=True)]
    lengths = [
        [max(value - low, 0) for value, (low, _) in zip(quality, bounds, strict=True)],
        [max(high - value, 0) for value, (_, high) in zip(quality, bounds, strict=True)],
    ]
    axes.errorbar(
        [getattr(row, field) for row in group],
        quality,
        lengths,
        fmt=f"{look.marker}{look.line}" if look.marker in MARKERS else look.marker,
        color=look.color,
        markerfacecolor=look.color if look.filled else "white",
        label=look.label,
        lw=1.2,
        elinewidth=0.6,
        capsize=2,
        markersize=5 if look.marker in MARKERS else 9,
        alpha=0.9,
    )


def _random_deferral(axes: Axes, curves: Sequence[Curve]) -> None:
    """The line between the two models: what deferring at random would give."""
    alone = {curve.family: curve.rows[0] for curve in curves if curve.family in ("draft", "target")}
    ends = [row for row in alone.values() if row.quality is not None and row.target_calls_per_token is not None]
    if len(ends) == 2:
        xs = [row.target_calls_per_token or 0.0 for row in ends]
        axes.plot(xs, [row.quality or 0.0 for row in ends], ":", color="grey", label="random deferral")
