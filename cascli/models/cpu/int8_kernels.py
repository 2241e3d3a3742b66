"""Products of 8-bit weights on a CPU: one kernel for each kind of processor, all of them exact.

A product takes digits (integers of at most `most` in magnitude, as float32 `[rows, in]`, then `encoded`) and returns
the sums of digit times weight level, times the scale of the output channel, `[rows, out]`. Sums are integers, so a
row's result does not depend on the other rows.
"""

from __future__ import annotations

import warnings
from functools import cache
from typing import Any, ClassVar, Protocol, Self

import torch
import torch.nn.functional as F
from torch import Tensor

_ROWS_HINT = 8
"""The number of rows that a packing is optimised for; any number works."""
_MOST_REFERENCE = 256
"""The most outputs, rows times channels, for which oneDNN (of torch 2.13) multiplies signed bytes without AMX."""
LEVELS = 127.0
"""The largest magnitude of a weight level."""


class Int8Weights(Protocol):
    """Packed weight levels `[out, in]` with their scales, and the kernel that multiplies by them."""

    most: ClassVar[float]
    shape: tuple[int, int]

    @classmethod
    def of(cls, levels: Tensor, scales: Tensor) -> Self:
        """Pack int8 levels `[out, in]` with float32 scales `[out]`."""

    @classmethod
    def is_available(cls) -> bool:
        """Whether this build of torch has the kernel."""

    def encoded(self, digits: Tensor) -> Tensor:
        """Digits `[rows, in]` as `product` takes them; layers with the same input share them."""

    def product(self, encoded: Tensor) -> Tensor:
        """Encoded digits `[rows, in]` times the levels times their scales, `[rows, out]`."""


class OneDnnWeights:
    """oneDNN, for processors whose VNNI instructions add four 8-bit products without saturating.

    With AMX it is not exact: sums of unsigned digits are rounded to float32 before 128 times the levels' sum is taken
    from them. As oneDNN uses AMX only for larger products, a row's bits then also depend on the other rows.
    """

    most: ClassVar[float] = 127.0
    _zero: ClassVar[int] = 128

    def __init__(self, packed: Tensor, scales: Tensor) -> None:
        """Take what `pack` returned, and float32 scales `[out]`."""
        self.packed, self.scales = packed, scales
        self.shape = (packed.shape[1], packed.shape[0])
        self._zeros = torch.zeros(self.shape[0], dtype=torch.int32)
        self._shift = torch.tensor(float(self._zero))  # a number of Python's would be converted in each call

    @classmethod
    def of(cls, levels: Tensor, scales: Tensor) -> Self:
        """Pack levels and scales."""
        return cls(cls.pack(levels), scales)

    @staticmethod
    def pack(levels: Tensor) -> Tensor:
        """Int8 levels `[out, in]` in oneDNN's order; an opaque tensor of shape `[in, out]`."""
        return torch.ops.onednn.qlinear_prepack(levels, [_ROWS_HINT, levels.shape[1]])

    @classmethod
    def is_available(cls) -> bool:
        """Whether torch was built with oneDNN."""
        return torch.backends.mkldnn.is_available() and hasattr(torch.ops.onednn, "qlinear_pointwise")

    def encoded(self, digits: Tensor) -> Tensor:
        """See `Int8Weights`."""
        return (digits + self._shift).to(torch.uint8)

    def product(self, encoded: Tensor) -> Tensor:
        """See `Int8Weights`."""
        return torch.ops.onednn.qlinear_pointwise(
            encoded, 1.0, self._zero, self.packed, self.scales, self._zeros, None, 1.0, 0, torch.float32, "none", [], ""
        )


