"""Peak memory of a run, on devices that keep account of it."""

from __future__ import annotations

import sys

import torch


def reset_peak(device: torch.device) -> None:
    """Begin a new measurement where the device allows it."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def peak(device: torch.device) -> int | None:
    """Bytes at the highest point since `reset_peak`.

    None on a CPU, where the system knows no more than the highest point of the whole process so far: all strategies
    of a comparison would have the same number.
    """
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None


def process_peak() -> int | None:
    """Bytes at the highest point of this process since it began; None where there is no such account."""
    try:
        import resource
    except ImportError:  # Windows has none
        return None
    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return used if sys.platform == "darwin" else used * 1024
