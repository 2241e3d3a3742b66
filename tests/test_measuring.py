from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from cascli import Pair, Run, generate, load_pair
from cascli.analysis import theory
from cascli.analysis.bench import Bench, prospects
from cascli.analysis.comparison import percentiles
from cascli.analysis.cost import Use, cost_of
from cascli.analysis.explanation import ACCEPTANCE, DRAFT, OVERHEAD, VERIFICATION, account, explain
from cascli.analysis.profile import Profile, interpolated, timing
from cascli.analysis.statistics import percentile
from cascli.errors import UsageError
from cascli.jobs.bench import bench, replay, replay_context
from cascli.jobs.compare import Repeats, compare
from cascli.jobs.profile import blocks_for, profile
from cascli.jobs.synthetic import Synthetic
from cascli.models.choose_runner import choose_runner
from cascli.models.gpu.capture import Uncaptured
from cascli.render.explanation import noise_line, sentence, steps_line
from cascli.render.plots import plot_bench
from cascli.settings import Settings, resolve
from cascli.strategies import parse
from tests.pairs import ARCHITECTURES, pair, prompts


def flat(c: float, v: dict[int, float], context: int = 10) -> Profile:
    target = {n: timing([value]) for n, value in {1: 1.0, **v}.items()}
    return Profile(context=context, draft={1: timing([c])}, target=target)


def test_percentile_is_the_usual_one() -> None:
    values = [3.0, 1.0, 2.0, 4.0]
    assert percentile(values, 0.5) == 2.5
    assert percentile(values, 0.25) == 1.75
    assert percentile(values, 1.0) == 4.0
    assert percentile([7.0], 0.9) == 7.0


def test_outer_percentiles_need_enough_values() -> None:
    assert percentiles([None, None]) is None
    few, some, many = (percentiles([float(i) for i in range(n)]) for n in (9, 10, 100))
    assert few is not None and few.p90 is None and few.p50 == 4
    assert some is not None and some.p90 == pytest.approx(8.1) and some.p99 is None
    assert many is not None and many.p99 == pytest.approx(98.01)


def test_v_between_and_beyond_what_was_measured() -> None:
    found = flat(0.2, {2: 1.0, 4: 2.0})
    assert [found.v(n) for n in (1, 2, 3, 4, 8)] == [1.0, 1.0, 1.5, 2.0, 4.0]
    assert found.c == 0.2 and found.longest == 4
    assert flat(0.2, {9: 1.0}).v(33) == 1.0, "flat costs stay flat, whatever the block"
    assert flat(0.2, {8: 1.4, 9: 1.3}).v(33) == 1.3, "noise must not make blocks cheaper for ever"
    assert flat(0.2, {}).v(5) == 1.0
    assert interpolated({2: 5.0, 4: 7.0}, 1) == 4.0


@pytest.mark.parametrize(("c", "a", "k", "gain"), [(0.1, 0.9, 10, 3.43), (0.05, 0.9, 13, 4.67), (0.02, 0.9, 19, 6.37)])
def test_prospects_know_blocks_as_far_as_they_were_timed(c: float, a: float, k: int, gain: float) -> None:
    """The papers' case, v = 1: where it is known up to 33 tokens, the best k is theirs; up to 9, it may be longer."""
    far, near = (
        next(each for each in prospects(flat(c, dict.fromkeys(blocks, 1.0))) if each.acceptance == a)
        for blocks in ((9, 12, 17, 33), range(2, 10))
    )
    assert (far.best_k, far.or_more) == (k, False) and far.speed_up == pytest.approx(gain, abs=0.005)
    assert (near.best_k, near.or_more) == (8, True)


def test_no_k_is_advised_where_none_gains() -> None:
    found = prospects(flat(0.9, {2: 1.5, 9: 4.0}))
    assert [each.best_k for each in found] == [None] * len(found)
    assert all(each.speed_up < 1 for each in found)


def test_every_block_that_ran_is_timed() -> None:
    assert blocks_for([4, 16, 40], None) == (1, 2, 3, 4, 5, 6, 7, 8, 9, 12, 17, 33, 41)
    assert blocks_for([16], 15) == (1, 2, 3, 4, 5, 6, 7, 8, 9, 12)


