"""Packed weights kept on disk, because packing them, and the fresh memory that it takes, cost more than reading them.

Only oneDNN's are kept: FBGEMM does not expose what it packs. The packed order is oneDNN's own and depends on the
processor and the version of torch, so a file is named after both and after the checkpoint that it was made from, and
each layer's layout is compared before its bytes are used. A file that does not match is rebuilt; if a file cannot be
written, loading works without it. Layers are used directly from the mapped file (see `mapped`). Both float32 and int8
are kept.
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from cascli.models import size
from cascli.models.cpu.int8_kernels import OneDnnWeights, int8_kernel
from cascli.models.cpu.int8_linear import Int8Linear
from cascli.models.cpu.mapped import around, bytes_of, layout_of, read_ahead
from cascli.models.cpu.packed_linear import PackedLinear
from cascli.weights.home import PACKED, cache_home, packed_family

_FORMAT = 1
_COMPARED = 2**22
"""Largest number of weights for which a layer's layout is recomputed for comparison; larger layers take a second."""
_ALIGNMENT = 64
_KEY = 12
"""Number of hex digits in a file's name that identify the checkpoint, torch and the processor."""
_DTYPES = {torch.float32: "F32", torch.uint8: "U8"}


class PackedStore:
    """The file for one checkpoint in one precision on this machine."""

    def __init__(self, folder: Path, dtype: str, cut: str = "") -> None:
        """`cut` identifies a model whose head was cut; its layers get a separate file from the whole model's."""
        self._int8 = dtype == "int8"
        self._family = packed_family(folder, dtype)
        self._cut = cut and f"-cut-{cut}"
        self.path = cache_home() / "packed" / f"{folder.name}-{self._family}-{_key(folder)}{self._cut}.safetensors"
        self._templates: dict[torch.Size, Tensor] = {}
        self._file: Any = None
        self._shapes: dict[str, list[int]] | None = None
        """Shapes `[out, in]` of layers whose layouts are known to be as written; None for files of older releases."""
        self._outdated = False
        self._open()

    @staticmethod
    def keeps(dtype: str) -> bool:
        """Whether layers of a precision are worth a file."""
        return dtype in PACKED

    @property
    def is_usable(self) -> bool:
        """Whether layers can be taken from the file, as far as is known."""
        return self._file is not None and not self._outdated

    def _open(self) -> None:
        """Map the file, if it exists and the layouts in it are those that were written."""
        with contextlib.suppress(OSError, SafetensorError, ValueError, KeyError):
            # Entered and never exited: the mapping is released together with the last layer that uses it.
            file = safe_open(self.path, framework="pt").__enter__()
            metadata = file.metadata()
            if metadata:
                if metadata["layouts"] != _digest({name: file.get_tensor(name) for name in _layouts(file.keys())}):
                    return
                self._shapes = json.loads(metadata["shapes"])
            self._file = file

    def restore(self, name: str, shape: torch.Size, has_bias: bool) -> Int8Linear | PackedLinear | None:
        """A layer of weights `[out, in]`; None if it is missing or was packed for other kernels."""
        restored = self._restore(name, shape, has_bias) if self.is_usable else None
        self._outdated = restored is None
        return restored

    def _restore(self, name: str, shape: torch.Size, has_bias: bool) -> Int8Linear | PackedLinear | None:
        try:
            saved, layout = (self._file.get_tensor(f"{name}.{part}") for part in ("packed", "layout"))
            scales = self._file.get_tensor(f"{name}.scales").clone() if self._int8 else None
            bias = self._file.get_tensor(f"{name}.bias").clone() if has_bias else None
        except (OSError, SafetensorError):
            return None
        if not self._fits(name, shape, saved, layout) or (scales is not None and scales.shape != shape[:1]):
            return None
        packed = self._packed(shape, saved, layout)
        if torch.ops.mkldnn._nbytes(packed) != saved.numel():
            return None
        read_ahead(saved)
        if scales is None:
            return PackedLinear.of_packed(packed, bias)
        kernel = int8_kernel()
        if kernel is None or not issubclass(kernel, OneDnnWeights):
            return None
        return Int8Linear(kernel(packed, scales), bias)

    def _fits(self, name: str, shape: torch.Size, saved: Tensor, layout: Tensor) -> bool:
        """Whether the bytes are what this machine would pack a layer of weights `[out, in]` into."""
        if self._shapes is not None and shape.numel() > _COMPARED:
            # The layout is as written (see `_open`); smaller layers of the file are compared.
            return self._shapes.get(name) == list(shape)
        template = self._template(shape)
        return torch.equal(layout_of(template), layout) and torch.ops.mkldnn._nbytes(template) == saved.numel()

    def _packed(self, shape: torch.Size, saved: Tensor, layout: Tensor) -> Tensor:
        """The packed tensor with these bytes: without a copy where possible."""
        opaque, dtype = ((shape[1], shape[0]), torch.int8) if self._int8 else ((shape[0], shape[1]), torch.float32)
        packed = around(saved, layout, opaque, dtype)
        if packed is None:
            packed = self._template(shape).clone()
            if torch.ops.mkldnn._nbytes(packed) == saved.numel():
                ctypes.memmove(torch.ops.mkldnn.data_ptr(packed), saved.data_ptr(), saved.numel())
        return packed

    def _template(self, shape: torch.Size) -> Tensor:
        """A packed tensor of a shape, for its layout; packed only once per shape."""
        if shape not in self._templates:
            zeros = torch.zeros(shape, dtype=torch.int8 if self._int8 else torch.float32)
            self._templates[shape] = OneDnnWeights.pack(zeros) if self._int8 else PackedLinear.pack(zeros)
        return self._templates[shape]

    def needs(self, model: nn.Module) -> bool:
        """Whether a model's layers had to be packed, and are large enough in total to be worth a file."""
        return self._outdated and sum(layer.weight_count for _, layer, _ in _layers(model)) >= size.LARGE

    def save(self, model: nn.Module) -> None:
        """Save the packed layers of a model, unless that fails or would take more than half the free disk space."""
        partial = self.path.with_name(f"{self.path.name}.{os.getpid()}.part")
        self._file = None
        with contextlib.suppress(OSError):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            tensors = dict(_tensors(model))
            if 2 * sum(each.nbytes for each in tensors.values()) > shutil.disk_usage(self.path.parent).free:
                return
            shapes = {name: [layer.out_features, layer.in_features] for name, layer, _ in _layers(model)}
            _write(partial, tensors, {"layouts": _digest(tensors), "shapes": json.dumps(shapes)})
            partial.replace(self.path)
            for old in self.path.parent.glob(f"*-{self._family}-{'?' * _KEY}{self._cut}.safetensors"):
                if old != self.path:
                    old.unlink()
        with contextlib.suppress(OSError):
            partial.unlink()


