"""What a stop is told of the steps that it saves: as they were timed on this machine, or as they are assumed to be."""

from __future__ import annotations

from cascli.analysis.cost import part_of
from cascli.models.pair import Pair
from cascli.trace import ExitInfo, StepCosts

WIDER = 1 / 32
"""What a token more adds to a call of the target, in its steps, where nobody has timed it."""


def step_costs(
    pair: Pair,
    longest: int,
    draft_steps: float,
    *,
    reads_last: bool = False,
    reads_if_kept: bool = False,
    exit: ExitInfo | None = None,
) -> StepCosts:
    """The costs of rounds of up to `longest` tokens, of which each takes so many steps of the draft model.

    Where `pair.steps` has no times, c is the ratio of the weights that a step reads, and a token more adds `WIDER`.

    Args:
        pair: whose steps they are.
        longest: tokens that a round drafts at most.
        draft_steps: of the draft model, a token.
        reads_last: a round makes such a step for the position after its tokens too.
        reads_if_kept: only a round whose tokens have all passed does.
        exit: where drafts leave the target, if they are its own first layers': a token is then one pass of these.
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
