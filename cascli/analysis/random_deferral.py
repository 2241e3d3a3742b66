"""What a rule's answers are worth beside a coin that needs no rule. No torch.

Whoever would pay fewer target calls an answer than speculation without loss needs can always leave a share of the
answers, drawn by lot, to the draft model. Quality and calls of such a mixture lie on the line between the two, whatever
the models: a rule that trades quality for cost has to be above it.
"""

from __future__ import annotations

from collections.abc import Mapping
from statistics import fmean
from typing import NamedTuple

from cascli.analysis.statistics import Interval, difference_interval


class Scored(NamedTuple):
    """One prompt's answers by one strategy: means over seeds and repeats."""

    quality: float
    calls: float
    """Target calls an answer."""


def against_random(
    rule: Mapping[str, Scored], exact: Mapping[str, Scored], draft: Mapping[str, Scored]
) -> tuple[float, Interval | None] | None:
    """The mean difference to the mixture that makes as many target calls, over the prompts that all three answered.

    With w = min(1, C / C_exact) it is Q - w Q_exact - (1 - w) Q_draft. The share w is estimated too: its error enters
    by the derivative, so that the interval is that of a mean over prompts (the delta method).

    Args:
        rule: what is judged, by prompt.
        exact: speculation without loss, likewise.
        draft: the draft model alone, likewise.

    Returns:
        The difference and its interval; None without a prompt, or where the exact answers made no call.
    """
    prompts = sorted(rule.keys() & exact.keys() & draft.keys())
    calls = fmean(exact[each].calls for each in prompts) if prompts else 0.0
    if calls <= 0:
        return None
    share = min(1.0, fmean(rule[each].calls for each in prompts) / calls)
    gain = fmean(exact[each].quality - draft[each].quality for each in prompts)
    slope = gain / calls if share < 1 else 0.0
    found = [
        rule[each].quality
        - share * exact[each].quality
        - (1 - share) * draft[each].quality
        - slope * (rule[each].calls - share * exact[each].calls)
        for each in prompts
    ]
    return fmean(found), difference_interval(found)
