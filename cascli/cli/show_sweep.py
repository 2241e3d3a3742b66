"""`cascli show` of a sweep's folder or results.csv: its table, or its report and figure made again."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cascli import files
from cascli.cli.picks import wanted_of
from cascli.errors import UsageError, first_line

if TYPE_CHECKING:
    from cascli.render.console import Screen
    from cascli.sweep.records import Header, Record
    from cascli.sweep.table import SweepRow

PICTURES = (".svg", ".png", ".pdf")
NEEDED = ("strategy", "temperature", "quality")


def is_sweep(file: Path, output: object) -> bool:
    """Whether `file` is what this module shows: of a sweep.json only what is written from the answers beside it."""
    return file.is_dir() or file.suffix == ".csv" or (file.name == "sweep.json" and output is not None)


def show_sweep(
    file: Path, view: Screen, names: Sequence[str], output: str | None, *, title: str = "", as_json: bool = False
) -> None:
    """Print the table, or write the report (.html) or the figure (.svg, .png, .pdf).

    Args:
        file: the folder, its sweep.json, or a results.csv, which has a table and a figure alone.
        view: where it is printed.
        names: strategies to choose; all if empty.
        output: the page or figure to write instead.
        title: in place of the sweep's own.
        as_json: print the table as `sweep --json` does.

    Raises:
        UsageError: there is no sweep, or it is damaged.
    """
    try:
        _show(file, view, names, output, title, as_json)
    except (ArithmeticError, LookupError, TypeError, ValueError, csv.Error) as error:
        raise UsageError(f"{file}: not as cascli wrote it: {type(error).__name__}: {first_line(error)}") from None


def _show(file: Path, view: Screen, names: Sequence[str], output: str | None, title: str, as_json: bool) -> None:
    from rich.console import Group

    from cascli.render.sweep import sweep_tables
    from cascli.sweep.plan import with_strategies
    from cascli.sweep.records import Records
    from cascli.sweep.table import SweepTable, rows

    header: Header | None = None
    records: list[Record] = []
    if file.suffix == ".csv" and not file.is_dir():
        metric, table = _from_csv(file)
    else:
        folder = Records(file if file.is_dir() else file.parent)
        header, records = folder.header(), list(folder.read())
        header = header.model_copy(update={"title": title or header.title})
        metric, table = header.metric, rows(records, with_strategies(header.plan, header.added()))
    wanted = wanted_of([row.strategy for row in table], names)
    table = [row for row in table if wanted(row.strategy)]
    if not table:
        raise UsageError(f"{file}: there are no answers yet")
    if output is not None:
        records = [record for record in records if wanted(record.cell.strategy)]
        _write(Path(output), table, metric, header, records, title)
        view.note(f"wrote {output}")
    elif as_json:
        print(SweepTable(metric=metric, rows=table, made_from=header).to_json())
    else:
        view.out.print(Group(*sweep_tables(table, metric, view.out)))


def _write(
    path: Path, table: list[SweepRow], metric: str, header: Header | None, records: list[Record], title: str
) -> None:
    from cascli.cli.sweep_views import drawn
    from cascli.render.export import check_suffix
    from cascli.render.sweep_plot import plot_sweep
    from cascli.render.sweep_report import report

    check_suffix(path, PICTURES if header is None else (".html", *PICTURES))
    if header is not None and path.suffix == ".html":
        files.write(path, report(header, table, drawn(table, header), records))
    else:
        plot_sweep(table, metric, path, title=title if header is None else header.title)


def _from_csv(file: Path) -> tuple[str, list[SweepRow]]:
    """The metric and the rows of a results.csv, also of one that has the older columns."""
    lines = csv.DictReader(io.StringIO(files.text_of(file, files.JSON_BYTES, encoding="utf-8-sig"), newline=""))
    missing = [name for name in NEEDED if name not in (lines.fieldnames or ())]
    if missing:
        raise UsageError(f"{file}: not a sweep's results.csv: it has no column '{missing[0]}'")
    cells = [{name: cell for name, cell in line.items() if cell} for line in lines]
    return str(cells[0].get("metric", "quality") if cells else "quality"), [_row(each) for each in cells]


def _row(cells: Mapping[str, str]) -> SweepRow:
    from cascli.sweep.table import SweepRow, family

    values: dict[str, Any] = dict.fromkeys(SweepRow.model_fields) | {
        name: cell for name, cell in cells.items() if name in SweepRow.model_fields
    }
    for name in ("quality", "quality_vs_target"):
        bounds = [cells.get(f"{name}_{end}", cells.get(f"{name}_interval_{end}")) for end in ("low", "high")]
        values[f"{name}_interval"] = None if None in bounds else bounds
        values[f"{name}_interval_kind"] = cells.get(f"{name}_kind", cells.get(f"{name}_interval_kind"))
    tested = cells.get("tested_acceptance_rate")
    values |= {
        "family": family(cells["strategy"]),
        "answers": cells.get("answers", cells.get("num_answers", "0")),
        "errors": cells.get("errors", "0"),
        "tokens": cells.get("tokens", "0"),
        "mean_tv": cells.get("mean_tv", cells.get("mean_tv_to_target")),
        "rejection_rate": cells.get("rejection_rate", None if tested is None else 1 - float(tested)),
    }
    return SweepRow.model_validate(values)
