"""Answer costs: ratios to a reference, what is withheld, loops, distances, and their wording."""

from __future__ import annotations

import csv
import io
import json
import math
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import fmean
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from rich.console import Console
from typer.testing import CliRunner, Result

from cascli import Pair, compare, generate, load_pair
from cascli.analysis import distances as d
from cascli.analysis import tidy
from cascli.analysis.answer_costs import AnswerCosts, Answered, Ratio, answer_costs
from cascli.analysis.comparison import Comparison, Row, summarise
from cascli.analysis.loops import looped_tokens
from cascli.analysis.requirements import Requirement, first_violation
from cascli.analysis.statistics import rate_ratio_interval, ratio_interval, ratio_of_totals
from cascli.cli.app import app
from cascli.errors import UsageError
from cascli.render.answer_costs import _distances, cost_tables, cost_verdict, outcome
from cascli.sweeps.plan import Cell
from cascli.sweeps.records import Record, Records
from cascli.sweeps.table import _answered
from cascli.sweeps.table import rows as sweep_rows
from cascli.trace import Distances, Run
from tests.pairs import pair
from tests.sweeps import plan_of, records_of

LEAST = 0.90
"""Minimum coverage of intervals that are called 95%, as in test_statistics.py."""
RULE = "speculative-cascade:rule=opt,alpha=0.3,k=4"
PLAIN = "speculative:k=4"


@pytest.fixture(scope="module")
def small() -> Pair:
    return load_pair(pair(initializer_range=0.2))


# --- intervals ---


def _heavy(rng: random.Random) -> float:
    return math.exp(rng.gauss(0, 1))


@pytest.mark.parametrize("seeds", [1, 4])
@pytest.mark.parametrize("n", [10, 20, 80])
@pytest.mark.parametrize(
    ("noise", "truth"),
    [
        (lambda rng: math.exp(rng.gauss(0.2, 0.3)), math.exp(0.2 + 0.045)),
        (lambda rng: 2.0 if rng.random() < 0.25 else 1.0, 1.25),  # some answers run into a loop
        (lambda rng: 0.5 + rng.random(), 1.0),
    ],
    ids=["longer", "loops", "as long"],
)
def test_ratio_intervals_cover_the_true_ratio(
    noise: Callable[[random.Random], float], truth: float, n: int, seeds: int
) -> None:
    """Lengths differ far more between prompts than between the two answers to a prompt, so pairs must stay together."""
    rng, held, widths = random.Random(n), [], []
    for _ in range(150):
        groups = []
        for _ in range(n):
            length, own = 100 * _heavy(rng) ** 0.5, noise(rng)  # a prompt's effect is the same for all of its seeds
            groups.append([(length * own * math.exp(rng.gauss(-0.005, 0.1)), length) for _ in range(seeds)])
        found = ratio_interval(groups)
        assert found is not None
        if found.kind == "95%":
            held.append(found.low <= truth <= found.high)
            widths.append(found.high / found.low)
    assert len(held) > 100
    assert sum(held) / len(held) >= LEAST
    if n == 80:
        assert sum(widths) / len(widths) < 1.6  # not needlessly wide: unpaired lengths alone scatter by 1.4


def test_the_interval_is_centred_on_the_ratio_of_the_means() -> None:
    """If only long answers become longer, the mean of the prompts' ratios is another number."""
    groups = [[(3 * length if length > 50 else length, length)] for length in (100.0, 110.0, 90.0, 10.0, 12.0, 8.0) * 4]
    found = ratio_interval(groups)
    assert found is not None and found.kind == "95%"
    assert math.sqrt(found.low * found.high) == pytest.approx(ratio_of_totals(groups)) == pytest.approx(930 / 330)


def test_few_prompts_give_a_range_and_equal_ratios_no_scatter() -> None:
    assert ratio_interval([[(2.0, 1.0)]]) is None
    few = ratio_interval([[(2.0, 1.0)], [(3.0, 1.0)], [(1.0, 1.0)]])
    assert few is not None and (few.low, few.high, few.kind) == (1.0, 3.0, "range")
    same = ratio_interval([[(2.0 * n, 1.0 * n)] for n in range(1, 9)])
    assert same is not None and same.kind == "no scatter"


# --- what is compared with what ---


def answered(prompt: int, tokens: int, calls: int, *, seed: int = 0, cut: bool = False, accepted: int = 0) -> Answered:
    return Answered(prompt, seed, tokens, calls, max(calls, 1), accepted, 0, cut)


def ten(tokens: Sequence[int], calls: Sequence[int], cut: int = 0, accepted: int = 0) -> list[Answered]:
    return [
        answered(i, t, c, cut=i < cut, accepted=accepted) for i, (t, c) in enumerate(zip(tokens, calls, strict=True))
    ]


def test_ratios_are_paired_by_prompt_and_seed() -> None:
    target = [answered(1, 100, 100), answered(2, 10, 10), answered(2, 30, 30, seed=1), answered(9, 1, 1)]
    ours = [answered(2, 60, 12, seed=1), answered(2, 30, 6), answered(1, 50, 20), answered(3, 999, 999)]
    costs = answer_costs(RULE, {"target": target, RULE: ours})
    assert costs is not None and costs.length is not None and costs.calls is not None
    # Prompt 1: 50 to 100; prompt 2: on average 45 to 20. Prompts 3 and 9 have no counterpart.
    assert costs.length.prompts == 2
    assert costs.length.of_means == pytest.approx((50 + 45) / (100 + 20))
    assert costs.length.mean == pytest.approx((0.5 + 45 / 20) / 2)
    assert costs.calls.of_means == pytest.approx((20 + 9) / (100 + 20))
    assert costs.lossless is None and costs.calls_to_lossless is None


