"""Write the tables of `benchmarks/results/` into the README: `python -m benchmarks.report` (`--check` only looks)."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
README = HERE.parent / "README.md"


def peers_table(paths: Sequence[Path]) -> str:
    """One section a results file: who was measured, how fast, and what theory predicted."""
    return "\n\n".join(_section(json.loads(path.read_text(encoding="utf-8")), path) for path in paths)


def _section(found: dict[str, Any], path: Path) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in found["versions"].items())
    lines = [
        f"`{found['command']}`, {found['date']}, {found['processor']}, {found['cores']} cores, {versions};"
        f" {len(found['prompts'])} prompts of {found['max_new_tokens']} tokens"
        f" (`benchmarks/results/{path.name}`):",
        "",
        "| | tokens/s | to the first row | 95% interval | same answers | outside the models |",
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
    low, high = ratio["interval"] or (None, None)
    interval = "" if low is None else f"{low:.2f} to {high:.2f}"
    other = "" if row["other_share"] is None else f"{row['other_share']:.1%}"
    same = f"{row['same_tokens_as_cascli_target']} of {prompts}"
    return (
        f"| {row['name']} | {row['tokens_per_second']:.2f} | {ratio['median']:.2f}x | {interval} | {same} | {other} |"
    )


def _prediction(each: dict[str, Any]) -> str:
    return (
        f"- k = {each['k']}: acceptance {each['acceptance']:.2f}, c {each['c']:.2f}, v {each['v']:.2f}; predicted"
        f" {each['predicted_speed_up']:.2f}x, measured {each['measured_speed_up']:.2f}x over cascli's target"
        f" (measured / predicted {each['measured_over_predicted']:.2f})."
    )


def main() -> None:
    """Write the README's block, or with `--check` fail if it is not what the files say."""
    text = README.read_text(encoding="utf-8")
    table = peers_table(sorted((HERE / "results").glob("peers-*.json")))
    new = re.sub(r"(<!-- peers -->\n).*?(<!-- /peers -->)", lambda m: f"{m[1]}{table}\n{m[2]}", text, flags=re.DOTALL)
    if "--check" in sys.argv[1:]:
        sys.exit(None if new == text else "README.md: the peers table is not that of benchmarks/results; make readme")
    README.write_text(new, encoding="utf-8")


if __name__ == "__main__":
    main()
