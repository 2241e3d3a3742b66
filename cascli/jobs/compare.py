"""The same prompts under several strategies, on one loaded pair, with shared random numbers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from cascli.chat import Conversation, encode
from cascli.comparison import Comparison, summarise
from cascli.explain import explain
from cascli.jobs.generate import Watcher, converse, decode, request_for
from cascli.models.pair import Pair
from cascli.settings import Settings
from cascli.strategies import Strategy
from cascli.trace import Run

WARM_UP_TOKENS = 4
"""At least; a strategy that drafts k tokens warms up k + 2, so that it meets its own block."""
Begin = Callable[[Strategy, int], None]


def compare(
    pair: Pair,
    conversations: Sequence[Sequence[str]],
    strategies: Sequence[Strategy],
    settings: Settings,
    *,
    runs: int = 1,
    warm_up: bool = True,
    begin: Begin | None = None,
    watch: Watcher | None = None,
) -> Comparison:
    """Run every strategy on every conversation, interleaved A B C A B C, `runs` times.

    Args:
        pair: loaded once for all strategies.
        conversations: the user turns of each.
        strategies: in the order of the columns.
        settings: resolved; all strategies use the same seed, so they share their random numbers.
        runs: repeats for timing.
        warm_up: decode a few uncounted tokens with every strategy first.
        begin: told which strategy starts, and how many were run before.
        watch: shown every step.
    """
    if warm_up:
        _warm_up(pair, conversations[0][0], strategies, settings)
    done: list[list[list[Run]]] = []
    started = 0
    for _ in range(runs):
        by_strategy: list[list[Run]] = [[] for _ in strategies]
        for turns in conversations:
            for column, strategy in enumerate(strategies):
                if begin is not None:
                    begin(strategy, started)
                started += 1
                by_strategy[column] += converse(pair, strategy, turns, settings, watch)
        done.append(by_strategy)
    found = list(_flat(done[0]))
    return Comparison(runs=found, summary=summarise(done), explanation=explain(found))


def _flat(by_strategy: Sequence[Sequence[Run]]) -> Iterator[Run]:
    """All runs, prompt by prompt, the strategies of a prompt side by side."""
    for prompt in zip(*by_strategy, strict=True):
        yield from prompt


def _warm_up(pair: Pair, turn: str, strategies: Sequence[Strategy], settings: Settings) -> None:
    ids = encode(pair, turn, Conversation(settings.system), raw=bool(settings.raw))
    for strategy in strategies:
        tokens = max(WARM_UP_TOKENS, strategy.params.get("k", 0) + 2)
        decode(pair, strategy, request_for(settings.model_copy(update={"max_new_tokens": tokens}), ids))
