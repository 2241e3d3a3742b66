"""Output files for further analysis: their location, format and columns, and repeating a run from its record."""

from __future__ import annotations

import csv
import io
import json
import os
import shlex
import stat
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

import cascli
from cascli import Pair, Run, compare, generate, sweep
from cascli.analysis import tidy
from cascli.analysis.answer_costs import AnswerCosts, PerPrompt, Ratio
from cascli.analysis.columns import COLUMNS, PARAMETERS, columns_of
from cascli.analysis.comparison import Comparison, Row
from cascli.analysis.profile import Timing
from cascli.cli.app import app
from cascli.cli.documents import KINDS
from cascli.errors import RunError, UsageError
from cascli.files import write
from cascli.jobs.bench import bench
from cascli.prompts import read_prompts
from cascli.render import export, formats
from cascli.render.export import Outputs, check_suffix, outputs
from cascli.render.summary import cut_by_context, totals
from cascli.render.tabular import csv_of, parquet_of
from cascli.settings import Resolved
from cascli.trace import ExitInfo
from tests import files_page
from tests.pairs import synthetic

TINY = ["-c", "tiny-random", "--max-new-tokens", "6", "--device", "cpu"]
SAVED = Path(__file__).parents[1] / "benchmarks" / "results"
SWEEP = """pair: tiny-random
strategies: [draft, 'speculative:k=2', 'speculative-cascade:rule=opt,alpha=0.3,k=3', 'cascade:threshold=-2']
limit: 3
max_new_tokens: 8
"""


@pytest.fixture
def cli(clean_env: pytest.MonkeyPatch):
    def run(*arguments: str, stdin: str | None = None) -> Result:
        clean_env.setattr("sys.argv", ["cascli", *arguments])
        return CliRunner().invoke(app, list(arguments), input=stdin)

    return run


@pytest.fixture(scope="module")
def raced(text_pair: Pair) -> Comparison:
    specs = ["target", "draft", "cascade", "speculative:k=2", "speculative-cascade:rule=opt,alpha=0.3,k=3"]
    return compare(text_pair, ["one", "two"], specs, max_new_tokens=6, temperature=0, runs=2, measure=False)


# ---- columns


def test_a_strategy_becomes_columns_typed_like_its_parameters() -> None:
    found = tidy.strategy_columns("speculative-cascade:rule=opt,alpha=0.3,k=4")
    assert found == {
        "strategy": "speculative-cascade:rule=opt,alpha=0.3,k=4",
        "name": "speculative-cascade", "rule": "opt", "alpha": 0.3, "k": 4, "draft": "model",
    }  # fmt: skip
    assert "draft" not in tidy.strategy_columns("token-cascade:rule=chow,alpha=0.3")
    assert tidy.strategy_columns("speculative:draft=prompt-lookup,longest=3,k=2")["draft"] == "prompt-lookup"
    assert tidy.strategy_columns("mine:temperature=2,verify=block") == {
        "strategy": "mine:temperature=2,verify=block", "name": "mine", "param_temperature": 2, "verify": "block",
    }  # fmt: skip


def test_parameters_of_any_plugin_get_a_column_of_one_type() -> None:
    specs = [
        "target",
        "speculative:k=auto",
        "speculative-cascade:rule=x,n=2,k=4",
        "speculative-cascade:rule=y,n=2.5,k=4",
    ]
    found = tidy.table("sweep", [tidy.strategy_columns(spec) for spec in specs])
    names = list(found.columns)
    assert names[names.index("threshold") + 1] == "n" and found.columns["n"] is float
    assert [record["n"] for record in found.records] == [None, None, 2.0, 2.5]
    assert [record["k"] for record in found.records] == [None, "auto", "4", "4"]
    assert set(names) == {column.name for column in columns_of("sweep")} | {"n"}


PARTS = list(PerPrompt.model_fields)
TIMES = ("ttft", "seconds_per_token", "round_seconds")


