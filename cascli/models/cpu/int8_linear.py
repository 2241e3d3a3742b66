"""int8 weights for linear layers on a CPU, with logits that do not depend on the block they are computed in.

Weights get one scale per output channel. Activations are written as two digits, the second being the rounding error of
the first: 16 bits in total (14 where the processor's products saturate). Each row thus becomes two rows of a single
integer product, which is memory-bound anyway. Each row is scaled by its own largest magnitude, since one scale for the
whole tensor would make a token's logits depend on its neighbours. The only loss is then the rounding of the weights.
"""

from __future__ import annotations

from typing import Self

import torch
from torch import Tensor, nn

from cascli.errors import RunError
from cascli.models.cpu.int8_kernels import LEVELS, Int8Weights, int8_kernel

_ROWS_AT_ONCE = 512
"""Number of rows quantised at a time, so that the work stays in the processor's caches."""


class Int8Linear(nn.Module):
    """A linear layer with packed int8 weights; takes and returns float32 `[..., features]`."""

    bias: Tensor | None

    def __init__(self, weights: Int8Weights, bias: Tensor | None) -> None:
        """Take packed weights, and a float32 bias `[out]`."""
        super().__init__()
        self.weights = weights
        self.out_features, self.in_features = weights.shape
        self.register_buffer("bias", bias)

    @classmethod
    def of(cls, weight: Tensor, bias: Tensor | None) -> Self:
        """Round weights `[out, in]` and pack them.

        Raises:
            RunError: no exact kernel for this processor.
        """
        return cls(check_int8().of(*to_levels(weight.detach())), None if bias is None else bias.detach().float())

    @property
    def weight_count(self) -> int:
        """Number of weights."""
        return self.in_features * self.out_features

    @property
    def weight_bytes(self) -> int:
        """Bytes that the weights take in memory: one each, plus a float32 scale per output channel."""
        return self.weight_count + 4 * self.out_features

    @property
    def weight(self) -> Tensor:
        """The effective weights in float32: a copy, computed by the layer itself."""
        identity = torch.eye(self.in_features)
        return (self(identity) - (0 if self.bias is None else self.bias)).T.contiguous()

    def forward(self, input: Tensor) -> Tensor:
        """X W^T + b, with every row of X scaled on its own."""
        rows = input.reshape(-1, self.in_features)
        n, most = rows.shape[0], self.weights.most
        scale = rows.abs().amax(dim=1, keepdim=True).clamp_min(1e-12) / most
        exact = rows / scale
        coarse = exact.round()
        # The second digit covers at most half a step of the first, with the same number of levels.
        fine = ((exact - coarse) * (2 * most)).round_()
        out = self.weights.product(torch.cat([coarse, fine]))
        out = (out[:n] + out[n:] / (2 * most)) * scale
        if self.bias is not None:
            out = out + self.bias
        return out.reshape(*input.shape[:-1], self.out_features)


def to_levels(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Weights `[out, in]` as int8 levels and one float32 scale `[out]` per output channel."""
    levels = torch.empty(weight.shape, dtype=torch.int8)
    scales = torch.empty(weight.shape[0])
    for start in range(0, weight.shape[0], _ROWS_AT_ONCE):
        part = weight[start : start + _ROWS_AT_ONCE].to(torch.float32, copy=True)
        scale = part.abs().amax(dim=1, keepdim=True).clamp_min_(1e-12).div_(LEVELS)
        levels[start : start + _ROWS_AT_ONCE] = part.div_(scale).round_()
        scales[start : start + _ROWS_AT_ONCE] = scale.squeeze(1)
    return levels, scales


def can_int8() -> bool:
    """Whether this build of torch can multiply int8 weights on this processor, and does so exactly."""
    return int8_kernel() is not None


def check_int8() -> type[Int8Weights]:
    """Return the kernel.

    Raises:
        RunError: this build of torch has none for this processor, or none that is exact.
    """
    kernel = int8_kernel()
    if kernel is None:
        raise RunError("torch has no exact int8 kernels (oneDNN or FBGEMM) for this processor; use --dtype float32.")
    return kernel
