"""A rule compared with random deferral, a coin that leaves answers to the draft model."""

from __future__ import annotations

import numpy as np
import pytest

from cascli.analysis.random_deferral import Scored, against_random
from cascli.sweeps.plan import Cell
from cascli.sweeps.records import Record
from cascli.sweeps.table import rows


def scored(quality: np.ndarray, calls: np.ndarray) -> dict[str, Scored]:
    return {f"{i:03}": Scored(*map(float, each)) for i, each in enumerate(zip(quality, calls, strict=True))}


def drawn(rng: np.random.Generator, prompts: int) -> tuple[dict[str, Scored], dict[str, Scored], dict[str, Scored]]:
    """A rule 0.1 above the line at half the calls; answers that take more calls are worse."""
    hard = rng.random(prompts)
    exact, draft = (rng.random(prompts) < 1.1 - hard) * 1.0, (rng.random(prompts) < 0.2) * 1.0
    calls = 10 + 80 * hard
    rule = (rng.random(prompts) < 0.5 * np.minimum(1.1 - hard, 1.0) + 0.1 + 0.1) * 1.0
    return scored(rule, calls * rng.uniform(0.2, 0.8, prompts)), scored(exact, calls), scored(draft, 0 * calls)


def test_a_real_coin_is_on_the_line() -> None:
    """A coin takes the exact answer to half of the prompts: over many prompts, its distance from the line vanishes."""
    rng = np.random.default_rng(0)
    _, exact, draft = drawn(rng, 4000)
    coin = {each: exact[each] if rng.random() < 0.5 else draft[each] for each in exact}
    found = against_random(coin, exact, draft)
    assert found is not None and abs(found[0]) < 0.02
    assert found[1].low < 0 < found[1].high


def test_the_difference_is_the_difference_of_the_means() -> None:
    rule, exact, draft = drawn(np.random.default_rng(1), 50)
    quality, calls = (
        [np.mean([getattr(each, name) for each in one.values()]) for one in (rule, exact, draft)]
        for name in ("quality", "calls")
    )
    share = calls[0] / calls[1]
    found = against_random(rule, exact, draft)
    assert found[0] == pytest.approx(quality[0] - share * quality[1] - (1 - share) * quality[2])


def test_more_calls_than_speculation_needs_buy_nothing() -> None:
    """A rule that costs more than lossless speculation is compared with it."""
    rule, exact, draft = drawn(np.random.default_rng(2), 30)
    dear = {each: Scored(score.quality, score.calls + 200) for each, score in rule.items()}
    found = against_random(dear, exact, draft)
    assert found[0] == pytest.approx(np.mean([dear[each].quality - exact[each].quality for each in dear]))


def test_intervals_cover_the_truth_19_of_20_times_and_are_not_too_wide() -> None:
    """Intervals are compared with the truth from very many prompts, and with the scatter of the estimate itself."""
    rng = np.random.default_rng(3)
    truth = against_random(*drawn(rng, 200_000))[0]
    found = [against_random(*drawn(rng, 100)) for _ in range(600)]
    held = np.mean([interval.low <= truth <= interval.high for _, interval in found])
    assert 0.93 <= held <= 0.98
    width = np.mean([interval.high - interval.low for _, interval in found])
    assert width == pytest.approx(2 * 1.98 * np.std([value for value, _ in found]), rel=0.12)


def test_an_interval_accounts_for_the_estimated_share() -> None:
    """The qualities are constant, and only the rule's calls vary: all of the error is in the share."""
    rng = np.random.default_rng(5)

    def scattered(prompts: int) -> tuple[dict[str, Scored], dict[str, Scored], dict[str, Scored]]:
        half, calls = np.full(prompts, 0.5), rng.uniform(0, 40, prompts)
        return scored(half, calls), scored(2 * half, np.full(prompts, 50.0)), scored(0 * half, 0 * calls)

    truth = 0.5 - 20 / 50
    found = [against_random(*scattered(60)) for _ in range(400)]
    held = np.mean([interval.low <= truth <= interval.high for _, interval in found])
    assert held >= 0.93
    assert np.std([value for value, _ in found]) > 0.02, "or there is nothing to know"


