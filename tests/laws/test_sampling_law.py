"""Sampling through `generate` with the real random numbers, one seed per run.

Every text's count is within 6 sigma + 5 of its expectation, and texts of probability 0 never occur. With
correct code, a test here fails for fewer than one choice of seeds in 100,000 (one in 10,000 for the test of
pairs of streams): `false_alarm_rate` bounds this, and each test checks the bound. The seeds are fixed, so a
test that passes always passes. A 6 sigma bound is coarse (it allows a shift of 16 percentage points at
probability 1/2 and 400 runs): precision is left to the enumeration tests; these tests are about `Uniforms`.
"""

from collections import Counter
from itertools import combinations, pairwise

import numpy as np
import pytest
import torch

from cascli import generate
from cascli.sampling.uniforms import Uniforms
from tests.laws.counting import allowance, false_alarm_rate, out_of_law
from tests.laws.models import reference_law, tiny_pair
from tests.laws.tables import target
from tests.reference.process import Law, Target

LIMIT = 1e-5
PLAIN = {"temperature": 1.0, "top_k": 0, "top_p": 1.0}
WARPED = {"temperature": 0.7, "top_k": 3, "top_p": 0.95}
CASES = [
    ("target", lambda pair: pair.p, PLAIN),
    ("speculative:k=2", target("exact"), PLAIN),
    ("speculative:k=4", target("exact"), WARPED),
    ("speculative-cascade:rule=token-v3,alpha=0.3,k=2", target("token-v3", 0.3), PLAIN),
    ("speculative-cascade:rule=opt,alpha=0.3,k=3", target("opt", 0.3), WARPED),
    ("token-cascade:rule=token-v2,alpha=0.2", target("token-v2", 0.2), PLAIN),
]


def counts(strategy: str, runs: int, length: int, sampling: dict, first: int = 0) -> Counter:
    pair = tiny_pair(5, 2)
    request = {"prompt_ids": [1, 2], "strategy": strategy, "max_new_tokens": length, **sampling}
    seeds = range(first, first + runs)
    return Counter(tuple(generate(pair, seed=seed, **request).token_ids) for seed in seeds)


def assert_counts(counted: Counter, law: Law) -> None:
    assert len(law) > 10 and false_alarm_rate(law, counted.total()) < LIMIT
    assert out_of_law(counted, law) == []


@pytest.mark.parametrize(("strategy", "rule", "sampling"), CASES, ids=[case[0] for case in CASES])
def test_texts_of_three_tokens(strategy: str, rule: Target, sampling: dict) -> None:
    law = reference_law(rule, 3, 5, 2, **sampling)
    assert_counts(counts(strategy, 400, 3, sampling), law)


@pytest.mark.slow
@pytest.mark.parametrize(("strategy", "rule", "sampling"), CASES[1:5:2], ids=[c[0] for c in CASES[1:5:2]])
def test_texts_of_three_tokens_many_times(strategy: str, rule: Target, sampling: dict) -> None:
    law = reference_law(rule, 3, 5, 2, **sampling)
    assert_counts(counts(strategy, 1500, 3, sampling, first=10_000), law)


def test_a_wrong_law_is_rejected() -> None:
    """At this number of runs, the bound separates the target's law from the cascade's."""
    counted = counts("speculative:k=2", 600, 3, PLAIN)
    assert out_of_law(counted, reference_law(lambda pair: pair.q, 3, 5, 2, **PLAIN))
    assert out_of_law(counted, reference_law(target("token-v3", 0.3), 3, 5, 2, **PLAIN))


def test_the_false_alarm_bound_holds() -> None:
    """The bound is small, and correct counts of a fair four-sided die raise no alarm in 300 trials."""
    even = {(i,): 0.25 for i in range(4)}
    assert 0 < false_alarm_rate(even, 1000) < 1e-6
    assert allowance(0.5, 100) == pytest.approx(35.0)
    rng = np.random.default_rng(0)
    for _ in range(300):
        drawn = Counter((int(x),) for x in rng.integers(0, 4, 500))
        assert out_of_law(drawn, even) == []


# ---------------------------------------------------------------- the random numbers themselves

LENGTH, SEEDS = 3, 8000


@pytest.fixture(scope="module")
def streams() -> dict[str, np.ndarray]:
    """Every stream at every position over many seeds: `[SEEDS]` each."""
    made = [Uniforms(seed, LENGTH) for seed in range(SEEDS)]
    return {
        f"{name} {i}": torch.stack([getattr(u, name)(i, 1) for u in made]).flatten().numpy()
        for name in ("draw", "accept", "residual")
        for i in range(LENGTH)
    }


def test_uniforms_are_uniform_over_seeds(streams: dict[str, np.ndarray]) -> None:
    """20 bins, each within 6 sigma + 5; the false-alarm probability is below 1e-5."""
    law = {(i,): 1 / 20 for i in range(20)}
    assert len(streams) * false_alarm_rate(law, SEEDS) < LIMIT
    for values in streams.values():
        assert values.min() >= 0 and values.max() < 1
        assert out_of_law(Counter((int(20 * u),) for u in values), law) == []


def test_streams_and_positions_are_independent(streams: dict[str, np.ndarray]) -> None:
    """Each pair of streams or positions fills a 4 x 4 grid evenly (false-alarm rate of all 36 below 1e-4)."""
    law = {(i, j): 1 / 16 for i in range(4) for j in range(4)}
    assert 36 * false_alarm_rate(law, SEEDS) < 10 * LIMIT
    for a, b in combinations(streams.values(), 2):
        assert out_of_law(Counter((int(4 * u), int(4 * v)) for u, v in zip(a, b, strict=True)), law) == []


def test_neighbouring_seeds_are_independent(streams: dict[str, np.ndarray]) -> None:
    law = {(i, j): 1 / 16 for i in range(4) for j in range(4)}
    for values in streams.values():
        pairs = pairwise(values)
        assert out_of_law(Counter((int(4 * u), int(4 * v)) for u, v in pairs), law) == []


def test_uniforms_are_a_function_of_seed_stream_and_position() -> None:
    state = torch.random.get_rng_state()
    whole = Uniforms(5, 40)
    for name in ("draw", "accept", "residual"):
        values = getattr(whole, name)(0, 40)
        assert values.dtype == torch.float64 and values.shape == (40,)
        assert torch.equal(values, getattr(Uniforms(5, 40), name)(0, 40))
        assert torch.equal(values[7:12], getattr(whole, name)(7, 5))
        assert values.is_contiguous(), "kernels step through a stream number by number"
        assert torch.equal(values[:9], getattr(Uniforms(5, 9), name)(0, 9)), "depends on the limit"
        assert not torch.equal(values, getattr(Uniforms(6, 40), name)(0, 40))
        assert getattr(whole, name)(3, 0).shape == (0,)
    assert torch.equal(torch.random.get_rng_state(), state)


def test_the_same_seed_writes_the_same_text() -> None:
    for strategy, _, sampling in CASES:
        runs = [
            generate(tiny_pair(4), prompt_ids=[1], strategy=strategy, max_new_tokens=20, seed=3, **sampling)
            for _ in range(2)
        ]
        assert runs[0].token_ids == runs[1].token_ids
