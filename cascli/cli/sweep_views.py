"""What `cascli sweep` shows and writes: the grid, the rules' curves, the results."""

from __future__ import annotations

import io
import json
from typing import TYPE_CHECKING

from cascli.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from cascli.analysis.rule_estimate import RuleEstimate
    from cascli.cli import common
    from cascli.render.console import Screen
    from cascli.sweeps.plan import SweepPlan
    from cascli.sweeps.records import Header, Records
    from cascli.sweeps.run import Executor
    from cascli.sweeps.table import SweepRow
    from cascli.sweeps.tasks import Task

RULE_CURVES_K = 4


def show_grid(plan: SweepPlan, task: Task, inputs: common.Plan, folder: Path) -> None:
    """Print everything that a sweep will do, how much that is, and how long it will take, if known."""
    from cascli.sweeps.records import Records

    specs = plan.specs()
    if inputs.screen.quiet:
        print("\n".join(specs))
        return
    turns = sum(len(problem.turns) for problem in task.problems)
    cells = len(plan.cells())
    once = len(plan.seeds) > 1 and not all(plan.temperatures)
    conversations = f" with {turns} turns" if turns > len(task.problems) else ""
    names = [plan.task.kind, *([plan.task.dataset] if plan.task.dataset else [])]
    held = " (has results: --resume continues)" if Records(folder).holds_answers else ""
    rows = {
        "pair": f"{inputs.config.name}, dtype {plan.dtype}, device {plan.device}",
        "prompts": f"{len(task.problems)} of {' '.join(names)}{conversations}, scored by {task.metric}",
        "temperatures": ", ".join(f"{each:g}" for each in plan.temperatures),
        "seeds": ", ".join(map(str, plan.seeds)) + (" (one if greedy)" if once else ""),
        "runs": str(plan.runs),
        "strategies": "\n".join(
            [str(len(specs)), *(_named(spec, at, plan) for spec, at in plan.temperatures_by_strategy().items())]
        ),
        "answers": f"{cells * turns:,} of at most {plan.max_new_tokens} tokens"
        f" ({cells * turns * plan.max_new_tokens:,} tokens)",
        "time": _how_long(plan, turns, inputs),
        "output": f"{folder}{held}",
    }
    if inputs.settings.json_output:
        print(
            json.dumps(
                {"schema": "cascli.plan/1", **rows, "strategies": specs, "where": plan.temperatures_by_strategy()}
            )
        )
        return
    for name, text in rows.items():
        first, *more = text.split("\n")
        print(f"{name:14}{first}", *(f"{'':14}{line}" for line in more), sep="\n")
    if plan.match:
        inputs.screen.note("plus the settings that meet the budgets of 'match'")


def _named(spec: str, at: Sequence[float], plan: SweepPlan) -> str:
    """A strategy, with its temperatures if they are not all of the sweep's."""
    some = ", ".join(f"{each:g}" for each in at)
    return spec if len(at) == len(plan.temperatures) else f"{spec}  (at temperature {some})"


def _how_long(plan: SweepPlan, turns: int, inputs: common.Plan) -> str:
    from cascli.jobs.step_times import load_step_times
    from cascli.render.numbers import duration
    from cascli.sweeps.forecast import forecast

    steps = load_step_times(inputs.config, inputs.run_options(plan.chosen_device, plan.chosen_dtype))
    if steps is None:
        return "unknown: no step times for this pair at this precision; cascli bench or compare measures them"
    low, high = forecast(plan, turns, steps.profile)
    batch = f"\nfor one answer at a time; batches of {plan.batch_size} take less" if plan.batch_size > 1 else ""
    return (
        f"{duration(low)} to {duration(high)}: if all drafts are kept, or none\n"
        f"(from step times of {steps.date}; answers of full length, excluding prompt reading and scoring){batch}"
    )


