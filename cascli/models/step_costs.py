"""The costs of the steps that a stop saves: as timed on this machine, or assumed from the models' sizes."""

from __future__ import annotations

from cascli.analysis.cost import part_of
from cascli.models.pair import Pair
from cascli.trace import ExitInfo, StepCosts

WIDER = 1 / 32
"""Assumed cost of each further token in a target call, in target steps, if not timed."""


def step_costs(
    pair: Pair,
    longest: int,
    draft_steps: float,
    *,
    reads_last: bool = False,
    reads_if_kept: bool = False,
    exit: ExitInfo | None = None,
) -> StepCosts:
    """The costs of rounds of up to `longest` tokens, each of which takes `draft_steps` steps of the draft model.

    Without times in `pair.steps`, c is the ratio of the bytes of weights that a step reads, and each further token
    adds `WIDER`.

    Args:
        pair: the pair that runs the steps.
        longest: most tokens that a round drafts.
        draft_steps: steps of the draft model per token.
        reads_last: whether a round also makes a draft step for the position after its tokens.
        reads_if_kept: whether only a round whose tokens have all been accepted makes that step.
        exit: where drafts leave the target, if its own first layers draft; a token is then one pass through these.
    """
    reads = {"reads_last": reads_last, "reads_if_kept": reads_if_kept}
    steps = pair.steps if exit is None or pair.steps is None else pair.steps.leaving(exit)
    draft_steps = draft_steps if exit is None else 1.0
    if steps is not None:
        v = [steps.v(n) for n in range(1, longest + 2)]
        measured = steps.longest > longest  # beyond that they are extrapolated
        return StepCosts(c=draft_steps * steps.c, v=v, **reads, measured=measured)
    info = pair.info
    drafting = info.draft if exit is None else part_of(info.target, exit)
    draft = 0 if drafting is None else drafting.weight_bytes or 0
    ratio = draft / info.target.weight_bytes if info.target.weight_bytes else 0.0
    v = [1 + WIDER * n for n in range(longest + 1)]
    return StepCosts(c=draft_steps * ratio, v=v, **reads, measured=False)
