"""Fused verification compared with the plain one: the same numbers for any rule, the same tokens for equal uniforms."""

from __future__ import annotations

import math
from typing import Any, ClassVar

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

ALPHAS = {"opt": (-0.1, 0.3, 0.7), "token-v3": (-0.1, 0.3, 0.7)}
"""Several values for one rule of each kind; the others have one, as they differ only in their thresholds."""
THRESHOLDS = [name for name in rules.names() if issubclass(rules.load(name), ThresholdRule)]
RULES = [
    Exact(),
    *(rules.load(name)(alpha=alpha) for name in THRESHOLDS for alpha in ALPHAS.get(name, (0.3,))),
    *(rules.load(name)(alpha=0.3, tail="exact") for name in ("token-v1", "token-v2", "token-v3")),
]
BY_BLOCK = [RULES[0], *(rules.load(name)(alpha=0.3) for name in ("opt", "token-v3", "head"))]
"""One rule of each kind that the kernels support."""
DISTANCES = ("tv_to_draft", "disagreement", "kl", "overshoot", "regret", "exact", "next_regret")


def told(facts: RoundFacts, name: str) -> list[float]:
    """A field's numbers; NaN for unknown ones."""
    value = getattr(facts, name)
    return [math.nan if each is None else each for each in (value if isinstance(value, list) else [value])]


def same(found: RoundFacts, wanted: RoundFacts, name: str) -> None:
    """Equal within float32 rounding; pi / p of a rare token is a quotient of two rounded sums."""
    rel = 1e-3 if name == "overshoot" else 1e-4
    assert told(found, name) == pytest.approx(told(wanted, name), rel=rel, abs=1e-6, nan_ok=True), name


def block(rule: Rule, sampling: Sampling, n: int, width: int, where: torch.device) -> list[torch.Tensor]:
    """The target's logits, drafted tokens, q, q1, and uniforms; the two models agree about half the time."""
    generator = torch.Generator().manual_seed(1000 * n + width)
    draft = 3 * torch.randn(n + 1, width, generator=generator)
    draft[::2, 2048:] += 6  # with two parts, the likeliest tokens of every other row are in the second
    target = draft + torch.randn(n + 1, width, generator=generator)
    q, q1 = Sampler(sampling, rule.reads_base)(draft)
    u = torch.rand(3, n + 1, generator=generator, dtype=torch.float64)
    tokens = distributions.sample(distributions.warp(draft, sampling), u[0])[:n]
    known = n + rule.reads_draft
    return [each.to(where) for each in (target, tokens, q[:known], q1[:known], u[1, :n], u[2])]


@pytest.mark.usefixtures("few_parts")
@pytest.mark.parametrize("temperature", [0.0, 0.6])
@pytest.mark.parametrize(
    ("rule", "by_block"), [*((rule, False) for rule in RULES), *((rule, True) for rule in BY_BLOCK)], ids=repr
)
def test_it_computes_what_the_plain_one_does(
    rule: Rule, temperature: float, by_block: bool, where: torch.device
) -> None:
    """Blocks of zero to five tokens; rows of one part and of two, the first with two blocks, the second not full."""
    from cascli.kernels.verification import verify

    sampling = Sampling(temperature)
    for n, width in ((0, 40), (1, 40), (5, 40), (3, 2500)):
        given = block(rule, sampling, n, width, where)
        plain = decide_round(rule, sampling, *(each.cpu() for each in given), by_block=by_block)
        fused = verify(*given, temperature=temperature, rule=fused_rule(rule), by_block=by_block)
        wanted, found = (RoundFacts.of(each.flatten().tolist()) for each in (plain, fused))
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
            *DISTANCES,
        ):
            same(found, wanted, name)


