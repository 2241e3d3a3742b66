"""Where top-k and top-p cut rows of logits, found without sorting.

Both keep the largest logits down to some limit: the smallest number above which there are fewer than k tokens, or
less mass than top-p's. The limit is found by a radix search, most significant bits first. A pass takes the tokens
that agree with the limit in all previous bits, and bins their count and mass by the next `_BITS` bits of their logits;
from these sums the next pass determines the bin that holds the limit. Half precision takes four or five passes,
float32 eight. Sums are float64 in a fixed order, so that a row has the same limit in the draft and in its verification.
"""

from __future__ import annotations

import struct

import torch
import triton
import triton.language as tl
from torch import Tensor

from cascli.kernels.rows import ABOVE_CUT, ALL, BLOCK, FIRST_BEST, Sums, cut, row_sums

_BITS = 4
_BINS = tl.constexpr(1 << _BITS)
_WARPS = 16
"""Warps per program, which holds a block of numbers times all bins: 32 elements per thread."""
_SIGNIFICANT = {torch.bfloat16: 16, torch.float16: 19}
"""Leading float32 bits that can be nonzero in a half-precision number; the remaining bits are 0."""


def truncated_sums(logits: Tensor, temperature: float, top_k: int, top_p: float) -> tuple[Sums, int]:
    """The `row_sums` of logits `[n, V]` with the cuts of top-k and top-p, and which kind of tokens is kept."""
    sums = row_sums(logits, temperature)
    if temperature == 0:
        return sums, FIRST_BEST
    top_k = top_k if top_k < logits.shape[1] else 0
    if not top_k and top_p >= 1:
        return sums, ALL
    return sums._replace(cuts=cuts(logits, sums.top, temperature, top_k, top_p)), ABOVE_CUT


def cuts(logits: Tensor, top: Tensor, temperature: float, top_k: int, top_p: float) -> Tensor:
    """Limits of rows of logits `[n, V]`: `[n, 3]` (float64).

    A token is kept if its logit is above the first number, or equals it and the token's id is at most the second
    number. The third is the sum of exp((logit - best) / temperature) over the kept tokens. Of equal logits, top-k
    keeps all, and top-p only as many as needed, lowest ids first, as `cascli.sampling.distributions.warp` does.

    Args:
        logits: in any floating type; the last dimension contiguous.
        top: the largest logit of each part, as in `Sums`.
        temperature: above 0.
        top_k: less than V; 0 for all tokens.
        top_p: share of the mass that top-k leaves; 1 for all tokens.
    """
    n, width = logits.shape
    parts, padded, per = cut(width)
    passes = triton.cdiv(_SIGNIFICANT.get(logits.dtype, 32), _BITS)
    limits = logits.new_empty((n, 3), dtype=torch.float64)
    space = logits.new_empty((passes, n, parts, 2 * _BINS.value), dtype=torch.float64)
    states = logits.new_empty((passes, n, _STATE), dtype=torch.float64)

    def search(goal: float, *, by_count: bool) -> None:
        (bits,) = struct.unpack("q", struct.pack("d", goal))  # Triton would pass a float as float32
        how = {"PADDED": padded, "PER": per, "BLOCK": BLOCK, "BY_COUNT": by_count, "WITHIN": top_k > 0 and not by_count}
        given = (logits, logits.stride(0), space, states, limits, width, parts, bits)
        for i in range(passes):
            _bins[(n, parts)](*given, i, top, temperature, STAGE=min(i, 2), num_warps=_WARPS, **how)
        _limit[(n,)](*given, passes, **how)

    if top_k:
        search(top_k, by_count=True)
    if top_p < 1:
        search(top_p, by_count=False)
    return limits


_STATE = 4
"""Numbers per row before each pass: the limit's bits so far, the count and mass above it, and the bound on either."""
_jit = triton.jit(do_not_specialize=["i", "goal"])


