"""How far apart two computations of the same logits are, relative to the logits themselves, each row minus its mean."""

from __future__ import annotations

import torch
from torch import Tensor

BOUNDS = {"float32": 1e-4, "float16": 5e-2, "bfloat16": 1e-1, "int8": 2e-2}
"""Largest relative difference that rounding may cause in logits, by precision.

On the embedded pair, rounding caused at most 1.2e-5 in float32 (of logits that were not centred), 0.046 in bfloat16 and
7e-4 in int8, which does not depend on the block except for prompts of more than 15 tokens. A cache off by one token
caused 0.54 or more at the worst of 16 rewinds, and 0.068 or more at each, in bfloat16 and int8.
"""


def difference(a: Tensor, b: Tensor) -> float:
    """Root mean square of the difference over that of `b`, at the worst row of `[rows, V]`; each row minus its mean.

    No probability depends on what is added to all logits of a row, and it may be far larger than what does. Tokens for
    which a cut head has no row are minus infinity in both and carry no weight.
    """
    a, b = _centred(a), _centred(b)
    off = (a - b).where(a != b, 0.0).pow(2).sum(dim=-1)
    return float((off / b.where(b.isfinite(), 0.0).pow(2).sum(dim=-1).clamp_min(1e-18)).max().sqrt())


def _centred(logits: Tensor) -> Tensor:
    logits = logits.double()
    return logits - logits.where(logits != -torch.inf, torch.nan).nanmean(dim=-1, keepdim=True)
