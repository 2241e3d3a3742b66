"""What each kind of document can be written as. Names alone, so that `--help` can tell them at once."""

from __future__ import annotations

RUNS = ("json", "jsonl", "txt", "html")
COMPARISON = ("json", "jsonl", "md", "csv", "parquet", "html", "svg", "txt")
BENCH = ("json", "csv", "parquet", "txt")
AUDIT = ("json", "csv", "parquet", "txt")
RULE_CURVES = ("json", "csv", "parquet", "txt")
ADVICE = ("json", "txt")
SWEEP = ("json", "csv", "parquet", "txt", "html", "svg", "png", "pdf")
ANY = (*COMPARISON, "png", "pdf")
"""What one or the other document can be written as."""
BINARY = ("parquet", "png", "pdf")
"""Nothing for a terminal."""


def help_of(formats: tuple[str, ...]) -> str:
    """What `-o` says of itself."""
    return f"Also write to FILE: {', '.join(f'.{each}' for each in formats)}; - is stdout."
