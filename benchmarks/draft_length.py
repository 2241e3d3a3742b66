"""Whether a stop drafts as well as the best fixed k, for each kind of task.

`python -m benchmarks.draft_length -o FILE.json`. For each of the six kinds of built-in prompts all lengths and stops
run concurrently, in slices of equal time; speeds are those of whole answers relative to the target's. The best fixed k
differs between kinds and is known only afterwards; a stop that comes within 3% of it everywhere does not need to know
it. In addition to the clocked speeds, speeds are computed from the number of passes and the measured times of steps.
The bound is that of drafts that know what will be kept.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.machine import facts
from cascli import compare, load_pair
from cascli.analysis.comparison import Comparison, Row
from cascli.analysis.draft_length import counted_speed
from cascli.models.pair import Pair
from cascli.prompts import Prompt, builtin

NEAR = 0.97
"""Least share of the best fixed k's speed at which a stop counts as equally good."""
STOPS = ("rate", "max-q", "confidence", "svip", "adaedl", "heuristic")


def arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-c", "--config", default="qwen2.5-coder", help="pair name or YAML file")
    parser.add_argument("--dtype", default="int8")
    parser.add_argument("--threads", type=int, default=1, help="of a CPU; one is robust beside other work")
    parser.add_argument("-k", type=int, nargs="+", default=[1, 2, 3, 4, 6, 8], help="fixed lengths")
    parser.add_argument("--stops", nargs="*", default=["rate"], choices=STOPS)
    parser.add_argument("--draft", default="model", help="the drafter")
    parser.add_argument("--prompts", type=int, default=5, help="of each kind, at most")
    parser.add_argument("--kinds", nargs="*", help="some of the kinds of tasks")
    parser.add_argument("--max-new-tokens", type=int, default=96)
    parser.add_argument("--temperature", type=float, default=0.0)
    parser.add_argument("--runs", type=int, default=3, help="repeats")
    parser.add_argument("-o", "--output", type=Path, help="also write the JSON document here, kind by kind")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    """Measure kind by kind; print a table on stdout, and one JSON document at the end."""
    options = arguments(argv)
    if options.threads:
        torch.set_num_threads(options.threads)
    pair = load_pair(options.config, dtype=options.dtype)
    document: dict[str, Any] = {
        "schema": "cascli.draft-length/1",
        **facts(),
        "threads": torch.get_num_threads(),
        "pair": options.config,
        "dtypes": {role: model.dtype for role, model in pair.info.models.items()},
        "device": str(pair.device),
        "temperature": options.temperature,
        "max_new_tokens": options.max_new_tokens,
        "runs": options.runs,
        "kinds": {},
    }
    for kind, prompts in by_kind(options.kinds, options.prompts).items():
        document["kinds"][kind] = found = of_kind(measured(pair, prompts, options), len(prompts))
        print(told(kind, found), flush=True)
        if options.output:
            options.output.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(document))


def by_kind(wanted: Sequence[str] | None, most: int) -> dict[str, list[Prompt]]:
    """Return the first prompts of each kind; only first turns, so that all strategies answer the same."""
    kinds: dict[str, list[Prompt]] = {}
    for prompt in builtin():
        if not wanted or prompt.category in wanted:
            kinds.setdefault(prompt.category, []).append(Prompt(prompt.turns[:1], prompt.id, prompt.category))
    return {kind: prompts[:most] for kind, prompts in kinds.items()}


def measured(pair: Pair, prompts: Sequence[Prompt], options: argparse.Namespace) -> Comparison:
    """Run all lengths and stops on the prompts of a kind."""
    draft = "" if options.draft == "model" else f"draft={options.draft},"
    fixed = [f"speculative:{draft}k={k}" for k in options.k]
    stops = [f"speculative:{draft}stop={stop},k=auto" for stop in options.stops]
    return compare(
        pair,
        list(prompts),
        ["target", *fixed, *stops],
        max_new_tokens=options.max_new_tokens,
        temperature=options.temperature,
        runs=options.runs,
    )


def of_kind(comparison: Comparison, prompts: int) -> dict[str, Any]:
    """Return the entry of a kind in the results file."""
    rows = {row.strategy: row for row in comparison.summary if row.strategy != "target"}
    drafted = {
        spec: sum(run.metrics.num_draft_tokens for run in runs) / sum(len(run.rounds) for run in runs)
        for spec in rows
        if (runs := [run for run in comparison.runs if run.spec == spec])
    }
    fixed = {spec: row for spec, row in rows.items() if "stop=" not in spec}
    best = max(fixed.values(), key=_speed)
    profile = comparison.profile
    counted = (
        {}
        if profile is None
        else {spec: counted_speed([run for run in comparison.runs if run.spec == spec], profile) for spec in rows}
    )
    most = max((value for spec, value in counted.items() if value and spec in fixed), default=None)
    return {
        "prompts": prompts,
        "c": None if profile is None else profile.c,
        "v": None if profile is None else {n: profile.v(n) for n in sorted(profile.target)},
        "spread": comparison.spread,
        "best_fixed": best.strategy,
        "best_fixed_speed": _speed(best),
        "oracle_speed": max((row.oracle_speed_vs_target or 0.0 for row in rows.values()), default=0.0) or None,
        "stops_over_best_fixed": {spec: _speed(row) / _speed(best) for spec, row in rows.items() if spec not in fixed},
        "stops_over_best_fixed_counted": {
            spec: value / most for spec, value in counted.items() if value and most and spec not in fixed
        },
        "strategies": {
            spec: {
                "speed": _speed(row),
                "counted_speed": counted.get(spec),
                "interval": row.speed_interval,
                "interval_kind": row.speed_interval_kind,
                "drafted_per_round": drafted[spec],
                "tested_acceptance_rate": row.tested_acceptance_rate,
                "target_calls_per_token": row.target_calls_per_token,
                "draft_calls_per_token": row.draft_calls_per_token,
                "oracle_speed": row.oracle_speed_vs_target,
                "same_as_target": row.same_as_target,
            }
            for spec, row in rows.items()
        },
    }


def told(kind: str, found: dict[str, Any]) -> str:
    """Return a summary of a kind in a few lines."""
    bound = "" if found["oracle_speed"] is None else f", bound {found['oracle_speed']:.2f}x"
    lines = [f"{kind}: best fixed {found['best_fixed']} {found['best_fixed_speed']:.2f}x{bound}"]
    for spec, share in found["stops_over_best_fixed"].items():
        verdict = "as good" if share >= NEAR else "not as good"
        lines.append(f"  {spec} {found['strategies'][spec]['speed']:.2f}x, {share:.3f} of the best fixed: {verdict}")
        if counted := found["stops_over_best_fixed_counted"].get(spec):
            lines.append(f"    {counted:.3f} by its passes and what one takes")
    return "\n".join(lines)


def _speed(row: Row) -> float:
    return row.speed_vs_target or 0.0


if __name__ == "__main__":
    main()
