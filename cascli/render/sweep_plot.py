"""Quality against cost: a curve for each rule, baselines as marks, the Pareto front."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from math import ceil
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from cascli.errors import plain
from cascli.render.plot_labels import Label, Point, place_labels
from cascli.render.plots import pyplot
from cascli.render.sweep_curves import SIZES, Curve, Look, curves, drawn_as, looks_of
from cascli.render.sweep_words import bars_of, temperature_of
from cascli.sweeps.table import SweepRow, front

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SUFFIXES = (".svg", ".png", ".pdf")
PANELS = (
    ("target_calls_per_token", "target calls per token"),
    ("rejection_rate", "rejection rate: rejected / tested drafts"),
    ("speed_vs_target", "speed over target alone"),
)
TEXT = 14
"""Points of the text in a figure of 16 inches: readable where it fills a slide."""
PANEL_WIDTH, PANEL_HEIGHT = 5.4, 4.3
LINE_HEIGHT = 1.45 * TEXT / 72
"""Of the legend, in inches."""
CLOSE_UP = 0.3
"""A panel shows the curves alone where they take up less of it than this."""


def plot_sweep(
    rows: Sequence[SweepRow], metric: str, target: Path | IO[Any], *, title: str = "", kind: str | None = None
) -> None:
    """Draw a figure with one panel a cost; what no record knows has no panel.

    Args:
        rows: the sweep's table.
        metric: what the quality is.
        target: a file, whose suffix says how, or a stream.
        title: above the panels.
        kind: svg, png or pdf, for a stream; svg by default.
    """
    plt = pyplot()
    with plt.rc_context({"font.size": TEXT, "axes.titlesize": TEXT, "legend.fontsize": TEXT - 1}):
        figure = _figure(plt, rows, metric, title)
        kind = kind or (target.suffix[1:] if isinstance(target, Path) else "svg")
        dates = {"svg": {"Date": None}, "pdf": {"CreationDate": None}}  # so that the same table is the same file
        figure.savefig(target, dpi=150, format=kind, metadata=dates.get(kind))
    plt.close(figure)


def _figure(plt: Any, rows: Sequence[SweepRow], metric: str, title: str) -> Figure:
    shown = [panel for panel in PANELS if any(getattr(row, panel[0]) is not None for row in rows)] or PANELS[:1]
    drawn = curves(rows)
    looks = looks_of(drawn)
    figure, grid = plt.subplots(
        1, len(shown), figsize=(PANEL_WIDTH * len(shown), PANEL_HEIGHT), layout="constrained", sharey=True,
        squeeze=False,
    )  # fmt: skip
    panels = grid[0]
    for axes, (field, label) in zip(panels, shown, strict=True):
        _panel(axes, drawn, field, looks)
        axes.set_xlabel(label)
        axes.locator_params(axis="x", nbins=6)
    panels[0].set_ylabel(f"{metric}\n(bars: {bars_of(rows)})")
    if title:
        lines = textwrap.fill(plain(title), 34 * len(shown))
        figure.suptitle(lines, fontsize=TEXT + 2, parse_math=False)
    handles, names = _legend(panels, drawn, looks)
    widest = max(len(name) for name in names) * 0.6 * (TEXT - 1) / 72 + 0.75  # inches, with the handle
    columns = max(1, int(figure.get_figwidth() / widest))
    figure.set_figheight(PANEL_HEIGHT + LINE_HEIGHT * ceil(len(names) / columns))
    figure.legend(handles, names, loc="outside lower center", ncols=columns, frameon=False)
    _label_ends(figure, panels, [field for field, _ in shown], drawn, looks)
    return figure


def _legend(panels: Sequence[Axes], curves: Sequence[Curve], looks: Mapping[int, Look]) -> tuple[list[Any], list[str]]:
    """What each colour, mark and line means: curves once, temperatures beside them."""
    from matplotlib.lines import Line2D

    entries: dict[str, Any] = {}
    for place, curve in enumerate(curves):
        look = looks[place]
        one = drawn_as(look) | {"fillstyle": "full", "linestyle": "-" if len(curve.rows) > 1 else ""}
        entries.setdefault(curve.label, Line2D([], [], **one))
    temperatures = {curve.temperature: looks[place] for place, curve in enumerate(curves)}
    if len(temperatures) > 1:
        for temperature in sorted(temperatures):
            grey = drawn_as(temperatures[temperature]) | {"color": "grey", "marker": "o", "markersize": SIZES[0]}
            entries[temperature_of(temperature)] = Line2D([], [], **grey)
    for axes in panels:
        for handle, name in zip(*axes.get_legend_handles_labels(), strict=True):
            if name in ("Pareto front", "random deferral"):
                entries.setdefault(name, handle)
    if any(len(curve.rows) > 1 and "=" not in curve.places[0] for curve in curves):
        entries["numbers at the ends: alpha"] = Line2D([], [], linestyle="")
    return list(entries.values()), list(entries)


def _panel(axes: Axes, curves: Sequence[Curve], field: str, looks: Mapping[int, Look]) -> None:
    for place, curve in enumerate(curves):
        known = [row for row in curve.rows if row.quality is not None and getattr(row, field) is not None]
        if known:
            _errors(axes, known, field, looks[place])
    if field == "target_calls_per_token":
        for temperature in sorted({curve.temperature for curve in curves}):
            _at_one_temperature(axes, [curve for curve in curves if curve.temperature == temperature], field)
    _close_up(axes, curves, field, looks)


def _at_one_temperature(axes: Axes, curves: Sequence[Curve], field: str) -> None:
    """The Pareto front, and what deferring at random would give: answers at another temperature are other answers."""
    _random_deferral(axes, curves)
    best = front([row for curve in curves for row in curve.rows])
    axes.step(
        [getattr(row, field) for row in best],
        [row.quality or 0.0 for row in best],
        where="post",
        color="grey",
        lw=5,
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
    costs = [getattr(row, field) for row in group]
    bars = axes.errorbar(costs, quality, lengths, label=look.label, elinewidth=0.8, capsize=0, **drawn_as(look))
    for bar in bars.lines[2]:
        bar.set_alpha(0.3)


def _random_deferral(axes: Axes, curves: Sequence[Curve]) -> None:
    """The line between the two models: what deferring at random would give."""
    alone = {curve.family: curve.rows[0] for curve in curves if curve.family in ("draft", "target")}
    ends = [row for row in alone.values() if row.quality is not None and row.target_calls_per_token is not None]
    if len(ends) == 2:
        xs = [row.target_calls_per_token or 0.0 for row in ends]
        axes.plot(xs, [row.quality or 0.0 for row in ends], ":", color="grey", label="random deferral")


def _close_up(axes: Axes, curves: Sequence[Curve], field: str, looks: Mapping[int, Look]) -> None:
    """Where the two models alone are far from all else, show all else, and say at the edge where they are."""
    known = [
        (float(value), curve, row, place)
        for place, curve in enumerate(curves)
        for row in curve.rows
        if (value := getattr(row, field)) is not None and row.quality is not None
    ]
    inner = [value for value, curve, *_ in known if curve.family not in ("draft", "target")]
    whole = [value for value, *_ in known]
    if len(set(inner)) < 2 or max(inner) - min(inner) >= CLOSE_UP * (max(whole) - min(whole)):
        return
    margin = 0.15 * (max(inner) - min(inner))
    low, high = min(inner) - margin, max(inner) + margin
    axes.set_xlim(low, high)
    there = [(value, f"{looks[place].label} {row.quality:.2f} at {value:.2f}") for value, _, row, place in known]
    left = [f"\N{LEFTWARDS ARROW} {text}" for value, text in there if value < low]
    right = [f"{text} \N{RIGHTWARDS ARROW}" for value, text in there if value > high]
    axes.set_title("\n".join(left), loc="left", fontsize=TEXT - 3)
    axes.set_title("\n".join(right), loc="right", fontsize=TEXT - 3)


def _label_ends(
    figure: Figure, panels: Sequence[Axes], fields: Sequence[str], curves: Sequence[Curve], looks: Mapping[int, Look]
) -> None:
    """Write at both ends of each curve the alpha that it has there, where there is room."""
    figure.draw_without_rendering()
    figure.set_layout_engine("none")  # the labels go where the panels are now
    for axes, field in zip(panels, fields, strict=True):
        labels, taken = [], list[list[Point]]()
        for place, curve in enumerate(curves):
            known = [
                (_pixel(axes, getattr(row, field), row.quality), text)
                for row, text in zip(curve.rows, curve.places, strict=True)
                if row.quality is not None and getattr(row, field) is not None
            ]
            taken.append([point for point, _ in known])
            ends = [known[0], known[-1]] if len(known) > 1 else []
            labels += [Label(text, point, _dark(looks[place].color)) for point, text in ends if text]
        place_labels(axes, labels, taken, size=TEXT - 3)


def _pixel(axes: Axes, x: float, y: float) -> Point:
    """Where a point of the plot is in the figure."""
    at = axes.transData.transform((x, y))
    return float(at[0]), float(at[1])


def _dark(color: str) -> tuple[float, float, float]:
    """The colour as a text on white needs it."""
    from matplotlib.colors import to_rgb

    red, green, blue = to_rgb(color)
    return 0.6 * red, 0.6 * green, 0.6 * blue
