"""Percentiles, and how many values they need."""

from __future__ import annotations

import pytest

from cascli import Pair, compare, load_pair
from cascli.analysis.answer_costs import Answered, per_prompt
from cascli.analysis.comparison import Comparison
from cascli.analysis.percentiles import percentiles
from cascli.analysis.statistics import percentile
from cascli.prompts import Prompt
from tests.pairs import pair


def test_percentiles_interpolate_linearly() -> None:
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


def test_percentiles_are_over_prompts_averaged_over_seeds() -> None:
    answers = [
        Answered(
            n, seed, tokens=10 * n + seed, target_calls=n, rounds=n, accepted=2 * n, looped=0, cut=False, seconds=n
        )
        for n in range(1, 12)
        for seed in (0, 1)
    ]
    found = per_prompt(answers)
    assert found.tokens is not None and found.tokens.p50 == 60.5
    assert found.tokens.p90 == pytest.approx(percentile([10 * n + 0.5 for n in range(1, 12)], 0.9))
    assert found.tokens.p99 is None
    assert found.tokens_per_round is not None and found.tokens_per_round.p50 == found.tokens_per_round.p90 == 3
    assert found.seconds is not None and found.seconds.p50 == 6


def test_rounds_without_drafts_and_seconds_in_a_batch_have_no_percentiles() -> None:
    found = per_prompt([Answered(0, 0, tokens=5, target_calls=5, rounds=0, accepted=0, looped=0, cut=False)])
    assert found.tokens_per_round is None and found.seconds is None
    assert found.target_calls is not None and found.target_calls.p50 == 5


@pytest.fixture(scope="module")
def whole() -> Comparison:
    loaded: Pair = load_pair(pair(initializer_range=0.2))
    asked = [Prompt((f"Number {n}", "More")[: 1 + n % 2], str(n), ("even", "odd")[n % 2]) for n in range(5)]
    return compare(loaded, asked, ["target", "speculative:k=2"], max_new_tokens=8, measure=False, runs=2)


def test_categories_cover_their_own_prompts_and_add_up_to_the_whole(whole: Comparison) -> None:
    assert list(whole.categories) == ["even", "odd"]
    for place, row in enumerate(whole.summary):
        parts = [rows[place] for rows in whole.categories.values()]
        assert {part.strategy for part in parts} == {row.strategy}
        assert [part.num_prompts for part in parts] == [3, 2] and [part.num_answers for part in parts] == [3, 4]
        assert sum(part.tokens for part in parts) == row.tokens
        calls = [(part.target_calls_per_token or 0) * part.tokens for part in parts]
        assert sum(calls) == pytest.approx((row.target_calls_per_token or 0) * row.tokens)
        assert sum(part.seconds for part in parts) == pytest.approx(row.seconds, rel=0.5)
        assert row.costs is not None and row.costs.per_prompt is not None
    even = [run for run in whole.runs if run.prompt_id in ("0", "2", "4") and run.strategy == "target"]
    assert whole.categories["even"][0].tokens == sum(len(run.token_ids) for run in even)
    assert Comparison.from_json(whole.to_json()).categories == whole.categories


def test_a_single_category_has_no_table_of_its_own() -> None:
    loaded = load_pair(pair(initializer_range=0.2))
    asked = [Prompt(("One",), "1", "same"), Prompt(("Two",), "2", "same")]
    assert compare(loaded, asked, ["target"], max_new_tokens=2, measure=False).categories == {}
    assert compare(loaded, ["One", "Two"], ["target"], max_new_tokens=2, measure=False).categories == {}
