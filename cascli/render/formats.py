"""What each kind of document can be written as. Names alone, so that `--help` can tell them at once."""

from __future__ import annotations

from collections.abc import Sequence

PROFILE = "speculation-profile"
"""A file of a name of its own: `speculation_profile.json`."""
RUNS = ("json", "jsonl", "md", "csv", "parquet", "html", "svg", "txt")
COMPARISON = ("json", "jsonl", "md", "csv", "parquet", "html", "svg", "txt", PROFILE)
BENCH = ("json", "csv", "parquet", "txt")
AUDIT = ("json", "csv", "parquet", "txt")
EVAL = ("json", "txt")
RULE_CURVES = ("json", "csv", "parquet", "txt")
ADVICE = ("json", "txt")
SWEEP = ("json", "csv", "parquet", "txt", "html", "svg", "png", "pdf", PROFILE)
ANY = (*COMPARISON, "png", "pdf")
"""What one or the other document can be written as."""
BINARY = ("parquet", "png", "pdf")
"""Nothing for a terminal."""


def named(formats: Sequence[str]) -> list[str]:
    """How the files of these formats are called, as far as a name says what they are."""
    return [f".{each}" if each != PROFILE else "speculation_profile.json" for each in formats]


def help_of(formats: Sequence[str]) -> str:
    """What `-o` says of itself."""
    return f"Also write to FILE: {', '.join(named(formats))}; - is stdout."
