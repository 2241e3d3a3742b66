"""Memory of a run: its peak, on devices that keep account of it, and what is said when there is not enough."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from cascli.errors import RunError


@contextmanager
def shortage_told(device: torch.device) -> Iterator[None]:
    """Say what to do where memory runs out.

    Raises:
        RunError: it did.
    """
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError) as error:
        raise RunError(f"out of memory on {device}: {error}\nTry a smaller --dtype or pair.") from None


def reset_device_peak(device: torch.device) -> None:
    """Begin a new measurement where the device allows it."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def device_peak(device: torch.device) -> int | None:
    """Bytes at the highest point since `reset_device_peak`.

    None on a CPU, where the system knows no more than the highest point of the whole process so far: all strategies
    of a comparison would have the same number.
    """
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None
