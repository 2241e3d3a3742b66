"""cascli's tensors compared with the reference on ordinary and adversarial distributions; every rule's contract."""

import dataclasses
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch import Tensor

from cascli import rules
from cascli.errors import UsageError
from cascli.rules.base import ChoiceRule, Dial, Exact, Rule
from cascli.sampling import distributions as dists
from cascli.sampling import rejection
from cascli.sampling.distributions import Dists
from cascli.sampling.parameters import Sampling
from cascli.strategies.base import validated
from tests import reference
from tests.laws.cases import ALPHAS, DTYPES, SAMPLINGS, closeness, logit_batches, rows, tensor
from tests.reference import distributions, verification
from tests.reference import rules as reference_rules

BATCHES = list(logit_batches())
LABELS = [label for label, _, _ in BATCHES]
each_batch = pytest.mark.parametrize(("label", "x", "y"), BATCHES, ids=LABELS)
each_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=["float64", "float32"])
LARGEST_U = 1 - 2.0**-53


def warped_pair(x: np.ndarray, y: np.ndarray, dtype: torch.dtype, sampling: Sampling) -> Dists:
    x, y = tensor(x, dtype), tensor(y, dtype)
    return Dists(dists.warp(x, sampling), dists.warp(y, sampling), dists.base(x), dists.base(y))


def all_pairs(dtype: torch.dtype) -> Iterator[Dists]:
    """Several thousand pairs of distributions, in batches."""
    for index, (_, x, y) in enumerate(BATCHES):
        for sampling in SAMPLINGS[index % 2 :: 2]:
            yield warped_pair(x, y, dtype, sampling)


def test_the_reference_is_independent() -> None:
    assert reference.__doc__ is not None
    for module in (distributions, verification, reference_rules):
        homes = [getattr(value, "__module__", "") for value in vars(module).values()]
        assert not any(home.startswith("cascli") for home in homes)


# ---------------------------------------------------------------- warping


def assert_same_warp(logits: Tensor, sampling: Sampling) -> None:
    """Equal to the reference, or consistent with the nucleus's definition where a tie or rounding may decide it."""
    probs, close = rows(dists.warp(logits, sampling)), warp_closeness(logits, sampling)
    settings = (sampling.temperature, sampling.top_k, sampling.top_p)
    for row, source in zip(probs, rows(logits), strict=True):
        assert row.min() >= 0 and row.sum() == pytest.approx(1.0, abs=close)
        before = distributions.warp(source, *settings[:2])
        if sampling.temperature and distributions.top_p_margin(before, sampling.top_p) < 10 * close:
            assert_nucleus(row, before, sampling.top_p, 10 * close)
        else:
            assert np.abs(row - distributions.warp(source, *settings)).max() < close


def warp_closeness(logits: Tensor, sampling: Sampling) -> float:
    """Rounding a logit x changes its probability by eps |x / T| of itself; rounding a sum, by eps sqrt(V)."""
    eps = torch.finfo(logits.dtype).eps
    largest = logits[logits.isfinite()].abs().max().item() / (sampling.temperature or 1.0)
    return closeness(logits.dtype) + eps * (largest + logits.shape[-1] ** 0.5)


def assert_nucleus(row: np.ndarray, before: np.ndarray, top_p: float, close: float) -> None:
    """The kept tokens are the most likely ones and reach top_p together, but not without the least likely of them."""
    kept = row > 0
    mass = before[kept].sum()
    assert mass >= top_p - close and mass - before[kept].min() < top_p + close
    assert before[~kept].max(initial=0.0) <= before[kept].min() + close
    assert np.abs(row[kept] - before[kept] / mass).max() < close


@each_dtype
@each_batch
def test_warp(label: str, x: np.ndarray, y: np.ndarray, dtype: torch.dtype) -> None:
    for sampling in SAMPLINGS:
        assert_same_warp(tensor(np.concatenate([x, y]), dtype), sampling)


