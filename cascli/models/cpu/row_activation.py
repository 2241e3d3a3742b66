"""Activations that give a row the same bits alone and in a block.

torch computes SiLU, GELU with tanh, sigmoid and some others with vector code, and what is left over at the end of a
piece with scalar code whose last bits differ. Where pieces end depends on the size of the whole block: it is the end of
the block, and above `_SERIAL` elements also the borders between threads.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers.activations import ACT2CLS

_SERIAL = 32768
"""From this number of elements on, torch divides an operation among threads."""
_VECTOR = 64
"""A multiple of the elements that any of torch's vector loops computes together."""
_EXACT = {"ReLU", "ReLU6", "LeakyReLU", "ReLUSquaredActivation", "LinearActivation", "Identity", "Tanh"}
"""Activations that are the same in vector and in scalar code."""


class _ByRows:
    """Mixed into an activation: computes as many rows together as make no difference."""

    def forward(self, input: Tensor, *more: Any, **options: Any) -> Tensor:
        """Apply the activation to `[..., width]`."""
        width = input.shape[-1]
        together = max(1, (_SERIAL - 1) // width) if width % _VECTOR == 0 else 1
        rows = input.reshape(-1, width)
        apply = super().forward  # type: ignore[misc]
        if rows.shape[0] <= together:
            result: Tensor = apply(input, *more, **options)
            return result
        return torch.cat([apply(part, *more, **options) for part in rows.split(together)]).view(input.shape)


def use_row_activations(model: nn.Module) -> None:
    """Switch the activation modules of a model on a CPU, in place; names, parameters and types of modules stay.

    An activation that a model's code calls as a function is not changed.
    """
    made = {each[0] if isinstance(each, tuple) else each for each in ACT2CLS.values()}
    kinds = {
        kind for kind in made | {nn.SiLU, nn.GELU, nn.Sigmoid, nn.Mish, nn.Softplus} if kind.__name__ not in _EXACT
    }
    for module in model.modules():
        if type(module) in kinds:
            module.__class__ = type(type(module).__name__, (_ByRows, type(module)), {})
