"""Verification of a round without materializing its distributions: p and pi are computed only where they are summed.

Every pass reads the target's logits and the draft's distributions, one part of a row per program, and leaves a few
sums per part. Five kernels (four for pi = p) replace the fifty that `cascli.rules` and `cascli.sampling.rejection`
take for the same computation in torch's own operations; results agree within float32 rounding. Block verification
runs one of the kernels a second time.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from cascli.kernels import on_its_device
from cascli.kernels.layout import NEGLIGIBLE, Field
from cascli.kernels.rows import (
    BLOCK,
    check_rows,
    choose_part,
    cut,
    first_above,
    warped_probability,
    whole_row,
)
from cascli.kernels.truncation import truncated_sums

EXACT, WHOLE, TOKENS, HEAD = 0, 1, 2, 3
"""Kinds of rules: pi = p; pi is q or p as a whole; per token; per token, with the exact test for tokens not kept."""


class FusedRule(NamedTuple):
    """A rule that keeps the draft where a probability reaches a threshold."""

    kind: int
    of_draft: bool = True
    """Whether the draft's probability is compared with the threshold, rather than the target's."""
    constant: float = 0.0
    of_best_p1: float = 0.0
    of_disagreement: float = 0.0
    forced: float = -1.0
    """If not negative, a fixed acceptance probability that ignores the models."""


@on_its_device
def verify(
    logits: Tensor,
    tokens: Tensor,
    q: Tensor,
    q1: Tensor,
    u_accept: Tensor,
    u_next: Tensor,
    *,
    temperature: float,
    rule: FusedRule,
    top_k: int = 0,
    top_p: float = 1.0,
    by_block: bool = False,
) -> Tensor:
    """Verify a block of n drafted tokens.

    Args:
        logits: `[n + 1, V]` of the target, in any floating type; the last dimension contiguous.
        tokens: `[n]` (int64).
        q: `[n or n + 1, V]` (float32), the distributions that the tokens were drawn from, and the one after the last
            token if `rule` reads it.
        q1: `q` at temperature 1.
        u_accept: `[n]` uniforms (float64).
        u_next: `[n + 1]` uniforms (float64).
        temperature: 0 is one-hot.
        top_k: number of tokens that p keeps (ties with the last one are kept too); 0 for all.
        top_p: share of their mass that p keeps, likeliest tokens first; 1 for all.
        rule: where the draft is kept.
        by_block: test prefixes of the block instead of tokens; not for a `forced` rule.

    Returns:
        `[len(Field), n + 1]` (float64): see `cascli.kernels.layout`.
    """
    check_rows(q, q1)
    # The kernels assume stride 1; a column of a table of several streams, for example, is not packed.
    tokens, u_accept, u_next = tokens.contiguous(), u_accept.contiguous(), u_next.contiguous()
    rows, width = logits.shape
    n, known = rows - 1, q.shape[0]
    whole = cut(width)
    sums, kept = truncated_sums(logits, temperature, top_k, top_p)
    if not known:
        q = q1 = logits.new_empty((1, width), dtype=torch.float32)  # never read
    space = logits.new_empty((_PLANES, rows, whole.parts), dtype=torch.float64)
    given = (
        logits, logits.stride(0), *sums, q, q1, q.stride(0), space, n, known, width, whole.parts, temperature or 1.0,
        rule.constant, rule.of_best_p1, rule.of_disagreement,
    )  # fmt: skip
    how = {
        "PADDED": whole.padded, "PER": whole.per, "BLOCK": BLOCK, "KEPT": kept,
        "KIND": rule.kind, "OF_DRAFT": rule.of_draft, "TV": rule.of_disagreement != 0,
    }  # fmt: skip
    grid = (rows, whole.parts)
    if rule.kind == WHOLE:
        _confidence[grid](*given, **how)
    elif rule.kind in (TOKENS, HEAD):
        _mass_not_kept[grid](*given, **how)
    out = logits.new_zeros((len(Field), rows), dtype=torch.float64)
    _excess[grid](*given, out, **how, BY_BLOCK=False)
    _tests[(rows,)](*given, tokens, u_accept, out, rule.forced, **how, FORCED=rule.forced >= 0)
    if by_block:  # the excess of pi over q depends on the tests of the previous rows
        _excess[grid](*given, out, **how, BY_BLOCK=True)
    _draw[(1,)](*given, u_accept, u_next, out, **how, ROWS=max(2, triton.next_power_of_2(rows)), BY_BLOCK=by_block)
    return out


_jit = triton.jit(do_not_specialize=["n", "known"], do_not_specialize_on_alignment=["tokens", "u_accept", "u_next"])
"""Avoids recompilation for blocks of 1 or 16 tokens, and for uniforms from the middle of an answer's table.

