"""The explanation of a comparison's speed, in a few sentences."""

from __future__ import annotations

from cascli.analysis.explanation import Explanation
from cascli.analysis.profile import Profile
from cascli.render.numbers import seconds

NOISY = 0.2
"""Interquartile range over median from which a figure is not worth two digits."""


def sentence(found: Explanation) -> str:
    """What was measured, what it predicts, and what holds the strategy back."""
    slower = " Slower than target alone here." if found.measured_speed_up < 1 else ""
    extrapolated = " (extrapolated)" if found.v_extrapolated else ""
    where = "" if found.with_prompt else " after the prompt"
    return (
        f"{found.strategy}: {found.measured_speed_up:.2f}x target{where}, predicted"
        f" {found.predicted_speed_up:.2f}x.{slower} {found.acceptance:.2f} of the tested drafts pass, which gives"
        f" {found.tokens_per_round:.1f} tokens a round; {_costs(found)}{extrapolated} target steps."
        f" k = {found.k} {_need(found)}, {_best(found)}. {_cause(found)}"
    )


def _costs(found: Explanation) -> str:
    draft = f"a draft step costs c = {found.c:.2f} and" if found.c else "drafts cost no step of a model, and"
    block = f"{found.k + 1}" if found.drafted_per_round is None else f"{found.drafted_per_round + 1:.1f}"
    return f"{draft} a check of {block} tokens v = {found.v:.2f}"


def _need(found: Explanation) -> str:
    need = found.break_even_acceptance
    return "never pays" if need is None else f"pays from a share of {need:.2f}"


def _best(found: Explanation) -> str:
    if found.best_k is None:
        return "no k pays"
    more = " or more" if found.best_k_or_more else ""
    gain = "" if found.best_speed_up is None else f" ({found.best_speed_up:.2f}x)"
    return f"best k {found.best_k}{more}{gain}"


def _cause(found: Explanation) -> str:
    """What holds it back; nothing where measured and predicted do not agree."""
    if found.bottleneck is None:
        noise = "" if found.noise is None else f" ({found.noise:.0%})"
        return f"Measured and predicted differ by more than the noise that was seen{noise}, so no cause is named."
    gain = "" if found.without_it is None else f" (without that {found.without_it:.2f}x)"
    return f"What holds it back most: {found.bottleneck}{gain}."


def steps_line(profile: Profile) -> str:
    """The steps that the prediction is made of."""
    blocks = ", ".join(f"{n}: {profile.v(n):.2f}" for n in sorted(profile.target) if n > 1)
    draft = f"draft {seconds(profile.draft[1].median)}, " if profile.draft else ""
    return (
        f"steps after {profile.context} tokens: {draft}"
        f"target {seconds(profile.target[1].median)}; a target call over n tokens in target steps: {blocks}"
    )


def noise_line(spread: float | None) -> str | None:
    """A warning if the machine was too noisy for the figures to be trusted."""
    if spread is None or spread < NOISY:
        return None
    return (
        f"noisy machine: the middle half of the target's steps differ by {spread:.0%} of their median;"
        " repeat with --runs 5, and with nothing else running"
    )
