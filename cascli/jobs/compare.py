"""Run the same prompts with several strategies, on one loaded pair and with shared random numbers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from itertools import takewhile
from numbers import Integral
from typing import Any, Literal, get_args

from cascli import notebook
from cascli.analysis.comparison import (
    DEFAULT_BASELINES,
    Comparison,
    Row,
    by_category,
    check_columns,
    default_strategies,
    repeats_of,
    spread_of,
    summarise,
)
from cascli.analysis.draft_length import draft_lengths, oracle_speed
from cascli.analysis.explanation import explain, explained
from cascli.analysis.matching import Matching
from cascli.analysis.profile import Profile
from cascli.analysis.statistics import median
from cascli.engine import StreamEvent, check_models
from cascli.errors import UsageError, unknown
from cascli.jobs import match as matched
from cascli.jobs.batch import check_prompts, converse_many
from cascli.jobs.batch_profile import batch_profiles
from cascli.jobs.generate import (
    Answering,
    IdPrompts,
    Prompts,
    chosen,
    conversations,
    decode,
    first_ids,
    request_for,
    settings_of,
    texts_of,
    warm_up_tokens,
)
from cascli.jobs.profile import blocks_for, profile
from cascli.jobs.race import race
from cascli.models.calls import ROLES, Calls
from cascli.models.pair import Pair
from cascli.notebook import OnProgress
from cascli.prompts import Prompt, split_for_calibration
from cascli.settings import Resolved, with_whole_answers
from cascli.strategies import Strategy
from cascli.trace import Handover, Run, block_length, now

PROFILE_REPEATS = 3
Schedule = Literal["auto", "fair", "sequential"]
Event = StreamEvent | Handover | Run
OnEvent = Callable[[int, Event], None]
"""Called with a strategy's column index and its event; a `Run` ends an answer."""


