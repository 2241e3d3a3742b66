"""What `cascli show` opens in addition to documents, and what it selects from them."""

from __future__ import annotations

import gzip
import json
import re
from contextlib import nullcontext
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from cascli import Pair, Run, compare, generate, generate_many, load_pair
from cascli.audit.report import Audit, check_of
from cascli.cli import documents
from cascli.cli.app import app
from cascli.cli.errors import Terminated
from cascli.cli.picks import strategy_filter
from cascli.errors import UsageError
from cascli.prompts import Prompt
from cascli.render.console import Screen, screen
from cascli.render.tabular import csv_of
from cascli.sweeps.table import rows, tidy_rows
from tests.sweeps import folder_of, header_of, plan_of, records_of

PLAN = plan_of()
NEWLINE = 10
"""Its id in a tokenizer of bytes."""
HUMANEVAL = Path(__file__).parent.parent / "benchmarks" / "results" / "sweep-humaneval"


def show(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["show", *arguments], env={"COLUMNS": "160"})


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return folder_of(tmp_path / "out", header_of(PLAN), records_of(PLAN))


def test_showing_a_folder_shows_its_table(folder: Path) -> None:
    shown = show(str(folder))
    assert shown.exit_code == 0, shown.output
    assert shown.stdout == show(str(folder / "sweep.json")).stdout
    assert shown.stdout.count("spec-cascade token-v3") == 12
    document = json.loads(show(str(folder), "--json").stdout)
    assert document["schema"].startswith("cascli.sweep-table/1") and len(document["rows"]) == 36


def test_a_folder_without_a_sweep_says_so(tmp_path: Path) -> None:
    for file, words in ((tmp_path, "holds no sweep"), (tmp_path / "none.csv", "no such file")):
        shown = show(str(file))
        assert shown.exit_code == 2 and words in shown.stderr
    (tmp_path / "other.csv").write_text("strategy,speed\ntarget,1\n")
    shown = show(str(tmp_path / "other.csv"))
    assert shown.exit_code == 2 and "not a sweep's results.csv" in shown.stderr


def test_a_written_table_can_be_shown(folder: Path, tmp_path: Path) -> None:
    """It has every number, interval and note of the folder's own table."""
    file, table = tmp_path / "results.csv", tidy_rows(rows(records_of(PLAN), PLAN), header_of(PLAN))
    file.write_text(csv_of(table))
    shown = show(str(file))
    assert shown.exit_code == 0, shown.output
    assert shown.stdout == show(str(folder)).stdout
    assert show(str(file), "-o", str(tmp_path / "t.png")).exit_code == 0
    refused = show(str(file), "-o", str(tmp_path / "t.html"))
    assert refused.exit_code == 2 and "show the sweep's folder" in refused.stderr
    file.write_text(file.read_text().replace(",target,target,", ",target,target,warm", 1).replace("0.0", "warm", 9))
    damaged = show(str(file))
    assert damaged.exit_code == 2 and "not a valid cascli file" in damaged.stderr


def test_a_written_table_counts_a_conversation_once(tmp_path: Path) -> None:
    """Also for strategies without target calls, and with several seeds."""
    plan = plan_of(strategies=["draft", "target"], temperatures=[1.0], seeds=[0, 1])
    records = [
        record.model_copy(
            update={"turns": 1 + (record.problem == "p0")} | ({"target_calls": 0} if "draft" in record.cell.key else {})
        )
        for record in records_of(plan, prompts=3)
    ]
    folder, file = folder_of(tmp_path / "out", header_of(plan), records), tmp_path / "results.csv"
    file.write_text(csv_of(tidy_rows(rows(records, plan), header_of(plan))))
    whole, table = (json.loads(show(str(each), "--json").stdout)["rows"] for each in (folder, file))
    for found in (whole, table):
        counts = {(row["answers"], row["num_prompts"], row["num_answers"]) for row in found}
        assert counts == {(6, 3, 8)} and len(found) == 2
    assert show(str(file)).stdout == show(str(folder)).stdout


