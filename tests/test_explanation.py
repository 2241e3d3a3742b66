"""The sentence that explains a speed: what it states, and what it leaves out."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any, ClassVar

import pytest

from cascli import Pair, Run, generate
from cascli.analysis import theory
from cascli.analysis.explanation import ACCEPTANCE, DRAFT, OVERHEAD, VERIFICATION, account, checked, explain
from cascli.analysis.profile import Profile, timing
from cascli.analysis.replay import along
from cascli.decoding import speculation
from cascli.decoding.session import Session
from cascli.jobs.compare import Repeats, compare
from cascli.jobs.synthetic import Synthetic
from cascli.render.explanation import noise_line, sentence, steps_line
from cascli.sampling.autoregressive import Sampler
from cascli.settings import Settings, resolve
from cascli.strategies import parse
from tests.pairs import profile_of, prompts, synthetic, with_seconds


def gain(a: float | None, k: int, n: int, cost: Callable[[int], float], behind: float = 0.0) -> float:
    """The exact speed of an answer that the limit ends after n tokens, if every draft passes with probability `a`."""
    assert a is not None
    return n / theory.expected_cost(n, along([a] * n, k), cost, behind)


def test_bottlenecks_are_named(text_pair: Pair, any_noise: None) -> None:
    target = with_seconds(generate(text_pair, "hello", strategy="target", max_new_tokens=40), other=0.0)

    def named(acceptance: float, c: float, v: float, other: float = 0.0) -> str:
        run = generate(text_pair, "hello", strategy=Synthetic(acceptance=acceptance, k=3), max_new_tokens=40)
        return account(
            [run := with_seconds(run, other=other)], [target, run], profile_of(c, {4: v}), noise=math.inf
        ).bottleneck

    assert named(1.0, c=3.0, v=1.0) == DRAFT
    assert named(1.0, c=0.01, v=9.0) == VERIFICATION
    assert named(0.2, c=0.01, v=1.0) == ACCEPTANCE
    assert named(1.0, c=0.01, v=1.0, other=0.9) == OVERHEAD


def test_overhead_is_taken_off_once(text_pair: Pair) -> None:
    """Without it the speed-up is the prediction, and never more than k + 1 tokens per target step."""
    costs = profile_of(0.1, {5: 1.0})
    ideal = gain(1.0, 4, 40, lambda j: 1 + 0.1 * j)
    target, run = synthetic(text_pair, 1.0, 4, 40, other=0.6, speed=0.4 * ideal)
    why = account([run], [target, run], costs)
    assert why.bottleneck == OVERHEAD
    assert why.without_it == pytest.approx(why.predicted_speed_up) == pytest.approx(ideal)
    assert why.without_it < 5


def test_time_outside_the_models_counts_for_the_target_alone_too(text_pair: Pair) -> None:
    """0.15 steps outside the models after every call of the target, alone and in a round."""
    target, run = synthetic(text_pair, 0.8, 4, 60, other=0.0, speed=1.0)
    rounds, c = run.metrics.num_rounds, 0.1
    spent = run.metrics.num_draft_tokens * c + rounds * (1.0 + 0.15)
    target = with_seconds(target, total=60 * 1.15, other=60 * 0.15)
    run = with_seconds(run, total=spent, other=rounds * 0.15)
    why = account([run], [target, run], profile_of(c, {5: 1.0}))
    assert why.measured_speed_up == pytest.approx(60 * 1.15 / spent)
    predicted = gain(why.acceptance, 4, 60, lambda j: 1 + c * j)
    assert why.predicted_with_overhead == pytest.approx(predicted * 1.15 * (1 - rounds * 0.15 / spent))
    assert why.predicted_speed_up == pytest.approx(predicted)


def test_where_hardly_anything_is_drafted_no_draft_is_blamed(text_pair: Pair) -> None:
    """A few drafts in many rounds were charged with all that the rounds spent: 22 target steps each."""
    asked: dict[str, Any] = {"max_new_tokens": 40, "temperature": 1.0, "seed": 3}
    target = with_seconds(generate(text_pair, "abcabc", strategy="target", **asked), other=0.0)
    run = generate(text_pair, "abcabc", strategy="speculative:draft=prompt-lookup,k=1", **asked)
    rounds, drafted = run.metrics.num_rounds, run.metrics.num_draft_tokens
    assert 0 < drafted < 0.5 * rounds
    why = account([run := with_seconds(run, other=0.3)], [target, run], profile_of(0.1, {2: 1.1}))
    assert why.outside_per_draft == 0.0 and why.outside_per_round is not None and 0.2 < why.outside_per_round < 1.0


class FakeClock:
    """A machine whose time is that of its work alone, in target steps."""

    v: ClassVar[dict[int, float]] = {1: 1.0, 2: 1.02, 3: 1.04, 5: 1.08, 9: 1.16}

    def __init__(self, loaded: Pair, monkeypatch: pytest.MonkeyPatch, *, c: float, draw: float, test: float) -> None:
        """c of a draft step; outside the models `draw` per draw and transfer, `test` per round for its tests."""
        self.now, self.profile = 0.0, profile_of(c, self.v)
        self.pair = replace(loaded, timer=lambda: self.now)
        steps = {"draft": lambda n: c, "target": lambda n: self.profile.v(n)}
        for role, model in self.pair.models.items():
            self._slow(monkeypatch, model.runner, "forward", lambda ids, rows, cost=steps[role]: cost(rows))
        self._slow(monkeypatch, Sampler, "draw", lambda *_: draw)
        self._slow(monkeypatch, Session, "fetch", lambda *_: draw)
        self._slow(monkeypatch, speculation, "decide_round", lambda *_, **__: test)

    def _slow(self, monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, cost: Callable[..., float]) -> None:
        work = getattr(owner, name)

        def slowed(*args: Any, **more: Any) -> Any:
            self.now += cost(*args, **more)
            return work(*args, **more)

        monkeypatch.setattr(owner, name, slowed)

    def runs(self, strategy: Any) -> list[Run]:
        ask: dict[str, Any] = {"max_new_tokens": 60, "strategy": strategy}
        return [generate(self.pair, "hello", seed=seed, **ask) for seed in range(6)]


@pytest.mark.parametrize(("c", "draw", "test"), [(0.1, 0.15, 0.0), (0.02, 0.05, 0.1)])
def test_predictions_hold_with_time_outside_the_models(
    text_pair: Pair, monkeypatch: pytest.MonkeyPatch, c: float, draw: float, test: float
) -> None:
    """At the k that ran to within 3%, which is the scatter of the tests; at the best k to within 10%.

    That time is not quite what is assumed: 0.15 + 0.15 k and 0.15 + 0.05 k steps. When it was left out, the run with
    k = 2 led to expect 14 and 16% more than the fastest k has, and the best k of the second case was 8.
    """
    clock = FakeClock(text_pair, monkeypatch, c=c, draw=draw, test=test)
    target = clock.runs("target")
    every = {k: clock.runs(Synthetic(acceptance=0.8, k=k)) for k in (2, 4, 6)}
    accounts = {k: account(runs, [*target, *runs], clock.profile) for k, runs in every.items()}
    fastest = max(accounts.values(), key=lambda why: why.measured_speed_up)
    for why in accounts.values():
        assert why.predicted == pytest.approx(why.measured_speed_up, rel=0.03)
        assert why.best_k is not None and abs(why.best_k - fastest.k) <= 1
        assert why.expected_at_best == pytest.approx(fastest.measured_speed_up, rel=0.1)
        assert why.outside_per_round == pytest.approx(2 * draw)  # of the target alone: a draw and a transfer
        assert f"Outside the models, {2 * draw:.2f} steps per round (as target alone) and 0." in sentence(why)
    still = fastest.model_copy(update={"overhead": 0.001})
    assert "Outside the models" not in sentence(still)


def test_no_cause_is_named_if_timings_are_too_noisy(text_pair: Pair) -> None:
    """With step times that differ by twice their median, a twentieth of the predicted speed would pass for noise."""
    predicted = gain(0.7, 4, 40, lambda j: 1 + 0.1 * j)
    for factor, noise, said in ((0.05, 2.0, "Timings differ by 200% here"), (1.0, 0.4, "Timings differ by 40% here")):
        target, run = synthetic(text_pair, 0.7, 4, 40, other=0.0, speed=predicted * factor)
        why = account([run], [target, run], profile_of(0.1, {5: 1.0}), noise=noise)
        assert why.bottleneck is None and said in sentence(why) and "too noisy to name a cause" in sentence(why)


def test_slower_and_faster_by_the_same_factor_are_equally_far(text_pair: Pair) -> None:
    target, run = synthetic(text_pair, 0.7, 4, 40, other=0.0, speed=1.0)
    expected = account([run], [target, run], profile_of(0.1, {5: 1.0})).predicted_with_overhead
    for factor, named in ((1.25, True), (1 / 1.25, True), (1.35, False), (1 / 1.35, False)):
        target, run = synthetic(text_pair, 0.7, 4, 40, other=0.0, speed=(expected or 0.0) * factor)
        why = account([run], [target, run], profile_of(0.1, {5: 1.0}), noise=0.3)
        assert (why.bottleneck is not None) is named, factor


def test_full_acceptance_is_never_the_bottleneck(text_pair: Pair) -> None:
    """In a short answer the last round is cut, which is not a lack of acceptance."""
    costs = profile_of(0.02, {5: 1.0})
    target, run = synthetic(text_pair, 1.0, 4, 10, other=0.0, speed=gain(1.0, 4, 10, lambda j: 1 + 0.02 * j))
    why = account([run], [target, run], costs)
    assert why.acceptance == 1.0 and why.bottleneck not in (None, ACCEPTANCE)


def test_break_even_is_where_the_prediction_is_one(text_pair: Pair) -> None:
    target, run = synthetic(text_pair, 0.5, 4, 16, other=0.0, speed=1.0)
    why = account([run], [target, run], profile_of(0.3, {5: 1.2}))
    assert why.break_even_acceptance is not None
    assert gain(why.break_even_acceptance, 4, 16, lambda j: 1 + 0.35 * j) == pytest.approx(1.0)


def test_a_rule_that_reads_q_late_pays_a_draft_step_when_a_block_passes(text_pair: Pair, any_noise: None) -> None:
    """One draft step after a block, times the chance that it passes, at every k and acceptance that is reported."""
    ask: dict[str, Any] = {"max_new_tokens": 120, "temperature": 1.0, "seed": 3}
    target = generate(text_pair, "hello", strategy="target", **ask)
    run = generate(text_pair, "hello", strategy="speculative-cascade:rule=mixture,target_weight=0.3,k=4", **ask)
    n, profile = len(run.token_ids), profile_of(c := 0.2, {2: 1.05, 3: 1.1, 5: 1.2})
    run, target = with_seconds(run, other=0.0), with_seconds(target, other=0.0)
    why = account([run], [target, run], profile)
    a = why.acceptance
    assert n > 60 and a is not None and 0.2 < a < 0.8

    def of(a: float | None, k: int) -> float:
        return gain(a, k, n, lambda j: c * j + profile.v(j + 1), behind=c)

    assert why.predicted_speed_up == pytest.approx(of(a, 4))
    b = why.break_even_acceptance
    assert b is not None and of(b, 4) == pytest.approx(1.0)
    best = max(range(1, 5), key=lambda k: of(a, k))
    assert why.best_k == (best if of(a, best) > 1 else None)
    held = account([run], [target, run], profile_of(0.01, {5: 1.0}), noise=math.inf)
    assert held.bottleneck == ACCEPTANCE  # at acceptance 1, every round would have that step
    assert held.without_it == pytest.approx(gain(1.0, 4, n, lambda j: 1 + 0.01 * j, behind=0.01))
    exact = generate(text_pair, "hello", strategy="speculative:k=4", **ask)
    assert exact.metrics.draft_calls == exact.metrics.num_draft_tokens
    assert run.metrics.draft_calls > run.metrics.num_draft_tokens


@pytest.mark.parametrize(("k", "n"), [(12, 24), (12, 6), (3, 30)])
def test_rounds_at_the_limit_are_predicted_to_draft_only_what_fits(text_pair: Pair, k: int, n: int) -> None:
    """With whole blocks up to the end, short answers were predicted slower than the passes that they made."""
    ask: dict[str, Any] = {"max_new_tokens": n, "temperature": 1.0}
    runs = [
        generate(text_pair, "hello", strategy=Synthetic(acceptance=0.8, k=k), seed=seed, **ask) for seed in range(60)
    ]
    target = generate(text_pair, "hello", strategy="target", **ask)
    c = 0.2
    why = account(runs, [target, *runs], profile_of(c, {k + 1: 1 + 0.02 * k}))
    spent = sum((c + 0.02) * len(step.drafted) + 1 for run in runs for step in run.rounds)
    assert why.acceptance == pytest.approx(0.8, abs=0.05)
    assert why.predicted_speed_up == pytest.approx(60 * n / spent, rel=0.03)


def test_only_a_block_in_which_the_text_ends_was_longer_than_its_trace(text_pair: Pair) -> None:
    """Drafters with few tokens to offer end answers with short blocks, too, which were counted as k."""
    _, run = synthetic(text_pair, 0.6, 4, 40, other=0.0, speed=1.0)
    *others, last = [step for step in run.rounds if step.emitted[-1].event != "accepted" and len(step.drafted) == 4]
    blocks = [4] * len(others)
    ended = {"finish_reason": "eos", "rounds": [*others, last.model_copy(update={"drafted": last.drafted[:1]})]}
    assert checked(run.model_copy(update=ended)) == [*blocks, 1]
    kept = next(token for step in run.rounds for token in step.emitted if token.event == "accepted")
    inside = last.model_copy(update={"drafted": last.drafted[:1], "emitted": [kept]})
    assert checked(run.model_copy(update=ended | {"rounds": [*others, inside]})) == [*blocks, 4]


def test_a_cause_is_named_only_if_the_prediction_holds_within_noise(text_pair: Pair) -> None:
    costs = profile_of(0.1, {5: 1.0})
    predicted = gain(0.7, 4, 40, lambda j: 1 + 0.1 * j)
    for factor, named in ((1.0, True), (1.05, True), (0.5, False), (1.5, False)):
        target, run = synthetic(text_pair, 0.7, 4, 40, other=0.0, speed=predicted * factor)
        why = account([run], [target, run], costs, noise=0.2)
        ratio = why.measured_speed_up / why.predicted_speed_up
        assert (why.bottleneck is not None) is (abs(ratio - 1) <= 0.2), factor
        assert ("no cause is named" in sentence(why)) is (why.bottleneck is None)
        assert factor in (1.0, 1.05) or (why.bottleneck is None) is not named
        said = "Measured and predicted differ by more than the noise (20%), so no cause is named."
        assert (said in sentence(why)) is (why.bottleneck is None)


def test_a_check_cheaper_than_a_step_counts_as_noise(text_pair: Pair) -> None:
    """Times are those of the runs themselves: v is at least 1, and no k beyond the one that ran is advised."""
    target = generate(text_pair, "hello", strategy="target", max_new_tokens=20)
    run = generate(text_pair, "hello", strategy=Synthetic(acceptance=0.9, k=2), max_new_tokens=20)
    for verify in (0.001, 5.0):
        seconds = run.metrics.seconds.model_copy(update={"verify": verify * target.metrics.seconds.verify})
        odd = run.model_copy(update={"metrics": run.metrics.model_copy(update={"seconds": seconds})})
        why = account([odd], [target, odd])
        assert why.v >= 1
        assert why.best_k is None or (why.best_k <= 2 and why.best_k_or_more is (why.best_k == 2))


def test_the_fastest_is_explained_with_the_same_number_as_in_the_table(text_pair: Pair) -> None:
    """Both come from all repeats, so one slow run changes neither."""
    settings = resolve(Settings(max_new_tokens=20, temperature=1, seed=1))
    strategies = [parse(text) for text in ("target", "speculative:k=2", "speculative:k=4")]
    done = Repeats(text_pair, prompts("hello"), strategies, settings, runs=5)
    done.run()
    slow = done._done[0][1][0]
    seconds = slow.metrics.seconds.model_copy(update={"total": 100 * slow.metrics.seconds.total})
    done._done[0][1][0] = slow.model_copy(update={"metrics": slow.metrics.model_copy(update={"seconds": seconds})})
    found = done.comparison(done.steps())
    fastest = max(found.summary[1:], key=lambda row: row.speed_vs_target or 0)
    why = found.explanation
    assert why is not None and why.strategy == fastest.strategy
    assert why.measured_speed_up == fastest.speed_vs_target and why.with_prompt
    assert why.acceptance == pytest.approx(fastest.tested_acceptance_rate)
    assert found.profile is not None and {3, 5, 12, 17, 33} <= set(found.profile.target)


def test_predictions_of_whole_answers_include_the_prompt(text_pair: Pair) -> None:
    target, run = synthetic(text_pair, 1.0, 4, 40, other=0.0, speed=3.0)
    for_prompt = []
    for each in (target, run):
        seconds = each.metrics.seconds
        seconds = seconds.model_copy(update={"total": seconds.total + 1.0, "prefill": 1.0})
        for_prompt.append(each.model_copy(update={"metrics": each.metrics.model_copy(update={"seconds": seconds})}))
    costs = profile_of(0.1, {5: 1.0})
    after = account([run], [target, run], costs).predicted_speed_up
    whole = account(for_prompt[1:], for_prompt, costs, whole=1.0).predicted_speed_up
    assert whole == pytest.approx(2.0 / (1.0 + 1.0 / after))


def test_a_comparison_measures_steps_and_reports_it(text_pair: Pair) -> None:
    strategies = [parse(text) for text in ("target", "speculative:k=3")]
    found = compare(
        text_pair, prompts("hello", "a longer prompt"), strategies, max_new_tokens=20, temperature=1, seed=1, runs=2
    )
    why, steps = found.explanation, found.profile
    assert why is not None and steps is not None and why.measured_alone
    assert why.c == steps.c and why.v == steps.v(4)
    after = account(found.runs[1::2], found.runs, steps).predicted_speed_up
    assert after == pytest.approx(gain(why.acceptance, 3, 20, lambda j: steps.c * j + steps.v(j + 1)))
    assert why.measured_over_predicted == pytest.approx(why.measured_speed_up / why.predicted_speed_up)
    assert (f"best k {why.best_k}" if why.best_k else "no k ") in sentence(why)
    assert "target call" in steps_line(steps)
    assert [[each.strategy for each in repeat] for repeat in found.repeats] == [["target", "speculative:k=3"]] * 2
    assert found.spread is not None and found.spread >= 0
    row = found.summary[1]
    assert row.ttft is not None and row.round_seconds is not None and row.flops_per_token
    again = type(found).from_json(found.to_json())
    assert again == found


def test_nothing_is_measured_if_nothing_is_explained(text_pair: Pair) -> None:
    found = compare(text_pair, prompts("hello"), ["target", "draft"], max_new_tokens=4)
    assert found.profile is None and found.explanation is None
    kept = compare(text_pair, prompts("hello"), ["target", "speculative"], max_new_tokens=4, measure=False)
    why = kept.explanation
    assert kept.profile is None and why is not None and not why.measured_alone and why.bottleneck is None
    assert "predicted" not in sentence(why).partition(";")[0] and "no cause is named" in sentence(why)
    none = why.model_copy(update={"best_k": None, "measured_speed_up": 0.5})
    assert "no k up to 4 is predicted to gain" in sentence(none)
    assert explain(kept.runs[:1]) is None


def test_noise_is_reported_only_if_present() -> None:
    assert noise_line(None) is None and noise_line(0.1) is None
    assert "--runs 5" in (noise_line(0.45) or "")
    assert (noise_line(0.45, repeats=False) or "").endswith(
        "; repeat with nothing else running"
    )  # advise has no --runs
    assert "45%" in (noise_line(0.45) or "") and "--threads" not in (noise_line(0.45) or "")
    assert "--threads 1" in (noise_line(0.45, 2) or "") and "--threads" not in (noise_line(0.45, 1) or "")


def test_older_comparisons_can_still_be_read(text_pair: Pair) -> None:
    document = json.loads(compare(text_pair, prompts("hello"), ["target"], max_new_tokens=4).to_json())
    for name in ("profile", "repeats", "spread"):
        del document[name]
    for run in document["runs"]:
        for name in (
            "total_flops",
            "weight_bytes_read",
            "draft_tokens_read",
            "target_tokens_read",
            "seconds_per_token",
        ):
            del run["metrics"][name]
        for role in ("draft", "target"):
            del run["pair"][role]["parameters"]
    from cascli.analysis.comparison import Comparison

    assert Comparison.from_json(json.dumps(document)).runs[0].metrics.total_flops is None


def test_break_even_covers_whole_answers_if_the_prediction_does(text_pair: Pair) -> None:
    """Both models read the prompt: an acceptance that pays without it may not pay with it."""
    target, run = synthetic(text_pair, 0.7, 4, 40, other=0.0, speed=1.3)
    slow = with_seconds(run, total=3.0, prefill=2.0, other=0.0)
    once = with_seconds(target, total=2.0, prefill=1.0, other=0.0)
    whole = account([slow], [once, slow], profile_of(0.1, {5: 1.0}), whole=0.67)
    after = account([slow], [once, slow], profile_of(0.1, {5: 1.0}))
    assert whole.break_even_acceptance is None or whole.break_even_acceptance > (after.break_even_acceptance or 1.0)
    assert whole.predicted_speed_up < 1 < after.predicted_speed_up


def test_the_speed_at_the_best_k_is_corrected_by_the_prediction_error(text_pair: Pair) -> None:
    target, run = synthetic(text_pair, 0.7, 4, 40, other=0.0, speed=1.0)
    why = account([run], [target, run], profile_of(0.1, {2: 1.0, 3: 1.0, 5: 1.0}))
    assert why.best_speed_up is not None and why.measured_over_predicted is not None
    assert abs(why.measured_over_predicted - 1) > 0.1
    assert f"best k {why.best_k} ({why.best_speed_up * why.measured_over_predicted:.2f}x)" in sentence(why)


def test_scattered_step_times_count_as_noise(text_pair: Pair) -> None:
    """However steady the runs themselves were, c and v are known no better than the steps."""
    target, run = synthetic(text_pair, 0.7, 4, 40, other=0.0, speed=1.0)
    steps = Profile(
        context=10, draft={1: timing([0.05, 0.1, 0.15])}, target={1: timing([1.0]), 5: timing([0.5, 1, 1.5])}
    )
    assert steps.spread == pytest.approx(0.5)
    why = account([run], [target, run], steps)
    assert why.noise == steps.spread and why.bottleneck is None
    assert account([run], [target, run], steps, noise=0.7).noise == 0.7


def test_costs_are_extrapolated_beyond_the_longest_block_that_was_timed(text_pair: Pair) -> None:
    """A block of k drafts is checked by a pass over k + 1 tokens."""
    target, run = synthetic(text_pair, 0.7, 4, 40, other=0.0, speed=1.0)
    assert [account([run], [target, run], profile_of(0.1, {n: 1.0})).v_extrapolated for n in (4, 5, 6)] == [
        True,
        False,
        False,
    ]


def test_no_larger_k_is_advised_if_drafts_were_not_always_whole(text_pair: Pair) -> None:
    """What a drafter would have offered beyond its k is unknown: the best k is that one, or a larger one."""
    target, run = synthetic(text_pair, 0.9, 4, 40, other=0.0, speed=1.0)
    first, *others = run.rounds
    assert len(others) > 2 and len(first.drafted) == 4
    short = run.model_copy(
        update={
            "rounds": [first.model_copy(update={"drafted": first.drafted[:1], "emitted": first.emitted[:2]}), *others]
        }
    )
    why = account([short], [target, short], profile_of(0.01, {5: 1.0, 17: 1.0}))
    assert why.drafted_per_round is not None and (why.best_k, why.best_k_or_more) == (4, True)


def test_step_times_for_a_stop_are_measured_halfway_through_answers(
    text_pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a long context both models are slower, by different factors."""
    contexts: list[int] = []

    def timed(_: Pair, context: int, **__: Any) -> Profile:
        contexts.append(context)
        return profile_of(0.1, {5: 1.0})

    monkeypatch.setattr("cascli.jobs.compare.profile", timed)
    asked = [parse("target"), parse("speculative:stop=rate,k=4")]
    settings = resolve(Settings(max_new_tokens=40))
    Repeats(text_pair, prompts("hello"), asked, settings).time_steps()
    assert contexts == [5 + 20]  # a byte is a token here


