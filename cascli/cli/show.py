"""cascli show: render a saved run or comparison again; no model needed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cascli.cli import common
from cascli.cli.compare import By, TraceKind
from cascli.cli.documents import TRACES, Saved, View, read
from cascli.cli.options import Flags, with_shared
from cascli.errors import UsageError, first_line
from cascli.render import formats

if TYPE_CHECKING:
    from cascli.render.export import Outputs, Writers

NAME = "show"
EXAMPLE = """\
cascli show run.json -v
cascli show comparison.json --play --speed 2
cascli show comparison.json -o trace.html
cascli show results/sweep.json
"""


@with_shared(
    *("output", "format", "json", "quiet", "verbose", "color"),
    written=formats.ANY,
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
    from cascli.render import export
    from cascli.render.console import screen

    given = flags.given
    settings = replace(common.resolved(given), output=given.output, format=given.format)  # from flags only
    lasting = given.output not in (None, "-")
    view = screen(settings.color, quiet=settings.quiet, verbose=settings.verbose, lasting=lasting)
    outputs = export.outputs(settings, formats.ANY)
    document = read(file, view.note)
    if play and not (document.playable and view.live):
        raise UsageError("--play needs a saved comparison and a terminal.")
    try:
        if by is not None and not document.has_categories():
            raise UsageError(f"{file}: --by category: its prompts have only one category, or none")
        if strategy or prompt is not None:
            document = document.picked(strategy or [], prompt)
            if document.note is not None:
                view.note(document.note)
        if outputs.formats:
            outputs.deliver(_writers(document, outputs, title), view)
        else:
            document.print(View(view, trace.value, by is not None, speed if play else None))
    except (ArithmeticError, LookupError, TypeError, ValueError) as error:
        # Each part has the right type, but they do not fit together: no model was timed, a strategy is missing.
        raise UsageError(f"{file}: not a valid cascli file: {type(error).__name__}: {first_line(error)}") from None


def _writers(document: Saved, outputs: Outputs, title: str) -> Writers:
    """The formats that the document can be written in; as JSON it is unchanged.

    Raises:
        UsageError: a requested format is not possible.
    """
    possible = document.formats
    for wanted in outputs.formats:
        if wanted not in possible:
            why = " has no traces, so it" if wanted in TRACES and "jsonl" not in possible else ""
            known = ", ".join(sorted(possible))
            raise UsageError(f"{document.file}: {document.schema}{why} cannot be written as {wanted}. Known: {known}")
    return {**document.writers(title), "json": document.text.strip}
