from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

GATES = {"silu": F.silu, "gelu_pytorch_tanh": lambda x: F.gelu(x, approximate="tanh")}
ROUNDING = {torch.float32: 1e-6, torch.float16: 1e-3, torch.bfloat16: 8e-3}
"""Error relative to the largest result: half a unit in the last place, and float32 sums in another order."""


def layer(
    n: int, k: int, m: int, dtype: torch.dtype, where: torch.device
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Rows, weights whose results are about 1, and a bias of similar size."""
    generator = torch.Generator().manual_seed(n + k + m)
    x, weight, bias = (torch.randn(*shape, generator=generator) for shape in ((m, k), (n, k), (n,)))
    return x.to(where, dtype), (weight / k**0.5).to(where, dtype), bias.to(where, dtype)


def close(found: torch.Tensor, wanted: torch.Tensor) -> bool:
    error = (found.double() - wanted).abs().amax() / wanted.abs().amax()
    return bool(error < ROUNDING[found.dtype])


@pytest.mark.parametrize(("n", "k"), [(16, 16), (40, 300), (17, 64), (96, 512)])
@pytest.mark.parametrize("m", [1, 3, 16, 17, 40])
def test_product_equals_a_linear_layer(n: int, k: int, m: int, dtype: torch.dtype, where: torch.device) -> None:
    """Some columns and depths do not fill a tile, and there are more rows than a program takes."""
    from cascli.kernels.products import product

    x, weight, bias = layer(n, k, m, dtype, where)
    for given in (None, bias):
        found = product(x, weight, given)
        wanted = F.linear(x.double(), weight.double(), None if given is None else given.double())
        assert found.shape == (m, n) and found.dtype == dtype and close(found, wanted)


@pytest.mark.parametrize("activation", GATES)
@pytest.mark.parametrize(("n", "k", "m"), [(16, 16, 1), (40, 300, 5), (24, 64, 18)])
def test_gated_product_equals_two_layers(
    activation: str, n: int, k: int, m: int, dtype: torch.dtype, where: torch.device
) -> None:
    """Gate and up have different signs and sizes, so that swapping them cannot pass by luck."""
    from cascli.kernels.products import product

    x, weight, bias = layer(2 * n, k, m, dtype, where)
    for given in (None, bias):
        gate, up = F.linear(x.double(), weight.double(), None if given is None else given.double()).chunk(2, dim=-1)
        found = product(x, weight, given, activation=activation)
        assert found.shape == (m, n) and close(found, GATES[activation](gate) * up)


@pytest.mark.parametrize("activation", [None, "silu"])
def test_a_tile_of_any_size_computes_the_same(
    activation: str | None, dtype: torch.dtype, where: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`benchmarks.gpu_kernels` looks for faster ones."""
    from cascli.kernels import products
    from cascli.kernels.products import Tile, product

    monkeypatch.setattr(products, "tile_for", lambda *_, **__: pytest.fail("the tile that is given counts"))

    x, weight, bias = layer(80, 200, 5, dtype, where)
    wanted = F.linear(x.double(), weight.double(), bias.double())
    if activation:
        gate, up = wanted.chunk(2, dim=-1)
        wanted = F.silu(gate) * up
    for tile in (Tile(16, 32, 1, 1), Tile(32, 16, 4, 2), Tile(64, 256, 8, 3)):
        assert close(product(x, weight, bias, activation=activation, tile=tile), wanted), tile


@pytest.mark.parametrize("activation", [None, "silu"])
def test_a_row_has_the_same_bits_in_any_block(activation: str | None, dtype: torch.dtype, where: torch.device) -> None:
    """Alone, in blocks of up to 16, and in the second program of larger ones."""
    from cascli.kernels.products import product

    x, weight, bias = layer(80, 200, 35, dtype, where)
    whole = product(x, weight, bias, activation=activation)
    for start, end in ((0, 1), (2, 3), (1, 4), (3, 8), (0, 9), (7, 16), (20, 35), (34, 35)):
        assert torch.equal(product(x[start:end], weight, bias, activation=activation), whole[start:end])


def test_large_gates_do_not_overflow(where: torch.device) -> None:
    from cascli.kernels.products import product

    x = torch.tensor([[-300.0], [-30.0], [0.0], [30.0], [300.0]], device=where)
    weight = torch.ones(2, 1, device=where)
    for activation, gate in GATES.items():
        found = product(x, weight, activation=activation)
        torch.testing.assert_close(found, gate(x) * x)
