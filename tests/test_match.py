"""Rules at equal budgets: recordings, estimates from them, the settings found, and running them."""

from __future__ import annotations

import itertools
import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from typer.testing import CliRunner

from cascli import Pair, load_pair, rules
from cascli.analysis.matching import Matched, met, strategies_of
from cascli.analysis.rule_estimate import RuleEstimate
from cascli.analysis.theory import expected_rounds, expected_tokens
from cascli.cli.app import app
from cascli.errors import PairWarning, RunError, UsageError
from cascli.jobs import match as job
from cascli.jobs import rule_curves
from cascli.jobs.compare import compare
from cascli.jobs.recording import LIKELIEST, LUMPS, OF_EACH, Compact, Seen, compact, joined, mass_in_lumps, record
from cascli.jobs.rule_curves import NEAR, match, predicted_calls, rule_estimates, with_dial
from cascli.prompts import Prompt, builtin, split_for_calibration
from cascli.render.matching import budget_lines
from cascli.rules.base import Exact, Rule
from cascli.rules.mixture import Mixture
from cascli.sampling import distributions
from cascli.sampling.distributions import Dists, Divergence, Which, base, warp
from cascli.sampling.parameters import Sampling
from cascli.settings import Resolved
from tests.pairs import near, pair, prompts

WHOLE = ("bild", "chow", "diff", "fuzzy", "opt", "opt-log")
"""Rules that depend on whole distributions."""


@pytest.fixture(scope="module")
def near_pair() -> Pair:
    """Two models that often agree: the draft is the target with noise added to its weights."""
    return near()


# ---- calls along an answer


def rounds_of(passes: tuple[bool, ...], k: int) -> int:
    """Number of rounds of an answer drafted in blocks of k; `passes` states which tokens would pass their tests."""
    place = rounds = 0
    while place < len(passes):
        drafted = min(k, len(passes) - 1 - place)
        kept = next((i for i in range(drafted) if not passes[place + i]), drafted)
        place, rounds = place + kept + 1, rounds + 1
    return rounds


@pytest.mark.parametrize("k", [1, 2, 3, 5])
def test_expected_rounds_match_enumeration_of_all_outcomes(k: int) -> None:
    rng = random.Random(k)
    for n in (1, 2, 5, 9):
        chances = [rng.choice([0.0, 1.0, rng.random()]) for _ in range(n)]
        expected = 0.0
        for passes in itertools.product((True, False), repeat=n):
            weight = 1.0
            for each, chance in zip(passes, chances, strict=True):
                weight *= chance if each else 1 - chance
            expected += weight * rounds_of(passes, k)
        assert expected_rounds(chances, k) == pytest.approx(expected, abs=1e-12)


def test_a_single_mean_acceptance_would_mispredict_calls() -> None:
    """Half of an answer always passes, half never does: the mean acceptance would predict too few calls."""
    chances = [1.0] * 100 + [0.0] * 100
    calls = expected_rounds(chances, 4) / 200
    assert calls == pytest.approx((20 + 100) / 200)
    assert 1 / expected_tokens(0.5, 4) == pytest.approx(0.516, abs=1e-3) and calls > 0.59
    even = expected_rounds([0.5] * 2000, 4) / 2000
    assert even == pytest.approx(1 / expected_tokens(0.5, 4), rel=2e-3)


def test_predicted_calls_are_exact_along_a_greedy_answer(near_pair: Pair) -> None:
    for k in (1, 3, 4):
        seen = record(near_pair, prompts("hello", "what is it?", "x"), Resolved(max_new_tokens=40, temperature=0.0), k)
        assert predicted_calls(Exact(), seen, k) * sum(seen.lengths) == pytest.approx(seen.calls, abs=1e-3)
        assert sum(seen.lengths) / (k + 1) < seen.calls < 0.95 * sum(seen.lengths)


