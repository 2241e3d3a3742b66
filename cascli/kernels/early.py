"""Launching a kernel while the one before it ends: programmatic dependent launch, which GPUs have from Hopper on.

Such a kernel waits for the end of the one before it, and reads and writes nothing until then. What is saved is the time
from one's end to the other's beginning.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait


@triton.jit
def wait(EARLY: tl.constexpr):
    """First of all in a kernel: wait for what came before, and let what comes after be made ready."""
    if EARLY:
        gdc_wait()
        gdc_launch_dependents()


@cache
def launching(device: torch.device) -> dict[str, Any]:
    """What a kernel that begins with `wait` is launched with on a device."""
    early = device.type == "cuda" and torch.cuda.get_device_capability(device) >= (9, 0)
    return {"EARLY": True, "launch_pdl": True} if early else {"EARLY": False}