@pytest.mark.filterwarnings("ignore:Pydantic serializer warnings")
def test_every_column_is_documented_and_every_field_has_a_column(raced: Comparison) -> None:
    """Every column of a comparison is documented, and every field of a row is in some column."""
    table = tidy.of_comparison(raced)
    known = {column.name for column in columns_of("compare")}
    assert set(table.columns) - known == set()
    marked = raced.summary[3].model_copy(
        update={name: place + 0.5 for place, name in enumerate(Row.model_fields) if name not in ("strategy",)}
        | {"ttft": None, "seconds_per_token": None, "round_seconds": None, "speed_interval": (1000.5, 2000.5)}
        | {"costs": raced.summary[3].costs, "distances": raced.summary[3].distances, "exit": None}
    )
    values = set(tidy.row_columns(marked).values())
    apart = {"strategy", "speed_interval", "ttft", "seconds_per_token", "round_seconds", "costs", "distances", "exit"}
    fields = enumerate(Row.model_fields)
    lost = {name for place, name in fields if name not in apart and place + 0.5 not in values}
    assert not lost and {1000.5, 2000.5} <= values
    left = marked.model_copy(update={"exit": ExitInfo(layers=2, depth=8, trained=None)})
    assert left.exit is not None and tidy.row_columns(left)["exit"] == left.exit.label
    ratio = Ratio(of_means=0.0, mean=0.5, interval=(0.1, 0.2), interval_kind="range", prompts=7)
    ratios = ("length", "length_ended", "calls", "calls_to_lossless")
    costs = AnswerCosts.model_validate(
        {name: place + 100.5 for place, name in enumerate(AnswerCosts.model_fields)}
        | {name: ratio.model_copy(update={"of_means": place + 200.5}) for place, name in enumerate(ratios)}
        | {"lossless": "which", "withheld": "why"}
        | {"per_prompt": {name: {"p50": place, "p90": place + 0.1, "p99": None} for place, name in enumerate(PARTS)}}
    )
    columns = tidy.cost_columns(costs)
    left = {"share_cut", "per_prompt"}  # share_cut has a separate column, counted by answers
    wanted = [value.of_means if isinstance(value, Ratio) else value for name, value in costs if name not in left]
    assert set(wanted) <= set(columns.values()) and set(columns) <= known
    assert [columns[f"calls_to_lossless_{part}"] for part in ("mean", "low", "high", "kind", "prompts")] == [
        0.5, 0.1, 0.2, "range", 7,
    ]  # fmt: skip
    levels = [[columns[f"prompt_{name}_{level}"] for level in ("p50", "p90", "p99")] for name in PARTS]
    assert levels == [[place, place + 0.1, None] for place in range(len(PARTS))]


def test_the_same_runs_give_the_same_numbers_in_compare_and_sweep(tmp_path: Path) -> None:
    plan, asked = tmp_path / "plan.yaml", prompts_file(tmp_path, {"prompt": "one"}, {"turns": ["two", "and three?"]})
    plan.write_text(f"{SWEEP}task: {{kind: jsonl, path: {asked.name}}}\n")
    swept = tidy.table("sweep", [])
    rows = sweep(plan, output=tmp_path / "out")
    by_spec = {row["strategy"]: row for row in rows.to_frame().to_dict("records")}
    pair = cascli.load_pair("tiny-random", device="cpu")
    raced = compare(pair, read_prompts(asked), list(by_spec), max_new_tokens=8, temperature=0, measure=False)
    shared = [
        name
        for name in tidy.of_comparison(raced).columns
        if name in swept.columns
        and name not in ("date", "seconds", "tokens_per_second", "threads")
        and not name.startswith(("prompt_seconds", "speed_vs_target"))
    ]
    assert {
        "pair", "draft_dtype", "target_dtype", "device", "hardware", "temperature", "alpha", "k", "threshold", "tokens",
        "num_prompts", "num_answers", "mean_answer_tokens", "share_cut", "draft_acceptance_rate", "mean_tv_to_target",
        "tested_acceptance_rate", "mean_acceptance_length", "deferral_rate", "target_calls_per_token",
        "draft_calls_per_token",
    } <= set(shared)  # fmt: skip
    assert {(row["num_prompts"], row["num_answers"]) for row in by_spec.values()} == {(2, 3)}
    for record in raced.to_frame().to_dict("records"):
        theirs = by_spec[record["strategy"]]
        for name in shared:
            ours, other = record[name], theirs[name]
            assert _missing(ours) == _missing(other), (record["strategy"], name, ours, other)
            if not _missing(ours):
                assert ours == pytest.approx(other), (record["strategy"], name)


def _missing(value: Any) -> bool:
    import pandas

    return bool(pandas.isna(value))


