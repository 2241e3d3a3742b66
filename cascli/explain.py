"""Why the fastest strategy is not faster: the account of one strategy's speed. No torch.

Acceptance and overhead come from the runs; c and v(k) from a measurement of the pair's steps on their own
(`cascli.jobs.profile`), so that the prediction is not fitted to what it predicts. Without such a measurement the
runs' own times stand in.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from cascli import theory
from cascli.metrics import tested_count
from cascli.profile import Profile
from cascli.trace import Data, Run

DRAFT = "the draft model is too slow"
VERIFICATION = "checking a block costs more than one step"
ACCEPTANCE = "too few drafts are accepted"
OVERHEAD = "time outside the models"


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
    """A target call over a block of k + 1, over a target step."""
    predicted_speed_up: float
    """From acceptance, c, v, the draft steps that a full round takes, and the mean length of the answers."""
    measured_speed_up: float
    """After the prompt: time for reading it is left out on both sides."""
    measured_over_predicted: float | None = None
    break_even_acceptance: float | None
    best_k: int
    """At this acceptance and these costs."""
    best_speed_up: float | None = None
    """The predicted speed-up at `best_k`."""
    overhead: float | None = None
    """Share of the strategy's time that was spent outside the two models."""
    measured_alone: bool = False
    """Whether c and v were measured on their own, apart from the runs."""
    bottleneck: str
    without_it: float
    """The predicted speed-up if the bottleneck were gone."""


class Costs(NamedTuple):
    """A draft step, and a target call over a block of k + 1, in target steps."""

    c: float
    v: Callable[[int], float]


def explained(runs: Sequence[Run]) -> bool:
    """Whether these runs hold what an explanation needs: `target`, and a strategy that drafted."""
    return any(run.strategy == "target" for run in runs) and any(run.metrics.num_draft_tokens for run in runs)


def explain(runs: Sequence[Run], profile: Profile | None = None) -> Explanation | None:
    """Explain the fastest strategy that drafted; None without `target` or without any that did."""
    if not explained(runs):
        return None
    groups: dict[str, list[Run]] = {}
    for run in runs:
        if run.metrics.num_draft_tokens:
            groups.setdefault(run.spec, []).append(run)
    return account(max(groups.values(), key=_speed), runs, profile)


def account(drafting: Sequence[Run], runs: Sequence[Run], profile: Profile | None = None) -> Explanation:
    """The account of one strategy's runs beside those of `target` among `runs`."""
    target = [run for run in runs if run.strategy == "target"]
    k = int(drafting[0].params.get("k", 1))
    costs = _in_the_runs(drafting, target, k) if profile is None else Costs(profile.c, lambda n: profile.v(n + 1))
    rounds, steps = _total(drafting, "num_rounds"), _total(drafting, "draft_calls")
    extra = (steps - _total(drafting, "num_draft_tokens")) / rounds
    """Draft steps a round beyond those that drafted: one for rules that read q after the block, else none."""
    a = _total(drafting, "num_accepted_draft_tokens") / sum(
        tested_count(step) for run in drafting for step in run.rounds
    )
    answer = sum(len(run.token_ids) for run in drafting) / len(drafting)
    measured = _speed(drafting) / _speed(target)

    def cost(n: int) -> float:
        return costs.c * (n + extra) + costs.v(n)

    def predicted(n: int) -> float:
        return theory.tokens_per_round(a, n, answer) / cost(n)

    best = max(range(1, theory.LONGEST_BLOCK + 1), key=lambda n: (predicted(n), -n))
    overhead = sum(run.metrics.seconds.other for run in drafting) / _after_prefill(drafting)
    bottleneck, without_it = _bottleneck(theory.tokens_per_round(a, k, answer), k, cost(k), costs, overhead)
    return Explanation(
        strategy=drafting[0].spec,
        acceptance=a,
        tokens_per_round=sum(len(run.token_ids) for run in drafting) / rounds,
        k=k,
        c=costs.c,
        v=costs.v(k),
        predicted_speed_up=predicted(k),
        measured_speed_up=measured,
        measured_over_predicted=measured / predicted(k),
        break_even_acceptance=theory.break_even(k, costs.c * (k + extra) / k, costs.v(k)),
        best_k=best,
        best_speed_up=predicted(best),
        overhead=overhead,
        measured_alone=profile is not None,
        bottleneck=bottleneck,
        without_it=without_it,
    )


def _bottleneck(tokens: float, k: int, cost: float, costs: Costs, overhead: float) -> tuple[str, float]:
    """What would help most if it were free, and the predicted speed-up without it."""
    verification = costs.v(k)
    ideal = {
        DRAFT: tokens / verification,
        VERIFICATION: tokens / (cost - verification + 1),
        ACCEPTANCE: (k + 1) / cost,
        OVERHEAD: tokens / cost / (1 - overhead),
    }
    name = max(ideal, key=lambda each: ideal[each])
    return name, ideal[name]


def _in_the_runs(drafting: Sequence[Run], target: Sequence[Run], k: int) -> Costs:
    """C and v from the runs themselves; v is taken to grow linearly with the block."""
    step = sum(run.metrics.seconds.verify for run in target) / _total(target, "target_calls")
    c = sum(run.metrics.seconds.draft for run in drafting) / _total(drafting, "draft_calls") / step
    v = sum(run.metrics.seconds.verify for run in drafting) / _total(drafting, "num_rounds") / step
    return Costs(c, lambda n: 1 + (v - 1) * n / k)


def _total(runs: Sequence[Run], name: str) -> int:
    return sum(int(getattr(run.metrics, name)) for run in runs)


def _speed(runs: Sequence[Run]) -> float:
    return sum(len(run.token_ids) for run in runs) / _after_prefill(runs)


def _after_prefill(runs: Sequence[Run]) -> float:
    return sum(run.metrics.seconds.total - run.metrics.seconds.prefill for run in runs)