def test_profile_measures_every_block_and_leaves_the_pair_as_it_was(text_pair: Pair) -> None:
    before = generate(text_pair, "hello", max_new_tokens=12, seed=3)
    told: list[tuple[int, int]] = []
    found = profile(text_pair, 40, blocks=(1, 3, 5), repeats=2, tell=lambda _, done, total: told.append((done, total)))
    assert sorted(found.target) == [1, 2, 3, 5]
    assert sorted(found.draft) == [1, 2]
    assert all(0 < each.low <= each.median <= each.high for each in (*found.target.values(), *found.draft.values()))
    assert told == [(0, 3), (1, 3), (2, 3)]
    after = generate(text_pair, "hello", max_new_tokens=12, seed=3)
    assert after.token_ids == before.token_ids
    assert [token.p for token in after.emitted] == [token.p for token in before.emitted]


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_pretended_texts_have_the_length_that_was_asked_for(name: str) -> None:
    loaded = load_pair(pair(300, **ARCHITECTURES[name]))
    runner = loaded.target.runner
    runner.pretend(100)
    assert runner.length == 100
    assert torch.isfinite(runner.forward(torch.arange(3), 3)).all()
    assert runner.length == 103
    runner.reset()


def test_profile_leaves_global_random_state_alone(text_pair: Pair) -> None:
    before = torch.random.get_rng_state()
    profile(text_pair, 5, repeats=1)
    assert torch.equal(before, torch.random.get_rng_state())


def test_flops_and_bytes_by_hand(id_pair: Pair) -> None:
    run = generate(id_pair, prompt_ids=[1, 2, 3], strategy="target", max_new_tokens=4)
    model = id_pair.target.info
    # two layers of q, k, v, o, gate, up, down, and the head; the input embeddings are only looked up
    layer = 32 * 32 + 2 * 32 * 16 + 32 * 32 + 3 * 32 * 64
    assert model.parameters == 2 * layer + 8 * 32
    assert model.weight_bytes == 4 * model.parameters
    assert model.attention_width == 2 * 2 * 16
    tokens, attended = 6, 1 + 2 + 3 + 4 + 5 + 6
    assert run.metrics.target_tokens_read == tokens
    assert run.metrics.draft_tokens_read == 0
    assert model.output_parameters == 8 * 32
    rows = 1 + 4  # of the prompt but its last token one row is made, and thrown away
    products = 2 * layer * tokens + 8 * 32 * rows
    assert run.metrics.total_flops == 2 * products + 4 * model.attention_width * attended
    assert run.metrics.weight_bytes_read == model.weight_bytes * 5  # the prompt's first two tokens, then four steps


def test_rejected_drafts_cost_too(id_pair: Pair) -> None:
    run = generate(id_pair, prompt_ids=[1, 2, 3], strategy="speculative:k=3", max_new_tokens=8, seed=1)
    m = run.metrics
    assert m.target_tokens_read == 2 + m.num_draft_tokens + m.num_rounds
    assert m.num_accepted_draft_tokens < m.num_draft_tokens


def test_tied_heads_are_counted_once() -> None:
    tied = load_pair(pair(8, tie_word_embeddings=True))
    free = load_pair(pair(8))
    assert tied.target.info.parameters == free.target.info.parameters


def test_unknown_sizes_stay_unknown(id_pair: Pair) -> None:
    info = id_pair.info
    nameless = info.model_copy(update={"draft": info.draft.model_copy(update={"parameters": None})})
    use = Use(1, 1, 1, 1)
    assert cost_of(nameless, use, use).flops is None
    assert cost_of(nameless, use, use).weight_bytes is not None


@pytest.mark.parametrize("spec", ["target", "draft", "cascade", "token-cascade", "speculative:k=3"])
def test_every_second_is_accounted_for(text_pair: Pair, spec: str) -> None:
    run = generate(text_pair, "hello", strategy=spec, max_new_tokens=20)
    parts = run.metrics.seconds
    assert parts.total == pytest.approx(parts.prefill + parts.draft + parts.verify + parts.other)
    assert min(parts.prefill, parts.draft, parts.verify, parts.other) >= 0
    rounds = [step.seconds for step in run.rounds]
    assert sum(each.total for each in rounds) <= parts.total
    assert all(each.total >= each.draft + each.verify for each in rounds)
    assert sum(each.verify for each in rounds) <= parts.verify + 1e-9
    later = rounds[1:]
    tokens = sum(len(step.emitted) for step in run.rounds[1:])
    assert run.metrics.seconds_per_token == pytest.approx(sum(each.total for each in later) / tokens)


