"""Turn records into rows: quality with its uncertainty, together with every cost."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from math import fsum
from statistics import fmean
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field, computed_field

from cascli import notebook
from cascli.analysis import tidy
from cascli.analysis.answer_costs import AnswerCosts, Answered, Answers, answer_costs
from cascli.analysis.corpus_bleu import bleu_difference_interval, bleu_interval, corpus_bleu
from cascli.analysis.distances import LOSSLESS_TOLERANCE, total
from cascli.analysis.random_deferral import Scored, against_random
from cascli.analysis.statistics import (
    Interval,
    IntervalKind,
    difference_interval,
    mean_interval,
    rate_ratio_interval,
    weighted_mean,
)
from cascli.settings import TARGET
from cascli.strategies import shown
from cascli.sweeps.plan import DRAFT, LOSSLESS, SweepPlan
from cascli.sweeps.records import Header, Record, Records
from cascli.trace import Data, Distances, Document

if TYPE_CHECKING:
    import pandas


QUALITIES = ("quality", "quality_vs_target", "quality_vs_random")
"""Quality fields of a row, each of which has an interval."""


class SweepRow(Data):
    """One strategy at one temperature, over all prompts, seeds and repeats."""

    strategy: str
    temperature: float
    family: str
    """Name of the strategy, and of its rule if it has one; rows on the same curve of a plot share it."""
    answers: int
    """Number of prompts answered, over all seeds and repeats; the turns of a conversation count as one."""
    errors: int
    """Number of prompts that failed, over all seeds and repeats; they are excluded from all other numbers."""
    num_prompts: int | None = None
    """Number of different prompts answered; None in older documents."""
    num_answers: int | None = None
    """Number of answers written, counting every turn and repeat; None in older documents."""
    batch_size: int | None = None
    """Number of answers decoded concurrently; None if records differ in it, and in older documents.

    If above 1, times are shares of a batch's time, and `tokens_per_second` is throughput.
    """
    quality: float | None
    """Mean over prompts of their answers' mean score, or BLEU of all answers with the metric `corpus-bleu`."""
    quality_interval: tuple[float, float] | None
    """Interval of `quality` over prompts, which vary independently; see `cascli.analysis.statistics` and
    `corpus_bleu`."""
    quality_interval_kind: IntervalKind | None = None
    """A 95% interval, the range of fewer than six prompts, or `no scatter` if these all have the same quality."""
    quality_vs_target: float | None
    """Difference in quality from the target's answers to the same prompts with the same seeds."""
    quality_vs_target_interval: tuple[float, float] | None
    quality_vs_target_interval_kind: IntervalKind | None = None
    """A 95% interval, the range of fewer than six prompts, or `no scatter` if all prompts gave the same difference."""
    quality_vs_random: float | None = None
    """Difference in quality from random deferral with the same number of target calls per answer: a share of the
    answers, drawn at random, is left to `draft`, and the cheapest lossless speculation that ran, or `target`, writes
    the others.

    None if one of these did not run, with `corpus-bleu`, for `draft` and lossless strategies, and in older documents.
    """
    quality_vs_random_interval: tuple[float, float] | None = None
    quality_vs_random_interval_kind: IntervalKind | None = None
    """A 95% interval, the range of fewer than six prompts, or `no scatter` if all prompts gave the same difference."""
    tokens: int
    mean_answer_tokens: float | None = None
    """`tokens` over `num_answers`."""
    answers_cut: int | None = None
    """Number of answers that ended at the length limit."""
    share_cut: float | None = None
    """Share of answers that ended at the length limit."""
    seconds: float | None = None
    """Time of all answers."""
    tokens_per_second: float | None
    speed_vs_target: float | None
    """Tokens per second over the target's, on the answers that both wrote to the same prompts with the same seeds."""
    speed_interval: tuple[float, float] | None = None
    """Interval of `speed_vs_target` over prompts; None in older documents, and in batches, where prompts share the time
    of their passes."""
    speed_interval_kind: IntervalKind | None = None
    """A 95% interval, the range of fewer than six prompts, or `no scatter` if all prompts gave the same speed."""
    target_calls_per_token: float | None
    draft_calls_per_token: float | None
    flops_per_token: float | None
    draft_acceptance_rate: float | None = None
    """Accepted over drafted tokens."""
    tested_acceptance_rate: float | None = None
    """Accepted over tested drafted tokens; tokens after a rejection were not tested. None with `verify=block`."""
    mean_acceptance_length: float | None = None
    """1 + accepted tokens / rounds; None for records made before rounds were counted."""
    rejection_rate: float | None
    """Rejected over tested drafted tokens; None for records made before tested tokens were counted."""
    deferral_rate: float | None
    mean_tv: float | None
    """The older name of `mean_tv_to_target`."""
    log_likelihood: float | None
    """Mean log-probability per token of the answers under the target, in nats."""
    costs: AnswerCosts | None = None
    """What the answers cost compared with those of other strategies; None in older documents, and for older folders."""
    distances: Distances | None = None
    """Distances from both models, over all answers; None if any of them has none."""

    prompts_compared: int | None = None
    """Number of prompts that `target` answered too, counting each seed and repeat; None in older documents."""
    prompts_same: int | None = None
    """Number of compared prompts whose answers equal the target's, token by token."""

    @property
    def conversations(self) -> int:
        """The number that `costs` and nats are counted over: prompts by seed and repeat, the turns of each together."""
        return self.answers

    @property
    def same_as_target(self) -> bool | None:
        """Whether all compared prompts have the target's answers; None without `target`."""
        return self.prompts_same == self.prompts_compared if self.prompts_compared else None

    @property
    def lossless(self) -> bool | None:
        """Whether TV(pi, p) was 0 at every token, up to rounding; None where it is unknown."""
        return None if self.distances is None else self.distances.max_tv <= LOSSLESS_TOLERANCE

    @computed_field  # type: ignore[prop-decorator]
    @property
    def mean_tv_to_target(self) -> float | None:
        """Mean TV(pi, p), under the name that comparisons use."""
        return self.mean_tv

    def __repr__(self) -> str:
        """One line."""
        quality = "" if self.quality is None else f", quality {self.quality:.3f}"
        speed = "" if self.speed_vs_target is None else f", {self.speed_vs_target:.2f}x"
        return f"<SweepRow {self.strategy}, T = {self.temperature:g}: {self.answers} answers{quality}{speed}>"

    __str__ = __repr__

    def _repr_html_(self) -> str | None:
        """HTML for a notebook."""
        return notebook.html_of(self)


