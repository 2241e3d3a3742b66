"""A comparison as plain data: all runs, and one row per strategy. No torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from cascli import notebook
from cascli.analysis.answer_costs import AnswerCosts, Answered, Answers, answer_costs
from cascli.analysis.distances import total
from cascli.analysis.draft_length import DraftLength
from cascli.analysis.explanation import Explanation
from cascli.analysis.matching import Matching
from cascli.analysis.percentiles import Percentiles, percentiles
from cascli.analysis.profile import Profile
from cascli.analysis.statistics import IntervalKind, median, median_interval, percentile, rate_ratio_interval
from cascli.errors import UsageError
from cascli.settings import TARGET, WITHOUT_DRAFT, HasDraft
from cascli.trace import Data, Distances, Document, ExitInfo, Metrics, Run, Seconds, by_strategy, prompts_of

if TYPE_CHECKING:
    import pandas

NAMED = 3
"""Number of strategies named in a comparison's one-line summary."""
DEFAULT_STRATEGIES = (
    TARGET,
    "draft",
    "cascade",
    "token-cascade",
    "speculative",
    "speculative-cascade:rule=opt",
    "speculative-cascade:rule=token-v3",
)
DEFAULTS_WITHOUT_DRAFT = (
    TARGET,
    f"speculative:{WITHOUT_DRAFT}",
    f"speculative-cascade:rule=token-v3,{WITHOUT_DRAFT}",
)


DEFAULTS_WITH_HEAD = (
    TARGET,
    "speculative",
    "speculative-cascade:rule=mentored",
    "speculative-cascade:rule=cactus",
)
"""Defaults for an EAGLE-3 head, which cannot write alone; these rules do not depend on its confidence."""
DEFAULT_BASELINES = (TARGET, "speculative")
"""Strategies that rules are compared with by default."""


def default_strategies(pair: HasDraft) -> tuple[str, ...]:
    """Return the strategies compared by default with this pair."""
    if pair.by_head:
        return DEFAULTS_WITH_HEAD
    return DEFAULT_STRATEGIES if pair.draft is not None else DEFAULTS_WITHOUT_DRAFT


def check_columns(specs: Sequence[str]) -> None:
    """Reject columns that a table could not tell apart.

    Raises:
        UsageError: no strategy, or the same one twice.
    """
    duplicate = next((spec for spec in specs if specs.count(spec) > 1), None)
    if duplicate:
        raise UsageError(f"strategy '{duplicate}' is given twice.")
    if not specs:
        raise UsageError("give at least one strategy.")


class Repeat(Data):
    """One strategy over all prompts in one repeat; medians are taken over repeats."""

    strategy: str
    tokens: int
    seconds: Seconds