@each_dtype
def test_base_is_the_softmax_whatever_the_sampling(dtype: torch.dtype) -> None:
    for _, x, _ in BATCHES:
        probs = rows(dists.base(tensor(x, dtype)))
        for row, source in zip(probs, rows(tensor(x, dtype)), strict=True):
            assert np.abs(row - distributions.softmax(source)).max() < closeness(dtype)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_narrow_logits_are_widened_before_any_arithmetic(dtype: torch.dtype) -> None:
    logits = torch.randn(50, 40, generator=torch.Generator().manual_seed(0)).mul(3).to(dtype)
    for sampling in SAMPLINGS:
        warped = dists.warp(logits, sampling)
        assert warped.dtype == torch.float32
        assert torch.equal(warped, dists.warp(logits.float(), sampling))
    assert torch.equal(dists.base(logits), dists.base(logits.float()))


@each_dtype
def test_wide_logits_keep_their_type(dtype: torch.dtype) -> None:
    logits = torch.randn(3, 9, dtype=dtype)
    assert {dists.warp(logits, sampling).dtype for sampling in SAMPLINGS} == {dtype}
    assert dists.base(logits).dtype == dtype


def test_warping_leaves_the_logits_alone() -> None:
    logits = torch.randn(3, 9, dtype=torch.float64)
    before = logits.clone()
    for sampling in SAMPLINGS:
        dists.warp(logits, sampling)
    assert torch.equal(logits, before)


def test_greedy_takes_the_first_of_tied_tokens() -> None:
    warped = dists.warp(torch.tensor([[1.0, 3.0, 3.0, 2.0]]), Sampling(temperature=0.0))
    assert warped.tolist() == [[0.0, 1.0, 0.0, 0.0]]


def test_top_k_keeps_ties_with_the_last_token() -> None:
    warped = dists.warp(torch.tensor([[1.0, 3.0, 1.0, 0.0, 1.0]]), Sampling(top_k=2))
    assert (warped > 0).tolist() == [[True, True, True, False, True]]


@pytest.mark.parametrize("temperature", [1e-2, 1e-5, 1e-9])
def test_cold_is_greedy_without_overflow(temperature: float) -> None:
    logits = torch.randn(20, 30, generator=torch.Generator().manual_seed(0)).mul(30)
    cold = dists.warp(logits, Sampling(temperature=temperature))
    assert torch.equal(cold.argmax(-1), logits.argmax(-1)) and not cold.isnan().any()


@each_dtype
def test_a_large_vocabulary(dtype: torch.dtype) -> None:
    rng = np.random.default_rng(0)
    logits = tensor(rng.normal(size=(2, 150_000)) * [[1.0], [4.0]], dtype)
    logits[:, 149_000:] = -torch.inf  # ids that the tokenizer does not have
    for sampling in (Sampling(), Sampling(temperature=0.8, top_k=50), Sampling(top_p=0.9)):
        assert_same_warp(logits, sampling)
        assert not dists.warp(logits, sampling)[:, 149_000:].any()


# ---------------------------------------------------------------- sampling


def assert_drawn(probs: Tensor, u: Tensor, ids: Tensor) -> None:
    """u lies in the CDF's step of the drawn id (up to float64 rounding of the sum); the id is possible."""
    for row, point, token in zip(rows(probs), u.tolist(), ids.tolist(), strict=True):
        cdf = np.cumsum(row)
        assert row[token] > 0
        assert cdf[token] - row[token] - 1e-12 <= point * cdf[-1] <= cdf[token] + 1e-12


@each_dtype
def test_sample_inverts_the_cdf(dtype: torch.dtype) -> None:
    rng = np.random.default_rng(1)
    for d in all_pairs(dtype):
        for probs in (d.q, d.p):
            for u in (np.zeros(len(probs)), np.full(len(probs), LARGEST_U), rng.random(len(probs))):
                u = torch.tensor(u)
                assert_drawn(probs, u, dists.sample(probs, u))


def test_sample_has_the_steps_of_the_reference() -> None:
    rng = np.random.default_rng(2)
    for _ in range(200):
        row = rng.dirichlet(np.full(6, 0.5)) * (rng.random(6) < 0.7)
        row = row / row.sum() if row.sum() else np.eye(6)[3]
        u = rng.random(20)
        ids = dists.sample(torch.tensor(row).expand(20, 6), torch.tensor(u))
        assert ids.tolist() == [distributions.sample(row, point) for point in u]


