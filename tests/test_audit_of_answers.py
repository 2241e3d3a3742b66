"""Whole answers against their definition, and drafters against their q: sound code passes, planted bugs fail."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor

from cascli import Pair, load_pair
from cascli.audit import answers, audit, by_definition, drafts, joint, numerics, rounds, tables
from cascli.audit.report import Check, worst
from cascli.decoding import speculation
from cascli.decoding.answer import Answer
from cascli.decoding.session import Session
from cascli.decoding.speculation import Block
from cascli.drafters.base import Drafter
from cascli.drafters.model import Model
from cascli.rules.base import Rule
from cascli.sampling import distributions
from cascli.sampling.autoregressive import Drawn, Sampler
from cascli.sampling.parameters import Sampling
from cascli.sampling.uniforms import LookingAhead, Uniforms
from cascli.strategies import parse
from cascli.strategies.speculative import Speculative
from cascli.strategies.speculative_cascade import SpeculativeCascade
from tests.pairs import pair

STRATEGIES = [
    "target",
    "speculative:k=1",
    "speculative:k=5",
    "speculative:k=3,verify=block",
    "speculative:k=4,stop=max-q",
    "speculative:draft=prompt-lookup,k=3",
    "speculative:draft=suffix,k=3",
    "speculative-cascade:rule=chow,alpha=0.3,k=4",
    "speculative-cascade:rule=token-v3,alpha=0.3,draft=prompt-lookup,k=3",
    "speculative-cascade:rule=token-v2,alpha=0.8,top=3,where=thinking,k=2",
]


@pytest.fixture(scope="module")
def tree(text_pair: Pair) -> tables.Tree:
    return tables.tabulate(text_pair, [72, 105], width=16, depth=1)


def compared(text_pair: Pair, tree: tables.Tree, spec: str) -> Check:
    [found] = answers.answers(text_pair, tree, [parse(spec)], 2)
    return found


@pytest.mark.parametrize("spec", STRATEGIES)
def test_the_engine_writes_what_follows_from_the_definition(text_pair: Pair, tree: tables.Tree, spec: str) -> None:
    found = compared(text_pair, tree, spec)
    assert (found.status, found.statistic) == ("pass", 0), found
    assert spec == "target" or "drafts tested" in found.detail


def test_what_was_seen_is_stated(text_pair: Pair, tree: tables.Tree) -> None:
    detail = compared(text_pair, tree, "speculative:k=3").detail
    numbers = [int(word) for word in detail.replace(",", "").split() if word.isdigit()]
    made, tokens, ends, tested, rejected, whole = numbers
    assert made == 8
    assert 80 < tokens <= 4 * (answers.LENGTH + answers.END_AT + 1) and ends == 4
    assert 0 < rejected < tested and whole > 0


decide_round = speculation.decide_round


def _accepts_long_blocks(*given: Any, **more: Any) -> Tensor:
    rule, sampling, logits, tokens, q, q1, u, *others = given
    return decide_round(rule, sampling, logits, tokens, q, q1, u * (len(tokens) < 3), *others, **more)


def _ignores_temperature(rule: Rule, sampling: Sampling, *rest: Any, **more: Any) -> Tensor:
    return decide_round(rule, sampling if sampling.temperature in (0, 1) else Sampling(1.0), *rest, **more)


class _NeverAhead(LookingAhead):
    def mark_used(self, end: int) -> None:
        del end


class _Shared(Uniforms):
    def residual(self, start: int, n: int) -> Tensor:
        return self.draw(start, n)


def _without_q(numbers: Tensor, last: Tensor) -> Tensor:
    """The bonus stays the token that was drawn before q was known."""
    return torch.cat([numbers[:, :-1], last], dim=1)


def _endless(speller: Any, _: Any, *rest: Any) -> Answer:
    return Answer(speller, frozenset(), *rest)


PLANTED: dict[str, tuple[str, str, Any]] = {
    "long blocks are kept": ("speculative:k=4", "decoding.speculation.decide_round", _accepts_long_blocks),
    "only the draft is tempered": ("speculative:k=2", "decoding.speculation.decide_round", _ignores_temperature),
    "used numbers": ("speculative:k=3,verify=block", "decoding.speculation.LookingAhead", _NeverAhead),
    "one number for two draws": ("speculative:k=3", "engine.Uniforms", _Shared),
    "no q": ("speculative-cascade:rule=diff,alpha=0.3,k=2", "decoding.speculation._continued", _without_q),
    "no token ends the text": ("target", "engine.Answer", _endless),
}


@pytest.mark.parametrize("spec", ["target", *STRATEGIES[2:6]])
def test_an_end_that_is_missed_is_found_with_every_strategy(
    text_pair: Pair, tree: tables.Tree, monkeypatch: pytest.MonkeyPatch, spec: str
) -> None:
    right = Answer.__init__
    monkeypatch.setattr(Answer, "__init__", lambda self, speller, _, stop, limit: right(self, speller, (), stop, limit))
    found = compared(text_pair, tree, spec)
    assert found.status == "fail" and found.statistic == 4


class _Off(Uniforms):
    """Numbers that are off by a hundredth."""

    def __init__(self, *given: Any) -> None:
        super().__init__(*given)
        self._draw, self._accept, self._residual = (
            (each + 0.01).clamp(max=1 - 1e-12) for each in (self._draw, self._accept, self._residual)
        )


def test_numbers_at_the_edge_of_a_token_may_fall_on_either_side(
    text_pair: Pair, tree: tables.Tree, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cascli.engine.Uniforms", _Off)
    assert compared(text_pair, tree, "speculative:k=3").status == "fail"
    monkeypatch.setattr(answers, "NUDGE", 0.01)
    assert compared(text_pair, tree, "speculative:k=3").status == "pass"


@pytest.mark.parametrize("bug", PLANTED)
def test_a_planted_bug_of_the_engine_is_found(
    text_pair: Pair, tree: tables.Tree, monkeypatch: pytest.MonkeyPatch, bug: str
) -> None:
    spec, place, wrong = PLANTED[bug]
    assert compared(text_pair, tree, spec).status == "pass"
    monkeypatch.setattr(f"cascli.{place}", wrong)
    assert compared(text_pair, tree, spec).status == "fail"


@dataclass(frozen=True)
class Bigram(Drafter):
    """What followed the last token so far, in proportion; the manual's example, with room for faults."""

    summary: ClassVar[str] = "a test"

    def propose(self, s: Session, n: int, rule: Rule) -> Block:
        text, u = [*s.prompt_ids, *s.answer_ids], s.uniforms.draw(s.length, n)
        rows, tokens = [], [s.text[:0]]
        for i in range(n + rule.reads_draft):
            counts = torch.zeros(1, s.vocab)
            for last, following in pairwise(text):
                counts[0, following] += last == text[-1]
            if not counts.any():
                break
            drawn, reported = self.row(counts / counts.sum())
            rows.append(reported)
            if i < n:
                tokens.append(distributions.sample(drawn, u[i : i + 1]))
                text.append(int(tokens[-1]))
        if not rows:
            return Block.empty(s)
        q = torch.cat(rows)
        return Block(torch.cat(tokens), q, q)

    def row(self, q: Tensor) -> tuple[Tensor, Tensor]:
        """What a token is drawn from, and what is said of it."""
        return q, q