def test_lengths_are_withheld_if_over_a_tenth_of_answers_were_cut() -> None:
    whole, longer = ten([100] * 10, [100] * 10), ten([200] * 10, [50] * 10, cut=1)
    costs = answer_costs(RULE, {"target": whole, RULE: longer})
    assert costs is not None and costs.withheld is None and costs.length is not None
    assert costs.length_ended is not None and costs.length_ended.prompts == 9
    for ours, theirs, of in (
        (ten([200] * 10, [50] * 10, cut=2), whole, RULE),
        (longer, ten([100] * 10, [100] * 10, cut=2), "target"),
    ):
        costs = answer_costs(RULE, {"target": theirs, RULE: ours})
        assert costs is not None and costs.withheld == f"2 of 10 answers of {of} were cut off by the limit"
        assert costs.length is None and costs.calls is None
        assert costs.length_ended is not None and costs.length_ended.prompts == 8
        assert outcome(costs) == "–"  # there is no lossless speculation to compare with


def test_a_rule_is_compared_with_speculation_of_its_own_block_length() -> None:
    plain = {f"speculative:k={k}": ten([100] * 10, [calls] * 10) for k, calls in ((2, 50), (4, 40))}
    costs = answer_costs(RULE, {**plain, RULE: ten([100] * 10, [20] * 10, accepted=1)})
    assert costs is not None and costs.lossless == PLAIN
    assert costs.calls_to_lossless is not None and costs.calls_to_lossless.of_means == 0.5
    assert costs.accepted_to_lossless == pytest.approx(1.05)  # 1 + 10 / 200 over 1
    other = RULE.replace("k=4", "k=7")
    costs = answer_costs(other, {**plain, other: ten([100] * 10, [20] * 10)})
    assert costs is not None and costs.lossless == "speculative:k=2"  # the first of equals
    alone = answer_costs(PLAIN, plain)
    assert alone is not None and alone.lossless is None


@pytest.mark.parametrize(
    "drafting",
    [
        "draft=suffix,k=4",
        "draft=prompt-lookup,k=4",
        "k=4,verify=block",
        "stop=svip,k=4",
        "draft=suffix,max_ngram=2,k=4",
    ],
)
def test_a_rule_is_compared_with_speculation_that_drafts_and_checks_as_it_does(drafting: str) -> None:
    """Otherwise what its drafter gains or costs would be the rule's, and depend on the order of the strategies."""
    own, rule = f"speculative:{drafting}", f"speculative-cascade:rule=head,{drafting}"
    others = [PLAIN, "speculative:draft=suffix,k=4", "speculative:draft=suffix,k=2"]
    for order in ([*others, own, rule], [rule, own, *others]):
        costs = answer_costs(rule, {spec: ten([100] * 10, [50] * 10) for spec in dict.fromkeys(order)})
        assert costs is not None and costs.lossless == own
    costs = answer_costs(rule, {spec: ten([100] * 10, [50] * 10) for spec in ("speculative:k=2", rule)})
    assert costs is not None and costs.lossless == "speculative:k=2"  # there is no other; the table names it
    costs = answer_costs(rule, {spec: ten([100] * 10, [50] * 10) for spec in ("speculative:k=2", PLAIN, rule)})
    assert costs is not None and costs.lossless == PLAIN  # at least of the same length


# --- loops ---


def test_a_loop_is_a_phrase_repeated_three_times_in_a_row() -> None:
    text = list(range(100, 150))
    phrase = [1, 2, 3, 4, 5, 6, 7, 8, 9]
    assert looped_tokens([]) == looped_tokens([7]) == looped_tokens(text) == 0
    assert looped_tokens(text + 3 * phrase) == 27 == looped_tokens(3 * phrase + text)
    assert looped_tokens(text + 3 * phrase + [1, 2] + text) == 29  # a repetition that has begun belongs to it
    assert looped_tokens(text + 2 * phrase + text) == 0
    assert looped_tokens(text + 23 * [7] + text) == 0 and looped_tokens(text + 24 * [7] + text) == 24
    assert looped_tokens(3 * list(range(64))) == 192 and looped_tokens(3 * list(range(65))) == 0
    assert looped_tokens(text + 3 * phrase + text + 4 * [5, 6, 5, 6, 5, 6, 7]) == 27 + 28  # not twice: 5 6 5 6 5 6 too


# --- distances ---


def runs_of(small: Pair, rule: str, **more: Any) -> list[Run]:
    asked: dict[str, Any] = {"max_new_tokens": 24, "temperature": 1.0, **more}
    return [generate(small, text, strategy=f"{rule},k=3", **asked) for text in ("one", "two", "three")]


def answer(small: Pair, strategy: str, **more: Any) -> Run:
    return generate(small, "one", strategy=strategy, temperature=1.0, **more)


@pytest.mark.parametrize("strategy", ["speculative-cascade", "token-cascade"])
def test_a_mixture_wastes_nothing(small: Pair, strategy: str) -> None:
    """TV(pi, p) = (1 - w) TV(p, q) and TV(pi, q) = w TV(p, q): identities that hold at every token."""
    rule = f"{strategy}:rule=mixture,target_weight=0.25"
    runs = runs_of(small, rule) if strategy == "speculative-cascade" else [answer(small, rule)]
    for token in [token for run in runs for token in run.emitted]:
        assert token.tv is not None and token.tv_to_draft is not None and token.disagreement is not None
        assert token.tv == pytest.approx(0.75 * token.disagreement, abs=1e-6)
        assert token.tv_to_draft == pytest.approx(0.25 * token.disagreement, abs=1e-6)
        assert token.kl is not None and 0 < token.kl < math.log(token.overshoot or 0.0) + 1e-6
        assert token.kl >= 2 * token.tv**2 - 1e-6  # Pinsker
    found = d.total(run.metrics.distances for run in runs)
    assert found is not None and d.waste(found) == pytest.approx(0, abs=1e-6)
    assert d.efficiency(found) == pytest.approx(1, abs=1e-4)
    assert found.positions == found.tokens == sum(len(run.token_ids) for run in runs)


