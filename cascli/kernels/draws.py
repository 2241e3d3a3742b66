"""Draws from rows of logits: distributions, tokens, and a check for NaN, in three kernels for all rows."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from cascli.kernels import on_its_device
from cascli.kernels.rows import BLOCK, choose_part, cut, first_above, warped_probability, whole_row
from cascli.kernels.truncation import truncated_sums


@on_its_device
def draw(
    logits: Tensor, temperature: float, u: Tensor | None, *, with_base: bool, top_k: int = 0, top_p: float = 1.0
) -> tuple[Tensor | None, Tensor, Tensor, Tensor]:
    """Compute the warped softmax and the one at temperature 1, and draw tokens by inverting the former's CDF.

    Args:
        logits: `[n, V]`, its last dimension contiguous.
        temperature: 0 is one-hot at the first of the largest logits.
        u: the draws' uniforms, float64 `[n]`, packed; None draws nothing.
        with_base: whether to compute the distribution at temperature 1.
        top_k: number of largest logits that keep a probability (ties with the last one are kept too); 0 for all.
        top_p: share of their mass that is kept, likeliest tokens first.

    Returns:
        Tokens `[n]` (int64), the two distributions `[n, V]` (float32; the first one twice without `with_base`), and
        the largest logits `[n]`, not finite for a row that has a NaN or an infinite largest logit.
    """
    n, width = logits.shape
    parts, padded, per = cut(width)
    sums, kept = truncated_sums(logits, temperature, top_k, top_p)
    probs = logits.new_empty((n, width), dtype=torch.float32)
    base = torch.empty_like(probs) if with_base else probs
    masses = logits.new_empty((n, parts), dtype=torch.float64)
    max_logit = logits.new_empty(n, dtype=torch.float32)
    _distributions[(n, parts)](
        logits, logits.stride(0), *sums, probs, base, masses, max_logit, width, parts, temperature or 1.0,
        PADDED=padded, PER=per, BLOCK=BLOCK, KEPT=kept, BASE=with_base,
    )  # fmt: skip
    if u is None:
        return None, probs, base, max_logit
    token = logits.new_empty(n, dtype=torch.long)
    _token[(n,)](probs, masses, u, token, width, parts, PADDED=padded, PER=per, BLOCK=BLOCK)
    return token, probs, base, max_logit


@triton.jit
def _distributions(
    logits, stride, top, first, base_sums, warped_sums, cuts, probs, base, masses, max_logit, width, parts, temperature,
    PADDED: tl.constexpr, PER: tl.constexpr, BLOCK: tl.constexpr, KEPT: tl.constexpr, BASE: tl.constexpr,
):  # fmt: skip
    row, part = tl.program_id(0), tl.program_id(1)
    logits += row.to(tl.int64) * stride
    probs += row.to(tl.int64) * width
    base += row.to(tl.int64) * width
    best, sum_base, sum_warped, limit, last_kept = whole_row(
        top, first, base_sums, warped_sums, cuts, row, parts, temperature, PADDED, KEPT
    )
    total = tl.zeros([], tl.float64)
    for start in range(0, PER, BLOCK):
        token = part * PER + start + tl.arange(0, BLOCK)
        inside = token < width
        x = tl.load(logits + token, mask=inside, other=-float("inf")).to(tl.float32)
        p = warped_probability(x, token, best, sum_warped, limit, last_kept, temperature, KEPT)
        tl.store(probs + token, p, mask=inside)
        if BASE:
            tl.store(base + token, tl.exp(x - best) / sum_base, mask=inside)
        total += tl.sum(tl.where(inside, p, 0.0).to(tl.float64), axis=0)
    tl.store(masses + row * parts + part, total)
    if part == 0:
        tl.store(max_logit + row, best + (sum_base - sum_base))


@triton.jit(do_not_specialize_on_alignment=["u"])  # u may start anywhere in an answer's table of uniforms
def _token(probs, masses, u, out, width, parts, PADDED: tl.constexpr, PER: tl.constexpr, BLOCK: tl.constexpr):
    row = tl.program_id(0)
    probs += row.to(tl.int64) * width
    part, carry, point = choose_part(masses + row * parts, parts, tl.load(u + row), PADDED)
    first = tl.full([], -1, tl.int32)
    last = tl.full([], 0, tl.int32)
    for start in range(0, PER, BLOCK):
        token = part * PER + start + tl.arange(0, BLOCK)
        mass = tl.load(probs + token, mask=token < width, other=0.0).to(tl.float64)
        first, carry = first_above(mass, token, carry, point, first)
        last = tl.maximum(last, tl.max(tl.where(mass > 0, token, 0), axis=0))
    tl.store(out + row, tl.where(first < 0, last, first).to(tl.int64))