class Row(Data):
    """One strategy over all prompts and repeats: totals over totals, never means of rates."""

    strategy: str
    oracle: bool
    depends_on_rounds: bool = False
    """Whether the output distribution depends on where rounds begin; False in older documents."""
    exit: ExitInfo | None = None
    """Where drafts leave the target, with `draft=early-exit`."""
    tokens: int
    """Number of tokens in all answers of one repeat."""
    num_prompts: int | None = None
    """Number of prompts; the turns of a conversation count as one. None in older documents."""
    num_answers: int | None = None
    """Number of answers in one repeat; each turn of a conversation has its own. None in older documents."""
    answers_cut: int | None = None
    """Number of answers that ended at the length limit; None in older documents."""
    mean_answer_tokens: float | None = None
    """Mean number of tokens per answer; None in older documents."""
    share_cut: float | None = None
    """Share of the answers that ended at the length limit; None in older documents."""
    seconds: float
    tokens_per_second: float | None
    speed_vs_target: float | None
    """Time per token of `target` divided by this strategy's, in the same repeat; median over repeats."""
    oracle_speed_vs_target: float | None = None
    """Upper bound of `speed_vs_target`, had every round drafted exactly what is kept; None if steps were not timed, for
    a strategy that does not draft ahead, and with `verify=block`."""
    speed_interval: tuple[float, float] | None
    """Interval of `speed_vs_target`: over prompts if there are several, since they differ more than repeats, otherwise
    over repeats. Also over repeats if prompts' times depend on each other: in batches, and with `remember`."""
    speed_interval_kind: IntervalKind | None = None
    """A 95% interval, the range of fewer than six values, or no scatter if all values are equal."""
    speed_interval_over: Literal["repeats", "prompts"] | None = None
    target_calls_per_token: float | None
    draft_calls_per_token: float | None
    draft_acceptance_rate: float | None
    tested_acceptance_rate: float | None = None
    """Accepted over tested drafted tokens; tokens after a rejection are not tested. None with `verify=block`."""
    mean_acceptance_length: float | None
    shared_mass: float | None = None
    """q(I): the mean share of the draft model's mass on tokens that both models can say; None with one tokenizer."""
    deferral_rate: float | None
    mean_tv_to_target: float | None
    max_tv_to_target: float | None
    lossless: bool | None
    first_divergence: int | None
    """Index of the first token that differs from `target` on the first prompt; None if none does."""
    answers: int | None = None
    """Number of answers that can be compared with the target's: those to the same text that were not interrupted before
    they differed; None without `target`, and in older documents."""
    answers_same: int | None = None
    """Number of compared answers that equal the target's; None without `target`, and in older documents."""
    same_as_target: bool | None
    """Whether all answers to the same text equal the target's, token by token; None without `target`, and if an
    interruption leaves this undecided.

    In a conversation each strategy continues from its own answers; once they differ, later turns are not compared.
    """
    ttft: Percentiles | None = None
    """Seconds to the first token, over prompts and repeats."""
    seconds_per_token: Percentiles | None = None
    """Seconds per output token after the first round, over prompts and repeats."""
    round_seconds: Percentiles | None = None
    """Seconds of a round, over all but the first of each run."""
    other_share: float | None = None
    """Share of the time that was spent outside the two models."""
    flops_per_token: float | None = None
    weight_bytes_per_token: float | None = None
    peak_memory_bytes: int | None = None
    costs: AnswerCosts | None = None
    """Costs of the strategy's answers compared with those of others; None in older documents."""
    distances: Distances | None = None
    """Distances of the output distribution from both models, over all answers; None if an answer has none."""

    @property
    def conversations(self) -> int:
        """Number of prompts that `costs` and nats refer to; the turns of a conversation count as one."""
        return self.num_prompts or self.num_answers or 0

    def __repr__(self) -> str:
        """Return one line."""
        speed = "" if self.speed_vs_target is None else f", {self.speed_vs_target:.2f}x"
        return f"<Row {self.strategy}: {self.tokens} tokens in {self.seconds:.2f} s{speed}>"

    __str__ = __repr__

    def _repr_html_(self) -> str | None:
        """Return the HTML that a notebook shows."""
        return notebook.html_of(self)


class Comparison(Document):
    """All results of a comparison."""

    kind: ClassVar[str] = "comparison"

    schema_name: Literal[
        "cascli.compare/1",
        "cascli.compare/1.1",
        "cascli.compare/1.2",
        "cascli.compare/1.3",
        "cascli.compare/1.4",
        "cascli.compare/1.5",
        "cascli.compare/1.6",
        "cascli.compare/1.7",
        "cascli.compare/1.8",
    ] = Field("cascli.compare/1.8", alias="schema")
    date: str | None = None
    """Start time in UTC (ISO 8601); None in older documents."""
    command: str | None = None
    """The command line, quoted for a shell; None if called from Python."""
    runs: list[Run]
    summary: list[Row]
    categories: dict[str, list[Row]] = Field(default_factory=dict)
    """Rows for each category of prompts, in order of appearance; empty if there are fewer than two categories."""
    explanation: Explanation | None = None
    """Why the fastest strategy that drafts is not faster."""
    profile: Profile | None = None
    """The pair's step times, measured separately from the runs."""
    draft_lengths: list[DraftLength] = Field(default_factory=list)
    """How long drafts should have been, for every way to speculate; empty if steps were not timed."""
    repeats: list[list[Repeat]] = Field(default_factory=list)
    """Totals by repeat, then by strategy; `runs` holds the traces of the first repeat."""
    spread: float | None = None
    """Interquartile range over median of the target's steps: how noisy the machine was."""
    schedule: Literal["fair", "sequential"] | None = None
    """Whether strategies ran concurrently in equal time slices (`fair`) or one after the other (`sequential`); None in
    older documents."""
    batch_size: int = 1
    """Number of a strategy's answers decoded concurrently; with 2 or more, times are shares of the batch's."""
    matching: Matching | None = None
    """How settings that meet a budget were found, if rules were compared at a budget."""

    def to_frame(self) -> pandas.DataFrame:
        """Return one row per strategy, with the columns of the csv; see docs/files.md.

        Raises:
            UsageError: pandas is not installed.
        """
        from cascli.analysis import tidy

        return tidy.frame(tidy.of_comparison(self))

    def __repr__(self) -> str:
        """Return one line; `.summary` has a row per strategy, `.runs` every answer."""
        names = ", ".join(row.strategy for row in self.summary[:NAMED])
        more = f" and {len(self.summary) - NAMED} more" if len(self.summary) > NAMED else ""
        return f"<Comparison of {names}{more}: {len(self.runs)} answers>"

    __str__ = __repr__


