"""Quality against cost: a curve for each rule, controls dashed, baselines as marks, the Pareto front.

A single temperature has a panel for each cost; several have a panel each, over target calls per answer.
"""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Mapping, Sequence
from math import ceil
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, NamedTuple

from cascli.render.plot_labels import Label, Point, place_labels
from cascli.render.plots import printable, pyplot, without_glyph_warnings
from cascli.render.sweep_curves import APART, Curve, CurveKey, Look, curves, drawn_as, looks_of
from cascli.render.sweep_words import bars_of, temperature_of
from cascli.sweeps.plan import DRAFT
from cascli.sweeps.table import SweepRow, calls_per_answer, cheapest_lossless, front

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


class Panel(NamedTuple):
    """A cost, for the answers at one temperature."""

    label: str
    cost: Callable[[SweepRow], float | None]
    temperature: float
    by_calls: bool = False
    """Whether the Pareto front and the random choice between models are drawn."""


CALLS = "target calls per answer"
COSTS: tuple[tuple[str, Callable[[SweepRow], float | None]], ...] = (
    (CALLS, calls_per_answer),
    ("rejection rate: rejected / tested drafts", lambda row: row.rejection_rate),
    ("speed over target alone", lambda row: row.speed_vs_target),
)
FRONT, RANDOM = "Pareto front", "random deferral"
TEXT = 14
"""Size of the text in points, for a figure 16 inches wide: readable when it fills a slide."""
PANEL_WIDTH, PANEL_HEIGHT = 5.4, 4.3
LINE_HEIGHT = 1.45 * TEXT / 72
"""Height of a line of the legend, in inches."""
CHARACTER, HANDLE = 0.56 * (TEXT - 1) / 72, 0.75
"""Width of a character in the legend, and of what is next to the text, in inches."""
LONG_LEGEND = 12
"""Number of names above which the longest are wrapped."""
CLOSE_UP = 0.4
"""A panel zooms in on the curves if they take up less of it than this."""


def plot_sweep(
    rows: Sequence[SweepRow], metric: str, target: Path | IO[Any], *, title: str = "", kind: str | None = None
) -> None:
    """Draw a figure with one panel per cost or, for several temperatures, per temperature.

    Args:
        rows: the sweep's table.
        metric: the name of the quality.
        target: a file, whose suffix gives the format, or a stream.
        title: above the panels.
        kind: svg, png or pdf, for a stream; svg by default.
    """
    plt = pyplot()
    with (
        plt.rc_context({"font.size": TEXT, "axes.titlesize": TEXT, "legend.fontsize": TEXT - 1}),
        without_glyph_warnings(),
    ):
        figure = _figure(plt, rows, metric, title)
        kind = kind or (target.suffix[1:].lower() if isinstance(target, Path) else "svg")
        dates = {"svg": {"Date": None}, "pdf": {"CreationDate": None}}  # so that the same table gives the same file
        figure.savefig(target, dpi=150, format=kind, metadata=dates.get(kind))
    plt.close(figure)


def panels_of(rows: Sequence[SweepRow]) -> list[Panel]:
    """The panels of a figure; a cost that no row has gets none, except the first."""
    temperatures = sorted({row.temperature for row in rows})
    if len(temperatures) > 1:
        return [Panel(CALLS, COSTS[0][1], temperature, by_calls=True) for temperature in temperatures]
    return [
        Panel(label, cost, temperature, by_calls=label == CALLS)
        for temperature in temperatures
        for label, cost in COSTS
        if label == CALLS or any(cost(row) is not None for row in rows)
    ]


