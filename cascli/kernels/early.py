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

from cascli.kernels import switched_off

VARIABLE = "CASCLI_PDL"
"""Environment variable that switches it off, with 0."""
_off: set[torch.device] = set()


@triton.jit
def wait(EARLY: tl.constexpr):
    """Wait for the previous kernel and allow the next one to launch; must be the first call in a kernel."""
    if EARLY:
        gdc_wait()
        gdc_launch_dependents()


@cache
def used(device: torch.device) -> bool:
    """Whether kernels are launched early on a device."""
    if device.type != "cuda" or device in _off or switched_off(VARIABLE):
        return False
    return torch.cuda.get_device_capability(device) >= (9, 0)


def switch(device: torch.device, *, on: bool) -> None:
    """Use it on a device no longer, or again where it can be."""
    (_off.discard if on else _off.add)(device)
    used.cache_clear()


def launching(device: torch.device) -> dict[str, Any]:
    """Launch arguments, on a device, of a kernel that starts with `wait`."""
    return {"EARLY": True, "launch_pdl": True} if used(device) else {"EARLY": False}
