"""Every prompt and turn has its own random numbers, whichever command answers it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from cascli import Pair, generate
from cascli.analysis.statistics import difference_interval, mean_interval
from cascli.errors import UsageError
from cascli.jobs import recording
from cascli.jobs.compare import compare
from cascli.jobs.generate import converse
from cascli.prompts import Prompt, read_prompts
from cascli.sampling import distributions
from cascli.sampling.uniforms import Uniforms, seed_of
from cascli.settings import Settings, resolve
from cascli.strategies import parse
from cascli.sweeps import worker as module
from cascli.sweeps.plan import Cell, SweepPlan
from cascli.sweeps.quality import agreement
from cascli.sweeps.tasks import Example, Task
from cascli.sweeps.units import Unit
from cascli.sweeps.worker import Worker, answers

KEYWORDS: dict[str, Any] = {"max_new_tokens": 24, "temperature": 1.0, "seed": 5}
SETTINGS = resolve(Settings(**KEYWORDS))


def test_seeds_differ_by_each_of_their_parts() -> None:
    parts = [(seed, name, turn) for seed in (0, 1, 12) for name in ("", "1", "12", "1,2", '"') for turn in (0, 1, 2)]
    seeds = {seed_of(*each) for each in parts}
    assert len(seeds) == len(parts)
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert seed_of(0, "HumanEval/3", 1) == seed_of(0, "HumanEval/3", 1)


def test_equal_prompts_of_a_file_get_independent_answers(text_pair: Pair) -> None:
    twins = [Prompt(("hello",), name) for name in ("1", "2")]
    found = compare(text_pair, twins, ["target", "speculative:k=3"], **KEYWORDS, measure=False)
    ours, theirs = found.runs[0], found.runs[2]
    assert ours.prompt_token_ids == theirs.prompt_token_ids
    assert ours.token_ids != theirs.token_ids
    assert [run.prompt_id for run in found.runs] == ["1", "1", "2", "2"]


def test_each_turn_has_its_own_random_numbers(text_pair: Pair) -> None:
    first, second = converse(text_pair, parse("target"), Prompt(("a", "a"), "x"), SETTINGS)
    again = generate(
        text_pair,
        prompt_ids=second.prompt_token_ids,
        strategy="target",
        max_new_tokens=24,
        temperature=1.0,
        uniforms=Uniforms(seed_of(5, "x", 1), 25),
    )
    assert (first.turn, second.turn) == (0, 1)
    assert second.token_ids == again.token_ids
    of_turn_0 = Uniforms(seed_of(5, "x", 0), 25)
    other = generate(
        text_pair,
        prompt_ids=second.prompt_token_ids,
        strategy="target",
        max_new_tokens=24,
        temperature=1.0,
        uniforms=of_turn_0,
    )
    assert second.token_ids != other.token_ids


def test_strategies_share_random_numbers_within_a_prompt(text_pair: Pair) -> None:
    """A cascade that always defers writes the target's text, because it draws with the target's random numbers."""
    strategies = [parse("target"), parse("token-cascade:rule=chow,alpha=-0.5"), parse("draft")]
    found = compare(text_pair, [Prompt(("hello",), "7")], strategies, **KEYWORDS, measure=False)
    target, cascade, draft = found.runs
    assert cascade.token_ids == target.token_ids  # chow at alpha < 0 always defers, and draws as the target does
    assert draft.token_ids != target.token_ids


def test_each_problem_of_a_sweep_has_its_own_random_numbers(text_pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = SweepPlan(strategies=["target"], temperatures=[1.0], max_new_tokens=24)
    problems = [Example("a", "hello"), Example("b", "hello")]
    cell = Cell(strategy="target", temperature=1.0, seed=0)
    [ours], [theirs] = (answers(text_pair, plan, cell, problem) for problem in problems)
    assert ours.token_ids != theirs.token_ids
    asked = []
    monkeypatch.setattr(module, "record", lambda pair, prompts, settings, *_, **__: asked.append((prompts, settings)))
    monkeypatch.setattr(module, "rule_estimates", lambda *_: [])
    Worker(text_pair, plan, Task("agreement", problems)).rule_estimates(2)
    [(prompts, settings)] = asked
    assert [prompt.id for prompt in prompts] == ["a", "b"]
    seen = recording.record(text_pair, prompts, settings, 2)
    assert seen.lengths == (24, 24) and not seen.d.q[:24].equal(seen.d.q[24:])


def test_a_sweep_answers_every_turn(text_pair: Pair) -> None:
    plan = SweepPlan(strategies=["speculative:k=2"], temperatures=[1.0], max_new_tokens=6, likelihood=True)
    problem = Example("x", "hello", later=("and then?",))
    cell = Cell(strategy="speculative:k=2", temperature=1.0, seed=5)
    runs = answers(text_pair, plan, cell, problem)
    settings = resolve(Settings(max_new_tokens=6, temperature=1.0, seed=5))
    wanted = list(converse(text_pair, parse("speculative:k=2"), Prompt(("hello", "and then?"), "x"), settings))
    assert [run.token_ids for run in runs] == [run.token_ids for run in wanted]
    [record] = Worker(text_pair, plan, Task("agreement", [problem])).run([Unit(cell, problem)])
    assert record.error is None and record.token_ids == [token for run in wanted for token in run.token_ids]
    assert record.target_calls == sum(run.metrics.target_calls for run in wanted)
    assert record.tested == sum(run.metrics.num_tested_draft_tokens for run in wanted)
    assert record.log_likelihood is not None and record.mean_tv == 0
    assert recording.record(text_pair, [Prompt(problem.turns, "x")], settings, 2).lengths == (6, 6)


def test_a_strategy_warms_up_once(text_pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    """A strategy warms up before its first answer in a process, uncounted, and with room for a whole block."""
    asked, right = [], module.decode

    def decode(pair: Pair, strategy: Any, request: Any) -> Any:
        asked.append((strategy.spec, request.max_new_tokens))
        return right(pair, strategy, request)

    monkeypatch.setattr(module, "decode", decode)
    plan = SweepPlan(strategies=["speculative:k=6"], temperatures=[1.0], max_new_tokens=5)
    exam = Task("agreement", [Example("a", "x"), Example("b", "y")])
    worker = Worker(text_pair, plan, exam)
    cell = Cell(strategy="speculative:k=6", temperature=1.0, seed=0)
    list(worker.run([Unit(cell, problem) for problem in exam.problems]))
    assert [n for spec, n in asked if spec == "speculative:k=6"] == [8, 5, 5]


def test_prompts_without_an_id_use_their_position(tmp_path: Path) -> None:
    file = tmp_path / "prompts.jsonl"
    file.write_text('{"prompt": "a"}\n\n{"prompt": "b", "id": "x"}\n{"prompt": "c"}\n')
    assert [prompt.id for prompt in read_prompts(file)] == ["1", "x", "3"]
    file.write_text('{"prompt": "a", "id": 4}\n{"prompt": "b", "id": "4"}\n')
    with pytest.raises(UsageError, match=r"prompts.jsonl:2: two prompts have the id '4' .*jsonl:1"):
        read_prompts(file)


def test_a_run_records_everything_needed_to_repeat_it(text_pair: Pair) -> None:
    run = generate(
        text_pair,
        "hello",
        strategy="speculative:k=2",
        max_new_tokens=9,
        seed=3,
        stop=["zz"],
        system="be kind",
        raw=True,
    )
    assert (run.system, run.raw, run.sampling.stop, run.prompt_id, run.turn) == ("be kind", True, ["zz"], "", 0)
    s = run.sampling
    again = generate(
        text_pair,
        prompt_ids=run.prompt_token_ids,
        strategy=run.spec,
        max_new_tokens=s.max_new_tokens,
        temperature=s.temperature,
        seed=s.seed,
        stop=s.stop,
    )
    assert again.token_ids == run.token_ids


# ---- the purpose: intervals over prompts

POSITIONS, VOCAB, REPEATS = 16, 12, 100


def experiment(prompts: int, repeat: int, *, shared: bool) -> tuple[list[float], list[float]]:
    """Scores of two equally good ways to answer, over fresh prompts with their own random laws.

    Both use a prompt's random numbers, as the strategies of a comparison do; with `shared`, all prompts use the same.
    """
    rng = torch.Generator().manual_seed(1000 * prompts + repeat)
    logits = 2 * torch.randn(2, prompts, POSITIONS, VOCAB, generator=rng)
    # Sorted, so that the same u has a similar effect everywhere, as it does where laws are peaked.
    laws = torch.softmax(logits.sort(dim=-1, descending=True).values, dim=-1)
    best = laws.sum(dim=0).argmax(dim=-1)
    scores: tuple[list[float], list[float]] = ([], [])
    for prompt in range(prompts):
        seed = repeat if shared else seed_of(repeat, str(prompt), 0)
        u = Uniforms(seed, POSITIONS).draw(0, POSITIONS)
        for way in (0, 1):
            ids = distributions.sample(laws[way, prompt], u).tolist()
            scores[way].append(agreement(ids, best[prompt].tolist()))
    return scores


def coverage(prompts: int, truth: float, *, shared: bool = False) -> tuple[float, float]:
    """Shares of 95% intervals that contain the true mean, and the true difference of 0."""
    means, differences = 0, 0
    for repeat in range(REPEATS):
        ours, theirs = experiment(prompts, repeat, shared=shared)
        mean = mean_interval(ours)
        difference = difference_interval([a - b for a, b in zip(ours, theirs, strict=True)])
        assert mean is not None and difference is not None
        means += mean.low <= truth <= mean.high
        differences += difference.low <= 0 <= difference.high
    return means / REPEATS, differences / REPEATS


@pytest.fixture(scope="module")
def truth() -> float:
    ours, theirs = experiment(4000, 0, shared=False)
    return sum(ours + theirs) / 8000


@pytest.mark.slow
@pytest.mark.parametrize("prompts", [10, 20, 80])
def test_intervals_over_prompts_cover_at_temperature_1(prompts: int, truth: float) -> None:
    assert min(coverage(prompts, truth)) >= 0.9


@pytest.mark.slow
def test_shared_random_numbers_would_be_detected(truth: float) -> None:
    """The bug that this file guards against, one set of random numbers for all prompts, shows in the coverage."""
    mean, _ = coverage(80, truth, shared=True)
    assert mean < 0.8