Such blocks occur at the end of an answer, where no graph is replayed; compiling would cost a second of the run.
"""
(
    _ID, _Q, _P, _PI, _ACCEPT_PROB, _DEFERRED, _TV, _DEFERRAL, _NUM_ACCEPTED, _NEXT_ID, _NEXT_P, _NEXT_Q,
    _TV_TO_DRAFT, _DISAGREEMENT, _KL, _OVERSHOOT, _REGRET, _EXACT, _NEXT_REGRET,
) = (tl.constexpr(int(field)) for field in Field)  # fmt: skip
_PLANES = 8
"""Numbers per part: confidence or mass not kept (for `HEAD`: rejected), TV(p, q), then the sums of max(0, pi - q),
max(0, pi - p) and pi, then TV(p, q), KL(pi || p), and the largest pi / p."""
_NEGLIGIBLE = tl.constexpr(NEGLIGIBLE)


@triton.jit
def _facts(
    space, rows, parts, row, known, sum_base, constant, of_best_p1, of_disagreement,
    PADDED: tl.constexpr, KIND: tl.constexpr, TV: tl.constexpr,
):  # fmt: skip
    """A row's threshold, and the weight of p in pi: the draft's mass that is not kept.

    For `HEAD`, the second number is the factor that scales the residual of p instead.
    """
    least = constant + of_best_p1 / sum_base
    if KIND == 0:
        return least, tl.full([], 1.0, tl.float32)
    part = tl.arange(0, PADDED)
    in_range = part < parts
    place = space + row * parts + part
    if KIND == 1:
        best = tl.max(tl.load(place, mask=in_range, other=0.0), axis=0).to(tl.float32)
        if TV:
            disagreement = tl.sum(tl.load(place + rows * parts, mask=in_range, other=0.0), axis=0)
            least += of_disagreement * disagreement.to(tl.float32)
        deferred = (best < least).to(tl.float32)
    elif KIND == 2:
        deferred = tl.sum(tl.load(place, mask=in_range, other=0.0), axis=0).to(tl.float32)
    else:
        rejected = tl.sum(tl.load(place, mask=in_range, other=0.0), axis=0)
        residual = tl.sum(tl.load(place + rows * parts, mask=in_range, other=0.0), axis=0)
        deferred = (rejected / tl.where(residual > 0, residual, 1.0)).to(tl.float32)
    return least, tl.where(row < known, deferred, 1.0)  # where nothing was proposed, pi is p


@triton.jit
def _kept(x, q1, best, sum_base, least, OF_DRAFT: tl.constexpr):
    """Which tokens a per-token rule keeps."""
    if OF_DRAFT:
        return q1 >= least
    return tl.exp(x - best) / sum_base >= least


@triton.jit
def _probabilities(
    x, token, q, q1, best, sum_base, sum_warped, limit, last_kept, temperature, least, deferred, has,
    KEPT: tl.constexpr, KIND: tl.constexpr, OF_DRAFT: tl.constexpr,
):  # fmt: skip
    """The probabilities p and pi of tokens."""
    p = warped_probability(x, token, best, sum_warped, limit, last_kept, temperature, KEPT)
    if KIND == 0:
        return p, p
    if KIND == 1:
        return p, tl.where(deferred == 0, q, p)
    keep = _kept(x, q1, best, sum_base, least, OF_DRAFT) & has
    if KIND == 2:
        return p, tl.where(keep, q, 0.0) + p * deferred
    return p, tl.where(keep, q, tl.minimum(q, p)) + tl.maximum(p - q, 0.0) * deferred


@_jit
def _confidence(
    logits, stride, top, first, base_sums, warped_sums, cuts, q, q1, q_stride, space, n, known, width, parts,
    temperature, constant, of_best_p1, of_disagreement,
    PADDED: tl.constexpr, PER: tl.constexpr, BLOCK: tl.constexpr, KEPT: tl.constexpr,
    KIND: tl.constexpr, OF_DRAFT: tl.constexpr, TV: tl.constexpr,
):  # fmt: skip
    """Max q1 and, with `TV`, TV(p, q)."""
    row, part = tl.program_id(0), tl.program_id(1)
    best, _, sum_warped, limit, last_kept = whole_row(
        top, first, base_sums, warped_sums, cuts, row, parts, temperature, PADDED, KEPT
    )
    highest = tl.zeros([], tl.float32)
    distance = tl.zeros([], tl.float64)
    for start in range(0, PER, BLOCK):
        token = part * PER + start + tl.arange(0, BLOCK)
        inside = token < tl.where(row < known, width, 0)
        highest = tl.maximum(highest, tl.max(tl.load(q1 + row * q_stride + token, mask=inside, other=0.0), axis=0))
        if TV:
            x = tl.load(logits + row * stride + token, mask=inside, other=-float("inf")).to(tl.float32)
            p = warped_probability(x, token, best, sum_warped, limit, last_kept, temperature, KEPT)
            more = tl.where(inside, p - tl.load(q + row * q_stride + token, mask=inside, other=0.0), 0.0)
            distance += tl.sum(tl.maximum(more, 0.0).to(tl.float64), axis=0)
    place = space + row * parts + part
    tl.store(place, highest.to(tl.float64))
    tl.store(place + tl.num_programs(0) * parts, distance)


@_jit
def _mass_not_kept(
    logits, stride, top, first, base_sums, warped_sums, cuts, q, q1, q_stride, space, n, known, width, parts,
    temperature, constant, of_best_p1, of_disagreement,
    PADDED: tl.constexpr, PER: tl.constexpr, BLOCK: tl.constexpr, KEPT: tl.constexpr,
    KIND: tl.constexpr, OF_DRAFT: tl.constexpr, TV: tl.constexpr,
):  # fmt: skip
    """The draft's mass on tokens that are not kept; for `HEAD`, the rejected part of it, and TV(p, q)."""
    row, part = tl.program_id(0), tl.program_id(1)
    best, sum_base, sum_warped, limit, last_kept = whole_row(
        top, first, base_sums, warped_sums, cuts, row, parts, temperature, PADDED, KEPT
    )
    least = constant + of_best_p1 / sum_base
    mass = tl.zeros([], tl.float64)
    distance = tl.zeros([], tl.float64)
    for start in range(0, PER, BLOCK):
        token = part * PER + start + tl.arange(0, BLOCK)
        inside = token < tl.where(row < known, width, 0)
        x = tl.load(logits + row * stride + token, mask=inside, other=-float("inf")).to(tl.float32)
        mine = tl.load(q + row * q_stride + token, mask=inside, other=0.0)
        keep = _kept(x, tl.load(q1 + row * q_stride + token, mask=inside, other=0.0), best, sum_base, least, OF_DRAFT)
        if KIND == 3:
            p = warped_probability(x, token, best, sum_warped, limit, last_kept, temperature, KEPT)
            more = tl.where(inside, p - mine, 0.0)
            distance += tl.sum(tl.maximum(more, 0.0).to(tl.float64), axis=0)
            mine = tl.maximum(-more, 0.0)
        mass += tl.sum(tl.where(keep, 0.0, mine).to(tl.float64), axis=0)
    place = space + row * parts + part
    tl.store(place, mass)
    if KIND == 3:
        tl.store(place + tl.num_programs(0) * parts, distance)