def test_token_rules_have_waste_and_the_head_rule_has_none(small: Pair) -> None:
    found = {}
    for rule in ("token-v3", "head"):
        parts = [run.metrics.distances for run in runs_of(small, f"speculative-cascade:rule={rule},alpha=0.5")]
        whole = d.total(parts)
        assert whole is not None
        found[rule] = whole
    assert d.waste(found["head"]) == pytest.approx(0, abs=1e-6)
    assert (d.waste(found["token-v3"]) or 0) > 0.01
    assert (d.efficiency(found["token-v3"]) or 1) < 0.95


def test_kl_matches_the_distribution_of_the_rule(small: Pair) -> None:
    """Compared with distributions computed here from the models themselves, at the first token."""
    from cascli.sampling import distributions

    strategy = "speculative-cascade:rule=mixture,target_weight=0.5,k=1"
    run = answer(small, strategy, max_new_tokens=2)
    ids = torch.tensor([run.prompt_token_ids])
    assert small.draft is not None
    q, p = (
        distributions.base(model.model(ids).logits[0, -1:, : small.vocab])[0].double()
        for model in (small.draft, small.target)
    )
    pi = (p + q) / 2
    first = run.emitted[0]
    assert first.kl == pytest.approx(float((pi * (pi / p).log()).sum()), rel=1e-4)
    assert first.overshoot == pytest.approx(float((pi / p).max()), rel=1e-4)
    assert first.regret == pytest.approx(float(p.max().log() - p[first.id].log()), rel=1e-4, abs=1e-6)


def test_a_token_the_target_cannot_produce_has_infinite_distance(small: Pair) -> None:
    """Top-k cuts both models: a rule that follows the draft gives mass to tokens outside the target's cut."""
    [run, *_] = runs_of(small, "speculative-cascade:rule=mixture,target_weight=0.5", top_k=3)
    found = run.metrics.distances
    assert found is not None and found.infinite > 0 and math.isinf(found.overshoot) and math.isfinite(found.kl)
    assert math.isinf(d.nats_per_answer(found, 1, greedy=False))
    text = run.to_json()
    assert "null" not in text[text.index('"kl"') : text.index('"kl"') + 20] and '"Infinity"' in text
    assert Run.from_json(text) == run


def test_regret_replaces_the_divergence_at_temperature_0(small: Pair) -> None:
    lossless, lossy = (
        d.total(run.metrics.distances for run in runs_of(small, rule, temperature=0.0))
        for rule in ("speculative:draft=model", "speculative-cascade:rule=head,alpha=0.9")
    )
    assert lossless is not None and lossy is not None
    assert lossless.regret == 0 == lossless.kl == lossless.out_of_head and lossless.overshoot == 1
    assert lossy.regret > 0 and math.isfinite(d.nats_per_answer(lossy, 3, greedy=True))
    # The rule keeps nothing less than a tenth as likely as the best token.
    assert lossy.regret <= lossy.tokens * math.log(10)


def test_values_that_were_not_computed_are_none_and_add_nothing(small: Pair) -> None:
    """The target alone has no q and, at temperature 1, no regret: a sum over no positions is None, not 0."""
    for temperature, regret in ((0.0, 0.0), (1.0, None)):
        found = generate(small, "one", strategy="target", temperature=temperature).metrics.distances
        assert d.out_of_head_rate(found) is None
        assert found is not None and found.positions == 0 and found.kl == found.max_tv == 0
        assert found.tv_to_target is found.tv_to_draft is found.disagreement is None and found.regret == regret
        assert d.waste(found) is d.efficiency(found) is None
        told = tidy.distance_columns(found, 1)["regret_per_answer"]
        assert told == regret and d.nats_per_answer(found, 1, greedy=True) == regret
    lossy = answer(small, "speculative-cascade:rule=head,alpha=0.9").metrics.distances
    both = d.total([found, lossy])
    assert lossy is not None and both is not None and lossy.positions
    assert (both.positions, both.tv_to_draft) == (lossy.positions, lossy.tv_to_draft) and both.regret is None


def test_exact_is_the_decision_of_plain_speculation(small: Pair) -> None:
    """With the same random numbers both test the same first draft; `exact` must be plain speculation's decision."""
    seen = set()
    for seed in range(30):
        lossy, plain = (
            answer(small, strategy, seed=seed, max_new_tokens=4).rounds[0].drafted[0]
            for strategy in ("speculative-cascade:rule=opt,alpha=1,k=2", "speculative:k=2")
        )
        assert lossy.id == plain.id and lossy.accepted
        assert lossy.exact is plain.accepted is plain.exact
        seen.add(plain.accepted)
    assert seen == {True, False}