class SweepRows(list[SweepRow]):
    """The table of a sweep and what it was made from."""

    def __init__(self, rows: Iterable[SweepRow], header: Header | None = None) -> None:
        super().__init__(rows)
        self.header = header

    def __repr__(self) -> str:
        """One line."""
        return f"<SweepRows: {len(self)}>"

    def _repr_html_(self) -> str | None:
        """HTML for a notebook."""
        return notebook.html_of(self)

    def to_frame(self) -> pandas.DataFrame:
        """One row per strategy and temperature, with the columns of results.csv: see docs/files.md.

        Raises:
            UsageError: pandas is not installed.
        """
        return tidy.frame(tidy_rows(self, self.header))


class SweepTable(Document):
    """The table of a sweep as `sweep --json` prints it."""

    kind: ClassVar[str] = "sweep table"

    schema_name: Literal[
        "cascli.sweep-table/1",
        "cascli.sweep-table/1.1",
        "cascli.sweep-table/1.2",
        "cascli.sweep-table/1.3",
        "cascli.sweep-table/1.4",
        "cascli.sweep-table/1.5",
        "cascli.sweep-table/1.6",
        "cascli.sweep-table/1.7",
    ] = Field("cascli.sweep-table/1.7", alias="schema")
    metric: str
    """How answers are scored."""
    rows: list[SweepRow]
    categories: dict[str, list[SweepRow]] = Field(default_factory=dict)
    """Rows of each category of prompts, in the order in which categories appear; empty if there are fewer than two."""
    made_from: Header | None = None
    """The folder's sweep.json; None in older documents."""

    @classmethod
    def of(cls, header: Header, records: Records) -> SweepTable:
        """Make the table of a folder's answers, in the order of its plan."""
        plan = header.full_plan()
        made = in_order(records.read(), header)
        groups, counted = by_category(made, plan), header.counted(made)
        return cls(metric=header.metric, rows=rows(made, plan), categories=groups, made_from=counted)


