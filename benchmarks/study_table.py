"""The tables of docs/results.md: all strategies of each study, and how far apart the two models are on each task."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

from cascli.analysis.advice import Advice
from cascli.analysis.answer_costs import Ratio, paired
from cascli.analysis.digits import bounds_apart, compared
from cascli.analysis.statistics import IntervalKind
from cascli.render.marks import short_name
from cascli.render.numbers import DASH, number, percent, rate
from cascli.render.sweep_words import temperature_of
from cascli.strategies import parse
from cascli.strategies.base import Speculating
from cascli.sweeps.plan import with_strategies
from cascli.sweeps.records import Record, Records
from cascli.sweeps.table import SweepRow, calls_per_answer, is_lossless, rows
from cascli.trace import block_length

HEADINGS = (
    "strategy", "solved", "against target", "against random deferral", "calls per answer",
    "draft steps per answer", "cost at c = .1", "c = .2", "here", "tokens", "cut", "loops", "drafts passed", "mean TV",
)  # fmt: skip
PRICES = (0.1, 0.2)
"""Costs of a draft step, in target steps; with them an answer's cost follows from counts, a check costing one step."""
EVERY_ROUND = frozenset(
    {
        "study-number-sorting", "study-reversed-words", "study-reversed-words-float32", "study-reversed-words-matched",
        "study-word-problems",
    }
)  # fmt: skip
"""Studies from when a rule that reads q took a draft step after the block in every round."""

strategy_of = cache(parse)
"""Cached: parsing takes longer than the rest of a table, so it is done per strategy instead of per record."""


class Price(NamedTuple):
    """The cost of a draft step and of checks of 1, 2, .. tokens, in target steps."""

    step: float
    check: Sequence[float] | None = None
    """None if every check costs one step."""

    def of(self, record: Record) -> float | None:
        """Return the cost of an answer; None if checks are longer than those timed, or vary in length (`k=auto`)."""
        params = strategy_of(record.cell.strategy).params
        drafted = block_length(params)
        if self.check is not None and (params.get("k") == "auto" or drafted >= len(self.check)):
            return None
        check = 1.0 if self.check is None else self.check[drafted]
        return record.target_calls * check + self.step * record.draft_calls


class Cost(NamedTuple):
    """The cost of an answer, and its ratio to the cheapest lossless strategy at this price, paired by problem."""

    mean: float
    over_lossless: Ratio | None
    """None for lossless strategies."""


def study_table(folders: Sequence[Path]) -> str:
    """Return one table for each temperature of each study, from its records."""
    return "\n\n".join(_study(folder) for folder in folders) or "No study yet."


def _study(folder: Path) -> str:
    records = Records(folder)
    header = records.header()
    answers = [record for record in records.read() if record.error is None]
    if folder.name in EVERY_ROUND:
        answers = [with_late_steps(record) for record in answers]
    found = rows(answers, with_strategies(header.plan, header.added()))
    about = (
        f"### `{folder.name}`\n\n{header.plan.task.dataset or header.plan.task.kind},"
        f" {max(row.num_prompts or 0 for row in found)} problems, pair {header.pair},"
        f" {header.plan.dtype}, at most {header.plan.max_new_tokens} tokens,"
        f" {(header.date or '')[:10]}."
    )
    measured = price_of(folder.parent / f"advice-{header.plan.dtype}.json")
    prices = [*map(Price, PRICES), measured]
    parts = [about]
    for temperature in sorted({row.temperature for row in found}):
        here = [row for row in found if row.temperature == temperature]
        costs = [{} if price is None else costs_at(price, here, answers) for price in prices]
        lines = [_line(row, [each.get(row.strategy) for each in costs]) for row in here]
        head = [f"| {' | '.join(HEADINGS)} |", "| --- |" + " ---: |" * (len(HEADINGS) - 1)]
        parts.append("\n".join([f"At {temperature_of(temperature)}:", "", *head, *lines]))
    return "\n\n".join(parts)


def with_late_steps(record: Record) -> Record:
    """Return an older record with an upper bound on today's draft steps, which come only after blocks that passed.

    Nothing else differs. Whether the last block of an answer passed is not known; it counts as passed. With a stop, or
    without the draft model, nothing is subtracted.
    """
    strategy = strategy_of(record.cell.strategy)
    if not isinstance(strategy, Speculating) or not strategy.verification_rule.reads_draft:
        return record
    if not strategy.needs_draft or strategy.stop.reads is not None:
        return record
    whole = (record.acceptance_histogram or [0])[-1]
    steps = record.draft_calls - record.rounds + min(whole + (record.turns or 1), record.rounds)
    return record.model_copy(update={"draft_calls": steps})


