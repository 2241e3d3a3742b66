"""How large a loaded model is, in the units that decoding pays in."""

from __future__ import annotations

import re
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, NamedTuple, cast

import torch
from torch import nn
from transformers import PreTrainedConfig, initialization

from cascli.models.cut_head import head_of
from cascli.trace import EncoderInfo
from cascli.weights.untrusted import auto_class

if TYPE_CHECKING:
    from cascli.models.eagle3.head import Network

LARGE = 10**8
"""Weights from which precision and packing make a difference that a person notices."""


TINY = 5 * 10**6
"""Weights up to which a second thread gains less than it can lose."""


_OF_PROMPT = re.compile(r"^encoder\.|\.EncDecAttention\.[kv]$|\.EncDecAttention\.[kv]\.weight$")
"""Matrices of an encoder-decoder that a prompt's tokens are multiplied by: cross-attention's keys and values too."""


class Size(NamedTuple):
    """What `cascli.trace.ModelInfo` says of a model's size."""

    parameters: int
    weight_bytes: int
    attention_width: int
    output_parameters: int | None = None
    encoder: EncoderInfo | None = None


def weights_of(model: nn.Module | PreTrainedConfig) -> int:
    """How many weights a model has, or one of this config; makes none of them."""
    if isinstance(model, PreTrainedConfig):
        with torch.device("meta"), no_init():
            model = auto_class(model).from_config(model)
    return sum(each.numel() for each in model.parameters())


def is_large(model: nn.Module | PreTrainedConfig) -> bool:
    """Whether a model, or one of this config, has at least `LARGE` weights."""
    return weights_of(model) >= LARGE


def no_init() -> AbstractContextManager[None]:
    """Keep transformers from drawing the first values of weights that are not there: half the time of making a model.

    Where a release has no such switch they are drawn.
    """
    return getattr(initialization, "no_init_weights", nullcontext)()


def size_of(model: Network) -> Size:
    """Count the matrices that a token is multiplied by, and their bytes: those of a prompt that is encoded apart.

    Layers whose weights are not parameters (packed int8) say their own `weight_count` and `weight_bytes`.
    """
    tables = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    head = head_of(model)
    if head is not None and "weight" in dict(head.named_parameters(recurse=False)):
        tables.discard(id(head.weight))  # tied to the input embeddings: looked up, and multiplied by
    matrices = {
        name: (each.numel(), each.numel() * each.element_size())
        for name, each in model.named_parameters()
        if each.dim() >= 2 and id(each) not in tables
    }
    matrices |= {
        name: (module.weight_count, module.weight_bytes)
        for name, module in model.named_modules()
        if hasattr(module, "weight_count")
    }
    encoder, text = None, model.config.get_text_config()
    if getattr(model.config, "is_encoder_decoder", False):
        of_prompt = [matrices.pop(name) for name in list(matrices) if _OF_PROMPT.search(name)]
        encoder = EncoderInfo(
            parameters=sum(count for count, _ in of_prompt),
            weight_bytes=sum(size for _, size in of_prompt),
            attention_width=_attention_width(text, text.num_hidden_layers),
        )
    return Size(
        parameters=sum(count for count, _ in matrices.values()),
        weight_bytes=sum(size for _, size in matrices.values()),
        attention_width=_attention_width(text, layers_of(text)),
        output_parameters=_output_parameters(head),
        encoder=encoder,
    )


def _output_parameters(head: nn.Module | None) -> int | None:
    """Weights of the output matrix; None if the model has none of its own shape."""
    if head is None:
        return None
    if hasattr(head, "weight_count"):
        return cast(int, head.weight_count)
    weight = dict(head.named_parameters(recurse=False)).get("weight")
    return None if weight is None else weight.numel()


def layers_of(config: PreTrainedConfig) -> int:
    """How many layers a token goes through that is written: of an encoder-decoder the decoder's."""
    own = getattr(config, "num_decoder_layers", None)
    return int(config.num_hidden_layers if own is None else own)


def _attention_width(config: PreTrainedConfig, layers: int) -> int:
    heads = config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // heads
    return int(layers * heads * width)
