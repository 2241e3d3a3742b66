"""Step times in batches: the time of a pass that reads a block of each of several texts."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence

import torch

from cascli.analysis.profile import Profile
from cascli.jobs.profile import BLOCKS, SAMPLER, Timed, role_timings, set_context, synchronise, time_round
from cascli.models.batch.reader import DraftRequest, Reader, ReadRequest
from cascli.models.calls import Calls, Role, Write
from cascli.models.choose_runner import choose_readers
from cascli.models.pair import Pair
from cascli.notebook import OnProgress

DRAFTED = 4
"""Most tokens of a timed draft, where a reader drafts in one go: its passes share what it costs in addition to them."""


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
        pair: a loaded pair; its caches are reset.
        context: tokens in each cache before a timed pass.
        sizes: batch sizes; 1 is timed like a single run.
        blocks: numbers of tokens per text that the timed passes of the target read.
        repeats: timed passes of each kind, after an uncounted one; all sizes and kinds are interleaved.
        on_progress: called with what is measured, the number of rounds done, and their total.

    Returns:
        One profile per batch size, in order: seconds of a pass for the whole batch.
    """
    readers = choose_readers({role: model.runner.own for role, model in pair.models.items()}, max(sizes))
    timer = BatchTimer(pair, readers, context, sizes, blocks)
    timer.fill()
    for repeat in range(repeats + 1):
        for done, size in enumerate(sizes):
            if on_progress is not None:
                on_progress(f"measuring batches of {size}", repeat * len(sizes) + done, (repeats + 1) * len(sizes))
            timer.time(size, counted=repeat > 0)
    for model in pair.models.values():
        model.runner.reset()
    return timer.profiles


class BatchTimer:
    """Times the passes of batches on demand, also between other work, so that both see the same machine conditions."""

    def __init__(
        self, pair: Pair, readers: Mapping[Role, Reader], context: int, sizes: Sequence[int], blocks: Sequence[int]
    ) -> None:
        """See `batch_profiles`; the readers must have room for the largest size."""
        self._pair, self._readers, self._context = pair, readers, context
        self._blocks = sorted({1, 2, *blocks})
        self._drafted = min(DRAFTED, self._blocks[-1] - 1)
        self._timed: dict[int, Timed] = {size: {} for size in sizes}

    def fill(self) -> None:
        """Fill every cache with `context` tokens; call this before measuring if the caches were used for other work."""
        set_context(self._pair, self._context, self._blocks, fill=True)
        for role, reader in self._readers.items():
            drafts = reader.draws and role == "draft"
            calls = Calls(writes=[Write(2, self._drafted)] if drafts else [])
            for number, runner in enumerate(reader.runners):
                reader.prepare(number, self._context, self._blocks[-1], calls, SAMPLER)
                runner.fill_cache(self._context)

    def time(self, size: int, *, counted: bool = True) -> None:
        """Time every kind of pass once over `size` texts."""
        of_size, context = self._timed[size], self._context
        for n in self._blocks:
            alone = time_round(self._pair, context, n)
            together = _time_round(self._pair, self._readers, size, context, n, self._drafted)
            for key, seconds in alone if size == 1 else together:
                of_size.setdefault(key, []).extend([seconds] if counted else [])

    @property
    def profiles(self) -> list[Profile]:
        """One profile per batch size, from the counted passes."""
        return [
            Profile(
                context=self._context,
                batch_size=size,
                draft=role_timings("draft", timed),
                target=role_timings("target", timed),
            )
            for size, timed in self._timed.items()
        ]


def _time_round(
    pair: Pair, readers: Mapping[Role, Reader], size: int, context: int, n: int, drafted: int
) -> Iterator[tuple[tuple[str, int], float]]:
    """Time passes in the order of a round, like `time_round`."""
    if "draft" in readers and n > 1:
        reader = readers["draft"]
        if reader.draws:
            yield from _time_drafts(pair, reader, size, context, drafted)
        else:
            for tokens in (1, 2, 1):
                yield ("draft", tokens), _pass_seconds(pair, reader, size, context, tokens)
    yield ("target", n), _pass_seconds(pair, readers["target"], size, context, n)


def _time_drafts(
    pair: Pair, reader: Reader, size: int, context: int, drafted: int
) -> Iterator[tuple[tuple[str, int], float]]:
    """Time whole drafts, passes and draws in one go, as they are made in decoding; seconds of one of their passes."""
    one = 0.0
    for unread in (1, 2, 1):
        u = torch.full((drafted,), 0.5, dtype=torch.float64, device=pair.device)
        ids = torch.arange(unread, device=pair.device) % pair.vocab
        synchronise(pair.device)
        start = time.perf_counter()
        reader.write([DraftRequest(number, ids, SAMPLER, u, False) for number in range(size)])
        synchronise(pair.device)
        seconds = time.perf_counter() - start
        for runner in reader.runners[:size]:
            runner.truncate(context)
        if unread == 1:
            one = seconds / drafted
            yield ("draft", 1), one
        else:
            yield ("draft", 2), max(seconds - (drafted - 1) * one, one)


def _pass_seconds(pair: Pair, reader: Reader, size: int, context: int, n: int) -> float:
    """Time reading n tokens of each of the first `size` texts, then remove them from the caches."""
    ids = torch.arange(n, device=pair.device) % pair.vocab
    runners = reader.runners[:size]
    synchronise(pair.device)
    start = time.perf_counter()
    with torch.inference_mode():
        if reader.shares(n):
            reader.read([ReadRequest(number, ids, n) for number in range(size)])
        else:
            for runner in runners:
                runner.forward(ids, n)
    synchronise(pair.device)
    seconds = time.perf_counter() - start
    for runner in runners:
        runner.truncate(context)
    return seconds
