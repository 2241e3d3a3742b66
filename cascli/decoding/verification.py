"""What is decided of a drafted block once the target has read it: pi of the rule, the tests, the next token.

In one go by kernels where they know the rule; else by `cascli.rules` and `cascli.sampling.rejection`, which say what it
means.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from cascli import kernels
from cascli.kernels.layout import Field
from cascli.rules._forced import Forced
from cascli.rules.base import Exact, Rule, ThresholdRule
from cascli.sampling import distributions
from cascli.sampling.autoregressive import Sampler
from cascli.sampling.distributions import Dists
from cascli.sampling.parameters import Sampling
from cascli.sampling.rejection import Verification, verify_block

if TYPE_CHECKING:
    from cascli.kernels.verification import FusedRule


def decide_round(
    rule: Rule,
    sampling: Sampling,
    logits: Tensor,
    tokens: Tensor,
    q: Tensor,
    q1: Tensor,
    u_accept: Tensor,
    u_next: Tensor,
) -> Tensor:
    """Verify a block of n tokens: pi of the rule, the tests, and the token after the kept ones.

    Args:
        rule: makes pi of q and p; where it reads q and there is none, pi is p: nothing was proposed there.
        sampling: makes p of the logits.
        logits: the target's, `[n + 1, V]`.
        tokens: `[n]`.
        q: what they were drawn from, `[n, V]`, and a row more if the rule reads it there and the drafter has one.
        q1: the same at temperature 1.
        u_accept: uniforms `[n]`.
        u_next: uniforms `[n + 1]`.

    Returns:
        `[len(Field), n + 1]` (float64): see `cascli.kernels.layout`.
    """
    sampler = Sampler(sampling, rule.reads_base)
    fused = fused_rule(rule) if kernels.serve(logits.device) and not sampler.truncates else None
    if fused is not None:
        from cascli.kernels import verification

        return verification.verify(
            logits, tokens, q, q1, u_accept, u_next, temperature=sampling.temperature, rule=fused
        )
    return plain_round(rule, sampling, logits, tokens, q, q1, u_accept, u_next)


def plain_round(
    rule: Rule,
    sampling: Sampling,
    logits: Tensor,
    tokens: Tensor,
    q: Tensor,
    q1: Tensor,
    u_accept: Tensor,
    u_next: Tensor,
) -> Tensor:
    """As `decide_round`, by `cascli.rules` and `cascli.sampling.rejection` alone, in the precision that it is given."""
    n, known = tokens.shape[0], q.shape[0]
    p, p1 = Sampler(sampling, rule.reads_base)(logits)
    rows = known if rule.reads_draft else n + 1
    d = Dists(q, p[:rows], q1, p1[:rows])
    pi = torch.cat([rule.apply(d), p[rows:]])
    outcome = verify_block(pi, q[:n], tokens, u_accept, u_next)
    return _numbers(q, p, pi, rule.deferred(d), tokens, outcome)


def fused_rule(rule: Rule) -> FusedRule | None:
    """The rule as the kernels know rules; None if they do not know it."""
    from cascli.kernels.verification import EXACT, TOKENS, WHOLE, FusedRule

    if type(rule) is Exact:
        return FusedRule(EXACT)
    if isinstance(rule, Forced):
        return FusedRule(EXACT, forced=rule.acceptance)
    if not isinstance(rule, ThresholdRule) or type(rule).keep is not ThresholdRule.keep:
        return None
    if not (rule.reads_draft and rule.reads_base):
        return None
    t = rule.threshold()
    whole = t.tests == "best q1"
    if t.of_disagreement and not whole:
        return None
    return FusedRule(WHOLE if whole else TOKENS, t.tests != "p1", t.constant, t.of_best_p1, t.of_disagreement)


def _numbers(
    q: Tensor, p: Tensor, pi: Tensor, deferred: Tensor | None, tokens: Tensor, outcome: Verification
) -> Tensor:
    """The matrix of a round; deferral is of no meaning where the rule is no choice between the models."""
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
        defer = deferred[:known].expand(-1, q.shape[-1])
        out[Field.DEFERRED, :n] = distributions.at(defer[:n], tokens).double()
        out[Field.DEFERRAL, :known] = (q * defer).sum(dim=-1).double()
    out[Field.TV] = distributions.total_variation(pi, p).double()
    out[Field.NUM_ACCEPTED, :1] = row.double()
    out[Field.NEXT_ID, :1] = token.double()
    out[Field.NEXT_P, :1] = distributions.at(p[row], token).double()
    out[Field.NEXT_Q, :1] = distributions.at(row_q, token).double()
    return out