def test_csv_parquet_and_frame_hold_the_same(raced: Comparison) -> None:
    import pyarrow.parquet

    table = tidy.of_comparison(raced)
    texts = list(csv.DictReader(io.StringIO(csv_of(table))))
    stored = pyarrow.parquet.read_table(io.BytesIO(parquet_of(table)))
    assert stored.to_pylist() == table.records
    assert [
        {key: "" if value is None else str(value) for key, value in each.items()} for each in table.records
    ] == texts
    frame = raced.to_frame()
    assert list(frame.columns) == list(table.columns) == stored.column_names
    assert frame.k.tolist()[3:] == [2, 3] and frame.k.isna().tolist()[:3] == [True] * 3
    assert (
        str(frame.k.dtype) == "Int64" and str(frame.alpha.dtype) == "float64" and str(frame.lossless.dtype) == "boolean"
    )
    assert stored.schema.field("quality" if "quality" in table.columns else "alpha").type == "double"
    assert str(stored.schema.field("first_divergence").type) == "int64"
    assert frame.groupby("name").tokens.sum()["target"] == raced.summary[0].tokens


def test_an_interval_becomes_two_bounds_and_a_kind(raced: Comparison) -> None:
    record = tidy.of_comparison(raced).records[3]
    low, high = raced.summary[3].speed_interval
    assert (record["speed_vs_target_low"], record["speed_vs_target_high"]) == (low, high)
    assert (record["speed_vs_target_kind"], record["speed_vs_target_over"]) == ("range", "prompts")
    assert tidy.interval_columns("x", None, None) == {"x_low": None, "x_high": None, "x_kind": None}


def test_bench_has_one_row_per_call_and_one_per_k(text_pair: Pair) -> None:
    found = bench(text_pair, contexts=[8, 16], blocks=(1, 2, 3), repeats=1, synthetic_acceptance=0.5, ks=(2,), tokens=8)
    table = tidy.of_bench(found)
    steps = [each for each in table.records if each["kind"] == "step"]
    assert sorted((each["model"], each["context"], each["block"]) for each in steps if each["model"] == "target") == [
        ("target", 8, 1), ("target", 8, 2), ("target", 8, 3),
        ("target", 16, 1), ("target", 16, 2), ("target", 16, 3),
    ]  # fmt: skip
    for each in steps:
        profile = next(one for one in found.profiles if one.context == each["context"])
        expected = profile.c if each["model"] == "draft" else profile.v(each["block"])
        if each["model"] == "target" or each["block"] == 1:
            assert each["relative_to_step"] == pytest.approx(expected)
    target, speculating = (each for each in table.records if each["kind"] == "synthetic")
    assert (target["name"], speculating["k"], speculating["tested_acceptance_rate"]) == ("target", 2, 0.5)
    assert speculating["speed_vs_target"] == pytest.approx(
        speculating["tokens_per_second"] / target["tokens_per_second"]
    )


def test_older_documents_become_tables_too() -> None:
    older = Path(__file__).parent / "documents" / "compare-1.1.json"  # two runs of one, with the first of their rounds
    table = tidy.of_comparison(Comparison.from_json(older.read_bytes()))
    assert [each["date"] for each in table.records] == [None] * len(table.records)
    assert table.records[0]["strategy"] == "target" and table.records[0]["share_cut"] is None
    assert table.records[0]["threads"] == 2
    table = tidy.of_bench(cascli.analysis.bench.Bench.from_json((SAVED / "bench-default.json").read_bytes()))
    assert table.records[0]["kind"] == "step"


