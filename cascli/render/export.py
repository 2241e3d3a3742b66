"""Results as files: the one place that decides what `-o`, `--format` and `--json` mean, for every command.

A file's format is given by `--format`, else by its suffix, else by `--json`. `-` is stdout, as is `--format` without
`-o`; what is written there replaces the output for people.
"""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from rich.console import Group

from cascli import files
from cascli.analysis import speculation_profile, tidy
from cascli.analysis.bench import Bench
from cascli.analysis.comparison import Comparison, Row, uncompared
from cascli.errors import UsageError, plain, unknown
from cascli.render import formats
from cascli.render.columns import Column
from cascli.render.console import WIDEST, SafeConsole, Screen
from cascli.render.numbers import DASH
from cascli.render.summary import title, with_newline
from cascli.render.table import COST, law_columns, scatter_line
from cascli.render.tabular import check_parquet, csv_of, parquet_of
from cascli.settings import Resolved
from cascli.trace import Run, Runs

if TYPE_CHECKING:
    from cascli.analysis.advice import Advice
    from cascli.analysis.rule_estimate import RuleCurves
    from cascli.audit.report import Audit
    from cascli.evaluation.table import Evaluation
    from cascli.sweeps.table import SweepTable

Writers = Mapping[str, Callable[[], str | bytes]]
"""The formats a document can be written in, and how."""
_NAME: Column[Row] = Column("strategy", lambda row: f"`{row.strategy}`" + (" (oracle)" if row.oracle else ""))


@dataclass(frozen=True)
class Outputs:
    """Where a command's result goes in addition to, or instead of, the output for people."""

    printed: str | None = None
    """The format of stdout; None for the output for people."""
    file: Path | None = None
    written: str = ""
    """The format of the file."""

    @property
    def formats(self) -> list[str]:
        """The requested formats."""
        return [each for each in (self.printed, self.written) if each]

    def deliver(self, writers: Writers, screen: Screen, *, streamed: bool = False) -> None:
        """Print and write; `streamed` means that `lines` has already written the lines, one by one."""
        done = "jsonl" if streamed else None
        try:
            if self.printed not in (None, done):
                _print(writers[self.printed]())
        finally:  # stdout may be on a full disk, and the file on another
            if self.file is not None:
                if self.written != done:
                    content = writers[self.written]()
                    files.write(self.file, with_newline(content) if isinstance(content, str) else content)
                screen.note(f"wrote {self.file}")

    @contextmanager
    def lines(self) -> Iterator[Callable[[Run], None]]:
        """A callback that takes every run as it ends, and writes its line if JSON Lines are requested."""
        opened: list[TextIO] = []

        def write_line(stream: TextIO, run: Run) -> None:
            stream.write(run.to_json() + "\n")
            stream.flush()

        def add(run: Run) -> None:
            if self.printed == "jsonl":
                write_line(sys.stdout, run)
            if self.file is not None and self.written == "jsonl":
                with files.named(self.file):
                    if not opened:  # opened late: a run that fails leaves the old file
                        opened.append(self.file.open("w", encoding="utf-8"))
                    write_line(opened[0], run)

        try:
            yield add
        finally:
            for file in opened:
                with files.named(Path(file.name)):  # closing tries once more to write what a full disk refused
                    file.close()


def outputs(settings: Resolved, possible: Sequence[str]) -> Outputs:
    """The outputs that the flags request, checked before anything is computed.

    Args:
        settings: with `output`, `format` and `json_output`.
        possible: the formats that the command's result can be written in; see `cascli.render.formats`.

    Raises:
        UsageError: a format that is not possible or cannot be determined, or a path that cannot be written.
    """
    requested = settings.format
    if requested is not None and requested not in possible:
        raise UsageError(f"{settings.named('format')}: not available here. Known: {', '.join(sorted(possible))}")
    if settings.output in (None, "-"):
        if settings.json_output and requested not in (None, "json"):
            both = f"json ({settings.source('json_output')}) and {requested} ({settings.source('format')})"
            raise UsageError(f"{both} both write to stdout; give one of them -o FILE.")
        result = Outputs(printed=requested or ("json" if settings.json_output else None))
    else:
        path = Path(settings.output or "")
        _check_not_read(path, settings)
        result = Outputs(
            "json" if settings.json_output else None, path, requested or _format_of(path, settings, possible)
        )
        check_place(path, named=settings.named("output"))
    _check_binary(result)
    return result


