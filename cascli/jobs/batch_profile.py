"""Step times in batches: how long a pass takes that reads a block of each of several texts."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence

import torch

from cascli.analysis.profile import Profile
from cascli.jobs.profile import BLOCKS, OnProgress, Timed, in_a_round, of_role, set_context, synchronise
from cascli.models.batch.reader import Reader, Wanted
from cascli.models.calls import ALONE, Role
from cascli.models.choose_runner import choose_readers
from cascli.models.pair import Pair


def batch_profiles(
    pair: Pair,
    context: int,
    sizes: Sequence[int],
    *,
    blocks: Sequence[int] = BLOCKS,
    repeats: int = 5,
    on_progress: OnProgress | None = None,
) -> list[Profile]:
    """Time both models' passes over blocks of several texts, all of them `context` tokens long; see `profiles`.

    Args:
        pair: loaded; its runs are forgotten.
        context: tokens in each cache before a timed pass.
        sizes: of the batches; 1 is timed as a run alone is.
        blocks: how many tokens of each text a timed pass of the target reads.
        repeats: timed passes of each kind, after one that is not counted, all sizes and kinds interleaved.
        on_progress: told what is measured, how many rounds are done, and of how many.

    Returns:
        One profile a batch size, in their order: seconds of a pass for the whole batch.
    """
    readers = choose_readers({role: model.runner.own for role, model in pair.models.items()}, max(sizes))
    timed: dict[int, Timed] = {size: {} for size in sizes}
    set_context(pair, context, blocks, fill=True)
    for reader in readers.values():
        for number, runner in enumerate(reader.runners):
            reader.prepare(number, context, max(blocks), ALONE, None)
            runner.fill_cache(context)
    for repeat in range(repeats + 1):
        for done, size in enumerate(sizes):
            if on_progress is not None:
                on_progress(f"measuring batches of {size}", repeat * len(sizes) + done, (repeats + 1) * len(sizes))
            for n in sorted({1, 2, *blocks}):
                steps = in_a_round(pair, context, n) if size == 1 else _in_a_round(pair, readers, size, context, n)
                for key, seconds in steps:
                    timed[size].setdefault(key, []).extend([seconds] if repeat else [])
    for model in pair.models.values():
        model.runner.reset()
    return [
        Profile(context=context, batch_size=size, draft=of_role("draft", each), target=of_role("target", each))
        for size, each in timed.items()
    ]


def _in_a_round(
    pair: Pair, readers: dict[Role, Reader], size: int, context: int, n: int
) -> Iterator[tuple[tuple[str, int], float]]:
    """Passes in the order in which a round has them, as `in_a_round`."""
    if "draft" in readers and n > 1:
        for tokens in (1, 2, 1):
            yield ("draft", tokens), _pass_seconds(pair, readers["draft"], size, context, tokens)
    yield ("target", n), _pass_seconds(pair, readers["target"], size, context, n)


def _pass_seconds(pair: Pair, reader: Reader, size: int, context: int, n: int) -> float:
    """Time what reads n tokens of each of the first `size` texts, after which they are forgotten again."""
    ids = torch.arange(n, device=pair.device) % pair.vocab
    runners = reader.runners[:size]
    synchronise(pair.device)
    start = time.perf_counter()
    with torch.inference_mode():
        if reader.shares(n):
            reader.read([Wanted(number, ids, n) for number in range(size)])
        else:
            for runner in runners:
                runner.forward(ids, n)
    synchronise(pair.device)
    seconds = time.perf_counter() - start
    for runner in runners:
        runner.truncate(context)
    return seconds
