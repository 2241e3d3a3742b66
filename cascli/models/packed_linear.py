"""Linear layers on a CPU through oneDNN, with weights packed once into the order that its kernels read.

Decoding multiplies one to nine rows by weights that are far larger than the caches. torch's own product takes two to
three times as long for two rows as for one, and sums in another order for one row than for five; the packed product
is bound by memory for all of them, and gives each row the same bits whatever block it comes in (measurements in
benchmarks/LOG.md). A single row is doubled, because oneDNN has another kernel for vectors.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

_ROWS_HINT = 8
"""The number of rows that the packing is chosen for; others are served too."""


class PackedLinear(nn.Module):
    """A linear layer whose weights lie in oneDNN's order; float32, or bfloat16 where the processor has units for it."""

    bias: Tensor | None

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self.out_features, self.in_features = weight.shape
        self.packed = torch.ops.mkldnn._reorder_linear_weight(weight.detach().contiguous(), _ROWS_HINT)
        self.register_buffer("bias", None if bias is None else bias.detach().to(weight.dtype))

    @property
    def weight(self) -> Tensor:
        """The weights in their usual order: a copy."""
        return self.packed.to_dense()

    @property
    def weight_count(self) -> int:
        """How many weights the layer has."""
        return self.in_features * self.out_features

    @property
    def weight_bytes(self) -> int:
        """What they take in memory."""
        return self.weight_count * self.packed.element_size()

    def forward(self, input: Tensor) -> Tensor:
        """Multiply `[..., in_features]` by the weights and add the bias."""
        rows = input.reshape(-1, self.in_features)
        n = rows.shape[0]
        if n == 1:
            rows = rows.expand(2, -1).contiguous()
        out = torch.ops.mkldnn._linear_pointwise(rows, self.packed, self.bias, "none", [], "")
        return out[:n].reshape(*input.shape[:-1], self.out_features)


def can_pack(dtype: torch.dtype) -> bool:
    """Whether this build of torch and this processor pack weights of a precision."""
    if not torch.backends.mkldnn.is_available():
        return False
    if dtype == torch.bfloat16:
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    return dtype == torch.float32
