"""How long to draft: the best fixed k, what stops achieved, and the bound if it were known what is kept."""

from __future__ import annotations

import json

import pytest

from cascli import Pair, generate
from cascli.analysis import theory
from cascli.analysis.comparison import Comparison
from cascli.analysis.draft_length import DraftLength, FixedLength, draft_lengths, oracle_speed, without_length
from cascli.analysis.explanation import account
from cascli.analysis.profile import Profile, timing
from cascli.jobs.compare import compare
from cascli.jobs.synthetic import Synthetic
from cascli.render.explanation import length_line, sentence
from cascli.strategies import parse
from cascli.trace import Drafted, Emitted, Round, Run


def steps(c: float, v: list[float]) -> Profile:
    """Step times in which a step of the target takes one second."""
    return Profile(context=9, draft={1: timing([c])}, target={n: timing([each]) for n, each in enumerate(v, 1)})


def timed(run: Run, seconds: float, prefill: float = 0.0) -> Run:
    parts = run.metrics.seconds.model_copy(update={"total": seconds, "prefill": prefill})
    return run.model_copy(update={"metrics": run.metrics.model_copy(update={"seconds": parts})})


def test_the_bound_equals_the_measured_speed_if_every_draft_passes(text_pair: Pair) -> None:
    run = timed(generate(text_pair, "hi", strategy=Synthetic(acceptance=1.0, k=3), max_new_tokens=20), 10.0)
    assert oracle_speed([run], steps(0.1, [1, 1, 1, 1]), 1.7) == pytest.approx(1.7)


def test_the_bound_equals_the_target_if_no_draft_passes(text_pair: Pair) -> None:
    """21 steps instead of rounds of 3 c + v; reading the prompt takes the same time, whatever is drafted."""
    run = generate(text_pair, "hi", strategy=Synthetic(acceptance=0.0, k=3), max_new_tokens=21)
    spent = sum(0.1 * len(step.drafted) + 1 + 0.2 * len(step.drafted) for step in run.rounds)
    costs = steps(0.1, [1, 1.2, 1.4, 1.6])
    assert oracle_speed([timed(run, spent)], costs, 21 / spent) == pytest.approx(1.0)
    slow = oracle_speed([timed(run, spent + 50, 50.0)], costs, 21 / spent)
    assert slow == pytest.approx(21 / spent * (spent + 50) / (21 + 50))


def test_the_bound_uses_shorter_blocks_if_wide_checks_are_expensive(text_pair: Pair) -> None:
    """Where a wide check is expensive, the kept tokens are drafted in shorter blocks."""
    run = timed(generate(text_pair, "hi", strategy=Synthetic(acceptance=1.0, k=3), max_new_tokens=20), 10.0)
    assert oracle_speed([run], steps(0.0, [1, 1, 9, 9]), 0.4) > 0.4 * 3


def test_the_bound_is_unknown_for_blocks_and_counts_the_step_after_the_last_draft(text_pair: Pair) -> None:
    block = generate(text_pair, "hi", strategy="speculative:k=3,verify=block", max_new_tokens=9)
    assert oracle_speed([block], steps(0.1, [1, 1]), 1.0) is None
    lossy = generate(text_pair, "hi", strategy="speculative-cascade:rule=token-v1,alpha=1,k=3", max_new_tokens=17)
    assert all(token.accepted for step in lossy.rounds for token in step.drafted)
    assert oracle_speed([timed(lossy, 9.0)], steps(0.3, [1, 1, 1, 1]), 2.0) == pytest.approx(2.0)


def test_the_bound_includes_the_step_after_a_passed_block_even_if_few_passed(text_pair: Pair) -> None:
    """Every round of the oracle passes, so q is read after it, whatever it drafts."""
    spec = "speculative-cascade:rule=mixture,target_weight=0.6,k=3"
    run = generate(text_pair, "hi", strategy=spec, max_new_tokens=60, temperature=1.0, seed=1)
    m, kept = run.metrics, [len(step.emitted) - 1 for step in run.rounds]
    assert 0 < 2 * (m.draft_calls - m.num_draft_tokens) < len(run.rounds)
    c, spent = 0.2, 0.2 * m.draft_calls + len(run.rounds)
    least = sum(theory.oracle_cost(n, lambda j: c * (j + 1) + 1) for n in kept)
    assert oracle_speed([timed(run, spent)], steps(c, [1, 1, 1, 1]), 1.0) == pytest.approx(spent / least)


