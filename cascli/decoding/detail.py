"""Both models' view of every position in a trace: requested with `top`, and computed alongside the round.

It is computed from the distributions that a round has used, after its decision, so it changes no token. It reaches the
host in the round's own transfer, as one matrix whose unknown numbers are NaN. On a CPU its time is excluded from the
run's.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from cascli.decoding.session import Session
from cascli.sampling import distributions
from cascli.trace import Detail, Likely

_OWN = 3
"""Numbers per token and model: the token's probability, its rank, and the largest probability."""


class Views(NamedTuple):
    """The models' distributions at n positions; where one is None or has no row, it was not read."""

    q1: Tensor | None = None
    """The draft model at temperature 1, `[m, V]`."""
    p1: Tensor | None = None
    """The target at temperature 1, `[m, V]`."""
    disagreement: Tensor | None = None
    """TV(p, q) of the warped distributions, `[m]`."""


def numbers(s: Session, tokens: Tensor, rows: Tensor, views: Views) -> list[Tensor]:
    """The matrix `[n, width]` (float64) of tokens `[n]` at the positions `rows` `[n]`; empty if none is requested."""
    if not s.top:
        return []
    with s.clock.observing():
        top = min(s.top, s.vocab)
        return [
            torch.cat(
                [
                    _of_model(views.q1, tokens, rows, top),
                    _of_model(views.p1, tokens, rows, top),
                    _known(None if views.disagreement is None else views.disagreement.unsqueeze(1), rows, 1),
                ],
                dim=1,
            )
        ]


def of_one(s: Session, token: Tensor, views: Views) -> list[Tensor]:
    """The matrix of one token `[1]` at one position."""
    return numbers(s, token, torch.zeros_like(token), views)


def _of_model(probs: Tensor | None, tokens: Tensor, rows: Tensor, top: int) -> Tensor:
    """`[n, 3 + 2 top]`: each token's numbers, the ids of the likeliest tokens, and their probabilities."""
    if probs is None or not probs.shape[0]:
        return _known(None, rows, _OWN + 2 * top)
    at_rows = probs[rows.clamp_max(probs.shape[0] - 1)]
    own = distributions.at(at_rows, tokens).unsqueeze(1)
    rank = (at_rows > own).sum(dim=-1, keepdim=True) + 1
    best = at_rows.topk(top, dim=-1)
    views = torch.cat([own.double(), rank.double(), best.values[:, :1].double(), best.indices, best.values], dim=1)
    return views.masked_fill((rows >= probs.shape[0]).unsqueeze(1), math.nan)


def _known(values: Tensor | None, rows: Tensor, width: int) -> Tensor:
    """The rows of `values` `[m, width]`, NaN where there are none."""
    if values is None or not values.shape[0]:
        return rows.new_full((rows.shape[0], width), math.nan, dtype=torch.float64)
    known = values[rows.clamp_max(values.shape[0] - 1)].double()
    return known.masked_fill((rows >= values.shape[0]).unsqueeze(1), math.nan)


def details(flat: Sequence[Sequence[float]], count: int, spell: Callable[[int], str]) -> list[Detail | None]:
    """The details of `count` tokens from the fetched `numbers`; all None if none were requested."""
    if not flat:
        return [None] * count
    [values] = flat
    width = len(values) // count
    return [_detail(values[start : start + width], spell) for start in range(0, len(values), width)]


def _detail(row: Sequence[float], spell: Callable[[int], str]) -> Detail:
    half = len(row) // 2
    draft, target = row[:half], row[half : 2 * half]
    return Detail(
        q1=_number(draft[0]),
        p1=_number(target[0]),
        draft_rank=_rank(draft[1]),
        target_rank=_rank(target[1]),
        max_q1=_number(draft[2]),
        max_p1=_number(target[2]),
        disagreement=_number(row[-1]),
        draft_top=_likeliest(draft[_OWN:], spell),
        target_top=_likeliest(target[_OWN:], spell),
    )


def _number(value: float) -> float | None:
    return None if math.isnan(value) else value


def _rank(value: float) -> int | None:
    return None if math.isnan(value) else int(value)


def _likeliest(row: Sequence[float], spell: Callable[[int], str]) -> list[Likely] | None:
    if math.isnan(row[0]):
        return None
    top = len(row) // 2
    return [
        Likely(id=int(token), text=spell(int(token)), prob=prob)
        for token, prob in zip(row[:top], row[top:], strict=True)
    ]
