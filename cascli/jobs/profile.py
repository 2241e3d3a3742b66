"""Measure a pair's step times: how long a call takes by the number of tokens it reads and by what came before."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import torch

from cascli.models.pair import LoadedModel, Pair
from cascli.profile import Profile, Timing, timing

BLOCKS = tuple(range(1, 10))
"""A round that drafts k tokens asks the target for k + 1: these are k = 0 to 8."""
Tell = Callable[[str, int, int], None]


def profile(
    pair: Pair,
    context: int,
    *,
    blocks: Sequence[int] = BLOCKS,
    repeats: int = 5,
    tell: Tell | None = None,
) -> Profile:
    """Time both models, interleaved, after `context` tokens whose content does not matter.

    The cache is filled with a constant rather than by reading a text, so that long contexts cost nothing to reach.

    Args:
        pair: loaded; its runs are forgotten.
        context: tokens in the cache before each timed call.
        blocks: how many tokens a timed target call reads; the draft model is timed at the first two.
        repeats: timed calls of each kind, after one that is not counted.
        tell: told what is measured, how many rounds are done, and of how many.
    """
    kinds: list[tuple[str, LoadedModel, int]] = [("target", pair.target, n) for n in sorted({1, *blocks})]
    kinds += [("draft", pair.draft, n) for n in (1, 2)]
    seconds: dict[tuple[str, int], list[float]] = {(role, n): [] for role, _, n in kinds}
    for model in (pair.draft, pair.target):
        model.runner.pretend(context)
    for repeat in range(repeats + 1):
        if tell is not None:
            tell(f"measuring steps after {context} tokens", repeat, repeats + 1)
        for role, model, n in kinds:
            took = step_seconds(model, context, n, pair.vocab)
            if repeat:
                seconds[role, n].append(took)
    for model in (pair.draft, pair.target):
        model.runner.reset()
    return Profile(context=context, draft=_of("draft", seconds), target=_of("target", seconds))


def _of(role: str, seconds: dict[tuple[str, int], list[float]]) -> dict[int, Timing]:
    return {n: timing(values) for (whose, n), values in seconds.items() if whose == role}


def step_seconds(model: LoadedModel, context: int, n: int, vocab: int) -> float:
    """Time one call over n tokens, logits for each of them included, after `context` tokens."""
    ids = torch.arange(n, device=model.device) % vocab
    _synchronise(model.device)
    start = time.perf_counter()
    model.runner.forward(ids, n)
    _synchronise(model.device)
    took = time.perf_counter() - start
    model.runner.truncate(context)
    return took


def _synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