def test_the_k_that_ran_counts_among_the_best_even_if_its_block_was_not_timed(text_pair: Pair) -> None:
    """With no room in the context to time it, shorter blocks were called the best although they are slower."""
    target, run = synthetic(text_pair, 1.0, 8, 60, other=0.0, speed=6.0)
    why = account([run], [target, run], profile_of(0.01, {2: 1.0, 3: 1.0}))
    assert (why.v_extrapolated, why.best_k, why.best_k_or_more) == (True, 8, True)
    assert "best k 8 or more (6.00x)" in sentence(why)
    worse = account([run], [target, run], profile_of(2.0, {2: 1.0, 3: 1.0}))
    assert worse.best_k is None and not worse.best_k_or_more


def test_a_gain_that_was_measured_is_not_denied_by_the_prediction(text_pair: Pair) -> None:
    """The target's own time outside the models makes it slow; without that no block length would gain."""
    target, run = synthetic(text_pair, 0.5, 4, 40, other=0.0, speed=1.1)
    why = account([run], [target, run], profile_of(0.4, {5: 1.2}))
    assert why.predicted_speed_up < 1 < why.measured_speed_up and why.best_k is None
    text = sentence(why)
    assert "k = 4 is predicted" in text and "no k is predicted to gain" in text and "no k gains" not in text
    slow = sentence(why.model_copy(update={"measured_speed_up": 0.9}))
    assert "no k gains" in slow and "is predicted to" not in slow
    never = sentence(why.model_copy(update={"break_even_acceptance": None}))
    assert "k = 4 is predicted never to break even, no k is predicted to gain." in never
    anyway = why.model_copy(update={"break_even_acceptance": 0.0})
    assert "k = 4 is predicted to gain at any acceptance, " in sentence(anyway)
    assert "k = 4 gains at any acceptance, " in sentence(
        anyway.model_copy(update={"predicted_speed_up": 1.2, "predicted_with_overhead": 1.2})
    )


