"""One speculative run, all rules and alphas: q and p at visited positions are kept, every setting estimated on them.

The estimate holds along the prefixes that speculative decoding visited; a lenient rule would have written, and then
met, other ones.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from cascli import rules
from cascli.chat import Conversation, encode
from cascli.engine import Request
from cascli.errors import UsageError
from cascli.jobs.generate import decode
from cascli.models.pair import Pair
from cascli.rules.base import ThresholdRule
from cascli.sampling import distributions
from cascli.sampling.distributions import Dists
from cascli.sampling.parameters import Sampling
from cascli.sweeps.plan import Match, SweepPlan
from cascli.sweeps.recording import Recording
from cascli.sweeps.rule_estimate import Matched, RuleEstimate, predicted_calls
from cascli.sweeps.tasks import Task

HEAD = 1024
"""Tokens that are kept at a position: the likeliest of either model."""
ALPHAS = tuple(round(i / 32, 5) for i in range(33))
GRID = 64
"""Alphas that a search begins with, besides the ends of the rule's range."""
REFINED = 16
"""Halvings between the two that enclose a budget."""
MISS = 0.03
"""Relative distance from a budget up to which it is called met."""
OnProgress = Callable[[str, int, int], None]


class Seen(NamedTuple):
    """Distributions at visited positions, cut to `[N, HEAD + 2]`, and the mass of what was cut off, `[N]`."""

    d: Dists
    tail: Tensor
    """The larger one of both models' masses outside the head: no acceptance and no TV is off by more."""


def compact(d: Dists) -> Dists:
    """Distributions `[n, V]` cut to the likeliest tokens and a column each for the others with p > q, and the rest.

    With these two apart, TV(p, q) and the overlap of p and q stay what they are. At temperature 1 the columns hold what
    one of their tokens has on average, which no threshold mistakes for a likely token. So rules about whole
    distributions stay exact; of rules about tokens the tail's mass is the error bound.
    """
    if d.q.shape[-1] <= HEAD + 2:
        return d
    best = torch.maximum(d.q1, d.p1)
    for rows in (d.q1, d.p1):  # which of them is in the head however flat the other model is
        best = best.scatter(-1, rows.argmax(dim=-1, keepdim=True), 2.0)
    keep = best.topk(HEAD, dim=-1).indices
    outside = torch.ones_like(d.q, dtype=torch.bool).scatter_(-1, keep, False)
    over = outside & (d.p > d.q)
    parts = (over, outside & ~over)

    def cut(rows: Tensor, *, average: bool) -> Tensor:
        sums = [(rows * part).sum(dim=-1, keepdim=True) for part in parts]
        if average:
            sums = [each / part.sum(dim=-1, keepdim=True).clamp_min(1) for each, part in zip(sums, parts, strict=True)]
        return torch.cat([rows.gather(-1, keep), *sums], dim=-1)

    return Dists(cut(d.q, average=False), cut(d.p, average=False), cut(d.q1, average=True), cut(d.p1, average=True))


def record(
    pair: Pair,
    plan: SweepPlan,
    task: Task,
    k: int,
    temperature: float | None = None,
    on_progress: OnProgress | None = None,
) -> Seen:
    """Answer every prompt once by speculative decoding, with the first seed; distributions at all visited positions.

    Args:
        pair: answers.
        plan: the sweep.
        task: its prompts.
        k: drafted tokens a round.
        temperature: of the plan's; the first one by default.
        on_progress: told which prompt is answered.
    """
    temperature = plan.temperatures[0] if temperature is None else temperature
    kept: list[Dists] = []
    for number, problem in enumerate(task.problems):
        if on_progress is not None:
            on_progress(f"{problem.id} at temperature {temperature:g}", number, len(task.problems))
        conversation = Conversation(plan.system)
        for turn, text in enumerate(problem.turns):
            recording = Recording(k=k, on_distributions=compact)
            request = Request(
                prompt_ids=encode(pair, text, conversation, raw=plan.raw),
                sampling=Sampling(temperature, plan.top_k, plan.top_p),
                max_new_tokens=plan.max_new_tokens,
                seed=plan.seeds[0],
                prompt_id=problem.id,
                turn=turn,
                stop=plan.stop,
            )
            run = decode(pair, recording, request)
            conversation = conversation.with_answer(text, run.text)
            for seen, round_ in zip(recording.seen, run.rounds, strict=True):
                kept.append(Dists(*(rows[: len(round_.emitted)] for rows in seen)))
    return seen_of(Dists(*(torch.cat(parts) for parts in zip(*kept, strict=True))))


def seen_of(d: Dists) -> Seen:
    """Compacted distributions with the mass of their tails."""
    tail = d.q.new_zeros(d.q.shape[0])
    if d.q.shape[-1] == HEAD + 2:
        tail = torch.maximum(d.q[:, HEAD:].sum(dim=-1), d.p[:, HEAD:].sum(dim=-1))
    return Seen(d, tail)


