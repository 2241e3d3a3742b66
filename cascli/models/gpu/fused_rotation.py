"""Rotary embeddings in one kernel instead of ten; these are a third of a small model's kernels on a GPU.

Attention layers call the `apply_rotary_pos_emb` of their own file. A patched layer calls ours instead, and only
patched layers do: other code in the process, such as transformers' own decoding in a benchmark, is unaffected.
"""

from __future__ import annotations

from collections.abc import Callable
from types import FunctionType, MethodType
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from cascli import kernels

NAME = "apply_rotary_pos_emb"
Rotation = Callable[..., tuple[Tensor, Tensor]]


def use_fused_rotation(model: PreTrainedModel) -> int:
    """Make every attention layer that allows it use the kernel, in place; returns the number of such layers."""
    return sum(_patch(each) for each in model.modules())


def restore_rotation(model: PreTrainedModel) -> None:
    """Give back the rotation of a model's own file."""
    for layer in model.modules():
        ours = getattr(vars(layer).get("forward"), "__func__", None)
        if ours is not None and ours.__code__ is getattr(own_forward(type(layer)), "__code__", None):
            del vars(layer)["forward"]


def _patch(layer: nn.Module) -> bool:
    forward = own_forward(type(layer))
    if not isinstance(forward, FunctionType) or NAME not in forward.__code__.co_names or forward.__closure__:
        return False
    if "forward" in vars(layer):  # already wrapped, perhaps to move its inputs between devices
        return False
    stock = forward.__globals__.get(NAME)
    if stock is None or not _is_standard(stock):
        return False
    ours = FunctionType(
        forward.__code__,
        {**forward.__globals__, NAME: fused(stock)},
        forward.__name__,
        forward.__defaults__,
    )
    ours.__kwdefaults__ = forward.__kwdefaults__
    vars(layer)["forward"] = MethodType(ours, layer)
    return True


def own_forward(kind: type[nn.Module]) -> Any:
    """A layer's forward without wrappers that rename deprecated keywords, which transformers' models do not pass."""
    forward: Any = kind.forward
    while getattr(forward, "__globals__", {}).get("__name__") == "transformers.utils.deprecation":
        forward = forward.__wrapped__
    return forward


def fused(stock: Rotation) -> Rotation:
    """A rotation that uses the kernel where it can, and `stock` elsewhere."""

    def rotation(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, *more: Any, **named: Any) -> tuple[Tensor, Tensor]:
        if more or named or not kernels.serve(q.device) or q.shape[0] != 1 or cos.dtype != q.dtype:
            return stock(q, k, cos, sin, *more, **named)
        from cascli.kernels.rotation import rotate

        return rotate(q, k, cos, sin)

    return rotation


def plain(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    """The kernel's computation in torch's operations; takes the arguments of `cascli.kernels.rotation.rotate`."""
    turns = cos.shape[-1]

    def turned(x: Tensor) -> Tensor:
        first, second = x[..., :turns].chunk(2, dim=-1)
        whole = x[..., :turns] * cos.unsqueeze(1) + torch.cat([-second, first], dim=-1) * sin.unsqueeze(1)
        return torch.cat([whole, x[..., turns:]], dim=-1)

    return turned(q), turned(k)


def _is_standard(stock: Rotation) -> bool:
    """Whether a model's function computes the same as the kernel, tested on a few random numbers."""
    generator = torch.Generator().manual_seed(0)
    q, k, cos, sin = (torch.randn(1, *shape, generator=generator) for shape in ((2, 3, 8), (1, 3, 8), (3, 8), (3, 8)))
    try:
        rotated = stock(q, k, cos, sin)
    except (TypeError, ValueError, RuntimeError):
        return False
    return all(map(torch.equal, rotated, plain(q, k, cos, sin)))
