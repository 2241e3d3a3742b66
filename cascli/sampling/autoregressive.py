"""Autoregressive sampling: draw a token from its own distribution, read it, draw the next.

The same code runs steps one by one and steps that are captured together.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from cascli import kernels
from cascli.sampling import distributions
from cascli.sampling.parameters import Sampling

Read = Callable[[Tensor], Tensor]
"""Reads ids `[n]`; returns the logits `[1, V]` after the last of them."""


@dataclass(frozen=True)
class Sampler:
    """Turns logits `[n, V]` into the distributions that tokens are drawn from."""

    sampling: Sampling
    reads_base: bool
    """Whether the distributions at temperature 1 are wanted too."""

    def draw(self, logits: Tensor, u: Tensor | None) -> Drawn:
        """The distributions of logits `[n, V]`, and tokens drawn with the uniforms `[n]`, if any are given."""
        if kernels.serve(logits.device):
            from cascli.kernels import draws

            return Drawn(*draws.draw(logits, u=u, with_base=self.reads_base, **asdict(self.sampling)))
        probs, base = self(logits)
        return Drawn(None if u is None else distributions.sample(probs, u), probs, base, logits.amax(dim=-1).float())

    def __call__(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        """Warped distributions and those at temperature 1; the former twice unless `reads_base`."""
        probs = distributions.warp(logits, self.sampling)
        return probs, distributions.base(logits) if self.reads_base else probs


class Drawn(NamedTuple):
    """Tokens `[n]` of n texts, if they were drawn, and the distributions `[n, V]` at their positions."""

    token: Tensor | None
    probs: Tensor
    base: Tensor
    max_logit: Tensor
    """The largest logit per row, `[n]`: finite as long as all logits were."""


class Written(NamedTuple):
    """n drawn tokens `[n]`, and the distributions `[n, V]` that they were drawn from.

    There is one more row if the last token was read as well.
    """

    tokens: Tensor
    probs: Tensor
    base: Tensor
    max_logit: Tensor
    """The largest magnitude of any step's largest logit (0-dim): finite as long as all logits were."""


def write_by_steps(read: Read, ids: Tensor, sampler: Sampler, u: Tensor, *, read_last: bool) -> Written:
    """Draw one token per uniform of `u` `[n]`; at least one step.

    Args:
        read: runs one step of the model.
        ids: what the model reads first.
        sampler: turns its logits into distributions.
        u: one uniform per token.
        read_last: also read the last drawn token.
    """
    tokens, drawn = [u.new_zeros(0, dtype=torch.long)], []
    for i in range(u.shape[0] + read_last):
        step = sampler.draw(read(ids), u[i : i + 1] if i < u.shape[0] else None)
        drawn.append(step)
        if step.token is not None:
            ids = step.token
            tokens.append(ids)
    probs = torch.cat([each.probs for each in drawn])
    base = torch.cat([each.base for each in drawn]) if sampler.reads_base else probs
    return Written(torch.cat(tokens), probs, base, torch.stack([each.max_logit for each in drawn]).abs().amax())