def test_out_of_head_tokens_are_kept_drafts_unlikely_under_the_target(small: Pair) -> None:
    runs = runs_of(small, "speculative-cascade:rule=opt,alpha=1", max_new_tokens=60)
    counted = 0
    for run in runs:
        for step in run.rounds:
            kept = [token for token in step.emitted if token.event == "accepted"]
            for draft, token in zip(step.drafted, kept, strict=False):
                assert draft.id == token.id and token.regret is not None
                counted += draft.exact is False and math.exp(-token.regret) < 0.2
    found = d.total(run.metrics.distances for run in runs)
    assert found is not None and found.out_of_head == counted > 0
    assert d.out_of_head_rate(found) == 1000 * counted / sum(len(run.token_ids) for run in runs)
    inside = d.total(run.metrics.distances for run in runs_of(small, "speculative-cascade:rule=token-v3,alpha=0.8"))
    assert inside is not None and inside.out_of_head == 0  # it keeps nothing below a fifth
    assert d.out_of_head_rate(inside) == 0  # and this is a number, since drafts were kept


def test_strategies_without_distances_report_none(small: Pair) -> None:
    draft, target = (answer(small, name, max_new_tokens=8) for name in ("draft", "target"))
    assert draft.metrics.distances is None
    found = target.metrics.distances
    assert found is not None and (found.kl, found.overshoot, found.positions) == (0, 1, 0)
    assert d.waste(found) is None and d.efficiency(found) is None
    assert d.total([found, None]) is None and d.total([]) is None


# --- the table and the sentence ---


def row(spec: str, costs: AnswerCosts | None) -> Row:
    values = dict.fromkeys(Row.model_fields, None) | {"strategy": spec, "oracle": False, "tokens": 100, "seconds": 1.0}
    values |= {"depends_on_rounds": False}
    return Row.model_validate(values | {"num_answers": 10, "costs": costs})


def verdict_of(tokens: Sequence[int], calls: Sequence[int], *, accepted: int, cut: int = 0) -> tuple[str | None, str]:
    rng = random.Random(1)
    jitter = [rng.randrange(4) for _ in range(10)]
    answers = {
        "target": ten([100 + j for j in jitter], [100 + j for j in jitter]),
        PLAIN: ten([100 + j for j in jitter], [50 + j for j in reversed(jitter)], accepted=50),
        RULE: ten(tokens, calls, accepted=accepted, cut=cut),
    }
    rows = [row(spec, answer_costs(spec, answers)) for spec in answers]
    return cost_verdict(rows, fancy=False), outcome(rows[2].costs)


def test_the_verdict_separates_real_savings_from_apparent_ones() -> None:
    said, word = verdict_of([250] * 10, [85] * 10, accepted=150)
    assert word == "more calls"
    assert said is not None and said.startswith(
        "spec-cascade opt a=.3 k=4 writes 1.4x as many tokens per round, but its"
    )
    assert "answers are 2.46x as long as the target's: 1.65x" in said and said.endswith(
        "per answer of plain speculation."
    )
    said, word = verdict_of([100] * 10, [40] * 10, accepted=100)
    assert word == "fewer calls"
    assert said is not None and "calls the target least: 0.78x (0." in said and "answers 0.98x as long" in said
    scattered = [20, 90, 30, 80, 52, 51, 25, 75, 40, 60]
    said, word = verdict_of([100] * 10, scattered, accepted=100)
    assert word == "not clear"
    assert said == "No rule needs clearly fewer or more target calls per answer than plain speculation."
    said, word = verdict_of([100] * 10, [20] * 10, accepted=100, cut=3)
    assert word == "lengths cut"
    assert said is not None and f"3 of 10 answers of {RULE} were cut off" in said and "--max-new-tokens" in said


def test_the_verdict_agrees_with_its_column_and_with_the_other_rows() -> None:
    target, plain = ten([100] * 10, [100] * 10), ten([100] * 10, [50] * 10, accepted=50)
    loose, longer = "speculative-cascade:rule=opt,alpha=0.9,k=4", "speculative:k=16"
    rng = random.Random(1)
    scattered = ten([100] * 10, [rng.choice((20, 90)) for _ in range(10)], accepted=100)

    def said(**rules: list[Answered]) -> tuple[str, list[str]]:
        names = {"rule": RULE, "loose": loose, "longer": longer, "draft": "draft"}
        answers = {"target": target, PLAIN: plain, **{names[name]: each for name, each in rules.items()}}
        found = [row(spec, answer_costs(spec, answers)) for spec in answers]
        words = [outcome(each.costs) for each in found if each.strategy in (RULE, loose)]
        return cost_verdict(found, fancy=False) or "", words

    # The same ratio on every prompt is as clear as an interval.
    fewer = ten([100] * 10, [40] * 10, accepted=100)
    text, words = said(rule=fewer)
    assert words == ["fewer calls"] and text.startswith("spec-cascade opt a=.3 k=4 calls the target least: 0.80x the")
    alone, _ = said(rule=fewer, draft=ten([90] * 10, [0] * 10))  # the draft model alone calls no target at all
    assert alone == text
    text, words = said(rule=scattered, loose=fewer)
    assert words == ["not clear", "fewer calls"] and "0.80x" in text and "(1 of 2 rules differ" in text
    # A longer block of plain speculation, or a rule whose saving is not clear, may call the target less.
    text, _ = said(rule=fewer, longer=ten([100] * 10, [30] * 10, accepted=70))
    assert "least" not in text and "k=4 needs only 0.80x the target calls per answer of plain speculation" in text
    # Of a rule whose answers were cut off nothing is said.
    text, words = said(rule=scattered, loose=ten([100] * 10, [20] * 10, accepted=100, cut=3))
    assert words == ["not clear", "lengths cut"] and text.startswith("No rule that can be judged needs clearly fewer")
    # "but" announces longer answers.
    short = ten([90] * 10, [70] * 10, accepted=100)
    text, _ = said(rule=short)
    assert "but its answers" not in text and text.startswith("spec-cascade opt a=.3 k=4 needs 1.40x the target calls")


