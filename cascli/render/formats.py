"""The formats each kind of document can be written in. Names only, so that `--help` can list them quickly."""

from __future__ import annotations

from collections.abc import Sequence

PROFILE = "speculation-profile"
"""A format with its own file name: `speculation_profile.json`."""
RUNS = ("json", "jsonl", "md", "csv", "parquet", "html", "svg", "txt")
COMPARISON = ("json", "jsonl", "md", "csv", "parquet", "html", "svg", "txt", PROFILE)
BENCH = ("json", "csv", "parquet", "txt")
AUDIT = ("json", "csv", "parquet", "txt")
EVAL = ("json", "txt")
RULE_CURVES = ("json", "csv", "parquet", "txt")
ADVICE = ("json", "txt")
SWEEP = ("json", "csv", "parquet", "txt", "html", "svg", "png", "pdf", PROFILE)
ANY = (*COMPARISON, "png", "pdf")
"""The formats that some document can be written in."""
ALL_ANSWERS = ("json", "jsonl", "html")
"""Formats of a comparison that hold every answer."""
BINARY = ("parquet", "png", "pdf")
"""Formats that are not printed on a terminal."""


def named(formats: Sequence[str]) -> list[str]:
    """The suffixes or file names that identify these formats."""
    return [f".{each}" if each != PROFILE else "speculation_profile.json" for each in formats]


def help_of(formats: Sequence[str]) -> str:
    """The help text of `-o`."""
    return f"Also write to FILE: {', '.join(named(formats))}; - is stdout."