def _key(folder: Path) -> str:
    files = sorted(folder.glob("*.safetensors"))
    states = [f"{file.name} {file.stat().st_size} {file.stat().st_mtime_ns}" for file in files]
    kernels = [str(_FORMAT), torch.__version__, torch.backends.cpu.get_cpu_capability()]
    return hashlib.sha256("\n".join(states + kernels).encode()).hexdigest()[:_KEY]


def _layers(model: nn.Module) -> Iterator[tuple[str, Int8Linear | PackedLinear, Tensor]]:
    """The name, layer and packed tensor of each layer to be kept."""
    for name, layer in model.named_modules():
        if isinstance(layer, Int8Linear) and isinstance(layer.weights, OneDnnWeights):
            yield name, layer, layer.weights.packed
        elif isinstance(layer, PackedLinear) and layer.packed.dtype == torch.float32:
            yield name, layer, layer.packed


def _tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """The tensors to keep of each layer; the packed bytes come first, so that they are aligned to cache lines."""
    for name, _, packed in _layers(model):
        yield f"{name}.packed", bytes_of(packed)
    for name, layer, packed in _layers(model):
        yield f"{name}.layout", layout_of(packed)
        if isinstance(layer, Int8Linear) and isinstance(layer.weights, OneDnnWeights):
            yield f"{name}.scales", layer.weights.scales
        if layer.bias is not None:
            yield f"{name}.bias", layer.bias


def _layouts(names: Iterable[str]) -> list[str]:
    return sorted(name for name in names if name.endswith(".layout"))


def _digest(tensors: Mapping[str, Tensor]) -> str:
    """A digest that shows whether the layouts are as written, and belong to the layers they were written for."""
    digest = hashlib.sha256()
    for name in _layouts(tensors):
        digest.update(name.encode() + tensors[name].numpy().tobytes())
    return digest.hexdigest()


def _write(path: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str]) -> None:
    """Write a safetensors file tensor by tensor: the library's own writer would hold a second copy of all tensors."""
    header: dict[str, Any] = {"__metadata__": metadata}
    end = 0
    for name, tensor in tensors.items():
        start, end = end, end + tensor.nbytes
        header[name] = {"dtype": _DTYPES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-(len(text) + 8) % _ALIGNMENT)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for tensor in tensors.values():
            file.write(tensor.contiguous().numpy().data.cast("B"))
