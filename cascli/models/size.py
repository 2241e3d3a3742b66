"""The size of a loaded model, in the units that determine the cost of decoding."""

from __future__ import annotations

import re
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, NamedTuple, cast

import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel, initialization

from cascli.models.cut_head import head_of
from cascli.models.taps import decoder_layers
from cascli.trace import EncoderInfo
from cascli.weights.untrusted import auto_class

if TYPE_CHECKING:
    from cascli.models.eagle3.head import Network

LARGE = 10**8
"""Number of weights from which precision and packing make a noticeable difference."""


TINY = 5 * 10**6
"""Number of weights up to which a second thread gains less than it can lose."""


_OF_PROMPT = re.compile(r"^encoder\.|\.EncDecAttention\.[kv]$|\.EncDecAttention\.[kv]\.weight$")
"""Matrices of an encoder-decoder that prompt tokens are multiplied by, including cross-attention's keys and values."""


_EXPERTS = ("num_local_experts", "num_experts", "moe_num_experts", "n_routed_experts")
"""Keys of configs for the number of experts; families differ."""


class Size(NamedTuple):
    """The fields of `cascli.trace.ModelInfo` about a model's size."""

    parameters: int
    weight_bytes: int
    attention_width: int | None
    output_parameters: int | None = None
    encoder: EncoderInfo | None = None


def weights_of(model: nn.Module | PreTrainedConfig) -> int:
    """Number of weights of a model, or of a model with this config; allocates none of them."""
    if isinstance(model, PreTrainedConfig):
        with torch.device("meta"), no_init():
            model = auto_class(model).from_config(model)
        model.tie_weights()  # which transformers leaves out where it draws no weights
    return sum(each.numel() for each in model.parameters())


def is_large(model: nn.Module) -> bool:
    """Whether a model has at least `LARGE` weights."""
    return weights_of(model) >= LARGE


def no_init() -> AbstractContextManager[None]:
    """Keep transformers from drawing initial values for missing weights, which is half the time of creating a model.

    Has no effect in releases of transformers without this switch.
    """
    return getattr(initialization, "no_init_weights", nullcontext)()


def decoder_of(model: PreTrainedModel) -> PreTrainedModel:
    """The model without what reads images or sound, and without its head; an encoder-decoder as a whole."""
    decoder = model.get_decoder()
    # ModernBERT calls its head the decoder.
    return decoder if isinstance(decoder, PreTrainedModel) and not model.config.is_encoder_decoder else model


def text_part(model: nn.Module) -> frozenset[nn.Module]:
    """The modules that text passes through: all, except those of a model that also reads images or sound.

    Their towers are not among them, nor the layers that attend only to images and are skipped without one (Mllama).
    """
    if not isinstance(model, PreTrainedModel):
        return frozenset(model.modules())
    head = model.get_output_embeddings()
    part = {*decoder_of(model).modules(), *([] if head is None else head.modules())}
    skipped = _skipped(model.config.get_text_config())
    if skipped:
        layers = decoder_layers(model)
        part.difference_update(*(layers[index].modules() for index in skipped))
    return frozenset(part)


def _skipped(config: PreTrainedConfig) -> Sequence[int]:
    """Indices of layers that text alone does not pass through."""
    return getattr(config, "cross_attention_layers", None) or ()


def size_of(model: Network) -> Size:
    """Count the weights and bytes of the matrices that a token is multiplied by; an encoder's are counted separately.

    Layers whose weights are not parameters (packed int8) provide their own `weight_count` and `weight_bytes`.
    """
    part = text_part(model)
    passed = {id(each) for module in part for each in module.parameters(recurse=False)}
    tables = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    head = head_of(model)
    if head is not None and "weight" in dict(head.named_parameters(recurse=False)):
        tables.discard(id(head.weight))  # if tied to the input embeddings: a lookup table, but also multiplied by
    matrices = {
        name: (each.numel(), each.numel() * each.element_size())
        for name, each in model.named_parameters()
        if each.dim() >= 2 and id(each) in passed and id(each) not in tables
    }
    matrices |= {
        name: (module.weight_count, module.weight_bytes)
        for name, module in model.named_modules()
        if module in part and hasattr(module, "weight_count")
    }
    encoder, text = None, model.config.get_text_config()
    if getattr(model.config, "is_encoder_decoder", False):
        of_prompt = [matrices.pop(name) for name in list(matrices) if _OF_PROMPT.search(name)]
        encoder = EncoderInfo(
            parameters=sum(count for count, _ in of_prompt),
            weight_bytes=sum(size for _, size in of_prompt),
            attention_width=_heads_width(text, text.num_hidden_layers),
        )
    return Size(
        parameters=sum(count for count, _ in matrices.values()),
        weight_bytes=sum(size for _, size in matrices.values()),
        attention_width=_attention_width(text, layers_of(text)),
        output_parameters=_output_parameters(head),
        encoder=encoder,
    )


def _output_parameters(head: nn.Module | None) -> int | None:
    """Number of weights of the output matrix; None if it has none of its own whose weights can be counted."""
    if head is None:
        return None
    if hasattr(head, "weight_count"):
        return cast(int, head.weight_count)
    weight = dict(head.named_parameters(recurse=False)).get("weight")
    return None if weight is None else weight.numel()


def layers_of(config: PreTrainedConfig) -> int:
    """Number of layers that a generated token passes through; for an encoder-decoder, the decoder's."""
    own = getattr(config, "num_decoder_layers", None)
    return int(config.num_hidden_layers if own is None else own)


def layer_configs(config: PreTrainedConfig, layers: int) -> list[PreTrainedConfig]:
    """The config of each layer of a text: the model's, unless its layers differ, as in the width of Gemma 4's heads."""
    if getattr(config, "is_heterogeneous", False):
        return [*config.per_layer_config]
    return [config] * (layers - len(_skipped(config)))


def has_experts(config: PreTrainedConfig) -> bool:
    """Whether a token passes through some experts of each layer only (mixture of experts)."""
    nested = getattr(config, "ffn_config", None)  # DBRX
    if getattr(config, "is_moe", None) is False:  # Doge has their number even so
        return False
    return any(getattr(each, key, None) for each in (config, nested) for key in _EXPERTS)


def caches_latents(config: PreTrainedConfig) -> bool:
    """Whether a layer caches one latent state per token instead of the keys and values that it expands it to."""
    return bool(getattr(config, "kv_lora_rank", None))


def head_dim(config: PreTrainedConfig) -> int:
    """Width of an attention head of a layer with this config."""
    return int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)


def cache_width(config: PreTrainedConfig) -> int:
    """Numbers that a layer with this config caches per token: keys and values, or the latent that they come from."""
    if caches_latents(config):
        return int(config.kv_lora_rank + config.qk_rope_head_dim)
    if getattr(config, "multi_query", False) and not getattr(config, "new_decoder_architecture", False):
        return 2 * head_dim(config)  # Falcon's config still has a head of keys for each of queries
    return 2 * int(getattr(config, "num_key_value_heads", None) or config.num_attention_heads) * head_dim(config)


def _attention_width(config: PreTrainedConfig, layers: int) -> int | None:
    """Attention heads times head width, over all layers; None where that does not determine the work of attention.

    A pass over a cache of latents expands all of them to keys and values, which is most of the work in a long text, and
    happens once a pass whatever its number of tokens.
    """
    return None if caches_latents(config) else _heads_width(config, layers)


def _heads_width(config: PreTrainedConfig, layers: int) -> int:
    return sum(int(each.num_attention_heads) * head_dim(each) for each in layer_configs(config, layers))
