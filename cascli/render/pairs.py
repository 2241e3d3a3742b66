"""The list of built-in pairs."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.text import Text

from cascli.render.console import WIDEST
from cascli.render.numbers import DASH, size

HEADINGS = ("pair", "download", "memory", "on disk", "licence", "gated")
RIGHT = (1, 2)
"""Right-aligned columns, which hold numbers."""


def pairs_list(rows: Sequence[Mapping[str, Any]], default: str, console: Console, *, verbose: bool = False) -> Text:
    """One line of figures per pair, a description below it and, with `verbose`, where its models come from."""
    cells = [HEADINGS, *(_cells(row) for row in rows)]
    widths = [max(len(each[column]) for each in cells) for column in range(len(HEADINGS))]
    width = min(console.width, WIDEST)
    gap = "  " if len(_line(HEADINGS, widths, "  ")) + 2 <= width else " "
    lines = [Text(f"  {_line(HEADINGS, widths, gap)}", style="bold")]
    for row, row_cells in zip(rows, cells[1:], strict=True):
        mark = "* " if row["name"] == default else "  "
        name, rest = _line(row_cells, widths, gap)[: widths[0]], _line(row_cells, widths, gap)[widths[0] :]
        lines.append(Text.assemble(mark, (name, "bold"), rest))
        for text in (row["note"], *(_sources(row) if verbose else ())):
            wrapped = textwrap.wrap(text, max(width - 4, 20), break_on_hyphens=False)
            lines += [Text(f"    {line}", style="dim") for line in wrapped]
    lines.append(Text("* the default pair, used without -c"))
    return Text("\n").join(lines)


def _cells(row: Mapping[str, Any]) -> tuple[str, ...]:
    sizes = (_gigabytes(row["download_gb"]), _gigabytes(row["memory_gb"]), _on_disk(row["on_disk_bytes"]))
    return (row["name"], *sizes, row["licence"], "yes" if row["gated"] else "no")


def _line(cells: Sequence[str], widths: Sequence[int], gap: str) -> str:
    columns = enumerate(zip(cells, widths, strict=True))
    fields = [f"{cell:>{w}}" if place in RIGHT else f"{cell:{w}}" for place, (cell, w) in columns]
    fields[RIGHT[-1]] += "  ".removeprefix(gap)  # a number ends where the next column begins
    return gap.join(fields).rstrip()


def _sources(row: Mapping[str, Any]) -> Iterator[str]:
    for role in ("draft", "target"):
        if role in row:
            yield f"{role}: {row[role]}"
    if "about_sources" in row:
        yield row["about_sources"]


def _gigabytes(value: float | None) -> str:
    return DASH if value is None else f"{value:g} GB"


def _on_disk(sizes: Mapping[str, int | None]) -> str:
    """Size on disk, with `part` if one of the two models is missing; `no` if both are."""
    needed = [count for count in sizes.values() if count is not None]
    if not needed:
        return "not needed"
    if not any(needed):
        return "no"
    return size(sum(needed)) + ("" if all(needed) else " (part)")
