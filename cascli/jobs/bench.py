"""Speed profile of a pair on this machine, independent of any text."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from statistics import median
from typing import Any

import torch

from cascli.analysis.bench import Bench, SyntheticRuns
from cascli.analysis.explanation import account
from cascli.analysis.profile import Profile
from cascli.engine import Request, environment
from cascli.errors import UsageError
from cascli.jobs import early_exit as early_exits
from cascli.jobs.batch_profile import batch_profiles
from cascli.jobs.batch_runs import batch_runs, longest
from cascli.jobs.generate import decode
from cascli.jobs.profile import BLOCKS, blocks_for, profile, profiles, synchronise
from cascli.jobs.synthetic import PROMPT_TOKENS, Synthetic, request
from cascli.models.pair import Pair
from cascli.notebook import OnProgress
from cascli.strategies import Strategy, parse
from cascli.trace import Run, block_length, now

CONTEXTS = (128, 512, 2048, 8192)
_COPY_BYTES = 2**28


def bench(
    pair: Pair,
    *,
    contexts: Sequence[int] | None = None,
    blocks: Sequence[int] = BLOCKS,
    repeats: int = 5,
    synthetic_acceptance: float | None = None,
    ks: Sequence[int] = (2, 4, 6),
    tokens: int = 64,
    batch_sizes: Sequence[int] = (),
    early_exit: Sequence[Request] = (),
    on_progress: OnProgress | None = None,
) -> Bench:
    """Measure copy bandwidth, step times by block and context and, on request, speculation at a chosen acceptance.

    Args:
        pair: a loaded pair; its weights may be random.
        contexts: context lengths before the timed steps; by default those of `CONTEXTS` that fit the pair.
        blocks: numbers of tokens that the timed target calls read.
        repeats: repeats of every measurement, interleaved.
        synthetic_acceptance: also decode `tokens` tokens, accepting drafts with this probability.
        ks: block lengths of the synthetic runs.
        tokens: length of the synthetic runs.
        batch_sizes: also time passes over batches of these sizes, after the shortest context; with
            `synthetic_acceptance`, also decode such batches, and time the passes at their context.
        early_exit: requests for the target, to find what each of its exits would have drafted along the answers.
        on_progress: called with progress updates.

    Raises:
        UsageError: a context that is too long for the pair, or early exits of a target with one layer.
    """
    longest = max(blocks)
    chosen, date = _contexts(pair, contexts, longest), now()
    exits = early_exits.timed_exits(pair) if early_exit else []
    _warm_up(pair, blocks, max(chosen))
    copies = [copy_rate(pair.device)]
    measured = profiles(pair, chosen, blocks=blocks, exits=exits, repeats=repeats, on_progress=on_progress)
    copies.append(copy_rate(pair.device))
    runs = None
    if synthetic_acceptance is not None:
        runs = synthetic_runs(
            pair, synthetic_acceptance, ks=ks, tokens=tokens, repeats=repeats, on_progress=on_progress
        )
    batches = _batches(pair, batch_sizes, min(chosen), blocks, ks, repeats, synthetic_acceptance, on_progress)
    return Bench(
        date=date,
        pair=pair.info,
        copy_bytes_per_second=median(copies),
        profiles=measured,
        synthetic=runs,
        early_exit=early_exits.curve(pair, early_exit, measured[0], on_progress) if early_exit else None,
        environment=environment(pair.device),
        **batches,
    )


def _batches(
    pair: Pair,
    sizes: Sequence[int],
    context: int,
    blocks: Sequence[int],
    ks: Sequence[int],
    repeats: int,
    acceptance: float | None,
    on_progress: OnProgress | None,
) -> dict[str, Any]:
    """Step times in batches and, on request, runs at a chosen acceptance, both then at the runs' own context."""
    if not sizes:
        return {}
    options: dict[str, Any] = {"repeats": repeats, "on_progress": on_progress}
    if acceptance is None:
        return {"batches": batch_profiles(pair, context, sizes, blocks=blocks, **options)}
    if pair.context is not None and longest(ks) > pair.context:
        raise UsageError(
            f"batches at k = {max(ks)} need texts of {longest(ks)} tokens, but the pair's context is {pair.context}."
        )
    profiles, runs, memory = batch_runs(pair, acceptance, sizes, ks=ks, blocks=blocks, **options)
    return {"batches": profiles, "batch_runs": runs, "batch_memory": memory}


