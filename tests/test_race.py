"""Strategies that run concurrently: equal time for each, the same answers as sequentially, and interruptions."""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from cascli import Pair, compare, generate, load_pair
from cascli.analysis.comparison import Comparison, first_divergence, summarise
from cascli.cli.app import app
from cascli.jobs.compare import Repeats, resolved_schedule
from cascli.jobs.generate import settings_of
from cascli.jobs.race import ROUNDS, SECONDS, race
from cascli.prompts import Prompt
from cascli.render import html_trace
from cascli.render.comparison import ended_early_line
from cascli.render.verdict import verdict
from cascli.strategies import parse
from cascli.trace import Run
from tests.pairs import pair

STRATEGIES = [
    "target",
    "draft",
    "cascade:threshold=0",
    "token-cascade",
    "speculative:k=3",
    "speculative:draft=prompt-lookup,k=2",
    "speculative-cascade:rule=token-v3,alpha=0.3,k=2",
]


class Machine:
    """A clock whose speed the test sets, and work that advances it."""

    def __init__(self) -> None:
        self.time, self.slow, self.order = 0.0, 1.0, list[int]()

    def now(self) -> float:
        return self.time

    def work(self, place: int, rounds: int, seconds: float) -> Iterator[int]:
        for _ in range(rounds):
            self.time += seconds * self.slow
            self.order.append(place)
            yield place


def test_the_strategy_with_the_least_time_so_far_runs_next() -> None:
    machine = Machine()
    seen: Counter[int] = Counter()

    def on_event(place: int, event: int) -> None:
        assert place == event
        machine.time += 100  # time spent on an event is charged to no run
        seen[place] += 1

    race([machine.work(0, 60, 0.3), machine.work(1, 60, 0.05), machine.work(2, 20, 0.1)], on_event, now=machine.now)
    assert seen == {0: 60, 1: 60, 2: 20}
    halfway = Counter(machine.order[: machine.order.index(1) + 45])
    shares = [halfway[0] * 0.3, halfway[1] * 0.05]
    assert max(shares) - min(shares) <= 2 * 0.6 + SECONDS  # up to one slice each
    slices = [len(list(each)) for each in _runs(machine.order)]
    assert min(slices[:-1]) >= ROUNDS


def _runs(order: list[int]) -> Iterator[list[int]]:
    start = 0
    for i in range(1, len(order) + 1):
        if i == len(order) or order[i] != order[start]:
            yield order[start:i]
            start = i


def test_a_varying_machine_speed_affects_fair_strategies_equally() -> None:
    """The time ratio of two equal strategies under varying load stays near 1 if fair, but not if sequential."""

    def ratio(fair: bool, seed: int) -> float:
        machine, rng = Machine(), random.Random(seed)
        used = [0.0, 0.0]

        def loaded(place: int) -> Iterator[int]:
            for _ in range(400):
                before = machine.time
                machine.slow = 1 + 2 * (rng.random() < 0.5) if int(before) % 5 == 0 else machine.slow
                machine.time += 0.05 * machine.slow
                used[place] += machine.time - before
                yield place

        runs = [loaded(0), loaded(1)]
        if fair:
            race(runs, lambda *_: None, now=machine.now)
        else:
            for each in runs:
                list(each)
        return used[0] / used[1]

    off = {fair: sorted(abs(ratio(fair, seed) - 1) for seed in range(40))[20] for fair in (True, False)}
    assert off[True] < 0.05 < off[False]


def test_an_error_ends_the_race() -> None:
    def fails() -> Iterator[int]:
        yield 1
        raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"):
        race([Machine().work(0, 5, 0.1), fails()], lambda *_: None)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_answers_do_not_depend_on_concurrent_strategies(temperature: float) -> None:
    """Each strategy has its own caches: tokens, rounds and costs equal those of a sequential run."""
    loaded = load_pair(pair())
    ask: dict[str, Any] = {"max_new_tokens": 24, "temperature": temperature, "measure": False}
    prompts = [Prompt(("one", "two"), "a"), Prompt(("three",), "b")]
    fair, sequential = (compare(loaded, prompts, STRATEGIES, schedule=each, **ask) for each in ("fair", "sequential"))
    assert (fair.schedule, sequential.schedule) == ("fair", "sequential")
    assert len(fair.runs) == 3 * len(STRATEGIES)
    for ours, theirs in zip(fair.runs, sequential.runs, strict=True):
        assert ours.spec == theirs.spec and ours.token_ids == theirs.token_ids and ours.text == theirs.text
        for name in ("draft_calls", "target_calls", "target_tokens_read", "draft_tokens_read", "total_flops"):
            assert getattr(ours.metrics, name) == getattr(theirs.metrics, name), (ours.spec, name)
        assert [len(round_.drafted) for round_ in ours.rounds] == [len(round_.drafted) for round_ in theirs.rounds]
    assert Comparison.from_json(fair.to_json()) == fair


