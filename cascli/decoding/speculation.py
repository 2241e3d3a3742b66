"""The round of speculation for any rule and drafter: draft up to k tokens, check them in one target call, keep some.

Plain speculative decoding is the case pi = p. Nothing waits for the host before the round's one transfer.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Sequence
from functools import partial
from typing import NamedTuple, Self

import torch
from torch import Tensor

from cascli.decoding.session import Session
from cascli.decoding.verification import decide_round
from cascli.kernels.layout import Field, RoundFacts
from cascli.models.gpu.graph_cache import GraphCache
from cascli.rules.base import Rule
from cascli.sampling.parameters import Sampling
from cascli.trace import Drafted, Emitted, Round


class Block(NamedTuple):
    """What was drafted after the answer so far: n tokens, `[n]`, and the very distributions that they were drawn from.

    `q` is `[n, V]` (float32), and `[n + 1, V]` if there is a proposal for the position after them too; a deterministic
    draft is one-hot. `q1` is the same at temperature 1. Both are valid until the next draft.
    """

    tokens: Tensor
    q: Tensor
    q1: Tensor

    @classmethod
    def empty(cls, s: Session) -> Self:
        """Nothing was drafted: the round is a step of the target."""
        return cls.certain(s, [], 0)

    @classmethod
    def certain(cls, s: Session, ids: Sequence[int], n: int) -> Self:
        """A deterministic draft of at most n tokens; an id after those is the proposal for the bonus position."""
        tokens = torch.tensor(ids, dtype=torch.long, device=s.text.device)
        q = torch.zeros((len(ids), s.vocab), dtype=torch.float32, device=s.text.device)
        q.scatter_(1, tokens.unsqueeze(1), 1.0)
        return cls(tokens[:n], q, q)


Propose = Callable[[Session, int, Rule], Block]
"""Drafts at most n tokens, for a rule: see `cascli.drafters.base.Drafter.propose`."""


def speculate(s: Session, rule: Rule, k: int, propose: Propose) -> Iterator[Round]:
    """Yield rounds of at most `k` drafted tokens until the session is finished."""
    while not s.finished:
        yield _round(s, rule, propose(s, min(k, s.remaining - 1), rule))


def _round(s: Session, rule: Rule, block: Block) -> Round:
    start, n = s.length, block.tokens.shape[0]
    s.text[start : start + n] = block.tokens
    logits = s.target.read(start + n, rows=n + 1)
    u_next = torch.cat([s.uniforms.residual(start, n), s.uniforms.draw(start + n, 1)])
    numbers = _decide(s, rule, logits, block, s.uniforms.accept(start, n), u_next)
    facts = RoundFacts.of(s.fetch(numbers)[0])
    drafted = _drafted(s, rule, facts)
    s.length = start + facts.num_accepted
    for cursor in (s.draft, s.target):
        cursor.rewind(s.length)
    s.append(numbers[Field.NEXT_ID, :1].long())
    emitted = _emitted(s, rule, facts, drafted, known=block.q.shape[0])
    return Round(drafted=drafted, emitted=emitted, seconds=s.clock.lap())


def _decide(s: Session, rule: Rule, logits: Tensor, block: Block, u_accept: Tensor, u_next: Tensor) -> Tensor:
    """The numbers of a round: see `decide_round`."""
    decide, given = partial(decide_round, rule, s.sampling), (logits, *block, u_accept, u_next)
    return s.graphs.run(_key(rule, s.sampling), decide, *given) if rule.capturable else decide(*given)


def _key(rule: Rule, sampling: Sampling) -> Hashable:
    return ("decide", rule, sampling)


def capture_round(graphs: GraphCache, rule: Rule, sampling: Sampling, k: int, logits: Tensor) -> None:
    """Capture the decision of a round of `k` tokens, and try out those of shorter blocks.

    Those come once an answer and are not worth a graph, but their kernels may have to be compiled.

    Args:
        graphs: will be the session's.
        rule: makes pi.
        sampling: makes distributions of logits.
        k: drafted tokens.
        logits: `[1, V]`, as the target's will be.
    """
    if not rule.capturable:
        return
    u = torch.full((k + 1,), 0.5, dtype=torch.float64, device=logits.device)
    decide = partial(decide_round, rule, sampling)
    for n in range(k, -1, -1):
        shape = (n + rule.reads_draft, logits.shape[1])
        q = torch.full(shape, 1 / logits.shape[1], dtype=torch.float32, device=logits.device)
        drafted = torch.zeros(n, dtype=torch.long, device=logits.device)
        given = (logits.expand(n + 1, -1), drafted, q, q, u[:n], u[: n + 1])
        if n < k:
            decide(*given)
        elif not graphs.capture(_key(rule, sampling), decide, *given):
            return


def _drafted(s: Session, rule: Rule, facts: RoundFacts) -> list[Drafted]:
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
        )
        for i, token in enumerate(facts.ids)
    ]


def _emitted(s: Session, rule: Rule, facts: RoundFacts, drafted: list[Drafted], known: int) -> list[Emitted]:
    """The round's tokens; q and what was deferred are known of the first `known` positions."""
    kept = facts.num_accepted
    deferral = [mass if rule.chooses and i < known else None for i, mass in enumerate(facts.deferral)]
    stood = [
        Emitted(id=token.id, text=token.text, event="accepted", q=token.q, p=token.p, tv=tv, deferral=mass)
        for token, tv, mass in zip(drafted[:kept], facts.tv, deferral, strict=False)
    ]
    last = Emitted(
        id=facts.next_id,
        text=s.spell(facts.next_id),
        event="bonus" if kept == len(drafted) else "residual",
        p=facts.next_p,
        q=facts.next_q if kept < known else None,
        tv=facts.tv[kept],
        deferral=deferral[kept],
    )
    return [*stood, last]
