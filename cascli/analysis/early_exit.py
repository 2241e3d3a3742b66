"""How well a model's own first layers predict its text, and what an early exit could gain. No torch.

Acceptance is that of drafts by the exit after n layers, at every position along texts of the target: the sum of
min(p, q). The yield of rounds of k drafts is computed from all positions in order, since passing drafts come in
streaks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean

from cascli.analysis import theory
from cascli.analysis.profile import Profile
from cascli.sampling.parameters import AUTO_DRAFTED
from cascli.trace import Data, ExitInfo


class ExitPoint(Data):
    """The exit after a given number of layers."""

    layers: int
    """Number of target layers before the exit."""
    acceptance: float
    """Mean over all positions of the sum of min(p, q): at temperature 0 how often both have the same best token."""
    c: float
    """Time of a drafted token over that of a target step."""
    best_k: int
    """Block length with the greatest speed-up, among those that were timed and at most 16."""
    tokens_per_round: float
    """Tokens per round at `best_k`."""
    speed_up: float
    """Predicted speed over the target alone at `best_k`, without time outside the model; below 1 it does not pay."""


class ExitCurve(Data):
    """All exits of a target."""

    depth: int
    """Number of layers of the target."""
    trained: str | None
    """How it is known that the checkpoint was trained for early exits; None for untrained exits."""
    temperature: float
    """Temperature at which the texts were written, and for which acceptance is computed."""
    answers: int
    """Number of texts that were evaluated."""
    tokens: int
    """Number of positions in all texts."""
    context: int
    """Tokens before the timed steps."""
    measured: bool
    """Whether exit steps were timed; otherwise they are estimated from the share of the target's bytes they read."""
    exits: list[ExitPoint]
    """The exits after 1, 2, ... layers of the target."""

    @property
    def best(self) -> ExitPoint:
        """The exit with the greatest predicted speed-up."""
        return max(self.exits, key=lambda each: each.speed_up)


Acceptances = Sequence[Sequence[float]]
"""The acceptance of each answer, at each of its tokens."""


def exit_point(layers: int, acceptances: Acceptances, costs: Profile) -> ExitPoint:
    """Predict what an exit could gain.

    A block costs at least one step, whatever was timed; otherwise noise could make an exit pay whose drafts are never
    accepted.

    Args:
        layers: number of layers before the exit.
        acceptances: acceptance of its drafts.
        costs: step times with the exit as draft model.
    """
    tokens = sum(map(len, acceptances))
    options = []
    for k in range(1, min(costs.longest - 1, AUTO_DRAFTED) + 1):
        rounds = sum(theory.expected_rounds(answer, k) for answer in acceptances)
        options.append((tokens / rounds / (costs.c * k + max(costs.v(k + 1), 1.0)), tokens / rounds, k))
    gain, per_round, k = max(options, key=lambda each: (each[0], -each[2]))
    mean = fmean(a for answer in acceptances for a in answer)
    return ExitPoint(layers=layers, acceptance=mean, c=costs.c, best_k=k, tokens_per_round=per_round, speed_up=gain)


def exit_curve(
    by_layers: Mapping[int, Acceptances], profile: Profile, whole: ExitInfo, *, temperature: float, measured: bool
) -> ExitCurve:
    """Predict what all exits could gain.

    Args:
        by_layers: acceptances along the same answers, for every number of layers.
        profile: step times, including those of exits.
        whole: any exit of the model, for the fields that all exits share.
        temperature: temperature of the texts.
        measured: whether the times of exits were measured.

    Raises:
        ValueError: the profile has no times of exits.
    """
    points = []
    for layers, acceptances in by_layers.items():
        costs = profile.leaving(ExitInfo(layers=layers, depth=whole.depth, trained=None))
        if costs is None:
            raise ValueError("no exit was timed")
        points.append(exit_point(layers, acceptances, costs))
    answers = next(iter(by_layers.values()))
    return ExitCurve(
        depth=whole.depth,
        trained=whole.trained,
        temperature=temperature,
        answers=len(answers),
        tokens=sum(map(len, answers)),
        context=profile.context,
        measured=measured,
        exits=points,
    )
