"""int8 weights for linear layers on a CPU, with logits that do not depend on the block they are computed in.

Weights get one scale per output channel. Activations are written as two digits, the second being the rounding error of
the first: 16 bits in total (14 where the processor's products saturate). Each row thus becomes two rows of a single
integer product, which is memory-bound anyway. Each row is scaled by its own largest magnitude, since one scale for the
whole tensor would make a token's logits depend on its neighbours. The only loss is then the rounding of the weights.
"""

from __future__ import annotations

from typing import NamedTuple, Self

import torch
from torch import Tensor, nn

from cascli.errors import RunError
from cascli.models.cpu.int8_kernels import LEVELS, Int8Weights, int8_kernel

_ROWS_AT_ONCE = 512
"""Number of rows quantised at a time, so that the work stays in the processor's caches."""


class Digits(NamedTuple):
    """An input as digits."""

    input: Tensor
    encoded: Tensor
    """`[2 rows, in]` as the kernel takes them: the first digits of all rows, then the second ones."""
    scale: Tensor
    """`[rows, 1]`, by which the first digits are multiplied."""


class SharedDigits:
    """The latest digits of layers that read the same input, so that they are computed once."""

    latest: Digits | None = None


class Int8Linear(nn.Module):
    """A linear layer with packed int8 weights; takes and returns float32 `[..., features]`."""

    bias: Tensor | None
    shared: SharedDigits | None = None
    """Digits shared with the layers next to it that read the same input, if there are any."""
    is_first: bool = True
    """Whether it is the first of them to run, and computes the digits."""

    def __init__(self, weights: Int8Weights, bias: Tensor | None) -> None:
        """Take packed weights, and a float32 bias `[out]`."""
        super().__init__()
        self.weights = weights
        self.out_features, self.in_features = weights.shape
        self.register_buffer("bias", bias)
        self._finer = torch.tensor(2 * weights.most)

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
        digits = self._digits(input)
        out, n = self.weights.product(digits.encoded), digits.scale.shape[0]
        out = out[n:].div_(self._finer).add_(out[:n]).mul_(digits.scale)
        if self.bias is not None:
            out.add_(self.bias)
        return out.view(*input.shape[:-1], self.out_features)

    def _digits(self, input: Tensor) -> Digits:
        """The digits of an input, which may have been computed by another layer of those that share them.

        The input must not be changed in place between these layers.
        """
        if self.shared is None:
            return self._computed(input)
        latest = self.shared.latest
        if self.is_first or latest is None or latest.input is not input:
            latest = self.shared.latest = self._computed(input)
        return latest

    def _computed(self, input: Tensor) -> Digits:
        rows = input.reshape(-1, self.in_features)
        scale = rows.abs().amax(dim=1, keepdim=True).clamp_min_(1e-12) / self.weights.most
        exact = rows / scale
        coarse = exact.round()
        # The second digit covers at most half a step of the first, with the same number of levels.
        fine = exact.sub_(coarse).mul_(self._finer).round_()
        return Digits(input, self.weights.encoded(torch.cat([coarse, fine])), scale)


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