def compare(
    pair: Pair,
    prompts: Prompts | None = None,
    strategies: str | Strategy | Sequence[str | Strategy] | None = None,
    *,
    prompt_ids: IdPrompts | None = None,
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
    schedule: Schedule = "auto",
    batch_size: int = 1,
    rules: str | Sequence[str] | None = None,
    match: Mapping[str, float] | None = None,
    warm_up: bool = True,
    measure: bool = True,
    on_event: OnEvent | None = None,
    on_progress: OnProgress | None = None,
) -> Comparison:
    """Run every strategy on every prompt, `runs` times, and explain the speed.

    Values that are not given come from the pair's file, then from the built-in defaults, as in `generate`.

    Args:
        pair: the loaded pair that all strategies share.
        prompts: texts, or conversations whose turns are answered in order.
        prompt_ids: token ids of one or several prompts, instead of texts; the chat template is not applied.
        strategies: one per column, in order, such as `["target", "speculative:k=4"]`; on each prompt all of them use
            the same random numbers. By default one of each kind.
        max_new_tokens: longest answer, in tokens; at least 256 by default for several prompts, so that most answers
            end on their own.
        temperature: 0 is greedy.
        top_k: keep the most likely tokens; 0 is off.
        top_p: keep the smallest set of this mass; 1 is off.
        seed: seed of the random numbers.
        num_speculative_tokens: k, for strategies that do not set it.
        stop: strings that end an answer; they are not part of it.
        system: system prompt for the chat template.
        raw: skip the chat template.
        top: number of each model's likeliest tokens kept in the traces, as in `generate`.
        runs: repeats for timing.
        schedule: `fair` runs all strategies concurrently, in slices of equal time, so that they see the same machine
            conditions; `sequential` runs one after the other; `auto` is fair on a CPU.
        batch_size: number of answers decoded concurrently, one strategy after the other; if above 1, speeds are the
            throughput of these batches.
        rules: `all`, or names of deferral rules; each adds a column to the strategies (by default target and
            speculative), with its default parameters or with those that meet `match`.
        match: budgets such as `{"target_calls_per_token": 0.28}`, at which rules (by default all) are compared.
            Settings are found on built-in prompts that are not measured; if the built-in prompts are the ones to
            measure, some are held out. Rules that cannot meet a budget do not run; the comparison's `.matching` gives
            the reason.
        warm_up: decode a few uncounted tokens first.
        measure: afterwards, time the pair's steps separately, for the explanation.
        on_event: called with a strategy's column index and each of its rounds, decisions and finished runs.
        on_progress: called with the progress of calibration and step timing.

    Raises:
        UsageError: a value out of range, an unknown or repeated strategy, no prompt, or a prompt that is too long.
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
    request, all_prompts, matching = matched.rule_request(match, rules), conversations(prompts, prompt_ids), None
    if len(all_prompts) > 1 and max_new_tokens is None:
        settings = with_whole_answers(settings)
    if strategies is None:
        strategies = settings.strategy or (default_strategies(pair) if request is None else DEFAULT_BASELINES)
    elif isinstance(strategies, str | Strategy):
        strategies = [strategies]
    columns = [chosen(strategy, settings) for strategy in strategies]
    check_columns([strategy.spec for strategy in columns])
    bars = notebook.bars()
    with bars or nullcontext():
        if request is not None and request.budgets:
            all_prompts, others = split_for_calibration(all_prompts)
            matching = matched.calibrate(pair, others, settings, request, on_progress or bars)
        if request is not None:
            columns += matched.columns(request, matching, settings, columns)
        done = Repeats(
            pair, all_prompts, columns, settings, runs=runs, schedule=schedule, batch_size=batch_size, matching=matching
        )
        if measure:
            done.time_steps(on_progress or bars)
        if warm_up:
            done.warm_up()
        done.run(on_event or (counting(bars, done.answers) if bars else None))
        return done.comparison(done.steps(on_progress or bars) if measure else None)


def counting(on_progress: OnProgress, total: int) -> OnEvent:
    """Return an event callback that reports the number of finished answers out of `total`."""
    done = 0
    on_progress("answers", done, total)

    def event(_: int, event: Event) -> None:
        nonlocal done
        if isinstance(event, Run):
            done += 1
            on_progress("answers", done, total)

    return event


class Repeats:
    """All runs of a comparison; the step times that explain their speed are measured on request."""

    def __init__(
        self,
        pair: Pair,
        prompts: Sequence[Prompt],
        strategies: Sequence[Strategy],
        settings: Resolved,
        *,
        runs: int = 1,
        schedule: Schedule = "auto",
        batch_size: int = 1,
        matching: Matching | None = None,
    ) -> None:
        """Set up the runs, see `compare`; `run` executes them.

        Raises:
            UsageError: a strategy needs something that the pair lacks, a fair schedule is combined with batches, or one
                of several prompts cannot be answered.
        """
        for name, number in (("batch_size", batch_size), ("runs", runs)):
            if not isinstance(number, Integral) or number < 1:
                raise UsageError(f"{name}: expected 1 or more (got {number!r})")
        if schedule not in get_args(Schedule):
            raise UsageError(unknown("schedule", str(schedule), get_args(Schedule)))
        if batch_size > 1 and schedule == "fair":
            raise UsageError("a fair schedule runs one answer per strategy at a time: leave it out with batch_size.")
        for strategy in strategies:
            check_models(pair, strategy, keeps_earlier=batch_size == 1)
        if len(prompts) > 1:  # before minutes are spent on earlier prompts
            check_prompts(pair, prompts, settings)
        self.batch_size = min(batch_size, len(prompts))
        self._matching = matching
        self._pair, self._prompts, self._strategies, self._settings = pair, prompts, strategies, settings
        self._runs, self._date = runs, now()
        self.schedule = resolved_schedule("sequential" if self.batch_size > 1 else schedule, pair)
        self._on_event: OnEvent | None = None
        self._pairs = [pair.with_own_caches() if self.schedule == "fair" else pair for _ in strategies]
        self._timed: Profile | None = None
        self._done: list[list[list[Run]]] = []
        self._in_progress: list[Answering] = []

    @property
    def specs(self) -> list[str]:
        """The strategies as strings, in column order."""
        return [strategy.spec for strategy in self._strategies]

    @property
    def answers(self) -> int:
        """Total number of answers to decode, counting every turn of a conversation."""
        return self._runs * len(self._strategies) * sum(len(prompt.turns) for prompt in self._prompts)

    def warm_up(self) -> None:
        """Decode a few uncounted tokens; a fair schedule skips strategies whose model calls are already warm."""
        ids = first_ids(self._pair, self._prompts[0], self._settings)
        for strategy in _needing_warm_up(self._strategies) if self.schedule == "fair" else self._strategies:
            tokens = warm_up_tokens(strategy)
            decode(self._pair, strategy, request_for(replace(self._settings, max_new_tokens=tokens), ids, earlier=()))

    def time_steps(self, on_progress: OnProgress | None = None) -> None:
        """Time the pair's steps if any strategy's stop depends on them; the explanation then uses these times too.

        They are timed at the context of an answer that has reached half the longest length.
        """
        if not any(strategy.needs_costs for strategy in self._strategies):
            return
        ids = first_ids(self._pair, self._prompts[0], self._settings)
        ks = {block_length(strategy.params) for strategy in self._strategies}
        self._timed = self._profile(len(ids) + self._settings.max_new_tokens // 2, ks, on_progress)
        self._pair, *self._pairs = (replace(pair, steps=self._timed) for pair in (self._pair, *self._pairs))

    def run(self, on_event: OnEvent | None = None) -> None:
        """Execute all runs; what is finished before an interruption is kept."""
        self._on_event = on_event
        for _ in range(self._runs):
            self._done.append([[] for _ in self._strategies])
            if self.batch_size > 1:
                for column, strategy in enumerate(self._strategies):
                    self._answer_in_batches(column, strategy)
                continue
            for prompt in self._prompts:
                self._answer(prompt)

    def _answer(self, prompt: Prompt) -> None:
        """Answer one prompt with all strategies, interleaved or one after the other.

        Raises:
            UsageError: a later turn does not fit the context; with several prompts, the message names the prompt.
        """
        try:
            self._turns(prompt)
        except UsageError as error:
            raise UsageError(f"prompt '{prompt.id}': {error}" if len(self._prompts) > 1 else str(error)) from None

    def _turns(self, prompt: Prompt) -> None:
        self._in_progress = [
            Answering(pair, strategy, prompt, self._settings, texts_of(done) if strategy.remembers else None)
            for pair, strategy, done in zip(self._pairs, self._strategies, self._done[-1], strict=True)
        ]
        if self.schedule == "fair":
            with self._pair.one_at_a_time():
                race([iter(each) for each in self._in_progress], self._handle)
        else:
            for column, answering in enumerate(self._in_progress):
                for event in answering:
                    self._handle(column, event)
        self._in_progress = []

    def _answer_in_batches(self, column: int, strategy: Strategy) -> None:
        """Answer all prompts with one strategy; its runs are stored in prompt order, in whatever order they end."""
        ended: dict[int, list[Run]] = {}
        try:
            for conversation in converse_many(self._pair, strategy, self._prompts, self._settings, self.batch_size):
                ended[conversation.place] = conversation.result
                for run in conversation.result:
                    if self._on_event is not None:
                        self._on_event(column, run)
        finally:  # after an interruption, keep the leading prompts that have all ended
            whole = takewhile(ended.__contains__, range(len(self._prompts)))
            self._done[-1][column] = [run for place in whole for run in ended[place]]

    def _handle(self, column: int, event: Event) -> None:
        if isinstance(event, Run):
            self._done[-1][column].append(event)
        if self._on_event is not None:
            self._on_event(column, event)

    def cut_short(self) -> bool:
        """End the runs in progress and keep what can be compared; return whether anything is left.

        Of the first repeat, the answers so far are kept, for the strategies that have written any. Later repeats are
        compared with the first one and are kept only if complete.
        """
        for column, answering in enumerate(self._in_progress):
            run = answering.interrupt()
            if run is not None:
                self._done[-1][column].append(run)
        self._in_progress = []
        if len(self._done) > 1:
            self._done.pop()
            return True
        written = [runs for repeat in self._done for runs in repeat if runs]
        self._done = [[runs[: min(map(len, written))] for runs in written]] if written else []
        return bool(written)

    @property
    def all_runs(self) -> list[Run]:
        """All runs of all repeats."""
        return [run for repeat in self._done for runs in repeat for run in runs]

    def steps(self, on_progress: OnProgress | None = None) -> Profile | None:
        """Time the pair's steps at the median context of half-finished runs, unless they were timed before.

        None if there is nothing to explain.
        """
        runs = self.all_runs
        if self._timed is not None or not explained(runs):
            return self._timed
        context = int(median([run.prompt_tokens + len(run.token_ids) / 2 for run in runs]))
        ks = {block_length(run.params) for run in runs if "k" in run.params}
        return self._profile(context, ks, on_progress)

    def _profile(self, context: int, ks: Iterable[int], on_progress: OnProgress | None) -> Profile:
        context = context if self._pair.context is None else min(context, self._pair.context - 1)
        room = None if self._pair.context is None else self._pair.context - context
        options: dict[str, Any] = {
            "blocks": blocks_for(ks, room),
            "repeats": PROFILE_REPEATS,
            "on_progress": on_progress,
        }
        if self.batch_size > 1:
            return batch_profiles(self._pair, context, [self.batch_size], **options)[0]
        exits = (strategy.runners(self._pair)["draft"].exit for strategy in self._strategies)
        return profile(self._pair, context, exits={exit.layers for exit in exits if exit}, **options)

    def comparison(self, steps: Profile | None = None) -> Comparison:
        """Everything that was found, with the step times if they were measured."""
        rows, spread = summarise(self._done), spread_of(self._done)
        speeds = {row.strategy: row.speed_vs_target or 0.0 for row in rows}
        # Without the target there is nothing to compare speeds with.
        timed_steps = steps if explained(self.all_runs) else None
        if timed_steps is not None:
            rows = [self._with_oracle(row, timed_steps) for row in rows]
        return Comparison(
            date=self._date,
            runs=list(_flat(self._done[0])),
            summary=rows,
            categories=by_category(self._done, {prompt.id: prompt.category for prompt in self._prompts}),
            explanation=explain(self.all_runs, steps, speeds=speeds, noise=spread),
            profile=steps,
            draft_lengths=[] if timed_steps is None else draft_lengths(self.all_runs, timed_steps, speeds),
            repeats=repeats_of(self._done),
            spread=spread,
            schedule=self.schedule,
            batch_size=self.batch_size,
            matching=self._matching,
        )

    def _with_oracle(self, row: Row, steps: Profile) -> Row:
        """Add the oracle's bound to the row of a strategy that drafts, if there is a target."""
        runs = [run for run in self.all_runs if run.spec == row.strategy]
        if row.speed_vs_target is None or not block_length(runs[0].params):
            return row
        return row.model_copy(update={"oracle_speed_vs_target": oracle_speed(runs, steps, row.speed_vs_target)})


