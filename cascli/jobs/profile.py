"""Measure a pair's step times: how long a call takes by the number of tokens it reads and by what came before."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence

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
    """Time both models, interleaved as in decoding, after `context` tokens whose content does not matter.

    The cache is filled with a constant rather than by reading a text, so that long contexts cost nothing to reach.

    Args:
        pair: loaded; its runs are forgotten.
        context: tokens in the cache before each timed call.
        blocks: how many tokens a timed target call reads; the draft model is timed over one and two.
        repeats: timed calls of each kind, after one that is not counted.
        tell: told what is measured, how many rounds are done, and of how many.
    """
    timed: dict[tuple[str, int], list[float]] = {}
    for model in (pair.draft, pair.target):
        model.runner.pretend(context)
    for repeat in range(repeats + 1):
        if tell is not None:
            tell(f"measuring steps after {context} tokens", repeat, repeats + 1)
        for n in sorted({1, 2, *blocks}):
            for key, seconds in _in_a_round(pair, context, n):
                timed.setdefault(key, []).extend([seconds] if repeat else [])
    for model in (pair.draft, pair.target):
        model.runner.reset()
    return Profile(context=context, draft=_of("draft", timed), target=_of("target", timed))


def _in_a_round(pair: Pair, context: int, n: int) -> Iterator[tuple[tuple[str, int], float]]:
    """Time calls after the calls that they follow in decoding: the first of a kind after another kind is slower.

    A block of n follows draft steps, which follow each other; a step of the target alone follows one of its own.
    """
    if n == 1:
        step_seconds(pair.target, context, 1, pair.vocab)
    else:
        for tokens in (1, 2, 1):  # after a round whose drafts were all kept, the draft model reads two tokens
            seconds = step_seconds(pair.draft, context, tokens, pair.vocab)
            yield ("draft", tokens), seconds
    yield ("target", n), step_seconds(pair.target, context, n, pair.vocab)


def _of(role: str, timed: dict[tuple[str, int], list[float]]) -> dict[int, Timing]:
    return {n: timing(values) for (whose, n), values in sorted(timed.items()) if whose == role}


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