def test_a_table_from_before_tidy_columns_can_be_shown() -> None:
    shown = show(str(HUMANEVAL / "results.csv"))
    assert shown.exit_code == 0, shown.output
    assert shown.stdout.count("spec-cascade") == 20 and "-0.150 (-0.32 to +0.03)" in shown.stdout
    # Speeds had no intervals then, so nothing is said of which is the fastest.
    with_intervals = show(str(HUMANEVAL)).stdout
    later = re.sub(r"(?<=x) \([\d.]+-[\d.]+\)", "", with_intervals)
    assert later != with_intervals and "fastest" in with_intervals and "fastest" not in shown.stdout
    # The metric's name, too, is known only since then.
    before, after = (text.replace("─", "").replace("pass@1", "quality").split() for text in (shown.stdout, later))
    first = before.index("No")  # lossy strategy's quality differs
    assert before[:first] == after[:first] and before[first:] == after[-len(before) + first :]


@pytest.mark.parametrize(
    ("suffix", "begins"), [(".html", b"<!doctype html>"), (".svg", b"<?xml"), (".png", b"\x89PNG"), (".pdf", b"%PDF")]
)
def test_report_and_figure_can_be_regenerated(folder: Path, tmp_path: Path, suffix: str, begins: bytes) -> None:
    """They are made from the saved answers alone, with another title."""
    made = show(str(folder), "-o", str(tmp_path / f"talk{suffix}"), "--title", "A talk")
    assert made.exit_code == 0, made.output
    content = (tmp_path / f"talk{suffix}").read_bytes()
    assert content.startswith(begins)
    if suffix == ".html":
        assert b"<h1>A talk</h1>" in content and b"Answers that differ" in content
    refused = show(str(folder), "-o", str(tmp_path / "talk.md"))
    assert refused.exit_code == 2 and "cannot be written as md" in refused.stderr


def test_strategies_of_a_sweep_can_be_selected(folder: Path) -> None:
    shown = show(str(folder), "-s", "speculative-cascade:rule=opt,k=2", "-s", "draft")
    assert shown.exit_code == 0, shown.output
    assert shown.stdout.count("spec-cascade opt") == 6 and "token-v3" not in shown.stdout and "draft" in shown.stdout
    unknown = show(str(folder), "-s", "speculativ")
    assert unknown.exit_code == 2 and "did you mean 'speculative" in unknown.stderr


def test_a_name_selects_strategies_that_have_all_its_parameters() -> None:
    specs = ["speculative:k=2", "speculative:k=4", "speculative-cascade:rule=opt,alpha=0.1,k=4"]
    for names, wanted in (
        (["speculative"], specs[:2]),
        (["speculative:k=4"], specs[1:2]),
        (["speculative-cascade:k=4,rule=opt"], specs[2:]),
        ([], specs),
    ):
        fits = strategy_filter(specs, names)
        assert [spec for spec in specs if fits(spec)] == wanted
    with pytest.raises(UsageError):
        strategy_filter(specs, ["speculative:k=3"])


@pytest.fixture(scope="module")
def comparison(text_pair: Pair, tmp_path_factory: pytest.TempPathFactory) -> Path:
    found = compare(
        text_pair, ["one two", "three four"], ["target", "draft", "speculative:k=2"], max_new_tokens=6, temperature=0,
        measure=False,
    )  # fmt: skip
    file = tmp_path_factory.mktemp("saved") / "c.json"
    file.write_text(found.to_json())
    return file


def test_strategies_of_a_comparison_can_be_selected(comparison: Path) -> None:
    whole = json.loads(comparison.read_text())
    shown = json.loads(show(str(comparison), "-s", "speculative", "--json").stdout)
    assert [row["strategy"] for row in shown["summary"]] == ["speculative:k=2"]
    assert shown["summary"] == [row for row in whole["summary"] if row["strategy"] == "speculative:k=2"]
    assert len(shown["runs"]) == 2
    text = show(str(comparison), "-s", "speculative")
    assert text.exit_code == 0 and "speculative k=2" in text.stdout and "draft" not in text.stdout.splitlines()[0]


def test_speeds_of_one_prompt_are_of_the_first_run(comparison: Path, text_pair: Pair, tmp_path: Path) -> None:
    twice = tmp_path / "twice.json"
    found = compare(text_pair, ["one", "two"], ["target", "draft"], max_new_tokens=3, measure=False, runs=2)
    twice.write_text(found.to_json())
    note = "speeds are those of the first of 2 runs, the only one whose answers are kept"
    assert note in " ".join(show(str(twice), "--prompt", "2").stderr.split())
    assert not show(str(twice), "-s", "draft").stderr and not show(str(comparison), "--prompt", "2").stderr


