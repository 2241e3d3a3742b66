"""Block verification: the exact law of what a round emits, by enumeration, and its gain over token tests.

Law and acceptance come from the package's own prefix tests, over every block and every pattern of passed and failed
tests. The reference computes the same with loops, and the law itself is the product of pi along the text.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator
from functools import cache, partial
from itertools import product
from typing import NamedTuple

import numpy as np
import pytest
import torch

from cascli.sampling import distributions, rejection
from cascli.sampling.rejection import verify_block, verify_prefixes
from tests.laws.tables import KINDS, random_tables, target
from tests.reference import lossy
from tests.reference.process import (
    Law,
    Pair,
    Tables,
    Target,
    Tokens,
    block_outcomes,
    distance,
    round_outcomes,
    sequential_law,
)
from tests.reference.process import prefix_weights as weights_of

EXACT = 1e-12
PASSES, FAILS = -1.0, 2.0
Outcomes = Callable[[Tables, Target, Tokens, int], Iterator[tuple[Tokens, float]]]


def of_lossy(law: Callable[..., np.ndarray], *params: float) -> Target:
    return lambda pair: law(*pair, *params)


RULES: dict[str, Target] = {
    "exact": target("exact"),
    "token-v3": target("token-v3", 0.3),
    "opt": target("opt", 0.5),
    "head": of_lossy(lossy.head, 0.3),
    "mixture": of_lossy(lossy.mixture, 0.5),
}
each_rule = pytest.mark.parametrize("name", RULES)


class Draft(NamedTuple):
    """A drafted block of k tokens and its probability."""

    pi: torch.Tensor
    q: torch.Tensor
    tokens: torch.Tensor
    chance: float


def drafts(tables: Tables, rule: Target, k: int) -> Iterator[Draft]:
    """Every block that can be drafted."""
    for drafted in product(range(len(tables(()).q)), repeat=k):
        pairs = [tables(drafted[:i]) for i in range(k + 1)]
        chance = float(np.prod([pairs[i].q[x] for i, x in enumerate(drafted)]))
        if chance > 0:
            q = torch.tensor(np.array([pair.q for pair in pairs]))[:k]
            pi = torch.tensor(np.array([rule(pair) for pair in pairs]))
            yield Draft(pi, q, torch.tensor(drafted, dtype=torch.long), chance)


def kept_by(draft: Draft, passed: tuple[bool, ...]) -> int:
    u = torch.tensor([PASSES if each else FAILS for each in passed], dtype=torch.float64)
    return int(rejection.verify_prefixes(*draft[:3], u, torch.zeros(len(passed) + 1)).num_accepted)


def stands(draft: Draft) -> list[float]:
    """The probabilities that 0 to k of its tokens are kept, over all patterns of passed and failed tests."""
    k = len(draft.tokens)
    passing = rejection.prefix_tests(*draft[:3])[0].tolist()
    shares = [0.0] * (k + 1)
    for passed in product((True, False), repeat=k):
        chance = np.prod([prob if each else 1 - prob for each, prob in zip(passed, passing, strict=True)])
        shares[kept_by(draft, passed)] += float(chance)
    return shares


def outcomes(tables: Tables, rule: Target, prefix: Tokens, k: int) -> Iterator[tuple[Tokens, float]]:
    """Every outcome of a text's first round with its probability, computed by the package."""
    assert prefix == ()
    for draft in drafts(tables, rule, k):
        laws = rejection.prefix_tests(*draft[:3])[1].numpy()
        for kept, share in enumerate(stands(draft)):
            if share > 0:
                for token, weight in enumerate(laws[kept] / laws[kept].sum()):
                    yield (*draft.tokens[:kept].tolist(), token), draft.chance * share * float(weight)


def law_of(way: Outcomes, tables: Tables, rule: Target, k: int, after: Target | None = None) -> Law:
    """The joint law of k + 1 tokens: what a round emits, then pi of `after` (default: `rule`) token by token."""
    law: Law = defaultdict(float)
    tail_of = cache(lambda emitted: sequential_law(tables, after or rule, k + 1 - len(emitted), emitted))
    for emitted, weight in way(tables, rule, (), k):
        for tail, more in tail_of(emitted).items() if weight > 0 else ():
            law[emitted + tail] += weight * more
    return dict(law)


