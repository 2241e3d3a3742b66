"""What a sweep's picture joins, and in which colours."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from cascli.render import sweep_plot
from cascli.render.sweep_plot import curves, plot_sweep
from cascli.sweep.plan import Cell
from cascli.sweep.records import Record
from cascli.sweep.table import SweepRow, rows

SPECS = [
    "target",
    "draft",
    "speculative:k=4",
    *(f"token-cascade:rule=chow,alpha={alpha}" for alpha in (0.1, 0.5)),
    *(f"speculative-cascade:rule=opt,alpha={alpha},k={k}" for k in (2, 4) for alpha in (0.5, 0.1, 0.3)),
    *(f"speculative-cascade:rule=token-v3,alpha={alpha},k=4" for alpha in (0.1, 0.5)),
    *(f"cascade:score={score},threshold=-0.5" for score in ("mean-logprob", "min-margin")),
]


def row(spec: str, temperature: float, number: int) -> SweepRow:
    drafts = (
        {} if spec.startswith(("t", "draft", "cascade")) else {"drafted": 40, "accepted": 20, "tested": 30 + number}
    )
    records = [
        Record(
            cell=Cell(strategy=spec, temperature=temperature, seed=0),
            problem=str(i),
            quality=(0.3 + 0.02 * number + 0.05 * i + 0.1 * temperature) % 1,
            token_ids=[1] * 10,
            seconds=1 + number / 10,
            target_calls=3 + (7 * number) % 6,
            **drafts,
        )
        for i in range(8)
    ]
    return rows(records)[0].model_copy(update={"speed_vs_target": 1 + number / 10})


ROWS = [row(spec, temperature, i) for temperature in (0.0, 1.0) for i, spec in enumerate(SPECS)]


@pytest.fixture
def figure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The figure as it was saved."""
    plt = sweep_plot.pyplot()
    kept = []
    monkeypatch.setattr(plt, "close", kept.append)
    plot_sweep(ROWS, "quality", tmp_path / "plot.png")
    assert (tmp_path / "plot.png").stat().st_size > 10_000
    yield kept[0]
    monkeypatch.undo()
    plt.close("all")


def drawn(axes: Any) -> dict[str, Any]:
    """The line of every labelled curve of a panel."""
    bars = {bar.get_label(): bar.lines[0] for bar in axes.containers}
    return {label: line for label, line in bars.items() if not label.startswith("_")}


def test_a_family_has_one_colour_in_every_panel(figure: Any) -> None:
    """Also where a panel lacks one: token-cascade has no rejections."""
    panels = [drawn(axes) for axes in figure.axes]
    assert any("token-cascade" in label for label in panels[0])
    assert not any("token-cascade" in label for label in panels[1])
    colours: dict[str, set[str]] = {}
    for panel in panels:
        for label, line in panel.items():
            colours.setdefault(re.match(r"[\w-]+( opt| token-v3| chow)?", label)[0], set()).add(line.get_color())
    assert all(len(found) == 1 for found in colours.values()), colours
    ours = [next(iter(found)) for name, found in colours.items() if name not in sweep_plot.BASELINES]
    assert len(set(ours)) == len(ours) == 4


def test_the_legend_knows_every_curve(figure: Any) -> None:
    [legend] = figure.legends
    names = {text.get_text() for text in legend.get_texts()}
    assert names >= {label for axes in figure.axes for label in drawn(axes)}
    assert {"Pareto front", "random deferral"} <= names


def test_a_curve_joins_nothing_but_one_parameter() -> None:
    found = curves(ROWS)
    assert sum(len(curve.rows) for curve in found) == len(ROWS)
    for curve in found:
        assert {each.temperature for each in curve.rows} == {curve.temperature}
        rest = {re.sub(r",?(alpha|threshold)=[^,]+", "", each.strategy) for each in curve.rows}
        assert len(rest) == 1, rest
        alphas = [float(m[1]) for each in curve.rows if (m := re.search(r"alpha=([\d.]+)", each.strategy))]
        assert alphas == sorted(alphas)
    assert len({(curve.family, curve.others) for curve in found if "cascade" in curve.family}) == 6


def test_no_two_curves_look_the_same(figure: Any) -> None:
    panel = drawn(figure.axes[0])
    looks = [
        (line.get_color(), line.get_marker(), line.get_linestyle(), line.get_markerfacecolor())
        for line in panel.values()
    ]
    assert len(set(looks)) == len(looks)


def test_front_and_random_deferral_are_of_one_temperature(figure: Any) -> None:
    axes = figure.axes[0]
    lines = [line for line in axes.lines if line.get_label() in ("Pareto front", "random deferral")]
    assert len(lines) == 4
    points = {t: {(r.target_calls_per_token, r.quality) for r in ROWS if r.temperature == t} for t in (0.0, 1.0)}
    for line in lines:
        here = set(zip(line.get_xdata(), line.get_ydata(), strict=True))
        assert here <= points[0.0] or here <= points[1.0], line.get_label()