def price_of(path: Path) -> Price | None:
    """Return the measured costs of steps and checks from saved advice; None if there is none."""
    if not path.exists():
        return None
    machine = Advice.from_json(path.read_text(encoding="utf-8")).machine
    return Price(machine.c, machine.v)


def costs_at(price: Price, here: Sequence[SweepRow], records: Sequence[Record]) -> dict[str, Cost]:
    """Return the cost of the answers of each strategy at one temperature and price, where it is known."""
    each: dict[str, dict[str, float]] = {}
    for row in here:
        mine = [r for r in records if (r.cell.strategy, r.cell.temperature) == (row.strategy, row.temperature)]
        costs = {record.problem: price.of(record) for record in mine}
        known = {problem: cost for problem, cost in costs.items() if cost is not None}
        if known and len(known) == len(costs):
            each[row.strategy] = known
    exact = [row.strategy for row in here if is_lossless(row) and row.strategy in each]
    best = min(exact, key=lambda name: fmean(each[name].values()), default=None)
    return {
        name: Cost(fmean(costs.values()), None if best is None or name in exact else _over(costs, each[best]))
        for name, costs in each.items()
    }


def _over(costs: dict[str, float], reference: dict[str, float]) -> Ratio:
    return paired([[(cost, reference[problem])] for problem, cost in costs.items() if problem in reference])


def steps_per_answer(row: SweepRow) -> float | None:
    """Return the draft model's steps per answer."""
    per_token = row.draft_calls_per_token
    return None if per_token is None or not row.answers else per_token * row.tokens / row.answers


def _line(row: SweepRow, costs: Sequence[Cost | None]) -> str:
    cells = [
        short_name(row.strategy),
        _with(row.quality, row.quality_interval, row.quality_interval_kind),
        DASH
        if row.strategy == "target"
        else _with(row.quality_vs_target, row.quality_vs_target_interval, row.quality_vs_target_interval_kind, "+"),
        _with(row.quality_vs_random, row.quality_vs_random_interval, row.quality_vs_random_interval_kind, "+"),
        number(calls_per_answer(row), 1),
        number(steps_per_answer(row), 1),
        *map(_priced, costs),
        number(row.mean_answer_tokens, 1),
        DASH if row.share_cut is None else percent(row.share_cut),
        DASH if row.costs is None else percent(row.costs.looped_share),
        rate(row.tested_acceptance_rate),
        number(row.mean_tv, 3),
    ]
    return f"| {' | '.join(cells)} |"


def _priced(cost: Cost | None) -> str:
    """Return a cost and, for a lossy strategy, its ratio to the cheapest lossless one, bold if beyond chance."""
    if cost is None:
        return DASH
    ratio = cost.over_lossless
    if ratio is None or ratio.interval is None or ratio.interval_kind != "95%":
        return f"{cost.mean:.1f}"
    shown = f"**{compared(ratio.of_means, ratio.interval, 1)}x**" if ratio.differs else f"{ratio.of_means:.2f}x"
    return f"{cost.mean:.1f}, {shown} ({bounds_apart(ratio.interval, 1, ' to ')})"


def _with(value: float | None, interval: tuple[float, float] | None, kind: IntervalKind | None, sign: str = "") -> str:
    """Return a value and its 95% interval in one cell, bold if beyond chance."""
    if value is None:
        return DASH
    known = interval is not None and kind == "95%"
    bounds = f" ({bounds_apart(interval, 0 if sign else None, ' to ')})" if interval is not None and known else ""
    beyond = bool(sign) and interval is not None and known and not interval[0] <= 0 <= interval[1]
    shown = f"{value:{sign}.3f}"
    return (f"**{shown}**" if beyond else shown) + bounds


def gaps_table(paths: Sequence[Path]) -> str:
    """Return one line per task, the widest gap first."""
    return "\n\n".join(_gaps(json.loads(path.read_text(encoding="utf-8")), path) for path in paths) or "Not measured."


def _gaps(found: dict[str, Any], path: Path) -> str:
    lines = [
        f"`benchmarks/results/{path.name}`: pair {found['pair']}, greedy, at most {found['max_new_tokens']} tokens.",
        "",
        "| task | problems | draft | target | gap | tokens draft | tokens target | cut target |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for task in sorted(found["tasks"], key=lambda each: -(each["gap"] or 0.0)):
        gap = number(task["gap"], 2)
        if task["low"] is not None and task["kind"] == "95%":
            gap += f" ({task['low']:.2f} to {task['high']:.2f})"
        cells = [
            task["task"], str(task["problems"]), number(task["draft"], 2), number(task["target"], 2), gap,
            number(task["tokens draft"], 0), number(task["tokens target"], 0), f"{task['cut target']:.0%}",
        ]  # fmt: skip
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)