class SignedOneDnnWeights(OneDnnWeights):
    """oneDNN with signed digits, for processors with AMX, which multiply signed bytes.

    Elsewhere torch's oneDNN has only a reference implementation of this, hundreds of times slower; nor does it use AMX
    for products of at most `_MOST_REFERENCE` outputs. Such a product is filled up with rows of zeros.
    """

    _zero: ClassVar[int] = 0

    @classmethod
    def is_available(cls) -> bool:
        """Whether torch was built with oneDNN and the processor has AMX."""
        return super().is_available() and torch.cpu._is_amx_tile_supported()

    def encoded(self, digits: Tensor) -> Tensor:
        """See `Int8Weights`."""
        return digits.to(torch.int8)

    def product(self, encoded: Tensor) -> Tensor:
        """See `Int8Weights`."""
        rows = encoded.shape[0]
        least = _MOST_REFERENCE // self.shape[0] + 1
        if rows >= least:
            return super().product(encoded)
        return super().product(F.pad(encoded, (0, 0, 0, least - rows)))[:rows]


class FbgemmWeights:
    """FBGEMM, for processors without VNNI, where it is four times as fast as oneDNN.

    AVX2 adds pairs of products in 16 bits. Digits of 7 bits keep these sums in range: 2 * 128 * 127 < 2^15.
    """

    most: ClassVar[float] = 64.0
    _zero: ClassVar[int] = 64

    def __init__(self, packed: Any, shape: tuple[int, int]) -> None:
        """Take weights packed by FBGEMM, and their shape `[out, in]`."""
        self.packed, self.shape = packed, shape

    @classmethod
    def of(cls, levels: Tensor, scales: Tensor) -> Self:
        """Pack levels and scales."""
        with warnings.catch_warnings():
            # torch's quantised tensors are deprecated, but the only way to pass the scales to its FBGEMM kernel.
            warnings.simplefilter("ignore", UserWarning)
            zeros = torch.zeros(levels.shape[0], dtype=torch.long)
            weights = torch._make_per_channel_quantized_tensor(levels, scales.double(), zeros, 0)
            packed = torch.ops.quantized.linear_prepack(weights, None)
        return cls(packed, (levels.shape[0], levels.shape[1]))

    @classmethod
    def is_available(cls) -> bool:
        """Whether torch was built with FBGEMM, and uses it for quantisation."""
        operations = hasattr(torch.ops.quantized, "linear_with_input_q_dq_qweight_dq_output_fp32")
        engine = torch.backends.quantized.engine in ("x86", "fbgemm")
        return operations and engine and hasattr(torch, "_make_per_channel_quantized_tensor")

    def encoded(self, digits: Tensor) -> Tensor:
        """See `Int8Weights`."""
        return digits

    def product(self, encoded: Tensor) -> Tensor:
        """See `Int8Weights`."""
        return torch.ops.quantized.linear_with_input_q_dq_qweight_dq_output_fp32(encoded, 1.0, self._zero, self.packed)


KERNELS: tuple[type[Int8Weights], ...] = (OneDnnWeights, SignedOneDnnWeights, FbgemmWeights)
"""In order of preference; one that is not exact on this processor is skipped."""


@cache
def int8_kernel() -> type[Int8Weights] | None:
    """The kernel for this processor: the first that is available and exact."""
    return next((kernel for kernel in KERNELS if kernel.is_available() and is_exact(kernel)), None)


def is_exact(kernel: type[Int8Weights]) -> bool:
    """Whether sums neither saturate nor are rounded on the way, checked with the largest ones and with mixed ones.

    Mixed digits times the largest levels nearly cancel, but as unsigned digits have large sums. The product is large
    enough for oneDNN to use AMX.
    """
    rows, columns, most = 256, 2048, int(kernel.most)
    generator = torch.Generator().manual_seed(0)
    levels = torch.full((rows, columns), int(LEVELS), dtype=torch.int8)
    levels[1::2].neg_()
    digits = torch.randint(-most, most + 1, (16, columns), generator=generator).float()
    digits[0], digits[1] = most, -most
    try:
        weights = kernel.of(levels, torch.ones(rows))
        product = weights.product(weights.encoded(digits))
    except RuntimeError:  # the operation is registered, but not supported on this processor
        return False
    return torch.equal(product, (digits.double() @ levels.double().T).float())