def accepted(way: Outcomes, tables: Tables, rule: Target, k: int) -> float:
    """Mean number of drafted tokens that a round keeps."""
    return sum((len(emitted) - 1) * weight for emitted, weight in way(tables, rule, (), k))


def error(tables: Tables, rule: Target, k: int) -> float:
    return distance(law_of(outcomes, tables, rule, k), sequential_law(tables, rule, k + 1))


@each_rule
@pytest.mark.parametrize(("size", "k", "trees"), [(4, 0, 1), (4, 1, 10), (3, 2, 12), (4, 2, 4), (3, 3, 2), (2, 5, 1)])
def test_what_a_round_writes_follows_pi(size: int, k: int, trees: int, name: str) -> None:
    for seed in range(trees):
        tables = random_tables(size, seed=seed, kind=KINDS[seed % len(KINDS)])
        assert error(tables, RULES[name], k) < EXACT
        reference = law_of(block_outcomes, tables, RULES[name], k)
        assert distance(reference, sequential_law(tables, RULES[name], k + 1)) < EXACT


@pytest.mark.parametrize("kind", KINDS)
def test_the_law_is_exact_for_zeros_and_equal_models(kind: str) -> None:
    for rule in (RULES["exact"], RULES["token-v3"]):
        assert error(random_tables(3, seed=5, kind=kind), rule, 2) < EXACT


def test_a_round_goes_as_the_definition_says() -> None:
    """Not only the law: each emitted block also has the reference's probability."""
    for seed, name in enumerate(RULES):
        tables = random_tables(3, seed=seed, kind="plain")
        ours, theirs = (defaultdict(float), defaultdict(float))
        for law, way in ((ours, outcomes), (theirs, block_outcomes)):
            for emitted, weight in way(tables, RULES[name], (), 3):
                law[emitted] += weight
        assert distance(ours, theirs) < EXACT


@each_rule
def test_at_least_as_many_drafts_are_kept_as_by_token_tests(name: str) -> None:
    gains = []
    for seed in range(60):
        tables, k = random_tables(3, seed=seed, kind=("plain", "warped")[seed % 2]), 1 + seed % 3
        ours, theirs = (accepted(way, tables, RULES[name], k) for way in (block_outcomes, round_outcomes))
        gains.append(ours - theirs)
        if seed < 6:
            assert accepted(outcomes, tables, RULES[name], k) == pytest.approx(ours, abs=EXACT)
    assert min(gains) > -EXACT and max(gains) > 1e-3


def test_a_prefix_is_kept_with_its_weight_whatever_follows() -> None:
    """P(at least i tokens are kept | the first i) = p_i: the lemma from which the law follows."""
    for seed, rule in enumerate(RULES.values()):
        tables, k = random_tables(3, seed=seed, kind="plain"), 3
        reaches: dict[Tokens, float] = defaultdict(float)
        chances: dict[Tokens, float] = defaultdict(float)
        for draft in drafts(tables, rule, k):
            tokens, shares = tuple(draft.tokens.tolist()), stands(draft)
            for i in range(1, k + 1):
                reaches[tokens[:i]] += draft.chance * sum(shares[i:])
                chances[tokens[:i]] += draft.chance
        for prefix, reach in reaches.items():
            pairs = [tables(prefix[:i]) for i in range(len(prefix))]
            weight = weights_of([rule(pair)[x] / pair.q[x] for pair, x in zip(pairs, prefix, strict=True)])[-1]
            assert reach / chances[prefix] == pytest.approx(weight, abs=EXACT)


def blocks(k: int, size: int = 5, count: int = 40) -> Iterator[Draft]:
    """Random blocks, drafted from their own q."""
    rng = np.random.default_rng(k)
    for _ in range(count):
        q, pi = (torch.tensor(rng.dirichlet(np.full(size, 0.6), rows)) for rows in (k, k + 1))
        yield Draft(pi, q.reshape(k, size), distributions.sample(q, torch.tensor(rng.random(k))), 1.0)


