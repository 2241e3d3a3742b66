"""Where a model runs and in which precision: from what the user said to what torch takes."""

from __future__ import annotations

import torch

from cascli.errors import RunError
from cascli.models.cpu.int8_linear import can_int8

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16, "int8": torch.float32}
"""What a model is loaded in; int8 starts from float32."""
BYTES = {"float32": 4, "bfloat16": 2, "float16": 2, "int8": 1}
"""What a weight takes in memory."""


def choose_device(name: str) -> torch.device:
    """The device for a flag; `auto` is CUDA if there is one.

    Raises:
        RunError: CUDA was asked for and is not there.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    device = torch.device(name)
    if device.type == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if (device.index or 0) >= count:
            raise RunError(f"device '{name}': torch {torch.__version__} sees {count} CUDA devices; use --device cpu.")
        # Events and capability questions speak of the current device; torch wants it by its number.
        device = torch.device("cuda", torch.cuda.current_device() if device.index is None else device.index)
        torch.cuda.set_device(device)
    return device


def choose_dtype(name: str, device: torch.device, *, may_round: bool = False, overflows: str | None = None) -> str:
    """The precision for a flag; `auto` is float32 on a CPU and bfloat16 on a GPU that has it.

    `may_round` is said of a large draft model: on a CPU it becomes int8, which is two to three times as fast. Its
    rounding changes which drafts are offered, and no law: q is what the draft model computed, in whatever precision.
    `overflows` names models whose activations are too large for float16 (T5): they run in float32 instead.

    Raises:
        RunError: int8 was asked for on a device that has no kernels for it here, or float16 for what overflows in it.
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
        raise RunError("--dtype int8 runs on a CPU only; use bfloat16 on a GPU.")
    return name
