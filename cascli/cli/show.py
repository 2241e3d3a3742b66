"""cascli show: render a saved run or comparison again; no model needed."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cascli.cli.options import Flags, with_shared
from cascli.errors import UsageError
from cascli.settings import from_environment, resolve

if TYPE_CHECKING:
    from cascli.trace import Run

NAME = "show"
EXAMPLE = 'Example: cascli generate "Who is Buzz Aldrin?" -o run.json[bold] · [/]cascli show run.json -v'


@with_shared("json", "quiet", "verbose", "color")
def command(
    file: Annotated[Path, typer.Argument(help="A file that generate, compare or bench wrote with -o or --json.")],
    *,
    flags: Flags,
) -> None:
    """Render a saved run, comparison or bench again."""
    from cascli.render.console import screen

    settings = resolve(flags.given, from_environment())
    view = screen(settings.color or "auto", quiet=bool(settings.quiet), verbose=bool(settings.verbose))
    text = read(file)
    kind = schema_of(text, file)
    if settings.json_output:
        print(text.strip())
        return
    if kind == "cascli.compare/1":
        from cascli.comparison import Comparison
        from cascli.render.comparison import print_comparison

        print_comparison(Comparison.from_json(text), view)
        return
    if kind == "cascli.bench/1":
        from cascli.bench import Bench
        from cascli.render.bench import print_bench

        print_bench(Bench.from_json(text), view)
        return
    from cascli.render.run import print_run

    for run in runs_in(text, kind, file):
        print_run(run, view)


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


def read(file: Path) -> str:
    """The text of a saved file.

    Raises:
        UsageError: it is missing or not text.
    """
    try:
        return file.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise UsageError(f"{file}: no such file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{file}: cannot be read: {error}") from None


def schema_of(text: str, file: Path) -> str:
    """Which of cascli's documents this is.

    Raises:
        UsageError: none of them.
    """
    known = ("cascli.run/1", "cascli.runs/1", "cascli.compare/1", "cascli.bench/1")
    try:
        document = json.loads(text)
    except json.JSONDecodeError as error:
        raise UsageError(f"{file}:{error.lineno}: not JSON: {error.msg}") from None
    schema = document.get("schema") if isinstance(document, dict) else None
    # A minor number says that there are more fields; readers of the major one can do without them.
    major = re.sub(r"(/\d+)\.\d+$", r"\1", schema) if isinstance(schema, str) else None
    if major not in known:
        raise UsageError(f"{file}: 'schema' is {schema!r}; expected one of {', '.join(known)}")
    return major
