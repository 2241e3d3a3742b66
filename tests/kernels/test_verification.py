"""Fused verification beside the plain one: for any rule the same numbers, for the same uniforms the same tokens."""

from __future__ import annotations

from typing import ClassVar

import pytest
import torch

from cascli import rules
from cascli.decoding.speculation import decide_round, fused_rule
from cascli.jobs.recording import Watching
from cascli.kernels.layout import Field, RoundFacts
from cascli.rules._forced import Forced
from cascli.rules.base import Exact, KeepRule, Rule, Threshold, ThresholdRule
from cascli.sampling import distributions
from cascli.sampling.autoregressive import Sampler
from cascli.sampling.parameters import Sampling

ALPHAS = (-0.1, 0.3, 0.7)
KINDS = [rules.load(name) for name in rules.names()]
RULES = [Exact(), *(kind(alpha=alpha) for kind in KINDS if issubclass(kind, ThresholdRule) for alpha in ALPHAS)]


def block(rule: Rule, sampling: Sampling, n: int, width: int, where: torch.device) -> list[torch.Tensor]:
    """Logits of the target, drafted tokens, q, q1, and uniforms; the two models agree about half the time."""
    generator = torch.Generator().manual_seed(1000 * n + width)
    draft = 3 * torch.randn(n + 1, width, generator=generator)
    target = draft + torch.randn(n + 1, width, generator=generator)
    q, q1 = Sampler(sampling, rule.reads_base)(draft)
    u = torch.rand(3, n + 1, generator=generator, dtype=torch.float64)
    tokens = distributions.sample(distributions.warp(draft, sampling), u[0])[:n]
    known = n + rule.reads_draft
    return [each.to(where) for each in (target, tokens, q[:known], q1[:known], u[1, :n], u[2])]


@pytest.mark.usefixtures("few_parts")
@pytest.mark.parametrize("temperature", [0.0, 0.6])
@pytest.mark.parametrize("rule", RULES, ids=repr)
def test_it_computes_what_the_plain_one_does(rule: Rule, temperature: float, where: torch.device) -> None:
    """Blocks of no token, one and more; rows of one part and of two, of two blocks the first, the second not full."""
    from cascli.kernels.verification import verify

    sampling = Sampling(temperature)
    for n, width in ((0, 40), (1, 40), (4, 40), (3, 2500)):
        given = block(rule, sampling, n, width, where)
        wanted = RoundFacts.of(decide_round(rule, sampling, *(each.cpu() for each in given)).flatten().tolist())
        found = RoundFacts.of(verify(*given, temperature=temperature, rule=fused_rule(rule)).flatten().tolist())
        assert found.ids == wanted.ids and found.deferred == wanted.deferred
        assert (found.num_accepted, found.next_id) == (wanted.num_accepted, wanted.next_id)
        for name in (
            "q",
            "p",
            "pi",
            "accept_prob",
            "tv",
            *(["deferral"] if rule.reads_draft else []),
            "next_p",
            "next_q",
        ):
            assert getattr(found, name) == pytest.approx(getattr(wanted, name), rel=1e-4, abs=1e-6), (name, n, width)


@pytest.mark.usefixtures("few_parts")
@pytest.mark.parametrize("one_hot", [False, True])
@pytest.mark.parametrize("rule", [rule for rule in RULES if rule.reads_draft], ids=repr)
def test_where_nothing_is_proposed_the_target_decides(rule: Rule, one_hot: bool, where: torch.device) -> None:
    """A drafter that has nothing for the position after its tokens: pi is p there, for every rule as in the plain path.

    With every draft kept, so that the token is drawn from that very row.
    """
    from cascli.kernels.verification import verify

    sampling = Sampling()
    for n, width in ((0, 40), (2, 40), (3, 2500)):
        target, tokens, q, q1, u_accept, u_next = block(rule, sampling, n, width, where)
        q, q1 = q[:n], q1[:n]
        if one_hot:
            q = q1 = torch.nn.functional.one_hot(tokens, width).float()
        given = (target, tokens, q, q1, 0 * u_accept, u_next)
        wanted = RoundFacts.of(decide_round(rule, sampling, *(each.cpu() for each in given)).flatten().tolist())
        found = RoundFacts.of(verify(*given, temperature=1.0, rule=fused_rule(rule)).flatten().tolist())
        assert (found.num_accepted, found.next_id) == (wanted.num_accepted, wanted.next_id)
        assert found.tv == pytest.approx(wanted.tv, abs=1e-5) and found.tv[n] == pytest.approx(0, abs=1e-6)
        for name in ("pi", "accept_prob", "next_p"):
            assert getattr(found, name) == pytest.approx(getattr(wanted, name), rel=1e-4, abs=1e-6), (name, n)