def _format_of(path: Path, settings: Resolved, possible: Sequence[str]) -> str:
    """The format given by a file's name, or by --json."""
    suffix = path.suffix.lower()
    if path.name.endswith(speculation_profile.FILE) and formats.PROFILE in possible:
        return formats.PROFILE
    if suffix.removeprefix(".") in possible:
        return suffix.removeprefix(".")
    if not suffix:
        if settings.json_output:
            return "json"
        known = ", ".join(formats.named(sorted(possible)))
        raise UsageError(f"{settings.named('output')}: no suffix; use one of {known}, or --format")
    raise UsageError(f"{settings.named('output')}: " + unknown("suffix", suffix, formats.named(possible), cutoff=0.8))


def _check_binary(outputs: Outputs) -> None:
    if "parquet" in (outputs.printed, outputs.written):
        check_parquet()
    if outputs.printed in formats.BINARY and sys.stdout.isatty():
        raise UsageError(f"{outputs.printed} is not for a terminal; use -o FILE.{outputs.printed} or a pipe.")


def check_suffix(path: Path, allowed: Sequence[str], *, named: str) -> None:
    """Reject an output file of unknown kind before anything is computed; `named` is how errors refer to it.

    Raises:
        UsageError: the suffix is not one of `allowed`, or the folder does not exist.
    """
    suffix = path.suffix.lower()
    if suffix not in allowed:
        # '.htm' is probably meant as '.html', but '.svg' is no misspelled '.csv'.
        raise UsageError(f"{named}: " + unknown("suffix", suffix, allowed, cutoff=0.8))
    check_place(path, named=named)


def _check_not_read(path: Path, settings: Resolved) -> None:
    """Refuse to overwrite what the command reads.

    Raises:
        UsageError: the output is the file of prompts.
    """
    name = settings.prompts
    if name and path.is_file() and Path(name).is_file() and path.samefile(name):
        raise UsageError(f"{settings.named('output')}: is the file of prompts; give the result another name.")


def check_place(path: Path, *, named: str) -> None:
    """Reject a path that cannot be written; `named` is how errors refer to it.

    Raises:
        UsageError: the folder does not exist, the path is a folder, a link points to itself, or it cannot be written.
    """
    try:
        real = files.behind_links(path)
    except UsageError as error:
        raise UsageError(f"{named}: {str(error).removeprefix(f'{path}: ')}") from None
    if not real.parent.is_dir():
        raise UsageError(f"{named}: no such folder: {real.parent if path.is_symlink() else path.parent}")
    if real.is_dir():
        raise UsageError(f"{named}: is a folder")
    if not os.access(real if real.exists() else real.parent, os.W_OK):
        raise UsageError(f"{named}: cannot be written")


def _print(text: str | bytes) -> None:
    if isinstance(text, bytes):
        sys.stdout.flush()
        sys.stdout.buffer.write(text)
    else:
        sys.stdout.write(with_newline(text))
    sys.stdout.flush()


def of_runs(runs: Sequence[Run], *, several: bool = False) -> Writers:
    """The formats of runs; a single run is a document of its own, unless several were requested."""

    def page() -> str:
        from cascli.render import html_trace

        return html_trace.of_runs(runs, runs[0].command)

    def picture() -> str:
        from cascli.render.picture import svg

        return svg(uncompared(runs), "cascli generate")

    return {
        "json": lambda: Runs(runs=list(runs)).to_json() if several or len(runs) > 1 else runs[0].to_json(),
        "jsonl": lambda: _lines(runs),
        "md": lambda: f"{_prompts_and_answers(runs)}\n{markdown(uncompared(runs).summary, compared=False)}",
        "html": page,
        "svg": picture,
        "txt": lambda: answers(runs),
        **of_table(lambda: tidy.of_runs(runs)),
    }


def of_comparison(comparison: Comparison) -> Writers:
    """The formats of a comparison; jsonl contains its runs."""

    def page() -> str:
        from cascli.render import html_trace

        return html_trace.of_comparison(comparison, comparison.command)

    def picture() -> str:
        from cascli.render.picture import svg

        return svg(comparison)

    def printed(screen: Screen) -> None:
        from cascli.render.comparison import print_comparison

        print_comparison(comparison, screen)

    return {
        "json": comparison.to_json,
        "jsonl": lambda: _lines(comparison.runs),
        "md": lambda: markdown(comparison.summary),
        "html": page,
        "svg": picture,
        "txt": lambda: as_text(printed),
        formats.PROFILE: lambda: speculation_profile.of_comparison(comparison).to_json(),
        **of_table(lambda: tidy.of_comparison(comparison)),
    }


