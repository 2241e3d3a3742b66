"""Attention for captured passes over several sequences: each token attends to the used part of its own sequence."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from cascli.models.gpu.grouped_attention import masked_attention


class TextStates(NamedTuple):
    """Keys or values of several sequences, and the places and positions of a block's tokens."""

    states: Tensor
    """`[places, kv_heads, capacity, d]`."""
    places: Tensor
    """Place of each token's sequence, `[n]`; tokens of one sequence are contiguous."""
    positions: Tensor
    """Position of each token in its sequence, `[n]`; a token sees positions up to its own."""
    window: int
    """Number of positions that a token sees; 0 for all."""


@torch.library.custom_op("cascli::attend_texts", mutates_args=(), device_types="cpu")
def attend_texts(
    query: Tensor, key: Tensor, value: Tensor, places: Tensor, positions: Tensor, scale: float, window: int, cap: float
) -> Tensor:
    """`cascli.kernels.attention.attend` with `places`, in torch's own operations over the whole cache."""
    where = torch.arange(key.shape[2], device=key.device)
    seen = where <= positions.unsqueeze(1)
    if window:
        seen = seen & (where > positions.unsqueeze(1) - window)
    each = [
        masked_attention(query[:, :, i : i + 1], *one, seen[None, None, i : i + 1], scale, cap)
        for i, one in enumerate(zip(key[places].split(1), value[places].split(1), strict=True))
    ]
    return torch.cat(each, dim=1)


@attend_texts.register_kernel("cuda")
def _(
    query: Tensor, key: Tensor, value: Tensor, places: Tensor, positions: Tensor, scale: float, window: int, cap: float
) -> Tensor:
    from cascli.kernels import attention

    return attention.attend(query, key, value, positions, places=places, scale=scale, window=window, cap=cap)


@attend_texts.register_fake
def _(query: Tensor, key: Tensor, value: Tensor, *_: object) -> Tensor:
    del key
    heads, n = query.shape[1:3]
    return query.new_empty((1, n, heads, value.shape[-1]))