def test_strategies_are_grouped_by_everything_but_the_draft_length() -> None:
    def way(text: str) -> dict[str, object]:
        return without_length(parse(text).params)

    assert way("speculative:k=2") == way("speculative:stop=svip,limit=0.4,k=auto") == {}
    cascade = "speculative-cascade:rule=token-v3,alpha=0.1,draft=suffix"
    assert way(f"{cascade},k=3,verify=block") == way(f"{cascade},stop=rate,verify=block") != way(f"{cascade},k=3")
    assert way(cascade) != way("speculative-cascade:rule=token-v3,alpha=0.2,draft=suffix")


def test_lengths_of_one_strategy_are_grouped_together(text_pair: Pair) -> None:
    specs = ["target", "speculative:k=1", "speculative:k=3", "speculative:stop=heuristic,k=6"]
    runs = [timed(generate(text_pair, "hi", strategy=each, max_new_tokens=12), 6.0) for each in specs]
    other = "speculative-cascade:rule=token-v3,alpha=0.3,draft=suffix,max_suffix=24,min_suffix=1,k=4"
    runs.append(timed(generate(text_pair, "hello hello", strategy=other, max_new_tokens=12), 6.0))
    speeds = dict(zip([run.spec for run in runs], [1.0, 1.4, 1.2, 1.5, 0.9], strict=True))
    costs = steps(0.2, [1 + 0.01 * n for n in range(8)])
    first, second = draft_lengths(runs, costs, speeds)
    assert first.strategy == "speculative" and second.strategy.startswith("speculative-cascade:rule=token-v3")
    assert first.fixed == FixedLength(k=1, speed=1.4, ran=1, ran_speed=1.4)
    assert first.stops == {"speculative:stop=heuristic,start=5,k=6": 1.5} and not second.stops
    assert first.oracle == max(oracle_speed([run], costs, speeds[run.spec]) for run in runs[1:4])
    assert length_line(first) == (
        "how long to draft, speculative: best fixed k = 1 (1.40x); heuristic k=6 (1.50x); drafting exactly what is"
        f" kept: at most {first.oracle:.2f}x"
    )


def test_the_best_length_is_predicted_if_only_one_ran(text_pair: Pair) -> None:
    runs = [
        timed(generate(text_pair, "hi", strategy=each, max_new_tokens=60), seconds)
        for each, seconds in (("target", 60.0), (Synthetic(acceptance=0.9, k=2), 40.0))
    ]
    speeds = {runs[0].spec: 1.0, runs[1].spec: 1.5}
    costs = steps(0.05, [1.0] * 9)
    [found] = draft_lengths(runs, costs, speeds)
    why = account(runs[1:], runs, costs, whole=1.5)
    assert found.fixed.k == why.best_k > 2
    assert found.fixed.speed == pytest.approx(1.5 * why.best_speed_up / why.predicted_with_overhead)
    assert f"best fixed k = {why.best_k} ({found.fixed.speed:.2f}x, predicted; k = 2 was 1.50x)" in length_line(found)
    unknown = DraftLength(strategy="speculative", fixed=None, stops={"speculative:stop=rate,k=auto": 2.0}, oracle=None)
    assert length_line(unknown) == "how long to draft, speculative: rate k=auto (2.00x)"


@pytest.mark.parametrize(("verify", "known"), [("tokens", True), ("block", False)])
def test_no_length_is_called_the_best_if_none_gains(text_pair: Pair, verify: str, known: bool) -> None:
    specs = ("target", "speculative:k=4" if known else f"speculative:verify={verify},k=4")
    runs = [timed(generate(text_pair, "hi", strategy=each, max_new_tokens=20), 20.0) for each in specs]
    speeds = {runs[0].spec: 1.0, runs[1].spec: 0.35}
    [found] = draft_lengths(runs, steps(1.1, [1.0] * 9), speeds)
    assert found.fixed == FixedLength(k=4, speed=0.35, ran=4, ran_speed=0.35, none_gains=known)
    said = "no fixed k gains (k = 4: 0.35x)" if known else "best fixed k = 4 (0.35x)"
    assert length_line(found).startswith(f"how long to draft, {found.strategy.replace(':', ' ')}: {said}")
    [lucky] = draft_lengths(runs, steps(1.1, [1.0] * 9), speeds | {runs[1].spec: 1.2})
    assert "best fixed k = 4 (1.20x)" in length_line(lucky)


