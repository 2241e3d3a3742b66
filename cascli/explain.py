"""Why the fastest strategy is not faster: one sentence from the traces of a comparison. No torch.

Everything is measured in the same runs: steps of the two models alone, rounds of the strategy, acceptance.
"""

from __future__ import annotations

from collections.abc import Sequence

from cascli import theory
from cascli.trace import Data, Run


class Explanation(Data):
    """The account of one strategy's speed, and what holds it back."""

    strategy: str
    acceptance: float
    """Share of the tested drafted tokens that passed; those after a rejection were not tested."""
    tokens_per_round: float
    k: int
    c: float
    """A draft step over a target step."""
    v: float
    """A target call over a block, over a target step."""
    predicted_speed_up: float
    """From acceptance, c, v and the draft steps a round took."""
    measured_speed_up: float
    break_even_acceptance: float | None
    best_k: int
    """At this acceptance and c; v is taken to grow linearly with the block."""
    bottleneck: str
    without_it: float
    """The predicted speed-up if the bottleneck were gone."""


def explain(runs: Sequence[Run]) -> Explanation | None:
    """Explain the fastest strategy that drafted; None without `target` or without any that did.

    c needs a draft step: that of the drafting strategy's own rounds.
    """
    target = [run for run in runs if run.strategy == "target"]
    groups: dict[str, list[Run]] = {}
    for run in runs:
        if run.metrics.num_draft_tokens:
            groups.setdefault(run.spec, []).append(run)
    if not target or not groups:
        return None
    fastest = max(groups.values(), key=_speed)
    return _account(fastest, target)


def _speed(runs: Sequence[Run]) -> float:
    return sum(len(run.token_ids) for run in runs) / _after_prefill(runs)


def _after_prefill(runs: Sequence[Run]) -> float:
    return sum(run.metrics.seconds.total - run.metrics.seconds.prefill for run in runs)


def _account(runs: Sequence[Run], target: Sequence[Run]) -> Explanation:
    step = sum(run.metrics.seconds.verify for run in target) / sum(run.metrics.target_calls for run in target)
    rounds = sum(run.metrics.num_rounds for run in runs)
    draft_calls = sum(run.metrics.draft_calls for run in runs)
    c = sum(run.metrics.seconds.draft for run in runs) / draft_calls / step
    v = sum(run.metrics.seconds.verify for run in runs) / rounds / step
    accepted = sum(run.metrics.num_accepted_draft_tokens for run in runs)
    tested = sum(_tested(run) for run in runs)
    a, k, steps = accepted / tested, int(runs[0].params.get("k", 1)), draft_calls / rounds
    overhead = sum(run.metrics.seconds.other for run in runs) / rounds / step
    tokens = theory.expected_tokens(a, k)
    ideal = {
        "the draft model is too slow": tokens / v,
        "checking a block costs more than one step": tokens / (c * steps + 1),
        "too few drafts are accepted": (k + 1) / (c * steps + v),
        "time outside the models": tokens / (c * steps + v) + overhead / (c * steps + v),
    }
    bottleneck = max(ideal, key=lambda name: ideal[name])
    return Explanation(
        strategy=runs[0].spec,
        acceptance=a,
        tokens_per_round=sum(len(run.token_ids) for run in runs) / rounds,
        k=k,
        c=c,
        v=v,
        predicted_speed_up=tokens / (c * steps + v),
        measured_speed_up=_speed(runs) / _speed(target),
        break_even_acceptance=theory.break_even(k, c * steps / k, v),
        best_k=theory.best_k(a, c, lambda block: 1 + (v - 1) * block / k),
        bottleneck=bottleneck,
        without_it=ideal[bottleneck],
    )


def _tested(run: Run) -> int:
    """Drafted tokens whose test counted: those kept, and the first rejected one of each round."""
    kept = [sum(token.accepted for token in step.drafted) for step in run.rounds]
    return sum(count + (count < len(step.drafted)) for count, step in zip(kept, run.rounds, strict=True))