def test_removing_the_bottleneck_never_makes_the_measured_speed_worse(text_pair: Pair) -> None:
    """The prediction may be below the measurement by the noise; the speed without the bottleneck is corrected by it."""
    costs, factor = profile_of(0.1, {5: 1.0}), 1.25
    target, run = synthetic(text_pair, 0.9, 4, 40, other=0.0, speed=1.0)
    predicted = account([run], [target, run], costs).predicted_with_overhead
    target, run = synthetic(text_pair, 0.9, 4, 40, other=0.0, speed=(predicted or 0.0) * factor)
    why = account([run], [target, run], costs, noise=0.3)
    assert why.bottleneck is not None and why.without_it is not None
    assert f"(without that {why.without_it * factor:.2f}x)" in sentence(why)
    assert why.without_it * factor > why.measured_speed_up


def test_a_dearer_round_breaks_even_at_a_higher_acceptance(text_pair: Pair) -> None:
    """Time outside the models delays the break-even."""
    target, run = synthetic(text_pair, 0.7, 4, 60, other=0.2, speed=1.2)
    costs = profile_of(0.2, {2: 1.05, 3: 1.1, 5: 1.2})
    needed = [
        account([each], [target, each], costs).break_even_acceptance
        for each in (with_seconds(run, other=0.0), with_seconds(run, other=0.2))
    ]
    assert needed[0] is not None and needed[1] is not None and needed[1] > needed[0] + 0.02