@triton.jit
def _weight(out, rows, length):
    """The weight p_i of the prefix of `length` drafted tokens: min(1, p_{i-1} pi(x_i) / q(x_i))."""
    weight = tl.full([], 1.0, tl.float64)
    for i in range(length):
        pi, q = tl.load(out + _PI * rows + i), tl.load(out + _Q * rows + i)
        weight = tl.minimum(weight * (pi / q), 1.0)
    return weight


@_jit
def _excess(
    logits, stride, top, first, base_sums, warped_sums, cuts, q, q1, q_stride, space, n, known, width, parts,
    temperature, constant, of_best_p1, of_disagreement, out,
    PADDED: tl.constexpr, PER: tl.constexpr, BLOCK: tl.constexpr, KEPT: tl.constexpr,
    KIND: tl.constexpr, OF_DRAFT: tl.constexpr, TV: tl.constexpr, BY_BLOCK: tl.constexpr,
):  # fmt: skip
    """The excess of pi over q, the divergences between the distributions, and the mass of pi.

    With `BY_BLOCK` only the excess, with pi scaled by the weight of the prefix before it.
    """
    row, part = tl.program_id(0), tl.program_id(1)
    plane = tl.num_programs(0) * parts
    best, sum_base, sum_warped, limit, last_kept = whole_row(
        top, first, base_sums, warped_sums, cuts, row, parts, temperature, PADDED, KEPT
    )
    least, deferred = _facts(
        space, tl.num_programs(0), parts, row, known, sum_base, constant, of_best_p1, of_disagreement, PADDED, KIND, TV
    )  # fmt: skip
    excess = tl.zeros([], tl.float64)
    distance = tl.zeros([], tl.float64)
    mass = tl.zeros([], tl.float64)
    disagreement = tl.zeros([], tl.float64)
    divergence = tl.zeros([], tl.float64)
    overshoot = tl.zeros([], tl.float32)
    if BY_BLOCK:
        weight = _weight(out, tl.num_programs(0), row).to(tl.float32)
    for start in range(0, PER, BLOCK):
        token = part * PER + start + tl.arange(0, BLOCK)
        inside = token < width
        has = token < tl.where(row < known, width, 0)
        x = tl.load(logits + row * stride + token, mask=inside, other=-float("inf")).to(tl.float32)
        mine = tl.load(q + row * q_stride + token, mask=has, other=0.0)
        base = tl.load(q1 + row * q_stride + token, mask=has, other=0.0)
        p, pi = _probabilities(
            x, token, mine, base, best, sum_base, sum_warped, limit, last_kept, temperature, least, deferred, has,
            KEPT, KIND, OF_DRAFT,
        )  # fmt: skip
        pi = tl.where(inside, pi, 0.0)
        scaled = pi * weight if BY_BLOCK else pi
        excess += tl.sum(tl.maximum(scaled - mine, 0.0).to(tl.float64), axis=0)
        if KIND != 0 and not BY_BLOCK:
            p = tl.where(inside, p, 0.0)
            distance += tl.sum(tl.maximum(pi - p, 0.0).to(tl.float64), axis=0)
            disagreement += tl.sum(tl.maximum(p - mine, 0.0).to(tl.float64), axis=0)
            counts = pi > _NEGLIGIBLE
            ratio = tl.where(counts, tl.where(p > 0, pi / tl.where(p > 0, p, 1.0), float("inf")), 1.0)
            divergence += tl.sum((tl.where(counts, pi, 0.0) * tl.log(ratio)).to(tl.float64), axis=0)
            overshoot = tl.maximum(overshoot, tl.max(tl.where(counts, ratio, 0.0), axis=0))
        mass += tl.sum(pi.to(tl.float64), axis=0)
    place = space + row * parts + part
    tl.store(place + 2 * plane, excess)
    if not BY_BLOCK:  # the first pass has stored these already
        tl.store(place + 3 * plane, distance)
        tl.store(place + 4 * plane, mass)
        tl.store(place + 5 * plane, disagreement)
        tl.store(place + 6 * plane, divergence)
        tl.store(place + 7 * plane, overshoot.to(tl.float64))


