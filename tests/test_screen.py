"""Terminal output: numbers are not cut, tokens are not dimmed, and no foreign control sequence gets through."""

from __future__ import annotations

import io
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

from cascli import Pair, Run, files, generate
from cascli.analysis.comparison import Comparison, Row, repeats_of, summarise
from cascli.cli.errors import reported
from cascli.errors import UsageError, plain
from cascli.render.comparison import print_comparison
from cascli.render.console import SafeConsole, Screen
from cascli.render.marks import is_deferred
from cascli.render.run import print_run
from cascli.render.stream import AnswerStream
from cascli.render.sweep import sweep_tables
from cascli.render.table import tables
from cascli.render.tabular import for_spreadsheets
from cascli.render.trace import side_by_side
from cascli.sweeps.table import SweepRow
from cascli.trace import Drafted, Emitted, Round

HOSTILE = ["\x1b]0;title\x07", "\x1b[2J", "\x9b2J", "\x7f", "\x08", "\u202e", "\u2066", "\x00", "[/nope]", "[bold]x"]


def console(width: int = 100, *, terminal: bool = True, color: bool = True) -> Console:
    class Tty(io.StringIO):
        encoding = "utf-8"

        def isatty(self) -> bool:
            return terminal

    system = "truecolor" if color and terminal else None
    return SafeConsole(
        file=Tty(), width=width, force_terminal=terminal, color_system=system, highlight=False, legacy_windows=False
    )


def screen(width: int = 100, *, terminal: bool = True, color: bool = True, verbose: bool = True) -> Screen:
    return Screen(
        console(width, terminal=terminal, color=color), console(width, terminal=terminal, color=color), False, verbose
    )


def printed(view: Screen) -> str:
    return view.out.file.getvalue() + view.err.file.getvalue()


@pytest.fixture(scope="module")
def found(text_pair: Pair) -> Comparison:
    ask = {"max_new_tokens": 8, "temperature": 1.0}
    specs = [
        "target",
        "cascade:threshold=-99",
        "token-cascade:rule=token-v3",
        "speculative:k=4",
        "speculative-cascade:rule=opt,k=4",
    ]
    repeats = [[[generate(text_pair, "hello", strategy=spec, seed=seed, **ask)] for spec in specs] for seed in range(2)]
    return Comparison(runs=[runs[0] for runs in repeats[0]], summary=summarise(repeats), repeats=repeats_of(repeats))


def wide(row: Row) -> Row:
    """The row with the longest numbers possible."""
    return row.model_copy(
        update={"speed_vs_target": 12.34, "speed_interval": (10.01, 13.57), "speed_interval_kind": "95%"}
    )


@pytest.mark.parametrize("terminal", [True, False])
@pytest.mark.parametrize("width", [60, 72, 80, 100, 119, 120, 121, 124, 129, 140, 160, 200])
def test_no_number_is_cut(found: Comparison, width: int, terminal: bool) -> None:
    view = console(width, terminal=terminal)
    for table in tables([wide(row) for row in found.summary], view):
        view.print(table)
    text = view.file.getvalue()
    assert "\u2026" not in text
    assert text.count("12.34x (10.01-13.57)") == len(found.summary)
    for row in found.summary:
        assert f"{row.ttft.p50 * 1000:.0f} ms" in text or f"{row.ttft.p50 * 1000:.1f} ms" in text


def test_the_tables_of_every_figure_have_what_narrow_pages_drop(found: Comparison) -> None:
    view = console(80)
    shown = {str(column.header) for table in tables(found.summary, view) for column in table.columns}
    assert {"tokens", "mean\nTV"} <= shown


@pytest.mark.parametrize("width", [60, 80, 100, 120, 139, 140, 200])
def test_no_number_of_a_sweep_is_cut(width: int) -> None:
    values = dict.fromkeys(SweepRow.model_fields) | {
        "strategy": "speculative-cascade:rule=token-v3,alpha=0.3,k=4", "temperature": 0.0, "family": "x", "answers": 20,
        "errors": 0, "tokens": 9, "quality": 0.555, "quality_interval": (0.44, 0.66), "quality_interval_kind": "95%",
        "quality_vs_target": -0.111, "quality_vs_target_interval": (-0.22, 0.11), "tokens_per_second": 123.45,
        "quality_vs_target_interval_kind": "95%", "rejection_rate": 0.789, "log_likelihood": -1.234,
    }  # fmt: skip
    view = console(width)
    for table in sweep_tables([SweepRow.model_validate(values)], "agreement", view):
        view.print(table)
    text = re.sub(r"\x1b\[[\d;]*m", "", view.file.getvalue())
    assert "\u2026" not in text
    for number in ("0.555 (0.44-0.66)", "-0.111 (-0.22 to +0.11)", "0.21", "-1.234"):
        assert number in text
    assert ("123.5" in text) != ("results.csv has more columns" in text)