def uncompared(runs: Sequence[Run]) -> Comparison:
    """Wrap runs that were not compared with anything, for code that shows comparisons; one row per strategy."""
    summary = [row for each in by_strategy(runs).values() for row in summarise([[each]])]
    return Comparison(command=runs[0].command, runs=list(runs), summary=summary, batch_size=runs[0].batch_size)


def repeats_of(repeats: Sequence[Sequence[Sequence[Run]]]) -> list[list[Repeat]]:
    """Return the totals of each strategy in each repeat, from `repeats[repeat][strategy][prompt]`."""
    return [[_repeat(runs) for runs in columns] for columns in repeats]


def _repeat(runs: Sequence[Run]) -> Repeat:
    parts = [run.metrics.seconds for run in runs]
    totals = {name: sum(getattr(part, name) for part in parts) for name in Seconds.model_fields}
    return Repeat(strategy=runs[0].spec, tokens=sum(len(run.token_ids) for run in runs), seconds=Seconds(**totals))


def spread_of(repeats: Sequence[Sequence[Sequence[Run]]]) -> float | None:
    """Return the interquartile range over median of the steps of `target`; None for fewer than eight steps."""
    steps = [
        round_.seconds.verify
        for columns in repeats
        for runs in columns
        for run in runs
        if run.strategy == TARGET
        for round_ in run.rounds
    ]
    if len(steps) < 8:
        return None
    return (percentile(steps, 0.75) - percentile(steps, 0.25)) / median(steps)


def summarise(repeats: Sequence[Sequence[Sequence[Run]]]) -> list[Row]:
    """Return one row per strategy from `repeats[repeat][strategy][prompt]`."""
    first = repeats[0]
    base = next((i for i, runs in enumerate(first) if runs and runs[0].strategy == TARGET), None)
    answers = {runs[0].spec: _answered(runs) for runs in first if runs}
    return [_row(repeats, column, base, answers) for column in range(len(first))]


def by_category(repeats: Sequence[Sequence[Sequence[Run]]], categories: Mapping[str, str]) -> dict[str, list[Row]]:
    """Return the rows of each category of prompts, in order of appearance; empty if there are fewer than two.

    Args:
        repeats: as for `summarise`.
        categories: categories by prompt id.
    """

    def category_of(run: Run) -> str:
        return categories.get(run.prompt_id or "", "")

    names = list(dict.fromkeys(category_of(run) for runs in repeats[0][:1] for run in runs))
    if len(names) < 2:
        return {}
    return {
        name: summarise(
            [[[run for run in runs if category_of(run) == name] for runs in columns] for columns in repeats]
        )
        for name in names
    }


def _answered(runs: Sequence[Run]) -> list[Answered]:
    return [Answered.of([runs[i] for i in turns], place) for place, turns in enumerate(_by_prompt(runs))]


