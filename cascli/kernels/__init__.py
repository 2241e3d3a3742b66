"""Triton kernels for what decoding on a GPU does besides multiplying by weights; imported where they are used."""

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
"""What a gated product may be gated by, under transformers' names."""


class Norm(NamedTuple):
    """A root-mean-square norm: `x / sqrt(mean(x^2) + epsilon) weight`."""

    weight: Tensor
    epsilon: float
    offset: bool = False
    """Whether weights are kept less 1, as in Gemma."""


@cache
def serve(device: torch.device) -> bool:
    """Whether there are kernels for a device; where there are none, torch's own operations do the same.

    Triton builds its launcher with a C compiler when it is first used, and slim images have none: then this warns.
    """
    if device.type != "cuda":
        return False
    # Sums and products are joined, as they are by default until Triton 3.10; saying so also silences 3.9's warning.
    os.environ.setdefault("TRITON_DEFAULT_FP_FUSION", "1")
    try:
        from triton.runtime import driver

        _ = driver.active.utils
    except Exception as error:  # whatever a compiler, a linker or a driver may say
        warnings.warn(f"no Triton kernels; using torch's own operations instead (slower): {error}", stacklevel=2)
        return False
    return True


def on_its_device(
    launch: Callable[Concatenate[Tensor, Rest], Result],
) -> Callable[Concatenate[Tensor, Rest], Result]:
    """Launch kernels on the device of the first argument; Triton takes the thread's current one."""

    @wraps(launch)
    def launched(first: Tensor, *args: Rest.args, **named: Rest.kwargs) -> Result:
        with torch.cuda.device_of(first):
            return launch(first, *args, **named)

    return launched