def resolved_schedule(schedule: Schedule, pair: Pair) -> Literal["fair", "sequential"]:
    """Resolve `auto` for the pair's device.

    Fair on a CPU. Sequential on a GPU, which is not shared and where every strategy would capture its own graphs.
    """
    if schedule != "auto":
        return schedule
    return "fair" if pair.device.type == "cpu" else "sequential"


def _needing_warm_up(strategies: Sequence[Strategy]) -> list[Strategy]:
    """Strategies with longer model calls than those before them; for all others everything is already warm."""
    chosen, known = [], dict.fromkeys(ROLES, 0)
    for strategy in sorted(strategies, key=lambda each: -block_length(each.params)):
        calls = {role: _longest(strategy.calls(role)) for role in ROLES}
        if any(calls[role] > known[role] for role in ROLES):
            chosen.append(strategy)
            known = {role: max(known[role], calls[role]) for role in ROLES}
    return chosen


def _longest(calls: Calls) -> int:
    """Most tokens that any one call reads; 0 if the model is not used."""
    return max((n for n, _ in calls.reads), default=int(bool(calls.writes)))


def _flat(by_strategy: Sequence[Sequence[Run]]) -> Iterator[Run]:
    """All runs, prompt by prompt, the strategies of a prompt side by side."""
    for prompt in zip(*by_strategy, strict=True):
        yield from prompt