def _figure(plt: Any, rows: Sequence[SweepRow], metric: str, title: str) -> Figure:
    shown = panels_of(rows)
    drawn = curves(rows)
    looks = looks_of(drawn)
    figure, grid = plt.subplots(
        1, len(shown), figsize=(PANEL_WIDTH * len(shown), PANEL_HEIGHT), layout="constrained", sharey=True,
        squeeze=False,
    )  # fmt: skip
    panels = grid[0]
    several = len({panel.temperature for panel in shown}) > 1
    for axes, panel in zip(panels, shown, strict=True):
        here = [curve for curve in drawn if curve.temperature == panel.temperature]
        _panel(axes, here, panel, looks)
        axes.set_xlabel(f"{panel.label}, {temperature_of(panel.temperature)}" if several else panel.label)
        axes.locator_params(axis="x", nbins=6)
    panels[0].set_ylabel(f"{metric}\n(bars: {bars_of(rows)})")
    if title:
        lines = textwrap.fill(printable(title), 34 * len(shown))
        figure.suptitle(lines, fontsize=TEXT + 2, parse_math=False)
    handles, names = _legend(panels, drawn, looks)
    most = int((figure.get_figwidth() / 2 - HANDLE) / CHARACTER)
    if len(names) > LONG_LEGEND:  # a long name must not cost all others their second column
        names = [textwrap.fill(name, most) for name in names]
    widest = max(len(line) for name in names for line in name.split("\n")) * CHARACTER + HANDLE
    columns = max(1, int(figure.get_figwidth() / widest))
    long = ceil(len(names) / columns)
    parts = [names[start : start + long] for start in range(0, len(names), long)]
    tallest = max(sum(name.count("\n") + 1 for name in part) for part in parts)
    figure.set_figheight(PANEL_HEIGHT + LINE_HEIGHT * tallest)
    figure.legend(handles, names, loc="outside lower center", ncols=columns, frameon=False)
    _label_ends(figure, panels, shown, drawn, looks)
    return figure


def _legend(
    panels: Sequence[Axes], curves: Sequence[Curve], looks: Mapping[CurveKey, Look]
) -> tuple[list[Any], list[str]]:
    """The meaning of each colour, mark and line, with every curve once."""
    from matplotlib.lines import Line2D

    entries: dict[str, Any] = {}
    joined = {curve.key for curve in curves if len(curve.rows) > 1}
    for curve in curves:
        look = drawn_as(looks[curve.key]) | ({} if curve.key in joined else {"linestyle": ""})
        entries.setdefault(looks[curve.key].label, Line2D([], [], **look))
    for axes in panels:
        for handle, name in zip(*axes.get_legend_handles_labels(), strict=True):
            if name in (FRONT, RANDOM):
                entries.setdefault(name, handle)
    if any(_ends(curve, looks) and "=" not in curve.places[0] for curve in curves):
        entries["numbers at the ends: alpha"] = Line2D([], [], linestyle="")
    return list(entries.values()), list(entries)


def _panel(axes: Axes, curves: Sequence[Curve], panel: Panel, looks: Mapping[CurveKey, Look]) -> None:
    for curve in curves:
        known = [row for row in curve.rows if row.quality is not None and panel.cost(row) is not None]
        if known:
            _errors(axes, known, panel, looks[curve.key])
    if panel.by_calls:
        _random_deferral(axes, curves, panel)
        _front(axes, curves, panel)
    _close_up(axes, curves, panel)


def _front(axes: Axes, curves: Sequence[Curve], panel: Panel) -> None:
    best = front([row for curve in curves for row in curve.rows], panel.cost)
    axes.step(
        [panel.cost(row) or 0.0 for row in best],
        [row.quality or 0.0 for row in best],
        where="post",
        color="grey",
        lw=5,
        alpha=0.25,
        label=FRONT,
    )


def _errors(axes: Axes, group: Sequence[SweepRow], panel: Panel, look: Look) -> None:
    quality = [row.quality or 0.0 for row in group]
    bounds = [row.quality_interval or (value, value) for row, value in zip(group, quality, strict=True)]
    lengths = [
        [max(value - low, 0) for value, (low, _) in zip(quality, bounds, strict=True)],
        [max(high - value, 0) for value, (_, high) in zip(quality, bounds, strict=True)],
    ]
    costs = [panel.cost(row) or 0.0 for row in group]
    bars = axes.errorbar(costs, quality, lengths, label=look.label, elinewidth=0.8, capsize=0, **drawn_as(look))
    for bar in bars.lines[2]:
        bar.set_alpha(0.3)


