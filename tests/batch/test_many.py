"""Many prompts at once: from Python, on the command line, in comparisons, sweeps and measurements."""

from __future__ import annotations

import io
import json
import os
import re
import signal
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, cast

import pytest
import torch
import yaml
from rich.console import Console
from typer.testing import CliRunner

from cascli import Pair, compare, generate, generate_many, load_pair
from cascli.analysis.batches import predicted_rate
from cascli.analysis.profile import Profile, timing
from cascli.analysis.prospects import break_even
from cascli.cli.app import app
from cascli.engine import Decoding
from cascli.errors import PairWarning, RunError, UsageError
from cascli.jobs.batch_profile import batch_profiles
from cascli.jobs.bench import bench
from cascli.jobs.compare import Repeats
from cascli.jobs.generate import converse, settings_of
from cascli.models.batch import reader
from cascli.models.cpu.batch_reader import RowReader
from cascli.models.eager_runner import EagerRunner
from cascli.models.pair import LoadedModel
from cascli.prompts import Prompt
from cascli.render.sweep import sweep_tables
from cascli.strategies import parse
from cascli.sweeps.plan import load_plan
from cascli.sweeps.records import Record, Records
from cascli.sweeps.run import sweep
from cascli.sweeps.table import SweepRow
from cascli.sweeps.tasks import task_of
from cascli.sweeps.units import batches, by_cell, units
from cascli.trace import Run
from tests import warm
from tests.pairs import ARCHITECTURES, pair, torch_version

PROMPTS = [Prompt(("Hello",), "a"), Prompt(("One", "Two", "Three"), "b"), Prompt(("What?",), "c"), Prompt(("x",), "d")]
PLAN = """
pair: tiny-random
strategies: ["speculative:k=3", "cascade:threshold=-5.6", "speculative-cascade:rule=token-v3,alpha=0.3,k=2"]
temperatures: [0.0, 1.0]
limit: 4
max_new_tokens: 9
likelihood: true
"""


@pytest.fixture(scope="module")
def tiny() -> Pair:
    return load_pair("tiny-random")


def test_answers_equal_those_of_generate_in_prompt_order(tiny: Pair) -> None:
    spec = "speculative:k=3"
    runs = generate_many(tiny, PROMPTS, strategy=spec, batch_size=3, max_new_tokens=11, seed=4)
    settings = settings_of(tiny, max_new_tokens=11, seed=4)
    alone = [run for prompt in PROMPTS for run in converse(tiny, parse(spec), prompt, settings)]
    assert [(run.prompt_id, run.turn, run.token_ids) for run in runs] == [
        (run.prompt_id, run.turn, run.token_ids) for run in alone
    ]
    assert {run.batch_size for run in runs} == {3}
    assert {run.metrics.ttft_seconds for run in runs} == {None}
    assert Run.from_json(runs[0].to_json()) == runs[0]


def test_bad_input_is_refused_before_anything_is_answered(tiny: Pair) -> None:
    with pytest.raises(UsageError, match="batch_size: expected 1 or more"):
        generate_many(tiny, ["x"], batch_size=0)
    long = Prompt(("x" * 5000,), "long one")
    with pytest.raises(UsageError, match=r"prompt 'long one'.*context"):
        generate_many(tiny, [PROMPTS[0], long])
    with pytest.raises(UsageError, match="at least one prompt"):
        generate_many(tiny, [])


