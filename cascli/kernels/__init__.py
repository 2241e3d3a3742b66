"""Triton kernels for what decoding on a GPU does besides multiplying by weights; imported where they are used."""

from __future__ import annotations

from functools import cache
from importlib.util import find_spec

import torch


@cache
def serve(device: torch.device) -> bool:
    """Whether there are kernels for a device; where there are none, torch's own operations do the same."""
    return device.type == "cuda" and find_spec("triton") is not None
