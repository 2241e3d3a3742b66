"""Run the grid of a sweep, and save every result as soon as it is available.

`sweep` does all of it for Python; the command line combines the same parts with progress and tables.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from cascli import notebook
from cascli.analysis.matching import Matched, strategies_of
from cascli.analysis.rule_estimate import RuleEstimate
from cascli.config import PairConfig
from cascli.errors import RunError, UsageError
from cascli.notebook import OnProgress
from cascli.provenance import of_plugins
from cascli.settings import checked
from cascli.strategies import parse
from cascli.sweeps import sandbox
from cascli.sweeps.overriding import overridden
from cascli.sweeps.plan import Match, SweepPlan, load_plan, pair_of, plan_file, with_strategies
from cascli.sweeps.records import Call, Header, Record, Records
from cascli.sweeps.table import SweepRows, rows
from cascli.sweeps.tasks import Task, task_of
from cascli.sweeps.units import Unit, units
from cascli.trace import now

if TYPE_CHECKING:
    from cascli.models.pair import Pair


class Executor(Protocol):
    """Where a sweep's work is done: a `Worker` in this process, or many of them elsewhere."""

    def about(self) -> dict[str, str]:
        """Machine, models and versions, also of the plan's plug-ins of other packages."""

    def unable(self) -> dict[str, str]:
        """The strategies of the plan that cannot run with this pair, whose answers will fail, and why."""

    def rule_estimates(self, k: int, on_progress: OnProgress | None = None) -> list[RuleEstimate]:
        """Estimate every rule at every alpha and temperature, along one speculative run per prompt."""

    def matched(
        self, budgets: Match, temperatures: Sequence[float], on_progress: OnProgress | None = None
    ) -> list[Matched]:
        """Find the nearest setting for each of these temperatures, rule and budget."""

    def run(self, units: Iterable[Unit]) -> Iterator[Record]:
        """Yield one record per unit, as soon as it is available."""


def carry_out(
    executor: Executor,
    plan: SweepPlan,
    task: Task,
    records: Records,
    done: dict[tuple[str, str], Record],
    on_progress: OnProgress | None = None,
) -> None:
    """Do what is not done yet; an answer that fails is recorded with its error, and the others continue.

    Args:
        executor: holds the pair.
        plan: the grid.
        task: the prompts, and how answers are scored.
        records: where results are saved.
        done: the existing results; completed in place.
        on_progress: called with the latest result and the speed so far, the number of results, and their total.
    """
    work = list(units(plan, task))
    todo = [unit for unit in work if unit.key not in done]
    start, tokens = time.perf_counter(), 0
    # `done` may also hold results of prompts or strategies that this run does not ask for; they are not counted.
    for count, record in enumerate(executor.run(todo), len(work) - len(todo) + 1):
        records.add(record)
        done[record.key] = record
        tokens += len(record.token_ids)
        if on_progress is not None:
            speed = tokens / (time.perf_counter() - start)
            on_progress(f"{record.problem} {record.cell.strategy}, {speed:.1f} tokens/s", count, len(work))


def sweep(
    source: str | Path | Mapping[str, Any],
    pair: Pair | None = None,
    *,
    strategies: Sequence[str] | None = None,
    num_speculative_tokens: int | None = None,
    max_new_tokens: int | None = None,
    temperature: float | None = None,
    top_k: int | None = None,
    top_p: float | None = None,
    seed: int | None = None,
    stop: str | Sequence[str] | None = None,
    system: str | None = None,
    raw: bool | None = None,
    dtype: str | None = None,
    device: str | None = None,
    output: str | Path | None = None,
    prompts: str | Path | None = None,
    limit: int | None = None,
    batch_size: int | None = None,
    resume: bool = False,
    anyway: bool = False,
    allow_code_execution: bool = False,
    offline: bool = False,
    on_progress: OnProgress | None = None,
) -> SweepRows:
    """Run a sweep in this process, and return its table: one row per strategy and temperature.

    Answers are saved in the output folder as they finish, as with `cascli sweep`, which can resume from them.

    Args:
        source: the sweep file (YAML), the name of one that ships with cascli, or a mapping with the same keys.
        pair: a loaded pair, used instead of the file's own.
        strategies: these and the following arguments override the sweep file.
        num_speculative_tokens: k, for strategies that do not set it.
        max_new_tokens: longest answer, in tokens.
        temperature: 0 is greedy.
        top_k: keep the most likely tokens; 0 is off.
        top_p: keep the smallest set of this mass; 1 is off.
        seed: seed of the random numbers.
        stop: strings that end an answer; they are not part of it.
        system: system prompt for the chat template.
        raw: skip the chat template.
        dtype: precision of both models; not with `pair`, which is already loaded.
        device: device of both models; not with `pair`, which is already loaded.
        output: the folder for the results.
        prompts: a file of prompts, or the name of a set such as `builtin`, used instead of the file's task.
        limit: number of prompts.
        batch_size: number of answers decoded concurrently; if above 1, times are throughput.
        resume: continue with the existing results.
        anyway: resume even if the sweep file, a plug-in or the version of cascli has changed.
        allow_code_execution: run the code that models write (humaneval), behind walls.
        offline: fail rather than download.
        on_progress: called with the latest result, the number of results, and their total.

    Raises:
        ConfigError: a bad sweep or pair file.
        UsageError: existing results, another sweep at work in the folder, or code that may not be run.
        RunError: weights, memory or device failed, or every answer did.
    """
    from cascli.models.load import load_pair
    from cascli.sweeps.worker import Worker

    bars = notebook.bars() if on_progress is None else None
    if pair is not None and (dtype is not None or device is not None):
        raise UsageError("dtype, device: the pair is already loaded; set them when loading it.")
    path = None if isinstance(source, Mapping) else plan_file(str(source))
    folder, where = (Path(), "sweep") if path is None else (path.parent, str(path))
    overrides = {"strategy": strategies, "max_new_tokens": max_new_tokens, "temperature": temperature, "top_k": top_k}
    overrides |= {"top_p": top_p, "seed": seed, "stop": stop, "system": system, "raw": raw, "limit": limit}
    overrides |= {"dtype": dtype, "device": device, "num_speculative_tokens": num_speculative_tokens}
    overrides |= {"prompts": None if prompts is None else str(prompts)}
    settings = checked({key: value for key, value in overrides.items() if value is not None})
    plan = load_plan(source if path is None else path)
    config = pair_of(plan, folder, where) if pair is None else pair.config
    plan = overridden(plan, settings, config.defaults, batch_size)
    if pair is not None:
        plan = plan.model_copy(update={"pair": pair.config.recorded})
    task = task_of(plan, folder, offline=offline, where=where)
    if task.metric == "pass@1":
        task, _ = allowed(task, allow=allow_code_execution, unsafe=False)
    records = Records(Path(output or plan.output))
    with bars or nullcontext(), records.locked():
        header = header_of(plan, task, config, command=f"sweep({where!r})")
        if pair is not None:
            header = header.model_copy(update={"asked": header.asked | {"precision": pair.info.dtypes}})
        done = records.open(header, resume=resume, anyway=anyway)
        if pair is None:
            pair = load_pair(config, device=plan.chosen_device, dtype=plan.chosen_dtype, offline=offline)
        worker = Worker(pair, plan, task)
        previous = records.header() if records.holds_answers else None
        header = completed_header(worker, plan, header, previous, on_progress or bars)
        records.begin(header)
        full_plan = with_strategies(plan, header.added())
        carry_out(worker, full_plan, task, records, done, on_progress or bars)
    all_failed(done)
    made = list(records.read())
    return SweepRows(rows(made, full_plan), records.header().counted(made))