def in_order(records: Iterable[Record], header: Header) -> list[Record]:
    """The records prompt by prompt, strategies side by side, in the plan's order, whatever finished first.

    Those of prompts or strategies that the header does not name follow, in the order in which they were made.
    """
    every = list(records)
    prompts = {problem: place for place, problem in enumerate(header.prompts)}
    plan = header.full_plan() if every else None
    cells = {cell.key: place for place, cell in enumerate(plan.cells() if plan else [])}
    return sorted(
        every,
        key=lambda each: (prompts.get(each.problem, len(prompts)), cells.get(each.cell.key, len(cells))),
    )


def tidy_rows(rows: Iterable[SweepRow], header: Header | None) -> tidy.Table:
    """The rows with the columns of every table; without a header, those on what they were made from are empty."""
    shared = {} if header is None else _shared(header)
    return tidy.table("sweep", [shared | _columns(row) for row in rows])


def tidy_categories(groups: Mapping[str, Iterable[SweepRow]], header: Header) -> tidy.Table:
    """The rows of all categories in one table, with the category as its first column."""
    shared = _shared(header)
    table = tidy.table("sweep", [shared | _columns(row) for rows in groups.values() for row in rows])
    names = [name for name, rows in groups.items() for _ in rows]
    records: list[tidy.Record] = [{"category": name, **each} for name, each in zip(names, table.records, strict=True)]
    return tidy.Table({"category": str} | table.columns, records)


def _shared(header: Header) -> tidy.Record:
    plan = header.plan
    circumstances = tidy.Circumstances.of_loaded(header.pair or str(plan.pair), header.shared_environment, header.date)
    return circumstances.columns() | {
        "cascli": None if "cascli" in header.differing else header.version,
        "task": plan.task.kind,
        "metric": header.metric,
        "top_k": plan.top_k,
        "top_p": plan.top_p,
        "max_new_tokens": plan.max_new_tokens,
    }


def _columns(row: SweepRow) -> tidy.Record:
    values = row.model_dump(exclude={"family", "answers", "mean_tv", "rejection_rate", "costs", "distances"})
    values |= tidy.cost_columns(row.costs) | tidy.distance_columns(row.distances, row.conversations)
    values["num_conversations"] = row.conversations
    values |= tidy.interval_columns("speed_vs_target", values.pop("speed_interval"), values.pop("speed_interval_kind"))
    for name in QUALITIES:
        low_high, kind = values.pop(f"{name}_interval"), values.pop(f"{name}_interval_kind")
        values |= tidy.interval_columns(name, low_high, kind)
    return values | tidy.strategy_columns(row.strategy)


def rows(records: Iterable[Record], plan: SweepPlan | None = None) -> list[SweepRow]:
    """One row per strategy and temperature, in the plan's order; without a plan, in the order of the records."""
    places = plan.cells() if plan else []
    groups: dict[tuple[str, float], list[Record]] = {(cell.strategy, cell.temperature): [] for cell in places}
    for record in records:
        groups.setdefault((record.cell.strategy, record.cell.temperature), []).append(record)
    groups = {key: group for key, group in groups.items() if group}
    answers: dict[float, dict[str, list[Answered]]] = defaultdict(dict)
    for (spec, temperature), group in groups.items():
        answers[temperature][spec] = _answered(group)
    all_rows = [_row(key, group, groups.get((TARGET, key[1]), []), answers[key[1]]) for key, group in groups.items()]
    return [row.model_copy(update=_against_random(row, all_rows, groups)) for row in all_rows]


def _against_random(
    row: SweepRow, all_rows: Sequence[SweepRow], groups: Mapping[tuple[str, float], Sequence[Record]]
) -> dict[str, object]:
    """Fields of the difference from random deferral; empty where it is unknown."""

    def scored(spec: str) -> dict[str, Scored]:
        good = [each for each in groups[spec, row.temperature] if each.error is None]
        return _scored(good)

    exact = cheapest_lossless([each for each in all_rows if each.temperature == row.temperature])
    if exact is None or row.strategy == DRAFT or is_lossless(row) or calls_per_answer(row) is None:
        return {}
    if (DRAFT, row.temperature) not in groups or any(each.counts for each in groups[row.strategy, row.temperature]):
        return {}
    result = against_random(scored(row.strategy), scored(exact.strategy), scored(DRAFT))
    if result is None:
        return {}
    return {"quality_vs_random": result[0], **_interval("quality_vs_random_interval", result[1])}