def test_predicted_calls_match_runs_on_average_at_temperature_1(near_pair: Pair) -> None:
    """Predictions match on average over seeds: a text determines the chances of its drafts, not the drafts sampled."""
    settings = [Resolved(max_new_tokens=40, temperature=1.0, seed=seed) for seed in range(30)]
    seen = [record(near_pair, prompts("hello", "x"), each, 4) for each in settings]
    predicted = torch.tensor([predicted_calls(Exact(), each, 4) for each in seen])
    taken = torch.tensor([each.calls / sum(each.lengths) for each in seen])
    error = float((predicted - taken).std()) / len(seen) ** 0.5
    assert 0.3 < float(taken.mean()) < 0.9
    assert abs(float((predicted - taken).mean())) < 3 * error + 0.01 * float(taken.mean())


def test_recorded_chances_of_tokens_are_unbiased(near_pair: Pair) -> None:
    """Over all tokens that might have been written, the mean chance that the token was drafted is the acceptance."""
    for temperature in (0.0, 1.0):
        seen = [
            record(near_pair, prompts("hello"), Resolved(max_new_tokens=30, temperature=temperature, seed=s), 3)
            for s in range(20)
        ]
        passed, expected = (torch.cat([getattr(each, name) for each in seen]) for name in ("passed", "expected"))
        error = float((passed - expected).std()) / len(passed) ** 0.5
        assert abs(float((passed - expected).mean())) <= 3 * error
        assert passed.equal(expected) is (temperature == 0)


def test_calls_of_a_cascade_are_predicted_along_its_own_text(near_pair: Pair) -> None:
    """A recording made under a rule estimates that rule along the prefixes it visits itself."""
    rule = rules.load("mixture")(target_weight=0.3)
    settings = [Resolved(max_new_tokens=40, temperature=1.0, seed=seed) for seed in range(20)]
    seen = [record(near_pair, prompts("hello", "x"), each, 3, rule) for each in settings]
    predicted = sum(predicted_calls(rule, each, 3) for each in seen) / len(seen)
    taken = sum(each.calls / sum(each.lengths) for each in seen) / len(seen)
    assert predicted == pytest.approx(taken, rel=0.04)


# ---- what is stored of a position


def laws(kind: str, width: int, positions: int = 12) -> Dists:
    """Flat and peaked laws of two models that partly agree, after sampling settings and at temperature 1."""
    rng = torch.Generator().manual_seed(0)
    noise = torch.randn(2, positions, width, generator=rng)
    order = torch.stack([torch.randperm(width, generator=rng) for _ in range(positions)])
    zipf = -torch.log(order + 1.0)
    sampling, logits = {
        "zipf 2.5": (Sampling(1.0), 2.5 * zipf + 0.5 * noise),
        "zipf 1.5": (Sampling(1.0), 1.5 * zipf + 0.5 * noise),
        "zipf 1.2, hot": (Sampling(1.5), 1.2 * zipf + 0.5 * noise),
        "gauss": (Sampling(1.0), 3.0 * torch.randn(positions, width, generator=rng) + noise),
        "zipf 1.5, greedy": (Sampling(0.0), 1.5 * zipf + 0.5 * noise),
        "zipf 1.5, cut": (Sampling(0.8, top_p=0.9), 1.5 * zipf + 0.5 * noise),
    }[kind]
    q, p = (warp(rows, sampling) for rows in logits)
    return Dists(q, p, base(logits[0]), base(logits[1]))


def seen_of(d: Compact, lengths: Sequence[int] = ()) -> Seen:
    """A recording of compacted distributions without known answers; one answer unless `lengths` says otherwise."""
    exact = distributions.overlap(d.q, d.p)
    return Seen(d, exact, exact, mass_in_lumps(d), tuple(lengths or (d.q.shape[0],)))


KINDS = ("zipf 2.5", "zipf 1.5", "zipf 1.2, hot", "gauss", "zipf 1.5, greedy", "zipf 1.5, cut")