@pytest.mark.parametrize("tail", ["cut", "exact"])
def test_rules_test_the_draft_at_temperature_1(tail: str, where: torch.device) -> None:
    """At temperature 0.5, thresholds distinguish q from q1 by tokens of every row: the rules must always test q1."""
    from cascli.kernels.verification import verify

    sampling, apart = Sampling(0.5), torch.zeros(4, dtype=torch.bool)
    for alpha in (0.0, 0.2):
        rule = rules.load("token-v1")(alpha=alpha, tail=tail)
        given = block(rule, sampling, 3, 45, where)
        for seed in range(6):
            u = torch.rand(2, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
            given[4], given[5] = (u[0, :3] * (seed % 2)).to(where), u[1].to(where)
            plain = decide_round(rule, sampling, *(each.cpu() for each in given))
            fused = verify(*given, temperature=0.5, rule=fused_rule(rule))
            wanted, found = (RoundFacts.of(each.flatten().tolist()) for each in (plain, fused))
            assert (found.num_accepted, found.next_id) == (wanted.num_accepted, wanted.next_id)
            for name in ("pi", "accept_prob", "tv", "tv_to_draft"):
                same(found, wanted, name)
        least = given[0].softmax(-1).amax(-1, keepdim=True) - alpha
        apart |= ((given[2] >= least) & (given[3] < least)).any(-1).cpu()
    assert apart.all()


@pytest.mark.usefixtures("few_parts")
@pytest.mark.parametrize(("rule", "least"), [(Exact(), 5), (rules.load("token-v3")(alpha=0.0), 2)])
def test_block_verification_equals_the_plain_path(rule: Rule, least: int, where: torch.device) -> None:
    """Six drafts, of which different random numbers keep one, two, and so on."""
    from cascli.kernels.verification import verify

    sampling, lengths = Sampling(), set()
    given = block(rule, sampling, 6, 60, where)
    for start in range(20):
        u = torch.rand(2, 7, generator=torch.Generator().manual_seed(start), dtype=torch.float64)
        given[4], given[5] = u[0, :6].to(where), u[1].to(where)
        plain = decide_round(rule, sampling, *(each.cpu() for each in given), by_block=True)
        fused = verify(*given, temperature=1.0, rule=fused_rule(rule), by_block=True)
        wanted, found = (RoundFacts.of(each.flatten().tolist()) for each in (plain, fused))
        assert (found.num_accepted, found.next_id) == (wanted.num_accepted, wanted.next_id)
        assert found.accept_prob == pytest.approx(wanted.accept_prob, rel=1e-4, abs=1e-6)
        lengths.add(found.num_accepted)
    assert len(lengths) >= least


@pytest.mark.usefixtures("few_parts")
@pytest.mark.parametrize("one_hot", [False, True])
@pytest.mark.parametrize("rule", [rule for rule in RULES if rule.reads_draft], ids=repr)
def test_where_nothing_is_proposed_the_target_decides(rule: Rule, one_hot: bool, where: torch.device) -> None:
    """Where a drafter proposes nothing after its tokens, pi is p for every rule, as in the plain path.

    Every draft is kept, so that the token is drawn from that row.
    """
    from cascli.kernels.verification import verify

    sampling = Sampling()
    for n, width in ((0, 40), (2, 40), (3, 2500)):
        target, tokens, q, q1, u_accept, u_next = block(rule, sampling, n, width, where)
        q, q1 = q[:n], q1[:n]
        if one_hot:
            q = q1 = torch.nn.functional.one_hot(tokens, width).float()
        given = (target, tokens, q, q1, 0 * u_accept, u_next)
        for by_block in (False, True) if rule in BY_BLOCK else (False,):
            plain = decide_round(rule, sampling, *(each.cpu() for each in given), by_block=by_block)
            fused = verify(*given, temperature=1.0, rule=fused_rule(rule), by_block=by_block)
            wanted, found = (RoundFacts.of(each.flatten().tolist()) for each in (plain, fused))
            assert (found.num_accepted, found.next_id) == (wanted.num_accepted, wanted.next_id)
            assert found.tv == pytest.approx(wanted.tv, abs=1e-5) and found.tv[n] == pytest.approx(0, abs=1e-6)
            for name in ("pi", "accept_prob", "next_p", *DISTANCES):
                assert told(found, name) == pytest.approx(told(wanted, name), rel=1e-4, abs=1e-6, nan_ok=True), (
                    name,
                    n,
                )


@pytest.mark.parametrize(("name", "more"), [("chow", {}), ("token-v1", {}), ("token-v1", {"tail": "exact"})], ids=str)
def test_a_probability_at_the_threshold_is_kept(name: str, more: dict[str, str], where: torch.device) -> None:
    """A certain drafter at a threshold of exactly 1, where `>=` and `>` differ."""
    from cascli.kernels.verification import verify

    rule = rules.load(name)(alpha=0.0, **more)
    target, tokens, _, _, u_accept, u_next = block(rule, Sampling(), 3, 40, where)
    q = torch.nn.functional.one_hot(tokens, 40).float()
    if name == "token-v1":  # its threshold is the target's best
        target = target.masked_fill(torch.arange(40, device=where) != 7, -torch.inf)
    given = (target, tokens, q, q, u_accept, u_next)
    wanted = RoundFacts.of(decide_round(rule, Sampling(), *(each.cpu() for each in given)).flatten().tolist())
    found = RoundFacts.of(verify(*given, temperature=1.0, rule=fused_rule(rule)).flatten().tolist())
    assert found.pi == wanted.pi == [1.0, 1.0, 1.0]
    assert found.deferred == wanted.deferred and found.num_accepted == wanted.num_accepted == 3


@pytest.mark.parametrize("rule", [Exact(), *(rules.load(name)(alpha=0.3) for name in ("token-v3", "head"))], ids=repr)
def test_columns_need_not_be_packed(rule: Rule, where: torch.device) -> None:
    """Columns of a table, as random numbers once were: the third test must not use the second draw's number."""
    from cascli.kernels.verification import verify

    sampling = Sampling()
    for n in (3, 5):
        given = block(rule, sampling, n, 40, where)
        wanted = verify(*given, temperature=1.0, rule=fused_rule(rule)).nan_to_num(-1).tolist()
        for place in (1, 4, 5):
            strided = torch.stack([given[place], given[place].flip(0), 0 * given[place]], dim=1).unbind(1)[0]
            assert not strided.is_contiguous() and torch.equal(strided, given[place])
            mixed = [*given[:place], strided, *given[place + 1 :]]
            assert verify(*mixed, temperature=1.0, rule=fused_rule(rule)).nan_to_num(-1).tolist() == wanted


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
    """Uniforms on a grid: every token of the residual is drawn in proportion to its mass, whatever its part."""
    from cascli.kernels.verification import verify

    width, sampling = 3000, Sampling()
    given = block(Exact(), sampling, 1, width, where)
    given[4][:] = 0.999999  # a rejection wherever one is possible
    p = distributions.warp(given[0].cpu(), sampling)[0]
    excess = (p - given[2].cpu()[0]).clamp_min(0).double()
    grid = (torch.arange(40, dtype=torch.float64) + 0.5) / 40
    wanted = distributions.sample(excess, grid)
    for u, token in zip(grid.tolist(), wanted.tolist(), strict=True):
        given[5][0] = u
        out = verify(*given, temperature=1.0, rule=fused_rule(Exact()))
        kept, found = out[Field.NUM_ACCEPTED, 0].item(), out[Field.NEXT_ID, 0].item()
        assert kept == 0 and found == token


def test_the_first_of_equal_logits_wins(where: torch.device) -> None:
    from cascli.kernels.draws import draw
    from cascli.kernels.verification import verify

    logits = torch.zeros(1, 5000, device=where)
    logits[0, [1500, 1501, 4000]] = 2.0
    u = torch.zeros(1, dtype=torch.float64, device=where)
    assert draw(logits, 0.0, u, with_base=False)[0].item() == 1500
    nothing = logits[:0]
    found = verify(logits, u[:0].long(), nothing, nothing, u[:0], u, temperature=0.0, rule=fused_rule(Exact()))
    facts = RoundFacts.of(found.flatten().tolist())
    assert facts == RoundFacts(
        ids=[],
        q=[],
        p=[],
        pi=[],
        accept_prob=[],
        deferred=[],
        tv=[0.0],
        deferral=[1.0],
        num_accepted=0,
        next_id=1500,
        next_p=1.0,
        next_q=1.0,
        tv_to_draft=[None],
        disagreement=[None],
        kl=[0.0],
        overshoot=[1.0],
        regret=[],
        exact=[],
        next_regret=0.0,
    )


@pytest.mark.usefixtures("few_parts")
@pytest.mark.parametrize("ids", [(700, 1500, 2900), (2900, 2901), (1100, 4000)])
def test_the_first_of_equal_logits_wins_across_blocks(ids: tuple[int, ...], where: torch.device) -> None:
    """Also in parts of several blocks: each block's best is compared with those before it."""
    from cascli.kernels.draws import draw

    logits = torch.zeros(1, 5000, device=where)
    logits[0, list(ids)] = 2.0
    u = torch.full((1,), 0.9, dtype=torch.float64, device=where)
    assert draw(logits, 0.0, u, with_base=False)[0].item() == ids[0]


@pytest.mark.parametrize("by_block", [False, True])
def test_a_uniform_of_0_does_not_keep_the_impossible(by_block: bool, where: torch.device) -> None:
    """A uniform may be 0, and so may a probability: there `<` and `<=` differ, also in the exact rule's test."""
    from cascli.kernels.verification import verify

    given = block(Exact(), Sampling(), 2, 40, where)
    given[0][torch.arange(2), given[1]] = -torch.inf
    given[4][:] = 0.0
    wanted = decide_round(Exact(), Sampling(), *(each.cpu() for each in given), by_block=by_block)
    found = verify(*given, temperature=1.0, rule=fused_rule(Exact()), by_block=by_block)
    ours, plain = (RoundFacts.of(each.flatten().tolist()) for each in (found, wanted))
    assert ours.num_accepted == plain.num_accepted == 0 and ours.next_id == plain.next_id
    assert ours.accept_prob == [0.0, 0.0] and ours.exact == plain.exact == [False, False]


def test_a_forced_rejection_that_leaves_no_residual_draws_from_pi(where: torch.device) -> None:
    """Where both models are certain of the same token, only that token can be drawn, whatever its part."""
    from cascli.kernels.verification import verify

    target, tokens, _, _, u_accept, u_next = block(Exact(), Sampling(0.0), 2, 2500, where)
    target[:, 2000] = 50.0
    tokens, u_accept = target[:2].argmax(-1), 0 * u_accept + 0.99
    q = torch.nn.functional.one_hot(tokens, 2500).float()
    out = verify(target, tokens, q, q, u_accept, u_next, temperature=0.0, rule=fused_rule(Forced(0.6)))
    facts = RoundFacts.of(out.flatten().tolist())
    assert (facts.num_accepted, facts.next_id, facts.next_p) == (0, 2000, 1.0)


def test_an_accepted_share_can_be_forced(where: torch.device) -> None:
    from cascli.kernels.verification import verify

    given = block(Exact(), Sampling(), 4, 40, where)
    given[4][:] = torch.tensor([0.1, 0.5, 0.9, 0.1])
    facts = RoundFacts.of(verify(*given, temperature=1.0, rule=fused_rule(Forced(0.6))).flatten().tolist())
    assert facts.accept_prob == pytest.approx([0.6] * 4) and facts.num_accepted == 2


def test_a_forced_share_is_verified_by_blocks_in_torch(where: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    """Prefix tests need its pi, which the kernels do not compute."""
    given = block(Forced(0.6), Sampling(), 3, 40, where)
    wanted = decide_round(Forced(0.6), Sampling(), *given, by_block=True)
    monkeypatch.setattr("cascli.kernels.serve", lambda _: True)
    found = decide_round(Forced(0.6), Sampling(), *given, by_block=True)
    assert torch.equal(found.nan_to_num(-1), wanted.nan_to_num(-1))


@pytest.mark.parametrize("rule", [Exact(), rules.load("token-v3")(alpha=0.3)], ids=repr)
def test_block_verification_takes_one_more_launch(
    rule: Rule, where: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    from cascli.kernels import verification

    launched: list[str] = []

    class Counting:
        def __init__(self, name: str, kernel: Any) -> None:
            self.name, self.kernel = name, kernel

        def __getitem__(self, grid: Any) -> Any:
            launched.append(self.name)
            return self.kernel[grid]

    for name in ("_confidence", "_mass_not_kept", "_excess", "_tests", "_draw"):
        monkeypatch.setattr(verification, name, Counting(name, getattr(verification, name)))
    given = block(rule, Sampling(), 3, 40, where)
    first = [] if type(rule) is Exact else ["_mass_not_kept"]
    verification.verify(*given, temperature=1.0, rule=fused_rule(rule))
    assert launched == [*first, "_excess", "_tests", "_draw"]
    launched.clear()
    verification.verify(*given, temperature=1.0, rule=fused_rule(rule), by_block=True)
    assert launched == [*first, "_excess", "_tests", "_excess", "_draw"]


class Odd(KeepRule):
    def keep(self, d: distributions.Dists) -> torch.Tensor:
        return d.q1 > d.p1


class Warped(ThresholdRule):
    """Tests distributions after temperature, which it declares by `reads_base = False`."""

    reads_base: ClassVar[bool] = False

    def threshold(self) -> Threshold:
        return Threshold("q1", of_best_p1=1.0)


class Own(ThresholdRule):
    def threshold(self) -> None:
        raise NotImplementedError

    def keep(self, d: distributions.Dists) -> torch.Tensor:
        return d.q1 > d.p1


class OwnLaw(ThresholdRule):
    """A threshold rule whose pi does not follow from its threshold."""

    def threshold(self) -> Threshold:
        return Threshold("p1", of_best_p1=0.5)

    def apply(self, d: distributions.Dists) -> torch.Tensor:
        return (d.q + d.p) / 2


V2, V3, HEAD, TYPICAL = (rules.load(name) for name in ("token-v2", "token-v3", "head", "typical"))
UNKNOWN = [
    *(Odd(), Own(), OwnLaw(), Warped(), Watching(), V2(top=3), V3(top=1, tail="exact"), HEAD(top=2)),
    *(V3(where="thinking"), HEAD(where="thinking"), TYPICAL(), TYPICAL(tail="exact")),
]


@pytest.mark.usefixtures("where")
@pytest.mark.parametrize("rule", UNKNOWN, ids=repr)
def test_unknown_rules_have_no_fused_rule(rule: Rule) -> None:
    assert fused_rule(rule) is None


@pytest.mark.parametrize("rule", [V2(top=3), HEAD(top=2), HEAD(where="thinking"), TYPICAL(tail="exact")], ids=repr)
def test_unknown_rules_are_verified_in_torch(rule: Rule, monkeypatch: pytest.MonkeyPatch) -> None:
    sampling = Sampling(0.8)
    given = block(rule, sampling, 3, 40, torch.device("cpu"))
    if rule.thinking_only:
        given.append(torch.tensor([True, False, True, False]))
    wanted = decide_round(rule, sampling, *given)
    monkeypatch.setattr("cascli.kernels.serve", lambda _: True)
    monkeypatch.setattr("cascli.kernels.verification.verify", None)
    assert torch.equal(decide_round(rule, sampling, *given), wanted)


@pytest.mark.usefixtures("few_parts")
@pytest.mark.parametrize("rule", [HEAD(alpha=-0.1), HEAD(alpha=0.3), HEAD(alpha=1.0)], ids=repr)
def test_an_exact_tail_of_equal_and_of_disjoint_models(rule: Rule, where: torch.device) -> None:
    """With p = q nothing is rejected and there is no residual; with disjoint models everything is rejected."""
    from cascli.kernels.verification import verify

    for n, width, gap in ((2, 40, 0.0), (2, 2500, 0.0), (2, 40, 1e4)):
        target, tokens, _, _, u_accept, u_next = block(rule, Sampling(), n, width, where)
        draft = target.clone()
        if gap:
            draft[:, ::2] -= gap
            target[:, 1::2] -= gap
            tokens = draft[:n].argmax(-1)
        q = draft.softmax(-1)
        given = (target, tokens, q, q, u_accept, u_next)
        wanted = RoundFacts.of(decide_round(rule, Sampling(), *(each.cpu() for each in given)).flatten().tolist())
        found = RoundFacts.of(verify(*given, temperature=1.0, rule=fused_rule(rule)).flatten().tolist())
        assert (found.num_accepted, found.next_id) == (wanted.num_accepted, wanted.next_id)
        assert found.tv == pytest.approx(wanted.tv, abs=1e-5)
        for name in ("pi", "accept_prob", "next_p"):
            assert getattr(found, name) == pytest.approx(getattr(wanted, name), rel=1e-4, abs=1e-6), (name, gap)
