"""Every rule at the ends of its parameters' ranges, on flat, peaked, one-hot, masked and tied distributions."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from functools import cache
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

import pytest
import torch
from annotated_types import Ge, Gt, Le, Lt

from cascli import rules
from cascli.errors import UsageError
from cascli.rules.base import Rule
from cascli.sampling.distributions import Dists
from cascli.sampling.parameters import Sampling
from cascli.strategies.base import validated

LARGEST = math.nextafter(math.inf, 0)
WARPS = (Sampling(), Sampling(temperature=0.0), Sampling(temperature=0.05), Sampling(top_p=1e-6), Sampling(top_k=1))


def ends(hint: Any) -> list[Any]:
    """The extreme values of a parameter of this type, and those next to them; all values of a literal."""
    if get_origin(hint) is Literal:
        return list(get_args(hint))
    if get_origin(hint) is not Annotated:
        return [value for part in get_args(hint) for value in ends(part)]
    kind, *bounds = get_args(hint)
    bounds = [part for bound in bounds for part in getattr(bound, "metadata", [bound])]
    low, high = (1, 2**70) if kind is int else (-LARGEST, LARGEST)
    for bound in bounds:
        if isinstance(bound, Ge | Gt):
            low = bound.ge if isinstance(bound, Ge) else math.nextafter(bound.gt, math.inf)
        if isinstance(bound, Le | Lt):
            high = bound.le if isinstance(bound, Le) else math.nextafter(bound.lt, -math.inf)
    if kind is int:
        return [low, high]
    return [low, math.nextafter(low, math.inf), math.nextafter(high, -math.inf), high]


def settings(name: str) -> Iterator[Rule]:
    """The rule with every combination of extreme and default parameters."""
    kind = rules.load(name)
    hints = get_type_hints(kind, include_extras=True)
    given = [[{}, *({field: value} for value in ends(hints[field]))] for field in kind.__dataclass_fields__]
    for parts in itertools.product(*given):
        params = {key: value for part in parts for key, value in part.items()}
        try:
            yield validated(kind, params)
        except UsageError:  # more than one budget
            assert name == "mentored" and len(params) > 1


@cache
def laws() -> tuple[Dists, ...]:
    """All pairs of seven kinds of rows over few tokens; some of them over a whole vocabulary."""
    every = [torch.stack(each) for each in zip(*itertools.product(rows(6), rows(6)), strict=True)]
    dtypes = (torch.float32, torch.float64)
    small = [Dists.of_logits(*(each.to(dtype) for each in every), warp) for dtype in dtypes for warp in WARPS]
    width = 32_000
    flat, nearly, random, peaked, one_hot, tied, masked = rows(width)
    pairs = [(flat, flat), (random, flat), (peaked, tied), (one_hot, one_hot.roll(1)), (nearly, random), (masked, flat)]
    draft, target = (torch.stack(each) for each in zip(*pairs, strict=True))
    return (*small, *(Dists.of_logits(draft, target, warp) for warp in WARPS[:2]))


def rows(width: int) -> list[torch.Tensor]:
    """Logits: flat, nearly flat, random, peaked, one-hot, with a tie that is one only after rounding, half masked."""
    random = torch.randn(width, generator=torch.Generator().manual_seed(0))
    first, even = torch.arange(width) < 2, torch.arange(width) % 2 == 0
    return [
        torch.zeros(width),
        1e-6 * random,
        random,
        60 * random,
        torch.where(torch.arange(width) == 0, 0.0, -torch.inf),
        torch.where(first, 2e-8 * torch.arange(width), -20.0),
        random.masked_fill(even, -torch.inf),
    ]


@pytest.mark.parametrize("name", rules.names())
def test_pi_is_a_distribution_at_the_ends_of_every_parameter(name: str) -> None:
    for rule in settings(name):
        for d in laws():
            pi = rule.apply(d)
            assert pi.isfinite().all() and pi.min() >= 0, rule
            assert (pi.double().sum(-1) - 1).abs().max() < 1e-5, rule


def test_eta_keeps_a_flat_law_whole() -> None:
    """Rounding puts max p below the bound; all tokens are the best ones."""
    for width in (3, 1000, 32_000, 150_000):
        p = Dists.of_logits(torch.zeros(1, width), torch.zeros(1, width), Sampling())
        for delta in (0.9999999, math.nextafter(1, 0)):
            assert torch.allclose(rules.load("eta")(epsilon=1.0, delta=delta).apply(p), p.p, rtol=1e-5)


def test_controls_keep_the_best_token_where_rounding_ties_it_with_another() -> None:
    """At temperature 0 p is one-hot at the second token, whose p1 equals that of the first after rounding."""
    logits = rows(5)[5].unsqueeze(0)
    d = Dists.of_logits(logits, logits, Sampling(0.0))
    assert d.p.argmax() == 1 and d.p1.argmax() == 0
    assert rules.load("top-p")(mass=1e-9).apply(d).equal(d.p)


def test_mentored_does_not_end_on_a_rounded_remainder() -> None:
    """The scale of the smallest shares of p, down to 1e-20, is found from what the rest leaves of a sum of 1."""
    rng = torch.Generator().manual_seed(0)
    q, kept, small = torch.rand(3, 2000, 5, generator=rng).double()
    q, p = q**8 * (kept > 0.4), 10 ** (-20 * small)
    q[:, 0], p[:, 0] = 1 + q[:, 0], 1 + p[:, 0]
    q, p = (each / each.sum(-1, keepdim=True) for each in (q, p))
    for params in ({"alpha": 1 - 2**-53}, {"alpha": 0.9}, {"kl": 1.0}, {"tv": 0.9}):
        pi = rules.load("mentored")(**params).apply(Dists(q, p, q, p))
        assert (pi.sum(-1) - 1).abs().max() < 1e-12