@each_dtype
def test_sample_of_a_large_vocabulary(dtype: torch.dtype) -> None:
    rng = np.random.default_rng(3)
    probs = dists.base(tensor(rng.normal(size=(1, 150_000)), dtype)).clone()
    probs[:, ::3] = 0
    probs[:, 149_000:] = 0
    probs = probs / probs.sum()
    u = torch.tensor(np.concatenate([[0.0, LARGEST_U], np.linspace(0, LARGEST_U, 98)]))
    batch = probs.expand(100, -1)
    assert_drawn(batch, u, dists.sample(batch, u))


def test_sample_keeps_any_shape() -> None:
    probs = torch.rand(2, 3, 5, dtype=torch.float64)
    u = torch.rand(2, 3, dtype=torch.float64)
    ids = dists.sample(probs, u)
    assert ids.shape == (2, 3)
    assert ids.flatten().tolist() == dists.sample(probs.reshape(6, 5), u.reshape(6)).tolist()
    assert dists.sample(probs[0, 0], u[0, 0]).item() == ids[0, 0].item()


# ---------------------------------------------------------------- total variation, acceptance, residual


@each_dtype
def test_total_variation(dtype: torch.dtype) -> None:
    for d in all_pairs(dtype):
        expected = [distributions.total_variation(a, b) for a, b in zip(rows(d.p), rows(d.q), strict=True)]
        assert np.abs(rows(dists.total_variation(d.p, d.q)) - expected).max() < closeness(dtype)


@each_dtype
def test_acceptance(dtype: torch.dtype) -> None:
    rng = np.random.default_rng(4)
    for d in all_pairs(dtype):
        drafted = dists.sample(d.q, torch.tensor(rng.random(len(d.q))))
        triples = zip(rows(d.p), rows(d.q), drafted.tolist(), strict=True)
        expected = [verification.acceptance(pi, q, x) for pi, q, x in triples]
        found = rows(rejection.acceptance(d.p, d.q, drafted))
        assert np.abs(found - expected).max() < closeness(dtype)
        assert found.min() >= 0 and found.max() <= 1


@each_dtype
def test_residual(dtype: torch.dtype) -> None:
    """The relative error grows as the excess shrinks, by a cancellation in pi - q that no method avoids."""
    for d in all_pairs(dtype):
        found = rows(rejection.residual(d.p, d.q))
        for row, pi, q in zip(found, rows(d.p), rows(d.q), strict=True):
            excess = distributions.total_variation(pi, q)
            assert row.min() >= 0 and row.sum() == pytest.approx(1.0, abs=closeness(dtype))
            assert not row[(pi <= q) & (excess > 0)].any(), "a token without excess got mass"
            if excess == 0 or excess > 1e-6:
                close = closeness(dtype) / max(excess, 1e-6) ** 0.5
                assert np.abs(row - verification.residual(pi, q)).max() < close


def test_residual_of_a_barely_different_pair_is_finite() -> None:
    q = torch.tensor([[0.5, 0.5], [1.0, 0.0], [0.3, 0.7]], dtype=torch.float64)
    pi = q + torch.tensor([[1e-17, 0.0], [0.0, 5e-324], [0.0, 0.0]], dtype=torch.float64)
    found = rejection.residual(pi, q)
    assert torch.equal(found, torch.tensor([[0.5, 0.5], [0.0, 1.0], [0.3, 0.7]], dtype=torch.float64))


# ---------------------------------------------------------------- the known rules, value by value


def assert_same_judgement(name: str, alpha: float, d: Dists) -> None:
    """Decisions equal the reference's except where rounding may decide; pi is the mixture of the decisions made."""
    rule = rules.load(name)(alpha=alpha)
    pi, defer = rule.apply(d), rule.deferred(d)
    slack = 0.0 if alpha == 0 else 1e-14 if d.q.dtype == torch.float64 else 1e-6 * max(1.0, abs(alpha))
    for index, pair in enumerate(zip(*map(rows, d), strict=True)):
        expected = reference_rules.RULES[name](*pair, alpha)
        taken = defer[index].numpy()
        clear = np.abs(expected.score) > slack
        assert taken.shape == expected.defer.shape
        assert np.array_equal(taken[clear], expected.defer[clear])
        mixture = reference_rules.mixture(pair[0], pair[1], taken)
        assert np.abs(rows(pi[index]) - mixture).max() < closeness(d.q.dtype)


