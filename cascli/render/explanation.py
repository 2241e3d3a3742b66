"""The explanation of a comparison's speed, in a few sentences."""

from __future__ import annotations

from cascli.analysis.draft_length import DraftLength, FixedLength
from cascli.analysis.explanation import TOO_NOISY, Explanation
from cascli.analysis.profile import Profile
from cascli.render.marks import short_name
from cascli.render.numbers import rate, seconds
from cascli.render.verdict import SAME

NOISY = 0.2
"""Interquartile range over median from which a figure does not deserve two digits."""
NEGLIGIBLE = 0.01
"""Share of the time spent outside the models below which it changes no figure."""


def sentence(why: Explanation, *, by_token: bool = False, fancy: bool = True) -> str:
    """What was measured, what was predicted, and what holds the strategy back.

    Args:
        why: the explanation.
        by_token: state that its speeds are tokens per second over all answers, and what the prediction rests on, for
            use next to others that are and do not.
        fancy: whether the terminal can show more than ASCII.
    """
    slower = " Slower than target alone here." if why.measured_speed_up < 1 - SAME else ""
    extrapolated = " (extrapolated)" if why.v_extrapolated else ""
    where = (" in tokens per second" if by_token else "") + ("" if why.with_prompt else " after the prompt")
    own = " from its own acceptance" if by_token and why.measured_alone else ""  # others are from recorded answers
    return (
        f"{short_name(why.strategy, fancy=fancy)}: {why.measured_speed_up:.2f}x target{where}"
        f"{', predicted' if why.measured_alone else '; the times of its own steps give'}"
        f" {why.predicted:.2f}x{own}.{slower} {_passed(why)}"
        f" {why.tokens_per_round:.1f} tokens per round; {_costs(why)}{extrapolated} target steps."
        f"{_outside(why)} {_block(why)} {_cause(why)}"
    )


def _passed(why: Explanation) -> str:
    if why.acceptance is None:
        return "Checked as blocks, drafts give"
    return f"{rate(why.acceptance)} of the tested drafts pass, which gives"


def _block(why: Explanation) -> str:
    """What is known about this block length and others."""
    if why.stop is not None:
        return f"{why.stop} drafts {why.drafted_per_round or 0:.1f} of at most {why.k} tokens per round."
    if why.acceptance is None:
        return f"What a k other than {why.k} would give is not known."
    return f"k = {why.k} {_need(why)}, {_best(why)}."


def _costs(why: Explanation) -> str:
    draft = f"a draft step costs c = {why.c:.2f} and" if why.c else "drafts cost no model step, and"
    block = f"{why.k + 1}" if why.drafted_per_round is None else f"{why.drafted_per_round + 1:.1f}"
    return f"{draft} a check of {block} tokens v = {why.v:.2f}"


def _outside(why: Explanation) -> str:
    """What is assumed of the time outside the models, unless it is too short to matter."""
    fixed, growing = why.outside_per_round, why.outside_per_draft
    if fixed is None or growing is None or (why.overhead or 0.0) < NEGLIGIBLE:
        return ""
    if growing < 0.005:
        return f" Outside the models, {fixed:.2f} steps per round are assumed, whatever k."
    return (
        f" Outside the models, {fixed:.2f} steps per round (as target alone) and {growing:.2f} per draft are assumed."
    )


def _need(why: Explanation) -> str:
    """Where this k breaks even; called a prediction where the measurement is on the other side of 1, or too noisy."""
    need = why.break_even_acceptance
    gains_anyway = need is not None and need < 0.005  # where a check, as measured, costs less than a step
    if (why.measured_speed_up > 1) != (why.predicted > 1) or _too_noisy(why):
        if gains_anyway:
            return "is predicted to gain at any acceptance"
        where = "never to break even" if need is None else f"to break even at an acceptance of {need:.2f}"
        return f"is predicted {where}"
    if gains_anyway:
        return "gains at any acceptance"
    return "never breaks even" if need is None else f"breaks even at an acceptance of {need:.2f}"