@pytest.mark.parametrize("kind", KINDS)
def test_compact_distributions_stay_within_their_stated_error(kind: str) -> None:
    """Rules that depend on whole distributions are exact; others err by at most the mass that was lumped together."""
    full = laws(kind, 20_000)
    small = seen_of(compact(full))
    assert small.d.q.shape == (12, LIKELIEST + LUMPS)
    for whole, cut in zip(full, small.d, strict=True):
        assert cut.sum(-1) == pytest.approx(whole.sum(-1), abs=1e-5)
    tv = distributions.total_variation
    assert tv(small.d.p, small.d.q) == pytest.approx(tv(full.p, full.q), abs=1e-5)
    tail = float(small.tail.mean())
    assert tail > 1e-4 or kind in ("zipf 2.5", "zipf 1.5, greedy", "zipf 1.5, cut")
    for name, kind_of_rule, dial in with_dial():
        off = 1e-4 if name in WHOLE else tail + 1e-4
        for place in (0.0, 0.1, 0.3, 0.45, 0.55, 0.7, 0.9, 1.0):
            rule = kind_of_rule(**{dial.parameter: dial.at(place)})
            for number in (acceptance, distance):
                exact, found = number(rule, full), number(rule, small.d)
                assert found == pytest.approx(exact, abs=off), (name, dial.at(place), number)


def flat(width: int = 32_000) -> Dists:
    """Flat laws: all tokens but the likeliest thousand have most of the mass, and a lump more than any token."""
    logits = torch.randn(2, 20, width, generator=torch.Generator().manual_seed(1))
    return Dists.of_logits(*logits, Sampling(1.0))


@pytest.mark.parametrize("width", [1000, 1030, LIKELIEST + LUMPS, LIKELIEST + LUMPS + 1, 32_000])
def test_numbers_of_whole_distributions_survive_lumping(width: int) -> None:
    full = flat(width)
    parts = [compact(Dists(*(rows[cut] for rows in full))) for cut in (slice(0, 7), slice(7, 20))]
    small = joined(parts)
    lumped = width > LIKELIEST + LUMPS
    assert bool(mass_in_lumps(small).any()) is lumped
    assert bool((small.p > full.best("p")).any(dim=-1).all()) is (width == 32_000)  # a lump outweighs every token
    for of in get_args(Which):
        rows = getattr(small, of)
        assert small.best(of).equal(full.best(of)) and small.entropy(of).equal(full.entropy(of))
        assert rows.gather(-1, small.likeliest(of)).equal(full.best(of))
        for n in (1, 2, OF_EACH):
            assert small.nth_largest(of, n).equal(full.nth_largest(of, n))
        assert small.nth_largest(of, 10**9).le(small.per_token(of)).all()  # limits nothing
    for by in get_args(Divergence):
        assert small.divergence(by).equal(full.divergence(by))
    bild = [each.p1.gather(-1, each.likeliest("q1")) for each in (full, small)]
    assert bild[0].equal(bild[1])
    chance = [(each.q * each.per_token("q1")).sum(-1) for each in (full, small)]
    assert chance[1] == pytest.approx(chance[0], abs=1e-4)


@pytest.mark.parametrize("name", WHOLE)
def test_whole_rules_decide_as_on_flat_laws_that_were_not_lumped(name: str) -> None:
    full = flat()
    small = compact(full)
    [(_, kind, dial)] = with_dial([name])
    values = [*(dial.at(i / 64) for i in range(65)), 0.0, 0.99]
    settings: list[dict[str, Any]] = [{dial.parameter: value} for value in values]
    if name == "fuzzy":
        settings += [{"threshold": i / 20, "divergence": by} for i in range(40) for by in get_args(Divergence)]
    decisions = set()
    for setting in settings:
        keep = kind(**setting).keep(full)
        assert kind(**setting).keep(small).equal(keep), setting
        decisions.add(tuple(keep.flatten().tolist()))
    assert len(decisions) > 1


