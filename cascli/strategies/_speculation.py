"""The round of speculation for any rule: draft k tokens, check them in one target call, keep a prefix.

Plain speculative decoding is the case pi = p. Nothing waits for the host before the round's one transfer.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from cascli import dists
from cascli.dists import Dists
from cascli.rules.base import Judgement, Rule
from cascli.sampling import Sampling
from cascli.session import Session, at_once
from cascli.trace import Drafted, Emitted, Round
from cascli.verify import Verification, verify_block
from cascli.writing import Law


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
    decide = partial(_decide, rule, s.sampling)
    compute = s.compute if rule.recordable else at_once
    columns = compute(("decide", rule, s.sampling), decide, logits, *block, s.uniforms.accept(at, n), u_next)
    facts = _Facts(*s.fetch(*columns))
    kept = int(facts.next[0])
    drafted = _drafted(s, rule, facts, kept)
    s.length = start + kept
    s.append(columns[-1][1:2].long())
    for lane in (s.draft, s.target):
        lane.rewind(start + kept)
    return Round(drafted=drafted, emitted=_emitted(s, facts, drafted, kept), seconds=s.clock.lap())


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


class _Facts(NamedTuple):
    """What the host learns of a round over n drafted tokens; floats, lists by position."""

    ids: list[float]
    q: list[float]
    p: list[float]
    pi: list[float]
    accept_prob: list[float]
    deferred: list[float]
    tv: list[float]
    """n + 1 values, like `deferral` where the rule reads q at all."""
    deferral: list[float]
    next: list[float]
    """Number of kept tokens, id of the next one, its p and its q."""


def _decide(
    rule: Rule,
    sampling: Sampling,
    logits: Tensor,
    tokens: Tensor,
    q: Tensor,
    q1: Tensor,
    u_accept: Tensor,
    u_next: Tensor,
) -> tuple[Tensor, ...]:
    """Judge and verify a block of n tokens by the target's logits `[n + 1, V]`: the columns of `_Facts`."""
    n = tokens.shape[0]
    p = dists.warp(logits, sampling)
    d = Dists(q, p, q1, dists.base(logits) if rule.reads_base else p)
    judgement = rule.apply(d)
    outcome = verify_block(judgement.pi, q[:n], tokens, u_accept, u_next)
    return _columns(rule, d, judgement, tokens, outcome)


def _columns(rule: Rule, d: Dists, judged: Judgement, tokens: Tensor, outcome: Verification) -> tuple[Tensor, ...]:
    """What the host is to learn of a round."""
    n, width = tokens.shape[0], judged.pi.shape[-1]
    defer = judged.defer.expand(n + 1, width)
    row = outcome.num_accepted.unsqueeze(0)
    token = outcome.next_token.unsqueeze(0)
    row_q = d.q[row.clamp(max=d.q.shape[0] - 1)] if d.q.shape[0] else d.p[row]
    return (
        tokens,
        dists.at(d.q[:n], tokens),
        dists.at(d.p[:n], tokens),
        dists.at(judged.pi[:n], tokens),
        outcome.accept_prob,
        dists.at(defer[:n], tokens),
        dists.total_variation(judged.pi, d.p),
        (d.q * defer).sum(dim=-1) if rule.reads_draft else tokens[:0],
        torch.cat([row.double(), token.double(), dists.at(d.p[row], token).double(), dists.at(row_q, token).double()]),
    )


def _drafted(s: Session, rule: Rule, facts: _Facts, kept: int) -> list[Drafted]:
    return [
        Drafted(
            id=int(token),
            text=s.spell(int(token)),
            q=facts.q[i],
            p=facts.p[i],
            pi=facts.pi[i],
            accept_prob=facts.accept_prob[i],
            accepted=i < kept,
            deferred=bool(facts.deferred[i]) and rule.reads_draft,
        )
        for i, token in enumerate(facts.ids)
    ]


def _emitted(s: Session, facts: _Facts, drafted: list[Drafted], kept: int) -> list[Emitted]:
    deferral: list[float | None] = [*facts.deferral] or [None] * len(facts.tv)
    stood = [
        Emitted(id=token.id, text=token.text, event="accepted", q=token.q, p=token.p, tv=tv, deferral=mass)
        for token, tv, mass in zip(drafted[:kept], facts.tv, deferral, strict=False)
    ]
    bonus = kept == len(drafted)
    knows_q = not bonus or bool(facts.deferral)
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