@each_dtype
@pytest.mark.parametrize("name", sorted(reference_rules.RULES))
def test_rule_values(name: str, dtype: torch.dtype) -> None:
    for index, d in enumerate(all_pairs(dtype)):
        for alpha in ALPHAS[index % 3 :: 3]:
            assert_same_judgement(name, alpha, d)


@each_dtype
@pytest.mark.parametrize("name", sorted(reference_rules.RULES))
def test_rule_values_on_a_large_vocabulary(name: str, dtype: torch.dtype) -> None:
    rng = np.random.default_rng(5)
    x, y = 3 * rng.normal(size=(2, 2, 150_000))
    for alpha in (0.0, 0.3):
        assert_same_judgement(name, alpha, warped_pair(x, y, dtype, Sampling(temperature=0.7, top_p=0.9)))


@pytest.mark.parametrize("name", sorted(reference_rules.RULES))
def test_thresholds_use_unwarped_probabilities(name: str) -> None:
    """One-hot q and p at temperature 0 do not change what is deferred, except through TV in opt."""
    x, y = np.random.default_rng(6).normal(size=(2, 200, 8))
    d = warped_pair(x, y, torch.float64, Sampling(temperature=0.0))
    plain = Dists(d.q1, d.p1, d.q1, d.p1)
    for alpha in (0.1, 0.5):
        assert_same_judgement(name, alpha, d)
        if name != "opt":
            rule = rules.load(name)(alpha=alpha)
            assert torch.equal(rule.deferred(d), rule.deferred(plain))


# ---------------------------------------------------------------- the contract of every rule, including future ones

ALL_RULES = [*rules.names(), "exact"]
each_rule = pytest.mark.parametrize("name", ALL_RULES)


def instances(name: str) -> list[Rule]:
    """The rule with several values of its required parameters, as far as it allows them."""
    kind = Exact if name == "exact" else rules.load(name)
    required = [
        field.name
        for field in dataclasses.fields(kind)
        if field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
    ]
    made: list[Rule] = []
    for value in (-1.0, 0.0, 0.2, 0.5, 0.9, 1.0) if required else (0.0,):
        try:
            made.append(kind(**dict.fromkeys(required, value)))
        except UsageError:
            continue
    return made


def test_the_six_rules_exist() -> None:
    assert set(reference_rules.RULES) <= set(rules.names())


@each_rule
def test_every_rule_has_instances_to_test(name: str) -> None:
    assert instances(name)


@each_rule
@each_dtype
def test_pi_is_a_distribution_within_both_supports(name: str, dtype: torch.dtype) -> None:
    for rule in instances(name):
        for d in all_pairs(dtype):
            pi, defer = rule.apply(d), rule.deferred(d)
            assert pi.shape == d.q.shape and pi.dtype == dtype
            assert (defer is not None) is rule.chooses
            if defer is not None:
                assert defer.dtype == torch.bool and defer.shape in {d.q.shape, (len(d.q), 1)}
            assert pi.min() >= 0 and np.abs(rows(pi).sum(axis=1) - 1).max() < closeness(dtype)
            assert not pi[(d.q == 0) & (d.p == 0)].any()


@each_rule
def test_equal_models_are_left_equal(name: str) -> None:
    """With q = p, a whole-distribution rule has nothing to choose: pi = p.

    A token rule does change the law then (a deferred token is drawn again, so kept ones gain), but not its
    support.
    """
    for rule in instances(name):
        for _, x, _ in BATCHES:
            d = warped_pair(x, x, torch.float64, Sampling())
            pi, defer = rule.apply(d), rule.deferred(d)
            assert not pi[d.p == 0].any()
            certain = d.p.amax(dim=-1) == 1
            assert (pi - d.p)[certain].abs().max() < 1e-15 if certain.any() else True
            if isinstance(rule, Exact) or (rule.chooses and defer.shape[1] == 1):
                assert torch.equal(pi, d.p)


@each_rule
def test_inputs_are_unchanged(name: str) -> None:
    for rule in instances(name):
        for d in all_pairs(torch.float64):
            before = [t.clone() for t in d]
            rule.apply(d).clone()
            assert all(torch.equal(t, old) for t, old in zip(d, before, strict=True))