def hostile(run: Run, text: str) -> Run:
    """A saved run with `text` in every field that somebody else could have written."""
    data = run.model_dump(by_alias=True)
    for step in data["rounds"]:
        for token in (*step["drafted"], *step["emitted"]):
            token["text"] = text
    data |= {"text": text, "prompt": text, "strategy": f"target{text}", "prompt_id": text}
    data["pair"] |= {"name": text}
    data["pair"]["draft"] |= {"dtype": text, "source": text}
    data["environment"] = dict.fromkeys(data["environment"], text)
    if data["handover"]:
        data["handover"] |= {"draft_text": text, "score": text}
    return Run.model_validate(data)


def harmless(text: str) -> bool:
    """Whether a text has only cascli's own colours, and no other control characters."""
    return plain(re.sub(r"\x1b\[[\d;]*m", "", text)) == re.sub(r"\x1b\[[\d;]*m", "", text)


@pytest.mark.parametrize("color", [True, False])
@pytest.mark.parametrize("text", HOSTILE, ids=repr)
def test_foreign_control_sequences_are_not_printed(found: Comparison, text: str, color: bool) -> None:
    runs = [hostile(run, f"a{text}b") for run in found.runs]
    rows = [row.model_copy(update={"strategy": f"target{text}"}) for row in found.summary]
    views = [screen(color=color) for _ in range(3)]
    print_comparison(found.model_copy(update={"runs": runs, "summary": rows}), views[0])
    for run in runs:
        print_run(run, views[1])
        stream = AnswerStream(views[2], tentative=False, mixed=True)
        for step in run.rounds:
            stream.round(step, [f"a{text}b"] * len(step.emitted))
        stream.end()
        views[2].note(text)
    for view in views:
        assert harmless(printed(view)), printed(view)
    if text.startswith("["):
        assert text in printed(views[0]), "markup is text"