@pytest.mark.parametrize(("prompts", "flags", "told"), [(1, [], False), (1, ["-v"], True), (2, [], True)])
def test_the_note_on_cost_per_answer_is_printed_only_with_its_table(
    prompts: int, flags: list[str], told: bool, tmp_path: Path
) -> None:
    """For a single prompt, neither the table nor the note is printed unless `-v` is given."""
    asked = tmp_path / "prompts.jsonl"
    asked.write_text("".join(f'{{"prompt": "{n}"}}\n' for n in range(prompts)))
    given = ["compare", "--prompts", str(asked), "-c", "tiny-random", "--no-measure", "--max-new-tokens", "4"]
    found = CliRunner().invoke(app, [*given, "--trace", "none", *flags, "-s", "target", "-s", PLAIN, "-s", RULE])
    assert found.exit_code == 0, found.output
    assert ("The cost per answer is not shown" in found.stdout) is told


def test_for_many_rules_the_number_expected_to_differ_by_chance_is_given() -> None:
    rng = random.Random(1)
    jitter = [rng.randrange(4) for _ in range(10)]
    rules = [f"speculative-cascade:rule=opt,alpha={i / 10},k=4" for i in range(3)]
    answers = {
        "target": ten([100 + j for j in jitter], [100 + j for j in jitter]),
        PLAIN: ten([100 + j for j in jitter], [50 + j for j in reversed(jitter)], accepted=50),
        **{spec: ten([100] * 10, [calls] * 10, accepted=100) for spec, calls in zip(rules, (40, 52, 51), strict=True)},
    }
    rows = [row(spec, answer_costs(spec, answers)) for spec in answers]
    said = cost_verdict(rows, fancy=False)
    assert said is not None and said.endswith(
        "(1 of 3 rules differ beyond their interval; one in twenty would by chance)."
    )


@pytest.mark.parametrize("width", [60, 80, 120, 200])
def test_no_number_is_cut(small: Pair, width: int) -> None:
    found = compared(small)
    console = Console(file=io.StringIO(), width=width, color_system=None)
    for table in cost_tables(found.summary, console, greedy=False):
        console.print(table, width=min(width, 100))
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert "…" not in text and "lengths cut" in text
    assert max(map(len, text.splitlines())) <= min(width, 100)


def compared(small: Pair) -> Comparison:
    strategies = ["target", "speculative:k=3", "speculative-cascade:rule=mixture,target_weight=0.5,k=3", "draft"]
    texts = [f"prompt {i}" for i in range(7)]
    return compare(small, texts, strategies, max_new_tokens=12, temperature=1.0, measure=False, warm_up=False)


def test_a_comparison_includes_answer_costs_and_distances(small: Pair) -> None:
    found = compared(small)
    target, plain, head, draft = (each.costs for each in found.summary)
    assert target is not None and plain is not None and head is not None and draft is not None
    assert head.lossless == "speculative:k=3" and plain.lossless is None and draft.lossless == "speculative:k=3"
    assert target.withheld == "7 of 7 answers of target were cut off by the limit" and target.share_cut == 1
    assert head.withheld is not None and head.accepted_to_lossless is not None and head.accepted_to_lossless > 1
    assert draft.target_calls_per_answer == 0 and draft.accepted_to_lossless is None
    assert found.summary[2].distances is not None and found.summary[3].distances is None
    frame_row = found.summary[2].model_dump()["distances"]
    assert Distances.model_validate(frame_row) == found.summary[2].distances
    assert Comparison.from_json(found.to_json()) == found


# --- requirements ---


def test_requirements_are_parsed_with_their_bounds() -> None:
    from cascli.analysis.requirements import Requirement

    assert Requirement.of("length<=1.05", scored=False)[1:] == ("length", 1.05)
    assert Requirement.of(" speedup >= 1.2 ", scored=False)[1:] == ("speedup", 1.2)
    for wrong in (
        "lossles",
        "lossless>=1",
        "length",
        "length>=1",
        "length<=",
        "length<=x",
        "speedup>=-1",
        "speedup>=nan",
    ):
        with pytest.raises(UsageError, match="--require"):
            Requirement.of(wrong, scored=True)
    with pytest.raises(UsageError, match="a sweep does"):
        Requirement.of("quality>=0.5", scored=False)


def test_the_first_violation_is_reported_and_an_unknown_value_is_one(small: Pair) -> None:
    from cascli.analysis.requirements import Requirement, first_violation

    rows = compared(small).summary
    fine, lossy = rows[:2], rows[:3]

    def violated(*texts: str, of: Sequence[Row]) -> str | None:
        return first_violation([Requirement.of(text, scored=False) for text in texts], of)

    assert violated("lossless", "no-loops", "speedup>=0", of=fine) is None
    assert violated("lossless", of=lossy) == f"lossless is required, but {rows[2].strategy} is not lossless"
    assert violated("lossless", of=rows[3:]) == "lossless is required, but draft is not known to be lossless"
    assert "7 of 7 answers" in (violated("length<=9", of=fine) or "")
    assert "gave a different answer" in (violated("same-answer", of=lossy) or "")
    alone = rows[1].model_copy(update={"same_as_target": None})
    assert "has no target" in (violated("same-answer", of=[alone]) or "")
    assert "as fast as target" in (violated("speedup>=99", of=fine) or "")
    looped = rows[1].model_copy(update={"costs": rows[1].costs.model_copy(update={"looped_share": 0.5})})  # type: ignore[union-attr]
    assert "50.0% of its tokens in loops (target 0.0%)" in (violated("no-loops", of=[rows[0], looped]) or "")
    shares = (
        each.model_copy(update={"costs": rows[1].costs.model_copy(update={"looped_share": share})})  # type: ignore[union-attr]
        for each, share in zip(rows, (0.0506, 0.0507), strict=False)
    )
    assert "5.07% of its tokens in loops (target 5.06%)" in (violated("no-loops", of=[*shares]) or "")


