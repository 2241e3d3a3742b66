"""Root-mean-square norms in one kernel instead of eight; norms are a third of a small model's kernels on a GPU.

A norm is replaced only if a test on random numbers shows that it computes the same: models scale by their weights or
by 1 + weights, in their own precision or in float32.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel

_ROWS = 4
_ROUNDING = {torch.float32: 1e-5, torch.bfloat16: 0.02, torch.float16: 0.003}
"""Largest difference, for values of about 1, between two orders of rounding."""


class FusedNorm(nn.Module):
    """A norm that replaces a model's own and keeps its weight and name."""

    weight: Tensor
    scale: Tensor
    epsilon: float
    stock: type[nn.Module]
    """The class of the replaced norm."""

    def forward(self, x: Tensor) -> Tensor:
        """Norm the last dimension of `[..., n]`."""
        if self.scale.dtype == x.dtype:
            return F.rms_norm(x, self.scale.shape, self.scale, self.epsilon)
        return F.rms_norm(x.to(self.scale.dtype), self.scale.shape, self.scale, self.epsilon).to(x.dtype)


def use_fused_norms(model: PreTrainedModel) -> int:
    """Replace every norm that allows it, in place; returns the number replaced."""
    norms = [each for each in model.modules() if type(each).__name__.endswith("RMSNorm")]
    return sum(_replace(norm) for norm in norms)


def restore_norms(model: PreTrainedModel) -> None:
    """Give back a model's own norms."""
    for norm in model.modules():
        if isinstance(norm, FusedNorm):
            del norm.scale, norm.epsilon
            norm.__class__ = vars(norm).pop("stock")


@torch.no_grad()
def _replace(norm: nn.Module) -> bool:
    epsilon = getattr(norm, "variance_epsilon", getattr(norm, "eps", None))
    weight = getattr(norm, "weight", None)
    if not isinstance(epsilon, float) or not isinstance(weight, Tensor) or weight.dim() != 1:
        return False
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(_ROWS, weight.shape[0], generator=generator).to(weight)
    expected = norm(x)
    for scale in (weight.detach(), 1.0 + weight.detach().float()):
        normed = F.rms_norm(x.to(scale.dtype), scale.shape, scale, epsilon).to(x.dtype)
        size = expected.abs().amax().clamp_min(1e-3)
        if normed.dtype == expected.dtype and (normed - expected).abs().amax() <= _ROUNDING.get(x.dtype, 0.0) * size:
            vars(norm)["stock"] = type(norm)
            norm.__class__ = FusedNorm
            norm.register_buffer("scale", scale, persistent=False)
            vars(norm)["epsilon"] = epsilon
            return True
    return False