@_jit
def _tests(
    logits, stride, top, first, base_sums, warped_sums, cuts, q, q1, q_stride, space, n, known, width, parts,
    temperature, constant, of_best_p1, of_disagreement, tokens, u_accept, out, forced,
    PADDED: tl.constexpr, PER: tl.constexpr, BLOCK: tl.constexpr, KEPT: tl.constexpr,
    KIND: tl.constexpr, OF_DRAFT: tl.constexpr, TV: tl.constexpr, FORCED: tl.constexpr,
):  # fmt: skip
    """Fill in the fields of each row: those of its position and, if it has one, of its drafted token."""
    row, rows = tl.program_id(0), tl.num_programs(0)
    best, sum_base, sum_warped, limit, last_kept = whole_row(
        top, first, base_sums, warped_sums, cuts, row, parts, temperature, PADDED, KEPT
    )
    least, deferred = _facts(
        space, rows, parts, row, known, sum_base, constant, of_best_p1, of_disagreement, PADDED, KIND, TV
    )  # fmt: skip
    part = tl.arange(0, PADDED)
    place, plane = space + row * parts + part, rows * parts
    in_range = part < parts
    tl.store(out + _TV * rows + row, tl.sum(tl.load(place + 3 * plane, mask=in_range, other=0.0), axis=0))
    unknown = tl.where(row < known, 0.0, float("nan")).to(tl.float64)
    to_draft = tl.sum(tl.load(place + 2 * plane, mask=in_range, other=0.0), axis=0) + unknown
    tl.store(out + _TV_TO_DRAFT * rows + row, to_draft)
    if KIND == 0:  # pi is p
        tl.store(out + _DISAGREEMENT * rows + row, to_draft)
        tl.store(out + _KL * rows + row, tl.full([], 0.0, tl.float64))
        tl.store(out + _OVERSHOOT * rows + row, tl.full([], 1.0, tl.float64))
    else:
        disagreement = tl.sum(tl.load(place + 5 * plane, mask=in_range, other=0.0), axis=0) + unknown
        tl.store(out + _DISAGREEMENT * rows + row, disagreement)
        divergence = tl.sum(tl.load(place + 6 * plane, mask=in_range, other=0.0), axis=0)
        tl.store(out + _KL * rows + row, tl.maximum(divergence, 0.0))
        overshoot = tl.max(tl.load(place + 7 * plane, mask=in_range, other=0.0), axis=0)
        tl.store(out + _OVERSHOOT * rows + row, overshoot)
    turned_over = deferred
    if KIND == 3:  # such a rule does not choose between the models
        turned_over = tl.full([], 1.0, tl.float32)
    tl.store(out + _DEFERRAL * rows + row, turned_over.to(tl.float64))
    if row < n:
        token = tl.load(tokens + row)
        x = tl.load(logits + row * stride + token).to(tl.float32)
        mine, base = tl.load(q + row * q_stride + token), tl.load(q1 + row * q_stride + token)
        p, pi = _probabilities(
            x, token.to(tl.int32), mine, base, best, sum_base, sum_warped, limit, last_kept, temperature, least,
            deferred, True, KEPT, KIND, OF_DRAFT,
        )  # fmt: skip
        prob = tl.where(pi >= mine, 1.0, pi / mine)  # a GPU's x / x may be less than 1
        if FORCED:
            prob = forced
        if KIND == 2:
            turned_over = tl.where(_kept(x, base, best, sum_base, least, OF_DRAFT), 0.0, 1.0)
        exact = tl.load(u_accept + row) < (p / mine).to(tl.float64)
        tl.store(out + _EXACT * rows + row, exact.to(tl.float64))
        tl.store(out + _REGRET * rows + row, (best - x).to(tl.float64))
        tl.store(out + _ID * rows + row, token.to(tl.float64))
        tl.store(out + _Q * rows + row, mine.to(tl.float64))
        tl.store(out + _P * rows + row, p.to(tl.float64))
        tl.store(out + _PI * rows + row, pi.to(tl.float64))
        tl.store(out + _ACCEPT_PROB * rows + row, prob.to(tl.float64))
        tl.store(out + _DEFERRED * rows + row, turned_over.to(tl.float64))


