"""Decode many prompts in batches on one set of weights; each answer is the one its prompt would get on its own."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from contextlib import nullcontext, suppress
from functools import partial
from typing import TypedDict, Unpack

from cascli import notebook
from cascli.engine import check_models, check_prompt
from cascli.errors import UsageError, unknown
from cascli.jobs.generate import (
    Answering,
    IdPrompts,
    Prompts,
    conversations,
    first_ids,
    request_for,
    settings_of,
    single,
)
from cascli.models.batch.lanes import Ended, Lanes
from cascli.models.pair import Pair
from cascli.notebook import OnProgress
from cascli.prompts import Prompt
from cascli.settings import Resolved
from cascli.strategies import Strategy
from cascli.trace import Run

DEFAULT_SIZE = 8


class GenerateOptions(TypedDict, total=False):
    """Arguments shared with `generate`, with the same defaults."""

    max_new_tokens: int | None
    temperature: float | None
    top_k: int | None
    top_p: float | None
    seed: int | None
    num_speculative_tokens: int | None
    stop: str | Sequence[str] | None
    system: str | None
    raw: bool | None
    top: int | None


def converse_many(
    pair: Pair,
    strategy: Strategy,
    prompts: Sequence[Prompt],
    settings: Resolved,
    size: int,
    unfinished: dict[int, list[Run]] | None = None,
) -> Generator[Ended[list[Run]]]:
    """Answer conversations concurrently; yield the runs of each as it ends, with its index in `prompts`.

    Args:
        pair: the loaded pair that all of them share.
        strategy: the strategy of all answers.
        prompts: each is answered with the same random numbers as on its own.
        settings: the settings of all answers.
        size: number of conversations answered concurrently.
        unfinished: if the generator is closed or fails, receives what there is of the conversations in progress, by
            index: their finished turns, and the answer in progress with the finish reason `interrupted`.

    Raises:
        UsageError: a prompt that is empty or too long.
        RunError: out of memory, or another run of the pair is in progress.
    """
    kept = {} if unfinished is None else unfinished
    jobs = (
        partial(_conversation, strategy, prompt, settings, partial(kept.__setitem__, place))
        for place, prompt in enumerate(prompts)
    )
    return Lanes(pair, min(size, len(prompts))).run(jobs)


def _conversation(
    strategy: Strategy, prompt: Prompt, settings: Resolved, keep: Callable[[list[Run]], None], pair: Pair
) -> list[Run]:
    answering = Answering(pair, strategy, prompt, settings)
    runs: list[Run] = []
    try:
        runs.extend(event for event in answering if isinstance(event, Run))
    except BaseException:  # ended from outside: by an interruption, or by the failure of another conversation
        with suppress(Exception):  # the others are still to be ended
            in_progress = answering.interrupt()
            runs += [] if in_progress is None else [in_progress]
        if runs:
            keep(runs)
        raise
    return runs


def check_all(pair: Pair, strategy: Strategy, prompts: Sequence[Prompt], settings: Resolved) -> None:
    """Reject a prompt that cannot be answered, before any other prompt is.

    Raises:
        UsageError: there is such a prompt, or the strategy needs something that the pair lacks.
    """
    check_models(pair, strategy)
    check_prompts(pair, prompts, settings)


def check_prompts(pair: Pair, prompts: Sequence[Prompt], settings: Resolved) -> None:
    """Reject prompts whose first turn cannot be answered; the error names the prompt's id.

    Raises:
        UsageError: a prompt is empty, or does not fit.
    """
    for prompt in prompts:
        try:
            check_prompt(pair, request_for(settings, first_ids(pair, prompt, settings)))
        except UsageError as error:
            raise UsageError(f"prompt '{prompt.id}': {error}" if prompt.id else str(error)) from None


def generate_many(
    pair: Pair,
    prompts: Prompts | None = None,
    *,
    prompt_ids: IdPrompts | None = None,
    strategy: str | Strategy | None = None,
    batch_size: int = DEFAULT_SIZE,
    on_progress: OnProgress | None = None,
    **given: Unpack[GenerateOptions],
) -> list[Run]:
    """Answer many prompts with one strategy, several concurrently.

    Every answer is the one its prompt gets on its own with the same random numbers: bit for bit on a CPU, within
    rounding on a GPU. Random numbers are derived from the seed and the prompt's id (its position if it has none). Times
    are those of the batch: each run's seconds are its share, so that all runs add up to the total, and no run has a
    time to first token.

    Args:
        pair: from `load_pair`.
        prompts: texts, or conversations whose turns are answered in order.
        prompt_ids: token ids of one or several prompts, instead of texts; the chat template is not applied.
        strategy: as in `generate`.
        batch_size: number of answers decoded concurrently; when one ends, the next prompt takes its place.
        on_progress: called with the number of finished answers, and the total.
        given: `max_new_tokens`, `temperature`, `top_k`, `top_p`, `seed`,
            `num_speculative_tokens`, `stop`, `system`, `raw` and `top`, as in `generate`.

    Returns:
        The runs in the order of the prompts; the turns of a conversation follow each other.

    Raises:
        UsageError: a value out of range, an unknown strategy, or a prompt that is empty or too long.
        RunError: out of memory.
    """
    if batch_size < 1:
        raise UsageError(f"batch_size: expected 1 or more (got {batch_size})")
    for key in given:
        if key not in GenerateOptions.__annotations__:
            raise UsageError(unknown("keyword", key, GenerateOptions.__annotations__))
    all_prompts, settings = conversations(prompts, prompt_ids), settings_of(pair, **given)
    parsed = single(strategy, pair, settings)
    check_all(pair, parsed, all_prompts, settings)
    done: dict[int, list[Run]] = {}
    bars = notebook.bars()
    on_progress = on_progress or bars
    with bars or nullcontext():
        for ended in converse_many(pair, parsed, all_prompts, settings, batch_size):
            done[ended.place] = ended.result
            if on_progress is not None:
                on_progress("answers", len(done), len(all_prompts))
    return [run for place in sorted(done) for run in done[place]]