def test_the_pair_is_locked_during_a_race() -> None:
    loaded = load_pair(pair())

    def nosy(_column: int, _event: object) -> None:
        with pytest.raises(Exception, match="already answering"):
            generate(loaded, "x", max_new_tokens=2)

    compare(loaded, "hello", ["target", "draft"], max_new_tokens=4, on_event=nosy, measure=False)
    assert generate(loaded, "x", max_new_tokens=2).token_ids


def test_auto_means_fair_only_on_a_cpu(text_pair: Pair) -> None:
    assert resolved_schedule("auto", text_pair) == "fair" and resolved_schedule("sequential", text_pair) == "sequential"


def stopped(loaded: Pair, specs: list[str], stop: Any, *, runs: int = 1, schedule: Any = "fair") -> Repeats:
    """A comparison interrupted by `stop`."""
    settings = settings_of(loaded, max_new_tokens=60, temperature=1.0)
    prompts = [Prompt(("one",), "1"), Prompt(("two",), "2")]
    done = Repeats(loaded, prompts, [parse(spec) for spec in specs], settings, runs=runs, schedule=schedule)
    with pytest.raises(KeyboardInterrupt):
        done.run(stop)
    return done


def after(rounds: int, of: int) -> Any:
    """Interrupt once each of the first `of` columns has made more than `rounds` rounds."""
    made: Counter[int] = Counter()

    def stop(column: int, event: object) -> None:
        made[column] += not isinstance(event, Run)
        if min(made[each] for each in range(of)) > rounds:
            raise KeyboardInterrupt

    return stop


@pytest.mark.parametrize("schedule", ["fair", "sequential"])
def test_an_interruption_leaves_consistent_partial_answers(schedule: Any) -> None:
    """Each strategy keeps its partial answer, with metrics that match it."""
    loaded = load_pair(pair())
    done = stopped(loaded, ["target", "speculative:k=3"], after(5, 2), schedule=schedule)
    assert done.cut_short()
    found = done.comparison()
    assert [run.strategy for run in found.runs[:2]] == ["target", "speculative"]
    last = found.runs[1] if schedule == "fair" else found.runs[-1]
    assert last.finish_reason == "interrupted" and 5 < len(last.token_ids) < 60
    assert last.metrics.num_rounds == len(last.rounds) and last.metrics.tokens_per_second
    assert generate(loaded, "x", max_new_tokens=2).token_ids  # the pair is free again


def test_after_an_interruption_no_strategy_is_charged_for_the_others() -> None:
    """Suspended strategies are not resumed: their time ends with their own last round."""
    specs = ["target", "token-cascade", "speculative:k=2", "draft"]
    done = stopped(load_pair(pair()), specs, after(20, 4))
    time.sleep(0.3)
    assert done.cut_short()
    for run in done.comparison().runs:
        assert run.metrics.seconds.total - sum(round_.seconds.total for round_ in run.rounds) < 0.02, run.spec


def test_an_interrupted_repeat_is_not_compared_with_whole_ones() -> None:
    ended: Counter[int] = Counter()

    def stop(column: int, event: object) -> None:
        ended[column] += isinstance(event, Run)
        if ended.total() >= 4 and not isinstance(event, Run):
            raise KeyboardInterrupt  # in the first round of the second repeat

    done = stopped(load_pair(pair()), ["target", "draft"], stop, runs=2)
    assert done.cut_short()
    found = done.comparison()
    assert len(found.repeats) == 1 and all(run.finish_reason != "interrupted" for run in found.runs)


