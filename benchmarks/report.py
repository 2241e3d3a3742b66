"""Write the tables of `benchmarks/results/` into docs/: `python -m benchmarks.report` (`--check` only compares)."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.gpu_table import HEADINGS, line_of, notes
from benchmarks.study_table import gaps_table, study_table

HERE = Path(__file__).parent
DOCS = HERE.parent / "docs"


def engines_table(paths: Sequence[Path]) -> str:
    """Return one section per results file: the engines, their speeds, and what theory predicted."""
    return "\n\n".join(_section(json.loads(path.read_text(encoding="utf-8"))) for path in paths)


def _section(found: dict[str, Any]) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in found["versions"].items())
    lines = [
        f"`{found['command']}`, {found['date']}, {found['processor']}, {found['cores']} cores, {versions};"
        f" {len(found['prompts'])} prompts of {found['max_new_tokens']} tokens:",
        "",
        "| | tokens/s | over the first row | median of prompts | same answers | outside the models |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
        *(_row(row, len(found["prompts"])) for row in found["rows"]),
    ]
    for name, value in (found["llama_cpp"] or {}).items():
        rate = value["tokens_per_second"] if isinstance(value, dict) else value
        lines.append(f"| llama.cpp {name} | {rate:.2f} | {rate / found['rows'][0]['tokens_per_second']:.2f}x | | | |")
    lines += ["", *(_prediction(each) for each in found["predictions"])]
    return "\n".join(lines)


def _row(row: dict[str, Any], prompts: int) -> str:
    ratio = row["ratio_to_first"]
    other = "" if row["other_share"] is None else f"{row['other_share']:.1%}"
    same = f"{row['same_tokens_as_cascli_target']} of {prompts}"
    return (
        f"| {row['name']} | {row['tokens_per_second']:.2f} | {ratio['totals']:.2f}x | {scatter_of(ratio)} | {same}"
        f" | {other} |"
    )


def scatter_of(ratio: dict[str, Any]) -> str:
    """Return the median of the per-prompt ratios, with their scatter if the file states its kind.

    Older files hold bootstrap intervals of four to six prompts, whose coverage is lower than stated.
    """
    if ratio.get("kind") is None or ratio["interval"] is None:
        return f"{ratio['median']:.2f}x"
    low, high = ratio["interval"]
    return f"{ratio['median']:.2f}x ({ratio['kind']} {low:.2f} to {high:.2f})"


def _prediction(each: dict[str, Any]) -> str:
    return (
        f"- k = {each['k']}: acceptance {each['acceptance']:.2f}, c {each['c']:.2f}, v {each['v']:.2f}; predicted"
        f" {each['predicted_speed_up']:.2f}x `target`, measured {each['measured_speed_up']:.2f}x after the prompt"
        f" (ratio {each['measured_over_predicted']:.2f})."
    )


def accuracy_table(paths: Sequence[Path]) -> str:
    """Return how far each precision is from float32 along float32's own answers."""
    return "\n\n".join(_accuracy_section(json.loads(path.read_text(encoding="utf-8")), path) for path in paths)


def _accuracy_section(found: dict[str, Any], path: Path) -> str:
    lines = [
        f"`{found['command']}`, {found['date']}, {found['processor']} (`benchmarks/results/{path.name}`):",
        "",
        "| | same likeliest token | perplexity over float32's | mean TV | mean KL | tokens |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for name, row in found["rows"].items():
        lines.append(
            f"| {name} | {row['top1_agreement']:.1%} | {row['perplexity_ratio']:.4f} | {row['mean_tv']:.4f}"
            f" | {row['mean_kl']:.5f} | {row['tokens']} |"
        )
    return "\n".join(lines)


def gpu_table(paths: Sequence[Path]) -> str:
    """Return one line per pair for each results file of `benchmarks.gpu`."""
    if not paths:
        return "No results yet: no GPU was at hand."
    return "\n\n".join(_gpu_section(json.loads(path.read_text(encoding="utf-8")), path) for path in paths)


def _gpu_section(found: dict[str, Any], path: Path) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in found["versions"].items())
    return "\n".join(
        [
            f"`{found['command']}`, {found['date']}, {found['device']}, {versions} (`benchmarks/results/{path.name}`):",
            "",
            "| " + " | ".join(HEADINGS) + " |",
            "| --- |" + " ---: |" * (len(HEADINGS) - 1),
            *("| " + " | ".join(line_of(pair)) + " |" for pair in found["pairs"]),
            "",
            *(f"- {note}" for note in notes(found)),
        ]
    )


BLOCKS = {
    "gpu": ("gpu.md", "gpu*.json", gpu_table),
    "engines": ("measuring.md", "engines-*.json", engines_table),
    "accuracy": ("cpu.md", "accuracy-*.json", accuracy_table),
    "gaps": ("results.md", "gaps-*.json", gaps_table),
    "study": ("results.md", "study-*", study_table),
}


def main() -> None:
    """Write the blocks of the pages; with `--check` fail if they do not match the files."""
    for name, (page, pattern, table) in BLOCKS.items():
        path = DOCS / page
        text = path.read_text(encoding="utf-8")
        block = f"<!-- {name} -->\n{table(sorted((HERE / 'results').glob(pattern)))}\n<!-- /{name} -->"
        if f"<!-- {name} -->" not in text:
            sys.exit(f"docs/{page}: has no place for the table '{name}'")
        new = re.sub(rf"<!-- {name} -->\n.*?<!-- /{name} -->", lambda _, block=block: block, text, flags=re.DOTALL)
        if "--check" in sys.argv[1:]:
            if new != text:
                sys.exit(f"docs/{page}: its tables are not those of benchmarks/results; run make docs")
        else:
            path.write_text(new, encoding="utf-8")


if __name__ == "__main__":
    main()
