"""Shared by all kernels over rows of a vocabulary: splitting a row into parts, its sums, probabilities, and draws.

A row of 150,000 to 260,000 numbers is split into at most `MOST_PARTS` parts, so that one row fills a GPU. Every pass
leaves one number per part; the next pass combines a row's numbers, which is cheaper than a separate pass for it.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK = 1024
"""Numbers that a program processes at a time."""
MOST_PARTS = 256


def check_rows(*tensors: Tensor) -> None:
    """Reject rows `[n, V]` that are not contiguous: a kernel would read the wrong numbers.

    Raises:
        ValueError: a last dimension that is not packed, or tensors that share one stride argument but differ in it.
    """
    for each in tensors:
        if each.shape[-1] > 1 and each.stride(-1) != 1:
            raise ValueError(
                f"rows {tuple(each.shape)} with strides {each.stride()}: the last dimension must be packed"
            )
    if len({each.stride(0) for each in tensors if each.shape[0] > 1}) > 1:
        raise ValueError(f"rows must share one stride (got {[each.stride() for each in tensors]})")


class Cut(NamedTuple):
    """How a row of a given width is split."""

    parts: int
    padded: int
    """`parts`, rounded up to a power of two."""
    per: int
    """Numbers per part, a multiple of `BLOCK`; the last part may have fewer."""


def cut(width: int) -> Cut:
    """Split rows `[n, width]` into parts."""
    per = triton.cdiv(triton.cdiv(width, MOST_PARTS), BLOCK) * BLOCK
    parts = triton.cdiv(width, per)
    return Cut(parts, triton.next_power_of_2(parts), per)


class Sums(NamedTuple):
    """Numbers of each part of each row of logits, `[n, parts]`, in the order of the kernels' arguments."""

    top: Tensor
    """Largest logit."""
    first: Tensor
    """The first token with the largest logit."""
    base: Tensor
    """Sum of exp(logit - top)."""
    warped: Tensor
    """Sum of exp((logit - top) / temperature)."""
    cuts: Tensor
    """Where each row is truncated, `[n, 3]`, see `cascli.kernels.truncation.cuts`; unused without truncation."""


def row_sums(logits: Tensor, temperature: float) -> Sums:
    """Compute, in one pass over logits `[n, V]`, the sums for softmax at temperature 1 and at `temperature`.

    Temperature 0 is treated as 1.
    """
    check_rows(logits)
    n, width = logits.shape
    parts, _, per = cut(width)
    top, base, warped = (logits.new_empty((n, parts), dtype=torch.float32) for _ in range(3))
    first = logits.new_empty((n, parts), dtype=torch.int32)
    _row_sums[(n, parts)](
        logits, logits.stride(0), width, temperature or 1.0, top, first, base, warped, PER=per, BLOCK=BLOCK
    )
    return Sums(top, first, base, warped, cuts=top)


@triton.jit
def _row_sums(
    logits, stride, width, temperature, top, first, base, warped, PER: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    row, part = tl.program_id(0), tl.program_id(1)
    logits += row.to(tl.int64) * stride
    best = tl.full([], -float("inf"), tl.float32)
    at = tl.full([], 0, tl.int32)
    sum_base = tl.zeros([], tl.float32)
    sum_warped = tl.zeros([], tl.float32)
    for start in range(0, PER, BLOCK):
        token = part * PER + start + tl.arange(0, BLOCK)
        x = tl.load(logits + token, mask=token < width, other=-float("inf")).to(tl.float32)
        highest = tl.max(x, axis=0)
        # Ties go to the first token, as in torch's argmax; in bfloat16 they are not rare.
        here = tl.min(tl.where(x == highest, token, 2147483647), axis=0)
        at = tl.where(highest > best, here, at)
        new = tl.maximum(best, highest)
        ground = tl.where(new == -float("inf"), 0.0, new)
        sum_base = sum_base * tl.exp(best - ground) + tl.sum(tl.exp(x - ground), axis=0)
        sum_warped = sum_warped * tl.exp((best - ground) / temperature) + tl.sum(
            tl.exp((x - ground) / temperature), axis=0
        )
        best = new
    place = row * tl.num_programs(1) + part
    tl.store(top + place, best)
    tl.store(first + place, at)
    tl.store(base + place, sum_base)
    tl.store(warped + place, sum_warped)


ALL, FIRST_BEST, ABOVE_CUT = 0, 1, 2
"""Which tokens of a row keep a probability: all, only the first of the likeliest (temperature 0), or those not cut."""


@triton.jit
def whole_row(top, first, base, warped, cuts, row, parts, temperature, PADDED: tl.constexpr, KEPT: tl.constexpr):
    """A row's largest logit, its two sums, the logit limit, and the last kept token whose logit equals the limit."""
    part = tl.arange(0, PADDED)
    in_range = part < parts
    place = row * parts + part
    tops = tl.load(top + place, mask=in_range, other=-float("inf"))
    best = tl.max(tops, axis=0)
    lower = tops - best
    sum_base = tl.sum(tl.load(base + place, mask=in_range, other=0.0) * tl.exp(lower), axis=0)
    if KEPT == 2:
        limit, last_kept = tl.load(cuts + row * 3).to(tl.float32), tl.load(cuts + row * 3 + 1).to(tl.int32)
        return best, sum_base, tl.load(cuts + row * 3 + 2).to(tl.float32), limit, last_kept
    sum_warped = tl.sum(tl.load(warped + place, mask=in_range, other=0.0) * tl.exp(lower / temperature), axis=0)
    firsts = tl.load(first + place, mask=in_range, other=2147483647)
    return best, sum_base, sum_warped, best, tl.min(tl.where(tops == best, firsts, 2147483647), axis=0)


@triton.jit
def warped_probability(x, token, best, total, limit, last_kept, temperature, KEPT: tl.constexpr):
    """Probabilities of tokens with logits x, after temperature and truncation."""
    if KEPT == 1:
        return (token == last_kept).to(tl.float32)
    p = tl.exp((x - best) / temperature) / total
    if KEPT == 2:
        p = tl.where((x > limit) | ((x == limit) & (token <= last_kept)), p, 0.0)
    return p


@triton.jit
def choose_part(masses, parts, u, PADDED: tl.constexpr):
    """The part that a draw falls into: its index, the mass before it, and the drawn point in [0, total mass)."""
    part = tl.arange(0, PADDED)
    mass = tl.load(masses + part, mask=part < parts, other=0.0)
    total = tl.sum(mass, axis=0)
    # Clamp to the largest number below the total: u * total may round up to it although u < 1.
    point = tl.minimum(u * total, total * (1 - 1.1102230246251565e-16))
    cumulative = tl.cumsum(mass, axis=0)
    chosen = tl.min(tl.where((cumulative > point) & (mass > 0), part, PADDED), axis=0)
    # Sums in another order may differ in the last bit; then take the last part that has any mass.
    last = tl.max(tl.where(mass > 0, part, 0), axis=0)
    chosen = tl.minimum(chosen, last)
    before = tl.sum(tl.where(part < chosen, mass, 0.0), axis=0)
    return chosen, before, point


@triton.jit
def first_above(mass, token, carry, point, first):
    """The first token whose running sum exceeds the point (or `first`, if it is already >= 0), and the running sum."""
    cumulative = carry + tl.cumsum(mass, axis=0)
    here = tl.min(tl.where((cumulative > point) & (mass > 0), token, 2147483647), axis=0)
    first = tl.where((first < 0) & (here < 2147483647), here, first)
    return first, carry + tl.sum(mass, axis=0)