def test_interrupted_answers_that_agree_so_far_do_not_differ() -> None:
    loaded = load_pair(pair())
    ask = {"prompt_ids": [5, 6, 7], "temperature": 0.0}
    long, short = (generate(loaded, strategy="target", max_new_tokens=n, **ask) for n in (20, 9))
    cut = short.model_copy(update={"finish_reason": "interrupted"})
    assert first_divergence(short, long) == 9
    assert first_divergence(cut, long) is first_divergence(long, cut) is None


def interrupted_beside(target: str, other: str) -> Comparison:
    """Answers of the target and of speculation to one prompt: 9 tokens if interrupted, otherwise 20."""
    loaded, ask = load_pair(pair()), {"prompt_ids": [5, 6, 7], "temperature": 0.0}
    runs = []
    for name, end in (("target", target), ("speculative:k=3", other)):
        run = generate(loaded, strategy=name, max_new_tokens=9 if end == "interrupted" else 20, **ask)
        runs.append(run.model_copy(update={"finish_reason": end}))
    return Comparison(runs=runs, summary=summarise([[[run] for run in runs]]))


@pytest.mark.parametrize(
    ("target", "other", "same"),
    [("length", "length", True), ("length", "interrupted", None), ("interrupted", "length", None)],
)
def test_an_interrupted_answer_counts_as_neither_equal_nor_cut_by_the_limit(
    target: str, other: str, same: bool | None
) -> None:
    found = interrupted_beside(target, other)
    row = found.summary[1]
    assert row.same_as_target is same and row.first_divergence is None
    assert row.answers == row.answers_same == int(same or 0)
    assert [each.answers_cut for each in found.summary] == [int(end == "length") for end in (target, other)]
    assert found.summary[0].same_as_target
    costs = row.costs
    assert costs is not None and costs.length is None and costs.share_cut == int(other == "length")
    lossy = row.model_copy(update={"lossless": False, "speed_vs_target": 3.0})
    assert ("ended early" in (verdict([found.summary[0], lossy]) or "")) == (same is None)


def test_an_interrupted_answer_that_diverged_from_the_target_differs() -> None:
    found = interrupted_beside("length", "interrupted")
    target, other = found.runs
    changed = other.emitted[4].model_copy(update={"id": (other.emitted[4].id + 1) % 7})
    ids = [*other.token_ids[:4], changed.id, *other.token_ids[5:]]
    row = summarise([[[target], [other.model_copy(update={"token_ids": ids})]]])[1]
    assert row.same_as_target is False and row.first_divergence == 4 and (row.answers, row.answers_same) == (1, 0)


def test_interrupted_answers_are_marked_wherever_they_are_shown(tmp_path: Path) -> None:
    found = interrupted_beside("length", "interrupted")
    said = "ended early: 1 of 2 answers are shown as far as they got: speculative k=3"
    file = tmp_path / "int.json"
    file.write_text(found.to_json())
    shown = CliRunner().invoke(app, ["show", str(file), "--trace", "none"], env={"COLUMNS": "100"})
    assert shown.exit_code == 0 and said in shown.stdout
    assert said in html_trace.of_comparison(found, None) and said in (found._repr_html_() or "")
    withheld = found.summary[1].costs.withheld
    assert withheld == "1 of 1 answers of speculative:k=3 ended early"
    assert ended_early_line(interrupted_beside("length", "length").runs) is None
    every = "ended early: 2 of 2 answers are shown as far as they got"
    assert ended_early_line(interrupted_beside("interrupted", "interrupted").runs) == every


def test_an_undecided_cascade_has_no_answer_yet() -> None:
    """The draft model's text becomes the cascade's answer only when it is judged good enough."""
    done = stopped(load_pair(pair()), ["target", "cascade:threshold=0"], after(8, 2))
    assert done.cut_short()
    assert [run.strategy for run in done.comparison().runs] == ["target"]


def test_an_interruption_before_any_output_keeps_no_answers() -> None:
    loaded = load_pair(pair())
    done = Repeats(loaded, [Prompt(("one",), "1")], [parse("target"), parse("draft")], settings_of(loaded))
    assert not done.cut_short()


def test_turns_of_a_conversation_do_not_count_as_prompts() -> None:
    prompts = [Prompt(("one", "two", "three"), "a"), Prompt(("four",), "b"), Prompt(("five", "six"), "c")]
    found = compare(load_pair(pair()), prompts, ["target", "draft"], max_new_tokens=3, measure=False)
    assert found.summary[1].speed_interval_kind == "range" and found.summary[1].speed_interval_over == "prompts"
