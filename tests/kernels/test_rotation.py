from __future__ import annotations

import pytest
import torch

from cascli.kernels import Norm
from cascli.models.gpu.fused_rotation import fused, plain

HEADS, SHARED, CAPACITY = 4, 2, 64
EPSILON = 1e-5


def normed(x: torch.Tensor, weight: torch.Tensor, offset: bool) -> torch.Tensor:
    exact = x.double()
    inverse = torch.rsqrt(exact.pow(2).mean(dim=-1, keepdim=True) + EPSILON)
    return (exact * inverse * (weight.double() + offset)).to(x.dtype)


@pytest.mark.parametrize(("width", "turns"), [(64, 64), (24, 24), (32, 8), (16, 2)])
@pytest.mark.parametrize("n", [1, 5])
def test_rotate_equals_separate_operations(
    width: int, turns: int, n: int, dtype: torch.dtype, where: torch.device
) -> None:
    """Bit-identical in half precision, where every product is rounded; float32 may fuse product and sum."""
    from cascli.kernels.rotation import rotate

    generator = torch.Generator().manual_seed(width + n)
    together = torch.randn(1, n, 6, width, generator=generator).to(
        where, dtype
    )  # as layers with a single projection make it
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


def test_unsupported_rotations_are_left_to_the_model(where: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    """Several texts in one tensor, angles of another precision, and options that only the model's own function has."""
    monkeypatch.setattr("cascli.kernels.serve", lambda _: True)
    own: list[int] = []

    def stock(
        q: torch.Tensor, k: torch.Tensor, *given: torch.Tensor, **named: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        own.append(len(given) + len(named))
        return q, k

    q, k, cos = (torch.randn(*shape, device=where) for shape in ((1, 4, 3, 16), (1, 2, 3, 16), (1, 3, 16)))
    turn = fused(stock)
    for found, wanted in zip(turn(q, k, cos, cos), plain(q, k, cos, cos), strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-6, atol=1e-6)
    assert own == []
    turn(q.expand(2, -1, -1, -1), k.expand(2, -1, -1, -1), cos, cos)
    turn(q.half(), k.half(), cos, cos)
    turn(q, k, cos, cos, unsqueeze_dim=2)
    assert own == [2, 2, 3]


@pytest.mark.parametrize("norm", [None, False, True])
@pytest.mark.parametrize("width", [16, 24])
@pytest.mark.parametrize(("n", "at"), [(1, 0), (1, 37), (5, 11), (5, CAPACITY - 5)])
def test_rotate_and_store_equals_separate_operations(
    width: int, n: int, at: int, norm: bool | None, dtype: torch.dtype, where: torch.device
) -> None:
    """Queries and keys are rotated by their own positions, values are stored unchanged, and nothing else is touched.

    Bit-identical in half precision, where every product is rounded; float32 may fuse product and sum. A norm near half
    a unit may be rounded either way, which is rare: a rounding that is left out changes every fourth number.
    """
    from cascli.kernels.rotation import rotate_and_store

    generator = torch.Generator().manual_seed(width + n)

    def numbers(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator).to(where, dtype)

    states, cos, sin = numbers(n, (HEADS + 2 * SHARED) * width), numbers(CAPACITY, width), numbers(CAPACITY, width)
    longer = numbers(2, 1, SHARED, CAPACITY + 3, width)  # a cache may be part of a longer buffer
    key, value = longer[:, :, :, :CAPACITY]
    before, norms = longer.clone(), 1 + numbers(2, width) / 3
    heads = states.reshape(n, -1, width).transpose(0, 1).unsqueeze(0)
    q, k, v = heads.split([HEADS, SHARED, SHARED], dim=1)
    if norm is not None:
        q, k = normed(q, norms[0], norm), normed(k, norms[1], norm)
    wanted = plain(q, k, *(each[None, at : at + n] for each in (cos, sin)))
    given = None if norm is None else Norm(norms, EPSILON, norm)
    query = rotate_and_store(states, cos, sin, torch.tensor(at, device=where), key, value, given)
    tight = {"rtol": 1e-6, "atol": 1e-6} if dtype == torch.float32 else {"rtol": 0, "atol": 0}
    if norm is not None and dtype != torch.float32:
        tight = {"rtol": 4e-3, "atol": 4e-3}
    torch.testing.assert_close(query, wanted[0], **tight)
    torch.testing.assert_close(key[:, :, at : at + n], wanted[1], **tight)
    if dtype != torch.float32:
        for mine, theirs in ((query, wanted[0]), (key[:, :, at : at + n], wanted[1])):
            assert (mine != theirs).double().mean() < 0.02
    assert torch.equal(value[:, :, at : at + n], v)
    before[:, :, :, at : at + n] = longer[:, :, :, at : at + n]
    assert torch.equal(longer, before)


def test_a_token_has_the_same_bits_in_any_block(dtype: torch.dtype, where: torch.device) -> None:
    from cascli.kernels.rotation import rotate_and_store

    states, cos, sin = torch.randn(5, 8 * 16), *torch.randn(2, CAPACITY, 16)
    states, cos, sin = (each.to(where, dtype) for each in (states, cos, sin))
    caches = [torch.zeros(2, 1, SHARED, CAPACITY, 16, dtype=dtype, device=where) for _ in range(2)]
    given = Norm(torch.rand(2, 16).to(where, dtype), EPSILON)
    whole = rotate_and_store(states, cos, sin, torch.tensor(9, device=where), *caches[0], given)
    for i in range(5):
        one = rotate_and_store(
            states[i : i + 1].clone(), cos, sin, torch.tensor(9 + i, device=where), *caches[1], given
        )
        assert torch.equal(one[:, :, 0], whole[:, :, i])
    assert torch.equal(*caches)
