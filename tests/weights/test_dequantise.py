"""Dequantisation is bit-identical to the gguf package's."""

import gguf
import numpy as np
import pytest
import torch

from cascli.errors import RunError
from cascli.weights.gguf import dequantise
from cascli.weights.gguf.dequantise import to_bfloat16
from tests.weights.tiny import Kind, quantised

KINDS = [*dequantise._PLAIN, *dequantise._BLOCKS, Kind.Q5_1, Kind.Q5_K]


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind is not Kind.BF16], ids=lambda kind: kind.name)
def test_equals_the_gguf_package(kind):
    rows = quantised(np.random.default_rng(1), (37, 512), kind)
    expected = torch.from_numpy(gguf.quants.dequantize(rows, kind).astype(np.float32)).to(torch.bfloat16)
    got = to_bfloat16(rows.view(np.uint8), kind)
    assert got.shape == (37, 512)
    assert torch.equal(got, expected)
    assert got.float().std() > 0


@pytest.mark.parametrize("kind", dequantise._BLOCKS, ids=lambda kind: kind.name)
def test_equals_the_gguf_package_on_arbitrary_bytes(kind):
    block, size = gguf.GGML_QUANT_SIZES[kind]
    rows = np.random.default_rng(2).integers(0, 256, (8, 512 // block * size), dtype=np.uint8)
    with np.errstate(all="ignore"):
        expected = torch.from_numpy(gguf.quants.dequantize(rows, kind)).to(torch.bfloat16)
    assert torch.equal(to_bfloat16(rows, kind).nan_to_num(7.0), expected.nan_to_num(7.0))


def test_bfloat16_passes_unchanged():
    values = torch.randn(4, 32, generator=torch.Generator().manual_seed(0)).to(torch.bfloat16)
    assert torch.equal(to_bfloat16(values.view(torch.uint8).numpy(), Kind.BF16), values)


def test_an_unsupported_type_is_refused():
    with pytest.raises(RunError, match="type Q8_K cannot be dequantised"):
        to_bfloat16(np.zeros((1, 292), np.uint8), Kind.Q8_K)
