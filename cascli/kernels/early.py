"""Launching a kernel before the previous one has finished: programmatic dependent launch (Hopper and later GPUs).

Such a kernel waits for the previous one to finish and reads and writes nothing until then. This saves the launch
latency between the two.
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
    """Wait for the previous kernel and allow the next one to launch; must be the first call in a kernel."""
    if EARLY:
        gdc_wait()
        gdc_launch_dependents()


@cache
def launching(device: torch.device) -> dict[str, Any]:
    """Launch arguments, on a device, of a kernel that starts with `wait`."""
    early = device.type == "cuda" and torch.cuda.get_device_capability(device) >= (9, 0)
    return {"EARLY": True, "launch_pdl": True} if early else {"EARLY": False}
