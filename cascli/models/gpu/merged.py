"""A model's weights as the fused step reads them: matrices with the same input are one, in the memory they had.

Layers are merged one by one, and the model's own parameters become views of what is merged: prompts are read by
transformers' layers as before, and at no time is there more than the model and one layer.
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

from cascli import kernels
from cascli.models.cache import RewindCache
from cascli.models.gpu.decode_attention import can_decode

FAMILIES = frozenset({"llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text"})
"""Model types whose layers are those of the fused step, each of which a test compares with transformers' module."""
_ACTIVATIONS = ("silu", "gelu_pytorch_tanh")
_MATRICES = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


class Linear(NamedTuple):
    """`x weight^T + bias`."""

    weight: Tensor
    bias: Tensor | None


@dataclass(frozen=True)
class Layer:
    """A layer of attention and of a gated MLP, each with a norm before it, and in Gemma 2 and 3 with one after it."""

    kind: str
    """Which table of angles it turns by."""
    scale: float
    """Of attention scores."""
    window: int
    """How many positions a token sees; 0 for all."""
    before_attention: Tensor
    states: Linear
    """Queries, keys and values."""
    head_norms: Tensor | None
    """Of queries and of keys, `[2, D]`."""
    output: Linear
    after_attention: Tensor | None
    before_mlp: Tensor
    gate_up: Linear
    down: Linear
    after_mlp: Tensor | None


@dataclass(frozen=True)
class Merged:
    """All that a step reads."""

    embedding: nn.Module
    layers: list[Layer]
    last_norm: Tensor
    head: Linear
    rotary: nn.Module
    epsilon: float
    """Of all norms."""
    offset: bool
    """Whether norms keep their weights less 1."""
    activation: str
    cap: float
    """Of attention scores; 0 for none."""
    last_cap: float
    """Of logits."""

    def angles(self, kind: str, length: int) -> tuple[Tensor, Tensor]:
        """Cosines and sines `[length, D]` of all positions, by the model's own module and rounded as it rounds."""
        positions = torch.arange(length, device=self.last_norm.device).unsqueeze(0)
        more = (kind,) if kind else ()
        cos, sin = self.rotary(self.last_norm, positions, *more)
        return cos[0].contiguous(), sin[0].contiguous()


def merge(model: PreTrainedModel) -> Merged | str:
    """The merged weights of a model on its device, or why it has none, in words for its user."""
    why = _why_not(model)
    if why is not None:
        return why
    config, inner = model.config, model.get_decoder()
    head = model.get_output_embeddings()
    windows = [layer.window or 0 for layer in RewindCache(config).layers]
    by_kind = "layer_type" in inspect.signature(inner.rotary_emb.forward).parameters
    kinds = config.layer_types if by_kind else [""] * len(windows)
    return Merged(
        embedding=model.get_input_embeddings(),
        layers=[_layer(*each) for each in zip(inner.layers, kinds, windows, strict=True)],
        last_norm=inner.norm.weight,
        head=Linear(head.weight, head.bias),
        rotary=inner.rotary_emb,
        epsilon=config.rms_norm_eps,
        offset=config.model_type.startswith("gemma"),
        activation=_activation(config),
        cap=getattr(config, "attn_logit_softcapping", None) or 0.0,
        last_cap=getattr(config, "final_logit_softcapping", None) or 0.0,
    )


def _why_not(model: PreTrainedModel) -> str | None:
    config = model.config
    known = config.model_type in FAMILIES and type(model).__module__.startswith("transformers.")
    if not known:
        return f"layers of the '{config.model_type}' family are not among those that are fused"
    if not kernels.serve(model.device):
        return "there are no Triton kernels here"
    if not can_decode(model):
        return "its attention is not what the kernel computes"
    matrices = [each for name, each in model.get_decoder().named_modules() if name.endswith(_MATRICES)]
    dtypes = {each.dtype for each in model.parameters()}
    if not all(type(each) is nn.Linear for each in matrices) or len(dtypes) > 1:
        return "its matrices are not plain ones of one precision"
    if _activation(config) not in _ACTIVATIONS:
        return f"its activation is {_activation(config)}"
    return None


def _activation(config: PreTrainedConfig) -> str:
    return str(getattr(config, "hidden_activation", None) or config.hidden_act)


@torch.no_grad()
def _layer(layer: Any, kind: str, window: int) -> Layer:
    attention, mlp = layer.self_attn, layer.mlp
    wrapped = hasattr(layer, "pre_feedforward_layernorm")  # each part is normed before it is added, too
    merged = Layer(
        kind=kind,
        scale=attention.scaling,
        window=window,
        before_attention=layer.input_layernorm.weight,
        states=_together(attention.q_proj, attention.k_proj, attention.v_proj),
        head_norms=_head_norms(attention),
        output=_together(attention.o_proj),
        after_attention=layer.post_attention_layernorm.weight if wrapped else None,
        before_mlp=(layer.pre_feedforward_layernorm if wrapped else layer.post_attention_layernorm).weight,
        gate_up=_together(mlp.gate_proj, mlp.up_proj),
        down=_together(mlp.down_proj),
        after_mlp=layer.post_feedforward_layernorm.weight if wrapped else None,
    )
    if merged.before_mlp.is_cuda:
        torch.cuda.empty_cache()  # what the parts lay in has other sizes than what the next layer asks for
    return merged


def _together(*layers: nn.Linear) -> Linear:
    """Their matrices one below the other, and the layers as views of it."""
    if len(layers) == 1:
        return Linear(layers[0].weight, layers[0].bias)
    sizes = [each.out_features for each in layers]
    whole: dict[str, Tensor | None] = {"weight": None, "bias": None}
    for name in whole:
        if getattr(layers[0], name) is None:
            continue
        whole[name] = together = torch.cat([getattr(each, name) for each in layers])
        for each, part in zip(layers, together.split(sizes), strict=True):
            getattr(each, name).data = part
    return Linear(**whole)


def _head_norms(attention: Any) -> Tensor | None:
    if not hasattr(attention, "q_norm"):
        return None
    return torch.stack([attention.q_norm.weight, attention.k_norm.weight])
