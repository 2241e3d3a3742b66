"""Bring a loaded model into the precision and the kernels that it runs with on a CPU, one layer after the other.

Weights come as they are stored; each layer's own copy is dropped as soon as its successor stands, so that the peak
is one model and a layer. Input embeddings stay as stored and are widened where they are looked up: the same
numbers, at half the memory.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from cascli.models.int8_linear import Int8Linear, check_int8
from cascli.models.packed_linear import PackedLinear, can_pack
from cascli.models.row_attention import use_row_attention

_NARROW = (torch.bfloat16, torch.float16)


class WideEmbedding(nn.Embedding):
    """`nn.Embedding` that returns float32 whatever its table is stored in."""

    def forward(self, input: Tensor) -> Tensor:
        """Look ids up."""
        return F.embedding(input, self.weight).float()


class Linear(NamedTuple):
    """The weights `[out, in]` and bias `[out]` of a layer that multiplies by a matrix."""

    weight: Tensor
    bias: Tensor | None


def fit(model: PreTrainedModel, dtype: str) -> None:
    """Switch every linear layer, and the attention where it can be, to the kernels for `dtype`, in place.

    Args:
        model: on the CPU, in the precision that it is stored in.
        dtype: float32, bfloat16 or int8; float16 is left as it is.

    Raises:
        RunError: int8, and this build of torch has no kernels for it.
    """
    if dtype == "float16":
        return
    if dtype == "int8":
        check_int8()
    work = torch.bfloat16 if dtype == "bfloat16" else torch.float32
    packs = dtype == "int8" or can_pack(work)
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            found = _linear(child) if packs else None
            if found is not None:
                setattr(parent, name, _fast(found, dtype, work))
                del child, found
    _widen_the_rest(model, work)
    if packs:
        use_row_attention(model)


def has_narrow_buffers(model: PreTrainedModel) -> bool:
    """Whether constants were computed in half precision when the model was made: widening comes too late for them."""
    return any(buffer.dtype in _NARROW for buffer in model.buffers())


def _linear(module: nn.Module) -> Linear | None:
    if isinstance(module, nn.Linear) and type(module) is nn.Linear:
        return Linear(module.weight, module.bias)
    if type(module) is Conv1D:  # GPT-2's, whose weights are the other way round
        weight, bias = (getattr(module, name) for name in ("weight", "bias"))
        return Linear(weight.T, bias)
    return None


def _fast(layer: Linear, dtype: str, work: torch.dtype) -> nn.Module:
    if dtype == "int8":
        return Int8Linear(layer.weight, layer.bias)
    return PackedLinear(layer.weight.to(work), layer.bias)


def _widen_the_rest(model: PreTrainedModel, work: torch.dtype) -> None:
    """Bring what is not a linear layer to the working precision; embeddings widen as they are read."""
    for module in model.modules():
        if type(module) is nn.Embedding and work == torch.float32 and module.weight.dtype in _NARROW:
            module.__class__ = WideEmbedding
            continue
        for name, parameter in module.named_parameters(recurse=False):
            if parameter.is_floating_point() and not isinstance(module, WideEmbedding):
                setattr(module, name, nn.Parameter(parameter.detach().to(work), requires_grad=False))
