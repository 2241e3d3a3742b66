"""cascli sweep: a grid of strategies x parameters x prompts, resumable, with quality beside cost."""

from __future__ import annotations

import io
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cascli.cli import common
from cascli.cli.executors import Kind, executor_of
from cascli.cli.options import Flags, with_shared
from cascli.errors import UsageError

if TYPE_CHECKING:
    from cascli.render.console import Screen
    from cascli.sweep.judged import Judged
    from cascli.sweep.plan import SweepPlan
    from cascli.sweep.records import Header, Record, Records
    from cascli.sweep.run import Executor
    from cascli.sweep.tasks import Exam

    Done = dict[tuple[str, str], Record]

NAME = "sweep"
REPLAY_K = 4
EXAMPLE = "Example: cascli sweep configs/sweeps/rules.yaml --dry-run[bold] · [/]cascli sweep my-sweep.yaml --resume"


@with_shared("cuda_graphs", "compile", "limit", "output", "json", "quiet", "color", "offline")
def command(
    file: Annotated[Path, typer.Argument(help="The sweep file (YAML).")],
    *,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the grid and what it will cost; run nothing.")
    ] = False,
    replay: Annotated[
        bool, typer.Option("--replay", help="One speculative run a prompt; judge all rules and alphas on what it saw.")
    ] = False,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the results that are there.")] = False,
    anyway: Annotated[
        bool, typer.Option("--anyway", help="Resume although the sweep file or the version of cascli changed.")
    ] = False,
    allow_code_execution: Annotated[
        bool, typer.Option("--allow-code-execution", help="Run the code that models write (humaneval).")
    ] = False,
    unsafe_code_execution: Annotated[
        bool,
        typer.Option("--unsafe-code-execution", help="Run it even where it cannot be sandboxed."),
    ] = False,
    executor: Annotated[
        Kind, typer.Option("--executor", help="Where the work is done: in this process, or by Ray's workers.")
    ] = Kind.LOCAL,
    ray_address: Annotated[
        str | None, typer.Option("--ray-address", help="Join this Ray cluster (auto: that of this machine).")
    ] = None,
    workers: Annotated[
        int | None, typer.Option("--workers", min=1, help="Ray's workers. (default one per GPU, else per machine)")
    ] = None,
    flags: Flags,
) -> None:
    """Sweep strategies, parameters and prompts: quality against cost, as table, plots and a report."""
    from cascli.sweep.plan import load_plan
    from cascli.sweep.records import Records
    from cascli.sweep.run import header_of
    from cascli.sweep.tasks import exam_of

    plan = load_plan(file)
    settings = common.plan(Flags(plan.pair, flags.given))
    if flags.given.limit:
        plan = plan.model_copy(update={"limit": flags.given.limit})
    exam = exam_of(plan, file.parent, offline=settings.settings.offline)
    folder = Path(flags.given.output or plan.output)
    if executor is Kind.LOCAL and (ray_address or workers):
        raise UsageError("--ray-address and --workers go with --executor ray.")
    if dry_run:
        _show_grid(plan, exam, settings.screen)
    elif replay:
        if executor is Kind.RAY:
            raise UsageError("--replay runs in this process: leave out --executor ray.")
        _replay(plan, exam, settings, folder)
    else:
        if exam.metric == "pass@1":
            exam = _allowed(exam, settings, allow=allow_code_execution, unsafe=unsafe_code_execution)
        records = Records(folder)
        with records.alone():
            compiled = settings.settings.compile
            header = header_of(plan, exam, settings.config, command=_command(), compiled=compiled)
            done = records.open(header, resume=resume, anyway=anyway)
            with executor_of(executor, plan, exam, settings, ray_address, workers) as chosen:
                _run(chosen, plan, exam, settings, records, header, done)


def _allowed(exam: Exam, settings: common.Plan, *, allow: bool, unsafe: bool) -> Exam:
    """The exam, if the code that it runs may be run here.

    Raises:
        UsageError: nobody has allowed it, or it cannot be walled off here.
    """
    from cascli.sweep.run import allowed

    exam, warning = allowed(exam, allow=allow, unsafe=unsafe)
    if warning is not None:
        settings.screen.err.print(warning, style="bold red", markup=False)
    return exam


