"""Decode batches at a chosen acceptance rate, and compare their speed with what the times of their passes predict."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import closing
from dataclasses import replace
from functools import partial
from itertools import islice
from statistics import median
from typing import NamedTuple, cast

from cascli.analysis.batches import BatchMemory, BatchRun, predicted_rate, working_bytes
from cascli.analysis.profile import Profile
from cascli.engine import Decoding, StreamEvent
from cascli.jobs.batch_profile import BatchTimer
from cascli.jobs.synthetic import PROMPT_TOKENS, Synthetic, request
from cascli.models import memory
from cascli.models.batch.lanes import Lanes
from cascli.models.cache import rounded_up
from cascli.models.pair import Pair
from cascli.notebook import OnProgress
from cascli.strategies import Strategy, parse
from cascli.trace import Handover

ROUNDS = 13
"""Rounds of each answer; the first, which waits for prompts to be read, is not counted."""
TIMED = 2
"""Number of passes of each kind timed before the runs of each repeat."""


def context_of(ks: Sequence[int]) -> int:
    """Context length at the middle of these runs, where their passes are representative."""
    return PROMPT_TOKENS + ROUNDS * (max(ks) + 1) // 3


def longest(ks: Sequence[int]) -> int:
    """Length of the longest text of these runs, including the tokens drafted at its end."""
    return PROMPT_TOKENS + (ROUNDS + 1) * (max(ks) + 1) + max(ks)


class _Rounds(NamedTuple):
    """Totals of one answer's rounds, without the first."""

    tokens: int
    seconds: float
    outside: float
    """The part of `seconds` spent outside the models."""


def batch_runs(
    pair: Pair,
    acceptance: float,
    sizes: Sequence[int],
    *,
    ks: Sequence[int],
    blocks: Sequence[int] = (),
    repeats: int = 3,
    on_progress: OnProgress | None = None,
) -> tuple[list[Profile], list[BatchRun], BatchMemory | None]:
    """Decode with `target` and at each k in batches of every size, interleaved; end-of-text tokens are ignored.

    All answers of a batch run the same number of rounds, so that the batch stays full until the end. The passes that
    predictions are based on are timed between the runs, so that a machine that slows down affects both.

    Args:
        pair: a loaded pair; its weights may be random.
        acceptance: the probability that a drafted token is accepted.
        sizes: batch sizes.
        ks: block lengths.
        blocks: numbers of tokens per text to time in addition to k + 1.
        repeats: counted runs of each kind, after an uncounted one.
        on_progress: called with progress updates.

    Returns:
        The step times of each size; the runs of `target` and each k, for each size in order; and the memory of the
        largest batch, or None where the system does not report memory use.
    """
    endless = replace(pair, eos_ids=frozenset())
    strategies: dict[int, Strategy] = {0: parse("target")} | {k: Synthetic(acceptance=acceptance, k=k) for k in ks}
    requested, sizes = sizes, sorted({1, *sizes})
    before, peak_known = memory.resident(pair.device), memory.reset_peak(pair.device)
    lanes = Lanes(endless, max(sizes))
    timer = BatchTimer(pair, lanes.readers, context_of(ks), requested, [*blocks, *(k + 1 for k in ks)])
    batches: dict[tuple[int, int], list[list[_Rounds]]] = {}
    for repeat in range(repeats + 1):
        for done, size in enumerate(sizes):
            if on_progress is not None:
                on_progress(f"batches of {size}", repeat * len(sizes) + done, (repeats + 1) * len(sizes))
            if size in requested:
                timer.fill()
                timer.time(size, counted=False)
                for _ in range(TIMED if repeat else 0):
                    timer.time(size)
            for k, strategy in strategies.items():
                jobs = [partial(_rounds, strategy, k, repeat * size + number) for number in range(size)]
                batch = [ended.result for ended in lanes.run(jobs)]
                if repeat:
                    batches.setdefault((size, k), []).append(batch)
    for model in pair.models.values():
        model.runner.reset()
    profiles, other = timer.profiles, {k: _outside(batches[1, k]) for k in strategies}
    runs = [
        BatchRun(
            batch_size=profile.batch_size,
            k=k,
            tokens_per_second=_rate(batches[profile.batch_size, k]),
            predicted_tokens_per_second=predicted_rate(profile, k, _tokens(batches[profile.batch_size, k]), other[k]),
        )
        for profile in profiles
        for k in strategies
    ]
    return profiles, runs, None if before is None else _memory(pair, max(sizes), max(ks), before, peak_known=peak_known)


def _memory(pair: Pair, size: int, k: int, before: int, *, peak_known: bool) -> BatchMemory:
    tokens = rounded_up(longest([k]))
    caches = size * tokens * sum(memory.token_bytes(model.model) for model in pair.models.values())
    return BatchMemory(
        batch_size=size,
        tokens=tokens,
        predicted_bytes=before + caches + working_bytes(size, k, pair.vocab),
        measured_bytes=memory.peak(pair.device) if peak_known else None,
    )


def _rounds(strategy: Strategy, k: int, seed: int, pair: Pair) -> _Rounds:
    """Decode the first rounds of an answer."""
    decoding = Decoding(pair, strategy, request(pair.vocab, (ROUNDS + 1) * (k + 1), seed))
    with closing(cast("Generator[StreamEvent | Handover]", decoding.steps())) as events:
        rounds = [event.round for event in islice(events, ROUNDS) if isinstance(event, StreamEvent)][1:]
    seconds = [round_.seconds for round_ in rounds]
    inside = sum(each.draft + each.verify for each in seconds)
    total = sum(each.total for each in seconds)
    return _Rounds(sum(len(round_.emitted) for round_ in rounds), total, total - inside)


def _rate(batches: Sequence[Sequence[_Rounds]]) -> float:
    return median(sum(each.tokens for each in batch) / sum(each.seconds for each in batch) for batch in batches)


def _tokens(batches: Sequence[Sequence[_Rounds]]) -> float:
    """Mean number of tokens per round of one answer."""
    every = [each for batch in batches for each in batch]
    return sum(each.tokens for each in every) / (len(every) * (ROUNDS - 1))


def _outside(batches: Sequence[Sequence[_Rounds]]) -> float:
    """Median seconds per round outside the models."""
    return median(each.outside / (ROUNDS - 1) for batch in batches for each in batch)
