"""Attention of a few tokens over a cache, without copying the keys for every head that shares them.

transformers repeats keys and values for grouped heads wherever there is a mask; at long contexts this moves several
times the cache. Here the heads that share keys become extra rows of one product.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.masking_utils import sdpa_mask

from cascli.models.cpu.row_attention import attends_plainly

NAME = "cascli_grouped"


def grouped_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor,
    *,
    scaling: float | None = None,
    **more: Any,
) -> tuple[Tensor, None]:
    """Attention of `[1, heads, n, d]` over `[1, kv_heads, L, d]` where the mask `[1, 1, n, L]` allows it.

    Returns:
        `[1, n, heads, d]`, as transformers expects.
    """
    del module, more  # the signature is transformers'
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    return masked_attention(query, key, value, attention_mask, scale), None


def masked_attention(query: Tensor, key: Tensor, value: Tensor, mask: Tensor, scale: float, cap: float = 0.0) -> Tensor:
    """Attention where a mask `[1, 1, n, L]` allows it; returns `[1, n, heads, d]`.

    The heads that share keys are extra rows of one product, so that nothing is copied for them.
    """
    _, heads, n, width = query.shape
    shared = key.shape[1]
    group = heads // shared
    rows = query.reshape(1, shared, group * n, width)
    mask = mask.repeat(1, 1, group, 1)
    if cap:
        score = cap * torch.tanh((rows @ key.transpose(-1, -2)).float() * (scale / cap))
        weight = score.masked_fill(~mask, -torch.inf).softmax(dim=-1)
        output = weight.to(value.dtype) @ value
    else:
        output = F.scaled_dot_product_attention(rows, key, value, attn_mask=mask, scale=scale)
    return output.reshape(1, heads, n, value.shape[-1]).transpose(1, 2).contiguous()


def use_grouped_attention(model: PreTrainedModel) -> bool:
    """Switch a model to this attention if it uses torch's plain one; return whether it did."""
    if not attends_plainly(model):
        return False
    AttentionInterface.register(NAME, grouped_attention)
    AttentionMaskInterface.register(NAME, _always_a_mask)
    model.set_attn_implementation(NAME)
    return True


def _always_a_mask(**more: Any) -> Tensor | None:
    """Torch's own mask, never omitted: during a capture it is not known whether the cache is empty."""
    return sdpa_mask(**more | {"allow_is_causal_skip": False})
