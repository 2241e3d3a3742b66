from __future__ import annotations

from dataclasses import asdict

import pytest
import torch

from cascli import rules
from cascli.decoding.speculation import fused_rule
from cascli.kernels.layout import Field
from cascli.rules.base import Exact
from cascli.sampling import distributions
from cascli.sampling.parameters import Sampling


@pytest.mark.parametrize("temperature", [0.0, 0.3, 1.0, 2.5])
@pytest.mark.parametrize("width", [50, 1024, 5000, 20_000])
def test_draw_equals_torch(width: int, temperature: float, dtype: torch.dtype, where: torch.device) -> None:
    """Compared with float64: torch's own float32 softmax is off by 1e-5 at 70,000 tokens."""
    assert_plain(width, temperature, dtype, where)


@pytest.mark.usefixtures("few_parts")
@pytest.mark.parametrize("width", [5000, 6144])
def test_a_draw_from_parts_of_several_blocks(width: int, dtype: torch.dtype, where: torch.device) -> None:
    assert_plain(width, 0.7, dtype, where)


def assert_plain(width: int, temperature: float, dtype: torch.dtype, where: torch.device) -> None:
    from cascli.kernels.draws import draw

    generator = torch.Generator().manual_seed(width)
    for u in (0.0, 0.25, 0.7, 0.999):
        logits = (4 * torch.randn(1, width, generator=generator)).to(where, dtype)
        at = torch.tensor([u], dtype=torch.float64, device=where)
        token, probs, base, max_logit = draw(logits, temperature, at, with_base=True)
        exact = logits.double().cpu()
        wanted = distributions.warp(exact, Sampling(temperature))
        torch.testing.assert_close(probs.double().cpu(), wanted, rtol=1e-5, atol=1e-9)
        torch.testing.assert_close(base.double().cpu(), distributions.base(exact), rtol=1e-5, atol=1e-9)
        assert token.item() == distributions.sample(probs, at).item() and max_logit == logits.max().float()


@pytest.mark.parametrize("sampling", [Sampling(0.0), Sampling(0.7), Sampling(0.7, 40, 0.9)], ids=str)
def test_rows_are_independent(sampling: Sampling, dtype: torch.dtype, where: torch.device) -> None:
    """Rows of several texts, cut out of wider ones: each has its own uniform and the same truncation as alone."""
    from cascli.kernels.draws import draw

    generator = torch.Generator().manual_seed(0)
    logits = (4 * torch.randn(5, 3100, generator=generator)).to(where, dtype)[:, :3000]
    u = torch.rand(5, generator=generator, dtype=torch.float64).to(where)
    together = draw(logits, u=u, with_base=True, **asdict(sampling))
    assert len(set(together[0].tolist())) > 2
    for i in range(5):
        alone = draw(logits[i : i + 1], u=u[i : i + 1], with_base=True, **asdict(sampling))
        assert all(torch.equal(mine[i : i + 1], theirs) for mine, theirs in zip(together, alone, strict=True))


@pytest.mark.parametrize("gap", [2.0, 5.0, 25.0])
@pytest.mark.parametrize("sampling", [Sampling(0.0), Sampling(0.25), Sampling(0.7, top_k=1), Sampling(top_p=1e-6)])
def test_mixture_sees_the_same_single_tokens_in_a_drawn_q(sampling: Sampling, gap: float, where: torch.device) -> None:
    """In a round q comes from this kernel and p from torch: both leave one token, or several beside a rounded 1."""
    from cascli.kernels.draws import draw

    logits = -7 * torch.rand(2, 1, 3000, generator=torch.Generator().manual_seed(0)).to(where)
    logits[:, 0, 5], logits[:, 0, 7] = torch.tensor([[gap, 0.0], [0.0, gap]]).to(where)
    plain = distributions.Dists.of_logits(*logits, sampling)
    _, q, q1, _ = draw(logits[0], u=None, with_base=True, **asdict(sampling))
    rule = rules.load("mixture")(target_weight=0.5)
    pi = rule.apply(distributions.Dists(q, plain.p, q1, plain.p1))
    torch.testing.assert_close(pi, rule.apply(plain), rtol=1e-4, atol=1e-7)
    assert fused_rule(rule) is None and bool(pi.max() == 1) is (sampling != Sampling(0.25))


def test_the_ends_of_the_scale_are_tokens_too(where: torch.device) -> None:
    from cascli.kernels.draws import draw

    logits = torch.full((1, 3000), -torch.inf, device=where)
    logits[0, [7, 9, 2998, 2999]] = 0.0  # two in each of two parts
    ends = ((0.0, 7), (0.25 - 1e-12, 7), (0.25, 9), (0.5 - 1e-12, 9), (0.5, 2998), (0.75, 2999), (1 - 2**-53, 2999))
    for u, wanted in ends:
        at = torch.tensor([u], dtype=torch.float64, device=where)
        assert draw(logits, 1.0, at, with_base=False)[0].item() == wanted


def test_draws_change_exactly_at_the_border_of_two_parts(where: torch.device) -> None:
    """Parts are chosen by their mass in float64: in float32 this would be off by up to 1e-7."""
    from cascli.kernels.draws import draw

    logits = torch.randn(1, 3000, generator=torch.Generator().manual_seed(0)).to(where)
    running = draw(logits, 1.0, None, with_base=False)[1][0].double().cumsum(0)
    for border in (1024, 2048):
        for token, away in ((border - 1, -1e-10), (border, 1e-10)):
            u = (running[border - 1 : border] + away) / running[-1]
            assert draw(logits, 1.0, u, with_base=False)[0].item() == token


@pytest.mark.parametrize(
    ("width", "end", "most"),
    [(1000, 900, 256), (10_000, 8_900, 256), (4000, 2900, 2)],
    ids=["one part", "a last part without mass", "a last block without mass"],
)
def test_the_largest_uniform_draws_a_possible_token(
    width: int, end: int, most: int, where: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last uniform may point beyond a row's running sum, which is rounded differently from the row's mass.

    This happens in about half of these rows, in draws and in rounds; tokens from `end` on have no probability in any
    of them.
    """
    from cascli.kernels.draws import draw
    from cascli.kernels.verification import verify

    monkeypatch.setattr("cascli.kernels.rows.MOST_PARTS", most)
    u = torch.tensor([1 - 2**-53], dtype=torch.float64, device=where)
    for seed in range(8):
        logits = (9 * torch.randn(1, width, generator=torch.Generator().manual_seed(seed))).to(where)
        logits[0, end:] = -torch.inf
        token, probs, _, _ = draw(logits, 1.0, u, with_base=False)
        out = verify(logits, token[:0], probs[:0], probs[:0], u[:0], u, temperature=1.0, rule=fused_rule(Exact()))
        for drawn in (int(token), int(out[Field.NEXT_ID, 0])):
            assert probs[0, drawn] > 0 and probs[0, drawn + 1 :].double().sum() < 1e-6


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_nan_and_inf_are_reported(bad: float, temperature: float, where: torch.device) -> None:
    from cascli.kernels.draws import draw

    logits = torch.zeros(1, 3000, device=where)
    logits[0, 2000] = bad
    token, _, _, max_logit = draw(
        logits, temperature, torch.zeros(1, dtype=torch.float64, device=where), with_base=False
    )
    assert not torch.isfinite(max_logit) and 0 <= token.item() < 3000