def test_bottlenecks_are_named(text_pair: Pair) -> None:
    target = generate(text_pair, "hello", strategy="target", max_new_tokens=40)

    def named(acceptance: float, c: float, v: float, other: float = 0.0) -> str:
        run = generate(text_pair, "hello", strategy=Synthetic(acceptance, 3), max_new_tokens=40)
        seconds = run.metrics.seconds.model_copy(update={"total": 1.0, "prefill": 0.0, "other": other})
        run = run.model_copy(update={"metrics": run.metrics.model_copy(update={"seconds": seconds})})
        return account([run], [target, run], flat(c, {4: v}), noise=math.inf).bottleneck

    assert named(1.0, c=3.0, v=1.0) == DRAFT
    assert named(1.0, c=0.01, v=9.0) == VERIFICATION
    assert named(0.2, c=0.01, v=1.0) == ACCEPTANCE
    assert named(1.0, c=0.01, v=1.0, other=0.9) == OVERHEAD


def synthetic(text_pair: Pair, acceptance: float, k: int, tokens: int, other: float, speed: float) -> Iterator[Run]:
    """A run of `target`, and one of chosen acceptance, overhead and speed relative to it (after the prompt)."""
    target = generate(text_pair, "hello", strategy="target", max_new_tokens=tokens)
    run = generate(text_pair, "hello", strategy=Synthetic(acceptance, k), max_new_tokens=tokens)
    for total, share, each in ((1.0, 0.0, target), (1 / speed, other, run)):
        seconds = each.metrics.seconds.model_copy(update={"total": total, "prefill": 0.0, "other": share * total})
        yield each.model_copy(update={"metrics": each.metrics.model_copy(update={"seconds": seconds})})


def test_overhead_is_taken_off_once(text_pair: Pair) -> None:
    """Without it the speed-up is the prediction, and never more than k + 1 tokens a target step."""
    costs = flat(0.1, {5: 1.0})
    ideal = theory.tokens_per_round(1.0, 4, 40) / 1.4
    target, run = synthetic(text_pair, 1.0, 4, 40, other=0.6, speed=0.4 * ideal)
    why = account([run], [target, run], costs)
    assert why.bottleneck == OVERHEAD
    assert why.without_it == pytest.approx(why.predicted_speed_up) == pytest.approx(ideal)
    assert why.without_it < 5


def test_full_acceptance_holds_nothing_back(text_pair: Pair) -> None:
    """Over a short answer the last round is cut: that is no lack of acceptance."""
    costs = flat(0.02, {5: 1.0})
    target, run = synthetic(text_pair, 1.0, 4, 10, other=0.0, speed=theory.tokens_per_round(1.0, 4, 10) / 1.08)
    why = account([run], [target, run], costs)
    assert why.acceptance == 1.0 and why.bottleneck not in (None, ACCEPTANCE)


def test_break_even_is_where_the_prediction_is_one(text_pair: Pair) -> None:
    target, run = synthetic(text_pair, 0.5, 4, 16, other=0.0, speed=1.0)
    why = account([run], [target, run], flat(0.3, {5: 1.2}))
    assert why.break_even_acceptance is not None
    assert theory.tokens_per_round(why.break_even_acceptance, 4, 16) / (4 * 0.3 + 1.2) == pytest.approx(1.0)


def test_no_cause_is_named_for_noise(text_pair: Pair) -> None:
    costs = flat(0.1, {5: 1.0})
    predicted = theory.tokens_per_round(0.7, 4, 40) / 1.4
    for factor, named in ((1.0, True), (1.05, True), (0.5, False), (1.5, False)):
        target, run = synthetic(text_pair, 0.7, 4, 40, other=0.0, speed=predicted * factor)
        why = account([run], [target, run], costs, noise=0.2)
        ratio = why.measured_speed_up / why.predicted_speed_up
        assert (why.bottleneck is not None) is (abs(ratio - 1) <= 0.2), factor
        assert ("no cause is named" in sentence(why)) is (why.bottleneck is None)
        assert factor in (1.0, 1.05) or (why.bottleneck is None) is not named