@pytest.mark.parametrize(
    ("name", "params"),
    [("min-p", {"alpha": 0.3}), ("top-k", {"n": 1}), ("top-k", {"n": OF_EACH}), ("top-p", {"mass": 0.02})]
    + [(name, {"alpha": 0.3, **more}) for name in ("token-v2", "token-v3", "head") for more in ({}, {"top": 3})],
)
def test_a_lump_is_not_taken_for_a_likely_token(name: str, params: dict[str, Any]) -> None:
    """Lumps are likelier than any token here, but none of their tokens is in the set."""
    full = flat()
    small = compact(full)
    rule = rules.load(name)(**params)
    if name == "token-v2":
        rule = rules.load(name)(**params | {"alpha": float(full.best("p1").min()) / 3})
    for number in (acceptance, distance):
        assert number(rule, small) == pytest.approx(number(rule, full), abs=1e-4 if name != "top-p" else 2e-3)


@pytest.mark.parametrize("sampling", [Sampling(0.0), Sampling(0.7, top_k=1), Sampling(1.0, top_p=1e-6), Sampling(0.05)])
def test_mixture_sees_the_same_single_tokens_after_lumping(sampling: Sampling) -> None:
    logits = 4 * torch.randn(2, 20, 20_000, generator=torch.Generator().manual_seed(2))
    logits[:, 0, 0] += 200  # both models are certain at temperature 1
    full = Dists.of_logits(*logits, sampling)
    small = compact(full)
    rule = rules.load("mixture")(target_weight=0.4)
    one_hot = [rule.apply(each).amax(-1) == 1 for each in (full, small)]
    assert one_hot[0].equal(one_hot[1])
    assert distance(rule, small) == pytest.approx(distance(rule, full), abs=1e-5)
    assert acceptance(rule, small) == pytest.approx(acceptance(rule, full), abs=1e-5)


def acceptance(rule: Rule, d: Dists) -> float:
    return float(torch.minimum(rule.apply(d), d.q).sum(-1).mean())


def distance(rule: Rule, d: Dists) -> float:
    return float(distributions.total_variation(rule.apply(d), d.p).mean())


def test_a_small_vocabulary_is_kept_as_it_is() -> None:
    full = laws("zipf 1.5", 500)
    small = seen_of(compact(full))
    assert all(ours.equal(theirs) for ours, theirs in zip(small.d, full, strict=True)) and not small.tail.any()


def test_rounds_do_not_cross_answers(near_pair: Pair) -> None:
    """A round never extends into the next answer."""
    seen = record(near_pair, prompts("hello", "x"), Resolved(max_new_tokens=7, temperature=1.0), 4)
    assert seen.lengths == (7, 7)
    assert [len(each) for each in seen.passing(seen.expected)] == [7, 7]
    always = rules.load("chow")(alpha=1.0)
    assert predicted_calls(always, seen, 4) == pytest.approx(4 / 14)  # 7 = 5 + 2, twice; 14 in one answer: 3 rounds


def test_replay_judges_the_rules_as_runs_do() -> None:
    """chow at alpha = 1 keeps q everywhere; deferral falls with alpha; calls are at least 1 / (k + 1) per token."""
    loaded = load_pair(pair(300))
    asked = prompts(*(f"prompt {i}" for i in range(6)))
    found = rule_estimates(record(loaded, asked, Resolved(max_new_tokens=40, temperature=1.0), 3), 3, 1.0)
    assert len(found) == 6 * 33  # the settings of the paper
    by = {(each.rule, each.alpha): each for each in found}
    assert by["chow", 1.0].acceptance == pytest.approx(1, abs=1e-5)  # keeps q everywhere
    assert by["chow", 1.0].deferral_rate == 0
    strict: RuleEstimate = by["diff", 0.0]
    assert 0 <= strict.acceptance <= 1 and strict.mean_tv <= strict.max_tv <= 1
    for rule in ("chow", "diff", "opt", "token-v2", "token-v3"):
        rates = [by[rule, alpha].deferral_rate for alpha in (0.0, 0.25, 0.5, 1.0)]
        assert rates == sorted(rates, reverse=True)
        assert by[rule, 0.5].target_calls_per_token >= 0.25


