"""Attention on a CPU whose result for a token does not depend on the block that the token is read in.

Stock kernels sum in a different order for one query than for five. A difference in the last bit of a sum is enough for
greedy decoding to diverge at a near-tie, and 8-bit activations turn it into a whole step. Here each of the few tokens
of a decoding step attends on its own, with exactly the call that a step of one token makes, over the states that this
token may see. Heads that share keys are one batch of queries, so nothing is copied for them.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, DynamicCache, PreTrainedConfig, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from cascli.models.size import decoder_of, text_part

NAME = "cascli_rows"
MOST_ROWS = 15
"""Longer blocks are treated as prompts; oneDNN in older torch uses another kernel for 16 or more rows."""

OWN_MASKS = {"doge"}
"""Model types whose attention makes a mask of its own from the one that it is given."""


class TextStates(NamedTuple):
    """Keys or values of several texts, `[places, kv_heads, capacity, d]`, and what each row of a block attends to."""

    states: Tensor
    rows: Sequence[tuple[int, int]]
    """For each row, the place of its text and the text's length including this token."""

    def seen(self, i: int, window: int | None) -> Tensor:
        """`[1, kv_heads, L, d]`: what row i attends to."""
        place, end = self.rows[i]
        start = 0 if window is None else max(0, end - window)
        return self.states[place : place + 1, :, start:end]


def row_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor | TextStates,
    value: Tensor | TextStates,
    attention_mask: Tensor | None,
    *,
    scaling: float | None = None,
    sliding_window: int | None = None,
    position_bias: Tensor | None = None,
    **more: Any,
) -> tuple[Tensor, None]:
    """Attention of the last n states' queries `[1, heads, n, d]` over `[1, kv_heads, L, d]`.

    Causal unless the module declares that it is not; then every query attends to all states. A `position_bias`
    `[1, heads, n, L]` is added to the scores. Longer blocks (prompts) go to torch's own kernel with the mask from
    `row_mask`. Rows of several texts (`TextStates`) each attend over their own text.
    """
    n = query.shape[2]
    if isinstance(key, TextStates) or isinstance(value, TextStates):
        return _attend_texts(query, cast(TextStates, key), cast(TextStates, value), sliding_window, scaling), None
    length = key.shape[2]
    if n > MOST_ROWS or query.shape[0] != 1:
        if sliding_window is not None:
            more["sliding_window"] = sliding_window
        if position_bias is not None:
            more["position_bias"] = position_bias
        output, _ = sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **more)
        return output, None
    causal, rows = getattr(module, "is_causal", True), []
    for i in range(n):
        end = length - n + 1 + i if causal else length
        start = 0 if sliding_window is None else max(0, end - sliding_window)
        # Copied, so that a row's bias has the same memory layout as in a step of one token.
        bias = None if position_bias is None else position_bias[:, :, i : i + 1, start:end].contiguous()
        rows.append(_attend_token(query[:, :, i], key[:, :, start:end], value[:, :, start:end], scaling, bias))
    return torch.stack(rows, dim=1), None


def _attend_texts(
    query: Tensor, key: TextStates, value: TextStates, window: int | None, scaling: float | None
) -> Tensor:
    """Each row's attention over its own text, `[1, n, heads, d]`."""
    rows = range(query.shape[2])
    outputs = [_attend_token(query[:, :, i], key.seen(i, window), value.seen(i, window), scaling) for i in rows]
    return torch.stack(outputs, dim=1)


def _attend_token(
    query: Tensor, key: Tensor, value: Tensor, scaling: float | None, bias: Tensor | None = None
) -> Tensor:
    """One token's attention `[1, heads, d]`; the heads that share a key are rows of one product."""
    _, heads, width = query.shape
    shared = key.shape[1]
    grouped = query.reshape(1, shared, heads // shared, width)
    output = F.scaled_dot_product_attention(grouped, key, value, attn_mask=bias, scale=scaling)
    return output.reshape(1, heads, value.shape[-1])


def row_mask(*, q_length: int, **more: Any) -> Tensor | None:
    """No mask for short blocks, whose rows select what they see; torch's own mask for longer ones."""
    return None if q_length <= MOST_ROWS else sdpa_mask(q_length=q_length, **more)


def use_row_attention(model: PreTrainedModel) -> bool:
    """Switch a model to row attention if it uses torch's plain attention; return whether it was switched.

    Models whose attention does more (soft-capping, attention sinks, biases, chunks) keep their own.
    """
    keep_caps(model)
    if not attends_plainly(model) or not _passes_what_rows_see(model):
        return False
    AttentionInterface.register(NAME, row_attention)
    AttentionMaskInterface.register(NAME, row_mask)
    decoder = decoder_of(model)
    decoder.set_attn_implementation(NAME)
    for module in decoder.modules():  # transformers 5.17 misses the copies of the config in encoder and decoder
        config = getattr(module, "config", None)
        if isinstance(config, PreTrainedConfig) and config._attn_implementation == "sdpa":
            config._attn_implementation = NAME
    return True


def keep_caps(model: PreTrainedModel) -> None:
    """Keep the capping of attention logits in models that use it (Gemma 2).

    torch's kernel cannot cap, and older transformers choose it anyway.
    """
    config = model.config.get_text_config()
    if getattr(config, "attn_logit_softcapping", None) is not None and config._attn_implementation == "sdpa":
        model.set_attn_implementation("eager")


def attends_by_rows(model: PreTrainedModel) -> bool:
    """Whether a model was switched to row attention."""
    return model.config.get_text_config()._attn_implementation == NAME


def attends_plainly(model: PreTrainedModel) -> bool:
    """Whether a model's attention is what torch's own kernel computes, and its code can call another one.

    Some (Falcon) only look at the name of their attention, and transformers leaves those as they are with a warning.
    """
    plain = model.config.get_text_config()._attn_implementation in ("sdpa", NAME)
    return plain and decoder_of(model)._can_set_attn_implementation()


def _passes_what_rows_see(model: PreTrainedModel) -> bool:
    """Whether the arguments of the attention function say which tokens a row sees; there is no mask for short blocks.

    Sliding-window layers have to pass their window, and of chunks (Llama 4) only a mask would know.
    """
    config = model.config.get_text_config()
    kinds = set(getattr(config, "layer_types", None) or [])
    if config.model_type in OWN_MASKS or not kinds <= {"full_attention", "sliding_attention"}:
        return False
    with torch.device("meta"):
        windows = any(getattr(layer, "is_sliding", False) for layer in DynamicCache(config=config).layers)
    part = text_part(model)
    attentions = {type(m) for name, m in model.named_modules() if m in part and name.endswith(("attn", "attention"))}
    return not windows or all(_names_a_window(each) for each in attentions)


def _names_a_window(attention: type[nn.Module]) -> bool:
    """Whether a layer's code gives the attention function a window; its mask alone (PhiMoE) would not do."""
    try:
        return "sliding_window=" in inspect.getsource(attention.forward)
    except (OSError, TypeError):
        return False
