"""The round of speculation for any rule: draft k tokens, check them in one target call, keep a prefix.

Plain speculative decoding is the case pi = p. Nothing waits for the host before the round's one transfer.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from cascli.decoding.session import Computes, Rehearses, Session, at_once
from cascli.decoding.verification import Facts, decide_round
from cascli.rules.base import Rule
from cascli.sampling.autoregressive import Law
from cascli.sampling.parameters import Sampling
from cascli.trace import Drafted, Emitted, Round


class Block(NamedTuple):
    """What the draft model wrote ahead: n tokens, and its distributions `[n or n + 1, V]`."""

    tokens: Tensor
    q: Tensor
    q1: Tensor


def speculate(s: Session, rule: Rule, k: int) -> Iterator[Round]:
    """Yield rounds of at most `k` drafted tokens until the session is finished."""
    while not s.finished:
        yield _round(s, rule, min(k, s.remaining - 1))


def _round(s: Session, rule: Rule, n: int) -> Round:
    start, at = s.length, s.position
    block = _draft(s, n, rule)
    logits = s.target.read(start + n, rows=n + 1)
    u_next = torch.cat([s.uniforms.residual(at, n), s.uniforms.draw(at + n, 1)])
    numbers = _decide(s.compute, rule, s.sampling, logits, block, s.uniforms.accept(at, n), u_next)
    facts = Facts.of(s.fetch(numbers)[0], n)
    kept = int(facts.next[0])
    drafted = _drafted(s, rule, facts, kept)
    s.length = start + kept
    s.append(numbers[-3:-2].long())
    for cursor in (s.draft, s.target):
        cursor.rewind(start + kept)
    return Round(drafted=drafted, emitted=_emitted(s, rule, facts, drafted, kept), seconds=s.clock.lap())


def _decide(
    compute: Computes, rule: Rule, sampling: Sampling, logits: Tensor, block: Block, u_accept: Tensor, u_next: Tensor
) -> Tensor:
    """The numbers of a round: see `decide_round`."""
    compute = compute if rule.recordable else at_once
    return compute(_key(rule, sampling), partial(decide_round, rule, sampling), logits, *block, u_accept, u_next)


def _key(rule: Rule, sampling: Sampling) -> Hashable:
    return ("decide", rule, sampling)


def rehearse(compute: Rehearses, rule: Rule, sampling: Sampling, k: int, logits: Tensor) -> None:
    """Record the decision of a round of `k` tokens, and try out the shorter ones at the end of an answer.

    Those come once an answer and are not worth a recording, but their kernels may have to be compiled.

    Args:
        compute: will be the session's.
        rule: judges.
        sampling: makes distributions of logits.
        k: drafted tokens.
        logits: `[1, V]`, as the target's will be.
    """
    if not rule.recordable:
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
        elif not compute.prepare(_key(rule, sampling), decide, *given):
            return


def _draft(s: Session, n: int, rule: Rule) -> Block:
    """Draft n tokens into the text; a rule that reads q also gets it at the position after the last of them."""
    start = s.length
    if n + rule.reads_draft == 0:
        nothing = s.text.new_empty((0, s.vocab), dtype=torch.float32)
        return Block(s.text[start:start], nothing, nothing)
    u = s.uniforms.draw(s.position, n)
    written = s.draft.write(start, Law(s.sampling, rule.reads_base), u, read_last=rule.reads_draft)
    block = Block(written.tokens, written.probs, written.base)
    # Recorded distributions stand until the next draft; a rule with effects of its own may keep what it sees.
    return block if rule.recordable else Block(*(each.clone() for each in block))


def _drafted(s: Session, rule: Rule, facts: Facts, kept: int) -> list[Drafted]:
    return [
        Drafted(
            id=int(token),
            text=s.spell(int(token)),
            q=facts.q[i],
            p=facts.p[i],
            pi=facts.pi[i],
            accept_prob=facts.accept_prob[i],
            accepted=i < kept,
            deferred=bool(facts.deferred[i]) and rule.chooses,
        )
        for i, token in enumerate(facts.ids)
    ]


def _emitted(s: Session, rule: Rule, facts: Facts, drafted: list[Drafted], kept: int) -> list[Emitted]:
    deferral: list[float | None] = [*facts.deferral] if rule.chooses else [None] * len(facts.tv)
    stood = [
        Emitted(id=token.id, text=token.text, event="accepted", q=token.q, p=token.p, tv=tv, deferral=mass)
        for token, tv, mass in zip(drafted[:kept], facts.tv, deferral, strict=False)
    ]
    bonus = kept == len(drafted)
    knows_q = not bonus or rule.reads_draft
    last = Emitted(
        id=int(facts.next[1]),
        text=s.spell(int(facts.next[1])),
        event="bonus" if bonus else "residual",
        p=facts.next[2],
        q=facts.next[3] if knows_q else None,
        tv=facts.tv[kept],
        deferral=deferral[kept],
    )
    return [*stood, last]
