"""The exact law of `verify_block`, measured from outside: sweep its uniforms and find the steps by bisection."""

from collections import defaultdict
from collections.abc import Callable, Iterator
from itertools import product

import numpy as np
import pytest
import torch

from cascli.sampling.rejection import Verification, verify_block
from tests.laws.tables import KINDS, random_tables, target
from tests.reference.process import (
    Law,
    Tables,
    Target,
    Tokens,
    distance,
    round_outcomes,
    sequential_law,
    speculative_law,
)

ACCEPT, REJECT = -1.0, 2.0


def steps(token_at: Callable[[float], int]) -> dict[int, float]:
    """The total length of [0, 1) on which a step function takes each value, found by bisection."""
    lengths: dict[int, float] = defaultdict(float)
    low = 0.0
    while low < 1.0:
        token, inside, outside = token_at(low), low, 1.0
        while np.nextafter(inside, 1.0) < outside:
            middle = (inside + outside) / 2
            inside, outside = (middle, outside) if token_at(middle) == token else (inside, middle)
        lengths[token] += outside - low
        low = outside
    return lengths


class Block:
    """One drafted block over imaginary models, ready to be verified with any uniforms."""

    def __init__(self, tables: Tables, rule: Target, drafted: Tokens) -> None:
        pairs = [tables(drafted[:i]) for i in range(len(drafted) + 1)]
        size = len(pairs[0].q)
        self.k, self.drafted = len(drafted), torch.tensor(drafted, dtype=torch.long)
        self.pi = torch.tensor(np.array([rule(pair) for pair in pairs]))
        self.q = torch.tensor(np.array([pair.q for pair in pairs[:-1]]).reshape(self.k, size))
        self.chance = float(np.prod([pairs[i].q[x] for i, x in enumerate(drafted)]))

    def verify(self, u_accept: list[float], u_next: list[float]) -> Verification:
        accept, follow = (torch.tensor(u, dtype=torch.float64) for u in (u_accept, u_next))
        return verify_block(self.pi, self.q, self.drafted, accept, follow)

    def next_law(self, kept: int, later: float) -> dict[int, float]:
        """The law of the token after `kept` tokens; `later` is the uniform of the tests that must not matter."""
        tests = [ACCEPT] * kept + [REJECT] * (kept < self.k) + [later] * (self.k - kept - 1)

        def token_at(u: float) -> int:
            out = self.verify(tests, [0.999] * kept + [u] + [0.001] * (self.k - kept))
            assert out.num_accepted.item() == kept
            assert out.accepted.tolist() == [test == ACCEPT for test in tests]
            return int(out.next_token.item())

        return steps(token_at)

    def outcomes(self, later: float) -> Iterator[tuple[Tokens, float]]:
        """(emitted tokens, probability given the draft)."""
        chance, drafted = 1.0, tuple(self.drafted.tolist())
        accept_prob = self.verify([ACCEPT] * self.k, [0.5] * (self.k + 1)).accept_prob.tolist()
        for kept in range(self.k + 1):
            fails = 1.0 - accept_prob[kept] if kept < self.k else 1.0
            if chance * fails > 1e-15:
                for token, weight in self.next_law(kept, later).items():
                    yield (*drafted[:kept], token), chance * fails * weight
            chance *= accept_prob[kept] if kept < self.k else 1.0


def block_law(tables: Tables, rule: Target, k: int, later: float) -> Law:
    """The joint law of k + 1 tokens: what one block emits, then pi token by token."""
    law: Law = defaultdict(float)
    size = len(tables(()).q)
    for drafted in product(range(size), repeat=k):
        block = Block(tables, rule, drafted)
        if block.chance == 0:
            continue
        for emitted, weight in block.outcomes(later):
            for tail, more in sequential_law(tables, rule, k + 1 - len(emitted), emitted).items():
                law[emitted + tail] += block.chance * weight * more
    return dict(law)


CASES = [
    pytest.param(size, k, name, alpha, kind, id=f"{name}={alpha} k={k} V={size} {kind}")
    for index, (size, k) in enumerate([(4, 0), (4, 1), (3, 2), (3, 3), (2, 5)])
    for kind in KINDS
    for name, alpha in [
        [("exact", 0.0), ("token-v3", 0.3), ("chow", 0.4)],
        [("exact", 0.0), ("token-v1", 0.4), ("opt", 0.5)],
        [("exact", 0.0), ("token-v2", 0.2), ("diff", 0.1)],
    ][index % 3]
]


