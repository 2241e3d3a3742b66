"""Where an answer in a batch diverges from the same answer alone, and whether rounding explains it."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy

import torch
from transformers import PreTrainedModel


def first_divergence(one: Sequence[int], other: Sequence[int]) -> int | None:
    """The first index at which two answers differ; None if they are the same."""
    return next((i for i, (a, b) in enumerate(zip(one, other, strict=True)) if a != b), None)


@torch.inference_mode()
def margins(model: PreTrainedModel, text: Sequence[int], tokens: Sequence[int], vocab: int) -> tuple[float, float]:
    """How far the worst of `tokens` is below the best one after a text, and how much rounding may have moved it.

    The gap is computed with the model's own weights in float64. The bound is four times the largest error of its logits
    there: one for each of two logits in each of two passes.
    """
    ids = torch.tensor([list(text)], device=model.device)
    exact = deepcopy(model).double()
    exact.set_attn_implementation("eager")
    sure, rounded = (each(input_ids=ids, use_cache=False).logits[0, -1, :vocab].double() for each in (exact, model))
    return float(sure.max() - sure[list(tokens)].min()), 4 * float((sure - rounded).abs().max())


def explained(
    model: PreTrainedModel, prompt: Sequence[int], one: Sequence[int], other: Sequence[int], vocab: int
) -> bool:
    """Whether two greedy answers are equal up to a token at which rounding decides between them."""
    at = first_divergence(one, other)
    if at is None:
        return True
    gap, rounding = margins(model, [*prompt, *one[:at]], [one[at], other[at]], vocab)
    return gap <= rounding
