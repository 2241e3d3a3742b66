"""Top-k and top-p without a sort: the tokens that `distributions.warp` keeps, including ties, and the law of draws."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from cascli.decoding.speculation import decide_round, fused_rule, plain_round
from cascli.kernels.layout import RoundFacts
from cascli.rules.base import Exact, Rule
from cascli.sampling import distributions
from cascli.sampling.autoregressive import Sampler
from cascli.sampling.parameters import Sampling
from tests.kernels.test_verification import BY_BLOCK, DISTANCES, block, same

CUTS = [(0, 0.9), (0, 0.5), (0, 1e-9), (3, 1.0), (4, 0.8)]
"""Top-k and top-p of each case."""
WHOLE = 151_665


def rows(n: int, width: int, *, ties: bool = False, seed: int = 0) -> Tensor:
    """Logits `[n, width]`; ties round them to halves, so that the limit is often among equal ones."""
    logits = 4 * torch.randn(n, width, generator=torch.Generator().manual_seed(1000 * width + seed))
    return (2 * logits).round() / 2 if ties else logits


def number(u: float, where: torch.device) -> Tensor:
    return torch.tensor([u], dtype=torch.float64, device=where)


def check(logits: Tensor, sampling: Sampling) -> None:
    """The kept tokens and their mass equal those in float64."""
    from cascli.kernels import rows, truncation

    top = rows.row_sums(logits, sampling.temperature).top
    found = truncation.cuts(logits, top, sampling.temperature, sampling.top_k, sampling.top_p).cpu()
    exact, (limit, last, total) = logits.double().cpu(), found.unsqueeze(-1).unbind(1)
    kept = (exact > limit) | ((exact == limit) & (torch.arange(exact.shape[1]) <= last))
    wanted = distributions.warp(exact, sampling)
    assert torch.equal(kept & (exact > -torch.inf), wanted > 0), sampling
    torch.testing.assert_close(total.squeeze(1), 1 / wanted.amax(dim=-1), rtol=1e-6, atol=0)


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize(("top_k", "top_p"), CUTS)
@pytest.mark.parametrize("width", [5, 257])
def test_the_same_tokens_are_kept(width: int, top_k: int, top_p: float, ties: bool, where: torch.device) -> None:
    for dtype, temperature, n in ((torch.float32, 0.7, 2), (torch.bfloat16, 1.3, 4), (torch.float16, 1.3, 4)):
        check(rows(n, width, ties=ties).to(where, dtype), Sampling(temperature, top_k, top_p))


@pytest.mark.usefixtures("few_parts")
@pytest.mark.parametrize(("top_k", "top_p"), [(0, 0.9), (30, 1.0), (300, 0.9)])
def test_the_same_tokens_are_kept_across_parts(top_k: int, top_p: float, where: torch.device) -> None:
    """Parts of several blocks; both contain equal logits, and those that are kept end in the second."""
    logits = rows(2, 5000, ties=True)
    logits[1, :2600].clamp_(max=3.0)  # so that the second part has the larger logits
    check(logits.to(where), Sampling(1.5, top_k, top_p))


@pytest.mark.parametrize("top_p", [0.1, 0.6, 0.6825, 0.999])
@pytest.mark.parametrize("value", [0.0, -3.5])
def test_top_p_keeps_the_first_of_equal_logits(value: float, top_p: float, where: torch.device) -> None:
    """Of 3,000 equal logits, the first ones are kept until they reach the mass, once at the end of a part of 1,024.

    -0.0 equals 0.0.
    """
    from cascli.kernels.draws import draw

    logits = torch.full((1, 3000), value, device=where)
    logits[0, ::2] *= -1 if value == 0 else 1
    probs = draw(logits, 1.0, number(0.5, where), with_base=False, top_p=top_p)[1]
    kept = (probs > 0).nonzero()[:, 1]
    assert torch.equal(kept.cpu(), torch.arange(math.ceil(3000 * top_p)))


def test_top_k_keeps_all_that_equal_the_kth(where: torch.device) -> None:
    from cascli.kernels.draws import draw

    logits = torch.tensor([[0.0, 2.0, 1.0, 1.0, -5.0, 1.0]], device=where)
    assert (draw(logits, 1.0, None, with_base=False, top_k=2)[1] > 0).tolist() == [
        [False, True, True, True, False, True]
    ]
    assert (draw(logits, 1.0, None, with_base=False, top_k=9)[1] > 0).all()


def test_masked_tokens_stay_masked(where: torch.device) -> None:
    logits = rows(1, 300).to(where)
    logits[0, 7:] = -torch.inf
    for top_k, top_p in ((3, 1.0), (0, 0.9), (100, 0.99)):
        check(logits, Sampling(1.0, top_k, top_p))


@pytest.mark.parametrize(("top_k", "top_p"), [(0, 0.7), (3, 0.9)])
def test_a_truncated_draw_equals_torch(top_k: int, top_p: float, dtype: torch.dtype, where: torch.device) -> None:
    from cascli.kernels.draws import draw

    sampling = Sampling(0.8, top_k, top_p)
    for width, u in ((5, 0.3), (257, 0.0), (257, 0.999)):
        logits, at = rows(1, width).to(where, dtype), number(u, where)
        token, probs, base, max_logit = draw(logits, 0.8, at, with_base=True, top_k=top_k, top_p=top_p)
        exact = logits.double().cpu()
        torch.testing.assert_close(probs.double().cpu(), distributions.warp(exact, sampling), rtol=1e-5, atol=1e-9)
        torch.testing.assert_close(base.double().cpu(), distributions.base(exact), rtol=1e-5, atol=1e-9)
        assert token.item() == distributions.sample(probs, at).item() and max_logit == logits.max().float()


@pytest.mark.usefixtures("few_parts")
def test_a_whole_vocabulary(where: torch.device) -> None:
    """Half precision, with many equal logits: 151,665 columns of wider rows, in a draw and in its verification."""
    from cascli.kernels.draws import draw
    from cascli.kernels.verification import verify

    half = torch.bfloat16 if where.type == "cuda" else torch.float16
    logits = rows(1, WHOLE + 271).to(where, half)[:, :WHOLE]
    u = number(0.999, where)
    token, probs, _, _ = draw(logits, 0.8, u, with_base=False, top_p=0.95)
    wanted = distributions.warp(logits.double().cpu(), Sampling(0.8, 0, 0.95))
    assert torch.equal(probs.cpu() > 0, wanted > 0) and 100 < int((wanted > 0).sum()) < 1000
    assert token.item() == distributions.sample(probs, u).item()
    none = probs[:0]
    out = verify(logits, token[:0], none, none, u[:0], u, temperature=0.8, rule=fused_rule(Exact()), top_p=0.95)
    facts = RoundFacts.of(out.flatten().tolist())
    assert facts.next_id == token.item() and facts.next_p == pytest.approx(wanted[0, facts.next_id].item(), rel=1e-4)


@pytest.mark.parametrize(("top_k", "top_p"), [(0, 0.7), (3, 1.0), (3, 0.8)])
def test_each_token_has_its_share_of_uniforms(top_k: int, top_p: float, where: torch.device) -> None:
    """The law of a draw of five tokens: the drawn token changes where the float64 sums say, and nowhere else."""
    from cascli.kernels.draws import draw

    for seed in range(2):
        logits = rows(1, 5, seed=seed, ties=seed > 0).to(where)
        law = distributions.warp(logits.double().cpu(), Sampling(1.0, top_k, top_p))[0]
        ends = law.cumsum(0).tolist()
        for token, (start, end) in enumerate(zip([0.0, *ends], ends, strict=False)):
            for u in (start + 1e-6, end - 1e-6) if end > start else ():
                found = draw(logits, 1.0, number(u, where), with_base=False, top_k=top_k, top_p=top_p)[0]
                assert found.item() == token, (seed, u)


@pytest.mark.usefixtures("few_parts")
@pytest.mark.parametrize("sampling", [Sampling(0.8, 6, 1.0), Sampling(1.0, 0, 0.8), Sampling(1.2, 9, 0.9)], ids=repr)
@pytest.mark.parametrize(("rule", "by_block"), [(BY_BLOCK[0], True), *((rule, False) for rule in BY_BLOCK)], ids=repr)
def test_a_truncated_round_equals_the_plain_path(
    rule: Rule, by_block: bool, sampling: Sampling, where: torch.device
) -> None:
    """One rule of each kind; some drafts are removed by the target's truncation."""
    from cascli.kernels.verification import verify

    how = {"temperature": sampling.temperature, "top_k": sampling.top_k, "top_p": sampling.top_p}
    for n, width in ((0, 5), (4, 40), (1, 2500)):
        given = block(rule, sampling, n, width, where)
        plain = plain_round(rule, sampling, *(each.cpu() for each in given), by_block=by_block)
        fused = verify(*given, rule=fused_rule(rule), by_block=by_block, **how)
        wanted, found = (RoundFacts.of(each.flatten().tolist()) for each in (plain, fused))
        assert found.ids == wanted.ids and found.deferred == wanted.deferred
        assert (found.num_accepted, found.next_id) == (wanted.num_accepted, wanted.next_id)
        for name in ("q", "p", "pi", "accept_prob", "tv", "next_p", "next_q", *DISTANCES):
            same(found, wanted, name)


