from __future__ import annotations

from typing import Any

import pytest
import torch

from cascli.models.gpu.grouped_attention import masked_attention

BOUND = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 2e-2}
CAPACITY = 1024


def states(
    heads: int, shared: int, n: int, width: int, at: int, dtype: torch.dtype, where: torch.device
) -> list[torch.Tensor]:
    """Query, key and value; everything beyond the text is NaN."""
    generator = torch.Generator().manual_seed(at)
    query = torch.randn(1, heads, n, width, generator=generator)
    cache = torch.randn(2, 1, shared, CAPACITY, width, generator=generator)
    cache[..., at + n :, :] = torch.nan
    return [each.to(where, dtype) for each in (query, *cache)]


def wanted(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, at: int, window: int, cap: float) -> torch.Tensor:
    n = q.shape[2]
    position, place = at + torch.arange(n).unsqueeze(1), torch.arange(at + n)
    mask = (place <= position) & (place > position - (window or CAPACITY))
    q, k, v = q.double().cpu(), k[:, :, : at + n].double().cpu(), v[:, :, : at + n].double().cpu()
    return masked_attention(q, k, v, mask[None, None], q.shape[-1] ** -0.5, cap)


@pytest.mark.parametrize(("heads", "shared", "width"), [(4, 2, 16), (6, 1, 24), (2, 2, 64), (7, 1, 32)])
@pytest.mark.parametrize(("window", "cap"), [(0, 0.0), (9, 0.0), (70, 30.0)])
def test_attend_equals_masked_attention(
    heads: int,
    shared: int,
    width: int,
    window: int,
    cap: float,
    dtype: torch.dtype,
    where: torch.device,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """At block borders, with windows across them, more rows than a program takes, and several blocks per part."""
    from cascli.kernels import attention

    monkeypatch.setattr(attention, "_MOST_PARTS", 4 if cap == 0 else 32)
    for at, n in ((0, 1), (0, 5), (63, 1), (63, 2), (64, 9), (200, 5)):
        q, k, v = states(heads, shared, n, width, at, dtype, where)
        before = torch.tensor(at, device=where)
        found = attention.attend(q, k, v, before, scale=width**-0.5, window=window, cap=cap)
        assert found.shape == (1, n, heads, width) and found.dtype == dtype
        error = (found.double().cpu() - wanted(q, k, v, at, window, cap)).abs().max()
        # On a GPU the tanh of a cap uses approximate exponentials, and the cap multiplies their error.
        bound = max(BOUND[dtype], 2e-6 * cap) if where.type == "cuda" else BOUND[dtype]
        assert error < bound, (at, n)


@pytest.mark.usefixtures("sound_products")
@pytest.mark.parametrize("window", [0, 268])
def test_a_row_has_the_same_bits_alone_and_in_a_block(
    window: int, dtype: torch.dtype, where: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Several blocks of keys per part; the first row's window begins in another block than those of the other rows."""
    from cascli.kernels import attention

    monkeypatch.setattr(attention, "_MOST_PARTS", 4)
    at, n = 394, 4
    q, k, v = states(16, 2, n, 64, at, dtype, where)  # 8 rows per program alone, padded to 16; 32 in the block
    block = attention.attend(q, k, v, torch.tensor(at, device=where), scale=0.125, window=window)
    for i in range(n):
        one, before = q[:, :, i : i + 1], torch.tensor(at + i, device=where)
        alone = attention.attend(one, k, v, before, scale=0.125, window=window)
        assert torch.equal(alone[:, 0], block[:, i])


def test_strides_do_not_matter(where: torch.device) -> None:
    """Queries are transposed, keys are the beginning of a longer buffer."""
    from cascli.kernels.attention import attend

    q, k, v = states(4, 2, 3, 16, 40, torch.float32, where)
    strided = q.transpose(1, 2).contiguous().transpose(1, 2)
    longer = torch.cat([k, k], dim=2)[:, :, :CAPACITY]
    at = torch.tensor(40, device=where)
    assert torch.equal(attend(strided, longer, v, at, scale=0.25), attend(q, k, v, at, scale=0.25))


@pytest.mark.parametrize("window", [0, 9])
def test_operators_pass_all_arguments_to_the_kernel(
    window: int, where: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The torch operators that models call, as registered for GPUs, pass all of their arguments on."""
    from cascli.kernels import attention
    from cascli.models.gpu import decode_attention, texts_attention

    monkeypatch.setattr(attention, "_MOST_PARTS", 2)
    q, k, v = states(4, 2, 3, 16, 40, torch.float32, where)
    k, v = k.nan_to_num(0.0), v.nan_to_num(0.0)
    at, places = torch.tensor(40, device=where), torch.zeros(3, dtype=torch.long, device=where)
    for operator, given in (
        (decode_attention.attend, (at if not window else at.expand(window),)),
        (texts_attention.attend_texts, (places, at + torch.arange(3, device=where))),
    ):
        more = (0.7, window, 2.0)
        found = operator._backend_fns["cuda"](q, k, v, *given, *more)
        plain = operator._backend_fns["cpu"](*(each.cpu() for each in (q, k, v, *given)), *more)
        torch.testing.assert_close(found.cpu(), plain, rtol=1e-4, atol=1e-5)


def test_values_of_another_width_are_refused(where: torch.device) -> None:
    from cascli.kernels.attention import attend

    q, k, v = states(4, 2, 3, 16, 40, torch.float32, where)
    with pytest.raises(ValueError, match="8 numbers per head, queries 16"):
        attend(q, k, v[..., :8], torch.tensor(40, device=where), scale=0.25)


def test_counters_are_reset(where: torch.device) -> None:
    """The last program of each group combines the parts, in this launch and the next; groups have separate counts."""
    from cascli.kernels import attention

    at = torch.tensor(200, device=where)
    for heads, shared, n in ((4, 2, 3), (40, 1, 1), (4, 2, 3)):  # two groups each, of heads or of rows
        q, k, v = states(heads, shared, n, 16, 200, torch.float32, where)
        for _ in range(2):
            found = attention.attend(q, k, v, at, scale=0.25)
            assert (found.double().cpu() - wanted(q, k, v, 200, 0, 0.0)).abs().max() < BOUND[torch.float32]
            assert not attention._counters(q.device, 2).any()


def test_each_group_of_programs_has_its_own_counter(where: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs only the first part of each group, after which each count is one and no group has combined its parts.

    Groups that share a count combine their parts too early. In the interpreter, which runs programs one after the
    other, no result would show this.
    """
    from cascli.kernels import attention

    class FirstPart:
        def __getitem__(self, grid: tuple[int, int, int]) -> Any:
            return kernel[grid[0], 1, grid[2]]

    kernel = attention._attend
    monkeypatch.setattr(attention, "_attend", FirstPart())
    q, k, v = states(8, 2, 9, 16, 40, torch.float32, where)  # two tiles of rows per head
    attention.attend(q, k, v, torch.tensor(40, device=where), scale=0.25)
    counted = attention._counters(q.device, 4)
    assert counted.tolist() == [1, 1, 1, 1]
    counted.zero_()


@pytest.mark.usefixtures("where")
@pytest.mark.parametrize(
    ("capability", "serves", "early"),
    [((7, 5), False, False), ((8, 0), True, False), ((8, 9), True, False), ((9, 0), True, True), ((12, 0), True, True)],
)
def test_which_cards_it_serves(
    capability: tuple[int, int], serves: bool, early: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ampere and later; kernels are launched before the previous ones end on Hopper and later."""
    from cascli.kernels import early as launches
    from cascli.models.gpu.decode_attention import _fits

    monkeypatch.setattr("cascli.kernels.serve", lambda _: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    card = torch.device("cuda", 0)
    assert _fits(card) is serves
    monkeypatch.setattr(launches, "used", launches.used.__wrapped__)
    assert launches.launching(card) == ({"EARLY": True, "launch_pdl": True} if early else {"EARLY": False})
