from __future__ import annotations

import pytest
import torch

from cascli.kernels import Norm

EPSILON = 1e-5


def norm(x: torch.Tensor, weight: torch.Tensor, offset: bool) -> torch.Tensor:
    return x * torch.rsqrt(x.pow(2).mean(dim=-1, keepdim=True) + EPSILON) * (weight + offset)


@pytest.mark.parametrize("offset", [False, True])
@pytest.mark.parametrize("width", [16, 24, 96])
@pytest.mark.parametrize("how", ["alone", "add", "norm and add"])
def test_add_norm_equals_separate_operations(
    how: str, width: int, offset: bool, dtype: torch.dtype, where: torch.device
) -> None:
    """Some widths are not powers of two; rows differ in size, the smallest being comparable to epsilon.

    In half precision hardly any number differs: a rounding that is left out changes every fourth, within the bound.
    """
    from cascli.kernels.norms import add_norm

    generator = torch.Generator().manual_seed(width)
    x, residual = (torch.randn(4, width, generator=generator) for _ in range(2))
    sizes = torch.tensor([[3e-3], [0.1], [1.0], [20.0]])
    weight, after = 1 + torch.randn(2, width, generator=generator) / 3
    x, residual, weight, after = (each.to(where, dtype) for each in (x * sizes, residual * sizes, weight, after))
    adds, normed = how != "alone", how == "norm and add"
    first, last = (Norm(each, EPSILON, offset) for each in (after, weight))
    summed, found = add_norm(x, residual if adds else None, last, first if normed else None)
    part = norm(x.double(), after.double(), offset).to(dtype) if normed else x
    wanted = residual + part if adds else x
    rounding = {torch.float32: 1e-6, torch.float16: 2e-3, torch.bfloat16: 2e-2}[dtype]
    torch.testing.assert_close(summed, wanted, rtol=rounding, atol=1e-6)
    exact = norm(summed.double(), weight.double(), offset)
    torch.testing.assert_close(found.double(), exact, rtol=rounding, atol=1e-6)
    assert summed.dtype == found.dtype == dtype
    if dtype != torch.float32:
        for mine, theirs in ((summed, wanted), (found, exact.to(dtype))):
            assert (mine != theirs).double().mean() < 0.02


def test_inputs_are_unchanged(where: torch.device) -> None:
    from cascli.kernels.norms import add_norm

    x, residual = torch.randn(2, 2, 32, device=where)
    before = x.clone(), residual.clone()
    add_norm(x, residual, Norm(torch.ones(32, device=where), EPSILON))
    assert torch.equal(x, before[0]) and torch.equal(residual, before[1])
