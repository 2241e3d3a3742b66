"""The list of ready pairs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from cascli.render.console import plain_table
from cascli.render.numbers import DASH, size


def pairs_table(rows: Sequence[Mapping[str, Any]], console: Console) -> Table:
    """One line a pair."""
    table = plain_table(console)
    table.add_column("pair")
    for heading in ("download", "memory", "on disk"):
        table.add_column(heading, justify="right")
    table.add_column("licence", no_wrap=True)
    table.add_column("gated")
    for row in rows:
        table.add_row(
            Text.assemble((row["name"], "bold"), "\n", (row["note"], "dim")),
            _gigabytes(row["download_gb"]),
            _gigabytes(row["memory_gb"]),
            _on_disk(row["on_disk_bytes"]),
            row["licence"],
            "yes" if row["gated"] else "no",
        )
    return table


def _gigabytes(value: float | None) -> str:
    return DASH if value is None else f"{value:g} GB"


def _on_disk(sizes: Mapping[str, int | None]) -> str:
    """Bytes there, `part` if one of the two models is missing, `no` if both are."""
    needed = [count for count in sizes.values() if count is not None]
    if not needed:
        return "not needed"
    if not any(needed):
        return "no"
    return size(sum(needed)) + ("" if all(needed) else " (part)")