# --- on the command line, and in sweeps ---


@pytest.fixture
def cli(clean_env: pytest.MonkeyPatch) -> Callable[..., Result]:
    runner = CliRunner()
    return lambda *arguments: runner.invoke(app, [str(each) for each in arguments])


TINY = ("-c", "tiny-random", "--device", "cpu", "--temperature", "1", "--no-measure", "-s", "target")


def prompts_file(folder: Path, count: int = 6) -> Path:
    file = folder / "prompts.jsonl"
    file.write_text("".join(json.dumps({"prompt": f"say {i}"}) + "\n" for i in range(count)))
    return file


def test_require_fails_with_the_first_violation_in_one_line(cli: Callable[..., Result], tmp_path: Path) -> None:
    asked = ("compare", "hi", *TINY, "--max-new-tokens", "6", "-s", "speculative:k=2")
    fine = cli(*asked, "--require", "lossless", "--require", "no-loops")
    assert fine.exit_code == 0, fine.output
    alone = cli("compare", "hi", *TINY, "--max-new-tokens", "6", "--require", "lossless")
    assert alone.exit_code == 1 and "no strategy other than target was run" in alone.stderr
    lossy = cli(
        *asked, "-s", "speculative-cascade:rule=opt,alpha=1,k=2", "--require", "no-loops", "--require", "lossless"
    )
    assert lossy.exit_code == 1
    told = lossy.stderr.strip().splitlines()[-1]
    assert told.endswith("speculative-cascade:rule=opt,alpha=1.0,k=2 is not lossless (--require).")
    assert "opt" in lossy.stdout  # the results were printed before
    wrong = cli(*asked, "--require", "length<1")
    assert wrong.exit_code == 2 and "write length<=NUMBER" in wrong.stderr and not wrong.stdout


def test_several_prompts_default_to_full_length_answers(cli: Callable[..., Result], tmp_path: Path) -> None:
    asked = ("compare", "--prompts", prompts_file(tmp_path, 2), *TINY, "-s", "speculative:k=2", "--json")
    long, short = cli(*asked), cli(*asked, "--max-new-tokens", "5")
    assert [run["sampling"]["max_new_tokens"] for run in json.loads(long.stdout)["runs"]] == [256] * 4
    assert [run["sampling"]["max_new_tokens"] for run in json.loads(short.stdout)["runs"]] == [5] * 4
    from_python = compare(load_pair("tiny-random", device="cpu"), ["one", "two"], ["target"], measure=False)
    assert {run.sampling.max_new_tokens for run in from_python.runs} == {256}
    one = cli("compare", "hi", *TINY, "-s", "speculative:k=2", "--json")
    assert json.loads(one.stdout)["runs"][0]["sampling"]["max_new_tokens"] == 24  # the pair's own default


def test_several_prompts_show_the_cost_per_answer(cli: Callable[..., Result], tmp_path: Path) -> None:
    rule = "speculative-cascade:rule=head,alpha=0.5,k=2"
    asked = (
        "compare",
        "--prompts",
        prompts_file(tmp_path),
        *TINY,
        "-s",
        "speculative:k=2",
        "-s",
        rule,
        "--trace",
        "none",
    )
    shown = cli(*asked, "-o", tmp_path / "found.csv")
    assert shown.exit_code == 0, shown.output
    for word in ("calls against", "verdict", "waste", "nats", "out of"):
        assert word in shown.stdout
    with (tmp_path / "found.csv").open(newline="") as file:
        rows = {each["strategy"]: each for each in csv.DictReader(file)}
    calls = float(rows[rule]["target_calls_per_answer"]) / float(rows["speculative:k=2"]["target_calls_per_answer"])
    assert rows[rule]["lossless_strategy"] == "speculative:k=2"
    withheld = rows[rule]["length_withheld"]
    assert rows[rule]["calls_to_lossless"] == "" if withheld else float(rows[rule]["calls_to_lossless"]) == calls
    assert float(rows[rule]["waste"]) == pytest.approx(0, abs=1e-6) and float(rows[rule]["kl_per_answer"]) > 0


def test_a_sweep_reports_the_cost_per_answer(cli: Callable[..., Result], tmp_path: Path) -> None:
    """Costs come from the records: a table rebuilt from an older folder, which lacks them, leaves them out."""
    rule = "speculative-cascade:rule=opt,alpha=0.5,k=2"
    plan = {
        "pair": "tiny-random",
        "strategies": ["target", "speculative:k=2", rule],
        "temperatures": 1.0,
        "seeds": [0, 1],
        "task": {"kind": "builtin"},
        "limit": 3,
        "max_new_tokens": 12,
    }
    file, folder = tmp_path / "sweep.yaml", tmp_path / "results"
    file.write_text(yaml.safe_dump(plan))
    done = cli("sweep", file, "-o", folder, "--device", "cpu", "--require", "lossless")
    assert done.exit_code == 1, done.output
    assert f"{rule} is not lossless at temperature 1 (--require)" in done.stderr
    records = Records(folder)
    plain, lossy = (row for row in sweep_rows(records.read(), records.header().plan) if row.strategy != "target")
    assert plain.lossless and not lossy.lossless and lossy.same_as_target is False
    assert lossy.prompts_compared == 6
    assert plain.distances is not None and plain.distances.kl == 0
    assert lossy.distances is not None and lossy.distances.kl > 0
    assert lossy.costs is not None and lossy.costs.lossless == "speculative:k=2"
    kept = [record for record in records.read() if record.cell.strategy == rule]
    assert lossy.costs.target_calls_per_answer == sum(record.target_calls for record in kept) / len(kept)
    lines = records.file.read_text().splitlines()
    older = [
        {key: value for key, value in json.loads(line).items() if key not in ("looped", "distances")} for line in lines
    ]
    records.file.write_text("".join(json.dumps(each) + "\n" for each in older))
    for row in sweep_rows(records.read(), records.header().plan):
        assert row.costs is None and row.distances is None and row.lossless is None
    assert cli("show", folder).exit_code == 0


