"""A comparison's row computed by hand: which runs, rounds and seconds each of its numbers comes from."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from cascli import Pair, Run, compare, generate, generate_many, load_pair
from cascli.analysis.comparison import _totals, spread_of, summarise
from cascli.analysis.draft_length import DraftLength
from cascli.analysis.speculation_profile import of_comparison
from cascli.cli import picks
from cascli.cli.picks import _runs_of_prompt
from cascli.errors import UsageError
from cascli.prompts import Prompt
from cascli.render.comparison import by_prompt, prompt_line
from cascli.trace import Seconds, prompts_of


@pytest.fixture(scope="module")
def drawn(text_pair: Pair) -> dict[str, Run]:
    how: Any = {"max_new_tokens": 4, "temperature": 1.0}
    specs = ("target", "speculative:k=2", "cascade")
    return {spec: generate(text_pair, "hello", strategy=spec, **how) for spec in specs}


def told(run: Run, prompt: str, tokens: int, total: float, **metrics: Any) -> Run:
    """The run with the given numbers."""
    parts = Seconds(total=total, prefill=total / 2, draft=0.0, verify=total / 4, other=total / 4)
    m = run.metrics.model_copy(update={"seconds": parts} | metrics)
    more = {"prompt_id": prompt, "token_ids": [1] * tokens, "metrics": m, "finish_reason": "eos"}
    return run.model_copy(update=more)


def test_each_number_of_a_row_is_computed_from_the_right_runs(drawn: dict[str, Run]) -> None:
    drafts = {"num_draft_tokens": 4, "num_accepted_draft_tokens": 3, "num_tested_draft_tokens": 4}
    none = dict.fromkeys(drafts, 0)
    target, ours = drawn["target"], drawn["speculative:k=2"]
    timed = [
        step.model_copy(update={"seconds": step.seconds.model_copy(update={"total": seconds})})
        for step, seconds in zip([ours.rounds[0]] * 3, (100.0, 1.0, 3.0), strict=True)
    ]
    ours = ours.model_copy(update={"rounds": timed})
    first = [
        [told(target, "a", 10, 10.0), told(target, "b", 10, 10.0)],
        [
            told(ours, "a", 10, 4.0, **drafts, num_rounds=2, draft_calls=30, shared_mass=0.2, peak_memory_bytes=5),
            told(ours, "b", 10, 4.0, **none, num_rounds=7, draft_calls=10, shared_mass=0.6, peak_memory_bytes=6),
        ],
    ]
    # Only times and memory are used from the second repeat.
    later = [
        first[0],
        [told(run, run.prompt_id or "", 10, 8.0, peak_memory_bytes=9, draft_calls=99) for run in first[1]],
    ]
    _, row = summarise([first, later])
    assert row.seconds == (8.0 + 16.0) / 2 and row.tokens == row.num_answers * 10 == 20
    assert row.speed_vs_target == pytest.approx((20 / 8 + 20 / 16) / 2) and row.speed_interval_over == "prompts"
    assert row.mean_acceptance_length == 1 + 3 / 9  # including an answer for which there was nothing to draft
    assert row.draft_calls_per_token == (30 + 10) / 20 and row.shared_mass == pytest.approx((0.2 * 30 + 0.6 * 10) / 40)
    assert row.other_share == pytest.approx(0.25) and row.peak_memory_bytes == 9
    assert row.round_seconds is not None and row.round_seconds.p50 == 2.0  # without an answer's first round
    alone = summarise([[first[1]], [later[1]]])[0]
    assert alone.speed_vs_target is None and alone.speed_interval is None and alone.speed_interval_over is None


def test_turns_after_differing_answers_are_not_compared(drawn: dict[str, Run]) -> None:
    target, ours = drawn["target"], drawn["speculative:k=2"]
    other = ours.model_copy(update={"prompt_token_ids": [7, 7], "token_ids": [9], "turn": 1})
    _, row = summarise([[[target, target], [target.model_copy(update={"strategy": "speculative"}), other]]])
    assert (row.answers, row.answers_same, row.same_as_target) == (1, 1, True)


def test_each_answer_counts_once_in_the_deferral_rate_of_a_cascade(drawn: dict[str, Run]) -> None:
    kept, given = (
        told(drawn["cascade"], name, tokens, 1.0, deferral_rate=rate)
        for name, tokens, rate in (("a", 2, 0.0), ("b", 8, 1.0))
    )
    assert kept.handover is not None
    [row] = summarise([[[kept, given]]])
    assert row.deferral_rate == 0.5


def test_scatter_of_steps_is_the_interquartile_range_over_the_median(drawn: dict[str, Run]) -> None:
    step = drawn["target"].rounds[0]
    rounds = [
        step.model_copy(update={"seconds": step.seconds.model_copy(update={"verify": float(n)})}) for n in range(1, 10)
    ]
    run = drawn["target"].model_copy(update={"rounds": rounds})
    assert spread_of([[[run]]]) == pytest.approx((7 - 3) / 5)


def test_a_prompts_time_is_the_median_over_repeats(drawn: dict[str, Run]) -> None:
    repeats = [[[told(drawn["target"], "a", 5, seconds)]] for seconds in (1.0, 2.0, 9.0)]
    assert _totals(repeats, 0, [0]) == (5.0, 2.0)


def test_batched_runs_have_no_seconds_per_token_or_round(drawn: dict[str, Run]) -> None:
    run = told(drawn["speculative:k=2"], "a", 5, 1.0)
    [alone], [many] = (summarise([[[run.model_copy(update={"batch_size": n})]]]) for n in (1, 4))
    assert alone.seconds_per_token is not None and alone.round_seconds is not None
    assert many.seconds_per_token is None and many.round_seconds is None


def test_an_interrupted_answer_does_not_count_as_cut_by_the_limit(drawn: dict[str, Run]) -> None:
    runs = [
        told(drawn["target"], name, 5, 1.0).model_copy(update={"finish_reason": reason})
        for name, reason in (("a", "length"), ("b", "interrupted"), ("c", "eos"), ("d", "eos"))
    ]
    [row] = summarise([[runs]])
    assert row.costs is not None and row.costs.share_cut == row.share_cut == 0.25


def test_turns_of_a_conversation_without_an_id_count_as_one_prompt(text_pair: Pair) -> None:
    """As in documents from before such prompts were numbered; each turn would count as a prompt, at half the cost."""
    how: Any = {"max_new_tokens": 4, "measure": False, "warm_up": False}
    asked = [Prompt(("one", "two")), Prompt(("three",)), Prompt(("four",), "named"), Prompt(("five", "six"))]
    found = compare(text_pair, asked, ["target", "speculative:k=2"], **how)
    assert [(row.num_prompts, row.num_answers) for row in found.summary] == [(4, 6)] * 2
    assert {run.prompt_id for run in found.runs} == {"1", "2", "named", "4"}
    named = [run if run.prompt_id == "named" else run.model_copy(update={"prompt_id": None}) for run in found.runs]
    found = found.model_copy(update={"runs": named})
    target = [run for run in found.runs if run.spec == "target"]
    assert prompts_of(target) == [0, 0, 2, "named", 4, 4]
    assert prompts_of([target[1], target[3], target[5], target[4]]) == [0, "named", 2, 3]  # turns without a first one
    costs = found.summary[0].costs
    assert costs is not None and costs.target_calls_per_answer == sum(run.metrics.target_calls for run in target) / 4
    assert of_comparison(found).measurement_conditions.num_prompts == 4
    assert prompt_line([*by_prompt(found.runs)]) == "one and 3 more"
    assert [run.prompt for run in _runs_of_prompt(target, "1")] == ["one", "two"]
    assert [run.prompt for run in _runs_of_prompt(target, "named")] == ["four"]
    for place, turns in (("2", ["three"]), ("3", ["four"]), ("4", ["five", "six"])):  # numbered by prompt
        assert [run.prompt for run in _runs_of_prompt(target, place)] == turns


def test_a_subset_of_a_comparison_drops_the_explanation_of_the_whole(text_pair: Pair) -> None:
    """The explanation is of the fastest of all strategies over all prompts; category tables are over all prompts."""
    asked = [Prompt(("one",), "a", "x"), Prompt(("two",), "b", "y")]
    found = compare(text_pair, asked, ["target", "draft", "speculative:k=2"], max_new_tokens=4)
    assert found.explanation is not None and set(found.categories) == {"x", "y"}
    found = found.model_copy(
        update={"spread": 0.5, "draft_lengths": [DraftLength(strategy="speculative", fixed=None, stops={}, oracle=1.5)]}
    )
    alone = picks.of_comparison(found, ["target", "draft"], None)
    assert alone.draft_lengths == [] and alone.spread is None, "these are of all strategies"
    assert alone.explanation is None and [row.strategy for row in alone.summary] == ["target", "draft"]
    assert [row.strategy for rows in alone.categories.values() for row in rows] == ["target", "draft"] * 2
    first = picks.of_comparison(found, [], "a")
    assert first.explanation is None and first.categories == {} and {run.prompt_id for run in first.runs} == {"a"}
    assert [row.num_prompts for row in first.summary] == [1] * 3


@pytest.fixture(scope="module")
def of_eight() -> Pair:
    """Two models whose vocabulary is too small for text."""
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    shape = {"model_type": "llama", "vocab_size": 8, "num_key_value_heads": 1} | sizes
    return load_pair({role: {"source": {"random": shape, "seed": i}} for i, role in enumerate(("draft", "target"))})


def test_token_ids_are_accepted_as_prompts_by_compare_and_generate_many(of_eight: Pair) -> None:
    asked = [[1, 2, 3], [4, 5]]
    found = compare(
        of_eight, prompt_ids=asked, strategies=["target", "speculative:k=2"], max_new_tokens=6, temperature=1
    )
    assert [(run.prompt_id, run.prompt, run.prompt_token_ids) for run in found.runs[::2]] == [
        ("1", None, asked[0]), ("2", None, asked[1]),
    ]  # fmt: skip
    assert found.summary[1].num_prompts == 2
    together = generate_many(
        of_eight, prompt_ids=torch.tensor([[1, 2, 3], [6, 7, 0]]), max_new_tokens=6, strategy="target"
    )
    assert together[0].token_ids == found.runs[0].token_ids and together[1].prompt_token_ids == [6, 7, 0]
    # A prompt outside a list draws the same numbers as `generate`.
    for ids in ([1, 2, 3], torch.tensor([1, 2, 3]), range(1, 4)):
        [alone] = compare(of_eight, prompt_ids=ids, strategies=["target"], max_new_tokens=6, measure=False).runs
        assert alone.prompt_id == ""
        assert (
            alone.token_ids == generate(of_eight, prompt_ids=[1, 2, 3], strategy="target", max_new_tokens=6).token_ids
        )


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({}, "give either prompts or prompt_ids"),
        ({"prompts": "hi", "prompt_ids": [1]}, "give either prompts or prompt_ids"),
        ({"prompt_ids": []}, "give at least one prompt"),
        ({"prompt_ids": [[1], []]}, "give at least one prompt, and no empty ones"),
        ({"prompt_ids": [["a"]]}, "prompt_ids: expected integers"),
        ({"prompt_ids": "ab"}, "prompt_ids: expected integers"),
        ({"prompt_ids": [[1], 2]}, "prompt_ids: expected integers"),
        ({"prompt_ids": 1.5}, "prompt_ids: expected integers"),
        ({"prompt_ids": [[1], [99]]}, "prompt '2': prompt id 99 is outside the vocabulary of 8 tokens"),
        ({"prompts": "hi"}, "too small for text; give prompt_ids instead"),
    ],
)
def test_invalid_prompts_are_refused(of_eight: Pair, given: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        compare(of_eight, strategies=["target"], max_new_tokens=2, **given)
    with pytest.raises(UsageError, match=said):
        generate_many(of_eight, strategy="target", max_new_tokens=2, **given)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"runs": 0}, "runs: expected 1 or more"),
        ({"batch_size": "2"}, "batch_size: expected 1 or more"),
        ({"schedule": "sequentail"}, "unknown schedule 'sequentail'; did you mean 'sequential'"),
    ],
)
def test_a_wrong_setting_is_refused_before_anything_runs(wrong: dict[str, Any], said: str, text_pair: Pair) -> None:
    with pytest.raises(UsageError, match=said):
        compare(text_pair, "hello", strategies=["target"], max_new_tokens=2, **wrong)


def test_ids_of_prompts_are_their_own(text_pair: Pair) -> None:
    """Random numbers follow from them: with one id for all, answers are no independent samples."""
    with pytest.raises(UsageError, match="2 have the id 'q'"):
        compare(text_pair, [Prompt(("a",), "q"), Prompt(("b",), "q")], strategies=["target"], max_new_tokens=2)
    with pytest.raises(UsageError, match="2 have the id '2'"):
        compare(text_pair, [Prompt(("a",), "2"), "b"], strategies=["target"], max_new_tokens=2)
    found = compare(text_pair, [Prompt(("a",)), Prompt(("b",))], strategies=["target"], max_new_tokens=2)
    assert [run.prompt_id for run in found.runs] == ["1", "2"]
    with pytest.raises(UsageError, match="no empty ones"):
        compare(text_pair, [Prompt((), "x")], strategies=["target"], max_new_tokens=2)