def _contexts(pair: Pair, requested: Sequence[int] | None, longest: int) -> list[int]:
    room = None if pair.context is None else pair.context - longest
    if requested is None:
        fitting = [length for length in CONTEXTS if room is None or length <= room]
        return fitting or [max(room or 1, 1)]
    too_long = [length for length in requested if room is not None and length > room]
    if too_long:
        raise UsageError(f"context {too_long[0]} and a block of {longest} exceed the pair's context of {pair.context}.")
    return sorted(set(requested))


def _warm_up(pair: Pair, blocks: Sequence[int], context: int) -> None:
    """Have kernels selected for all blocks, and memory allocated, before anything is timed.

    Uses the longest context: a cache that grew later would discard its captured graphs and trigger recompilation.
    """
    profile(pair, context, blocks=blocks, repeats=1)


def copy_rate(device: torch.device, repeats: int = 7) -> float:
    """Bytes read and written per second by a copy far larger than the caches."""
    size = _COPY_BYTES
    if device.type == "cuda":  # a GPU copies 256 MiB in the time that it takes to launch the copy
        size = min(8 * _COPY_BYTES, torch.cuda.mem_get_info(device)[0] // 8)
    source = torch.ones(size, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    rates = []
    for repeat in range(repeats + 1):
        synchronise(device)
        start = time.perf_counter()
        target.copy_(source)
        synchronise(device)
        if repeat:
            rates.append(2 * size / (time.perf_counter() - start))
    return median(rates)


def synthetic_runs(
    pair: Pair,
    acceptance: float,
    *,
    ks: Sequence[int],
    tokens: int,
    repeats: int,
    steps: Profile | None = None,
    on_progress: OnProgress | None = None,
) -> SyntheticRuns:
    """Decode with `target` and at each k, interleaved; end-of-text tokens are ignored.

    Args:
        pair: a loaded pair; its weights may be random.
        acceptance: the probability that a drafted token is accepted.
        ks: block lengths.
        tokens: length of each run.
        repeats: counted runs of each kind, after a short uncounted one.
        steps: step times around `synthetic_context(tokens)`, including blocks of every k + 1; measured here by default.
        on_progress: called with progress updates.
    """
    endless = replace(pair, eos_ids=frozenset())
    strategies: list[Strategy] = [parse("target"), *(Synthetic(acceptance=acceptance, k=k) for k in ks)]
    runs: list[list[Run]] = [[] for _ in strategies]
    for repeat in range(repeats + 1):
        for column, strategy in enumerate(strategies):
            if on_progress is not None:
                on_progress(f"synthetic acceptance {acceptance}", repeat, repeats + 1)
            run = decode(endless, strategy, request(pair.vocab, tokens if repeat else max(ks) + 2, seed=repeat))
            if repeat:
                runs[column].append(run)
    if steps is None:
        context = synthetic_context(tokens)
        room = None if pair.context is None else pair.context - context
        steps = profile(pair, context, blocks=blocks_for(ks, room), repeats=repeats)
    accounts = [account(of_k, [*runs[0], *of_k], steps) for of_k in runs[1:]]
    rates = [_rate(column) for column in runs]
    return SyntheticRuns(
        acceptance=acceptance,
        tokens=tokens,
        accounts=accounts,
        target_tokens_per_second=rates[0],
        tokens_per_second=rates[1:],
        models_share=[_models_share(of_k, steps) for of_k in runs[1:]],
        target_models_share=_models_share(runs[0], steps),
    )


def synthetic_context(tokens: int) -> int:
    """Context length at the middle of a synthetic run of `tokens` tokens, where its steps are representative."""
    return PROMPT_TOKENS + tokens // 2


def _models_share(runs: Sequence[Run], steps: Profile) -> float:
    """Share of the time after the prompt explained by model calls, each at its median time; the rest is overhead."""
    shares = []
    for run in runs:
        m = run.metrics
        block = block_length(run.params) + 1
        drafting = m.draft_calls * steps.draft[1].median if m.draft_calls else 0.0
        models = drafting + m.target_calls * steps.target[block].median
        shares.append(models / (m.seconds.total - m.seconds.prefill))
    return median(shares)


def _rate(runs: Sequence[Run]) -> float:
    """Tokens per second after the prompt, median over runs."""
    rates = []
    for run in runs:
        seconds = run.metrics.seconds
        rates.append(len(run.token_ids) / (seconds.total - seconds.prefill))
    return median(rates)