# ---- settings that meet a budget


@dataclass(frozen=True)
class FailsAtItsEnd(Mixture):
    """A third-party rule that works at its default, and not over the whole of its range."""

    def apply(self, d: Dists) -> torch.Tensor:
        if self.target_weight < 0.2:
            raise ZeroDivisionError("boom")
        return super().apply(d)


def test_a_rule_that_fails_somewhere_in_its_range_is_left_out(near_pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    """Unless it was asked for; it stopped the search for all others, without its name."""
    known = rule_curves.with_dial

    def with_one_more(names: Sequence[str] | None = None) -> Any:
        assert FailsAtItsEnd.dial is not None
        every = [*known(["mixture"]), ("ends", FailsAtItsEnd, FailsAtItsEnd.dial)]
        return [each for each in every if names is None or each[0] in names]

    monkeypatch.setattr(rule_curves, "with_dial", with_one_more)
    seen = seen_of(compact(laws("zipf 1.5", 300)))
    with pytest.warns(PairWarning, match="left out: the rule .fails-at-its-end. of .*ZeroDivisionError: boom"):
        assert {each.rule for each in match(seen, [0.5], 3, 1.0)} == {"mixture"}
    with pytest.raises(RunError, match=r"fails-at-its-end.*ZeroDivisionError: boom"):
        match(seen, [0.5], 3, 1.0, ["mixture", "ends"])
    # As compare calls it, rule by rule.
    every = job.RuleRequest(("mixture", "ends"), (0.5,), by_name=False)
    how: Any = (prompts("one", "two"), Resolved(max_new_tokens=8, temperature=1.0))
    with pytest.warns(PairWarning, match="left out"):
        assert {each.rule for each in job.calibrate(near_pair, *how, every).matched} == {"mixture"}
    with pytest.raises(RunError, match="fails-at-its-end"):
        job.calibrate(near_pair, *how, every._replace(by_name=True))
    assert job.parse_request([("target_calls_per_token", 0.5)], "all").by_name is False
    assert job.parse_request([("target_calls_per_token", 0.5)], "opt").by_name


def test_a_budget_is_searched_over_each_rules_own_range() -> None:
    """Every rule is searched from its lossless end to the draft's own; a missed budget is reported with the reason."""
    seen: Seen = seen_of(compact(laws("zipf 1.5", 3000, positions=400)), [40] * 10)
    lossless = predicted_calls(Exact(), seen, 4)
    budgets = [0.2 + share * (lossless - 0.2) for share in (0.3, 0.6, 0.9)]
    found = match(seen, budgets, 4, 1.0)
    assert [each.rule for each in found] == [name for name in rules.names() for _ in budgets]
    for each in found:
        dial = rules.load(each.rule).dial
        assert dial is not None and each.parameter == dial.parameter
        assert min(dial.strict, dial.loose) <= each.value <= max(dial.strict, dial.loose)
        assert each.met is (abs(each.predicted - each.budget) <= 0.03 * each.budget) is met(each.predicted, each.budget)
        assert each.least is not None and each.most is not None and each.least <= each.predicted <= each.most
        # The target's best token is kept as soon as alpha reaches 0: a jump.
        steps_over = each.rule in ("head", "token-v2", "token-v3") and "jumps over" in each.why
        assert each.met or steps_over or not each.least <= each.budget <= each.most, each
        rule = rules.load(each.rule)(**{dial.parameter: type(dial.strict)(each.value)})
        assert predicted_calls(rule, seen, 4) == pytest.approx(each.predicted, rel=1e-6)  # the reported setting
    met_by = {each.rule for each in found if each.met and each.budget == budgets[0]}
    assert met_by == {name for name in rules.names() if rules.load(name).reads_draft}
    assert min(each.value for each in found if each.rule in ("diff", "opt")) < 0
    assert set(strategies_of(found)) == {each.spec for each in found if each.met}


def test_an_unreachable_budget_is_reported_with_the_nearest_setting() -> None:
    seen = seen_of(compact(laws("zipf 1.5", 500, positions=100)), [50, 50])
    cheap, dear = match(seen, [0.01, 1.0], 4, 1.0, ["diff"])
    assert (
        not cheap.met
        and cheap.predicted == pytest.approx(0.2)
        and "uses at least 0.200 target calls, not 0.01;" in str(cheap)
    )
    assert not dear.met and "uses at most" in str(dear) and "nearest is" in str(dear)
    greedy = seen_of(compact(laws("zipf 1.5, greedy", 500, positions=100)), [50, 50])
    [same] = match(greedy, [0.3], 4, 0.0, ["typical"])
    assert not same.met and same.why == f"{same.predicted:.3f} target calls at every epsilon, not 0.3"
    budgets = [each.why for each in match(greedy, [0.3, 0.4], 4, 0.0, ["typical"])]
    assert [why.rpartition(" ")[2] for why in budgets] == ["0.3", "0.4"]  # one line per budget, which names it
    [head], [token] = (match(greedy, [0.5], 4, 0.0, [name]) for name in ("head", "token-v3"))
    assert (head.value, head.predicted) == (token.value, token.predicted)  # both are the same rule at temperature 0


def test_the_strictest_setting_that_meets_a_budget_is_chosen() -> None:
    seen = seen_of(compact(laws("zipf 1.5", 500, positions=100)), [50, 50])
    lossless = predicted_calls(Exact(), seen, 4)
    for each in match(seen, [lossless], 4, 1.0):
        dial = rules.load(each.rule).dial
        assert dial is not None
        if dial.lossless:
            assert each.met and each.value == dial.strict


def test_the_strictest_setting_close_enough_to_a_budget_is_chosen() -> None:
    """A setting that happens to be slightly closer to the budget, but gives up some quality, is not taken."""
    seen = seen_of(compact(laws("zipf 1.5", 500, positions=100)), [50, 50])
    budget = predicted_calls(Exact(), seen, 4) * (1 - NEAR / 2)
    for each in match(seen, [budget], 4, 1.0, ["opt", "diff", "mixture"]):
        dial = rules.load(each.rule).dial
        assert dial is not None and dial.lossless and each.met and each.value == dial.strict, each


def test_calibration_answers_are_no_longer_than_measured_ones(near_pair: Pair) -> None:
    wanted = job.rule_request({"target_calls_per_token": 0.4}, "mixture")
    assert wanted is not None
    for most, tokens in ((7, 7), (200, job.TOKENS)):
        settings = Resolved(max_new_tokens=most, temperature=1.0)
        found = job.calibrate(near_pair, prompts("hello", "x"), settings, wanted)
        assert found.tokens == 2 * tokens and found.prompts == ["1", "2"]


def test_rules_measured_near_the_budget_are_counted() -> None:
    common: dict[str, Any] = {"temperature": 1.0, "k": 4, "budget": 0.4, "predicted": 0.4}
    found = [
        Matched(rule=rule, alpha=0.5, value=0.5, met=met_, **common)
        for rule, met_ in (("opt", True), ("diff", True), ("chow", False))
    ]
    calls = {(each.spec, 1.0): value for each, value in zip(found, (0.39, 0.5, 0.4), strict=True)}
    [line] = budget_lines(found, calls)
    assert line.endswith("2 of 3 rules, measured 0.390 to 0.500, 1 within 3%")


def test_older_documents_with_alpha_still_load() -> None:
    old = {"rule": "opt", "alpha": 0.25, "temperature": 1.0, "k": 4, "budget": 0.4, "predicted": 0.41, "met": True}
    loaded = Matched.model_validate(old)
    assert (loaded.value, loaded.parameter) == (0.25, "alpha")
    assert loaded.spec == "speculative-cascade:rule=opt,alpha=0.25,k=4"
    again = Matched.model_validate_json(loaded.model_dump_json())
    assert again == loaded
    other = Matched.model_validate(old | {"met": False, "predicted": 0.5})
    assert str(other) == "opt at temperature 1: no alpha gives 0.4 target calls; nearest is 0.500 at alpha = 0.25"


@pytest.mark.parametrize(
    ("match", "names", "words"),
    [
        ({"calls": 0.3}, None, "unknown budget 'calls'.* Known: target_calls_per_token"),
        ({"target_calls_per_token": 0.0}, None, "above 0 and at most 1"),
        ({"target_calls_per_token": float("nan")}, None, "above 0 and at most 1"),
        ({"target_calls_per_token": 0.3}, "opt,tokn-v3", "unknown rule 'tokn-v3'; did you mean 'token-v3'"),
        (None, "tokn-v3", "unknown rule"),
        (None, "", "names of rules"),
    ],
)
def test_requests_that_cannot_be_matched_are_rejected_up_front(match: Any, names: Any, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        job.rule_request(match, names)


def test_a_rule_without_a_dial_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rules.load("chow"), "dial", None)
    wanted = job.rule_request({"target_calls_per_token": 0.3}, "all")
    assert wanted is not None and "chow" not in wanted.rules and wanted.without_dial == ("chow",)
    plain = job.rule_request(None, "all")
    assert plain is not None and "chow" in plain.rules
    with pytest.raises(UsageError, match=r"'chow' declares no `dial`"):
        job.rule_request({"target_calls_per_token": 0.3}, "opt,chow")


# ---- calibration prompts


def test_calibration_prompts_differ_from_measured_ones() -> None:
    own = builtin()
    measured, others = split_for_calibration(own)
    assert len(measured) == 18 and len(others) == 12
    assert {each.category for each in measured} == {each.category for each in others} == {each.category for each in own}
    assert sorted(each.id for each in [*measured, *others]) == sorted(each.id for each in own)
    assert split_for_calibration(own, 4) == (measured[:4], others)
    one = [Prompt(("Is this one of them?",), "1")]
    assert split_for_calibration(one) == (one, others)
    held = Prompt(others[0].turns, "mine")
    assert split_for_calibration([held]) == ([held], others[1:])  # the same text with another id
    many = [Prompt((f"prompt {i}",), str(i)) for i in range(60)]
    measured, rest = split_for_calibration(many, 10)
    assert measured == many[:10] and len(rest) == 12 and not any(each in measured for each in rest)
    assert {int(each.id) // 10 for each in rest} == {1, 2, 3, 4, 5}  # spread over the file
    twin = [Prompt(("a",), "1"), Prompt(("a",), "2"), Prompt(("b",), "3")]
    assert split_for_calibration(twin, 1) == (twin[:1], twin[2:])
    talk = [Prompt(("a", "b"), "1"), Prompt(("b",), "2"), Prompt(("c",), "3")]
    assert split_for_calibration(talk, 1) == (talk[:1], talk[2:])  # prompts of later turns are measured too


# ---- compare


def run(*arguments: str, **more: Any) -> Any:
    return CliRunner().invoke(app, ["compare", *arguments, "-c", "tiny-random", "--no-measure", "-q"], **more)


def test_compare_at_a_budget(near_pair: Pair) -> None:
    settings: dict[str, Any] = {"max_new_tokens": 24, "temperature": 1.0, "measure": False, "warm_up": False}
    budget = {"target_calls_per_token": 0.27}
    found = compare(near_pair, ["hello", "x"], rules="mentored,opt,top-k", match=budget, **settings)
    matching = found.matching
    assert matching is not None and [each.rule for each in matching.matched] == ["mentored", "opt", "top-k"]
    assert {"mentored", "opt"} <= {each.rule for each in matching.matched if each.met}
    columns = ["target", "speculative:k=4", *strategies_of(matching.matched)]
    assert [row.strategy for row in found.summary] == columns
    asked = {run.prompt for run in found.runs}
    assert not asked & {turn for each in builtin() for turn in each.turns if each.id in matching.prompts}
    assert type(found).from_json(found.to_json()) == found


def test_compare_on_the_command_line(tmp_path: Path) -> None:
    out = tmp_path / "found.json"
    ask = ("--prompts", "builtin", "--limit", "1", "--max-new-tokens", "6", "--temperature", "1", "-o", str(out))
    found = run(*ask, "--rules", "mixture,chow", "--match", "target_calls_per_token=0.4", "-k", "3")
    assert found.exit_code == 0, found.output
    document = json.loads(out.read_text())
    assert document["schema"] == "cascli.compare/1.8"
    assert [each["rule"] for each in document["matching"]["matched"]] == ["mixture", "chow"]
    assert len(document["matching"]["prompts"]) == 12 and "conversation-1" not in document["matching"]["prompts"]
    assert {each["k"] for each in document["matching"]["matched"]} == {3}
    shown = CliRunner().invoke(app, ["show", str(out)], env={"COLUMNS": "80"})
    assert shown.exit_code == 0 and "matched at 0.4 target calls per token, temperature 1: 2 of 2 rules" in " ".join(
        shown.output.split()
    )
    whole = CliRunner().invoke(app, ["show", str(out), "-v"], env={"COLUMNS": "80"})
    assert "predicted" in whole.output and "target_weight = " in whole.output


def test_all_rules_at_their_defaults() -> None:
    found = run("hi", "--rules", "all", "--max-new-tokens", "4", "--json")
    assert found.exit_code == 0, found.output
    document = json.loads(found.stdout)
    names = [row["strategy"] for row in document["summary"]]
    assert names[:2] == ["target", "speculative:k=4"] and len(names) == 2 + len(rules.names())
    assert document["matching"] is None
    beside = run(
        "hi",
        "-s",
        "target",
        "-s",
        "speculative-cascade:rule=opt",
        "--rules",
        "opt,diff",
        "--max-new-tokens",
        "4",
        "--json",
    )
    assert [row["strategy"].partition(",")[0] for row in json.loads(beside.stdout)["summary"]] == [
        "target", "speculative-cascade:rule=opt", "speculative-cascade:rule=diff",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--match", "calls=0.4"), "unknown budget 'calls'"),
        (("--match", "0.4"), "should read target_calls_per_token=0.35"),
        (("--match", "target_calls_per_token=few"), "expected a number (got 'few')"),
        (("--match", "target_calls_per_token=1.4"), "expected a number above 0 and at most 1 (got 1.4)"),
        (("--rules", "op"), "unknown rule 'op'; did you mean 'opt'?"),
    ],
)
def test_bad_requests_are_explained(arguments: tuple[str, ...], words: str) -> None:
    found = run("hi", *arguments)
    assert found.exit_code == 2 and words in " ".join(found.stderr.split())


def test_a_rule_out_of_reach_of_the_budget_does_not_run() -> None:
    found = CliRunner().invoke(
        app, ["compare", "hi", "-c", "tiny-random", "--no-measure", "--max-new-tokens", "6", "--temperature", "1",
              "--rules", "chow,mentored", "--match", "target_calls_per_token=0.01", "--trace", "none"],
    )  # fmt: skip
    assert found.exit_code == 0, found.output
    assert "not matched: chow: uses at least" in " ".join(found.stderr.split())
    assert "chow" not in found.stdout and "0 of 2 rules" in " ".join(found.stdout.split())