@each_rule
def test_a_batch_equals_its_rows_one_by_one(name: str) -> None:
    for rule in instances(name):
        for d in list(all_pairs(torch.float64))[::7]:
            pi, defer = rule.apply(d), rule.deferred(d)
            for i in range(len(d.q)):
                row = Dists(*(t[i : i + 1] for t in d))
                if defer is not None:
                    assert torch.equal(rule.deferred(row), defer[i : i + 1])
                assert (rule.apply(row) - pi[i : i + 1]).abs().max() < 1e-15


@each_rule
def test_an_empty_batch_stays_empty(name: str) -> None:
    empty = torch.zeros(0, 5)
    for rule in instances(name):
        assert rule.apply(Dists(empty, empty, empty, empty)).shape == (0, 5)


def turned(name: str, place: float) -> Rule:
    """A rule at a position of its dial, through the same validation as a user's value."""
    kind = rules.load(name)
    assert kind.dial is not None
    return validated(kind, {kind.dial.parameter: str(kind.dial.at(place))})


@pytest.mark.parametrize("name", rules.names())
@pytest.mark.parametrize(("end", "side"), [("lossless", "p"), ("draft_only", "q")])
def test_ends_of_the_dial(name: str, end: str, side: str) -> None:
    """At its declared ends a rule is plain speculative decoding, or the draft model alone."""
    dial = rules.load(name).dial
    assert dial is not None
    if not getattr(dial, end):
        pytest.skip(f"{name} is at no setting {end}")
    rule = turned(name, 0.0 if end == "lossless" else 1.0)
    for d in all_pairs(torch.float64):
        assert (rule.apply(d) - getattr(d, side)).abs().max() < 1e-12


@pytest.mark.parametrize("name", rules.names())
def test_between_its_ends_a_dial_moves_acceptance(name: str) -> None:
    """Acceptance rises from the strict end to the loose one, in steps that a search can follow; controls ignore q."""
    rng = np.random.default_rng(4)
    q, p = torch.tensor(rng.dirichlet(np.full(8, 0.5), size=(2, 500)))
    d = Dists(q, p, q, p)
    exact = float(torch.minimum(q, p).sum(-1).mean())
    found = [float(torch.minimum(q, turned(name, i / 32).apply(d)).sum(-1).mean()) for i in range(33)]
    steps = np.diff(found)
    assert (np.abs(steps) > 1e-4).sum() >= 2  # top-k has only as many steps as there are tokens
    if rules.load(name).reads_draft:
        # Token rules also cut the target's tail, so their first step may go backwards.
        assert (steps > (-0.02 if isinstance(turned(name, 0), ChoiceRule) else -1e-9)).all()
        assert exact + 0.1 < found[-1] == pytest.approx(1, abs=1e-6)
    if rules.load(name).dial.lossless:
        assert found[0] == pytest.approx(exact, abs=1e-12)


@pytest.mark.parametrize("name", sorted(reference_rules.RULES))
def test_the_six_rules_declare_both_ends(name: str) -> None:
    dial = rules.load(name).dial
    assert dial is not None and dial.lossless and dial.draft_only and dial.strict < 0 and dial.loose >= 1


@pytest.mark.parametrize(
    ("dial", "middle"),
    [
        (Dial("alpha", -1.0, 1.0), 0.0),
        (Dial("alpha", 1.0, 0.0), 0.5),
        (Dial("lenience", 1.0, 1e-6, "log"), 1e-3),
        (Dial("delta", 0.0, 1e3, "log"), 1e-3),
        (Dial("threshold", -0.5, 1.0, "log"), 3.16228e-5),
        (Dial("epsilon", 1.0, 0.0, "log"), 3.16228e-5),
        (Dial("alpha", -1e9, 1e9, "sinh"), 0.0),
        (Dial("n", 4096, 1, "integer"), 64),
    ],
)
def test_a_dial_covers_its_range_from_end_to_end(dial: Dial, middle: float) -> None:
    assert (dial.at(0), dial.at(1)) == (dial.strict, dial.loose)
    assert dial.at(0.5) == pytest.approx(middle, rel=1e-3)
    values = [dial.at(i / 100) for i in range(101)]
    assert values == sorted(values, reverse=dial.strict > dial.loose)
    assert all(isinstance(value, int) for value in values) is (dial.scale == "integer")


@each_rule
def test_rules_cannot_be_changed(name: str) -> None:
    rule = instances(name)[0]
    with pytest.raises(dataclasses.FrozenInstanceError):
        rule.alpha = 0.4
