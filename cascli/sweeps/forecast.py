"""Forecast how long a sweep will take from the pair's step times. No torch."""

from __future__ import annotations

from typing import NamedTuple

from cascli.analysis.profile import Profile
from cascli.strategies import Strategy, parse
from cascli.strategies.base import Speculating
from cascli.sweeps.plan import SweepPlan


class Seconds(NamedTuple):
    """Range of times, from the best case of drafting to the worst."""

    low: float
    """Time if all drafts are kept and nothing is deferred to the target."""
    high: float
    """Time if no draft is kept and everything is deferred to the target."""


def forecast(plan: SweepPlan, turns: int, profile: Profile) -> Seconds:
    """Time to decode all answers of a grid at their full length.

    Excludes reading the prompts, scoring and its reference answers, and what `match` adds.

    Args:
        plan: the grid.
        turns: number of turns of all its prompts.
        profile: the pair's step times.
    """
    low = high = 0.0
    for cell in plan.cells():
        token = seconds_per_token(parse(cell.strategy), profile)
        low, high = low + token.low, high + token.high
    tokens = turns * plan.max_new_tokens
    return Seconds(low * tokens, high * tokens)


def seconds_per_token(strategy: Strategy, profile: Profile) -> Seconds:
    """Time per token, from the models' steps alone."""
    step = profile.target[1].median
    drafted = profile.draft[1].median if profile.draft else 0.0
    if strategy.name in ("target", "draft"):
        alone = step if strategy.name == "target" else drafted
        return Seconds(alone, alone)
    if not isinstance(strategy, Speculating):
        return Seconds(drafted, drafted + step)
    k = strategy.longest
    layers = strategy.draft.exit_layers
    if layers is not None:
        drafted = profile.exit_seconds(layers) or step
    drafts = k + strategy.verification_rule.reads_draft if layers is not None or strategy.needs_draft else 0
    round_ = drafted * drafts + step * profile.v(k + 1)
    return Seconds(round_ / (k + 1), round_)