@pytest.mark.parametrize(
    ("module", "use"),
    [
        ("pyarrow", lambda raced: parquet_of(tidy.of_comparison(raced))),
        ("pyarrow", lambda raced: outputs(Resolved(output="x.parquet"), formats.COMPARISON)),
        ("pandas", lambda raced: raced.to_frame()),
    ],
)
def test_a_missing_package_is_named(
    module: str, use: Any, raced: Comparison, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in [module, *(each for each in sys.modules if each.startswith(f"{module}."))]:
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(UsageError, match=rf"{module}.*cascli\[tables\]"):
        use(raced)


def test_the_files_page_is_current() -> None:
    text = files_page.PAGE.read_text(encoding="utf-8")
    assert text == files_page.page(text), "run make docs"
    assert len({(column.name, kind) for column in COLUMNS for kind in column.kinds}) == sum(
        len(column.kinds) for column in COLUMNS
    )
    unsaid = {
        f"{model.__name__}.{name}"
        for _, document in files_page.DOCUMENTS
        for model in files_page.parts(document)
        for name, text in files_page.meanings(model).items()
        if not text
    }
    assert not unsaid
    assert set(PARAMETERS) <= {column.name for column in COLUMNS}


# ---- where a result goes


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, (None, None, "")),
        ({"json_output": True}, ("json", None, "")),
        ({"output": "-"}, (None, None, "")),
        ({"output": "-", "json_output": True}, ("json", None, "")),
        ({"output": "-", "format": "csv"}, ("csv", None, "")),
        ({"format": "md"}, ("md", None, "")),
        ({"format": "json", "json_output": True}, ("json", None, "")),
        ({"output": "a.csv"}, (None, "a.csv", "csv")),
        ({"output": "a.CSV"}, (None, "a.CSV", "csv")),
        ({"output": "a.csv", "json_output": True}, ("json", "a.csv", "csv")),
        ({"output": "a", "json_output": True}, ("json", "a", "json")),
        ({"output": "a", "format": "html"}, (None, "a", "html")),
        ({"output": "a.v2", "format": "md"}, (None, "a.v2", "md")),
        ({"output": "a.csv", "format": "json"}, (None, "a.csv", "json")),
        ({"output": "a.csv", "format": "md", "json_output": True}, ("json", "a.csv", "md")),
    ],
)
def test_one_rule_for_output(
    given: dict[str, Any], expected: tuple, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    printed, file, written = expected
    assert outputs(Resolved(**given), formats.COMPARISON) == Outputs(printed, file and Path(file), written)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"output": "a"}, r"no suffix; use one of \.csv, .*\.txt, or --format"),
        ({"output": "a.v2", "json_output": True}, r"unknown suffix '\.v2'"),
        ({"output": "a.htm"}, r"did you mean '\.html'\?"),
        ({"output": "a.pvg"}, r"unknown suffix '\.pvg'\. Known"),
        ({"json_output": True, "format": "csv"}, "both write to stdout"),
        ({"json_output": True, "format": "csv", "output": "-"}, "both write to stdout"),
        ({"output": "none/a.csv"}, "no such folder"),
        ({"output": "folder.csv"}, "is a folder"),
        ({"output": "round.csv"}, r"--output round\.csv: a symbolic link that points to itself"),
        ({"output": "astray.csv"}, r"--output astray\.csv: no such folder: .*none"),
    ],
)
def test_output_errors_list_what_is_possible(
    given: dict[str, Any], words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder.csv").mkdir()
    (tmp_path / "round.csv").symlink_to("round.csv")
    (tmp_path / "astray.csv").symlink_to(Path("none", "a.csv"))
    with pytest.raises(UsageError, match=words):
        outputs(Resolved(**given), formats.COMPARISON)
    with pytest.raises(UsageError, match=r"--format svg: not available here. Known: csv, json, parquet, txt"):
        outputs(Resolved(format="svg"), formats.BENCH)


def test_nothing_binary_reaches_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    with pytest.raises(UsageError, match=r"parquet is not for a terminal"):
        outputs(Resolved(format="parquet"), formats.COMPARISON)
    assert outputs(Resolved(format="csv"), formats.COMPARISON).printed == "csv"


def test_html_output_keeps_the_top_tokens_whatever_the_file_name() -> None:
    kept = [
        Resolved(**each).kept
        for each in (
            {"output": "a.html"},
            {"output": "A.HTML"},
            {"format": "html"},
            {"output": "a", "format": "html"},
            {"format": "html", "top": 2},
        )
    ]
    assert kept == [5, 5, 5, 5, 2]
    assert Resolved(output="a.html", format="json").kept == Resolved(output="a.json").kept == 0


def test_the_case_of_a_suffix_does_not_matter(tmp_path: Path) -> None:
    check_suffix(tmp_path / "SPEED.PNG", (".png", ".svg"), named="--plot")
    with pytest.raises(UsageError, match=r"unknown suffix '\.gif'"):
        check_suffix(tmp_path / "x.GIF", (".png", ".svg"), named="--plot")


def test_every_promised_format_can_be_written(raced: Comparison, text_pair: Pair) -> None:
    """The format names listed in help and errors are exactly those that can be written."""
    measured = bench(text_pair, contexts=[8], blocks=(1, 3), repeats=1)
    writers = {
        formats.RUNS: export.of_runs(raced.runs),
        formats.COMPARISON: export.of_comparison(raced),
        formats.BENCH: export.of_bench(measured),
    }
    for names, found in writers.items():
        assert set(found) == set(names)
        for name in names:
            content = found[name]()
            assert len(content) > 50 and isinstance(content, bytes) == (name in formats.BINARY)
    lines = export.of_comparison(raced)["jsonl"]().splitlines()
    assert [Run.from_json(line) for line in lines] == raced.runs
    assert {each for kind in KINDS.values() for each in kind.formats} == set(formats.ANY)


def test_a_table_of_answers_has_one_row_per_answer(raced: Comparison) -> None:
    runs = [run.model_copy(update={"text": f"={place}", "turn": place}) for place, run in enumerate(raced.runs)]
    found = list(csv.DictReader(io.StringIO(export.of_runs(runs)["csv"]())))
    assert [(each["strategy"], each["turn"], each["text"]) for each in found] == [
        (run.spec, str(place), f"'={place}") for place, run in enumerate(runs)
    ]
    for row, run in zip(found, runs, strict=True):
        m = run.metrics
        assert int(row["tokens"]) == len(run.token_ids) and int(row["target_calls"]) == m.target_calls
        assert float(row["seconds"]) == m.seconds.total and float(row["tokens_per_second"]) == m.tokens_per_second
        assert row["prompt"] == run.prompt and row["finish_reason"] == run.finish_reason
        assert row["mean_tv_to_target"] == ("" if m.mean_tv_to_target is None else str(m.mean_tv_to_target))
        tested = m.num_tested_draft_tokens
        assert row["tested_acceptance_rate"] == (str(m.num_accepted_draft_tokens / tested) if tested else "")
    assert {row["pair"] for row in found} == {raced.runs[0].pair.name} and all(row["date"] for row in found)


def test_markdown_and_svg_contain_the_prompts_and_answers(raced: Comparison) -> None:
    [first, second] = raced.runs[:2]
    one = export.of_runs([first])
    assert one["md"]().startswith(f"> {first.prompt}\n\n{first.text}") and f"| `{first.spec}` |" in one["md"]()
    two = export.of_runs([first, second.model_copy(update={"prompt_id": "b", "turn": 1})])["md"]()
    assert "## 1\n\n> " in two and "\n## b, turn 2\n\n> " in two and f"| `{second.spec}` |" in two
    assert "<svg" in one["svg"]() and "cascli&#160;generate" in one["svg"]().replace(" ", "&#160;")


def test_pipes_and_devices_are_written_to_and_not_replaced(tmp_path: Path) -> None:
    place = tmp_path / "pipe"
    os.mkfifo(place)
    reader = os.open(place, os.O_RDONLY | os.O_NONBLOCK)
    write(place, "text")
    assert os.read(reader, 10) == b"text" and stat.S_ISFIFO(place.stat().st_mode)
    os.close(reader)
    write(Path(os.devnull), "text")
    assert stat.S_ISCHR(Path(os.devnull).stat().st_mode)


# ---- the command line


def prompts_file(folder: Path, *prompts: Any) -> Path:
    file = folder / "prompts.jsonl"
    file.write_text("".join(json.dumps(each) + "\n" for each in prompts))
    return file


def test_answers_finished_before_a_crash_are_kept(cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from cascli.engine import Decoding

    file, out = prompts_file(tmp_path, {"prompt": "a"}, {"turns": ["b", "c"]}, {"prompt": "d"}), tmp_path / "out.jsonl"
    out.write_text("old\n")
    steps, begun = Decoding.steps, []

    def failing(self: Decoding):
        begun.append(out.read_text())
        if len(begun) == 4:
            raise RunError("out of memory")
        yield from steps(self)

    monkeypatch.setattr(Decoding, "steps", failing)
    ended = cli("generate", "--prompts", str(file), *TINY, "-o", str(out))
    assert ended.exit_code == 3 and begun[0] == "old\n"
    assert [len(text.splitlines()) for text in begun[1:]] == [1, 2, 3]
    runs = [Run.from_json(line) for line in out.read_text().splitlines()]
    assert [(run.prompt, run.turn) for run in runs] == [("a", 0), ("b", 0), ("c", 1)]


def test_piped_answers_have_headings_and_are_counted(cli, tmp_path: Path) -> None:
    file = prompts_file(tmp_path, {"prompt": "a", "id": "first\none"}, {"prompt": "b"})
    out = tmp_path / "out.txt"
    found = cli("generate", "--prompts", str(file), *TINY, "-o", str(out), "-s", "speculative")
    assert found.exit_code == 0, found.stderr
    headings = [line for line in found.stdout.splitlines() if line.startswith("==> ")]
    assert headings == ["==> first one <==", "==> 2 <=="]
    assert out.read_text() == found.stdout
    assert found.stderr.startswith("[1/2] first one: a\n") and "\n\n[2/2] 2: b\n" in found.stderr
    assert found.stderr.count("ended by") == 0  # one line per answer; with -v, all lines
    assert "\n2 answers: 12 tokens in" in found.stderr and "2 at the limit" in found.stderr
    assert cli("generate", "--prompts", str(file), *TINY, "-v").stderr.count("ended by") == 2
    assert cli("generate", "--prompts", str(file), *TINY, "-q").stderr == ""


def test_prompts_are_read_from_a_pipe_and_json_lines_written_to_one(cli) -> None:
    stdin = '{"prompt": "a"}\n\n{"prompt": "b"}\n'
    found = cli("generate", "--prompts", "-", *TINY, "--format", "jsonl", stdin=stdin)
    assert [Run.from_json(line).prompt for line in found.stdout.splitlines()] == ["a", "b"]
    bad = cli("generate", "--prompts", "-", *TINY, stdin='{"prompt": "a"}\nnonsense\n')
    assert bad.exit_code == 2 and "stdin:2" in bad.stderr
    both = cli("generate", "-", "--prompts", "-", *TINY, stdin=stdin)
    assert both.exit_code == 2 and "not both" in both.stderr


def test_stdout_contains_only_the_requested_format(cli) -> None:
    asked = ["compare", "hi", *TINY, "-s", "target", "-s", "speculative:k=2", "--no-measure"]
    rows = list(csv.DictReader(io.StringIO(cli(*asked, "--format", "csv").stdout)))
    assert [(row["name"], row["k"], row["pair"]) for row in rows] == [
        ("target", "", "tiny-random"),
        ("speculative", "2", "tiny-random"),
    ]
    parquet = cli(*asked, "-o", "-", "--format", "parquet")
    assert (
        parquet.exit_code == 0 and parquet.stdout_bytes.startswith(b"PAR1") and parquet.stdout_bytes.endswith(b"PAR1")
    )
    assert json.loads(cli(*asked, "-o", "-", "--json").stdout)["schema"].startswith("cascli.compare/1")


def test_a_record_states_when_and_how_it_was_made(cli, tmp_path: Path) -> None:
    before = datetime.now(UTC) - timedelta(seconds=2)
    file = tmp_path / "it's.json"
    asked = ["generate", "who's there", *TINY, "-o", str(file)]
    assert cli(*asked).exit_code == 0
    run = Run.from_json(file.read_text())
    assert run.command is not None and shlex.split(run.command) == ["cascli", *asked]
    assert before <= datetime.fromisoformat(run.date) <= datetime.now(UTC) and run.date.endswith("Z")
    assert int(run.environment["processors"]) >= 1 and int(run.environment["threads"]) >= 1
    raced = Comparison.from_json(cli("compare", "hi", *TINY, "-s", "target", "--json").stdout)
    assert raced.command == shlex.join(["cascli", "compare", "hi", *TINY, "-s", "target", "--json"])
    assert raced.runs[0].command is None and before <= datetime.fromisoformat(raced.date)


def test_a_run_can_be_repeated_from_its_record(cli, text_pair: Pair) -> None:
    made = cli(
        "generate", "hello", *TINY, "--temperature", "1", "--seed", "7", "--top-k", "40", "--system", "be brief",
        "--stop", "zzz", "--json", "-s", "speculative-cascade:rule=opt,alpha=0.2,k=3",
    )  # fmt: skip
    run = Run.from_json(made.stdout)
    assert (run.system, run.raw, run.sampling.stop) == ("be brief", False, ["zzz"])
    again = generate(
        cascli.load_pair("tiny-random", device="cpu"),
        prompt_ids=run.prompt_token_ids,
        strategy=run.spec,
        **run.sampling.model_dump(),
    )
    assert again.token_ids == run.token_ids
    assert again.command is None and again.date is not None


def test_a_page_shows_the_command_that_made_the_results(cli, tmp_path: Path) -> None:
    saved, page = tmp_path / "saved.json", tmp_path / "page.html"
    for asked in (["generate", "hi", *TINY], ["compare", "hi", *TINY, "-s", "target", "--no-measure"]):
        assert cli(*asked, "-o", str(saved)).exit_code == 0
        assert cli("show", str(saved), "-o", str(page)).exit_code == 0
        text = page.read_text(encoding="utf-8")
        assert f'["command","cascli {asked[0]} hi' in text and "cascli show" not in text


def test_show_writes_what_the_command_writes(cli, tmp_path: Path) -> None:
    saved, table = tmp_path / "saved.json", tmp_path / "table.csv"
    assert cli("compare", "hi", *TINY, "-s", "target", "--no-measure", "-o", str(saved)).exit_code == 0
    assert cli("show", str(saved), "-o", str(table)).exit_code == 0
    assert table.read_text() == csv_of(tidy.of_comparison(Comparison.from_json(saved.read_text())))
    assert cli("show", str(saved), "--json").stdout == saved.read_text()
    refused = cli("show", str(SAVED / "bench-default.json"), "--format", "md")
    assert refused.exit_code == 2 and "Known: csv, json, parquet, txt" in refused.stderr


def test_a_sweeps_tables(cli, tmp_path: Path) -> None:
    plan, out = tmp_path / "plan.yaml", tmp_path / "out"
    plan.write_text(SWEEP)
    asked = ["sweep", str(plan), "-o", str(out), "-q"]
    document = cli(*asked, "--json")
    assert document.exit_code == 0, document.stderr
    found = json.loads(document.stdout)
    assert found["schema"] == "cascli.sweep-table/1.7" and found["made_from"]["pair"] == "tiny-random"
    assert found["rows"][0]["mean_tv"] == found["rows"][0]["mean_tv_to_target"] == 0
    assert found["made_from"]["command"] == shlex.join(["cascli", *asked, "--json"])
    (tmp_path / "table.json").write_text(document.stdout)
    for source in (out / "sweep.json", tmp_path / "table.json"):
        assert cli("show", str(source), "--format", "csv").stdout == (out / "results.csv").read_text()
    records = list(csv.DictReader(io.StringIO((out / "results.csv").read_text())))
    opt = next(each for each in records if each["rule"] == "opt")
    assert (opt["name"], opt["alpha"], opt["k"], opt["task"], opt["metric"]) == (
        "speculative-cascade", "0.3", "3", "builtin", "agreement",
    )  # fmt: skip
    assert opt["draft_dtype"] == opt["target_dtype"] == "float32" and opt["device"] == "cpu" and opt["date"]
    curves = cli("sweep", str(plan), "--rule-curves", "-o", str(tmp_path / "curves"), "--json", "-q")
    (tmp_path / "curves.json").write_text(curves.stdout)
    assert json.loads(curves.stdout)["k"] == 4
    tables = [
        cli("show", str(tmp_path / "curves.json"), "--format", "csv").stdout,
        (tmp_path / "curves" / "rule-curves.csv").read_text(),
    ]
    assert tables[0] == tables[1] and "speculative-cascade:rule=opt,alpha=" in tables[0]


def test_an_answer_cut_by_the_context_is_reported(text_pair: Pair) -> None:
    room = text_pair.context
    assert room is not None
    cut = generate(text_pair, prompt_ids=[5] * (room - 4), strategy="target", max_new_tokens=9)
    assert cut_by_context(cut) == (
        f"the context cut this answer at 4 of 9 tokens: counting the prompt's {room - 4:,} tokens, it holds {room:,}"
    )
    assert cut_by_context(generate(text_pair, "hi", strategy="target", max_new_tokens=9)) is None


@pytest.mark.parametrize("command", ["generate", "compare"])
@pytest.mark.parametrize("more", [[], ["--json"]])
def test_a_full_context_is_reported_along_with_the_answer(cli, command: str, more: list[str]) -> None:
    asked = [command, "x" * 1021, "--raw", "-c", "tiny-random", "--max-new-tokens", "9", "-s", "target"]
    found = cli(*asked, *more, *(["--no-measure"] if command == "compare" else []))
    assert "cut this answer at 3 of 9 tokens" in " ".join(found.stderr.split()), found.stderr


def test_totals_cover_all_answers(text_pair: Pair) -> None:
    runs = [run for run in synthetic(text_pair, 0.5, 2, 8, 0.0, 2.0) if run.strategy != "target"] * 2
    said = totals(runs)
    m = runs[0].metrics
    assert "2 answers: 16 tokens in" in said and "8.0 each, 2 at the limit" in said
    turns = [run.model_copy(update={"prompt_id": "a", "turn": turn}) for turn, run in enumerate(runs)]
    assert totals(turns).startswith("2 answers to 1 prompt: 16 tokens in")
    other = [run.model_copy(update={"prompt_id": "b"}) for run in turns]
    assert totals([*turns, *other]).startswith("4 answers to 2 prompts: 32 tokens in")
    assert f"{m.num_accepted_draft_tokens / m.num_tested_draft_tokens:.2f} of the tested drafts accepted" in said


def test_precisions_are_per_model_and_regret_is_per_answer() -> None:
    from cascli.analysis.tidy import Circumstances, distance_columns
    from cascli.trace import Distances

    found = Circumstances.of_loaded("p", {"draft": "a int8", "target": "b float32"}, None)
    assert (found.draft_dtype, found.target_dtype) == ("int8", "float32")
    d = Distances(**dict.fromkeys(Distances.model_fields, 0) | {"tokens": 20, "regret": 8.0})
    assert distance_columns(d, 4)["regret_per_answer"] == 2


def test_an_answers_row_by_hand(text_pair: Pair) -> None:
    ask: dict[str, Any] = {"max_new_tokens": 12, "temperature": 1.0}
    drafted, alone = (generate(text_pair, "hello", strategy=spec, **ask) for spec in ("speculative:k=3", "target"))
    told = {"num_draft_tokens": 10, "num_tested_draft_tokens": 8, "num_accepted_draft_tokens": 5, "looped_tokens": 3}
    told |= {"total_flops": 24.0, "weight_bytes_read": 36.0}
    run = drafted.model_copy(update={"metrics": drafted.metrics.model_copy(update=told)})
    row, other = tidy.of_runs([run, alone]).records
    assert row["tokens"] == 12 and row["tested_acceptance_rate"] == 5 / 8 and row["looped_share"] == 3 / 12
    assert (row["flops_per_token"], row["weight_bytes_per_token"]) == (2.0, 3.0)
    assert (row["draft"], row["k"], other["draft"], other["k"]) == ("model", 3, None, None)


def test_bounds_and_ratios_have_their_own_columns() -> None:
    told = tidy._call(Timing(median=2.0, low=1.0, high=4.0), 0.5)
    assert [told[f"seconds_per_call{end}"] for end in ("", "_low", "_high", "_kind")] == [2.0, 1.0, 4.0, "quartiles"]
    assert told["relative_to_step"] == 4.0
    ratios = {
        name: Ratio(of_means=value, mean=value, interval=None, interval_kind=None, prompts=1)
        for name, value in (("length", 1.1), ("length_ended", 1.2), ("calls", 1.3), ("calls_to_lossless", 1.4))
    }
    found = tidy.cost_columns(AnswerCosts(target_calls_per_answer=9.0, looped_share=0.0, share_cut=0.0, **ratios))
    names = ("length_to_target", "length_to_target_ended", "calls_to_target", "calls_to_lossless")
    assert [found[name] for name in names] == [1.1, 1.2, 1.3, 1.4]


def test_a_table_outside_a_comparison_has_the_columns_of_any_strategy(text_pair: Pair) -> None:
    runs = [generate(text_pair, "hello", strategy=spec, max_new_tokens=4) for spec in ("target", "speculative:k=2")]
    heading, _, alone, drafted = export.of_runs(runs, several=True)["md"]().strip().splitlines()[-4:]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in (heading, alone, drafted)]
    place = cells[0].index("drafts passed")
    assert cells[1][place] == "–" != cells[2][place] and "q(I)" not in cells[0]