def test_a_prompt_of_a_comparison_can_be_selected(comparison: Path, tmp_path: Path) -> None:
    """Its numbers are computed from the runs of that prompt alone."""
    whole = json.loads(comparison.read_text())
    shown = json.loads(show(str(comparison), "--prompt", "2", "--json").stdout)
    assert {run["prompt"] for run in shown["runs"]} == {"three four"} and len(shown["runs"]) == 3
    assert [row["tokens"] for row in shown["summary"]] == [len(run["token_ids"]) for run in shown["runs"]]
    assert shown["summary"] != whole["summary"]
    text = show(str(comparison), "--prompt", "2", "-s", "draft")
    assert text.exit_code == 0 and "three four" in text.stdout and "one two" not in text.stdout
    page = show(str(comparison), "--prompt", "2", "-o", str(tmp_path / "c.html"))
    assert page.exit_code == 0 and "one two" not in (tmp_path / "c.html").read_text()
    refused = show(str(comparison), "--prompt", "3")
    assert refused.exit_code == 2 and "unknown prompt '3'" in refused.stderr


def test_strategies_can_be_selected_from_a_sweep_json(folder: Path) -> None:
    """The table is made from the answers next to the file; what is selected must not be read from them again."""
    chosen = json.loads(show(str(folder / "sweep.json"), "-s", "draft", "--json").stdout)
    assert {row["strategy"] for row in chosen["rows"]} == {"draft"}
    assert "speculative" not in show(str(folder / "sweep.json"), "-s", "draft").stdout


def test_categories_are_refused_where_there_are_none(comparison: Path, tmp_path: Path) -> None:
    curves = tmp_path / "curves.json"
    curves.write_text('{"schema": "cascli.rule-curves/1", "estimates": []}')
    for file in (comparison, curves):
        refused = show(str(file), "--by", "category")
        assert refused.exit_code == 2 and "--by category" in refused.stderr and refused.stdout == ""