def test_a_sweep_pairs_answers_by_prompt_seed_and_repeat() -> None:
    """Lengths differ by seed and repeat: with any other pairing, each prompt's ratio would be different."""
    plan = plan_of(strategies=["target", PLAIN], temperatures=[1.0], seeds=[0, 1], runs=2)
    records = [
        record.model_copy(
            update={
                "looped": 0,
                "token_ids": [1]
                * (10 + 7 * record.cell.seed + 3 * record.cell.repeat)
                * (1 + (record.cell.strategy == PLAIN)),
            }
        )
        for record in records_of(plan, prompts=3)
    ]
    dropped = [each for each in records if (each.cell.strategy, each.cell.seed, each.problem) != (PLAIN, 1, "p0")]
    [row] = [each for each in sweep_rows(dropped, plan) if each.strategy == PLAIN]
    assert row.costs is not None and row.costs.length is not None
    assert (row.costs.length.of_means, row.costs.length.interval) == (2, (2, 2)) and row.costs.length.prompts == 3


def test_intervals_depend_only_on_each_prompts_mean_over_seeds() -> None:
    """Resampling seeds within resampled prompts would count their scatter twice."""
    rng = random.Random(4)
    groups = [[(rng.lognormvariate(0.2, 0.3), rng.lognormvariate(0.0, 0.3)) for _ in range(3)] for _ in range(12)]
    means = [[(fmean(a for a, _ in group), fmean(b for _, b in group))] for group in groups]
    assert ratio_interval(groups) == ratio_interval(means)


def test_six_prompts_of_similar_speed_prove_a_speed_up() -> None:
    """An unseen prompt may double an answer's length, but not a lossless strategy's time per token."""
    groups = [[(ratio, 1.0)] for ratio in (1.14, 1.15, 1.17, 1.17, 1.19, 1.23)]
    known, wide = ratio_interval(groups, 1.25), ratio_interval(groups)
    assert known is not None and wide is not None
    assert 1.05 < known.low < known.high < 1.3 and wide.low < 1 < wide.high


def test_the_interval_of_a_rate_ratio_contains_the_estimate_and_covers_the_truth() -> None:
    """Eleven long answers and a short one: the median over prompts may differ from the rate over all tokens."""
    prompts = [(100.0, 50.0, 100.0, 100.0)] * 11 + [(5.0, 8.0, 5.0, 5.0)]
    found = rate_ratio_interval(prompts)
    assert found is not None and found.low < (1105 / 558) / (1105 / 1105) < found.high
    rng, hits = random.Random(2), 0
    for _ in range(300):
        sample = []
        for _ in range(12):
            ours, theirs = rng.lognormvariate(4, 0.5), rng.lognormvariate(4, 0.5)
            gain = rng.lognormvariate(0.3, 0.2)
            sample.append((ours, ours / gain, theirs, theirs * rng.lognormvariate(0, 0.05)))
        interval = rate_ratio_interval(sample)
        assert interval is not None
        # Seconds add up: the quantity to cover is 1 over the mean time per token of each.
        hits += interval.low <= math.exp(0.3 - 0.02) * math.exp(0.00125) <= interval.high
    assert hits / 300 > 0.9


def test_a_speed_lies_within_its_own_interval() -> None:
    """Eleven answers at twice the speed, and one that takes most of the time: the median is not what is reported."""
    loaded = load_pair(pair(20))
    runs: list[list[Run]] = [[], []]
    for place in range(12):
        for column, (strategy, seconds) in enumerate((("target", (1.0, 100.0)), ("draft", (0.5, 160.0)))):
            run = generate(loaded, prompt_ids=[1 + place], strategy=strategy, max_new_tokens=4)
            took = run.metrics.seconds.model_copy(update={"total": seconds[place == 11]})
            runs[column].append(run.model_copy(update={"metrics": run.metrics.model_copy(update={"seconds": took})}))
    found = summarise([runs])[1]
    assert found.speed_interval is not None and found.speed_vs_target is not None
    assert found.speed_interval[0] < found.speed_vs_target < found.speed_interval[1] and found.speed_vs_target < 1