def allowed(task: Task, *, allow: bool, unsafe: bool) -> tuple[Task, str | None]:
    """Return the task if the code that it runs may be run here, and a warning if nothing walls it off.

    Raises:
        UsageError: running code was not allowed, or it cannot be walled off here.
    """
    if not (allow or unsafe):
        raise UsageError("humaneval runs model-written code: use --allow-code-execution to allow it.")
    warning = sandbox.check(unsafe=unsafe)
    return replace(task, unsafe=warning is not None), warning


def header_of(plan: SweepPlan, task: Task, config: PairConfig, *, command: str = "", compiled: bool = False) -> Header:
    """Build the header of a folder's results, as far as it is known before anything is loaded."""
    pair = hashlib.sha256(config.model_dump_json().encode()).hexdigest()[:12]
    return Header(
        fingerprint=plan.fingerprint(),
        plan=plan,
        metric=task.metric,
        date=now(),
        command=command,
        pair=config.name,
        environment={"code execution": f"no sandbox for {', '.join(sandbox.missing_walls())}"} if task.unsafe else {},
        asked=task.problem_hashes() | {"pair": pair} | ({"compile": "yes"} if compiled else {}),
        prompts=task.prompts(),
        num_prompts=len(task.problems),
        calibration=[prompt.id for prompt in task.calibration],
    )


def completed_header(
    executor: Executor, plan: SweepPlan, header: Header, previous: Header | None, on_progress: OnProgress | None = None
) -> Header:
    """Complete the header with machine and models, and with the settings that meet the plan's budgets.

    Args:
        executor: holds the pair.
        plan: the plan as it was read.
        header: the result of `header_of`.
        previous: the header of the results being resumed; its settings are kept if the budgets are the same, and those
            of temperatures that it lacks are added.
        on_progress: called with the progress of the recording.
    """
    about, missing = executor.about(), header.temperatures_to_match(previous)
    if previous:  # it may cover more prompts, and have a title
        kept: dict[str, Any] = {"prompts": previous.prompts | header.prompts, "title": header.title or previous.title}
        kept["asked"] = previous.asked | header.asked  # including prompts that are not asked this time
        kept["date"] = previous.date or header.date
        kept["calls"] = previous.calls or [Call.of(previous, previous.date)]
        # Those of earlier calls have set what some of the answers were made with, whatever this call does.
        tuned = [*previous.calibration, *(header.calibration if missing else [])]
        kept["calibration"] = list(dict.fromkeys(tuned))
        header = header.model_copy(update=kept)
    if plan.match:
        same = previous is not None and previous.plan.match == plan.match
        matched, budgets = (previous.matched, previous.budgets) if previous and same else ([], [])
        if missing:
            budgets = [*budgets, *executor.matched(plan.match, missing, on_progress)]
        matched = list(strategies_of(budgets)) if budgets else matched  # an older folder has no budgets
        header = header.model_copy(update={"matched": matched, "budgets": budgets})
    added = of_plugins(*map(parse, header.added()))
    return header.model_copy(update={"environment": header.environment | added | about})


def all_failed(done: dict[tuple[str, str], Record]) -> None:
    """Raise an error if there are answers, and every one of them failed.

    Raises:
        RunError: every answer failed.
    """
    if done and all(record.error is not None for record in done.values()):
        raise RunError("every answer of the sweep failed; records.jsonl has the reasons.")