def test_no_length_is_called_the_best_if_none_is_expected_to_gain(text_pair: Pair) -> None:
    """Some length gains in theory, but the one that ran was so far below its prediction that none is expected to."""
    runs = [
        timed(generate(text_pair, "hi", strategy=each, max_new_tokens=60), seconds)
        for each, seconds in (("target", 60.0), (Synthetic(acceptance=0.9, k=2), 120.0))
    ]
    speeds = {runs[0].spec: 1.0, runs[1].spec: 0.3}
    for longest in (3, 9):  # the best is the one that ran, or a longer one
        costs = steps(0.05, [1.0] * longest)
        [found] = draft_lengths(runs, costs, speeds)
        why = account(runs[1:], runs, costs, whole=0.3)
        assert why.best_k == longest - 1 and "as here, no k gains" in sentence(why)
        assert "no fixed k gains (k = 2: 0.30x)" in length_line(found)


def test_a_comparison_has_draft_lengths_and_its_rows_have_the_bound(text_pair: Pair) -> None:
    asked = ["target", "speculative:k=2", "speculative:stop=rate,k=auto", "speculative:k=2,verify=block"]
    found = compare(text_pair, "hello", asked, max_new_tokens=16)
    target, fixed, rate, block = found.summary
    assert target.oracle_speed_vs_target is None and block.oracle_speed_vs_target is None
    assert fixed.oracle_speed_vs_target >= fixed.speed_vs_target * 0.999
    # Steps were timed beforehand for the stop to use; the account uses the same ones.
    used = found.runs[2].costs
    assert used is not None and used.measured and used.c == pytest.approx(found.profile.c)
    assert used.v == pytest.approx([found.profile.v(n) for n in range(1, 18)])
    assert [each.strategy for each in found.draft_lengths] == ["speculative", "speculative:verify=block"]
    assert set(found.draft_lengths[0].stops) == {rate.strategy}
    assert Comparison.from_json(found.to_json()) == found
    unmeasured = compare(text_pair, "hello", asked[:3], max_new_tokens=16, measure=False)
    assert unmeasured.draft_lengths == [] and unmeasured.summary[1].oracle_speed_vs_target is None
    assert json.loads(unmeasured.to_json())["schema"] == "cascli.compare/1.8"


def test_fixed_lengths_are_not_predicted_from_drafts_chosen_by_a_stop(text_pair: Pair) -> None:
    target = timed(generate(text_pair, "hi", strategy="target", max_new_tokens=30), 30.0)
    run = timed(generate(text_pair, "hi", strategy="speculative:stop=heuristic,k=6", max_new_tokens=30), 40.0)
    why = account([run], [target, run], steps(0.1, [1.0] * 9))
    assert (why.stop, why.k, why.best_k, why.break_even_acceptance) == ("heuristic", 6, None, None)
    tokens = len(run.token_ids) / len(run.rounds)
    drafted = run.metrics.num_draft_tokens / len(run.rounds)
    assert why.predicted_speed_up == pytest.approx(tokens / (1 + 0.1 * drafted))
    assert f"heuristic drafts {drafted:.1f} of at most 6 tokens per round." in sentence(why)


def test_a_distribution_that_depends_on_the_rounds_is_labelled(text_pair: Pair) -> None:
    def runs(text: str) -> Run:
        return generate(text_pair, "hello hello", strategy=text, max_new_tokens=4)

    assert runs("speculative-cascade:rule=token-v3,draft=prompt-lookup").depends_on_rounds
    assert not runs("speculative:draft=prompt-lookup").depends_on_rounds
    assert not runs("speculative-cascade:rule=min-p,draft=prompt-lookup").depends_on_rounds
    assert not runs("speculative-cascade:rule=token-v3,draft=suffix").depends_on_rounds


def test_without_the_target_nothing_is_compared_with_it(text_pair: Pair) -> None:
    found = compare(text_pair, "ab", ["speculative:k=2", "speculative:stop=rate,k=4"], max_new_tokens=6)
    assert found.draft_lengths == [] and found.explanation is None
    assert all(row.oracle_speed_vs_target is None for row in found.summary)


