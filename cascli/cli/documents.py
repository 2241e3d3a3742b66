"""The kinds of saved documents: what `cascli show` can open, select, print and write of each."""

from __future__ import annotations

import json
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, TypeVar

from cascli import files
from cascli.cli import picks, show_sweep
from cascli.cli.errors import Terminated
from cascli.errors import UsageError, plain
from cascli.render import formats

if TYPE_CHECKING:
    from cascli.analysis.comparison import Comparison
    from cascli.render.comparison import Trace
    from cascli.render.console import Screen
    from cascli.render.export import Writers
    from cascli.sweeps.table import SweepTable
    from cascli.trace import Document, Run

D = TypeVar("D", bound="Document")
TRACES = ("html", "svg", "jsonl")
"""Formats that need the traces of runs."""


@dataclass(frozen=True)
class View:
    """How a document is printed."""

    screen: Screen
    trace: Trace = "text"
    by_category: bool = False
    speed: float | None = None
    """Play a comparison first, this many times as fast as it was measured; None does not play it."""


class Saved(ABC):
    """A saved document; one subclass per kind."""

    schemas: ClassVar[tuple[str, ...]]
    """Schemas of the kind, without minor versions."""
    formats: ClassVar[tuple[str, ...]]
    """What the document can be written as."""
    playable: ClassVar[bool] = False

    def __init__(self, text: str, schema: str, file: Path) -> None:
        """Open a document.

        Args:
            text: its JSON.
            schema: one of `schemas`.
            file: where it is from, for errors and for answers stored next to it.
        """
        self.text, self.schema, self.file = text, schema, file
        self.note: str | None = None
        """What to know about its numbers."""

    def picked(self, names: Sequence[str], prompt: str | None) -> Saved:
        """The document reduced to some strategies, or to one prompt.

        Args:
            names: strategies, each given by its name and any of its parameters; all if empty.
            prompt: a prompt's id, or its position among the prompts, from 1; all if None.

        Raises:
            UsageError: nothing has that name, or the document has no such parts.
        """
        raise UsageError(f"{self.file}: {self.schema} has no {'prompts' if prompt else 'strategies'} to choose from")

    def has_categories(self) -> bool:
        """Whether it has tables by category of the prompts."""
        return False

    def _read(self, kind: type[D]) -> D:
        try:
            return kind.from_json(self.text)
        except UsageError as error:
            raise UsageError(f"{self.file}: {error}") from None

    @abstractmethod
    def writers(self, title: str) -> Writers:
        """What writes it in each of its formats; `title` replaces a sweep's own."""

    @abstractmethod
    def print(self, view: View) -> None:
        """Print it again."""


class SavedRuns(Saved):
    """One run, or those of several prompts."""

    schemas = ("cascli.run/1", "cascli.runs/1")
    formats = formats.RUNS

    @cached_property
    def runs(self) -> list[Run]:
        """The runs, in the order of the prompts.

        Raises:
            UsageError: the document does not match its schema.
        """
        from cascli.trace import Run

        document = json.loads(self.text)
        parts = document.get("runs") if self.schema == "cascli.runs/1" else [document]
        if not isinstance(parts, list):
            raise UsageError(f"{self.file}: 'runs' should be a list of runs")
        try:
            return [Run.from_json(json.dumps(part)) for part in parts]
        except UsageError as error:
            raise UsageError(f"{self.file}: {error}") from None

    def picked(self, names: Sequence[str], prompt: str | None) -> SavedRuns:
        """See `Saved.picked`."""
        body = ",".join(run.to_json() for run in picks.of_runs(self.runs, names, prompt))
        text = body if self.schema == "cascli.run/1" else f'{{"schema":"cascli.runs/1","runs":[{body}]}}'
        return SavedRuns(text, self.schema, self.file)

    def writers(self, title: str) -> Writers:
        """See `Saved.writers`."""
        from cascli.render import export

        return export.of_runs(self.runs)

    def print(self, view: View) -> None:
        """Print each run, under its prompt's id if there are several."""
        from cascli.render.run import print_run
        from cascli.render.summary import title

        for place, run in enumerate(self.runs, 1):
            if len(self.runs) > 1:
                print(f"{'' if place == 1 else chr(10)}{title(run.prompt_id or str(place), run.turn)}")
            print_run(run, view.screen)


