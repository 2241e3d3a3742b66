"""How long a sweep will take, by the pair's own step times. No torch."""

from __future__ import annotations

from typing import NamedTuple

from cascli.analysis.profile import Profile
from cascli.drafters.early_exit import EarlyExit
from cascli.strategies import Strategy, parse
from cascli.strategies.base import Speculating
from cascli.sweeps.plan import SweepPlan


class Seconds(NamedTuple):
    """Between the best and the worst that drafts can come to."""

    low: float
    """All drafts are kept, and nothing is handed over."""
    high: float
    """No draft is kept, and everything is handed over."""


def forecast(plan: SweepPlan, turns: int, profile: Profile) -> Seconds:
    """All answers of a grid at their full length.

    Without reading prompts, scoring and its references, and what `match` adds.

    Args:
        plan: the grid.
        turns: of all its prompts.
        profile: the pair's step times.
    """
    low = high = 0.0
    for cell in plan.cells():
        token = seconds_per_token(parse(cell.strategy), profile)
        low, high = low + token.low, high + token.high
    tokens = turns * plan.max_new_tokens
    return Seconds(low * tokens, high * tokens)


def seconds_per_token(strategy: Strategy, profile: Profile) -> Seconds:
    """What a token takes by the models' steps alone."""
    step = profile.target[1].median
    drafted = profile.draft[1].median if profile.draft else 0.0
    if strategy.name in ("target", "draft"):
        alone = step if strategy.name == "target" else drafted
        return Seconds(alone, alone)
    if not isinstance(strategy, Speculating):
        return Seconds(drafted, drafted + step)
    k = strategy.longest
    if isinstance(strategy.draft, EarlyExit):
        drafted = profile.exit_seconds(strategy.draft.layers) or step
    drafts_by_model = isinstance(strategy.draft, EarlyExit) or strategy.needs_draft
    drafts = k + strategy.verification_rule.reads_draft if drafts_by_model else 0
    round_ = drafted * drafts + step * profile.v(k + 1)
    return Seconds(round_ / (k + 1), round_)
