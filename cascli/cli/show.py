"""cascli show: render a saved run or comparison again; no model needed."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cascli import files
from cascli.cli import show_sweep
from cascli.cli.common import command_line
from cascli.cli.compare import TraceKind
from cascli.cli.errors import Terminated
from cascli.cli.options import Flags, with_shared
from cascli.cli.picks import picked
from cascli.errors import UsageError, first_line
from cascli.files import JSON_BYTES, json_of, text_of
from cascli.settings import from_environment, resolve

if TYPE_CHECKING:
    from cascli.render.comparison import Trace
    from cascli.render.console import Screen
    from cascli.trace import Run

NAME = "show"
SWEEPS = ("cascli.sweep/1", "cascli.sweep-table/1", "cascli.rule-curves/1")
EXAMPLE = 'Example: cascli generate "Who is Buzz Aldrin?" -o run.json[bold] · [/]cascli show run.json -v'


@with_shared("output", "json", "quiet", "verbose", "color")
def command(
    file: Annotated[Path, typer.Argument(help="JSON that cascli wrote, a sweep's folder, or its results.csv.")],
    *,
    trace: Annotated[
        TraceKind, typer.Option("--trace", help="Answers of a comparison as flowing text, or a token a line.")
    ] = TraceKind.TEXT,
    strategy: Annotated[
        list[str] | None,
        typer.Option("--strategy", "-s", help="Show this one alone, by its name or some parameters; may be repeated."),
    ] = None,
    prompt: Annotated[
        str | None, typer.Option("--prompt", help="Show one prompt alone, by id or place (1 is the first).")
    ] = None,
    title: Annotated[str, typer.Option("--title", help="Title of a sweep's report or figure (-o).")] = "",
    play: Annotated[bool, typer.Option("--play", help="Play a comparison at its measured times first.")] = False,
    speed: Annotated[float, typer.Option("--speed", min=0.01, help="How many times as fast it is played.")] = 1.0,
    flags: Flags,
) -> None:
    """Render a saved run, comparison, bench, audit or sweep again."""
    from cascli.render.console import screen

    settings = resolve(flags.given, from_environment())
    view = screen(settings.color, quiet=settings.quiet, verbose=settings.verbose)
    if show_sweep.is_sweep(file, flags.given.output):
        if prompt is not None:
            raise UsageError(f"{file}: a sweep's table has no prompts to choose from")
        show_sweep.show_sweep(
            file, view, strategy or [], flags.given.output, title=title, as_json=bool(settings.json_output)
        )
        return
    output = _output(flags)
    text = text_of(file, JSON_BYTES)
    kind = schema_of(text, file)
    if play and not (kind == "cascli.compare/1" and view.live):
        raise UsageError("--play shows a saved comparison on a terminal.")
    try:
        text = picked(text, kind, file, strategy or [], prompt)
        if settings.json_output:
            print(text.strip())
        if output:
            files.write(output, _exported(text, kind, file, output.suffix))
            view.note(f"wrote {output}")
        elif kind == "cascli.compare/1" and not settings.json_output:
            _comparison(text, view, trace.value, speed if play else None)
        elif not settings.json_output:
            _render(text, kind, file, view)
    except (ArithmeticError, LookupError, TypeError, ValueError) as error:
        # Every part is of its type, but they do not go together: no model was timed, a strategy is missing.
        raise UsageError(f"{file}: not as cascli wrote it: {type(error).__name__}: {first_line(error)}") from None


def _output(flags: Flags) -> Path | None:
    """Where a page or picture goes, if one is wanted: the environment's place is for results, and there are none here.

    Raises:
        UsageError: the place cannot hold one.
    """
    from cascli.render.export import check_suffix

    if flags.given.output is None:
        return None
    path = Path(flags.given.output)
    check_suffix(path, (".html", ".svg"))
    return path


def _exported(text: str, kind: str, file: Path, suffix: str) -> str:
    """The page, or of a comparison the picture, of a document that holds traces.

    Raises:
        UsageError: it holds none.
    """
    from cascli.render import html_trace

    if kind == "cascli.compare/1":
        from cascli.analysis.comparison import Comparison
        from cascli.render.picture import svg

        comparison = Comparison.from_json(text)
        return svg(comparison) if suffix == ".svg" else html_trace.of_comparison(comparison, command_line())
    if kind in ("cascli.run/1", "cascli.runs/1") and suffix == ".html":
        return html_trace.of_runs(runs_in(text, kind, file), command_line())
    raise UsageError(
        f"{file}: {kind} holds no traces for {suffix}: .html is for runs and comparisons, .svg for comparisons"
    )


def _comparison(text: str, view: Screen, trace: Trace, speed: float | None) -> None:
    from cascli.analysis.comparison import Comparison
    from cascli.render.comparison import print_comparison
    from cascli.render.play import play

    comparison = Comparison.from_json(text)
    if speed is not None:
        try:
            play(comparison, view, speed)
        except Terminated:
            raise
        except KeyboardInterrupt:  # enough seen: the page is next
            pass
    print_comparison(comparison, view, trace)


def _render(text: str, kind: str, file: Path, view: Screen) -> None:
    if kind == "cascli.bench/1":
        from cascli.analysis.bench import Bench
        from cascli.render.bench import print_bench

        print_bench(Bench.from_json(text), view)
    elif kind == "cascli.verify/1":
        _audit(text, view)
    elif kind in SWEEPS:
        _sweep(text, kind, file, view)
    else:
        from cascli.render.run import print_run

        for run in runs_in(text, kind, file):
            print_run(run, view)


def _audit(text: str, view: Screen) -> None:
    from cascli.audit.report import Audit
    from cascli.render.audit import audit_table, verdict

    audit = Audit.from_json(text)
    view.out.print(audit_table(audit.checks, view.out))
    view.note(verdict(audit))


def _sweep(text: str, kind: str, file: Path, view: Screen) -> None:
    """A sweep's table, estimated rules, or of a sweep.json the table of the answers beside it."""
    from rich.console import Group

    from cascli.render.sweep import estimates_table, sweep_tables
    from cascli.sweep.plan import with_strategies
    from cascli.sweep.records import Records
    from cascli.sweep.rule_estimate import RuleEstimate
    from cascli.sweep.table import SweepRow, rows

    document = json.loads(text)
    if kind == "cascli.rule-curves/1":
        estimates = [RuleEstimate.model_validate(each) for each in document["estimates"]]
        view.out.print(estimates_table(estimates, document.get("k", 4), view.out))
        return
    if kind == "cascli.sweep-table/1":
        metric, table = document["metric"], [SweepRow.model_validate(each) for each in document["rows"]]
    else:
        records = Records(file.parent)
        header = records.header()
        metric, table = header.metric, rows(records.read(), with_strategies(header.plan, header.added()))
    if not table:
        raise UsageError(f"{file}: there are no answers yet")
    view.out.print(Group(*sweep_tables(table, metric, view.out)))


def runs_in(text: str, kind: str, file: Path) -> list[Run]:
    """The runs of a saved document.

    Raises:
        UsageError: it does not hold what its schema promises.
    """
    from cascli.trace import Run

    document = json.loads(text)
    parts = document.get("runs") if kind == "cascli.runs/1" else [document]
    if not isinstance(parts, list):
        raise UsageError(f"{file}: 'runs' should be a list of runs")
    try:
        return [Run.from_json(json.dumps(part)) for part in parts]
    except UsageError as error:
        raise UsageError(f"{file}: {error}") from None


def schema_of(text: str, file: Path) -> str:
    """Which of cascli's documents this is.

    Raises:
        UsageError: none of them.
    """
    known = ("cascli.run/1", "cascli.runs/1", "cascli.compare/1", "cascli.bench/1", "cascli.verify/1", *SWEEPS)
    document = json_of(text, str(file))
    schema = document.get("schema") if isinstance(document, dict) else None
    # A minor number says that there are more fields; readers of the major one can do without them.
    major = re.sub(r"(/\d+)\.\d+$", r"\1", schema) if isinstance(schema, str) else None
    if major not in known:
        raise UsageError(f"{file}: 'schema' is {schema!r}; expected one of {', '.join(known)}")
    return major