class SavedComparison(Saved):
    """A comparison."""

    schemas = ("cascli.compare/1",)
    formats = formats.COMPARISON
    playable = True

    @cached_property
    def comparison(self) -> Comparison:
        """The comparison itself."""
        from cascli.analysis.comparison import Comparison

        return self._read(Comparison)

    def picked(self, names: Sequence[str], prompt: str | None) -> SavedComparison:
        """See `Saved.picked`."""
        part = picks.of_comparison(self.comparison, names, prompt)
        document, repeats = SavedComparison(part.to_json(), self.schema, self.file), len(self.comparison.repeats)
        if prompt is not None and repeats > 1:
            document.note = f"speeds are those of the first of {repeats} runs, the only one whose answers are kept"
        return document

    def has_categories(self) -> bool:
        """See `Saved.has_categories`."""
        return bool(self.comparison.categories)

    def writers(self, title: str) -> Writers:
        """See `Saved.writers`."""
        from cascli.render import export

        return export.of_comparison(self.comparison)

    def print(self, view: View) -> None:
        """Play the comparison if requested, then print its page."""
        from cascli.render.comparison import print_comparison
        from cascli.render.play import play

        if view.speed is not None:
            try:
                play(self.comparison, view.screen, view.speed)
            except Terminated:
                raise
            except KeyboardInterrupt:  # enough seen: the page comes next
                pass
        print_comparison(self.comparison, view.screen, view.trace, by_category=view.by_category, saved=True)


class SavedSweep(Saved):
    """A sweep's table, or its sweep.json, whose answers are next to it."""

    schemas = ("cascli.sweep/1", "cascli.sweep-table/1")
    formats = formats.SWEEP

    @cached_property
    def table(self) -> SweepTable:
        """The table in the document, or of the answers next to a sweep.json.

        Raises:
            UsageError: there are no answers.
        """
        from cascli.sweeps.table import SweepTable

        own = self.schema == "cascli.sweep-table/1"
        table = self._read(SweepTable) if own else show_sweep.table_of(self.file.parent)
        if not table.rows:
            raise UsageError(f"{self.file}: no answers yet")
        return table

    def picked(self, names: Sequence[str], prompt: str | None) -> Saved:
        """See `Saved.picked`; a table has no prompts to choose from."""
        if prompt is not None:
            return super().picked(names, prompt)
        return SavedSweep(picks.of_table(self.table, names).to_json(), "cascli.sweep-table/1", self.file)

    def has_categories(self) -> bool:
        """See `Saved.has_categories`."""
        return bool(self.table.categories)

    def writers(self, title: str) -> Writers:
        """See `Saved.writers`."""
        from cascli.render import export

        return {**export.of_sweep(self.table), **show_sweep.pictures(self.table, self.file, title)}

    def print(self, view: View) -> None:
        """Print the table and, if requested, those by category."""
        from rich.console import Group

        from cascli.render.sweep import category_tables, sweep_tables

        table, out = self.table, view.screen.out
        tables = sweep_tables(table.rows, table.metric, out, header=table.made_from, verbose=view.screen.verbose)
        out.print(Group(*tables))
        if view.by_category:
            out.print(Group(*category_tables(table.categories, table.metric, out)))


class SavedRuleCurves(Saved):
    """Estimates of rules over a grid of alphas."""

    schemas = ("cascli.rule-curves/1",)
    formats = formats.RULE_CURVES

    def writers(self, title: str) -> Writers:
        """See `Saved.writers`."""
        from cascli.analysis.rule_estimate import RuleCurves
        from cascli.render import export

        return export.of_rule_curves(self._read(RuleCurves))

    def print(self, view: View) -> None:
        """Print the table of estimates."""
        from cascli.analysis.rule_estimate import RuleCurves
        from cascli.render.sweep import estimates_table

        curves = self._read(RuleCurves)
        view.screen.out.print(estimates_table(curves.estimates, curves.k, view.screen.out))


class SavedBench(Saved):
    """Timings of a pair."""

    schemas = ("cascli.bench/1",)
    formats = formats.BENCH

    def writers(self, title: str) -> Writers:
        """See `Saved.writers`."""
        from cascli.analysis.bench import Bench
        from cascli.render import export

        return export.of_bench(self._read(Bench))

    def print(self, view: View) -> None:
        """Print the tables."""
        from cascli.analysis.bench import Bench
        from cascli.render.bench import print_bench

        print_bench(self._read(Bench), view.screen)


class SavedAudit(Saved):
    """An audit of a pair."""

    schemas = ("cascli.verify/1",)
    formats = formats.AUDIT

    def writers(self, title: str) -> Writers:
        """See `Saved.writers`."""
        from cascli.audit.report import Audit
        from cascli.render import export

        return export.of_audit(self._read(Audit))

    def print(self, view: View) -> None:
        """Print one line per check and the verdict; the verdict alone if quiet."""
        from cascli.audit.report import Audit
        from cascli.render.audit import heading, row, verdict

        audit, screen = self._read(Audit), view.screen
        if screen.quiet:
            print(plain(verdict(audit)))
            return
        screen.out.print(heading(screen.out))
        for check in audit.checks:
            screen.out.print(row(check, screen.out))
        screen.note(verdict(audit))


