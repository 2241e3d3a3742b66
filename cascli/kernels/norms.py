"""A residual connection and the root-mean-square norm after it in one kernel, which is launched once a row."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from cascli.kernels import on_its_device


@triton.jit
def normed(x, inside, weight, column, width, epsilon, OFFSET: tl.constexpr):
    """`x / sqrt(mean(x^2) + epsilon) (weight + OFFSET)` in float32; x is 0 outside."""
    inverse = 1 / tl.sqrt(tl.sum(x * x, axis=0) / width + epsilon)
    return x * inverse * (tl.load(weight + column, mask=inside, other=0.0).to(tl.float32) + OFFSET)


@triton.jit
def _add_norm(
    x, residual, after, weight, summed, out, width, epsilon,
    WIDTH: tl.constexpr, ADD: tl.constexpr, AFTER: tl.constexpr, OFFSET: tl.constexpr,
):  # fmt: skip
    """One row; rounded where separate kernels round, except that a norm is rounded once."""
    kind = out.dtype.element_ty
    row = tl.program_id(0).to(tl.int64) * width
    column = tl.arange(0, WIDTH)
    inside = column < width
    value = tl.load(x + row + column, mask=inside, other=0.0).to(tl.float32)
    if AFTER:
        value = normed(value, inside, after, column, width, epsilon, OFFSET).to(kind).to(tl.float32)
    if ADD:
        value = (value + tl.load(residual + row + column, mask=inside, other=0.0).to(tl.float32)).to(kind)
        tl.store(summed + row + column, value, mask=inside)
        value = value.to(tl.float32)
    found = normed(value, inside, weight, column, width, epsilon, OFFSET)
    tl.store(out + row + column, found.to(kind), mask=inside)


def warps_of(padded: int) -> int:
    """Sixteen numbers a thread."""
    return min(16, max(4, padded // 512))


@on_its_device
def add_norm(
    x: Tensor,
    residual: Tensor | None,
    weight: Tensor,
    epsilon: float,
    *,
    offset: bool = False,
    after: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """`residual + x`, and its norm.

    Args:
        x: `[n, width]`, packed: what a layer's part has computed.
        residual: what it is added to; None for nothing, as before the first layer.
        weight: of the norm, `[width]`.
        epsilon: what is added to the mean square.
        offset: whether weights are kept less 1, as in Gemma.
        after: the weights `[width]` of a norm of x before it is added, as in Gemma 2; None for none.

    Returns:
        The new residual and the normed rows, both `[n, width]`.
    """
    rows, width = x.shape
    out = torch.empty_like(x)
    summed = x if residual is None else torch.empty_like(x)
    padded = triton.next_power_of_2(width)
    _add_norm[(rows,)](
        x, x if residual is None else residual, weight if after is None else after, weight, summed, out, width, epsilon,
        WIDTH=padded, ADD=residual is not None, AFTER=after is not None, OFFSET=float(offset),
        num_warps=warps_of(padded),
    )  # fmt: skip
    return summed, out