@triton.jit
def _order(x):
    """Numbers as unsigned integers in the same order; trailing zero bits stay zero, and -0.0 equals 0.0."""
    bits = x.to(tl.int32, bitcast=True)
    signed = tl.where(bits < 0, -(bits & 0x7FFFFFFF), bits)
    return signed.to(tl.uint32, bitcast=True) ^ 0x80000000


@triton.jit
def _number(order):
    """The inverse of `_order`."""
    signed = (order ^ 0x80000000).to(tl.int32, bitcast=True)
    x = tl.abs(signed).to(tl.float32, bitcast=True)
    return tl.where(signed < 0, -x, x)


@triton.jit
def _narrowed(
    space, states, limits, row, rows, parts, goal, i,
    PADDED: tl.constexpr, STAGE: tl.constexpr, BY_COUNT: tl.constexpr, WITHIN: tl.constexpr,
):  # fmt: skip
    """A row's limit, narrowed by i passes: a `_STATE`, the chosen bin of the last pass, and its count and mass."""
    part, bin = tl.arange(0, PADDED)[:, None], tl.arange(0, _BINS)
    place = space + (((i - 1) * rows + row) * parts + part) * (2 * _BINS) + bin[None, :]
    count = tl.sum(tl.load(place, mask=part < parts, other=0.0), axis=0)
    mass = tl.sum(tl.load(place + _BINS, mask=part < parts, other=0.0), axis=0)
    prefix = tl.full([], 0, tl.uint32)
    counted = tl.full([], 0.0, tl.float64)
    summed = tl.full([], 0.0, tl.float64)
    below = goal.to(tl.float64, bitcast=True)
    if STAGE == 1:
        if WITHIN:
            below *= tl.load(limits + row * 3 + 2)
        elif not BY_COUNT:
            below *= tl.sum(mass, axis=0)
    else:
        state = states + ((i - 1) * rows + row) * 4
        prefix = tl.load(state).to(tl.uint32)
        counted, summed, below = tl.load(state + 1), tl.load(state + 2), tl.load(state + 3)
    higher = bin[None, :] > bin[:, None]
    count_above = counted + tl.sum(tl.where(higher, count[None, :], 0.0), axis=1)
    mass_above = summed + tl.sum(tl.where(higher, mass[None, :], 0.0), axis=1)
    fits = (count_above if BY_COUNT else mass_above) < below
    chosen = tl.min(tl.where(fits, bin, _BINS - 1), axis=0)
    this = bin == chosen
    counted = tl.sum(tl.where(this, count_above, 0.0), axis=0)
    summed = tl.sum(tl.where(this, mass_above, 0.0), axis=0)
    count = tl.sum(tl.where(this, count, 0.0), axis=0)
    mass = tl.sum(tl.where(this, mass, 0.0), axis=0)
    prefix = prefix | (chosen.to(tl.uint32) << (32 - 4 * i))
    return prefix, counted, summed, below, chosen, count, mass


