"""What happens to one prompt of a sweep: its answers, their score, and the record that is saved."""

from __future__ import annotations

import dataclasses

import pytest

from cascli import Pair, generate
from cascli.analysis.profile import Profile, timing
from cascli.sweeps import ray_executor
from cascli.sweeps.likelihood import log_likelihood
from cascli.sweeps.plan import Cell, SweepPlan
from cascli.sweeps.tasks import Example, Task
from cascli.sweeps.units import Unit, batches, units
from cascli.sweeps.worker import Worker, answers, record_of


def test_whatever_changes_an_answer_changes_its_key_or_fingerprint() -> None:
    plan = SweepPlan(strategies=["draft"], temperatures=[1.0], runs=2)
    assert plan.fingerprint() != plan.model_copy(update={"top_p": 0.9}).fingerprint()
    assert len({cell.key for cell in plan.cells()}) == len(plan.cells()) == 4
    one, other = (Task("f1", [Example("a", "ask", later=(turn,))]).problem_hashes() for turn in ("more", "less"))
    assert one != other


def test_the_reference_is_greedy_whatever_ran_before(text_pair: Pair) -> None:
    plan = SweepPlan(strategies=["speculative:k=2"], temperatures=[1.0, 0.0], max_new_tokens=12)
    problem = Example("p", "hello")
    worker = Worker(text_pair, plan, Task("agreement", [problem]))
    for spec, temperature in (("target", 1.0), ("speculative:k=2", 0.0)):
        found = worker.do(Unit(Cell(strategy=spec, temperature=temperature, seed=0), problem))
    assert found.error is None and found.quality == 1


def test_a_failed_answer_keeps_its_prompts_category(text_pair: Pair) -> None:
    """Otherwise a category whose answers all failed would not know of them."""
    plan = SweepPlan(strategies=["target"], temperatures=[0.0], max_new_tokens=4)
    problem = Example("p", "x" * 5000, category="long")
    cell = Cell(strategy="target", temperature=0.0, seed=0)
    found = Worker(text_pair, plan, Task("agreement", [problem])).do(Unit(cell, problem))
    assert found.error is not None and found.category == "long"
    assert ray_executor._lost(Unit(cell, problem), RuntimeError("gone")).category == "long"


def test_a_record_covers_all_turns(text_pair: Pair) -> None:
    plan = SweepPlan(strategies=["speculative:k=2"], temperatures=[1.0], max_new_tokens=9)
    problem, cell = Example("p", "one", later=("two",)), Cell(strategy="speculative:k=2", temperature=1.0, seed=0)
    first, last = answers(text_pair, plan, cell, problem)
    record = record_of(cell, problem, [first, last], None, None)
    assert record.cut == record.turns == 2
    assert record.target_calls == first.metrics.target_calls + last.metrics.target_calls
    silent = first.model_copy(update={"metrics": first.metrics.model_copy(update={"num_draft_tokens": 0})})
    every = first.metrics.num_rounds + last.metrics.num_rounds  # including turns for which nothing was drafted
    assert record_of(cell, problem, [silent, last], None, None).rounds == every
    parts = [
        (log_likelihood(text_pair.target, run.prompt_token_ids, run.token_ids), len(run.token_ids))
        for run in (first, last)
    ]
    worker = Worker(text_pair, plan, Task("agreement", [problem]))
    assert worker._likelihood([first, last], text_pair) == pytest.approx(
        sum(a * n for a, n in parts) / sum(n for _, n in parts)
    )


def test_the_last_turn_is_scored(text_pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    scored: list[str] = []
    monkeypatch.setattr(Task, "score", lambda self, problem, text, *_: scored.append(text) or 0.0)
    plan = SweepPlan(strategies=["draft"], temperatures=[1.0], max_new_tokens=6)
    problem, cell = Example("p", "one", "ref", later=("two",)), Cell(strategy="draft", temperature=1.0, seed=0)
    Worker(text_pair, plan, Task("f1", [problem])).do(Unit(cell, problem))
    assert scored == [answers(text_pair, plan, cell, problem)[-1].text]


def test_each_turn_counts_once_in_the_deferral_rate_of_a_cascade(text_pair: Pair) -> None:
    plan = SweepPlan(strategies=["draft"], temperatures=[1.0], max_new_tokens=9)
    cell = Cell(strategy="cascade", temperature=1.0, seed=0)
    first, last = answers(text_pair, plan, cell, Example("p", "one", later=("two",)))
    rates = [
        run.model_copy(update={"metrics": run.metrics.model_copy(update={"deferral_rate": rate}), "token_ids": [1] * n})
        for run, rate, n in ((first, 0.0, 2), (last, 1.0, 8))
    ]
    assert record_of(cell, Example("p", "one"), rates, None, None).deferral_rate == 0.5


def test_a_mean_with_an_unknown_part_is_unknown(text_pair: Pair) -> None:
    """The table would show it as the mean of all tokens."""
    plan, problem = (
        SweepPlan(strategies=["draft"], temperatures=[1.0], max_new_tokens=4),
        Example("p", "a", later=("b",)),
    )
    cell = Cell(strategy="speculative-cascade:rule=opt,k=2", temperature=1.0, seed=0)
    runs = answers(text_pair, plan, cell, problem)
    known = record_of(cell, problem, runs, None, None)
    assert known.deferral_rate is not None and known.mean_tv is not None
    missing = dict.fromkeys(("deferral_rate", "mean_tv_to_target"))
    runs[0] = runs[0].model_copy(update={"metrics": runs[0].metrics.model_copy(update=missing)})
    part = record_of(cell, problem, runs, None, None)
    assert part.deferral_rate is None and part.mean_tv is None


def test_answers_do_not_depend_on_step_times_of_this_machine(text_pair: Pair) -> None:
    """Otherwise a sweep resumed elsewhere, or after `cascli bench`, would mix two strategies."""
    spec, cheap = "speculative:stop=rate,k=8", timing([0.001])
    timed = dataclasses.replace(
        text_pair, steps=Profile(context=9, draft={1: cheap}, target=dict.fromkeys((1, 9), timing([1.0])))
    )
    ask = {"strategy": spec, "max_new_tokens": 16, "temperature": 1.0}
    drafted = [generate(each, "hello", **ask).metrics.num_draft_tokens for each in (text_pair, timed)]
    assert drafted[0] < drafted[1]  # step times do make a difference
    plan = SweepPlan(strategies=[spec], temperatures=[1.0], max_new_tokens=16)
    unit = Unit(Cell(strategy=spec, temperature=1.0, seed=0), Example("p", "hello"))
    here, there = (Worker(each, plan, Task("agreement", [unit.problem])).do(unit) for each in (text_pair, timed))
    assert here.error is None and (here.drafted, here.token_ids) == (there.drafted, there.token_ids)


def test_batches_cover_all_work_with_one_cell_each() -> None:
    plan = SweepPlan(strategies=["draft"], temperatures=[0.0, 1.0])
    work = [*units(plan, Task("agreement", [Example(str(n), "ask") for n in range(5)]))]
    made = batches(work, 2)
    assert sorted(unit.key for each in made for unit in each) == sorted(unit.key for unit in work)
    assert [len(each) for each in made] == [2, 2, 1] * 4
    assert all(len({unit.cell.key for unit in each}) == 1 for each in made)