@pytest.mark.parametrize(("size", "k", "name", "alpha", "kind"), CASES)
def test_a_block_follows_pi(size: int, k: int, name: str, alpha: float, kind: str) -> None:
    tables, rule = random_tables(size, seed=7 * k, kind=kind), target(name, alpha)
    law = block_law(tables, rule, k, later=ACCEPT)
    assert sum(law.values()) == pytest.approx(1.0, abs=1e-12)
    assert distance(law, sequential_law(tables, rule, k + 1)) < 1e-12


def test_tests_after_the_first_rejection_do_not_matter() -> None:
    tables, rule = random_tables(3, seed=1, kind="plain"), target("token-v3", 0.3)
    drafted = (0, 2, 1)
    block = Block(tables, rule, drafted)
    assert dict(block.outcomes(ACCEPT)) == dict(block.outcomes(REJECT))


def test_one_round_alone_is_a_round_of_the_reference_process() -> None:
    """Not only the law: each emitted block also has the reference's probability."""
    tables, rule = random_tables(3, seed=5, kind="plain"), target("token-v2", 0.2)
    measured: Law = defaultdict(float)
    for drafted in product(range(3), repeat=2):
        block = Block(tables, rule, drafted)
        for emitted, weight in block.outcomes(ACCEPT):
            measured[emitted] += block.chance * weight
    expected: Law = defaultdict(float)
    for emitted, weight in round_outcomes(tables, rule, (), 2):
        expected[emitted] += weight
    assert distance(measured, expected) < 1e-12


@pytest.mark.parametrize("kind", KINDS)
def test_a_test_passes_exactly_below_its_probability(kind: str) -> None:
    tables, rule = random_tables(3, seed=3, kind=kind), target("exact")
    for drafted in product(range(3), repeat=2):
        block = Block(tables, rule, drafted)
        if block.chance == 0:
            continue
        at = block.verify([ACCEPT] * 2, [0.5] * 3).accept_prob
        for i, x in enumerate(drafted):
            assert at[i].item() == min(1.0, block.pi[i, x].item() / block.q[i, x].item())
        assert block.verify(at.tolist(), [0.5] * 3).accepted.tolist() == [False, False]
        below = torch.nextafter(at, torch.full_like(at, -1.0))
        assert block.verify(below.tolist(), [0.5] * 3).accepted.tolist() == [True, True]


def test_arguments_are_unchanged() -> None:
    block = Block(random_tables(4, seed=4), target("exact"), (0, 1))
    copies = block.pi.clone(), block.q.clone(), block.drafted.clone()
    block.verify([0.3, 0.8], [0.1, 0.5, 0.9])
    assert all(torch.equal(a, b) for a, b in zip(copies, (block.pi, block.q, block.drafted), strict=True))


def test_a_wrong_law_is_detected() -> None:
    """The measurement distinguishes pi from q and from p."""
    tables, rule = random_tables(3, seed=2, kind="plain"), target("token-v3", 0.3)
    law = block_law(tables, rule, 1, later=ACCEPT)
    assert distance(law, sequential_law(tables, lambda pair: pair.p, 2)) > 1e-3
    assert distance(law, sequential_law(tables, lambda pair: pair.q, 2)) > 1e-3
    assert distance(law, speculative_law(tables, rule, 2, 1, bonus=lambda pair: pair.p)) > 1e-3


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_impossible_tokens_never_follow(dtype: torch.dtype) -> None:
    """Over a large vocabulary with many zeros, for any uniform, even where q = pi was rejected."""
    generator = torch.Generator().manual_seed(0)
    weights = torch.rand(3, 50_000, generator=generator, dtype=dtype)
    weights[:, ::2] = 0
    pi = weights / weights.sum(-1, keepdim=True)
    for q in (pi[:2], pi[1:]):  # the same distributions, and others
        drafted = q.argmax(-1)
        for u in (0.0, 0.5, 1 - 2.0**-53):
            for tests in ([REJECT, REJECT], [ACCEPT, REJECT], [ACCEPT, ACCEPT]):
                follow = torch.full((3,), u, dtype=torch.float64)
                out = verify_block(pi, q, drafted, torch.tensor(tests, dtype=torch.float64), follow)
                assert pi[out.num_accepted, out.next_token] > 0