def rule_estimates(seen: Seen, k: int, temperature: float, alphas: Sequence[float] = ALPHAS) -> list[RuleEstimate]:
    """Every threshold rule at every alpha."""
    return [rule_estimate(name, kind, alpha, seen, k, temperature) for name, kind in keep_rules() for alpha in alphas]


def keep_rules(names: Sequence[str] | None = None) -> Iterator[tuple[str, type[ThresholdRule]]]:
    """The rules that choose by a threshold, by name: what is kept of a position is enough for these.

    Raises:
        UsageError: another one is asked for.
    """
    for name in rules.names() if names is None else names:
        kind = rules.load(name)
        if issubclass(kind, ThresholdRule) and kind().chooses:
            yield name, kind
        elif names is not None:
            raise UsageError(f"rule '{name}': only rules that compare with a threshold can be estimated and matched")


def rule_estimate(
    name: str, kind: type[ThresholdRule], alpha: float, seen: Seen, k: int, temperature: float
) -> RuleEstimate:
    """One rule at one alpha."""
    rule = kind(alpha=alpha)
    pi, defer = rule.apply(seen.d), rule.deferred(seen.d)
    acceptance = float(torch.minimum(pi, seen.d.q).sum(dim=-1).mean())
    tv = distributions.total_variation(pi, seen.d.p)
    return RuleEstimate(
        rule=name,
        alpha=alpha,
        temperature=temperature,
        acceptance=acceptance,
        deferral_rate=None if defer is None else float((seen.d.q * defer).sum(dim=-1).mean()),
        mean_tv=float(tv.mean()),
        max_tv=float(tv.max()),
        target_calls_per_token=predicted_calls(acceptance, k),
        mean_tail=float(seen.tail.mean()),
        max_tail=float(seen.tail.max()),
    )


def match(seen: Seen, wanted: Match, temperature: float) -> list[Matched]:
    """For each rule and budget the alpha of the rule's own range that comes nearest; those that miss it say so."""
    matches = []
    for name, kind in keep_rules(wanted.rules):
        known = {
            alpha: rule_estimate(name, kind, alpha, seen, wanted.k, temperature) for alpha in _candidates(kind, seen.d)
        }
        for budget in wanted.target_calls_per_token:
            best = _nearest(name, kind, known, seen, wanted.k, budget, temperature)
            calls = best.target_calls_per_token
            matches.append(
                Matched(
                    rule=name,
                    alpha=best.alpha,
                    temperature=temperature,
                    k=wanted.k,
                    budget=budget,
                    predicted=calls,
                    met=abs(calls - budget) <= MISS * budget,
                )
            )
    return matches


def _candidates(kind: type[ThresholdRule], d: Dists) -> list[float]:
    """Alphas over a rule's own range; for rules about whole distributions those where a position changes sides."""
    low, high = kind.alpha_lossless, kind.alpha_draft_only
    low, high = -1.0 if low is None else low, 1.0 if high is None else high
    places = torch.linspace(0, 1, GRID + 1)
    if kind().threshold().tests == "best q1":
        return sorted({low, high, *_rounded(_turning_points(kind, d).quantile(places.to(d.q)).clamp(low, high))})
    return sorted({low, high, *_rounded(low + (high - low) * places)})


def _rounded(alphas: Tensor) -> list[float]:
    return [round(float(alpha), 6) for alpha in alphas]


def _turning_points(kind: type[ThresholdRule], d: Dists) -> Tensor:
    """The alpha `[n]` from which each position's distribution is kept: thresholds are linear in alpha."""
    best_q, best_p, tv = d.q1.amax(dim=-1), d.p1.amax(dim=-1), distributions.total_variation(d.p, d.q)

    def least(alpha: float) -> Tensor:
        t = kind(alpha=alpha).threshold()
        return t.constant + t.of_best_p1 * best_p + t.of_disagreement * tv

    slope = least(1.0) - least(0.0)
    points = (best_q - least(0.0)) / slope
    return points[points.isfinite()] if bool(points.isfinite().any()) else points.new_zeros(1)


def _nearest(
    name: str,
    kind: type[ThresholdRule],
    known: dict[float, RuleEstimate],
    seen: Seen,
    k: int,
    budget: float,
    temperature: float,
) -> RuleEstimate:
    """The best of the candidates, and of halvings of the step between two of them that encloses the budget."""

    def off(each: RuleEstimate) -> float:
        return abs(each.target_calls_per_token - budget)

    alphas = sorted(known)
    for low, high in pairwise(alphas):
        a, b = known[low], known[high]
        if (a.target_calls_per_token - budget) * (b.target_calls_per_token - budget) >= 0:
            continue
        for _ in range(REFINED):
            middle = round((a.alpha + b.alpha) / 2, 6)
            if middle in known:
                break
            known[middle] = rule_estimate(name, kind, middle, seen, k, temperature)
            same = (known[middle].target_calls_per_token - budget) * (a.target_calls_per_token - budget) > 0
            a, b = (known[middle], b) if same else (a, known[middle])
    return min(known.values(), key=lambda each: (off(each), abs(each.alpha)))
