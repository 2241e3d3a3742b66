"""A comparison as a file: JSON, Markdown or CSV by suffix."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from cascli.analysis.comparison import Percentiles, Row
from cascli.errors import UsageError
from cascli.render.table import COST, LAW, Column
from cascli.trace import Run

SUFFIXES = (".csv", ".json", ".md", ".svg")
_NAME = Column("strategy", lambda row: f"`{row.strategy}`" + (" (oracle)" if row.oracle else ""))


def check_suffix(path: Path, allowed: Sequence[str] = SUFFIXES, *, flag: str = "--output") -> None:
    """Refuse an output file of unknown kind before anything is computed.

    Raises:
        UsageError: the suffix is not one of `allowed`, or the folder does not exist.
    """
    if path.suffix not in allowed:
        # No nearest one: '.svg' is near to '.csv', and means something else.
        raise UsageError(f"{flag} {path}: unknown suffix '{path.suffix}'. Known: {', '.join(sorted(allowed))}")
    if not path.parent.is_dir():
        raise UsageError(f"{flag} {path}: no such folder: {path.parent}")
    if path.is_dir() or not os.access(path if path.exists() else path.parent, os.W_OK):
        raise UsageError(f"{flag} {path}: is a folder, or cannot be written")


def markdown(rows: Sequence[Row]) -> str:
    """The table in Markdown."""
    columns = [_NAME, *COST, *LAW]
    lines = [
        "| " + " | ".join(column.heading.replace("\n", " ") for column in columns) + " |",
        "| --- |" + " ---: |" * (len(columns) - 1),
        *("| " + " | ".join(column.cell(row) for column in columns) + " |" for row in rows),
    ]
    return "\n".join(lines) + "\n"


def several(runs: Sequence[Run]) -> str:
    """Several runs as one JSON document."""
    return '{"schema":"cascli.runs/1","runs":[' + ",".join(run.to_json() for run in runs) + "]}"


def to_csv(rows: Sequence[Row]) -> str:
    """All fields of the summary, unrounded; what was not computed is empty."""
    records = [row.model_dump() for row in rows]
    for record in records:
        low, high = record.pop("speed_interval") or (None, None)
        record |= {"speed_low": low, "speed_high": high}
        for name in ("ttft", "seconds_per_token", "round_seconds"):
            parts = record.pop(name) or {}
            record |= {f"{name}_{key}": parts.get(key) for key in Percentiles.model_fields}
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, fieldnames=list(records[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(map(for_spreadsheets, records))
    return buffer.getvalue()


def for_spreadsheets(record: Mapping[str, object]) -> dict[str, object]:
    """A row of a CSV whose texts no spreadsheet takes for a formula."""
    return {
        key: f"'{value}" if isinstance(value, str) and value[:1] in ("=", "+", "-", "@", "\t", "\r") else value
        for key, value in record.items()
    }
