"""The tables of docs/results.md: every strategy of a study, and how far the two models are apart by task."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cascli.analysis.advice import Advice
from cascli.analysis.replay import Machine
from cascli.analysis.statistics import Kind
from cascli.render.marks import short_name
from cascli.render.numbers import DASH, number
from cascli.render.sweep_words import temperature_of
from cascli.strategies import parse
from cascli.sweeps.plan import with_strategies
from cascli.sweeps.records import Records
from cascli.sweeps.table import SweepRow, calls_per_answer, rows
from cascli.trace import block_length

HEADINGS = (
    "strategy", "solved", "against target", "against random deferral", "target calls an answer",
    "draft steps an answer", "cost at c = .1", "c = .2", "here", "tokens", "cut", "loops", "drafts passed", "mean TV",
)  # fmt: skip
PRICES = (0.1, 0.2)
"""Of a draft step in steps of the target: a cost is derived from the counts, a check being taken to cost one step."""


def study_table(folders: Sequence[Path]) -> str:
    """One table for each temperature of each study, from its records."""
    return "\n\n".join(_study(folder) for folder in folders) or "No study yet."


def _study(folder: Path) -> str:
    records = Records(folder)
    header = records.header()
    found = rows(records.read(), with_strategies(header.plan, header.added()))
    about = (
        f"`benchmarks/results/{folder.name}/`: {header.plan.task.dataset or header.plan.task.kind},"
        f" {max(row.num_prompts or 0 for row in found)} problems, pair {header.pair},"
        f" {header.plan.dtype}, at most {header.plan.max_new_tokens} tokens,"
        f" {(header.date or '')[:10]}."
    )
    machine = machine_of(folder.parent / f"advice-{header.plan.dtype}.json")
    parts = [about]
    for temperature in sorted({row.temperature for row in found}):
        lines = [_line(row, machine) for row in found if row.temperature == temperature]
        head = [f"| {' | '.join(HEADINGS)} |", "| --- |" + " ---: |" * (len(HEADINGS) - 1)]
        parts.append("\n".join([f"At {temperature_of(temperature)}:", "", *head, *lines]))
    return "\n\n".join(parts)


def machine_of(path: Path) -> Machine | None:
    """What steps and checks were measured to cost, from advice that was saved; None where there is none."""
    return Advice.from_json(path.read_text(encoding="utf-8")).machine if path.exists() else None


def costs_of(row: SweepRow, machine: Machine | None) -> list[float | None]:
    """An answer's cost in steps of the target: at each price of a draft step, and with the measured ones."""
    calls, steps = calls_per_answer(row), steps_per_answer(row)
    if calls is None or steps is None:
        return [None] * (len(PRICES) + 1)
    priced: list[float | None] = [calls + c * steps for c in PRICES]
    params = parse(row.strategy).params
    drafted = block_length(params)
    if machine is None or params.get("k") == "auto" or drafted > machine.longest:
        return [*priced, None]
    return [*priced, calls * machine.v[drafted] + machine.c * steps]


def steps_per_answer(row: SweepRow) -> float | None:
    """Steps of the draft model."""
    per_token = row.draft_calls_per_token
    return None if per_token is None or not row.answers else per_token * row.tokens / row.answers


def _line(row: SweepRow, machine: Machine | None) -> str:
    cells = [
        short_name(row.strategy),
        _with(row.quality, row.quality_interval, row.quality_interval_kind),
        DASH
        if row.strategy == "target"
        else _with(row.quality_vs_target, row.quality_vs_target_interval, row.quality_vs_target_interval_kind, "+"),
        _with(row.quality_vs_random, row.quality_vs_random_interval, row.quality_vs_random_interval_kind, "+"),
        number(calls_per_answer(row), 1),
        number(steps_per_answer(row), 1),
        *(number(cost, 1) for cost in costs_of(row, machine)),
        number(row.mean_answer_tokens, 1),
        DASH if row.share_cut is None else f"{row.share_cut:.0%}",
        DASH if row.costs is None else f"{row.costs.looped_share:.0%}",
        number(row.tested_acceptance_rate, 2),
        number(row.mean_tv, 3),
    ]
    return f"| {' | '.join(cells)} |"


def _with(value: float | None, interval: tuple[float, float] | None, kind: Kind | None, sign: str = "") -> str:
    """A value and its 95% interval in one cell; what is beyond chance is bold."""
    if value is None:
        return DASH
    known = interval is not None and kind == "95%"
    bounds = f" ({interval[0]:{sign}.2f} to {interval[1]:{sign}.2f})" if interval is not None and known else ""
    beyond = bool(sign) and interval is not None and known and not interval[0] <= 0 <= interval[1]
    shown = f"{value:{sign}.3f}"
    return (f"**{shown}**" if beyond else shown) + bounds


def gaps_table(paths: Sequence[Path]) -> str:
    """One line a task, the widest gap first."""
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