@pytest.mark.parametrize("text", HOSTILE, ids=repr)
def test_control_sequences_in_errors_are_not_printed(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    import typer

    def fails() -> None:
        raise UsageError(f"x.yaml: {text}: unknown")

    with pytest.raises(typer.Exit):
        reported(fails)()
    assert harmless(capsys.readouterr().err)


def test_a_pipe_gets_the_answer_byte_for_byte() -> None:
    view = screen(terminal=False)
    view.write("a\x1b[2J\u202eb")
    assert view.out.file.getvalue() == "a\x1b[2J\u202eb"


def test_tokens_of_a_trace_are_not_dim(found: Comparison) -> None:
    view = console(160)
    view.print(side_by_side(found.runs, view))
    text = view.file.getvalue()
    styles = {style for style, token in re.findall(r"\x1b\[([\d;]+)m([^\x1b]+)\x1b", text) if re.search(r"\w", token)}
    assert any("38;2;" in style for style in styles), styles
    assert not {style for style in styles if style.startswith("2;")}, "dim is for the gutter and the notes"


def test_a_token_is_marked_by_the_decision_of_the_rule() -> None:
    """A token is marked by the rule's decision about it, not by the share of the position's mass that was deferred."""

    def drafted(deferred: bool) -> Drafted:
        return Drafted(id=1, text="a", q=0.5, p=0.5, pi=0.5, accept_prob=1.0, accepted=True, deferred=deferred)

    emitted = [Emitted(id=1, text="a", event=event, deferral=mass) for event, mass in
               (("accepted", 0.1), ("accepted", 0.9), ("bonus", 0.9))]  # fmt: skip
    step = Round(drafted=[drafted(True), drafted(False)], emitted=emitted)
    assert [is_deferred(step, place) for place in range(3)] == [True, False, False]


def test_spreadsheets_do_not_interpret_text_as_a_formula() -> None:
    record = for_spreadsheets({"a": "=1+1", "b": "@x", "c": -1.5, "d": "target", "e": "+x", "f": None})
    assert record == {"a": "'=1+1", "b": "'@x", "c": -1.5, "d": "target", "e": "'+x", "f": None}


def test_a_result_file_is_whole_or_the_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    outside, place = tmp_path / "outside", tmp_path / "out" / "a.csv"
    place.parent.mkdir()
    outside.write_text("keep")
    (place.parent / "a.csv.part").symlink_to(outside)
    files.write(place, "new")
    assert (place.read_text(), outside.read_text()) == ("new", "keep")
    assert place.stat().st_mode & 0o777 == (place.parent / "a.csv.part").parent.stat().st_mode & 0o666
    monkeypatch.setattr(Path, "replace", lambda *_: (_ for _ in ()).throw(OSError("no")))
    with pytest.raises(OSError, match="no"):
        files.write(place, "newer")
    assert sorted(each.name for each in place.parent.iterdir()) == ["a.csv", "a.csv.part"]


@pytest.mark.skipif(os.name == "nt", reason="links are for administrators")
def test_a_link_stays_a_link_and_a_private_file_stays_private(tmp_path: Path) -> None:
    place, link, later = tmp_path / "a.csv", tmp_path / "link.csv", tmp_path / "later.csv"
    place.write_text("old")
    place.chmod(0o600)
    link.symlink_to(place.name)
    files.write(link, "new")
    assert link.is_symlink() and place.read_text() == "new" and place.stat().st_mode & 0o777 == 0o600
    link.unlink()
    link.symlink_to(later.name)
    files.write(link, "where it points to")
    assert link.is_symlink() and later.read_text() == "where it points to"


@pytest.mark.skipif(os.name == "nt", reason="has no such rights")
def test_a_private_file_stays_private_while_it_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place, modes, opened = tmp_path / "a.csv", [], os.fdopen
    place.write_text("old")
    place.chmod(0o600)

    def looked_at(handle: int, how: str) -> object:
        modes.append(os.fstat(handle).st_mode & 0o777)
        return opened(handle, how)

    monkeypatch.setattr(files.os, "fdopen", looked_at)
    files.write(place, "new")
    assert modes == [0o600] and place.read_text() == "new"


@pytest.mark.skipif(not Path("/dev/stdout").exists(), reason="no such device")
def test_standard_output_redirected_to_a_file_is_not_replaced(tmp_path: Path) -> None:
    """Even if standard output is a file, it is not replaced: that would lose what is written to it before and after."""
    code = "from cascli import files; from pathlib import Path;"
    code += "print('before'); files.write(Path('/dev/stdout'), 'result;'); print('after')"
    for mode, wanted in (("w", ""), ("a", "earlier\n")):
        (tmp_path / "out").write_text("earlier\n")
        with (tmp_path / "out").open(mode) as out:
            subprocess.run([sys.executable, "-c", code], stdout=out, check=True)
            assert os.fstat(out.fileno()).st_ino == (tmp_path / "out").stat().st_ino
        assert (tmp_path / "out").read_text() == f"{wanted}before\nresult;after\n" and Path("/dev/stdout").is_symlink()


@pytest.mark.skipif(os.name == "nt", reason="has no such masks")
def test_new_files_follow_the_current_umask(tmp_path: Path) -> None:
    before = os.umask(0o077)
    try:
        files.write(tmp_path / "private.json", "x")
    finally:
        os.umask(before)
    assert (tmp_path / "private.json").stat().st_mode & 0o777 == 0o600
    (tmp_path / "round.json").symlink_to("round.json")
    with pytest.raises((UsageError, OSError)):
        files.write(tmp_path / "round.json", "x")


def test_numbers_have_units_and_the_right_column_heading(text_pair: Pair) -> None:
    from cascli.analysis.comparison import Row
    from cascli.analysis.percentiles import Percentiles
    from cascli.render.numbers import duration, seconds, size
    from cascli.render.summary import lines
    from cascli.render.table import COST, LAW, TIMES

    assert (duration(7200), size(5e8), size(2e9), seconds(0.5)) == ("2.0 h", "500 MB", "2.0 GB", "500 ms")
    run = generate(text_pair, "hello", strategy="speculative:k=3", max_new_tokens=12, temperature=1.0)
    parts = run.metrics.seconds.model_copy(update={"draft": 2.0, "verify": 3.0})
    told = {
        "seconds": parts,
        "mean_tv_to_target": 0.25,
        "max_tv_to_target": 0.75,
        "target_calls_per_token": 0.4,
        "draft_calls_per_token": 0.8,
        "num_draft_tokens": 9,
        "num_tested_draft_tokens": 8,
        "num_accepted_draft_tokens": 5,
    }
    text = "\n".join(lines(run.model_copy(update={"metrics": run.metrics.model_copy(update=told)})))
    for words in ("draft 2.0 s, verify 3.0 s", "mean 0.250, max 0.750", "target 0.40, draft 0.80", "5 of 9 drafted"):
        assert words in text, words
    values = dict.fromkeys(Row.model_fields) | {
        "strategy": "draft",
        "oracle": False,
        "depends_on_rounds": False,
        "tokens": 1,
        "seconds": 1.0,
        "same_as_target": False,
        "first_divergence": 4,
        "target_calls_per_token": 0.4,
        "draft_calls_per_token": 0.8,
        "mean_acceptance_length": 2.5,
        "draft_acceptance_rate": 0.6,
        "flops_per_token": 3e9,
        "ttft": Percentiles(p50=1.0, p90=2.0, p99=3.0),
    }
    row = Row.model_validate(values)
    cells = {column.heading.replace("\n", " "): column.cell(row) for column in (*COST, *LAW, *TIMES)}
    assert cells["draft calls per token"] == "0.80" and cells["accept length"] == "2.50" and cells["first diff"] == "#5"
    assert cells["GFLOP per token"] == "3.00" and cells["first token p50 / p90 / p99"] == "1.0 s / 2.0 s / 3.0 s"
