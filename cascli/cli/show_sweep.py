"""`cascli show` for a sweep's folder or results.csv: the document it represents, and its report and figure."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cascli import files
from cascli.errors import UsageError, first_line
from cascli.render import formats

if TYPE_CHECKING:
    from cascli.sweeps.table import SweepRow, SweepTable

NEEDED = ("strategy", "temperature", "quality")
SAME_AS_JSON = "show the JSON of the same result (-o FILE.json)"
"""What to do about files that hold less."""


def document(file: Path) -> tuple[Path, str] | None:
    """The document that a folder or a csv represents, with its path; None for any other file.

    Raises:
        UsageError: the folder holds no sweep, or the csv is not a sweep's.
    """
    if file.is_dir():
        return file / "sweep.json", table_of(file).to_json()
    if file.suffix.lower() == ".csv":
        try:
            return file, _from_csv(file).to_json()
        except (ArithmeticError, LookupError, TypeError, ValueError, csv.Error) as error:
            raise UsageError(f"{file}: not a valid cascli file: {type(error).__name__}: {first_line(error)}") from None
    return None


def not_shown(file: Path, what: str, flags: str = "") -> UsageError:
    """The error about a file for other programs, or a part of a sweep: what it is, and what to show instead.

    `flags` are those with which a sweep's folder shows the same.
    """
    folder = file.parent
    part = (folder / "sweep.json").is_file()
    return UsageError(f"{file}: {what};\n{f'show its folder, {folder}{flags}' if part else SAME_AS_JSON}")


def table_of(folder: Path) -> SweepTable:
    """The table of the answers in a folder.

    Raises:
        UsageError: there is no sweep, or no answer.
    """
    from cascli.sweeps.records import Records
    from cascli.sweeps.table import SweepTable

    records = Records(folder)
    table = SweepTable.of(records.header(), records)
    if not table.rows:
        raise UsageError(f"{folder}: no answers yet")
    return table


def pictures(table: SweepTable, file: Path, title: str) -> dict[str, Callable[[], str | bytes]]:
    """The report, the figure and the profile of drafts, as `show -o` writes them.

    Args:
        table: the table to show.
        file: where it is from; next to a sweep.json are the answers, for report and profile.
        title: used in place of the sweep's own.
    """
    header = table.made_from
    title = title or (header.title if header is not None else "")

    def figure(kind: str) -> bytes:
        from cascli.render.sweep_plot import plot_sweep

        drawing = io.BytesIO()
        plot_sweep(table.rows, table.metric, drawing, title=title, kind=kind)
        return drawing.getvalue()

    def page() -> str:
        from cascli.render.sweep_report import report
        from cascli.settings import TARGET
        from cascli.sweeps.records import Records

        if header is None:
            raise UsageError(
                f"{file}: no record of what it was made from, which a report needs; show the sweep's folder"
            )
        shown = {TARGET, *(row.strategy for row in table.rows)}  # the target is compared with the others
        kept = Records(file.parent).read() if file.name == "sweep.json" else ()
        records = [record for record in kept if record.cell.strategy in shown]
        try:
            svg = figure("svg").decode()
        except UsageError:  # no matplotlib
            svg = None
        return report(header.model_copy(update={"title": title}), table.rows, svg, records)

    def profile() -> str:
        from cascli.sweeps.records import Records
        from cascli.sweeps.speculation_profile import of_sweep

        if header is None or file.name != "sweep.json":
            raise UsageError(f"{file}: no record of what was accepted of each draft; show the sweep's folder")
        return of_sweep(
            Records(file.parent).read(), header, list(dict.fromkeys(r.strategy for r in table.rows))
        ).to_json()

    return {
        formats.PROFILE: profile,
        "html": page,
        "svg": lambda: figure("svg").decode(),
        "png": lambda: figure("png"),
        "pdf": lambda: figure("pdf"),
    }


def _from_csv(file: Path) -> SweepTable:
    """The table in a results.csv, including one with the older columns."""
    from cascli.sweeps.table import SweepTable

    lines = csv.DictReader(io.StringIO(files.text_of(file, files.JSON_BYTES, encoding="utf-8-sig"), newline=""))
    if "category" in (lines.fieldnames or ()):  # several rows of each strategy: not those of the whole sweep
        raise not_shown(file, "a sweep's rows by category", " --by category")
    missing = [name for name in NEEDED if name not in (lines.fieldnames or ())]
    if missing:
        raise UsageError(f"{file}: not a sweep's results.csv: it has no column '{missing[0]}';\n{SAME_AS_JSON}")
    cells = [{name: cell for name, cell in line.items() if cell} for line in lines]
    metric = cells[0].get("metric", "quality") if cells else "quality"
    return SweepTable(metric=metric, rows=[_row(each) for each in cells])


def _row(cells: Mapping[str, str]) -> SweepRow:
    from cascli.sweeps.table import QUALITIES, SweepRow, family

    values: dict[str, Any] = dict.fromkeys(SweepRow.model_fields) | {
        name: cell for name, cell in cells.items() if name in SweepRow.model_fields
    }
    for column, name in (*((each, each) for each in QUALITIES), ("speed_vs_target", "speed")):
        bounds = [cells.get(f"{column}_{end}", cells.get(f"{column}_interval_{end}")) for end in ("low", "high")]
        values[f"{name}_interval"] = None if None in bounds else bounds
        values[f"{name}_interval_kind"] = cells.get(f"{column}_kind", cells.get(f"{column}_interval_kind"))
    tested = cells.get("tested_acceptance_rate")
    calls_per_token, calls_per_answer = (
        float(cells.get(name, "0")) for name in ("target_calls_per_token", "target_calls_per_answer")
    )
    prompts = round(calls_per_token * float(cells.get("tokens", "0")) / calls_per_answer) if calls_per_answer else None
    values |= {
        "family": family(cells["strategy"]),
        # Older files count each turn of a prompt with several turns; the target's calls give the number of prompts.
        "answers": cells.get("num_conversations") or prompts or cells.get("answers", cells.get("num_answers", "0")),
        "errors": cells.get("errors", "0"),
        "tokens": cells.get("tokens", "0"),
        "mean_tv": cells.get("mean_tv", cells.get("mean_tv_to_target")),
        "rejection_rate": cells.get("rejection_rate", None if tested is None else 1 - float(tested)),
    }
    return SweepRow.model_validate(values)
