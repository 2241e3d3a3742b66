"""The same prompts under several strategies, on one loaded pair, with shared random numbers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from cascli.chat import Conversation, encode
from cascli.comparison import Comparison, repeats_of, spread_of, summarise
from cascli.explain import explain, explained
from cascli.jobs.generate import Watcher, converse, decode, request_for
from cascli.jobs.profile import Tell, profile
from cascli.models.pair import Pair
from cascli.profile import Profile
from cascli.prompts import Prompt
from cascli.settings import Settings
from cascli.statistics import median
from cascli.strategies import Strategy
from cascli.trace import Run

WARM_UP_TOKENS = 4
"""At least; a strategy that drafts k tokens warms up k + 2, so that it meets its own block."""
PROFILE_REPEATS = 3
Begin = Callable[[Strategy, int], None]


def compare(
    pair: Pair,
    prompts: Sequence[Prompt],
    strategies: Sequence[Strategy],
    settings: Settings,
    *,
    runs: int = 1,
    warm_up: bool = True,
    measure: bool = True,
    begin: Begin | None = None,
    watch: Watcher | None = None,
    tell: Tell | None = None,
) -> Comparison:
    """Run every strategy on every prompt, interleaved A B C A B C, `runs` times.

    Args:
        pair: loaded once for all strategies.
        prompts: conversations, whose turns are answered one after the other.
        strategies: in the order of the columns.
        settings: resolved; strategies share their random numbers within a prompt.
        runs: repeats for timing.
        warm_up: decode a few uncounted tokens with every strategy first.
        measure: time the pair's steps on their own afterwards, for the explanation.
        begin: told which strategy starts, and how many were run before.
        watch: shown every step.
        tell: told how the measurement of steps goes.
    """
    if warm_up:
        _warm_up(pair, prompts[0].turns[0], strategies, settings)
    done: list[list[list[Run]]] = []
    started = 0
    for _ in range(runs):
        by_strategy: list[list[Run]] = [[] for _ in strategies]
        for prompt in prompts:
            for column, strategy in enumerate(strategies):
                if begin is not None:
                    begin(strategy, started)
                started += 1
                by_strategy[column] += converse(pair, strategy, prompt, settings, watch)
        done.append(by_strategy)
    found = list(_flat(done[0]))
    steps = _steps(pair, found, tell) if measure and explained(found) else None
    return Comparison(
        runs=found,
        summary=summarise(done),
        explanation=explain(found, steps),
        profile=steps,
        repeats=repeats_of(done),
        spread=spread_of(done),
    )


def _steps(pair: Pair, runs: Sequence[Run], tell: Tell | None) -> Profile:
    """The pair's steps at the context in which these runs were, on the median, half done."""
    context = int(median([run.prompt_tokens + len(run.token_ids) / 2 for run in runs]))
    return profile(pair, context, repeats=PROFILE_REPEATS, tell=tell)


def _flat(by_strategy: Sequence[Sequence[Run]]) -> Iterator[Run]:
    """All runs, prompt by prompt, the strategies of a prompt side by side."""
    for prompt in zip(*by_strategy, strict=True):
        yield from prompt


def _warm_up(pair: Pair, turn: str, strategies: Sequence[Strategy], settings: Settings) -> None:
    ids = encode(pair, turn, Conversation(settings.system), raw=bool(settings.raw))
    for strategy in strategies:
        tokens = max(WARM_UP_TOKENS, strategy.params.get("k", 0) + 2)
        decode(pair, strategy, request_for(settings.model_copy(update={"max_new_tokens": tokens}), ids))
