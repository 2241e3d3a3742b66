"""A sweep's figure: which points it connects, and in which colours."""

from __future__ import annotations

import re
import warnings
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from cascli.render import sweep_plot
from cascli.render.plots import printable
from cascli.render.sweep_curves import BASELINES, curves, looks_of
from cascli.render.sweep_plot import plot_sweep
from cascli.sweeps.plan import Cell
from cascli.sweeps.records import Record
from cascli.sweeps.table import SweepRow, rows

SPECS = [
    "target",
    "draft",
    "speculative:k=4",
    *(f"speculative-cascade:rule=min-p,alpha={alpha},k=4" for alpha in (0.1, 0.5)),
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
            token_ids=[1] * (10 + number),
            seconds=1 + number / 10,
            target_calls=3 + (7 * number) % 6,
            rounds=3,
            looped=0,
            **drafts,
        )
        for i in range(8)
    ]
    return rows(records)[0].model_copy(update={"speed_vs_target": 1 + number / 10})


ROWS = [row(spec, temperature, i) for temperature in (0.0, 1.0) for i, spec in enumerate(SPECS)]


LENGTHS = [("chow", 16), ("chow", 4), ("opt", 8), ("opt", 16), ("token-v3", 8), ("mixture", 4), ("opt", 1), ("opt", 2)]
FAMILY = r"[\w-]+( opt| token-v3| chow| min-p)?"


