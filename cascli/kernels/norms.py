"""A residual connection and the root-mean-square norm after it in one kernel, one program per row."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from cascli.kernels import Norm, on_its_device
from cascli.kernels.early import launching, wait


@triton.jit
def normed(x, inside, weight, column, width, epsilon, OFFSET: tl.constexpr):
    """`x / sqrt(mean(x^2) + epsilon) (weight + OFFSET)` in float32; x is 0 outside."""
    inverse = 1 / tl.sqrt(tl.sum(x * x, axis=0) / width + epsilon)
    return x * inverse * (tl.load(weight + column, mask=inside, other=0.0).to(tl.float32) + OFFSET)


@triton.jit
def _add_norm(
    x, residual, after, weight, summed, out, width, epsilon,
    WIDTH: tl.constexpr, ADD: tl.constexpr, AFTER: tl.constexpr, OFFSET: tl.constexpr,
    EARLY: tl.constexpr,
):  # fmt: skip
    """One row; rounds where separate kernels would, except that each norm is rounded only once."""
    wait(EARLY)
    dtype = out.dtype.element_ty
    row = tl.program_id(0).to(tl.int64) * width
    column = tl.arange(0, WIDTH)
    inside = column < width
    value = tl.load(x + row + column, mask=inside, other=0.0).to(tl.float32)
    if AFTER:
        value = normed(value, inside, after, column, width, epsilon, OFFSET).to(dtype).to(tl.float32)
    if ADD:
        value = (value + tl.load(residual + row + column, mask=inside, other=0.0).to(tl.float32)).to(dtype)
        tl.store(summed + row + column, value, mask=inside)
        value = value.to(tl.float32)
    output = normed(value, inside, weight, column, width, epsilon, OFFSET)
    tl.store(out + row + column, output.to(dtype), mask=inside)


def warps_of(padded: int) -> int:
    """Number of warps: sixteen numbers per thread."""
    return min(16, max(4, padded // 512))


@on_its_device
def add_norm(x: Tensor, residual: Tensor | None, norm: Norm, after: Norm | None = None) -> tuple[Tensor, Tensor]:
    """Compute `residual + x` and its norm.

    Args:
        x: `[n, width]`, packed: the output of attention or the MLP.
        residual: what x is added to; None before the first layer.
        norm: the norm that follows, with weights `[width]`.
        after: a norm of the same kind applied to x before the addition, as in Gemma 2, or None.

    Returns:
        The new residual and the normed rows, both `[n, width]`.
    """
    rows, width = x.shape
    out = torch.empty_like(x)
    summed = x if residual is None else torch.empty_like(x)
    padded = triton.next_power_of_2(width)
    _add_norm[(rows,)](
        x, x if residual is None else residual, (after or norm).weight, norm.weight, summed, out, width, norm.epsilon,
        WIDTH=padded, ADD=residual is not None, AFTER=after is not None, OFFSET=float(norm.offset),
        num_warps=warps_of(padded), **launching(x.device),
    )  # fmt: skip
    return summed, out
