"""A model writing by itself: draw a token from its own distribution, read it, draw the next.

The same lines serve steps that are made one after the other and steps that are recorded together.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from cascli import dists
from cascli.sampling import Sampling

Read = Callable[[Tensor], Tensor]
"""Reads ids `[n]`; returns the logits `[1, V]` after the last of them."""


@dataclass(frozen=True)
class Law:
    """From logits `[n, V]` to the distributions that tokens are drawn from."""

    sampling: Sampling
    reads_base: bool
    """Whether the distributions at temperature 1 are wanted too."""

    def __call__(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        """Warped distributions and those at temperature 1, which are the former again where they are not wanted."""
        probs = dists.warp(logits, self.sampling)
        return probs, dists.base(logits) if self.reads_base else probs


class Written(NamedTuple):
    """n drawn tokens `[n]`, and the distributions `[n, V]` that they were drawn from.

    There is one row more where the last token was read as well.
    """

    tokens: Tensor
    probs: Tensor
    base: Tensor
    health: Tensor
    """The largest logit (0-dim): a finite number, as long as all logits were."""


def write_by_steps(read: Read, ids: Tensor, law: Law, u: Tensor, *, read_last: bool) -> Written:
    """Draw a token with each of the uniforms `u` `[n]`; at least one step.

    Args:
        read: makes a step.
        ids: what the model reads first.
        law: how its logits become distributions.
        u: one uniform a token.
        read_last: go on to read the last drawn token.
    """
    tokens, probs, base, healths = [u.new_zeros(0, dtype=torch.long)], [], [], []
    for i in range(u.shape[0] + read_last):
        logits = read(ids)
        mine, plain = law(logits)
        probs.append(mine)
        base.append(plain)
        healths.append(logits.amax().float())
        if i < u.shape[0]:
            ids = dists.sample(mine, u[i : i + 1])
            tokens.append(ids)
    whole = torch.cat(probs)
    return Written(torch.cat(tokens), whole, torch.cat(base) if law.reads_base else whole, torch.stack(healths).amax())