def _row(repeats: Sequence[Sequence[Sequence[Run]]], column: int, base: int | None, answers: Answers) -> Row:
    runs = repeats[0][column]
    every = [run for repeat in repeats for run in repeat[column]]
    metrics, totals = [run.metrics for run in runs], [run.metrics.seconds for run in every]
    tokens = sum(len(run.token_ids) for run in runs)
    cut = sum(run.finish_reason == "length" for run in runs)
    seconds = median([sum(run.metrics.seconds.total for run in repeat[column]) for repeat in repeats])
    ratios = [] if base is None else [_speed(repeat[column]) / _speed(repeat[base]) for repeat in repeats]
    return Row(
        strategy=runs[0].spec,
        oracle=runs[0].oracle,
        depends_on_rounds=runs[0].depends_on_rounds,
        exit=runs[0].exit,
        tokens=tokens,
        num_prompts=len(_by_prompt(runs)),
        num_answers=len(runs),
        answers_cut=cut,
        mean_answer_tokens=tokens / len(runs),
        share_cut=cut / len(runs),
        seconds=seconds,
        tokens_per_second=tokens / seconds if seconds > 0 else None,
        speed_vs_target=median(ratios) if ratios else None,
        **_scatter(repeats, column, base, ratios),
        target_calls_per_token=sum(m.target_calls for m in metrics) / tokens,
        draft_calls_per_token=sum(m.draft_calls for m in metrics) / tokens,
        **_acceptance(metrics),
        shared_mass=_shared_mass(runs),
        deferral_rate=_weighted_deferral(runs),
        **_loss(runs),
        **_agreement(runs, None if base is None else repeats[0][base]),
        **_latencies(every),
        other_share=sum(each.other for each in totals) / sum(each.total for each in totals),
        flops_per_token=_per_token([m.total_flops for m in metrics], tokens),
        # Answers of a batch share the passes that read weights.
        weight_bytes_per_token=_per_token([m.weight_bytes_read for m in metrics], tokens)
        if runs[0].batch_size == 1
        else None,
        peak_memory_bytes=max((run.metrics.peak_memory_bytes or 0 for run in every), default=0) or None,
        costs=answer_costs(runs[0].spec, answers),
    )


def _scatter(
    repeats: Sequence[Sequence[Sequence[Run]]], column: int, base: int | None, ratios: Sequence[float]
) -> dict[str, object]:
    """Return the fields of a row for the scatter of its speed: over prompts if there are several, else over repeats.

    The turns of a conversation do not count as separate prompts, since they share what is hard about it. If the times
    of prompts depend on each other, only repeats vary independently.
    """
    prompts, first = _by_prompt(repeats[0][column]), repeats[0][column][0]
    # In a batch prompts share their passes; with `remember` a prompt's drafts come from the answers to others.
    independent = first.batch_size == 1 and first.earlier_texts is None
    over = "prompts" if base is not None and len(prompts) > 1 and independent else "repeats"
    if base is not None and over == "prompts":
        interval = rate_ratio_interval(
            [(*_totals(repeats, column, turns), *_totals(repeats, base, turns)) for turns in prompts]
        )
        # A median over repeats is not the ratio of the prompts' own medians, which the interval is computed from.
        interval = interval and interval.around(median(ratios))
    else:
        interval = median_interval(ratios)
    if interval is None:
        return {"speed_interval": None}
    return {
        "speed_interval": (interval.low, interval.high),
        "speed_interval_kind": interval.kind,
        "speed_interval_over": over,
    }


def _acceptance(metrics: Sequence[Metrics]) -> dict[str, float | None]:
    """Return the fields of a row for how many drafted tokens were kept."""
    drafted = sum(m.num_draft_tokens for m in metrics)
    tested = sum(m.num_tested_draft_tokens or 0 for m in metrics)
    accepted = sum(m.num_accepted_draft_tokens for m in metrics)
    rounds = sum(m.num_rounds for m in metrics)
    return {
        "draft_acceptance_rate": accepted / drafted if drafted else None,
        "tested_acceptance_rate": accepted / tested if tested else None,
        "mean_acceptance_length": 1 + accepted / rounds if drafted else None,
    }


def _loss(runs: Sequence[Run]) -> dict[str, object]:
    """Return the fields of a row for how far the output distribution is from the target's."""
    tvs = [token.tv for run in runs for token in run.emitted]
    known = [tv for tv in tvs if tv is not None]
    whole = known and len(known) == len(tvs)
    lossless = [run.metrics.lossless for run in runs]
    return {
        "mean_tv_to_target": sum(known) / len(known) if whole else None,
        "max_tv_to_target": max(known) if whole else None,
        "lossless": None if None in lossless else all(lossless),
        "distances": total(run.metrics.distances for run in runs),
    }