def show_rule_curves(executor: Executor, plan: SweepPlan, inputs: common.Plan, folder: Path) -> None:
    """Estimate all rules and alphas, print some of them, and write all."""
    from cascli import rules
    from cascli.analysis.rule_estimate import RuleCurves
    from cascli.cli.common import command_line
    from cascli.files import write
    from cascli.provenance import of_plugins
    from cascli.render.sweep import estimates_table
    from cascli.render.tabular import csv_of
    from cascli.trace import now

    k = plan.match.k if plan.match else RULE_CURVES_K
    date, estimates = now(), _estimates(executor, inputs, k)
    curves = RuleCurves(
        date=date,
        command=command_line(),
        pair=inputs.config.name,
        environment=executor.about() | of_plugins(*(rules.load(each.rule) for each in estimates)),
        k=k,
        estimates=estimates,
    )
    folder.mkdir(parents=True, exist_ok=True)
    write(folder / "rule-curves.csv", csv_of(curves.table()))
    write(folder / "rule-curves.json", curves.to_json() + "\n")
    if inputs.settings.json_output:
        print(curves.to_json())
    else:
        inputs.screen.out.print(estimates_table(estimates, k, inputs.screen.out))
    tail = max(estimates, key=lambda each: each.mean_tail)
    inputs.screen.note(
        "estimated along the prefixes that speculative decoding visited;"
        f" all alphas are in {folder / 'rule-curves.csv'}\n"
        f"token rules are exact up to the mass of rare tokens: {tail.mean_tail:.1e} on average,"
        f" {tail.max_tail:.1e} at most"
    )


def _estimates(executor: Executor, inputs: common.Plan, k: int) -> list[RuleEstimate]:
    from cascli.cli.progress import Progress

    with Progress(inputs.screen, "recording", counted=True) as progress:
        return executor.rule_estimates(k, on_progress=progress.step)


def show_results(records: Records, screen: Screen, *, as_json: bool = False, note: str = "") -> None:
    """Print the table of the records with a note, and write table, picture and report."""
    from rich.console import Group

    from cascli.files import write
    from cascli.render.numbers import counted
    from cascli.render.sweep import category_tables, sweep_tables
    from cascli.render.sweep_report import report
    from cascli.render.tabular import csv_of
    from cascli.sweeps.table import SweepTable, tidy_categories, tidy_rows

    header = records.header()
    table = SweepTable.of(header, records)
    header = table.made_from or header
    rows, groups = table.rows, table.categories
    if not rows:
        return
    if as_json:
        print(table.to_json())
    else:
        tables = sweep_tables(rows, header.metric, screen.out, header=header, verbose=screen.verbose)
        screen.out.print(Group(*tables))
        if header.plan.by is not None:
            screen.out.print(Group(*category_tables(groups, header.metric, screen.out)))
    failed = sum(row.errors for row in rows)
    if failed:
        first = next(record for record in records.read() if record.error is not None)
        what = counted(failed, "answer failed and is", "answers failed and are")
        screen.note(f"{what} excluded from all numbers: {first.problem}: {first.error}")
    if note:
        screen.note(note)
    # Files come after the table, and the figure after the numbers, so that a full disk hides no result.
    write(records.folder / "results.csv", csv_of(tidy_rows(rows, header)))
    if header.plan.by is not None:
        write(records.folder / "categories.csv", csv_of(tidy_categories(groups, header)))
    svg = _picture(rows, header, records.folder / "quality-cost.svg")
    write(records.folder / "report.html", report(header, rows, svg, list(records.read())))
    written = ["results.csv", "report.html", *(["quality-cost.svg"] if svg else []), *_profile(rows, records, header)]
    screen.note(f"wrote {', '.join(written[:-1])} and {written[-1]} in {records.folder}")


def _profile(rows: list[SweepRow], records: Records, header: Header) -> list[str]:
    """Write what serving tools read about drafts, if a strategy makes any, and return the file's name."""
    from cascli.analysis.speculation_profile import FILE
    from cascli.files import write
    from cascli.sweeps.speculation_profile import of_sweep

    try:
        profile = of_sweep(records.read(), header, list(dict.fromkeys(row.strategy for row in rows)))
    except UsageError:  # nothing drafts ahead, or the answers predate these counts
        return []
    write(records.folder / FILE, profile.to_json() + "\n")
    return [FILE]


def _picture(rows: list[SweepRow], header: Header, path: Path) -> str | None:
    """Draw and write the plot, if matplotlib is installed, and return its SVG text."""
    from cascli.files import write
    from cascli.render.sweep_plot import plot_sweep

    drawing = io.StringIO()
    try:
        plot_sweep(rows, header.metric, drawing, title=header.title)
    except UsageError:
        return None
    write(path, drawing.getvalue())
    return drawing.getvalue()
