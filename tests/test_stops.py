"""The criterion of each stop, and that `rate` drafts as long as it pays."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from cascli import generate, load_pair, stops
from cascli.analysis import theory
from cascli.analysis.profile import Profile, Timing
from cascli.engine import Decoding, Request
from cascli.errors import UsageError
from cascli.models.step_costs import step_costs
from cascli.render.summary import lines
from cascli.sampling.parameters import Sampling
from cascli.stops.base import Stopping
from cascli.stops.rate import Rate
from cascli.strategies import parse
from cascli.trace import Run, StepCosts, block_length
from tests.pairs import model, pair
from tests.test_graph_runner import recorded

COSTS = StepCosts(c=0.2, v=[1 + 0.05 * n for n in range(17)], measured=True)


def stop(name: str, **how: float) -> Stopping:
    return stops.load(name)(**how).begin(COSTS)


def test_each_stop_uses_its_own_criterion() -> None:
    assert stop("max-q", least_q=0.6).before_draw([], 0.6) and not stop("max-q", least_q=0.6).before_draw([], 0.59)
    unsure = stop("confidence", least_q=0.4)
    assert unsure.before_step([]) and unsure.before_step([0.1, 0.4]) and not unsure.before_step([0.9, 0.39])
    assert stop("svip").before_draw([], 0.599) and not stop("svip").before_draw([], 0.601)
    edge = (1 - 0.4) ** 2 / 0.2
    assert stop("adaedl").before_draw([], edge - 1e-9) and not stop("adaedl").before_draw([], edge + 1e-9)


def test_adaedl_grows_stricter_while_drafts_fail_and_laxer_while_they_pass() -> None:
    failing, passing = stop("adaedl"), stop("adaedl")
    for _ in range(20):
        failing.learn([1.8], 0, rejected=True)
        passing.learn([1.8, 1.8], 2, rejected=False)
        passing.learn([], 0, rejected=False)  # a round without drafts changes nothing
    assert not failing.before_draw([], 1.5) and passing.before_draw([], 3.0)


def test_adaedl_forgets_half_a_round_at_a_time() -> None:
    """One good round does not offset the bad one before it: if they alternate, far fewer drafts pass than `aim`."""
    alternating = stop("adaedl", limit=0.5)
    assert alternating.before_draw([], 1.1)  # the bound is 0.53
    for kept in (0, 4) * 3:
        alternating.learn([], kept, rejected=kept < 4)
    assert not alternating.before_draw([], 1.1)  # the limit is now 0.56


def test_the_heuristic_grows_by_two_and_shrinks_by_one() -> None:
    growing = stop("heuristic", start=3)
    lengths = []
    for kept in (3, 5, 2, 0, 0):
        lengths.append(n := growing.most(64))
        growing.learn([], kept, rejected=kept < n)
    assert lengths == [3, 5, 7, 6, 5]
    for _ in range(9):
        n = growing.most(64)
        growing.learn([], 0, rejected=True)
    assert n == growing.most(64) == 1
    assert growing.most(0) == 0


# ---------------------------------------------------------------- theory


def test_continuing_to_draft_gains_up_to_the_best_block() -> None:
    """With one acceptance chance, at the rate of the best block: a shorter block goes on, and the best one stops."""
    rng = random.Random(0)
    for _ in range(300):
        a, c = rng.uniform(0.05, 0.98), rng.choice([0.0, 0.02, 0.2, 0.5])
        v = [1.0]
        for _ in range(16):
            v.append(v[-1] + rng.choice([0.0, 0.01, 0.2]))
        cost = [c * k + v[k] for k in range(17)]
        best = max(range(17), key=lambda k: (theory.expected_tokens(a, k) / cost[k], -k))
        rate = theory.expected_tokens(a, best) / cost[best]
        for d in range(best + 1):
            more = [cost[n] - cost[d] for n in range(d + 1, 17)]
            gain = theory.gain_of_drafting_on(a**d, a, a, rate, more)
            assert (gain > 1e-9) == (d < best), (a, c, d, best)


def ways_to_split(tokens: int) -> Iterator[list[int]]:
    """All ordered ways to write a number of tokens as a sum of rounds."""
    if tokens == 0:
        yield []
    for first in range(1, tokens + 1):
        yield from ([first, *rest] for rest in ways_to_split(tokens - first))


def test_the_oracle_is_the_best_of_all_ways_to_split_the_kept_tokens() -> None:
    rng = random.Random(1)
    assert len(list(ways_to_split(7))) == 2**6
    for _ in range(200):
        kept = rng.randrange(8)
        cost = [1 + rng.choice([0, 0.1, 0.9, -0.1]) * j for j in range(kept + 1)]
        # A round of n tokens keeps n - 1 drafts; more may be drafted than is kept, and the rest is discarded.
        ways = [sum(min(cost[n - 1 :]) for n in split) for split in ways_to_split(kept + 1)]
        assert theory.oracle_cost(kept, cost.__getitem__) == pytest.approx(min(ways))


def test_the_oracle_drafts_extra_tokens_where_a_longer_block_is_cheaper() -> None:
    """Step times of a target as on a CPU that uses different kernels for one row and for five."""
    v = [1.0, 0.99, 0.68, 0.64, 0.59, 0.7]
    for kept, least in ((0, v[4] + 0.03 * 4), (1, v[4] + 0.03 * 4), (4, v[4] + 0.03 * 4), (5, v[5] + 0.03 * 5)):
        assert theory.oracle_cost(kept, lambda j: v[j] + 0.03 * j, 5) == pytest.approx(least)
    assert theory.oracle_cost(0, v.__getitem__) == 1.0  # no longer block is known


# ---------------------------------------------------------------- rate


def drafted_lengths(
    costs: StepCosts, chance: Callable[[float], float], best: Callable[[random.Random], float]
) -> list[int]:
    """Number of tokens each round drafts, for a draft model with these best probabilities and acceptance chances."""
    rng, going, found = random.Random(0), Rate().begin(costs), []
    for _ in range(400):
        n, seen, drafted = going.most(16), list[float](), 0
        while drafted < n and going.before_step(seen[:]):
            seen.append(best(rng))
            if not going.before_draw(seen[:-1], seen[-1]):
                break
            drafted += 1
        kept = next((i for i in range(drafted) if rng.random() >= chance(seen[i])), drafted)
        going.learn(seen[: kept + 1], kept, rejected=kept < drafted)
        found.append(drafted)
    return found[100:]


@pytest.mark.parametrize("a", [0.5, 0.8, 0.9])
def test_rate_finds_the_best_fixed_length_if_all_drafts_are_equally_good(a: float) -> None:
    best = theory.best_k(a, COSTS.c, lambda k: COSTS.v[k], 16)
    found = drafted_lengths(COSTS, lambda _: a, lambda _: 0.9)
    assert sorted(found)[len(found) // 2] == pytest.approx(best, abs=1)


def test_rate_keeps_drafting_where_the_draft_is_confident() -> None:
    """Three quarters of the positions nearly always pass, the rest nearly never: blocks end before the latter."""
    chance = {0.999: 0.97, 0.2: 0.1}
    found = drafted_lengths(COSTS, chance.__getitem__, lambda rng: rng.choice([0.999, 0.999, 0.999, 0.2]))
    assert min(found) == 0 and max(found) > 4
    cheap = COSTS.model_copy(update={"c": 0.0})
    assert sum(drafted_lengths(cheap, chance.__getitem__, lambda _: 0.999)) > sum(found)


def test_rate_stops_drafting_where_it_does_not_pay_but_retries() -> None:
    dear = COSTS.model_copy(update={"c": 1.0})
    assert sum(drafted_lengths(dear, lambda _: 0.9, lambda _: 0.9)) == 0
    hopeless = drafted_lengths(COSTS, lambda _: 0.02, lambda _: 0.1)
    assert 0 < sum(hopeless) < len(hopeless) / 3


def test_rate_recovers_after_a_difficult_text() -> None:
    """It also forgets how frequent each kind of position was: when a text turns easy, drafting resumes."""
    going: Any = Rate().begin(COSTS)
    for _ in range(200):
        going.learn([0.2] * 4, 0, rejected=True)
    assert going.mean_acceptance() < 0.2
    for _ in range(60):
        going.learn([0.995] * 4, 4, rejected=False)
    assert going.mean_acceptance() > 0.75


def test_a_step_that_runs_anyway_counts_as_free() -> None:
    """With a rule that reads q after the last draft, the next step is free, but drawing costs the step after it."""
    anyway = StepCosts(c=2.0, v=[1.0] * 17, reads_last=True, measured=True)
    going, other = Rate().begin(anyway), Rate().begin(anyway.model_copy(update={"reads_last": False}))
    for each in (going, other):
        each.most(8)
    assert going.before_step([]) and not other.before_step([])
    assert not going.before_draw([], 0.2) and other.before_draw([], 0.2)


def decisions_of(seed: int, when: dict[str, bool]) -> set[tuple[str, bool]]:
    """Decisions of a stop that has learnt something, checked against gains and costs computed independently here."""
    rng = random.Random(seed)
    c, v = rng.choice([0.05, 0.3, 0.6]), [1.0]
    for _ in range(8):
        v.append(v[-1] + rng.choice([0.0, 0.1, 0.3]))
    going = Rate().begin(StepCosts(c=c, v=v, measured=True, **when))
    for _ in range(rng.randrange(12)):
        kept = rng.randrange(4)
        going.learn([rng.random() for _ in range(4)], kept, rejected=kept < 3)
    going.most(6)
    drawn, here = [rng.random() for _ in range(rng.randrange(4))], rng.random()
    mean, reach, d = going.mean_acceptance(), math.prod(going.acceptance(each) for each in drawn), len(drawn)

    def cost(n: int, passing: float) -> float:
        return c * (n + (1.0 if "reads_last" in when else passing if "reads_if_kept" in when else 0.0)) + v[n]

    rate = max(sum(mean**i for i in range(k + 1)) / cost(k, mean**k) for k in range(9))

    def pays(first: float, stopping: float) -> bool:
        passing = [reach * first * mean**i for i in range(6 - d)]
        return any(sum(passing[: m + 1]) > rate * (cost(d + m + 1, passing[m]) - stopping) for m in range(6 - d))

    step = "reads_last" in when or pays(mean, cost(d, reach))
    looked = cost(d, 1.0) if "reads_last" in when else cost(d, 0.0) + c
    draw = pays(going.acceptance(here), looked)
    assert going.before_step(drawn) == step and going.before_draw(drawn, here) == draw
    return {("step", step), ("draw", draw)}


@pytest.mark.parametrize("when", [{}, {"reads_last": True}, {"reads_if_kept": True}], ids=["no q", "every", "kept"])
def test_rate_continues_where_the_gain_is_positive(when: dict[str, bool]) -> None:
    """Covers a draft step after no round, after every round, and after rounds whose drafts all passed."""
    decided = set().union(*(decisions_of(seed, when) for seed in range(200)))
    assert len(decided) == (3 if "reads_last" in when else 4)


def test_step_costs_are_in_the_trace() -> None:
    loaded = load_pair(pair())
    ask = {"prompt_ids": [5, 6, 7], "strategy": "speculative:stop=rate,k=auto", "max_new_tokens": 8}
    assumed = generate(loaded, **ask)
    assert assumed.costs is not None and not assumed.costs.measured
    assert any("rate used assumed step costs, c = 1.00" in line for line in lines(assumed))
    assert assumed.costs.c == pytest.approx(1.0) and assumed.costs.v == [1 + n / 32 for n in range(17)]
    loaded.steps = Profile(
        context=9, draft={1: timing(0.1)}, target={n: timing(1 + 0.1 * (n - 1)) for n in (1, 2, 3, 5, 9, 17)}
    )
    measured = generate(loaded, **ask)
    assert measured.costs is not None and measured.costs.measured and measured.costs.c == pytest.approx(0.1)
    assert measured.costs.v == pytest.approx([1 + 0.1 * n for n in range(17)])
    assert Run.from_json(measured.to_json()) == measured and not any("assumed" in line for line in lines(measured))
    assert '"costs"' not in generate(loaded, **ask | {"strategy": "speculative"}).to_json()
    alone = load_pair({"name": "alone", "target": model(2, 300)})
    lookup = generate(alone, **ask | {"strategy": "speculative:stop=rate,draft=prompt-lookup,k=8"})
    assert lookup.costs is not None and lookup.costs.c == 0 and len(lookup.costs.v) == 9


def timing(seconds: float) -> Timing:
    return Timing(median=seconds, low=seconds, high=seconds)


def test_auto_means_k_16_with_rate_unless_another_stop_is_named() -> None:
    strategy = parse("speculative:stop=rate,k=auto")
    assert strategy.spec == "speculative:stop=rate,k=auto" and block_length(strategy.params) == 16
    assert parse("speculative:k=auto") == strategy
    cut = parse("speculative-cascade:k=auto,rule=token-v3,draft=suffix")
    assert (
        cut.spec
        == "speculative-cascade:rule=token-v3,alpha=0.3,draft=suffix,max_suffix=24,min_suffix=1,stop=rate,k=auto"
    )
    assert parse("speculative:k=auto,stop=svip").params["stop"] == "svip"
    assert parse("speculative:stop=svip", 6).params["k"] == 6
    for text, said in {
        "speculative:k=auto,stop=never": "stop=rate,k=auto",
        "speculative:k=x": "k: Input should be a valid integer",
        "speculative:stop=svip,draft=prompt-lookup": "certain of every token; use stop=rate or stop=heuristic",
        "speculative:stop=rat": "did you mean 'rate'",
        "speculative:stop=max-q,least_q=2": "least_q: Input should be less than or equal to 1",
    }.items():
        with pytest.raises(UsageError, match=said.replace("?", ".")):
            parse(text)


@pytest.mark.parametrize("name", [name for name in stops.names() if name != "never"])
def test_greedy_texts_are_the_targets_whatever_the_length(name: str) -> None:
    loaded = load_pair(pair(8))
    ask = {"prompt_ids": [5, 6, 7], "max_new_tokens": 40, "temperature": 0.0}
    wanted = generate(loaded, strategy="target", **ask)
    for more in ("", ",draft=suffix"):
        run = generate(loaded, strategy=f"speculative:stop={name},k=auto{more}", **ask)
        assert run.token_ids == wanted.token_ids and run.metrics.lossless
        assert len(run.metrics.acceptance_histogram or [0] * 17) == 17
        assert math.isfinite(run.metrics.seconds.total)


@pytest.mark.parametrize("stop", ["max-q,least_q=0.05", "confidence,least_q=0.02", "heuristic", "rate"])
@pytest.mark.parametrize("rule", ["speculative:", "speculative-cascade:rule=token-v3,alpha=0.3,"])
@pytest.mark.usefixtures("asked_at_once")
def test_recorded_steps_draft_the_same(rule: str, stop: str) -> None:
    """As on a GPU, with a tape in place of CUDA graphs; while decoding, nothing is recorded that was not prepared."""
    plain, taped = load_pair(pair()), recorded(load_pair(pair()))
    for loaded in (plain, taped):
        loaded.steps = Profile(context=9, draft={1: timing(0.05)}, target={n: timing(1.0) for n in (1, 17)})
    strategy = parse(f"{rule}stop={stop},k=6")
    ask = {"prompt_ids": [5, 6, 7], "max_new_tokens": 30}
    wanted = generate(plain, strategy=strategy, **ask)
    Decoding(taped, strategy, Request(prompt_ids=[5, 6, 7], sampling=Sampling(), max_new_tokens=30))._prepare(3)
    prepared = taped.draft.runner.graphs
    found = generate(taped, strategy=strategy, **ask)
    assert found.token_ids == wanted.token_ids
    assert [len(step.drafted) for step in found.rounds] == [len(step.drafted) for step in wanted.rounds]
    assert len({len(step.drafted) for step in found.rounds}) > 2
    assert found.metrics.draft_calls == wanted.metrics.draft_calls
    assert taped.draft.runner.graphs == prepared


@pytest.mark.parametrize("reads", ["max", None])
def test_a_stop_that_would_never_be_called_is_refused(reads: str | None) -> None:
    body = {"__qualname__": "Typo", "reads": reads, "before_step": lambda self, drawn: False}
    with pytest.raises(TypeError, match=r"Typo: reads must be one of 'best', 'entropy', 'chance' \(got "):
        type("Typo", (Stopping,), body)


def test_the_heuristic_grows_from_the_number_of_drafts_requested() -> None:
    growing = stops.load("heuristic")(start=9).begin(None)
    growing.most(4)
    growing.learn([], 4, rejected=False)
    assert growing.most(64) == 6


def test_untested_drafts_do_not_change_the_estimate() -> None:
    going: Any = Rate().begin(StepCosts(c=0.2, v=[1.0] * 9, measured=True))
    before = going.acceptance(0.2)
    going.learn([0.999, 0.2], 1, rejected=False)
    assert going.acceptance(0.2) == before


def test_a_late_draft_read_is_charged_only_if_the_whole_block_is_kept() -> None:
    costs = parse("speculative-cascade:rule=opt,stop=rate,k=4").costs(load_pair(pair()))
    assert costs is not None and costs.reads_if_kept and not costs.reads_last


def test_extrapolated_costs_are_not_marked_as_measured() -> None:
    one = Timing(median=1.0, low=1.0, high=1.0)
    profile = Profile(context=9, draft={1: one}, target={1: one, 3: one})
    timed: Any = SimpleNamespace(steps=profile)
    near, far = (step_costs(timed, k, 1.0) for k in (2, 8))
    assert near.measured and not far.measured
