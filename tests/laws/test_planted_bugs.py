"""Well-known bugs of speculative decoding, planted into the package one at a time: a compact check detects each.

A check returns how far the package is from the reference (0 where it is right) or raises. Every check passes on
the unmodified package, and fails by a wide margin with its bug, so a law test that no longer detected anything
would be noticed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from cascli import generate
from cascli.decoding import cursor, session, speculation
from cascli.drafters.model import Model
from cascli.models import cache
from cascli.models.eager_runner import EagerRunner
from cascli.rules import base
from cascli.rules.opt import Opt
from cascli.sampling import distributions, rejection, uniforms
from cascli.sampling.autoregressive import Drawn, Sampler
from cascli.sampling.distributions import Dists
from tests.laws.counting import out_of_law
from tests.laws.models import engine_law, reference_law, tiny_pair
from tests.laws.tables import target
from tests.reference import verification
from tests.reference.process import distance

PLAIN = {"temperature": 1.0, "top_k": 0, "top_p": 1.0}
COLD = {"temperature": 0.5, "top_k": 0, "top_p": 1.0}
NOISE = 1e-12
VISIBLE = 1e-3

Check = Callable[[], float]
Patch = Callable[[pytest.MonkeyPatch], None]


# ---------------------------------------------------------------- checks


def law_check(rule: str, alpha: float, k: int, sampling: dict[str, Any]) -> Check:
    """How far the engine's joint law is from the reference's."""
    spec = f"speculative:k={k}" if rule == "exact" else f"speculative-cascade:rule={rule},alpha={alpha},k={k}"

    def check() -> float:
        law = engine_law(spec, 3, 3, 2, **sampling)
        return distance(law, reference_law(target(rule, alpha), 3, 3, 2, **sampling))

    return check


def residual_check() -> float:
    """How far `residual` is from the reference, for a pair of different distributions and for a pair of equal ones."""
    pi, q = np.array([[0.1, 0.2, 0.7], [0.3, 0.3, 0.4]]), np.array([[0.3, 0.1, 0.6], [0.3, 0.3, 0.4]])
    found = rejection.residual(torch.tensor(pi), torch.tensor(q)).numpy()
    return float(np.abs(found - [verification.residual(a, b) for a, b in zip(pi, q, strict=True)]).max())


def counting_check(strategy: str, rule: str) -> Check:
    """Number of three-token texts whose count over 300 seeds is outside its 6 sigma + 5."""

    def check() -> float:
        counted = Counter(
            tuple(
                generate(
                    tiny_pair(3, 2),
                    prompt_ids=[1, 2],
                    strategy=strategy,
                    max_new_tokens=3,
                    seed=seed,
                    **PLAIN,
                ).token_ids
            )
            for seed in range(300)
        )
        return float(len(out_of_law(counted, reference_law(target(rule), 3, 3, 2, **PLAIN))))

    return check


# ---------------------------------------------------------------- bugs


def bonus_from_p(patch: pytest.MonkeyPatch) -> None:
    right = base.KeepRule.apply

    def apply(self: base.KeepRule, d: Dists) -> torch.Tensor:
        return torch.cat([right(self, d)[:-1], d.p[-1:]])

    patch.setattr(base.KeepRule, "apply", apply)


def residual_is_pi(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(rejection, "residual", lambda pi, q: pi)


def residual_by_absolute_difference(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(
        rejection,
        "residual",
        lambda pi, q: (pi - q).abs() / (pi - q).abs().sum(-1, keepdim=True).clamp_min(1e-300),
    )


def residual_not_renormalised(patch: pytest.MonkeyPatch) -> None:
    """Not visible in any law, because `sample` normalises its rows itself; but callers may rely on the sum."""
    patch.setattr(rejection, "residual", lambda pi, q: (pi - q).clamp_min(0))


def residual_divides_by_zero(patch: pytest.MonkeyPatch) -> None:
    def residual(pi: Tensor, q: Tensor) -> Tensor:
        excess = (pi - q).clamp_min(0)
        return (excess / excess.sum(-1, keepdim=True)).nan_to_num(0.0)

    patch.setattr(rejection, "residual", residual)


def q_is_not_what_was_sampled(patch: pytest.MonkeyPatch) -> None:
    right = Model.propose

    def propose(*args: Any, **kwargs: Any) -> speculation.Block:
        block = right(*args, **kwargs)
        flatter = block.q.sqrt()
        return block._replace(q=flatter / flatter.sum(dim=-1, keepdim=True))

    patch.setattr(Model, "propose", propose)


def unsure_drafts_are_dropped(patch: pytest.MonkeyPatch) -> None:
    """A drawn token must be verified: ending a block before a token whose own q is low favours likely tokens."""
    right = Model.propose

    def propose(self: Model, s: session.Session, n: int, rule: base.Rule) -> speculation.Block:
        block = right(self, s, n, rule)
        sure = distributions.at(block.q[:n], block.tokens) >= 0.4
        kept = int(sure.long().cumprod(0).sum())
        return speculation.Block(*(each[:kept] for each in block))

    patch.setattr(Model, "propose", propose)


def argmax_verified_as_if_drawn(patch: pytest.MonkeyPatch) -> None:
    """Drafts by argmax, but returns the whole softmax as q."""
    right = Sampler.draw

    def draw(self: Sampler, logits: Tensor, u: Tensor | None) -> Drawn:
        drawn = right(self, logits, u)
        return drawn if u is None else drawn._replace(token=drawn.probs.argmax(dim=-1))

    patch.setattr(Sampler, "draw", draw)


def inverted_ratio(patch: pytest.MonkeyPatch) -> None:
    right = rejection.acceptance

    def acceptance(pi: Tensor, q: Tensor, drafted: Tensor) -> Tensor:
        return right(q, pi, drafted)

    patch.setattr(rejection, "acceptance", acceptance)


def greedy_test(patch: pytest.MonkeyPatch) -> None:
    """Accept tokens that the target considers at least as likely as the draft did, reject the rest."""
    right = rejection.acceptance
    patch.setattr(rejection, "acceptance", lambda pi, q, drafted: (right(pi, q, drafted) >= 1).to(pi.dtype))


def residual_of_the_next_row(patch: pytest.MonkeyPatch) -> None:
    """pi shifted by one position, as when the target's rows are misaligned with the drafted tokens."""
    right = rejection.acceptance
    patch.setattr(rejection, "acceptance", lambda pi, q, drafted: right(pi.roll(-1, 0), q, drafted))


