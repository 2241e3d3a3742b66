"""Attention of a few tokens over the used part of a cache whose length is stored on the device.

One token's attention has too few rows to fill a GPU, so the keys are split: program s of S processes blocks s, s + S,
... of the sequence and stores a partial sum, and the program that finishes last combines the S partial sums of each row
(Dao et al. 2023, "Flash-Decoding"). The number of blocks is read from device memory, so one captured graph serves
every length and reads only the used part of the cache. Splitting at fixed positions and adding the parts in a fixed
order gives a row the same sums in any block of tokens.

A block may also hold tokens of several sequences, each of which attends over its own sequence's states. A program then
takes a few consecutive tokens of one sequence, which it finds from the places and positions of the block's tokens.
"""

from __future__ import annotations

from functools import cache

import torch
import triton
import triton.language as tl
from torch import Tensor

from cascli.kernels import on_its_device
from cascli.kernels.early import launching, wait

_BLOCK, _BLOCK_OF_LARGE, _BLOCK_OF_LARGE_EXACT = 64, 32, 16
"""Keys per block; fewer where they are large (float32, heads of 256) and would not fit."""
_MOST_ROWS = 32
"""Most rows per program, a row being a query of one head; further rows get programs of their own.

Up to this number, sums are in one order for heads of 64 and more.
"""
_PROGRAMS = 128
"""Number of programs to aim for: about one per multiprocessor."""
_MOST_PARTS = 32
_PROGRAMS_OF_TEXTS = 512
"""Number of programs to aim for in a block of several sequences: these differ in length, and more programs fill the
gaps."""


_jit = triton.jit(do_not_specialize=["n"])
"""Avoids recompilation for blocks of 1 or 16 tokens."""


@cache
def _counters(device: torch.device, groups: int) -> Tensor:
    """Number of finished programs per group: 0 before and after every launch (launches are serialized)."""
    return torch.zeros(groups, dtype=torch.int32, device=device)


