"""cascli show: render a saved run or comparison again; no model needed."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cascli.cli import show_sweep
from cascli.cli.compare import By, TraceKind
from cascli.cli.errors import Terminated
from cascli.cli.options import Flags, with_shared
from cascli.cli.picks import picked
from cascli.errors import UsageError, first_line, plain
from cascli.render import formats

if TYPE_CHECKING:
    from cascli.render.comparison import Trace
    from cascli.render.console import Screen
    from cascli.render.export import Outputs, Writers
    from cascli.sweeps.table import SweepTable
    from cascli.trace import Run

NAME = "show"
SWEEPS = ("cascli.sweep/1", "cascli.sweep-table/1", "cascli.rule-curves/1")
POSSIBLE = {
    "cascli.run/1": formats.RUNS,
    "cascli.runs/1": formats.RUNS,
    "cascli.compare/1": formats.COMPARISON,
    "cascli.bench/1": formats.BENCH,
    "cascli.verify/1": formats.AUDIT,
    "cascli.sweep/1": formats.SWEEP,
    "cascli.sweep-table/1": formats.SWEEP,
    "cascli.rule-curves/1": formats.RULE_CURVES,
    "cascli.eval/1": formats.EVAL,
    "cascli.advice/1": formats.ADVICE,
}
"""The documents, and the formats each can be written in."""
TABLES = ("cascli.sweep/1", "cascli.sweep-table/1")
TRACES = ("html", "svg", "jsonl")
EXAMPLE = """\
cascli show run.json -v
cascli show comparison.json --play --speed 2
cascli show comparison.json -o trace.html
cascli show results/sweep.json
"""


@with_shared(
    *("output", "format", "json", "quiet", "verbose", "color"),
    output=formats.help_of(formats.ANY),
    json="Print the document itself.",
)
def command(
    file: Annotated[Path, typer.Argument(help="JSON that cascli wrote, a sweep's folder, or its results.csv.")],
    *,
    trace: Annotated[
        TraceKind,
        typer.Option("--trace", help="Show a comparison's answers as text, token by token, or not at all."),
    ] = TraceKind.TEXT,
    strategy: Annotated[
        list[str] | None,
        typer.Option(
            "--strategy",
            "-s",
            metavar="NAME",
            help="Show only this strategy, by its name or some parameters; may be repeated.",
        ),
    ] = None,
    prompt: Annotated[
        str | None,
        typer.Option("--prompt", metavar="ID", help="Show only this prompt, by id or place (1 is the first)."),
    ] = None,
    by: Annotated[By | None, typer.Option("--by", help="Also show a table for each prompt category.")] = None,
    title: Annotated[
        str,
        typer.Option("--title", metavar="TEXT", show_default=False, help="Title of a sweep's report or figure (-o)."),
    ] = "",
    play: Annotated[bool, typer.Option("--play", help="First replay a comparison at its measured speed.")] = False,
    speed: Annotated[float, typer.Option("--speed", min=0.01, metavar="X", help="Speed-up of the replay.")] = 1.0,
    flags: Flags,
) -> None:
    """Render a saved run, comparison, bench, audit, sweep or evaluation again."""
    from cascli import files
    from cascli.render import export
    from cascli.render.console import screen
    from cascli.settings import from_environment, resolve

    given = flags.given
    settings = replace(resolve(given, from_environment()), output=given.output, format=given.format)  # from flags only
    view = screen(settings.color, quiet=settings.quiet, verbose=settings.verbose)
    outputs = export.outputs(settings, formats.ANY)
    file, text = show_sweep.document(file) or (file, files.text_of(file, files.JSON_BYTES))
    if file.suffix == ".jsonl":
        text = _as_one(text, file)
    kind = schema_of(text, file)
    if play and not (kind == "cascli.compare/1" and view.live):
        raise UsageError("--play needs a saved comparison and a terminal.")
    try:
        if by is not None:
            _check_categories(text, kind, file)
        text = picked(text, kind, file, strategy or [], prompt)
        kind = schema_of(text, file)
        if outputs.formats:
            outputs.deliver(_writers(text, kind, file, outputs, title), view)
        elif kind == "cascli.compare/1":
            _comparison(text, view, trace.value, speed if play else None, by_category=by is not None)
        else:
            _render(text, kind, file, view, by_category=by is not None)
    except (ArithmeticError, LookupError, TypeError, ValueError) as error:
        # Each part has the right type, but they do not fit together: no model was timed, a strategy is missing.
        raise UsageError(f"{file}: not a valid cascli file: {type(error).__name__}: {first_line(error)}") from None


def _check_categories(text: str, kind: str, file: Path) -> None:
    """Reject a document without categories.

    Raises:
        UsageError: the document has no categories.
    """
    from cascli.analysis.comparison import Comparison

    if kind == "cascli.compare/1":
        known = bool(Comparison.from_json(text).categories)
    else:
        known = kind in TABLES and bool(table_in(text, kind, file).categories)
    if not known:
        raise UsageError(f"{file}: --by category: its prompts have only one category, or none")


def _writers(text: str, kind: str, file: Path, outputs: Outputs, title: str) -> Writers:
    """The formats that the document can be written in; as JSON it is unchanged.

    Raises:
        UsageError: a requested format is not possible.
    """
    possible = POSSIBLE[kind]
    for wanted in outputs.formats:
        if wanted not in possible:
            why = " has no traces, so it" if wanted in TRACES and "jsonl" not in possible else ""
            raise UsageError(f"{file}: {kind}{why} cannot be written as {wanted}. Known: {', '.join(sorted(possible))}")
    writers = {**_all_writers(text, kind, file), "json": text.strip}
    return writers | show_sweep.pictures(table_in(text, kind, file), file, title) if kind in TABLES else writers


def _all_writers(text: str, kind: str, file: Path) -> Writers:
    from cascli.render import export

    if kind == "cascli.compare/1":
        from cascli.analysis.comparison import Comparison

        return export.of_comparison(Comparison.from_json(text))
    if kind == "cascli.bench/1":
        from cascli.analysis.bench import Bench

        return export.of_bench(Bench.from_json(text))
    if kind == "cascli.verify/1":
        from cascli.audit.report import Audit

        return export.of_audit(Audit.from_json(text))
    if kind == "cascli.rule-curves/1":
        from cascli.analysis.rule_estimate import RuleCurves

        return export.of_rule_curves(RuleCurves.from_json(text))
    if kind == "cascli.eval/1":
        from cascli.evaluation.table import Evaluation

        return export.of_evaluation(Evaluation.from_json(text))
    if kind == "cascli.advice/1":
        from cascli.analysis.advice import Advice

        return export.of_advice(Advice.from_json(text))
    if kind in SWEEPS:
        return export.of_sweep(table_in(text, kind, file))
    return export.of_runs(runs_in(text, kind, file))


def _comparison(text: str, view: Screen, trace: Trace, speed: float | None, *, by_category: bool) -> None:
    from cascli.analysis.comparison import Comparison
    from cascli.render.comparison import print_comparison
    from cascli.render.play import play

    comparison = Comparison.from_json(text)
    if speed is not None:
        try:
            play(comparison, view, speed)
        except Terminated:
            raise
        except KeyboardInterrupt:  # enough seen: the page comes next
            pass
    print_comparison(comparison, view, trace, by_category=by_category)


def _render(text: str, kind: str, file: Path, view: Screen, *, by_category: bool) -> None:
    if kind == "cascli.bench/1":
        from cascli.analysis.bench import Bench
        from cascli.render.bench import print_bench

        print_bench(Bench.from_json(text), view)
    elif kind == "cascli.advice/1":
        from cascli.analysis.advice import Advice
        from cascli.render.advice import print_advice

        print_advice(Advice.from_json(text), view)
    elif kind == "cascli.verify/1":
        _audit(text, view)
    elif kind == "cascli.eval/1":
        from cascli.evaluation.table import Evaluation
        from cascli.render.evaluation import print_evaluation

        print_evaluation(Evaluation.from_json(text), view)
    elif kind in SWEEPS:
        _sweep(text, kind, file, view, by_category=by_category)
    else:
        from cascli.render.run import print_run
        from cascli.render.summary import title

        runs = runs_in(text, kind, file)
        for place, run in enumerate(runs, 1):
            if len(runs) > 1:
                print(title(run.prompt_id or str(place), run.turn))
            print_run(run, view)


def _as_one(text: str, file: Path) -> str:
    """Combine runs, one per line as `-o FILE.jsonl` writes them, into one document.

    Raises:
        UsageError: a line is not a run.
    """
    lines = [line for line in text.split("\n") if line.strip()]
    for number, line in enumerate(lines, 1):
        if schema_of(line, Path(f"{file}:{number}")) != "cascli.run/1":
            raise UsageError(f"{file}:{number}: not a run; for a sweep's records, show its folder")
    return f'{{"schema":"cascli.runs/1","runs":[{",".join(lines)}]}}'


def _audit(text: str, view: Screen) -> None:
    from cascli.audit.report import Audit
    from cascli.render.audit import heading, row, verdict

    audit = Audit.from_json(text)
    if view.quiet:
        print(plain(verdict(audit)))
        return
    view.out.print(heading(view.out))
    for check in audit.checks:
        view.out.print(row(check, view.out))
    view.note(verdict(audit))


def _sweep(text: str, kind: str, file: Path, view: Screen, *, by_category: bool) -> None:
    """Print a sweep's table, rule estimates or, for a sweep.json, the table of the answers next to it."""
    from rich.console import Group

    from cascli.analysis.rule_estimate import RuleCurves
    from cascli.render.sweep import category_tables, estimates_table, sweep_tables

    if kind == "cascli.rule-curves/1":
        curves = RuleCurves.from_json(text)
        view.out.print(estimates_table(curves.estimates, curves.k, view.out))
        return
    table = table_in(text, kind, file)
    view.out.print(Group(*sweep_tables(table.rows, table.metric, view.out, verbose=view.verbose)))
    if by_category:
        view.out.print(Group(*category_tables(table.categories, table.metric, view.out)))


def table_in(text: str, kind: str, file: Path) -> SweepTable:
    """The table in a document, or of the answers next to a sweep.json.

    Raises:
        UsageError: there are no answers.
    """
    from cascli.sweeps.table import SweepTable

    table = SweepTable.from_json(text) if kind == "cascli.sweep-table/1" else show_sweep.table_of(file.parent)
    if not table.rows:
        raise UsageError(f"{file}: no answers yet")
    return table


def runs_in(text: str, kind: str, file: Path) -> list[Run]:
    """The runs of a saved document.

    Raises:
        UsageError: the document does not match its schema.
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
    """The schema of a cascli document, without its minor version.

    Raises:
        UsageError: it is not a cascli document.
    """
    from cascli.files import json_of

    document = json_of(text, str(file))
    schema = document.get("schema") if isinstance(document, dict) else None
    # A minor version adds fields, which readers of the major version can do without.
    major = re.sub(r"(/\d+)\.\d+$", r"\1", schema) if isinstance(schema, str) else None
    if major is None or major not in POSSIBLE:
        raise UsageError(f"{file}: 'schema' is {schema!r}; expected one of {', '.join(POSSIBLE)}")
    return major