@pytest.mark.parametrize(("stopped", "page"), [(KeyboardInterrupt, True), (Terminated, False)])
def test_ctrl_c_skips_the_replay_and_a_signal_ends_the_command(
    stopped: type[BaseException], page: bool, comparison: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    printed: list[object] = []

    def play(*_: object) -> None:
        raise stopped

    monkeypatch.setattr("cascli.render.play.play", play)
    monkeypatch.setattr("cascli.render.comparison.print_comparison", lambda *args, **_: printed.append(args))
    document = documents.opened(comparison.read_text(), comparison)
    with nullcontext() if page else pytest.raises(stopped):
        document.print(documents.View(screen("never"), speed=2.0))
    assert bool(printed) is page


def test_only_a_comparison_on_a_terminal_is_played(
    comparison: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    played: list[float] = []
    monkeypatch.setattr("cascli.render.play.play", lambda comparison, screen, speed: played.append(speed))
    assert "--play needs" in show(str(comparison), "--play").stderr  # piped
    monkeypatch.setattr(Screen, "live", property(lambda self: True))
    assert show(str(comparison), "--play", "--speed", "3").exit_code == 0 and played == [3]
    curves = tmp_path / "curves.json"
    curves.write_text('{"schema": "cascli.rule-curves/1", "estimates": []}')
    refused = show(str(curves), "--play")
    assert refused.exit_code == 2 and "--play needs" in refused.stderr and played == [3]


@pytest.mark.parametrize("schema", sorted(documents.KINDS))
def test_an_error_in_a_document_names_its_file(schema: str, tmp_path: Path) -> None:
    (tmp_path / "sweep.json").write_text(json.dumps({"schema": schema, "runs": 3}))
    refused = show(str(tmp_path / "sweep.json"))
    assert refused.exit_code == 2 and refused.stderr.startswith(f"cascli: {tmp_path / 'sweep.json'}: ")


def test_a_quiet_audit_is_one_line(text_pair: Pair, tmp_path: Path) -> None:
    run = generate(text_pair, "hello", strategy="target", max_new_tokens=2)
    checks = [check_of("law", "target", 0.5, 1.0, 0.0), check_of("parity", "target", 2.0, 1.0, 0.0)]
    audit = Audit(pair=run.pair, passed=False, seconds=1.0, checks=checks, environment={})
    (tmp_path / "audit.json").write_text(audit.to_json())
    quiet, loud = (show(str(tmp_path / "audit.json"), *flags) for flags in (["-q"], []))
    assert len(quiet.stdout.splitlines()) == 1 and "failed: parity of target" in quiet.stdout
    assert "parity" in loud.stdout and "failed: parity of target" in loud.stderr


def test_selecting_from_a_document_without_parts_is_refused(tmp_path: Path, folder: Path) -> None:
    file = tmp_path / "curves.json"
    file.write_text('{"schema": "cascli.rule-curves/1", "estimates": []}')
    refused = show(str(file), "-s", "target")
    assert refused.exit_code == 2 and "has no strategies to choose from" in refused.stderr
    refused = show(str(folder), "--prompt", "1")
    assert refused.exit_code == 2 and "no prompts to choose from" in refused.stderr


@pytest.mark.parametrize("kind", ["plain", "newline", "empty"])
def test_answers_are_printed_alike_alone_in_a_batch_in_a_file_and_again(
    tmp_path: Path, clean_env: pytest.MonkeyPatch, kind: str
) -> None:
    prompts, alone = tmp_path / "prompts.jsonl", tmp_path / "alone.jsonl"
    prompts.write_text('{"id": "a", "prompt": "hi"}\n{"id": "b", "prompt": "ho"}\n')
    alone.write_text('{"id": "a", "prompt": "hi"}\n')
    pair, asked = load_pair("tiny-random"), [Prompt(("hi",), "a")]
    for seed in range(200):
        run = generate_many(pair, asked, strategy="target", max_new_tokens=40, temperature=1.5, seed=seed)[0]
        if NEWLINE in run.token_ids and run.text[0].isascii():
            break
    length = str(run.token_ids.index(NEWLINE) + (kind == "newline"))
    common = ["generate", "-c", "tiny-random", "-s", "target", "--temperature", "1.5", "--seed", str(seed)]
    common += ["--max-new-tokens", length, *(["--stop", run.text[0]] if kind == "empty" else [])]
    for file in (prompts, alone):
        saved, written = tmp_path / "runs.json", tmp_path / "runs.txt"
        streamed, batched, again = (
            CliRunner().invoke(app, [*common, "--prompts", str(file), *more])
            for more in (["-o", str(saved)], ["--batch-size", "2"], ["-o", str(written)])
        )
        assert streamed.exit_code == batched.exit_code == again.exit_code == 0, streamed.output + batched.output
        first = json.loads(show(str(saved), "--format", "jsonl").stdout.split("\n")[0])["text"]
        assert {"plain": True, "newline": first.endswith("\n"), "empty": first == ""}[kind]
        assert streamed.stdout == batched.stdout == show(str(saved)).stdout == written.read_text()


def test_each_run_of_a_jsonl_file_is_shown_under_its_prompt(tmp_path: Path, clean_env: pytest.MonkeyPatch) -> None:
    file, prompts = tmp_path / "runs.jsonl", tmp_path / "prompts.jsonl"
    prompts.write_text('{"id": "a", "prompt": "hi"}\n{"id": "b", "prompt": "ho"}\n')
    asked = ["generate", "-c", "tiny-random", "--prompts", str(prompts), "--max-new-tokens", "3", "-o", str(file)]
    assert CliRunner().invoke(app, asked).exit_code == 0
    shown = CliRunner().invoke(app, ["show", str(file)])
    assert shown.exit_code == 0, shown.output
    assert [line for line in shown.stdout.splitlines() if line.startswith("==>")] == ["==> a <==", "==> b <=="]
    file.write_text(file.read_text() + '\n{"schema": "cascli.bench/1"}\n')
    wrong = CliRunner().invoke(app, ["show", str(file)])
    assert wrong.exit_code == 2 and "runs.jsonl:4" in wrong.stderr


def lines_of_runs(file: Path, text_pair: Pair) -> list[bytes]:
    """Write a file of two runs, one per line."""
    lines = [generate(text_pair, text, strategy="target", max_new_tokens=3).to_json().encode() for text in ("hi", "hö")]
    file.write_bytes(b"".join(line + b"\n" for line in lines))
    return lines


@pytest.mark.parametrize("left", [1, 40, -1, "in a character"])
def test_the_line_that_a_crash_cut_is_left_out(left: int | str, text_pair: Pair, tmp_path: Path) -> None:
    file = tmp_path / "runs.jsonl"
    first, second = lines_of_runs(file, text_pair)
    rest = second[:left] if isinstance(left, int) else second[: second.index("ö".encode()) + 1]
    file.write_bytes(first + b"\n\n" + rest)
    shown = show(str(file))
    assert (shown.exit_code, shown.stdout) == (0, Run.from_json(first).text + "\n"), shown.output
    assert "runs.jsonl:3: cut while it was written, so it is left out" in " ".join(shown.stderr.split())
    assert len(json.loads(show(str(file), "--json").stdout)["runs"]) == 1


def test_other_damage_to_lines_is_an_error(text_pair: Pair, tmp_path: Path) -> None:
    file = tmp_path / "runs.jsonl"
    first, second = lines_of_runs(file, text_pair)
    for content, words in (
        (first[:50] + b"\n" + second + b"\n", "runs.jsonl:1: not JSON"),
        (first + b"\n" + second[:50] + b"\n", "runs.jsonl:2: not JSON"),  # a whole line
        (first + b"\n\xff\n" + second, "cannot be read"),
        (first[:50], "no whole line"),
        (b"", "no whole line"),
    ):
        file.write_bytes(content)
        shown = show(str(file))
        assert shown.exit_code == 2 and words in shown.stderr, shown.output
    file.write_bytes(first + b"\n" + second)  # whole, though an editor dropped the newline
    assert len(json.loads(show(str(file), "--json").stdout)["runs"]) == 2


def test_what_cannot_be_shown_says_what_to_show_instead(folder: Path, comparison: Path, tmp_path: Path) -> None:
    """Other files of a sweep, and files in which there is less than in the JSON."""
    for name, option in (("report.html", "html"), ("quality-cost.svg", "svg"), ("quality-cost.png", "png")):
        assert show(str(folder), "-o", str(folder / name), "--format", option).exit_code == 0
    profile = "speculation_profile.json"
    assert show(str(comparison), "-o", str(folder / profile)).exit_code == 0
    instead = f"show its folder, {folder}"
    (folder / "records.jsonl.gz").write_bytes(gzip.compress((folder / "records.jsonl").read_bytes()))
    for name, what in (
        ("records.jsonl", "records of a sweep"),
        (profile, "an acceptance profile for serving tools"),
        ("records.jsonl.gz", "records of a sweep"),
        ("report.html", "html is for other programs"),
        ("quality-cost.svg", "svg is for other programs"),
        ("quality-cost.png", "png is for other programs"),
    ):
        refused = show(str(folder / name))
        assert (refused.exit_code, refused.stderr) == (2, f"cascli: {folder / name}: {what};\n{instead}\n")
    (folder / "records.jsonl.gz").unlink()
    by = folder / "categories.csv"
    by.write_text(f"category,{show(str(folder), '--format', 'csv', '-o', '-').stdout}")
    refused = show(str(by))
    said = f"cascli: {by}: a sweep's rows by category;\n{instead} --by category\n"
    assert (refused.exit_code, refused.stderr) == (2, said)
    for suffix in ("csv", "html", "md", "parquet"):
        file = tmp_path / f"c.{suffix}"
        assert show(str(comparison), "-o", str(file)).exit_code == 0
        table = "not a sweep's results.csv: it has no column 'quality'"
        what = table if suffix == "csv" else f"{suffix} is for other programs"
        wanted = f"cascli: {file}: {what};\nshow the JSON of the same result (-o FILE.json)\n"
        assert (show(str(file)).exit_code, show(str(file)).stderr) == (2, wanted)
    assert "none.png: no such file" in show(str(tmp_path / "none.png")).stderr
    page = tmp_path / "named.html"
    page.write_bytes(comparison.read_bytes())  # its content counts, not its name
    assert show(str(page)).stdout == show(str(comparison)).stdout
