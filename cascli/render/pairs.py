"""The list of ready pairs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from cascli.render.console import unicode_ok
from cascli.render.numbers import DASH, size


def pairs_table(rows: Sequence[Mapping[str, Any]], console: Console) -> Table:
    """One line a pair."""
    table = Table(box=box.SIMPLE_HEAD if unicode_ok(console) else box.ASCII2, pad_edge=False)
    table.add_column("pair", style="bold", no_wrap=True)
    for heading in ("download", "memory", "on disk"):
        table.add_column(heading, justify="right")
    table.add_column("licence")
    table.add_column("gated")
    table.add_column("models", overflow="fold")
    for row in rows:
        table.add_row(
            row["name"],
            _gigabytes(row["download_gb"]),
            _gigabytes(row["memory_gb"]),
            _on_disk(row["on_disk_bytes"]),
            row["licence"],
            "yes" if row["gated"] else "no",
            row["note"],
        )
    return table


def _gigabytes(value: float | None) -> str:
    return DASH if value is None else f"{value:g} GB"


def _on_disk(found: Mapping[str, int | None]) -> str:
    """Bytes there, `part` if one of the two models is missing, `no` if both are."""
    needed = [count for count in found.values() if count is not None]
    if not needed:
        return "not needed"
    if not any(needed):
        return "no"
    return size(sum(needed)) + ("" if all(needed) else " (part)")