def test_prompts_missing_from_any_strategy_are_excluded() -> None:
    rule, exact, draft = drawn(np.random.default_rng(4), 20)
    some = dict(list(rule.items())[:10])
    less = dict(list(exact.items())[5:])
    both = list(rule)[5:10]
    wanted = against_random(*({each: one[each] for each in both} for one in (rule, exact, draft)))
    assert against_random(some, less, draft) == wanted
    assert against_random(rule, {}, draft) is None
    assert against_random(rule, {each: Scored(1.0, 0.0) for each in rule}, draft) is None


def record(spec: str, problem: int, quality: float, calls: int, temperature: float = 0.0) -> Record:
    return Record(
        cell=Cell(strategy=spec, temperature=temperature, seed=0),
        problem=str(problem),
        quality=quality,
        token_ids=[1] * 10,
        target_calls=calls,
        rounds=calls,
        looped=0,
    )


RULE, NEAR, FAR = "speculative-cascade:rule=opt,alpha=0.3,k=4", "speculative:k=8", "speculative:k=2"


def table(*without: str, temperature: float = 0.0) -> dict[str, float | None]:
    """Quality vs random deferral by strategy: eight prompts; 12, 20 and 40 calls without loss, 6 for the rule."""
    asked = {"target": (1.0, 40), NEAR: (1.0, 12), FAR: (1.0, 20), "draft": (0.0, 0), RULE: (0.75, 6)}
    records = [
        record(spec, i, quality, calls, temperature)
        for spec, (quality, calls) in asked.items()
        if spec not in without
        for i in range(8)
    ]
    return {row.strategy: row.quality_vs_random for row in rows(records)}


def test_rows_are_compared_with_the_cheapest_lossless_strategy() -> None:
    found = table()
    assert found.pop(RULE) == pytest.approx(0.75 - 0.5)
    assert set(found.values()) == {None}, "not what the line is made of"
    assert table(NEAR)[RULE] == pytest.approx(0.75 - 6 / 20)
    assert table(NEAR, FAR)[RULE] == pytest.approx(0.75 - 6 / 40)
    assert table("draft")[RULE] is None and table("target", NEAR, FAR)[RULE] is None


def test_a_strategy_with_missing_answers_is_not_the_reference() -> None:
    """An interrupted or failing strategy must not be the reference: it would limit the others to its own prompts."""
    asked = {"target": (1.0, 40), FAR: (1.0, 20), "draft": (0.0, 0), RULE: (0.75, 6)}
    records = [record(spec, i, *scores) for spec, scores in asked.items() for i in range(8)]
    records += [record(NEAR, i, 1.0, 2) for i in range(3)]
    found = {row.strategy: row.quality_vs_random for row in rows(records)}
    assert found[RULE] == pytest.approx(0.75 - 6 / 20)


def test_temperatures_do_not_mix() -> None:
    """Answers at different temperatures are not compared."""
    specs = [("target", 1.0, 40), ("draft", 0.0, 0)]
    records = [record(spec, i, quality, calls) for spec, quality, calls in specs for i in range(8)]
    records += [record(RULE, i, 0.75, 6, temperature=1.0) for i in range(8)]
    assert {row.quality_vs_random for row in rows(records)} == {None}


def test_few_prompts_have_a_difference_but_no_range() -> None:
    """What is averaged is not a prompt's own difference: with one long answer it was -1.5 for scores from 0 to 1."""
    found = against_random(*drawn(np.random.default_rng(1), 4))
    assert found is not None and found[1] is None
    assert against_random(*drawn(np.random.default_rng(1), 8))[1].kind == "95%"