class Cubed(Bigram):
    def row(self, q: Tensor) -> tuple[Tensor, Tensor]:
        return q**3 / (q**3).sum(), q


class Likeliest(Bigram):
    def row(self, q: Tensor) -> tuple[Tensor, Tensor]:
        return torch.nn.functional.one_hot(q.argmax(-1), q.shape[-1]).float(), 0.02 * q + 0.98 / q.shape[-1]


class Doubled(Bigram):
    def row(self, q: Tensor) -> tuple[Tensor, Tensor]:
        return q, 2 * q


class Other(Bigram):
    def row(self, q: Tensor) -> tuple[Tensor, Tensor]:
        return q.roll(1), q


class Forgets(Bigram):
    """It has no q where only that is asked for."""

    def propose(self, s: Session, n: int, rule: Rule) -> Block:
        block = super().propose(s, n, rule)
        return Block(block.tokens, block.q[:n], block.q1[:n])


class ForgetsTheLast(Bigram):
    """It has no q after the tokens that it drafts."""

    def propose(self, s: Session, n: int, rule: Rule) -> Block:
        block = super().propose(s, n, rule)
        return Block(block.tokens, block.q[: max(n, 1)], block.q1[: max(n, 1)])


class FirstOfTies(Bigram):
    """It draws, but of two tokens that are equally likely always the first: q(x) is what it should be on average."""

    def row(self, q: Tensor) -> tuple[Tensor, Tensor]:
        drawn = torch.zeros_like(q)
        for each in q.unique():
            drawn[0, (q[0] == each).float().argmax()] += q[q == each].sum()
        return drawn, q


