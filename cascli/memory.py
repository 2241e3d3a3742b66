"""Peak memory of a run: the device's on CUDA, the whole process's on a CPU."""

from __future__ import annotations

import sys

import torch


def reset_peak(device: torch.device) -> None:
    """Begin a new measurement where the device allows it."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def peak(device: torch.device) -> int | None:
    """Bytes at the highest point: since `reset_peak` on CUDA, since the process began on a CPU; None if unknown."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        import resource
    except ImportError:  # Windows has no such account
        return None
    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return used if sys.platform == "darwin" else used * 1024
