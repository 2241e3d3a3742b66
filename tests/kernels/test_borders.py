"""Kernels neither read nor write anything around their inputs and outputs.

The tensors here are slices of buffers that are NaN everywhere else, and memory that a kernel's launcher allocates is
filled with NaN and followed by a guard. A missing mask or a swapped stride shows here even where a launch over packed
rows would hide it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from cascli import rules
from cascli.decoding.speculation import fused_rule, plain_round
from cascli.kernels import Norm
from cascli.kernels.layout import RoundFacts
from cascli.models.gpu.fused_rotation import plain
from cascli.rules.base import Exact, Rule
from cascli.sampling.parameters import Sampling
from tests.kernels import test_verification
from tests.kernels.test_attention import wanted
from tests.kernels.test_norms import EPSILON, norm
from tests.kernels.test_products import GATES, close, layer

GUARD = 64
"""Guard elements after each tensor, more than any mask here could be wrong by."""
UNTOUCHED = -77


@pytest.fixture(autouse=True)
def guarded(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Allocations without values are NaN, followed by a guard that must be intact at the end."""
    made: list[tuple[Tensor, int]] = []
    new_empty = torch.Tensor.new_empty

    def with_guard(like: Tensor, shape: Any, *more: Any, dtype: torch.dtype | None = None, **named: Any) -> Tensor:
        if named:  # the interpreter's own allocations
            return new_empty(like, shape, *more, **named)
        shape = (shape, *more) if isinstance(shape, int) else tuple(shape)
        size = torch.Size(shape).numel()
        whole = new_empty(like, size + GUARD, dtype=dtype or like.dtype).fill_(UNTOUCHED)
        if whole.is_floating_point():
            whole[:size] = torch.nan
        made.append((whole, size))
        return whole[:size].view(shape)

    def like_it(x: Tensor, *, memory_format: torch.memory_format = torch.contiguous_format) -> Tensor:
        del memory_format
        return with_guard(x, tuple(x.shape))

    monkeypatch.setattr(torch.Tensor, "new_empty", with_guard)
    monkeypatch.setattr(torch, "empty_like", like_it)
    yield
    assert all((whole[size:] == UNTOUCHED).all() for whole, size in made)


def among_none(x: Tensor, row: int | None = None) -> Tensor:
    """The same numbers, packed or in longer rows; everything before and after them is NaN."""
    width = x.shape[-1]
    row = width if row is None else row
    rows = x.numel() // width
    whole = torch.full((GUARD + rows * row + 1024,), torch.nan, dtype=x.dtype, device=x.device)
    strides, step = [], row
    for size in reversed(x.shape[:-1]):
        strides.insert(0, step)
        step *= size
    found = whole.as_strided(x.shape, (*strides, 1), GUARD)
    return found.copy_(x)


@pytest.mark.parametrize("activation", [None, *GATES])
@pytest.mark.parametrize(("n", "k", "m"), [(17, 300, 5), (40, 16, 17)])
def test_product_stays_in_bounds(
    activation: str | None, n: int, k: int, m: int, dtype: torch.dtype, where: torch.device
) -> None:
    from cascli.kernels.products import product

    x, weight, bias = layer(n if activation is None else 2 * n, k, m, dtype, where)
    exact = F.linear(x.double(), weight.double(), bias.double())
    if activation is not None:
        gate, up = exact.chunk(2, dim=-1)
        exact = GATES[activation](gate) * up
    assert close(product(*(among_none(each) for each in (x, weight, bias)), activation=activation), exact)


@pytest.mark.parametrize("how", ["alone", "add", "norm and add"])
def test_add_norm_stays_in_bounds(how: str, dtype: torch.dtype, where: torch.device) -> None:
    from cascli.kernels.norms import add_norm

    x, residual, weights = (torch.randn(n, 24, generator=torch.Generator().manual_seed(n)) for n in (3, 3, 2))
    x, residual, weight, after = (among_none(each.to(where, dtype)) for each in (x, residual, *weights))
    last, first = Norm(weight, EPSILON), Norm(after, EPSILON) if how == "norm and add" else None
    summed, found = add_norm(x, None if how == "alone" else residual, last, first)
    part = x if first is None else norm(x.double(), after.double(), offset=False).to(dtype)
    rounding = 1e-6 if dtype == torch.float32 else 2e-2
    torch.testing.assert_close(summed, x if how == "alone" else residual + part, rtol=rounding, atol=rounding)
    wished = norm(summed.double(), weight.double(), offset=False)
    torch.testing.assert_close(found.double(), wished, rtol=rounding, atol=rounding)


def test_rotate_uses_the_strides_of_queries_and_keys(where: torch.device) -> None:
    from cascli.kernels.rotation import rotate

    q, k, cos, sin = (torch.randn(1, *shape) for shape in ((4, 3, 24), (2, 3, 24), (3, 8), (3, 8)))
    given = [among_none(each.to(where), row) for each, row in ((q, 40), (k, 56), (cos, 8), (sin, 8))]
    for found, turned in zip(rotate(*given), plain(q, k, cos, sin), strict=True):
        torch.testing.assert_close(found.cpu(), turned, rtol=1e-6, atol=1e-6)