@pytest.mark.parametrize("rule", [Exact(), rules.load("token-v3")(alpha=0.3)], ids=repr)
def test_columns_need_not_be_packed(rule: Rule, where: torch.device) -> None:
    """Columns of a table, as those of random numbers were: the third test must not use the second draw's number."""
    from cascli.kernels.verification import verify

    sampling = Sampling()
    for n in (3, 5):
        given = block(rule, sampling, n, 40, where)
        wanted = verify(*given, temperature=1.0, rule=fused_rule(rule)).tolist()
        for place in (1, 4, 5):
            strided = torch.stack([given[place], given[place].flip(0), 0 * given[place]], dim=1).unbind(1)[0]
            assert not strided.is_contiguous() and torch.equal(strided, given[place])
            mixed = [*given[:place], strided, *given[place + 1 :]]
            assert verify(*mixed, temperature=1.0, rule=fused_rule(rule)).tolist() == wanted


def test_rows_must_be_packed(where: torch.device) -> None:
    from cascli.kernels.draws import draw
    from cascli.kernels.verification import verify

    given = block(Exact(), Sampling(), 2, 40, where)
    for place in (0, 2, 3):
        wide = given[place].repeat_interleave(2, dim=1)[:, ::2]
        mixed = [*given[:place], wide, *given[place + 1 :]]
        with pytest.raises(ValueError, match=r"packed|one stride"):
            verify(*mixed, temperature=1.0, rule=fused_rule(Exact()))
    with pytest.raises(ValueError, match="packed"):
        draw(given[0].T.contiguous().T[:1], 1.0, given[4][:1], with_base=False)


def test_tokens_follow_the_law_across_parts(where: torch.device) -> None:
    """Uniforms on a grid: every token of the residual as often as its mass, whatever part it lies in."""
    from cascli.kernels.verification import verify

    width, sampling = 3000, Sampling()
    given = block(Exact(), sampling, 1, width, where)
    given[4][:] = 0.999999  # a rejection wherever there can be one
    p = distributions.warp(given[0].cpu(), sampling)[0]
    excess = (p - given[2].cpu()[0]).clamp_min(0).double()
    grid = (torch.arange(40, dtype=torch.float64) + 0.5) / 40
    wanted = distributions.sample(excess, grid)
    for u, token in zip(grid.tolist(), wanted.tolist(), strict=True):
        given[5][0] = u
        out = verify(*given, temperature=1.0, rule=fused_rule(Exact()))
        kept, found = out[Field.NUM_ACCEPTED, 0].item(), out[Field.NEXT_ID, 0].item()
        assert kept == 0 and found == token


def test_equal_logits_go_to_the_first_of_them(where: torch.device) -> None:
    from cascli.kernels.draws import draw
    from cascli.kernels.verification import verify

    logits = torch.zeros(1, 5000, device=where)
    logits[0, [1500, 1501, 4000]] = 2.0
    u = torch.zeros(1, dtype=torch.float64, device=where)
    assert draw(logits, 0.0, u, with_base=False)[0].item() == 1500
    nothing = logits[:0]
    found = verify(logits, u[:0].long(), nothing, nothing, u[:0], u, temperature=0.0, rule=fused_rule(Exact()))
    facts = RoundFacts.of(found.flatten().tolist())
    assert facts == RoundFacts([], [], [], [], [], [], [0.0], [1.0], 0, 1500, 1.0, 1.0)


def test_an_accepted_share_can_be_forced(where: torch.device) -> None:
    from cascli.kernels.verification import verify

    given = block(Exact(), Sampling(), 4, 40, where)
    given[4][:] = torch.tensor([0.1, 0.5, 0.9, 0.1])
    facts = RoundFacts.of(verify(*given, temperature=1.0, rule=fused_rule(Forced(0.6))).flatten().tolist())
    assert facts.accept_prob == pytest.approx([0.6] * 4) and facts.num_accepted == 2


class Odd(KeepRule):
    def keep(self, d: distributions.Dists) -> torch.Tensor:
        return d.q1 > d.p1


class Warped(ThresholdRule):
    """Tests distributions after temperature, which it says by not asking for others."""

    reads_base: ClassVar[bool] = False

    def threshold(self) -> Threshold:
        return Threshold("q1", of_best_p1=1.0)


class Own(ThresholdRule):
    def threshold(self) -> None:
        raise NotImplementedError

    def keep(self, d: distributions.Dists) -> torch.Tensor:
        return d.q1 > d.p1


@pytest.mark.usefixtures("where")
@pytest.mark.parametrize("rule", [Odd(), Own(), Warped(), Watching()], ids=repr)
def test_rules_that_kernels_do_not_know_stay_in_torch(rule: Rule) -> None:
    assert fused_rule(rule) is None