@pytest.mark.parametrize("sampling", [Sampling(0.8, 5), Sampling(0.8, 0, 0.9), Sampling(0.0, 3, 0.9)], ids=repr)
def test_kernels_replace_the_truncation_in_torch(
    sampling: Sampling, where: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = block(Exact(), sampling, 3, 40, where)
    monkeypatch.setattr("cascli.kernels.serve", lambda _: True)
    monkeypatch.setattr(distributions, "warp", lambda *_: pytest.fail("torch's own operations"))
    drawn = Sampler(sampling, reads_base=True).draw(given[0][:1], given[4][:1])
    assert drawn.probs.sum().item() == pytest.approx(1, abs=1e-6)
    assert RoundFacts.of(decide_round(Exact(), sampling, *given).flatten().tolist()).p[0] <= 1


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize(("top_k", "top_p"), [(5, 1.0), (0, 0.9), (5, 0.9)])
def test_nan_and_inf_are_reported(bad: float, top_k: int, top_p: float, where: torch.device) -> None:
    from cascli.kernels.draws import draw

    logits = torch.zeros(1, 3000, device=where)
    logits[0, 2000 if bad > 0 or bad != bad else slice(None)] = bad
    token, _, _, max_logit = draw(logits, 1.0, number(0.3, where), with_base=False, top_k=top_k, top_p=top_p)
    assert not torch.isfinite(max_logit) and 0 <= token.item() < 3000


LIMIT, LAST, TOTAL = range(3)


def shifted(column: int, by: float) -> Callable[[Tensor], None]:
    """A planted bug in the limit, in the last kept of the equal logits, or in the kept mass."""
    return lambda cuts: cuts[:, column].add_(by).float()


@pytest.mark.parametrize(
    "bug",
    [
        shifted(LAST, 1e6),  # all equal logits are kept
        shifted(LAST, -1),  # one fewer, as from `<=` instead of `<`
        shifted(LIMIT, 0.25),  # equal logits are lost
        shifted(LIMIT, -0.25),  # equal logits and the next ones are no longer separated
        lambda cuts: cuts[:, TOTAL].mul_(1.1),  # the mass includes more than is kept
    ],
)
def test_planted_bugs_are_seen(
    bug: Callable[[Tensor], None], where: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    from cascli.kernels import truncation

    logits, sampling = torch.tensor([[2.0, 1.0, 1.0, 1.0, 0.0, -1.0]], device=where), Sampling(1.0, 0, 0.6)
    check(logits, sampling)
    right = truncation.cuts

    def wrong(*given: object) -> Tensor:
        found = right(*given)
        bug(found)
        return found

    monkeypatch.setattr(truncation, "cuts", wrong)
    with pytest.raises(AssertionError):
        check(logits, sampling)
