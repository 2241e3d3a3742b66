"""Quality against cost: a curve for each rule, baselines as marks, the Pareto front."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from cascli.render.plots import pyplot
from cascli.sweep.table import SweepRow, front

if TYPE_CHECKING:
    from matplotlib.axes import Axes

BASELINES = {"target": "*", "draft": "v", "speculative": "D"}
COLORS = ("#1d4ed8", "#c2410c", "#15803d", "#7e22ce", "#b45309", "#0e7490", "#be123c", "#4d7c0f")
PANELS = (
    ("target_calls_per_token", "target calls per token"),
    ("rejection_rate", "rejection rate: rejected / tested drafts"),
    ("speed_vs_target", "speed over target alone"),
)


def plot_sweep(rows: Sequence[SweepRow], metric: str, path: Path) -> None:
    """Draw a PNG or SVG with one panel a cost."""
    plt = pyplot()
    figure, panels = plt.subplots(1, len(PANELS), figsize=(14, 4.6), layout="constrained", sharey=True)
    for axes, (field, label) in zip(panels, PANELS, strict=True):
        _panel(axes, rows, field)
        axes.set_xlabel(label)
    panels[0].set_ylabel(f"{metric} (95% interval over prompts)")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=5, frameon=False, fontsize=8)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def _panel(axes: Axes, rows: Sequence[SweepRow], field: str) -> None:
    known = [row for row in rows if row.quality is not None and getattr(row, field) is not None]
    curves: dict[str, list[SweepRow]] = defaultdict(list)
    for row in known:
        curves[row.family].append(row)
    colors = iter(COLORS * (len(curves) // len(COLORS) + 1))
    for name, group in curves.items():
        group.sort(key=lambda row: getattr(row, field))
        baseline = BASELINES.get(name)
        color = "black" if baseline else next(colors)
        _errors(axes, group, field, marker=baseline or "o", color=color, label=name, line=not baseline)
    if field == "target_calls_per_token":
        _random_deferral(axes, curves)
        best = front(known)
        axes.step(
            [getattr(row, field) for row in best],
            [row.quality or 0.0 for row in best],
            where="post",
            color="grey",
            lw=4,
            alpha=0.25,
            label="Pareto front",
        )


def _errors(
    axes: Axes, group: Sequence[SweepRow], field: str, *, marker: str, color: str, label: str, line: bool
) -> None:
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
        fmt=f"{marker}-" if line else marker,
        color=color,
        label=label,
        lw=1.2,
        elinewidth=0.6,
        capsize=2,
        markersize=9 if marker != "o" else 5,
        alpha=0.9,
    )


def _random_deferral(axes: Axes, curves: dict[str, list[SweepRow]]) -> None:
    """The line between the two models: what deferring at random would give."""
    ends = [curves[name][0] for name in ("draft", "target") if curves.get(name)]
    if len(ends) == 2:
        xs = [row.target_calls_per_token or 0.0 for row in ends]
        axes.plot(xs, [row.quality or 0.0 for row in ends], ":", color="grey", label="random deferral")