class SavedEvaluation(Saved):
    """Scores of lm-evaluation-harness tasks."""

    schemas = ("cascli.eval/1",)
    formats = formats.EVAL

    def writers(self, title: str) -> Writers:
        """See `Saved.writers`."""
        from cascli.evaluation.table import Evaluation
        from cascli.render import export

        return export.of_evaluation(self._read(Evaluation))

    def print(self, view: View) -> None:
        """Print the tables."""
        from cascli.evaluation.table import Evaluation
        from cascli.render.evaluation import print_evaluation

        print_evaluation(self._read(Evaluation), view.screen)


class SavedAdvice(Saved):
    """A recommendation of `cascli advise`."""

    schemas = ("cascli.advice/1",)
    formats = formats.ADVICE

    def writers(self, title: str) -> Writers:
        """See `Saved.writers`."""
        from cascli.analysis.advice import Advice
        from cascli.render import export

        return export.of_advice(self._read(Advice))

    def print(self, view: View) -> None:
        """Print the recommendation."""
        from cascli.analysis.advice import Advice
        from cascli.render.advice import print_advice

        print_advice(self._read(Advice), view.screen)


KINDS: dict[str, type[Saved]] = {
    schema: kind
    for kind in (
        *(SavedRuns, SavedComparison, SavedBench, SavedAudit),
        *(SavedSweep, SavedRuleCurves, SavedEvaluation, SavedAdvice),
    )
    for schema in kind.schemas
}
"""Every kind of document by its schemas."""


FOR_OTHERS = frozenset(formats.ANY) - {"json", "jsonl", "csv", formats.PROFILE}
"""Suffixes of files that other programs show."""
RECORDS_PACKED = "records.jsonl.gz"
"""A sweep's records as they are archived."""
PARTS = {"cell": "records of a sweep", "accept_length_by_k": "an acceptance profile for serving tools"}
"""What JSON without a schema is, by a key that it has."""


def read(file: Path, note: Callable[[str], None]) -> Saved:
    """The document in a file, or made from a sweep's folder or csv.

    Args:
        file: the file or folder.
        note: told of what is left out.

    Raises:
        UsageError: it is not there, or not a cascli document.
    """
    made, suffix = show_sweep.document(file), file.suffix.lower().removeprefix(".")
    if made is not None:
        return opened(made[1], made[0])
    lines = suffix == "jsonl"
    try:
        text = files.text_of(file, files.JSON_BYTES, cut=lines)
        return opened(runs_of_lines(text, file, note) if lines else text, file)
    except UsageError:
        if file.name == RECORDS_PACKED and file.is_file():
            raise show_sweep.not_shown(file, PARTS["cell"]) from None
        if suffix in FOR_OTHERS and file.is_file():
            raise show_sweep.not_shown(file, f"{suffix} is for other programs") from None
        raise


def opened(text: str, file: Path) -> Saved:
    """The document in a JSON text.

    Raises:
        UsageError: it is not a cascli document.
    """
    schema = schema_of(text, file)
    return KINDS[schema](text, schema, file)


def schema_of(text: str, file: Path, line: int | None = None) -> str:
    """The schema of a cascli document, without its minor version; `line` is where it is in the file.

    Raises:
        UsageError: it is not a cascli document.
    """
    where = str(file) if line is None else f"{file}:{line}"
    document = files.json_of(text, where)
    schema = document.get("schema") if isinstance(document, dict) else None
    # A minor version adds fields, which readers of the major version can do without.
    major = re.sub(r"(/\d+)\.\d+$", r"\1", schema) if isinstance(schema, str) else None
    if major is None or major not in KINDS:
        for key, what in PARTS.items():
            if isinstance(document, dict) and schema is None and key in document:
                raise show_sweep.not_shown(file, what)
        raise UsageError(f"{where}: 'schema' is {schema!r}; expected one of {', '.join(KINDS)}")
    return major


def runs_of_lines(text: str, file: Path, note: Callable[[str], None]) -> str:
    """Combine runs, one per line as `-o FILE.jsonl` writes them, into one document.

    A last line that a crash cut is left out, and noted.

    Raises:
        UsageError: a line is not a run, or none is whole.
    """
    *whole, rest = text.split("\n")
    if _is_json(rest):  # an editor may have dropped the newline
        whole.append(rest)
    elif rest.strip():
        note(f"{file}:{len(whole) + 1}: cut while it was written, so it is left out")
    lines = {number: line for number, line in enumerate(whole, 1) if line.strip()}
    if not lines:
        raise UsageError(f"{file}: holds no whole line")
    for number, line in lines.items():
        if schema_of(line, file, number) != "cascli.run/1":
            raise UsageError(f"{file}:{number}: not a run")
    return f'{{"schema":"cascli.runs/1","runs":[{",".join(lines.values())}]}}'


def _is_json(text: str) -> bool:
    try:
        files.json_of(text, "")
    except UsageError:
        return False
    return True
