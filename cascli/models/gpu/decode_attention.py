"""Attention for captured steps over the used part of the cache, whatever its length when the step is replayed.

The mask argument carries that length: instead of a mask, attention gets the number of tokens before the block, a
tensor on the device. For a sliding layer, the number is expanded to as many elements as the window has positions,
which costs nothing and encodes the window. Prompts, and blocks with a mask of their own, use torch's kernel.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.masking_utils import sdpa_mask

from cascli import kernels
from cascli.models.cpu.row_attention import NAME as ROWS
from cascli.models.gpu.grouped_attention import masked_attention
from cascli.models.gpu.texts_attention import TextStates, attend_texts
from cascli.sampling.parameters import MOST_DRAFTED

NAME = "cascli_decode"
MOST_ROWS = MOST_DRAFTED + 1
"""The longest block of a round; longer ones are prompts."""


def decode_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor | TextStates,
    value: Tensor | TextStates,
    attention_mask: Tensor,
    *,
    scaling: float | None = None,
    softcap: float | None = None,
    **more: Any,
) -> tuple[Tensor, None]:
    """Causal attention of `[1, heads, n, d]` over the part of `[1, kv_heads, L, d]` in use, given by `decode_mask`.

    For tokens of several sequences, the cache provides their places and positions (`TextStates`).

    Returns:
        `[1, n, heads, d]`, as transformers expects.
    """
    del module, more  # the signature is transformers'
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    cap = softcap or 0.0
    if isinstance(key, TextStates) or isinstance(value, TextStates):
        texts, values = cast(TextStates, key), cast(TextStates, value).states
        return attend_texts(query, texts.states, values, texts.places, texts.positions, scale, texts.window, cap), None
    if attention_mask.dim() > 1:
        return masked_attention(query, key, value, attention_mask, scale, cap), None
    window = attention_mask.shape[0] if attention_mask.dim() else 0
    return torch.ops.cascli.attend(query, key, value, attention_mask, scale, window, cap), None


@torch.library.custom_op("cascli::attend", mutates_args=(), device_types="cpu")
def attend(query: Tensor, key: Tensor, value: Tensor, at: Tensor, scale: float, window: int, cap: float) -> Tensor:
    """`cascli.kernels.attention.attend` in torch's own operations, over the whole cache."""
    n, length = query.shape[2], key.shape[2]
    at = at[0] if at.dim() else at
    position = at + torch.arange(n, device=at.device).unsqueeze(1)
    where = torch.arange(length, device=at.device)
    seen = where <= position
    if window:
        seen = seen & (where > position - window)
    return masked_attention(query, key, value, seen.expand(1, 1, n, length), scale, cap)


@attend.register_kernel("cuda")
def _(query: Tensor, key: Tensor, value: Tensor, at: Tensor, scale: float, window: int, cap: float) -> Tensor:
    from cascli.kernels import attention

    return attention.attend(query, key, value, at, scale=scale, window=window, cap=cap)


@attend.register_fake
def _(query: Tensor, key: Tensor, value: Tensor, *_: object) -> Tensor:
    del key
    heads, n = query.shape[1:3]
    return query.new_empty((1, n, heads, value.shape[-1]))


def decode_mask(**given: Any) -> Tensor | None:
    """The number of tokens before the block if one sequence's block needs nothing else; otherwise torch's mask."""
    before, window = given["q_offset"], given.get("local_size")
    plain = given["batch_size"] == 1 and given.get("attention_mask") is None and not given.get("use_vmap")
    if plain and given["q_length"] <= MOST_ROWS and isinstance(before, Tensor):
        return before if window is None else before.expand(window)
    return sdpa_mask(**given | {"allow_is_causal_skip": False})


def use_decode_attention(model: PreTrainedModel) -> bool:
    """Switch a model to this attention if it computes the same as the model's own; return whether it did."""
    if not can_decode(model):
        return False
    AttentionInterface.register(NAME, decode_attention)
    AttentionMaskInterface.register(NAME, decode_mask)
    model.set_attn_implementation(NAME)
    return True


def can_decode(model: PreTrainedModel) -> bool:
    """Whether the kernels are available and compute a model's attention, and its code can call them.

    They compute causal attention with or without sliding windows and soft caps, but not chunks, sinks or biases.
    """
    config = model.config.get_text_config()
    kinds = set(getattr(config, "layer_types", None) or [])
    capped = getattr(config, "attn_logit_softcapping", None) is not None
    stock = config._attn_implementation in ("sdpa", ROWS, NAME) or (capped and config._attn_implementation == "eager")
    plain = getattr(config, "v_head_dim", None) is None  # set where states are compressed: values narrower than keys
    known = kinds <= {"full_attention", "sliding_attention"}
    return _fits(model.device) and stock and plain and known and model._can_set_attn_implementation()


def _fits(device: torch.device) -> bool:
    """Whether a device can run the kernel; on GPUs before Ampere its state does not fit into the registers."""
    if device.type != "cuda":
        return True
    return kernels.serve(device) and torch.cuda.get_device_capability(device) >= (8, 0)