def rewind_to_one_too_many(patch: pytest.MonkeyPatch) -> None:
    right = cursor.Cursor.rewind
    patch.setattr(cursor.Cursor, "rewind", lambda self, length: right(self, length + 1))


def no_rewind(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(cursor.Cursor, "rewind", lambda self, length: None)


def rewind_of_the_first_layer_alone(patch: pytest.MonkeyPatch) -> None:
    def truncate(self: cache.RewindCache, length: int) -> None:
        layers = self.layers if length == 0 else self.layers[:1]
        for layer in layers:
            layer.length = min(layer.length, length)

    patch.setattr(cache.RewindCache, "truncate", truncate)


def rewind_keeps_stale_states(patch: pytest.MonkeyPatch) -> None:
    """A rejected draft's states in the cache are not overwritten by the token that replaces it."""
    right = cache.RewindLayer.update

    def update(self: cache.RewindLayer, keys: Tensor, values: Tensor, *rest: Any, **named: Any) -> Any:
        start = self.length
        used = getattr(self, "used", 0) if start else 0
        buffers = (self.states.keys, self.states.values) if start < used else ()
        old = [states[..., start:used, :].clone() for states in buffers]
        result = right(self, keys, values, *rest, **named)
        for states, stale in zip((self.states.keys, self.states.values), old, strict=False):
            n = min(stale.shape[-2], keys.shape[-2])
            states[..., start : start + n, :] = stale[..., :n, :]
        self.used = max(used, self.length)
        return result

    patch.setattr(cache.RewindLayer, "update", update)


def positions_run_on_after_a_rewind(patch: pytest.MonkeyPatch) -> None:
    right = EagerRunner.forward

    def forward(self: EagerRunner, ids: Tensor, rows: int) -> Tensor:
        self.read_so_far = 0 if self.length == 0 else getattr(self, "read_so_far", 0)
        offset = self.read_so_far - self.length
        self.read_so_far += ids.shape[0]
        model = self.model
        with pytest.MonkeyPatch.context() as inner:
            shift = {"model": lambda position_ids, **rest: model(position_ids=position_ids + offset, **rest)}
            inner.setattr(self, "model", shift["model"])
            return right(self, ids, rows)

    patch.setattr(EagerRunner, "forward", forward)


def thresholds_on_warped(patch: pytest.MonkeyPatch) -> None:
    right = base.KeepRule.apply
    patch.setattr(base.KeepRule, "apply", lambda self, d: right(self, Dists(d.q, d.p, d.q, d.p)))


def deferred_mass_of_p(patch: pytest.MonkeyPatch) -> None:
    """The mass of the deferred tokens is taken from p instead of q, and the result renormalised."""

    def apply(self: base.KeepRule, d: Dists) -> torch.Tensor:
        keep = self.keep(d)
        pi = d.q * keep + d.p * (d.p * ~keep).sum(-1, keepdim=True)
        return pi / pi.sum(-1, keepdim=True)

    patch.setattr(base.KeepRule, "apply", apply)


def sign_of_opt(patch: pytest.MonkeyPatch) -> None:
    right = Opt.keep
    patch.setattr(Opt, "keep", lambda self, d: right(Opt(alpha=-self.alpha), d))


def one_uniform_for_all_positions(patch: pytest.MonkeyPatch) -> None:
    right = uniforms.Uniforms.draw
    patch.setattr(uniforms.Uniforms, "draw", lambda self, start, n: right(self, 0, 1).expand(n))


def rewire(patch: pytest.MonkeyPatch, **streams: Callable[[Any, int, int], Tensor]) -> None:
    """Make the engine read other random numbers than it should; the exact law shows this whatever their values."""
    right = session.Session.__init__

    class Wrong:
        def __init__(self, real: Any) -> None:
            for name in ("draw", "accept", "residual"):
                setattr(self, name, partial(streams[name], real) if name in streams else getattr(real, name))

    def init(self: session.Session, **given: Any) -> None:
        right(self, **given)
        self.uniforms = Wrong(self.uniforms)

    patch.setattr(session.Session, "__init__", init)


def draws_reuse_the_first_position(patch: pytest.MonkeyPatch) -> None:
    rewire(patch, draw=lambda real, start, n: real.draw(0, 1).expand(n))


def acceptance_reuses_the_draw(patch: pytest.MonkeyPatch) -> None:
    rewire(patch, accept=lambda real, start, n: real.draw(start, n))


def residual_reuses_the_test(patch: pytest.MonkeyPatch) -> None:
    rewire(patch, residual=lambda real, start, n: real.accept(start, n))


def residual_reuses_the_draw(patch: pytest.MonkeyPatch) -> None:
    rewire(patch, residual=lambda real, start, n: real.draw(start, n))


def one_number_for_all_tests_of_a_round(patch: pytest.MonkeyPatch) -> None:
    rewire(patch, accept=lambda real, start, n: real.accept(start, 1).expand(n))


def sampling_by_rank(patch: pytest.MonkeyPatch) -> None:
    """Draws likely tokens too often: from the CDF of the squared probabilities."""
    right = distributions.warp
    patch.setattr(distributions, "warp", lambda logits, sampling: right(2 * logits, sampling))


# ---------------------------------------------------------------- which check detects which bug


@dataclass(frozen=True)
class Case:
    """A bug, the check that must detect it, and the exception that the check must raise, if any."""

    plant: Patch
    check: Check
    raises: type[Exception] | None = None

    @property
    def name(self) -> str:
        return self.plant.__name__


EXACT_K2 = law_check("exact", 0.0, 2, PLAIN)
CASES = [
    Case(bonus_from_p, law_check("token-v3", 0.3, 1, PLAIN)),
    Case(residual_is_pi, EXACT_K2),
    Case(residual_by_absolute_difference, EXACT_K2),
    Case(residual_not_renormalised, residual_check),
    Case(residual_divides_by_zero, residual_check),
    Case(q_is_not_what_was_sampled, law_check("exact", 0.0, 2, COLD)),
    # A dropped position is drawn again with the same numbers, so no law over independent numbers exists.
    Case(unsure_drafts_are_dropped, EXACT_K2, raises=AssertionError),
    Case(argmax_verified_as_if_drawn, EXACT_K2),
    Case(inverted_ratio, EXACT_K2),
    Case(greedy_test, EXACT_K2),
    Case(residual_of_the_next_row, EXACT_K2),
    Case(rewind_to_one_too_many, EXACT_K2, raises=ValueError),
    Case(no_rewind, EXACT_K2, raises=ValueError),
    Case(rewind_of_the_first_layer_alone, EXACT_K2),
    Case(rewind_keeps_stale_states, EXACT_K2),
    Case(positions_run_on_after_a_rewind, EXACT_K2),
    Case(thresholds_on_warped, law_check("token-v3", 0.6, 2, COLD)),
    Case(deferred_mass_of_p, law_check("token-v3", 0.3, 2, PLAIN)),
    Case(sign_of_opt, law_check("opt", 0.5, 2, PLAIN)),
    Case(one_uniform_for_all_positions, counting_check("target", "exact")),
    Case(draws_reuse_the_first_position, EXACT_K2),
    Case(acceptance_reuses_the_draw, EXACT_K2),
    Case(residual_reuses_the_test, EXACT_K2),
    Case(residual_reuses_the_draw, EXACT_K2),
    Case(one_number_for_all_tests_of_a_round, EXACT_K2),
    Case(sampling_by_rank, EXACT_K2),
]
CHECKS = {case.check: case.name for case in CASES}


@pytest.mark.parametrize("check", CHECKS, ids=[f"check for {name}" for name in CHECKS.values()])
def test_without_a_bug_every_check_passes(check: Check) -> None:
    assert check() < NOISE


@pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
def test_the_bug_is_detected(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    case.check()  # loads and caches what the reference needs before the bug is planted
    case.plant(monkeypatch)
    if case.raises is not None:
        with pytest.raises(case.raises):
            case.check()
        return
    assert case.check() > VISIBLE
