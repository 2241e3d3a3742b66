"""Packed int8 weights kept on disk, because packing them takes far longer than reading them.

Only oneDNN's: FBGEMM does not show what it packs. The packed order is oneDNN's own: it depends on the processor and on
the version of torch, so a file is named after both and after the checkpoint that it was made from, and each layer's
layout is compared before its bytes are used. A file that does not fit is made anew; one that cannot be written is done
without.
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from cascli.models import size
from cascli.models.cpu.int8_kernels import OneDnnWeights
from cascli.models.cpu.int8_linear import Int8Linear
from cascli.weights.home import cache_home

_FORMAT = 1


class PackedStore:
    """The file for one checkpoint on this machine."""

    def __init__(self, folder: Path) -> None:
        self._family = hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:12]
        self.path = cache_home() / "packed" / f"{folder.name}-{self._family}-{_key(folder)}.safetensors"
        self._templates: dict[torch.Size, Tensor] = {}
        self._outdated = False

    def restore(self, name: str, shape: torch.Size, has_bias: bool) -> Int8Linear | None:
        """A layer of weights `[out, in]`; None if it is not there or was made for other kernels."""
        restored = None if self._outdated else self._restore(name, shape, has_bias)
        self._outdated = restored is None
        return restored

    def _restore(self, name: str, shape: torch.Size, has_bias: bool) -> Int8Linear | None:
        try:
            with safe_open(self.path, framework="pt") as file:
                saved, layout, scales = (file.get_tensor(f"{name}.{part}") for part in ("packed", "layout", "scales"))
                bias = file.get_tensor(f"{name}.bias").clone() if has_bias else None
        except (OSError, SafetensorError):
            return None
        packed = self._empty(shape)
        same_layout = torch.equal(torch.ops.mkldnn._get_mkldnn_serialized_md(packed), layout)
        if not same_layout or torch.ops.mkldnn._nbytes(packed) != saved.numel() or scales.shape != shape[:1]:
            return None
        ctypes.memmove(torch.ops.mkldnn.data_ptr(packed), saved.data_ptr(), saved.numel())
        return Int8Linear(OneDnnWeights(packed, scales.clone()), bias)

    def _empty(self, shape: torch.Size) -> Tensor:
        """A packed tensor of a shape to copy bytes into; only the first of a shape is really packed."""
        if shape not in self._templates:
            self._templates[shape] = OneDnnWeights.pack(torch.zeros(shape, dtype=torch.int8))
        return self._templates[shape].clone()

    def save(self, model: nn.Module) -> None:
        """Keep the packed layers of a large model that had to be packed; does nothing where that is not possible."""
        if not self._outdated or sum(layer.weight_count for _, layer, _ in _layers(model)) < size.LARGE:
            return
        partial = self.path.with_name(f"{self.path.name}.{os.getpid()}.part")
        with contextlib.suppress(OSError, SafetensorError):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            save_file(dict(_tensors(model)), partial)
            partial.replace(self.path)
            for old in self.path.parent.glob(f"*-{self._family}-*"):
                if old != self.path:
                    old.unlink()
        with contextlib.suppress(OSError):
            partial.unlink()


def _key(folder: Path) -> str:
    files = sorted(folder.glob("*.safetensors"))
    states = [f"{file.name} {file.stat().st_size} {file.stat().st_mtime_ns}" for file in files]
    kernels = [str(_FORMAT), torch.__version__, torch.backends.cpu.get_cpu_capability()]
    return hashlib.sha256("\n".join(states + kernels).encode()).hexdigest()[:12]


def _layers(model: nn.Module) -> Iterator[tuple[str, Int8Linear, OneDnnWeights]]:
    """Names, layers, and what is to be kept of them."""
    for name, layer in model.named_modules():
        if isinstance(layer, Int8Linear) and isinstance(layer.weights, OneDnnWeights):
            yield name, layer, layer.weights


def _tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """What is kept of each layer; the packed bytes are looked at where they lie."""
    for name, layer, kept in _layers(model):
        size = torch.ops.mkldnn._nbytes(kept.packed)
        memory = (ctypes.c_uint8 * size).from_address(torch.ops.mkldnn.data_ptr(kept.packed))
        yield f"{name}.packed", torch.frombuffer(memory, dtype=torch.uint8)
        yield f"{name}.layout", torch.ops.mkldnn._get_mkldnn_serialized_md(kept.packed)
        yield f"{name}.scales", kept.scales
        if layer.bias is not None:
            yield f"{name}.bias", layer.bias