def _replay(plan: SweepPlan, exam: Exam, settings: common.Plan, folder: Path) -> None:
    """Judge all rules and alphas, print a part of it, and write all."""
    from cascli.files import write
    from cascli.render.sweep import judged_csv, judged_table

    k = plan.match.k if plan.match else REPLAY_K
    with executor_of(Kind.LOCAL, plan, exam, settings, None, None) as worker:
        found = _judged(worker, settings, k)
    folder.mkdir(parents=True, exist_ok=True)
    write(folder / "replay.csv", judged_csv(found))
    if settings.settings.json_output:
        judged = ",".join(each.model_dump_json() for each in found)
        print(f'{{"schema":"cascli.replay/1","k":{k},"judged":[{judged}]}}')
    else:
        settings.screen.out.print(judged_table(found, k, settings.screen.out))
    tail = max(found, key=lambda each: each.mean_tail)
    settings.screen.note(
        f"judged along the prefixes that speculative decoding visited; all alphas are in {folder / 'replay.csv'}\n"
        f"token rules are exact to the mass of rare tokens: {tail.mean_tail:.1e} on average,"
        f" {tail.max_tail:.1e} at most"
    )


def _show_grid(plan: SweepPlan, exam: Exam, screen: Screen) -> None:
    """The strategies, and how many answers and tokens they come to at most."""
    specs = plan.specs()
    for spec in specs:
        print(spec)
    answers = len(plan.cells()) * len(exam.problems)
    screen.note(
        f"{len(specs)} strategies x {len(plan.temperatures)} temperatures x {len(plan.seeds)} seeds x {plan.runs} runs"
        f" x {len(exam.problems)} prompts = {answers} answers of at most {plan.max_new_tokens} tokens"
        f" ({answers * plan.max_new_tokens:,} tokens), judged by {exam.metric}"
    )


def _run(
    executor: Executor,
    plan: SweepPlan,
    exam: Exam,
    settings: common.Plan,
    records: Records,
    header: Header,
    done: Done,
) -> None:
    from cascli.cli.progress import Progress
    from cascli.sweep.plan import with_strategies
    from cascli.sweep.run import all_failed, settled, sweep

    before = records.header() if done else None
    if plan.match:
        with Progress(settings.screen, "recording", counted=True) as progress:
            header = settled(executor, plan, header, before, progress.step)
    else:
        header = settled(executor, plan, header, before)
    for each in header.budgets:
        if not each.met:
            settings.screen.note(f"not matched: {each}")
    records.write_header(header)
    plan = with_strategies(plan, header.added())
    try:
        with Progress(settings.screen, "sweeping", counted=True) as progress:
            sweep(executor, plan, exam, records, done, tell=progress.step)
    finally:
        # Also what an interrupted sweep has got is shown and written.
        finish(records, header, settings.screen, as_json=settings.settings.json_output)
    all_failed(done)


def _judged(executor: Executor, settings: common.Plan, k: int) -> list[Judged]:
    from cascli.cli.progress import Progress

    with Progress(settings.screen, "recording", counted=True) as progress:
        return executor.judged(k, tell=progress.step)


def finish(records: Records, header: Header, screen: Screen, *, as_json: bool = False) -> None:
    """Write table, picture and report from the records, and print the table."""
    from rich.console import Group

    from cascli.files import write
    from cascli.render.sweep import sweep_csv, sweep_tables
    from cascli.render.sweep_report import report
    from cascli.sweep.plan import with_strategies
    from cascli.sweep.table import rows

    found = rows(records.read(), with_strategies(header.plan, header.added()))
    if not found:
        return
    if as_json:
        body = ",".join(row.model_dump_json() for row in found)
        print(f'{{"schema":"cascli.sweep-table/1","metric":"{header.metric}","rows":[{body}]}}')
    else:
        screen.out.print(Group(*sweep_tables(found, header.metric, screen.out)))
    failed = sum(row.errors for row in found)
    if failed:
        first = next(record for record in records.read() if record.error is not None)
        screen.note(f"{failed} answers failed and count in no number: {first.problem}: {first.error}")
    # After the table: a disk that is full now hides no result.
    svg = _picture(found, header.metric, records.folder / "quality-cost.svg")
    write(records.folder / "results.csv", sweep_csv(found))
    write(records.folder / "report.html", report(header, found, svg))
    screen.note(f"wrote results.csv, report.html{' and quality-cost.svg' if svg else ''} in {records.folder}")


def _picture(found: list, metric: str, path: Path) -> str | None:
    """Draw the plot, if matplotlib is there, and return its text."""
    from cascli.files import write
    from cascli.render.sweep_plot import plot_sweep

    drawing = io.StringIO()
    try:
        plot_sweep(found, metric, drawing)
    except UsageError:
        return None
    write(path, drawing.getvalue())
    return drawing.getvalue()


def _command() -> str:
    return shlex.join(["cascli", *sys.argv[1:]])