@triton.jit
def _longest_prefix(space, parts, n, u_accept, out, PADDED: tl.constexpr):
    """Length of the longest prefix of drafted tokens that passes its test; stores every prefix's test probability."""
    rows = n + 1
    part = tl.arange(0, PADDED)
    weight = tl.full([], 1.0, tl.float64)
    kept = tl.full([], 0, tl.int32)
    for i in range(1, rows):
        pi, q = tl.load(out + _PI * rows + i - 1), tl.load(out + _Q * rows + i - 1)
        weight = tl.minimum(weight * (pi / q), 1.0)
        after = tl.load(space + (2 * rows + i) * parts + part, mask=part < parts, other=0.0)
        excess = tl.sum(after, axis=0)
        lacking = excess + (1.0 - weight)
        shorter = tl.where(lacking > 0, excess / tl.where(lacking > 0, lacking, 1.0), 1.0)
        prob = tl.where(i == n, weight, shorter)
        tl.store(out + _ACCEPT_PROB * rows + i - 1, prob)
        kept = tl.where(tl.load(u_accept + i - 1) < prob, i, kept)
    return kept


@_jit
def _draw(
    logits, stride, top, first, base_sums, warped_sums, cuts, q, q1, q_stride, space, n, known, width, parts,
    temperature, constant, of_best_p1, of_disagreement, u_accept, u_next, out,
    PADDED: tl.constexpr, PER: tl.constexpr, BLOCK: tl.constexpr, KEPT: tl.constexpr,
    KIND: tl.constexpr, OF_DRAFT: tl.constexpr, TV: tl.constexpr, ROWS: tl.constexpr, BY_BLOCK: tl.constexpr,
):  # fmt: skip
    """Count the leading run of passed tests, and draw the token after it: from the residual if rejected, else from pi.

    With `BY_BLOCK`, the longest prefix that passes its test replaces the run; those tests are computed here.
    """
    if BY_BLOCK:
        kept = _longest_prefix(space, parts, n, u_accept, out, PADDED)
        weight = _weight(out, n + 1, kept).to(tl.float32)
    else:
        i = tl.arange(0, ROWS)
        prob = tl.load(out + _ACCEPT_PROB * (n + 1) + i, mask=i < n, other=2.0)
        u = tl.load(u_accept + i, mask=i < n, other=0.0)
        kept = tl.min(tl.where((u < prob) | (i >= n), n, i), axis=0)
    best, sum_base, sum_warped, limit, last_kept = whole_row(
        top, first, base_sums, warped_sums, cuts, kept, parts, temperature, PADDED, KEPT
    )
    rows = n + 1
    least, deferred = _facts(
        space, rows, parts, kept, known, sum_base, constant, of_best_p1, of_disagreement, PADDED, KIND, TV
    )  # fmt: skip
    part = tl.arange(0, PADDED)
    residual = tl.load(space + (2 * rows + kept) * parts + part, mask=part < parts, other=0.0)
    after_rejection = (kept < n) & (tl.sum(residual, axis=0) > 0)
    masses = space + (tl.where(after_rejection, 2, 4) * rows + kept) * parts
    chosen, carry, point = choose_part(masses, parts, tl.load(u_next + kept), PADDED)
    first = tl.full([], -1, tl.int32)
    last = tl.full([], 0, tl.int32)
    for start in range(0, PER, BLOCK):
        token = chosen * PER + start + tl.arange(0, BLOCK)
        inside = token < width
        has = token < tl.where(kept < known, width, 0)
        x = tl.load(logits + kept * stride + token, mask=inside, other=-float("inf")).to(tl.float32)
        mine = tl.load(q + kept * q_stride + token, mask=has, other=0.0)
        base = tl.load(q1 + kept * q_stride + token, mask=has, other=0.0)
        p, pi = _probabilities(
            x, token, mine, base, best, sum_base, sum_warped, limit, last_kept, temperature, least, deferred, has,
            KEPT, KIND, OF_DRAFT,
        )  # fmt: skip
        scaled = pi * weight if BY_BLOCK else pi
        weights = tl.where(inside, tl.where(after_rejection, tl.maximum(scaled - mine, 0.0), pi), 0.0).to(tl.float64)
        first, carry = first_above(weights, token, carry, point, first)
        last = tl.maximum(last, tl.max(tl.where(weights > 0, token, 0), axis=0))
    chosen_token = tl.where(first < 0, last, first)
    x = tl.load(logits + kept * stride + chosen_token).to(tl.float32)
    p = warped_probability(x, chosen_token, best, sum_warped, limit, last_kept, temperature, KEPT)
    nearest = tl.maximum(tl.minimum(kept, known - 1), 0)
    mine = tl.load(q + nearest * q_stride + chosen_token, mask=known > 0, other=0.0)
    tl.store(out + _NEXT_REGRET * rows, (best - x).to(tl.float64))
    tl.store(out + _NUM_ACCEPTED * rows, kept.to(tl.float64))
    tl.store(out + _NEXT_ID * rows, chosen_token.to(tl.float64))
    tl.store(out + _NEXT_P * rows, p.to(tl.float64))
    tl.store(out + _NEXT_Q * rows, tl.where(known > 0, mine, p).to(tl.float64))
