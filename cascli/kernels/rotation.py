"""Rotary position embedding of queries and keys in one kernel, rounded where transformers rounds.

`rotate` is for transformers' own layers; `rotate_and_store` fuses the preceding norms and the writes to the cache.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from cascli.kernels import Norm, on_its_device
from cascli.kernels.early import launching, wait


@triton.jit
def _turned(x, partner, first, cos, sin, dtype: tl.constexpr):
    """Rotate numbers in float32: the first half are real parts, their partners in the second half imaginary parts.

    A product of two 16-bit numbers is rounded to 16 bits before the sum, as separate kernels do.
    """
    straight = (x * cos).to(dtype).to(tl.float32)
    across = (tl.where(first, -partner, partner) * sin).to(dtype).to(tl.float32)
    return (straight + across).to(dtype)


@triton.jit(do_not_specialize=["n"])  # else prompts of some lengths would trigger recompilation
def _rotate(
    query, key, cos, sin, query_out, key_out,
    q_head, q_row, k_head, k_row, cos_row, n, heads, width, rotated,
    WIDTH: tl.constexpr,
):  # fmt: skip
    """One head of one token: a query head, or a key head if its index is at least `heads`."""
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
    other = tl.load(source + partner, mask=turns, other=0.0).to(tl.float32)
    c = tl.load(cos + i * cos_row + column, mask=turns, other=1.0).to(tl.float32)
    s = tl.load(sin + i * cos_row + column, mask=turns, other=0.0).to(tl.float32)
    tl.store(target + column, tl.where(turns, _turned(x.to(tl.float32), other, first, c, s, x.dtype), x), mask=inside)


@on_its_device
def rotate(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    """Rotate the first R <= D numbers of queries `[1, H, n, D]` and keys `[1, G, n, D]` by angles `[1, n, R]`.

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


@triton.jit
def _rotate_and_store(
    states, cos, sin, at, query, key, value, norms, heads, shared, width, epsilon, k_head, k_row, v_head, v_row,
    WIDTH: tl.constexpr, NORM: tl.constexpr, OFFSET: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    """One head of one token; query heads come first, then key heads, then value heads."""
    wait(EARLY)
    head, i = tl.program_id(0), tl.program_id(1)
    where = tl.load(at).to(tl.int32) + i
    column = tl.arange(0, WIDTH)
    inside = column < width
    source = states + (i * (heads + 2 * shared) + head) * width
    dtype = query.dtype.element_ty
    mine = tl.load(source + column, mask=inside, other=0.0)
    if head >= heads + shared:
        place = value + (head - heads - shared).to(tl.int64) * v_head + where.to(tl.int64) * v_row
        tl.store(place + column, mine, mask=inside)
    else:
        half = width // 2
        first = column < half
        partner = tl.where(first, column + half, column - half)
        other = tl.load(source + partner, mask=inside, other=0.0).to(tl.float32)
        x = mine.to(tl.float32)
        if NORM:
            weight = norms + (head >= heads).to(tl.int32) * width
            inverse = 1 / tl.sqrt(tl.sum(x * x, axis=0) / width + epsilon)
            x *= inverse * (tl.load(weight + column, mask=inside, other=0.0).to(tl.float32) + OFFSET)
            other *= inverse * (tl.load(weight + partner, mask=inside, other=0.0).to(tl.float32) + OFFSET)
            x, other = x.to(dtype).to(tl.float32), other.to(dtype).to(tl.float32)
        c = tl.load(cos + where.to(tl.int64) * width + column, mask=inside, other=0.0).to(tl.float32)
        s = tl.load(sin + where.to(tl.int64) * width + column, mask=inside, other=0.0).to(tl.float32)
        turned = _turned(x, other, first, c, s, dtype)
        if head < heads:
            tl.store(query + (i * heads + head) * width + column, turned, mask=inside)
        else:
            place = key + (head - heads).to(tl.int64) * k_head + where.to(tl.int64) * k_row
            tl.store(place + column, turned, mask=inside)


@on_its_device
def rotate_and_store(
    states: Tensor,
    cos: Tensor,
    sin: Tensor,
    at: Tensor,
    key: Tensor,
    value: Tensor,
    norms: Norm | None = None,
) -> Tensor:
    """Rotate the queries and keys of n tokens that follow `at` others, and write keys and values to the cache.

    Args:
        states: `[n, (H + 2 G) D]`, packed: queries of H heads, then keys and values of G heads.
        cos: cosines of every position, `[capacity, D]`, packed. The second half of the D numbers is the imaginary
            part (Su et al. 2021, in GPT-NeoX's order).
        sin: sines, in the same layout.
        at: number of preceding tokens, an integer on the device (0-dim).
        key: `[1, G, capacity, D]`, its last dimension packed; written at positions `at` to `at + n - 1`.
        value: of the same shape, its last dimension packed too; written at the same positions.
        norms: applied to queries and keys first, with weights `[2, D]`, packed; None for no norm.

    Returns:
        The rotated queries, `[1, H, n, D]`.
    """
    shared, width = key.shape[1], key.shape[-1]
    n, heads = states.shape[0], states.shape[1] // width - 2 * shared
    query = states.new_empty((n, heads, width))
    given = Norm(states, 0.0) if norms is None else norms
    _rotate_and_store[(heads + 2 * shared, n)](
        states, cos, sin, at, query, key, value, given.weight, heads, shared, width, given.epsilon,
        key.stride(1), key.stride(2), value.stride(1), value.stride(2),
        WIDTH=triton.next_power_of_2(width), NORM=norms is not None, OFFSET=float(given.offset), num_warps=1,
        **launching(states.device),
    )  # fmt: skip
    return query.transpose(0, 1).unsqueeze(0)
