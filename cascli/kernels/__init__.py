"""Triton kernels for decoding on a GPU; each module is imported where it is used."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from functools import cache, wraps
from typing import Concatenate, NamedTuple, ParamSpec, TypeVar

import torch
from torch import Tensor

Rest = ParamSpec("Rest")
Result = TypeVar("Result")

ACTIVATIONS = {"silu": 1, "gelu_pytorch_tanh": 2}
"""Activations of a gated product, under transformers' names."""


class Norm(NamedTuple):
    """A root-mean-square norm: `x / sqrt(mean(x^2) + epsilon) weight`."""

    weight: Tensor
    epsilon: float
    offset: bool = False
    """Whether the stored weights are the actual ones minus 1, as in Gemma."""


@cache
def serve(device: torch.device) -> bool:
    """Whether the kernels run on a device; elsewhere torch's own operations compute the same.

    Triton builds its launcher with a C compiler on first use. Slim images have none; this then warns.
    """
    if device.type != "cuda":
        return False
    # Fuse multiplications with additions, the default until Triton 3.10; setting it also silences 3.9's warning.
    os.environ.setdefault("TRITON_DEFAULT_FP_FUSION", "1")
    try:
        from triton.runtime import driver

        _ = driver.active.utils
    except Exception as error:  # anything that a compiler, a linker or a driver may raise
        warnings.warn(f"no Triton kernels; using torch's own operations instead (slower): {error}", stacklevel=2)
        return False
    return True


def on_its_device(
    launch: Callable[Concatenate[Tensor, Rest], Result],
) -> Callable[Concatenate[Tensor, Rest], Result]:
    """Launch kernels on the device of the first argument; Triton uses the thread's current device."""

    @wraps(launch)
    def launched(first: Tensor, *args: Rest.args, **named: Rest.kwargs) -> Result:
        with torch.cuda.device_of(first):
            return launch(first, *args, **named)

    return launched