def _scored(records: Iterable[Record]) -> dict[str, Scored]:
    """Mean quality and target calls of each prompt."""
    by_problem: dict[str, list[Scored]] = defaultdict(list)
    for record in records:
        if record.quality is not None:
            by_problem[record.problem].append(Scored(record.quality, record.target_calls))
    return {problem: Scored(*map(fmean, zip(*scores, strict=True))) for problem, scores in by_problem.items()}


def _answered(records: Iterable[Record]) -> list[Answered]:
    """What the answers cost; empty for older folders, whose records lack part of it."""
    good = [record for record in records if record.error is None]
    if any(record.rounds is None or record.looped is None for record in good):
        return []
    return [
        Answered(
            prompt=record.problem,
            seed=record.cell.draw,
            tokens=len(record.token_ids),
            target_calls=record.target_calls,
            rounds=record.rounds_known or 0,
            accepted=record.accepted,
            looped=record.looped or 0,
            cut=bool(_cut(record)),
            turns=record.turns or 1,
            seconds=record.seconds if record.batch_size == 1 else None,
        )
        for record in good
    ]


def by_category(records: Iterable[Record], plan: SweepPlan | None = None) -> dict[str, list[SweepRow]]:
    """Rows of each category of prompts, in the order in which categories appear; empty if there are fewer than two."""
    every = list(records)
    # Older records of failed answers are without their prompt's category.
    known = {record.problem: record.category for record in every if record.error is None}
    groups: dict[str, list[Record]] = defaultdict(list)
    for record in every:
        category = known.get(record.problem, record.category)
        if record.error is None or category in known.values():
            groups[category].append(record)
    return {name: rows(group, plan) for name, group in groups.items()} if len(groups) > 1 else {}


def family(spec: str) -> str:
    """Family of a strategy: `speculative-cascade:rule=opt,alpha=0.1,k=4` belongs to `speculative-cascade opt`.

    Rules or strategies with different options are different families.
    """
    name, _, rule, options, _ = shown(spec)
    return " ".join([name, *([rule] if rule else []), *(f"{key}={value}" for key, value in options.items())])


def _row(key: tuple[str, float], group: Sequence[Record], target: Sequence[Record], every: Answers) -> SweepRow:
    good = [record for record in group if record.error is None]
    theirs = [record for record in target if record.error is None]
    tokens = sum(len(record.token_ids) for record in good)
    answers = sum(record.turns or 1 for record in good)
    cut = sum(_cut(record) for record in good)
    drafted, accepted = (sum(getattr(record, name) for record in good) for name in ("drafted", "accepted"))
    rejection = _rejection(good)
    both = _pairs(good, theirs)
    return SweepRow(
        strategy=key[0],
        temperature=key[1],
        family=family(key[0]),
        answers=len(good),
        errors=len(group) - len(good),
        num_prompts=len({record.problem for record in good}),
        num_answers=answers,
        batch_size=good[0].batch_size if len({record.batch_size for record in good}) == 1 else None,
        **_quality(good, theirs, both),
        tokens=tokens,
        mean_answer_tokens=tokens / answers if answers else None,
        answers_cut=cut,
        share_cut=cut / answers if answers else None,
        seconds=fsum(record.seconds or 0.0 for record in good) or None,
        tokens_per_second=_speed(good),
        **_speed_vs_target(both),
        target_calls_per_token=sum(record.target_calls for record in good) / tokens if tokens else None,
        draft_calls_per_token=sum(record.draft_calls for record in good) / tokens if tokens else None,
        flops_per_token=_flops(good, tokens),
        draft_acceptance_rate=accepted / drafted if drafted else None,
        tested_acceptance_rate=None if rejection is None else 1 - rejection,
        mean_acceptance_length=_acceptance_length(good),
        rejection_rate=rejection,
        deferral_rate=_deferral(key[0], good),
        mean_tv=_weighted(good, "mean_tv"),
        log_likelihood=_weighted([record for record in good if record.token_ids], "log_likelihood"),
        costs=answer_costs(key[0], every),
        distances=total(record.distances for record in good),
        prompts_compared=len(both),
        prompts_same=sum(ours.token_ids == target.token_ids for ours, target in both),
    )


