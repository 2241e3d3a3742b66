"""Many prompts at once: up to a batch of answers under way on one set of weights, each as it would be alone."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import nullcontext
from functools import partial
from typing import TypedDict, Unpack

from cascli import notebook
from cascli.engine import check_models, check_prompt
from cascli.errors import UsageError, unknown
from cascli.jobs.generate import (
    IdPrompts,
    OnRound,
    Prompts,
    chosen,
    conversations,
    converse,
    first_ids,
    request_for,
    settings_of,
)
from cascli.models.batch.lanes import Ended, Lanes
from cascli.models.pair import Pair
from cascli.notebook import OnProgress
from cascli.prompts import Prompt
from cascli.settings import Resolved, default_strategy
from cascli.strategies import Strategy
from cascli.trace import Run

DEFAULT_SIZE = 8


class Given(TypedDict, total=False):
    """What `generate` takes as well, with the same defaults."""

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
    on_round: OnRound | None = None,
) -> Generator[Ended[list[Run]]]:
    """Answer conversations side by side; yields the runs of each as it ends, with its place among the prompts.

    Args:
        pair: loaded once for all of them.
        strategy: of all answers.
        prompts: each is answered with the random numbers that it has alone.
        settings: of all answers.
        size: how many are under way at once.
        on_round: told each round of any of them.

    Raises:
        UsageError: a prompt that is empty or too long.
        RunError: out of memory, or another run of the pair is in progress.
    """
    jobs = (partial(_conversation, strategy, prompt, settings, on_round) for prompt in prompts)
    return Lanes(pair, min(size, len(prompts))).run(jobs)


def _conversation(
    strategy: Strategy, prompt: Prompt, settings: Resolved, on_round: OnRound | None, pair: Pair
) -> list[Run]:
    return list(converse(pair, strategy, prompt, settings, on_round))


def check_all(pair: Pair, strategy: Strategy, prompts: Sequence[Prompt], settings: Resolved) -> None:
    """Refuse a prompt that cannot be answered before the others are.

    Raises:
        UsageError: there is such a prompt, or the strategy asks for what the pair does not have.
    """
    check_models(pair, strategy)
    check_prompts(pair, prompts, settings)


def check_prompts(pair: Pair, prompts: Sequence[Prompt], settings: Resolved) -> None:
    """Refuse a prompt whose first turn cannot be answered, by its id.

    Raises:
        UsageError: it is empty, or there is no room for it.
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
    **given: Unpack[Given],
) -> list[Run]:
    """Answer many prompts with one strategy, several at once.

    Every answer is what its prompt gets alone with the same random numbers, which come from the seed and the prompt's
    id (its place where it has none): bit for bit on a CPU, within rounding on a GPU. Times are of the batch: each run's
    seconds are its share, so that they add up to those of all, and no run has a time to its first token.

    Args:
        pair: from `load_pair`.
        prompts: texts, or conversations whose turns are answered one after the other.
        prompt_ids: token ids of one prompt or of several, instead of texts; they skip the chat template.
        strategy: as in `generate`.
        batch_size: how many answers are under way at once; others take their places as they end.
        on_progress: told how many answers have ended, and of how many.
        given: `max_new_tokens`, `temperature`, `top_k`, `top_p`, `seed`,
            `num_speculative_tokens`, `stop`, `system`, `raw` and `top`, as in `generate`.

    Returns:
        The runs in the order of the prompts, those of a conversation's turns one after the other.

    Raises:
        UsageError: a value out of range, an unknown strategy, a prompt that is empty or too long.
        RunError: out of memory.
    """
    if batch_size < 1:
        raise UsageError(f"batch_size: expected 1 or more (got {batch_size})")
    for key in given:
        if key not in Given.__annotations__:
            raise UsageError(unknown("keyword", key, Given.__annotations__))
    asked, settings = conversations(prompts, prompt_ids), settings_of(pair, **given)
    wanted = chosen(strategy or default_strategy(draft=pair.draft is not None, head=pair.by_head), settings)
    check_all(pair, wanted, asked, settings)
    done: dict[int, list[Run]] = {}
    bars = notebook.bars()
    on_progress = on_progress or bars
    with bars or nullcontext():
        for ended in converse_many(pair, wanted, asked, settings, batch_size):
            done[ended.place] = ended.result
            if on_progress is not None:
                on_progress("answers", len(done), len(asked))
    return [run for place in sorted(done) for run in done[place]]