def test_a_check_cheaper_than_a_step_is_noise(text_pair: Pair) -> None:
    """Times of the runs themselves: v is at least 1, and no k is advised beyond the one that ran."""
    target = generate(text_pair, "hello", strategy="target", max_new_tokens=20)
    run = generate(text_pair, "hello", strategy=Synthetic(0.9, 2), max_new_tokens=20)
    for verify in (0.001, 5.0):
        seconds = run.metrics.seconds.model_copy(update={"verify": verify * target.metrics.seconds.verify})
        odd = run.model_copy(update={"metrics": run.metrics.model_copy(update={"seconds": seconds})})
        why = account([odd], [target, odd])
        assert why.v >= 1
        assert why.best_k is None or (why.best_k <= 2 and why.best_k_or_more is (why.best_k == 2))


def test_the_tables_fastest_is_explained_with_its_own_number(text_pair: Pair) -> None:
    """From all repeats: one slow run among them changes neither."""
    settings = resolve(Settings(max_new_tokens=20, temperature=1, seed=1))
    strategies = [parse(text) for text in ("target", "speculative:k=2", "speculative:k=4")]
    done = Repeats(text_pair, prompts("hello"), strategies, settings, runs=5)
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
    costs = flat(0.1, {5: 1.0})
    after = account([run], [target, run], costs).predicted_speed_up
    whole = account(for_prompt[1:], for_prompt, costs, whole=1.0).predicted_speed_up
    assert whole == pytest.approx(2.0 / (1.0 + 1.0 / after))


def test_comparison_measures_steps_and_says_so(text_pair: Pair) -> None:
    strategies = [parse(text) for text in ("target", "speculative:k=3")]
    found = compare(
        text_pair, prompts("hello", "a longer prompt"), strategies, max_new_tokens=20, temperature=1, seed=1, runs=2
    )
    why, steps = found.explanation, found.profile
    assert why is not None and steps is not None and why.measured_alone
    assert why.c == steps.c and why.v == steps.v(4)
    cost = why.c * 3 + why.v
    after = account(found.runs[1::2], found.runs, steps).predicted_speed_up
    assert after == pytest.approx(theory.tokens_per_round(why.acceptance, 3, 20) / cost)
    assert why.measured_over_predicted == pytest.approx(why.measured_speed_up / why.predicted_speed_up)
    assert (f"best k {why.best_k}" if why.best_k else "no k pays") in sentence(why)
    assert "target call" in steps_line(steps)
    assert [[each.strategy for each in repeat] for repeat in found.repeats] == [["target", "speculative:k=3"]] * 2
    assert found.spread is not None and found.spread >= 0
    row = found.summary[1]
    assert row.ttft is not None and row.round_seconds is not None and row.flops_per_token
    again = type(found).from_json(found.to_json())
    assert again == found


def test_nothing_is_measured_where_nothing_is_explained(text_pair: Pair) -> None:
    found = compare(text_pair, prompts("hello"), ["target", "draft"], max_new_tokens=4)
    assert found.profile is None and found.explanation is None
    kept = compare(text_pair, prompts("hello"), ["target", "speculative"], max_new_tokens=4, measure=False)
    assert kept.profile is None and kept.explanation is not None and not kept.explanation.measured_alone
    assert explain(kept.runs[:1]) is None


def test_noise_is_said_only_where_there_is_some() -> None:
    assert noise_line(None) is None and noise_line(0.1) is None
    assert "45%" in (noise_line(0.45) or "")


