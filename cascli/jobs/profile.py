"""Measure a pair's step times: how long a call takes by the number of tokens it reads and by what came before."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence

import torch

from cascli.analysis.profile import Profile, Timing, timing
from cascli.models.calls import Calls, Write
from cascli.models.gpu.graph_runner import LONGEST
from cascli.models.pair import LoadedModel, Pair
from cascli.models.split import SplitRunner
from cascli.notebook import OnProgress
from cascli.sampling.autoregressive import Sampler
from cascli.sampling.parameters import Sampling

BLOCKS = (*range(1, 10), 12, 17, 33)
"""A round that drafts k tokens asks the target for k + 1: these are k = 0 to 8, and longer ones for the best k."""


def blocks_for(ks: Iterable[int], room: int | None) -> tuple[int, ...]:
    """Blocks to time for strategies that draft so many tokens, none of them longer than there is room for."""
    return tuple(n for n in sorted({*BLOCKS, *(k + 1 for k in ks)}) if room is None or n <= max(room, 1))


GPU_CALLS = 8
"""Calls that a GPU is timed over."""
SAMPLER = Sampler(Sampling(), reads_base=False)
"""What a drafting step draws from."""
Timed = dict[tuple[str, int], list[float]]
"""Seconds of calls, by the model and the tokens that one reads."""


def profile(
    pair: Pair,
    context: int,
    *,
    blocks: Sequence[int] = BLOCKS,
    exits: Iterable[int] = (),
    repeats: int = 5,
    on_progress: OnProgress | None = None,
) -> Profile:
    """The profile after one context; see `profiles`."""
    return profiles(pair, [context], blocks=blocks, exits=exits, repeats=repeats, on_progress=on_progress)[0]


def profiles(
    pair: Pair,
    contexts: Sequence[int],
    *,
    blocks: Sequence[int] = BLOCKS,
    exits: Iterable[int] = (),
    repeats: int = 5,
    on_progress: OnProgress | None = None,
) -> list[Profile]:
    """Time both models, interleaved as in decoding, after texts of several lengths whose content does not matter.

    The cache is filled with a constant rather than by reading a text, so that long contexts cost nothing to reach.
    Every round of the measurement visits every context: a machine that slows down does so for all of them.

    Args:
        pair: loaded; its runs are forgotten.
        contexts: tokens in the cache before each timed call, ascending.
        blocks: how many tokens a timed target call reads; the draft model is timed over one and two.
        exits: after how many of its layers the target is also left, over one token.
        repeats: timed calls of each kind, after one that is not counted.
        on_progress: told what is measured, how many rounds are done, and of how many.

    Returns:
        One profile per context, in their order.
    """
    timed: dict[int, Timed] = {context: {} for context in contexts}
    parts = {n: SplitRunner(pair.target.model, pair.target.runner, n) for n in sorted({*exits})}
    for part in parts.values():
        part.prepare(max(contexts), LONGEST, Calls())
    for repeat in range(repeats + 1):
        for done, context in enumerate(reversed(contexts)):
            if on_progress is not None:
                what = f"measuring steps after {context} tokens"
                on_progress(what, repeat * len(contexts) + done, (repeats + 1) * len(contexts))
            set_context(pair, context, blocks, fill=done == 0)
            for n in sorted({1, 2, *blocks}):
                for key, seconds in in_a_round(pair, context, n):
                    timed[context].setdefault(key, []).extend([seconds] if repeat else [])
            for n, part in parts.items():
                seconds = [exit_seconds(part, context, pair.device) for _ in range(2)][-1]
                timed[context].setdefault(("exit", n), []).extend([seconds] if repeat else [])
    for model in pair.models.values():
        model.runner.reset()
    return [
        Profile(
            context=at,
            draft=of_role("draft", timed[at]),
            target=of_role("target", timed[at]),
            exits=of_role("exit", timed[at]),
        )
        for at in contexts
    ]


def set_context(pair: Pair, context: int, blocks: Sequence[int], *, fill: bool) -> None:
    """Have `context` tokens in both caches: the longest text is made, shorter ones are its beginning.

    There is room from the start for the longest round: `fill_cache` would make it, and drop what was captured before.
    """
    for role, model in pair.models.items():
        longest = 2 if role == "draft" else max(2, *blocks)
        if fill:
            writes = [Write(2, 1), Write(1, 1)] if role == "draft" else []
            calls = Calls(reads=[(n, n) for n in range(longest, 0, -1)], writes=writes)
            model.runner.prepare(context, max(longest, LONGEST), calls, SAMPLER if writes else None)
            model.runner.fill_cache(context)
        else:
            model.runner.truncate(context)


def in_a_round(pair: Pair, context: int, n: int) -> Iterator[tuple[tuple[str, int], float]]:
    """Time calls after the calls that they follow in decoding: the first of a kind after another kind is slower.

    A block of n follows draft steps, which follow each other; a step of the target alone follows one of its own.
    """
    if n == 1:
        step_seconds(pair.target, context, 1, pair.vocab)
    elif pair.draft is not None:
        for tokens in (1, 2, 1):  # after a round whose drafts were all kept, the draft model reads two tokens
            seconds = step_seconds(pair.draft, context, tokens, pair.vocab, writes=True)
            yield ("draft", tokens), seconds
    yield ("target", n), step_seconds(pair.target, context, n, pair.vocab)


def of_role(role: str, timed: Timed) -> dict[int, Timing]:
    """The timings of one model."""
    return {n: timing(values) for (whose, n), values in sorted(timed.items()) if whose == role}


def step_seconds(model: LoadedModel, context: int, n: int, vocab: int, *, writes: bool = False) -> float:
    """Time a call over n tokens, logits for each of them included, after `context` tokens.

    Where a captured graph draws as well as reads, a step that `writes` is timed with its draw: drafting runs no other.

    A GPU works off several calls in a row, as it does while it drafts: what asking for them takes is then hidden, and
    the wait at the end is shared. On a CPU nothing is hidden, and a call is timed by itself.
    """
    calls = GPU_CALLS if model.device.type == "cuda" else 1
    ids = torch.arange(n, device=model.device) % vocab
    u = torch.full((1,), 0.5, dtype=torch.float64, device=model.device)
    runner = model.runner
    synchronise(model.device)
    start = time.perf_counter()
    for _ in range(calls):
        if writes and runner.draws:
            runner.write(ids, SAMPLER, u, read_last=False)
        else:
            runner.forward(ids, n)
        runner.truncate(context)
    synchronise(model.device)
    return (time.perf_counter() - start) / calls


def exit_seconds(part: SplitRunner, context: int, device: torch.device) -> float:
    """Time a pass through the first layers of a split model and its head, over one token after `context` others."""
    part.place(context)
    ids = torch.zeros(1, dtype=torch.long, device=device)
    synchronise(device)
    start = time.perf_counter()
    part.read_first(ids, 1)
    synchronise(device)
    seconds = time.perf_counter() - start
    part.truncate(context)
    return seconds


def synchronise(device: torch.device) -> None:
    """Wait for what is under way on a GPU."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
