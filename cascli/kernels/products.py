"""Products of a few rows with a large matrix, reading every weight once; bias and gated activation are fused.

The cost of such a product is reading the weights. A program computes some columns of the result for 16 rows (padded
with zeros) and traverses the weights in a fixed order, so a row has the same bits in any block of rows.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from cascli.kernels import ACTIVATIONS, on_its_device
from cascli.kernels.early import launching, wait

ROWS = 16
"""Rows per program, the fewest that tensor cores take; more rows take more programs, adjacent to share the cache."""
_ENOUGH_PROGRAMS = 264
"""Two per multiprocessor of an H100."""


class Tile(NamedTuple):
    """Size of the part of the weights that a program reads at a time, and how it reads it."""

    columns: int
    """Results per row that a program computes; of a gated product, it reads twice as many rows of weights."""
    depth: int
    warps: int
    stages: int
    """One more than the number of parts in flight."""


@triton.jit
def _sigmoid(x):
    return 1 / (1 + tl.exp(-x))


@triton.jit(do_not_specialize=["m"])
def _product(
    x, weight, bias, out, m, n, k,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr,
    BIAS: tl.constexpr, GATE: tl.constexpr, WHOLE: tl.constexpr, EXACT: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    """Some columns of x weight^T + bias; if gated, activation(first n rows of weights) times the other n rows."""
    wait(EARLY)
    start = tl.program_id(1) * COLUMNS
    row, column, along = tl.program_id(0) * ROWS + tl.arange(0, ROWS), tl.arange(0, COLUMNS), tl.arange(0, DEPTH)
    valid_row, valid_column = row < m, start + column < n
    tile = column[:, None] * k + along[None, :]
    mine, other = weight + start.to(tl.int64) * k + tile, weight + (n + start).to(tl.int64) * k + tile
    given = x + row[:, None] * k + along[None, :]
    acc = tl.zeros([COLUMNS, ROWS], tl.float32)
    up = tl.zeros([COLUMNS, ROWS], tl.float32)
    precision: tl.constexpr = "ieee" if EXACT else "tf32"
    for at in range(0, k, DEPTH):
        inside = valid_column[:, None]
        known = valid_row[:, None]
        if not WHOLE:
            inside = inside & (at + along < k)[None, :]
            known = known & (at + along < k)[None, :]
        block = tl.trans(tl.load(given + at, mask=known, other=0.0))
        weights = tl.load(mine + at, mask=inside, other=0.0, eviction_policy="evict_first")
        acc = tl.dot(weights, block, acc, input_precision=precision)
        if GATE > 0:
            weights = tl.load(other + at, mask=inside, other=0.0, eviction_policy="evict_first")
            up = tl.dot(weights, block, up, input_precision=precision)
    if BIAS:
        acc += tl.load(bias + start + column, mask=valid_column, other=0.0).to(tl.float32)[:, None]
        if GATE > 0:
            up += tl.load(bias + n + start + column, mask=valid_column, other=0.0).to(tl.float32)[:, None]
    if GATE == 1:
        acc = acc * _sigmoid(acc) * up
    elif GATE == 2:  # 0.5 (1 + tanh(x / 2)) is the sigmoid of x
        acc = acc * _sigmoid(1.5957691216057308 * (acc + 0.044715 * acc * acc * acc)) * up
    tl.store(
        out + row[None, :] * n + start + column[:, None],
        acc.to(out.dtype.element_ty),
        mask=valid_column[:, None] & valid_row[None, :],
    )


def tile_for(n: int, *, exact: bool, gated: bool) -> Tile:
    """The tile for n columns in total; `exact` for float32.

    A stage holds 8 or 16 KB of weights, and all stages but one are in flight: 32 KB per program, within 99 KB of
    shared memory. Sizes depend only on the matrix, never on the rows.
    """
    if exact:
        return Tile(16, 64, 4, 3)
    most = next((each for each in (64, 32) if n >= each * _ENOUGH_PROGRAMS), 16)
    columns = max(16, most // 2) if gated else most
    depth = {16: 256, 32: 128, 64: 128}[columns]
    return Tile(columns, depth, 4, 3 if gated else 4 if columns == 64 else 5)


@on_its_device
def product(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, *, activation: str | None = None, tile: Tile | None = None
) -> Tensor:
    """Apply a linear layer or, with an activation, a gated one whose two matrices are merged.

    Args:
        x: `[m, k]`, packed.
        weight: `[n, k]`, packed; with an activation `[2 n, k]`, whose first half is the gate.
        bias: one number per row of `weight`, or None.
        activation: applied to the gate's half before it is multiplied by the other half
            (Shazeer 2020, "GLU variants"); one of `cascli.kernels.ACTIVATIONS`.
        tile: powers of 2, at least 16 columns and a depth of 16; None for that of `tile_for`.

    Returns:
        `[m, n]`; a row has the same bits for every m.
    """
    m, k = x.shape
    n = weight.shape[0] // (1 if activation is None else 2)
    out = x.new_empty((m, n))
    exact = x.dtype == torch.float32
    columns, depth, warps, stages = tile or tile_for(n, exact=exact, gated=activation is not None)
    _product[(triton.cdiv(m, ROWS), triton.cdiv(n, columns))](
        x, weight, weight if bias is None else bias, out, m, n, k,
        ROWS=ROWS, COLUMNS=columns, DEPTH=depth, BIAS=bias is not None,
        GATE=0 if activation is None else ACTIVATIONS[activation], WHOLE=k % depth == 0, EXACT=exact,
        num_warps=warps, num_stages=stages, **launching(x.device),
    )  # fmt: skip
    return out
