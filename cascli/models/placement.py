"""Where a model runs and in which precision: from the user's flags to torch's devices and dtypes."""

from __future__ import annotations

import torch

from cascli.errors import RunError
from cascli.models.cpu.int8_linear import can_int8

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16, "int8": torch.float32}
"""Dtype that a model is loaded in; int8 is quantized from float32."""
BYTES = {"float32": 4, "bfloat16": 2, "float16": 2, "int8": 1}
"""Bytes per weight in memory."""


def choose_device(name: str) -> torch.device:
    """The device for a flag; `auto` is CUDA if available.

    Raises:
        RunError: CUDA was requested and is not available.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    device = torch.device(name)
    if device.type == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if (device.index or 0) >= count:
            raise RunError(f"device '{name}': torch {torch.__version__} sees {count} CUDA devices; use --device cpu.")
        # Events and capability queries refer to the current device, which torch needs by its index.
        device = torch.device("cuda", torch.cuda.current_device() if device.index is None else device.index)
        torch.cuda.set_device(device)
        # From torch 2.11 on, torch's attention prefers cuDNN on Hopper and Blackwell. By reports, not yet measured,
        # that plans anew for every length of the text, which takes longer than a step, and on Blackwell it computes
        # wrong steps (pytorch issue 193893).
        torch.backends.cuda.enable_cudnn_sdp(False)
    return device


def choose_dtype(
    name: str,
    device: torch.device,
    *,
    may_round: bool = False,
    overflows: str | None = None,
    experts_of: str | None = None,
) -> str:
    """The precision for a flag; `auto` is float32 on a CPU and bfloat16 on a GPU that supports it.

    `may_round` is set for a large draft model: with `auto` on a CPU it runs in int8, which is two to three times as
    fast. The rounding changes which tokens are drafted but no law, because q is what the draft model computes, in any
    precision. `overflows` names models whose activations are too large for float16 (T5); for them `auto` falls back to
    float32 instead of float16. `experts_of` names models with experts: transformers keeps the matrices of all experts
    of a layer in one tensor, which int8's linear layers do not replace, so nearly all their weights would stay wide.

    Raises:
        RunError: int8 was requested on a device without kernels for it or for a mixture of experts, or float16 for
            models that overflow in it.
    """
    if name == "float16" and overflows:
        raise RunError(f"{overflows} overflow in float16; use --dtype bfloat16 or float32.")
    if name == "auto":
        if device.type == "cpu":
            return "int8" if may_round and can_int8() else "float32"
        if torch.cuda.is_bf16_supported(including_emulation=False):
            return "bfloat16"
        return "float32" if overflows else "float16"
    if name == "int8" and device.type != "cpu":
        raise RunError("int8 runs on a CPU only; use --dtype bfloat16 on a GPU.")
    if name == "int8" and experts_of:
        raise RunError(f"int8 does not round the experts of {experts_of}; use --dtype bfloat16 or float32.")
    return name