def _best(why: Explanation) -> str:
    longer = "" if why.measured_alone else f" up to {why.k}"  # others were not timed
    if why.best_k is None:
        predicted = why.measured_speed_up > 1 or _too_noisy(why) or not why.measured_alone
        return f"no k{longer} is predicted to gain" if predicted else f"no k{longer} gains"
    more = " or more" if why.best_k_or_more else ""
    expected = why.expected_at_best
    if expected is None or why.best_speed_up is None:
        return f"best k {why.best_k}{more}"
    if expected < 1:
        best = f"(best k {why.best_k}{more}: {expected:.2f}x)"
        if why.measured_speed_up < 1 < why.predicted:  # a k that is predicted to gain was named just before
            return f"but at {expected / why.best_speed_up:.0%} of what is predicted, as here, no k{longer} gains {best}"
        return f"no k{longer} is expected to gain {best}"
    # Position by position, acceptance is known up to the length that ran: heads, for example, lose it further on.
    assumed = " if later drafts pass as often" if why.best_k > why.k else ""
    return f"best k {why.best_k}{more} ({expected:.2f}x{assumed})"


def _too_noisy(why: Explanation) -> bool:
    return why.noise is not None and why.noise > TOO_NOISY


def _cause(why: Explanation) -> str:
    """What holds it back, named only if measured and predicted agree."""
    if not why.measured_alone:
        return "Steps were not timed on their own, so no cause is named."
    if why.bottleneck is None:
        if _too_noisy(why):
            return f"Timings differ by {why.noise or 0.0:.0%} here, which is too noisy to name a cause."
        noise = "" if why.noise is None else f" ({why.noise:.0%})"
        return f"Measured and predicted differ by more than the noise{noise}, so no cause is named."
    # As for the best k: what was measured may differ a little from what was predicted for it.
    scale = why.measured_speed_up / (why.predicted_with_overhead or why.measured_speed_up)
    gain = "" if why.without_it is None else f" (without that {why.without_it * scale:.2f}x)"
    return f"What holds it back most: {why.bottleneck}{gain}."


def length_line(length: DraftLength, *, fancy: bool = True) -> str:
    """The best fixed block length, the speeds with stops, and the bound of drafting exactly what is kept."""
    parts = [f"{_stop(spec, fancy)} ({speed:.2f}x)" for spec, speed in length.stops.items()]
    if length.fixed is not None:
        parts.insert(0, _fixed(length.fixed))
    if length.oracle is not None:
        # What would have followed the blocks that ran is unknown, so the bound is for their length, not a longer one.
        fixed = length.fixed
        blocks = f" of k = {fixed.ran}" if fixed is not None and fixed.k > fixed.ran else ""
        parts.append(f"drafting exactly what is kept{blocks}: at most {length.oracle:.2f}x")
    return f"how long to draft, {short_name(length.strategy, fancy=fancy)}: {'; '.join(parts)}"


def _fixed(fixed: FixedLength) -> str:
    if fixed.none_gains:
        return f"no fixed k gains (k = {fixed.k}: {fixed.speed:.2f}x)"
    if fixed.k == fixed.ran:
        return f"best fixed k = {fixed.k} ({fixed.speed:.2f}x)"
    return f"best fixed k = {fixed.k} ({fixed.speed:.2f}x, predicted; k = {fixed.ran} was {fixed.ran_speed:.2f}x)"


def _stop(spec: str, fancy: bool) -> str:
    """A stop with its parameters and k: the rest of a strategy's name from there."""
    return short_name(spec, fancy=fancy).partition("stop=")[2]


def steps_line(profile: Profile) -> str:
    """The step times that the prediction is based on."""
    blocks = ", ".join(f"{n}: {profile.v(n):.2f}" for n in sorted(profile.target) if n > 1)
    draft = f"draft {seconds(profile.draft[1].median)}, " if profile.draft else ""
    return (
        f"steps after {profile.context} tokens: {draft}"
        f"target {seconds(profile.target[1].median)}; a target call over n tokens in target steps: {blocks}"
    )


def noise_line(spread: float | None, threads: int | None = None, *, repeats: bool = True) -> str | None:
    """A warning if the machine was too noisy to trust the figures.

    Args:
        spread: interquartile range over median of the target's steps.
        threads: number of CPU threads, if any.
        repeats: whether the command has `--runs`.
    """
    if spread is None or spread < NOISY:
        return None
    alone = ", or with --threads 1 alongside other work" if (threads or 1) > 1 else ""
    return (
        f"noisy machine: the middle half of the target's steps differ by {spread:.0%} of their median;"
        f" repeat with {'--runs 5 and ' if repeats else ''}nothing else running{alone}"
    )
