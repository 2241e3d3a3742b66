"""All strategies under way at once: equal time for each, the same answers as one after the other, and interruptions."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest

from cascli import Pair, compare, generate, load_pair
from cascli.analysis.comparison import Comparison
from cascli.jobs.compare import Repeats, settled
from cascli.jobs.generate import settings_of
from cascli.jobs.race import ROUNDS, SECONDS, race
from cascli.prompts import Prompt
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
    """A clock that runs as fast or slow as a test says, and the work that takes its time."""

    def __init__(self) -> None:
        self.time, self.slow, self.order = 0.0, 1.0, list[int]()

    def now(self) -> float:
        return self.time

    def work(self, place: int, rounds: int, seconds: float) -> Iterator[int]:
        for _ in range(rounds):
            self.time += seconds * self.slow
            self.order.append(place)
            yield place


def test_whoever_has_had_the_least_time_goes_next() -> None:
    machine = Machine()
    seen: Counter[int] = Counter()

    def on_event(place: int, event: int) -> None:
        assert place == event
        machine.time += 100  # what is done with an event is nobody's time
        seen[place] += 1

    race([machine.work(0, 60, 0.3), machine.work(1, 60, 0.05), machine.work(2, 20, 0.1)], on_event, now=machine.now)
    assert seen == {0: 60, 1: 60, 2: 20}
    halfway = Counter(machine.order[: machine.order.index(1) + 45])
    shares = [halfway[0] * 0.3, halfway[1] * 0.05]
    assert max(shares) - min(shares) <= 2 * 0.6 + SECONDS  # a slice each way
    slices = [len(list(each)) for each in _runs(machine.order)]
    assert min(slices[:-1]) >= ROUNDS


def _runs(order: list[int]) -> Iterator[list[int]]:
    start = 0
    for i in range(1, len(order) + 1):
        if i == len(order) or order[i] != order[start]:
            yield order[start:i]
            start = i


def test_a_machine_that_slows_down_does_so_for_all() -> None:
    """The ratio of two equal strategies under a load that comes and goes: fair stays near 1, sequential does not."""

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
def test_answers_do_not_depend_on_who_else_is_under_way(temperature: float) -> None:
    """Each strategy with caches of its own: the same tokens, rounds and costs as one after the other."""
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


def test_nobody_else_runs_on_the_pair_meanwhile() -> None:
    loaded = load_pair(pair())

    def nosy(_column: int, _event: object) -> None:
        with pytest.raises(Exception, match="answering already"):
            generate(loaded, "x", max_new_tokens=2)

    compare(loaded, "hello", ["target", "draft"], max_new_tokens=4, on_event=nosy, measure=False)
    assert generate(loaded, "x", max_new_tokens=2).token_ids


def test_auto_is_fair_on_a_cpu_alone(text_pair: Pair) -> None:
    assert settled("auto", text_pair) == "fair" and settled("sequential", text_pair) == "sequential"


@pytest.mark.parametrize("schedule", ["fair", "sequential"])
def test_what_an_interruption_leaves_is_whole(schedule: Any) -> None:
    """Each strategy's answer as far as it had come, with the metrics of what it is; nothing where one had nothing."""
    loaded = load_pair(pair())
    strategies = [parse(text) for text in ("target", "speculative:k=3")]
    settings = settings_of(loaded, max_new_tokens=40, temperature=1.0)
    done = Repeats(loaded, [Prompt(("one",), "1"), Prompt(("two",), "2")], strategies, settings, schedule=schedule)
    rounds: Counter[int] = Counter()

    def stop(column: int, event: object) -> None:
        rounds[column] += not isinstance(event, Run)
        if min(rounds[0], rounds[1]) > 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        done.run(stop)
    done.interrupted()
    found = done.comparison()
    assert [run.strategy for run in found.runs[:2]] == ["target", "speculative"]
    last = found.runs[1] if schedule == "fair" else found.runs[-1]
    assert last.finish_reason == "interrupted" and 5 < len(last.token_ids) < 40
    assert last.metrics.num_rounds == len(last.rounds) and last.metrics.tokens_per_second
    assert generate(loaded, "x", max_new_tokens=2).token_ids  # the pair is free again


def test_an_interruption_before_anything_was_written_is_one() -> None:
    loaded = load_pair(pair())
    done = Repeats(loaded, [Prompt(("one",), "1")], [parse("target"), parse("draft")], settings_of(loaded))

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        done.run(stop)
    with pytest.raises(KeyboardInterrupt):
        done.interrupted()