@_jit
def _bins(
    logits, stride, space, states, limits, width, parts, goal, i, top, temperature,
    PADDED: tl.constexpr, PER: tl.constexpr, BLOCK: tl.constexpr,
    STAGE: tl.constexpr, BY_COUNT: tl.constexpr, WITHIN: tl.constexpr,
):  # fmt: skip
    """Count and mass of a part's tokens, binned by their next bits."""
    row, part, rows = tl.program_id(0), tl.program_id(1), tl.num_programs(0)
    prefix = tl.full([], 0, tl.uint32)
    if STAGE > 0:
        prefix, counted, summed, below, _, _, _ = _narrowed(
            space, states, limits, row, rows, parts, goal, i, PADDED, STAGE, BY_COUNT, WITHIN
        )
        if part == 0:
            state = states + (i * rows + row) * 4
            tl.store(state, prefix.to(tl.float64))
            tl.store(state + 1, counted)
            tl.store(state + 2, summed)
            tl.store(state + 3, below)
    tops = tl.arange(0, PADDED)
    best = tl.max(tl.load(top + row * parts + tops, mask=tops < parts, other=-float("inf")), axis=0)
    logits += row.to(tl.int64) * stride
    bin = tl.arange(0, _BINS)
    shift = 28 - 4 * i
    count = tl.zeros([_BINS], tl.int32)
    mass = tl.zeros([_BINS], tl.float64)
    for start in range(0, PER, BLOCK):
        token = part * PER + start + tl.arange(0, BLOCK)
        x = tl.load(logits + token, mask=token < width, other=-float("inf")).to(tl.float32)
        order = _order(x) >> shift
        mine = (token < width) & ((order >> 4) == (prefix >> shift >> 4))
        here = mine[:, None] & ((order & 15)[:, None] == bin[None, :])
        weight = tl.exp((x - best) / temperature).to(tl.float64)
        count += tl.sum(here.to(tl.int32), axis=0)
        mass += tl.sum(tl.where(here, weight[:, None], 0.0), axis=0)
    place = space + ((i * rows + row) * parts + part) * (2 * _BINS) + bin
    tl.store(place, count.to(tl.float64))
    tl.store(place + _BINS, mass)


@_jit
def _limit(
    logits, stride, space, states, limits, width, parts, goal, i,
    PADDED: tl.constexpr, PER: tl.constexpr, BLOCK: tl.constexpr, BY_COUNT: tl.constexpr, WITHIN: tl.constexpr,
):  # fmt: skip
    """A row's limit after all passes, the last kept token whose logit equals it, and the mass of all kept tokens."""
    row, rows = tl.program_id(0), tl.num_programs(0)
    order, _, summed, below, chosen, count, mass = _narrowed(
        space, states, limits, row, rows, parts, goal, i, PADDED, 2, BY_COUNT, WITHIN
    )
    limit = _number(order)
    out = limits + row * 3
    if BY_COUNT:
        last = tl.full([], 2147483647, tl.int32)
        total = summed + mass
    else:
        per_token = mass / tl.maximum(count, 1.0)
        needed = tl.ceil((below - summed) / tl.where(per_token > 0, per_token, 1.0))
        kept = tl.minimum(tl.maximum(needed, 1.0), count)
        total = summed + kept * per_token
        last = _last_of_equals(
            logits + row.to(tl.int64) * stride,
            limit,
            kept,
            space + ((i - 1) * rows + row) * parts * (2 * _BINS) + chosen,
            width,
            parts,
            PADDED,
            PER,
            BLOCK,
        )
    tl.store(out, limit.to(tl.float64))
    tl.store(out + 1, last.to(tl.float64))
    tl.store(out + 2, total)


@triton.jit
def _last_of_equals(
    logits, limit, kept, counts, width, parts, PADDED: tl.constexpr, PER: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    """The `kept`-th token whose logit equals the limit; `counts` holds the number of such tokens per part."""
    part = tl.arange(0, PADDED)
    equals = tl.load(counts + part * (2 * _BINS), mask=part < parts, other=0.0)
    chosen = tl.min(tl.where(tl.cumsum(equals, axis=0) >= kept, part, PADDED - 1), axis=0)
    seen = tl.sum(tl.where(part < chosen, equals, 0.0), axis=0).to(tl.int32)
    last = tl.full([], 2147483647, tl.int32)
    for start in range(0, PER, BLOCK):
        token = chosen * PER + start + tl.arange(0, BLOCK)
        x = tl.load(logits + token, mask=token < width, other=-float("inf")).to(tl.float32)
        same = ((x == limit) & (token < width)).to(tl.int32)
        rank = seen + tl.cumsum(same, axis=0)
        last = tl.minimum(last, tl.min(tl.where((same > 0) & (rank >= kept), token, 2147483647), axis=0))
        seen += tl.sum(same, axis=0)
    return last
