"""How much memory is available, and how much of it sequences will take."""

from __future__ import annotations

import warnings
from pathlib import Path

import torch

from cascli.errors import PairWarning, RunError
from cascli.models.eagle3.head import Network
from cascli.models.size import cache_width, layer_configs, layers_of

_STATUS, _MACHINE = Path("/proc/self/status"), Path("/proc/meminfo")


def available(device: torch.device) -> int | None:
    """Bytes available on a device; None if the system does not report them."""
    if device.type == "cuda":
        kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)  # cached by torch for reuse
        return torch.cuda.mem_get_info(device)[0] + kept
    return _field("MemAvailable", _MACHINE)


def check_weights(source: object, size: int, dtype: str, *, drawn: bool) -> None:
    """Compare a model's weights with the memory that is left on the CPU, before the system ends the process in silence.

    Args:
        source: names the model.
        size: bytes of its weights.
        dtype: their precision.
        drawn: whether they are drawn at random, and so certainly take memory; files can be read again when needed.

    Raises:
        RunError: weights that are drawn do not fit; for others it is a warning.
    """
    room = available(torch.device("cpu"))
    if room is None or size <= room + (_field("SwapFree", _MACHINE) or 0):
        return
    words = f"{source}: its weights take {_gb(size)} in {dtype}, but {_gb(room)} of memory are available"
    if drawn:
        raise RunError(f"{words}; give its config smaller sizes, those left out are transformers' defaults.")
    warnings.warn(f"{words}; the system may end this command.", PairWarning, stacklevel=2)


def _gb(count: int) -> str:
    return f"{count / 1e9:.3g} GB"


def state_dtype(model: Network) -> torch.dtype:
    """Dtype of a model's activations, and so of its keys and values; its tables and matrices may be narrower."""
    # OLMo's norms have no weights.
    return next((each.dtype for each in model.parameters() if each.dim() == 1), model.config.dtype)


def token_bytes(model: Network) -> int:
    """Bytes of what is cached of one token, over all layers."""
    config = model.config.get_text_config()
    return sum(map(cache_width, layer_configs(config, layers_of(config)))) * state_dtype(model).itemsize


def resident(device: torch.device) -> int | None:
    """Bytes currently in use: by tensors on a GPU, by the process on a CPU; None if the system does not report them."""
    return torch.cuda.memory_allocated(device) if device.type == "cuda" else _field("VmRSS", _STATUS)


def reset_peak(device: torch.device) -> bool:
    """Restart the tracking of the peak of `resident`; returns whether the system supports it."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return True
    try:
        Path("/proc/self/clear_refs").write_text("5")  # Linux: resets the peak to the current value
    except OSError:
        return False
    return True


def peak(device: torch.device) -> int | None:
    """Peak of `resident` since `reset_peak`."""
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else _field("VmHWM", _STATUS)


def _field(name: str, file: Path) -> int | None:
    try:
        lines = file.read_text().splitlines()
    except OSError:
        return None
    entry = next((line for line in lines if line.startswith(f"{name}:")), None)
    return None if entry is None else int(entry.split()[1]) * 1024