@pytest.fixture(params=[(0.0, 1.0), (1.0,)], ids=["a panel a temperature", "a panel a cost"])
def figure(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The figure that was saved."""
    plt = sweep_plot.pyplot()
    kept = []
    monkeypatch.setattr(plt, "close", kept.append)
    plot_sweep([row for row in ROWS if row.temperature in request.param], "quality", tmp_path / "plot.png")
    assert (tmp_path / "plot.png").stat().st_size > 10_000
    yield kept[0]
    monkeypatch.undo()
    plt.close("all")


def rows_of(figure: Any) -> dict[Any, list[SweepRow]]:
    """The rows shown by each panel over target calls per answer."""
    found = {axes: axes.get_xlabel() for axes in figure.axes}
    if len(figure.axes) == 2:
        names = ["target calls per answer, temperature 0 (greedy)", "target calls per answer, temperature 1"]
        assert list(found.values()) == names
        return {axes: [each for each in ROWS if each.temperature == i] for i, axes in enumerate(figure.axes)}
    assert [name.partition(":")[0] for name in found.values()] == [
        "target calls per answer", "rejection rate", "speed over target alone",
    ]  # fmt: skip
    return {figure.axes[0]: [each for each in ROWS if each.temperature == 1.0]}


def drawn(axes: Any) -> dict[str, Any]:
    """The line of every labelled curve of a panel."""
    bars = {bar.get_label(): bar.lines[0] for bar in axes.containers}
    return {label: line for label, line in bars.items() if not label.startswith("_")}


def test_a_family_has_one_colour_in_every_panel(figure: Any) -> None:
    """It has the same colour even if another panel lacks it: token-cascade has no rejections."""
    panels = [drawn(axes) for axes in figure.axes]
    assert any("token-cascade" in label for label in panels[0])
    assert any("token-cascade" in label for label in panels[1]) == (len(panels) == 2)
    colours: dict[str, set[str]] = {}
    for panel in panels:
        for label, line in panel.items():
            colours.setdefault(re.match(FAMILY, label)[0], set()).add(line.get_color())
    assert all(len(found) == 1 for found in colours.values()), colours
    ours = [next(iter(found)) for name, found in colours.items() if name not in BASELINES]
    assert len(set(ours)) == len(ours) == 5


def test_families_can_be_distinguished_in_greyscale(figure: Any) -> None:
    """Each family has its own mark, the same in every panel."""
    marks: dict[str, set[str]] = {}
    for axes in figure.axes:
        for label, line in drawn(axes).items():
            marks.setdefault(re.match(FAMILY, label)[0], set()).add(line.get_marker())
    assert all(len(found) == 1 for found in marks.values()), marks
    assert len({next(iter(found)) for found in marks.values()}) == len(marks) == 8


def test_the_legend_identifies_every_curve(figure: Any) -> None:
    """It shows each curve's colour, mark, size and line style next to its name."""
    [legend] = figure.legends
    entries = {text.get_text(): line for line, text in zip(legend.legend_handles, legend.get_texts(), strict=True)}
    assert {"Pareto front", "random deferral"} <= entries.keys()
    for axes in figure.axes:
        for label, line in drawn(axes).items():
            entry = entries[label]
            assert entry.get_color() == line.get_color() and entry.get_marker() == line.get_marker(), label
            assert entry.get_markersize() == line.get_markersize(), label
            assert entry.get_fillstyle() == line.get_fillstyle(), label
            if len(line.get_xdata()) > 1:
                assert entry.get_linestyle() == line.get_linestyle(), label


def test_controls_alone_are_dashed(figure: Any) -> None:
    for axes in figure.axes:
        dashed = {label for label, line in drawn(axes).items() if line.get_linestyle() == "--"}
        assert dashed == {label for label in drawn(axes) if "min-p" in label} != set()


def test_the_calls_panel_shows_calls_per_answer(figure: Any) -> None:
    """Calls are per answer, not per token: a rule that writes more has the larger number."""
    for axes, table in rows_of(figure).items():
        points = {(x, y) for line in drawn(axes).values() for x, y in line.get_xydata()}
        assert points == {(each.costs.target_calls_per_answer, each.quality) for each in table}
        assert points != {(each.target_calls_per_token, each.quality) for each in table}


def test_a_curve_varies_only_one_parameter() -> None:
    found = curves(ROWS)
    assert sum(len(curve.rows) for curve in found) == len(ROWS)
    for curve in found:
        assert {each.temperature for each in curve.rows} == {curve.temperature}
        rest = {re.sub(r",?(alpha|threshold)=[^,]+", "", each.strategy) for each in curve.rows}
        assert len(rest) == 1, rest
        alphas = [float(m[1]) for each in curve.rows if (m := re.search(r"alpha=([\d.]+)", each.strategy))]
        assert alphas == sorted(alphas)
    assert len({(curve.family, curve.others) for curve in found if "cascade" in curve.family}) == 7


def test_block_lengths_are_separate_points(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are not connected, and each is labelled with its k."""
    plt = sweep_plot.pyplot()
    kept: list[Any] = []
    monkeypatch.setattr(plt, "close", kept.append)
    table = [row(spec, 0.0, i) for i, spec in enumerate(["target", *(f"speculative:k={k}" for k in (1, 2, 4))])]
    plot_sweep(table, "quality", tmp_path / "plot.svg")
    [axes, *_] = kept[0].axes
    assert drawn(axes)["speculative"].get_linestyle() == "None"
    assert {text.get_text() for text in labels(axes)} == {"k=1", "k=2", "k=4"}
    monkeypatch.undo()
    plt.close("all")


def test_a_longer_block_is_a_larger_mark_in_every_family() -> None:
    specs = [f"speculative-cascade:rule={rule},k={k}" for rule, k in LENGTHS]
    found = curves([row(spec, 0.0, i) for i, spec in enumerate(["target", "cascade", *specs])])
    looks = looks_of(found)
    sizes: dict[int, set[float]] = {}
    for curve in found:
        if "rule" in dict(curve.others):
            sizes.setdefault(dict(curve.others)["k"], set()).add(looks[curve.key].size)
    assert all(len(each) == 1 for each in sizes.values()), sizes  # whatever else its family contains
    ordered = [min(sizes[k]) for k in (1, 2, 4, 8, 16)]
    assert ordered == sorted(set(ordered))


def test_variants_of_a_block_length_look_different_from_other_lengths() -> None:
    rule = "speculative-cascade:rule=opt,alpha=0.3"
    found = curves(
        [row(spec, 0.0, i) for i, spec in enumerate([f"{rule},k=4", f"{rule},k=4,verify=block", f"{rule},k=8"])]
    )
    looks = looks_of(found)
    assert len({(look.size, look.fill) for look in looks.values()}) == 3


def test_speculation_is_one_curve_whatever_its_block_length() -> None:
    specs = ["target", "speculative:k=4", "speculative:k=1", "speculative:k=2", "speculative:draft=prompt-lookup,k=2"]
    found = [curve for curve in curves([row(spec, 0.0, i) for i, spec in enumerate(specs)]) if curve.family != "target"]
    assert [curve.places for curve in found] == [["k=1", "k=2", "k=4"], ["k=2"]]


def test_no_two_curves_look_the_same(figure: Any) -> None:
    panel = drawn(figure.axes[0])
    looks = [
        (line.get_color(), line.get_marker(), line.get_markersize(), line.get_linestyle(), line.get_fillstyle())
        for line in panel.values()
    ]
    assert len(set(looks)) == len(looks)


def labels(axes: Any) -> list[Any]:
    """The labels at the ends of curves."""
    return [text for text in axes.texts if re.fullmatch(r"(k=|threshold=)?-?[\d.]+", text.get_text())]


def test_both_ends_of_a_curve_are_labelled_with_alpha(figure: Any) -> None:
    from matplotlib.colors import to_rgb

    for axes, table in rows_of(figure).items():
        found = [(text.get_text(), to_rgb(text.get_color()), tuple(text.xy)) for text in labels(axes)]
        for curve, line in zip(curves(table), drawn(axes).values(), strict=True):
            if len(curve.rows) < 2:
                continue
            for place in (0, -1):
                at = (line.get_xdata()[place], line.get_ydata()[place])
                written = [text for text, _, xy in found if xy == pytest.approx(at)]
                assert curve.places[place] in written, (curve.label, place)


def test_labels_rarely_overlap_each_other_or_a_mark(figure: Any) -> None:
    """They do not overlap where there is room: here, up to one in ten finds none."""
    figure.canvas.draw()
    for axes in figure.axes:
        boxes = [text.get_window_extent() for text in labels(axes)]
        marks = [axes.transData.transform(point) for line in drawn(axes).values() for point in line.get_xydata()]
        assert len(boxes) >= 6
        crossed = sum(one.overlaps(other) for i, one in enumerate(boxes) for other in boxes[:i])
        hidden = sum(box.contains(*mark) for box in boxes for mark in marks)
        assert crossed + hidden <= len(boxes) // 10


def test_text_is_legible_from_the_last_row(figure: Any) -> None:
    """Text has at least 9 points on a slide of 13.3 inches, whatever the width of the figure."""
    shrunk = 13.3 / max(figure.get_figwidth(), 13.3)
    texts = [text for axes in figure.axes for text in (*labels(axes), axes.xaxis.label, *axes.get_xticklabels())]
    assert min(text.get_fontsize() for text in (*texts, *figure.legends[0].get_texts())) * shrunk >= 9


def test_outliers_do_not_compress_the_curves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With rules between 33 and 35 calls and the two models at 0 and 100, the axis covers only the rules."""
    specs = ["target", "draft", *(f"speculative-cascade:rule=opt,alpha={alpha},k=2" for alpha in (0.0, 0.1, 0.3))]
    calls = [100.0, 0.0, 35.0, 34.0, 33.0]
    table = [
        each.model_copy(
            update={
                "costs": each.costs.model_copy(update={"target_calls_per_answer": calls[i]}),
                "quality": 0.5 + 0.01 * i,
            }
        )
        for i, each in enumerate(row(spec, 0.0, i) for i, spec in enumerate(specs))
    ]
    plt = sweep_plot.pyplot()
    kept: list[Any] = []
    monkeypatch.setattr(plt, "close", kept.append)
    plot_sweep(table, "quality", tmp_path / "plot.svg")
    low, high = kept[0].axes[0].get_xlim()
    assert 30 < low < 33 and 35 < high < 40
    assert kept[0].axes[0].get_title("left") == "← draft 0.51 at 0"
    assert kept[0].axes[0].get_title("right") == "target 0.50 at 100 →"
    monkeypatch.undo()
    plt.close("all")


@pytest.mark.parametrize(("suffix", "begins"), [("png", b"\x89PNG"), ("pdf", b"%PDF"), ("svg", b"<?xml")])
def test_the_same_table_is_the_same_file(tmp_path: Path, suffix: str, begins: bytes) -> None:
    """Files are identical byte by byte, even with a title that looks like mathematics or markup."""
    for name in ("one", "other"):
        plot_sweep(ROWS[:12], "quality", tmp_path / f"{name}.{suffix}", title="Half $\\frac$ <b>&\x00 price: 5$")
    one, other = ((tmp_path / f"{name}.{suffix}").read_bytes() for name in ("one", "other"))
    assert one.startswith(begins) and one == other
    if suffix == "svg":
        ElementTree.fromstring(one)
        assert not re.search(rb"@font-face|@import|url\((?!#)|<image", one)


def test_a_title_of_any_characters_raises_no_warning(tmp_path: Path) -> None:
    """Matplotlib's warnings of characters that its font lacks are for programmers; control characters are left out."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        plot_sweep(ROWS[:12], "quality", tmp_path / "plot.svg", title="\u4e2d\u6587\n\x00\x1b[31m \u05d0 \u202e\ud800")
        ElementTree.parse(tmp_path / "plot.svg")
    assert printable("a\x00b\n c\u202e") == "ab c"


def test_front_and_random_deferral_use_a_single_temperature(figure: Any) -> None:
    for axes, table in rows_of(figure).items():
        lines = {
            line.get_label(): line for line in axes.lines if line.get_label() in ("Pareto front", "random deferral")
        }
        assert len(lines) == 2
        points = {(each.costs.target_calls_per_answer, each.quality) for each in table}
        for label, line in lines.items():
            assert {(x, y) for x, y in line.get_xydata()} <= points, label


def test_random_deferral_joins_the_draft_and_the_cheapest_lossless_strategy(figure: Any) -> None:
    """It ends at the cheapest lossless strategy, as speculation writes the target's answers for fewer calls."""
    for axes, table in rows_of(figure).items():
        [line] = [line for line in axes.lines if line.get_label() == "random deferral"]
        [draft] = [each for each in table if each.strategy == "draft"]
        exact = [each for each in table if each.family in ("target", "speculative")]
        cheapest = min(exact, key=lambda each: each.costs.target_calls_per_answer)
        ends = [(each.costs.target_calls_per_answer, each.quality) for each in (draft, cheapest)]
        assert [(x, y) for x, y in line.get_xydata()] == ends


def test_tables_without_costs_show_the_same_calls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tables from before answers were counted, and those of a results.csv, have no costs."""
    plt = sweep_plot.pyplot()
    kept: list[Any] = []
    monkeypatch.setattr(plt, "close", kept.append)
    plot_sweep(ROWS, "quality", tmp_path / "new.svg")
    plot_sweep([each.model_copy(update={"costs": None}) for each in ROWS], "quality", tmp_path / "old.svg")
    shown = [[line.get_xydata() for axes in figure.axes for line in drawn(axes).values()] for figure in kept]
    assert len(shown[0]) > 10
    for new, old in zip(*shown, strict=True):
        assert old == pytest.approx(new)
    monkeypatch.undo()
    plt.close("all")


def test_settings_that_differ_between_temperatures_are_labelled_at_the_points(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Settings found for budgets are labelled there: their one entry in the legend can show only one value."""
    specs = {0.0: "speculative-cascade:rule=opt,alpha=0.12,k=4", 1.0: "speculative-cascade:rule=opt,alpha=0.31,k=4"}
    same = "speculative-cascade:rule=chow,alpha=0.2,k=4"
    table = [row(spec, at, i) for at, one in specs.items() for i, spec in enumerate(["target", "draft", one, same])]
    plt = sweep_plot.pyplot()
    kept: list[Any] = []
    monkeypatch.setattr(plt, "close", kept.append)
    plot_sweep(table, "quality", tmp_path / "plot.svg")
    names = [text.get_text() for text in kept[0].legends[0].get_texts()]
    assert "speculative-cascade opt k=4" in " ".join(names) or "spec-cascade opt k=4" in names
    assert not any("0.12" in name or "0.31" in name for name in names) and any("alpha=0.2" in name for name in names)
    assert [text.get_text() for axes in kept[0].axes for text in labels(axes)] == ["0.12", "0.31"]
    monkeypatch.undo()
    plt.close("all")


def test_one_long_name_does_not_cost_the_legend_a_column(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It wraps to two lines and stays complete; the legend stays inside the figure and below the panels."""
    rules = ["chow", "diff", "head", "mentored", "min-p", "opt", "opt-log", "token-v1", "token-v2", "token-v3", "bild"]
    specs = ["target", "draft", "speculative:k=4", *(f"speculative-cascade:rule={rule},k=4" for rule in rules)]
    long = [f"speculative-cascade:rule=typical,epsilon=0.09{i},delta=0.312{i},k=4" for i in range(1, 7)]
    plt = sweep_plot.pyplot()
    kept: list[Any] = []
    monkeypatch.setattr(plt, "close", kept.append)
    for more in ([], long):
        table = [row(spec, at, i) for at in (0.0, 1.0) for i, spec in enumerate([*specs, *more])]
        plot_sweep(table, "quality", tmp_path / f"plot{len(more)}.svg")
    legends = [each.legends[0] for each in kept]
    assert [legend._ncols for legend in legends] == [2, 2]
    texts = [text.get_text() for text in legends[1].get_texts()]
    names = [text for text in texts if "typical" in text]
    assert names and all("\n" in name and "delta=0.312" in name and "k=4" in name for name in names)
    around = legends[1].get_window_extent()
    assert around.x0 >= 0 and around.x1 <= kept[1].bbox.x1 and around.y0 >= 0
    assert all(around.y1 <= axes.get_window_extent().y0 for axes in kept[1].axes)
    before, after = (each.axes[0].get_window_extent().height for each in kept)
    assert (
        before <= after < 1.1 * before
    )  # the figure grew by the height of the legend; a second line takes less than another name
