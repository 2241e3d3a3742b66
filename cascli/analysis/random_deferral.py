"""Compare a rule's answers with random deferral, which needs no rule. No torch.

To spend fewer target calls per answer than lossless speculation, one can always leave a randomly chosen share of the
answers to the draft model. Quality and calls of this mixture are on the line between the two, whatever the models, so
a rule that trades quality for cost has to be above it.
"""

from __future__ import annotations

from collections.abc import Mapping
from statistics import fmean
from typing import NamedTuple

from cascli.analysis.statistics import Interval, difference_interval


class Scored(NamedTuple):
    """One strategy's answers to one prompt: means over seeds and repeats."""

    quality: float
    calls: float
    """Target calls per answer."""


def against_random(
    rule: Mapping[str, Scored], exact: Mapping[str, Scored], draft: Mapping[str, Scored]
) -> tuple[float, Interval | None] | None:
    """Return the mean quality difference to the mixture with equal target calls, over prompts that all three answered.

    With w = min(1, C / C_exact) it is Q - w Q_exact - (1 - w) Q_draft. The share w is estimated too; its error enters
    through the derivative, so the interval is that of a mean over prompts (the delta method).

    Args:
        rule: results of the rule, by prompt.
        exact: results of lossless speculation, by prompt.
        draft: results of the draft model alone, by prompt.

    Returns:
        The difference and its interval, if there are prompts enough for one; None without a common prompt, or if the
        exact answers made no target call.
    """
    prompts = sorted(rule.keys() & exact.keys() & draft.keys())
    calls = fmean(exact[each].calls for each in prompts) if prompts else 0.0
    if calls <= 0:
        return None
    share = min(1.0, fmean(rule[each].calls for each in prompts) / calls)
    gain = fmean(exact[each].quality - draft[each].quality for each in prompts)
    slope = gain / calls if share < 1 else 0.0
    differences = [
        rule[each].quality
        - share * exact[each].quality
        - (1 - share) * draft[each].quality
        - slope * (rule[each].calls - share * exact[each].calls)
        for each in prompts
    ]
    interval = difference_interval(differences)
    # These are not the prompts' own differences, so of too few prompts for an interval there is no range either.
    return fmean(differences), None if interval is not None and interval.kind == "range" else interval