Pairs = list[tuple[Record, Record]]
"""Answers, each with the target's."""


def _pairs(records: Sequence[Record], target: Sequence[Record]) -> Pairs:
    """Pair the records with the target's for the same prompt, seed and repeat."""
    theirs = {(record.problem, record.cell.draw): record for record in target}
    keys = [(record.problem, record.cell.draw) for record in records]
    return [(record, theirs[key]) for record, key in zip(records, keys, strict=True) if key in theirs]


def _speed_vs_target(both: Pairs) -> dict[str, object]:
    """Speed over the target's, if both ran at the same batch size, and its interval over prompts."""
    speeds = [_speed(records) for records in zip(*both, strict=True)]
    sizes = {record.batch_size for pair in both for record in pair}
    if len(sizes) != 1 or not all(speeds):
        return {"speed_vs_target": None}
    ours, theirs = speeds
    columns: dict[str, object] = {"speed_vs_target": (ours or 0.0) / (theirs or 1.0)}
    if sizes != {1}:
        return columns
    groups: dict[str, Pairs] = defaultdict(list)
    for pair in both:
        groups[pair[0].problem].append(pair)
    halves = [[*zip(*pairs, strict=True)] for pairs in groups.values()]
    totals = [(_tokens(ours), _seconds(ours), _tokens(theirs), _seconds(theirs)) for ours, theirs in halves]
    if not all(value for each in totals for value in each):
        return columns
    return columns | _interval("speed_interval", rate_ratio_interval(totals))


def _quality(records: Sequence[Record], target: Sequence[Record], both: Pairs) -> dict[str, object]:
    """Quality, and its difference from the target's on the same prompts: the mean score, or BLEU of all answers."""
    if any(record.counts for record in (*records, *target)):
        ours, theirs = (_counts([pair[side] for pair in both]) for side in (0, 1))
        return _corpus_quality(_counts(records), ours, theirs)
    scored = _by_problem((record.problem, record.quality) for record in records)
    gains = list(_by_problem((ours.problem, _gain(ours, theirs)) for ours, theirs in both).values())
    return {
        "quality": _mean(list(scored.values())),
        "quality_vs_target": _mean(gains),
        **_interval("quality_interval", mean_interval(list(scored.values()))),
        **_interval("quality_vs_target_interval", difference_interval(gains)),
    }


def _corpus_quality(
    every: dict[str, list[int]], ours: dict[str, list[int]], theirs: dict[str, list[int]]
) -> dict[str, object]:
    """BLEU of all answers, and its difference from the target's over the prompts that both answered."""
    mine, base = ([half[problem] for problem in ours if problem in theirs] for half in (ours, theirs))
    return {
        "quality": corpus_bleu(list(every.values())) if every else None,
        "quality_vs_target": corpus_bleu(mine) - corpus_bleu(base) if mine else None,
        **_interval("quality_interval", bleu_interval(list(every.values()))),
        **_interval("quality_vs_target_interval", bleu_difference_interval(mine, base)),
    }


def _counts(records: Iterable[Record]) -> dict[str, list[int]]:
    """Counts of each prompt, summed over seeds and repeats, in the order of prompt ids."""
    counts: dict[str, list[int]] = {}
    for record in sorted(records, key=lambda record: record.problem):
        if record.counts:
            before = counts.get(record.problem, [0] * len(record.counts))
            counts[record.problem] = [a + b for a, b in zip(before, record.counts, strict=True)]
    return counts


def _gain(ours: Record, theirs: Record) -> float | None:
    return None if ours.quality is None or theirs.quality is None else ours.quality - theirs.quality


def _by_problem(values: Iterable[tuple[str, float | None]]) -> dict[str, float]:
    """Mean of each prompt's known values over seeds and repeats: the unit of resampling is the prompt."""
    known: dict[str, list[float]] = defaultdict(list)
    for problem, value in values:
        if value is not None:
            known[problem].append(value)
    return {problem: fmean(each) for problem, each in known.items()}


