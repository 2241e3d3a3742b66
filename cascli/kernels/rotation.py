"""Rotary position embedding of queries and keys in one kernel, rounded where transformers rounds."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from cascli.kernels import on_its_device


@triton.jit(do_not_specialize=["n"])  # prompts of some lengths would be compiled for anew
def _rotate(
    query, key, cos, sin, query_out, key_out,
    q_head, q_row, k_head, k_row, cos_row, n, heads, width, rotated,
    WIDTH: tl.constexpr,
):  # fmt: skip
    """One head of one token, which is a key's from the `heads`-th on."""
    head, i = tl.program_id(0), tl.program_id(1)
    column = tl.arange(0, WIDTH)
    inside = column < width
    turns = column < rotated
    half = rotated // 2
    first = column < half
    partner = tl.where(first, column + half, column - half)
    source, target = query + head * q_head + i * q_row, query_out + (head * n + i) * width
    if head >= heads:
        head -= heads
        source, target = key + head * k_head + i * k_row, key_out + (head * n + i) * width
    x = tl.load(source + column, mask=inside, other=0.0)
    other = tl.load(source + partner, mask=turns, other=0.0)
    other = tl.where(first, -other, other)
    c = tl.load(cos + i * cos_row + column, mask=turns, other=1.0)
    s = tl.load(sin + i * cos_row + column, mask=turns, other=0.0)
    # A product of two 16-bit numbers is rounded to 16 bits before the sum, as by separate kernels.
    straight = (x.to(tl.float32) * c.to(tl.float32)).to(x.dtype).to(tl.float32)
    across = (other.to(tl.float32) * s.to(tl.float32)).to(x.dtype).to(tl.float32)
    tl.store(target + column, tl.where(turns, (straight + across).to(x.dtype), x), mask=inside)


@on_its_device
def rotate(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    """Queries `[1, H, n, D]` and keys `[1, G, n, D]`, turned by angles `[1, n, R]` in their first R numbers, R <= D.

    The second half of the R numbers is the imaginary part (Su et al. 2021, in GPT-NeoX's order).
    """
    _, heads, n, width = q.shape
    q, k = (each if each.stride(-1) == 1 else each.contiguous() for each in (q, k))
    cos, sin = cos.contiguous(), sin.contiguous()
    rotated = torch.empty_like(q, memory_format=torch.contiguous_format), k.new_empty(k.shape)
    _rotate[(heads + k.shape[1], n)](
        q, k, cos, sin, *rotated,
        q.stride(1), q.stride(2), k.stride(1), k.stride(2), cos.stride(1), n, heads, width, cos.shape[-1],
        WIDTH=triton.next_power_of_2(width),
    )  # fmt: skip
    return rotated
