"""The explanation of a comparison's speed, in a few sentences."""

from __future__ import annotations

from cascli.explain import Explanation
from cascli.profile import Profile
from cascli.render.numbers import seconds

NOISY = 0.2
"""Interquartile range over median from which a figure is not worth two digits."""


def sentence(found: Explanation) -> str:
    """What was measured, what it predicts, and what holds the strategy back."""
    need = "never" if found.break_even_acceptance is None else f"from acceptance {found.break_even_acceptance:.2f}"
    ratio = found.measured_over_predicted
    compared = "" if ratio is None else f", {ratio:.2f} of it"
    best = "" if found.best_speed_up is None else f" ({found.best_speed_up:.2f}x)"
    return (
        f"{found.strategy}: acceptance {found.acceptance:.2f} gives {found.tokens_per_round:.1f} tokens a round;"
        f" a draft step costs c = {found.c:.2f} and a check of {found.k + 1} tokens v = {found.v:.2f} target steps."
        f" Predicted {found.predicted_speed_up:.2f}x, measured {found.measured_speed_up:.2f}x (after the"
        f" prompt{compared}); k = {found.k} pays {need}, best k {found.best_k}{best}."
        f" What holds it back most: {found.bottleneck} (without that {found.without_it:.2f}x)."
    )


def steps_line(profile: Profile) -> str:
    """The steps that the prediction is made of."""
    blocks = ", ".join(f"{n}: {profile.v(n):.2f}" for n in sorted(profile.target) if n > 1)
    return (
        f"steps after {profile.context} tokens: draft {seconds(profile.draft[1].median)},"
        f" target {seconds(profile.target[1].median)}; a target call over n tokens in target steps: {blocks}"
    )


def noise_line(spread: float | None) -> str | None:
    """A warning if the machine was too noisy for the figures to be trusted."""
    if spread is None or spread < NOISY:
        return None
    return (
        f"noisy machine: the middle half of the target's steps differ by {spread:.0%} of their median;"
        " repeat with --runs 5, and with nothing else running"
    )