def test_a_batch_that_does_not_fit_names_the_largest_that_does(tiny: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    draft, target = (256 * state_bytes(model) for model in tiny.models.values())
    monkeypatch.setattr(reader, "available", lambda device: 3 * (draft + target) + 5)
    with pytest.raises(RunError, match=r"a batch of 4 does not fit.*\n.*a batch of 3 or fewer"):
        generate_many(tiny, PROMPTS, strategy="target", batch_size=4, max_new_tokens=5)
    assert generate_many(tiny, PROMPTS, strategy="target", batch_size=3, max_new_tokens=5)


def state_bytes(model: LoadedModel) -> int:
    """Measured on the states themselves, so that the prediction is compared with what is allocated."""
    runner = cast(EagerRunner, model.runner.fresh())
    runner.forward(torch.tensor([1]), 1)
    states = [layer.states for layer in runner.cache.layers]
    return sum(each.keys[:, :, 0].nbytes + each.values[:, :, 0].nbytes for each in states)


def test_a_comparison_of_batches(tiny: Pair) -> None:
    found = compare(tiny, PROMPTS, ["target", "speculative:k=2"], batch_size=3, max_new_tokens=8, temperature=0.0)
    alone = compare(tiny, PROMPTS, ["target", "speculative:k=2"], max_new_tokens=8, temperature=0.0, measure=False)
    assert [run.token_ids for run in found.runs] == [run.token_ids for run in alone.runs]
    assert found.batch_size == 3
    assert all(row.weight_bytes_per_token is None and row.flops_per_token for row in found.summary), "passes are shared"
    assert found.schedule == "sequential"
    assert found.profile is not None and found.profile.batch_size == 3
    with pytest.raises(UsageError, match="fair schedule"):
        compare(tiny, PROMPTS, ["target"], batch_size=2, schedule="fair")


def test_on_the_command_line(tmp_path: Path) -> None:
    asked = tmp_path / "asked.jsonl"
    asked.write_text("".join(json.dumps({"id": each.id, "turns": each.turns}) + "\n" for each in PROMPTS))
    common = [
        "generate",
        "-c",
        "tiny-random",
        "--prompts",
        str(asked),
        "-s",
        "speculative:k=2",
        "--max-new-tokens",
        "7",
    ]
    together = CliRunner().invoke(app, [*common, "--batch-size", "3", "-o", str(tmp_path / "many.jsonl")])
    assert together.exit_code == 0, together.output
    alone = CliRunner().invoke(app, common)
    assert together.stdout == alone.stdout
    kept = [json.loads(line) for line in (tmp_path / "many.jsonl").read_text().splitlines()]
    assert sorted((run["prompt_id"], run["turn"]) for run in kept) == [
        ("a", 0), ("b", 0), ("b", 1), ("b", 2), ("c", 0), ("d", 0),
    ]  # fmt: skip
    page = ["compare", *common[1:], "-s", "target", "--trace", "none", "--no-measure", "--batch-size", "2"]
    shown = CliRunner().invoke(app, page)
    assert "throughput of 2 answers at once" in " ".join(shown.stdout.split())
    assert CliRunner().invoke(app, [*page, "--schedule", "fair"]).exit_code == 2


def plain(folder: Path) -> list[Record]:
    """The records that must not depend on the batch."""
    found = [each.model_copy(update={"seconds": None, "batch_size": 1}) for each in Records(folder).read()]
    return sorted(found, key=lambda each: each.key)


@pytest.mark.skipif(torch_version() < (2, 13), reason="float32 is exact in blocks of up to ten tokens with this torch")
def test_a_batched_sweep_writes_the_same_records(tiny: Pair, tmp_path: Path) -> None:
    plan = tmp_path / "plan.yaml"
    plan.write_text(PLAN)
    sweep(str(plan), tiny, output=tmp_path / "one")
    sweep(str(plan), tiny, output=tmp_path / "many", batch_size=4)
    assert plain(tmp_path / "many") == plain(tmp_path / "one")
    assert all(record.error is None for record in plain(tmp_path / "many"))
    assert {record.batch_size for record in Records(tmp_path / "many").read()} == {4}


def test_every_batch_holds_units_of_one_cell(tmp_path: Path) -> None:
    plan = tmp_path / "plan.yaml"
    plan.write_text(PLAN)
    loaded = load_plan(plan)
    work = list(units(loaded, task_of(loaded, tmp_path)))
    assert sorted(unit.key for cell in by_cell(work) for unit in cell) == sorted(unit.key for unit in work)
    assert by_cell(work)[0][0].cell.strategy == "target"
    for batch in batches(work, 3):
        assert len({unit.cell.key for unit in batch}) == 1
    assert max(map(len, batches(work, 3))) == 3


def test_cells_run_in_plan_order_even_if_one_is_half_done(tmp_path: Path) -> None:
    plan = tmp_path / "plan.yaml"
    plan.write_text(PLAN.replace("[0.0, 1.0]", "[1.0, 0.0]"))
    loaded = load_plan(plan)
    work = list(units(loaded, task_of(loaded, tmp_path)))
    listed = [
        cell
        for temperature in loaded.temperatures
        for cell in sorted(loaded.cells(), key=lambda cell: cell.strategy != "target")
        if cell.temperature == temperature
    ]
    wanted = [cell.key for cell in listed]
    names = [cell.strategy.split(":")[0] for cell in listed[:4]]
    assert names == ["target", "speculative", "cascade", "speculative-cascade"] and listed[0].temperature == 1.0
    assert [cell[0].cell.key for cell in by_cell(work)] == wanted
    second, first_prompt = wanted[1], work[0].problem.id
    left = [unit for unit in work if (unit.cell.key, unit.problem.id) != (second, first_prompt)]
    assert [cell[0].cell.key for cell in by_cell(left)] == wanted


def test_a_killed_sweep_loses_at_most_a_batch(tmp_path: Path) -> None:
    plan, out = tmp_path / "plan.yaml", tmp_path / "out"
    plan.write_text(PLAN + "batch_size: 4\n")
    command = ["sweep", str(plan), "-o", str(out), "-q"]
    child = warm.start(*command)
    deadline = time.monotonic() + 120
    while len(list(records(out))) < 9 and time.monotonic() < deadline:
        time.sleep(0.02)
    os.kill(child.pid, signal.SIGKILL)
    assert child.wait().returncode == -signal.SIGKILL
    before = {record.key: record for record in Records(out).read()}
    assert 9 <= len(before) < 32
    assert warm.run(*command, "--resume").returncode == 0
    after = {record.key: record for record in Records(out).read()}
    assert len(after) == 32
    assert all(after[key] == record for key, record in before.items())


def records(folder: Path) -> Iterator[Record]:
    file = folder / "records.jsonl"
    return iter(Records(folder).read()) if file.exists() else iter(())


def flat(size: int, c: float, v: float, step: float = 1.0) -> Profile:
    """A profile in which every target pass over more than one token takes v steps."""
    of = {1: timing([step]), 5: timing([v * step]), 9: timing([v * step])}
    return Profile(context=10, batch_size=size, draft={1: timing([c * step])}, target=of)


def test_the_rate_of_a_batch_follows_from_its_round_time() -> None:
    # 3 tokens for each of 8 answers, in 4 draft passes of 0.1, one check of 1.5 and 8 times 0.05 outside the models.
    assert predicted_rate(flat(8, 0.1, 1.5), 4, 3.0, 0.05) == pytest.approx(24 / (0.4 + 1.5 + 0.4))
    assert predicted_rate(flat(8, 0.1, 1.5), 0, 1.0, 0.05) == pytest.approx(8 / (1.0 + 0.4))


def test_speculation_pays_up_to_some_batch() -> None:
    profiles = [flat(16, 0.1, 4.0), flat(1, 0.1, 1.0), flat(4, 0.1, 2.0)]
    found = {each.acceptance: each for each in break_even(profiles, (0.15, 0.7, 0.99))}
    assert (found[0.15].largest, found[0.15].or_more) == (1, False)
    assert (found[0.7].largest, found[0.7].or_more) == (4, False)
    assert (found[0.99].largest, found[0.99].or_more) == (16, True)


def test_a_larger_batch_may_pay_where_a_smaller_one_does_not() -> None:
    """The largest batch that pays is reported, even if smaller and larger ones do not pay."""
    [found] = break_even([flat(1, 0.1, 9.0), flat(2, 0.1, 1.0), flat(4, 0.1, 9.0)], (0.7,))
    assert (found.largest, found.or_more) == (2, False)
    [none] = break_even([flat(1, 0.1, 9.0), flat(4, 0.1, 9.0)], (0.7,))
    assert (none.largest, none.or_more) == (None, False)


def test_profiling_batches_times_passes_and_resets_the_runner(tiny: Pair) -> None:
    found = batch_profiles(tiny, 20, [1, 3], blocks=(1, 3, 17), repeats=1)
    assert [each.batch_size for each in found] == [1, 3]
    assert set(found[1].target) == {1, 2, 3, 17}
    assert set(found[1].draft) == {1, 2}
    assert tiny.target.runner.length == 0


def test_batch_measurements_are_saved_and_shown(tiny: Pair, tmp_path: Path) -> None:
    out = tmp_path / "bench.json"
    arguments = ["bench", "-c", "tiny-random", "--context", "16", "--longest-block", "5", "--repeats", "1", "-k", "2"]
    given = [*arguments, "--batch", "1,3", "--synthetic-acceptance", "0.7", "-o", str(out)]
    shown = CliRunner().invoke(app, given)
    assert shown.exit_code == 0, shown.output
    data = json.loads(out.read_text())
    assert [(run["batch_size"], run["k"]) for run in data["batch_runs"]] == [(1, 0), (1, 2), (3, 0), (3, 2)]
    assert "largest batch at which speculation pays" in shown.stdout
    again = CliRunner().invoke(app, ["show", str(out)])
    assert "tokens/s" in again.stdout
    narrow = CliRunner().invoke(app, ["show", str(out)], env={"COLUMNS": "40"}).stdout
    assert "…" not in narrow and max(map(len, narrow.splitlines())) <= 40
    assert all(f"{run['tokens_per_second']:.1f}" in narrow for run in data["batch_runs"])
    speeds = re.findall("speed-up over .*", narrow)  # from theory, in as many tables as needed
    assert len(speeds) > 1 and sum(len(re.findall(r"\d[.]\d\dx", line)) for line in speeds) == 5
    assert CliRunner().invoke(app, ["bench", "-c", "tiny-random", "--batch", "0"]).exit_code == 2


def test_memory_of_a_batch_is_predicted(tiny: Pair) -> None:
    found = bench(tiny, contexts=[16], blocks=[1, 2, 3], repeats=1, synthetic_acceptance=0.7, ks=[2], batch_sizes=[8])
    memory = found.batch_memory
    if memory is None or memory.measured_bytes is None:
        pytest.skip("this system does not say how much memory is in use")
    assert memory.predicted_bytes == pytest.approx(memory.measured_bytes, rel=0.15)


def test_lanes_of_a_sweep_hold_one_strategy_at_a_time(
    tiny: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    together: list[set[str]] = []
    steps = Decoding.steps
    under_way: list[str] = []

    def watched(self: Decoding) -> Any:
        under_way.append(self.strategy.spec)
        together.append(set(under_way))
        yield from steps(self)
        under_way.remove(self.strategy.spec)

    monkeypatch.setattr(Decoding, "steps", watched)
    plan = tmp_path / "plan.yaml"
    plan.write_text(PLAN.replace("limit: 4", "limit: 3"))
    sweep(str(plan), tiny, output=tmp_path / "out", batch_size=2)
    assert len(together) > 12
    assert all(len(each) == 1 for each in together)


def test_speeds_of_several_batch_sizes_are_not_mixed(tiny: Pair, tmp_path: Path) -> None:
    plan = {"pair": "tiny-random", "strategies": ["target"], "limit": 2, "max_new_tokens": 5}
    sweep(plan, tiny, output=tmp_path)
    more = plan | {"strategies": ["target", "speculative:k=2"], "limit": 2}
    rows = sweep(more, tiny, output=tmp_path, batch_size=2, resume=True)
    assert [row.batch_size for row in rows] == [1, 2]
    assert rows[1].tokens_per_second is not None and rows[1].speed_vs_target is None
    mixed = sweep(more | {"limit": 4}, tiny, output=tmp_path, batch_size=3, resume=True)
    assert [(row.batch_size, row.tokens_per_second) for row in mixed] == [(None, None)] * 2
    assert list(mixed.to_frame()["batch_size"].isna()) == [True, True]
    assert "batches of different sizes" in _said(mixed)
    assert "2 answers at once" in _said([rows[1]])
    older = [row.model_copy(update={"batch_size": None}) for row in rows]
    assert "at once" not in _said(older) and "different sizes" not in _said(older)


def _said(rows: Sequence[SweepRow]) -> str:
    console = Console(width=200, file=io.StringIO())
    for part in sweep_tables(rows, "agreement", console):
        console.print(part)
    return " ".join(console.file.getvalue().split())


def test_a_batch_is_no_larger_than_its_prompts(tiny: Pair) -> None:
    found = compare(tiny, PROMPTS[:2], ["target", "speculative:k=2"], batch_size=8, max_new_tokens=5)
    assert (found.batch_size, found.runs[0].batch_size) == (2, 2)
    assert found.profile is not None and found.profile.batch_size == 2
    assert found.summary[0].seconds_per_token is None
    assert list(found.to_frame()["batch_size"]) == [2, 2]
    alone = compare(tiny, PROMPTS[:1], ["target"], batch_size=8, max_new_tokens=5)
    assert (alone.batch_size, alone.schedule) == (1, "fair")


def test_an_interruption_keeps_the_first_answers(tiny: Pair) -> None:
    strategies = [parse("target"), parse("speculative:k=2")]
    done = Repeats(tiny, PROMPTS, strategies, settings_of(tiny, max_new_tokens=5), batch_size=2)

    def stop(column: int, event: Any) -> None:
        if column == 1 and event.prompt_id == "c":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        done.run(stop)
    assert done.cut_short()
    kept = done.comparison().runs
    assert {run.spec for run in kept} == {"target", "speculative:k=2"}
    assert kept[0].prompt_id == "a"


def test_running_out_of_memory_in_a_pass_is_reported(
    tiny: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(self: Any, wanted: Any) -> Any:
        raise torch.OutOfMemoryError("no more")

    monkeypatch.setattr(RowReader, "read", full)
    with pytest.raises(RunError, match="out of memory"):
        generate_many(tiny, PROMPTS, strategy="target", batch_size=3, max_new_tokens=5)
    assert not torch.is_inference_mode_enabled()


def test_both_models_caches_must_have_room(tiny: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    target = 4 * 256 * state_bytes(tiny.target)
    monkeypatch.setattr(reader, "available", lambda device: target + 5)
    with pytest.raises(RunError, match="a batch of 4 does not fit"):
        generate_many(tiny, PROMPTS, strategy="speculative:k=2", batch_size=4, max_new_tokens=5)


def test_step_times_of_a_batch_are_not_stored_in_the_pair(tiny: Pair) -> None:
    compare(tiny, PROMPTS[:2], ["target", "speculative:k=3,stop=rate"], batch_size=2, max_new_tokens=5)
    assert tiny.steps is None


def test_models_that_read_texts_one_by_one_warn() -> None:
    loaded = load_pair(pair(300, **ARCHITECTURES["gemma2"]))
    with pytest.warns(PairWarning, match="the (draft|target) model reads the texts of a batch one by one"):
        generate_many(loaded, ["a", "b"], strategy="target", batch_size=2, max_new_tokens=3)


def test_a_command_shows_a_warning_of_the_pair_as_one_line(tmp_path: Path) -> None:
    """Python would add the place in the code, even with -q."""
    config, asked = tmp_path / "pair.yaml", tmp_path / "asked.jsonl"
    config.write_text(yaml.safe_dump(pair(300, **ARCHITECTURES["gemma2"])))
    asked.write_text('{"prompt": "a"}\n{"prompt": "b"}\n')
    command = ["generate", "--prompts", str(asked), "-c", str(config), "-s", "target", "--max-new-tokens", "2"]
    hushed = os.environ | {"CASCLI_QUIET": "1"}
    loud, quiet = (warm.run(*command, "--batch-size", "2", env=env) for env in (None, hushed))
    assert warm.run(*command, "--batch-size", "2", "-q").stderr == ""
    assert "\nthe target model reads the texts of a batch one by one: " in f"\n{loud.stderr}"
    assert "PairWarning" not in loud.stderr and quiet.stderr == ""


def test_a_single_prompt_outside_a_list_matches_generate_and_has_no_id(tiny: Pair) -> None:
    """`generate`, `compare` and `generate_many` of one text draw equal numbers; the first of several has a place."""
    how: Any = {"max_new_tokens": 8, "temperature": 1.0}
    alone = generate(tiny, "hello", strategy="target", **how)
    [many] = generate_many(tiny, "hello", strategy="target", **how)
    [raced] = compare(tiny, "hello", strategies=["target"], measure=False, **how).runs
    [listed] = generate_many(tiny, ["hello"], strategy="target", **how)
    assert alone.token_ids == many.token_ids == raced.token_ids != listed.token_ids
    assert (alone.prompt_id, many.prompt_id, raced.prompt_id, listed.prompt_id) == ("", "", "", "1")


@pytest.mark.parametrize("key", ["device", "dtype", "limit", "output", "verbose", "bogus"])
def test_keywords_that_do_not_apply_are_refused(tiny: Pair, key: str) -> None:
    with pytest.raises(UsageError, match=f"unknown keyword '{key}'"):
        generate_many(tiny, ["a"], max_new_tokens=2, **{key: "1"})  # type: ignore[misc]