def _agreement(runs: Sequence[Run], targets: Sequence[Run] | None) -> dict[str, object]:
    """Return the fields of a row for how many answers equal the target's."""
    if targets is None:
        return {"first_divergence": None, "same_as_target": None}
    pairs = [
        (run, target)
        for run, target in zip(runs, targets, strict=True)
        if run.prompt_token_ids == target.prompt_token_ids  # later turns follow each strategy's own answers
    ]
    alike = [_alike(run, target) for run, target in pairs]
    return {
        "first_divergence": first_divergence(*pairs[0]) if pairs else None,
        "answers": sum(same is not None for same in alike),
        "answers_same": alike.count(True),
        "same_as_target": False if False in alike else None if None in alike else True,
    }


def _latencies(every: Sequence[Run]) -> dict[str, Percentiles | None]:
    """Return the fields of a row for the seconds of its parts, from the runs of all repeats."""
    alone = [run for run in every if run.batch_size == 1]  # a batch's times are shares of it, and not latencies
    return {
        "ttft": percentiles([run.metrics.ttft_seconds for run in every]),
        "seconds_per_token": percentiles([run.metrics.seconds_per_token for run in alone]),
        "round_seconds": percentiles([round_.seconds.total for run in alone for round_ in run.rounds[1:]]),
    }


def _totals(repeats: Sequence[Sequence[Sequence[Run]]], column: int, turns: Sequence[int]) -> tuple[float, float]:
    """Return tokens and seconds of a prompt's turns, medians over repeats."""
    runs = [[repeat[column][i] for i in turns] for repeat in repeats]
    tokens = median([float(sum(len(run.token_ids) for run in each)) for each in runs])
    return tokens, median([sum(run.metrics.seconds.total for run in each) for each in runs])


def _by_prompt(runs: Sequence[Run]) -> list[list[int]]:
    """Return the indices of each prompt's turns."""
    groups: dict[object, list[int]] = {}
    for place, prompt in enumerate(prompts_of(runs)):
        groups.setdefault(prompt, []).append(place)
    return list(groups.values())


def _per_token(values: Sequence[float | None], tokens: int) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / tokens if len(known) == len(values) else None


def _speed(runs: Sequence[Run]) -> float:
    return sum(len(run.token_ids) for run in runs) / sum(run.metrics.seconds.total for run in runs)


def _shared_mass(runs: Sequence[Run]) -> float | None:
    """Return the mean over the draft model's steps, each of which computed one row of logits."""
    known = [(m.shared_mass, m.draft_calls) for m in (run.metrics for run in runs) if m.shared_mass is not None]
    return sum(mass * calls for mass, calls in known) / sum(calls for _, calls in known) if known else None


def _weighted_deferral(runs: Sequence[Run]) -> float | None:
    rates = [(run.metrics.deferral_rate, 1 if run.handover else len(run.token_ids)) for run in runs]
    known = [(rate, weight) for rate, weight in rates if rate is not None]
    return sum(rate * weight for rate, weight in known) / sum(weight for _, weight in known) if known else None


def _alike(run: Run, target: Run) -> bool | None:
    """Return whether two answers are the same; None if one of them was interrupted before they differed."""
    if first_divergence(run, target) is not None:
        return False
    whole = "interrupted" not in (run.finish_reason, target.finish_reason)
    return True if whole or run is target else None


def first_divergence(run: Run, target: Run) -> int | None:
    """Return the index of the first token that differs; the shorter length if one answer is a prefix of the other.

    None if no token differs; an interrupted answer is compared up to the interruption.
    """
    pairs = zip(run.token_ids, target.token_ids, strict=False)
    shorter, longer = sorted((run, target), key=lambda each: len(each.token_ids))
    ended = len(shorter.token_ids) < len(longer.token_ids) and shorter.finish_reason != "interrupted"
    same = len(shorter.token_ids) if ended else None
    return next((i for i, (ours, theirs) in enumerate(pairs) if ours != theirs), same)