def test_rotate_and_store_uses_the_strides_of_both_caches(where: torch.device) -> None:
    """Key and value caches have different strides; head widths are not powers of two."""
    from cascli.kernels.rotation import rotate_and_store

    states, cos, sin = (torch.randn(n, width) for n, width in ((3, 8 * 24), (16, 24), (16, 24)))
    norms = Norm(among_none(torch.rand(2, 24, device=where)), EPSILON)
    key, value = (among_none(torch.ones(1, 2, 16, 24, device=where), row) for row in (24, 40))
    rotate = [among_none(each.to(where)) for each in (states, cos, sin)]
    query = rotate_and_store(*rotate, torch.tensor(5, device=where), key, value, norms)
    heads = states.view(1, 3, 8, 24).transpose(1, 2)
    q, k, v = heads[:, :4], heads[:, 4:6], heads[:, 6:]
    weights = norms.weight.cpu()
    turned = plain(
        *(norm(each, weights[i], offset=False) for i, each in enumerate((q, k))), cos[None, 5:8], sin[None, 5:8]
    )
    for found, exact in zip((query, key[:, :, 5:8], value[:, :, 5:8]), (*turned, v), strict=True):
        torch.testing.assert_close(found.cpu(), exact, rtol=1e-5, atol=1e-5)
    for each in (key, value):
        assert (each[:, :, :5] == 1).all() and (each[:, :, 8:] == 1).all()


@pytest.mark.parametrize("of_texts", [False, True])
def test_attend_uses_the_strides_of_both_caches(
    of_texts: bool, where: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Strides of place, head and position; head widths are not powers of two, and values have longer rows than keys."""
    from cascli.kernels import attention

    monkeypatch.setattr(attention, "_MOST_PARTS", 2)  # both parts have read something and leave their sums
    generator = torch.Generator().manual_seed(0)
    q, cache = torch.randn(1, 4, 3, 24, generator=generator), torch.randn(2, 3, 2, 80, 24, generator=generator)
    before, place = 66, 2 if of_texts else 0
    key, value = (among_none(each.to(where), row) for each, row in zip(cache, (24, 40), strict=True))
    at = torch.arange(before, before + 3, device=where) if of_texts else torch.tensor(before, device=where)
    places = torch.full_like(at, place) if of_texts else None
    found = attention.attend(among_none(q.to(where), 32), key, value, at, places=places, scale=24**-0.5)
    exact = wanted(q, *cache[:, place : place + 1], before, 0, 0.0)
    assert (found.cpu() - exact).abs().max() < 1e-5


@pytest.mark.parametrize("sampling", [Sampling(0.0), Sampling(0.7), Sampling(0.7, 9, 0.8)], ids=str)
def test_draw_uses_the_stride_of_logits(sampling: Sampling, where: torch.device) -> None:
    """Logits in halves, many of them equal: each row's truncation must use only its own."""
    from cascli.kernels.draws import draw

    generator = torch.Generator().manual_seed(0)
    logits = (torch.randn(4, 1100, generator=generator) * 4).round().to(where) / 2
    u = torch.rand(4, generator=generator, dtype=torch.float64).to(where)
    together = draw(among_none(logits, 1300), u=u, with_base=True, **asdict(sampling))
    apart = draw(logits, u=u, with_base=True, **asdict(sampling))
    assert all(map(torch.equal, together, apart))


OPT, V1, HEAD = (rules.load(name)(alpha=0.4) for name in ("opt", "token-v1", "head"))


@pytest.mark.parametrize(
    ("rule", "by_block", "sampling"),
    [
        (Exact(), False, Sampling(0.7, 9, 0.8)),
        (OPT, False, Sampling(0.7)),
        (V1, True, Sampling(0.7)),
        (HEAD, False, Sampling(0.7)),
    ],
    ids=repr,
)
def test_verify_uses_the_strides_of_both_models(
    rule: Rule, by_block: bool, sampling: Sampling, where: torch.device
) -> None:
    """Rows are apart where a model has more logits than tokens; the target's and the draft's strides differ."""
    from cascli.kernels.verification import verify

    given = test_verification.block(rule, sampling, 3, 40, where)
    apart = [among_none(given[0], 48), given[1], *(among_none(each, 72) for each in given[2:4])]
    for seed in range(3):  # none, one, two or all of the drafts are kept
        u = torch.rand(2, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        given[4], given[5] = (u[0, :3] * (seed % 3) / 2).to(where), u[1].to(where)
        exact = plain_round(rule, sampling, *(each.cpu() for each in given), by_block=by_block)
        out = verify(*apart, *given[4:], rule=fused_rule(rule), by_block=by_block, **asdict(sampling))
        found, wished = (RoundFacts.of(each.flatten().tolist()) for each in (out, exact))
        assert (found.num_accepted, found.next_id) == (wished.num_accepted, wished.next_id)
        for name in ("q", "p", "pi", "accept_prob", "tv", "next_p", "next_q", *test_verification.DISTANCES):
            test_verification.same(found, wished, name)