@pytest.mark.parametrize("acceptance", [0.0, 0.6, 1.0])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_synthetic_acceptance_is_what_was_asked_for(text_pair: Pair, acceptance: float, temperature: float) -> None:
    tested = passed = 0
    for seed in range(12):
        run = generate(
            text_pair, "hello", strategy=Synthetic(acceptance, 4), max_new_tokens=60, seed=seed, temperature=temperature
        )
        assert run.strategy == "synthetic-acceptance" and run.params == {"acceptance": acceptance, "k": 4}
        assert run.metrics.lossless is False
        for step in run.rounds:
            kept = sum(token.accepted for token in step.drafted)
            tested += kept + (kept < len(step.drafted))
            passed += kept
    deviation = math.sqrt(acceptance * (1 - acceptance) / tested)
    assert abs(passed / tested - acceptance) <= 5 * deviation  # 6e-7 of a false alarm


def test_bench_holds_what_it_promises(text_pair: Pair, tmp_path: Path) -> None:
    found = bench(
        text_pair, contexts=[20, 50], blocks=(1, 2, 3), repeats=2, synthetic_acceptance=0.7, ks=(2,), tokens=12
    )
    assert [each.context for each in found.profiles] == [20, 50]
    assert found.copy_bytes_per_second > 1e8
    assert found.ratio_of_bytes == 1.0
    share = found.bandwidth_share("target", found.profiles[0])
    assert share is not None and 0 < share < 1
    assert found.synthetic is not None and found.synthetic.accounts[0].k == 2
    assert Bench.from_json(found.to_json()) == found
    gains = [each.speed_up for each in prospects(found.profiles[0])]
    assert gains == sorted(gains)
    for suffix in (".png", ".svg"):
        plot_bench(found, tmp_path / f"plot{suffix}")
        assert (tmp_path / f"plot{suffix}").stat().st_size > 5000
    assert "synthetic" in (tmp_path / "plot.svg").read_text()


def test_bench_refuses_contexts_beyond_the_pair(text_pair: Pair) -> None:
    with pytest.raises(UsageError, match="exceed the pair's context of 256"):
        bench(text_pair, contexts=[250])
    assert [each.context for each in bench(text_pair, repeats=1).profiles] == [128]


def test_steps_that_were_measured_serve_several_replays(text_pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    steps = profile(text_pair, replay_context(12), blocks=range(1, 4), repeats=1)
    monkeypatch.setattr("cascli.jobs.bench.profile", lambda *_, **__: pytest.fail("measured again"))
    for acceptance in (0.2, 0.9):
        found = replay(text_pair, acceptance, ks=(2,), tokens=12, repeats=1, steps=steps)
        assert found.acceptance == acceptance and found.accounts[0].c == steps.c


def test_long_blocks_can_be_replayed(text_pair: Pair) -> None:
    """Longer ones than steps are timed for otherwise."""
    found = replay(text_pair, 0.5, ks=(2, 12), tokens=14, repeats=1)
    assert [each.k for each in found.accounts] == [2, 12] and len(found.models_share) == 2


def test_nothing_is_recorded_twice() -> None:
    """A cache that grew between two contexts would drop what had been recorded, and compiled, for the first."""
    loaded = load_pair(pair(300))
    made: list[Callable[[], Any]] = []

    class Counting(Uncaptured):
        def __call__(self, compute: Callable[[], Any]) -> Callable[[], Any]:
            made.append(compute)
            return super().__call__(compute)

    for model in (loaded.draft, loaded.target):
        model.runner, _ = choose_runner(model.model, 300, model.device, graphs=True, capture=Counting())
    bench(loaded, contexts=[20, 200], repeats=1)  # with the longest round beyond a cache of 256
    assert len(made) == sum(model.runner.graphs for model in (loaded.draft, loaded.target)) > 0


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


def test_a_round_costs_the_same_late_in_a_long_answer() -> None:
    """Nothing outside the models may grow with the answer: no copied cache, no list of all tokens a round."""
    loaded = load_pair(pair(300, max_position_embeddings=4096))
    run = generate(loaded, "hello", strategy="speculative:k=2", max_new_tokens=2400, seed=1)
    outside = [step.seconds.total - step.seconds.draft - step.seconds.verify for step in run.rounds]
    tenth = len(outside) // 10
    early, late = sorted(outside[tenth : 2 * tenth]), sorted(outside[-tenth:])
    assert late[tenth // 2] < 2 * early[tenth // 2]
