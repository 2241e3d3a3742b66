from __future__ import annotations

import pytest
import torch

from cascli.models.gpu.fused_rotation import plain


@pytest.mark.parametrize(("width", "turns"), [(64, 64), (24, 24), (32, 8), (16, 2)])
@pytest.mark.parametrize("n", [1, 5])
def test_it_turns_as_separate_operations_do(
    width: int, turns: int, n: int, dtype: torch.dtype, where: torch.device
) -> None:
    """The same to the last bit in half precision, where every product is rounded; float32 may join product and sum."""
    from cascli.kernels.rotation import rotate

    generator = torch.Generator().manual_seed(width + n)
    together = torch.randn(1, n, 6, width, generator=generator).to(
        where, dtype
    )  # as layers with one projection have it
    q, k = together.transpose(1, 2).split([4, 2], dim=1)
    cos, sin = (torch.randn(1, n, turns, generator=generator).to(where, dtype) for _ in range(2))
    for found, wanted in zip(rotate(q, k, cos, sin), plain(q, k, cos, sin), strict=True):
        assert found.shape == wanted.shape and found.dtype == dtype and found.is_contiguous()
        if dtype == torch.float32:
            torch.testing.assert_close(found, wanted, rtol=1e-6, atol=1e-6)
        else:
            assert torch.equal(found, wanted)


def test_numbers_apart_are_put_together(where: torch.device) -> None:
    from cascli.kernels.rotation import rotate

    q, k = torch.randn(2, 1, 2, 3, 32, device=where)[..., ::2]
    cos, sin = torch.randn(2, 1, 3, 16, device=where)
    for found, wanted in zip(rotate(q, k, cos, sin), plain(q, k, cos, sin), strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-6, atol=1e-6)