def _random_deferral(axes: Axes, curves: Sequence[Curve], panel: Panel) -> None:
    """Draw what random deferral gives: each answer by the draft model or, by lot, the cheapest lossless speculation.

    It is derived, not run: if answers are picked at random from two strategies, quality and calls lie on the line
    between them.
    """
    known = [row for curve in curves for row in curve.rows if row.quality is not None and panel.cost(row) is not None]
    draft = next((row for row in known if row.strategy == DRAFT), None)
    exact = cheapest_lossless(known)
    if draft is not None and exact is not None:
        ends = [draft, exact]
        axes.plot(
            [panel.cost(row) or 0.0 for row in ends],
            [row.quality or 0.0 for row in ends],
            ":",
            color="grey",
            label=RANDOM,
        )


def _close_up(axes: Axes, curves: Sequence[Curve], panel: Panel) -> None:
    """If the two models alone are far from all else, zoom in on all else, and note at the edge where they are."""
    known = [
        (float(value), curve, row)
        for curve in curves
        for row in curve.rows
        if (value := panel.cost(row)) is not None and row.quality is not None
    ]
    inner = [value for value, curve, _ in known if curve.family not in ("draft", "target")]
    whole = [value for value, *_ in known]
    if len(set(inner)) < 2 or max(inner) - min(inner) >= CLOSE_UP * (max(whole) - min(whole)):
        return
    margin = 0.15 * (max(inner) - min(inner))
    low, high = min(inner) - margin, max(inner) + margin
    axes.set_xlim(low, high)
    notes = [(value, f"{curve.label} {row.quality:.2f} at {value:.3g}") for value, curve, row in known]
    left = [f"\N{LEFTWARDS ARROW} {text}" for value, text in notes if value < low]
    right = [f"{text} \N{RIGHTWARDS ARROW}" for value, text in notes if value > high]
    axes.set_title("\n".join(left), loc="left", fontsize=TEXT - 3)
    axes.set_title("\n".join(right), loc="right", fontsize=TEXT - 3)


def _label_ends(
    figure: Figure,
    panels: Sequence[Axes],
    shown: Sequence[Panel],
    curves: Sequence[Curve],
    looks: Mapping[CurveKey, Look],
) -> None:
    """Write each curve's alpha at both its ends, where there is room."""
    figure.draw_without_rendering()
    figure.set_layout_engine("none")  # labels are placed for the panels as they are now
    for axes, panel in zip(panels, shown, strict=True):
        labels, taken = [], list[list[Point]]()
        for curve in (each for each in curves if each.temperature == panel.temperature):
            known = [
                (_pixel(axes, cost, row.quality), text)
                for row, text in zip(curve.rows, curve.places, strict=True)
                if row.quality is not None and (cost := panel.cost(row)) is not None
            ]
            taken.append([point for point, _ in known])
            apart = looks[curve.key].line == APART
            ends = known[:: 1 if apart else max(1, len(known) - 1)] if _ends(curve, looks) else []
            labels += [Label(text, point, _dark(looks[curve.key].color)) for point, text in ends if text]
        place_labels(axes, labels, taken, size=TEXT - 3)


def _ends(curve: Curve, looks: Mapping[CurveKey, Look]) -> bool:
    """Whether the values at its ends are written there; for a single point, unless the legend has its value."""
    return len(curve.rows) > 1 or looks[curve.key].label != curve.label


def _pixel(axes: Axes, x: float, y: float) -> Point:
    """Where a point of the plot is in the figure, in pixels."""
    at = axes.transData.transform((x, y))
    return float(at[0]), float(at[1])


def _dark(color: str) -> tuple[float, float, float]:
    """The colour, darkened for text on white."""
    from matplotlib.colors import to_rgb

    red, green, blue = to_rgb(color)
    return 0.6 * red, 0.6 * green, 0.6 * blue