class OneNumber(Bigram):
    """It draws all tokens of a draft with the same number."""

    def propose(self, s: Session, n: int, rule: Rule) -> Block:
        ahead = copy.copy(s)
        right = s.uniforms.draw(s.length, n)
        ahead.uniforms = copy.copy(s.uniforms)
        ahead.uniforms.draw = lambda start, n: right[:1].expand(n)  # type: ignore[method-assign]
        return super().propose(ahead, n, rule)


class Nothing(Bigram):
    def propose(self, s: Session, n: int, rule: Rule) -> Block:
        return Block.empty(s)


@pytest.mark.parametrize(
    ("kind", "status", "said"),
    [
        (Bigram, "pass", "tokens drafted"),
        (Cubed, "fail", "uncertain"),
        (Likeliest, "fail", "uncertain"),
        (FirstOfTies, "fail", "uncertain"),
        (OneNumber, "fail", "uncertain"),
        (Doubled, "fail", "does not add up to 1"),
        (Other, "fail", "q is 0"),
        (Forgets, "fail", "no q for this position"),
        (ForgetsTheLast, "fail", "in some calls only"),
        (Nothing, "skipped", "drafted nothing"),
    ],
)
def test_drafters_are_held_to_their_q(
    text_pair: Pair, monkeypatch: pytest.MonkeyPatch, kind: type[Bigram], status: str, said: str
) -> None:
    monkeypatch.setattr(drafts, "PLACES", 6 if kind is not OneNumber else 12)
    [found] = drafts.drafts(text_pair, Speculative(draft=kind(), k=3))
    assert found.status == status and said in found.detail, found


def test_each_drafter_without_the_draft_model_is_tested_once(text_pair: Pair) -> None:
    kinds = ("draft=suffix,", "draft=suffix,", "", "draft=early-exit,")
    strategy, exiting = drafts.drafters([parse(f"speculative:{kind}k=3") for kind in kinds])
    assert exiting.spec.startswith("speculative:draft=early-exit")
    assert strategy.spec.startswith("speculative:draft=suffix")
    [found] = drafts.drafts(text_pair, strategy)
    assert found.status == "pass"


