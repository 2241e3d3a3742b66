from __future__ import annotations

import math

import pytest

from cascli import Pair
from cascli.analysis import theory
from cascli.analysis.explanation import explain
from cascli.analysis.replay import along
from cascli.analysis.theory import least_cost
from cascli.jobs.compare import compare
from cascli.render.explanation import sentence
from cascli.strategies import parse
from tests.pairs import prompts


@pytest.mark.parametrize(("a", "k", "gain"), [(0.6, 3, 1.67), (0.8, 6, 2.47), (0.9, 10, 3.43)])
def test_known_values_at_c_one_tenth(a: float, k: int, gain: float) -> None:
    assert theory.best_k(a, 0.1) == k
    assert theory.speed_up(a, k, 0.1) == pytest.approx(gain, abs=0.005)


def test_expected_tokens() -> None:
    assert theory.expected_tokens(0.8, 3) == pytest.approx(2.952)
    assert theory.expected_tokens(1.0, 4) == 5
    assert theory.expected_tokens(0.0, 4) == 1


@pytest.mark.parametrize("c", [0.1, 0.4, 0.7])
def test_some_block_pays_off_if_acceptance_exceeds_c(c: float) -> None:
    assert theory.acceptance_for(c + 1, lambda a: theory.expected_tokens(a, 1)) == pytest.approx(c)
    assert theory.speed_up(c + 0.01, theory.best_k(c + 0.01, c), c) > 1
    assert theory.speed_up(c - 0.01, theory.best_k(c - 0.01, c), c) < 1


@pytest.mark.parametrize("n", [1, 5, 60])
@pytest.mark.parametrize("k", [1, 2, 6])
@pytest.mark.parametrize("a", [0.0, 0.3, 0.8, 1.0])
def test_starts_of_rounds_follow_from_the_law_of_a_rounds_tokens(a: float, k: int, n: int) -> None:
    chances = [a**t * (1 - a) for t in range(k)] + [a**k]  # of 1 .. k + 1 tokens
    expected = [1.0] + [0.0] * (n - 1)
    for t in range(1, n):
        expected[t] = sum(p * expected[t - tokens] for tokens, p in enumerate(chances, 1) if tokens <= t)
    found = theory.starts(a, k, n)
    assert found == pytest.approx(expected)
    assert sum(found) == pytest.approx(theory.expected_cost(n, along([a] * n, k), lambda _: 1.0))


def test_break_even_may_not_exist() -> None:
    assert theory.acceptance_for(4 * 1.0 + 2.0, lambda a: theory.expected_tokens(a, 4)) is None


def test_explanation_adds_up(text_pair: Pair, any_noise: None) -> None:
    strategies = [parse(text) for text in ("target", "draft", "speculative:k=3", "speculative-cascade:rule=diff,k=3")]
    found = compare(text_pair, prompts("hello"), strategies, max_new_tokens=40, temperature=1, seed=1)
    why = explain(found.runs, noise=math.inf)
    assert why is not None
    run = next(run for run in found.runs if run.spec == why.strategy)
    assert why.tokens_per_round == pytest.approx(len(run.token_ids) / run.metrics.num_rounds)
    assert 0 <= why.acceptance <= 1
    behind = why.c if "rule" in run.params else 0.0  # a rule reads q after a block that has passed
    assert why.bottleneck is None, "the runs' own times agree with a prediction from them whatever the cause"
    cost = theory.expected_cost(
        40, along([why.acceptance] * 40, 3), lambda j: why.c * j + 1 + (why.v - 1) * j / 3, behind
    )
    assert why.predicted_speed_up == pytest.approx(40 / cost, rel=1e-3)
    assert "the times of its own steps give" in sentence(why)
    timed = explain(found.runs, found.profile, noise=math.inf)
    assert timed is not None and timed.without_it is not None and timed.without_it >= timed.predicted
    assert "predicted" in sentence(timed)
    assert explain(found.runs[1:]) is None
    assert explain(found.runs[:2]) is None


def test_an_oracle_may_draft_more_than_the_answer_has_left() -> None:
    v = [1.0, 0.9, 0.8, 0.7, 0.6]
    assert least_cost(1, along([1.0], 4), v.__getitem__, 4) == 0.6
