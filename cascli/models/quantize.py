"""int8 weights for linear layers on a CPU, with logits that do not depend on the block they are computed in.

Weights get one scale per output channel. Activations are 8 bits too, and each row is scaled by its own
largest magnitude before the fused kernel sees it: the kernel's own dynamic scale is one per tensor, so
that a token's logits would depend on its neighbours and verification would not match decoding.
"""

from __future__ import annotations

import warnings

import torch
from torch import Tensor, nn

from cascli.errors import RunError

_LEVELS = 127.0


class Int8Linear(nn.Module):
    """A linear layer with fbgemm-packed int8 weights; takes and returns float32 `[..., features]`."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        weight = linear.weight.detach().float()
        scales = weight.abs().amax(dim=1).clamp_min(1e-12) / _LEVELS
        zeros = torch.zeros(self.out_features, dtype=torch.long)
        with warnings.catch_warnings():
            # torch deprecates its quantized tensors in favour of torchao; the packed kernels stay.
            warnings.simplefilter("ignore", UserWarning)
            quantized = torch.quantize_per_channel(weight, scales.double(), zeros, axis=0, dtype=torch.qint8)
        bias = None if linear.bias is None else linear.bias.detach().float()
        self.packed = torch.ops.quantized.linear_prepack(quantized, None)
        self.register_buffer("bias", bias)

    @property
    def weight_count(self) -> int:
        """How many weights the layer has."""
        return self.in_features * self.out_features

    @property
    def weight_bytes(self) -> int:
        """What they take in memory: a byte each, and a float64 scale per output channel."""
        return self.weight_count + 8 * self.out_features

    @property
    def weight(self) -> Tensor:
        """The dequantised weight, for code that looks at a layer's device or dtype."""
        return torch.ops.quantized.linear_unpack(self.packed)[0].dequantize()

    def forward(self, x: Tensor) -> Tensor:
        """X W^T + b with every row of x scaled on its own."""
        rows = x.reshape(-1, self.in_features)
        scale = rows.abs().amax(dim=1, keepdim=True).clamp_min(1e-12)
        unit = rows / scale
        out = torch.ops.quantized.linear_with_input_q_dq_qweight_dq_output_fp32(unit, 1.0 / _LEVELS, 128, self.packed)
        out = out * scale
        if self.bias is not None:
            out = out + self.bias
        return out.reshape(*x.shape[:-1], self.out_features)


def to_int8(model: nn.Module) -> nn.Module:
    """Replace every linear layer of a float32 model on the CPU, in place.

    Raises:
        RunError: this build of torch has no int8 kernels for this processor.
    """
    if "fbgemm" not in torch.backends.quantized.supported_engines:
        raise RunError("this build of torch has no int8 kernels (fbgemm) for this processor; use --dtype float32.")
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.Linear):
                setattr(parent, name, Int8Linear(child))
    return model