def test_layers_of_the_target_are_held_to_their_q(text_pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(drafts, "WITH_MODEL", 1)
    [strategy] = drafts.drafters([parse("speculative:draft=early-exit,layers=1,k=3")])
    [found] = drafts.drafts(text_pair, strategy)
    assert found.status == "pass" and "60 of them uncertain" in found.detail, found
    right = Sampler.draw

    def likeliest(self: Sampler, logits: Tensor, u: Tensor | None) -> Drawn:
        drawn = right(self, logits, u)
        return drawn if u is None else drawn._replace(token=drawn.probs.argmax(dim=-1))

    monkeypatch.setattr(Sampler, "draw", likeliest)
    [found] = drafts.drafts(text_pair, strategy)
    assert found.status == "fail"


def test_lookups_are_certain_of_what_they_draft(text_pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    strategy = parse("speculative:draft=prompt-lookup,k=3")
    [found] = drafts.drafts(text_pair, strategy)  # type: ignore[arg-type]
    assert (found.status, found.statistic) == ("pass", 0)
    right = Block.certain.__func__  # type: ignore[attr-defined]

    def vague(cls: type[Block], s: Session, ids: Any, n: int) -> Block:
        tokens, q, _ = right(cls, s, ids, n)
        q = 0.3 * q + 0.7 / s.vocab
        return cls(tokens, q, q)

    monkeypatch.setattr(Block, "certain", classmethod(vague))
    [found] = drafts.drafts(text_pair, strategy)  # type: ignore[arg-type]
    assert found.status == "fail"


class Hot(Model):
    """The draft model at twice the temperature, which its q says."""

    def propose(self, s: Session, n: int, rule: Rule) -> Block:
        hot = Sampler(replace(s.sampling, temperature=2 * s.sampling.temperature), True)
        written = s.draft.write(s.length, hot, s.uniforms.draw(s.length, n), read_last=rule.reads_draft)
        return Block(written.tokens, written.probs, written.base)


def test_a_drafter_with_another_q_of_the_draft_model_is_not_judged_by_the_models(text_pair: Pair) -> None:
    strategy = SpeculativeCascade(rule=parse("token-cascade:rule=opt,alpha=0.1").rule, draft=Hot(), k=3)  # type: ignore[attr-defined]
    small = tables.tabulate(text_pair, [72, 105], width=4, depth=1)
    assert {check.status for check in joint.joint_laws(text_pair, small, [strategy], 10)} == {"skipped"}


def test_lookups_draft_in_sampled_texts(text_pair: Pair, tree: tables.Tree) -> None:
    small = tables.tabulated(text_pair, tree)
    _, drafted = joint.sampled(small, parse("speculative:draft=prompt-lookup,k=3"), 2, 20)
    assert drafted >= 20
    assert joint.sampled(small, parse("target"), 2, 20)[1] == 0
    stopped = parse("speculative:stop=max-q,least_q=0.01,k=3")
    assert joint.sampled(small, stopped, 2, 20)[1] > 20, "a stop has more than one token to stop at"
    quiet = joint.joint_laws(text_pair, tree, [Speculative(draft=Nothing(), k=3)], 5)
    assert {(check.status, check.detail) for check in quiet} == {("skipped", "nothing was drafted")}


def test_a_number_that_is_none_is_the_worst() -> None:
    assert worst([]) == 0 and worst([1.0, 3.0, 2.0]) == 3
    assert math.isnan(worst([1.0, math.nan, 2.0])) and worst([1.0, math.inf]) == math.inf


def test_a_model_without_numbers_fails_each_check_and_the_audit_goes_on() -> None:
    broken = load_pair(pair(300, num_hidden_layers=1))
    with torch.no_grad():
        broken.target.model.get_input_embeddings().weight[:] = math.nan
    found = {(check.kind, check.subject.split()[0]): check for check in numerics.numerics(broken, 2)}
    assert found["cache", "target"].status == found["block", "target"].status == "fail"
    assert "identical" not in found["block", "target"].detail and found["block", "draft"].status == "pass"
    whole = audit(broken, [parse("speculative:k=2")], quick=True)
    failed = {check.kind: check for check in whole.checks if check.status == "fail"}
    assert not whole.passed and "not finite" in failed["parity"].detail and failed["parity"].statistic is None


@pytest.mark.parametrize("floor", [-math.inf, torch.finfo(torch.float32).min, -1e6])
def test_tokens_that_the_target_bans_end_no_search(text_pair: Pair, floor: float) -> None:
    generator = torch.Generator().manual_seed(0)
    draft, target = (torch.randn(5, 12, generator=generator, dtype=torch.float64) for _ in range(2))
    target[:, ::3] = floor
    near = rounds.drawn_together(rounds.Rows(draft, target), torch.float32)
    p, q = (by_definition.truncated(row.numpy(), Sampling(1.0)) for row in (near.target[0], near.draft[0]))
    assert not p[::3].any() and not q[::3].any()
    distance = distributions.total_variation(distributions.base(near.target), distributions.base(near.draft))
    assert 0.1 < float(distance.mean()) <= rounds.HALF_WAY
