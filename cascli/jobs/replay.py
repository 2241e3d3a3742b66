"""One speculative run, all rules and alphas: q and p at visited positions are kept, and every setting judged on them.

The judgement holds along the prefixes that speculative decoding visited; a lenient rule would have written, and then
met, other ones.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from cascli import dists, rules
from cascli.chat import Conversation, encode
from cascli.dists import Dists
from cascli.engine import Request
from cascli.jobs.generate import decode
from cascli.models.pair import Pair
from cascli.rules.base import KeepRule, Rule
from cascli.sampling import Sampling
from cascli.strategies._recording import Recording
from cascli.sweep.judged import Judged, predicted_calls
from cascli.sweep.plan import SweepPlan
from cascli.sweep.tasks import Exam

HEAD = 192
"""Tokens that are kept at a position: the likeliest by q1 + p1."""
TAIL = 64
"""Equal pieces that all others are put into, so that no piece is mistaken for a likely token."""
ALPHAS = tuple(round(i / 32, 5) for i in range(33))
Tell = Callable[[str, int, int], None]


def compact(d: Dists) -> Dists:
    """Distributions `[n, V]` cut to `[n, HEAD + TAIL]`."""
    if d.q.shape[-1] <= HEAD + TAIL:
        return d
    keep = (d.q1 + d.p1).topk(HEAD, dim=-1).indices

    def cut(rows: Tensor) -> Tensor:
        head = rows.gather(-1, keep)
        rest = (1 - head.sum(dim=-1, keepdim=True)).clamp_min(0)
        return torch.cat([head, (rest / TAIL).expand(-1, TAIL)], dim=-1)

    return Dists(*(cut(rows) for rows in d))


def record(pair: Pair, plan: SweepPlan, exam: Exam, k: int, tell: Tell | None = None) -> Dists:
    """Answer every prompt once by speculative decoding; the distributions at all visited positions `[N, W]`."""
    kept: list[Dists] = []
    for number, problem in enumerate(exam.problems):
        if tell is not None:
            tell(problem.id, number, len(exam.problems))
        recording = Recording(k=k, see=compact)
        request = Request(
            prompt_ids=encode(pair, problem.prompt, Conversation(plan.system), raw=plan.raw),
            sampling=Sampling(plan.temperatures[0], plan.top_k, plan.top_p),
            max_new_tokens=plan.max_new_tokens,
            seed=plan.seeds[0],
            prompt_id=problem.id,
            stop=plan.stop,
        )
        run = decode(pair, recording, request)
        for seen, step in zip(recording.seen, run.rounds, strict=True):
            kept.append(Dists(*(rows[: len(step.emitted)] for rows in seen)))
    return Dists(*(torch.cat(parts) for parts in zip(*kept, strict=True)))


def judge(seen: Dists, k: int, alphas: Sequence[float] = ALPHAS) -> list[Judged]:
    """Every rule with an alpha at every alpha."""
    found = []
    for name in rules.names():
        kind = rules.load(name)
        if issubclass(kind, KeepRule):
            found += [_judged(name, kind(alpha=alpha), alpha, seen, k) for alpha in alphas]
    return found


def _judged(name: str, rule: Rule, alpha: float, d: Dists, k: int) -> Judged:
    pi, defer = rule.apply(d)
    acceptance = float(torch.minimum(pi, d.q).sum(dim=-1).mean())
    tv = dists.total_variation(pi, d.p)
    return Judged(
        rule=name,
        alpha=alpha,
        acceptance=acceptance,
        deferral_rate=float((d.q * defer).sum(dim=-1).mean()),
        mean_tv=float(tv.mean()),
        max_tv=float(tv.max()),
        target_calls_per_token=predicted_calls(acceptance, k),
    )
