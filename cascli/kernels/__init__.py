"""Triton kernels for decoding on a GPU; each module is imported where it is used."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import cache, wraps
from typing import Concatenate, NamedTuple, ParamSpec, TypeVar

import torch
from torch import Tensor

from cascli.errors import first_line

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


VARIABLE = "CASCLI_KERNELS"
"""Environment variable that switches the kernels off, with 0."""
_withdrawn: dict[torch.device, str] = {}


def serve(device: torch.device) -> bool:
    """Whether the kernels run on a device; elsewhere torch's own operations compute the same."""
    return missing(device) is None


def missing(device: torch.device) -> str | None:
    """Why the kernels do not run on a device, worded for the user; None if they do."""
    if device.type != "cuda":
        return "they run on GPUs only"
    return _withdrawn.get(device) or _not_launched()


def withdraw(device: torch.device, why: str) -> None:
    """Use the kernels no longer on a device, because they failed there."""
    _withdrawn[device] = why


def switched_off(variable: str) -> bool:
    """Whether an environment variable is a word for no."""
    return os.environ.get(variable, "").lower() in ("0", "false", "no", "off")


@cache
def _not_launched() -> str | None:
    """Why no kernel can be launched; None if they can.

    Triton builds its launcher with a C compiler on first use. Slim images have none.
    """
    if switched_off(VARIABLE):
        return f"{VARIABLE} switches them off"
    # Fuse multiplications with additions, the default until Triton 3.10; setting it also silences 3.9's warning.
    os.environ.setdefault("TRITON_DEFAULT_FP_FUSION", "1")
    try:
        from triton.runtime import driver

        _ = driver.active.utils
    except Exception as error:  # anything that a compiler, a linker or a driver may raise
        return first_line(error)
    return None


def on_its_device(
    launch: Callable[Concatenate[Tensor, Rest], Result],
) -> Callable[Concatenate[Tensor, Rest], Result]:
    """Launch kernels on the device of the first argument; Triton uses the thread's current device."""

    @wraps(launch)
    def launched(first: Tensor, *args: Rest.args, **named: Rest.kwargs) -> Result:
        with torch.cuda.device_of(first):
            return launch(first, *args, **named)

    return launched