def test_the_bound_needs_no_more_tokens_than_the_last_round_wrote(text_pair: Pair) -> None:
    """The target takes one step per token, so a bound below that would not be one."""
    run = generate(text_pair, "ab", strategy="speculative:k=3", max_new_tokens=1, temperature=0.0)
    token = Emitted(id=1, text="x", event="accepted", q=1.0, p=1.0)
    drafted = Drafted(id=1, text="x", q=1.0, p=1.0, pi=1.0, accept_prob=1.0, accepted=True, deferred=False)
    cut = run.model_copy(
        update={
            "rounds": [Round(drafted=[drafted], emitted=[token], seconds=run.rounds[0].seconds)],
            "token_ids": [1],
            "finish_reason": "eos",
            "metrics": run.metrics.model_copy(update={"draft_calls": 3, "num_draft_tokens": 1}),
        }
    )
    costs = steps(0.3, [1, 1.2, 1.4, 1.6])
    spent = 3 * 0.3 + 1.6
    assert oracle_speed([timed(cut, spent)], costs, 1 / spent) == pytest.approx(1.0)


def test_predicted_lengths_do_not_beat_the_bound_if_rounds_had_no_drafts(text_pair: Pair) -> None:
    """Half of the rounds had nothing to draft, as is common with lookups; predictions must not assume drafts there."""
    target = timed(generate(text_pair, "hi", strategy="target", max_new_tokens=40), 40.0)
    some = generate(text_pair, "hi", strategy=Synthetic(acceptance=0.4, k=5), max_new_tokens=60)
    costs = steps(0.001, [1.0, 1.05, 2.0, 3.0, 4.0, 5.0])
    none = target.model_copy(update={"strategy": some.strategy, "params": some.params})
    spent = sum(0.001 * len(s.drafted) + costs.v(len(s.drafted) + 1) for run in (some, none) for s in run.rounds)
    both = [timed(run, spent / 2) for run in (some, none)]
    speed = 100 / spent
    why = account(both, [target, *both], costs, whole=speed)
    [found] = draft_lengths([target, *both], costs, {target.spec: 1.0, both[0].spec: speed})
    assert why.best_k == found.fixed.k == 1
    assert speed * why.best_speed_up / why.predicted_speed_up > found.oracle + 0.002, "or nothing is seen here"
    assert found.fixed.speed == found.oracle


def test_a_prediction_for_shorter_blocks_may_exceed_the_bound_of_whole_blocks(text_pair: Pair) -> None:
    """Pairs of drafts are always kept: 3 tokens for 2 steps; one draft per round gives 2 for 1.05, above the bound."""
    target = timed(generate(text_pair, "hi", strategy="target", max_new_tokens=42), 42.0)
    kept = generate(text_pair, "hi", strategy=Synthetic(acceptance=1.0, k=2), max_new_tokens=42)
    costs = steps(1e-6, [1.0, 1.05, 2.0, 4.0])
    speeds = {target.spec: 1.0, kept.spec: 1.5}
    [found] = draft_lengths([target, timed(kept, 28.0)], costs, speeds)
    assert found.fixed.k == 1 and found.fixed.speed > 1.8 > found.oracle


def test_the_bound_names_the_block_length_it_applies_to() -> None:
    """What follows the blocks that ran is not known: a longer one may do better."""
    longer = DraftLength(
        strategy="speculative", fixed=FixedLength(k=11, speed=3.6, ran=8, ran_speed=3.2), stops={}, oracle=3.4
    )
    assert "drafting exactly what is kept of k = 8: at most 3.40x" in length_line(longer)


def test_the_bound_holds_even_if_a_longer_block_is_cheaper(text_pair: Pair) -> None:
    """As on a CPU whose kernel for five rows is faster than that for one or two: no run may exceed its bound."""
    costs = steps(0.03, [1.0, 0.99, 0.68, 0.64, 0.59])
    run = timed(generate(text_pair, "hi", strategy="speculative:k=4", max_new_tokens=40, temperature=1.0, seed=1), 9.0)
    assert any(len(step.emitted) < 4 for step in run.rounds)
    bound = oracle_speed([run], costs, 2.3)
    assert bound is not None and bound >= 2.3