def _speed(records: Sequence[Record]) -> float | None:
    """Tokens per second; None if batch sizes differ, since times of single answers and of batches do not mix."""
    if len({record.batch_size for record in records}) > 1:
        return None
    seconds = _seconds(records)
    return _tokens(records) / seconds if seconds else None


def _seconds(records: Iterable[Record]) -> float:
    return fsum(record.seconds or 0.0 for record in records)  # the same sum in any order


def _tokens(records: Iterable[Record]) -> int:
    return sum(len(record.token_ids) for record in records)


def _flops(records: Sequence[Record], tokens: int) -> float | None:
    known = [record.flops for record in records if record.flops is not None]
    return fsum(known) / tokens if tokens and len(known) == len(records) else None


def _rejection(records: Sequence[Record]) -> float | None:
    drafting = [record for record in records if record.drafted]
    if not drafting or any(record.tested is None for record in drafting):
        return None
    tested = sum(record.tested or 0 for record in drafting)
    return (tested - sum(record.accepted for record in drafting)) / tested


def _cut(record: Record) -> int:
    """Number of a record's answers that ended at the limit; for older records only the last turn's is known."""
    return record.cut if record.cut is not None else int(record.finish_reason == "length")


def _acceptance_length(records: Sequence[Record]) -> float | None:
    if not any(record.drafted for record in records) or any(record.rounds is None for record in records):
        return None
    rounds = sum(record.rounds_known or 0 for record in records)
    return 1 + sum(record.accepted for record in records) / rounds if rounds else None


def _deferral(spec: str, records: Sequence[Record]) -> float | None:
    """Mean over tokens, or over answers if the strategy decides once per answer."""
    if shown(spec).name != "cascade":
        return _weighted(records, "deferral_rate")
    rates = [record.deferral_rate for record in records if record.deferral_rate is not None]
    return fsum(rates) / len(rates) if rates else None


def _weighted(records: Sequence[Record], name: str) -> float | None:
    """Mean over tokens of a field that is a mean within each record; None if any record lacks it."""
    return weighted_mean([getattr(each, name) for each in records], [len(each.token_ids) for each in records])


def _mean(values: Sequence[float]) -> float | None:
    return fmean(values) if values else None


def _interval(name: str, interval: Interval | None) -> dict[str, object]:
    """The two fields of a row that hold an interval."""
    return {name: interval and (interval.low, interval.high), f"{name}_kind": interval and interval.kind}


def is_lossless(row: SweepRow) -> bool:
    """Whether the strategy follows the target's distribution by design, whatever the run measured."""
    return row.strategy.partition(":")[0] in LOSSLESS


def cheapest_lossless(rows: Iterable[SweepRow]) -> SweepRow | None:
    """The lossless strategy with the fewest target calls per answer, among those that answered the most prompts."""
    known = [(row, calls) for row in rows if is_lossless(row) and (calls := calls_per_answer(row)) is not None]
    most = max((row.num_prompts or row.answers for row, _ in known), default=0)
    complete = [each for each in known if (each[0].num_prompts or each[0].answers) == most]
    return min(complete, key=lambda each: each[1])[0] if complete else None


def calls_per_answer(row: SweepRow) -> float | None:
    """Target calls per answer, all turns of a prompt together; None where unknown."""
    if row.costs is not None:
        return row.costs.target_calls_per_answer
    known = row.target_calls_per_token is not None and row.answers
    return (row.target_calls_per_token or 0.0) * row.tokens / row.answers if known else None


def front(rows: Sequence[SweepRow], cost: Callable[[SweepRow], float | None] = calls_per_answer) -> list[SweepRow]:
    """The Pareto front: rows that no other row beats in quality at the same or a lower cost; cheapest first.

    Rows that failed on prompts which others answered are not on it: those may be the hard ones.
    """
    valued = [(value, row) for row in rows if row.quality is not None and (value := cost(row)) is not None]
    most = max((row.num_prompts or row.answers for _, row in valued), default=0)
    known = [(value, row) for value, row in valued if (row.num_prompts or row.answers) == most]
    ordered = sorted(known, key=lambda each: (each[0], -(each[1].quality or 0.0)))
    best, kept = -1.0, []
    for _, row in ordered:
        if (row.quality or 0.0) > best:
            best = row.quality or 0.0
            kept.append(row)
    return kept