@pytest.mark.parametrize("prompts", [3, 12])
def test_a_speed_lies_within_its_interval_for_any_scatter_of_repeats(prompts: int) -> None:
    """The middle repeat is 20% slower, but on another prompt each time: a prompt's own median shows nothing of it."""
    loaded = load_pair(pair(20))
    plain = [
        [generate(loaded, prompt_ids=[1 + place], strategy=strategy, max_new_tokens=4) for place in range(prompts)]
        for strategy in ("target", "draft")
    ]

    def lasting(run: Run, seconds: float) -> Run:
        took = run.metrics.seconds.model_copy(update={"total": seconds})
        return run.model_copy(update={"metrics": run.metrics.model_copy(update={"seconds": took})})

    repeats = [
        [
            [lasting(run, 1.0) for run in plain[0]],
            [
                lasting(run, 0.5 + 0.5 * prompts * (place == repeat) + 1e-6 * place)
                for place, run in enumerate(plain[1])
            ],
        ]
        for repeat in range(3)
    ]
    found = summarise(repeats)[1]
    assert found.speed_vs_target == pytest.approx(1.0, abs=1e-3)
    assert found.speed_interval is not None and found.speed_interval_kind == ("range" if prompts < 6 else "95%")
    assert found.speed_interval[0] <= found.speed_vs_target <= found.speed_interval[1]  # type: ignore[operator]


def test_a_range_includes_a_ratio_outside_of_all_prompts_own() -> None:
    """Each side has its long answer to another prompt, so the ratio of the totals is far below both prompts' own."""
    found = rate_ratio_interval([(100.0, 100.0, 1.0, 0.8), (1.0, 0.1, 100.0, 9.0)])
    assert found is not None and found.kind == "range" and found.high == pytest.approx(0.9)
    assert found.low == pytest.approx((101 / 100.1) / (101 / 9.8))


def test_turns_count_as_one_conversation() -> None:
    cut = Record(cell=Cell(strategy="target", temperature=0.0, seed=0), problem="1", turns=3, cut=2, rounds=0, looped=0)
    assert _answered([cut])[0].turns == 3
    answers = {"target": [each._replace(tokens=9) for each in _answered([cut])]}
    costs = answer_costs("target", answers)
    assert costs is not None and costs.withheld == "1 of 1 conversations of target was cut off by the limit"
    [nats] = [column for column in _distances(greedy=True) if column.heading.startswith("nats")]

    two = SimpleNamespace(conversations=2, distances=SimpleNamespace(regret=12.0))
    assert nats.cell(two) == "6.0"  # type: ignore[arg-type]


def test_length_requirements_use_the_ratio_of_means_and_no_loops_needs_no_target() -> None:
    length = Ratio(of_means=1.0, mean=1.5, interval=None, interval_kind=None, prompts=2)
    row: Any = SimpleNamespace(strategy="draft", costs=SimpleNamespace(length=length, looped_share=0.2, withheld=None))
    assert first_violation([Requirement.of("length<=1.05", scored=False)], [row]) is None
    assert "20.0%" in (first_violation([Requirement.of("no-loops", scored=False)], [row]) or "")


@pytest.mark.parametrize(
    ("text", "values", "said"),
    [
        ("speedup>=1.2", {"speed_vs_target": 1.1996}, "is 1.1996x as fast"),
        ("speedup>=1.2", {"speed_vs_target": 1.19}, "is 1.19x as fast"),
        ("quality>=0.8", {"quality": 0.79996}, "has 0.79996"),
        ("length<=1.05", {"length": 1.0502}, "1.0502x as long"),
        ("no-loops", {"looped": 0.0504}, "has 5.04% of its tokens in loops (target 5.00%)"),
    ],
)
def test_a_violation_shows_on_which_side_of_its_bound_a_value_is(
    text: str, values: dict[str, float], said: str
) -> None:
    length = Ratio(of_means=values.get("length", 1.0), mean=1.0, interval=None, interval_kind=None, prompts=2)
    costs = SimpleNamespace(length=length, looped_share=values.get("looped", 0.05), withheld=None)
    target: Any = SimpleNamespace(strategy="target", costs=SimpleNamespace(length=length, looped_share=0.05))
    row: Any = SimpleNamespace(strategy="draft", costs=costs, **values)
    assert said in (first_violation([Requirement.of(text, scored=True)], [target, row]) or "")


@pytest.mark.parametrize(("text", "name"), [("speedup>=1.2", "speed_vs_target"), ("quality>=1.2", "quality")])
def test_a_value_equal_to_the_requirement_is_enough(text: str, name: str) -> None:
    wanted = [Requirement.of(text, scored=True)]
    for value, enough in ((1.2, True), (1.3, True), (1.19, False), (None, False)):
        row: Any = SimpleNamespace(strategy="draft", **{name: value})
        assert (first_violation(wanted, [row]) is None) is enough


def test_tokens_per_round_are_compared_over_prompts_that_both_answered() -> None:
    """Where plain speculation failed on prompts that are easy to draft, every rule seemed to draft better."""
    easy, hard = answered(1, 60, 10, accepted=50), answered(2, 20, 10, accepted=10)
    both = answer_costs(RULE, {PLAIN: [easy, hard], RULE: [easy, hard]})
    failed = answer_costs(RULE, {PLAIN: [hard], RULE: [easy, hard]})
    assert both is not None and failed is not None
    assert both.accepted_to_lossless == failed.accepted_to_lossless == 1


def test_no_strategy_calls_the_target_least_if_others_answered_fewer_prompts() -> None:
    target, plain = ten([100] * 10, [100] * 10), ten([100] * 10, [50] * 10, accepted=50)
    answers = {"target": target, PLAIN: plain, RULE: ten([100] * 10, [40] * 10, accepted=100)}
    found = [row(spec, answer_costs(spec, answers)) for spec in answers]
    assert "calls the target least" in (cost_verdict(found, fancy=False) or "")
    fewer = [each.model_copy(update={"num_prompts": 5}) if each.strategy == "target" else each for each in found]
    assert "needs only 0.80x" in (cost_verdict(fewer, fancy=False) or "")
