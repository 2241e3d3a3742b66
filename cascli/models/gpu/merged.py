"""A model's weights as the fused step reads them: matrices with the same input are merged, without a second copy.

Layers are merged one by one, and the model's own parameters become views of the merged matrices. Prompts still go
through transformers' layers, and at most one layer more than the model is ever in memory.
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.activations import ACT2FN

from cascli import kernels
from cascli.kernels import Norm
from cascli.models.cache import RewindCache
from cascli.models.gpu.decode_attention import can_decode

FAMILIES = frozenset({"llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text"})
"""Model types whose layers match the fused step; a test compares each of them with transformers' module."""
_MATRICES = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


class Linear(NamedTuple):
    """`x weight^T + bias`."""

    weight: Tensor
    bias: Tensor | None


@dataclass(frozen=True)
class Layer:
    """A layer: attention and a gated MLP, each with a norm before it and, in Gemma 2 and 3, one after it."""

    kind: str
    """Which table of rotary angles the layer uses."""
    scale: float
    """Scale of attention scores."""
    window: int
    """Number of positions that a token sees; 0 for all."""
    before_attention: Norm
    states: Linear
    """Queries, keys and values."""
    head_norms: Norm | None
    """Norms of queries and keys, with weights `[2, D]`."""
    output: Linear
    after_attention: Norm | None
    before_mlp: Norm
    gate_up: Linear
    down: Linear
    after_mlp: Norm | None


@dataclass(frozen=True)
class Merged:
    """All weights and settings that a step reads."""

    embedding: nn.Module
    layers: list[Layer]
    last_norm: Norm
    head: Linear
    rotary: nn.Module
    activation: str
    cap: float
    """Soft cap of attention scores; 0 for none."""
    last_cap: float
    """Soft cap of logits; 0 for none."""

    def angles(self, kind: str, length: int) -> tuple[Tensor, Tensor]:
        """Cosines and sines `[length, D]` of all positions, computed and rounded by the model's own module."""
        like = self.last_norm.weight
        positions = torch.arange(length, device=like.device).unsqueeze(0)
        cos, sin = self.rotary(like, positions, *((kind,) if kind else ()))
        return cos[0].contiguous(), sin[0].contiguous()


def merge(model: PreTrainedModel) -> Merged | str:
    """Merge the weights of a model on its device, or return the reason why not, worded for the user."""
    why = _why_not(model)
    if why is not None:
        return why
    config, inner, head = model.config, model.get_decoder(), model.get_output_embeddings()
    windows = [layer.window or 0 for layer in RewindCache(config).layers]
    by_kind = "layer_type" in inspect.signature(inner.rotary_emb.forward).parameters
    kinds = config.layer_types if by_kind else [""] * len(windows)
    return Merged(
        embedding=model.get_input_embeddings(),
        layers=[_layer(*each, config) for each in zip(inner.layers, kinds, windows, strict=True)],
        last_norm=_norm(config, inner.norm.weight),
        head=Linear(head.weight, head.bias),
        rotary=inner.rotary_emb,
        activation=_activation(model),
        cap=getattr(config, "attn_logit_softcapping", None) or 0.0,
        last_cap=getattr(config, "final_logit_softcapping", None) or 0.0,
    )


def _why_not(model: PreTrainedModel) -> str | None:
    config = model.config
    known = config.model_type in FAMILIES and type(model).__module__.startswith("transformers.")
    if not known:
        return f"there are no fused layers for the '{config.model_type}' family"
    if not kernels.serve(model.device):
        return "there are no Triton kernels here"
    if not can_decode(model):
        return "its attention is not of the kind that the kernel computes"
    matrices = [each for name, each in model.get_decoder().named_modules() if name.endswith(_MATRICES)]
    dtypes = {each.dtype for each in model.parameters()}
    matrices.append(model.get_output_embeddings())  # a draft model's may be cut
    if not all(type(each) is nn.Linear for each in matrices) or len(dtypes) > 1:
        return "its matrices are not plain linear layers of one precision"
    activation = _activation(model)
    if activation not in kernels.ACTIVATIONS:
        return f"the kernels do not cover its activation, {activation}"
    return None


def _activation(model: PreTrainedModel) -> str:
    """transformers' name of the module's activation; read from the module, as configs of one family use two keys."""
    kind = type(model.get_decoder().layers[0].mlp.act_fn)
    return next((name for name in kernels.ACTIVATIONS if type(ACT2FN[name]) is kind), kind.__name__)


def _norm(config: PreTrainedConfig, weight: Tensor) -> Norm:
    return Norm(weight, config.rms_norm_eps, offset=config.model_type.startswith("gemma"))


@torch.no_grad()
def _layer(layer: Any, kind: str, window: int, config: PreTrainedConfig) -> Layer:
    def norm(name: str) -> Norm:
        return _norm(config, getattr(layer, name).weight)

    attention, mlp = layer.self_attn, layer.mlp
    wrapped = hasattr(layer, "pre_feedforward_layernorm")
    head_norms = None
    if hasattr(attention, "q_norm"):
        head_norms = _norm(config, torch.stack([attention.q_norm.weight, attention.k_norm.weight]))
    merged = Layer(
        kind=kind,
        scale=attention.scaling,
        window=window,
        before_attention=norm("input_layernorm"),
        states=_together(attention.q_proj, attention.k_proj, attention.v_proj),
        head_norms=head_norms,
        output=_together(attention.o_proj),
        after_attention=norm("post_attention_layernorm") if wrapped else None,
        before_mlp=norm("pre_feedforward_layernorm" if wrapped else "post_attention_layernorm"),
        gate_up=_together(mlp.gate_proj, mlp.up_proj),
        down=_together(mlp.down_proj),
        after_mlp=norm("post_feedforward_layernorm") if wrapped else None,
    )
    if merged.down.weight.is_cuda:
        torch.cuda.empty_cache()  # the freed parts have other sizes than the next layer's allocations
    return merged


def _together(*layers: nn.Linear) -> Linear:
    """Stack the layers' matrices into one; the layers become views of it."""
    if len(layers) == 1:
        return Linear(layers[0].weight, layers[0].bias)
    sizes = [each.out_features for each in layers]

    def merge_all(name: str) -> Tensor:
        whole = torch.cat([getattr(each, name) for each in layers])
        for each, part in zip(layers, whole.split(sizes), strict=True):
            getattr(each, name).data = part
        return whole

    return Linear(merge_all("weight"), None if layers[0].bias is None else merge_all("bias"))
