"""Activations that give a row the same bits alone and in a block.

torch computes SiLU, GELU with tanh, sigmoid and some others with vector code, and what is left over at the end of a
piece with scalar code whose last bits differ. Where pieces end depends on the size of the whole block: it is the end of
the block, and above `_SERIAL` elements also the borders between threads.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.activations import ACT2CLS

_SERIAL = 16384
"""Up to this number of elements, torch divides none of these operations among threads."""
_VECTOR = 64
"""A multiple of the elements that any of torch's vector loops computes together."""
_EXACT = {"ReLU", "ReLU6", "LeakyReLU", "ReLUSquaredActivation", "LinearActivation", "Identity", "Tanh"}
"""Activations that are the same in vector and in scalar code."""


class _ByRows:
    """Mixed into an activation: computes as many rows together as make no difference, in vector code alone."""

    def forward(self, input: Tensor, *more: Any, **options: Any) -> Tensor:
        """Apply the activation to `[..., width]`."""
        width, apply = input.shape[-1], super().forward  # type: ignore[misc]
        rows = F.pad(input.reshape(-1, width), (0, -width % _VECTOR))
        together = max(1, _SERIAL // rows.shape[1])
        parts = [apply(part, *more, **options) for part in rows.split(together)]
        return torch.cat(parts)[:, :width].reshape(input.shape)


def _by_rows(kind: type[nn.Module]) -> type[nn.Module]:
    """The class by its name in this module, so that a model can be pickled."""
    name = f"{kind.__name__}ByRows"
    globals()[name] = made = type(name, (_ByRows, kind), {"__module__": __name__})
    return made


_KINDS = {
    kind: _by_rows(kind)
    for kind in {each[0] if isinstance(each, tuple) else each for each in ACT2CLS.values()}
    | {nn.GELU, nn.Mish, nn.Softplus}
    if kind.__name__ not in _EXACT
}


def use_row_activations(model: nn.Module) -> None:
    """Switch the activation modules of a model on a CPU, in place; their names and parameters stay.

    An activation that a model's code calls as a function is not changed.
    """
    for module in model.modules():
        module.__class__ = _KINDS.get(type(module), type(module))
