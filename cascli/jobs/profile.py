"""Measure a pair's step times: the time of a call by the number of tokens it reads and by the context before them."""

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
"""A round that drafts k tokens has the target read k + 1: k = 0 to 8, and longer ones to find the best k."""


def blocks_for(ks: Iterable[int], room: int | None) -> tuple[int, ...]:
    """Blocks to time for strategies that draft these numbers of tokens, none longer than there is room for."""
    return tuple(n for n in sorted({*BLOCKS, *(k + 1 for k in ks)}) if room is None or n <= max(room, 1))


GPU_CALLS = 8
"""Number of calls in one timing on a GPU."""
SAMPLER = Sampler(Sampling(), reads_base=False)
"""Sampler of a drafting step."""
Timed = dict[tuple[str, int], list[float]]
"""Seconds of calls, by model and by the number of tokens that a call reads."""


def profile(
    pair: Pair,
    context: int,
    *,
    blocks: Sequence[int] = BLOCKS,
    exits: Iterable[int] = (),
    repeats: int = 5,
    on_progress: OnProgress | None = None,
) -> Profile:
    """Return the profile at one context length; see `profiles`."""
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
    """Time both models, interleaved as in decoding, at several context lengths.

    The content of the context does not matter: the cache is filled with a constant rather than by reading a text, so
    that long contexts cost nothing to reach. Every round of the measurement visits every context, so that a machine
    that slows down affects all of them.

    Args:
        pair: a loaded pair; its caches are reset.
        contexts: tokens in the cache before each timed call, ascending.
        blocks: numbers of tokens that the timed target calls read; the draft model is timed over one and two.
        exits: numbers of layers after which leaving the target early is also timed, over one token.
        repeats: timed calls of each kind, after an uncounted one.
        on_progress: called with what is measured, the number of rounds done, and their total.

    Returns:
        One profile per context, in order.
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
                for key, seconds in time_round(pair, context, n):
                    timed[context].setdefault(key, []).extend([seconds] if repeat else [])
            for n, part in parts.items():
                seconds = [exit_seconds(part, context, pair.device) for _ in range(2)][-1]
                timed[context].setdefault(("exit", n), []).extend([seconds] if repeat else [])
    for model in pair.models.values():
        model.runner.reset()
    return [
        Profile(
            context=at,
            draft=role_timings("draft", timed[at]),
            target=role_timings("target", timed[at]),
            exits=role_timings("exit", timed[at]),
        )
        for at in contexts
    ]


def set_context(pair: Pair, context: int, blocks: Sequence[int], *, fill: bool) -> None:
    """Set both caches to `context` tokens: `fill` creates the longest text, shorter ones are prefixes of it.

    Room for the longest round is reserved up front; `fill_cache` would otherwise grow the cache, and discard the graphs
    captured before.
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


def time_round(pair: Pair, context: int, n: int) -> Iterator[tuple[tuple[str, int], float]]:
    """Time calls after those that they follow in decoding: the first call after one of another kind is slower.

    A block of n follows draft steps, which follow each other; a step of the target alone follows another such step.
    """
    if n == 1:
        step_seconds(pair.target, context, 1, pair.vocab)
    elif pair.draft is not None:
        for tokens in (1, 2, 1):  # after a round whose drafts were all kept, the draft model reads two tokens
            seconds = step_seconds(pair.draft, context, tokens, pair.vocab, writes=True)
            yield ("draft", tokens), seconds
    yield ("target", n), step_seconds(pair.target, context, n, pair.vocab)


def role_timings(role: str, timed: Timed) -> dict[int, Timing]:
    """Timings of one model."""
    return {n: timing(values) for (whose, n), values in sorted(timed.items()) if whose == role}


def step_seconds(model: LoadedModel, context: int, n: int, vocab: int, *, writes: bool = False) -> float:
    """Time a call over n tokens, including the logits of each, after `context` tokens.

    Where a captured graph both reads and draws, a step that `writes` is timed with its draw, as drafting uses no other.

    A GPU is timed over several calls in a row, as when it drafts: launch times are then hidden, and the final
    synchronization is shared. On a CPU nothing is hidden, and each call is timed on its own.
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
    """Wait for pending work on a GPU."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
