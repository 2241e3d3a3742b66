"""int8 weights for linear layers on a CPU, with logits that do not depend on the block they are computed in.

Weights get one scale per output channel. Activations are written as two digits of 8 bits, the second of which is the
rounding error of the first: 16 bits in all, by two rows for each row of one integer product that is bound by memory
anyway. Each row is scaled by its own largest magnitude, since one scale for the whole tensor would make a token's
logits depend on its neighbours. What is lost is then the rounding of the weights alone.
"""

from __future__ import annotations

from typing import Self

import torch
from torch import Tensor, nn

from cascli.errors import RunError

_LEVELS = 127.0
_FINE = 2 * _LEVELS
"""The second digit's levels: it stands for at most half a step of the first."""
_ZERO = 128
_ROWS_HINT = 8
_ROWS_AT_ONCE = 512
"""Rows that are quantised together, so that the work stays in the processor's caches."""


class Int8Linear(nn.Module):
    """A linear layer with packed int8 weights; takes and returns float32 `[..., features]`."""

    bias: Tensor | None
    scales: Tensor
    zeros: Tensor

    def __init__(self, packed: Tensor, scales: Tensor, bias: Tensor | None) -> None:
        """Take weights packed by `pack`, their scales `[out]` and a bias `[out]`, both float32."""
        super().__init__()
        self.in_features, self.out_features = packed.shape
        self.packed = packed
        self.register_buffer("scales", scales)
        self.register_buffer("zeros", torch.zeros(self.out_features, dtype=torch.int32))
        self.register_buffer("bias", bias)

    @classmethod
    def of(cls, weight: Tensor, bias: Tensor | None) -> Self:
        """Round weights `[out, in]` and pack them."""
        levels, scales = to_levels(weight.detach())
        return cls(pack(levels), scales, None if bias is None else bias.detach().float())

    @property
    def weight_count(self) -> int:
        """How many weights the layer has."""
        return self.in_features * self.out_features

    @property
    def weight_bytes(self) -> int:
        """What they take in memory: a byte each, and a float32 scale per output channel."""
        return self.weight_count + 4 * self.out_features

    @property
    def weight(self) -> Tensor:
        """The weights as they act, in float32: a copy, computed by the layer itself."""
        identity = torch.eye(self.in_features)
        return (self(identity) - (0 if self.bias is None else self.bias)).T.contiguous()

    def forward(self, input: Tensor) -> Tensor:
        """X W^T + b with every row of x scaled on its own."""
        rows = input.reshape(-1, self.in_features)
        n = rows.shape[0]
        scale = rows.abs().amax(dim=1, keepdim=True).clamp_min(1e-12) / _LEVELS
        exact = rows / scale
        coarse = exact.round()
        fine = ((exact - coarse) * _FINE).round_()
        digits = torch.cat([coarse, fine]).add_(_ZERO).to(torch.uint8)
        out = torch.ops.onednn.qlinear_pointwise(
            digits, 1.0, _ZERO, self.packed, self.scales, self.zeros, None, 1.0, 0, torch.float32, "none", [], ""
        )
        out = (out[:n] + out[n:] / _FINE) * scale
        if self.bias is not None:
            out = out + self.bias
        return out.reshape(*input.shape[:-1], self.out_features)


def pack(levels: Tensor) -> Tensor:
    """Int8 levels `[out, in]` in oneDNN's order; an opaque tensor of the shape `[in, out]`."""
    return torch.ops.onednn.qlinear_prepack(levels, [_ROWS_HINT, levels.shape[1]])


def to_levels(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Weights `[out, in]` as int8 levels and one float32 scale `[out]` per output channel."""
    levels = torch.empty(weight.shape, dtype=torch.int8)
    scales = torch.empty(weight.shape[0])
    for start in range(0, weight.shape[0], _ROWS_AT_ONCE):
        part = weight[start : start + _ROWS_AT_ONCE].to(torch.float32, copy=True)
        scale = part.abs().amax(dim=1, keepdim=True).clamp_min_(1e-12).div_(_LEVELS)
        levels[start : start + _ROWS_AT_ONCE] = part.div_(scale).round_()
        scales[start : start + _ROWS_AT_ONCE] = scale.squeeze(1)
    return levels, scales


def can_int8() -> bool:
    """Whether this build of torch and this processor multiply int8 weights, and do so exactly.

    Without VNNI instructions sums of 8-bit products may saturate: the largest possible sum shows it.
    """
    if not torch.backends.mkldnn.is_available() or not hasattr(torch.ops.onednn, "qlinear_pointwise"):
        return False
    rows, columns = 16, 64
    layer = Int8Linear(pack(torch.full((rows, columns), int(_LEVELS), dtype=torch.int8)), torch.ones(rows), None)
    found = layer(torch.full((2, columns), _LEVELS))
    return bool((found == columns * _LEVELS * _LEVELS).all())


def check_int8() -> None:
    """Make sure that the kernels are there.

    Raises:
        RunError: this build of torch has none for this processor, or they are not exact.
    """
    if not can_int8():
        raise RunError("torch has no exact int8 kernels (oneDNN with VNNI) for this processor; use --dtype float32.")
