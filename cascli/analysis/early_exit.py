"""What a model's own first layers foresee of its text, and what leaving it there could gain. No torch.

Acceptance is that of drafts by the exit after n layers, position by position along texts of the target: the sum of
min(p, q). What rounds of k drafts come to follows from all positions in their order: drafts that pass come in rows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean

from cascli.analysis import theory
from cascli.analysis.profile import Profile
from cascli.sampling.parameters import AUTO_DRAFTED
from cascli.trace import Data, ExitInfo


class ExitPoint(Data):
    """The exit after so many layers."""

    layers: int
    """Of the target's, before it is left."""
    acceptance: float
    """Mean over all positions of the sum of min(p, q): at temperature 0 how often both have the same best token."""
    c: float
    """A drafted token over a target step."""
    best_k: int
    """The block length of the greatest speed-up, of those that were timed and at most `AUTO_DRAFTED`."""
    tokens_per_round: float
    """At that k."""
    speed_up: float
    """Over the target alone, predicted for that k without time outside the model; below 1 it does not pay."""


class ExitCurve(Data):
    """All exits of a target."""

    depth: int
    """How many layers it has."""
    trained: str | None
    """How it is known that the checkpoint was trained to be left early; None for untrained exits."""
    temperature: float
    """At which the texts were written and acceptance is told."""
    answers: int
    """Texts that were looked at."""
    tokens: int
    """Positions in all of them."""
    context: int
    """Tokens before the timed steps."""
    measured: bool
    """Whether steps of exits were timed; else they take the share of the target's bytes that they read."""
    exits: list[ExitPoint]
    """After 1, 2, ... of its layers."""

    @property
    def best(self) -> ExitPoint:
        """The exit of the greatest predicted speed-up."""
        return max(self.exits, key=lambda each: each.speed_up)


Acceptances = Sequence[Sequence[float]]
"""Of each answer, at each of its tokens."""


def exit_point(layers: int, acceptances: Acceptances, costs: Profile) -> ExitPoint:
    """What an exit could gain.

    A block costs a step at least, whatever was timed: else noise would have exits pay of which nothing is accepted.

    Args:
        layers: after which it leaves.
        acceptances: of its drafts.
        costs: step times with the exit for a draft model.
    """
    tokens = sum(map(len, acceptances))
    found = []
    for k in range(1, min(costs.longest - 1, AUTO_DRAFTED) + 1):
        rounds = sum(theory.expected_rounds(answer, k) for answer in acceptances)
        found.append((tokens / rounds / (costs.c * k + max(costs.v(k + 1), 1.0)), tokens / rounds, k))
    gain, per_round, k = max(found, key=lambda each: (each[0], -each[2]))
    mean = fmean(a for answer in acceptances for a in answer)
    return ExitPoint(layers=layers, acceptance=mean, c=costs.c, best_k=k, tokens_per_round=per_round, speed_up=gain)


def exit_curve(
    by_layers: Mapping[int, Acceptances], profile: Profile, whole: ExitInfo, *, temperature: float, measured: bool
) -> ExitCurve:
    """What all exits could gain.

    Args:
        by_layers: acceptances along the same answers, for every number of layers.
        profile: step times, those of exits among them.
        whole: an exit of the model, for what is the same of all.
        temperature: of the texts.
        measured: whether the times of exits are.

    Raises:
        ValueError: there are no times of exits.
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
