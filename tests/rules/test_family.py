"""The published rules beyond the paper's six: compared with the samplers their authors describe, and identities."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch

from cascli.errors import UsageError
from cascli.rules import load
from cascli.rules.base import Rule
from cascli.sampling import distributions
from cascli.sampling.distributions import Dists
from cascli.sampling.parameters import Sampling
from tests.laws.cases import logit_batches, rows, tensor
from tests.reference import lossy
from tests.reference.distributions import Row, total_variation

WARPS = (Sampling(), Sampling(temperature=0.0), Sampling(temperature=0.7, top_k=3), Sampling(top_p=0.6))
CLOSE = 1e-12


def dirichlet(size: int = 8, count: int = 2000, seed: int = 0) -> Dists:
    """Random pairs that partly disagree; q1 = q and p1 = p."""
    q, p = torch.tensor(np.random.default_rng(seed).dirichlet(np.full(size, 0.5), size=(2, count)))
    return Dists(q, p, q, p)


def pairs() -> Iterator[Dists]:
    """Ordinary and adversarial pairs, with every warping."""
    for _, x, y in logit_batches(12):
        if x.shape[-1] > 7:
            continue
        x, y = tensor(x, torch.float64), tensor(y, torch.float64)
        for sampling in WARPS:
            yield Dists(
                distributions.warp(x, sampling), distributions.warp(y, sampling), distributions.base(x),
                distributions.base(y),
            )  # fmt: skip
    yield dirichlet(count=200)


def each_row(d: Dists) -> Iterator[tuple[Row, Row, Row, Row]]:
    return zip(*map(rows, d), strict=True)


def rejected(pi: torch.Tensor, d: Dists) -> torch.Tensor:
    """The rejection rate of exact verification of pi: TV(pi, q)."""
    return distributions.total_variation(pi, d.q)


def tv(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return distributions.total_variation(a, b)


PUBLISHED: list[tuple[str, dict[str, Any], Callable[..., Row]]] = [
    *(("head", {"alpha": alpha}, lossy.head) for alpha in (-0.5, 0.0, 0.3, 0.8, 1.0)),
    *(("lenience", {"lenience": value}, lossy.lenience) for value in (0.1, 0.5, 1.0)),
    *(("lenience", {"lenience": value, "shape": "exp"}, lossy.lenience) for value in (0.3, 0.8)),
    *(("mixture", {"target_weight": weight}, lossy.mixture) for weight in (0.0, 0.3, 0.7, 1.0)),
    *(("typical", {"epsilon": e, "delta": d}, lossy.typical) for e, d in ((0.09, 0.3), (0.4, 0.9), (0.0, 0.3))),
    *(("cactus", {"delta": delta}, lossy.cactus) for delta in (0.0, 0.05, 0.5, 4.0)),
]


@pytest.mark.parametrize(
    ("name", "params", "law"), PUBLISHED, ids=lambda value: value if isinstance(value, str) else ""
)
def test_pi_is_the_law_of_the_published_sampler(name: str, params: dict[str, Any], law: Callable[..., Row]) -> None:
    rule = load(name)(**params)
    for d in pairs():
        for found, row in zip(rows(rule.apply(d)), each_row(d), strict=True):
            if name == "typical" and near(row, params):
                continue
            assert np.abs(found - law(*row, **params)).max() < 1e-10, (name, params, row)


def near(row: tuple[Row, Row, Row, Row], params: dict[str, Any]) -> bool:
    """Whether rounding may decide which tokens are typical."""
    return bool((np.abs(row[1] - lossy.typical_bound(row[1], **params)) < CLOSE).any())


# ---- identities


@pytest.mark.parametrize("alpha", [0.0, 0.1, 0.3, 0.7])
def test_head_dominates_every_token_rule_of_its_keep_set(alpha: float) -> None:
    """Never fewer drafts accepted, never farther from p, and strictly better somewhere."""
    for size, seed in ((8, 0), (50, 1)):
        d = dirichlet(size, seed=seed)
        keep = load("token-v3")(alpha=alpha).keep(d)
        head, token = load("head")(alpha=alpha).apply(d), load("token-v3")(alpha=alpha).apply(d)
        over = ((d.q - d.p).clamp_min(0) * keep).sum(-1)
        assert torch.allclose(tv(head, d.p), over, atol=CLOSE)
        outside = ((d.q - d.p).clamp_min(0) * ~keep).sum(-1)
        assert torch.allclose(rejected(head, d), outside, atol=CLOSE)
        assert (rejected(head, d) <= rejected(token, d) + CLOSE).all()
        assert (tv(head, d.p) <= tv(token, d.p) + CLOSE).all()
        assert (rejected(head, d) < rejected(token, d) - 1e-3).any()


BETWEEN = [
    ("head", {"alpha": 0.3}), ("mentored", {"alpha": 0.3}), ("mentored", {"kl": 0.1}), ("lenience", {"lenience": 0.5}),
    ("lenience", {"lenience": 0.5, "shape": "exp"}), ("mixture", {"target_weight": 0.4}), ("cactus", {"delta": 0.1}),
    ("fuzzy", {"threshold": 0.1}), ("bild", {"alpha": 1.0}), ("opt-log", {"alpha": 0.3}),
]  # fmt: skip


@pytest.mark.parametrize(("name", "params"), BETWEEN, ids=lambda value: str(value))
def test_acceptance_and_distance_trade_one_for_one(name: str, params: dict[str, Any]) -> None:
    """rejection + TV(pi, p) = TV(p, q) for every rule with pi between the models, and more for the others."""
    d = dirichlet()
    pi = load(name)(**params).apply(d)
    assert torch.allclose(rejected(pi, d) + tv(pi, d.p), tv(d.p, d.q), atol=1e-10)
    assert (torch.minimum(d.q, d.p) - CLOSE <= pi).all() and (pi <= torch.maximum(d.q, d.p) + CLOSE).all()
    for other in ("token-v3", "typical"):
        mass = load(other)().apply(d)
        assert (rejected(mass, d) + tv(mass, d.p) - tv(d.p, d.q)).mean() > 0.05


@pytest.mark.parametrize(
    ("name", "params", "accepted", "distance"),
    [
        ("typical", {"epsilon": 0.09, "delta": 0.3}, 0.547, 0.240),
        ("lenience", {"lenience": 0.5}, 0.550, 0.139),
        ("head", {"alpha": 0.3}, 0.434, 0.024),
        ("token-v3", {"alpha": 0.3}, 0.406, 0.099),
        ("mixture", {"target_weight": 0.5}, 0.705, 0.295),
    ],
)
def test_means_over_random_pairs(name: str, params: dict[str, Any], accepted: float, distance: float) -> None:
    """Numbers from an independent derivation: a formula that is off by a factor would match none of them."""
    d = dirichlet(count=20_000)
    pi = load(name)(**params).apply(d)
    assert 1 - float(rejected(pi, d).mean()) == pytest.approx(accepted, abs=0.01)
    assert float(tv(pi, d.p).mean()) == pytest.approx(distance, abs=0.01)


@pytest.mark.parametrize("value", [0.2, 0.5, 0.9])
def test_lenience_bounds_how_much_likelier_a_token_becomes(value: float) -> None:
    d = dirichlet()
    pi = load("lenience")(lenience=value).apply(d)
    reached = (value * pi / d.p).amax(-1)
    assert (reached <= 1 + 1e-9).all() and (reached > 0.999).any()
    exp = load("lenience")(lenience=value, shape="exp").apply(d)
    assert (value * exp / d.p).max() > 2


@pytest.mark.parametrize("alpha", [0.0, 0.1, 0.5, 0.9])
def test_mentored_is_the_clamp_and_accepts_as_lenience(alpha: float) -> None:
    for d in pairs():
        found = rows(load("mentored")(alpha=alpha).apply(d))
        for pi, (q, p, _, _) in zip(found, each_row(d), strict=True):
            assert np.abs(pi - lossy.mentored(q, p, 1 - alpha)).max() < 1e-9
            assert (pi <= p / (1 - alpha) + CLOSE).all()
    d = dirichlet()
    lenient = load("lenience")(lenience=1 - alpha).apply(d)
    mentored = load("mentored")(alpha=alpha).apply(d)
    assert torch.allclose(rejected(lenient, d), rejected(mentored, d), atol=1e-10)
    if alpha:
        divergence = [torch.special.xlogy(d.p, d.p / pi).sum(-1).mean() for pi in (mentored, lenient)]
        assert divergence[0] < divergence[1]


@pytest.mark.parametrize("budget", [0.0, 0.05, 0.2])
def test_mentored_spends_its_budget(budget: float) -> None:
    d = dirichlet(count=300)
    by_kl, by_tv = (load("mentored")(**{name: budget}).apply(d) for name in ("kl", "tv"))
    spent = torch.special.xlogy(d.p, d.p / by_kl).sum(-1)
    all_of_it = torch.special.xlogy(d.p, d.p / d.q).sum(-1)
    assert torch.allclose(spent, all_of_it.clamp_max(budget), atol=1e-7)
    assert torch.allclose(tv(by_tv, d.p), tv(d.q, d.p).clamp_max(budget), atol=1e-9)
    for pi, (q, p, _, _) in zip(rows(by_tv), each_row(d), strict=True):
        best = max(lossy_within(q, p, budget))
        assert np.minimum(pi, q).sum() >= best - 1e-6


def lossy_within(q: Row, p: Row, budget: float) -> Iterator[float]:
    """Acceptances of random distributions with this TV to p: none may be better than the optimal one."""
    rng = np.random.default_rng(1)
    for _ in range(30):
        other = rng.dirichlet(np.full(len(q), 0.7))
        share = min(1.0, budget / max(total_variation(other, p), 1e-12))
        yield float(np.minimum(p + share * (other - p), q).sum())


def test_mentored_takes_one_budget() -> None:
    with pytest.raises(UsageError, match="one budget"):
        load("mentored")(alpha=0.1, kl=0.1)


def test_an_unreachable_kl_budget_does_not_crash() -> None:
    q, p = torch.tensor([[1.0, 0.0, 0.0]]), torch.tensor([[0.0, 0.5, 0.5]])
    for params in ({"kl": 0.5}, {"tv": 0.5}, {"alpha": 0.5}):
        pi = load("mentored")(**params).apply(Dists(q, p, q, p))
        assert pi.isfinite().all() and pi.sum() == pytest.approx(1) and pi.min() >= 0


# ---- whole-distribution triggers


@pytest.mark.parametrize("divergence", ["js", "kl", "tv"])
def test_fuzzy_keeps_drafts_within_the_threshold(divergence: str) -> None:
    for d in pairs():
        for threshold in (-0.01, 0.05, 0.3, 0.7):
            keep = load("fuzzy")(threshold=threshold, divergence=divergence).keep(d)
            for kept, (_, _, q1, p1) in zip(keep[:, 0].tolist(), each_row(d), strict=True):
                score = lossy.fuzzy_score(q1, p1, threshold, divergence)
                assert abs(score) < 1e-9 or kept == (score >= 0)


def test_divergences_of_fuzzy_have_their_documented_bounds() -> None:
    d = Dists(*(torch.tensor([row]) for row in ([1.0, 0.0], [0.0, 1.0], [1.0, 0.0], [0.0, 1.0])))
    assert torch.equal(load("fuzzy")(threshold=0.6932).apply(d), d.q)
    assert torch.equal(load("fuzzy")(threshold=0.6931).apply(d), d.p)
    assert torch.equal(load("fuzzy")(threshold=1.0, divergence="tv").apply(d), d.q)
    assert torch.equal(load("fuzzy")(threshold=1e9, divergence="kl").apply(d), d.p)  # kl is infinite


def test_bild_tests_the_targets_probability_of_the_drafts_top_token() -> None:
    q = torch.tensor([[0.6, 0.4], [0.4, 0.6]])
    p = torch.tensor([[0.3, 0.7], [0.3, 0.7]])
    pi = load("bild")(alpha=1.0).apply(Dists(q, p, q, p))  # exp(-1) = 0.368
    assert torch.equal(pi, torch.stack([p[0], q[1]]))


def test_opt_log_weighs_entropies_against_disagreement() -> None:
    d = dirichlet(count=400)
    for alpha in (-1.0, 0.0, 0.3, 1.5):
        keep = load("opt-log")(alpha=alpha).keep(d)[:, 0].tolist()
        scores = [lossy.entropy(p1) + alpha * total_variation(p, q) - lossy.entropy(q1) for q, p, q1, p1 in each_row(d)]
        assert keep == [score >= 0 for score in scores]
        assert 0 < sum(keep) < len(keep)


# ---- controls


def test_controls_are_the_target_within_their_set() -> None:
    for d in pairs():
        cases = {
            "min-p": (load("min-p")(alpha=0.4), lambda p, p1: p1 >= 0.6 * p1.max()),
            "top-k": (load("top-k")(n=2), lambda p, p1: p1 >= np.sort(p1)[-2]),
        }
        for rule, keep in cases.values():
            for pi, (_, p, _, p1) in zip(rows(rule.apply(d)), each_row(d), strict=True):
                if np.abs(p1 - 0.6 * p1.max()).min() > CLOSE:
                    assert np.abs(pi - lossy.truncated(p, keep(p, p1))).max() < CLOSE


def test_eta_cuts_where_typical_does() -> None:
    d = dirichlet()
    keep = load("typical")(epsilon=0.3, delta=0.6).keep(d)
    pi = load("eta")(epsilon=0.3, delta=0.6).apply(d)
    assert torch.equal(pi > 0, keep)
    assert torch.allclose(tv(pi, d.p), (d.p * ~keep).sum(-1), atol=CLOSE)


def test_top_p_is_the_smallest_set_that_reaches_the_mass() -> None:
    d = dirichlet(count=500)
    for mass in (0.3, 0.9):
        for pi, (_, p, _, _) in zip(rows(load("top-p")(mass=mass).apply(d)), each_row(d), strict=True):
            kept = pi > 0
            assert p[kept].sum() >= mass - CLOSE > p[kept].sum() - p[kept].min() - 2 * CLOSE
            assert p[kept].min() >= p[~kept].max(initial=0.0)
    assert torch.equal(load("top-p")(mass=1.0).apply(d), d.p)


@pytest.mark.parametrize(
    ("name", "params"),
    [
        ("head", {"alpha": -0.5}), ("min-p", {"alpha": 1.0}), ("top-k", {"n": 10**6}), ("top-p", {"mass": 1.0}),
        ("eta", {"epsilon": 0.0}), ("mentored", {"alpha": 0.0}), ("mentored", {"kl": 0.0}), ("mentored", {"tv": 0.0}),
        ("lenience", {"lenience": 1.0}), ("mixture", {"target_weight": 1.0}), ("fuzzy", {"threshold": -1.0}),
        ("bild", {"alpha": -1.0}), ("cactus", {"delta": 0.0}),
    ],
)  # fmt: skip
def test_rules_are_lossless_where_documented(name: str, params: dict[str, Any]) -> None:
    d = dirichlet()
    assert torch.allclose(load(name)(**params).apply(d), d.p, atol=1e-9)
    assert not torch.allclose(d.q, d.p, atol=0.1)


GREEDY_EXACT = [
    ("mentored", {"alpha": 0.5}), ("lenience", {"lenience": 0.2}), ("typical", {}), ("cactus", {"delta": 1.0}),
    ("min-p", {}), ("top-k", {"n": 2}), ("top-p", {"mass": 0.5}), ("eta", {}),
]  # fmt: skip


def greedy(seed: int = 3) -> Dists:
    x, y = torch.tensor(np.random.default_rng(seed).normal(size=(2, 500, 6)))
    cold = Sampling(temperature=0.0)
    return Dists(distributions.warp(x, cold), distributions.warp(y, cold), distributions.base(x), distributions.base(y))


@pytest.mark.parametrize(("name", "params"), GREEDY_EXACT)
def test_exact_at_temperature_0(name: str, params: dict[str, Any]) -> None:
    d = greedy()
    assert torch.allclose(load(name)(**params).apply(d), d.p, atol=CLOSE)


@pytest.mark.parametrize("alpha", [-0.1, 0.2, 0.6])
def test_head_and_token_v3_are_one_rule_at_temperature_0(alpha: float) -> None:
    d = greedy()
    head = load("head")(alpha=alpha).apply(d)
    assert torch.equal(head, load("token-v3")(alpha=alpha).apply(d))
    assert torch.equal(head, d.p) is (alpha < 0)


def test_mixture_at_temperature_0_tosses_no_coin() -> None:
    d = greedy()
    pi = load("mixture")(target_weight=0.5).apply(d)
    theirs, ours, found = d.p.argmax(-1), d.q.argmax(-1), pi.argmax(-1)
    assert torch.equal(pi.amax(-1), torch.ones(500).double())
    mixed = (d.p1 + d.q1) / 2
    best = torch.maximum(*(mixed.gather(-1, each.unsqueeze(-1)) for each in (theirs, ours)))
    assert torch.equal(mixed.gather(-1, found.unsqueeze(-1)), best)
    assert (found != theirs).any() and (found != ours).any()


def test_top_p_keeps_the_first_of_equals_as_truncation_does() -> None:
    """bfloat16 logits are often equal; the rule and the truncation must follow the same law there too."""
    logits = torch.tensor([[2.0, *([1.0] * 40), 0.5]]).double()
    p = distributions.base(logits)
    for mass in (0.3, 0.5, 0.77):
        pi = load("top-p")(mass=mass).apply(Dists(p, p, p, p))
        assert torch.equal(pi > 0, distributions.warp(logits, Sampling(1.0, top_p=mass)) > 0)


def test_mixture_with_top_k_1_equals_mixture_at_temperature_0() -> None:
    """Truncated to one token each, the models are as certain as at temperature 0: the same law, and no coin either."""
    logits = [torch.randn(200, 9, generator=torch.Generator().manual_seed(seed)).double() for seed in (1, 2)]
    found = []
    for sampling in (Sampling(0.0), Sampling(0.7, top_k=1), Sampling(0.7, top_p=1e-6)):
        q, p = (distributions.warp(each, sampling) for each in logits)
        d = Dists(q, p, *(distributions.base(each) for each in logits))
        found.append(load("mixture")(target_weight=0.4).apply(d))
    assert torch.equal(found[0], found[1]) and torch.equal(found[0], found[2])


def test_mixture_mixes_models_that_only_rounding_makes_certain() -> None:
    """In float32 both models' best tokens round to a probability of 1, but others are left: the law is the mixture."""
    logits = torch.tensor([[5.0, 0.0, -2.0]]), torch.tensor([[0.0, 5.0, -2.0]])
    d = Dists.of_logits(*logits, Sampling(0.25))
    assert d.q.max() == d.p.max() == 1 and d.q.min() > 0
    for weight in (0.2, 0.5, 0.8):
        pi = load("mixture")(target_weight=weight).apply(d)
        assert torch.allclose(pi, weight * d.p + (1 - weight) * d.q)
        assert float(tv(pi, d.p)) == pytest.approx((1 - weight) * float(tv(d.p, d.q)))


