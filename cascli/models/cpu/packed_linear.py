"""Linear layers on a CPU through oneDNN, with the weights of large models packed once into its own order.

Decoding multiplies one to nine rows by weights that are far larger than the caches. torch's own product takes two to
three times as long for two rows as for one, and sums in a different order for one row than for five. The packed product
is memory-bound for all of these, and gives a row the same bits in any block (measurements in benchmarks/LOG.md).

A single row becomes two, because oneDNN has another kernel for vectors. On some processors its kernel for five rows
takes 0.6 times as long as that for two, so fewer rows are filled up: `choose_rows` measures to how many. Otherwise the
target alone would be slower than it need be, and all that is compared with it would look too fast.
"""

from __future__ import annotations

import time
from itertools import accumulate
from statistics import median
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_ROWS_HINT = 8
"""The number of rows that the packing is optimised for; any number works."""
_FEWEST = 2
"""Rows of every product at least; one row has a kernel of its own, which sums in another order."""
_CANDIDATES = (2, 4, 5, 6)
"""Numbers of rows that `choose_rows` times."""
_SAMPLE = 400_000_000
"""Bytes of weights to time, if there are as many."""
_LEAST = 150_000_000
"""Bytes of weights below which nothing is timed: many processors hold them in their caches."""
_GAIN = 0.92
"""Time relative to that of two rows from which more rows are worth it."""


class PackedLinear(nn.Module):
    """A linear layer with weights in oneDNN's order; float32, or bfloat16 where the processor has units for it."""

    bias: Tensor | None
    fewest_rows = _FEWEST
    """Fewer rows are filled up with zeros to this number; it changes no row's bits."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        """Pack weights `[out, in]`; the bias `[out]` is converted to their precision."""
        super().__init__()
        self._take(self.pack(weight), bias)

    @staticmethod
    def pack(weight: Tensor) -> Tensor:
        """Weights `[out, in]` in oneDNN's order; an opaque tensor of the same shape."""
        return torch.ops.mkldnn._reorder_linear_weight(weight.detach().contiguous(), _ROWS_HINT)

    @classmethod
    def of_packed(cls, packed: Tensor, bias: Tensor | None) -> Self:
        """A layer from what `pack` returned."""
        layer = cls.__new__(cls)
        nn.Module.__init__(layer)
        layer._take(packed, bias)
        return layer

    def _take(self, packed: Tensor, bias: Tensor | None) -> None:
        self.packed = packed
        self.out_features, self.in_features = packed.shape
        self.register_buffer("bias", None if bias is None else bias.detach().to(packed.dtype))

    @property
    def weight(self) -> Tensor:
        """The weights in their usual order: a copy."""
        return self.packed.to_dense()

    @property
    def weight_count(self) -> int:
        """Number of weights."""
        return self.in_features * self.out_features

    @property
    def weight_bytes(self) -> int:
        """Bytes that the weights take in memory."""
        return self.weight_count * self.packed.element_size()

    def forward(self, input: Tensor) -> Tensor:
        """Multiply `[..., in_features]` by the weights and add the bias."""
        return _product(input, self.packed, self.bias, self.fewest_rows)


class DenseLinear(nn.Linear):
    """`nn.Linear` with its usual parameters, through the same kernels as `PackedLinear` but without the packing.

    For small models, where packing gains nothing and users may want to inspect or change the weights.
    """

    @classmethod
    def of(cls, weight: Tensor, bias: Tensor | None) -> Self:
        """A layer from weights `[out, in]` and bias `[out]`."""
        with torch.device("meta"):
            layer = cls(weight.shape[1], weight.shape[0], bias=bias is not None)
        layer.weight = nn.Parameter(weight.detach().contiguous(), requires_grad=False)
        if bias is not None:
            layer.bias = nn.Parameter(bias.detach().to(weight.dtype), requires_grad=False)
        return layer

    def forward(self, input: Tensor) -> Tensor:
        """Multiply `[..., in_features]` by the weights and add the bias."""
        if input.device.type != "cpu" or not can_pack(input.dtype):
            return super().forward(input)
        return _product(input, self.weight, self.bias, _FEWEST)


def choose_rows(model: nn.Module) -> int:
    """Measure at how many rows the model's packed layers are fastest, let fewer rows be filled up to it, and return it.

    Layers are timed in turn on a part of the weights that caches do not hold; a small model is left as it is, and so
    is one whose rows would not keep their bits: the same tokens must come out whatever was measured.
    """
    layers = [layer for layer in model.modules() if isinstance(layer, PackedLinear)]
    sizes = list(accumulate(layer.weight_bytes for layer in layers))
    if not sizes or sizes[-1] < _LEAST:
        return _FEWEST
    sample = layers[: 1 + next((i for i, size in enumerate(sizes) if size >= _SAMPLE), len(layers))]
    times: dict[int, list[float]] = {rows: [] for rows in _CANDIDATES}
    _seconds(sample, _FEWEST)  # reads the weights from disk, if they are mapped
    for _ in range(5):
        for rows, each in times.items():
            each.append(_seconds(sample, rows))
    best = min(times, key=lambda rows: min(times[rows]))
    faster = all(of(times[best]) < _GAIN * of(times[_FEWEST]) for of in (min, median))  # not by chance
    chosen = best if faster and _same_bits(layers, best) else _FEWEST
    for layer in layers:
        layer.fewest_rows = chosen
    return chosen


def _seconds(layers: list[PackedLinear], rows: int) -> float:
    """Time for one product with each of the layers."""
    inputs = {layer.in_features: torch.zeros(rows, layer.in_features, dtype=layer.packed.dtype) for layer in layers}
    start = time.perf_counter()
    for layer in layers:
        _product(inputs[layer.in_features], layer.packed, layer.bias, _FEWEST)
    return time.perf_counter() - start


def _same_bits(layers: list[PackedLinear], rows: int) -> bool:
    """Return whether fewer rows keep their bits when filled up to `rows`, in every shape of layer."""
    numbers = torch.Generator().manual_seed(0)
    for layer in {layer.packed.shape: layer for layer in layers}.values():
        x = torch.randn(rows, layer.in_features, generator=numbers).to(layer.packed.dtype)
        for n in range(1, rows):
            plain, filled = (_product(x[:n], layer.packed, layer.bias, fewest) for fewest in (_FEWEST, rows))
            if not torch.equal(plain, filled):
                return False
    return True


def _product(input: Tensor, weight: Tensor, bias: Tensor | None, fewest: int) -> Tensor:
    rows = input.reshape(-1, input.shape[-1])
    n = rows.shape[0]
    if n < fewest:
        rows = F.pad(rows, (0, 0, 0, fewest - n))
    out = torch.ops.mkldnn._linear_pointwise(rows, weight, bias, "none", [], "")
    return out[:n].reshape(*input.shape[:-1], out.shape[-1])


def can_pack(dtype: torch.dtype) -> bool:
    """Whether this build of torch can pack weights of a precision on this processor."""
    if not torch.backends.mkldnn.is_available():
        return False
    if dtype == torch.bfloat16:
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    return dtype == torch.float32
