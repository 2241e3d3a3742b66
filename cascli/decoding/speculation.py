"""The speculation round for any rule and drafter: draft up to k tokens, check them in one target call, keep some.

Plain speculative decoding is the case pi = p. Nothing waits for the host before the round's single transfer. On a CPU,
where there is no such wait, a rule gets the draft model's q after the block only if the whole block has passed: no
other round needs that step. Once the target has read a block, the decision (pi, the tests, the next token) is computed
in one pass by kernels that support the rule; otherwise by `cascli.rules` and `cascli.sampling.rejection`, which define
the semantics.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict
from functools import partial
from typing import TYPE_CHECKING, NamedTuple, Self

import torch
from torch import Tensor

from cascli import kernels
from cascli.decoding import detail, thinking
from cascli.decoding.session import Session
from cascli.decoding.step_by_step import DistributionOnly, ReadLast, TokensOnly, by_steps
from cascli.kernels.layout import Field, RoundFacts
from cascli.models.gpu.graph_cache import GraphCache
from cascli.rules._forced import Forced
from cascli.rules.base import Exact, Rule, ThresholdRule, TokenRule
from cascli.sampling import distributions
from cascli.sampling.autoregressive import Sampler
from cascli.sampling.distributions import Dists
from cascli.sampling.parameters import Sampling
from cascli.sampling.rejection import Verification, verify_block, verify_prefixes
from cascli.sampling.uniforms import LookingAhead
from cascli.stops.base import Stopping
from cascli.trace import Detail, Drafted, Emitted, Round

if TYPE_CHECKING:
    from cascli.kernels.verification import FusedRule
    from cascli.models.runner import Runner


class Block(NamedTuple):
    """The n tokens drafted after the answer so far, `[n]`, and the exact distributions that they were drawn from.

    `q` is `[n, V]` (float32), or `[n + 1, V]` if there is a proposal for the position after them too; a deterministic
    draft is one-hot. `q1` is `q` at temperature 1, or the same tensor as `q` where that is not known. Both are valid
    until the next draft.
    """

    tokens: Tensor
    q: Tensor
    q1: Tensor

    @classmethod
    def empty(cls, s: Session) -> Self:
        """No drafted tokens: the round is a step of the target."""
        return cls.certain(s, [], 0)

    @classmethod
    def certain(cls, s: Session, ids: Sequence[int], n: int) -> Self:
        """A deterministic draft of at most n tokens; a further id is the proposal for the bonus position."""
        tokens = torch.tensor(ids, dtype=torch.long, device=s.text.device)
        q = torch.zeros((len(ids), s.vocab), dtype=torch.float32, device=s.text.device)
        q.scatter_(1, tokens.unsqueeze(1), 1.0)
        return cls(tokens[:n], q, q)

    def followed_by(self, after: Block) -> Block:
        """This block extended by the proposal for the position after it, given as a block without tokens."""
        q = torch.cat([self.q, after.q])
        same = self.q1 is self.q and after.q1 is after.q
        return Block(self.tokens, q, q if same else torch.cat([self.q1, after.q1]))


Observing = Callable[[], AbstractContextManager[None]]
Propose = Callable[[Session, int, Rule], Block]
"""Drafts at most n tokens for a rule: see `cascli.drafters.base.Drafter.propose`."""


def speculate(
    s: Session,
    rule: Rule,
    k: int,
    propose: Propose,
    *,
    by_block: bool = False,
    stopping: Stopping | None = None,
    on_host: bool = True,
    late: bool = False,
    planned: bool = False,
) -> Iterator[Round]:
    """Yield rounds of at most `k` drafted tokens until the session is finished.

    Args:
        s: the session.
        rule: computes pi.
        k: maximum number of drafted tokens per round.
        propose: drafts them.
        by_block: see `decide_round`.
        stopping: ends drafts earlier; never by default.
        on_host: see `step_by_step.by_steps`.
        late: see `asks_late`.
        planned: whether the drafter plans a round at its start, with a q that is certain of each token; a stop then
            cuts the plan.

    Raises:
        RunError: a third-party rule, drafter or stop returned something invalid.
    """
    ahead = LookingAhead(s.uniforms)
    stopping = Stopping() if stopping is None else stopping
    if by_block:
        s.uniforms = ahead
    while not s.finished:
        room = min(k, s.remaining - 1)
        most = max(0, min(stopping.most(room), room))
        block, read = _drafts(s, most, rule, propose, stopping, late=late, on_host=on_host, planned=planned)
        start, n = s.length, block.tokens.shape[0]
        if n > most or block.q.shape[0] not in (n, n + 1) or block.q.shape != block.q1.shape:
            raise TypeError(f"a block of {n} tokens and q {[*block.q.shape]}, but at most {most} were requested")
        s.text[start : start + n] = block.tokens
        logits = s.target.read(start + n, rows=n + 1)
        u_accept = s.uniforms.accept(start, n)
        u_next = torch.cat([s.uniforms.residual(start, n), s.uniforms.draw(start + n, 1)])
        holds = thinking.where(s, rule, start + n, n + 1)
        given = (logits, *block, u_accept, u_next, *holds)
        if s.graphs.captures and rule.capturable:
            decide = partial(decide_round, rule, s.sampling, by_block=by_block)
            numbers = s.graphs.run(_key(rule, s.sampling, by_block), decide, *given)
        else:
            decide = partial(decide_round, rule, s.sampling, by_block=by_block, observing=s.clock.observing)
            numbers = decide(*given)
            if late and block.q.shape[0] == n and int(numbers[Field.NUM_ACCEPTED, 0]) == n:
                after = _proposal_after(s, block, propose, rule)
                last = decide(logits[n:], *after, u_accept[n:], u_next[n:], *(each[n:] for each in holds))
                numbers, block = _continued(numbers, last), block.followed_by(after)
        ahead.mark_used(start + n)
        flat, *of_detail = s.fetch(numbers, *_numbers_of_detail(s, block, logits, numbers))
        facts, seen = RoundFacts.of(flat), detail.details(of_detail, n + 1, s.spell)
        kept = facts.num_accepted
        # Positions after a rejected draft are drawn again: a stop that had learned from them would bias the text.
        stopping.learn(read[: kept + 1], kept, rejected=kept < n)
        s.length = start + kept
        for cursor in (s.draft, s.target):
            cursor.rewind(s.length)
        s.append(numbers[Field.NEXT_ID, :1].long())
        drafted = _drafted(s, rule, facts, seen, by_block=by_block)
        emitted = _emitted(s, rule, facts, drafted, known=block.q.shape[0], seen=seen[n])
        yield Round(drafted=drafted, emitted=emitted, seconds=s.clock.lap())


def asks_late(rule: Rule, draft: Runner, device: torch.device, *, captures: bool) -> bool:
    """Whether the rule gets a draft model's q after a block only once the whole block has passed.

    No other round needs that step. But a captured round cannot wait for the host to learn the outcome, and a draft
    model that depends on the target cannot wait either: the target has read the block by then. A rule with side effects
    is always given whole rounds.

    Args:
        rule: computes pi.
        draft: the draft model's runner.
        device: the models' device.
        captures: whether rounds are captured.
    """
    waits = device.type != "cpu" or captures or draft.draws
    return rule.reads_draft and rule.capturable and not waits and not draft.goes_by_target


def _drafts(
    s: Session, n: int, rule: Rule, propose: Propose, stopping: Stopping, *, late: bool, on_host: bool, planned: bool
) -> tuple[Block, list[float]]:
    """A round's drafts, and what the stop has read while drafting; drafted in one go unless it reads something.

    If the rule gets q after the drafts late, it is included here only if n is 0 or the stop has read it there.
    """
    later = late and n > 0
    if stopping.reads is None:
        return propose(s, n, TokensOnly(rule.reads_base) if later else rule), []

    plan = propose(s, n, DistributionOnly()) if planned else None

    def look(ahead: Session) -> tuple[Tensor, Tensor]:
        if plan is not None:
            here = slice(ahead.length - s.length, ahead.length - s.length + 1)
            return plan.q[here], plan.q1[here]
        block = propose(ahead, 0, DistributionOnly())
        return block.q, block.q1

    read_last: ReadLast = "if seen" if later else rule.reads_draft
    drafted = by_steps(s, n, look, stopping, read_last=read_last, on_host=on_host)
    needs_q1 = rule.reads_base or s.top > 0
    return Block(drafted.tokens, drafted.q, drafted.q1 if needs_q1 else drafted.q), drafted.seen


def _proposal_after(s: Session, block: Block, propose: Propose, rule: Rule) -> Block:
    """The proposal for the position after a block that has passed, as a block without tokens."""
    n, ahead = block.tokens.shape[0], copy.copy(s)
    # A drafter may have written, and therefore read, more tokens than it returned.
    s.draft.rewind(s.length + n - 1)
    ahead.length += n
    ahead.answer_ids = [*s.answer_ids, *block.tokens.tolist()]
    return propose(ahead, 0, rule)


def _continued(numbers: Tensor, last: Tensor) -> Tensor:
    """The matrix of a round whose drafts all passed, joined with the decision for the position after them."""
    joined = torch.cat([numbers[:, :-1], last], dim=1)
    for field in (Field.NEXT_ID, Field.NEXT_P, Field.NEXT_Q, Field.NEXT_REGRET):
        joined[field, 0] = last[field, 0]
    return joined


def decide_round(
    rule: Rule,
    sampling: Sampling,
    logits: Tensor,
    tokens: Tensor,
    q: Tensor,
    q1: Tensor,
    u_accept: Tensor,
    u_next: Tensor,
    holds: Tensor | None = None,
    *,
    by_block: bool = False,
    observing: Observing = nullcontext,
) -> Tensor:
    """Verify a block of n tokens: pi of the rule, the tests, and the token after the kept ones.

    Args:
        rule: computes pi from q and p; where it reads q and there is none (nothing was proposed), pi is p.
        sampling: turns logits into p.
        logits: the target's, `[n + 1, V]`.
        tokens: `[n]`.
        q: what they were drawn from, `[n, V]`; `[n + 1, V]` if the rule reads q after them and the drafter has it.
        q1: `q` at temperature 1.
        u_accept: uniforms `[n]`.
        u_next: uniforms `[n + 1]`.
        holds: bool `[n + 1]`, the positions at which the rule applies; None means all.
        by_block: test prefixes of the block and keep the longest that passes, instead of testing token by token.
        observing: entered while computing numbers that decide nothing; the kernels compute these along the way.

    Returns:
        `[len(Field), n + 1]` (float64): see `cascli.kernels.layout`.
    """
    fused = fused_rule(rule) if kernels.serve(logits.device) else None
    if by_block and isinstance(rule, Forced):
        fused = None  # the kernels implement its tests, but not its pi
    if fused is not None:
        from cascli.kernels import verification

        return verification.verify(
            logits, tokens, q, q1, u_accept, u_next, rule=fused, by_block=by_block, **asdict(sampling)
        )
    return plain_round(
        rule, sampling, logits, tokens, q, q1, u_accept, u_next, holds, by_block=by_block, observing=observing
    )


def plain_round(
    rule: Rule,
    sampling: Sampling,
    logits: Tensor,
    tokens: Tensor,
    q: Tensor,
    q1: Tensor,
    u_accept: Tensor,
    u_next: Tensor,
    holds: Tensor | None = None,
    *,
    by_block: bool = False,
    observing: Observing = nullcontext,
) -> Tensor:
    """`decide_round` by `cascli.rules` and `cascli.sampling.rejection` alone, in the precision of its inputs."""
    n, known = tokens.shape[0], q.shape[0]
    p, p1 = Sampler(sampling, rule.reads_base)(logits)
    rows = known if rule.reads_draft else n + 1
    d = Dists(q, p[:rows], q1, p1[:rows])
    judged, deferred = thinking.judged(rule, d, holds)
    pi = torch.cat([judged, p[rows:]])
    verify = verify_prefixes if by_block else verify_block
    outcome = verify(pi, q[:n], tokens, u_accept, u_next)
    numbers = _numbers(q, p, pi, deferred, tokens, outcome)
    with observing():
        _add_distances(numbers, rule, d, pi, p, u_accept)
        return _add_regret(numbers, logits)


def fused_rule(rule: Rule) -> FusedRule | None:
    """The rule in the form that the kernels take; None if they do not support it."""
    from cascli.kernels.verification import EXACT, HEAD, TOKENS, WHOLE, FusedRule

    if type(rule) is Exact:
        return FusedRule(EXACT)
    if isinstance(rule, Forced):
        return FusedRule(EXACT, forced=rule.acceptance)
    if not isinstance(rule, ThresholdRule) or type(rule).keep is not ThresholdRule.keep:
        return None
    if rule.thinking_only or not (rule.reads_draft and rule.reads_base):
        return None
    t = rule.threshold()
    whole = t.tests == "best q1"
    if t.likeliest or (t.of_disagreement and not whole):
        return None
    kind = WHOLE if whole else TOKENS
    if not rule.chooses:  # it has its own pi, which the kernels support only for token rules
        if whole or type(rule).apply is not TokenRule.apply:
            return None
        kind = HEAD
    return FusedRule(kind, t.tests != "p1", t.constant, t.of_best_p1, t.of_disagreement)


def _numbers(
    q: Tensor, p: Tensor, pi: Tensor, deferred: Tensor | None, tokens: Tensor, outcome: Verification
) -> Tensor:
    """The matrix of a round; its deferral rows mean nothing unless the rule chooses between the models."""
    n, known = tokens.shape[0], q.shape[0]
    row, token = outcome.num_accepted.unsqueeze(0), outcome.next_token.unsqueeze(0)
    row_q = q[row.clamp(max=known - 1)] if known else p[row]
    out = q.new_zeros((len(Field), n + 1), dtype=torch.float64)
    out[Field.ID, :n] = tokens.double()
    out[Field.Q, :n] = distributions.at(q[:n], tokens).double()
    out[Field.P, :n] = distributions.at(p[:n], tokens).double()
    out[Field.PI, :n] = distributions.at(pi[:n], tokens).double()
    out[Field.ACCEPT_PROB, :n] = outcome.accept_prob.double()
    out[Field.DEFERRED] = out[Field.DEFERRAL] = 1.0
    if deferred is not None:
        defer = deferred[:known]
        out[Field.DEFERRED, :n] = distributions.at(defer[:n].expand(-1, q.shape[-1]), tokens).double()
        out[Field.DEFERRAL, :known] = distributions.mass(q, defer).double()
    out[Field.TV] = distributions.total_variation(pi, p).double()
    out[Field.NUM_ACCEPTED, :1] = row.double()
    out[Field.NEXT_ID, :1] = token.double()
    out[Field.NEXT_P, :1] = distributions.at(p[row], token).double()
    out[Field.NEXT_Q, :1] = distributions.at(row_q, token).double()
    return out


def _add_distances(numbers: Tensor, rule: Rule, d: Dists, pi: Tensor, p: Tensor, u_accept: Tensor) -> None:
    """Add how far pi is from both models, and whether the exact test would have kept each draft."""
    n, known = u_accept.shape[0], d.q.shape[0]
    numbers[Field.TV_TO_DRAFT : Field.DISAGREEMENT + 1] = torch.nan
    numbers[Field.DISAGREEMENT, :known] = distributions.total_variation(p[:known], d.q).double()
    numbers[Field.EXACT, :n] = (u_accept < numbers[Field.P, :n] / numbers[Field.Q, :n]).double()
    if type(rule) is Exact:  # already known
        numbers[Field.TV_TO_DRAFT] = numbers[Field.DISAGREEMENT]
        numbers[Field.OVERSHOOT] = 1.0
        return
    numbers[Field.TV_TO_DRAFT, :known] = distributions.total_variation(pi[:known], d.q).double()
    numbers[Field.KL : Field.OVERSHOOT + 1] = torch.stack(distributions.divergence(pi, p)).double()


def _add_regret(numbers: Tensor, logits: Tensor) -> Tensor:
    """Add how much less likely the round's tokens are than the target's best ones."""
    n = logits.shape[0] - 1
    last = numbers[Field.NUM_ACCEPTED, :1].long()
    numbers[Field.REGRET, :n] = distributions.regret(logits[:n], numbers[Field.ID, :n].long())
    numbers[Field.NEXT_REGRET, :1] = distributions.regret(logits[last], numbers[Field.NEXT_ID, :1].long())
    return numbers


def _key(rule: Rule, sampling: Sampling, by_block: bool) -> Hashable:
    return ("decide", rule, sampling, by_block)


def capture_round(
    graphs: GraphCache, rule: Rule, sampling: Sampling, k: int, logits: Tensor, *, by_block: bool = False
) -> None:
    """Capture the decision for a round of `k` tokens, and run it once for each shorter block.

    Shorter blocks come once per answer and are not worth a graph, but their kernels may have to be compiled. Where
    nothing is captured, that of `k` tokens is run once too.

    Args:
        graphs: the cache that the session will use.
        rule: computes pi.
        sampling: turns logits into distributions.
        k: drafted tokens.
        logits: `[1, V]`, like the target's, and as far apart from the next row.
        by_block: see `decide_round`.
    """
    if not rule.capturable:
        return
    u = torch.full((k + 1,), 0.5, dtype=torch.float64, device=logits.device)
    decide = partial(decide_round, rule, sampling, by_block=by_block)
    for n in range(k, -1, -1):
        shape = (n + rule.reads_draft, logits.shape[1])
        q = torch.full(shape, 1 / logits.shape[1], dtype=torch.float32, device=logits.device)
        drafted = torch.zeros(n, dtype=torch.long, device=logits.device)
        holds = (drafted.new_ones(n + 1, dtype=torch.bool),) if rule.thinking_only else ()
        rows = logits.new_zeros(n + 1, logits.stride(0))[:, : logits.shape[1]]
        given = (rows, drafted, q, q, u[:n], u[: n + 1], *holds)
        if n < k:
            decide(*given)
        elif not graphs.capture(_key(rule, sampling, by_block), decide, *given):
            return


def _numbers_of_detail(s: Session, block: Block, logits: Tensor, numbers: Tensor) -> list[Tensor]:
    """Both models' details of the n drafted tokens, and of the one that follows the kept ones."""
    if not s.top:
        return []
    n = block.tokens.shape[0]
    tokens = torch.cat([block.tokens, numbers[Field.NEXT_ID, :1].long()])
    rows = torch.cat([torch.arange(n, device=tokens.device), numbers[Field.NUM_ACCEPTED, :1].long()])
    with s.clock.observing():
        p = s.warp(logits[: block.q.shape[0]])
        # A drafter that has no distributions at temperature 1 returns the same tensor twice.
        views = detail.Views(
            q1=None if block.q1 is block.q else block.q1,
            p1=distributions.base(logits),
            disagreement=distributions.total_variation(p, block.q),
        )
    return detail.numbers(s, tokens, rows, views)


