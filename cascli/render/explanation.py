"""The explanation of a comparison's speed, in two sentences."""

from __future__ import annotations

from cascli.explain import Explanation


def sentence(found: Explanation) -> str:
    """What was measured, what it predicts, and what holds the strategy back."""
    need = "never" if found.break_even_acceptance is None else f"from acceptance {found.break_even_acceptance:.2f}"
    return (
        f"{found.strategy}: acceptance {found.acceptance:.2f} gives {found.tokens_per_round:.1f} tokens a round;"
        f" a draft step costs c = {found.c:.2f} and a check of {found.k + 1} tokens v = {found.v:.2f} target steps."
        f" Predicted {found.predicted_speed_up:.2f}x, measured {found.measured_speed_up:.2f}x (after the prompt);"
        f" k = {found.k} pays {need}, best k about {found.best_k}."
        f" What holds it back most: {found.bottleneck} (without that {found.without_it:.2f}x)."
    )
