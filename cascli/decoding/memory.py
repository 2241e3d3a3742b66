"""Memory of a run: its peak, on devices that track it, and the error when it runs out."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from cascli.errors import RunError


@contextmanager
def explain_out_of_memory(device: torch.device) -> Iterator[None]:
    """Turn running out of memory into an error that says what to do.

    Raises:
        RunError: memory ran out.
    """
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError) as error:
        raise RunError(f"out of memory on {device}: {error}\nTry a smaller --dtype or pair.") from None


def reset_device_peak(device: torch.device) -> None:
    """Start a new measurement, where the device supports it."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def device_peak(device: torch.device) -> int | None:
    """Peak memory in bytes since `reset_device_peak`.

    None on a CPU, where the system reports only the peak of the whole process so far: all strategies of a comparison
    would get the same number.
    """
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None