def _drafted(
    s: Session, rule: Rule, facts: RoundFacts, seen: Sequence[Detail | None], *, by_block: bool
) -> list[Drafted]:
    """The drafts of a round; with `by_block`, tokens have no tests of their own to compare with the exact one."""
    return [
        Drafted(
            id=token,
            text=s.spell(token),
            q=facts.q[i],
            p=facts.p[i],
            pi=facts.pi[i],
            accept_prob=facts.accept_prob[i],
            accepted=i < facts.num_accepted,
            deferred=facts.deferred[i] and rule.chooses,
            exact=None if by_block else facts.exact[i],
            detail=seen[i],
        )
        for i, token in enumerate(facts.ids)
    ]


def _emitted(
    s: Session, rule: Rule, facts: RoundFacts, drafted: list[Drafted], known: int, seen: Detail | None
) -> list[Emitted]:
    """The round's tokens; q and deferral are known for the first `known` positions, `seen` is the last one's detail."""
    kept = facts.num_accepted

    def at_position(i: int) -> dict[str, float | None]:
        return {
            "tv": facts.tv[i],
            "tv_to_draft": facts.tv_to_draft[i],
            "disagreement": facts.disagreement[i],
            "kl": facts.kl[i],
            "overshoot": facts.overshoot[i],
            "deferral": facts.deferral[i] if rule.chooses and i < known else None,
        }

    accepted = [
        Emitted(
            id=token.id,
            text=token.text,
            event="accepted",
            q=token.q,
            p=token.p,
            regret=facts.regret[i],
            detail=token.detail,
            **at_position(i),
        )
        for i, token in enumerate(drafted[:kept])
    ]
    last = Emitted(
        id=facts.next_id,
        text=s.spell(facts.next_id),
        event="bonus" if kept == len(drafted) else "residual",
        p=facts.next_p,
        q=facts.next_q if kept < known else None,
        regret=facts.next_regret,
        detail=seen,
        **at_position(kept),
    )
    return [*accepted, last]
