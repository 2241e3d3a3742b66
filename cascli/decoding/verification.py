"""What is decided of a drafted block once the target has read it: pi of the rule, the tests, the next token.

In one go by kernels where they know the rule; else by `cascli.rules` and `cascli.sampling.rejection`, which say what it
means.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, Self

import torch
from torch import Tensor

from cascli import kernels
from cascli.rules._forced import Forced
from cascli.rules.base import Exact, Rule, ThresholdRule
from cascli.sampling import distributions
from cascli.sampling.autoregressive import Law
from cascli.sampling.distributions import Dists
from cascli.sampling.parameters import Sampling
from cascli.sampling.rejection import Verification, verify_block

if TYPE_CHECKING:
    from cascli.kernels.verification import Keeping


class Facts(NamedTuple):
    """What the host learns of a round over n drafted tokens; floats, lists by position."""

    ids: list[float]
    q: list[float]
    p: list[float]
    pi: list[float]
    accept_prob: list[float]
    deferred: list[float]
    tv: list[float]
    """n + 1 values, like `deferral`, which is of no meaning where the rule does not read q."""
    deferral: list[float]
    next: list[float]
    """Number of kept tokens, id of the next one, its p and its q."""

    @classmethod
    def of(cls, numbers: list[float], n: int) -> Self:
        """From the numbers of `decide_round`."""
        ends = [n, 2 * n, 3 * n, 4 * n, 5 * n, 6 * n, 7 * n + 1, 8 * n + 2, 8 * n + 6]
        return cls(*(numbers[start:end] for start, end in zip([0, *ends], ends, strict=False)))


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
    """Judge and verify a block of n tokens.

    Args:
        rule: makes pi of q and p.
        sampling: makes p of the logits.
        logits: the target's, `[n + 1, V]`.
        tokens: `[n]`.
        q: what they were drawn from, `[n, V]`, and a row more if the rule reads it there.
        q1: the same at temperature 1.
        u_accept: uniforms `[n]`.
        u_next: uniforms `[n + 1]`.

    Returns:
        The `Facts`, one after the other, `[8 n + 6]` (float64).
    """
    law = Law(sampling, rule.reads_base)
    keeping = keeping_of(rule) if kernels.serve(logits.device) and not law.truncates else None
    if keeping is not None:
        from cascli.kernels import verification

        return verification.verify(
            logits, tokens, q, q1, u_accept, u_next, temperature=sampling.temperature, keeping=keeping
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
    n = tokens.shape[0]
    p, p1 = Law(sampling, rule.reads_base)(logits)
    d = Dists(q, p, q1, p1)
    pi = rule.apply(d)
    outcome = verify_block(pi, q[:n], tokens, u_accept, u_next)
    return torch.cat([each.reshape(-1).double() for each in _columns(d, pi, rule.deferred(d), tokens, outcome)])


def keeping_of(rule: Rule) -> Keeping | None:
    """The rule as the kernels know rules; None if they do not know it."""
    from cascli.kernels.verification import EXACT, TOKENS, WHOLE, Keeping

    if type(rule) is Exact:
        return Keeping(EXACT)
    if isinstance(rule, Forced):
        return Keeping(EXACT, forced=rule.acceptance)
    if not isinstance(rule, ThresholdRule) or type(rule).keep is not ThresholdRule.keep:
        return None
    if not (rule.reads_draft and rule.reads_base):
        return None
    t = rule.threshold()
    whole = t.tests == "best q1"
    if t.of_disagreement and not whole:
        return None
    return Keeping(WHOLE if whole else TOKENS, t.tests != "p1", t.constant, t.of_best_p1, t.of_disagreement)


def _columns(
    d: Dists, pi: Tensor, deferred: Tensor | None, tokens: Tensor, outcome: Verification
) -> tuple[Tensor, ...]:
    """What the host is to learn of a round; of no meaning where the rule is no choice between the models."""
    n, width = tokens.shape[0], pi.shape[-1]
    defer = tokens.new_ones((n + 1, 1), dtype=torch.bool) if deferred is None else deferred
    defer = defer.expand(n + 1, width)
    row = outcome.num_accepted.unsqueeze(0)
    token = outcome.next_token.unsqueeze(0)
    row_q = d.q[row.clamp(max=d.q.shape[0] - 1)] if d.q.shape[0] else d.p[row]
    reads_draft = d.q.shape[0] == n + 1
    return (
        tokens,
        distributions.at(d.q[:n], tokens),
        distributions.at(d.p[:n], tokens),
        distributions.at(pi[:n], tokens),
        outcome.accept_prob,
        distributions.at(defer[:n], tokens),
        distributions.total_variation(pi, d.p),
        (d.q * defer).sum(dim=-1) if reads_draft else defer[:, 0],
        torch.cat(
            [
                row.double(),
                token.double(),
                distributions.at(d.p[row], token).double(),
                distributions.at(row_q, token).double(),
            ]
        ),
    )
