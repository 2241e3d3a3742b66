"""What a rule would do along recorded prefixes: plain data, and how alphas are matched by their cost. No torch."""

from __future__ import annotations

from collections.abc import Sequence

from cascli import theory
from cascli.trace import Data


class Judged(Data):
    """One rule at one alpha, judged analytically at every visited position."""

    rule: str
    alpha: float
    acceptance: float
    """Mean probability that a drafted token would pass: sum over tokens of min(q, pi)."""
    deferral_rate: float
    """Mean q-mass that the rule turns over to the target."""
    mean_tv: float
    """Mean TV(pi, p)."""
    max_tv: float
    target_calls_per_token: float
    """By theory, from the acceptance at the plan's k: judged along the prefixes of another strategy's run."""


def predicted_calls(acceptance: float, k: int) -> float:
    """Target calls per token of blocks of k, if every draft passes with this probability."""
    return 1 / theory.expected_tokens(acceptance, k)


def matched(found: Sequence[Judged], budget: float) -> dict[str, Judged]:
    """For each rule the alpha that comes nearest to a budget of target calls per token.

    Equal alphas mean different things to different rules; equal budgets are how rules can be compared.
    """
    best: dict[str, Judged] = {}
    for each in found:
        other = best.get(each.rule)
        if other is None or _distance(each, budget) < _distance(other, budget):
            best[each.rule] = each
    return best


def _distance(judged: Judged, budget: float) -> float:
    return abs(judged.target_calls_per_token - budget)
