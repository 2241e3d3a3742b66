"""Rows of GGUF blocks to bfloat16, in torch for the common types and with the gguf package for the rest.

Every value is computed in float32 by the same operations in the same order as `gguf.quants.dequantize`
and rounded once, to the nearest bfloat16, so both ways give the same bits.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from gguf.constants import GGML_QUANT_SIZES
from gguf.constants import GGMLQuantizationType as Kind
from gguf.quants import dequantize as stock_dequantize

from cascli.errors import RunError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


def to_bfloat16(rows: NDArray[np.uint8], kind: Kind) -> torch.Tensor:
    """Dequantise uint8 `[rows, bytes per row]` into bfloat16 `[rows, columns]`.

    Raises:
        RunError: the type cannot be dequantised.

    """
    if kind in _PLAIN:
        return torch.from_numpy(rows.copy()).view(_PLAIN[kind]).to(torch.bfloat16)
    unpack = _BLOCKS.get(kind)
    if unpack is None:
        return _by_gguf(rows, kind)
    blocks = torch.from_numpy(rows.copy()).view(-1, GGML_QUANT_SIZES[kind][1])
    return unpack(blocks).to(torch.bfloat16).view(rows.shape[0], -1)


def _by_gguf(rows: NDArray[np.uint8], kind: Kind) -> torch.Tensor:
    try:
        return torch.from_numpy(stock_dequantize(rows, kind)).to(torch.bfloat16)
    except NotImplementedError:
        raise RunError(
            f"GGUF tensors of type {kind.name} cannot be dequantised.\nUse a file quantised as Q4_K_M."
        ) from None


def _half(blocks: torch.Tensor, start: int) -> torch.Tensor:
    return blocks[:, start : start + 2].view(torch.float16).float()


def _nibbles(packed: torch.Tensor) -> torch.Tensor:
    """Uint8 `[..., n]` to `[..., 2, n]`: all low halves of the bytes, then all high halves."""
    return torch.stack([packed & 15, packed >> 4], dim=-2)


def _q8_0(blocks: torch.Tensor) -> torch.Tensor:
    return blocks[:, 2:].view(torch.int8).float().mul_(_half(blocks, 0))


def _q4_0(blocks: torch.Tensor) -> torch.Tensor:
    values = _nibbles(blocks[:, 2:]).view(-1, 32).view(torch.int8).sub_(8)
    return values.float().mul_(_half(blocks, 0))


def _q4_1(blocks: torch.Tensor) -> torch.Tensor:
    return _nibbles(blocks[:, 4:]).view(-1, 32).float().mul_(_half(blocks, 0)).add_(_half(blocks, 2))


def _q5_0(blocks: torch.Tensor) -> torch.Tensor:
    # Bit i of the 32-bit word at byte 2 is the fifth bit of value i.
    fifth = (blocks[:, 2:6, None] >> torch.arange(8, dtype=torch.uint8)).view(-1, 32) & 1
    values = _nibbles(blocks[:, 6:]).view(-1, 32).add_(fifth << 4)
    return values.view(torch.int8).sub_(16).float().mul_(_half(blocks, 0))


def _q4_k(blocks: torch.Tensor) -> torch.Tensor:
    scale, minimum = _k_scales(blocks[:, 4:16])
    values = _nibbles(blocks[:, 16:].unflatten(1, (4, 32))).view(-1, 8, 32).float()
    return values.mul_((_half(blocks, 0) * scale)[..., None]).sub_((_half(blocks, 2) * minimum)[..., None])


def _q6_k(blocks: torch.Tensor) -> torch.Tensor:
    low = _nibbles(blocks[:, :128].unflatten(1, (2, 64))).view(-1, 8, 32)
    shifts = torch.tensor([0, 2, 4, 6], dtype=torch.uint8).view(4, 1)
    high = (blocks[:, 128:192].unflatten(1, (2, 1, 32)) >> shifts).view(-1, 8, 32) & 3
    values = low.add_(high << 4).view(torch.int8).sub_(32).view(-1, 16, 16).float()
    scale = _half(blocks, 208) * blocks[:, 192:208].view(torch.int8)
    return values.mul_(scale[..., None])


def _k_scales(packed: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Unpack 12 bytes into eight 6-bit scales and eight 6-bit minima."""
    first, second, both = packed[:, :4], packed[:, 4:8], packed[:, 8:]
    scale = torch.cat([first & 63, (both & 15) | ((first >> 2) & 48)], dim=1)
    minimum = torch.cat([second & 63, (both >> 4) | ((second >> 2) & 48)], dim=1)
    return scale.float(), minimum.float()


_PLAIN = {Kind.F32: torch.float32, Kind.F16: torch.float16, Kind.BF16: torch.bfloat16}
_BLOCKS = {
    Kind.Q4_0: _q4_0,
    Kind.Q4_1: _q4_1,
    Kind.Q5_0: _q5_0,
    Kind.Q8_0: _q8_0,
    Kind.Q4_K: _q4_k,
    Kind.Q6_K: _q6_k,
}