@_jit
def _attend(
    query, key, value, at, places, sums, maxima, totals, counters, out,
    q_head, q_row, k_place, k_head, k_row, v_place, v_head, v_row,
    n, group, width, window, scale, cap,
    PARTS: tl.constexpr, ROWS: tl.constexpr, WIDTH: tl.constexpr, BLOCK: tl.constexpr,
    WINDOW: tl.constexpr, CAP: tl.constexpr, EXACT: tl.constexpr, WHOLE: tl.constexpr,
    TEXTS: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    """Partial sums of `ROWS` rows of one key head over every `PARTS`-th block; the last program combines them."""
    wait(EARLY)
    shared, part, tile = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    keys, values = key + shared.to(tl.int64) * k_head, value + shared.to(tl.int64) * v_head
    begin, slice = 0, tile
    if TEXTS:
        slices = (group + ROWS - 1) // ROWS
        begin, slice = tile // slices, tile % slices
        place, before, n = _tokens_of_one_text(places, at, begin, n, tl.maximum(ROWS // group, 1), ROWS)
        if n == 0:
            return
        keys, values = keys + place * k_place, values + place * v_place
    else:
        before = tl.load(at).to(tl.int32)
    row = slice * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, WIDTH)
    real = row < group * n
    head, i = shared * group + row // n, row % n
    slot = (begin + i) * (group * tl.num_programs(0)) + head
    inside = tl.full([WIDTH], True, tl.int1)
    if not WHOLE:
        inside = column < width
    q = tl.load(query + head[:, None] * q_head + (begin + i)[:, None] * q_row + column[None, :],
                mask=real[:, None] & inside[None, :], other=0.0)  # fmt: skip
    position = before + i
    best = tl.full([ROWS], -float("inf"), tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    acc = tl.zeros([ROWS, WIDTH], tl.float32)
    first = 0
    if WINDOW:
        first = tl.maximum(before - window + 1, 0) // BLOCK
    last = (before + n + BLOCK - 1) // BLOCK
    # This part's first block at or after `first`.
    mine = first + (part - first % PARTS + PARTS) % PARTS
    for block in range(mine, last, PARTS):
        where = block * BLOCK + tl.arange(0, BLOCK)
        in_range = where < before + n
        k = tl.load(keys + where[:, None] * k_row + column[None, :],
                    mask=in_range[:, None] & inside[None, :], other=0.0)  # fmt: skip
        v = tl.load(values + where[:, None] * v_row + column[None, :],
                    mask=in_range[:, None] & inside[None, :], other=0.0)  # fmt: skip
        score = _scores(q, k, scale, cap, CAP, EXACT)
        seen = (where[None, :] <= position[:, None]) & real[:, None]
        if WINDOW:
            seen = seen & (where[None, :] > position[:, None] - window)
        score = tl.where(seen, score, -float("inf"))
        higher = tl.maximum(best, tl.max(score, axis=1))
        # A row that has seen no keys yet keeps its maximum of -inf; its weights are 0 anyway.
        ground = tl.where(higher == -float("inf"), 0.0, higher)
        weight = tl.exp(score - ground[:, None])
        shrink = tl.exp(best - ground)
        total = total * shrink + tl.sum(weight, axis=1)
        if EXACT:
            acc = acc * shrink[:, None] + tl.dot(weight, v.to(tl.float32), input_precision="ieee")
        else:
            acc = acc * shrink[:, None] + tl.dot(weight.to(v.dtype), v)
        best = higher
    at_row = slot * PARTS + part
    tl.store(maxima + at_row, best, mask=real)
    tl.store(totals + at_row, total, mask=real)
    # Most parts of a short sequence have processed no keys; a maximum of -inf marks them, and no sums are stored.
    saw = real & (best > -float("inf"))
    tl.store(sums + at_row[:, None] * width + column[None, :], acc, mask=saw[:, None] & inside[None, :])
    tl.debug_barrier()  # all threads' stores must complete before one thread increments the counter
    counter = counters + shared * tl.num_programs(2) + tile
    if tl.atomic_add(counter, 1, sem="acq_rel") == PARTS - 1:
        tl.store(counter, 0)
        used = tl.minimum(last, PARTS)
        _add_up(sums, maxima, totals, out + slot * width, slot * PARTS, used, real, column, inside, width,
                PARTS, ROWS, WIDTH)  # fmt: skip


@triton.jit
def _scores(q, k, scale, cap, CAP: tl.constexpr, EXACT: tl.constexpr):
    """Scores of queries with keys, scaled and, with `CAP`, capped."""
    if EXACT:
        score = tl.dot(q, tl.trans(k), input_precision="ieee") * scale
    else:
        score = tl.dot(q, tl.trans(k)) * scale
    if CAP:
        score = cap * (1 - 2 / (tl.exp(2 * score / cap) + 1))
    return score


@triton.jit
def _tokens_of_one_text(places, at, first, n, most, ROWS: tl.constexpr):
    """Place and position of token `first` of a block, and the number of tokens that the program starting with it takes.

    At most `most` tokens, ending before the next position that is a multiple of it, so that a token is grouped with the
    same neighbours in any block; 0 if another program takes the token.
    """
    place, before = tl.load(places + first), tl.load(at + first).to(tl.int32)
    j = tl.arange(0, ROWS)
    in_range = (j < most) & (first + j < n)
    same = (tl.load(places + first + j, mask=in_range, other=-1) == place) & in_range
    same = same & (tl.load(at + first + j, mask=in_range, other=-1).to(tl.int32) == before + j)
    count = tl.minimum(tl.sum(same.to(tl.int32), axis=0), most - before % most)
    last = tl.maximum(first - 1, 0)
    follows = (tl.load(places + last) == place) & (tl.load(at + last).to(tl.int32) == before - 1)
    return place, before, tl.where(follows & (before % most != 0), 0, count)


@triton.jit
def _add_up(
    sums, maxima, totals, out, start, used, real, column, inside, width,
    PARTS: tl.constexpr, ROWS: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """Combine the first `used` partial sums of each row, which are stored starting at `start`."""
    bests = tl.load(maxima + start[:, None] + tl.arange(0, PARTS)[None, :], mask=real[:, None], other=0.0)
    top = tl.max(bests, axis=1)
    total = tl.zeros([ROWS], tl.float32)
    mean = tl.zeros([ROWS, WIDTH], tl.float32)
    for part in range(used):
        best = tl.load(maxima + start + part, mask=real, other=0.0)
        weight = tl.exp(best - top)
        total += weight * tl.load(totals + start + part, mask=real, other=1.0)
        stored = (best > -float("inf"))[:, None] & inside[None, :] & real[:, None]
        row = tl.load(sums + (start + part)[:, None] * width + column[None, :], mask=stored, other=0.0)
        mean += weight[:, None] * row
    mean = (mean / total[:, None]).to(out.dtype.element_ty)
    tl.store(out[:, None] + column[None, :], mean, mask=real[:, None] & inside[None, :])


def shape_of(width: int, *, exact: bool) -> tuple[int, int, int]:
    """Keys per block, warps and stages, for heads of a padded width, in float32 if `exact`.

    The sizes fit into the registers and 99 KB of shared memory (`tests/kernels/compile_for_gpu.py`). Three stages mean
    two buffers: the next block's states are fetched while the current one is processed.
    """
    if not exact:
        return (_BLOCK_OF_LARGE if width >= 256 else _BLOCK), 4, 3
    return (_BLOCK_OF_LARGE_EXACT, 8, 2) if width >= 128 else (_BLOCK_OF_LARGE, 4, 2)


def grid_of(rows: int, shared: int) -> tuple[int, int, int]:
    """Rows per program, programs for all rows of one shared head, and parts that the keys are split into."""
    each = min(max(16, triton.next_power_of_2(rows)), _MOST_ROWS)
    parts = max(1, min(_MOST_PARTS, _PROGRAMS // shared))
    return each, triton.cdiv(rows, each), 1 << (parts.bit_length() - 1)


def grid_of_texts(n: int, group: int, shared: int, texts: int) -> tuple[int, int, int]:
    """The grid for a block of n tokens of at most `texts` sequences; a program may start at any of the tokens."""
    each = min(max(16, triton.next_power_of_2(n * group)), _MOST_ROWS)
    parts = max(1, min(_MOST_PARTS, _PROGRAMS_OF_TEXTS // (shared * texts)))
    return each, n * triton.cdiv(group, each), 1 << (parts.bit_length() - 1)


@on_its_device
def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    at: Tensor,
    *,
    places: Tensor | None = None,
    scale: float,
    window: int = 0,
    cap: float = 0.0,
) -> Tensor:
    """Causal attention of n tokens that follow `at` others in one sequence, or of n tokens of several sequences.

    The n tokens' own states must already be in the cache.

    Args:
        query: `[1, heads, n, width]`.
        key: `[places, shared heads, capacity, width]`, with a single place if `places` is None and otherwise at least
            one per sequence; the last dimension must have stride 1, the others may have any.
        value: of the same shape.
        at: number of preceding tokens, an integer on the device (0-dim); for several sequences one per token, `[n]`.
        places: index into the first dimension of `key` for each token, `[n]`; tokens of one sequence must be
            contiguous and in order. None for one sequence.
        scale: factor of the scores.
        window: number of positions that a token sees, including its own; 0 for all.
        cap: squeezes scores into (-cap, cap) by a tanh, as in Gemma 2; 0 for none.

    Returns:
        `[1, n, heads, width]`.

    Raises:
        ValueError: values and queries differ in width, or the last dimension of keys or values is not packed.
    """
    _, heads, n, width = query.shape
    if value.shape[-1] != width:
        raise ValueError(f"values have {value.shape[-1]} numbers per head, queries {width}")
    shared = key.shape[1]
    group = heads // shared
    if key.stride(-1) != 1 or value.stride(-1) != 1:
        raise ValueError(f"the cache's last dimension must be packed (got strides {key.stride()}, {value.stride()})")
    query = query if query.stride(-1) == 1 else query.contiguous()
    rows, tiles, parts = grid_of(group * n, shared) if places is None else grid_of_texts(n, group, shared, key.shape[0])
    padded = max(16, triton.next_power_of_2(width))
    sums = query.new_empty((heads * n, parts, width), dtype=torch.float32)
    maxima, totals = (query.new_empty((heads * n, parts), dtype=torch.float32) for _ in range(2))
    out = query.new_empty((1, n, heads, width))
    exact = query.dtype == torch.float32
    block, warps, stages = shape_of(padded, exact=exact)
    _attend[(shared, parts, tiles)](
        query, key, value, at, at if places is None else places,
        sums, maxima, totals, _counters(query.device, shared * tiles), out,
        query.stride(1), query.stride(2), *key.stride()[:3], *value.stride()[:3],
        n, group, width, window, scale, cap,
        PARTS=parts, ROWS=rows, WIDTH=padded, BLOCK=block,
        WINDOW=window > 0, CAP=cap > 0, EXACT=exact, WHOLE=padded == width, TEXTS=places is not None,
        num_warps=warps, num_stages=stages, **launching(query.device),
    )  # fmt: skip
    return out
