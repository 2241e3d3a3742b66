"""Run the grid of a sweep, and keep every result as soon as it is there.

`run_sweep` is the whole of it for Python; the command line puts the same parts together with progress and tables.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Protocol

from cascli.config import PairConfig, load_config
from cascli.errors import RunError, UsageError
from cascli.sweep import sandbox
from cascli.sweep.plan import Match, SweepPlan, load_plan, with_strategies
from cascli.sweep.records import Header, Record, Records
from cascli.sweep.rule_estimate import Matched, RuleEstimate, strategies_of
from cascli.sweep.table import SweepRows, rows
from cascli.sweep.tasks import Task, task_of
from cascli.sweep.units import Unit, units
from cascli.trace import now

OnProgress = Callable[[str, int, int], None]


class Executor(Protocol):
    """Where a sweep's work is done: a `Worker` in this process, or many of them elsewhere."""

    def about(self) -> dict[str, str]:
        """Machine, versions and models."""

    def rule_estimates(self, k: int, on_progress: OnProgress | None = None) -> list[RuleEstimate]:
        """Every rule at every alpha and temperature, estimated along one speculative run a prompt."""

    def matched(self, wanted: Match, on_progress: OnProgress | None = None) -> list[Matched]:
        """For each temperature, rule and budget the alpha that comes nearest."""

    def run(self, units: Iterable[Unit]) -> Iterator[Record]:
        """One record a unit, each as soon as it is there."""


def sweep(
    executor: Executor,
    plan: SweepPlan,
    task: Task,
    records: Records,
    done: dict[tuple[str, str], Record],
    on_progress: OnProgress | None = None,
) -> None:
    """Do what is not done yet; an answer that fails is recorded with its error, and the rest goes on.

    Args:
        executor: has the pair.
        plan: the grid.
        task: the prompts, and how answers are scored.
        records: where results are kept.
        done: what was there already; completed in place.
        on_progress: told what was done last and at what speed, how many results there are, and of how many.
    """
    work = list(units(plan, task))
    todo = [unit for unit in work if unit.key not in done]
    start, tokens = time.perf_counter(), 0
    for record in executor.run(todo):
        records.add(record)
        done[record.key] = record
        tokens += len(record.token_ids)
        if on_progress is not None:
            speed = tokens / (time.perf_counter() - start)
            on_progress(f"{record.problem} {record.cell.strategy}, {speed:.1f} tokens/s", len(done), len(work))


def run_sweep(
    file: str | Path,
    *,
    output: str | Path | None = None,
    limit: int | None = None,
    resume: bool = False,
    anyway: bool = False,
    allow_code_execution: bool = False,
    offline: bool = False,
    on_progress: OnProgress | None = None,
) -> SweepRows:
    """Run a sweep file in this process, and return its table: a row a strategy and temperature.

    Answers are kept in the output folder as they come, as by `cascli sweep`, which can go on with them.

    Args:
        file: the sweep file (YAML).
        output: the folder of the results, in place of the file's own.
        limit: how many prompts, in place of the file's own.
        resume: go on with the results that are there.
        anyway: resume although the sweep file or the version of cascli changed.
        allow_code_execution: run the code that models write (humaneval), behind walls.
        offline: fail rather than download.
        on_progress: told what was done last, how many results there are, and of how many.

    Raises:
        ConfigError: a bad sweep or pair file.
        UsageError: results that are there already, another sweep at work in the folder, code that may not be run.
        RunError: weights, memory or device failed, or every answer did.
    """
    from cascli.models.load import load_pair
    from cascli.sweep.worker import Worker

    file = Path(file)
    plan = load_plan(file)
    if limit is not None:
        plan = plan.model_copy(update={"limit": limit})
    task = task_of(plan, file.parent, offline=offline)
    if task.metric == "pass@1":
        task, _ = allowed(task, allow=allow_code_execution, unsafe=False)
    config = load_config(plan.pair)
    records = Records(Path(output or plan.output))
    with records.alone():
        header = header_of(plan, task, config, command=f"run_sweep({str(file)!r})")
        done = records.open(header, resume=resume, anyway=anyway)
        worker = Worker(load_pair(config, device=plan.device, dtype=plan.chosen_dtype, offline=offline), plan, task)
        header = settled(worker, plan, header, records.header() if done else None, on_progress)
        records.write_header(header)
        whole = with_strategies(plan, header.added())
        sweep(worker, whole, task, records, done, on_progress)
    all_failed(done)
    return SweepRows(rows(records.read(), whole), header)


def allowed(task: Task, *, allow: bool, unsafe: bool) -> tuple[Task, str | None]:
    """The task, if the code that it runs may be run here, and a warning if nothing walls it off.

    Raises:
        UsageError: nobody has allowed it, or it cannot be walled off here.
    """
    if not (allow or unsafe):
        raise UsageError("humaneval runs code that models wrote: say --allow-code-execution if that is all right here.")
    warning = sandbox.check(unsafe=unsafe)
    return replace(task, unsafe=warning is not None), warning


def header_of(plan: SweepPlan, task: Task, config: PairConfig, *, command: str = "", compiled: bool = False) -> Header:
    """What a folder's results are made from, as far as it is known before anything is loaded."""
    pair = hashlib.sha256(config.model_dump_json().encode()).hexdigest()[:12]
    return Header(
        fingerprint=plan.fingerprint(),
        plan=plan,
        metric=task.metric,
        date=now(),
        command=command,
        pair=config.name,
        environment={"code execution": f"no wall around {', '.join(sandbox.missing_walls())}"} if task.unsafe else {},
        asked=task.asked() | {"pair": pair} | ({"compile": "yes"} if compiled else {}),
        prompts=task.prompts(),
    )


def settled(
    executor: Executor, plan: SweepPlan, header: Header, before: Header | None, on_progress: OnProgress | None = None
) -> Header:
    """The header with machine and models, and with the alphas that meet the plan's budgets.

    Args:
        executor: has the pair.
        plan: as it was read.
        header: of `header_of`.
        before: that of the results which are gone on with, whose alphas stand where the budgets are the same.
        on_progress: told how the recording goes.
    """
    about = executor.about()
    if before:  # which may have asked more, and been given a title
        kept = {"prompts": before.prompts | header.prompts, "title": header.title or before.title}
        header = header.model_copy(update=kept)
    if plan.match:
        if before and (before.matched or before.budgets) and before.plan.match == plan.match:
            header = header.model_copy(update={"matched": before.matched, "budgets": before.budgets})
        else:
            budgets = executor.matched(plan.match, on_progress)
            header = header.model_copy(update={"matched": list(strategies_of(budgets)), "budgets": budgets})
    return header.model_copy(update={"environment": header.environment | about})


def all_failed(done: dict[tuple[str, str], Record]) -> None:
    """End with an error where not a single answer came to anything.

    Raises:
        RunError: so it is.
    """
    if done and all(record.error is not None for record in done.values()):
        raise RunError("every answer of the sweep failed; records.jsonl has the reasons.")
