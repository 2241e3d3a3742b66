"""What plug-ins of other packages return, checked before anything is drawn from it: a mistake is no silent other law.

This package's own are not asked: their laws are tested. On a GPU numbers are not looked at, which would wait for them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from cascli import plugins
from cascli.errors import RunError
from cascli.rules.base import Rule
from cascli.sampling.distributions import Dists

if TYPE_CHECKING:
    from cascli.decoding.session import Session
    from cascli.decoding.speculation import Block, Propose

SLACK = 1e-3
"""By how much the probabilities of a position may miss 1: rounding of 260,000 of them in float32 stays far below."""


def is_own(plugin: object) -> bool:
    """Whether a plug-in is one of this package."""
    return type(plugin).__module__.partition(".")[0] == "cascli"


def given(rule: Rule, d: Dists) -> Dists:
    """What a rule is asked with: one of another package gets copies, which it may write into."""
    return d if is_own(rule) else Dists(*(each.clone() for each in d))


def applied(rule: Rule, d: Dists) -> Tensor:
    """pi `[n, V]` of a rule, checked if it is of another package.

    Raises:
        RunError: it is of another shape, or no distribution.
    """
    pi = rule.apply(given(rule, d))
    if is_own(rule):
        return pi
    _check(f"the rule '{plugins.name_of(type(rule))}': pi", pi, d.p.shape)
    return pi


def proposing(drafter: object, propose: Propose) -> Propose:
    """What a drafter drafts with; each block of one of another package is checked.

    Raises:
        RunError: on being asked: tokens or q are of another shape, no distribution, or of no probability there.
    """
    if is_own(drafter):
        return propose

    def checked(s: Session, n: int, rule: Rule) -> Block:
        block, name = propose(s, n, rule), f"the drafter '{plugins.name_of(type(drafter))}'"
        drafted = block.tokens.shape[0]
        if block.tokens.dim() != 1 or drafted > n:
            raise RunError(f"{name}: tokens must be [{n}] at most, and are {list(block.tokens.shape)}.")
        _check(f"{name}: q", block.q, torch.Size((min(max(block.q.shape[0], drafted), drafted + 1), s.vocab)))
        if drafted and not block.q.is_cuda:
            if not 0 <= int(block.tokens.min()) <= int(block.tokens.max()) < s.vocab:
                raise RunError(f"{name}: a drafted id is outside the vocabulary of {s.vocab} tokens.")
            if not bool((block.q[:drafted].gather(1, block.tokens.unsqueeze(1)) > 0).all()):
                raise RunError(f"{name}: a drafted token has the probability 0 in its own q.")
        return block

    return checked


def _check(what: str, found: Tensor, wanted: torch.Size) -> None:
    if found.shape != wanted:
        raise RunError(f"{what} must be {list(wanted)}, and is {list(found.shape)}.")
    if found.is_cuda or not found.numel():
        return
    if not bool(torch.isfinite(found).all()):
        raise RunError(f"{what} has values that are not finite.")
    low, error = float(found.min()), float((found.sum(dim=-1) - 1).abs().max())
    if low < -SLACK:
        raise RunError(f"{what} has negative values (down to {low:.3g}): probabilities are wanted.")
    if error > SLACK:
        raise RunError(f"{what} is no distribution: its probabilities sum up to something {error:.3g} away from 1.")