def of_bench(bench: Bench) -> Writers:
    """The formats of a bench."""

    def printed(screen: Screen) -> None:
        from cascli.render.bench import print_bench

        print_bench(bench, screen)

    return {"json": bench.to_json, "txt": lambda: as_text(printed), **of_table(lambda: tidy.of_bench(bench))}


def of_advice(advice: Advice) -> Writers:
    """The formats of advice."""

    def printed(screen: Screen) -> None:
        from cascli.render.advice import print_advice

        print_advice(advice, screen)

    return {"json": advice.to_json, "txt": lambda: as_text(printed)}


def of_audit(audit: Audit) -> Writers:
    """The formats of an audit."""
    from cascli.audit.report import tidy_checks  # which imports torch

    def printed(screen: Screen) -> None:
        from cascli.render.audit import heading, row, verdict

        screen.out.print(heading(screen.out), *(row(check, screen.out) for check in audit.checks), sep="\n")
        screen.out.print(verdict(audit), markup=False)

    return {"json": audit.to_json, "txt": lambda: as_text(printed), **of_table(lambda: tidy_checks(audit))}


def of_sweep(table: SweepTable) -> Writers:
    """The formats of a sweep's table."""
    from cascli.sweeps.table import tidy_rows

    def printed(screen: Screen) -> None:
        from cascli.render.sweep import sweep_tables

        screen.out.print(Group(*sweep_tables(table.rows, table.metric, screen.out, header=table.made_from)))

    return {
        "json": table.to_json,
        "txt": lambda: as_text(printed),
        **of_table(lambda: tidy_rows(table.rows, table.made_from)),
    }


def of_evaluation(evaluation: Evaluation) -> Writers:
    """The formats of an evaluation."""
    from cascli.render.evaluation import print_evaluation

    return {"json": evaluation.to_json, "txt": lambda: as_text(lambda screen: print_evaluation(evaluation, screen))}


def of_rule_curves(curves: RuleCurves) -> Writers:
    """The formats of rule estimates."""

    def printed(screen: Screen) -> None:
        from cascli.render.sweep import estimates_table

        screen.out.print(estimates_table(curves.estimates, curves.k, screen.out))

    return {"json": curves.to_json, "txt": lambda: as_text(printed), **of_table(curves.table)}


def of_table(table: Callable[[], tidy.Table]) -> Writers:
    """The formats of every table."""
    return {"csv": lambda: csv_of(table()), "parquet": lambda: parquet_of(table())}


def as_text(show: Callable[[Screen], None]) -> str:
    """What is printed, as plain text of a page's width."""
    text = io.StringIO()
    show(Screen(SafeConsole(file=text, width=WIDEST, color_system=None), SafeConsole(file=io.StringIO())))
    return "\n".join(line.rstrip() for line in text.getvalue().splitlines()) + "\n"


def _lines(runs: Sequence[Run]) -> str:
    return "".join(run.to_json() + "\n" for run in runs)


def answers(runs: Sequence[Run]) -> str:
    """The answers as printed to a pipe: a single one alone, several each below a title line."""
    texts = [with_newline(run.text) for run in runs]
    if len(runs) == 1:
        return texts[0]
    named = (title(run.prompt_id or str(place), run.turn) for place, run in enumerate(runs, 1))
    return "\n".join(f"{name}\n{text}" for name, text in zip(named, texts, strict=True))


def _prompts_and_answers(runs: Sequence[Run]) -> str:
    """Prompts as quotations, each with its answer verbatim, which may itself be Markdown."""
    sections = []
    for place, run in enumerate(runs, 1):
        turn = f", turn {run.turn + 1}" if run.turn else ""
        heading = f"## {plain(run.prompt_id or str(place))}{turn}\n\n" if len(runs) > 1 else ""
        quoted = "".join(f"> {line}".rstrip() + "\n" for line in (run.prompt or "").splitlines())
        sections.append(f"{heading}{quoted}\n{with_newline(run.text)}")
    return "\n".join(sections)


def markdown(rows: Sequence[Row], *, compared: bool = True) -> str:
    """The table in Markdown; if nothing was compared, without columns that have no values."""
    columns = [_NAME, *COST, *law_columns(rows)]
    if not compared:
        columns = [column for column in columns if any(column.cell(row) != DASH for row in rows)]
    lines = [
        "| " + " | ".join(column.heading.replace("\n", " ") for column in columns) + " |",
        "| --- |" + " ---: |" * (len(columns) - 1),
        *("| " + " | ".join(column.cell(row) for column in columns) + " |" for row in rows),
    ]
    brackets = scatter_line(rows)
    return "\n".join(lines) + "\n" + (f"\n{brackets}\n" if brackets else "")