def test_mixture_at_temperature_0_tosses_no_coin_between_sure_models() -> None:
    """Probabilities at temperature 1 that round to 1 do not make the models certain of their tokens either."""
    logits = torch.tensor([[20.0, 0.0, -2.0]]), torch.tensor([[0.0, 20.0, -2.0]])
    for sampling in (Sampling(0.0), Sampling(top_k=1), Sampling(top_p=0.5)):
        d = Dists.of_logits(*logits, sampling)
        assert d.q1.max() == d.p1.max() == 1
        for weight, best in ((0.2, d.q), (0.8, d.p)):
            assert load("mixture")(target_weight=weight).apply(d).equal(best)


@pytest.mark.parametrize("name", ["fuzzy", "mixture", "opt-log"])
def test_rules_that_read_confidence_are_refused_on_certain_drafts(name: str) -> None:
    from cascli.strategies import parse

    with pytest.raises(UsageError, match="certain of every token"):
        parse(f"speculative-cascade:rule={name},draft=prompt-lookup")


@pytest.mark.parametrize(
    "rule",
    [load(name)() for name in ("head", "mentored", "lenience", "cactus", "typical", "eta", "mixture")],
    ids=repr,
)
def test_float32_and_large_vocabularies(rule: Rule) -> None:
    x, y = 3 * torch.randn((2, 2, 150_000), generator=torch.Generator().manual_seed(0))
    wide = rule.apply(Dists(*(distributions.base(each.double()) for each in (x, y, x, y))))
    pi = rule.apply(Dists(*(distributions.base(each) for each in (x, y, x, y))))
    assert pi.dtype == torch.float32 and pi.min() >= 0
    rounding = torch.finfo(torch.float32).eps * 150_000**0.5  # of a sum of this many terms
    assert pi.double().sum(-1) == pytest.approx(torch.ones(2).double(), abs=rounding)
    assert (pi - wide).abs().sum() < 1e-3
