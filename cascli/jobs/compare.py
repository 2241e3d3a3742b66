"""The same prompts under several strategies, on one loaded pair, with shared random numbers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

from cascli.analysis.comparison import Comparison, default_strategies, repeats_of, spread_of, summarise
from cascli.analysis.explanation import explain, explained
from cascli.analysis.profile import Profile
from cascli.analysis.statistics import median
from cascli.chat import Conversation, encode
from cascli.errors import UsageError
from cascli.files import printed
from cascli.jobs.generate import OnRound, chosen, converse, decode, request_for, settings_of
from cascli.jobs.profile import OnProgress, blocks_for, profile
from cascli.models.pair import Pair
from cascli.prompts import Prompt
from cascli.settings import Resolved
from cascli.strategies import Strategy
from cascli.trace import Run

WARM_UP_TOKENS = 4
"""At least; a strategy that drafts k tokens warms up k + 2, so that it meets its own block."""
PROFILE_REPEATS = 3
OnStart = Callable[[Strategy, int], None]


def compare(
    pair: Pair,
    prompts: str | Prompt | Sequence[str | Prompt],
    strategies: Sequence[str | Strategy] | None = None,
    *,
    max_new_tokens: int | None = None,
    temperature: float | None = None,
    top_k: int | None = None,
    top_p: float | None = None,
    seed: int | None = None,
    num_speculative_tokens: int | None = None,
    stop: str | Sequence[str] | None = None,
    system: str | None = None,
    raw: bool | None = None,
    top: int | None = None,
    runs: int = 1,
    warm_up: bool = True,
    measure: bool = True,
    on_start: OnStart | None = None,
    on_round: OnRound | None = None,
    on_progress: OnProgress | None = None,
) -> Comparison:
    """Run every strategy on every prompt, interleaved A B C A B C, `runs` times, and explain the speed.

    What is not given comes from the pair's file, then from the built-in defaults, as in `generate`.

    Args:
        pair: loaded once for all strategies.
        prompts: texts, or conversations whose turns are answered one after the other.
        strategies: in the order of the columns, such as `["target", "speculative:k=4"]`; they share their random
            numbers within a prompt. By default one of each kind.
        max_new_tokens: the longest answer, in tokens.
        temperature: 0 is greedy.
        top_k: keep the most likely tokens; 0 is off.
        top_p: keep the smallest set of this mass; 1 is off.
        seed: of the runs' own random numbers.
        num_speculative_tokens: k, where a strategy does not say.
        stop: strings that end an answer; they are not part of it.
        system: system text for the chat template.
        raw: no chat template.
        top: how many of each model's likeliest tokens the traces keep, as in `generate`.
        runs: repeats for timing.
        warm_up: decode a few uncounted tokens with every strategy first.
        measure: time the pair's steps on their own afterwards, for the explanation.
        on_start: told which strategy starts, and how many were run before.
        on_round: shown every step.
        on_progress: told how the measurement of steps goes.

    Raises:
        UsageError: a value out of range, an unknown strategy or one given twice, no prompt, or one that is too long.
        RunError: out of memory.
    """
    settings = settings_of(
        pair,
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        seed=seed,
        num_speculative_tokens=num_speculative_tokens,
        stop=stop,
        system=system,
        raw=raw,
        top=top,
    )
    asked = conversations(prompts)
    if strategies is None:
        strategies = default_strategies(draft=pair.draft is not None)
    columns = [chosen(strategy, settings) for strategy in strategies]
    check_columns(columns)
    done = Repeats(pair, asked, columns, settings, runs=runs, warm_up=warm_up, on_start=on_start, on_round=on_round)
    return done.comparison(done.steps(on_progress) if measure else None)


def conversations(prompts: str | Prompt | Sequence[str | Prompt]) -> list[Prompt]:
    """Prompts as they are, and texts as prompts whose place is their id, as in a file without ids.

    Raises:
        UsageError: there is none, or one that is empty.
    """
    several = [prompts] if isinstance(prompts, str | Prompt) else list(prompts)
    asked = [Prompt((each,), str(place)) if isinstance(each, str) else each for place, each in enumerate(several, 1)]
    wrong = next((each for each in asked if not isinstance(each, Prompt)), None)
    if wrong is not None:
        raise UsageError(f"prompts: texts are wanted (got {printed(wrong)})")
    if not asked or not all(turn for prompt in asked for turn in prompt.turns):
        raise UsageError("give at least one prompt, and none that is empty.")
    return asked


def check_columns(strategies: Sequence[Strategy]) -> None:
    """Refuse what a table could not tell apart.

    Raises:
        UsageError: no strategy, or one that is given twice.
    """
    specs = [strategy.spec for strategy in strategies]
    twice = next((spec for spec in specs if specs.count(spec) > 1), None)
    if twice:
        raise UsageError(f"strategy '{twice}' is given twice.")
    if not specs:
        raise UsageError("give at least one strategy.")


class Repeats:
    """All runs of a comparison; what their speed is made of is measured afterwards, if it is wanted."""

    def __init__(
        self,
        pair: Pair,
        prompts: Sequence[Prompt],
        strategies: Sequence[Strategy],
        settings: Resolved,
        *,
        runs: int = 1,
        warm_up: bool = True,
        on_start: OnStart | None = None,
        on_round: OnRound | None = None,
    ) -> None:
        """Make them; see `compare`."""
        self._pair = pair
        if warm_up:
            _warm_up(pair, prompts[0].turns[0], strategies, settings)
        self._done: list[list[list[Run]]] = []
        started = 0
        for _ in range(runs):
            by_strategy: list[list[Run]] = [[] for _ in strategies]
            for prompt in prompts:
                for column, strategy in enumerate(strategies):
                    if on_start is not None:
                        on_start(strategy, started)
                    started += 1
                    by_strategy[column] += converse(pair, strategy, prompt, settings, on_round)
            self._done.append(by_strategy)

    @property
    def every(self) -> list[Run]:
        """All runs of all repeats."""
        return [run for repeat in self._done for runs in repeat for run in runs]

    def steps(self, on_progress: OnProgress | None = None) -> Profile | None:
        """Time the pair's steps where these runs were, on the median, half done; None if nothing is to be explained."""
        runs = self.every
        if not explained(runs):
            return None
        context = int(median([run.prompt_tokens + len(run.token_ids) / 2 for run in runs]))
        room = None if self._pair.context is None else self._pair.context - context
        ks = {int(run.params["k"]) for run in runs if "k" in run.params}
        return profile(
            self._pair, context, blocks=blocks_for(ks, room), repeats=PROFILE_REPEATS, on_progress=on_progress
        )

    def comparison(self, steps: Profile | None = None) -> Comparison:
        """Everything that was found, with the steps if they were timed."""
        rows, spread = summarise(self._done), spread_of(self._done)
        speeds = {row.strategy: row.speed_vs_target or 0.0 for row in rows}
        return Comparison(
            runs=list(_flat(self._done[0])),
            summary=rows,
            explanation=explain(self.every, steps, speeds=speeds, noise=spread),
            profile=steps,
            repeats=repeats_of(self._done),
            spread=spread,
        )


def _flat(by_strategy: Sequence[Sequence[Run]]) -> Iterator[Run]:
    """All runs, prompt by prompt, the strategies of a prompt side by side."""
    for prompt in zip(*by_strategy, strict=True):
        yield from prompt


def _warm_up(pair: Pair, turn: str, strategies: Sequence[Strategy], settings: Resolved) -> None:
    ids = encode(pair, turn, Conversation(settings.system), raw=settings.raw)
    for strategy in strategies:
        tokens = max(WARM_UP_TOKENS, strategy.params.get("k", 0) + 2)
        decode(pair, strategy, request_for(replace(settings, max_new_tokens=tokens), ids))