def uniforms(k: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(k, generator=generator, dtype=torch.float64), torch.rand(k + 1, generator=generator).double()


def test_a_block_of_one_is_a_token() -> None:
    for seed, draft in enumerate(blocks(1)):
        u = uniforms(1, seed)
        ours, theirs = verify_prefixes(*draft[:3], *u), verify_block(*draft[:3], *u)
        assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


@pytest.mark.parametrize("k", [1, 2, 3, 5])
def test_at_temperature_0_the_same_tokens_are_kept(k: int) -> None:
    for seed in range(60):
        generator = torch.Generator().manual_seed(seed)
        certain = torch.eye(3, dtype=torch.float64)[torch.randint(3, (2, k + 1), generator=generator)]
        pi, q = certain[0], certain[1][:k]
        u = uniforms(k, seed)
        ours, theirs = (way(pi, q, q.argmax(-1), *u) for way in (verify_prefixes, verify_block))
        assert torch.equal(ours.num_accepted, theirs.num_accepted) and torch.equal(ours.next_token, theirs.next_token)


@pytest.mark.parametrize("k", [1, 2, 3])
def test_certain_drafts_gain_nothing(k: int) -> None:
    """With a one-hot q, as from a lookup, a prefix is kept as often as its tokens pass one after the other."""
    for draft in blocks(k):
        tokens = draft.tokens
        certain = draft._replace(q=torch.nn.functional.one_hot(tokens, draft.pi.shape[1]).double())
        reach = np.cumprod([1.0, *distributions.at(draft.pi[:k], tokens).tolist()])
        shares = stands(certain)
        assert [sum(shares[i:]) for i in range(k + 1)] == pytest.approx(reach.tolist(), abs=EXACT)


def test_a_test_passes_exactly_below_its_probability_and_the_longest_counts() -> None:
    for draft in blocks(4):
        follow = torch.full((5,), 0.5, dtype=torch.float64)
        at = verify_prefixes(*draft[:3], torch.full((4,), 0.5).double(), follow).accept_prob
        assert verify_prefixes(*draft[:3], at, follow).num_accepted == 0
        for i in range(4):
            u = at.clone()
            u[i] = torch.nextafter(at[i], torch.tensor(-1.0, dtype=torch.float64))
            out = verify_prefixes(*draft[:3], u, follow)
            assert out.accepted.tolist() == [j == i for j in range(4)] and out.num_accepted == i + 1


def test_the_next_token_is_drawn_from_the_law_after_the_kept_prefix() -> None:
    for draft in blocks(3):
        laws = rejection.prefix_tests(*draft[:3])[1]
        for passed in product((True, False), repeat=3):
            kept = kept_by(draft, passed)
            for share in (0.0, 0.3, 0.7, 1 - 2.0**-53):
                u = torch.tensor([PASSES if each else FAILS for each in passed], dtype=torch.float64)
                follow = torch.full((4,), 0.999, dtype=torch.float64)
                follow[kept] = share
                wanted = distributions.sample(laws[kept], torch.tensor(share, dtype=torch.float64))
                assert verify_prefixes(*draft[:3], u, follow).next_token == wanted


def test_an_empty_draft_gives_a_draw_from_pi() -> None:
    pi = torch.tensor([[0.2, 0.5, 0.3]])
    none = pi[:0]
    for u, token in ((0.1, 0), (0.6, 1), (0.8, 2)):
        out = verify_prefixes(pi, none, torch.zeros(0, dtype=torch.long), none[:, 0], torch.tensor([u]))
        assert (out.num_accepted, out.next_token) == (0, token) and out.accept_prob.shape == (0,)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_impossible_tokens_never_follow(dtype: torch.dtype) -> None:
    """Over a large vocabulary with many zeros, for any uniform, even where q is pi itself."""
    weights = torch.rand(4, 20_000, generator=torch.Generator().manual_seed(0), dtype=dtype)
    weights[:, ::2] = 0
    pi = weights / weights.sum(-1, keepdim=True)
    for q in (pi[:3], pi[1:]):
        for passed in product((PASSES, FAILS), repeat=3):
            for u in (0.0, 0.5, 1 - 2.0**-53):
                follow = torch.full((4,), u, dtype=torch.float64)
                out = verify_prefixes(pi, q, q.argmax(-1), torch.tensor(passed, dtype=torch.float64), follow)
                assert pi[out.num_accepted, out.next_token] > 0


def test_equal_models_keep_every_draft_whatever_the_rounding() -> None:
    pi = torch.rand(5, 1000, generator=torch.Generator().manual_seed(1)).softmax(-1)
    highest = torch.full((4,), 1 - 2.0**-53, dtype=torch.float64)
    out = verify_prefixes(pi, pi[:4], pi[:4].argmax(-1), highest, torch.full((5,), 0.5))
    assert out.accept_prob.tolist() == [1.0] * 4 and out.num_accepted == 4


# ---------------------------------------------------------------- planted bugs


def first_failure(patch: pytest.MonkeyPatch) -> None:
    """The prefix before the first failed test is kept, as in token tests."""
    right = verify_prefixes

    def verify(*given: torch.Tensor) -> rejection.Verification:
        out = right(*given)
        return out._replace(num_accepted=out.accepted.long().cumprod(0).sum())

    patch.setattr(rejection, "verify_prefixes", verify)


def residual_without_weight(patch: pytest.MonkeyPatch) -> None:
    right = rejection.prefix_tests

    def tests(pi: torch.Tensor, q: torch.Tensor, drafted: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        k = drafted.shape[0]
        return right(pi, q, drafted)[0], torch.cat([rejection.residual(pi[:k], q), pi[k:]])

    patch.setattr(rejection, "prefix_tests", tests)


def excess_at_the_token_itself(patch: pytest.MonkeyPatch) -> None:
    """S_i at the position of the i-th token, instead of the one after it."""
    right = rejection.prefix_tests

    def tests(pi: torch.Tensor, q: torch.Tensor, drafted: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        k, weights = drafted.shape[0], rejection.prefix_weights(pi[: drafted.shape[0]], q, drafted)
        excess = (weights[1:k, None] * pi[: k - 1] - q[: k - 1]).clamp_min(0).sum(-1)
        lacking = excess + (1 - weights[1:k])
        shorter = torch.where(lacking > 0, excess / lacking, 1.0)
        return torch.cat([shorter, weights[k:]]), right(pi, q, drafted)[1]

    patch.setattr(rejection, "prefix_tests", tests)


def weights_as_tests(patch: pytest.MonkeyPatch) -> None:
    """p_i used as the probability of a test; it is the probability that the prefix is kept."""
    right = rejection.prefix_tests

    def tests(pi: torch.Tensor, q: torch.Tensor, drafted: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return rejection.prefix_weights(pi[: len(drafted)], q, drafted)[1:], right(pi, q, drafted)[1]

    patch.setattr(rejection, "prefix_tests", tests)


def weights_not_bounded(patch: pytest.MonkeyPatch) -> None:
    """The bound of 1 applied once, to the whole product: a likely token compensates for an unlikely one."""

    def weights(pi: torch.Tensor, q: torch.Tensor, drafted: torch.Tensor) -> torch.Tensor:
        ratios = distributions.at(pi, drafted) / distributions.at(q, drafted)
        return torch.cat([pi.new_ones(1), ratios.cumprod(0).clamp(max=1)])

    patch.setattr(rejection, "prefix_weights", weights)


BUGS = [first_failure, residual_without_weight, excess_at_the_token_itself, weights_as_tests, weights_not_bounded]


@pytest.mark.parametrize("bug", BUGS)
def test_planted_bugs_are_detected(bug: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch) -> None:
    check = partial(error, random_tables(3, seed=0, kind="plain"), RULES["exact"], 2)
    assert check() < EXACT
    bug(monkeypatch)
    assert check() > 1e-3


def test_tests_are_neither_certain_nor_hopeless() -> None:
    """Keeps the laws above sensitive: prefixes whose weight is below 1 may still pass."""
    chances = []
    for seed in range(12):
        for draft in drafts(random_tables(3, seed=seed, kind=KINDS[seed % len(KINDS)]), RULES["exact"], 3):
            chances += rejection.prefix_tests(*draft[:3])[0][:2].tolist()
    assert sum(0.02 < chance < 0.98 for chance in chances) > len(chances) / 10


def test_a_bonus_from_p_is_detected() -> None:
    tables, rule = random_tables(3, seed=1, kind="plain"), RULES["token-v3"]
    after_the_block = [tables(drafted) for drafted in product(range(3), repeat=2)]

    def wrong(pair: Pair) -> np.ndarray:
        return pair.p if any(pair is each for each in after_the_block) else rule(pair)

    law = law_of(outcomes, tables, wrong, 2, after=rule)
    assert distance(law, sequential_law(tables, rule, 3)) > 1e-3
