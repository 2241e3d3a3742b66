"""cascli sweep: a grid of strategies x parameters x prompts, resumable, with quality and cost."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cascli.cli import common, complete
from cascli.cli import sweep_views as views
from cascli.cli.errors import message_and_code, silence_stdout
from cascli.cli.executors import ExecutorKind, executor_of
from cascli.cli.options import LOADING, Flags, batch_size_option, require_option, with_shared
from cascli.errors import CheckFailed, UsageError

if TYPE_CHECKING:
    from cascli.analysis.requirements import Requirement
    from cascli.config import PairConfig
    from cascli.sweeps.plan import SweepPlan
    from cascli.sweeps.records import Header, Record, Records
    from cascli.sweeps.run import Executor
    from cascli.sweeps.tasks import Task

    Done = dict[tuple[str, str], Record]

NAME = "sweep"
EXAMPLE = """\
cascli sweep rules -c tiny-random
cascli sweep rules --draft ./small --target ./large --dry-run
cascli sweep my-sweep.yaml -o results
cascli sweep my-sweep.yaml -o results --resume
cascli sweep my-sweep.yaml --rule-curves
"""


@with_shared(
    *LOADING,
    *("strategy", "num_speculative_tokens", "max_new_tokens", "temperature", "top_k", "top_p", "seed", "stop"),
    *("system", "raw", "prompts", "limit", "output", "json", "quiet", "verbose", "color"),
    config="Pair name or YAML file; overrides the sweep file's.",
    dtype="auto, float32, bfloat16, float16 or int8; overrides the file's.",
    device="auto, cpu, cuda or cuda:1; overrides the file's.",
    max_new_tokens="Longest answer; overrides the file's.",
    temperature="0 is greedy; overrides the file's.",
    seed="Seed of the runs' random numbers; overrides the file's.",
    strategy="A strategy to run instead of the file's; may be repeated.",
    num_speculative_tokens="Drafted tokens per round, 1 to 64, if the file sets none. (default the pair's, else 4)",
    prompts="Prompts instead of the file's task: JSONL with 'prompt' or 'turns' on each line; or builtin, mt-bench,"
    " spec-bench, speed-bench.",
    verbose="Also show how prompts differ.",
    folder=True,
    output="Results folder (records, table, figure and report); overrides the file's.",
)
def command(
    file: Annotated[
        str,
        typer.Argument(
            help="The sweep file (YAML), or the name of one that ships with cascli, such as rules.",
            autocompletion=complete.sweeps,
        ),
    ],
    *,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the grid and what it will cost; run nothing.")
    ] = False,
    rule_curves: Annotated[
        bool,
        typer.Option(
            "--rule-curves", "--replay", help="One speculative run per prompt; estimate all rules and alphas from it."
        ),
    ] = False,
    batch_size: Annotated[int | None, batch_size_option("overriding the file's")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue from the existing results.")] = False,
    anyway: Annotated[
        bool, typer.Option("--anyway", help="Resume even if the sweep file or a version changed.")
    ] = False,
    allow_code_execution: Annotated[
        bool, typer.Option("--allow-code-execution", help="Run model-written code (humaneval).")
    ] = False,
    unsafe_code_execution: Annotated[
        bool,
        typer.Option("--unsafe-code-execution", help="Run it even if it cannot be sandboxed."),
    ] = False,
    title: Annotated[
        str, typer.Option("--title", metavar="TEXT", show_default=False, help="Title of the report and its figure.")
    ] = "",
    executor: Annotated[
        ExecutorKind, typer.Option("--executor", help="Where to run: in this process, or on Ray workers.")
    ] = ExecutorKind.LOCAL,
    ray_address: Annotated[
        str | None,
        typer.Option("--ray-address", metavar="HOST:PORT", help="Join this Ray cluster (auto: this machine's)."),
    ] = None,
    workers: Annotated[
        int | None,
        typer.Option("--workers", min=1, metavar="N", help="Ray workers. (default one per GPU, else per machine)"),
    ] = None,
    require: Annotated[
        list[str] | None,
        require_option("lossless, same-answer, no-loops, length<=1.05, speedup>=1.2 or quality>=0.8"),
    ] = None,
    flags: Flags,
) -> None:
    """Sweep strategies, parameters and prompts: quality against cost, as a table, plots and a report."""
    from cascli.analysis.requirements import Requirement
    from cascli.cli.progress import Progress
    from cascli.strategies import parse
    from cascli.sweeps.plan import load_plan, pair_of, plan_file
    from cascli.sweeps.records import Records
    from cascli.sweeps.run import header_of
    from cascli.sweeps.tasks import task_of
    from cascli.trace import block_length

    required = [Requirement.of(text, scored=True) for text in require or ()]
    if required and (dry_run or rule_curves):
        raise UsageError("--require checks answers: leave out --dry-run and --rule-curves.")
    path = plan_file(file)
    plan = load_plan(path)
    pair = common.requested_pair(flags)
    config = pair or pair_of(plan, path.parent, str(path))
    plan = _overridden(plan, flags, pair, config, batch_size)
    inputs = common.plan(flags, config, writes=not dry_run)
    k = flags.given.num_speculative_tokens
    if k is not None and plan.match is None and all(block_length(parse(spec).params) != k for spec in plan.specs()):
        inputs.screen.note(f"-k {k} has no effect: every strategy of this sweep that drafts sets its own k.")
    with Progress(inputs.screen, "fetching prompts") if plan.task.kind == "dataset" else nullcontext():
        task = task_of(plan, path.parent, offline=inputs.settings.offline, where=str(path))
    folder = _folder(flags.given.output or plan.output)
    if executor is ExecutorKind.LOCAL and (ray_address or workers):
        raise UsageError("--ray-address and --workers need --executor ray.")
    if dry_run:
        views.show_grid(plan, task, inputs, folder)
    elif rule_curves:
        if executor is ExecutorKind.RAY:
            raise UsageError("--rule-curves runs in this process: leave out --executor ray.")
        with executor_of(ExecutorKind.LOCAL, plan, task, inputs, None, None) as worker:
            views.show_rule_curves(worker, plan, inputs, folder)
    else:
        if task.metric == "pass@1":
            task = _allowed(task, inputs, allow=allow_code_execution, unsafe=unsafe_code_execution)
        records = Records(folder)
        with records.locked():
            compiled = inputs.settings.compile
            header = header_of(plan, task, inputs.config, command=common.command_line(), compiled=compiled)
            header = header.model_copy(update={"title": title})
            done = records.open(header, resume=resume, anyway=anyway)
            with executor_of(executor, plan, task, inputs, ray_address, workers) as chosen:
                plan = _run(chosen, plan, task, inputs, records, header, done)
            _check(required, records, plan)


def _folder(output: str) -> Path:
    """The folder for the results.

    Raises:
        UsageError: it has the name of a file that is written there.
    """
    from cascli.analysis.speculation_profile import FILE

    folder = Path(output)
    if folder.name == FILE and not folder.is_dir():
        raise UsageError(f"{folder}: a sweep's output is a folder; {FILE} is written there automatically.")
    return folder


def _overridden(
    plan: SweepPlan, flags: Flags, pair: PairConfig | None, config: PairConfig, batch_size: int | None
) -> SweepPlan:
    """The plan with the values of its file overridden by flags, else by the environment.

    `pair` is the pair that flags name, and `config` that or the sweep's own.
    """
    from cascli.sweeps.overriding import overridden

    settings, elsewhere = common.requested_settings(flags), common.from_environment_alone(flags)
    plan = overridden(plan, settings, config.defaults, batch_size, elsewhere)
    if pair is not None:
        plan = plan.model_copy(update={"pair": pair.recorded})
    return plan


def _allowed(task: Task, inputs: common.Plan, *, allow: bool, unsafe: bool) -> Task:
    """The task, if the code that it runs may be run here.

    Raises:
        UsageError: running it was not allowed, or it cannot be sandboxed here.
    """
    from cascli.sweeps.run import allowed

    task, warning = allowed(task, allow=allow, unsafe=unsafe)
    if warning is not None:
        inputs.screen.err.print(warning, style="bold red", markup=False)
    return task


def _run(
    executor: Executor,
    plan: SweepPlan,
    task: Task,
    inputs: common.Plan,
    records: Records,
    header: Header,
    done: Done,
) -> SweepPlan:
    """Run the sweep, show its results, and return the plan with the strategies that its budgets added."""
    from cascli.cli.progress import Progress
    from cascli.render.numbers import counted
    from cascli.strategies import parse
    from cascli.sweeps.plan import with_strategies
    from cascli.sweeps.run import all_failed, carry_out, completed_header
    from cascli.sweeps.units import units

    for spec, reason in executor.unable().items():
        inputs.screen.note(f"the answers of {spec} will fail: {reason}")
    before = records.header() if records.holds_answers else None
    if plan.match:
        with Progress(inputs.screen, "recording", counted=True) as progress:
            header = completed_header(executor, plan, header, before, progress.step)
    else:
        header = completed_header(executor, plan, header, before)
    for budget in header.budgets:
        if not budget.met:
            inputs.screen.note(f"not matched: {budget}")
    records.begin(header)
    plan = with_strategies(plan, header.added())
    common.note_cautions(inputs, [parse(spec) for spec in plan.specs()])

    def show() -> None:
        answered = [unit.key in done and done[unit.key].error is None for unit in units(plan, task)]
        missing = len(answered) - sum(answered)
        what = f"{missing} of {counted(len(answered), 'answer')} {'is' if missing == 1 else 'are'} missing"
        note = f"{what}; --resume continues with them" if 0 < missing < len(answered) else ""
        views.show_results(records, inputs.screen, as_json=inputs.settings.json_output, note=note)

    try:
        with Progress(inputs.screen, "sweeping", counted=True) as progress:
            carry_out(executor, plan, task, records, done, on_progress=progress.step)
    except BaseException:
        # The results of an interrupted sweep are shown and written too; what fails then must not hide why it ended.
        try:
            show()
        except BrokenPipeError:
            silence_stdout()
        except Exception as error:
            inputs.screen.note(f"not all results were shown and written: {message_and_code(error)[0]}")
        raise
    show()
    all_failed(done)
    return plan


def _check(required: Sequence[Requirement], records: Records, plan: SweepPlan) -> None:
    """Raise if a requirement is violated at some temperature, or cannot be judged."""
    from cascli.analysis.requirements import first_violation
    from cascli.render.sweep_words import differences
    from cascli.sweeps.table import rows

    every = rows(records.read(), plan) if required else []
    different = differences(records.header()) if any(each.name == "speedup" for each in required) else None
    if different is not None:
        raise CheckFailed(f"--require speedup: {different[:1].lower()}{different[1:]}")
    for temperature in dict.fromkeys(row.temperature for row in every):
        violation = first_violation(required, [row for row in every if row.temperature == temperature])
        if violation is not None:
            raise CheckFailed(f"{violation} at temperature {temperature:g} (--require).")
